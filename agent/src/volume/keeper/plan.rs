//! What is to be done with this node's volumes: orders against what is here. Pure.
//!
//! Each volume is looked at for itself. Its steps come in order: who carries them out does the first that may be tried, looks
//! again, and may pass over one that fails, since what must not go before another is not planned before that is done. Nothing
//! is destroyed but what an order names, and nothing at all is done under an older epoch than the node keeps (R2).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use berth_common::id::{ContainerId, Epoch, SnapshotId, VolumeId};
use berth_common::model::{MAX_SNAPSHOTS, MAX_VOLUMES, RollBack, SnapshotHooks, VolumeSource};
use berth_common::protocol::{DesiredVolume, VolumePlace, round_of};
use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::volume::{Meta, Volume};

/// What is here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The pool's volumes.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Those that some container has, or may have.
    pub mounted: BTreeSet<VolumeId>,
    /// Of each that some container has and may write to, one such container.
    pub writers: BTreeMap<VolumeId, ContainerId>,
    /// What an agent that is no more began around a snapshot, and did not end.
    pub begun: BTreeMap<VolumeId, Hooked>,
    /// Those of which the pool said that nothing is left. That one is not listed does not say so: its description may be damaged.
    pub deleted: BTreeSet<VolumeId>,
}

/// Commands around a snapshot, and where they run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hooked {
    /// In this container.
    pub container: ContainerId,
    /// What.
    pub hooks: SnapshotHooks,
}

/// Steps are logged, and a command may have a password among its words.
impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hooked")
            .field("container", &self.container)
            .finish_non_exhaustive()
    }
}

/// One thing to do. Each is fine to do again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make it, empty.
    Create(Meta),
    /// Make it from another one's snapshot.
    Clone {
        /// The other and its snapshot.
        source: VolumeSource,
        /// What it becomes.
        meta: Meta,
    },
    /// Give it another size.
    Resize {
        /// Which.
        volume: VolumeId,
        /// Bytes.
        size: Bytes,
    },
    /// Remember a hand-over.
    SetEpoch {
        /// Which.
        volume: VolumeId,
        /// A later one than it has.
        epoch: Epoch,
    },
    /// Take a snapshot.
    Snapshot {
        /// Of which.
        volume: VolumeId,
        /// Its id.
        snapshot: SnapshotId,
        /// What runs around it.
        hooks: Option<Box<Hooked>>,
    },
    /// Run the command after a snapshot, made or not, that an agent which is no more left behind.
    EndHooks {
        /// Of which volume.
        volume: VolumeId,
        /// What and where.
        hooked: Box<Hooked>,
    },
    /// Delete a snapshot.
    DeleteSnapshot {
        /// Of which.
        volume: VolumeId,
        /// Its id.
        snapshot: SnapshotId,
    },
    /// Make it what it was.
    RollBack {
        /// Which.
        volume: VolumeId,
        /// What it becomes.
        snapshot: SnapshotId,
        /// What it was becomes this.
        keep: Option<SnapshotId>,
    },
    /// Give up writing: its state becomes its last snapshot.
    Retire {
        /// Which.
        volume: VolumeId,
        /// The last snapshot.
        last: SnapshotId,
    },
    /// Delete it with all of its snapshots.
    Delete(VolumeId),
}

impl Step {
    /// Whether commands in a container are part of it, which take as long as they like.
    pub const fn runs_commands(&self) -> bool {
        matches!(
            self,
            Self::Snapshot { hooks: Some(_), .. } | Self::EndHooks { .. }
        )
    }

    /// Of which volume.
    pub const fn volume(&self) -> VolumeId {
        match self {
            Self::Create(meta) | Self::Clone { meta, .. } => meta.id,
            Self::Resize { volume, .. }
            | Self::SetEpoch { volume, .. }
            | Self::Snapshot { volume, .. }
            | Self::EndHooks { volume, .. }
            | Self::DeleteSnapshot { volume, .. }
            | Self::RollBack { volume, .. }
            | Self::Retire { volume, .. }
            | Self::Delete(volume) => *volume,
        }
    }
}

/// What to do, and what can't be done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those of one volume stand together, in order.
    pub steps: Vec<Step>,
    /// What keeps a volume from being as ordered, in words (R9).
    pub problems: BTreeMap<VolumeId, String>,
}

impl Plan {
    fn problem(&mut self, volume: VolumeId, why: impl Into<String>) {
        self.problems.insert(volume, why.into());
    }
}

/// What leads from what is here to what is ordered.
pub fn plan(desired: &[DesiredVolume], seen: &Seen) -> Plan {
    let mut plan = Plan::default();
    // Before all else: what is locked must not stay so for what a volume is to become.
    for (volume, hooked) in &seen.begun {
        plan.steps.push(Step::EndHooks {
            volume: *volume,
            hooked: Box::new(hooked.clone()),
        });
    }
    for want in desired {
        of_one(want, seen, &mut plan);
    }
    plan
}

/// The roll back that an order asks for and that was not done. One whose remains are to go was.
pub fn due_roll_back(want: &DesiredVolume, here: &Volume) -> Option<RollBack> {
    want.rollback
        .filter(|rollback| !has(here, rollback.keep) && !want.snapshots_gone.contains(&rollback.keep))
}

fn has(here: &Volume, snapshot: SnapshotId) -> bool {
    here.snapshots.iter().any(|one| one.id == snapshot)
}

fn of_one(want: &DesiredVolume, seen: &Seen, plan: &mut Plan) {
    let here = seen.volumes.get(&want.id);
    let acts = matches!(want.place, VolumePlace::Held { .. } | VolumePlace::Deleted);
    if let Some(here) = here.filter(|_| acts) {
        if here.meta.tenant != want.tenant {
            return plan.problem(
                want.id,
                "another tenant's volume is here under its id: nothing is done to it",
            );
        }
        if here.meta.epoch > want.epoch {
            return plan.problem(
                want.id,
                format!(
                    "the order is of epoch {}, and this node keeps epoch {} for it: nothing is done",
                    want.epoch, here.meta.epoch
                ),
            );
        }
    }
    match want.place {
        VolumePlace::Held { source, made, resume } => match here {
            None if made => plan.problem(
                want.id,
                "it was on this node and is gone: its pool was lost or somebody deleted it; bring it back, or remove the volume",
            ),
            None => absent(want, source, resume, seen, plan),
            Some(here) if here.data.is_none() => copy(want, resume, here, plan),
            Some(here) => writable(want, here, seen, plan),
        },
        VolumePlace::Deleted => {
            let left = here.is_some() || !seen.deleted.contains(&want.id);
            if left && !seen.mounted.contains(&want.id) {
                plan.steps.push(Step::Delete(want.id));
            }
        }
        // What arrives is put there by who receives it.
        VolumePlace::Arriving { .. } | VolumePlace::Unknown => {}
    }
}

/// It is to be here and is not.
fn absent(
    want: &DesiredVolume,
    source: Option<VolumeSource>,
    resume: Option<SnapshotId>,
    seen: &Seen,
    plan: &mut Plan,
) {
    if let Some(snapshot) = resume {
        // It was somewhere: an empty one would hide that it is lost.
        return plan.problem(
            want.id,
            format!("it is to go on from snapshot {snapshot}, and nothing of it is on this node"),
        );
    }
    if seen.volumes.len() >= MAX_VOLUMES {
        return plan.problem(
            want.id,
            format!("this node has {MAX_VOLUMES} volumes, and takes no more"),
        );
    }
    let meta = Meta {
        id: want.id,
        tenant: want.tenant,
        size: want.size,
        epoch: want.epoch,
    };
    let Some(source) = source else {
        return plan.steps.push(Step::Create(meta));
    };
    let from = seen
        .volumes
        .get(&source.volume)
        .filter(|from| from.meta.tenant == want.tenant);
    match from.is_some_and(|from| has(from, source.snapshot)) {
        true => plan.steps.push(Step::Clone { source, meta }),
        false => plan.problem(
            want.id,
            format!(
                "it begins as snapshot {} of volume {}, which is not on this node",
                source.snapshot, source.volume
            ),
        ),
    }
}

/// Only snapshots of it are here.
fn copy(want: &DesiredVolume, resume: Option<SnapshotId>, here: &Volume, plan: &mut Plan) {
    // It gave up writing, and goes on elsewhere.
    let leaving = |send: &berth_common::protocol::SendTo| send.finish || has(here, send.last);
    if want.send.as_ref().is_some_and(leaving) {
        return;
    }
    match resume {
        Some(snapshot) if has(here, snapshot) => {
            // First: it may have grown on its way.
            if here.meta.size != want.size {
                plan.steps.push(Step::Resize {
                    volume: want.id,
                    size: want.size,
                });
            }
            plan.steps.push(Step::RollBack {
                volume: want.id,
                snapshot,
                keep: None,
            });
        }
        Some(snapshot) => plan.problem(
            want.id,
            format!(
                "this node has only a copy of it, and not snapshot {snapshot}, from which it is to go on"
            ),
        ),
        None => plan.problem(
            want.id,
            "this node has only a copy of it, and no snapshot was named from which it is to go on",
        ),
    }
}

/// It is here, and can be written to.
fn writable(want: &DesiredVolume, here: &Volume, seen: &Seen, plan: &mut Plan) {
    let volume = want.id;
    let mounted = seen.mounted.contains(&volume);
    if here.meta.epoch < want.epoch {
        // Before all else: who had it before may do nothing more to it.
        return plan.steps.push(Step::SetEpoch {
            volume,
            epoch: want.epoch,
        });
    }
    let limit = here.data.as_ref().and_then(|data| data.limit);
    if here.meta.size != want.size || limit != Some(want.size) {
        plan.steps.push(Step::Resize {
            volume,
            size: want.size,
        });
    }
    let kept = want.rollback.map(|rollback| rollback.keep);
    let wanted = want.snapshots.iter().take(MAX_SNAPSHOTS);
    // Where nothing runs there is nobody to ask, and nothing that is not on the disk.
    let writer = seen.writers.get(&volume).copied();
    let hooked = want.hooks.as_ref().zip(writer);
    let hooked = hooked.map(|(hooks, container)| {
        Box::new(Hooked {
            container,
            hooks: hooks.clone(),
        })
    });
    let missing: Vec<_> = wanted
        .filter(|id| !has(here, **id) && Some(**id) != kept)
        .map(|id| Step::Snapshot {
            volume,
            snapshot: *id,
            hooks: hooked.clone(),
        })
        .collect();
    let as_it_is = missing.is_empty();
    plan.steps.extend(missing);
    let gone = here.snapshots.iter().map(|one| one.id).filter(|id| {
        want.snapshots_gone.contains(id) || is_left_of_move(want, *id) && !want.snapshots.contains(id)
    });
    plan.steps
        .extend(gone.map(|snapshot| Step::DeleteSnapshot { volume, snapshot }));
    if want.snapshots.len() > MAX_SNAPSHOTS {
        plan.problem(
            volume,
            format!("it is to have more than {MAX_SNAPSHOTS} snapshots: the rest is not made"),
        );
    }
    let finish = want.send.as_ref().filter(|send| send.finish);
    // A last snapshot that is there is of an attempt to give up writing that was cut off, and of the state that it is to keep.
    let cut_off = finish.is_some_and(|send| has(here, send.last));
    let due = due_roll_back(want, here).filter(|_| !cut_off);
    if let Some(rollback) = due.filter(|rollback| !has(here, rollback.snapshot)) {
        let snapshot = rollback.snapshot;
        return plan.problem(
            volume,
            format!("it is to be rolled back to snapshot {snapshot}, which is not on this node"),
        );
    }
    // Snapshots are of the state before.
    if mounted || !as_it_is {
        return;
    }
    if let Some(RollBack { snapshot, keep }) = due {
        plan.steps.push(Step::RollBack {
            volume,
            snapshot,
            keep: Some(keep),
        });
    } else if let Some(send) = finish {
        plan.steps.push(Step::Retire {
            volume,
            last: send.last,
        });
    }
}

/// Whether a snapshot was made for a move that is over.
fn is_left_of_move(want: &DesiredVolume, snapshot: SnapshotId) -> bool {
    let sent = want.send.as_ref().map(|send| send.last);
    want.moved
        .is_some_and(|last| Some(last) != sent && (snapshot == last || round_of(snapshot, last).is_some()))
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod plan_tests;
