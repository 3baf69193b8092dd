//! What plans decide, counted by kind for the metrics. A plan hands the counts out with its changes; they become the cluster's when those
//! are committed.

use std::collections::BTreeMap;

use crate::scheduler::Refusal;
use crate::scheduler::preempt::Rank;

/// A decision that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Decision {
    /// A container got a node.
    Placed,
    /// A search found no node.
    Refused,
    /// One of the things that stood against nodes in such a search, [`Refusal::kinds`].
    Obstacle(&'static str),
    /// A container is to run elsewhere.
    Moved(Reason),
    /// A container was stopped for another.
    Preempted(Whom),
    /// A successor took over.
    Replaced,
}

/// Why a container is to run elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Its node was lost.
    NodeLost,
    /// Its node is drained.
    Drain,
    /// Its node has a taint that it does not tolerate.
    Taint,
    /// Its node is hot.
    Load,
    /// One of its volumes moves.
    Volume,
}

/// Who was stopped for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Whom {
    /// One of lower priority.
    LowerPriority,
    /// A best-effort one.
    BestEffort,
}

impl Whom {
    /// One of this rank.
    pub const fn of(rank: Rank) -> Self {
        match rank.standard {
            true => Self::LowerPriority,
            false => Self::BestEffort,
        }
    }
}

/// How often each was decided.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<Decision, u64>);

impl Tally {
    /// Counts one more.
    pub fn add(&mut self, decision: Decision) {
        *self.0.entry(decision).or_default() += 1;
    }

    /// Counts a search that found no node, and each kind of obstacle that it met once, whatever the number of nodes.
    pub fn refused(&mut self, refusal: &Refusal) {
        self.add(Decision::Refused);
        for kind in refusal.kinds() {
            self.add(Decision::Obstacle(kind));
        }
    }

    /// Counts what another did.
    pub fn merge(&mut self, other: &Self) {
        for (decision, count) in &other.0 {
            *self.0.entry(*decision).or_default() += count;
        }
    }

    /// What was decided, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (Decision, u64)> {
        self.0.iter().map(|(decision, count)| (*decision, *count))
    }
}
