//! Records that tests are made of.

use berth_common::id::{ContainerId, NodeId, Revision, ServiceId, TenantId};
use berth_common::model::{
    Capacity, NodeFacts, NodeKind, NodeRecord, RunState, ServiceRecord, ServiceSpec, TenantRecord, UnixMillis,
};
use berth_common::units::{Bytes, Millicores};

use crate::api::tenants::new_tenant;
use crate::policies::{OnFailure, PolicySettings};

fn raw(kind: u8, n: u64) -> [u8; 10] {
    let mut raw = [kind; 10];
    raw[2..].copy_from_slice(&n.to_be_bytes());
    raw
}
pub(crate) fn node_id(n: u64) -> NodeId {
    NodeId::from_bytes(raw(1, n))
}
pub(crate) fn tenant_id(n: u64) -> TenantId {
    TenantId::from_bytes(raw(2, n))
}
pub(crate) fn service_id(n: u64) -> ServiceId {
    ServiceId::from_bytes(raw(3, n))
}
pub(crate) fn container_id(n: u64) -> ContainerId {
    ContainerId::from_bytes(raw(4, n))
}

/// A tenant.
pub(crate) fn tenant(n: u64) -> TenantRecord {
    new_tenant(tenant_id(n), format!("t{n}").parse().unwrap(), UnixMillis(0))
}

/// A policy p, at an address that nobody has.
pub(crate) fn policy(on_failure: OnFailure) -> PolicySettings {
    PolicySettings {
        name: "p".parse().unwrap(),
        url: "http://127.0.0.1:1/".to_owned(),
        timeout_ms: 300,
        on_failure,
        token_file: None,
        ca_file: None,
    }
}

/// A node record with so many cores and GiB.
pub(crate) fn node(n: u64, kind: NodeKind, cores: u32, gib: u64) -> NodeRecord {
    let capacity = Capacity {
        cpu: Millicores(cores * 1000),
        memory: Bytes::gib(gib),
        disk: Bytes::gib(100),
    };
    let facts = NodeFacts::of(&format!("h{n}"), capacity);
    NodeRecord::new(node_id(n), format!("h{n}").parse().unwrap(), kind, facts)
}

/// A service of so many replicas, each of so much memory. Images named `bad` crash, images named `job` end well.
pub(crate) fn service(n: u64, tenant: u64, image: &str, replicas: u32, memory: Bytes) -> ServiceRecord {
    let mut spec = ServiceSpec::new(format!("s{n}").parse().unwrap(), image.parse().unwrap());
    spec.replicas = replicas;
    spec.resources.limits.memory = Some(memory);
    ServiceRecord {
        id: service_id(n),
        tenant: tenant_id(tenant),
        spec,
        generation: 1,
        run: RunState::Running,
        restarts_asked: 0,
        created_at: UnixMillis(0),
        revision: Revision(0),
    }
}
