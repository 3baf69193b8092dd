//! Control groups: berth's parents, one per tenant below, and what can be read and written under a container's.
//!
//! The hierarchy is `/<parent>/tenant-<id>.slice/<container id>`, in every controller (v1) or in the one tree (v2). The parent is
//! below what systemd delegates ([`DELEGATED`]) or, without it, `berth.slice`.
//! containerd's runtime makes the leaf with its limits through the OCI spec (R1); the agent owns the parents only.
//!
//! Files are read and written directly: the library for it turns unreadable counters into zeros, drops write errors and
//! moves live processes when it destroys a group, and here a wrong number must be absent and a lost write an error.
//! Every call blocks for as long as the kernel takes (reclaim on a lowered memory limit included): keep it off async threads.

mod convert;
mod detect;
mod device;
mod file;
mod meter;
mod tree;
pub mod v1;
pub mod v2;

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{Limits, Reservation};
use berth_common::protocol::Pressure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use convert::{CPU_PERIOD_US, parse_pressure, quota_us, root_weight, shares_of_weight, weight_of_shares};
pub use detect::{Kernel, detect, parent_for};
pub(crate) use device::unescape;
pub use device::{Backing, backing_of, disk_of};

/// Path of a container's cgroup below each controller's mount, with berth's top cgroup called `parent`.
pub fn container_path(parent: &str, tenant: TenantId, container: ContainerId) -> String {
    format!("{}/{container}", tenant_path(parent, tenant))
}

/// Path of a tenant's cgroup.
pub fn tenant_path(parent: &str, tenant: TenantId) -> String {
    format!("/{parent}/tenant-{tenant}.slice")
}

/// berth's own top cgroup where no service manager gives it one; several agents on one machine need different ones.
pub const DEFAULT_PARENT: &str = "berth.slice";

/// What systemd delegates to berth: the control group of `berth-containers.service`. What is inside is berth's alone; the
/// group itself and those above are systemd's (systemd, CGROUP_DELEGATION), so berth's top group is one further down.
pub const DELEGATED: &str = "berth.slice/berth-containers.service";

/// A block device, as `major:minor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Device {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}

/// Why a cgroup operation failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Reading or writing one file failed.
    #[error("{operation} {path}")]
    Io {
        /// `reading`, `writing "…" to`, `creating`, `removing`.
        operation: String,
        /// The file.
        path: String,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// A file holds something unexpected.
    #[error("{path} holds {found:?}, expected {expected}")]
    Unexpected {
        /// The file.
        path: String,
        /// Its content, shortened.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A memory limit would be below what is in use and can't be reclaimed; writing it would kill processes.
    #[error(
        "{path} can't be lowered to {wanted} bytes: {used} bytes are in use and can't be reclaimed; stop something inside first or choose a higher limit"
    )]
    InUse {
        /// The file.
        path: String,
        /// The limit that was asked for, bytes.
        wanted: u64,
        /// What is in use, bytes.
        used: u64,
    },
    /// A group still holds live processes, so it was left as it is.
    #[error("{path} still holds processes {pids:?}: they must end before it can be removed")]
    Busy {
        /// The group's directory.
        path: String,
        /// Some of the processes, by host pid.
        pids: Vec<u32>,
    },
    /// A controller that berth needs is not there.
    #[error("the {controller} controller is not available: {cure}")]
    NoController {
        /// Which.
        controller: &'static str,
        /// What to do.
        cure: String,
    },
}

/// Counters of one container since its cgroup was made. What can't be read is absent, never zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RawStats {
    /// CPU time, nanoseconds.
    pub cpu_ns: Option<u64>,
    /// Scheduling periods that elapsed while runnable.
    pub periods: Option<u64>,
    /// Of them, throttled.
    pub throttled: Option<u64>,
    /// Memory in use, bytes.
    pub memory: Option<u64>,
    /// Of it, inactive page cache, bytes.
    pub inactive_file: Option<u64>,
    /// OOM kills.
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes read from block devices.
    pub read_bytes: Option<u64>,
    /// Bytes written to block devices.
    pub write_bytes: Option<u64>,
}

/// Stalls of one container over the last ten seconds. Absent where the kernel does not measure them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stalls {
    /// Waiting for CPU.
    pub cpu: Option<Pressure>,
    /// Waiting for memory.
    pub memory: Option<Pressure>,
    /// Waiting for IO.
    pub io: Option<Pressure>,
}

/// Reads one container's counters again and again, with its files kept open; cheaper than [`Cgroups::stats`].
///
/// Survives the container's restart under the same id. Counters that can only change while the container runs may be
/// carried over when its CPU time did not advance.
pub trait Meter: Send {
    /// Counters now. What can't be read is absent.
    fn read(&mut self) -> RawStats;
}

/// The control groups. Implemented for v1, v2, and in memory.
pub trait Cgroups: Send + Sync + 'static {
    /// 1 or 2.
    fn version(&self) -> u8;
    /// Path of a container's cgroup below each controller's mount, as the OCI spec's `cgroupsPath`.
    fn container_path(&self, tenant: TenantId, container: ContainerId) -> String;
    /// Makes berth's top cgroup and sets it to the node's allocatable. Idempotent.
    fn ensure_root(&self, allocatable: Reservation) -> Result<(), CgroupError>;
    /// Makes a tenant's cgroup with its share. Idempotent.
    fn ensure_tenant(&self, tenant: TenantId, cpu_weight: u16) -> Result<(), CgroupError>;
    /// Removes a tenant's cgroup if nothing is in it. Idempotent.
    fn remove_tenant(&self, tenant: TenantId) -> Result<(), CgroupError>;
    /// Tenants that have a cgroup.
    fn tenants(&self) -> Result<Vec<TenantId>, CgroupError>;
    /// Removes what is left of a dead container's cgroup in every controller. Never moves or kills a live process.
    fn remove_container(&self, tenant: TenantId, container: ContainerId) -> Result<(), CgroupError>;
    /// The same for a container that the runtime has no process of any more: what lives there all the same was lost by a runtime that died
    /// in the middle of a start, and nobody else would ever end it, so it is killed.
    fn clear_container(&self, tenant: TenantId, container: ContainerId) -> Result<(), CgroupError> {
        match self.remove_container(tenant, container) {
            Err(CgroupError::Busy { .. }) => {}
            removed => return removed,
        }
        let pids = self.pids(tenant, container)?;
        tracing::warn!(%container, ?pids, "killing processes that the runtime has lost");
        for pid in pids {
            // One that has ended meanwhile is what is wanted.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        self.remove_container(tenant, container)
    }
    /// Writes every limit except disk to a live container's cgroup, and reads back.
    fn write_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        limits: &Limits,
        device: Option<Device>,
    ) -> Result<(), CgroupError>;
    /// The limits in force; `disk` is copied from `wanted`, as are IO limits when there is no device to throttle.
    ///
    /// A value that the kernel had to round (weight, memory pages) is reported as wanted when it is what the wanted
    /// one rounds to. "Unlimited" is reported as the type's maximum, so that it differs from anything wanted.
    /// Swap that is not excluded can't be expressed and is an error.
    fn read_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        wanted: &Limits,
        device: Option<Device>,
    ) -> Result<Limits, CgroupError>;
    /// Counters.
    fn stats(&self, tenant: TenantId, container: ContainerId) -> RawStats;
    /// Host pids inside.
    fn pids(&self, tenant: TenantId, container: ContainerId) -> Result<Vec<u32>, CgroupError>;

    /// A cheaper way to read counters repeatedly; `None` where there is none.
    fn meter(&self, _tenant: TenantId, _container: ContainerId) -> Option<Box<dyn Meter>> {
        None
    }

    /// Stalls of one container, where the kernel measures them.
    fn stalls(&self, _tenant: TenantId, _container: ContainerId) -> Stalls {
        Stalls::default()
    }

    /// What this host's control groups can't do, in words for the node's facts.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}
