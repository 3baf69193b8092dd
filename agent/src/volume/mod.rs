//! Volumes: data that follows its container. The agent's side: a pool of btrfs subvolumes with limits, snapshots and copies.
//!
//! Owns `<state_dir>/volumes`. [`pool`] decides what makes a folder a pool (pure), [`pool_apply`] does it; [`store`] makes
//! volumes in it, [`snapshots`] what is made of them; [`stream`] judges what another node sends (pure), [`transfer`] sends and receives;
//! [`mount`] gives a volume to a container; [`real`] is all of it behind [`Pool`], and [`keeper`] brings a pool to what the brain
//! wants. Refuses to decide who may write (R2): it keeps a volume's epoch, which never goes back, and mounts nothing under
//! an older one. Destroys nothing it did not make.

mod destroy;
pub mod keeper;
mod list;
mod meta;
pub mod mount;
pub mod pool;
pub mod pool_apply;
pub mod pool_error;
pub mod pool_remove;
mod real;
mod snapshots;
mod store;
pub mod stream;
mod transfer;

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use async_trait::async_trait;
use berth_common::id::{Epoch, SnapshotId, VolumeId};
use berth_common::units::Bytes;
use tokio::io::{AsyncRead, ReadBuf};

pub use meta::Meta;
pub use mount::Wanted;
pub use real::BtrfsPool;
pub use uuid::Uuid;

/// The smallest volume: below, btrfs's own bookkeeping of an empty one would be much of it.
pub const LEAST_SIZE: Bytes = Bytes::mib(1);

/// Why a volume can't be had, changed or moved.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// The kernel or the disk refused.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// The volume is not on this node.
    #[error("volume {0} is not on this node")]
    NoVolume(VolumeId),
    /// The volume has no such snapshot here.
    #[error("volume {volume} has no snapshot {snapshot} on this node")]
    NoSnapshot {
        /// The volume.
        volume: VolumeId,
        /// What it lacks.
        snapshot: SnapshotId,
    },
    /// The node holds a copy of the volume, which nobody writes to.
    #[error("volume {0} is a copy on this node: only a roll back to one of its snapshots makes it writable")]
    OnlyCopy(VolumeId),
    /// Something else is there under this id.
    #[error("volume {volume} is here already, {what}: the same id can't be used again")]
    Taken {
        /// The volume.
        volume: VolumeId,
        /// How it differs.
        what: String,
    },
    /// Its content would not fit.
    #[error("volume {volume} can't have {wanted}: {used} are in use; free some, or ask for more than that")]
    TooSmall {
        /// The volume.
        volume: VolumeId,
        /// The size asked for.
        wanted: Bytes,
        /// What its content takes.
        used: Bytes,
    },
    /// A size that no volume may have.
    #[error("{0} is too small for a volume: use at least {LEAST_SIZE}")]
    LeastSize(Bytes),
    /// An order of somebody who has been replaced (R2).
    #[error("volume {volume} is in epoch {held} here, this order is of epoch {given}: it is refused")]
    Epoch {
        /// The volume.
        volume: VolumeId,
        /// What this node knows.
        held: Epoch,
        /// What was asked.
        given: Epoch,
    },
    /// It is in use.
    #[error("volume {volume} is mounted at {at}: stop its container first")]
    Mounted {
        /// The volume.
        volume: VolumeId,
        /// Where, the first of them.
        at: PathBuf,
    },
    /// What was to run before a snapshot did not end well.
    #[error("the command before its snapshot failed, so there is none, and it is tried again: {why}")]
    Command {
        /// The volume.
        volume: VolumeId,
        /// What it said, or how it ended.
        why: String,
    },
    /// A snapshot that can't go now.
    #[error("snapshot {snapshot} of volume {volume} is being sent: try again when that is over")]
    BeingSent {
        /// The volume.
        volume: VolumeId,
        /// Its snapshot.
        snapshot: SnapshotId,
    },
    /// What lies at a path is not what berth put there.
    #[error("{path} is {found}, and berth did not make it so: it is left alone; move it away")]
    Strange {
        /// Where.
        path: PathBuf,
        /// What was found.
        found: &'static str,
    },
    /// The file beside a volume's data is damaged.
    #[error(
        "{path} is damaged: what it describes can't be used; put it back from the brain's word or delete the volume"
    )]
    Meta {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// What was received is not what was announced: nothing of it is kept.
    #[error("receiving volume {volume}: nothing of it was kept")]
    Stream {
        /// The volume.
        volume: VolumeId,
        /// What is wrong.
        #[source]
        source: stream::StreamError,
    },
    /// `btrfs` failed.
    #[error("{program} failed: {why}")]
    Tool {
        /// The command.
        program: &'static str,
        /// What it said, or how it ended.
        why: String,
    },
    /// The agent is going down.
    #[error("interrupted: the agent is stopping")]
    Interrupted,
}

impl VolumeError {
    /// Whether the same may work later without anybody doing anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Io { source, .. } => !matches!(
                source.raw_os_error(),
                Some(libc::EROFS | libc::EINVAL | libc::ENOTTY | libc::EDQUOT)
            ),
            Self::BeingSent { .. }
            | Self::Command { .. }
            | Self::Mounted { .. }
            | Self::Stream { .. }
            | Self::Tool { .. }
            | Self::Interrupted => true,
            _ => false,
        }
    }
}

/// One snapshot on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// btrfs's id of it on this node.
    pub uuid: Uuid,
    /// What it is a copy of; nil: it was made here.
    pub received_uuid: Uuid,
    /// The transaction that changed it last, also in name; numbers of different nodes can't be compared.
    pub generation: u64,
    /// The transaction that changed its content last.
    pub changed: u64,
    /// When it came to be on this node, seconds since 1970.
    pub made_at: u64,
    /// Its content, bytes, as of the last commit.
    pub referenced: Bytes,
    /// What would be free if it went, bytes, as of the last commit.
    pub exclusive: Bytes,
    /// Always, unless somebody meddled: then it is no base for an increment.
    pub read_only: bool,
}

impl Snapshot {
    /// What a stream of this snapshot says of itself, here and on all nodes that received it.
    pub fn announced(&self) -> Announced {
        Announced {
            uuid: if self.received_uuid.is_nil() {
                self.uuid
            } else {
                self.received_uuid
            },
            changed: self.changed,
        }
    }
}

/// What the sender says is coming; the receiver refuses everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Announced {
    /// The snapshot's id of btrfs where it was first made.
    pub uuid: Uuid,
    /// The transaction that changed its content last, on the sender.
    pub changed: u64,
}

/// The writable state of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Data {
    /// btrfs's id of it; another one after each roll back.
    pub uuid: Uuid,
    /// The transaction that changed it last.
    pub generation: u64,
    /// Limit in force, bytes; `None`: none, until the pool is opened anew.
    pub limit: Option<Bytes>,
    /// What counts against the limit, bytes, as of the last commit.
    pub referenced: Bytes,
    /// What no snapshot shares, bytes, as of the last commit.
    pub exclusive: Bytes,
    /// Somebody made it read-only: its container's writes fail.
    pub read_only: bool,
}

/// One volume on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// What it is.
    pub meta: Meta,
    /// What its container writes; `None`: only a copy.
    pub data: Option<Data>,
    /// Its snapshots, by id.
    pub snapshots: Vec<Snapshot>,
}

/// All that is in a pool.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Volumes, by id.
    pub volumes: Vec<Volume>,
    /// What berth did not make, in words; never touched. A subvolume that a container made in its volume is one of them: it
    /// escapes the volume's limit, and goes with the volume.
    pub strange: Vec<String>,
    /// Whether the counted bytes are known to be wrong, and are being counted anew.
    pub counting: bool,
}

/// A stream of a snapshot. Ends with an error unless the whole of it was read: what was cut short is never taken for all.
pub struct Sending(Pin<Box<dyn AsyncRead + Send>>);

impl Sending {
    /// From what does the work; it must end it when dropped.
    pub fn new(stream: impl AsyncRead + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl std::fmt::Debug for Sending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sending")
    }
}

impl AsyncRead for Sending {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.0.as_mut().poll_read(context, buffer)
    }
}

/// The node's volumes. Every operation is idempotent, and safe against a kill between any two of its steps: what it was to
/// change is then as before or as wanted. What blocks runs on threads for that; operations on one volume wait for one another.
#[async_trait]
pub trait Pool: Send + Sync {
    /// Makes an empty volume, its root owned by the container's root with mode 0755; one that is there with the same tenant
    /// and size is fine. The limit is in force before anyone sees it.
    ///
    /// # Errors
    /// `Taken`, `OnlyCopy`, `LeastSize`, `Io`.
    async fn create(&self, meta: &Meta) -> Result<(), VolumeError>;

    /// Changes the size while it is in use.
    ///
    /// # Errors
    /// `TooSmall` with what is in use; `NoVolume`, `LeastSize`, `Io`.
    async fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), VolumeError>;

    /// Remembers a hand-over, durably. The same epoch again is fine.
    ///
    /// # Errors
    /// `Epoch` for an older one; `NoVolume`, `Io`.
    async fn set_epoch(&self, volume: VolumeId, epoch: Epoch) -> Result<(), VolumeError>;

    /// Deletes the volume with all its snapshots here. Gone is fine. The space comes back in the background.
    ///
    /// # Errors
    /// `Mounted`, `BeingSent`, `Io`.
    async fn delete(&self, volume: VolumeId) -> Result<(), VolumeError>;

    /// Takes a snapshot, of a volume in use as a power cut at that moment would leave it. One that is there is returned as it is.
    ///
    /// # Errors
    /// `NoVolume`, `OnlyCopy`, `Strange`, `Io`.
    async fn snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Snapshot, VolumeError>;

    /// Deletes one. Gone is fine.
    ///
    /// # Errors
    /// `Mounted`, `BeingSent`, `Strange`, `Io`.
    async fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), VolumeError>;

    /// Makes the new volume `meta` from a snapshot of `from`; one that is there with the same tenant and size is fine.
    ///
    /// # Errors
    /// `TooSmall` if the snapshot is larger than the new volume; `NoSnapshot`, `Taken`, `Io`.
    async fn clone_snapshot(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        meta: &Meta,
    ) -> Result<(), VolumeError>;

    /// Makes the snapshot's content the volume's, at once and as a whole; a mere copy becomes writable by it. What it was before
    /// becomes the snapshot `keep`, or is dropped. With a `keep` that is there this has been done already: use a new id each time.
    ///
    /// # Errors
    /// `Mounted`, `TooSmall`, `NoSnapshot`, `Strange`, `Io`.
    async fn roll_back(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        keep: Option<SnapshotId>,
    ) -> Result<(), VolumeError>;

    /// Makes a mere copy of the volume: its writable state goes, its snapshots stay. `keep`: the snapshot that the writable
    /// state becomes. A copy already is fine.
    ///
    /// # Errors
    /// `Mounted`, `NoVolume`, `Io`.
    async fn retire(&self, volume: VolumeId, keep: Option<SnapshotId>) -> Result<(), VolumeError>;

    /// Everything here.
    ///
    /// # Errors
    /// `Io`; what concerns one volume is in the listing's strange entries.
    async fn list(&self) -> Result<Listing, VolumeError>;

    /// Streams a snapshot: whole, or what differs from `parent`, which the receiver must have. Dropping the stream ends it.
    ///
    /// # Errors
    /// `NoVolume`, `NoSnapshot`, `Tool`; what fails later is the stream's error.
    async fn send(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        parent: Option<SnapshotId>,
    ) -> Result<Sending, VolumeError>;

    /// Receives a snapshot of the volume `meta`, which becomes a copy here if it wasn't known. One that is there under this
    /// id is fine if it is what was announced; the stream isn't read then. Whatever goes wrong, nothing of it stays.
    ///
    /// # Errors
    /// `Stream` for what is cut short, damaged or another than announced; `Taken`, `Tool`, `Io`.
    async fn receive(
        &self,
        meta: &Meta,
        snapshot: SnapshotId,
        announced: Announced,
        stream: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Snapshot, VolumeError>;

    /// Mounts the volume, or a snapshot of it, for a container, owners shifted to its range. Mounted so already is fine.
    ///
    /// # Errors
    /// `Epoch` unless it is the volume's; `NoVolume`, `OnlyCopy`, `NoSnapshot`, `Io` (`EINVAL` where the kernel can't map ids).
    async fn mount(&self, wanted: &Wanted) -> Result<(), VolumeError>;

    /// Takes the mount away again, and its folder. Nothing there is fine.
    ///
    /// # Errors
    /// `Io`.
    async fn unmount(&self, target: PathBuf) -> Result<(), VolumeError>;

    /// Where volumes are mounted on this host, several of one each.
    ///
    /// # Errors
    /// `Io`.
    async fn mounted(&self) -> Result<Vec<(PathBuf, VolumeId)>, VolumeError>;
}
