//! Hosts with room for volumes, and what they say of these, for tests.

use std::net::IpAddr;

use berth_common::error::ErrorKind;
use berth_common::id::{NodeId, SnapshotId, VolumeId};
use berth_common::model::{
    NodeKind, NodeRecord, ObservedSending, ObservedSnapshot, ObservedVolume, PoolFacts, Underlay,
    VolumeRecord,
};
use berth_common::units::Bytes;
use serde_json::{Value, json};

use crate::api::fixtures::Bench;
use crate::cluster::{Change, Connection};
use crate::controllers::fixtures;

/// The tenant's volumes.
pub(super) const PATH: &str = "/v1/tenants/shop/volumes";

/// A connected node `h<n>` with so many GiB for volumes.
pub(super) async fn host(b: &Bench, n: u64, kind: NodeKind, gib: u64) -> NodeId {
    let mut record = fixtures::node(n, kind, 8, 16);
    record.facts.volumes = Some(PoolFacts {
        capacity: Bytes::gib(gib),
        kind: "btrfs".to_owned(),
        port: Some(7444),
    });
    record.facts.underlay = Some(Underlay {
        address: IpAddr::from([192, 0, 2, n as u8]),
        mtu: 1500,
        port: 4789,
        wireguard: None,
        address6: None,
    });
    let connection = Connection {
        serial: n,
        address: format!("192.0.2.{n}:4000"),
        synced: true,
        applied: berth_common::id::Generation(0),
    };
    b.api.cluster.heard(record.id);
    let id = record.id;
    apply(
        b,
        vec![Change::PutNode(record), Change::Connected(id, connection)],
    )
    .await;
    id
}

/// Applies changes.
pub(super) async fn apply(b: &Bench, changes: Vec<Change>) {
    let written = b
        .api
        .cluster
        .write(move |_, _| Ok((changes, Vec::new(), ())))
        .await;
    written.unwrap();
}

/// Changes a node.
pub(super) async fn change(b: &Bench, node: NodeId, edit: impl FnOnce(&mut NodeRecord)) {
    let mut record = (*b.api.cluster.snapshot().nodes[&node]).clone();
    edit(&mut record);
    apply(b, vec![Change::PutNode(record)]).await;
}

/// A node is lost.
pub(super) async fn lose(b: &Bench, node: NodeId) {
    let serial = b.api.cluster.snapshot().connections[&node].serial;
    apply(b, vec![Change::Disconnected(node, serial)]).await;
    change(b, node, |record| record.lost = true).await;
}

/// A volume as the brain keeps it.
pub(super) fn record(b: &Bench, name: &str) -> VolumeRecord {
    let state = b.api.cluster.snapshot();
    let found = state.volume(b.tenant_id("shop"), &name.parse().unwrap());
    (**found.unwrap()).clone()
}

/// What a node says of a volume that is as it should be, with all its snapshots, and holds so many MiB.
pub(super) fn whole(b: &Bench, name: &str, used_mib: u64) -> ObservedVolume {
    let record = record(b, name);
    let there = record.snapshots.iter().filter(|one| !one.removing);
    ObservedVolume {
        id: record.id,
        epoch: record.epoch,
        writable: true,
        size: record.size,
        used: Bytes::mib(used_mib),
        mounted: false,
        snapshots: there.map(|one| held(one.id, used_mib)).collect(),
        problem: None,
        sending: None,
        snapshots_gone: record
            .snapshots
            .iter()
            .filter(|one| one.removing)
            .map(|one| one.id)
            .collect(),
    }
}

fn held(id: SnapshotId, mib: u64) -> ObservedSnapshot {
    ObservedSnapshot {
        id,
        referenced: Bytes::mib(mib),
        exclusive: Bytes::mib(1),
    }
}

/// How far the first round is.
pub(super) fn sending(ready: bool) -> ObservedSending {
    ObservedSending {
        last: None,
        round: 0,
        sent: Bytes::mib(3),
        expected: Bytes::mib(4),
        ready,
    }
}

/// A node says what it has, all of it.
pub(super) async fn report(b: &Bench, node: NodeId, volumes: Vec<ObservedVolume>, gone: Vec<VolumeId>) {
    b.api.cluster.heard(node);
    apply(b, vec![Change::ObservedVolumes { node, volumes, gone }]).await;
}

/// Makes a volume for the tenant.
pub(super) async fn make(b: &Bench, body: Value) -> Value {
    b.ok("shop", "POST", PATH, body).await
}

/// Makes the volume `data` of 1GiB on a node, which then has it.
pub(super) async fn data_on(b: &Bench, node: NodeId, name: &str) {
    make(b, json!({ "name": "data", "node": name })).await;
    report(b, node, vec![whole(b, "data", 100)], vec![]).await;
}

/// How a volume stands, with its nodes heard of just now.
pub(super) async fn show(b: &Bench, name: &str) -> Value {
    for node in b.api.cluster.snapshot().connections.keys() {
        b.api.cluster.heard(*node);
    }
    b.ok("shop", "GET", &format!("{PATH}/{name}"), Value::Null).await
}

/// A service that mounts volumes.
pub(super) async fn serve(b: &Bench, service: &str, mounts: Value) {
    let body = json!({ "name": service, "image": "nginx", "volumes": mounts });
    b.ok("shop", "POST", "/v1/tenants/shop/services", body).await;
}

/// Sends what is refused, and gives its detail and cure in one text.
pub(super) async fn refused(b: &Bench, method: &str, path: &str, body: Value, kind: ErrorKind) -> String {
    let problem = b.send("shop", method, path, body.clone()).await.problem();
    assert_eq!(problem.kind, kind, "{method} {path} {body}: {problem}");
    assert!(problem.cure.is_some() || problem.field.is_some(), "{problem}");
    format!(
        "{} | {} | {}",
        problem.detail,
        problem.field.unwrap_or_default(),
        problem.cure.unwrap_or_default()
    )
}
