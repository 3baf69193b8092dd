//! Replicas spread and kept near others, on the simulated cluster: named cases.

use berth_common::model::RunState;

use super::cases::{edit, edit_node, image, on, put, quiet, tell, world};
use super::fixtures::{node_id, service_id};
use super::sim::World;
use super::view::{outdated, service_problem};

fn label(w: &mut World, n: u64, key: &str, value: &str) {
    edit_node(w, n, |node| drop(node.labels.insert(key.into(), value.into())));
}

/// `zones[n]` is the zone of node n + 1; `-` for none.
fn zones(w: &mut World, zones: &str) {
    for (n, zone) in (1..).zip(zones.split(' ')) {
        if zone != "-" {
            label(w, n, "zone", zone);
        }
    }
}

fn spread(w: &mut World, n: u64, by: &str) {
    edit(w, n, |s| s.spec.spread = vec![by.parse().unwrap()]);
}

fn together(w: &mut World, n: u64, with: &str) {
    edit(w, n, |s| s.spec.together = vec![with.parse().unwrap()]);
}

/// A service of no replicas yet, to be told what it asks for before it has any.
fn prepare(w: &mut World, n: u64) {
    put(w, n, "web:1", 0, 1);
}

fn scale(w: &mut World, n: u64, replicas: u32) {
    edit(w, n, |s| s.spec.replicas = replicas);
    w.run(8);
}

fn by_zone(w: &World, n: u64, zone: &str) -> usize {
    let live = w.state.containers_of(service_id(n)).filter(|c| !c.removing);
    live.filter(|c| {
        let node = c.node.and_then(|id| w.state.nodes.get(&id));
        node.is_some_and(|node| node.labels.get("zone").map(String::as_str) == Some(zone))
    })
    .count()
}

#[test]
fn every_node_has_a_label_of_its_own_to_spread_by_and_to_be_pinned_to() {
    let mut w = world(3, 8);
    prepare(&mut w, 1);
    spread(&mut w, 1, "node,hard");
    scale(&mut w, 1, 6);
    assert!((1..=3).all(|n| on(&w, n) == 2));
    put(&mut w, 2, "web:1", 0, 1);
    let name = w.state.nodes[&node_id(2)].name.to_string();
    edit(&mut w, 2, |s| {
        s.spec.node_labels = [("node".into(), name.clone())].into();
    });
    scale(&mut w, 2, 3);
    let there = w
        .state
        .containers_of(service_id(2))
        .all(|c| c.node == Some(node_id(2)));
    assert!(there);
}

#[test]
fn soft_spread_counts_domains_and_not_nodes() {
    let mut w = world(4, 8);
    zones(&mut w, "a a a b");
    prepare(&mut w, 1);
    spread(&mut w, 1, "zone");
    scale(&mut w, 1, 8);
    assert_eq!((by_zone(&w, 1, "a"), by_zone(&w, 1, "b")), (4, 4));
    // Where one domain is full, the other takes the rest.
    scale(&mut w, 1, 20);
    assert_eq!((by_zone(&w, 1, "a"), by_zone(&w, 1, "b")), (12, 8));
    assert_eq!(w.running(service_id(1)), 20);
    quiet(&w);
}

#[test]
fn r9_hard_spread_waits_rather_than_lean_and_says_by_how_much() {
    let mut w = world(3, 2);
    zones(&mut w, "a a b");
    prepare(&mut w, 1);
    spread(&mut w, 1, "zone,hard");
    scale(&mut w, 1, 6);
    // Zone b takes two, so zone a takes three of its four.
    assert_eq!((by_zone(&w, 1, "a"), by_zone(&w, 1, "b")), (3, 2));
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    let expected = "1 of 6 wait for a node: no node fits: 1 node lacks memory (need 1GiB, most free is 0B on h3), \
                    2 nodes are in zone=a, which would have 4 of its replicas where zone=b has 2 (max_skew 1)";
    assert_eq!(problem, expected);
    spread(&mut w, 1, "zone,hard,max-skew=2");
    w.run(8);
    assert_eq!((by_zone(&w, 1, "a"), by_zone(&w, 1, "b")), (4, 2));
    quiet(&w);
}

#[test]
fn r9_nodes_without_the_label_are_told() {
    let mut w = world(2, 8);
    zones(&mut w, "a -");
    prepare(&mut w, 1);
    spread(&mut w, 1, "zone,hard");
    edit_node(&mut w, 1, |node| node.cordoned = true);
    scale(&mut w, 1, 1);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("1 node lacks the label zone, by which it is spread, 1 node is cordoned"),
        "{problem}"
    );
    // Where it is soft they are used last.
    edit_node(&mut w, 1, |node| node.cordoned = false);
    spread(&mut w, 1, "zone");
    scale(&mut w, 1, 8);
    assert_eq!((on(&w, 1), on(&w, 2)), (8, 0));
    scale(&mut w, 1, 9);
    assert_eq!((on(&w, 1), on(&w, 2)), (8, 1));
    quiet(&w);
}

#[test]
fn a_rollout_and_a_drain_keep_a_hard_spread_and_a_lost_domain_holds_nobody_up() {
    let mut w = world(4, 8);
    zones(&mut w, "a a b b");
    prepare(&mut w, 1);
    spread(&mut w, 1, "zone,hard");
    scale(&mut w, 1, 4);
    image(&mut w, 1, "web:2");
    w.run(100);
    assert_eq!(
        (outdated(&w.state, service_id(1)), w.running(service_id(1))),
        (0, 4)
    );
    assert_eq!((by_zone(&w, 1, "a"), by_zone(&w, 1, "b")), (2, 2));
    edit_node(&mut w, 1, |node| node.draining = true);
    w.run(60);
    assert_eq!((on(&w, 1), on(&w, 2), by_zone(&w, 1, "b")), (0, 2, 2));
    edit_node(&mut w, 1, |node| node.draining = false);
    w.set_up(node_id(3), false);
    w.set_up(node_id(4), false);
    w.run(60);
    assert_eq!((w.running(service_id(1)), by_zone(&w, 1, "a")), (4, 4));
    quiet(&w);
}

#[test]
fn r9_no_more_than_so_many_on_a_node_also_while_they_are_replaced() {
    let mut w = world(3, 8);
    prepare(&mut w, 1);
    edit(&mut w, 1, |s| s.spec.max_per_node = Some(1));
    scale(&mut w, 1, 4);
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (1, 1, 1));
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert_eq!(
        problem,
        "1 of 4 wait for a node: no node fits: 3 nodes have 1 of its replicas (max_per_node 1)"
    );
    scale(&mut w, 1, 3);
    image(&mut w, 1, "web:2");
    for _ in 0..200 {
        w.run(1);
        assert!(w.running(service_id(1)) >= 2);
        let most = (1..4).map(|n| w.state.containers_on(node_id(n)).count()).max();
        assert!(most <= Some(1), "two on a node");
    }
    assert_eq!(
        (outdated(&w.state, service_id(1)), w.running(service_id(1))),
        (0, 3)
    );
    quiet(&w);
}

#[test]
fn r9_together_follows_the_other_service_and_waits_for_it() {
    let mut w = world(3, 8);
    zones(&mut w, "a b b");
    prepare(&mut w, 1);
    together(&mut w, 1, "s2,by=zone,hard");
    scale(&mut w, 1, 3);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.ends_with("3 nodes can't be near service s2, of which no container has a node"),
        "{problem}"
    );
    put(&mut w, 2, "web:1", 0, 1);
    edit(&mut w, 2, |s| {
        s.spec.replicas = 1;
        s.spec.node_labels.insert("zone".into(), "b".into());
    });
    w.run(8);
    assert_eq!((w.running(service_id(1)), by_zone(&w, 1, "b")), (3, 3));
    together(&mut w, 1, "s2,hard");
    scale(&mut w, 1, 20);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("2 nodes have no container of service s2"),
        "{problem}"
    );
    // Who is there stays when the other goes.
    let before = w.running(service_id(1));
    tell(&mut w, 2, |s| s.run = RunState::Stopped);
    edit(&mut w, 2, |s| s.spec.replicas = 0);
    w.run(20);
    assert_eq!(w.running(service_id(1)), before);
    quiet(&w);
}

#[test]
fn softly_together_is_near_as_long_as_there_is_room() {
    let mut w = world(2, 4);
    put(&mut w, 2, "web:1", 1, 1);
    w.run(8);
    let n = if on(&w, 1) == 1 { 1 } else { 2 };
    prepare(&mut w, 1);
    together(&mut w, 1, "s2");
    scale(&mut w, 1, 3);
    assert_eq!(on(&w, n), 4, "rather near than apart from each other");
    scale(&mut w, 1, 5);
    assert_eq!((on(&w, n), on(&w, 3 - n)), (4, 2));
    quiet(&w);
}
