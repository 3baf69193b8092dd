//! What is sent next, in every state of a move.

use berth_common::id::{Epoch, TenantId};
use berth_common::protocol::VolumePlace;

use super::*;
use crate::volume::{Data, Meta, Snapshot, Uuid};

const VOLUME: VolumeId = VolumeId::from_bytes([1; 10]);
const LAST: SnapshotId = SnapshotId::from_bytes([9; 10]);

fn id(n: u8) -> SnapshotId {
    SnapshotId::from_bytes([n; 10])
}

fn round(n: u16) -> SnapshotId {
    round_snapshot(LAST, n)
}

fn here(snapshots: &[SnapshotId], writable: bool) -> Volume {
    let snapshot = |id: &SnapshotId| Snapshot {
        id: *id,
        uuid: Uuid::nil(),
        received_uuid: Uuid::nil(),
        generation: 1,
        changed: 1,
        made_at: 1,
        referenced: Bytes(1),
        exclusive: Bytes(1),
        read_only: true,
    };
    Volume {
        meta: Meta {
            id: VOLUME,
            tenant: TenantId::from_bytes([2; 10]),
            size: Bytes::mib(8),
            epoch: Epoch(1),
        },
        data: writable.then_some(Data {
            uuid: Uuid::nil(),
            generation: 1,
            limit: Some(Bytes::mib(8)),
            referenced: Bytes(1),
            exclusive: Bytes(1),
            read_only: false,
        }),
        snapshots: snapshots.iter().map(snapshot).collect(),
    }
}

fn order(finish: bool) -> SendTo {
    SendTo {
        node: NodeId::from_bytes([3; 10]),
        addresses: vec![],
        last: LAST,
        finish,
    }
}

fn want(own: &[SnapshotId], finish: bool) -> DesiredVolume {
    DesiredVolume {
        id: VOLUME,
        tenant: TenantId::from_bytes([2; 10]),
        size: Bytes::mib(8),
        epoch: Epoch(1),
        place: VolumePlace::Held {
            source: None,
            made: true,
            resume: None,
        },
        snapshots: own.to_vec(),
        hooks: None,
        snapshots_gone: vec![],
        rollback: None,
        send: Some(order(finish)),
        moved: None,
    }
}

fn sent(snapshots: &[SnapshotId], rounds: u16) -> Sent {
    Sent {
        snapshots: snapshots.to_vec(),
        rounds,
    }
}

#[test]
fn own_snapshots_go_first_then_rounds_then_the_last_once_nothing_can_be_written() {
    let table = [
        // The user's, each from the one before; one that is not made yet is not waited for.
        (
            false,
            vec![id(1), id(2)],
            true,
            sent(&[], 0),
            Next::Send(id(1), None),
        ),
        (
            false,
            vec![id(1), id(2)],
            true,
            sent(&[id(1)], 0),
            Next::Send(id(2), Some(id(1))),
        ),
        (
            false,
            vec![id(1)],
            true,
            sent(&[id(1)], 0),
            Next::Round(round(0), Some(id(1))),
        ),
        (
            false,
            vec![],
            true,
            sent(&[round(0)], 1),
            Next::Round(round(1), Some(round(0))),
        ),
        // One that is made between two rounds.
        (
            false,
            vec![id(1), round(0)],
            true,
            sent(&[round(0)], 1),
            Next::Send(id(1), Some(round(0))),
        ),
        // It may still be written to: what stands under the last one's name counts for nothing.
        (true, vec![round(0)], true, sent(&[round(0)], 1), Next::Wait),
        (true, vec![round(0), LAST], true, sent(&[round(0)], 1), Next::Wait),
        (
            true,
            vec![round(0), LAST],
            false,
            sent(&[round(0)], 1),
            Next::Send(LAST, Some(round(0))),
        ),
        (
            true,
            vec![id(1), LAST],
            false,
            sent(&[], 0),
            Next::Send(id(1), None),
        ),
        (true, vec![LAST], false, sent(&[LAST], 1), Next::Done),
        (true, vec![], false, sent(&[], 0), Next::Wait),
    ];
    for (finish, snapshots, writable, before, expected) in table {
        let now = next(
            &want(&[id(1), id(2)], finish),
            &order(finish),
            &here(&snapshots, writable),
            &before,
        );
        assert_eq!(now, expected, "{snapshots:?} {before:?}");
    }
}

#[test]
fn no_round_is_made_twice_whatever_an_agent_forgot() {
    let resumed = |snapshots: &[SnapshotId]| Sent::resumed(&order(false), &here(snapshots, true));
    assert_eq!(resumed(&[]), sent(&[], 0));
    assert_eq!(resumed(&[id(1), LAST]), sent(&[], 0));
    let again = resumed(&[round(3), round(4)]);
    assert_eq!(again, sent(&[], 5));
    // The receiver says which it has; the latest is asked for first.
    let now = next(&want(&[], false), &order(false), &here(&[round(4)], true), &again);
    assert_eq!(now, Next::Round(round(5), Some(round(4))));
    let now = next(
        &want(&[], true),
        &order(true),
        &here(&[round(4), LAST], false),
        &again,
    );
    assert_eq!(now, Next::Send(LAST, Some(round(4))));
}
