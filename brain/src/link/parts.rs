//! Puts observations together that came in several messages, so that they count as a whole or not at all. Pure.
//!
//! A node with more containers than fit one message says the rest in the next. Taken part by part, whatever is in none of
//! the parts so far would look gone, and its room would be given away while it runs (R4). What a broken link leaves
//! unfinished goes with its session; the next one begins with a full observation again.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, Generation, VolumeId, clip};
use berth_common::model::{MAX_SNAPSHOTS, MAX_VOLUMES, ObservedContainer, ObservedVolume};

/// An observation, or a part of one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Observation {
    pub(super) full: bool,
    /// The generation that the agent acts on.
    pub(super) generation: Generation,
    pub(super) containers: Vec<ObservedContainer>,
    pub(super) gone: Vec<ContainerId>,
}

/// What is there of an observation whose last part is still to come.
#[derive(Debug, Default)]
pub(super) struct Parts(Option<Unfinished>);

#[derive(Debug)]
struct Unfinished {
    full: bool,
    generation: Generation,
    containers: BTreeMap<ContainerId, ObservedContainer>,
    gone: BTreeSet<ContainerId>,
}

impl Parts {
    /// Takes a part; `more` follow or it was the last, which brings the whole. What concerns containers that are not
    /// the node's `own` is dropped at once (R7), which also bounds what a hostile agent can have kept here.
    pub(super) fn take(
        &mut self,
        part: Observation,
        more: bool,
        own: impl Fn(ContainerId) -> bool,
    ) -> Option<Observation> {
        if part.full || self.0.is_none() {
            // A full one takes the place of whatever was not finished.
            self.0 = None;
            if !more {
                return Some(part);
            }
        }
        let unfinished = self.0.get_or_insert_with(|| Unfinished {
            full: part.full,
            generation: part.generation,
            containers: BTreeMap::new(),
            gone: BTreeSet::new(),
        });
        // Never more than every part of it reflects.
        unfinished.generation = unfinished.generation.min(part.generation);
        unfinished
            .gone
            .extend(part.gone.into_iter().filter(|id| own(*id)));
        for seen in part.containers.into_iter().filter(|seen| own(seen.id)) {
            unfinished.containers.insert(seen.id, seen);
        }
        if more {
            return None;
        }
        self.0.take().map(|whole| Observation {
            full: whole.full,
            generation: whole.generation,
            containers: whole.containers.into_values().collect(),
            gone: whole.gone.into_iter().collect(),
        })
    }
}

/// What is there of an observation of volumes whose last part is still to come. A node has [`MAX_VOLUMES`] at most: of what is
/// beyond twice that nothing is kept.
#[derive(Debug, Default)]
pub(super) struct VolumeParts {
    volumes: Vec<ObservedVolume>,
    gone: Vec<VolumeId>,
}

impl VolumeParts {
    /// Takes a part; `more` follow, or it was the last, which brings the whole.
    pub(super) fn take(
        &mut self,
        volumes: Vec<ObservedVolume>,
        gone: Vec<VolumeId>,
        more: bool,
    ) -> Option<(Vec<ObservedVolume>, Vec<VolumeId>)> {
        let most = 2 * MAX_VOLUMES;
        let (left, left_gone) = (
            most.saturating_sub(self.volumes.len()),
            most.saturating_sub(self.gone.len()),
        );
        self.volumes.extend(volumes.into_iter().take(left).map(bounded));
        self.gone.extend(gone.into_iter().take(left_gone));
        (!more).then(|| (std::mem::take(&mut self.volumes), std::mem::take(&mut self.gone)))
    }
}

/// No more of what an agent says of a volume than an honest one would say.
fn bounded(mut seen: ObservedVolume) -> ObservedVolume {
    seen.snapshots.truncate(2 * MAX_SNAPSHOTS);
    seen.snapshots_gone.truncate(2 * MAX_SNAPSHOTS);
    seen.problem = seen.problem.map(|problem| clip(&problem, 1_000));
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u64) -> ContainerId {
        let mut raw = [5; 10];
        raw[2..].copy_from_slice(&n.to_be_bytes());
        ContainerId::from_bytes(raw)
    }

    /// What an agent sends for containers `0..count`, cut after every `size`.
    fn sent(full: bool, count: u64, size: usize) -> Vec<(Observation, bool)> {
        let all: Vec<_> = (0..count).map(|n| ObservedContainer::pending(id(n))).collect();
        let parts = all.len().div_ceil(size).max(1);
        (0..parts)
            .map(|at| {
                let part = Observation {
                    full: full && at == 0,
                    generation: Generation(7),
                    containers: all.iter().skip(at * size).take(size).cloned().collect(),
                    gone: if at == 0 { vec![id(9_999)] } else { vec![] },
                };
                (part, at + 1 < parts)
            })
            .collect()
    }

    proptest! {
        #[test]
        fn r4_any_cut_gives_the_whole_at_its_end_and_nothing_before(
            full in any::<bool>(), count in 0u64..400, size in 1usize..150, broken_after in 0usize..8,
        ) {
            let parts = sent(full, count, size);
            let mut link = Parts::default();
            // A link that breaks before the end has brought nothing.
            for (part, more) in parts.iter().take(broken_after.min(parts.len() - 1)) {
                prop_assert_eq!(link.take(part.clone(), *more, |_| true), None);
            }
            let mut link = Parts::default();
            let last = parts.len() - 1;
            for (at, (part, more)) in parts.into_iter().enumerate() {
                let got = link.take(part, more, |_| true);
                prop_assert_eq!(got.is_some(), at == last);
                if let Some(whole) = got {
                    prop_assert_eq!((whole.full, whole.generation), (full, Generation(7)));
                    prop_assert_eq!(whole.containers.len() as u64, count);
                    prop_assert!(whole.containers.iter().zip(0..).all(|(seen, n)| seen.id == id(n)));
                    prop_assert_eq!(whole.gone, vec![id(9_999)]);
                }
            }
            prop_assert!(link.0.is_none());
        }
    }

    #[test]
    fn a_new_full_one_takes_the_place_of_an_unfinished_one() {
        let mut parts = Parts::default();
        let mut old = sent(true, 4, 2);
        assert_eq!(parts.take(old.remove(0).0, true, |_| true), None);
        let new = sent(true, 1, 2).remove(0).0;
        assert_eq!(parts.take(new.clone(), false, |_| true), Some(new));
        assert!(parts.0.is_none());
    }

    #[test]
    fn r7_containers_of_others_are_not_kept_until_the_end() {
        let mut parts = Parts::default();
        for (part, more) in sent(true, 50, 10) {
            if let Some(whole) = parts.take(part, more, |one| one == id(3)) {
                assert_eq!(whole.containers, [ObservedContainer::pending(id(3))]);
                assert!(whole.gone.is_empty());
            } else {
                assert!(parts.0.as_ref().unwrap().containers.len() <= 1);
            }
        }
    }

    #[test]
    fn the_oldest_generation_of_the_parts_is_what_the_whole_reflects() {
        let mut parts = Parts::default();
        let mut sent = sent(true, 4, 2);
        sent[1].0.generation = Generation(9);
        let (second, first) = (sent.remove(1).0, sent.remove(0).0);
        assert_eq!(parts.take(first, true, |_| true), None);
        assert_eq!(
            parts.take(second, false, |_| true).unwrap().generation,
            Generation(7)
        );
    }
}
