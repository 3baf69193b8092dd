//! Commands around snapshots, and snapshots that are read, on a pool in memory and in virtual time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::ContainerId;
use berth_common::model::{ObservedContainer, SnapshotHooks};
use parking_lot::Mutex;

use super::actor_tests::{Rig, TENANT, container, held, snapshot, told, volume};
use super::{Commands, Keeper, Provide as _, Report};
use crate::fakes::Fault;
use crate::reconcile::observe::RunningContainer;
use crate::volume::{Pool as _, VolumeError};

/// Remembers what it was to run, and answers as it was told to, else well. The word `hang` never ends.
#[derive(Default)]
struct Script {
    ran: Mutex<Vec<String>>,
    answers: Mutex<VecDeque<Result<(), String>>>,
}

#[async_trait]
impl Commands for Script {
    async fn run(&self, container: ContainerId, words: &[String]) -> Result<(), String> {
        assert_eq!(container, ContainerId::from_bytes([1; 10]));
        self.ran.lock().push(words.join(" "));
        if words[0] == "hang" {
            std::future::pending::<()>().await;
        }
        if words[0] == "slow" {
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        self.answers.lock().pop_front().unwrap_or(Ok(()))
    }
}

impl Script {
    fn ran(&self) -> Vec<String> {
        self.ran.lock().clone()
    }

    fn fails(&self, why: &str) {
        self.answers.lock().push_back(Err(why.to_owned()));
    }
}

fn hooks(before: Option<&str>, after: Option<&str>) -> Option<SnapshotHooks> {
    let words = |command: &str| command.split(' ').map(str::to_owned).collect();
    Some(SnapshotHooks {
        before: before.map(words),
        after: after.map(words),
        limit_ms: 30_000,
    })
}

/// Container 1 runs.
fn run(rig: &Rig) {
    let id = ContainerId::from_bytes([1; 10]);
    let running = RunningContainer {
        id,
        tenant: TENANT,
        pid: 7,
        disk: None,
    };
    rig.board.publish(ObservedContainer::pending(id), Some(running));
}

/// A keeper of volume 1, which is there and, if `runs`, written to by container 1.
async fn bench(runs: bool) -> (Rig, Arc<Script>, Arc<Keeper>) {
    let rig = Rig::new();
    let script: Arc<Script> = Arc::default();
    let (keeper, _task) = rig.keeper();
    keeper.run_commands_by(script.clone());
    rig.want(vec![held(1)], vec![container(1, &[1])]);
    told(&keeper, "the volume", |now| {
        now.volumes.iter().any(|one| one.writable)
    })
    .await;
    if runs {
        run(&rig);
    }
    (rig, script, keeper)
}

fn has(report: &Report, n: u8) -> bool {
    report.volumes[0]
        .snapshots
        .iter()
        .any(|one| one.id == snapshot(n))
}

fn order(rig: &Rig, snapshots: &[u8], hooks: Option<SnapshotHooks>) {
    let mut want = held(1);
    want.snapshots = snapshots.iter().map(|n| snapshot(*n)).collect();
    want.hooks = hooks;
    rig.want(vec![want], vec![container(1, &[1])]);
}

#[tokio::test(start_paused = true)]
async fn commands_run_around_a_snapshot_and_not_where_nothing_runs() {
    let (rig, script, keeper) = bench(true).await;
    order(&rig, &[1], hooks(Some("redis-cli save"), Some("thaw")));
    let report = told(&keeper, "the snapshot", |now| has(now, 1)).await;
    assert_eq!(report.volumes[0].problem, None);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(script.ran(), ["redis-cli save", "thaw"]);

    let (rig, script, keeper) = bench(false).await;
    order(&rig, &[1], hooks(Some("redis-cli save"), None));
    told(&keeper, "the snapshot", |now| has(now, 1)).await;
    assert_eq!(script.ran(), Vec::<String>::new());
    // It is mounted, and the agent has not looked yet at what runs: that is no reason to leave the command out.
    let one = container(1, &[1]);
    keeper.mount(one.id, 0, &one.spec.volumes).await.unwrap();
    order(&rig, &[1, 2], hooks(Some("redis-cli save"), None));
    told(&keeper, "the next", |now| has(now, 2)).await;
    assert_eq!(script.ran(), ["redis-cli save"]);
    let step = super::plan::Hooked {
        container: one.id,
        hooks: hooks(Some("x --password secret"), None).unwrap(),
    };
    assert!(!format!("{step:?}").contains("secret"));
}

#[tokio::test(start_paused = true)]
async fn r9_a_command_that_fails_before_means_no_snapshot_and_is_tried_again() {
    let (rig, script, keeper) = bench(true).await;
    for _ in 0..3 {
        script.fails("redis-cli ended with code 1: not now");
        script.answers.lock().push_back(Ok(()));
    }
    order(&rig, &[1], hooks(Some("redis-cli save"), Some("thaw")));
    let failing = |now: &Report| {
        let problem = now.volumes[0].problem.as_deref().unwrap_or_default();
        problem.contains("the command before its snapshot failed") && problem.contains("not now")
    };
    let report = told(&keeper, "why not", failing).await;
    assert!(!has(&report, 1));
    let report = told(&keeper, "the snapshot", |now| has(now, 1)).await;
    assert_eq!(report.volumes[0].problem, None);
    // What was begun is undone each time.
    assert_eq!(script.ran(), ["redis-cli save", "thaw"].repeat(4));

    // One that does not end is ended, and is no other matter.
    order(&rig, &[1, 2], hooks(Some("hang"), Some("thaw")));
    let late = |now: &Report| {
        let problem = now.volumes[0].problem.as_deref().unwrap_or_default();
        problem.contains("did not end within 30 s")
    };
    assert!(!has(&*told(&keeper, "that it hangs", late).await, 2));
    assert_eq!(script.ran().last().map(String::as_str), Some("thaw"));
    order(&rig, &[1, 2], None);
    told(&keeper, "the snapshot", |now| has(now, 2)).await;
}

#[tokio::test(start_paused = true)]
async fn the_command_after_runs_whether_or_not_there_is_a_snapshot_and_its_failure_is_told() {
    let (rig, script, keeper) = bench(true).await;
    rig.pool.faults.inject(
        "snapshot",
        Fault::Fail {
            message: "tired".into(),
            retryable: true,
        },
    );
    order(&rig, &[1], hooks(None, Some("thaw")));
    told(&keeper, "the snapshot", |now| has(now, 1)).await;
    assert_eq!(script.ran(), ["thaw", "thaw"]);
    script.fails("thaw ended with code 3");
    order(&rig, &[1, 2], hooks(None, Some("thaw")));
    let left = |now: &Report| {
        let problem = now.volumes[0].problem.as_deref().unwrap_or_default();
        has(now, 2) && problem.contains("the command after its snapshot failed: thaw ended with code 3")
    };
    told(&keeper, "that it failed", left).await;
    // The next that goes well ends it.
    order(&rig, &[1, 2, 3], hooks(None, Some("thaw")));
    told(&keeper, "its end", |now| {
        has(now, 3) && now.volumes[0].problem.is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn r3_what_a_killed_agent_began_is_ended_by_the_next() {
    let rig = Rig::new();
    let script: Arc<Script> = Arc::default();
    let (keeper, task) = rig.keeper();
    keeper.run_commands_by(script.clone());
    run(&rig);
    let around = || hooks(Some("save"), Some("slow"));
    order(&rig, &[1], around());
    tokio::time::sleep(Duration::from_secs(5)).await;
    task.abort();
    assert_eq!(script.ran(), ["save", "slow"]);
    for _ in 0..2 {
        // The snapshot is there, so nothing else would run it; and once it has run, nothing does.
        let (keeper, task) = rig.keeper();
        keeper.run_commands_by(script.clone());
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(script.ran(), ["save", "slow", "slow"]);
        assert!(has(keeper.report().borrow().as_ref().expect("told"), 1));
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_taken_back_while_its_command_runs_is_not_made() {
    let (rig, script, keeper) = bench(true).await;
    order(&rig, &[1], hooks(Some("slow"), Some("thaw")));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(script.ran(), ["slow"]);
    order(&rig, &[], hooks(Some("slow"), Some("thaw")));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(script.ran(), ["slow", "thaw"]);
    let report = keeper.report().borrow().clone().expect("told");
    assert!(
        !has(&report, 1) && report.volumes[0].problem.is_none(),
        "{report:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn commands_that_hang_keep_no_other_volume_from_anything() {
    let rig = Rig::new();
    let script: Arc<Script> = Arc::default();
    let (keeper, _task) = rig.keeper();
    keeper.run_commands_by(script.clone());
    let numbers: Vec<u8> = (1..=9).collect();
    let all = || numbers.iter().map(|n| held(*n)).collect::<Vec<_>>();
    let mut one = container(1, &numbers);
    rig.want(all(), vec![one.clone()]);
    told(&keeper, "all", |now| {
        now.volumes.iter().filter(|one| one.writable).count() == 9
    })
    .await;
    run(&rig);
    one.volumes.truncate(8);
    std::sync::Arc::make_mut(&mut one.spec).volumes.truncate(8);
    let mut wanted = all();
    for want in &mut wanted {
        want.snapshots = vec![snapshot(1)];
        want.hooks = hooks(Some("hang"), None);
    }
    rig.want(wanted, vec![one]);
    let began = tokio::time::Instant::now();
    told(&keeper, "the ninth's", |now| !now.volumes[8].snapshots.is_empty()).await;
    assert!(began.elapsed() < Duration::from_secs(30), "virtual time");
    assert_eq!(script.ran().len(), 8);
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_is_mounted_for_reading_alone_and_stays_while_it_is() {
    let (rig, _, keeper) = bench(false).await;
    rig.pool.write(volume(1), b"old");
    rig.pool.snapshot(volume(1), snapshot(1)).await.unwrap();
    let mut reader = container(2, &[1]);
    // Of a spec that leaves out what follows from it.
    std::sync::Arc::make_mut(&mut reader.spec).volumes = vec!["v1@old:/old".parse().unwrap()];
    std::sync::Arc::make_mut(&mut reader.spec).volumes[0].read_only = false;
    let spec = reader.spec.volumes.clone();
    rig.want(vec![held(1)], vec![reader.clone()]);
    keeper.look();
    tokio::time::sleep(Duration::from_secs(1)).await;
    // A brain that says nothing of a snapshot would have it read what the volume is now.
    let why = keeper.mount(reader.id, 0, &spec).await.unwrap_err();
    assert!(why.contains("not of one mind"), "{why}");
    reader.volumes[0].snapshot = Some(snapshot(2));
    rig.want(vec![held(1)], vec![reader.clone()]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let why = keeper.mount(reader.id, 0, &spec).await.unwrap_err();
    assert!(why.contains("is not here yet"), "{why}");
    reader.volumes[0].snapshot = Some(snapshot(1));
    rig.want(vec![held(1)], vec![reader.clone()]);
    keeper.ready(reader.id, &spec).await.unwrap();
    keeper.mount(reader.id, 0, &spec).await.unwrap();
    let mounts = rig.pool.mounts();
    assert_eq!(
        (mounts[0].snapshot, mounts[0].read_only),
        (Some(snapshot(1)), true)
    );
    let orders = rig.board.volumes().borrow().clone().unwrap();
    assert!(orders.mounts[&reader.id].writable.is_empty(), "it is no writer");
    let refused = rig.pool.delete_snapshot(volume(1), snapshot(1)).await;
    assert!(matches!(refused, Err(VolumeError::Mounted { .. })));
    keeper.unmount(reader.id).await.unwrap();
    rig.pool.delete_snapshot(volume(1), snapshot(1)).await.unwrap();
}
