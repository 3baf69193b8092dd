//! What is told of this node's volumes, and when it is worth telling again. Pure.

use std::collections::BTreeMap;

use berth_common::id::{Epoch, SnapshotId, VolumeId};
use berth_common::model::{ObservedSnapshot, ObservedVolume};
use berth_common::protocol::{DesiredVolume, VolumePlace};
use berth_common::units::Bytes;

use super::plan::Seen;
use super::sending::Far;
use crate::volume::Volume;

/// Sizes that differ by less are the same, bytes; or by a hundredth.
const CHANGED_BY: u64 = 1 << 20;

/// All that is told of this node's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is here, and what should be and can't; by id.
    pub volumes: Vec<ObservedVolume>,
    /// What was to go, and of which nothing is left.
    pub gone: Vec<VolumeId>,
}

/// How two reports differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// In nothing that matters.
    None,
    /// In sizes alone, which change all the time.
    Sizes,
    /// In something that somebody may wait for.
    More,
}

/// What there is to tell. `desired`: none while nobody knows it.
pub(super) fn report(
    desired: &[DesiredVolume],
    seen: &Seen,
    problems: &BTreeMap<VolumeId, String>,
    sending: &BTreeMap<VolumeId, Far>,
) -> Report {
    let wanted: BTreeMap<_, _> = desired.iter().map(|want| (want.id, want)).collect();
    let mut volumes: BTreeMap<_, _> = seen
        .volumes
        .values()
        .map(|here| {
            let id = here.meta.id;
            let mounted = seen.mounted.contains(&id);
            let far = sending.get(&id);
            let problem = problems.get(&id).cloned();
            let problem = problem.or_else(|| far?.problem.clone()).or_else(|| spoilt(here));
            let mut shown = shown(here, wanted.get(&id).copied(), mounted, problem);
            shown.sending = far.map(|far| far.sending.clone());
            (id, shown)
        })
        .collect();
    for (id, problem) in problems {
        volumes
            .entry(*id)
            .or_insert_with(|| nothing_of(*id, problem.clone()));
    }
    let deleted = desired
        .iter()
        .filter(|want| matches!(want.place, VolumePlace::Deleted));
    let gone = deleted
        .map(|want| want.id)
        .filter(|id| seen.deleted.contains(id) && !seen.volumes.contains_key(id));
    Report {
        gone: gone.collect(),
        volumes: volumes.into_values().collect(),
    }
}

fn spoilt(here: &Volume) -> Option<String> {
    let data = here.data.as_ref()?;
    data.read_only
        .then(|| "somebody made it read-only: what its container writes fails".to_owned())
}

fn shown(
    here: &Volume,
    want: Option<&DesiredVolume>,
    mounted: bool,
    problem: Option<String>,
) -> ObservedVolume {
    let snapshots = here.snapshots.iter().map(|one| ObservedSnapshot {
        id: one.id,
        referenced: one.referenced,
        exclusive: one.exclusive,
    });
    let left = |id: &SnapshotId| !here.snapshots.iter().any(|one| one.id == *id);
    let gone = want.map_or(&[][..], |want| want.snapshots_gone.as_slice());
    ObservedVolume {
        id: here.meta.id,
        epoch: here.meta.epoch,
        writable: here.data.is_some(),
        size: here
            .data
            .as_ref()
            .and_then(|data| data.limit)
            .unwrap_or(here.meta.size),
        used: here.data.as_ref().map_or(Bytes::ZERO, |data| data.referenced),
        mounted,
        snapshots: snapshots.collect(),
        problem,
        sending: None,
        snapshots_gone: gone.iter().copied().filter(left).collect(),
    }
}

/// One that should be here.
fn nothing_of(id: VolumeId, problem: String) -> ObservedVolume {
    ObservedVolume {
        id,
        epoch: Epoch(0),
        writable: false,
        size: Bytes::ZERO,
        used: Bytes::ZERO,
        mounted: false,
        snapshots: Vec::new(),
        problem: Some(problem),
        sending: None,
        snapshots_gone: Vec::new(),
    }
}

/// How a report differs from the one that was told.
pub(super) fn change(told: &Report, now: &Report) -> Change {
    if told == now {
        return Change::None;
    }
    let same_but_sizes = told.gone == now.gone
        && told.volumes.len() == now.volumes.len()
        && told
            .volumes
            .iter()
            .zip(&now.volumes)
            .all(|(old, new)| without_sizes(old) == without_sizes(new));
    if !same_but_sizes {
        return Change::More;
    }
    let mut sizes = told.volumes.iter().zip(&now.volumes).flat_map(|(old, new)| {
        let snapshots = old.snapshots.iter().zip(&new.snapshots);
        let snapshots =
            snapshots.flat_map(|(a, b)| [(a.referenced, b.referenced), (a.exclusive, b.exclusive)]);
        let sent = |one: &ObservedVolume| one.sending.as_ref().map_or(Bytes::ZERO, |far| far.sent);
        [(old.used, new.used), (sent(old), sent(new))]
            .into_iter()
            .chain(snapshots)
    });
    match sizes.any(|(old, new)| differ(old, new)) {
        true => Change::Sizes,
        false => Change::None,
    }
}

fn without_sizes(volume: &ObservedVolume) -> ObservedVolume {
    let mut volume = volume.clone();
    volume.used = Bytes::ZERO;
    if let Some(sending) = &mut volume.sending {
        (sending.sent, sending.expected) = (Bytes::ZERO, Bytes::ZERO);
    }
    for snapshot in &mut volume.snapshots {
        (snapshot.referenced, snapshot.exclusive) = (Bytes::ZERO, Bytes::ZERO);
    }
    volume
}

fn differ(old: Bytes, new: Bytes) -> bool {
    let by = old.0.abs_diff(new.0);
    by > CHANGED_BY || by > old.0 / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(n: u8, used: u64) -> ObservedVolume {
        let mut volume = nothing_of(VolumeId::from_bytes([n; 10]), String::new());
        (volume.problem, volume.used) = (None, Bytes(used));
        volume.snapshots.push(ObservedSnapshot {
            id: SnapshotId::from_bytes([n; 10]),
            referenced: Bytes(used),
            exclusive: Bytes::ZERO,
        });
        volume
    }

    fn of(volumes: Vec<ObservedVolume>) -> Report {
        Report {
            volumes,
            gone: Vec::new(),
        }
    }

    #[test]
    fn only_what_matters_is_told_again() {
        let told = of(vec![volume(1, 1 << 30)]);
        for (used, change_is) in [
            (1 << 30, Change::None),
            ((1 << 30) + CHANGED_BY, Change::None),
            ((1 << 30) + CHANGED_BY + 1, Change::Sizes),
            (0, Change::Sizes),
        ] {
            assert_eq!(change(&told, &of(vec![volume(1, used)])), change_is, "{used}");
        }
        let small = of(vec![volume(1, 1000)]);
        assert_eq!(change(&small, &of(vec![volume(1, 1010)])), Change::None);
        assert_eq!(change(&small, &of(vec![volume(1, 1011)])), Change::Sizes);
        let mut mounted = volume(1, 1 << 30);
        mounted.mounted = true;
        assert_eq!(change(&told, &of(vec![mounted])), Change::More);
        let mut snapshot = volume(1, 1 << 30);
        snapshot.snapshots.clear();
        assert_eq!(change(&told, &of(vec![snapshot])), Change::More);
        assert_eq!(change(&told, &of(vec![])), Change::More);
        let gone = Report {
            gone: vec![VolumeId::from_bytes([2; 10])],
            ..told.clone()
        };
        assert_eq!(change(&told, &gone), Change::More);
    }
}
