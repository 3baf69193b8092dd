//! Each line of what a place means, as a table.

use berth_common::id::{NodeId, TenantId};
use berth_common::protocol::{SendTo, round_snapshot};

use super::*;
use crate::volume::{Data, Snapshot, Uuid};

const TENANT: TenantId = TenantId::from_bytes([1; 10]);
const LAST: SnapshotId = SnapshotId::from_bytes([50; 10]);
const HELD: VolumePlace = VolumePlace::Held {
    made: false,
    source: None,
    resume: None,
};

fn volume(n: u8) -> VolumeId {
    VolumeId::from_bytes([n; 10])
}

fn snapshot(n: u8) -> SnapshotId {
    SnapshotId::from_bytes([n; 10])
}

fn want(place: VolumePlace) -> DesiredVolume {
    DesiredVolume {
        id: volume(1),
        tenant: TENANT,
        size: Bytes::mib(8),
        epoch: Epoch(3),
        place,
        snapshots: vec![],
        hooks: None,
        snapshots_gone: vec![],
        rollback: None,
        send: None,
        moved: None,
    }
}

fn meta() -> Meta {
    Meta {
        id: volume(1),
        tenant: TENANT,
        size: Bytes::mib(8),
        epoch: Epoch(3),
    }
}

fn taken(id: SnapshotId) -> Snapshot {
    Snapshot {
        id,
        uuid: Uuid::default(),
        received_uuid: Uuid::default(),
        generation: 1,
        changed: 1,
        made_at: 1,
        referenced: Bytes::ZERO,
        exclusive: Bytes::ZERO,
        read_only: true,
    }
}

fn here(snapshots: &[SnapshotId]) -> Volume {
    Volume {
        meta: meta(),
        data: Some(Data {
            uuid: Uuid::default(),
            generation: 1,
            limit: Some(Bytes::mib(8)),
            referenced: Bytes::ZERO,
            exclusive: Bytes::ZERO,
            read_only: false,
        }),
        snapshots: snapshots.iter().map(|id| taken(*id)).collect(),
    }
}

fn only_copy(snapshots: &[SnapshotId]) -> Volume {
    Volume {
        data: None,
        ..here(snapshots)
    }
}

fn seen(volumes: Vec<Volume>) -> Seen {
    Seen {
        volumes: volumes.into_iter().map(|one| (one.meta.id, one)).collect(),
        ..Seen::default()
    }
}

fn mounted(mut seen: Seen) -> Seen {
    seen.mounted.insert(volume(1));
    seen
}

fn resume(n: SnapshotId) -> VolumePlace {
    VolumePlace::Held {
        made: false,
        source: None,
        resume: Some(n),
    }
}

fn send(finish: bool) -> Option<SendTo> {
    Some(SendTo {
        node: NodeId::from_bytes([2; 10]),
        addresses: vec![],
        last: LAST,
        finish,
    })
}

/// The steps; none may come with a problem.
fn steps(want: &DesiredVolume, seen: &Seen) -> Vec<Step> {
    let plan = plan(std::slice::from_ref(want), seen);
    assert_eq!(plan.problems, BTreeMap::new(), "{want:?}");
    plan.steps
}

/// The problem; nothing may be done beside it.
fn problem(want: &DesiredVolume, seen: &Seen) -> String {
    let plan = plan(std::slice::from_ref(want), seen);
    assert_eq!(plan.steps, [], "{want:?}");
    plan.problems[&want.id].clone()
}

const NONE: [Step; 0] = [];

#[test]
fn what_is_not_here_is_made_empty_or_from_a_snapshot_that_is() {
    assert_eq!(steps(&want(HELD), &Seen::default()), [Step::Create(meta())]);
    let source = VolumeSource {
        volume: volume(2),
        snapshot: snapshot(9),
    };
    let cloned = want(VolumePlace::Held {
        made: false,
        source: Some(source),
        resume: None,
    });
    let mut other = here(&[snapshot(9)]);
    other.meta.id = volume(2);
    assert_eq!(
        steps(&cloned, &seen(vec![other.clone()])),
        [Step::Clone { source, meta: meta() }]
    );
    assert!(problem(&cloned, &Seen::default()).contains("begins as snapshot"));
    other.meta.tenant = TenantId::from_bytes([9; 10]);
    let r6 = problem(&cloned, &seen(vec![other]));
    assert!(
        r6.contains("begins as snapshot"),
        "another tenant's is none: {r6}"
    );
    let lost = problem(&want(resume(LAST)), &Seen::default());
    assert!(
        lost.contains("nothing of it"),
        "an empty one would hide that: {lost}"
    );
}

#[test]
fn what_is_here_gets_its_epoch_first_then_its_size() {
    assert_eq!(steps(&want(HELD), &seen(vec![here(&[])])), NONE);
    let mut old = here(&[]);
    (old.meta.epoch, old.meta.size) = (Epoch(2), Bytes::mib(4));
    let epoch = Step::SetEpoch {
        volume: volume(1),
        epoch: Epoch(3),
    };
    assert_eq!(steps(&want(HELD), &seen(vec![old.clone()])), [epoch]);
    old.meta.epoch = Epoch(3);
    let resize = [Step::Resize {
        volume: volume(1),
        size: Bytes::mib(8),
    }];
    assert_eq!(steps(&want(HELD), &mounted(seen(vec![old]))), resize);
    let mut unlimited = here(&[]);
    unlimited.data.as_mut().unwrap().limit = None;
    assert_eq!(steps(&want(HELD), &seen(vec![unlimited])), resize);
}

#[test]
fn r2_an_older_order_and_another_tenants_do_nothing() {
    for place in [HELD, resume(LAST), VolumePlace::Deleted] {
        let mut newer = here(&[LAST]);
        newer.meta.epoch = Epoch(4);
        assert!(problem(&want(place), &seen(vec![newer])).contains("epoch 3"));
        let mut foreign = here(&[LAST]);
        foreign.meta.tenant = TenantId::from_bytes([9; 10]);
        assert!(problem(&want(place), &seen(vec![foreign])).contains("another tenant"));
    }
}

#[test]
fn a_copy_becomes_writable_only_from_the_snapshot_that_is_named() {
    let copied = seen(vec![only_copy(&[LAST, snapshot(9)])]);
    let back = Step::RollBack {
        volume: volume(1),
        snapshot: LAST,
        keep: None,
    };
    assert_eq!(steps(&want(resume(LAST)), &copied), std::slice::from_ref(&back));
    assert!(problem(&want(HELD), &copied).contains("only a copy"));
    assert!(problem(&want(resume(snapshot(7))), &copied).contains("only a copy"));
    let mut grown = want(resume(LAST));
    grown.size = Bytes::mib(16);
    assert_eq!(
        steps(&grown, &copied),
        [
            Step::Resize {
                volume: volume(1),
                size: Bytes::mib(16)
            },
            back
        ]
    );
    // What gave up writing for a move does not take it up again by what an earlier move left.
    let mut leaving = want(resume(snapshot(9)));
    for finish in [true, false] {
        leaving.send = send(finish);
        assert_eq!(steps(&leaving, &copied), NONE, "{finish}");
    }
    // But what has just arrived does, though it is to go on at once.
    leaving.send = send(false);
    let arrived = seen(vec![only_copy(&[snapshot(9)])]);
    assert!(matches!(steps(&leaving, &arrived)[..], [Step::RollBack { .. }]));
}

#[test]
fn commands_run_around_a_snapshot_where_somebody_writes() {
    let hooks = SnapshotHooks {
        before: Some(vec!["save".to_owned()]),
        after: None,
        limit_ms: 1_000,
    };
    let mut want = want(HELD);
    want.snapshots = vec![snapshot(4)];
    want.hooks = Some(hooks.clone());
    let of = |seen: &Seen, want: &DesiredVolume| match &steps(want, seen)[..] {
        [Step::Snapshot { hooks, .. }] => hooks.clone(),
        other => panic!("{other:?}"),
    };
    let idle = seen(vec![here(&[])]);
    assert_eq!(of(&idle, &want), None, "nobody runs: there is nobody to ask");
    let mut used = mounted(seen(vec![here(&[])]));
    let container = ContainerId::from_bytes([9; 10]);
    used.writers.insert(volume(1), container);
    assert_eq!(of(&used, &want), Some(Box::new(Hooked { container, hooks })));
    want.hooks = None;
    assert_eq!(of(&used, &want), None);
}

#[test]
fn snapshots_are_made_and_only_named_ones_go() {
    let mut want = want(HELD);
    want.snapshots = vec![snapshot(4), snapshot(5)];
    want.snapshots_gone = vec![snapshot(6), snapshot(7)];
    let kept = [snapshot(4), snapshot(6), snapshot(8)];
    assert_eq!(
        steps(&want, &mounted(seen(vec![here(&kept)]))),
        [
            Step::Snapshot {
                volume: volume(1),
                snapshot: snapshot(5),
                hooks: None,
            },
            Step::DeleteSnapshot {
                volume: volume(1),
                snapshot: snapshot(6)
            },
        ]
    );
    let many: Vec<_> = (0..300).map(|n| snapshot(3).turned(n)).collect();
    want.snapshots = many;
    let plan = plan(&[want], &seen(vec![here(&[])]));
    let made = plan
        .steps
        .iter()
        .filter(|step| matches!(step, Step::Snapshot { .. }));
    assert_eq!((made.count(), plan.problems.len()), (MAX_SNAPSHOTS, 1));
}

#[test]
fn a_roll_back_is_done_once_and_when_nobody_has_it_mounted() {
    let mut want = want(HELD);
    let (from, keep) = (snapshot(4), snapshot(5));
    want.rollback = Some(RollBack { snapshot: from, keep });
    let back = Step::RollBack {
        volume: volume(1),
        snapshot: from,
        keep: Some(keep),
    };
    let before = seen(vec![here(&[from])]);
    assert_eq!(steps(&want, &before), [back]);
    assert_eq!(steps(&want, &mounted(before.clone())), NONE);
    assert_eq!(steps(&want, &seen(vec![here(&[from, keep])])), NONE);
    assert!(problem(&want, &seen(vec![here(&[])])).contains("rolled back"));
    want.snapshots = vec![snapshot(6)];
    let first = steps(&want, &before);
    assert!(
        matches!(first[..], [Step::Snapshot { .. }]),
        "of the state before: {first:?}"
    );
    want.snapshots.clear();
    want.snapshots_gone = vec![keep];
    assert_eq!(steps(&want, &before), NONE, "it was done, and its remains went");
}

#[test]
fn a_move_that_is_over_leaves_nothing() {
    let mut want = want(HELD);
    want.moved = Some(LAST);
    let rounds = [round_snapshot(LAST, 0), round_snapshot(LAST, 700)];
    let all = [rounds[0], rounds[1], LAST, snapshot(9)];
    let goes = |snapshot| Step::DeleteSnapshot {
        volume: volume(1),
        snapshot,
    };
    assert_eq!(
        steps(&want, &seen(vec![here(&all)])),
        [goes(rounds[0]), goes(rounds[1]), goes(LAST)]
    );
    let mut copied = want.clone();
    copied.place = resume(LAST);
    let of_copy = steps(&copied, &seen(vec![only_copy(&all)]));
    assert!(matches!(of_copy[..], [Step::RollBack { .. }]), "{of_copy:?}");
    want.send = send(false);
    assert_eq!(
        steps(&want, &seen(vec![here(&all)])),
        NONE,
        "the same is being sent"
    );
}

#[test]
fn writing_is_given_up_when_it_is_ordered_and_nobody_has_it_mounted() {
    let mut want = want(HELD);
    want.send = send(false);
    let before = seen(vec![here(&[])]);
    assert_eq!(steps(&want, &before), NONE);
    want.send = send(true);
    let retire = [Step::Retire {
        volume: volume(1),
        last: LAST,
    }];
    assert_eq!(steps(&want, &before), retire);
    assert_eq!(steps(&want, &mounted(before)), NONE);
    assert_eq!(
        steps(&want, &seen(vec![here(&[LAST])])),
        retire,
        "it was cut off before"
    );
    assert_eq!(steps(&want, &seen(vec![only_copy(&[LAST])])), NONE);
    want.rollback = Some(RollBack {
        snapshot: snapshot(5),
        keep: snapshot(6),
    });
    let both = seen(vec![here(&[snapshot(5), LAST])]);
    assert_eq!(
        steps(&want, &both),
        retire,
        "what was frozen is not changed any more"
    );
    want.rollback = None;
    want.snapshots = vec![snapshot(4)];
    let first = steps(&want, &seen(vec![here(&[])]));
    assert!(
        matches!(first[..], [Step::Snapshot { .. }]),
        "there will be no other time: {first:?}"
    );
}

#[test]
fn what_is_to_go_goes_once_nobody_has_it_and_until_it_is_certain() {
    let gone = want(VolumePlace::Deleted);
    let delete = [Step::Delete(volume(1))];
    for left in [seen(vec![here(&[])]), seen(vec![only_copy(&[LAST])])] {
        assert_eq!(steps(&gone, &left), delete);
        assert_eq!(steps(&gone, &mounted(left)), NONE);
    }
    assert_eq!(
        steps(&gone, &Seen::default()),
        delete,
        "not listed is not certainly gone"
    );
    let mut certain = Seen::default();
    certain.deleted.insert(volume(1));
    assert_eq!(steps(&gone, &certain), NONE);
}

#[test]
fn what_arrives_is_unknown_or_not_named_is_left_alone() {
    let from = NodeId::from_bytes([2; 10]);
    for place in [VolumePlace::Arriving { from }, VolumePlace::Unknown] {
        for now in [
            Seen::default(),
            seen(vec![here(&[])]),
            seen(vec![only_copy(&[LAST])]),
        ] {
            assert_eq!(steps(&want(place), &now), NONE);
        }
    }
    assert_eq!(plan(&[], &seen(vec![here(&[])])), Plan::default());
}
