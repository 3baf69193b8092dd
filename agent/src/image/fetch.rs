//! Brings an image's blobs into containerd's content store.
//!
//! Owns resuming, retrying and verifying. Refuses blobs longer or other than announced, whatever the source says, and never
//! holds more than a piece of one in memory. What a failed attempt wrote stays for the next one, until its lease ends.

use std::collections::HashMap;
use std::time::Duration;

use berth_common::model::ImageRef;
use bytes::BytesMut;
use tonic::Code;

use super::manifest::{Blob, Manifest};
use super::registry::Fault;
use super::source::Source;
use super::store::{Store, Writer};
use crate::containerd::ContainerdError;

/// Bytes gathered before they are handed to containerd: network chunks are small and each message waits for its answer.
const GATHER: usize = 512 << 10;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why an image could not be brought here.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// The source's fault, or its content's.
    #[error(transparent)]
    Source(#[from] Fault),
    /// containerd's.
    #[error(transparent)]
    Store(#[from] ContainerdError),
}

/// How often to try again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Failures in a row, without a byte in between, before giving up.
    pub(super) retries: u32,
    /// First pause; doubled each time up to 5 s.
    pub(super) pause: Duration,
}

impl Patience {
    pub(super) async fn wait(&self, failures: u32) {
        let pause = self.pause.saturating_mul(1 << failures.saturating_sub(1).min(10));
        // Half of it by chance, so that a fleet does not come back in step.
        let pause = pause.min(LONGEST_PAUSE).mul_f64(rand::random_range(0.5..1.0));
        tokio::time::sleep(pause).await;
    }
}

/// One image's way from its source into the store.
pub(super) struct Fetch<'a> {
    pub(super) store: &'a Store,
    pub(super) source: &'a Source,
    pub(super) lease: &'a str,
    pub(super) patience: Patience,
}

impl Fetch<'_> {
    /// The image's manifest and its bytes.
    pub(super) async fn manifest(
        &self,
        reference: &ImageRef,
        arch: &str,
    ) -> Result<(Manifest, Vec<u8>), Fault> {
        let mut failures = 0;
        loop {
            match self
                .source
                .manifest(reference.tag(), reference.digest(), arch)
                .await
            {
                Err(Fault::Passing(_)) if failures < self.patience.retries => {
                    failures += 1;
                    self.patience.wait(failures).await;
                }
                other => return other,
            }
        }
    }

    /// Makes sure the blob is in the store, held by the lease; the caller holds the digest's lock. `progress` hears the bytes so far. Gives the blob's labels
    /// if it was there before.
    pub(super) async fn blob(
        &self,
        blob: Blob,
        progress: impl Fn(u64) + Send + Sync,
    ) -> Result<Option<HashMap<String, String>>, Trouble> {
        let digest = blob.digest;
        // Held first, looked for second: in the other order a collection fits in between.
        self.store
            .hold(self.lease, "content", &digest.to_string())
            .await?;
        let mut failures = 0;
        let mut clean = false;
        loop {
            if let Some(labels) = self.store.blob_labels(digest).await? {
                progress(blob.size);
                return Ok(Some(labels));
            }
            let mut writer = match self.store.writer(self.lease, blob).await {
                Ok(Some(writer)) => writer,
                Ok(None) => continue,
                // A writer that was cut off a moment ago may still hold the place.
                Err(error) if error.retryable() && failures < self.patience.retries => {
                    failures += 1;
                    self.patience.wait(failures).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let resumed = writer.offset > 0;
            if writer.offset > blob.size {
                drop(writer);
                self.store.abort(digest).await;
                continue;
            }
            match self.body(blob, &mut writer, &progress).await {
                Ok(()) => {}
                Err(Trouble::Source(Fault::Wrong(why))) => {
                    drop(writer);
                    self.store.abort(digest).await;
                    return Err(Fault::Wrong(why).into());
                }
                Err(other) => return Err(other),
            }
            match writer.commit(HashMap::new()).await {
                Ok(()) => return Ok(None),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    self.store.abort(digest).await;
                    // What an earlier attempt left may be what is wrong: once more from the start.
                    if resumed && !clean {
                        clean = true;
                        continue;
                    }
                    let why = format!("the content of {digest} has another digest");
                    return Err(Fault::Wrong(why).into());
                }
                Err(status) => {
                    return Err(self
                        .store
                        .containerd
                        .error("committing blob", digest.to_string(), status)
                        .into());
                }
            }
        }
    }

    async fn body(
        &self,
        blob: Blob,
        writer: &mut Writer,
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(), Trouble> {
        let mut failures = 0;
        while writer.offset < blob.size {
            let before = writer.offset;
            match self.stretch(blob, writer, progress).await {
                Err(Trouble::Source(Fault::Passing(why))) => {
                    failures = if writer.offset > before { 1 } else { failures + 1 };
                    if failures > self.patience.retries {
                        return Err(Fault::Passing(why).into());
                    }
                    tracing::debug!(digest = %blob.digest, offset = writer.offset, why, "download broke off, resuming");
                    self.patience.wait(failures).await;
                }
                other => other?,
            }
        }
        Ok(())
    }

    /// One connection's worth.
    async fn stretch(
        &self,
        blob: Blob,
        writer: &mut Writer,
        progress: &(impl Fn(u64) + Send + Sync),
    ) -> Result<(), Trouble> {
        let mut stream = self.source.open(blob.digest, writer.offset).await?;
        let mut gathered = BytesMut::with_capacity(GATHER);
        loop {
            let next = stream.next().await;
            if let Ok(Some(chunk)) = &next {
                if writer.offset + (gathered.len() + chunk.len()) as u64 > blob.size {
                    let why = format!(
                        "{} is longer than the {} bytes the manifest names",
                        blob.digest, blob.size
                    );
                    return Err(Fault::Wrong(why).into());
                }
                gathered.extend_from_slice(chunk);
            }
            let ends = !matches!(next, Ok(Some(_)));
            if gathered.len() >= GATHER || (ends && !gathered.is_empty()) {
                let data = gathered.split().freeze();
                writer.write(data).await.map_err(|status| {
                    let object = blob.digest.to_string();
                    self.store.containerd.error("writing blob", object, status)
                })?;
                progress(writer.offset);
            }
            match next {
                Ok(Some(_)) => {}
                Ok(None) if writer.offset == blob.size => return Ok(()),
                Ok(None) => {
                    let why = format!("it ended after {} of {} bytes", writer.offset, blob.size);
                    return Err(Fault::Passing(why).into());
                }
                Err(fault) => return Err(fault.into()),
            }
        }
    }

    /// Puts a document that is at hand into the store. The caller holds the digest's lock.
    pub(super) async fn document(&self, blob: Blob, body: Vec<u8>) -> Result<(), Trouble> {
        let digest = blob.digest;
        self.store
            .hold(self.lease, "content", &digest.to_string())
            .await?;
        if self.store.blob_labels(digest).await?.is_some() {
            return Ok(());
        }
        // Remains of the same document would be appended to.
        self.store.abort(digest).await;
        let Some(mut writer) = self.store.writer(self.lease, blob).await? else {
            return Ok(());
        };
        let fail = |status| {
            self.store
                .containerd
                .error("writing blob", digest.to_string(), status)
        };
        writer.write(body.into()).await.map_err(fail)?;
        writer.commit(HashMap::new()).await.map_err(fail)?;
        Ok(())
    }
}
