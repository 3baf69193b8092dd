//! Records that tests are made of.

use std::collections::BTreeMap;

use berth_common::id::{ContainerId, Generation, NodeId, Revision, ServiceId, TenantId};
use berth_common::model::{
    Architecture, Capacity, NodeFacts, NodeKind, NodeRecord, RunState, ServiceRecord, ServiceSpec,
    UnixMillis, default_pool,
};
use berth_common::units::{Bytes, Millicores};

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

/// A node record with so many cores and GiB.
pub(crate) fn node(n: u64, kind: NodeKind, cores: u32, gib: u64) -> NodeRecord {
    let capacity = Capacity {
        cpu: Millicores(cores * 1000),
        memory: Bytes::gib(gib),
        disk: Bytes::gib(100),
    };
    NodeRecord {
        id: node_id(n),
        name: format!("h{n}").parse().unwrap(),
        kind,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        cordoned: false,
        draining: false,
        pool: default_pool(),
        overcommit: None,
        facts: NodeFacts {
            hostname: format!("h{n}"),
            agent_version: "0.1.0".into(),
            os: "Debian".into(),
            kernel: "6.1".into(),
            arch: Architecture("amd64".into()),
            capacity,
            system_reserve: Capacity::default(),
            cgroup_version: 2,
            runtime: "1.7".into(),
            snapshotter: "overlayfs".into(),
            disk_limit_hard: false,
            boot_id: String::new(),
            underlay: None,
            warnings: vec![],
        },
        generation: Generation(0),
        lost: false,
        key_fingerprint: String::new(),
        joined_at: UnixMillis(0),
        revision: Revision(0),
    }
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
