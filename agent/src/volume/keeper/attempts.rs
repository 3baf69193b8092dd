//! Steps that were tried and are still to be done: when again, and why they are not. Pure: time is an input.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_common::id::VolumeId;
use tokio::time::Instant;

use super::plan::Step;
use crate::reconcile::apply::chain;
use crate::volume::VolumeError;

/// Pause after a first failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause, and the one of what only people can mend.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// So many doublings are more than the longest pause.
const DOUBLINGS: u32 = 6;

#[derive(Debug)]
struct Attempt {
    step: Step,
    times: u32,
    not_before: Instant,
    why: String,
}

/// Each volume's attempts.
#[derive(Debug, Default)]
pub(super) struct Attempts(BTreeMap<VolumeId, Vec<Attempt>>);

impl Attempts {
    /// A step was tried. Also one that succeeded is noted: if it is planned all the same, it did not do what it should.
    pub fn note(&mut self, step: Step, failure: Option<&VolumeError>, now: Instant) {
        let of_volume = self.0.entry(step.volume()).or_default();
        let times = match of_volume.iter().position(|one| one.step == step) {
            Some(at) => of_volume.swap_remove(at).times,
            None => 0,
        };
        let pause = match failure {
            Some(error) if !error.retryable() => LONGEST_PAUSE,
            _ => (FIRST_PAUSE * (1 << times.min(DOUBLINGS))).min(LONGEST_PAUSE),
        };
        of_volume.push(Attempt {
            step,
            times: times.saturating_add(1),
            not_before: now + pause,
            why: match failure {
                None => "what was done for it had no effect; it is tried again".to_owned(),
                Some(error) => chain(error),
            },
        });
    }

    /// Forgets what is no longer to be done.
    pub fn keep(&mut self, planned: &[Step]) {
        let mut still: BTreeMap<VolumeId, Vec<&Step>> = BTreeMap::new();
        for step in planned {
            still.entry(step.volume()).or_default().push(step);
        }
        self.0.retain(|id, attempts| {
            let still = still.get(id).map_or(&[][..], Vec::as_slice);
            attempts.retain(|one| still.contains(&&one.step));
            !attempts.is_empty()
        });
    }

    fn of(&self, step: &Step) -> Option<&Attempt> {
        self.0.get(&step.volume())?.iter().find(|one| one.step == *step)
    }

    /// Whether a step has to wait.
    pub fn waits(&self, step: &Step, now: Instant) -> bool {
        self.of(step).is_some_and(|one| one.not_before > now)
    }

    /// When the next one is due that is not yet.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let times = self.0.values().flatten().map(|one| one.not_before);
        times.filter(|at| *at > now).min()
    }

    /// What is wrong with each volume.
    pub fn problems(&self) -> impl Iterator<Item = (VolumeId, &str)> {
        let volumes = self.0.iter();
        volumes.filter_map(|(id, attempts)| Some((*id, attempts.first()?.why.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_minute_and_end_with_the_step() {
        let now = Instant::now();
        let step = Step::Delete(VolumeId::from_bytes([1; 10]));
        let mut attempts = Attempts::default();
        let busy = VolumeError::Interrupted;
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            attempts.note(step.clone(), Some(&busy), now);
            let pause = Duration::from_secs(seconds);
            assert_eq!(attempts.due(now), Some(now + pause));
            assert!(attempts.waits(&step, now + pause - Duration::from_millis(1)));
            assert!(!attempts.waits(&step, now + pause));
            assert_eq!(attempts.due(now + pause), None, "it is being tried");
        }
        attempts.keep(std::slice::from_ref(&step));
        assert_eq!(attempts.problems().count(), 1);
        attempts.keep(&[]);
        assert_eq!((attempts.problems().count(), attempts.due(now)), (0, None));

        let hopeless = VolumeError::OnlyCopy(step.volume());
        attempts.note(step.clone(), Some(&hopeless), now);
        assert_eq!(attempts.due(now), Some(now + LONGEST_PAUSE));
        attempts.keep(&[]);
        attempts.note(step.clone(), None, now);
        let told: Vec<_> = attempts.problems().collect();
        assert!(told[0].1.contains("no effect"), "{told:?}");
        let other = Step::Delete(VolumeId::from_bytes([2; 10]));
        assert!(!attempts.waits(&other, now), "another volume does not wait");
    }
}
