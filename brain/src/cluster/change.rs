//! Changes, and what they do to the state.
//!
//! [`State::apply`] is pure and total; whether a change is allowed is judged before, in the closure that proposes it.
//! Durable changes are written to the store before a state that contains them becomes visible (R5).

use std::sync::Arc;

use berth_common::id::{ContainerId, Name, NodeId, Revision, ServiceId, TenantId, TokenId, VolumeId};
use berth_common::model::{
    ContainerRecord, ImageRef, LoadedImage, NodeRecord, ObservedContainer, ObservedVolume, PoolRecord,
    RegistryCredential, ServiceRecord, TenantRecord, TokenRecord, Vni, VolumeRecord,
};

use super::{Connection, JoinTokenRecord, Network, State, volumes};
use crate::scheduler::forecast::Estimate;

/// A change to the cluster. Variants beginning with `Put` and `Delete` are durable, the rest lives in memory only.
#[derive(Debug, Clone)]
#[allow(
    clippy::large_enum_variant,
    reason = "changes are moved a few times, boxes would be made a million times"
)]
pub enum Change {
    /// A tenant is new or changed.
    PutTenant(TenantRecord),
    /// A tenant goes.
    DeleteTenant(TenantId),
    /// An API token is new.
    PutToken(TokenRecord),
    /// An API token goes.
    DeleteToken(TokenId),
    /// A join token is new.
    PutJoinToken(JoinTokenRecord),
    /// A join token was used or expired.
    DeleteJoinToken(TokenId),
    /// A registry credential of a tenant is new or changed.
    PutRegistry(TenantId, RegistryCredential),
    /// A registry credential goes.
    DeleteRegistry(TenantId, String),
    /// A loaded image is new or changed.
    PutImage(LoadedImage),
    /// A loaded image goes.
    DeleteImage(TenantId, ImageRef),
    /// A service is new or changed.
    PutService(ServiceRecord),
    /// A service goes; its containers are `removing` already.
    DeleteService(ServiceId),
    /// A container is new or changed. Its node, once set, stays.
    PutContainer(ContainerRecord),
    /// A container is gone from its node, or never had one.
    DeleteContainer(ContainerId),
    /// A volume is new or changed.
    PutVolume(VolumeRecord),
    /// A volume goes; nothing is left of it.
    DeleteVolume(VolumeId),
    /// A network is new, or numbers of it were given or given back.
    PutNetwork(Network),
    /// A network goes; nobody is on it any more.
    DeleteNetwork(Vni),
    /// A node is new or changed. [`State::apply`] raises `generation` itself when the node's desired set changes.
    PutNode(NodeRecord),
    /// A node goes; it has no containers any more.
    DeleteNode(NodeId),
    /// A pool is new or changed.
    PutPool(PoolRecord),
    /// A pool goes; no node is in it any more.
    DeletePool(Name),
    /// Something else was learned of the load of a service's containers.
    PutEstimate(ServiceId, Estimate),
    /// What was learned of a service goes with it.
    DeleteEstimate(ServiceId),
    /// A node connected or changed its connection.
    Connected(NodeId, Connection),
    /// The connection of this serial ended.
    Disconnected(NodeId, u64),
    /// A node says what it sees. `full` replaces everything known of its containers.
    Observed {
        /// Which node.
        node: NodeId,
        /// Replace everything.
        full: bool,
        /// Changed or all.
        containers: Vec<ObservedContainer>,
        /// Nothing is left of these.
        gone: Vec<ContainerId>,
    },
    /// A node says what volumes it has, all of them.
    ObservedVolumes {
        /// Which node.
        node: NodeId,
        /// All.
        volumes: Vec<ObservedVolume>,
        /// Nothing is left of these, which were to go.
        gone: Vec<VolumeId>,
    },
    /// A container was first seen in its present run at this monotonic millisecond of the brain. Rollouts count from it.
    RunningSince(ContainerId, u64),
}

impl Change {
    /// Whether the store must hold it before it is visible.
    pub const fn durable(&self) -> bool {
        !matches!(
            self,
            Self::Connected(..)
                | Self::Disconnected(..)
                | Self::Observed { .. }
                | Self::ObservedVolumes { .. }
                | Self::RunningSince(..)
        )
    }
}

impl State {
    /// Applies changes that belong to one transaction, giving every changed record `revision`, and raises the
    /// generation of every node whose desired set they change. Returns the durable changes as they must be stored
    /// (with revisions and generations filled in).
    pub fn apply(&mut self, changes: Vec<Change>, revision: Revision) -> Vec<Change> {
        let before = self.clone();
        let mut durable = Vec::with_capacity(changes.len());
        let mut touched = std::collections::BTreeSet::new();
        for change in changes {
            self.touch(&change, &mut touched);
            let change = with_revision(change, revision);
            if change.durable() {
                durable.push(change.clone());
            }
            self.apply_one(change);
        }
        for node in touched {
            let Some(record) = self.nodes.get(&node) else {
                continue;
            };
            let mut record = (**record).clone();
            record.generation = record.generation.next();
            record.revision = revision;
            // One row a node and transaction: an earlier Put of the same node is superseded.
            durable.retain(|c| !matches!(c, Change::PutNode(n) if n.id == node));
            durable.push(Change::PutNode(record.clone()));
            self.nodes.insert(node, Arc::new(record));
        }
        if !durable.is_empty() {
            self.revision = revision;
        }
        self.publish(&before);
        durable
    }

    /// Which nodes' desired sets a change alters.
    fn touch(&self, change: &Change, nodes: &mut std::collections::BTreeSet<NodeId>) {
        match change {
            Change::PutContainer(new) => {
                let old = self.containers.get(&new.id);
                let same = old.is_some_and(|old| {
                    old.node == new.node
                        && old.spec == new.spec
                        && old.endpoints == new.endpoints
                        && old.run == new.run
                        && old.restarts_asked == new.restarts_asked
                        && old.removing == new.removing
                });
                if !same {
                    nodes.extend(new.node);
                }
            }
            Change::DeleteContainer(id) => {
                // Removing it from the desired set happened when `removing` was set; only a straight delete counts.
                if let Some(old) = self.containers.get(id)
                    && !old.removing
                {
                    nodes.extend(old.node);
                }
            }
            Change::PutVolume(new) => {
                let old = self.volumes.get(&new.id);
                nodes.extend(volumes::nodes_of(new));
                nodes.extend(old.into_iter().flat_map(|old| volumes::nodes_of(old)));
            }
            Change::DeleteVolume(id) => {
                nodes.extend(
                    self.volumes
                        .get(id)
                        .into_iter()
                        .flat_map(|old| volumes::nodes_of(old)),
                );
            }
            Change::PutNode(new) => {
                let old = self.nodes.get(&new.id);
                if old.is_some_and(|old| volumes::address(old) != volumes::address(new)) {
                    let arriving = self.volumes_on.get(&new.id).into_iter().flatten();
                    let arriving = arriving.filter_map(|id| self.volumes.get(id));
                    nodes.extend(arriving.filter_map(|volume| volume.node.filter(|from| *from != new.id)));
                }
            }
            Change::PutTenant(new) => {
                let changed = self
                    .tenants
                    .get(&new.id)
                    .is_some_and(|old| old.cpu_weight != new.cpu_weight);
                if changed {
                    nodes.extend(self.nodes_of_tenant(new.id));
                }
            }
            Change::PutRegistry(tenant, _) | Change::DeleteRegistry(tenant, _) => {
                nodes.extend(self.nodes_of_tenant(*tenant));
            }
            _ => {}
        }
    }

    pub(super) fn apply_one(&mut self, change: Change) {
        match change {
            Change::PutTenant(t) => {
                if let Some(old) = self.tenants.get(&t.id) {
                    self.tenant_names.remove(&old.name);
                }
                self.tenant_names.insert(t.name.clone(), t.id);
                self.tenants.insert(t.id, Arc::new(t));
            }
            Change::DeleteTenant(id) => {
                if let Some(old) = self.tenants.remove(&id) {
                    self.tenant_names.remove(&old.name);
                }
                self.tenant_taken.remove(&id);
            }
            Change::PutToken(t) => drop(self.tokens.insert(t.id, Arc::new(t))),
            Change::DeleteToken(id) => drop(self.tokens.remove(&id)),
            Change::PutJoinToken(t) => drop(self.join_tokens.insert(t.id, Arc::new(t))),
            Change::DeleteJoinToken(id) => drop(self.join_tokens.remove(&id)),
            Change::PutRegistry(tenant, c) => {
                drop(self.registries.insert((tenant, c.registry.clone()), Arc::new(c)));
            }
            Change::DeleteRegistry(tenant, host) => drop(self.registries.remove(&(tenant, host))),
            Change::PutImage(i) => drop(self.images.insert((i.tenant, i.reference.clone()), Arc::new(i))),
            Change::DeleteImage(tenant, reference) => drop(self.images.remove(&(tenant, reference))),
            Change::PutService(s) => {
                self.service_names.insert((s.tenant, s.spec.name.clone()), s.id);
                match s.spec.ports.is_empty() {
                    true => self.publishing.remove(&s.id),
                    false => self.publishing.insert(s.id),
                };
                match s.spec.links.is_empty() {
                    true => self.linking.remove(&s.id),
                    false => self.linking.insert(s.id),
                };
                match s.spec.volumes.is_empty() {
                    true => self.mounting.remove(&s.id),
                    false => self.mounting.insert(s.id),
                };
                match s.spec.together.is_empty() {
                    true => self.accompanying.remove(&s.id),
                    false => self.accompanying.insert(s.id),
                };
                self.services.insert(s.id, Arc::new(s));
            }
            Change::DeleteService(id) => {
                if let Some(old) = self.services.remove(&id) {
                    self.service_names.remove(&(old.tenant, old.spec.name.clone()));
                    self.publishing.remove(&id);
                    self.linking.remove(&id);
                    self.accompanying.remove(&id);
                    self.mounting.remove(&id);
                }
            }
            Change::PutContainer(c) => self.put_container(c),
            Change::DeleteContainer(id) => {
                if let Some(old) = self.containers.remove(&id) {
                    self.unindex(&old);
                    self.observed.remove(&id);
                    self.running_since.remove(&id);
                    self.gone.remove(&id);
                }
            }
            Change::PutVolume(volume) => self.put_volume(volume.id, Some(volume)),
            Change::DeleteVolume(id) => self.put_volume(id, None),
            Change::ObservedVolumes { node, volumes, gone } => self.observe_volumes(node, volumes, &gone),
            Change::PutNetwork(n) => self.put_network(n.record.vni, Some(n)),
            Change::DeleteNetwork(vni) => self.put_network(vni, None),
            Change::PutNode(n) => {
                let old = self.nodes.get(&n.id).cloned();
                if let Some(old) = &old {
                    self.node_names.remove(&old.name);
                }
                self.node_names.insert(n.name.clone(), n.id);
                self.relabel(old.as_deref(), Some(&n));
                self.gates.follow(old.as_deref(), Some(&n));
                let (id, lost) = (n.id, n.lost);
                let turned = self.nodes.get(&id).is_none_or(|old| old.lost != lost);
                self.nodes.insert(id, Arc::new(n));
                if turned {
                    self.rename_on(id);
                }
            }
            Change::DeleteNode(id) => {
                if let Some(old) = self.nodes.remove(&id) {
                    self.node_names.remove(&old.name);
                    self.relabel(Some(&old), None);
                    self.gates.follow(Some(&old), None);
                }
                self.connections.remove(&id);
                self.taken.remove(&id);
                self.by_node.remove(&id);
                self.observe_volumes(id, Vec::new(), &[]);
            }
            Change::PutPool(p) => drop(self.pools.insert(p.name.clone(), Arc::new(p))),
            Change::DeletePool(name) => drop(self.pools.remove(&name)),
            Change::PutEstimate(service, learned) => drop(self.estimates.insert(service, learned)),
            Change::DeleteEstimate(service) => drop(self.estimates.remove(&service)),
            Change::Connected(node, connection) => {
                self.connections.insert(node, connection);
                self.rename_on(node);
            }
            Change::Disconnected(node, serial) => {
                if self.connections.get(&node).is_some_and(|c| c.serial == serial) {
                    self.connections.remove(&node);
                    self.rename_on(node);
                }
            }
            Change::Observed {
                node,
                full,
                containers,
                gone,
            } => self.observe(node, full, containers, gone),
            Change::RunningSince(id, mono_ms) => {
                if self.containers.contains_key(&id) {
                    self.running_since.insert(id, mono_ms);
                }
            }
        }
    }

    /// Takes what a node says about its own containers and nothing else (R7).
    fn observe(
        &mut self,
        node: NodeId,
        full: bool,
        containers: Vec<ObservedContainer>,
        gone: Vec<ContainerId>,
    ) {
        let own =
            |state: &Self, id: &ContainerId| state.containers.get(id).is_some_and(|c| c.node == Some(node));
        let same_run = |state: &Self, seen: &ObservedContainer| {
            seen.serves()
                && state.observed.get(&seen.id).is_some_and(|old| {
                    old.serves() && old.started_at == seen.started_at && old.restarts == seen.restarts
                })
        };
        let heard: Vec<_> = containers
            .iter()
            .map(|seen| seen.id)
            .chain(gone.iter().copied())
            .collect();
        for seen in &containers {
            if own(self, &seen.id) && !same_run(self, seen) {
                self.running_since.remove(&seen.id);
            }
        }
        if full {
            let bound: Vec<_> = self.by_node.get(&node).into_iter().flatten().copied().collect();
            for id in bound {
                self.observed.remove(&id);
            }
        }
        for id in gone {
            if own(self, &id) {
                self.observed.remove(&id);
                self.running_since.remove(&id);
                if self.containers.get(&id).is_some_and(|c| c.removing) {
                    self.gone.insert(id);
                }
            }
        }
        for seen in containers {
            if own(self, &seen.id) {
                self.observed.insert(seen.id, Arc::new(seen));
            }
        }
        if full {
            return self.rename_on(node);
        }
        for id in heard {
            if own(self, &id) {
                self.rename(id);
            }
        }
    }
}

fn with_revision(change: Change, revision: Revision) -> Change {
    match change {
        Change::PutTenant(t) => Change::PutTenant(TenantRecord { revision, ..t }),
        Change::PutToken(t) => Change::PutToken(TokenRecord { revision, ..t }),
        Change::PutService(s) => Change::PutService(ServiceRecord { revision, ..s }),
        Change::PutContainer(c) => Change::PutContainer(ContainerRecord { revision, ..c }),
        Change::PutVolume(v) => Change::PutVolume(VolumeRecord { revision, ..v }),
        Change::PutNode(n) => Change::PutNode(NodeRecord { revision, ..n }),
        Change::PutPool(p) => Change::PutPool(PoolRecord { revision, ..p }),
        Change::PutNetwork(mut n) => {
            n.record.revision = revision;
            Change::PutNetwork(n)
        }
        other => other,
    }
}
