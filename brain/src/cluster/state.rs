//! The cluster in memory: every object with its indexes, and looking things up in it.
//!
//! [`State`] is persistent (structure-sharing maps): cloning it is cheap, so readers and plans work on a snapshot while
//! the one writer goes on. What moves it from one revision to the next is in [`super::change`]; how the indexes follow the
//! containers, in [`super::index`].

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{
    ContainerId, Generation, Name, NodeId, Revision, ServiceId, TenantId, TokenId, VolumeId,
};
use berth_common::model::{
    ContainerRecord, HostNumber, ImageRef, LoadedImage, NodeKind, NodeRecord, ObservedContainer,
    ObservedVolume, PoolRecord, RegistryCredential, ServiceRecord, Taint, Taken, TenantRecord, TokenRecord,
    UnixMillis, Vni, VolumeRecord,
};
use berth_common::units::Bytes;
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::Change;
use super::networks::{Names, Network, Placed};
use super::publications::Publication;
use crate::scheduler::forecast::Estimate;
use crate::scheduler::gate::Gates;

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
    /// Taints it will have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taints: Vec<Taint>,
    /// The pool it will be in; none: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
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
    /// What was learned of the load of services' containers, as it was written down last.
    pub estimates: OrdMap<ServiceId, Estimate>,
    /// Containers.
    pub containers: OrdMap<ContainerId, Arc<ContainerRecord>>,
    /// Containers of each service.
    pub by_service: OrdMap<ServiceId, OrdSet<ContainerId>>,
    /// Containers bound to each node.
    pub by_node: OrdMap<NodeId, OrdSet<ContainerId>>,
    /// Containers that take over from others.
    pub successors: OrdSet<ContainerId>,
    /// Containers without a node that are not being removed.
    pub unplaced: OrdSet<ContainerId>,
    /// Those of them for which room is being made.
    pub claiming: OrdSet<ContainerId>,
    /// Containers that are to move to a node that was chosen for them.
    pub moving: OrdSet<ContainerId>,
    /// Volumes.
    pub volumes: OrdMap<VolumeId, Arc<VolumeRecord>>,
    /// Volumes by tenant and name.
    pub volume_names: OrdMap<(TenantId, Name), VolumeId>,
    /// Volumes of each node: those it has, those on their way to it, and those it is to delete.
    pub volumes_on: OrdMap<NodeId, OrdSet<VolumeId>>,
    /// What the sizes of volumes on each node add up to, bytes, with those on their way to it.
    pub volumes_taken: OrdMap<NodeId, Bytes>,
    /// When schedules of volumes that there is something of are to be looked at.
    pub snapshots_due: OrdSet<(UnixMillis, VolumeId)>,
    /// What nodes last said of their volumes.
    pub volumes_seen: OrdMap<(NodeId, VolumeId), Arc<ObservedVolume>>,
    /// Volumes of which nodes said that nothing is left, where they were to go.
    pub volumes_gone: OrdSet<(NodeId, VolumeId)>,
    /// Services whose containers have volumes.
    pub mounting: OrdSet<ServiceId>,
    /// Networks.
    pub networks: OrdMap<Vni, Arc<Network>>,
    /// Networks by tenant and name.
    pub network_names: OrdMap<(TenantId, Name), Vni>,
    /// Who has which number on each network.
    pub endpoints: OrdMap<Vni, OrdMap<HostNumber, ContainerId>>,
    /// Those that are to be reachable, and on which node.
    pub placed: OrdMap<Vni, Placed>,
    /// Who takes requests on each network, by name, and services' own addresses.
    pub names: OrdMap<Vni, Names>,
    /// Services that link to others.
    pub linking: OrdSet<ServiceId>,
    /// Services that are to be near others.
    pub accompanying: OrdSet<ServiceId>,
    /// Services with published ports.
    pub publishing: OrdSet<ServiceId>,
    /// What they publish, and where it is answered. Made anew when anything it follows from changes.
    pub publications: Arc<Vec<Publication>>,
    /// How many of them each node has.
    pub network_nodes: OrdMap<Vni, OrdMap<NodeId, u32>>,
    /// Nodes.
    pub nodes: OrdMap<NodeId, Arc<NodeRecord>>,
    /// Pools that somebody made or changed.
    pub pools: OrdMap<Name, Arc<PoolRecord>>,
    /// Nodes by name.
    pub node_names: OrdMap<Name, NodeId>,
    /// Nodes by their labels: by key, then by value. Not by the label that each has of itself: that is `node_names`.
    pub labelled: OrdMap<String, OrdMap<String, OrdSet<NodeId>>>,
    /// What of each node decides most often, for searches.
    pub gates: Gates,
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
    /// A network.
    Network(Network),
    /// A node.
    Node(NodeRecord),
    /// A pool.
    Pool(PoolRecord),
    /// A volume.
    Volume(VolumeRecord),
    /// What was learned of a service's containers.
    Estimate {
        /// Whose.
        service: ServiceId,
        /// It.
        learned: Estimate,
    },
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

    /// Whether a node takes containers now.
    pub fn is_open(&self, node: &NodeRecord) -> bool {
        let synced = self.connections.get(&node.id).is_some_and(|c| c.synced);
        synced && !node.lost && !node.cordoned && !node.draining
    }

    /// The name of a node, or its id if it is gone, for people.
    pub fn name_of_node(&self, id: NodeId) -> String {
        let name = self.nodes.get(&id).map(|node| node.name.to_string());
        name.unwrap_or_else(|| id.to_string())
    }

    /// What is set aside on a node.
    pub fn taken_on(&self, node: NodeId) -> Taken {
        self.taken.get(&node).copied().unwrap_or_default()
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
            Stored::Network(n) => Change::PutNetwork(n),
            Stored::Node(n) => Change::PutNode(n),
            Stored::Pool(p) => Change::PutPool(p),
            Stored::Volume(v) => Change::PutVolume(v),
            Stored::Estimate { service, learned } => Change::PutEstimate(service, learned),
        });
    }
}
