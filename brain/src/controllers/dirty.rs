//! What a batch of changes makes worth planning again: small, so that a quiet cluster costs nothing.

use berth_common::id::{ContainerId, Name, TenantId};
use berth_common::model::{NodeRecord, ObservedContainer, ObservedVolume};

use super::Dirty;
use crate::cluster::{Change, State};
use crate::scheduler::preempt::Rank;

impl Dirty {
    /// Everything, for the first plan after a start.
    pub fn everything() -> Self {
        Self {
            all: true,
            ..Self::default()
        }
    }

    /// Nothing to look at.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What `changes` make dirty; `before` is the state they are (or were) applied to.
    pub fn of(changes: &[Change], before: &State) -> Self {
        let mut dirty = Self::default();
        for change in changes {
            dirty.add(change, before);
        }
        dirty
    }

    /// Takes in what else is dirty.
    pub fn merge(&mut self, other: Self) {
        self.all |= other.all;
        self.freed |= other.freed;
        self.leases |= other.leases;
        self.addresses |= other.addresses;
        self.services.extend(other.services);
        self.volumes.extend(other.volumes);
        self.nodes.extend(other.nodes);
    }

    fn add(&mut self, change: &Change, before: &State) {
        match change {
            Change::PutService(service) => {
                self.services.insert(service.id);
                match before.services.get(&service.id) {
                    Some(old) => {
                        self.addresses |= old.spec.networks != service.spec.networks;
                        // Those that wait may preempt what they could not before.
                        self.freed |= Rank::of(&old.spec) != Rank::of(&service.spec);
                    }
                    None => self.linked(service.tenant, &service.spec.name, before),
                }
            }
            Change::DeleteService(id) => {
                self.services.insert(*id);
                self.addresses = true;
            }
            Change::PutContainer(container) => {
                self.services.insert(container.service);
                let old = before.containers.get(&container.id);
                if container.node.is_some() && old.is_none_or(|old| old.node.is_none()) {
                    self.near(container.tenant, &container.service_name, before);
                }
                if let Some(old) = old {
                    // A claim that is given up unlocks the room that was kept for it.
                    let given_up =
                        old.claim.is_some() && container.claim != old.claim && container.node != old.claim;
                    self.freed |= given_up
                        || old.spec.reservation != container.spec.reservation
                        || old.spec.idle_use() != container.spec.idle_use();
                }
            }
            Change::DeleteContainer(id) => {
                self.container(*id, before);
                if let Some(container) = before.containers.get(id) {
                    let volumes = before.volumes_of(container).flatten();
                    self.volumes.extend(volumes.map(|volume| volume.id));
                }
                self.freed = true;
            }
            Change::PutNode(node) => {
                let old = before.nodes.get(&node.id);
                if old.is_none_or(|old| placement_differs(old, node)) {
                    self.nodes.insert(node.id);
                    self.freed = true;
                    self.services
                        .extend(before.containers_on(node.id).map(|c| c.service));
                }
            }
            Change::DeleteNode(id) => {
                self.services.extend(before.containers_on(*id).map(|c| c.service));
                self.freed = true;
            }
            Change::Connected(node, connection) => {
                self.nodes.insert(*node);
                let synced = before.connections.get(node).is_some_and(|c| c.synced);
                self.freed |= connection.synced && !synced;
                // A node that has caught up confirms with it what it no longer has.
                self.services.extend(
                    before
                        .containers_on(*node)
                        .filter(|c| c.removing)
                        .map(|c| c.service),
                );
            }
            Change::Disconnected(node, _) => drop(self.nodes.insert(*node)),
            Change::Observed {
                node,
                full,
                containers,
                gone,
            } => {
                for seen in containers {
                    if before
                        .observed
                        .get(&seen.id)
                        .is_none_or(|old| moved_on(old, seen))
                    {
                        self.container(seen.id, before);
                        if let Some(container) = before.containers.get(&seen.id).filter(|_| seen.serves()) {
                            self.linked(container.tenant, &container.service_name, before);
                        }
                    }
                }
                for id in gone {
                    self.container(*id, before);
                }
                if *full {
                    let reported: std::collections::BTreeSet<_> = containers.iter().map(|c| c.id).collect();
                    let missing = before.containers_on(*node).filter(|c| !reported.contains(&c.id));
                    self.services.extend(missing.map(|c| c.service));
                }
            }
            Change::PutVolume(volume) => {
                self.volumes.insert(volume.id);
                self.services.extend(before.services_with(volume));
            }
            Change::DeleteVolume(id) => {
                if let Some(volume) = before.volumes.get(id) {
                    self.services.extend(before.services_with(volume));
                }
                self.freed = true;
            }
            Change::ObservedVolumes { node, volumes, gone } => {
                let differs = |seen: &&ObservedVolume| {
                    let old = before.volume_seen(*node, seen.id);
                    old.is_none_or(|old| changed(old, seen))
                };
                self.volumes
                    .extend(volumes.iter().filter(differs).map(|seen| seen.id));
                self.volumes.extend(gone);
            }
            // Whoever waits for one of this name; numbers come free with their containers.
            Change::PutNetwork(network) => {
                self.freed |= !before.networks.contains_key(&network.record.vni);
            }
            // Where a pool allows more than before, or an image is for other nodes.
            Change::PutPool(_) | Change::PutImage(_) | Change::DeleteImage(..) => self.freed = true,
            Change::PutTenant(_)
            | Change::DeleteTenant(_)
            | Change::PutToken(_)
            | Change::DeleteToken(_)
            | Change::PutJoinToken(_)
            | Change::DeleteJoinToken(_)
            | Change::PutRegistry(..)
            | Change::DeleteRegistry(..)
            | Change::DeleteNetwork(_)
            | Change::DeletePool(_)
            | Change::PutEstimate(..)
            | Change::DeleteEstimate(_)
            | Change::RunningSince(..) => {}
        }
    }

    /// Services that may wait for another one, since they link to it.
    fn linked(&mut self, tenant: TenantId, name: &Name, before: &State) {
        let linking = before.linking.iter().filter_map(|id| before.services.get(id));
        let waiting = linking.filter(|service| {
            let mut links = service.spec.links.iter();
            service.tenant == tenant && links.any(|link| link.service == *name)
        });
        self.services.extend(waiting.map(|service| service.id));
    }

    /// Services that may wait for a container of another one to be placed, since they must be near it.
    fn near(&mut self, tenant: TenantId, name: &Name, before: &State) {
        let all = before
            .accompanying
            .iter()
            .filter_map(|id| before.services.get(id));
        let waiting = all.filter(|service| {
            let mut together = service.spec.together.iter();
            service.tenant == tenant && together.any(|one| one.hard && one.with == *name)
        });
        self.services.extend(waiting.map(|service| service.id));
    }

    fn container(&mut self, id: ContainerId, before: &State) {
        if let Some(container) = before.containers.get(&id) {
            self.services.insert(container.service);
        }
    }
}

/// Whether placement would answer differently; generation and revision say nothing about that.
fn placement_differs(old: &NodeRecord, new: &NodeRecord) -> bool {
    old.cordoned != new.cordoned
        || old.draining != new.draining
        || old.lost != new.lost
        || old.kind != new.kind
        || old.labels != new.labels
        || old.taints != new.taints
        || old.pool != new.pool
        || old.overcommit != new.overcommit
        || old.facts.capacity != new.facts.capacity
        || old.facts.volumes != new.facts.volumes
        || old.facts.system_reserve != new.facts.system_reserve
}

/// Whether a volume's observation says something that a plan asks about.
fn changed(old: &ObservedVolume, new: &ObservedVolume) -> bool {
    let ready = |seen: &ObservedVolume| {
        let sending = seen.sending.as_ref().filter(|sending| sending.ready);
        sending.map(|sending| sending.last)
    };
    let ids = |seen: &ObservedVolume| seen.snapshots.iter().map(|one| one.id).collect::<Vec<_>>();
    ready(old) != ready(new)
        || old.snapshots_gone != new.snapshots_gone
        || old.writable != new.writable
        || ids(old) != ids(new)
}

fn moved_on(old: &ObservedContainer, new: &ObservedContainer) -> bool {
    old.phase != new.phase
        || old.serves() != new.serves()
        || old.is_unhealthy() != new.is_unhealthy()
        || old.restarts != new.restarts
        || old.started_at != new.started_at
}
