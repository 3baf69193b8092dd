//! The loop on a pool in memory, in virtual time: what is ordered comes true, is told, and survives a restart in the middle.

use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{ContainerId, Epoch, Generation, NodeId, ServiceId, SnapshotId, TenantId, VolumeId};
use berth_common::model::{RollBack, RunState, ServiceSpec};
use berth_common::protocol::{
    DesiredContainer, DesiredMount, DesiredSet, DesiredVolume, TenantShare, VolumePlace,
};
use berth_common::units::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::{Access, Keeper, Provide, Report};
use crate::container::runtime::{ContainerMeta, CreateRequest, Runtime as _};
use crate::fakes::{FakePool, FakeRuntime, Fault};
use crate::image::ImageInfo;
use crate::reconcile::Board;
use crate::volume::{Meta, Pool as _};

const NODE: NodeId = NodeId::from_bytes([7; 10]);
pub(super) const TENANT: TenantId = TenantId::from_bytes([1; 10]);

pub(super) fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 10])
}

pub(super) fn snapshot(n: u8) -> SnapshotId {
    SnapshotId::from_bytes([n; 10])
}

pub(super) fn held(n: u8) -> DesiredVolume {
    DesiredVolume {
        id: volume(n),
        tenant: TENANT,
        size: Bytes::mib(8),
        epoch: Epoch(1),
        place: VolumePlace::Held {
            made: false,
            source: None,
            resume: None,
        },
        snapshots: vec![],
        hooks: None,
        snapshots_gone: vec![],
        rollback: None,
        send: None,
        moved: None,
    }
}

/// A container with these volumes, the last of them read-only where it has two.
pub(super) fn container(n: u8, volumes: &[u8]) -> DesiredContainer {
    let mut spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap());
    spec.volumes = volumes
        .iter()
        .map(|n| format!("v{n}:/v{n}").parse().unwrap())
        .collect();
    if let [_, second] = &mut spec.volumes[..] {
        second.read_only = true;
    }
    DesiredContainer {
        id: ContainerId::from_bytes([n; 10]),
        tenant: TENANT,
        tenant_name: "t".parse().unwrap(),
        service: ServiceId::from_bytes([1; 10]),
        service_name: "s".parse().unwrap(),
        replica: 1,
        spec: spec.container_spec().unwrap().into(),
        run: RunState::Running,
        restarts_asked: 0,
        endpoints: vec![],
        volumes: volumes
            .iter()
            .map(|n| DesiredMount {
                volume: volume(*n),
                epoch: Epoch(1),
                snapshot: None,
            })
            .collect(),
    }
}

fn set(volumes: Vec<DesiredVolume>, containers: Vec<DesiredContainer>) -> DesiredSet {
    DesiredSet {
        node: NODE,
        generation: Generation(1),
        tenants: Vec::<TenantShare>::new(),
        containers,
        volumes,
    }
}

pub(super) struct Rig {
    pub pool: Arc<FakePool>,
    pub board: Arc<Board>,
    access: watch::Sender<Access>,
    dir: tempfile::TempDir,
}

impl Rig {
    pub fn new() -> Self {
        let pool: Arc<FakePool> = Arc::default();
        Self {
            access: watch::channel(Access::Open(pool.clone(), None)).0,
            pool,
            board: Arc::default(),
            dir: tempfile::tempdir().unwrap(),
        }
    }

    pub fn keeper(&self) -> (Arc<Keeper>, JoinHandle<()>) {
        let rate = crate::peers::Rate::default();
        let keeper = Keeper::new(self.board.clone(), self.dir.path(), self.access.subscribe(), rate);
        (keeper.clone(), tokio::spawn(keeper.run()))
    }

    pub fn want(&self, volumes: Vec<DesiredVolume>, containers: Vec<DesiredContainer>) {
        self.board.set_desired(&set(volumes, containers));
    }
}

/// The first report that fits.
pub(super) async fn told(keeper: &Keeper, what: &str, fits: impl Fn(&Report) -> bool) -> Arc<Report> {
    let mut report = keeper.report();
    let wait = report.wait_for(|now| now.as_deref().is_some_and(&fits));
    match tokio::time::timeout(Duration::from_secs(600), wait).await {
        Ok(found) => found.unwrap().clone().unwrap(),
        Err(_) => panic!("{what} was never told: {:?}", keeper.report().borrow()),
    }
}

fn fine(report: &Report, n: u8) -> bool {
    let one = report.volumes.iter().find(|one| one.id == volume(n));
    one.is_some_and(|one| one.writable && one.problem.is_none())
}

#[tokio::test(start_paused = true)]
async fn r8_orders_come_true_and_go_on_after_a_restart_in_the_middle() {
    let rig = Rig::new();
    let (keeper, task) = rig.keeper();
    let first = told(&keeper, "an empty pool", |_| true).await;
    assert_eq!(*first, Report::default());
    for _ in 0..3 {
        rig.pool.faults.inject("create", Fault::FailAfter);
    }
    let mut snapped = held(2);
    snapped.snapshots = vec![snapshot(1), snapshot(2)];
    rig.want(vec![held(1), snapped.clone()], vec![]);
    told(&keeper, "the first", |now| fine(now, 1)).await;
    task.abort();
    // Nobody gives the orders again: they are the ones that were persisted.
    let (keeper, _task) = rig.keeper();
    let report = told(&keeper, "all", |now| {
        fine(now, 1) && fine(now, 2) && now.volumes.iter().any(|one| one.snapshots.len() == 2)
    })
    .await;
    assert_eq!(report.volumes[1].epoch, Epoch(1));

    let mut gone = held(1);
    gone.place = VolumePlace::Deleted;
    snapped.snapshots = vec![snapshot(1)];
    snapped.snapshots_gone = vec![snapshot(2)];
    rig.want(vec![gone, snapped], vec![]);
    let report = told(&keeper, "what went", |now| {
        now.gone == [volume(1)] && now.volumes.iter().any(|one| one.snapshots_gone == [snapshot(2)])
    })
    .await;
    assert_eq!(report.volumes.len(), 1);
    rig.want(vec![], vec![]);
    let report = told(&keeper, "nothing to go", |now| now.gone.is_empty()).await;
    assert_eq!(report.volumes.len(), 1, "what is not named stays");
}

#[tokio::test(start_paused = true)]
async fn failures_are_told_in_words_and_tried_again_without_keeping_others() {
    let rig = Rig::new();
    for _ in 0..4 {
        rig.pool.faults.inject(
            "resize",
            Fault::Fail {
                message: "the disk is tired".into(),
                retryable: true,
            },
        );
    }
    let meta = Meta {
        id: volume(1),
        tenant: TENANT,
        size: Bytes::mib(1),
        epoch: Epoch(1),
    };
    rig.pool.create(&meta).await.unwrap();
    let mut first = held(1);
    first.snapshots = vec![snapshot(1)];
    rig.want(vec![first, held(2)], vec![]);
    let (keeper, _task) = rig.keeper();
    let report = told(&keeper, "the trouble", |now| {
        let one = now.volumes.iter().find(|one| one.id == volume(1));
        fine(now, 2) && one.is_some_and(|one| one.problem.is_some() && one.snapshots.len() == 1)
    })
    .await;
    let problem = report.volumes[0].problem.as_deref().unwrap();
    assert!(problem.contains("the disk is tired"), "{problem}");
    told(&keeper, "the end of it", |now| fine(now, 1)).await;
    assert_eq!(rig.pool.faults.calls("resize"), 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_pool_every_order_is_told_to_fail_until_there_is_one() {
    let rig = Rig::new();
    rig.access.send_replace(Access::Opening);
    rig.want(vec![held(1)], vec![container(1, &[1]), container(2, &[])]);
    let (keeper, _task) = rig.keeper();
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert!(keeper.report().borrow().is_none(), "nobody knows yet");
    rig.access
        .send_replace(Access::Broken("install btrfs-progs".into()));
    let report = told(&keeper, "the lack", |_| true).await;
    let problem = report.volumes[0].problem.as_deref().unwrap();
    assert!(problem.contains("install btrfs-progs"), "{problem}");
    let one = container(1, &[1]);
    let why = keeper.ready(one.id, &one.spec.volumes).await.unwrap_err();
    assert!(why.contains("install btrfs-progs"), "{why}");
    let other = container(2, &[]);
    keeper
        .ready(other.id, &[])
        .await
        .expect("one without volumes needs no pool");
    rig.access.send_replace(Access::Open(rig.pool.clone(), None));
    told(&keeper, "the volume", |now| fine(now, 1)).await;
    keeper.ready(one.id, &one.spec.volumes).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sizes_alone_are_told_rarely() {
    let rig = Rig::new();
    rig.want(vec![held(1)], vec![]);
    let (keeper, _task) = rig.keeper();
    told(&keeper, "the volume", |now| fine(now, 1)).await;
    rig.pool.write(volume(1), &vec![0; 2 << 20]);
    let began = tokio::time::Instant::now();
    for _ in 0..4 {
        keeper.look();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(
            keeper.report().borrow().as_ref().unwrap().volumes[0].used,
            Bytes(0)
        );
    }
    told(&keeper, "its use", |now| now.volumes[0].used == Bytes::mib(2)).await;
    assert!(began.elapsed() >= Duration::from_secs(4), "virtual time");
}

async fn made(runtime: &FakeRuntime, container: &DesiredContainer) {
    let request = CreateRequest {
        meta: ContainerMeta {
            id: container.id,
            tenant: TENANT,
            tenant_name: "t".parse().unwrap(),
            service_name: "s".parse().unwrap(),
            replica: 1,
        },
        spec: (*container.spec).clone(),
        image: ImageInfo {
            reference: "x".parse().unwrap(),
            manifest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            chain_id: "c".into(),
            chain_ids: vec!["c".into()],
            config: oci_spec::image::ImageConfiguration::default(),
        },
        nameservers: vec![],
    };
    runtime.create(&request).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn volumes_are_mounted_before_a_start_and_taken_away_after_the_end() {
    let rig = Rig::new();
    let one = container(1, &[1, 2]);
    let runtime = FakeRuntime::default();
    made(&runtime, &one).await;
    let refused = runtime.start(one.id).await.unwrap_err();
    assert!(refused.retryable(), "nobody gives it its volumes: {refused}");

    let (keeper, task) = rig.keeper();
    runtime.provide_by(keeper.clone());
    rig.want(vec![held(1), held(2)], vec![one.clone()]);
    runtime.await_volumes(one.id).await.unwrap();
    runtime.start(one.id).await.unwrap();
    let mut mounts = rig.pool.mounts();
    mounts.sort_by_key(|wanted| wanted.volume);
    let shown: Vec<_> = mounts
        .iter()
        .map(|m| {
            (
                m.volume,
                m.read_only,
                m.base,
                m.target.file_name().unwrap().to_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [(volume(1), false, 1 << 16, "0"), (volume(2), true, 1 << 16, "1")]
    );
    told(&keeper, "mounted", |now| {
        now.volumes.iter().all(|one| one.mounted)
    })
    .await;
    assert_eq!(keeper.provided(), [one.id]);

    // A roll back waits for the end, also where the agent was started anew meanwhile (R3), and the next start for the roll back.
    task.abort();
    rig.pool.write(volume(1), b"old");
    rig.pool.snapshot(volume(1), snapshot(1)).await.unwrap();
    rig.pool.write(volume(1), b"new");
    let (keeper, _task) = rig.keeper();
    let mut back = held(1);
    back.rollback = Some(RollBack {
        snapshot: snapshot(1),
        keep: snapshot(2),
    });
    rig.want(vec![back, held(2)], vec![one.clone()]);
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(rig.pool.read(volume(1)).unwrap(), b"new");
    let why = keeper.mount(one.id, 0, &one.spec.volumes).await.unwrap_err();
    assert!(
        why.contains("v1 is not ready") && why.contains("rolled back"),
        "{why}"
    );
    assert_eq!(rig.pool.mounts().len(), 2, "refusing takes nothing away");
    keeper.unmount(one.id).await.unwrap();
    keeper.unmount(one.id).await.unwrap();
    assert!(rig.pool.mounts().is_empty() && keeper.provided().is_empty());
    keeper.ready(one.id, &one.spec.volumes).await.unwrap();
    assert_eq!(rig.pool.read(volume(1)).unwrap(), b"old");
}

#[tokio::test(start_paused = true)]
async fn an_ended_container_holds_no_volume() {
    let rig = Rig::new();
    let one = container(1, &[1]);
    let runtime = FakeRuntime::default();
    made(&runtime, &one).await;
    let (keeper, _task) = rig.keeper();
    runtime.provide_by(keeper);
    rig.want(vec![held(1)], vec![one.clone()]);
    for end in ["collect", "delete"] {
        runtime.await_volumes(one.id).await.unwrap();
        runtime.start(one.id).await.unwrap();
        runtime.exit(one.id, 0, berth_common::model::UnixMillis::now());
        assert_eq!(rig.pool.mounts().len(), 1, "until its end is collected");
        match end {
            "collect" => drop(runtime.collect(one.id).await.unwrap()),
            _ => runtime.delete(one.id).await.unwrap(),
        }
        assert!(rig.pool.mounts().is_empty(), "{end}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_container_runs_without_its_data_or_with_anothers() {
    let rig = Rig::new();
    let (keeper, _task) = rig.keeper();
    let one = container(1, &[1, 2]);
    let spec = &one.spec.volumes;
    let refused = async |volumes: Vec<DesiredVolume>, container: DesiredContainer| {
        let id = container.id;
        rig.want(volumes, vec![container]);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let first = keeper.ready(id, spec).await.unwrap_err();
        assert_eq!(keeper.mount(id, 0, spec).await.unwrap_err(), first);
        assert!(rig.pool.mounts().is_empty());
        first
    };
    let both = || vec![held(1), held(2)];
    let mut fewer = one.clone();
    fewer.volumes.pop();
    assert!(
        refused(both(), fewer)
            .await
            .contains("2 volumes, and the brain named 1")
    );
    let mut none = one.clone();
    none.volumes.clear();
    assert!(refused(both(), none).await.contains("named 0"));
    let mut stopped = one.clone();
    stopped.run = RunState::Stopped;
    assert!(refused(both(), stopped).await.contains("not to run"));
    let mut later = one.clone();
    later.volumes[1].epoch = Epoch(2);
    assert!(refused(both(), later).await.contains("epoch 1 here"));
    let mut foreign = one.clone();
    foreign.tenant = TenantId::from_bytes([9; 10]);
    assert!(refused(both(), foreign).await.contains("another tenant's"));
    assert!(refused(vec![held(1)], one.clone()).await.contains("does not say"));
    let mut leaving = both();
    leaving[0].send = Some(berth_common::protocol::SendTo {
        node: NODE,
        addresses: vec![],
        last: snapshot(9),
        finish: true,
    });
    assert!(
        refused(leaving, one.clone())
            .await
            .contains("leaves for another node")
    );
    assert_eq!(rig.pool.read(volume(1)), None, "and gave up writing");
}
