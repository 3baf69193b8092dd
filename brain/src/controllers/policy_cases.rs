//! Services with a policy on the simulated cluster: they wait for its word, follow it within what everything else allows, and live with
//! one that fails.

use std::collections::BTreeMap;

use berth_common::model::{Spread, UpdateOrder};

use super::balance_cases::sample;
use super::cases::{edit, edit_node, image, on, put, quiet, world};
use super::fixtures::{node_id, service_id};
use super::sim::World;
use super::view::service_problem;
use super::{Dirty, balance};
use crate::outlook::{Watched, seconds};
use crate::policies::{Ask, OnFailure, PolicySettings, Verdict, Word};
use crate::scheduler::rebalance::Memory;

/// Nodes of so many GiB, and one policy.
fn with_policy(nodes: u64, gib: u64, on_failure: OnFailure) -> World {
    let mut w = world(nodes, gib);
    w.watched = Watched::with_policies(&[PolicySettings {
        name: "p".parse().unwrap(),
        url: "http://127.0.0.1:1/".to_owned(),
        timeout_ms: 300,
        on_failure,
        token_file: None,
        ca_file: None,
    }]);
    w
}

fn wants_policy(w: &mut World, n: u64) {
    edit(w, n, |s| s.spec.policy = Some("p".parse().unwrap()));
}

/// A service that asks for the policy from the beginning.
fn begin(w: &mut World, n: u64, replicas: u32, gib: u64) {
    put(w, n, "web:1", 0, gib);
    wants_policy(w, n);
    edit(w, n, |s| s.spec.replicas = replicas);
}

/// The question that plans wait for, if there is one.
fn asked(w: &World) -> Option<Ask> {
    w.watched.policies().next(&w.state, seconds(w.now)).ask
}

fn answer(w: &mut World, ask: &Ask, result: Result<(Verdict, u32), String>) {
    let event = w.watched.policies().finish(ask, result, seconds(w.now));
    w.events.extend(event);
    w.run_plan(&Dirty {
        services: [ask.service.id].into(),
        ..Dirty::default()
    });
}

fn verdict(words: &[(u64, Word)]) -> Verdict {
    let words: BTreeMap<_, _> = words
        .iter()
        .map(|(n, word)| (node_id(*n), word.clone()))
        .collect();
    Verdict::new("p".parse().unwrap(), words)
}

fn good() -> Word {
    Word::Points(150_000)
}

fn refused(why: &str) -> Word {
    Word::Refused(why.into())
}

/// Answers what is asked, if something is, with this for half a minute.
fn say(w: &mut World, words: &[(u64, Word)]) -> bool {
    let Some(ask) = asked(w) else { return false };
    answer(w, &ask, Ok((verdict(words), 30)));
    true
}

fn fail(w: &mut World) -> bool {
    let Some(ask) = asked(w) else { return false };
    answer(w, &ask, Err("it is dead".to_owned()));
    true
}

fn waiting(w: &World, n: u64) -> Vec<String> {
    let all = w.state.containers_of(service_id(n)).filter(|c| !c.removing);
    all.filter_map(|c| c.waiting.clone()).collect()
}

fn told(w: &World, kind: &str) -> usize {
    w.events.iter().filter(|event| event.kind == kind).count()
}

#[test]
fn it_waits_for_the_word_and_goes_where_that_says() {
    let mut w = with_policy(3, 8, OnFailure::Wait);
    // Fuller than the others, so that nobody would choose it.
    put(&mut w, 9, "web:1", 1, 1);
    edit(&mut w, 9, |s| {
        drop(s.spec.node_labels.insert("node".to_owned(), "h2".to_owned()))
    });
    w.run(6);
    begin(&mut w, 1, 1, 1);
    assert_eq!(waiting(&w, 1), ["asks policy p"]);
    w.run(20);
    assert_eq!(waiting(&w, 1), ["asks policy p"], "nothing is placed without it");
    assert_eq!(told(&w, "waiting"), 0, "that it is asked is no news");
    assert!(say(&mut w, &[(2, good())]));
    w.run(6);
    assert_eq!((on(&w, 2), w.running(service_id(1))), (2, 1));
    // Fresh as it is, the next replica does not ask; replicas keep apart before that.
    edit(&mut w, 9, |s| s.spec.replicas = 0);
    w.run(6);
    quiet(&w);
}

#[test]
fn r9_refusals_are_obstacles_with_names_and_are_asked_for_anew() {
    let mut w = with_policy(3, 8, OnFailure::Wait);
    begin(&mut w, 1, 1, 1);
    let no = [
        (1, refused("no gpu")),
        (2, refused("no gpu")),
        (3, refused("rack 3 is due")),
    ];
    assert!(say(&mut w, &no));
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert_eq!(
        problem,
        "1 of 1 wait for a node: no node fits: 3 nodes are refused by policy p (such as no gpu)"
    );
    assert!(asked(&w).is_none());
    // Half a minute later its word no longer counts, and it is asked again by itself; what was said stays said meanwhile.
    w.run(70);
    assert_eq!(waiting(&w, 1)[0], problem["1 of 1 wait for a node: ".len()..]);
    assert!(say(&mut w, &[(1, refused("no gpu")), (3, good())]));
    w.run(6);
    assert_eq!((on(&w, 3), w.running(service_id(1))), (1, 1));
    quiet(&w);
}

#[test]
fn r4_whatever_it_says_what_is_hard_and_what_was_asked_for_hold() {
    let mut w = with_policy(3, 4, OnFailure::Wait);
    edit_node(&mut w, 1, |node| {
        node.taints = vec!["gpu:no-schedule".parse().unwrap()]
    });
    put(&mut w, 9, "web:1", 1, 4);
    edit(&mut w, 9, |s| {
        drop(s.spec.node_labels.insert("node".to_owned(), "h2".to_owned()))
    });
    w.run(6);
    assert_eq!(on(&w, 2), 1, "h2 is full");
    begin(&mut w, 1, 1, 1);
    assert!(say(
        &mut w,
        &[(1, good()), (2, good()), (3, Word::Points(-150_000))]
    ));
    w.run(6);
    assert_eq!(
        (on(&w, 1), on(&w, 2), on(&w, 3)),
        (0, 1, 1),
        "the only one that is left"
    );
    // Spread by the wish of who owns the service goes before it, too.
    let mut w = with_policy(2, 8, OnFailure::Wait);
    put(&mut w, 1, "web:1", 0, 1);
    edit(&mut w, 1, |s| {
        s.spec.policy = Some("p".parse().unwrap());
        s.spec.spread = vec!["node".parse::<Spread>().unwrap()];
        s.spec.replicas = 4;
    });
    assert!(say(&mut w, &[(1, good()), (2, Word::Points(-150_000))]));
    w.run(6);
    assert_eq!((on(&w, 1), on(&w, 2)), (2, 2));
    quiet(&w);
}

#[test]
fn one_that_fails_is_ignored_or_waited_for_as_the_operator_says() {
    let mut w = with_policy(2, 8, OnFailure::Ignore);
    begin(&mut w, 1, 2, 1);
    assert!(fail(&mut w));
    w.run(6);
    assert_eq!(w.running(service_id(1)), 2);
    assert_eq!((told(&w, "policy-failed"), told(&w, "policy-back")), (1, 0));
    let mut w = with_policy(2, 8, OnFailure::Wait);
    begin(&mut w, 1, 2, 1);
    assert!(fail(&mut w));
    assert_eq!(waiting(&w, 1), ["waits for policy p: it is dead"; 2]);
    assert!(asked(&w).is_none());
    // It is asked again by itself until it answers.
    let mut tries = 0;
    for _ in 0..100 {
        w.run(1);
        tries += usize::from(fail(&mut w));
    }
    assert!((3..=8).contains(&tries), "{tries} in 50 seconds");
    assert_eq!(told(&w, "policy-failed"), 1);
    for _ in 0..30 {
        w.run(1);
        say(&mut w, &[]);
    }
    assert_eq!((w.running(service_id(1)), told(&w, "policy-back")), (2, 1));
    quiet(&w);
}

#[test]
fn nothing_is_stopped_for_what_cannot_be_placed_yet() {
    let mut w = with_policy(2, 8, OnFailure::Wait);
    begin(&mut w, 1, 2, 1);
    assert!(say(&mut w, &[]));
    w.run(6);
    assert_eq!(w.running(service_id(1)), 2);
    edit(&mut w, 1, |s| s.spec.update.order = UpdateOrder::StopFirst);
    image(&mut w, 1, "web:2");
    for _ in 0..40 {
        w.run(1);
        fail(&mut w);
        assert_eq!(w.running(service_id(1)), 2, "a rollout waits for its policy");
    }
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert_eq!(problem, "the rollout can't go on: waits for policy p: it is dead");
    for _ in 0..100 {
        w.run(1);
        say(&mut w, &[]);
    }
    assert_eq!(super::view::outdated(&w.state, service_id(1)), 0);
    // A drain waits and says so, and the dead node's containers are replaced once it was heard.
    for _ in 0..70 {
        w.run(1);
    }
    edit_node(&mut w, 1, |node| node.draining = true);
    w.run(2);
    let waits = super::nodes::drain_waits(&w.state, &w.watched.at(w.now), node_id(1));
    assert!(waits[0].ends_with("stays: asks policy p"), "{waits:?}");
    assert!(say(&mut w, &[]));
    for _ in 0..60 {
        w.run(1);
        say(&mut w, &[]);
    }
    assert_eq!((on(&w, 1), w.running(service_id(1))), (0, 2));
}

#[test]
fn what_the_policy_was_not_asked_about_may_be_used() {
    let mut w = with_policy(1, 8, OnFailure::Wait);
    begin(&mut w, 1, 1, 1);
    assert!(say(&mut w, &[(1, refused("no"))]));
    w.run(2);
    assert_eq!(w.running(service_id(1)), 0);
    w.join(super::fixtures::node(
        2,
        berth_common::model::NodeKind::Shared,
        4,
        8,
    ));
    w.run(6);
    assert_eq!((on(&w, 2), w.running(service_id(1))), (1, 1));
}

#[test]
fn nobody_is_preempted_before_the_policy_was_heard() {
    let mut w = with_policy(1, 2, OnFailure::Wait);
    put(&mut w, 9, "web:1", 2, 1);
    w.run(6);
    put(&mut w, 1, "web:1", 0, 1);
    edit(&mut w, 1, |s| {
        s.spec.policy = Some("p".parse().unwrap());
        s.spec.priority = 10;
        s.spec.replicas = 1;
    });
    w.run(6);
    assert_eq!((w.running(service_id(9)), told(&w, "preempted")), (2, 0));
    assert!(say(&mut w, &[(1, refused("no"))]));
    w.run(6);
    assert_eq!(told(&w, "preempted"), 0, "nor where it refuses");
    w.run(60);
    assert!(say(&mut w, &[]));
    w.run(12);
    assert_eq!((w.running(service_id(1)), told(&w, "preempted")), (1, 1));
}

#[test]
fn a_hot_node_gives_nothing_away_to_where_the_policy_refuses_it() {
    let mut w = with_policy(2, 8, OnFailure::Wait);
    begin(&mut w, 1, 1, 1);
    assert!(say(&mut w, &[(1, good()), (2, refused("no"))]));
    w.run(6);
    assert_eq!((on(&w, 1), w.running(service_id(1))), (1, 1));
    let mut memory = Memory::default();
    // Three quarters of h1 are its container's and a quarter is not: it is hot, and h2 is idle.
    let mut rounds = |w: &mut World, count: u32| {
        for _ in 0..count {
            sample(w, seconds(w.now), 3_000, &[1_000, 0]);
            let decided = balance::round(&w.state, &w.watched.at(w.now), &mut memory, seconds(w.now));
            w.watched.want(decided.wanted);
            let changes = balance::begin(&w.state, decided.moves);
            w.commit(changes);
            w.run(20);
        }
    };
    rounds(&mut w, 30);
    // Its word is over by then and was asked for again; nothing moves without it, nor against it.
    assert_eq!((on(&w, 1), told(&w, "moved")), (1, 0));
    assert!(say(&mut w, &[(1, good()), (2, refused("no"))]));
    rounds(&mut w, 2);
    assert_eq!((on(&w, 1), told(&w, "moved")), (1, 0));
    w.run(80);
    rounds(&mut w, 1);
    assert!(say(&mut w, &[]));
    rounds(&mut w, 1);
    w.run(20);
    assert_eq!((on(&w, 2), told(&w, "moved")), (1, 1));
}
