//! What becomes of containers whose node is lost, comes back, or is drained.

use berth_common::model::NodeKind;

use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node, node_id, service_id};
use super::nodes;
use super::sim::World;
use super::view::service_problem;

#[test]
fn a_lost_node_is_replaced_elsewhere_and_stops_its_own_when_it_returns() {
    let mut w = world(3, 8);
    put(&mut w, 1, "web:1", 3, 1);
    w.run(6);
    w.set_up(node_id(1), false);
    w.run(40);
    assert!(w.state.nodes[&node_id(1)].lost);
    assert_eq!(on(&w, 1), 0);
    assert_eq!(
        w.state.taken_on(node_id(1)).containers,
        1,
        "reserved until the node confirms"
    );
    assert_eq!(w.running(service_id(1)), 3);
    assert_eq!(w.existing().len(), 4);
    w.set_up(node_id(1), true);
    w.run(10);
    assert!(!w.state.nodes[&node_id(1)].lost);
    assert_eq!(w.existing().len(), 3);
    assert_eq!(w.state.containers.len(), 3);
    for kind in ["node-lost", "moved", "node-back"] {
        assert_eq!(w.events.iter().filter(|e| e.kind == kind).count(), 1, "{kind}");
    }
    quiet(&w);
}

#[test]
fn without_an_elsewhere_a_lost_nodes_containers_stay() {
    let mut w = world(1, 8);
    put(&mut w, 1, "web:1", 2, 1);
    w.run(6);
    let before: Vec<_> = w.state.containers.keys().copied().collect();
    w.set_up(node_id(1), false);
    w.run(60);
    assert_eq!(w.events.iter().filter(|e| e.kind == "no-elsewhere").count(), 2);
    assert!(
        service_problem(&w.state, &w.watched.at(w.now), service_id(1))
            .unwrap()
            .contains("1 node is lost")
    );
    w.set_up(node_id(1), true);
    w.run(10);
    assert_eq!(w.state.containers.keys().copied().collect::<Vec<_>>(), before);
    assert_eq!(w.running(service_id(1)), 2);
}

#[test]
fn a_brain_that_never_heard_of_a_node_waits_a_whole_lease() {
    let mut w = World::new();
    w.join(node(1, NodeKind::Shared, 4, 8));
    w.set_up(node_id(1), false);
    w.run(19);
    assert!(!w.state.nodes[&node_id(1)].lost);
    w.run(3);
    assert!(w.state.nodes[&node_id(1)].lost);
}

#[test]
fn a_brain_whose_host_just_booted_gives_the_others_time_to_boot() {
    let mut w = World::new();
    w.patient_until_ms = 60_000;
    w.join(node(1, NodeKind::Shared, 4, 8));
    w.set_up(node_id(1), false);
    let patience = w.patient_until_ms / 500;
    w.run(patience + 19);
    assert!(!w.state.nodes[&node_id(1)].lost);
    w.run(3);
    assert!(w.state.nodes[&node_id(1)].lost);
}

#[test]
fn drain_moves_one_by_one_and_says_what_holds_it() {
    let mut w = world(2, 4);
    put(&mut w, 1, "web:1", 4, 1);
    w.run(6);
    edit_node(&mut w, 1, |n| n.draining = true);
    for _ in 0..80 {
        w.run(1);
        assert!(w.running(service_id(1)) >= 4);
        assert!(
            w.state
                .containers_of(service_id(1))
                .filter(|c| c.replaces.is_some())
                .count()
                <= 1
        );
    }
    assert_eq!(on(&w, 1), 0);
    assert_eq!(
        nodes::drain_waits(&w.state, &w.watched.at(w.now), node_id(1)),
        Vec::<String>::new()
    );
    assert_eq!(w.events.iter().filter(|e| e.kind == "drained").count(), 1);
    edit_node(&mut w, 2, |n| n.draining = true);
    w.run(20);
    let waits = nodes::drain_waits(&w.state, &w.watched.at(w.now), node_id(2));
    assert_eq!(waits.len(), 4);
    assert!(
        waits[0].ends_with("stays: no node fits: 2 nodes are draining"),
        "{}",
        waits[0]
    );
    edit_node(&mut w, 2, |n| n.draining = false);
    w.run(20);
    assert_eq!((w.running(service_id(1)), w.state.containers.len()), (4, 4));
    quiet(&w);
}

#[test]
fn undraining_an_unreachable_node_does_not_take_away_the_replacement_that_serves() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 1, 1);
    edit(&mut w, 1, |s| s.spec.update.settle_ms = 60_000);
    w.run(6);
    let n = if on(&w, 1) == 1 { 1 } else { 2 };
    edit_node(&mut w, n, |node| node.draining = true);
    w.run(5);
    w.set_up(node_id(n), false);
    w.run(2);
    edit_node(&mut w, n, |node| node.draining = false);
    assert_eq!(on(&w, 3 - n), 1);
    w.set_up(node_id(n), true);
    w.run(10);
    assert_eq!((w.running(service_id(1)), w.existing().len()), (1, 1));
}
