//! Volumes on the simulated cluster: made, bound, moved, rolled back, lost; and random sequences in which nobody writes twice (R2).

use berth_common::id::{SnapshotId, VolumeId};
use berth_common::model::{
    MoveStage, NodeKind, NodeRecord, PoolFacts, RollBack, SnapshotRecord, UnixMillis, VolumeMove,
    VolumeRecord,
};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::Dirty;
use super::cases::{check_converged, edit, edit_node, on};
use super::fixtures::{node, node_id, service, service_id, tenant_id};
use super::sim::World;
use crate::cluster::Change;

pub(super) fn with_pool(n: u64, gib: u64) -> NodeRecord {
    let mut record = node(n, NodeKind::Shared, 4, 8);
    record.facts.volumes = Some(PoolFacts {
        capacity: Bytes::gib(gib),
        kind: "btrfs".to_owned(),
        port: Some(7444),
    });
    record
}

pub(super) fn world(nodes: u64) -> World {
    let mut world = World::new();
    for n in 1..=nodes {
        world.join(with_pool(n, 10));
    }
    world.run(2);
    world
}

pub(super) fn put(w: &mut World, n: u64, replicas: u32, mounts: &[&str]) {
    let mut record = service(n, 1, "web:1", replicas, Bytes::mib(256));
    record.spec.volumes = mounts.iter().map(|text| text.parse().expect("mount")).collect();
    record.spec.validate().expect("a spec that the API would take");
    w.commit(vec![Change::PutService(record)]);
}

pub(super) fn volume(w: &World, name: &str) -> VolumeRecord {
    let found = w.state.volume(tenant_id(1), &name.parse().expect("name"));
    (**found.unwrap_or_else(|| panic!("no volume {name}"))).clone()
}

pub(super) fn change(w: &mut World, name: &str, how: impl FnOnce(&mut VolumeRecord)) {
    let mut record = volume(w, name);
    how(&mut record);
    w.commit(vec![Change::PutVolume(record)]);
}

pub(super) fn begin_move(w: &mut World, name: &str, to: u64, id: u64) {
    begin_moves(w, &[name], to, id);
}

/// The move of all that go together is one write.
pub(super) fn begin_moves(w: &mut World, names: &[&str], to: u64, id: u64) {
    let since = UnixMillis(w.now);
    let moves = names.iter().zip(id..).map(|(name, id)| {
        let mut record = volume(w, name);
        record.moves = Some(VolumeMove {
            to: node_id(to),
            why: "asked".to_owned(),
            last: snapshot_id(id),
            stage: MoveStage::Copying,
            since,
        });
        Change::PutVolume(record)
    });
    let moves = moves.collect();
    w.commit(moves);
}

pub(super) fn snapshot_id(n: u64) -> SnapshotId {
    let mut raw = [9; 10];
    raw[..8].copy_from_slice(&n.to_be_bytes());
    SnapshotId::from_bytes(raw)
}

pub(super) fn waiting(w: &World, n: u64) -> String {
    let mut containers = w.state.containers_of(service_id(n));
    containers
        .find_map(|c| c.waiting.clone())
        .unwrap_or_else(|| panic!("none waits: {:?}", w.events))
}

#[test]
fn a_service_gets_its_volume_where_it_is_placed_and_keeps_it() {
    let mut w = world(3);
    put(&mut w, 1, 2, &["data:/x:size=2GiB"]);
    w.run(8);
    let data = volume(&w, "data");
    let node = data.node.expect("bound");
    assert_eq!((data.size, data.epoch.0), (Bytes::gib(2), 1));
    assert_eq!(w.running(service_id(1)), 2);
    assert_eq!(w.state.volumes_taken_on(node), Bytes::gib(2));
    let places: Vec<_> = w.state.containers_of(service_id(1)).map(|c| c.node).collect();
    assert_eq!(places, [Some(node); 2], "all where the volume is");
    // An update stops the one before the other starts: the check of each write says so.
    edit(&mut w, 1, |s| s.spec.image = "web:2".parse().unwrap());
    w.run(60);
    assert_eq!(
        (w.running(service_id(1)), on(&w, 1) + on(&w, 2) + on(&w, 3)),
        (2, 2)
    );
    // The service goes, the volume stays.
    w.commit(vec![Change::DeleteService(service_id(1))]);
    w.run(8);
    assert_eq!(volume(&w, "data").node, Some(node));
    assert!(w.writable(node, data.id).is_some_and(|writes| writes > 10));
    // Another that names it goes there, and finds what was written.
    put(&mut w, 2, 1, &["data:/y"]);
    w.run(8);
    assert_eq!(w.running(service_id(2)), 1);
    change(&mut w, "data", |record| record.removing = true);
    w.run(8);
    assert!(w.writable(node, data.id).is_some(), "a container has it");
    w.commit(vec![Change::DeleteService(service_id(2))]);
    w.run(8);
    assert_eq!((w.state.volumes.len(), w.snapshots(node, data.id)), (0, None));
    super::sim_rules::check_indexes(&w.state);
}

#[test]
fn each_replica_has_its_own_where_that_was_asked() {
    let mut w = world(3);
    put(&mut w, 1, 3, &["data:/x:per-replica"]);
    w.run(8);
    assert_eq!(w.running(service_id(1)), 3);
    let nodes: std::collections::BTreeSet<_> = (1..=3)
        .map(|n| volume(&w, &format!("data-{n}")).node.expect("bound"))
        .collect();
    assert_eq!(nodes.len(), 3, "replicas spread, each with its own");
    edit(&mut w, 1, |s| s.spec.replicas = 1);
    w.run(8);
    edit(&mut w, 1, |s| s.spec.replicas = 3);
    w.run(12);
    assert_eq!(w.state.volumes.len(), 3, "the third found its own again");
    for c in w.state.containers_of(service_id(1)) {
        let own = volume(&w, &format!("data-{}", c.replica));
        assert_eq!(c.node, own.node);
    }
}

#[test]
fn r9_what_stands_against_a_place_is_told() {
    let mut w = World::new();
    w.join(node(1, NodeKind::Shared, 4, 8));
    w.run(2);
    put(&mut w, 1, 1, &["data:/x"]);
    assert!(
        waiting(&w, 1).contains("has no place for volumes"),
        "{}",
        waiting(&w, 1)
    );
    w.join(with_pool(2, 1));
    w.run(2);
    put(&mut w, 2, 1, &["big:/x:size=2GiB"]);
    w.run(8);
    assert_eq!(w.running(service_id(1)), 1, "{}", waiting(&w, 1));
    let why = waiting(&w, 2);
    assert!(
        why.contains("lacks room for volumes (need 2GiB, most free is 0B on h2)"),
        "{why}"
    );
    // Its node is lost: it waits there, and says where its data is.
    w.set_up(node_id(2), false);
    w.run(40);
    assert!(w.state.nodes[&node_id(2)].lost);
    let told = w
        .events
        .iter()
        .find(|event| event.kind == "no-elsewhere")
        .expect("told");
    assert!(
        told.text
            .contains("does not have its volume data, which is on h2"),
        "{}",
        told.text
    );
    w.set_up(node_id(2), true);
    w.run(20);
    assert_eq!(w.running(service_id(1)), 1);
}

fn snapshot(w: &mut World, name: &str, n: u64) {
    let at = UnixMillis(w.now);
    change(w, name, |record| {
        record.snapshots.push(SnapshotRecord {
            id: snapshot_id(n),
            name: format!("s{n}").parse().expect("name"),
            created_at: at,
            scheduled: false,
            removing: false,
        });
    });
}

fn roll_back(w: &mut World, name: &str, to: u64, keep: u64) {
    snapshot(w, name, keep);
    change(w, name, |record| {
        record.rollback = Some(RollBack {
            snapshot: snapshot_id(to),
            keep: snapshot_id(keep),
        });
    });
}

#[test]
fn snapshots_are_made_and_go_and_a_roll_back_waits_for_the_container() {
    let mut w = world(1);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    snapshot(&mut w, "data", 1);
    w.run(4);
    let data = volume(&w, "data");
    assert_eq!(w.snapshots(node_id(1), data.id), Some(1));
    let then = w.acknowledged[&data.id];
    w.run(20);
    roll_back(&mut w, "data", 1, 2);
    w.run(10);
    assert!(w.acknowledged[&data.id] > then + 20, "it is in use");
    w.commit(vec![Change::DeleteService(service_id(1))]);
    w.run(6);
    assert!(
        w.writable(node_id(1), data.id)
            .is_some_and(|writes| writes <= then)
    );
    assert_eq!(w.snapshots(node_id(1), data.id), Some(2));
    change(&mut w, "data", |record| record.snapshots[0].removing = true);
    w.run(4);
    assert_eq!(
        (
            volume(&w, "data").snapshots.len(),
            w.snapshots(node_id(1), data.id)
        ),
        (1, Some(1))
    );
}

#[derive(Debug, Clone)]
enum Act {
    Move(u64, u64),
    Cancel(u64),
    Up(u64, bool),
    Reboot(u64),
    Drain(u64, bool),
    Image(u64, u8),
    Scale(u64, u32),
    Snapshot(u64),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    let (v, n) = (0u64..4, 1u64..4);
    prop_oneof![
        4 => (v.clone(), n.clone()).prop_map(|(v, n)| Act::Move(v, n)),
        1 => v.clone().prop_map(Act::Cancel),
        3 => (n.clone(), any::<bool>()).prop_map(|(n, up)| Act::Up(n, up)),
        1 => n.clone().prop_map(Act::Reboot),
        2 => (n, any::<bool>()).prop_map(|(n, on)| Act::Drain(n, on)),
        1 => (1u64..3, 1u8..4).prop_map(|(s, image)| Act::Image(s, image)),
        1 => (1u64..3, 1u32..3).prop_map(|(s, count)| Act::Scale(s, count)),
        1 => v.prop_map(Act::Snapshot),
        1 => Just(Act::Restart),
    ]
}

fn nth(w: &World, n: u64) -> Option<String> {
    let all: Vec<_> = w.state.volumes.values().map(|v| v.name.to_string()).collect();
    all.get(n as usize % all.len().max(1)).cloned()
}

fn perform(w: &mut World, act: &Act, step: u64) {
    match *act {
        Act::Move(v, n) => {
            let Some(name) = nth(w, v) else { return };
            let together = super::volumes::companions(&w.state, &volume(w, &name));
            if together.iter().all(|id| can_move(w, *id, n)) {
                let names: Vec<_> = together
                    .iter()
                    .map(|id| w.state.volumes[id].name.to_string())
                    .collect();
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                begin_moves(w, &names, n, 1_000 * step);
            }
        }
        Act::Cancel(v) => {
            let Some(name) = nth(w, v) else { return };
            let record = volume(w, &name);
            if record
                .moves
                .as_ref()
                .is_some_and(|moves| moves.stage != MoveStage::Finishing)
            {
                change(w, &name, super::volumes::cancel);
            }
        }
        Act::Up(n, up) => w.set_up(node_id(n), up),
        Act::Reboot(n) => w.reboot(node_id(n)),
        Act::Drain(n, on) => edit_node(w, n, |node| node.draining = on),
        Act::Image(n, to) => edit(w, n, |s| s.spec.image = format!("web:{to}").parse().unwrap()),
        Act::Scale(n, count) => edit(w, n, |s| s.spec.replicas = count),
        Act::Snapshot(v) => {
            let Some(name) = nth(w, v) else { return };
            if volume(w, &name).node.is_some() {
                snapshot(w, &name, 500_000 + step);
            }
        }
        Act::Restart => w.run_plan(&Dirty::everything()),
    }
}

fn can_move(w: &World, id: VolumeId, to: u64) -> bool {
    let record = &w.state.volumes[&id];
    record.node.is_some_and(|node| node != node_id(to)) && record.moves.is_none() && !record.removing
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0xb129),
        ..ProptestConfig::default()
    })]

    /// Every write finds the one before it, whatever moves, dies and returns meanwhile; and in the end all is somewhere, once.
    #[test]
    fn r2_nobody_writes_twice_and_the_cluster_converges(acts in prop::collection::vec((act(), 0u64..30), 1..30)) {
        let mut w = world(3);
        put(&mut w, 1, 1, &["data:/x", "logs:/y"]);
        put(&mut w, 2, 2, &["own:/x:per-replica"]);
        w.run(6);
        for (step, (act, ticks)) in acts.iter().enumerate() {
            perform(&mut w, act, 1 + step as u64);
            w.run(*ticks);
        }
        w.everyone_up();
        for n in 1..4 {
            edit_node(&mut w, n, |node| node.draining = false);
        }
        w.run(300);
        check_converged(&w);
        for record in w.state.volumes.values() {
            prop_assert_eq!(&record.moves, &None);
            for n in 1..4 {
                let has = w.snapshots(node_id(n), record.id).is_some();
                prop_assert_eq!(has, record.node == Some(node_id(n)), "{} on h{}", &record.name, n);
            }
        }
    }
}
