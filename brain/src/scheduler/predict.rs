//! Prediction: what a container or a node's foreign load will use of a resource in the next minutes, from what it used.
//!
//! Owns the history of one resource of one consumer, about half a day of it in [`History`]'s fixed size. Refuses to know of nodes,
//! tenants or time of day: the caller adds up, and says how many seconds have gone by.
//!
//! Load is told as a mean and a variance, so that many small bursts on one node are what they are: a sum of independent
//! quantities has the sum of their variances, and its spread grows with the root only. A sum of percentiles would overstate it by far.
//!
//! What lasts is told from what passes by three windows of different length, of which the middle one counts: a burst of a minute moves one
//! of them, and is over before it moves another; a change that stays moves two of them after some minutes.
//!
//! Only +, −, ×, ÷ and square roots, which IEEE 754 rounds alike everywhere: equal inputs give equal answers on every machine.

use serde::{Deserialize, Serialize};

/// Seconds over which the shortest window forgets (to 1/e).
const FAST_SECS: f32 = 60.0;
/// And the middle one.
const MIDDLE_SECS: f32 = 600.0;
/// Seconds of a half: the long window is one half and what there is of the next.
const HALF_SECS: u32 = 6 * 3600;
/// Seconds that what was learned of others is worth, against what was seen of this one.
const PRIOR_SECS: f32 = 600.0;
/// The middle window follows a burst somewhat, so samples are less off it than off the mean; by so much less in traces of real load.
const WANDER: f32 = 1.5;
/// Of how many of a group what was learned is remembered once they are not known any more.
const REMEMBERED: f32 = 20.0;
/// By how much of itself what was learned must change to be called another, and by how much of the limit.
const ANOTHER: (f32, f32) = (0.1, 0.01);
/// How many of a group what is thought without it is worth.
const PRIOR_COUNT: f32 = 3.0;
/// Longest time that one sample stands for, seconds: after a silence it says nothing of what was before.
const LONGEST_GAP: u32 = 60;

/// A load to come: of a container, of what is foreign, or of a whole node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Expected.
    pub mean: f32,
    /// Variance of what it will be at a moment.
    pub variance: f32,
}

impl Load {
    /// A load that does not vary.
    pub const fn steady(mean: f32) -> Self {
        Self { mean, variance: 0.0 }
    }

    /// This one and another.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            mean: self.mean + other.mean,
            variance: self.variance + other.variance,
        }
    }

    /// This one without another that is part of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            mean: (self.mean - other.mean).max(0.0),
            variance: (self.variance - other.variance).max(0.0),
        }
    }

    /// The load that is exceeded seldom: so many standard deviations over the mean.
    pub fn high(self, deviations: f32) -> f32 {
        self.mean + deviations * self.variance.max(0.0).sqrt()
    }
}

/// Mean and spread of samples, by the time that each stands for (West 1979).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Moments {
    secs: f32,
    mean: f32,
    squares: f32,
    /// Squares of what samples were off the middle window by.
    wander: f32,
    most: f32,
}

impl Moments {
    fn add(&mut self, value: f32, middle: f32, secs: f32) {
        self.secs += secs;
        self.wander += secs * (value - middle) * (value - middle);
        self.most = self.most.max(value);
        let off = value - self.mean;
        self.mean += off * secs / self.secs;
        self.squares += secs * off * (value - self.mean);
    }

    fn with(self, other: Self) -> Self {
        let secs = self.secs + other.secs;
        if secs <= 0.0 {
            return self;
        }
        let off = other.mean - self.mean;
        Self {
            secs,
            mean: self.mean + off * other.secs / secs,
            squares: self.squares + other.squares + off * off * self.secs * other.secs / secs,
            wander: self.wander + other.wander,
            most: self.most.max(other.most),
        }
    }

    /// Around the mean, or around what the middle window said each time, if that is less: one that went to another level and stayed there
    /// does not vary by the way between.
    fn variance(self) -> f32 {
        if self.secs > 0.0 {
            self.squares.min(self.wander * WANDER).max(0.0) / self.secs
        } else {
            0.0
        }
    }
}

/// What one consumer used of one resource.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    last: Option<u32>,
    began: u32,
    fast: f32,
    middle: f32,
    older: Moments,
    newer: Moments,
}

impl History {
    /// Takes a sample of time `at`, seconds of any steady clock. One that is no newer than the last is ignored.
    pub fn record(&mut self, at: u32, value: f32) {
        let value = if value.is_finite() { value.max(0.0) } else { return };
        let Some(last) = self.last else {
            *self = Self {
                last: Some(at),
                began: at,
                fast: value,
                middle: value,
                ..Self::default()
            };
            self.newer.add(value, value, 1.0);
            return;
        };
        if at <= last {
            return;
        }
        self.last = Some(at);
        let secs = (at - last).min(LONGEST_GAP) as f32;
        // As good as 1 - e^(-t/T) for t much smaller than T, and never more than all.
        self.fast += (value - self.fast) * secs / (secs + FAST_SECS);
        // Until it has seen as much, the middle window is the plain mean.
        let (seen, middle) = (self.seen_secs(), self.middle);
        self.middle += (value - self.middle) * secs / (secs + seen.min(MIDDLE_SECS));
        if at - self.began >= HALF_SECS {
            self.older = std::mem::take(&mut self.newer);
            self.began = at;
        }
        self.newer.add(value, middle, secs);
    }

    /// Seconds that were seen of it, in the long window.
    pub fn seen_secs(&self) -> f32 {
        self.older.secs + self.newer.secs
    }

    /// The most that it used at a time, in the long window.
    pub fn most(&self) -> f32 {
        self.older.most.max(self.newer.most)
    }

    /// What it is expected to use, by its own samples alone.
    pub fn own(&self) -> Load {
        let long = self.older.with(self.newer);
        let (fast, middle) = (self.fast, self.middle);
        let mean = fast.max(middle).min(fast.min(middle).max(long.mean));
        Load {
            mean,
            variance: long.variance(),
        }
    }

    /// What it is expected to use, `prior` being what is to be thought of one that nothing is known of.
    pub fn expect(&self, prior: Prior) -> Load {
        if self.last.is_none() {
            return Load {
                mean: prior.mean,
                variance: prior.between + prior.within,
            };
        }
        let own = self.own();
        let trust = self.seen_secs() / (self.seen_secs() + PRIOR_SECS);
        Load {
            mean: prior.mean + (own.mean - prior.mean) * trust,
            variance: prior.within + (own.variance - prior.within) * trust + prior.between * (1.0 - trust),
        }
    }
}

/// What is to be thought of a consumer before it is known, in its resource's unit.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Prior {
    /// What such ones use.
    pub mean: f32,
    /// By how much their means differ from one another: variance.
    pub between: f32,
    /// By how much one varies over time: variance.
    pub within: f32,
}

impl Prior {
    /// The same of consumers that are `factor` times as large.
    #[must_use]
    pub fn times(self, factor: f32) -> Self {
        Self {
            mean: self.mean * factor,
            between: self.between * factor * factor,
            within: self.within * factor * factor,
        }
    }
}

/// What is learned of a group of consumers: sums over them, each by the share of its limit that it uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Learned {
    count: f32,
    sum: f32,
    squares: f32,
    within: f32,
}

impl Learned {
    /// Counts one in, that uses `load` of `limit`.
    pub fn add(&mut self, load: Load, limit: f32) {
        if limit <= 0.0 {
            return;
        }
        let share = load.mean / limit;
        self.count += 1.0;
        self.sum += share;
        self.squares += share * share;
        self.within += load.variance / (limit * limit);
    }

    /// This one and another.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            count: self.count + other.count,
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            within: self.within + other.within,
        }
    }

    /// With as many of those that were known `before` as are not known now: none of a group that is as large as it was, all of one of
    /// which everything ended or has just begun. Of one that is smaller for good it is less each time.
    #[must_use]
    pub fn filled(self, before: Self) -> Self {
        let missing = before.count.min(REMEMBERED) - self.count;
        if missing <= 0.0 {
            return self;
        }
        let factor = missing / before.count;
        self.plus(Self {
            count: before.count * factor,
            sum: before.sum * factor,
            squares: before.squares * factor,
            within: before.within * factor,
        })
    }

    /// Whether it says something else of one more of the group than `other` does, by more than what comes and goes.
    pub fn differs(&self, other: &Self) -> bool {
        let (relative, absolute) = ANOTHER;
        let off = |one: f32, other: f32| (one - other).abs() > (one.max(other) * relative).max(absolute);
        let spread = |prior: Prior| (prior.between + prior.within).sqrt();
        let (one, other) = (self.prior(Prior::default()), other.prior(Prior::default()));
        off(one.mean, other.mean) || off(spread(one), spread(other))
    }

    /// All its sums are numbers.
    pub fn is_finite(&self) -> bool {
        [self.count, self.sum, self.squares, self.within]
            .iter()
            .all(|sum| sum.is_finite())
    }

    /// What is to be thought of one more of them: `before` is worth [`PRIOR_COUNT`] of them.
    pub fn prior(&self, before: Prior) -> Prior {
        let count = self.count + PRIOR_COUNT;
        let mean = (self.sum + PRIOR_COUNT * before.mean) / count;
        let squares = (self.squares + PRIOR_COUNT * (before.mean * before.mean + before.between)) / count;
        Prior {
            mean,
            between: (squares - mean * mean).max(0.0),
            within: (self.within + PRIOR_COUNT * before.within) / count,
        }
    }
}
