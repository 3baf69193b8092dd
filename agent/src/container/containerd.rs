//! Containers on containerd: what all operations share, and the [`Runtime`] that is made of them.
//!
//! Owns berth's containers in one containerd namespace. Exists in parts, one file an operation; each is safe when its
//! predecessor was killed at any step: a container's record is written last and marked before it is taken apart, names are
//! derived from the id, and what has no record is swept when the runtime is first used.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_common::id::{ContainerId, clip};
use berth_common::model::UnixMillis;
use containerd_client::services::v1 as api;
use containerd_client::types::Mount;
use parking_lot::Mutex;
use tokio::sync::OnceCell;
use tonic::{Code, Status};

use super::files::Places;
use super::idrange::Ranges;
use super::record::{self, Record};
use super::rootfs::{self, Layout};
use super::runtime::RuntimeError;
use super::spec::Host;
use crate::cgroup::{self, Backing, CgroupError, Cgroups, Device};
use crate::containerd::{Containerd, ContainerdError};
use crate::network::Attach;
use crate::volume::keeper::Provide;

/// What the runtime is told by the agent's configuration.
#[derive(Debug, Clone)]
pub struct RuntimeSettings {
    /// `overlayfs` or `btrfs`.
    pub snapshotter: String,
    /// containerd's runtime, normally `io.containerd.runc.v2`.
    pub runtime: String,
    /// The OCI runtime's binary; containerd's default if none.
    pub runtime_binary: Option<PathBuf>,
    /// Folder for mounts and pipes of the moment, such as `/run/berth-agent/containers`.
    pub run_dir: PathBuf,
    /// Folder for generated files and logs, such as `/var/lib/berth-agent`.
    pub data_dir: PathBuf,
    /// `berth-log`.
    pub log_binary: PathBuf,
    /// `berth-init`.
    pub init_binary: PathBuf,
    /// The device to throttle.
    pub device: IoDevice,
    /// Size at which a log is rotated, bytes.
    pub log_max_size: u64,
    /// Log files kept for each container.
    pub log_max_files: u32,
    /// Bytes a second of output a container may make before it is slowed down; 0 for no bound.
    pub log_rate: u64,
}

/// Which block device IO limits throttle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IoDevice {
    /// What holds the writable layers. Where that is no single device no container starts (R1).
    FindOut,
    /// This one.
    Given(Device),
    /// None, as the host's administrator decided: containers run without IO limits.
    Unthrottled,
}

/// Slowing down begins far above what people read and far below what disturbs neighbours, bytes a second.
pub const DEFAULT_LOG_RATE: u64 = 16 << 20;

/// The runtime on containerd. Clones share everything.
#[derive(Clone)]
pub struct ContainerdRuntime(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) containerd: Containerd,
    pub(super) cgroups: Arc<dyn Cgroups>,
    pub(super) settings: RuntimeSettings,
    pub(super) places: Places,
    pub(super) ranges: Mutex<Ranges>,
    /// What was last read or written of each container; saves a call on the way to its limits and counters.
    pub(super) known: Mutex<HashMap<ContainerId, Record>>,
    /// One operation on a container at a time.
    pub(super) locks: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    pub(super) swept: OnceCell<()>,
    pub(super) patience: super::shim::Patience,
    /// Who connects containers; nobody: they have their loopback alone.
    pub(super) networks: std::sync::OnceLock<Arc<dyn Attach>>,
    /// Who gives containers their volumes; nobody: those that have some are not started.
    pub(super) volumes: std::sync::OnceLock<Arc<dyn Provide>>,
    device: OnceCell<Option<Device>>,
    machine: HostFacts,
}

/// What doesn't change while the agent runs.
struct HostFacts {
    bounding: u64,
    open_files: u64,
    oom_score_adj: i32,
    cgroup_namespaces: bool,
}

impl HostFacts {
    fn read() -> Self {
        // The host's, not the agent's own: containerd's shims start containers, and the agent's unit has less.
        let status = std::fs::read_to_string("/proc/1/status")
            .or_else(|_| std::fs::read_to_string("/proc/self/status"))
            .unwrap_or_default();
        let bounding = status
            .lines()
            .find_map(|line| u64::from_str_radix(line.strip_prefix("CapBnd:")?.trim(), 16).ok())
            .unwrap_or(0);
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
        let own: i32 = own.trim().parse().unwrap_or(0);
        let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
        Self {
            bounding,
            open_files: limit.map_or(1024, |(_, hard)| hard),
            // Before the system's own services, and above the shim, which containerd puts one above itself: without
            // CAP_SYS_RESOURCE nobody may go below its parent.
            oom_score_adj: (own + 10).clamp(100, 1000),
            cgroup_namespaces: Path::new("/proc/self/ns/cgroup").exists(),
        }
    }
}

impl std::fmt::Debug for ContainerdRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContainerdRuntime")
            .field("containerd", &self.0.containerd)
            .finish_non_exhaustive()
    }
}

impl ContainerdRuntime {
    /// On a containerd namespace; touches nothing before the first call.
    pub fn new(containerd: Containerd, cgroups: Arc<dyn Cgroups>, settings: RuntimeSettings) -> Self {
        Self(Arc::new(Inner {
            containerd,
            cgroups,
            places: Places::new(&settings.run_dir, &settings.data_dir),
            ranges: Mutex::default(),
            known: Mutex::default(),
            locks: Mutex::default(),
            swept: OnceCell::new(),
            patience: super::shim::Patience::default(),
            networks: std::sync::OnceLock::new(),
            volumes: std::sync::OnceLock::new(),
            device: OnceCell::new_with(match settings.device {
                IoDevice::FindOut => None,
                IoDevice::Unthrottled => Some(None),
                IoDevice::Given(device) => Some(Some(device)),
            }),
            machine: HostFacts::read(),
            settings,
        }))
    }

    /// Folder with a container's output, for [`crate::logs::reader::read`].
    pub fn log_dir(&self, id: ContainerId) -> PathBuf {
        self.0.places.logs(id)
    }

    /// Whether the kernel enforces the disk limit.
    pub fn disk_limit_hard(&self) -> bool {
        self.0.settings.snapshotter == "btrfs"
    }
}

impl Inner {
    /// Waits until no other operation works on this container.
    pub(super) async fn lock(&self, id: ContainerId) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = Arc::clone(self.locks.lock().entry(id).or_default());
        lock.lock_owned().await
    }

    /// The snapshot of a container.
    pub(super) fn snapshot_key(id: ContainerId) -> String {
        format!("berth-{id}")
    }

    /// The error of a call about a container.
    pub(super) fn failed(&self, operation: &'static str, id: ContainerId, status: Status) -> RuntimeError {
        match status.code() {
            Code::NotFound => RuntimeError::Missing(id),
            Code::Unavailable | Code::Cancelled => self.unreachable(operation, status),
            code => RuntimeError::Failed {
                operation,
                container: id,
                message: clip(status.message(), 500),
                retryable: retryable(code, status.message()),
            },
        }
    }

    /// The error of a call when the daemon isn't there.
    pub(super) fn unreachable(&self, operation: &'static str, status: Status) -> RuntimeError {
        let socket = self.containerd.socket().display().to_string();
        RuntimeError::Unreachable {
            socket,
            operation,
            source: Box::new(status),
        }
    }

    pub(super) fn connection_failed(error: ContainerdError) -> RuntimeError {
        let (socket, operation) = (error.socket.clone(), error.operation);
        RuntimeError::Unreachable {
            socket,
            operation,
            source: Box::new(error),
        }
    }

    /// A container's record, from memory or containerd.
    pub(super) async fn record(&self, id: ContainerId) -> Result<Record, RuntimeError> {
        let known = self.known.lock().get(&id).cloned();
        match known {
            Some(record) => Ok(record),
            None => self.fresh_record(id).await,
        }
    }

    /// A container's record as containerd has it now.
    pub(super) async fn fresh_record(&self, id: ContainerId) -> Result<Record, RuntimeError> {
        let body = api::GetContainerRequest { id: id.to_string() };
        let reply = self
            .containerd
            .containers()
            .get(self.containerd.request(body))
            .await;
        let reply = reply.map_err(|status| self.failed("reading the record", id, status))?;
        let container = reply.into_inner().container.unwrap_or_default();
        let record = record::read(&container).ok_or_else(|| RuntimeError::Failed {
            operation: "reading the record",
            container: id,
            message: "it was not made by this version of berth; delete it".into(),
            retryable: false,
        })?;
        self.known.lock().insert(id, record.clone());
        Ok(record)
    }

    /// The mounts of a container's snapshot.
    pub(super) async fn mounts(&self, id: ContainerId) -> Result<Vec<Mount>, RuntimeError> {
        let body = api::snapshots::MountsRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: Self::snapshot_key(id),
        };
        let reply = self
            .containerd
            .snapshots()
            .mounts(self.containerd.request(body))
            .await;
        Ok(reply
            .map_err(|status| self.failed("finding the snapshot", id, status))?
            .into_inner()
            .mounts)
    }

    /// The meaning of a snapshot's mounts.
    pub(super) fn layout(id: ContainerId, mounts: &[Mount]) -> Result<Layout, RuntimeError> {
        rootfs::layout(mounts).ok_or_else(|| RuntimeError::Failed {
            operation: "understanding the snapshot",
            container: id,
            message: format!("the snapshotter gave {} mounts of an unknown form", mounts.len()),
            retryable: false,
        })
    }

    /// The device that holds writable layers, found out once; none where there is nothing to throttle.
    ///
    /// # Errors
    /// Where IO limits could not be in force (R1).
    pub(super) async fn device(
        &self,
        id: ContainerId,
        layout: Option<&Layout>,
    ) -> Result<Option<Device>, RuntimeError> {
        let path = layout.and_then(rootfs::writable).map(Path::to_owned);
        let path = path.unwrap_or_else(|| self.settings.data_dir.clone());
        let unlimited = |what: String| RuntimeError::LimitsNotInForce {
            container: id,
            what: format!(
                "IO can't be limited: {what}; put containerd's data on a disk, or set io_device in the agent's settings \
                 to a device, or to \"none\" to run containers without IO limits"
            ),
        };
        let found = self.device.get_or_try_init(|| async move {
            let shown = path.display().to_string();
            let found = tokio::task::spawn_blocking(move || cgroup::backing_of(&path)).await;
            match found {
                Ok(Ok(Backing::Disk(device))) => Ok(Some(device)),
                Ok(Ok(Backing::Memory)) => Ok(None),
                Ok(Ok(Backing::Other { file_system })) => Err(unlimited(format!(
                    "{shown} is on {file_system}, which no single block device holds"
                ))),
                Ok(Err(error)) => Err(unlimited(format!(
                    "the device that holds {shown} can't be found out ({})",
                    with_cause(&error)
                ))),
                Err(error) => Err(self.again(id, &error.to_string())),
            }
        });
        found.await.copied()
    }

    /// The device, if it was found out already.
    pub(super) fn known_device(&self) -> Option<Option<Device>> {
        self.device.get().copied()
    }

    /// What specs are built for.
    pub(super) async fn host(&self, id: ContainerId, layout: &Layout) -> Result<Host, RuntimeError> {
        Ok(Host {
            device: self.device(id, Some(layout)).await?,
            bounding: super::caps::from_mask(self.machine.bounding),
            open_files: self.machine.open_files,
            oom_score_adj: self.machine.oom_score_adj,
            cgroup_namespaces: self.machine.cgroup_namespaces,
            cgroup_version: self.cgroups.version(),
            machine: std::env::consts::ARCH,
        })
    }

    /// Runs blocking work off the async threads.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        id: ContainerId,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let fail = |message: String| RuntimeError::Failed {
            operation,
            container: id,
            message,
            retryable: true,
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(fail(error.to_string())),
            Err(error) => Err(fail(error.to_string())),
        }
    }
}

/// Whether trying again can help: not where the image or the spec is at fault.
fn retryable(code: Code, message: &str) -> bool {
    const HOPELESS: [&str; 5] = [
        "executable file not found",
        "no such file or directory: unknown",
        "permission denied: unknown",
        "exec format error",
        "is not executable",
    ];
    !matches!(code, Code::InvalidArgument | Code::Unimplemented)
        && !HOPELESS.iter().any(|text| message.contains(text))
}

/// An error with what lies under it.
fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// A cgroup error as one about a container.
pub(super) fn cgroup_failed(id: ContainerId, error: &CgroupError) -> RuntimeError {
    RuntimeError::Failed {
        operation: "the control group",
        container: id,
        message: with_cause(error),
        retryable: true,
    }
}

/// A protobuf time in milliseconds.
pub(super) fn millis(time: Option<prost_types::Timestamp>) -> UnixMillis {
    let time = time.unwrap_or_default();
    UnixMillis(u64::try_from(time.seconds * 1000 + i64::from(time.nanos) / 1_000_000).unwrap_or(0))
}
