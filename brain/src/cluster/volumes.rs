//! Volumes in the state: by name, by node, and what the brain wants of each on its nodes.

use std::collections::BTreeSet;
use std::sync::Arc;

use berth_common::id::{Epoch, Name, NodeId, ServiceId, SnapshotId, TenantId, VolumeId};
use berth_common::model::{
    ContainerRecord, MoveStage, NodeRecord, ObservedSending, ObservedVolume, VolumeMount, VolumeRecord,
    VolumeSource,
};
use berth_common::protocol::{DesiredMount, DesiredVolume, SendTo, VolumePlace};
use berth_common::units::Bytes;

use super::State;

/// Nodes that have something to do with a volume, the one that has it first.
pub(super) fn nodes_of(volume: &VolumeRecord) -> impl Iterator<Item = NodeId> + use<> {
    let to = volume.moves.as_ref().map(|moves| moves.to);
    let left = volume.moved.and_then(|moved| moved.left);
    [volume.node, to, left].into_iter().flatten()
}

/// The nodes on which its size counts.
fn counting(volume: &VolumeRecord) -> BTreeSet<NodeId> {
    nodes_of(volume).collect()
}

impl State {
    /// A volume by tenant and name.
    pub fn volume(&self, tenant: TenantId, name: &Name) -> Option<&Arc<VolumeRecord>> {
        self.volumes.get(self.volume_names.get(&(tenant, name.clone()))?)
    }

    /// The volume of a replica's mount, if it is there.
    pub fn volume_of(
        &self,
        tenant: TenantId,
        mount: &VolumeMount,
        replica: u32,
    ) -> Option<&Arc<VolumeRecord>> {
        self.volume(tenant, &mount.name_for(replica).ok()?)
    }

    /// The volumes of a container, in the order of its spec's mounts, as far as they are there.
    pub fn volumes_of<'a>(
        &'a self,
        container: &'a ContainerRecord,
    ) -> impl Iterator<Item = Option<&'a Arc<VolumeRecord>>> {
        let mounts = container.spec.volumes.iter();
        mounts.map(|mount| self.volume_of(container.tenant, mount, container.replica))
    }

    /// Services whose specs name a volume.
    pub fn services_with(&self, volume: &VolumeRecord) -> Vec<ServiceId> {
        let names = |id: &&ServiceId| {
            let Some(service) = self.services.get(*id) else {
                return false;
            };
            let mut mounts = service.spec.volumes.iter();
            service.tenant == volume.tenant
                && mounts.any(|mount| is_named(mount, service.spec.replicas, &volume.name))
        };
        self.mounting.iter().filter(names).copied().collect()
    }

    /// Containers that have a volume, on whatever node.
    pub fn containers_with<'a>(
        &'a self,
        volume: &'a VolumeRecord,
    ) -> impl Iterator<Item = &'a Arc<ContainerRecord>> {
        let containers = self
            .mounting
            .iter()
            .flat_map(|service| self.containers_of(*service));
        // A service that was removed, or mounts nothing any more, has its containers until they have stopped.
        let there = volume.node.into_iter().flat_map(|node| self.containers_on(node));
        let others = there.filter(|container| !self.mounting.contains(&container.service));
        containers.chain(others).filter(|container| {
            container.tenant == volume.tenant
                && container.spec.volumes.iter().any(|mount| {
                    mount
                        .name_for(container.replica)
                        .is_ok_and(|name| name == volume.name)
                })
        })
    }

    /// A clone of a volume, or of one snapshot of it, that its node has still to make.
    pub fn clone_in_the_making(
        &self,
        volume: &VolumeRecord,
        snapshot: Option<SnapshotId>,
    ) -> Option<&VolumeRecord> {
        let from = |source: VolumeSource| {
            source.volume == volume.id && snapshot.is_none_or(|snapshot| snapshot == source.snapshot)
        };
        let mut all = self.volumes.values().map(|clone| &**clone);
        all.find(|clone| !clone.made && clone.source.is_some_and(from))
    }

    /// What a node last said of a volume.
    pub fn volume_seen(&self, node: NodeId, volume: VolumeId) -> Option<&Arc<ObservedVolume>> {
        self.volumes_seen.get(&(node, volume))
    }

    /// How far the move that ends with this snapshot is, as far as its sender said. What it said of one before is not meant.
    pub fn sending(&self, node: NodeId, volume: VolumeId, last: SnapshotId) -> Option<&ObservedSending> {
        let sending = self.volume_seen(node, volume)?.sending.as_ref()?;
        sending.last.is_none_or(|of| of == last).then_some(sending)
    }

    /// What volumes' sizes add up to on a node, bytes.
    pub fn volumes_taken_on(&self, node: NodeId) -> Bytes {
        self.volumes_taken.get(&node).copied().unwrap_or(Bytes::ZERO)
    }

    pub(super) fn put_volume(&mut self, id: VolumeId, new: Option<VolumeRecord>) {
        let before = self.volumes.remove(&id);
        self.index_schedule(id, before.as_deref(), new.as_ref());
        if let Some(old) = before {
            self.volume_names.remove(&(old.tenant, old.name.clone()));
            for node in counting(&old) {
                self.count_volume(node, id, old.size, false);
            }
            // Who has nothing to do with it any more is not believed about it.
            let stays = new.as_ref().map(counting).unwrap_or_default();
            for node in counting(&old).difference(&stays) {
                self.volumes_gone.remove(&(*node, id));
                self.volumes_seen.remove(&(*node, id));
            }
        }
        if let Some(new) = new {
            self.volume_names.insert((new.tenant, new.name.clone()), id);
            for node in counting(&new) {
                self.count_volume(node, id, new.size, true);
            }
            self.volumes.insert(id, Arc::new(new));
        }
    }

    fn count_volume(&mut self, node: NodeId, id: VolumeId, size: Bytes, there: bool) {
        let mut on = self.volumes_on.get(&node).cloned().unwrap_or_default();
        let taken = self.volumes_taken_on(node);
        let taken = match there {
            true => {
                on.insert(id);
                taken.saturating_add(size)
            }
            false => {
                on.remove(&id);
                taken.saturating_sub(size)
            }
        };
        if on.is_empty() {
            self.volumes_on.remove(&node);
            self.volumes_taken.remove(&node);
        } else {
            self.volumes_on.insert(node, on);
            self.volumes_taken.insert(node, taken);
        }
    }

    /// Takes what a node says of its volumes: of those that have something to do with it, and of no others (R7).
    pub(super) fn observe_volumes(&mut self, node: NodeId, volumes: Vec<ObservedVolume>, gone: &[VolumeId]) {
        let least = (node, VolumeId::from_bytes([0; 10]));
        let old: Vec<_> = self
            .volumes_seen
            .range(least..)
            .take_while(|((of, _), _)| *of == node)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.volumes_seen.remove(&key);
        }
        let old: Vec<_> = self
            .volumes_gone
            .range(least..)
            .take_while(|(of, _)| *of == node)
            .copied()
            .collect();
        for key in old {
            self.volumes_gone.remove(&key);
        }
        let concerns = |state: &Self, id: VolumeId| {
            let known = state.volumes.get(&id);
            known.is_some_and(|record| nodes_of(record).any(|of| of == node))
        };
        for id in gone
            .iter()
            .filter(|id| concerns(self, **id))
            .copied()
            .collect::<Vec<_>>()
        {
            self.volumes_gone.insert((node, id));
        }
        for volume in volumes {
            if concerns(self, volume.id) {
                self.volumes_seen.insert((node, volume.id), Arc::new(volume));
            }
        }
    }
}

/// Whether a mount of a service with so many replicas is of the volume of this name.
pub fn is_named(mount: &VolumeMount, replicas: u32, name: &Name) -> bool {
    if !mount.per_replica {
        return mount.volume == *name;
    }
    let number = name
        .as_str()
        .strip_prefix(mount.volume.as_str())
        .and_then(|rest| rest.strip_prefix('-'))
        .filter(|number| !number.starts_with('0'))
        .and_then(|number| number.parse::<u32>().ok());
    number.is_some_and(|number| (1..=replicas).contains(&number))
}

/// What a container's mounts are; none if one of its volumes is not there yet.
pub(super) fn mounts(state: &State, container: &ContainerRecord) -> Option<Vec<DesiredMount>> {
    let mount = |(volume, spec): (Option<&Arc<VolumeRecord>>, &VolumeMount)| {
        let volume = volume?;
        let snapshot = match &spec.snapshot {
            Some(name) => Some(volume.snapshot(name)?.id),
            None => None,
        };
        Some(DesiredMount {
            volume: volume.id,
            epoch: volume.epoch,
            snapshot,
        })
    };
    let volumes = state.volumes_of(container).zip(&container.spec.volumes);
    volumes.map(mount).collect()
}

/// The volumes of a node's desired set, by id.
pub(super) fn desired(state: &State, node: NodeId) -> Vec<DesiredVolume> {
    let on = state.volumes_on.get(&node).into_iter().flatten();
    on.filter_map(|id| state.volumes.get(id))
        .filter_map(|volume| desired_volume(state, volume, node))
        .collect()
}

fn desired_volume(state: &State, volume: &VolumeRecord, node: NodeId) -> Option<DesiredVolume> {
    let there = volume.moves.as_ref().filter(|moves| moves.to == node);
    let place = if volume.node == Some(node) {
        match volume.removing {
            true => VolumePlace::Deleted,
            false => VolumePlace::Held {
                source: volume.source,
                made: volume.made,
                resume: volume.moved.filter(|moved| moved.resumes).map(|moved| moved.last),
            },
        }
    } else if there.is_some() {
        let from = volume.node?;
        VolumePlace::Arriving { from }
    } else {
        VolumePlace::Deleted
    };
    let held = matches!(place, VolumePlace::Held { .. });
    let ids = |removing: bool| {
        // The roll back makes the one that it keeps.
        let kept = volume.rollback.map(|rollback| rollback.keep);
        let of = volume
            .snapshots
            .iter()
            .filter(move |one| one.removing == removing && Some(one.id) != kept);
        of.map(|one| one.id).collect::<Vec<_>>()
    };
    let send = volume.moves.as_ref().filter(|_| held).map(|moves| SendTo {
        node: moves.to,
        addresses: state
            .nodes
            .get(&moves.to)
            .and_then(|to| address(to))
            .into_iter()
            .collect(),
        last: moves.last,
        finish: moves.stage == MoveStage::Finishing,
    });
    Some(DesiredVolume {
        id: volume.id,
        tenant: volume.tenant,
        size: volume.size,
        epoch: epoch_on(volume, node),
        place,
        snapshots: if held { ids(false) } else { Vec::new() },
        hooks: volume.hooks.clone().filter(|_| held),
        snapshots_gone: if held { ids(true) } else { Vec::new() },
        rollback: volume.rollback.filter(|_| held),
        send,
        moved: volume.moved.map(|moved| moved.last).filter(|_| held),
    })
}

/// A node that no longer has it knows no epoch of later.
fn epoch_on(volume: &VolumeRecord, node: NodeId) -> Epoch {
    let left = volume.moved.is_some_and(|moved| moved.left == Some(node)) && volume.node != Some(node);
    match left {
        true => Epoch(volume.epoch.0.saturating_sub(1)),
        false => volume.epoch,
    }
}

/// Where a node's agent takes volumes.
pub(super) fn address(node: &NodeRecord) -> Option<std::net::SocketAddr> {
    let port = node.facts.volumes.as_ref()?.port?;
    Some((node.facts.underlay?.address, port).into())
}
