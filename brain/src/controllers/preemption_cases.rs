//! Preemption on the simulated cluster: who goes for whom, and who does not.

use berth_common::model::{NodeKind, RunState};
use berth_common::units::Bytes;

use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node, node_id, service, service_id};
use super::sim::World;
use super::view::service_problem;
use crate::cluster::Change;

/// A service of a priority.
fn important(w: &mut World, n: u64, priority: i32, replicas: u32, gib: u64) {
    let mut record = service(n, 1, "web:1", replicas, Bytes::gib(gib));
    record.spec.priority = priority;
    w.commit(vec![Change::PutService(record)]);
}

fn told(w: &World, kind: &str) -> Vec<String> {
    let all = w.events.iter().filter(|e| e.kind == kind);
    all.map(|e| e.text.clone()).collect()
}

fn preempted(w: &World) -> usize {
    told(w, "preempted").len()
}

#[test]
fn r4_r9_the_lowest_go_by_name_and_what_they_leave_is_kept_for_whom_it_is() {
    let mut w = world(2, 4);
    put(&mut w, 1, "web:1", 4, 1);
    important(&mut w, 2, 5, 2, 2);
    w.run(8);
    assert_eq!(
        (w.running(service_id(1)), w.running(service_id(2))),
        (4, 2),
        "both fit, two and two"
    );
    important(&mut w, 3, 10, 1, 2);
    let events = told(&w, "preempted");
    assert_eq!(events.len(), 2, "{events:?}");
    let place = if on(&w, 1) < on(&w, 2) { "h1" } else { "h2" };
    assert!(
        events.iter().all(|text| text.starts_with("preempted s1.")
            && text.ends_with(&format!("(priority 0) on {place} for s3.1 (priority 10)"))),
        "{events:?}"
    );
    assert_eq!(told(&w, "preempts"), events, "both sides are told the same");
    let claimer = w.state.containers_of(service_id(3)).next().unwrap();
    assert!(claimer.node.is_none() && claimer.claim.is_some());
    assert!(
        claimer
            .waiting
            .as_ref()
            .unwrap()
            .starts_with(&format!("waits for room on {place}, where it preempts s1.")),
        "{claimer:?}"
    );
    // Nobody takes the room while the others stop, however high.
    important(&mut w, 4, 10, 2, 1);
    w.run(10);
    assert_eq!((w.running(service_id(3)), w.running(service_id(2))), (1, 2));
    assert_eq!(w.running(service_id(4)), 2, "for the two that were left");
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("4 of 4 wait for a node: no node fits: 2 nodes lack memory"),
        "{problem}"
    );
    // They come again when there is room.
    w.join(node(3, NodeKind::Shared, 4, 8));
    w.run(20);
    assert_eq!(w.running(service_id(1)), 4);
    quiet(&w);
}

#[test]
fn nobody_goes_for_nothing() {
    let mut w = world(2, 4);
    put(&mut w, 1, "web:1", 8, 1);
    w.run(8);
    important(&mut w, 2, 100, 1, 5);
    w.run(8);
    assert_eq!(
        (w.running(service_id(1)), preempted(&w)),
        (8, 0),
        "no node is large enough"
    );
    important(&mut w, 3, 0, 1, 1);
    w.run(8);
    assert_eq!(
        (w.running(service_id(1)), preempted(&w)),
        (8, 0),
        "equals don't go for each other"
    );
    edit(&mut w, 3, |s| s.run = RunState::Stopped);
    edit(&mut w, 3, |s| s.spec.priority = 10);
    w.run(8);
    assert_eq!(preempted(&w), 0, "what is not to run needs no room");
    let mut picky = service(4, 1, "web:1", 1, Bytes::gib(1));
    picky.spec.priority = 10;
    picky.spec.node_labels.insert("disk".into(), "ssd".into());
    w.commit(vec![Change::PutService(picky)]);
    w.run(8);
    assert_eq!(preempted(&w), 0, "it would not fit even then");
    quiet(&w);
}

#[test]
fn what_is_being_stopped_already_is_waited_for() {
    let mut w = world(1, 4);
    put(&mut w, 1, "web:1", 2, 1);
    put(&mut w, 2, "web:1", 2, 1);
    w.run(8);
    edit(&mut w, 1, |s| s.spec.replicas = 0);
    important(&mut w, 3, 10, 1, 2);
    let claimer = w.state.containers_of(service_id(3)).next().unwrap();
    assert_eq!(
        claimer.waiting.as_deref(),
        Some("waits for room on h1, where others are being stopped")
    );
    // And kept from those who would fit into half of it.
    put(&mut w, 4, "web:1", 1, 1);
    w.run(10);
    assert_eq!(
        (w.running(service_id(3)), w.running(service_id(2)), preempted(&w)),
        (1, 2, 0)
    );
    quiet(&w);
}

/// Containers that run on this node and no other.
fn at(w: &mut World, n: u64, host: u64, replicas: u32, gib: u64) {
    let mut record = service(n, 1, "web:1", replicas, Bytes::gib(gib));
    record.spec.node_labels.insert("host".into(), format!("h{host}"));
    w.commit(vec![Change::PutService(record)]);
}

fn hosts(w: &mut World, nodes: u64) {
    for n in 1..=nodes {
        edit_node(w, n, |node| {
            drop(node.labels.insert("host".into(), format!("h{n}")))
        });
    }
}

#[test]
fn the_fewest_and_smallest_go() {
    let mut w = world(3, 4);
    hosts(&mut w, 3);
    at(&mut w, 1, 1, 1, 4);
    at(&mut w, 2, 2, 4, 1);
    at(&mut w, 3, 3, 3, 1);
    w.run(8);
    important(&mut w, 4, 10, 1, 2);
    w.run(8);
    assert_eq!((w.running(service_id(4)), w.running(service_id(1))), (1, 1));
    assert_eq!(
        (w.running(service_id(3)), preempted(&w)),
        (2, 1),
        "a small one of h3, which has room for one"
    );
    important(&mut w, 5, 10, 1, 4);
    w.run(20);
    assert_eq!(
        (w.running(service_id(5)), w.running(service_id(1))),
        (1, 0),
        "one rather than four"
    );
    assert_eq!(preempted(&w), 2);
}

#[test]
fn whoever_finds_another_place_goes_first() {
    let mut w = world(3, 4);
    hosts(&mut w, 3);
    for n in 1..3 {
        edit_node(&mut w, n, |node| {
            drop(node.labels.insert("fast".into(), "yes".into()))
        });
    }
    edit_node(&mut w, 3, |node| node.cordoned = true);
    at(&mut w, 1, 1, 1, 3);
    put(&mut w, 2, "web:1", 1, 3);
    w.run(8);
    edit_node(&mut w, 3, |node| node.cordoned = false);
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (1, 1, 0));
    let mut picky = service(3, 1, "web:1", 1, Bytes::gib(3));
    picky.spec.priority = 10;
    picky.spec.node_labels.insert("fast".into(), "yes".into());
    w.commit(vec![Change::PutService(picky)]);
    w.run(20);
    assert_eq!(preempted(&w), 1);
    assert_eq!(
        (
            w.running(service_id(1)),
            w.running(service_id(2)),
            w.running(service_id(3))
        ),
        (1, 1, 1),
        "nobody waits in the end"
    );
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (1, 1, 1));
    quiet(&w);
}

#[test]
fn a_lost_node_s_containers_make_themselves_room() {
    let mut w = world(2, 4);
    important(&mut w, 1, 10, 2, 2);
    put(&mut w, 2, "web:1", 4, 1);
    w.run(8);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (2, 4));
    w.set_up(node_id(1), false);
    w.run(60);
    assert!(w.state.nodes[&node_id(1)].lost);
    assert_eq!(on(&w, 2), 2);
    assert_eq!(w.running(service_id(1)), 2, "both, on the node that is left");
    w.set_up(node_id(1), true);
    w.run(20);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (2, 4));
    quiet(&w);
}

#[test]
fn who_was_told_to_stop_stays_stopped_where_it_comes_to_and_jobs_that_are_done_are_not_begun_anew() {
    let mut w = world(1, 2);
    put(&mut w, 1, "web:1", 2, 1);
    w.run(8);
    let mut one = (**w.state.containers_of(service_id(1)).next().unwrap()).clone();
    one.run = RunState::Stopped;
    w.commit(vec![Change::PutContainer(one.clone())]);
    w.run(8);
    important(&mut w, 2, 1, 1, 2);
    w.run(8);
    assert_eq!((w.running(service_id(2)), w.running(service_id(1))), (1, 0));
    w.join(node(2, NodeKind::Shared, 4, 4));
    w.run(20);
    let again = w
        .state
        .containers_of(service_id(1))
        .find(|c| c.replica == one.replica)
        .unwrap();
    assert_eq!((again.run, w.running(service_id(1))), (RunState::Stopped, 1));
    let mut w = world(1, 2);
    let mut job = service(1, 1, "job:1", 2, Bytes::gib(1));
    job.spec.restart.on = berth_common::model::Restart::OnFailure;
    w.commit(vec![Change::PutService(job)]);
    w.run(10);
    important(&mut w, 2, 1, 1, 2);
    w.run(10);
    assert_eq!((preempted(&w), w.running(service_id(2))), (0, 0));
}

#[test]
fn r6_another_tenant_s_containers_have_no_name() {
    let mut w = world(1, 2);
    w.commit(vec![Change::PutService(service(1, 2, "web:1", 2, Bytes::gib(1)))]);
    w.run(8);
    important(&mut w, 2, 7, 1, 1);
    w.run(8);
    assert_eq!(w.running(service_id(2)), 1);
    for event in &w.events {
        let tenant = event.tenant.as_ref().map(|name| name.as_str());
        match (event.kind, tenant) {
            ("preempted", Some("t2")) => {
                assert!(event.text.starts_with("preempted s1.") && event.subject.contains("s1."));
                assert!(
                    event
                        .text
                        .ends_with("for another tenant's container (priority 7)"),
                    "{}",
                    event.text
                );
            }
            ("preempts", Some("t1")) => assert_eq!(
                event.text,
                "preempted another tenant's container (priority 0) on h1 for s2.1 (priority 7)"
            ),
            ("preempted", None) => {
                assert!(
                    event
                        .text
                        .contains(" of t2 (priority 0) for s2.1 of t1 (priority 7)"),
                    "{}",
                    event.text
                );
            }
            ("preempted" | "preempts", _) => panic!("{event:?}"),
            _ => {}
        }
    }
    assert_eq!(preempted(&w), 2, "for its tenant, and for administrators");
}

#[test]
fn whom_it_links_to_is_not_preempted_and_a_claim_does_not_keep_the_room_that_a_link_needs() {
    let mut w = world(1, 4);
    put(&mut w, 1, "web:1", 1, 2);
    put(&mut w, 2, "web:1", 1, 2);
    w.run(8);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (1, 1));
    // It would have to stop one of two, of which it needs the first.
    let mut record = service(3, 1, "web:1", 1, Bytes::gib(2));
    record.spec.priority = 10;
    record.spec.links = vec!["s1".parse().unwrap()];
    w.commit(vec![Change::PutService(record)]);
    w.run(8);
    assert_eq!(preempted(&w), 1, "{:?}", told(&w, "preempted"));
    assert!(
        told(&w, "preempted")[0].starts_with("preempted s2.1"),
        "{:?}",
        told(&w, "preempted")
    );
    assert_eq!((w.running(service_id(1)), w.running(service_id(3))), (1, 1));
    // Where only the one that it needs could go, nobody does.
    let mut record = service(4, 1, "web:1", 1, Bytes::gib(2));
    record.spec.priority = 20;
    record.spec.links = vec!["s1".parse().unwrap(), "s3".parse().unwrap()];
    w.commit(vec![Change::PutService(record)]);
    w.run(8);
    assert_eq!(preempted(&w), 1);
}
