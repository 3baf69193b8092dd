//! Packing on the simulated cluster: nodes are emptied as planned, and a second plan finds nothing more.

use berth_common::model::{Overcommit, UpdateOrder};
use berth_common::units::{Bytes, Millicores};
use proptest::prelude::*;

use super::balance;
use super::balance_cases::sample;
use super::cases::{edit_node, on, put, quiet, world};
use super::fixtures::{node_id, service, service_id};
use super::pack::{self, Ask, Packed};
use super::sim::World;
use crate::cluster::Change;
use crate::outlook::seconds;
use crate::scheduler::forecast::{CPU, MEMORY};
use crate::scheduler::load::{Known, Watermarks};
use crate::scheduler::{Watcher as _, capacity, rebalance::Memory};

fn plan(w: &World, keep: usize) -> Packed {
    let ask = Ask {
        pool: "default".parse().unwrap(),
        keep,
    };
    pack::plan(&w.state, &|| w.watched.at(w.now), &ask)
}

/// Services of one replica, so that the emptiest node takes the next.
fn thin(nodes: u64, services: u64) -> World {
    let mut w = world(nodes, 4);
    for n in 1..=services {
        put(&mut w, n, "web:1", 1, 1);
    }
    w.run(10);
    w
}

fn used(w: &World, nodes: u64) -> usize {
    (1..=nodes).filter(|n| on(w, *n) > 0).count()
}

#[test]
fn what_is_spread_thin_is_packed_and_serves_all_the_while() {
    let mut w = thin(4, 4);
    assert_eq!(used(&w, 4), 4);
    let planned = plan(&w, 1);
    assert_eq!(planned.freed.len(), 3, "{planned:?}");
    w.commit(pack::begin(&w.state, &planned.freed).unwrap());
    for _ in 0..40 {
        w.run(1);
        for n in 1..=4 {
            assert_eq!(
                w.running(service_id(n)).min(1),
                1,
                "whoever moves serves until its successor does"
            );
        }
    }
    w.run(60);
    assert_eq!(used(&w, 4), 1);
    let moved: Vec<_> = w.events.iter().filter(|event| event.kind == "moved").collect();
    assert_eq!(moved.len(), 3, "{moved:?}");
    assert!(
        moved.iter().all(|event| event
            .text
            .contains("is emptied, of which 25 percent are reserved")),
        "{moved:?}"
    );
    assert_eq!(w.events.iter().filter(|event| event.kind == "drained").count(), 3);
    assert_eq!(plan(&w, 1).freed, []);
    quiet(&w);
}

#[test]
fn replicas_apart_stay_apart_and_what_must_not_move_keeps_its_node() {
    let mut w = world(3, 8);
    put(&mut w, 1, "web:1", 2, 1);
    w.run(10);
    let planned = plan(&w, 1);
    assert_eq!(planned.freed.len(), 1, "two replicas, two nodes: {planned:?}");
    let kept = &planned.kept;
    assert!(
        kept.iter()
            .any(|(_, why)| why.contains("nearer to its other replicas")),
        "{kept:?}"
    );
    let mut still = service(2, 1, "web:1", 1, Bytes::gib(1));
    still.spec.update.order = UpdateOrder::StopFirst;
    w.commit(vec![Change::PutService(still)]);
    w.run(10);
    assert_eq!(used(&w, 3), 3);
    let planned = plan(&w, 1);
    assert!(
        planned
            .kept
            .iter()
            .any(|(_, why)| why.contains("s2.1 must stop before")),
        "{planned:?}"
    );
    assert_eq!(plan(&w, 3).freed, [], "so many are to stay");
}

#[test]
fn whoever_is_uncordoned_meanwhile_keeps_what_it_still_has() {
    let mut w = world(2, 8);
    for n in 1..=4 {
        put(&mut w, n, "web:1", 1, 1);
    }
    w.run(10);
    assert_eq!((on(&w, 1), on(&w, 2)), (2, 2));
    let planned = plan(&w, 1);
    let from = planned.freed[0].node;
    w.commit(pack::begin(&w.state, &planned.freed).unwrap());
    let number = if from == node_id(1) { 1 } else { 2 };
    edit_node(&mut w, number, |node| {
        (node.draining, node.cordoned) = (false, false)
    });
    w.run(60);
    assert!(w.state.containers.values().all(|c| c.moves.is_none()));
    assert!(w.state.moving.is_empty());
    assert_eq!(w.state.containers.len(), 4);
    quiet(&w);
}

#[test]
fn no_more_than_two_leave_a_node_at_a_time_and_room_is_kept_for_the_rest() {
    let mut w = world(2, 8);
    edit_node(&mut w, 2, |node| node.cordoned = true);
    for n in 1..=5 {
        put(&mut w, n, "web:1", 1, 1);
    }
    w.run(10);
    edit_node(&mut w, 2, |node| node.cordoned = false);
    put(&mut w, 6, "web:1", 1, 3);
    w.run(10);
    assert_eq!((on(&w, 1), on(&w, 2)), (5, 1));
    let planned = plan(&w, 1);
    // The fuller one goes to the other: h2 is the emptier.
    assert_eq!(planned.freed.len(), 1, "{planned:?}");
    let (freed, target) = (planned.freed[0].clone(), planned.freed[0].moves[0].1);
    w.commit(pack::begin(&w.state, &planned.freed).unwrap());
    // What comes meanwhile does not take what is kept.
    put(&mut w, 7, "web:1", 1, 1);
    for _ in 0..80 {
        w.run(1);
        let leaving = w.state.containers_on(freed.node).filter(|c| {
            let mut all = w.state.containers_of(c.service);
            c.removing || all.any(|one| one.replaces == Some(c.id))
        });
        assert!(leaving.count() <= 2);
    }
    assert!(w.state.containers_on(freed.node).next().is_none());
    assert!(freed.moves.iter().all(|(_, to)| *to == target));
    assert!(
        !w.events.iter().any(|event| event.kind == "stays"),
        "{:?}",
        w.events
    );
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 40,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x9ac),
        ..ProptestConfig::default()
    })]

    #[test]
    fn r4_a_pack_ends_overloads_nothing_and_leaves_nothing_to_pack(
        nodes in 2u64..7,
        services in prop::collection::vec((1u32..4, 1u64..4, 1u32..30), 1..8),
        foreign in prop::collection::vec(0u32..4_000, 7),
        each in 0u32..900,
        keep in 1usize..3,
        overcommit in any::<bool>(),
    ) {
        let mut w = world(nodes, 8);
        if overcommit {
            for n in 1..=nodes {
                edit_node(&mut w, n, |node| node.overcommit = Some(Overcommit { cpu_percent: 300, memory_percent: 100 }));
            }
        }
        for (at, (replicas, gib, tenths)) in services.iter().enumerate() {
            let mut record = service(at as u64 + 1, 1, "web:1", *replicas, Bytes::gib(*gib));
            record.spec.resources.limits.cpu = Some(Millicores(tenths * 100));
            w.commit(vec![Change::PutService(record)]);
        }
        w.run(40);
        let foreign = &foreign[..nodes as usize];
        let mut clock = seconds(w.now);
        for _ in 0..90 {
            clock += 10;
            sample(&w, clock, each, foreign);
        }
        let served: Vec<usize> = (1..=services.len() as u64).map(|n| w.running(service_id(n))).collect();
        let planned = plan(&w, keep);
        prop_assert!(nodes as usize - planned.freed.len() >= keep.min(nodes as usize));
        w.commit(pack::begin(&w.state, &planned.freed).unwrap());
        // R4 and the number that serves are checked by the simulated cluster after every plan.
        for _ in 0..400 {
            if (1..=nodes).all(|n| !planned.freed.iter().any(|one| one.node == node_id(n)) || on(&w, n) == 0) {
                break;
            }
            w.run(1);
            for (n, served) in served.iter().enumerate() {
                prop_assert!(w.running(service_id(n as u64 + 1)) >= *served);
            }
        }
        w.run(20);
        prop_assert_eq!(plan(&w, keep).freed, vec![]);
        for _ in 0..90 {
            clock += 10;
            sample(&w, clock, each, foreign);
        }
        for one in &planned.freed {
            prop_assert_eq!(w.state.taken_on(one.node).containers, 0, "{:?}", w.events);
            for (_, to) in &one.moves {
                let record = &w.state.nodes[to];
                let marks = Watermarks::default();
                if let Known::Expected(load) = w.watched.at(w.now).known(*to) {
                    let share = load[CPU].high(marks.deviations) / capacity(record)[CPU];
                    prop_assert!(share <= marks.target + 0.001, "{} percent", share * 100.0);
                    prop_assert!(load[MEMORY].mean <= capacity(record)[MEMORY]);
                }
            }
        }
        // And nothing is moved back.
        let decided = balance::round(&w.state, &w.watched.at(w.now), &mut Memory::default(), seconds(w.now));
        let emptied: Vec<_> = planned.freed.iter().map(|one| one.node).collect();
        prop_assert!(decided.moves.iter().all(|(_, moves)| !emptied.contains(&moves.to)));
    }
}
