//! The cluster in memory: every object, its indexes, and the changes that move it from one revision to the next.
//!
//! [`State`] is persistent (structure-sharing maps): cloning it is cheap, so readers and plans work on a snapshot while
//! the one writer goes on. [`State::apply`] is pure and total; whether a change is allowed is judged before, in the closure
//! that proposes it. Durable changes are written to the store before a state that contains them becomes visible (R5).

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{ContainerId, Generation, Name, NodeId, Revision, ServiceId, TenantId, TokenId};
use berth_common::model::{
    ContainerRecord, ImageRef, LoadedImage, NodeKind, NodeRecord, ObservedContainer, Phase,
    RegistryCredential, Reservation, ServiceRecord, Taken, TenantRecord, TokenRecord, UnixMillis,
};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

/// A one-time join token. Only a hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokenRecord {
    /// The public part.
    pub id: TokenId,
    /// SHA-256 (hex) of the secret.
    pub secret_hash: String,
    /// What kind of node it makes.
    #[serde(flatten)]
    pub kind: NodeKind,
    /// Labels the node will carry.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// When it stops working.
    pub expires_at: UnixMillis,
}

/// The connection of a node, as the link sees it. Not durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// Distinguishes this connection from an earlier one of the same node.
    pub serial: u64,
    /// Where the node dials from.
    pub address: String,
    /// The node has sent its full observed state on this connection.
    pub synced: bool,
    /// Generation its agent persisted and acts on.
    pub applied: Generation,
}

/// A change to the cluster. Variants beginning with `Put` and `Delete` are durable, the rest lives in memory only.
#[derive(Debug, Clone)]
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
    /// A node is new or changed. [`State::apply`] raises `generation` itself when the node's desired set changes.
    PutNode(NodeRecord),
    /// A node goes; it has no containers any more.
    DeleteNode(NodeId),
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
    /// A container was first seen in its present run at this monotonic millisecond of the brain. Rollouts count from it.
    RunningSince(ContainerId, u64),
}

impl Change {
    /// Whether the store must hold it before it is visible.
    pub const fn durable(&self) -> bool {
        !matches!(
            self,
            Self::Connected(..) | Self::Disconnected(..) | Self::Observed { .. } | Self::RunningSince(..)
        )
    }
}

/// Everything the brain knows, at one revision.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The store revision this state shows.
    pub revision: Revision,
    /// Tenants.
    pub tenants: OrdMap<TenantId, Arc<TenantRecord>>,
    /// Tenants by name.
    pub tenant_names: OrdMap<Name, TenantId>,
    /// API tokens.
    pub tokens: OrdMap<TokenId, Arc<TokenRecord>>,
    /// Join tokens.
    pub join_tokens: OrdMap<TokenId, Arc<JoinTokenRecord>>,
    /// Registry credentials by tenant and host.
    pub registries: OrdMap<(TenantId, String), Arc<RegistryCredential>>,
    /// Loaded images by tenant and name.
    pub images: OrdMap<(TenantId, ImageRef), Arc<LoadedImage>>,
    /// Services.
    pub services: OrdMap<ServiceId, Arc<ServiceRecord>>,
    /// Services by tenant and name.
    pub service_names: OrdMap<(TenantId, Name), ServiceId>,
    /// Containers.
    pub containers: OrdMap<ContainerId, Arc<ContainerRecord>>,
    /// Containers of each service.
    pub by_service: OrdMap<ServiceId, OrdSet<ContainerId>>,
    /// Containers bound to each node.
    pub by_node: OrdMap<NodeId, OrdSet<ContainerId>>,
    /// Containers without a node that are not being removed.
    pub unplaced: OrdSet<ContainerId>,
    /// Nodes.
    pub nodes: OrdMap<NodeId, Arc<NodeRecord>>,
    /// Nodes by name.
    pub node_names: OrdMap<Name, NodeId>,
    /// What is set aside on each node: the sum over its bound containers, also those being removed.
    pub taken: OrdMap<NodeId, Taken>,
    /// What is set aside for each tenant: the sum over its containers that are not being removed.
    pub tenant_taken: OrdMap<TenantId, Taken>,
    /// Live connections.
    pub connections: OrdMap<NodeId, Connection>,
    /// What agents last said of containers.
    pub observed: OrdMap<ContainerId, Arc<ObservedContainer>>,
    /// Monotonic millisecond of the brain at which a container's present run was first seen; only where a rollout asks.
    pub running_since: OrdMap<ContainerId, u64>,
    /// Containers being removed of which their node said that nothing is left.
    pub gone: OrdSet<ContainerId>,
}

/// A stored object of any kind, as [`State::restore`] takes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "object", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "only while loading")]
pub enum Stored {
    /// A tenant.
    Tenant(TenantRecord),
    /// An API token.
    Token(TokenRecord),
    /// A join token.
    JoinToken(JoinTokenRecord),
    /// A registry credential.
    Registry {
        /// Whose.
        tenant: TenantId,
        /// It.
        credential: RegistryCredential,
    },
    /// A loaded image.
    Image(LoadedImage),
    /// A service.
    Service(ServiceRecord),
    /// A container.
    Container(ContainerRecord),
    /// A node.
    Node(NodeRecord),
}

fn less(taken: &mut OrdMap<NodeId, Taken>, node: NodeId, reservation: Reservation) {
    let mut now = taken.get(&node).copied().unwrap_or_default();
    now.reserved = now.reserved.minus(reservation);
    now.containers = now.containers.saturating_sub(1);
    taken.insert(node, now);
}

fn more(taken: &mut OrdMap<NodeId, Taken>, node: NodeId, reservation: Reservation) {
    let mut now = taken.get(&node).copied().unwrap_or_default();
    now.reserved = now.reserved.plus(reservation);
    now.containers += 1;
    taken.insert(node, now);
}

impl State {
    /// A tenant by name.
    pub fn tenant(&self, name: &Name) -> Option<&Arc<TenantRecord>> {
        self.tenants.get(self.tenant_names.get(name)?)
    }

    /// A service by tenant and name.
    pub fn service(&self, tenant: TenantId, name: &Name) -> Option<&Arc<ServiceRecord>> {
        self.services
            .get(self.service_names.get(&(tenant, name.clone()))?)
    }

    /// A node by name.
    pub fn node(&self, name: &Name) -> Option<&Arc<NodeRecord>> {
        self.nodes.get(self.node_names.get(name)?)
    }

    /// Containers of a service, by id.
    pub fn containers_of(&self, service: ServiceId) -> impl Iterator<Item = &Arc<ContainerRecord>> {
        self.by_service
            .get(&service)
            .into_iter()
            .flatten()
            .filter_map(|id| self.containers.get(id))
    }

    /// Containers bound to a node, by id.
    pub fn containers_on(&self, node: NodeId) -> impl Iterator<Item = &Arc<ContainerRecord>> {
        self.by_node
            .get(&node)
            .into_iter()
            .flatten()
            .filter_map(|id| self.containers.get(id))
    }

    /// What is set aside on a node.
    pub fn taken_on(&self, node: NodeId) -> Taken {
        self.taken.get(&node).copied().unwrap_or_default()
    }

    /// Applies changes that belong to one transaction, giving every changed record `revision`, and raises the
    /// generation of every node whose desired set they change. Returns the durable changes as they must be stored
    /// (with revisions and generations filled in).
    pub fn apply(&mut self, changes: Vec<Change>, revision: Revision) -> Vec<Change> {
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

    /// Nodes that have containers of a tenant.
    pub fn nodes_of_tenant(&self, tenant: TenantId) -> std::collections::BTreeSet<NodeId> {
        self.containers
            .values()
            .filter(|c| c.tenant == tenant)
            .filter_map(|c| c.node)
            .collect()
    }

    /// Puts a stored object in place while loading.
    pub fn restore(&mut self, stored: Stored) {
        self.apply_one(match stored {
            Stored::Tenant(t) => Change::PutTenant(t),
            Stored::Token(t) => Change::PutToken(t),
            Stored::JoinToken(t) => Change::PutJoinToken(t),
            Stored::Registry { tenant, credential } => Change::PutRegistry(tenant, credential),
            Stored::Image(i) => Change::PutImage(i),
            Stored::Service(s) => Change::PutService(s),
            Stored::Container(c) => Change::PutContainer(c),
            Stored::Node(n) => Change::PutNode(n),
        });
    }

    fn apply_one(&mut self, change: Change) {
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
                self.services.insert(s.id, Arc::new(s));
            }
            Change::DeleteService(id) => {
                if let Some(old) = self.services.remove(&id) {
                    self.service_names.remove(&(old.tenant, old.spec.name.clone()));
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
            Change::PutNode(n) => {
                if let Some(old) = self.nodes.get(&n.id) {
                    self.node_names.remove(&old.name);
                }
                self.node_names.insert(n.name.clone(), n.id);
                self.nodes.insert(n.id, Arc::new(n));
            }
            Change::DeleteNode(id) => {
                if let Some(old) = self.nodes.remove(&id) {
                    self.node_names.remove(&old.name);
                }
                self.connections.remove(&id);
                self.taken.remove(&id);
                self.by_node.remove(&id);
            }
            Change::Connected(node, connection) => drop(self.connections.insert(node, connection)),
            Change::Disconnected(node, serial) => {
                if self.connections.get(&node).is_some_and(|c| c.serial == serial) {
                    self.connections.remove(&node);
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

    fn put_container(&mut self, c: ContainerRecord) {
        if let Some(old) = self.containers.get(&c.id).cloned() {
            self.unindex(&old);
        }
        let mut siblings = self.by_service.get(&c.service).cloned().unwrap_or_default();
        siblings.insert(c.id);
        self.by_service.insert(c.service, siblings);
        match c.node {
            Some(node) => {
                let mut bound = self.by_node.get(&node).cloned().unwrap_or_default();
                bound.insert(c.id);
                self.by_node.insert(node, bound);
                more(&mut self.taken, node, c.spec.reservation);
            }
            None if !c.removing => drop(self.unplaced.insert(c.id)),
            None => {}
        }
        if !c.removing {
            let mut now = self.tenant_taken.get(&c.tenant).copied().unwrap_or_default();
            now.reserved = now.reserved.plus(c.spec.reservation);
            now.containers += 1;
            self.tenant_taken.insert(c.tenant, now);
        }
        self.containers.insert(c.id, Arc::new(c));
    }

    fn unindex(&mut self, old: &ContainerRecord) {
        if let Some(mut siblings) = self.by_service.get(&old.service).cloned() {
            siblings.remove(&old.id);
            if siblings.is_empty() {
                self.by_service.remove(&old.service);
            } else {
                self.by_service.insert(old.service, siblings);
            }
        }
        if let Some(node) = old.node {
            if let Some(mut bound) = self.by_node.get(&node).cloned() {
                bound.remove(&old.id);
                self.by_node.insert(node, bound);
            }
            less(&mut self.taken, node, old.spec.reservation);
        }
        self.unplaced.remove(&old.id);
        if !old.removing {
            let mut now = self.tenant_taken.get(&old.tenant).copied().unwrap_or_default();
            now.reserved = now.reserved.minus(old.spec.reservation);
            now.containers = now.containers.saturating_sub(1);
            self.tenant_taken.insert(old.tenant, now);
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
            seen.phase == Phase::Running
                && state.observed.get(&seen.id).is_some_and(|old| {
                    old.phase == Phase::Running
                        && old.started_at == seen.started_at
                        && old.restarts == seen.restarts
                })
        };
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
    }
}

fn with_revision(change: Change, revision: Revision) -> Change {
    match change {
        Change::PutTenant(t) => Change::PutTenant(TenantRecord { revision, ..t }),
        Change::PutToken(t) => Change::PutToken(TokenRecord { revision, ..t }),
        Change::PutService(s) => Change::PutService(ServiceRecord { revision, ..s }),
        Change::PutContainer(c) => Change::PutContainer(ContainerRecord { revision, ..c }),
        Change::PutNode(n) => Change::PutNode(NodeRecord { revision, ..n }),
        other => other,
    }
}
