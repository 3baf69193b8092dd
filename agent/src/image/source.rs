//! Where an image's blobs come from: the brain, or a registry.
//!
//! One interface over both, so that what fetches and verifies them does not care. Refuses to trust either: sizes and
//! digests are checked by the caller.

use std::sync::Arc;
use std::time::Duration;

use berth_common::id::TenantId;
use berth_common::model::{Digest, LoadedImage};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::LoadedImages;
use super::manifest::{Blob, Document, DocumentError, MAX_DOCUMENT, Manifest, read_document, read_manifest};
use super::registry::{Download, Fault, Registry};

/// A source of one image for one tenant.
pub(super) enum Source {
    /// Loaded into the brain.
    Brain {
        /// The brain's blobs.
        blobs: Arc<dyn LoadedImages>,
        /// For whom.
        tenant: TenantId,
        /// What it holds.
        image: LoadedImage,
        /// Longest silence.
        stall: Duration,
    },
    /// A registry.
    Registry(Registry),
}

/// Bytes on their way from either.
pub(super) enum Stream {
    Brain(mpsc::Receiver<Result<Bytes, String>>, Duration),
    Registry(Download),
}

impl Stream {
    /// The next bytes, None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match self {
            Self::Registry(download) => download.next().await,
            Self::Brain(chunks, stall) => match tokio::time::timeout(*stall, chunks.recv()).await {
                Ok(chunk) => chunk.transpose().map_err(Fault::Passing),
                Err(_) => Err(Fault::Passing("the brain sent nothing for too long".to_owned())),
            },
        }
    }
}

impl From<DocumentError> for Fault {
    fn from(error: DocumentError) -> Self {
        Self::Wrong(error.to_string())
    }
}

impl Source {
    /// What to call it in errors.
    pub(super) fn name<'a>(&self, registry: &'a str) -> &'a str {
        match self {
            Self::Brain { .. } => "the brain",
            Self::Registry(_) => registry,
        }
    }

    /// A blob's bytes from `offset` on.
    pub(super) async fn open(&self, digest: Digest, offset: u64) -> Result<Stream, Fault> {
        match self {
            Self::Registry(registry) => Ok(Stream::Registry(registry.blob(digest, offset).await?)),
            Self::Brain {
                blobs,
                tenant,
                image,
                stall,
            } => {
                if !image.blobs.iter().any(|(known, _)| *known == digest) {
                    return Err(Fault::Wrong(format!("the loaded image lacks its blob {digest}")));
                }
                let call = blobs.blob(*tenant, digest, offset);
                match tokio::time::timeout(*stall, call).await {
                    Ok(chunks) => Ok(Stream::Brain(chunks.map_err(Fault::Passing)?, *stall)),
                    Err(_) => Err(Fault::Passing("the brain does not answer".to_owned())),
                }
            }
        }
    }

    /// The image's manifest and its bytes. `tag` and `pinned` are the reference's; `arch` chooses from an index.
    pub(super) async fn manifest(
        &self,
        tag: Option<&str>,
        pinned: Option<Digest>,
        arch: &str,
    ) -> Result<(Manifest, Vec<u8>), Fault> {
        match self {
            Self::Brain { image, .. } => {
                let body = self
                    .small(Blob {
                        digest: image.manifest,
                        size: MAX_DOCUMENT,
                    })
                    .await?;
                let actual = Digest::of(&body);
                if actual != image.manifest {
                    return Err(Fault::Wrong(format!(
                        "the manifest should have the digest {} but has {actual}",
                        image.manifest
                    )));
                }
                Ok((read_manifest(&body)?, body))
            }
            Self::Registry(registry) => {
                let name = pinned.map(|digest| digest.to_string());
                let name = name.as_deref().or(tag).unwrap_or("latest");
                let body = registry.manifest(name, pinned).await?;
                match read_document(&body, arch)? {
                    Document::Manifest(manifest) => Ok((manifest, body)),
                    Document::Index(entry) => {
                        let body = registry
                            .manifest(&entry.digest.to_string(), Some(entry.digest))
                            .await?;
                        match read_document(&body, arch)? {
                            Document::Manifest(manifest) => Ok((manifest, body)),
                            Document::Index(_) => {
                                Err(Fault::Wrong("the image index holds another index".to_owned()))
                            }
                        }
                    }
                }
            }
        }
    }

    async fn small(&self, blob: Blob) -> Result<Vec<u8>, Fault> {
        let mut stream = self.open(blob.digest, 0).await?;
        let mut body = Vec::new();
        while let Some(chunk) = stream.next().await? {
            if (body.len() + chunk.len()) as u64 > blob.size {
                return Err(Fault::Wrong(format!(
                    "{} is longer than it should be",
                    blob.digest
                )));
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
