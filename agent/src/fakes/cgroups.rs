//! Control groups in memory.

use std::collections::BTreeMap;

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{Limits, Reservation};
use parking_lot::Mutex;

use super::faults::{Fault, Faults};
use crate::cgroup::{CgroupError, Cgroups, DEFAULT_PARENT, Device, RawStats, container_path};

/// See the module.
#[derive(Debug, Default)]
pub struct FakeCgroups {
    /// Faults by method name.
    pub faults: Faults,
    tenants: Mutex<BTreeMap<TenantId, u16>>,
    limits: Mutex<BTreeMap<ContainerId, Limits>>,
}

impl FakeCgroups {
    fn fault(&self, operation: &'static str) -> Result<(), CgroupError> {
        match self.faults.take(operation) {
            None => Ok(()),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                Ok(())
            }
            Some(Fault::Fail { message, .. }) => Err(CgroupError::Io {
                operation: operation.to_owned(),
                path: "/fake".to_owned(),
                source: std::io::Error::other(message),
            }),
            Some(Fault::FailAfter) => Err(CgroupError::Io {
                operation: operation.to_owned(),
                path: "/fake".to_owned(),
                source: std::io::ErrorKind::TimedOut.into(),
            }),
        }
    }

    /// Tenants with their weights.
    pub fn weights(&self) -> BTreeMap<TenantId, u16> {
        self.tenants.lock().clone()
    }
}

impl Cgroups for FakeCgroups {
    fn version(&self) -> u8 {
        2
    }

    fn container_path(&self, tenant: TenantId, container: ContainerId) -> String {
        container_path(DEFAULT_PARENT, tenant, container)
    }

    fn ensure_root(&self, _allocatable: Reservation) -> Result<(), CgroupError> {
        self.fault("ensure_root")
    }

    fn ensure_tenant(&self, tenant: TenantId, cpu_weight: u16) -> Result<(), CgroupError> {
        self.fault("ensure_tenant")?;
        self.tenants.lock().insert(tenant, cpu_weight);
        Ok(())
    }

    fn remove_tenant(&self, tenant: TenantId) -> Result<(), CgroupError> {
        self.fault("remove_tenant")?;
        self.tenants.lock().remove(&tenant);
        Ok(())
    }

    fn tenants(&self) -> Result<Vec<TenantId>, CgroupError> {
        self.fault("tenants")?;
        Ok(self.tenants.lock().keys().copied().collect())
    }

    fn remove_container(&self, _tenant: TenantId, container: ContainerId) -> Result<(), CgroupError> {
        self.fault("remove_container")?;
        self.limits.lock().remove(&container);
        Ok(())
    }

    fn write_limits(
        &self,
        _tenant: TenantId,
        container: ContainerId,
        limits: &Limits,
        _device: Option<Device>,
    ) -> Result<(), CgroupError> {
        self.fault("write_limits")?;
        self.limits.lock().insert(container, *limits);
        Ok(())
    }

    fn read_limits(
        &self,
        _tenant: TenantId,
        container: ContainerId,
        wanted: &Limits,
        _device: Option<Device>,
    ) -> Result<Limits, CgroupError> {
        self.fault("read_limits")?;
        Ok(self.limits.lock().get(&container).copied().unwrap_or(*wanted))
    }

    fn stats(&self, _tenant: TenantId, _container: ContainerId) -> RawStats {
        RawStats::default()
    }

    fn pids(&self, _tenant: TenantId, _container: ContainerId) -> Result<Vec<u32>, CgroupError> {
        self.fault("pids")?;
        Ok(Vec::new())
    }
}
