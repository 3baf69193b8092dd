//! How objects are shown: records joined with what is observed and with other objects' names. Pure over a snapshot.

use berth_common::api::{ContainerView, EndpointView, NodeView, ServiceAddress, ServiceView, TokenView};
use berth_common::id::{Name, NodeId, TenantId};
use berth_common::model::{ContainerRecord, NodeKind, NodeRecord, NodeState, ServiceRecord, TokenRecord};

use crate::cluster::{Cluster, State};
use crate::controllers::{nodes, view};

/// Silence from which a connected node counts as not answering, milliseconds: several of its heartbeats.
const SILENT_AFTER_MS: u64 = 6_000;

/// A tenant's name; of a tenant that was deleted meanwhile, a placeholder.
pub fn tenant_name(state: &State, tenant: TenantId) -> Name {
    match state.tenants.get(&tenant) {
        Some(tenant) => tenant.name.clone(),
        None => "deleted".parse().expect("a DNS label"),
    }
}

/// A node's name; none of one that is no more.
pub fn node_name(state: &State, node: NodeId) -> Option<Name> {
    state.nodes.get(&node).map(|record| record.name.clone())
}

/// How a node stands.
pub fn node_state(state: &State, node: &NodeRecord, silent_ms: Option<u64>) -> NodeState {
    if node.lost {
        return NodeState::Lost;
    }
    let heard = silent_ms.is_some_and(|ms| ms < SILENT_AFTER_MS);
    if heard && state.connections.contains_key(&node.id) {
        NodeState::Ready
    } else {
        NodeState::Silent
    }
}

/// Whether a node, not being lost, does not answer.
fn silent(state: &State, cluster: &Cluster, node: NodeId) -> bool {
    state
        .nodes
        .get(&node)
        .is_some_and(|record| node_state(state, record, cluster.silent_ms(node)) == NodeState::Silent)
}

/// A service with how it stands.
pub fn service(state: &State, cluster: &Cluster, record: &ServiceRecord) -> ServiceView {
    let running = state
        .containers_of(record.id)
        .filter(|c| {
            !c.removing
                && c.node
                    .is_some_and(|node| state.nodes.get(&node).is_some_and(|n| !n.lost))
        })
        .filter(|c| state.observed.get(&c.id).is_some_and(|seen| seen.serves()))
        .count();
    ServiceView {
        record: record.clone(),
        tenant_name: tenant_name(state, record.tenant),
        running: u32::try_from(running).unwrap_or(u32::MAX),
        outdated: view::outdated(state, record.id),
        addresses: addresses(state, record),
        problem: view::service_problem(state, &cluster.outlook(), record.id),
    }
}

/// A service's own addresses.
fn addresses(state: &State, record: &ServiceRecord) -> Vec<ServiceAddress> {
    let held = state.addresses(record).map(|(host, network)| ServiceAddress {
        network: network.name.clone(),
        ipv4: network.subnets.address(host).to_string(),
        ipv6: network.subnets.address6(host).to_string(),
    });
    held.collect()
}

/// `service.replica`.
pub fn container_name(record: &ContainerRecord) -> String {
    format!("{}.{}", record.service_name, record.replica)
}

/// A container's addresses, its first network first.
pub fn endpoints(state: &State, container: &ContainerRecord) -> Vec<EndpointView> {
    let node = container.node.and_then(|id| state.nodes.get(&id));
    let places = state.places(container).map(|(endpoint, network)| EndpointView {
        network: network.name.clone(),
        container: container_name(container),
        node_name: node.map(|node| node.name.clone()),
        ipv4: network.subnets.address(endpoint.host).to_string(),
        ipv6: network.subnets.address6(endpoint.host).to_string(),
        mac: network.subnets.mac(endpoint.host).to_string(),
    });
    places.collect()
}

/// A container with what its agent sees.
pub fn container(state: &State, cluster: &Cluster, record: &ContainerRecord) -> ContainerView {
    let node = record.node.and_then(|id| state.nodes.get(&id));
    let quiet = record.node.is_some_and(|id| silent(state, cluster, id));
    let (status, reason) = view::container_status(state, record, quiet);
    let observed = state.observed.get(&record.id).map(|seen| (**seen).clone());
    ContainerView {
        name: container_name(record),
        tenant_name: tenant_name(state, record.tenant),
        node_name: node.map(|node| node.name.clone()),
        stale: observed.is_some() && (quiet || node.is_none_or(|node| node.lost)),
        observed,
        status,
        reason,
        addresses: endpoints(state, record),
        record: record.clone(),
    }
}

/// A node with how it stands.
pub fn node(state: &State, cluster: &Cluster, record: &NodeRecord) -> NodeView {
    let silent_ms = cluster.silent_ms(record.id);
    let connection = state.connections.get(&record.id);
    NodeView {
        tenant_name: match record.kind {
            NodeKind::Private { tenant } => Some(tenant_name(state, tenant)),
            NodeKind::Shared => None,
        },
        state: node_state(state, record, silent_ms),
        silent_ms,
        address: connection.map(|c| c.address.clone()),
        allocatable: state.allocatable(record),
        taken: state.taken_on(record.id),
        applied: connection.map_or(0, |c| c.applied.0),
        drain_waits: if nodes::empties(record) {
            nodes::drain_waits(state, &cluster.outlook(), record.id)
        } else {
            Vec::new()
        },
        record: record.clone(),
    }
}

/// A token without its secret.
pub fn token(record: &TokenRecord) -> TokenView {
    TokenView {
        id: record.id,
        role: record.role,
        note: record.note.clone(),
        expires_at: record.expires_at,
        created_at: record.created_at,
    }
}
