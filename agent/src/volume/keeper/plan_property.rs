//! From any state to the one that is ordered: the plan's steps on a pool that fails and forgets answers, cut off anywhere.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Epoch, NodeId, SnapshotId, TenantId, VolumeId};
use berth_common::model::{RollBack, VolumeSource};
use berth_common::protocol::{DesiredVolume, SendTo, VolumePlace, round_snapshot};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::actor::carry_out;
use super::plan::{Plan, Seen, Step, plan};
use crate::fakes::{FakePool, Fault};
use crate::volume::{Meta, Pool as _, VolumeError};

const TENANT: TenantId = TenantId::from_bytes([1; 10]);
const ONE: VolumeId = VolumeId::from_bytes([1; 10]);
const OTHER: VolumeId = VolumeId::from_bytes([2; 10]);
const LAST: SnapshotId = SnapshotId::from_bytes([50; 10]);
const CONTENT: &[u8] = b"what must not be lost";

/// Most steps that any order takes, with all its failures.
const ROUNDS: usize = 100;

fn id(n: u8) -> SnapshotId {
    match n {
        0 => LAST,
        1 => round_snapshot(LAST, 0),
        n => SnapshotId::from_bytes([n; 10]),
    }
}

fn ids() -> impl Strategy<Value = BTreeSet<u8>> {
    proptest::collection::btree_set(0u8..6, 0..4)
}

#[derive(Debug, Clone)]
struct Before {
    here: bool,
    writable: bool,
    epoch: u64,
    size: u64,
    snapshots: BTreeSet<u8>,
}

fn before() -> impl Strategy<Value = Before> {
    (any::<bool>(), any::<bool>(), 1u64..5, 1u64..4, ids()).prop_map(
        |(here, writable, epoch, size, snapshots)| Before {
            here,
            // A copy without any snapshot is nothing that can come to be.
            writable: writable || snapshots.is_empty(),
            epoch,
            size,
            snapshots,
        },
    )
}

fn place() -> impl Strategy<Value = VolumePlace> {
    let source = VolumeSource {
        volume: OTHER,
        snapshot: id(9),
    };
    prop_oneof![
        4 => (any::<bool>(), proptest::option::of(0u8..6)).prop_map(move |(source_too, resume)| VolumePlace::Held {
            made: false,
            source: source_too.then_some(source),
            resume: resume.map(id),
        }),
        1 => Just(VolumePlace::Deleted),
        1 => Just(VolumePlace::Arriving { from: NodeId::from_bytes([3; 10]) }),
        1 => Just(VolumePlace::Unknown),
    ]
}

fn order() -> impl Strategy<Value = DesiredVolume> {
    let lists = (ids(), ids());
    let work = (
        proptest::option::of((0u8..6, 6u8..8)),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    );
    (place(), 1u64..5, 1u64..4, lists, work).prop_map(|(place, epoch, size, (wanted, gone), work)| {
        let (rollback, sends, finish, moved) = work;
        // The brain never asks for one that is to go, or that a move has for itself.
        let wanted: Vec<_> = wanted
            .into_iter()
            .filter(|n| *n > 1 && !gone.contains(n))
            .map(id)
            .collect();
        DesiredVolume {
            id: ONE,
            tenant: TENANT,
            size: Bytes::mib(size),
            epoch: Epoch(epoch),
            place,
            snapshots: wanted,
            hooks: None,
            snapshots_gone: gone.into_iter().filter(|n| *n > 1).map(id).collect(),
            rollback: rollback.map(|(snapshot, keep)| RollBack {
                snapshot: id(snapshot),
                keep: id(keep),
            }),
            send: sends.then(|| SendTo {
                node: NodeId::from_bytes([2; 10]),
                addresses: vec![],
                last: LAST,
                finish,
            }),
            moved: (moved && !sends).then_some(LAST),
        }
    })
}

async fn set_up(before: &Before) -> FakePool {
    let pool = FakePool::default();
    let meta = |id, epoch, size| Meta {
        id,
        tenant: TENANT,
        size: Bytes::mib(size),
        epoch: Epoch(epoch),
    };
    pool.create(&meta(OTHER, 1, 1)).await.unwrap();
    assert!(pool.write(OTHER, CONTENT));
    pool.snapshot(OTHER, id(9)).await.unwrap();
    if before.here {
        pool.create(&meta(ONE, before.epoch, before.size)).await.unwrap();
        assert!(pool.write(ONE, CONTENT));
        for n in &before.snapshots {
            pool.snapshot(ONE, id(*n)).await.unwrap();
        }
        if !before.writable {
            pool.retire(ONE, None).await.unwrap();
        }
    }
    pool
}

async fn look(pool: &FakePool, deleted: &BTreeSet<VolumeId>) -> Seen {
    let listing = pool.list().await.unwrap();
    let volumes: BTreeMap<_, _> = listing
        .volumes
        .into_iter()
        .map(|one| (one.meta.id, one))
        .collect();
    let mounts = pool.mounted().await.unwrap();
    Seen {
        writers: BTreeMap::new(),
        begun: BTreeMap::new(),
        mounted: mounts.into_iter().map(|(_, volume)| volume).collect(),
        deleted: deleted
            .iter()
            .filter(|id| !volumes.contains_key(id))
            .copied()
            .collect(),
        volumes,
    }
}

/// What may never happen from one look to the next.
fn is_safe(order: &DesiredVolume, old: &Seen, new: &Seen) {
    assert_eq!(
        old.volumes.get(&OTHER),
        new.volumes.get(&OTHER),
        "nothing was ordered of it"
    );
    let Some(was) = old.volumes.get(&ONE) else { return };
    let Some(is) = new.volumes.get(&ONE) else {
        assert_eq!(order.place, VolumePlace::Deleted, "it went without an order");
        return;
    };
    assert!(is.meta.epoch >= was.meta.epoch, "R2: an epoch went back");
    for snapshot in was.snapshots.iter().map(|one| one.id) {
        let may_go = order.snapshots_gone.contains(&snapshot)
            || order.moved.is_some() && [id(0), id(1)].contains(&snapshot);
        assert!(
            may_go || is.snapshots.iter().any(|one| one.id == snapshot),
            "{snapshot} went without an order"
        );
    }
    let has = |snapshot| is.snapshots.iter().any(|one| one.id == snapshot);
    match (&was.data, &is.data) {
        (Some(_), None) => assert!(has(LAST), "its last state is kept"),
        (Some(old), Some(new)) if old.uuid != new.uuid => {
            let keep = order.rollback.map(|rollback| rollback.keep);
            assert!(keep.is_some_and(has), "what it was before is kept");
        }
        _ => {}
    }
}

/// Whether the order is true, or the plan says what keeps it from being so.
fn is_settled(order: &DesiredVolume, seen: &Seen, plan: &Plan) {
    let Some(here) = seen.volumes.get(&ONE) else {
        let told = plan.problems.contains_key(&ONE);
        assert!(
            told || !matches!(order.place, VolumePlace::Held { .. }),
            "{order:?}"
        );
        return;
    };
    if plan.problems.contains_key(&ONE) || !matches!(order.place, VolumePlace::Held { .. }) {
        assert!(
            order.place != VolumePlace::Deleted || plan.problems.contains_key(&ONE),
            "it is still here"
        );
        return;
    }
    let has = |snapshot: &SnapshotId| here.snapshots.iter().any(|one| one.id == *snapshot);
    if here.data.is_none() {
        let send = order.send.as_ref().expect("a mere copy is one that leaves");
        assert!(send.finish || has(&send.last));
        return;
    }
    assert_eq!(
        (here.meta.epoch, here.meta.size),
        (order.epoch, order.size),
        "{here:?}"
    );
    assert!(order.snapshots.iter().all(has) && !order.snapshots_gone.iter().any(has));
    assert!(order.rollback.is_none_or(|rollback| has(&rollback.keep)));
    assert!(
        order.send.as_ref().is_none_or(|send| !send.finish),
        "it gave up writing"
    );
    assert!(order.moved.is_none_or(|_| !has(&id(0)) && !has(&id(1))));
}

fn operation(step: &Step) -> &'static str {
    match step {
        Step::Create(_) => "create",
        Step::Clone { .. } => "clone_snapshot",
        Step::Resize { .. } => "resize",
        Step::SetEpoch { .. } => "set_epoch",
        Step::Snapshot { .. } => "snapshot",
        Step::EndHooks { .. } => "no operation of a pool",
        Step::DeleteSnapshot { .. } => "delete_snapshot",
        Step::RollBack { .. } => "roll_back",
        Step::Retire { .. } => "retire",
        Step::Delete(_) => "delete",
    }
}

async fn converges(before: Before, order: DesiredVolume, faults: Vec<u8>) {
    let pool = set_up(&before).await;
    let mut deleted = BTreeSet::new();
    let mut faults = faults.into_iter();
    let mut seen = look(&pool, &deleted).await;
    for _ in 0..ROUNDS {
        let planned = plan(std::slice::from_ref(&order), &seen);
        let Some(step) = planned.steps.first() else {
            return is_settled(&order, &seen, &planned);
        };
        match faults.next() {
            Some(0) => pool.faults.inject(
                operation(step),
                Fault::Fail {
                    message: "injected".into(),
                    retryable: true,
                },
            ),
            Some(1) => pool.faults.inject(operation(step), Fault::FailAfter),
            // The agent is killed and forgets what it knew.
            Some(2) => deleted.clear(),
            _ => {}
        }
        match carry_out(&pool, step).await {
            Ok(()) => {
                if let Step::Delete(volume) = step {
                    deleted.insert(*volume);
                }
            }
            Err(VolumeError::Io { .. }) => {}
            Err(error) => panic!("{step:?}: {error}"),
        }
        let now = look(&pool, &deleted).await;
        is_safe(&order, &seen, &now);
        seen = now;
    }
    panic!(
        "it goes on for ever: {:?}",
        plan(std::slice::from_ref(&order), &seen)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn r2_every_order_is_carried_out_whatever_fails_and_nothing_else_is_done(
        before in before(), order in order(), faults in proptest::collection::vec(0u8..6, 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(converges(before, order, faults));
    }
}
