//! Control groups: berth's parents, one per tenant below, and what can be read and written under a container's.
//!
//! The hierarchy is `/berth.slice/tenant-<id>.slice/<container id>` in every controller (v1) or in the one tree (v2).
//! containerd's runtime makes the leaf with its limits through the OCI spec (R1); the agent owns the parents only.

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{Limits, Reservation};

/// Path of a container's cgroup below each controller's mount, as the OCI spec's `cgroupsPath`.
pub fn container_path(tenant: TenantId, container: ContainerId) -> String {
    format!("{}/{container}", tenant_path(tenant))
}

/// Path of a tenant's cgroup.
pub fn tenant_path(tenant: TenantId) -> String {
    format!("/{ROOT}/tenant-{tenant}.slice")
}

/// berth's own top cgroup.
pub const ROOT: &str = "berth.slice";

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

/// The control groups. Implemented for v1, v2, and in memory.
pub trait Cgroups: Send + Sync + 'static {
    /// 1 or 2.
    fn version(&self) -> u8;
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
    /// Writes every limit except disk to a live container's cgroup, and reads back.
    fn write_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        limits: &Limits,
        device: Option<Device>,
    ) -> Result<(), CgroupError>;
    /// The limits in force; `disk` is copied from `wanted`, as are IO limits when there is no device to throttle.
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
}
