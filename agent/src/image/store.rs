//! Blobs and snapshots in containerd.
//!
//! Thin effects, each idempotent: what is already so is success. Owns the label names that keep containerd's garbage
//! collection right. Refuses to decide anything.

use std::collections::HashMap;

use berth_common::model::Digest;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use containerd_client::types::{Descriptor, Mount};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::manifest::Blob;
use super::scan::Compression;
use crate::containerd::{Containerd, ContainerdError};

/// On a layer's blob: the diff id it was found to have by a scan of ours.
const LABEL_SCANNED: &str = "berth/scanned";
const LABEL_PACKED: &str = "berth/packed";
const LABEL_UNPACKED_SIZE: &str = "berth/unpacked";
/// Largest piece of a blob in one message, bytes.
const PIECE: usize = 1 << 20;

/// What a scan left on a layer's blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scanned {
    pub(super) diff_id: Digest,
    pub(super) compression: Compression,
    pub(super) uncompressed: u64,
}

impl Scanned {
    pub(super) fn labels(&self) -> HashMap<String, String> {
        HashMap::from([
            (LABEL_SCANNED.to_owned(), self.diff_id.to_string()),
            (LABEL_PACKED.to_owned(), self.compression.media_type().to_owned()),
            (LABEL_UNPACKED_SIZE.to_owned(), self.uncompressed.to_string()),
        ])
    }

    pub(super) fn read(labels: &HashMap<String, String>) -> Option<Self> {
        let packed = labels.get(LABEL_PACKED)?;
        let known = [Compression::None, Compression::Gzip, Compression::Zstd];
        Some(Self {
            diff_id: labels.get(LABEL_SCANNED)?.parse().ok()?,
            compression: known.into_iter().find(|one| one.media_type() == packed)?,
            uncompressed: labels.get(LABEL_UNPACKED_SIZE)?.parse().ok()?,
        })
    }
}

/// An open write of one blob.
pub(super) struct Writer {
    requests: mpsc::Sender<api::WriteContentRequest>,
    replies: tonic::Streaming<api::WriteContentResponse>,
    reference: String,
    blob: Blob,
    pub(super) offset: u64,
}

impl Writer {
    async fn exchange(&mut self, request: api::WriteContentRequest) -> Result<u64, Status> {
        // A stream that containerd ended says why in its reply, not in the failed send.
        let _ = self.requests.send(request).await;
        match self.replies.message().await? {
            Some(reply) => Ok(u64::try_from(reply.offset).unwrap_or(0)),
            None => Err(Status::unavailable("the write ended early")),
        }
    }

    /// Appends `data`.
    pub(super) async fn write(&mut self, mut data: bytes::Bytes) -> Result<(), Status> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            let request = api::WriteContentRequest {
                action: api::WriteAction::Write.into(),
                r#ref: self.reference.clone(),
                offset: self.offset as i64,
                data: piece.to_vec(),
                ..Default::default()
            };
            self.offset = self.exchange(request).await?;
        }
        Ok(())
    }

    /// Ends the blob; containerd compares size and digest.
    pub(super) async fn commit(mut self, labels: HashMap<String, String>) -> Result<(), Status> {
        let request = api::WriteContentRequest {
            action: api::WriteAction::Commit.into(),
            r#ref: self.reference.clone(),
            offset: self.offset as i64,
            total: self.blob.size as i64,
            expected: self.blob.digest.to_string(),
            labels,
            ..Default::default()
        };
        match self.exchange(request).await {
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            other => other.map(drop),
        }
    }
}

/// containerd with one snapshotter.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) containerd: Containerd,
    pub(super) snapshotter: String,
}

pub(super) type Stored<T> = Result<T, ContainerdError>;

impl Store {
    fn ingest(digest: Digest) -> String {
        format!("berth-{}", digest.hex())
    }

    /// Makes `lease` hold a blob or snapshot, which need not exist yet: from now on it can't be collected under us.
    pub(super) async fn hold(&self, lease: &str, kind: &str, id: &str) -> Stored<()> {
        let body = api::AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(api::Resource {
                id: id.to_owned(),
                r#type: kind.to_owned(),
            }),
        };
        let mut client = api::leases_client::LeasesClient::new(self.containerd.channel());
        match client.add_resource(self.containerd.request(body)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => Ok(()),
            Err(status) => Err(self.containerd.error("leasing", id, status)),
        }
    }

    /// Makes `lease` hold the snapshot `key`.
    pub(super) async fn hold_snapshot(&self, lease: &str, key: &str) -> Stored<()> {
        let kind = format!("snapshots/{}", self.snapshotter);
        self.hold(lease, &kind, key).await
    }

    /// Labels of a blob, if it is there.
    pub(super) async fn blob_labels(&self, digest: Digest) -> Stored<Option<HashMap<String, String>>> {
        let body = api::InfoRequest {
            digest: digest.to_string(),
        };
        match self
            .containerd
            .content()
            .info(self.containerd.request(body))
            .await
        {
            Ok(reply) => Ok(Some(reply.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self
                .containerd
                .error("looking for blob", digest.to_string(), status)),
        }
    }

    /// Sets labels on a blob and leaves its others.
    pub(super) async fn label_blob(&self, digest: Digest, labels: HashMap<String, String>) -> Stored<()> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let body = api::UpdateRequest {
            info: Some(api::Info {
                digest: digest.to_string(),
                labels,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let reply = self
            .containerd
            .content()
            .update(self.containerd.request(body))
            .await;
        reply.map_err(|status| {
            self.containerd
                .error("labelling blob", digest.to_string(), status)
        })?;
        Ok(())
    }

    /// Begins or resumes writing a blob; None if it is there already.
    pub(super) async fn writer(&self, lease: &str, blob: Blob) -> Stored<Option<Writer>> {
        let reference = Self::ingest(blob.digest);
        let (requests, receiver) = mpsc::channel(2);
        let first = api::WriteContentRequest {
            action: api::WriteAction::Stat.into(),
            r#ref: reference.clone(),
            total: blob.size as i64,
            expected: blob.digest.to_string(),
            ..Default::default()
        };
        let fail = |status| {
            self.containerd
                .error("writing blob", blob.digest.to_string(), status)
        };
        let _ = requests.send(first).await;
        let stream = self.containerd.leased(lease, ReceiverStream::new(receiver));
        let replies = match self.containerd.content().write(stream).await {
            Ok(reply) => reply.into_inner(),
            Err(status) if status.code() == Code::AlreadyExists => return Ok(None),
            Err(status) => return Err(fail(status)),
        };
        let mut writer = Writer {
            requests,
            replies,
            reference,
            blob,
            offset: 0,
        };
        match writer.replies.message().await {
            Ok(Some(reply)) => {
                writer.offset = u64::try_from(reply.offset).unwrap_or(0);
                Ok(Some(writer))
            }
            Ok(None) => Err(fail(Status::unavailable("the write ended early"))),
            Err(status) if status.code() == Code::AlreadyExists => Ok(None),
            Err(status) => Err(fail(status)),
        }
    }

    /// Throws away what was written of a blob so far. That can collide with containerd still closing the write that was
    /// just dropped, so it is tried a few times; what stays anyway goes with its lease.
    pub(super) async fn abort(&self, digest: Digest) {
        for _ in 0..5 {
            let body = api::AbortRequest {
                r#ref: Self::ingest(digest),
            };
            match self
                .containerd
                .content()
                .abort(self.containerd.request(body))
                .await
            {
                Ok(_) => return,
                Err(status) if status.code() == Code::NotFound => return,
                Err(error) => tracing::debug!(%digest, %error, "a broken-off write stays for now"),
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// A blob's bytes as a stream.
    pub(super) async fn read(&self, digest: Digest) -> Stored<tonic::Streaming<api::ReadContentResponse>> {
        let body = api::ReadContentRequest {
            digest: digest.to_string(),
            ..Default::default()
        };
        let reply = self
            .containerd
            .content()
            .read(self.containerd.request(body))
            .await;
        let fail = |status| self.containerd.error("reading blob", digest.to_string(), status);
        Ok(reply.map_err(fail)?.into_inner())
    }

    /// A small blob's bytes; longer ones than `limit` are an error.
    pub(super) async fn read_small(&self, digest: Digest, limit: u64) -> Stored<Vec<u8>> {
        let fail = |status| self.containerd.error("reading blob", digest.to_string(), status);
        let mut stream = self.read(digest).await?;
        let mut body = Vec::new();
        while let Some(piece) = stream.next().await {
            body.extend_from_slice(&piece.map_err(fail)?.data);
            if body.len() as u64 > limit {
                return Err(fail(Status::out_of_range("longer than a document may be")));
            }
        }
        Ok(body)
    }

    /// Whether a committed snapshot is there.
    pub(super) async fn has_snapshot(&self, key: &str) -> Stored<bool> {
        let body = snap::StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        match self
            .containerd
            .snapshots()
            .stat(self.containerd.request(body))
            .await
        {
            Ok(reply) => {
                let kind = reply.into_inner().info.unwrap_or_default().kind;
                Ok(kind == i32::from(snap::Kind::Committed))
            }
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.containerd.error("looking for snapshot", key, status)),
        }
    }

    /// Makes a writable snapshot on `parent` (empty: on nothing).
    pub(super) async fn prepare(&self, lease: &str, key: &str, parent: &str) -> Stored<Vec<Mount>> {
        let body = snap::PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        let reply = self
            .containerd
            .snapshots()
            .prepare(self.containerd.leased(lease, body))
            .await;
        let reply = reply.map_err(|status| self.containerd.error("preparing snapshot", key, status))?;
        Ok(reply.into_inner().mounts)
    }

    /// Unpacks a layer into `mounts`; gives the digest of what was unpacked.
    pub(super) async fn apply(
        &self,
        lease: &str,
        layer: Blob,
        compression: Compression,
        mounts: Vec<Mount>,
    ) -> Stored<String> {
        let object = layer.digest.to_string();
        let body = api::ApplyRequest {
            diff: Some(Descriptor {
                media_type: compression.media_type().to_owned(),
                digest: object.clone(),
                size: layer.size as i64,
                ..Default::default()
            }),
            mounts,
            ..Default::default()
        };
        let reply = self
            .containerd
            .diff()
            .apply(self.containerd.leased(lease, body))
            .await;
        let reply = reply.map_err(|status| self.containerd.error("unpacking layer", object, status))?;
        Ok(reply.into_inner().applied.unwrap_or_default().digest)
    }

    /// Makes the snapshot `key` the permanent one `name`. False if another was quicker.
    pub(super) async fn commit_snapshot(&self, lease: &str, name: &str, key: &str) -> Stored<bool> {
        let body = snap::CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: HashMap::new(),
        };
        match self
            .containerd
            .snapshots()
            .commit(self.containerd.leased(lease, body))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::AlreadyExists => Ok(false),
            Err(status) => Err(self.containerd.error("committing snapshot", name, status)),
        }
    }

    /// Removes a snapshot; one that is gone is fine.
    pub(super) async fn remove_snapshot(&self, key: &str) -> Stored<()> {
        let body = snap::RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        };
        match self
            .containerd
            .snapshots()
            .remove(self.containerd.request(body))
            .await
        {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.containerd.error("removing snapshot", key, status)),
        }
    }
}
