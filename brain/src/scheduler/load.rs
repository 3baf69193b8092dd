//! Load in placement: which nodes are too warm to take a container, and which of the others it troubles least.
//!
//! Owns the watermarks and what follows from them. Memory over its mark is always an obstacle, since it can't be compressed. CPU over its
//! mark is one on nodes whose reservations may exceed what they have: there it is only load that tells how much is left. Elsewhere every
//! reservation is kept whatever the neighbours use, so a warm node is only the last choice.

use super::filter::Obstacle;
use super::forecast::{CPU, Loads, MEMORY, RESOURCES, minus, plus};

/// Shares of what a node has, in order: nothing is placed over `schedule`, nothing moves to where it would be over `target`, and what
/// stays over `evict` gives away.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Watermarks {
    /// Of CPU, for placements.
    pub schedule: f32,
    /// Of CPU, for destinations of moves.
    pub target: f32,
    /// For nodes to be hot, and what a hot one is brought back to.
    pub evict: f32,
    /// Of memory, for placements and destinations of moves.
    pub memory: f32,
    /// Standard deviations over the mean that placements and destinations leave room for.
    pub deviations: f32,
    /// Standard deviations over the mean by which nodes are hot.
    pub typical: f32,
}

impl Default for Watermarks {
    fn default() -> Self {
        Self {
            schedule: 0.85,
            target: 0.88,
            evict: 0.90,
            memory: 0.95,
            deviations: 3.0,
            typical: 1.0,
        }
    }
}

impl Watermarks {
    /// Whether a node of `capacity` has room for a load and its spread, CPU being held under `share`.
    pub fn leaves_room(&self, load: &Loads, capacity: &[f32; RESOURCES], share: f32) -> bool {
        self.cpu(load, capacity) <= share && self.memory(load, capacity) <= self.memory
    }

    /// The shares of CPU and of memory that are used at most, but for a chance of about one in a thousand.
    pub fn shares(&self, load: &Loads, capacity: &[f32; RESOURCES]) -> (f32, f32) {
        (self.cpu(load, capacity), self.memory(load, capacity))
    }

    /// The share of CPU that is used at most, but for a chance of about one in a thousand.
    fn cpu(&self, load: &Loads, capacity: &[f32; RESOURCES]) -> f32 {
        load[CPU].high(self.deviations) / capacity[CPU].max(1.0)
    }

    fn memory(&self, load: &Loads, capacity: &[f32; RESOURCES]) -> f32 {
        load[MEMORY].high(self.deviations) / capacity[MEMORY].max(1.0)
    }

    /// How hot a node is: its hottest resource, and the share of it that is typically in use.
    pub fn heat(&self, load: &Loads, capacity: &[f32; RESOURCES]) -> (usize, f32) {
        (0..RESOURCES)
            .map(|of| (of, load[of].high(self.typical) / capacity[of].max(1.0)))
            .fold((CPU, 0.0), |most, next| if next.1 > most.1 { next } else { most })
    }
}

/// Least spread that is reckoned with, as a share of what a node has: less is known of nobody's future.
const LEAST_SPREAD: f32 = 0.06;
/// Standard deviations of room that are as good as any more.
const EASY: f32 = 8.0;
/// Points of a score for a standard deviation of room.
const POINTS: f32 = 8_000.0;
/// Taken from the score of a node that is over a mark and may be taken all the same: it is the last choice.
const OVER: i64 = 100_000;

/// Points of a node of which nothing was heard yet: not idle, and not warm either. One that is known to be idle comes first, and a
/// service's next replica goes there rather than beside the first.
const UNHEARD: i64 = 41_000;

/// What is known of a node's load.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Known {
    /// Nobody watches it: placement is by reservations alone.
    #[default]
    Unwatched,
    /// Its agent has said nothing of late, which does not mean that nothing is used.
    Silent,
    /// It is expected to use so much.
    Expected(Loads),
}

impl Known {
    /// Once what uses `gone` of it has gone.
    #[must_use]
    pub fn without(self, gone: &Loads) -> Self {
        match self {
            Self::Expected(held) => Self::Expected(minus(held, *gone)),
            other => other,
        }
    }

    /// Adds what was placed there.
    pub fn add(&mut self, load: &Loads) {
        if let Self::Expected(held) = self {
            *held = plus(*held, *load);
        }
    }
}

/// How far from overload a node would stay with `more`, in its own standard deviations: of its scarcest resource.
pub fn room(load: &Loads, more: &Loads, capacity: &[f32; RESOURCES]) -> f32 {
    (0..RESOURCES)
        .filter(|of| capacity[*of].is_finite())
        .map(|of| {
            let after = load[of].plus(more[of]);
            let spread = after
                .variance
                .max(0.0)
                .sqrt()
                .max(LEAST_SPREAD * capacity[of])
                .max(1.0);
            (capacity[of] - after.mean) / spread
        })
        .fold(EASY, f32::min)
}

/// What stands against a node of `capacity` taking `more`. `overcommitted`: its CPU reservations may exceed what it has.
pub fn obstacle(
    known: &Known,
    more: &Loads,
    capacity: &[f32; RESOURCES],
    overcommitted: bool,
    marks: &Watermarks,
) -> Option<Obstacle> {
    let load = match known {
        Known::Unwatched => return None,
        Known::Silent => return Some(Obstacle::Silent),
        Known::Expected(load) => plus(*load, *more),
    };
    let percent = |share: f32| (share * 100.0) as u32;
    let (cpu, memory) = (marks.cpu(&load, capacity), marks.memory(&load, capacity));
    if memory > marks.memory {
        return Some(Obstacle::WarmMemory(percent(memory)));
    }
    (overcommitted && cpu > marks.schedule).then(|| Obstacle::WarmCpu(percent(cpu)))
}

/// What a node's load adds to its score.
pub fn points(known: &Known, more: &Loads, capacity: &[f32; RESOURCES], marks: &Watermarks) -> i64 {
    let Known::Expected(load) = known else {
        return UNHEARD;
    };
    let over = match marks.leaves_room(&plus(*load, *more), capacity, marks.schedule) {
        true => 0,
        false => OVER,
    };
    (room(load, more, capacity).max(-EASY) * POINTS) as i64 - over
}
