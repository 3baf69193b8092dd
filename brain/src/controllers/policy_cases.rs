//! Services with a policy on the simulated cluster: they wait for its word, follow it within what everything else allows, and live with
//! one that fails.

use std::collections::BTreeMap;

use berth_common::model::{ContainerRecord, Moves, Spread, UpdateOrder};

use super::balance_cases::sample;
use super::cases::{edit, edit_node, image, on, put, quiet, world};
use super::explained::{PARTS, explain};
use super::fixtures::{node_id, policy, service_id};
use super::sim::World;
use super::view::service_problem;
use super::{Dirty, balance, pack};
use crate::cluster::Change;
use crate::outlook::{Watched, seconds};
use crate::policies::{Ask, OnFailure, Verdict, Word};
use crate::scheduler::rebalance::Memory;

/// Nodes of so many GiB, and one policy.
fn with_policy(nodes: u64, gib: u64, on_failure: OnFailure) -> World {
    let mut w = world(nodes, gib);
    w.watched = Watched::with_policies(&[policy(on_failure)]);
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

#[test]
fn what_a_policy_says_is_a_part_of_the_score_and_what_it_has_not_said_is_told() {
    let mut w = with_policy(3, 8, OnFailure::Wait);
    put(&mut w, 1, "web:1", 1, 1);
    w.run(6);
    wants_policy(&mut w, 1);
    let web = |w: &World| w.state.containers_of(service_id(1)).next().unwrap().clone();
    let told = explain(&w.state, &w.watched.at(w.now), &web(&w)).unwrap();
    assert!(told.unheard && told.best().is_none());
    assert_eq!(told.refusal.as_deref(), Some("asks policy p"));
    w.watched.want([service_id(1)].into());
    assert!(say(&mut w, &[(2, Word::Points(1_500)), (3, refused("no gpu"))]));
    let told = explain(&w.state, &w.watched.at(w.now), &web(&w)).unwrap();
    assert_eq!(told.best().unwrap().node, node_id(2));
    let mut fit = 0;
    for rating in told.choices.iter().filter_map(|choice| choice.rating.as_ref()) {
        let sum: i64 = PARTS.iter().map(|(_, of)| of(rating)).sum();
        assert_eq!(sum, rating.total(), "{rating:?}");
        fit += 1;
    }
    assert_eq!(fit, 2, "{told:?}");
    assert_eq!(told.best().unwrap().rating.unwrap().standing.policy, 1_500);
}

#[test]
fn a_pack_asks_first_and_follows_what_is_said() {
    let mut w = with_policy(2, 8, OnFailure::Wait);
    put(&mut w, 1, "web:1", 1, 1);
    put(&mut w, 2, "web:1", 1, 2);
    w.run(6);
    assert_eq!((on(&w, 1), on(&w, 2)), (1, 1));
    wants_policy(&mut w, 1);
    let plan = |w: &World| {
        let ask = pack::Ask {
            pool: "default".parse().unwrap(),
            keep: 1,
        };
        pack::plan(&w.state, &|| w.watched.at(w.now), &ask)
    };
    edit(&mut w, 2, |s| s.spec.update.order = UpdateOrder::StopFirst);
    let planned = plan(&w);
    assert_eq!((planned.freed.len(), planned.wanted.len()), (0, 1));
    assert!(
        planned.kept.iter().any(|(_, why)| why == "s1.1 asks policy p"),
        "{planned:?}"
    );
    w.watched.want(planned.wanted);
    assert!(say(&mut w, &[(2, good())]));
    let planned = plan(&w);
    assert_eq!(planned.freed.len(), 1, "{planned:?}");
    w.commit(pack::begin(&w.state, &planned.freed).unwrap());
    w.run(40);
    assert_eq!((on(&w, 1), on(&w, 2), w.running(service_id(1))), (0, 2, 1));
    // Emptied once more when its word is over: what is on it waits for it, and keeps what was chosen.
    w.run(60);
    for n in 1..=2 {
        edit_node(&mut w, n, |node| (node.cordoned, node.draining) = (false, false));
    }
    edit(&mut w, 2, |s| s.spec.update.order = UpdateOrder::StartFirst);
    w.watched.want([service_id(1)].into());
    assert!(say(&mut w, &[(1, good())]));
    let chosen = web_moves_to(&w, 1);
    w.run(61);
    w.commit(chosen);
    w.run(20);
    let places = |w: &World| -> Vec<_> {
        let all = w.state.containers_of(service_id(1)).filter(|c| !c.removing);
        all.map(|c| c.node).collect()
    };
    assert_eq!(places(&w), [Some(node_id(2))], "nothing moves without it");
    assert_eq!(told(&w, "stays"), 0, "and nothing is given up");
    assert!(say(&mut w, &[(1, good())]));
    w.run(40);
    assert_eq!(places(&w), [Some(node_id(1))]);
}

/// The changes that drain h2, its first service's container being meant for h1.
fn web_moves_to(w: &World, n: u64) -> Vec<Change> {
    let mut node = (*w.state.nodes[&node_id(2)]).clone();
    (node.cordoned, node.draining) = (true, true);
    let web = w.state.containers_of(service_id(1)).next().unwrap();
    let moves = Moves {
        to: node_id(n),
        why: "it is emptied".to_owned(),
        emptying: true,
    };
    let web = ContainerRecord {
        moves: Some(moves),
        ..(**web).clone()
    };
    vec![Change::PutNode(node), Change::PutContainer(web)]
}
