//! Control groups v1: one hierarchy per controller, as old private hosts and this kind of hybrid set-up have them.
//!
//! What v1 cannot do is said in [`V1::warnings`]: the CPU of all containers together stays uncapped, because v1 refuses a parent's
//! quota below any child's; and buffered writes escape its IO throttle.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{IoLimits, Limits, MemorySwap, Reservation};
use berth_common::units::Bytes;

use super::convert::{self, CPU_PERIOD_US, quota_us, shares_of_weight, weight_of_shares, whole_pages};
use super::file::{read, read_number, set_number, unexpected, write};
use super::meter::{self, FileMeter};
use super::{
    CgroupError, Cgroups, Device, Kernel, Meter, RawStats, Stalls, container_path, tenant_path, tree,
};

/// Where each controller is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchies {
    /// `cpu`.
    pub cpu: PathBuf,
    /// `cpuacct`; often the same as `cpu`.
    pub cpuacct: PathBuf,
    /// `memory`.
    pub memory: PathBuf,
    /// `pids`.
    pub pids: PathBuf,
    /// `blkio`.
    pub blkio: PathBuf,
    /// The v2 tree beside them, for pressure.
    pub unified: Option<PathBuf>,
    /// All of them, also those that berth does not use but the runtime makes groups in.
    pub all: Vec<PathBuf>,
}

/// The v1 implementation of [`Cgroups`].
#[derive(Debug)]
pub struct V1 {
    mounts: Hierarchies,
    kernel: Kernel,
    parent: String,
}

/// The four throttles: file and value.
fn throttles(limits: &IoLimits) -> [(&'static str, u64); 4] {
    [
        ("blkio.throttle.read_bps_device", limits.read_bps.0),
        ("blkio.throttle.write_bps_device", limits.write_bps.0),
        ("blkio.throttle.read_iops_device", u64::from(limits.read_iops)),
        ("blkio.throttle.write_iops_device", u64::from(limits.write_iops)),
    ]
}

impl V1 {
    /// Over the given hierarchies, with berth's top cgroup called `parent`.
    pub const fn new(mounts: Hierarchies, kernel: Kernel, parent: String) -> Self {
        Self {
            mounts,
            kernel,
            parent,
        }
    }

    fn owned(&self) -> [&PathBuf; 5] {
        let m = &self.mounts;
        [&m.cpu, &m.cpuacct, &m.memory, &m.pids, &m.blkio]
    }

    fn create(&self, path: &str) -> Result<(), CgroupError> {
        for mount in self.owned() {
            tree::create_above(mount, path)?;
            tree::create(&below(mount, path))?;
        }
        Ok(())
    }

    fn group(&self, mount: &Path, tenant: TenantId, container: ContainerId) -> PathBuf {
        below(mount, &container_path(&self.parent, tenant, container))
    }

    fn set_quota(dir: &Path, quota: u64) -> Result<(), CgroupError> {
        set_number(&dir.join("cpu.cfs_period_us"), CPU_PERIOD_US, CPU_PERIOD_US)?;
        set_number(&dir.join("cpu.cfs_quota_us"), quota, quota)
    }

    /// Sets memory and memory + swap to the same. The kernel keeps memory ≤ memory + swap at every moment, so that one
    /// that moves away from the other goes first.
    fn set_memory(&self, dir: &Path, wanted: u64) -> Result<(), CgroupError> {
        let limit = dir.join("memory.limit_in_bytes");
        let both = dir.join("memory.memsw.limit_in_bytes");
        let rounded = whole_pages(wanted, self.kernel.page);
        let set = |path: &Path| {
            set_number(path, wanted, rounded).map_err(|error| match error {
                CgroupError::Io { ref source, .. } if source.raw_os_error() == Some(libc::EBUSY) => {
                    let usage = read_number(&dir.join("memory.usage_in_bytes")).ok().flatten();
                    CgroupError::InUse {
                        path: path.display().to_string(),
                        wanted,
                        used: usage.unwrap_or_default(),
                    }
                }
                other => other,
            })
        };
        if !both.exists() {
            return set(&limit);
        }
        if read_number(&both)?.is_none_or(|held| held < rounded) {
            set(&both)?;
            set(&limit)
        } else {
            set(&limit)?;
            set(&both)
        }
    }

    fn set_throttles(dir: &Path, device: Device, limits: &IoLimits) -> Result<(), CgroupError> {
        for (name, value) in throttles(limits) {
            let path = dir.join(name);
            write(&path, &format!("{}:{} {value}", device.major, device.minor))?;
            let held = read(&path)?;
            match convert::throttle_of(&held, device) {
                Ok(Some(found)) if found == value => {}
                _ => {
                    return Err(unexpected(
                        &path,
                        &held,
                        format!("{value} for {}:{}", device.major, device.minor),
                    ));
                }
            }
        }
        Ok(())
    }

    fn throttles_in_force(dir: &Path, device: Device) -> Result<IoLimits, CgroupError> {
        let held = |name: &str| {
            let path = dir.join(name);
            let text = read(&path)?;
            convert::throttle_of(&text, device)
                .map(|value| value.unwrap_or(u64::MAX))
                .map_err(|line| unexpected(&path, &line, "major:minor and a number"))
        };
        let operations = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(IoLimits {
            read_bps: Bytes(held("blkio.throttle.read_bps_device")?),
            write_bps: Bytes(held("blkio.throttle.write_bps_device")?),
            read_iops: operations(held("blkio.throttle.read_iops_device")?),
            write_iops: operations(held("blkio.throttle.write_iops_device")?),
        })
    }

    fn file_meter(&self, tenant: TenantId, container: ContainerId) -> FileMeter {
        let m = &self.mounts;
        FileMeter::v1(
            &self.group(&m.cpuacct, tenant, container),
            &self.group(&m.cpu, tenant, container),
            &self.group(&m.memory, tenant, container),
            &self.group(&m.pids, tenant, container),
            &self.group(&m.blkio, tenant, container),
        )
    }
}

/// `path`, which begins with a slash, below a mount.
fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

impl Cgroups for V1 {
    fn version(&self) -> u8 {
        1
    }

    fn container_path(&self, tenant: TenantId, container: ContainerId) -> String {
        container_path(&self.parent, tenant, container)
    }

    fn ensure_root(&self, allocatable: Reservation) -> Result<(), CgroupError> {
        self.create(&self.parent)?;
        let shares = convert::root_shares(allocatable);
        set_number(
            &self.mounts.cpu.join(&self.parent).join("cpu.shares"),
            shares,
            shares,
        )?;
        let pids = convert::pid_ceiling(self.kernel.pid_max);
        set_number(&self.mounts.pids.join(&self.parent).join("pids.max"), pids, pids)?;
        // Last: it alone can be refused for what runs inside, and must not keep the others from being set.
        self.set_memory(&self.mounts.memory.join(&self.parent), allocatable.memory.0)
    }

    fn ensure_tenant(&self, tenant: TenantId, cpu_weight: u16) -> Result<(), CgroupError> {
        self.create(&self.parent)?;
        let path = tenant_path(&self.parent, tenant);
        self.create(&path)?;
        let shares = shares_of_weight(cpu_weight);
        set_number(&below(&self.mounts.cpu, &path).join("cpu.shares"), shares, shares)
    }

    fn remove_tenant(&self, tenant: TenantId) -> Result<(), CgroupError> {
        let path = tenant_path(&self.parent, tenant);
        // A container may exist in one hierarchy only; then the tenant stays in all.
        for mount in &self.mounts.all {
            if tree::has_children(&below(mount, &path))? {
                return Ok(());
            }
        }
        self.mounts
            .all
            .iter()
            .try_for_each(|mount| tree::remove_if_empty(&below(mount, &path)))
    }

    fn tenants(&self) -> Result<Vec<TenantId>, CgroupError> {
        let mut found = BTreeSet::new();
        for mount in &self.mounts.all {
            tree::tenants(&mount.join(&self.parent), &mut found)?;
        }
        Ok(found.into_iter().collect())
    }

    fn remove_container(&self, tenant: TenantId, container: ContainerId) -> Result<(), CgroupError> {
        // A live container is in the pids hierarchy for certain: asked first, so that nothing of one is removed.
        tree::remove(&self.group(&self.mounts.pids, tenant, container))?;
        let mut first = Ok(());
        for mount in &self.mounts.all {
            let result = tree::remove(&self.group(mount, tenant, container));
            if first.is_ok() {
                first = result;
            }
        }
        first
    }

    fn write_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        limits: &Limits,
        device: Option<Device>,
    ) -> Result<(), CgroupError> {
        let group = |mount: &Path| self.group(mount, tenant, container);
        let cpu = group(&self.mounts.cpu);
        let shares = shares_of_weight(limits.cpu_weight);
        set_number(&cpu.join("cpu.shares"), shares, shares)?;
        Self::set_quota(&cpu, quota_us(limits.cpu))?;
        let pids = u64::from(limits.pids);
        set_number(&group(&self.mounts.pids).join("pids.max"), pids, pids)?;
        if let Some(device) = device {
            Self::set_throttles(&group(&self.mounts.blkio), device, &limits.io)?;
        }
        self.set_memory(&group(&self.mounts.memory), limits.memory.0)
    }

    fn read_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        wanted: &Limits,
        device: Option<Device>,
    ) -> Result<Limits, CgroupError> {
        let group = |mount: &Path| self.group(mount, tenant, container);
        let cpu = group(&self.mounts.cpu);
        let shares = read_number(&cpu.join("cpu.shares"))?.unwrap_or(u64::MAX);
        let quota = read_number(&cpu.join("cpu.cfs_quota_us"))?;
        let period = read_number(&cpu.join("cpu.cfs_period_us"))?.unwrap_or(CPU_PERIOD_US);
        let memory = group(&self.mounts.memory);
        let held = read_number(&memory.join("memory.limit_in_bytes"))?.unwrap_or(u64::MAX);
        let both = memory.join("memory.memsw.limit_in_bytes");
        if both.exists() {
            let text = read(&both)?;
            if text.trim().parse() != Ok(held) {
                return Err(unexpected(
                    &both,
                    &text,
                    format!("{held}, the memory limit, so that swap is none"),
                ));
            }
        }
        let pids = read_number(&group(&self.mounts.pids).join("pids.max"))?;
        let io = match device {
            Some(device) => Self::throttles_in_force(&group(&self.mounts.blkio), device)?,
            None => wanted.io,
        };
        Ok(Limits {
            cpu: convert::cpu_in_force(quota, period, wanted.cpu),
            cpu_weight: if shares == shares_of_weight(wanted.cpu_weight) {
                wanted.cpu_weight
            } else {
                weight_of_shares(shares)
            },
            memory: convert::memory_in_force(held, wanted.memory, self.kernel.page),
            // There is no such thing in v1; its soft limit acts only when the whole host is short.
            memory_high: wanted.memory_high,
            swap: MemorySwap::None,
            pids: pids.and_then(|pids| u32::try_from(pids).ok()).unwrap_or(u32::MAX),
            disk: wanted.disk,
            io,
        })
    }

    fn stats(&self, tenant: TenantId, container: ContainerId) -> RawStats {
        self.file_meter(tenant, container).read()
    }

    fn pids(&self, tenant: TenantId, container: ContainerId) -> Result<Vec<u32>, CgroupError> {
        tree::pids(&self.group(&self.mounts.pids, tenant, container))
    }

    fn meter(&self, tenant: TenantId, container: ContainerId) -> Option<Box<dyn Meter>> {
        Some(Box::new(self.file_meter(tenant, container)))
    }

    fn stalls(&self, tenant: TenantId, container: ContainerId) -> Stalls {
        self.mounts
            .unified
            .as_ref()
            .map_or_else(Stalls::default, |mount| {
                meter::stalls(&self.group(mount, tenant, container))
            })
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = vec![
            "cgroup v1: buffered writes are not throttled by the IO limits; use a host with cgroup v2 where that matters".to_owned(),
            "cgroup v1: memory_high does nothing: a container is ended at its memory limit without being slowed down before; use a host with cgroup v2 where that matters".to_owned(),
            "cgroup v1: the CPU of all containers together is weighed against the system's, not capped at the allocatable".to_owned(),
        ];
        if !self.mounts.memory.join("memory.memsw.limit_in_bytes").exists() {
            warnings.push(
                "no swap accounting: if the host has swap, containers can use it beyond their memory limit; boot with swapaccount=1 or switch swap off"
                    .to_owned(),
            );
        }
        warnings
    }
}

#[cfg(test)]
#[path = "v1_tests.rs"]
mod tests;
