//! Volumes of the simulated cluster: what agents do with them, by the words of the link alone, and every write of every container.
//!
//! Each container that runs with a volume writes to it all the time. A write is acknowledged, and whoever writes next must find it:
//! two writers at a time, or one that goes on from an older state, would not (R2).

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, Epoch, NodeId, SnapshotId, VolumeId};
use berth_common::model::{ObservedContainer, ObservedSending, ObservedSnapshot, ObservedVolume, Phase};
use berth_common::protocol::{DesiredMount, DesiredSet, DesiredVolume, SendTo, VolumePlace, round_snapshot};
use berth_common::units::Bytes;

/// Rounds of a move after which the rest is called small.
const ROUNDS: u16 = 0;

/// How many acknowledged writes a state holds: each writer goes on from all before it.
type Writes = u64;

#[derive(Debug, Clone, Default, PartialEq)]
struct Kept {
    epoch: Epoch,
    data: Option<Writes>,
    snapshots: BTreeMap<SnapshotId, Writes>,
    round: u16,
}

/// What a node has.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct FakeVolumes {
    wanted: Vec<DesiredVolume>,
    mounts: BTreeMap<ContainerId, Vec<DesiredMount>>,
    kept: BTreeMap<VolumeId, Kept>,
    in_use: BTreeSet<VolumeId>,
    /// Snapshots that containers which run read.
    read: BTreeSet<SnapshotId>,
    /// It makes no snapshots that are asked for: the command before each fails.
    pub stuck: bool,
    pub reported: Option<(Vec<ObservedVolume>, Vec<VolumeId>)>,
}

/// A snapshot on its way.
pub(super) struct Sent {
    pub to: NodeId,
    pub volume: VolumeId,
    snapshot: SnapshotId,
    writes: Writes,
}

impl FakeVolumes {
    /// Takes what the brain wants.
    pub fn order(&mut self, set: &DesiredSet) {
        // Rounds are of one move.
        let last = |want: &DesiredVolume| want.send.as_ref().map(|order| order.last);
        for want in &set.volumes {
            let before = self.wanted.iter().find(|one| one.id == want.id).and_then(last);
            if let Some(kept) = self.kept.get_mut(&want.id).filter(|_| before != last(want)) {
                kept.round = 0;
            }
        }
        self.wanted.clone_from(&set.volumes);
        let mounts = set.containers.iter().map(|c| (c.id, c.volumes.clone()));
        self.mounts = mounts.collect();
    }

    /// Whether a container's volumes are as it needs them.
    pub fn ready(&self, container: ContainerId, count: usize) -> bool {
        let mounts = self.mounts.get(&container).map_or(&[][..], Vec::as_slice);
        mounts.len() == count && mounts.iter().all(|mount| self.is_ready(mount))
    }

    fn is_ready(&self, mount: &DesiredMount) -> bool {
        let Some(want) = self.wanted.iter().find(|one| one.id == mount.volume) else {
            return false;
        };
        let Some(kept) = self.kept.get(&mount.volume) else {
            return false;
        };
        let rolled = want
            .rollback
            .is_none_or(|rollback| kept.snapshots.contains_key(&rollback.keep));
        matches!(want.place, VolumePlace::Held { .. })
            && rolled
            && mount.snapshot.is_none_or(|id| kept.snapshots.contains_key(&id))
            && kept.epoch == mount.epoch
            && kept.data.is_some()
    }

    /// Which volumes its containers have.
    pub fn use_by(&mut self, has: &BTreeMap<ContainerId, ObservedContainer>) {
        let using = has
            .values()
            .filter(|seen| matches!(seen.phase, Phase::Running | Phase::Stopping));
        let mounts = using.flat_map(|seen| self.mounts.get(&seen.id).into_iter().flatten());
        self.in_use = mounts.map(|mount| mount.volume).collect();
    }

    /// What its containers read is all that was acknowledged.
    pub fn check(
        &self,
        has: &BTreeMap<ContainerId, ObservedContainer>,
        acknowledged: &BTreeMap<VolumeId, Writes>,
    ) {
        for seen in has.values().filter(|seen| seen.phase == Phase::Running) {
            let mounts = self.mounts.get(&seen.id).into_iter().flatten();
            for mount in mounts.filter(|mount| mount.snapshot.is_none()) {
                let data = self.kept.get(&mount.volume).and_then(|kept| kept.data);
                assert_eq!(
                    data.as_ref(),
                    acknowledged.get(&mount.volume),
                    "R2: not what was acknowledged last"
                );
            }
        }
    }

    /// What its containers write in a moment; each write must find all before it.
    pub fn write(
        &mut self,
        has: &BTreeMap<ContainerId, ObservedContainer>,
        acknowledged: &mut BTreeMap<VolumeId, Writes>,
    ) {
        self.in_use.clear();
        self.read.clear();
        for seen in has.values() {
            if !matches!(seen.phase, Phase::Running | Phase::Stopping) {
                continue;
            }
            for mount in self.mounts.get(&seen.id).into_iter().flatten() {
                self.in_use.insert(mount.volume);
                if let Some(snapshot) = mount.snapshot {
                    self.read.insert(snapshot);
                    continue;
                }
                let kept = self.kept.get_mut(&mount.volume).expect("it runs with it");
                let data = kept.data.as_mut().expect("R2: it writes to what is no more");
                let all = acknowledged.entry(mount.volume).or_insert(0);
                assert_eq!(
                    data, all,
                    "R2: it does not go on from the last acknowledged write"
                );
                (*data, *all) = (*data + 1, *all + 1);
            }
        }
    }

    /// One step for each volume.
    pub fn live(&mut self, acknowledged: &mut BTreeMap<VolumeId, Writes>) {
        for want in self.wanted.clone() {
            let busy = self.in_use.contains(&want.id);
            match want.place {
                VolumePlace::Deleted if !busy => drop(self.kept.remove(&want.id)),
                VolumePlace::Held { source, made, resume } => {
                    let start = source.map(|source| {
                        let from = self.kept.get(&source.volume);
                        from.and_then(|from| from.snapshots.get(&source.snapshot).copied())
                    });
                    if start == Some(None) && !self.kept.contains_key(&want.id) {
                        continue;
                    }
                    assert!(!made || self.kept.contains_key(&want.id), "it was lost");
                    let kept = self.kept.entry(want.id).or_insert_with(|| {
                        let begins = start.flatten().unwrap_or(0);
                        acknowledged.insert(want.id, begins);
                        Kept {
                            data: Some(begins),
                            ..Kept::default()
                        }
                    });
                    assert!(kept.epoch <= want.epoch, "an epoch went back");
                    let mut want = want;
                    if self.stuck && busy {
                        want.snapshots.clear();
                    }
                    hold(kept, &want, resume, busy, &self.read, acknowledged);
                }
                _ => {}
            }
        }
    }

    /// What it sends in a moment.
    pub fn send(&mut self) -> Vec<Sent> {
        let mut sent = Vec::new();
        for want in &self.wanted {
            let Some(order) = &want.send else { continue };
            let Some(kept) = self.kept.get_mut(&want.id) else {
                continue;
            };
            if kept.epoch != want.epoch {
                continue;
            }
            let busy = self.in_use.contains(&want.id);
            let Some((snapshot, writes)) = next(kept, order, busy) else {
                continue;
            };
            sent.push(Sent {
                to: order.node,
                volume: want.id,
                snapshot,
                writes,
            });
        }
        sent
    }

    /// Takes a snapshot from a node, if it was told to.
    pub fn take(&mut self, sent: &Sent, from: NodeId) {
        let want = self.wanted.iter().find(|one| one.id == sent.volume);
        let Some(want) = want.filter(|want| want.place == VolumePlace::Arriving { from }) else {
            return;
        };
        let kept = self.kept.entry(sent.volume).or_default();
        kept.epoch = want.epoch;
        kept.snapshots.insert(sent.snapshot, sent.writes);
    }

    /// What it says to the brain.
    pub fn observed(&self) -> (Vec<ObservedVolume>, Vec<VolumeId>) {
        let volumes = self.kept.iter().map(|(id, kept)| {
            let want = self.wanted.iter().find(|want| want.id == *id);
            let gone = want.map_or(&[][..], |want| &want.snapshots_gone);
            ObservedVolume {
                id: *id,
                epoch: kept.epoch,
                writable: kept.data.is_some(),
                size: want.map_or(Bytes::ZERO, |want| want.size),
                used: Bytes(kept.data.unwrap_or(0)),
                mounted: self.in_use.contains(id),
                snapshots: snapshots(kept),
                problem: None,
                sending: want
                    .and_then(|want| want.send.as_ref())
                    .map(|order| ObservedSending {
                        last: Some(order.last),
                        round: u32::from(kept.round),
                        sent: Bytes(0),
                        expected: Bytes(0),
                        ready: kept.round > ROUNDS,
                    }),
                snapshots_gone: gone
                    .iter()
                    .filter(|id| !kept.snapshots.contains_key(id))
                    .copied()
                    .collect(),
            }
        });
        let gone = self
            .wanted
            .iter()
            .filter(|want| want.place == VolumePlace::Deleted && !self.kept.contains_key(&want.id));
        (volumes.collect(), gone.map(|want| want.id).collect())
    }

    /// How many writes its state of a volume holds, if it can be written.
    pub fn writable(&self, volume: VolumeId) -> Option<Writes> {
        self.kept.get(&volume)?.data
    }

    /// How many snapshots it has of a volume; none if it has nothing of it.
    pub fn snapshots(&self, volume: VolumeId) -> Option<usize> {
        self.kept.get(&volume).map(|kept| kept.snapshots.len())
    }
}

fn snapshots(kept: &Kept) -> Vec<ObservedSnapshot> {
    let one = |(id, writes): (&SnapshotId, &Writes)| ObservedSnapshot {
        id: *id,
        referenced: Bytes(*writes),
        exclusive: Bytes(0),
    };
    kept.snapshots.iter().map(one).collect()
}

fn hold(
    kept: &mut Kept,
    want: &DesiredVolume,
    resume: Option<SnapshotId>,
    busy: bool,
    read: &BTreeSet<SnapshotId>,
    acknowledged: &mut BTreeMap<VolumeId, Writes>,
) {
    // What was retired for a move waits for its end.
    let leaves = want.send.as_ref().is_some_and(|order| order.finish);
    if kept.data.is_none() && !leaves {
        kept.data = resume.and_then(|snapshot| kept.snapshots.get(&snapshot).copied());
    }
    kept.epoch = want.epoch;
    let Some(data) = kept.data else { return };
    for snapshot in &want.snapshots {
        kept.snapshots.entry(*snapshot).or_insert(data);
    }
    if let Some(rollback) = want.rollback.filter(|_| !busy)
        && let Some(then) = kept.snapshots.get(&rollback.snapshot).copied()
        && !kept.snapshots.contains_key(&rollback.keep)
    {
        kept.snapshots.insert(rollback.keep, data);
        kept.data = Some(then);
        acknowledged.insert(want.id, then);
    }
    for snapshot in &want.snapshots_gone {
        assert!(!read.contains(snapshot), "somebody reads it");
        kept.snapshots.remove(snapshot);
    }
    if let Some(last) = want.moved {
        kept.snapshots.remove(&last);
        for round in 0..=ROUNDS {
            kept.snapshots.remove(&round_snapshot(last, round));
        }
    }
}

/// The next snapshot of a move.
fn next(kept: &mut Kept, order: &SendTo, busy: bool) -> Option<(SnapshotId, Writes)> {
    if let Some(writes) = kept.snapshots.get(&order.last) {
        return Some((order.last, *writes));
    }
    if order.finish {
        if busy {
            return None;
        }
        let data = kept.data.take()?;
        kept.snapshots.insert(order.last, data);
        return Some((order.last, data));
    }
    if kept.round > ROUNDS {
        return None;
    }
    let snapshot = round_snapshot(order.last, kept.round);
    kept.round += 1;
    let data = kept.data?;
    kept.snapshots.insert(snapshot, data);
    Some((snapshot, data))
}
