//! Tests of the real loop on fakes: adoption, refusals, failures, and a runtime that is late, doubled or forgetful.

use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{Generation, NodeId};
use berth_common::model::{HealthCheck, HealthState, Phase, Restart, UnixMillis};
use berth_common::protocol::DesiredUpdate;

use super::apply::Facilities;
use super::converge::{NODE, container, id, set};
use super::{Board, Handle, Reconciler, Settings};
use crate::container::runtime::RuntimeEvent;
use crate::fakes::{FakeCgroups, FakeImages, FakeProber, FakeRuntime, Fault};
use crate::ledger::Ledger;

struct Rig {
    runtime: Arc<FakeRuntime>,
    images: Arc<FakeImages>,
    cgroups: Arc<FakeCgroups>,
    prober: Arc<FakeProber>,
    state: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            runtime: Arc::default(),
            images: Arc::default(),
            cgroups: Arc::default(),
            prober: Arc::default(),
            state: tempfile::tempdir().unwrap(),
        }
    }

    fn agent(&self) -> (Handle, Arc<Board>, tokio::task::JoinHandle<()>) {
        let (ledger, restored) = Ledger::open(self.state.path(), NODE).unwrap();
        let board = Arc::new(Board::new());
        let facilities = Facilities {
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            cgroups: self.cgroups.clone(),
            prober: self.prober.clone(),
        };
        let settings = Settings {
            disk_every: Duration::from_millis(50),
            ..Settings::default()
        };
        let (handle, task) = Reconciler::start(facilities, settings, ledger, restored, board.clone());
        (handle, board, task)
    }
}

async fn until(board: &Board, what: &str, ok: impl Fn(&Board) -> bool) {
    for _ in 0..500 {
        if ok(board) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} never happened: {:#?}", board.containers());
}

fn phase_is(n: u8, phase: Phase) -> impl Fn(&Board) -> bool {
    move |board| board.container(id(n)).is_some_and(|c| c.phase == phase)
}

#[tokio::test]
async fn r3_a_killed_agent_adopts_and_starts_nothing_twice() {
    let rig = Rig::new();
    let (handle, board, task) = rig.agent();
    let full = DesiredUpdate::Full {
        set: set(1, vec![container(1), container(2)]),
    };
    handle.order(full).await.unwrap();
    until(&board, "running", |b| {
        phase_is(1, Phase::Running)(b) && phase_is(2, Phase::Running)(b)
    })
    .await;
    rig.runtime.exit(id(1), 3, UnixMillis::now());
    until(&board, "back-off", |b| phase_is(1, Phase::Backoff)(b)).await;
    task.abort();
    // Nobody watches while this one ends.
    rig.runtime.exit(id(2), 4, UnixMillis::now());
    let (_handle, board, _task) = rig.agent();
    until(&board, "both run again", |b| {
        phase_is(1, Phase::Running)(b) && phase_is(2, Phase::Running)(b)
    })
    .await;
    let one = board.container(id(1)).unwrap();
    assert_eq!((one.restarts, one.last_exit.unwrap().code), (1, 3));
    assert_eq!(board.container(id(2)).unwrap().last_exit.unwrap().code, 4);
    assert_eq!((rig.runtime.starts(id(1)), rig.runtime.starts(id(2))), (2, 2));
    assert_eq!(rig.runtime.double_starts(), 0);
    assert_eq!(board.generation(), Generation(1));
}

/// A container that is checked every tenth of a second.
fn checked(n: u8, restart: bool) -> DesiredUpdate {
    let mut container = container(n);
    std::sync::Arc::make_mut(&mut container.spec).health = Some(HealthCheck {
        tcp: Some(80),
        interval_ms: 100,
        retries: 1,
        start_period_ms: 60_000,
        restart,
        ..HealthCheck::default()
    });
    std::sync::Arc::make_mut(&mut container.spec).restart.delay_ms = 10;
    DesiredUpdate::Full {
        set: set(1, vec![container]),
    }
}

fn is(n: u8, state: HealthState) -> impl Fn(&Board) -> bool {
    move |board| {
        let health = board.container(id(n)).and_then(|c| c.health);
        health.is_some_and(|health| health.state == state)
    }
}

#[tokio::test]
async fn r3_an_agent_that_is_started_again_goes_on_from_what_was_healthy() {
    let rig = Rig::new();
    let (handle, board, task) = rig.agent();
    rig.prober.set(id(1), Some("not yet"));
    handle.order(checked(1, false)).await.unwrap();
    until(&board, "starting", is(1, HealthState::Starting)).await;
    assert!(
        !board.container(id(1)).unwrap().serves(),
        "nobody has asked it yet"
    );
    rig.prober.set(id(1), None);
    until(&board, "healthy", is(1, HealthState::Healthy)).await;
    task.abort();
    rig.prober.set(id(1), Some("later"));
    let (_handle, board, _task) = rig.agent();
    until(&board, "known", |b| b.is_ready() && b.container(id(1)).is_some()).await;
    let first = board.container(id(1)).unwrap();
    assert!(first.serves(), "its requests go on: {first:?}");
    until(&board, "unhealthy", is(1, HealthState::Unhealthy)).await;
    let health = board.container(id(1)).unwrap().health.unwrap();
    assert_eq!((health.failures, health.output.as_deref()), (1, Some("later")));
    let told = board.take_all().notices;
    assert!(
        told.iter().any(|n| n.kind == "unhealthy" && n.text == "later"),
        "{told:?}"
    );
    assert_eq!(rig.runtime.starts(id(1)), 1, "it is left alone");
}

#[tokio::test]
async fn who_becomes_unhealthy_is_started_again_and_begins_anew() {
    let rig = Rig::new();
    let (handle, board, _task) = rig.agent();
    handle.order(checked(1, true)).await.unwrap();
    until(&board, "healthy", is(1, HealthState::Healthy)).await;
    rig.prober.set(id(1), Some("it hangs"));
    until(&board, "started again", |_| rig.runtime.starts(id(1)) == 2).await;
    // Failures of its second life don't count before it was well once: so it is not started a third time.
    until(&board, "starting", is(1, HealthState::Starting)).await;
    let seen = board.container(id(1)).unwrap();
    assert_eq!(
        (seen.restarts, seen.last_exit.unwrap().reason.as_str()),
        (1, "unhealthy: it hangs")
    );
    rig.prober.set(id(1), None);
    until(&board, "healthy", is(1, HealthState::Healthy)).await;
    assert_eq!(rig.runtime.starts(id(1)), 2);
}

#[tokio::test]
async fn r3_a_damaged_ledger_stops_no_container() {
    let rig = Rig::new();
    let (handle, board, task) = rig.agent();
    let full = |generation, numbers: &[u8]| DesiredUpdate::Full {
        set: set(generation, numbers.iter().map(|n| container(*n)).collect()),
    };
    handle.order(full(4, &[1, 2])).await.unwrap();
    until(&board, "running", |b| {
        phase_is(1, Phase::Running)(b) && phase_is(2, Phase::Running)(b)
    })
    .await;
    task.abort();
    std::fs::write(rig.state.path().join("ledger/desired.json"), "{ half").unwrap();
    let (handle, board, _task) = rig.agent();
    until(&board, "seen", |b| {
        phase_is(1, Phase::Running)(b) && phase_is(2, Phase::Running)(b)
    })
    .await;
    // One ends while nobody knows what is wanted.
    rig.runtime.exit(id(2), 1, UnixMillis::now());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.runtime.containers().len(), 2, "nothing was removed");
    assert_eq!(rig.cgroups.weights().len(), 2, "nor its tenants");
    assert_eq!(board.generation(), Generation(0), "so that the brain sends all");
    handle.order(full(5, &[2])).await.unwrap();
    until(&board, "the brain's word holds", |b| {
        b.container(id(1)).is_none() && phase_is(2, Phase::Running)(b)
    })
    .await;
    assert_eq!((rig.runtime.starts(id(1)), rig.runtime.double_starts()), (1, 0));
}

#[tokio::test]
async fn a_fresh_node_with_nothing_to_do_clears_away_what_an_earlier_life_left() {
    let rig = Rig::new();
    let (handle, board, task) = rig.agent();
    let full = DesiredUpdate::Full {
        set: set(4, vec![container(1)]),
    };
    handle.order(full).await.unwrap();
    until(&board, "running", phase_is(1, Phase::Running)).await;
    task.abort();
    std::fs::remove_dir_all(rig.state.path().join("ledger")).unwrap();
    let (handle, board, _task) = rig.agent();
    until(&board, "seen", phase_is(1, Phase::Running)).await;
    // The very set that an agent without a ledger takes for its own.
    handle
        .order(DesiredUpdate::Full { set: set(0, vec![]) })
        .await
        .unwrap();
    until(&board, "gone", |b| b.containers().is_empty()).await;
    until(&board, "tenant gone", |_| rig.cgroups.weights().is_empty()).await;
}

#[tokio::test]
async fn r8_older_orders_are_refused_and_a_full_disk_changes_nothing() {
    let rig = Rig::new();
    let (handle, board, _task) = rig.agent();
    handle
        .order(DesiredUpdate::Full {
            set: set(5, vec![container(1)]),
        })
        .await
        .unwrap();
    let stale = handle
        .order(DesiredUpdate::Full { set: set(4, vec![]) })
        .await
        .unwrap_err();
    assert_eq!((stale.held, stale.refused), (Generation(5), Generation(4)));
    let mut other = set(9, vec![]);
    other.node = NodeId::from_bytes([1; 10]);
    assert!(handle.order(DesiredUpdate::Full { set: other }).await.is_err());
    let blocker = rig.state.path().join("ledger/desired.json.tmp");
    std::fs::create_dir(&blocker).unwrap();
    let refused = handle
        .order(DesiredUpdate::Full { set: set(6, vec![]) })
        .await
        .unwrap_err();
    assert!(
        refused.problem.detail.contains("can't persist"),
        "{}",
        refused.problem
    );
    until(&board, "the old set goes on", phase_is(1, Phase::Running)).await;
    std::fs::remove_dir(&blocker).unwrap();
    assert_eq!(
        handle
            .order(DesiredUpdate::Full { set: set(6, vec![]) })
            .await
            .unwrap()
            .generation,
        Generation(6)
    );
    until(&board, "gone", |b| b.containers().is_empty()).await;
    until(&board, "tenant gone", |_| rig.cgroups.weights().is_empty()).await;
    assert!(rig.runtime.containers().is_empty());
}

#[tokio::test]
async fn failures_are_told_and_cured() {
    let rig = Rig::new();
    rig.images.faults.inject(
        "pull",
        Fault::Fail {
            message: "no route".into(),
            retryable: true,
        },
    );
    rig.runtime.faults.inject("start", Fault::FailAfter);
    let (handle, board, _task) = rig.agent();
    handle
        .order(DesiredUpdate::Full {
            set: set(1, vec![container(1)]),
        })
        .await
        .unwrap();
    until(&board, "failure", phase_is(1, Phase::Failed)).await;
    assert!(
        board
            .container(id(1))
            .unwrap()
            .reason
            .unwrap()
            .contains("no route")
    );
    until(&board, "running", phase_is(1, Phase::Running)).await;
    assert_eq!(
        rig.runtime.starts(id(1)),
        1,
        "a lost answer is found by looking, not by starting again"
    );
    assert_eq!(rig.runtime.double_starts(), 0);
    rig.runtime.oom(id(1), false, UnixMillis::now());
    until(&board, "oom", |b| b.container(id(1)).unwrap().oom_kills == 1).await;
    assert_eq!(board.container(id(1)).unwrap().phase, Phase::Running);
    rig.runtime.oom(id(1), true, UnixMillis::now());
    until(&board, "fatal", |b| {
        b.container(id(1)).unwrap().last_exit.is_some_and(|e| e.oom)
    })
    .await;
    assert_eq!(board.container(id(1)).unwrap().oom_kills, 2);
}

#[tokio::test]
async fn an_overfull_layer_is_found_by_measuring() {
    let rig = Rig::new();
    let (handle, board, _task) = rig.agent();
    handle
        .order(DesiredUpdate::Full {
            set: set(1, vec![container(1)]),
        })
        .await
        .unwrap();
    until(&board, "running", phase_is(1, Phase::Running)).await;
    rig.runtime.set_disk(id(1), 2 << 30);
    until(&board, "stopped", phase_is(1, Phase::Exited)).await;
    let reason = board.container(id(1)).unwrap().reason.unwrap();
    assert_eq!(reason, "disk limit 1GiB exceeded");
}

#[tokio::test]
async fn a_late_or_doubled_exit_event_starts_nothing_twice() {
    let rig = Rig::new();
    let (handle, board, _task) = rig.agent();
    let full = DesiredUpdate::Full {
        set: set(1, vec![container(1)]),
    };
    handle.order(full).await.unwrap();
    until(&board, "running", phase_is(1, Phase::Running)).await;
    let before = board.container(id(1)).unwrap();
    for _ in 0..5 {
        rig.runtime.say(RuntimeEvent::Exited(id(1)));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until(&board, "running", phase_is(1, Phase::Running)).await;
    assert_eq!((rig.runtime.starts(id(1)), rig.runtime.double_starts()), (1, 0));
    let after = board.container(id(1)).unwrap();
    assert_eq!(
        (after.restarts, after.last_exit, after.started_at),
        (0, None, before.started_at)
    );
    // The doubt does not outlive the list: a real end is still seen.
    rig.runtime.exit(id(1), 9, UnixMillis::now());
    until(&board, "the end", |b| {
        b.container(id(1))
            .is_some_and(|c| c.last_exit.is_some_and(|e| e.code == 9))
    })
    .await;
}

#[tokio::test]
async fn a_start_that_died_with_the_runtime_is_no_run() {
    let rig = Rig::new();
    rig.runtime.faults.inject(
        "start",
        Fault::Fail {
            message: "the connection broke".into(),
            retryable: true,
        },
    );
    let (handle, board, _task) = rig.agent();
    let mut once = container(1);
    std::sync::Arc::make_mut(&mut once.spec).restart.on = Restart::Never;
    handle
        .order(DesiredUpdate::Full {
            set: set(1, vec![once]),
        })
        .await
        .unwrap();
    until(&board, "the start failed", phase_is(1, Phase::Failed)).await;
    rig.runtime.cut_off_start(id(1));
    until(&board, "running", phase_is(1, Phase::Running)).await;
    let seen = board.container(id(1)).unwrap();
    assert_eq!((seen.restarts, seen.last_exit), (0, None));
    assert_eq!((rig.runtime.starts(id(1)), rig.runtime.double_starts()), (1, 0));
}

#[tokio::test]
async fn an_exit_whose_answer_was_lost_still_counts() {
    let rig = Rig::new();
    let (handle, board, _task) = rig.agent();
    let mut once = container(1);
    std::sync::Arc::make_mut(&mut once.spec).restart.on = Restart::Never;
    handle
        .order(DesiredUpdate::Full {
            set: set(1, vec![once]),
        })
        .await
        .unwrap();
    until(&board, "running", phase_is(1, Phase::Running)).await;
    rig.runtime.faults.inject("collect", Fault::FailAfter);
    rig.runtime.exit(id(1), 0, UnixMillis::now());
    until(&board, "exited", phase_is(1, Phase::Exited)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(rig.runtime.starts(id(1)), 1, "its policy says never");
    assert!(board.container(id(1)).unwrap().last_exit.is_some());
}
