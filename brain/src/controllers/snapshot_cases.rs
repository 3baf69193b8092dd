//! Snapshots by schedule on the simulated cluster: days pass, the brain and nodes are away, volumes move.

use std::collections::BTreeSet;

use berth_common::model::{Retention, ScheduleState, SnapshotRecord, SnapshotSchedule, UnixMillis};
use proptest::prelude::*;

use super::Dirty;
use super::cases::{check_converged, on};
use super::fixtures::{node_id, service_id};
use super::sim::World;
use super::volume_cases::{begin_move, change, put, snapshot_id, volume, world};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;

fn every(every_ms: u64, last: u32, hourly: u32, daily: u32) -> SnapshotSchedule {
    SnapshotSchedule {
        every_ms,
        keep: Retention {
            last,
            hourly,
            daily,
            ..Retention::default()
        },
    }
}

fn schedule(w: &mut World, name: &str, schedule: SnapshotSchedule) {
    let upto = w.wall();
    change(w, name, |record| {
        record.schedule = Some(schedule);
        record.scheduled = Some(ScheduleState { upto, problem: None });
    });
}

fn own(w: &World, name: &str) -> Vec<SnapshotRecord> {
    let mut all = volume(w, name).snapshots;
    all.retain(|one| one.scheduled);
    all
}

/// Lets so much time pass, minute by minute, and a little more for what is done meanwhile.
fn pass(w: &mut World, minutes: u64) {
    for _ in 0..minutes {
        w.skip(MINUTE - 4_000);
        w.run(8);
    }
}

#[test]
fn days_of_a_schedule_leave_what_it_keeps_and_what_was_made_by_hand() {
    let mut w = world(1);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    change(&mut w, "data", |record| {
        record.snapshots.push(SnapshotRecord {
            id: snapshot_id(77),
            name: "by-hand".parse().unwrap(),
            created_at: UnixMillis(0),
            scheduled: false,
            removing: false,
        });
    });
    w.run(4);
    schedule(&mut w, "data", every(30 * MINUTE, 2, 4, 3));
    let told = w.events.len();
    let begun = w.wall();
    for _ in 0..4 * 48 {
        w.skip(30 * MINUTE - 4_000);
        w.run(8);
    }
    let all = own(&w, "data");
    let hours: BTreeSet<_> = all.iter().map(|one| one.created_at.0 / HOUR).collect();
    let days: BTreeSet<_> = all.iter().map(|one| one.created_at.0 / (24 * HOUR)).collect();
    // One of each of four hours; among them the two newest, and those of two days; and one of a third.
    assert_eq!((all.len(), hours.len(), days.len()), (5, 5, 3), "{all:?}");
    assert!(
        all.iter()
            .all(|one| one.created_at > begun && one.name.as_str().starts_with("auto-"))
    );
    assert_eq!(w.events.len(), told, "what goes well is no news");
    let record = volume(&w, "data");
    assert!(record.snapshots.iter().any(|one| one.name.as_str() == "by-hand"));
    assert_eq!(
        w.snapshots(node_id(1), record.id),
        Some(record.snapshots.len()),
        "the node has those and no others"
    );
    super::sim_rules::check_indexes(&w.state);
}

#[test]
fn what_was_missed_is_made_up_for_once() {
    let mut w = world(2);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    schedule(&mut w, "data", every(10 * MINUTE, 50, 0, 0));
    pass(&mut w, 21);
    let before = own(&w, "data").len();
    assert_eq!(before, 2);
    // The brain is away for hours, then looks at everything.
    w.skip(5 * HOUR);
    w.run_plan(&Dirty::everything());
    w.run(20);
    assert_eq!(own(&w, "data").len(), before + 1);
    // So is the node; the brain waits, and asks for one when it is back.
    let node = volume(&w, "data").node.expect("bound");
    w.set_up(node, false);
    w.run(60);
    pass(&mut w, 60);
    assert_eq!(own(&w, "data").len(), before + 1, "{:?}", w.events);
    w.set_up(node, true);
    w.run(60);
    let all = own(&w, "data");
    assert_eq!(all.len(), before + 2, "{all:?}");
    assert!(
        w.wall().since(all[before + 1].created_at) < MINUTE,
        "it is of when it was made"
    );
    // A clock that was years ahead silences nothing for years.
    change(&mut w, "data", |record| {
        let state = record.scheduled.as_mut().expect("it has one");
        state.upto = UnixMillis(state.upto.0 + 10_000 * HOUR);
    });
    pass(&mut w, 11);
    assert_eq!(own(&w, "data").len(), before + 3);
}

#[test]
fn a_volume_on_its_way_gets_its_snapshot_where_it_arrives() {
    let mut w = world(2);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    schedule(&mut w, "data", every(MINUTE, 50, 0, 0));
    let from = volume(&w, "data").node.expect("bound");
    let to = if from == node_id(1) { 2 } else { 1 };
    begin_move(&mut w, "data", to, 1);
    for _ in 0..12 {
        w.skip(MINUTE);
        w.run(4);
    }
    w.run(40);
    let record = volume(&w, "data");
    assert_eq!(record.node, Some(node_id(to)), "{:?}", w.events);
    assert!(own(&w, "data").len() >= 6, "{:?}", own(&w, "data"));
    pass(&mut w, 3);
    let record = volume(&w, "data");
    assert_eq!(w.snapshots(node_id(to), record.id), Some(record.snapshots.len()));
}

#[test]
fn a_snapshot_that_is_not_made_lets_nothing_more_go() {
    let mut w = world(1);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    schedule(&mut w, "data", every(MINUTE, 1, 0, 0));
    pass(&mut w, 3);
    let before = own(&w, "data");
    assert_eq!(before.len(), 2, "the newest that is there stays: {before:?}");
    // Its node can't make any, as where a command before it fails.
    w.stop_snapshots(node_id(1), true);
    pass(&mut w, 30);
    let all = own(&w, "data");
    assert_eq!(all.len(), 2, "{all:?}");
    assert_eq!(all[0].id, before[1].id, "the last that was made is kept");
    w.stop_snapshots(node_id(1), false);
    pass(&mut w, 3);
    assert!(own(&w, "data").iter().all(|one| !all.contains(one)));
}

#[test]
fn r9_a_volume_that_is_full_of_snapshots_says_so_once() {
    let mut w = world(1);
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    change(&mut w, "data", |record| {
        let one = |n: u64| SnapshotRecord {
            id: snapshot_id(1_000 + n),
            name: format!("s{n}").parse().unwrap(),
            created_at: UnixMillis(0),
            scheduled: false,
            removing: false,
        };
        record.snapshots = (0..berth_common::model::MAX_SNAPSHOTS as u64).map(one).collect();
    });
    w.run(6);
    schedule(&mut w, "data", every(MINUTE, 5, 0, 0));
    pass(&mut w, 10);
    let told: Vec<_> = w
        .events
        .iter()
        .filter(|one| one.kind == "volume-schedule")
        .collect();
    assert_eq!(told.len(), 1, "{told:?}");
    let problem = volume(&w, "data").scheduled.and_then(|state| state.problem);
    assert!(problem.is_some_and(|why| why.contains("berth volume snapshot-rm data")));
    change(&mut w, "data", |record| {
        record.snapshots[..6]
            .iter_mut()
            .for_each(|one| one.removing = true);
    });
    pass(&mut w, 2);
    assert_eq!(own(&w, "data").len(), 2);
    assert_eq!(volume(&w, "data").scheduled.and_then(|state| state.problem), None);
}

#[test]
fn one_who_reads_a_snapshot_waits_for_it_goes_where_it_is_and_keeps_it() {
    let mut w = world(2);
    put(&mut w, 2, 1, &["data@old:/old"]);
    w.run(6);
    assert_eq!(
        (w.running(service_id(2)), w.state.volumes.len()),
        (0, 0),
        "nothing is made for it"
    );
    let waits = w
        .state
        .containers_of(service_id(2))
        .find_map(|c| c.waiting.clone());
    assert!(
        waits
            .as_ref()
            .is_some_and(|why| why.contains("has no snapshot old")),
        "{waits:?}"
    );
    put(&mut w, 1, 1, &["data:/x"]);
    w.run(10);
    change(&mut w, "data", |record| {
        record.snapshots.push(SnapshotRecord {
            id: snapshot_id(1),
            name: "old".parse().unwrap(),
            created_at: UnixMillis(0),
            scheduled: true,
            removing: false,
        });
    });
    w.run(20);
    let node = volume(&w, "data").node.expect("bound");
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (1, 1));
    // The schedule would let it go, and does once nobody reads it.
    schedule(&mut w, "data", every(MINUTE, 1, 0, 0));
    pass(&mut w, 4);
    assert!(
        volume(&w, "data")
            .snapshots
            .iter()
            .any(|one| one.name.as_str() == "old")
    );
    let to = if node == node_id(1) { 2 } else { 1 };
    begin_move(&mut w, "data", to, 50);
    w.run(60);
    assert_eq!(
        (on(&w, to), w.running(service_id(2))),
        (2, 1),
        "it follows: {:?}",
        w.events
    );
    w.commit(vec![crate::cluster::Change::DeleteService(service_id(2))]);
    w.run(8);
    pass(&mut w, 4);
    assert!(
        !volume(&w, "data")
            .snapshots
            .iter()
            .any(|one| one.name.as_str() == "old")
    );
}

#[derive(Debug, Clone)]
enum Act {
    Skip(u64),
    Move(u64),
    Up(u64, bool),
    Stuck(u64, bool),
    Restart,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (1u64..400).prop_map(Act::Skip),
        2 => (1u64..3).prop_map(Act::Move),
        2 => (1u64..3, any::<bool>()).prop_map(|(n, up)| Act::Up(n, up)),
        1 => (1u64..3, any::<bool>()).prop_map(|(n, on)| Act::Stuck(n, on)),
        1 => Just(Act::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x5c4ed),
        ..ProptestConfig::default()
    })]

    /// Whatever happens: never more than is kept and the one that is made, one of those that are there always stays, and in the end it goes on.
    #[test]
    fn a_schedule_keeps_what_it_should_and_goes_on(acts in prop::collection::vec((act(), 0u64..30), 1..25)) {
        let mut w = world(2);
        put(&mut w, 1, 1, &["data:/x"]);
        w.run(10);
        schedule(&mut w, "data", every(10 * MINUTE, 3, 2, 2));
        pass(&mut w, 11);
        for (step, (act, ticks)) in acts.iter().enumerate() {
            match *act {
                Act::Skip(minutes) => w.skip(minutes * MINUTE),
                Act::Move(n) => {
                    let record = volume(&w, "data");
                    if record.moves.is_none() && record.node != Some(node_id(n)) {
                        begin_move(&mut w, "data", n, 1_000 * (1 + step as u64));
                    }
                }
                Act::Up(n, up) => w.set_up(node_id(n), up),
                Act::Stuck(n, on) => w.stop_snapshots(node_id(n), on),
                Act::Restart => w.run_plan(&Dirty::everything()),
            }
            w.run(*ticks);
            let own = own(&w, "data");
            let staying = own.iter().filter(|one| !one.removing).count();
            prop_assert!((1..=8).contains(&staying), "{:?}", own);
        }
        w.everyone_up();
        for n in 1..3 {
            w.stop_snapshots(node_id(n), false);
        }
        w.run(300);
        check_converged(&w);
        let before = w.wall();
        pass(&mut w, 25);
        let record = volume(&w, "data");
        let newest = record.snapshots.iter().map(|one| one.created_at).max();
        prop_assert!(newest > Some(before));
        let node = record.node.expect("bound");
        prop_assert_eq!(w.snapshots(node, record.id), Some(record.snapshots.len()));
    }
}
