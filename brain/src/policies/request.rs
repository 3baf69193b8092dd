//! What a policy is told: the service as far as places go, and the nodes that its containers could be on. Pure.
//!
//! The list of what is told is written out, so that a field that services get some day is not sent to anybody by itself. Environment,
//! commands, secrets and mounts are none of it; other tenants' private nodes are not either (R6).

use std::collections::BTreeMap;

use berth_common::api::ExpectedLoad;
use berth_common::id::{Name, NodeId};
use berth_common::model::{
    Class, DEFAULT_POOL, Limits, NodeKind, NodeRecord, Reservation, ServiceRecord, Spread, Taint, Together,
    Toleration,
};
use serde::Serialize;

use crate::cluster::State;

/// A question.
#[derive(Debug, Serialize)]
pub struct Question<'a> {
    service: Service<'a>,
    nodes: Vec<Node<'a>>,
}

#[derive(Debug, Serialize)]
struct Service<'a> {
    tenant: Option<&'a Name>,
    name: &'a Name,
    generation: u64,
    image: String,
    replicas: u32,
    labels: &'a BTreeMap<String, String>,
    node_labels: &'a BTreeMap<String, String>,
    pool: &'a str,
    tolerations: &'a [Toleration],
    spread: &'a [Spread],
    together: &'a [Together],
    max_per_node: Option<u32>,
    class: Class,
    priority: i32,
    reservation: Reservation,
    limits: Limits,
}

#[derive(Debug, Serialize)]
struct Node<'a> {
    name: &'a Name,
    labels: &'a BTreeMap<String, String>,
    taints: &'a [Taint],
    pool: &'a Name,
    allocatable: Reservation,
    reserved: Reservation,
    expected: Option<ExpectedLoad>,
}

/// The nodes that a policy is asked about for a service: of its pool, not lost, shared or its tenant's own.
pub fn nodes<'a>(state: &'a State, service: &ServiceRecord) -> Vec<&'a NodeRecord> {
    let pool = service.spec.pool.as_ref().map_or(DEFAULT_POOL, Name::as_str);
    let own = |node: &NodeRecord| match node.kind {
        NodeKind::Shared => true,
        NodeKind::Private { tenant } => tenant == service.tenant,
    };
    let all = state.nodes.values().map(|node| &**node);
    all.filter(|node| own(node) && !node.lost && node.pool.as_str() == pool)
        .collect()
}

/// Their ids by name, by which answers are read.
pub fn names(nodes: &[&NodeRecord]) -> BTreeMap<String, NodeId> {
    nodes
        .iter()
        .map(|node| (node.name.to_string(), node.id))
        .collect()
}

impl<'a> Question<'a> {
    /// About these nodes; `expected` is what each of them is expected to use, in their order.
    ///
    /// # Errors
    /// The spec is one of an older brain's rules and has no resources by today's.
    pub fn new(
        state: &'a State,
        service: &'a ServiceRecord,
        nodes: &[&'a NodeRecord],
        expected: Vec<Option<ExpectedLoad>>,
    ) -> Result<Self, String> {
        let spec = &service.spec;
        let container = spec.container_spec().map_err(|error| error.to_string())?;
        let told = |(node, expected): (&&'a NodeRecord, Option<ExpectedLoad>)| Node {
            name: &node.name,
            labels: &node.labels,
            taints: &node.taints,
            pool: &node.pool,
            allocatable: state.allocatable(node),
            reserved: state.taken_on(node.id).reserved,
            expected,
        };
        Ok(Self {
            service: Service {
                tenant: state.tenants.get(&service.tenant).map(|tenant| &tenant.name),
                name: &spec.name,
                generation: service.generation,
                image: spec.image.to_string(),
                replicas: spec.replicas,
                labels: &spec.labels,
                node_labels: &spec.node_labels,
                pool: spec.pool.as_ref().map_or(DEFAULT_POOL, Name::as_str),
                tolerations: &spec.tolerations,
                spread: &spec.spread,
                together: &spec.together,
                max_per_node: spec.max_per_node,
                class: spec.class,
                priority: spec.priority,
                reservation: container.reservation,
                limits: container.limits,
            },
            nodes: nodes.iter().zip(expected).map(told).collect(),
        })
    }
}
