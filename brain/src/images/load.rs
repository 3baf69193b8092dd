//! From an upload to images.
//!
//! Owns the order of things: receive the body into a file, index it, plan every image, settle the names, and only then
//! copy and verify blobs. Nothing is copied for an archive that would be refused for its documents or names. Each
//! refusal names the entry at fault (R9).

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::clip;
use berth_common::model::Architecture;
use berth_common::units::Bytes;
use futures::{Stream, StreamExt as _};
use tempfile::TempPath;

use super::archive::{Archive, ArchiveError};
use super::blobs::{BlobError, BlobStore};
use super::plan::{Copier, settle_names};
use super::{LoadOptions, NewImage, docker, oci};

/// Why an archive was not loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The archive itself.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The store.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// Nothing in it for these nodes.
    #[error("the archive has no image for linux/{wanted}; it has {found}")]
    Platform {
        /// The architecture asked for.
        wanted: String,
        /// What is there.
        found: String,
    },
    /// The images have no names, or not those asked for.
    #[error("{why}")]
    Names {
        /// What is wrong.
        why: String,
        /// What to do.
        cure: &'static str,
    },
}

impl From<LoadError> for Problem {
    fn from(error: LoadError) -> Self {
        let detail = error.to_string();
        match error {
            LoadError::Archive(ArchiveError::Io { source, doing }) => {
                disk(&format!("{doing} the archive"), &source)
            }
            LoadError::Archive(ArchiveError::NotArchive(_)) => Self::invalid(detail).cure(
                "send what `docker save` or `skopeo copy … oci-archive:` writes, plain or with gzip or zstd",
            ),
            LoadError::Archive(ArchiveError::Damaged { .. } | ArchiveError::Truncated(_)) => {
                Self::invalid(detail).cure("write the archive anew and send it again")
            }
            LoadError::Blob(BlobError::Read { source, .. }) => disk("read the archive", &source),
            LoadError::Blob(BlobError::Write { source, .. } | BlobError::Prepare { source, .. }) => {
                disk("store the image", &source)
            }
            LoadError::Names { cure, .. } => Self::invalid(detail).cure(cure),
            LoadError::Platform { .. } => {
                Self::invalid(detail).cure("save the image for the platform of the nodes")
            }
            LoadError::Archive(_) | LoadError::Blob(BlobError::WrongDigest { .. }) => Self::invalid(detail),
        }
    }
}

/// A failure of the brain's own disk. The path is for the log; the caller learns only what it can act on.
fn disk(doing: &str, error: &io::Error) -> Problem {
    tracing::error!(%error, doing, "image load failed on the brain's disk");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Problem::unavailable(format!("cannot {doing}: the brain's disk is full"))
                .cure("remove images nobody uses, or give the brain's data directory more space")
        }
        kind => Problem::new(ErrorKind::Internal, format!("cannot {doing}: {kind}")),
    }
}

/// Writes an upload to a temporary file in `dir`, best [`BlobStore::tmp_dir`]. The file goes when the path is dropped,
/// so an upload that breaks off leaves nothing.
///
/// # Errors
/// `TooLarge` beyond `max_bytes`; `Invalid` if the body breaks off; `Unavailable` if the disk is full.
pub async fn receive<E: std::fmt::Display>(
    body: impl Stream<Item = Result<bytes::Bytes, E>>,
    dir: &Path,
    max_bytes: u64,
) -> Result<TempPath, Problem> {
    let failed = |error: &io::Error| disk("receive the archive", error);
    let mut builder = tempfile::Builder::new();
    builder
        .prefix("upload-")
        .permissions(std::fs::Permissions::from_mode(0o600));
    let (file, path) = builder
        .tempfile_in(dir)
        .map_err(|error| failed(&error))?
        .into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let mut body = std::pin::pin!(body);
    let mut total = 0_u64;
    while let Some(chunk) = body.next().await {
        let chunk = chunk.map_err(|error| {
            let why = clip(&error.to_string(), 200);
            Problem::invalid(format!("the upload broke off after {}: {why}", Bytes(total)))
        })?;
        total = total.saturating_add(chunk.len() as u64);
        if total > max_bytes {
            let max = Bytes(max_bytes);
            return Err(Problem::new(
                ErrorKind::TooLarge,
                format!("the archive has more than the {max} allowed"),
            )
            .cure("compress it with zstd, or let the nodes pull the image from a registry"));
        }
        let written = tokio::io::AsyncWriteExt::write_all(&mut file, &chunk).await;
        written.map_err(|error| failed(&error))?;
    }
    // tokio writes behind: only this tells whether the last chunk arrived.
    let flushed = tokio::io::AsyncWriteExt::flush(&mut file).await;
    flushed.map_err(|error| failed(&error))?;
    Ok(path)
}

/// Loads every image of an archive that is for these nodes. On failure the store holds at most blobs that
/// [`BlobStore::collect`] removes later.
///
/// # Errors
/// `Invalid` naming the entry if the archive can't be accepted; `Unavailable` if the disk is full.
pub async fn load(store: &BlobStore, archive: &Path, options: LoadOptions) -> Result<Vec<NewImage>, Problem> {
    let (store, archive) = (store.clone(), archive.to_owned());
    let work = tokio::task::spawn_blocking(move || load_blocking(&store, &archive, &options));
    match work.await {
        Ok(done) => Ok(done?),
        Err(error) => {
            tracing::error!(%error, "image load panicked");
            Err(Problem::new(
                ErrorKind::Internal,
                "loading the image failed inside berth",
            ))
        }
    }
}

fn load_blocking(store: &BlobStore, path: &Path, options: &LoadOptions) -> Result<Vec<NewImage>, LoadError> {
    let archive = Archive::open(path, &store.tmp_dir(), &options.limits)?;
    // Since version 25 docker writes both forms into one archive; the layout says more.
    let found = if archive.has("index.json") {
        oci::plan(&archive, options)?
    } else if archive.has("manifest.json") {
        docker::plan(&archive, options)?
    } else {
        let why = "it has neither index.json (OCI layout) nor manifest.json (docker archive) at its top";
        return Err(ArchiveError::NotArchive(why.to_owned()).into());
    };
    if found.plans.is_empty() {
        let others = found.others.into_iter().collect::<Vec<_>>();
        return Err(LoadError::Platform {
            wanted: options.arch.clone(),
            found: match others.as_slice() {
                [] => "no image at all".to_owned(),
                others => clip(&others.join(", "), 400),
            },
        });
    }
    let names = settle_names(&found.plans, options)?;
    let mut copier = Copier {
        archive: &archive,
        store,
        pins: store.pins(),
        done: HashMap::new(),
        unpacked: options.limits.unpacked,
    };
    let mut stored = HashMap::new();
    for plan in &found.plans {
        stored.insert(plan.id, plan.store(&mut copier)?);
    }
    let pins = Arc::new(copier.pins);
    names
        .into_iter()
        .map(|(reference, id)| {
            let (manifest, blobs) = stored[&id].clone();
            if reference.digest().is_some_and(|digest| digest != manifest) {
                return Err(LoadError::Names {
                    why: format!("the name {reference} asks for another digest than the image's, {manifest}"),
                    cure: "leave the digest out of ?name=",
                });
            }
            Ok(NewImage {
                reference,
                manifest,
                blobs,
                arch: Architecture(options.arch.clone()),
                _pins: pins.clone(),
            })
        })
        .collect()
}
