//! The container runtime as the reconciler sees it: one small, idempotent facility with a working fake beside it.
//!
//! "Already so" is success everywhere. Every container and everything that belongs to it (snapshot, lease, log, user and
//! network namespace, cgroup) is found again by labels after any crash, so `list` is the only memory the agent needs.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use berth_common::id::{ContainerId, Name, TenantId};
use berth_common::model::{ContainerSpec, Limits, UnixMillis};
use berth_common::protocol::{ExecDown, ExecSpec, ExecUp};
use tokio::sync::mpsc;

use crate::image::ImageInfo;
use crate::network::Attach;
use crate::volume::keeper::Provide;

/// Who a container is; kept as labels on it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ContainerMeta {
    /// Its id.
    pub id: ContainerId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The tenant's name.
    pub tenant_name: Name,
    /// Its service's name.
    pub service_name: Name,
    /// Which replica.
    pub replica: u32,
}

/// Everything needed to make a container.
#[derive(Debug, Clone)]
pub struct CreateRequest {
    /// Who it is.
    pub meta: ContainerMeta,
    /// What it is made from.
    pub spec: ContainerSpec,
    /// Its image, unpacked.
    pub image: ImageInfo,
    /// Name servers for its resolv.conf; empty: the host's.
    pub nameservers: Vec<IpAddr>,
}

/// What the runtime holds under a container's id.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeContainer {
    /// Who it is, from its labels.
    pub meta: ContainerMeta,
    /// The spec it was last made or updated to, from its labels.
    pub spec: ContainerSpec,
    /// Manifest digest of its image.
    pub image: berth_common::model::Digest,
    /// Its process.
    pub task: TaskState,
    /// `create` finished; what is not complete is deleted and made again.
    pub complete: bool,
}

/// The process of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// There is none: never started, or its end was collected.
    None,
    /// Made, limits in force, not running its program yet.
    Created,
    /// Runs.
    Running {
        /// Host pid of PID 1.
        pid: u32,
        /// When it was started, as recorded at start.
        started_at: Option<UnixMillis>,
    },
    /// Ended; `collect` gives and forgets the exit.
    Stopped(TaskExit),
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskExit {
    /// Exit code, 128 + signal.
    pub code: i32,
    /// When.
    pub at: UnixMillis,
    /// OOM kills counted in its cgroup over its life, when that could still be read.
    pub oom_kills: Option<u64>,
    /// It was noted that its program was let run. Else it may have ended between being made and being let run; but a
    /// note can be lost, so this alone proves nothing.
    pub begun: bool,
}

/// A started task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Host pid of PID 1.
    pub pid: u32,
    /// When.
    pub at: UnixMillis,
}

/// Something the runtime noticed. Events can be lost or doubled: they only make the reconciler look sooner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeEvent {
    /// A container's PID 1 ended.
    Exited(ContainerId),
    /// The kernel killed something inside for memory.
    Oom(ContainerId),
    /// The connection to the runtime was lost or is back: look at everything again.
    Relist,
}

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The runtime can't be reached; everything may succeed later.
    #[error("containerd at {socket} can't be reached while {operation}")]
    Unreachable {
        /// Its socket.
        socket: String,
        /// What was tried.
        operation: &'static str,
        /// The transport's complaint.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime refused.
    #[error("{operation} of container {container} failed: {message}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// On which container.
        container: ContainerId,
        /// The runtime's words, shortened.
        message: String,
        /// Whether trying again can help: a missing program or a bad user can't.
        retryable: bool,
    },
    /// There is no such container or task.
    #[error("container {0} does not exist here")]
    Missing(ContainerId),
    /// It can't be connected to its networks; it was not started.
    #[error(
        "container {container} can't be connected: {why}; `berth-agent check` on its host says what is missing there"
    )]
    NotConnected {
        /// Which.
        container: ContainerId,
        /// The network and what is wrong with it.
        why: String,
    },
    /// It can't have its volumes; it was not started.
    #[error("container {container} can't have its data: {why}")]
    NoVolumes {
        /// Which.
        container: ContainerId,
        /// The volume and what is wrong with it.
        why: String,
    },
    /// The kernel holds other limits than were asked for (R1): the container was not started.
    #[error("limits of container {container} are not in force: {what}")]
    LimitsNotInForce {
        /// Which.
        container: ContainerId,
        /// The limit, wanted and found.
        what: String,
    },
}

impl RuntimeError {
    /// Whether trying again later can help.
    pub const fn retryable(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::LimitsNotInForce { .. }
            | Self::NotConnected { .. }
            | Self::NoVolumes { .. } => true,
            Self::Failed { retryable, .. } => *retryable,
            Self::Missing(_) => false,
        }
    }
}

/// Ends of a running exec. Dropping `up` closes its input; `down` ends after `Exit` or `Problem`.
#[derive(Debug)]
pub struct ExecSession {
    /// To the process.
    pub up: mpsc::Sender<ExecUp>,
    /// From the process.
    pub down: mpsc::Receiver<ExecDown>,
}

/// The runtime.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Version, for Hello and `check`.
    async fn version(&self) -> Result<String, RuntimeError>;

    /// Everything in berth's namespace, also what is half made or foreign there.
    async fn list(&self) -> Result<Vec<RuntimeContainer>, RuntimeError>;

    /// Makes snapshot, files and container; no process yet.
    async fn create(&self, request: &CreateRequest) -> Result<(), RuntimeError>;

    /// Waits until a container's volumes are here, for a while; so that starts, of which only some go on at a time, need not.
    async fn await_volumes(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let _ = id;
        Ok(())
    }

    /// Makes the task, reads its limits back (R1), then lets it run. Fails without a running process if a limit is missing.
    async fn start(&self, id: ContainerId) -> Result<Started, RuntimeError>;

    /// Sends a signal to PID 1 (`all`: to every process inside).
    async fn signal(&self, id: ContainerId, signal: i32, all: bool) -> Result<(), RuntimeError>;

    /// The signal the image or spec wants for stopping.
    async fn stop_signal(&self, id: ContainerId) -> Result<i32, RuntimeError>;

    /// Forgets an ended task and says how it ended; `None` if there is none. The writable layer stays.
    async fn collect(&self, id: ContainerId) -> Result<Option<TaskExit>, RuntimeError>;

    /// Deletes whatever is left of a container, in any state; kills it if it runs.
    async fn delete(&self, id: ContainerId) -> Result<(), RuntimeError>;

    /// Changes limits of a container, running or not, without restart, and records `spec`. Reads back.
    async fn update(&self, id: ContainerId, spec: &ContainerSpec) -> Result<(), RuntimeError>;

    /// The limits in force as the kernel reports them (disk as the snapshotter does).
    async fn read_limits(&self, id: ContainerId) -> Result<Limits, RuntimeError>;

    /// OOM kills in the container's cgroup so far.
    async fn oom_kills(&self, id: ContainerId) -> Result<u64, RuntimeError>;

    /// Bytes in the container's writable layer.
    async fn disk_usage(&self, id: ContainerId) -> Result<u64, RuntimeError>;

    /// Runs a process beside the container's own.
    async fn exec(&self, id: ContainerId, spec: &ExecSpec) -> Result<ExecSession, RuntimeError>;

    /// Gives every container that is started from now on its places on networks, before its first instruction.
    fn attach_to(&self, networks: Arc<dyn Attach>) {
        drop(networks);
    }

    /// Gives every container that is started from now on its volumes, before its process is made.
    fn provide_by(&self, volumes: Arc<dyn Provide>) {
        drop(volumes);
    }

    /// Events from now on. After a lost connection the stream goes on with [`RuntimeEvent::Relist`].
    fn events(&self) -> mpsc::Receiver<RuntimeEvent>;
}
