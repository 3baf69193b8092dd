//! Respreading with its effects: what a missing node had put together comes apart when it is there again, once, and serves all the while.

use berth_common::model::{NodeRecord, UpdateOrder};
use proptest::prelude::*;

use super::balance;
use super::balance_cases::sample;
use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node_id, service_id};
use super::respread::{self, Memory};
use super::sim::World;
use crate::outlook::seconds;

/// Rounds of ten seconds; how many moves were begun.
fn rounds(w: &mut World, memory: &mut Memory, count: u32) -> usize {
    let mut begun = 0;
    for _ in 0..count {
        let foreign = vec![0; w.state.nodes.len()];
        sample(w, seconds(w.now), 10, &foreign);
        let decided = respread::round(&w.state, &|| w.watched.at(w.now), memory, seconds(w.now));
        begun += decided.moves.len();
        let changes = balance::begin(&w.state, decided.moves);
        w.commit(changes);
        w.run(20);
    }
    begun
}

fn cordon(w: &mut World, n: u64, cordoned: bool) {
    edit_node(w, n, |node| node.cordoned = cordoned);
}

/// How many of a service serve.
fn serving(w: &World, service: u64) -> usize {
    let all = w.state.containers_of(service_id(service));
    all.filter(|c| w.state.observed.get(&c.id).is_some_and(|seen| seen.serves()))
        .count()
}

#[test]
fn replicas_that_had_to_share_a_node_come_apart_once_one_returns_and_then_stay() {
    let mut w = world(3, 64);
    cordon(&mut w, 3, true);
    put(&mut w, 1, "web:1", 6, 1);
    w.run(20);
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (3, 3, 0));
    let mut memory = Memory::default();
    assert_eq!(rounds(&mut w, &mut memory, 20), 0, "no node came");
    cordon(&mut w, 3, false);
    assert_eq!(
        rounds(&mut w, &mut memory, 5),
        0,
        "it is to be there for a minute"
    );
    let mut begun = 0;
    for _ in 0..140 {
        begun += rounds(&mut w, &mut memory, 1);
        assert!(serving(&w, 1) >= 6, "successors come first");
    }
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (2, 2, 2));
    assert_eq!((begun, memory.is_busy()), (2, false));
    let told = w.events.iter().filter(|event| event.kind == "moved");
    let told: Vec<_> = told.map(|event| event.text.clone()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].contains("a node came, and on h3 replicas keep apart better than on h1 (48000 points)"),
        "{told:?}"
    );
    assert_eq!(rounds(&mut w, &mut memory, 400), 0);
    quiet(&w);
}

#[test]
fn a_node_that_comes_and_goes_moves_nothing_and_nor_does_a_brain_that_begins() {
    let mut w = world(3, 64);
    cordon(&mut w, 3, true);
    put(&mut w, 1, "web:1", 4, 1);
    w.run(20);
    cordon(&mut w, 3, false);
    let mut memory = Memory::default();
    assert_eq!(
        rounds(&mut w, &mut memory, 20),
        0,
        "all were there when the brain began"
    );
    for _ in 0..10 {
        cordon(&mut w, 3, true);
        assert_eq!(rounds(&mut w, &mut memory, 2), 0);
        cordon(&mut w, 3, false);
        assert_eq!(rounds(&mut w, &mut memory, 4), 0);
    }
    assert_eq!(rounds(&mut w, &mut memory, 30), 1, "in the end it stays");
}

#[test]
fn what_must_stop_first_stays_and_spreads_become_even_again() {
    let mut w = world(4, 64);
    let zone = |w: &mut World, n: u64, zone: &str| {
        edit_node(w, n, |node: &mut NodeRecord| {
            node.labels.insert("zone".to_owned(), zone.to_owned());
        });
    };
    for (n, name) in [(1, "a"), (2, "a"), (3, "a"), (4, "b")] {
        zone(&mut w, n, name);
    }
    cordon(&mut w, 4, true);
    put(&mut w, 1, "web:1", 2, 1);
    put(&mut w, 2, "db:1", 2, 1);
    for n in [1, 2] {
        edit(&mut w, n, |service| {
            service.spec.spread = vec!["zone".parse().unwrap()];
        });
    }
    edit(&mut w, 2, |service| {
        service.spec.update.order = UpdateOrder::StopFirst
    });
    w.run(40);
    let mut memory = Memory::default();
    rounds(&mut w, &mut memory, 2);
    cordon(&mut w, 4, false);
    assert_eq!(
        rounds(&mut w, &mut memory, 40),
        1,
        "{:?}",
        w.events.iter().map(|event| &event.text).collect::<Vec<_>>()
    );
    let there: Vec<_> = w.state.containers_on(node_id(4)).map(|c| c.service).collect();
    assert_eq!(there, [service_id(1)]);
    quiet(&w);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    /// It ends, nothing is lost meanwhile, and replicas are as far apart as nodes allow.
    #[test]
    fn r4_respreading_ends_and_leaves_replicas_apart(
        replicas in proptest::collection::vec(1u32..7, 1..6),
        open in 1u64..4,
        more in 1u64..4,
    ) {
        let mut w = world(open + more, 256);
        for n in open + 1..=open + more {
            cordon(&mut w, n, true);
        }
        for (n, count) in replicas.iter().enumerate() {
            put(&mut w, n as u64 + 1, "web:1", *count, 1);
        }
        w.run(20);
        let mut memory = Memory::default();
        rounds(&mut w, &mut memory, 1);
        for n in open + 1..=open + more {
            cordon(&mut w, n, false);
        }
        let mut begun = 0;
        let mut left = 600;
        while left > 0 && (left > 590 || memory.is_busy()) {
            left -= 1;
            begun += rounds(&mut w, &mut memory, 1);
            for (n, count) in replicas.iter().enumerate() {
                prop_assert!(serving(&w, n as u64 + 1) >= *count as usize);
            }
        }
        prop_assert!(left > 0, "it does not end");
        prop_assert!(begun <= replicas.iter().sum::<u32>() as usize, "{begun} moves");
        for (n, count) in replicas.iter().enumerate() {
            let mut each = std::collections::BTreeMap::new();
            for c in w.state.containers_of(service_id(n as u64 + 1)) {
                *each.entry(c.node).or_insert(0u32) += 1;
            }
            let most = each.values().max().copied().unwrap_or(0);
            let nodes = (open + more) as u32;
            prop_assert!(most <= count.div_ceil(nodes), "{count} on {nodes} nodes: {each:?}");
        }
        quiet(&w);
    }
}
