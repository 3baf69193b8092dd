//! What the desired set says of volumes, for who keeps them.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{ContainerId, TenantId, VolumeId};
use berth_common::model::RunState;
use berth_common::protocol::{DesiredContainer, DesiredMount, DesiredSet, DesiredVolume};

/// A container's volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounts {
    /// Whose container it is.
    pub tenant: TenantId,
    /// It is to run.
    pub runs: bool,
    /// Which they are, in the order of its spec's.
    pub volumes: Vec<DesiredMount>,
    /// Those of them that it may write to.
    pub writable: Vec<VolumeId>,
}

/// Volumes and who mounts them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeOrders {
    /// The node's volumes, by id.
    pub volumes: Vec<DesiredVolume>,
    /// Containers that mount some.
    pub mounts: BTreeMap<ContainerId, Arc<Mounts>>,
}

impl VolumeOrders {
    pub(super) fn of(set: &DesiredSet) -> Self {
        let mounting = set.containers.iter().filter(|c| !c.volumes.is_empty());
        let mounts = mounting.map(|c| {
            let mounts = Mounts {
                tenant: c.tenant,
                runs: c.run == RunState::Running,
                volumes: c.volumes.clone(),
                writable: writable(c),
            };
            (c.id, Arc::new(mounts))
        });
        Self {
            volumes: set.volumes.clone(),
            mounts: mounts.collect(),
        }
    }

    /// The volume of an id.
    pub fn volume(&self, id: VolumeId) -> Option<&DesiredVolume> {
        let at = self.volumes.binary_search_by_key(&id, |volume| volume.id);
        at.ok().map(|at| &self.volumes[at])
    }
}

fn writable(container: &DesiredContainer) -> Vec<VolumeId> {
    let mounts = container.volumes.iter().zip(&container.spec.volumes);
    let own = mounts.filter(|(mount, spec)| mount.snapshot.is_none() && !spec.is_read_only());
    own.map(|(mount, _)| mount.volume).collect()
}
