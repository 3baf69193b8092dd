//! Explanations are what is decided, and what is foreseen happens.

use berth_common::model::{NodeKind, UnixMillis};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::Now;
use super::balance_cases::sample;
use super::cases::{edit_node, put, world};
use super::explained::{PARTS, as_if_nowhere, explain};
use super::fixtures::{container_id, node, service, service_id, tenant_id};
use super::foreseen::{self, Ahead};
use super::placement_sim::{Act, acts, perform, pool};
use super::sim::World;
use crate::cluster::Change;
use crate::scheduler;

fn look(w: &World, changes: Vec<Change>) -> Ahead {
    let now = Now {
        wall: UnixMillis(1_000_000 + w.now),
        mono_ms: w.now,
    };
    let mut ids = 1_000_000_000;
    let mut fresh = || {
        ids += 1;
        container_id(ids)
    };
    foreseen::look(&w.state, changes, now, &|| w.watched.at(w.now), &mut fresh)
}

/// The best node of an explanation is the one that a placement takes, and nothing stands against it and those that are told to fit.
fn check_explanations(w: &World) {
    let outlook = w.watched.at(w.now);
    for container in w.state.containers.values().filter(|c| !c.removing) {
        let Some(told) = explain(&w.state, &outlook, container) else {
            continue;
        };
        assert_eq!(told.choices.len(), w.state.nodes.len());
        let (view, request) = as_if_nowhere(&w.state, &outlook, container).unwrap();
        let placed = scheduler::place(&mut view.clone(), request.clone());
        assert_eq!(told.best().map(|best| best.node), placed.as_ref().ok().copied());
        assert_eq!(told.refusal, placed.err().map(|refusal| refusal.to_string()));
        let mut last = i64::MAX;
        for choice in &told.choices {
            assert_eq!(choice.against.is_empty(), choice.rating.is_some(), "{choice:?}");
            let fits = scheduler::Search::new(&view, request.clone()).fits(&view, choice.node);
            assert_eq!(choice.against.is_empty(), fits, "{choice:?}");
            if let Some(rating) = &choice.rating {
                let sum: i64 = PARTS.iter().map(|(_, of)| of(rating)).sum();
                assert_eq!(sum, rating.total(), "{rating:?}");
                assert!(sum <= last, "the best come first");
                last = sum;
            }
            for obstacle in &choice.against {
                assert!(!obstacle.sentence(told.asked, "h1").is_empty());
            }
        }
    }
}

/// Where each replica of a service is.
fn places(w: &crate::cluster::State, n: u64) -> Vec<(u32, Option<String>)> {
    let live = w.containers_of(service_id(n)).filter(|c| !c.removing);
    let mut all: Vec<_> = live
        .map(|c| (c.replica, c.node.map(|node| w.nodes[&node].name.to_string())))
        .collect();
    all.sort();
    all
}

/// R4 holds of what is foreseen: nothing is added where there is no room.
fn checked(w: &World, ahead: &Ahead) {
    assert!(!ahead.cut);
    for (id, node) in &ahead.state.nodes {
        let most = ahead.state.allocatable(node);
        let (taken, was) = (ahead.state.taken_on(*id).reserved, w.state.taken_on(*id).reserved);
        assert!(
            taken.memory <= most.memory.max(was.memory),
            "R4: {taken:?} of {most:?}"
        );
        assert!(taken.cpu <= most.cpu.max(was.cpu), "R4: {taken:?} of {most:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0xe41),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_best_of_an_explanation_is_what_a_placement_takes(
        acts in prop::collection::vec((acts(), 0u64..20, prop::array::uniform5(0u32..5_000)), 1..25),
    ) {
        let mut w = world(4, 4);
        w.join(node(5, NodeKind::Private { tenant: tenant_id(1) }, 4, 4));
        pool(&mut w, 100);
        for (at, (act, ticks, foreign)) in acts.iter().enumerate() {
            perform(&mut w, act);
            w.run(*ticks);
            sample(&w, 10 * at as u32 + 10, 300, foreign);
            check_explanations(&w);
        }
    }

    #[test]
    fn what_is_foreseen_happens(acts in prop::collection::vec((acts(), 0u64..20), 1..20), replicas in 1u32..7, gib in 1u64..4) {
        let mut w = world(4, 4);
        pool(&mut w, 100);
        for (act, ticks) in &acts {
            perform(&mut w, act);
            w.run(*ticks);
        }
        w.everyone_up();
        w.run(160);
        let asked = || vec![Change::PutService(service(9, 1, "web:1", replicas, Bytes::gib(gib)))];
        let ahead = look(&w, asked());
        checked(&w, &ahead);
        w.commit(asked());
        w.run(160);
        prop_assert_eq!(places(&ahead.state, 9), places(&w.state, 9));
        // And what rests stays as it is.
        let ahead = look(&w, Vec::new());
        for n in 1..10 {
            prop_assert_eq!(places(&ahead.state, n), places(&w.state, n));
        }
    }
}

#[test]
fn an_update_and_a_preemption_are_played_to_their_end() {
    let mut w = world(3, 4);
    put(&mut w, 1, "web:1", 6, 1);
    w.run(40);
    let mut next = (*w.state.services[&service_id(1)]).clone();
    next.spec.image = "web:2".parse().unwrap();
    next.generation += 1;
    let ahead = look(&w, vec![Change::PutService(next)]);
    let live = || ahead.state.containers_of(service_id(1));
    assert_eq!(live().count(), 6, "nobody is left of the old ones");
    assert!(live().all(|c| c.node.is_some() && c.spec.image.to_string().ends_with("web:2")));
    assert_eq!(
        ahead
            .events
            .iter()
            .filter(|event| event.kind == "rollout")
            .count(),
        6
    );

    let mut high = service(2, 1, "web:1", 3, Bytes::gib(3));
    high.spec.priority = 5;
    let ahead = look(&w, vec![Change::PutService(high)]);
    assert!(
        places(&ahead.state, 2).iter().all(|(_, node)| node.is_some()),
        "{:?}",
        places(&ahead.state, 2)
    );
    assert!(ahead.events.iter().any(|event| event.kind == "preempts"));
    let others = foreseen::disturbed(&w.state, &ahead.state, &Default::default());
    assert!(!others.is_empty() && others.iter().all(|pair| pair.before.is_some()));
    assert_eq!(w.state.services.len(), 1);
}

#[test]
fn a_lost_node_is_gone_for_the_look_and_no_other() {
    let mut w = world(3, 4);
    put(&mut w, 1, "web:1", 3, 2);
    w.run(20);
    edit_node(&mut w, 3, |node| node.cordoned = true);
    let ahead = look(&w, foreseen::of_loss(&w.state, super::fixtures::node_id(1)));
    let lost = ahead.state.nodes.values().filter(|node| node.lost);
    assert_eq!(lost.count(), 1);
    let on: Vec<_> = places(&ahead.state, 1)
        .into_iter()
        .filter_map(|(_, node)| node)
        .collect();
    assert_eq!(on, ["h2", "h2", "h3"]);
    perform(&mut w, &Act::Up(1, false));
    w.run(60);
    assert_eq!(places(&w.state, 1), places(&ahead.state, 1), "as it happens");
}
