//! Volumes that move on the simulated cluster: by command, with their containers, away from drained nodes, given up.

use berth_common::model::MoveStage;

use super::cases::{edit_node, on};
use super::fixtures::{node_id, service_id};
use super::nodes::drain_waits;
use super::sim::World;
use super::volume_cases::{begin_move, begin_moves, change, put, volume, with_pool, world};
use crate::cluster::Change;

#[test]
fn r2_a_volume_moves_with_its_container_and_no_acknowledged_write_is_lost() {
    let mut w = world(3);
    put(&mut w, 1, 1, &["data:/x", "logs:/y"]);
    w.run(10);
    let (data, logs) = (volume(&w, "data"), volume(&w, "logs"));
    let from = data.node.expect("bound");
    assert_eq!(logs.node, Some(from));
    let addresses = |w: &World| {
        let mut one = w.state.containers_of(service_id(1)).filter(|c| !c.removing);
        one.next().expect("one").endpoints.clone()
    };
    let before = addresses(&w);
    let to = if from == node_id(1) { 2 } else { 1 };
    begin_move(&mut w, "data", to, 1);
    // Alone it does not go: they are mounted together.
    let told = w.events.last().expect("told");
    let why = "mounted together with logs, which does not";
    assert!(told.text.contains(why), "{}", told.text);
    w.run(20);
    assert_eq!((volume(&w, "data").moves, w.running(service_id(1))), (None, 1));
    begin_moves(&mut w, &["data", "logs"], to, 2);
    w.run(40);
    for (name, old) in [("data", &data), ("logs", &logs)] {
        let now = volume(&w, name);
        assert_eq!(
            (now.node, now.epoch.0),
            (
                Some(node_id(to)),
                old.epoch.0 + if name == "data" { 2 } else { 1 }
            ),
            "{:?}",
            w.events
        );
        assert_eq!(w.snapshots(from, old.id), None, "nothing is left where it was");
        assert_eq!(w.snapshots(node_id(to), old.id), Some(0), "nor of its rounds");
        assert_eq!(now.moved.and_then(|moved| moved.left), None);
    }
    assert_eq!(w.running(service_id(1)), 1);
    assert_eq!(addresses(&w), before, "with the same address");
}

#[test]
fn a_move_whose_destination_is_lost_is_given_up_at_any_stage() {
    for ticks in 0..16 {
        let mut w = world(2);
        put(&mut w, 1, 1, &["data:/x"]);
        w.run(10);
        let data = volume(&w, "data");
        let from = data.node.expect("bound");
        let to = if from == node_id(1) { 2 } else { 1 };
        begin_move(&mut w, "data", to, 1);
        w.run(ticks);
        w.set_up(node_id(to), false);
        w.run(60);
        let now = volume(&w, "data");
        if now.node == Some(from) {
            assert_eq!(w.running(service_id(1)), 1, "after {ticks}: {:?}", w.events);
            assert_eq!(now.moves, None);
        }
        w.set_up(node_id(to), true);
        w.run(60);
        assert_eq!(w.running(service_id(1)), 1, "after {ticks}: {:?}", w.events);
        let now = volume(&w, "data");
        let other = if now.node == Some(from) { node_id(to) } else { from };
        assert_eq!(
            w.snapshots(other, data.id),
            None,
            "after {ticks}: it is at one place"
        );
    }
}

/// What a node said of one move says nothing of the next: its containers would stop before anything was sent.
#[test]
fn a_move_does_not_take_the_one_before_for_its_own() {
    let mut w = world(3);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    let data = volume(&w, "data");
    let from = data.node.expect("bound");
    let others: Vec<u64> = (1..=3).filter(|n| node_id(*n) != from).collect();
    begin_move(&mut w, "data", others[0], 1);
    for _ in 0..40 {
        let seen = w
            .state
            .volume_seen(from, data.id)
            .and_then(|seen| seen.sending.clone());
        if seen.is_some_and(|sending| sending.ready) {
            break;
        }
        w.run(1);
    }
    change(&mut w, "data", super::volumes::cancel);
    begin_move(&mut w, "data", others[1], 2);
    let stopping = (0..60).find_map(|_| {
        w.run(1);
        let moves = volume(&w, "data").moves.expect("it moves");
        (moves.stage != MoveStage::Copying)
            .then_some(w.state.volume_seen(node_id(others[1]), data.id).is_some())
    });
    assert_eq!(stopping, Some(true), "something was sent before: {:?}", w.events);
    w.run(60);
    assert_eq!(
        volume(&w, "data").node,
        Some(node_id(others[1])),
        "{:?}",
        w.events
    );
    assert_eq!(w.running(service_id(1)), 1);
}

#[test]
fn a_drained_node_gives_its_volumes_away() {
    let mut w = world(3);
    put(&mut w, 1, 3, &["data:/x:per-replica"]);
    put(&mut w, 2, 2, &["shared:/x"]);
    w.run(10);
    edit_node(&mut w, 1, |node| node.draining = true);
    edit_node(&mut w, 2, |node| node.draining = true);
    w.run(120);
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (0, 0, 5), "{:?}", w.events);
    assert_eq!(w.running(service_id(1)) + w.running(service_id(2)), 5);
    for record in w.state.volumes.values() {
        assert_eq!(record.node, Some(node_id(3)), "{}", record.name);
    }
    // A volume that nobody has goes, too.
    w.commit(vec![Change::DeleteService(service_id(2))]);
    edit_node(&mut w, 1, |node| node.draining = false);
    w.run(10);
    edit_node(&mut w, 3, |node| node.draining = true);
    w.run(120);
    assert_eq!(volume(&w, "shared").node, Some(node_id(1)), "{:?}", w.events);
}

#[test]
fn r9_what_keeps_a_volume_on_a_drained_node_is_told() {
    let mut w = world(1);
    put(&mut w, 1, 1, &["data:/x:size=4GiB"]);
    w.run(8);
    w.join(with_pool(2, 1));
    w.run(2);
    edit_node(&mut w, 1, |node| node.draining = true);
    w.run(20);
    let told = |w: &World| drain_waits(&w.state, &w.watched.at(w.now), node_id(1)).join("; ");
    let why = told(&w);
    let full = "1 node lacks room for volumes (need 4GiB, most free is 1GiB on h2)";
    assert!(why.starts_with("s1.1 stays: ") && why.contains(full), "{why}");
    // Another has room: it goes there, and says that it does.
    w.join(with_pool(3, 8));
    w.run(2);
    assert_eq!(told(&w), "s1.1 waits until its volume data is on h3");
    w.run(60);
    assert_eq!((on(&w, 1), on(&w, 3)), (0, 1), "{:?}", w.events);
}
