//! Values over the last minute: last, mean, percentiles, maximum. Pure and bounded.

use std::collections::VecDeque;

/// Values older than this leave, milliseconds.
pub const SPAN_MS: u64 = 60_000;
/// No more values than this are kept, however fast they come.
pub const CAPACITY: usize = 60;

/// What a window holds, in the values' unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The newest.
    pub last: u64,
    /// Arithmetic mean, rounded down.
    pub mean: u64,
    /// Median (nearest rank).
    pub p50: u64,
    /// 95th percentile (nearest rank).
    pub p95: u64,
    /// Largest.
    pub max: u64,
}

/// A bounded window, kept sorted as values come and go, so that a summary costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Window {
    entries: VecDeque<(u64, u64)>,
    sorted: Vec<u64>,
    sum: u128,
}

impl Window {
    /// Adds what was read at `at_ms` (monotonic); a failed reading adds nothing, but old values still leave.
    pub fn push(&mut self, at_ms: u64, value: Option<u64>) {
        let oldest = at_ms.saturating_sub(SPAN_MS);
        while self.entries.front().is_some_and(|(at, _)| *at < oldest) {
            self.drop_oldest();
        }
        let Some(value) = value else { return };
        if self.entries.len() == CAPACITY {
            self.drop_oldest();
        }
        self.entries.push_back((at_ms, value));
        let place = self.sorted.partition_point(|held| *held < value);
        self.sorted.insert(place, value);
        self.sum += u128::from(value);
    }

    fn drop_oldest(&mut self) {
        if let Some((_, value)) = self.entries.pop_front() {
            let place = self.sorted.partition_point(|held| *held < value);
            self.sorted.remove(place);
            self.sum -= u128::from(value);
        }
    }

    /// How many values there are, at most [`CAPACITY`].
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of it; `None` without values.
    pub fn summary(&self) -> Option<Summary> {
        let (_, last) = *self.entries.back()?;
        let count = self.sorted.len();
        let rank = |percent: usize| self.sorted[(count * percent).div_ceil(100).clamp(1, count) - 1];
        Some(Summary {
            last,
            mean: u64::try_from(self.sum / count as u128).unwrap_or(u64::MAX),
            p50: rank(50),
            p95: rank(95),
            max: self.sorted[count - 1],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        let mut window = Window::default();
        assert_eq!(window.summary(), None);
        for (at, value) in (1..=100).enumerate() {
            window.push(at as u64 * 100, Some(value));
        }
        let want = Summary {
            last: 100,
            mean: 70,
            p50: 70,
            p95: 97,
            max: 100,
        };
        assert_eq!(window.summary(), Some(want));
        window.push(9_900 + SPAN_MS + 1, None);
        assert_eq!(
            window.summary(),
            None,
            "values of failed readings must not live on"
        );
    }

    proptest! {
        #[test]
        fn bounded_ordered_and_the_same_as_sorting_anew(steps in proptest::collection::vec((0u64..5_000, proptest::option::of(0u64..1_000_000)), 0..300)) {
            let mut window = Window::default();
            let mut all: Vec<(u64, u64)> = Vec::new();
            let mut at = 0;
            for (pause, value) in steps {
                at += pause;
                window.push(at, value);
                all.extend(value.map(|value| (at, value)));
                prop_assert!(window.len() <= CAPACITY);
                let recent: Vec<_> = all.iter().filter(|(then, _)| *then + SPAN_MS >= at).collect();
                let mut values: Vec<u64> = recent[recent.len().saturating_sub(CAPACITY)..].iter().map(|(_, v)| *v).collect();
                let Some(summary) = window.summary() else {
                    prop_assert!(values.is_empty());
                    continue;
                };
                prop_assert_eq!(summary.last, *values.last().unwrap());
                prop_assert_eq!(summary.mean, values.iter().sum::<u64>() / values.len() as u64);
                values.sort_unstable();
                prop_assert!(values[0] <= summary.p50 && summary.p50 <= summary.p95 && summary.p95 <= summary.max);
                prop_assert!(values[0] <= summary.mean && summary.mean <= summary.max);
                prop_assert_eq!(summary.max, *values.last().unwrap());
                prop_assert_eq!(summary.p95, values[(values.len() * 95).div_ceil(100) - 1]);
            }
        }
    }
}
