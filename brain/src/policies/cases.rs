//! Cases of the book: who is asked, how often a dead policy is tried, what is told of it; and what questions hold.

use std::sync::Arc;

use berth_common::id::Revision;
use berth_common::model::NodeKind;
use berth_common::units::Bytes;

use super::*;
use crate::cluster::{Change, State};
use crate::controllers::fixtures::{node, node_id, policy, service, service_id, tenant, tenant_id};

/// Services 1 to `n` that all ask for policy p.
fn state(n: u64) -> State {
    let mut state = State::default();
    let changes = (1..=n).map(|n| {
        let mut record = service(n, 1, "web:1", 1, Bytes::gib(1));
        record.spec.policy = Some("p".parse().unwrap());
        Change::PutService(record)
    });
    state.apply(changes.collect(), Revision(1));
    state
}

fn ask(book: &mut Book, state: &State, now: u32) -> Option<Ask> {
    book.next(state, now).ask
}

fn verdict() -> Verdict {
    Verdict::new(
        "p".parse().unwrap(),
        [(node_id(1), Word::Points(7))].into_iter().collect(),
    )
}

fn fails(book: &mut Book, ask: &Ask, now: u32) -> Option<&'static str> {
    let event = book.finish(ask, Err("it is dead".to_owned()), now);
    event.map(|event| event.kind)
}

#[test]
fn a_verdict_counts_for_its_generation_and_its_time() {
    let (mut book, mut s) = (Book::new(&[policy(OnFailure::Wait)]), state(1));
    let id = service_id(1);
    let Opinion::Unasked(why) = book.opinion(&s.services[&id], 10) else {
        panic!("nothing was heard")
    };
    assert_eq!(why, "asks policy p");
    assert!(ask(&mut book, &s, 10).is_none(), "nobody waits for it");
    book.want([id, service_id(9)]);
    let question = ask(&mut book, &s, 10).unwrap();
    book.want([id]);
    assert!(ask(&mut book, &s, 10).is_none(), "it is being asked already");
    assert_eq!(book.finish(&question, Ok((verdict(), 5)), 11), None);
    let heard =
        |book: &Book, s: &State, now| matches!(book.opinion(&s.services[&id], now), Opinion::Heard(..));
    assert!(heard(&book, &s, 15) && !heard(&book, &s, 16));
    let mut newer = (*s.services[&id]).clone();
    newer.generation += 1;
    s.apply(vec![Change::PutService(newer)], Revision(2));
    assert!(!heard(&book, &s, 12), "it was about another spec");
}

#[test]
fn a_dead_policy_is_tried_now_and_then_and_told_once() {
    let (mut book, s) = (Book::new(&[policy(OnFailure::Ignore)]), state(20));
    book.want((1..=20).map(service_id));
    let first: Vec<Ask> = std::iter::from_fn(|| ask(&mut book, &s, 0)).collect();
    assert_eq!(first.len(), 8, "so many at a time");
    let told: Vec<_> = first.iter().filter_map(|one| fails(&mut book, one, 1)).collect();
    assert_eq!(told, ["policy-failed"], "once an outage");
    // Whoever waits for it is given up without being asked.
    let given_up = book.next(&s, 1);
    assert!(given_up.ask.is_none(), "it is left alone");
    assert_eq!(given_up.plan.len(), 12);
    assert_eq!(book.opinion(&s.services[&service_id(20)], 10), Opinion::Free);
    // After a while one question tries it.
    book.want((1..=20).map(service_id));
    let tries: Vec<Ask> = std::iter::from_fn(|| ask(&mut book, &s, 11)).collect();
    assert_eq!(tries.len(), 1);
    assert_eq!(fails(&mut book, &tries[0], 12), None, "the outage goes on");
    assert_eq!(book.opinion(&s.services[&service_id(20)], 21), Opinion::Free);
    book.want((1..=20).map(service_id));
    let one = ask(&mut book, &s, 22).unwrap();
    let back = book.finish(&one, Ok((verdict(), 5)), 22).unwrap();
    assert_eq!(back.kind, "policy-back");
    assert_eq!(std::iter::from_fn(|| ask(&mut book, &s, 22)).count(), 8);
}

#[test]
fn who_is_to_wait_is_told_why_and_when_it_is_worth_asking_again() {
    let (mut book, s) = (Book::new(&[policy(OnFailure::Wait)]), state(2));
    let waits = |book: &Book, n, now| match book.opinion(&s.services[&service_id(n)], now) {
        Opinion::Waits { why, again } => (why, again),
        other => panic!("{other:?}"),
    };
    for at in [0, 6, 12] {
        book.want([service_id(1)]);
        let one = ask(&mut book, &s, at).unwrap();
        fails(&mut book, &one, at);
    }
    let (why, again) = waits(&book, 1, 13);
    assert_eq!(
        (why.as_str(), again),
        ("waits for policy p: it is dead", Some(22))
    );
    assert_eq!(waits(&book, 2, 13).1, Some(22), "for everybody, asked or not");
    let gone = Book::new(&[]);
    let (why, again) = waits(&gone, 1, 0);
    assert!(
        why.contains("not in the brain's settings") && again.is_none(),
        "{why}"
    );
}

#[test]
fn what_is_kept_has_a_bound() {
    let (mut book, s) = (Book::new(&[policy(OnFailure::Ignore)]), state(300));
    let large = Verdict::new(
        "p".parse().unwrap(),
        (1..=10_000).map(|n| (node_id(n), Word::Points(1))).collect(),
    );
    for n in 1..=300 {
        book.want([service_id(n)]);
        let one = ask(&mut book, &s, 0).unwrap();
        book.finish(&one, Ok((large.clone(), 60 + n as u32)), 0);
    }
    let kept = |book: &Book, n| matches!(book.opinion(&s.services[&service_id(n)], 1), Opinion::Heard(..));
    let count = (1..=300).filter(|n| kept(&book, *n)).count();
    assert!((150..=200).contains(&count), "{count}");
    assert!(kept(&book, 300) && !kept(&book, 1), "those that end first go");
}

#[test]
fn r6_questions_hold_no_secrets_and_no_nodes_of_others() {
    let mut s = state(0);
    let tenant = |n| Change::PutTenant(tenant(n));
    let private = |n| NodeKind::Private { tenant: tenant_id(n) };
    let mut elsewhere = node(4, NodeKind::Shared, 4, 8);
    elsewhere.pool = "batch".parse().unwrap();
    let mut lost = node(5, NodeKind::Shared, 4, 8);
    lost.lost = true;
    let mut record = service(1, 1, "web:1", 1, Bytes::gib(1));
    record.spec.env.insert("KEY".to_owned(), "hush-env".to_owned());
    record.spec.command = Some(vec!["--password=hush-command".to_owned()]);
    record.spec.labels.insert("team".to_owned(), "blue".to_owned());
    let mut changes: Vec<Change> = vec![tenant(1), tenant(2), Change::PutService(record)];
    let nodes = [
        node(1, NodeKind::Shared, 4, 8),
        node(2, private(1), 4, 8),
        node(3, private(2), 4, 8),
        elsewhere,
        lost,
    ];
    changes.extend(nodes.map(Change::PutNode));
    s.apply(changes, Revision(1));
    let asked = Arc::clone(&s.services[&service_id(1)]);
    let nodes = request::nodes(&s, &asked);
    assert_eq!(
        request::names(&nodes).into_keys().collect::<Vec<_>>(),
        ["h1", "h2"]
    );
    let question = request::Question::new(&s, &asked, &nodes, vec![None, None]).unwrap();
    let text = serde_json::to_string(&question).unwrap();
    assert!(!text.contains("hush") && !text.contains("KEY"), "{text}");
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["service"]["labels"]["team"], "blue");
    assert_eq!(value["service"]["reservation"]["memory"], 1u64 << 30);
    assert_eq!(value["nodes"][0]["allocatable"]["memory"], 8u64 << 30);
}
