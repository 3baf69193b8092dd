//! Balance with its effects: containers of a hot node move with their successors first, or stay and say why; busy nodes take nothing.

use berth_common::model::{Moves, Overcommit, UpdateOrder};
use berth_common::protocol::{ContainerUsage, NodeUsage};
use berth_common::units::{Bytes, Millicores};

use super::balance;
use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node_id, service, service_id};
use super::sim::World;
use crate::cluster::Change;
use crate::outlook::{self, seconds};
use crate::scheduler::rebalance::Memory;

/// One sample of every node: each container uses so many millicores, and on each node so much is foreign.
pub(super) fn sample(w: &World, now: u32, container: u32, foreign: &[u32]) {
    for (n, cpu) in foreign.iter().enumerate() {
        let usage = NodeUsage {
            cpu_foreign: Some(*cpu),
            memory_foreign: Some(1 << 20),
            ..NodeUsage::default()
        };
        let all: Vec<ContainerUsage> = w
            .state
            .containers_on(node_id(n as u64 + 1))
            .map(|c| {
                serde_json::from_value(
                    serde_json::json!({ "id": c.id, "at": 1, "cpu": container, "memory": 1 << 20 }),
                )
                .unwrap()
            })
            .collect();
        let samples = outlook::samples(&usage, all.iter());
        w.watched.record(node_id(n as u64 + 1), now, samples);
    }
}

/// Rounds of ten seconds with samples of that; how many moves were begun.
fn rounds(
    w: &mut World,
    memory: &mut Memory<berth_common::id::NodeId, berth_common::id::ContainerId>,
    count: u32,
    container: u32,
    foreign: &[u32],
) -> usize {
    let mut begun = 0;
    for _ in 0..count {
        sample(w, seconds(w.now), container, foreign);
        let decided = balance::round(&w.state, &w.watched.at(w.now), memory, seconds(w.now));
        begun += decided.moves.len();
        let changes = balance::begin(&w.state, decided.moves);
        w.events.extend(decided.events);
        w.commit(changes);
        w.run(20);
    }
    begun
}

/// Samples hours at once: the clock of samples runs ahead of that of leases here.
fn hours(w: &World) -> impl FnMut(&World, u32, &[u32]) + use<> {
    let mut clock = seconds(w.now);
    move |w, count, foreign| {
        for _ in 0..count * 360 {
            clock += 10;
            sample(w, clock, 0, foreign);
        }
    }
}

/// Lets reservations of CPU exceed what the first nodes have.
fn overcommit(w: &mut World, nodes: u64) {
    for n in 1..=nodes {
        edit_node(w, n, |node| {
            node.overcommit = Some(Overcommit {
                cpu_percent: 400,
                memory_percent: 100,
            });
        });
    }
}

/// Three nodes of four cores; four replicas of a core each, all of them on the first node.
fn crowded() -> World {
    let mut w = world(3, 64);
    for n in 2..=3 {
        edit_node(&mut w, n, |node| node.cordoned = true);
    }
    put(&mut w, 1, "web:1", 4, 1);
    w.run(20);
    assert_eq!(on(&w, 1), 4);
    for n in 2..=3 {
        edit_node(&mut w, n, |node| node.cordoned = false);
    }
    w
}

#[test]
fn a_hot_node_gives_away_until_it_is_cool_and_no_more_successors_first() {
    let mut w = crowded();
    let mut memory = Memory::default();
    for _ in 0..12 {
        rounds(&mut w, &mut memory, 1, 960, &[100, 0, 0]);
        assert!(
            w.running(service_id(1)) >= 4,
            "whoever moves serves until its successor does"
        );
    }
    assert_eq!(
        on(&w, 1),
        3,
        "3 of 0.96 and 0.1 are less than nine tenths of four cores"
    );
    let told: Vec<_> = w.events.iter().filter(|event| event.kind == "moved").collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(
        told[0]
            .text
            .contains("percent of the CPU of h1 are expected to be in use, over 90"),
        "{}",
        told[0].text
    );
    assert_eq!(
        rounds(&mut w, &mut memory, 30, 960, &[100, 0, 0]),
        0,
        "and then it is quiet"
    );
    quiet(&w);
}

#[test]
fn what_would_stop_before_its_successor_starts_does_not_move_for_the_sake_of_load() {
    let mut w = crowded();
    edit(&mut w, 1, |service| {
        service.spec.update.order = UpdateOrder::StopFirst
    });
    w.run(4);
    assert_eq!(rounds(&mut w, &mut Memory::default(), 12, 960, &[100, 0, 0]), 0);
    let told: Vec<_> = w.events.iter().filter(|event| event.kind == "node-hot").collect();
    assert_eq!(told.len(), 1, "told once: {told:?}");
}

#[test]
fn a_move_whose_destination_is_gone_is_given_up_and_said() {
    let mut w = crowded();
    edit_node(&mut w, 2, |node| node.cordoned = true);
    let one = w.state.containers_of(service_id(1)).next().unwrap().id;
    let moves = Moves {
        to: node_id(2),
        why: "for a test".to_owned(),
        emptying: false,
    };
    let changes = balance::begin(&w.state, vec![(one, moves)]);
    assert_eq!(changes.len(), 1);
    w.commit(changes);
    w.run(10);
    assert_eq!((on(&w, 1), w.state.containers.len()), (4, 4));
    assert!(
        w.state
            .containers
            .values()
            .all(|container| container.moves.is_none())
    );
    assert_eq!(w.events.iter().filter(|event| event.kind == "stays").count(), 1);
    quiet(&w);
}

#[test]
fn placements_avoid_a_node_that_others_hog_and_wait_where_only_load_tells_what_is_left() {
    let mut w = world(3, 64);
    let mut hours = hours(&w);
    hours(&w, 1, &[3_600, 0, 0]);
    put(&mut w, 1, "web:1", 6, 1);
    assert_eq!(on(&w, 1), 0, "the hogged one");
    // Overcommitted nodes take nothing that load leaves no room for.
    overcommit(&mut w, 3);
    hours(&w, 6, &[3_600, 3_600, 3_600]);
    put(&mut w, 2, "web:1", 1, 1);
    w.run(20);
    let waits = w
        .state
        .containers_of(service_id(2))
        .next()
        .unwrap()
        .waiting
        .clone()
        .unwrap();
    assert!(
        waits.contains("3 nodes are too busy (CPU in use there would reach"),
        "{waits}"
    );
    // And take it as soon as load has fallen for good, with nobody saying anything.
    hours(&w, 2, &[100, 3_600, 3_600]);
    w.run(20);
    assert_eq!(w.running(service_id(2)), 1);
}

#[test]
fn whoever_had_others_preempted_does_not_wait_for_a_node_that_became_busy_as_if_they_were_still_going() {
    let mut w = world(2, 4);
    overcommit(&mut w, 2);
    let mut hours = hours(&w);
    hours(&w, 1, &[0, 0]);
    let small = |w: &mut World, n, replicas, gib, priority| {
        let mut record = service(n, 1, "web:1", replicas, Bytes::gib(gib));
        record.spec.resources.limits.cpu = Some(Millicores(100));
        record.spec.priority = priority;
        w.commit(vec![Change::PutService(record)]);
    };
    small(&mut w, 1, 8, 1, 0);
    w.run(10);
    assert_eq!(w.running(service_id(1)), 8, "all of the memory");
    small(&mut w, 2, 1, 2, 5);
    let waiting = |w: &World| w.state.containers_of(service_id(2)).next().unwrap().clone();
    assert!(waiting(&w).claim.is_some());
    hours(&w, 6, &[3_600, 3_600]);
    w.run(20);
    let told = waiting(&w);
    assert_eq!(told.node, None);
    assert!(told.waiting.as_ref().unwrap().contains("too busy"), "{told:?}");
    hours(&w, 8, &[0, 0]);
    w.run(20);
    assert_eq!(w.running(service_id(2)), 1, "{:?}", waiting(&w));
}
