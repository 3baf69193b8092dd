//! Control groups v2: one tree for all controllers.
//!
//! A controller works in a group only if every group above it passes it on (`cgroup.subtree_control`), and one that
//! passes any on can't hold processes itself. berth makes its groups empty, so that a refusal means that somebody else
//! put processes there; the error names them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{IoLimits, Limits, MemorySwap, Reservation};
use berth_common::units::Bytes;

use super::convert::{self, CPU_PERIOD_US, quota_us, whole_pages};
use super::file::{io, keyed, read, read_number, set_number, unexpected, write, write_raw};
use super::meter::{self, FileMeter};
use super::{
    CgroupError, Cgroups, Device, Kernel, Meter, RawStats, Stalls, container_path, tenant_path, tree,
};

/// What limits need (R1).
const CONTROLLERS: [&str; 4] = ["cpu", "memory", "pids", "io"];

/// The v2 implementation of [`Cgroups`].
#[derive(Debug)]
pub struct V2 {
    mount: PathBuf,
    kernel: Kernel,
    parent: String,
}

impl V2 {
    /// Over the tree at `mount`, with berth's top cgroup called `parent`.
    ///
    /// # Errors
    /// [`CgroupError::NoController`] for the first controller that the tree does not have.
    pub fn new(mount: PathBuf, kernel: Kernel, parent: String) -> Result<Self, CgroupError> {
        let held = read(&mount.join("cgroup.controllers"))?;
        for controller in CONTROLLERS {
            if !held.split_whitespace().any(|name| name == controller) {
                return Err(CgroupError::NoController {
                    controller,
                    cure: format!(
                        "boot with cgroup_enable={controller}, or with cgroup_no_v1=all if a v1 hierarchy holds it"
                    ),
                });
            }
        }
        Ok(Self {
            mount,
            kernel,
            parent,
        })
    }

    /// Makes berth's top cgroup and every one above it that is not there, passing the controllers on all the way.
    fn make_top(&self) -> Result<PathBuf, CgroupError> {
        tree::create_above(&self.mount, &self.parent)?;
        let top = self.mount.join(&self.parent);
        tree::create(&top)?;
        let mut dir = self.mount.clone();
        Self::pass_on(&dir)?;
        for part in self.parent.split('/') {
            dir.push(part);
            Self::pass_on(&dir)?;
        }
        Ok(top)
    }

    fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    fn group(&self, tenant: TenantId, container: ContainerId) -> PathBuf {
        self.dir(&container_path(&self.parent, tenant, container))
    }

    /// Passes the controllers on to the groups below `dir`, and reads back: one write for each, since a joint write
    /// does nothing if one of them fails.
    fn pass_on(dir: &Path) -> Result<(), CgroupError> {
        let path = dir.join("cgroup.subtree_control");
        let missing = |text: &str| {
            CONTROLLERS
                .into_iter()
                .find(|wanted| !text.split_whitespace().any(|name| name == *wanted))
        };
        if missing(&read(&path)?).is_none() {
            return Ok(());
        }
        for controller in CONTROLLERS {
            let value = format!("+{controller}");
            write_raw(&path, &value).map_err(|error| {
                if error.raw_os_error() == Some(libc::EBUSY) {
                    let inside = read(&dir.join("cgroup.procs")).unwrap_or_default();
                    return CgroupError::Busy {
                        path: dir.display().to_string(),
                        pids: inside
                            .lines()
                            .filter_map(|pid| pid.parse().ok())
                            .take(8)
                            .collect(),
                    };
                }
                io(format!("writing {value:?} to"), &path, error)
            })?;
        }
        let held = read(&path)?;
        match missing(&held) {
            None => Ok(()),
            Some(controller) => Err(unexpected(&path, &held, format!("{controller} in it"))),
        }
    }

    fn set_cpu_max(dir: &Path, quota: u64) -> Result<(), CgroupError> {
        let path = dir.join("cpu.max");
        let value = format!("{quota} {CPU_PERIOD_US}");
        if read(&path)?.trim() == value {
            return Ok(());
        }
        write(&path, &value)?;
        let held = read(&path)?;
        if held.trim() == value {
            Ok(())
        } else {
            Err(unexpected(&path, &held, value))
        }
    }

    /// Sets memory, and swap to none. v2 answers a limit below what is in use with OOM kills, so that is refused here.
    fn set_memory(&self, dir: &Path, wanted: u64) -> Result<(), CgroupError> {
        let path = dir.join("memory.max");
        let rounded = whole_pages(wanted, self.kernel.page);
        if read_number(&path)?.is_none_or(|held| held > rounded) {
            let used = read_number(&dir.join("memory.current"))?.unwrap_or(u64::MAX);
            let stat = read(&dir.join("memory.stat"))?;
            let kept = ["inactive_file", "active_file", "slab_reclaimable"]
                .into_iter()
                .filter_map(|key| keyed(&stat, key))
                .fold(used, u64::saturating_sub);
            if kept > rounded {
                return Err(CgroupError::InUse {
                    path: path.display().to_string(),
                    wanted,
                    used: kept,
                });
            }
        }
        let swap = dir.join("memory.swap.max");
        if swap.exists() {
            set_number(&swap, 0, 0)?;
        }
        set_number(&path, wanted, rounded)
    }

    /// Sets where reclaim and slowing down begin; `max`: nowhere.
    fn set_high(&self, dir: &Path, wanted: Option<Bytes>) -> Result<(), CgroupError> {
        let path = dir.join("memory.high");
        match wanted {
            Some(bytes) => set_number(&path, bytes.0, whole_pages(bytes.0, self.kernel.page)),
            None if read_number(&path)?.is_none() => Ok(()),
            None => write(&path, "max"),
        }
    }

    fn set_io(dir: &Path, device: Device, limits: &IoLimits) -> Result<(), CgroupError> {
        let path = dir.join("io.max");
        let line = convert::io_max_line(device, limits);
        write(&path, &line)?;
        let held = read(&path)?;
        if convert::io_max_of(&held, device).as_ref() == Ok(limits) {
            Ok(())
        } else {
            Err(unexpected(&path, &held, line))
        }
    }
}

impl Cgroups for V2 {
    fn version(&self) -> u8 {
        2
    }

    fn container_path(&self, tenant: TenantId, container: ContainerId) -> String {
        container_path(&self.parent, tenant, container)
    }

    fn ensure_root(&self, allocatable: Reservation) -> Result<(), CgroupError> {
        let root = self.make_top()?;
        let weight = u64::from(convert::root_weight(allocatable));
        set_number(&root.join("cpu.weight"), weight, weight)?;
        Self::set_cpu_max(&root, quota_us(allocatable.cpu))?;
        let pids = convert::pid_ceiling(self.kernel.pid_max);
        set_number(&root.join("pids.max"), pids, pids)?;
        // Last: it alone can be refused for what runs inside, and must not keep the others from being set.
        self.set_memory(&root, allocatable.memory.0)
    }

    fn ensure_tenant(&self, tenant: TenantId, cpu_weight: u16) -> Result<(), CgroupError> {
        self.make_top()?;
        let dir = self.dir(&tenant_path(&self.parent, tenant));
        tree::create(&dir)?;
        Self::pass_on(&dir)?;
        let weight = u64::from(cpu_weight);
        set_number(&dir.join("cpu.weight"), weight, weight)
    }

    fn remove_tenant(&self, tenant: TenantId) -> Result<(), CgroupError> {
        tree::remove_if_empty(&self.dir(&tenant_path(&self.parent, tenant)))
    }

    fn tenants(&self) -> Result<Vec<TenantId>, CgroupError> {
        let mut found = BTreeSet::new();
        tree::tenants(&self.mount.join(&self.parent), &mut found)?;
        Ok(found.into_iter().collect())
    }

    fn remove_container(&self, tenant: TenantId, container: ContainerId) -> Result<(), CgroupError> {
        tree::remove(&self.group(tenant, container))
    }

    fn write_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        limits: &Limits,
        device: Option<Device>,
    ) -> Result<(), CgroupError> {
        let dir = self.group(tenant, container);
        let weight = u64::from(limits.cpu_weight);
        set_number(&dir.join("cpu.weight"), weight, weight)?;
        Self::set_cpu_max(&dir, quota_us(limits.cpu))?;
        let pids = u64::from(limits.pids);
        set_number(&dir.join("pids.max"), pids, pids)?;
        if let Some(device) = device {
            Self::set_io(&dir, device, &limits.io)?;
        }
        self.set_high(&dir, limits.memory_high)?;
        self.set_memory(&dir, limits.memory.0)
    }

    fn read_limits(
        &self,
        tenant: TenantId,
        container: ContainerId,
        wanted: &Limits,
        device: Option<Device>,
    ) -> Result<Limits, CgroupError> {
        let dir = self.group(tenant, container);
        let weight_path = dir.join("cpu.weight");
        let weight = read_number(&weight_path)?
            .and_then(|weight| u16::try_from(weight).ok())
            .ok_or_else(|| unexpected(&weight_path, "", "a weight of 1 to 10000"))?;
        let max_path = dir.join("cpu.max");
        let text = read(&max_path)?;
        let bad = || unexpected(&max_path, &text, "a quota or max, and a period");
        let (quota, period) = text.trim().split_once(' ').ok_or_else(bad)?;
        let quota = match quota {
            "max" => None,
            number => Some(number.parse().map_err(|_| bad())?),
        };
        let period = period.parse().map_err(|_| bad())?;
        let held = read_number(&dir.join("memory.max"))?.unwrap_or(u64::MAX);
        let swap = dir.join("memory.swap.max");
        if swap.exists() && read_number(&swap)? != Some(0) {
            return Err(unexpected(&swap, &read(&swap)?, "0, so that swap is none"));
        }
        let high = read_number(&dir.join("memory.high"))?;
        let pids = read_number(&dir.join("pids.max"))?;
        let io = match device {
            Some(device) => {
                let path = dir.join("io.max");
                convert::io_max_of(&read(&path)?, device)
                    .map_err(|line| unexpected(&path, &line, "a device and its throttles"))?
            }
            None => wanted.io,
        };
        Ok(Limits {
            cpu: convert::cpu_in_force(quota, period, wanted.cpu),
            cpu_weight: weight,
            memory: convert::memory_in_force(held, wanted.memory, self.kernel.page),
            memory_high: high.map(|held| match wanted.memory_high {
                Some(wanted) => convert::memory_in_force(held, wanted, self.kernel.page),
                None => Bytes(held),
            }),
            swap: MemorySwap::None,
            pids: pids.and_then(|pids| u32::try_from(pids).ok()).unwrap_or(u32::MAX),
            disk: wanted.disk,
            io,
        })
    }

    fn stats(&self, tenant: TenantId, container: ContainerId) -> RawStats {
        FileMeter::v2(&self.group(tenant, container)).read()
    }

    fn pids(&self, tenant: TenantId, container: ContainerId) -> Result<Vec<u32>, CgroupError> {
        tree::pids(&self.group(tenant, container))
    }

    fn meter(&self, tenant: TenantId, container: ContainerId) -> Option<Box<dyn Meter>> {
        Some(Box::new(FileMeter::v2(&self.group(tenant, container))))
    }

    fn stalls(&self, tenant: TenantId, container: ContainerId) -> Stalls {
        meter::stalls(&self.group(tenant, container))
    }

    fn warnings(&self) -> Vec<String> {
        let root = self.mount.join(&self.parent);
        if root.join("memory.max").exists() && !root.join("memory.swap.max").exists() {
            return vec![
                "no swap accounting: if the host has swap, containers can use it beyond their memory limit; boot with swapaccount=1 or switch swap off"
                    .to_owned(),
            ];
        }
        Vec::new()
    }
}

#[cfg(test)]
#[path = "v2_tests.rs"]
mod tests;
