//! Snapshots by schedule: made when they are due, and let go once their retention keeps them no longer, in one write.
//!
//! Whatever was missed (the brain was away, the node was lost, the volume was on its way) is made up for by one snapshot. There is never
//! more than one that its node has still to make, and the newest that is there stays until that one is: a command that fails before
//! each costs what is new, and never what was kept.

use std::collections::BTreeSet;

use berth_common::id::{Name, NodeId, SnapshotId, TenantId, VolumeId};
use berth_common::model::{
    MAX_SNAPSHOTS, MoveStage, ObservedVolume, ScheduleState, SnapshotRecord, UnixMillis, VolumeRecord,
};

use super::context::Context;
use super::retention::kept;
use super::volumes::event;
use crate::cluster::State;
use crate::cluster::snapshots::{free_name, stamp};

/// Snapshots that are not to go, whatever a schedule says. Found once for all that are due at a time.
#[derive(Debug, Default)]
pub(super) struct Needed {
    /// By tenant, volume and name: what services read.
    read: BTreeSet<(TenantId, Name, Name)>,
    /// What volumes are being made of.
    cloned: BTreeSet<SnapshotId>,
}

impl Needed {
    fn of(state: &State) -> Self {
        let services = state.mounting.iter().filter_map(|id| state.services.get(id));
        let read = services.flat_map(|service| {
            let mounts = service.spec.volumes.iter();
            mounts.filter_map(|mount| Some((service.tenant, mount.volume.clone(), mount.snapshot.clone()?)))
        });
        let clones = state.volumes.values().filter(|volume| !volume.made);
        Self {
            read: read.collect(),
            cloned: clones.filter_map(|clone| Some(clone.source?.snapshot)).collect(),
        }
    }
}

/// Volumes whose schedules are due, without those of which nothing new is to be said.
pub(super) fn due(cx: &Context<'_, '_>) -> Vec<VolumeId> {
    let now = cx.input.now.wall;
    let due = cx.state.snapshots_due.iter().take_while(|(at, _)| *at <= now);
    let worth = |id: &VolumeId| {
        let volume = cx.state.volumes.get(id)?;
        match hindrance(cx, volume, volume.node?) {
            None => Some(()),
            Some(Hindrance::Passes) => None,
            Some(Hindrance::Stays(why)) => {
                let told = volume.scheduled.as_ref().and_then(|state| state.problem.as_ref());
                (told != Some(&why)).then_some(())
            }
        }
    };
    due.filter(|(_, id)| worth(id).is_some())
        .map(|(_, id)| *id)
        .collect()
}

/// A volume was just made: what was due before there was something to make a snapshot of was not missed.
pub(super) fn made(volume: &mut VolumeRecord, now: UnixMillis) {
    if let Some(state) = &mut volume.scheduled {
        state.upto = state.upto.max(now);
    }
}

/// Does what is due, if it can be done now.
pub(super) fn tend(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, node: NodeId) {
    let Some(schedule) = volume.schedule else {
        return;
    };
    let now = cx.input.now.wall;
    let mut state = volume.scheduled.clone().unwrap_or(ScheduleState {
        upto: now,
        problem: None,
    });
    // A clock that was ahead must not silence it until it is right.
    if state.upto > schedule.next(now) {
        state.upto = now;
    }
    if let Some(due) = schedule.due(state.upto, now) {
        match hindrance(cx, volume, node) {
            Some(Hindrance::Passes) => {}
            Some(Hindrance::Stays(why)) => {
                if state.problem.as_ref() != Some(&why) {
                    event(cx, volume, "volume-schedule", why.clone());
                    state.problem = Some(why);
                }
            }
            None => {
                let id = SnapshotId::from_bytes(cx.fresh_id().bytes());
                if make(cx, volume, node, id, now) {
                    state = ScheduleState {
                        upto: due,
                        problem: None,
                    };
                }
            }
        }
    }
    volume.scheduled = Some(state);
}

/// Why what is due can't be done now.
enum Hindrance {
    /// It will be over, and something else tells of it.
    Passes,
    /// Only people can end it.
    Stays(String),
}

fn hindrance(cx: &Context<'_, '_>, volume: &VolumeRecord, node: NodeId) -> Option<Hindrance> {
    let leaves = volume.moves.as_ref();
    let leaves = leaves.is_some_and(|moves| moves.stage != MoveStage::Copying);
    if !volume.made || !cx.current(node) || leaves || volume.rollback.is_some() {
        return Some(Hindrance::Passes);
    }
    let seen = cx.state.volume_seen(node, volume.id);
    let waits =
        |one: &SnapshotRecord| one.scheduled && !one.removing && !is_there(seen.map(|one| &**one), one.id);
    if volume.snapshots.iter().any(waits) {
        return Some(Hindrance::Passes);
    }
    let full = volume.snapshots.len() >= MAX_SNAPSHOTS;
    let going = volume.snapshots.iter().any(|one| one.removing);
    (full && !going && let_go(cx, volume, node, None).is_empty()).then(|| {
        Hindrance::Stays(format!(
            "no snapshot is made by its schedule: it has {MAX_SNAPSHOTS} already; remove some: berth volume snapshot-rm {} SNAPSHOT",
            volume.name
        ))
    })
}

fn is_there(seen: Option<&ObservedVolume>, id: SnapshotId) -> bool {
    seen.is_some_and(|seen| seen.snapshots.iter().any(|one| one.id == id))
}

/// Asks for a snapshot, and lets go of those that are kept no longer. False if there was only room for the latter.
fn make(
    cx: &Context<'_, '_>,
    volume: &mut VolumeRecord,
    node: NodeId,
    id: SnapshotId,
    now: UnixMillis,
) -> bool {
    let room = volume.snapshots.len() < MAX_SNAPSHOTS;
    let gone = let_go(cx, volume, node, room.then_some((id, now)));
    for one in &mut volume.snapshots {
        one.removing |= gone.contains(&one.id);
    }
    if room {
        volume.snapshots.push(SnapshotRecord {
            id,
            name: free_name(volume, &format!("auto-{}", stamp(now))),
            created_at: now,
            scheduled: true,
            removing: false,
        });
    }
    room
}

/// Those that the schedule keeps no longer once there is `new`, and that nothing needs.
fn let_go(
    cx: &Context<'_, '_>,
    volume: &VolumeRecord,
    node: NodeId,
    new: Option<(SnapshotId, UnixMillis)>,
) -> BTreeSet<SnapshotId> {
    let Some(schedule) = &volume.schedule else {
        return BTreeSet::new();
    };
    let own = volume
        .snapshots
        .iter()
        .filter(|one| one.scheduled && !one.removing);
    let own: Vec<_> = own.collect();
    let times: Vec<_> = own
        .iter()
        .map(|one| (one.id, one.created_at))
        .chain(new)
        .collect();
    let kept = kept(&schedule.keep, &times);
    let seen = cx.state.volume_seen(node, volume.id);
    let there = own
        .iter()
        .filter(|one| is_there(seen.map(|seen| &**seen), one.id));
    let newest = there.max_by_key(|one| (one.created_at, one.id)).map(|one| one.id);
    let goes = own
        .iter()
        .filter(|one| !kept.contains(&one.id) && Some(one.id) != newest && !is_needed(cx, volume, one));
    goes.map(|one| one.id).collect()
}

fn is_needed(cx: &Context<'_, '_>, volume: &VolumeRecord, one: &SnapshotRecord) -> bool {
    let needed = cx.volumes.needed.get_or_init(|| Needed::of(cx.state));
    let named = (volume.tenant, volume.name.clone(), one.name.clone());
    needed.cloned.contains(&one.id)
        || needed.read.contains(&named)
        || cx.state.container_reading(volume, &one.name).is_some()
}
