//! From blobs in the store to a root file system.
//!
//! Owns the scan that comes before and the comparison that comes after every layer. Refuses a layer that does not unpack to
//! exactly what the image config names: snapshots are shared between tenants by that name, so a false one would poison
//! or leak another's. Idempotent: what is unpacked already is kept.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_common::model::Digest;
use bytes::{Buf as _, Bytes};
use containerd_client::types::Mount;
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;

use super::fetch::Trouble;
use super::manifest::Blob;
use super::registry::Fault;
use super::scan::{ScanError, ScanLimits, scan_layer};
use super::store::{Scanned, Store};

/// Reads a layer's blob from the store once and judges it; the finding is noted on the blob.
pub(super) async fn scan(
    store: &Store,
    layer: Blob,
    diff_id: Digest,
    limits: ScanLimits,
) -> Result<Scanned, Trouble> {
    let known = store.blob_labels(layer.digest).await?.unwrap_or_default();
    let scanned = match Scanned::read(&known) {
        Some(scanned) => scanned,
        None => {
            let mut stream = store.read(layer.digest).await?;
            let (feed, chunks) = mpsc::channel(2);
            let pipe = Pipe {
                chunks,
                current: Bytes::new(),
            };
            let job = tokio::task::spawn_blocking(move || scan_layer(pipe, &limits));
            let mut fed = 0;
            while let Some(piece) = stream.next().await {
                let piece = piece
                    .map(|piece| Bytes::from(piece.data))
                    .inspect(|piece| fed += piece.len() as u64)
                    .map_err(|status| io::Error::other(status.to_string()));
                // A scan that refused reads no further.
                if feed.send(piece).await.is_err() {
                    break;
                }
            }
            drop(feed);
            let found = job.await.map_err(|error| Fault::Passing(error.to_string()))?;
            let found = found.map_err(|error| match error {
                ScanError::Read(error) => {
                    let status = tonic::Status::unavailable(error.to_string());
                    Trouble::from(
                        store
                            .containerd
                            .error("reading blob", layer.digest.to_string(), status),
                    )
                }
                other => Fault::Wrong(format!("layer {}: {other}", layer.digest)).into(),
            })?;
            if fed != layer.size {
                // What is noted on the blob stays: never note a finding about a part of it.
                let status = tonic::Status::unavailable("the blob was read in part");
                return Err(store
                    .containerd
                    .error("reading blob", layer.digest.to_string(), status)
                    .into());
            }
            let scanned = Scanned {
                diff_id: found.diff_id,
                compression: found.compression,
                uncompressed: found.uncompressed,
            };
            store.label_blob(layer.digest, scanned.labels()).await?;
            scanned
        }
    };
    if scanned.diff_id != diff_id {
        return Err(mismatch(layer, diff_id, &scanned.diff_id.to_string()).into());
    }
    if scanned.uncompressed > limits.max_uncompressed {
        let limit = limits.max_uncompressed;
        return Err(Fault::Wrong(format!(
            "layer {}: {}",
            layer.digest,
            ScanError::TooLarge { limit }
        ))
        .into());
    }
    Ok(scanned)
}

/// A layer's bytes for the thread that scans it. If the feeding side is dropped half-way the scan sees a short layer, and
/// nobody waits for what it finds.
struct Pipe {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl Read for Pipe {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk?,
                None => return Ok(0),
            }
        }
        let n = buf.len().min(self.current.len());
        self.current.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

fn mismatch(layer: Blob, expected: Digest, found: &str) -> Fault {
    Fault::Wrong(format!(
        "layer {} unpacks to {found} but the image's config names {expected}",
        layer.digest
    ))
}

/// Unpacks one scanned layer on `parent` (empty for the lowest) as the snapshot `name`.
pub(super) async fn layer(
    store: &Store,
    lease: &str,
    layer: Blob,
    scanned: Scanned,
    parent: &str,
    name: &str,
) -> Result<(), Trouble> {
    store.hold_snapshot(lease, name).await?;
    if store.has_snapshot(name).await? {
        return Ok(());
    }
    let key = format!("berth-unpack-{:016x}", rand::random::<u64>());
    let unpacked = Abandoned {
        store: store.clone(),
        key: Some(key.clone()),
    };
    let mounts = store.prepare(lease, &key, parent).await?;
    let place = written_to(&mounts);
    let applied = store.apply(lease, layer, scanned.compression, mounts).await?;
    if applied != scanned.diff_id.to_string() {
        return Err(mismatch(layer, scanned.diff_id, &applied).into());
    }
    // containerd writes its records through to the disk and the files of layers not: after a power cut there would be a layer
    // that counts as whole and whose programs are empty.
    let synced = tokio::task::spawn_blocking(move || sync(place.as_deref())).await;
    synced
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|error| {
            let status = tonic::Status::internal(format!("writing it through to the disk: {error}"));
            store
                .containerd
                .error("unpacking layer", layer.digest.to_string(), status)
        })?;
    if store.commit_snapshot(lease, name, &key).await? {
        unpacked.keep();
    }
    Ok(())
}

/// The directory that a snapshot's files are written to.
fn written_to(mounts: &[Mount]) -> Option<PathBuf> {
    let mount = mounts.first()?;
    let upper = mount
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    upper
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(&mount.source)).filter(|path| path.is_dir()))
}

/// Writes its whole file system through to the disk; without a directory, everything.
fn sync(place: Option<&Path>) -> io::Result<()> {
    match place {
        Some(place) => Ok(nix::unistd::syncfs(std::fs::File::open(place)?)?),
        None => {
            nix::unistd::sync();
            Ok(())
        }
    }
}

/// Removes a half-unpacked snapshot when its work is dropped, also by a time limit. If this process dies, the lease does it.
struct Abandoned {
    store: Store,
    key: Option<String>,
}

impl Abandoned {
    fn keep(mut self) {
        self.key = None;
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let (Some(key), Ok(runtime)) = (self.key.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let store = self.store.clone();
        runtime.spawn(async move {
            if let Err(error) = store.remove_snapshot(&key).await {
                tracing::debug!(key, %error, "half-unpacked snapshot stays until its lease ends");
            }
        });
    }
}

/// Locks by name, so that two images with a layer in common do its work once.
#[derive(Debug, Default)]
pub(super) struct Locks(
    parking_lot::Mutex<std::collections::HashMap<String, std::sync::Weak<tokio::sync::Mutex<()>>>>,
);

impl Locks {
    pub(super) async fn lock(&self, name: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut map = self.0.lock();
            match map.get(name).and_then(std::sync::Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    map.retain(|_, lock| lock.strong_count() > 0);
                    let lock = Arc::default();
                    map.insert(name.to_owned(), Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}
