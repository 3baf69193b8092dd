//! Best-effort containers on the simulated cluster: where they run, and when they go.

use berth_common::model::{Class, ServiceRecord};
use berth_common::units::Bytes;

use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node_id, service, service_id};
use super::sim::World;
use super::view::{outdated, service_problem};
use crate::cluster::Change;

fn lent(n: u64, replicas: u32, gib: u64) -> ServiceRecord {
    let mut record = service(n, 1, "web:1", replicas, Bytes::gib(gib));
    record.spec.class = Class::BestEffort;
    record
}

fn preempted(w: &World) -> Vec<&str> {
    let all = w.events.iter().filter(|e| e.kind == "preempted");
    all.map(|e| e.text.as_str()).collect()
}

#[test]
fn r4_r9_they_use_what_is_idle_and_reserve_nothing_of_it() {
    let mut w = world(2, 4);
    put(&mut w, 1, "web:1", 4, 1);
    w.commit(vec![Change::PutService(lent(2, 5, 1))]);
    w.run(10);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (4, 4));
    for n in 1..3 {
        let taken = w.state.taken_on(node_id(n));
        assert_eq!(
            taken.reserved.memory,
            Bytes::gib(2),
            "reservations are as if they were not there"
        );
        assert_eq!(taken.lent.memory, Bytes::gib(2));
    }
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(2)).unwrap();
    assert_eq!(
        problem,
        "1 of 5 wait for a node: no node fits: 2 nodes lack idle memory (need 1GiB, most is 0B on h1)"
    );
    quiet(&w);
}

#[test]
fn r4_whoever_reserves_what_they_use_has_it_at_once_and_they_go_by_name() {
    let mut w = world(1, 4);
    let mut second = lent(2, 2, 1);
    second.spec.priority = -1;
    w.commit(vec![
        Change::PutService(lent(1, 2, 1)),
        Change::PutService(second),
    ]);
    w.run(10);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (2, 2));
    // Of a priority below theirs, and placed in the same write all the same.
    let mut reserved = service(3, 1, "web:1", 1, Bytes::gib(3));
    reserved.spec.priority = -1000;
    w.commit(vec![Change::PutService(reserved)]);
    assert_eq!(
        w.state
            .containers_of(service_id(3))
            .filter(|c| c.node.is_some())
            .count(),
        1
    );
    assert_eq!(
        preempted(&w).len(),
        3,
        "no more than need be: {:?}",
        preempted(&w)
    );
    assert!(
        preempted(&w)[0].starts_with("preempted s2.2 (best-effort) on h1: what was idle there is reserved")
    );
    assert!(
        preempted(&w)[2].starts_with("preempted s1.2"),
        "the lowest, then the newest first"
    );
    w.run(10);
    assert_eq!(
        (
            w.running(service_id(1)),
            w.running(service_id(2)),
            w.running(service_id(3))
        ),
        (1, 0, 1)
    );
    let waits = w
        .state
        .containers_of(service_id(2))
        .next()
        .unwrap()
        .waiting
        .clone()
        .unwrap();
    assert!(
        waits.contains("lacks idle memory (need 1GiB, most is 0B on h1)"),
        "{waits}"
    );
    w.commit(vec![Change::DeleteService(service_id(3))]);
    w.run(10);
    assert_eq!(
        (w.running(service_id(1)), w.running(service_id(2))),
        (2, 2),
        "and come again"
    );
    quiet(&w);
}

#[test]
fn nodes_where_nobody_has_to_go_are_taken_first_and_best_effort_takes_from_nobody() {
    let mut w = world(2, 4);
    edit_node(&mut w, 2, |node| node.cordoned = true);
    w.commit(vec![Change::PutService(lent(1, 4, 1))]);
    w.run(10);
    edit_node(&mut w, 2, |node| node.cordoned = false);
    put(&mut w, 2, "web:1", 1, 4);
    w.run(10);
    assert_eq!(
        (w.running(service_id(1)), w.running(service_id(2)), on(&w, 2)),
        (4, 1, 1)
    );
    let mut urgent = lent(3, 1, 1);
    urgent.spec.priority = 1000;
    w.commit(vec![Change::PutService(urgent)]);
    w.run(10);
    assert_eq!((w.running(service_id(3)), preempted(&w).len()), (0, 0));
    quiet(&w);
}

#[test]
fn disk_is_reserved_and_they_give_it_up_to_any_priority() {
    let mut w = world(1, 8);
    let mut hoard = lent(1, 1, 1);
    hoard.spec.resources.limits.disk = Some(Bytes::gib(99));
    w.commit(vec![Change::PutService(hoard)]);
    w.run(10);
    assert_eq!(w.state.taken_on(node_id(1)).reserved.disk, Bytes::gib(99));
    let mut low = service(2, 1, "web:1", 2, Bytes::gib(1));
    low.spec.priority = -5;
    w.commit(vec![Change::PutService(low)]);
    w.run(20);
    assert_eq!((w.running(service_id(2)), w.running(service_id(1))), (2, 0));
    assert_eq!(
        preempted(&w),
        ["preempted s1.1 (best-effort) on h1 for s2.2 (priority -5)"]
    );
    quiet(&w);
}

#[test]
fn another_class_is_a_rollout_and_another_limit_changes_in_place_where_it_is_idle() {
    let mut w = world(1, 4);
    w.commit(vec![Change::PutService(lent(1, 1, 1))]);
    w.run(10);
    let first: Vec<_> = w.state.containers.keys().copied().collect();
    edit(&mut w, 1, |s| {
        s.spec.resources.limits.memory = Some(Bytes::gib(2))
    });
    w.run(10);
    assert_eq!(
        w.state.containers.keys().copied().collect::<Vec<_>>(),
        first,
        "in place"
    );
    assert_eq!(w.state.taken_on(node_id(1)).lent.memory, Bytes::gib(2));
    edit(&mut w, 1, |s| s.spec.class = Class::Standard);
    w.run(30);
    assert_eq!(
        (w.running(service_id(1)), outdated(&w.state, service_id(1))),
        (1, 0)
    );
    assert_ne!(w.state.containers.keys().copied().collect::<Vec<_>>(), first);
    assert_eq!(w.state.taken_on(node_id(1)).reserved.memory, Bytes::gib(2));
    quiet(&w);
}
