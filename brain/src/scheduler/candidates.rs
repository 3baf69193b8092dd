//! Which nodes a search looks at: all of them where they are few, else as many as it takes to choose well.
//!
//! The best of a random sample of 20 is on average among the best twentieth of all, and looking at more changes little (Mitzenmacher, "The
//! power of two choices in randomized load balancing", 1996; Sparrow and Kubernetes' `percentageOfNodesToScore` live on it). A search goes
//! through the nodes in an order of its own, keeps those that stand the checks which placements don't change, and goes round these.
//! Nodes that lack room are no loss: it goes on until it has enough that have it, and if none has through all of them, so that a refusal
//! is as sure as if every node had been looked at.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use berth_common::id::NodeId;

use super::gate::Asked;
use super::score::Standing;
use super::{Refusal, Request, View, constraints, filter};

/// Nodes up to which all of them are looked at each time.
pub const ALL: usize = 512;
/// Of more, so many that fit are scored for each placement: of the most nodes the fewest, since one placement more or less weighs less there.
const SAMPLE: std::ops::RangeInclusive<usize> = 20..=64;
/// Nodes from which on it is the fewest, times these.
const SCORED: usize = 160_000;
/// Of these, so many at least have nothing against them: no replica of the service, no more even place elsewhere.
pub const GOOD: usize = 4;
/// So many are looked at in search of these and those; then one that fits is enough.
pub const FAR: usize = 512;
/// How many nodes that stand the checks a search adds for each placement, so that many replicas are not crowded on the few that it knows.
const MORE: usize = 6;
/// A label that one node in so many has is no rare one.
const COMMON: usize = 4;
/// Nodes looked at in any case, of those near which a service is to be.
const NEAR: usize = 32;

/// A node that stands the checks which placements don't change.
#[derive(Debug)]
pub struct Candidate {
    pub seat: usize,
    pub replicas: u32,
    pub image: bool,
    /// The parts of its score that placements don't change.
    pub standing: Standing,
}

/// A way through all nodes that passes each once: one after the other, or in an order that has nothing to do with theirs.
#[derive(Debug, Clone)]
struct Walk {
    all: u64,
    /// The nodes that are gone through; none: all.
    among: Option<Rc<[usize]>>,
    seed: Option<u64>,
    /// Numbers below the power of two at or above `all` are gone through; those that are no node are left out.
    bits: u32,
    next: u64,
}

impl Walk {
    const fn new(all: usize, seed: Option<u64>) -> Self {
        let all = all as u64;
        Self {
            all,
            among: None,
            seed,
            bits: all.next_power_of_two().trailing_zeros(),
            next: 0,
        }
    }

    /// Through these nodes alone.
    fn among(nodes: Rc<[usize]>, seed: Option<u64>) -> Self {
        let mut walk = Self::new(nodes.len(), seed);
        walk.among = Some(nodes);
        walk
    }

    /// The node of a number.
    fn seat(&self, at: u64) -> usize {
        let at = at as usize;
        self.among.as_ref().map_or(at, |nodes| nodes[at])
    }

    /// Another number for each of `bits` bits: additions, products with odd numbers and shifts to the right can all be undone.
    const fn scatter(&self, n: u64, seed: u64) -> u64 {
        let (mask, half) = ((1 << self.bits) - 1, self.bits.div_ceil(2));
        let mut n = n.wrapping_add(seed) & mask;
        n ^= n >> half;
        n = n.wrapping_mul((seed >> 20) | 1) & mask;
        n ^= n >> half;
        n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) & mask;
        n ^ (n >> half)
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let Some(seed) = self.seed else {
            let at = self.next;
            self.next += u64::from(at < self.all);
            return (at < self.all).then(|| self.seat(at));
        };
        while self.next < 1 << self.bits {
            let at = self.scatter(self.next, seed);
            self.next += 1;
            if at < self.all {
                return Some(self.seat(at));
            }
        }
        None
    }
}

/// Candidates found so far, and the way to the rest.
#[derive(Debug)]
pub struct Candidates {
    asked: Asked,
    /// All nodes are looked at each time.
    all: bool,
    pub found: Vec<Candidate>,
    /// How many at the beginning of `found` are looked at each time.
    near: usize,
    /// There are no others near which it is to be.
    all_near: bool,
    /// These and others that were found before the walk came to them.
    known: BTreeSet<usize>,
    walk: Walk,
    /// What stands against those that don't stand the checks, once somebody asks.
    standing: OnceCell<Refusal>,
    /// Where the next round begins.
    turn: usize,
    placed: usize,
}

impl Candidates {
    /// Of the nodes of `view`; `asked`: what the request asks of a first look, `all`: look at all of them, however many there are.
    pub fn new(view: &View<'_>, request: &Request<'_>, asked: Asked, all: bool) -> Self {
        // A policy was asked about every node, and may like a few of them only.
        let all = all || view.seats.len() <= ALL || request.constraints.verdict.is_some();
        let seed = (!all).then_some(request.seed);
        let mut made = Self {
            asked,
            all,
            found: Vec::new(),
            near: 0,
            all_near: false,
            known: BTreeSet::new(),
            walk: match rare(view, request).filter(|_| !all) {
                Some(nodes) => Walk::among(nodes, seed),
                None => Walk::new(view.seats.len(), seed),
            },
            standing: OnceCell::new(),
            turn: 0,
            placed: 0,
        };
        if all {
            made.discover(view, request, usize::MAX);
            return made;
        }
        let companions = request.constraints.companions.iter();
        let nodes = companions
            .filter(|one| one.by.is_none())
            .flat_map(|one| &one.nodes);
        for node in nodes.take(NEAR) {
            made.index_of(view, request, *node);
        }
        made.near = made.found.len();
        let companions = &request.constraints.companions;
        let nodes: usize = companions.iter().map(|one| one.nodes.len()).sum();
        made.all_near = nodes <= NEAR && companions.iter().all(|one| one.by.is_none());
        made
    }

    /// Whether those near which it is to be are looked at before all others, so that no other can be nearer than these.
    pub const fn nearest_first(&self) -> bool {
        self.all_near
    }

    /// Whether all nodes are looked at each time.
    pub const fn all_at_once(&self) -> bool {
        self.all
    }

    /// How many that fit are enough to choose from.
    pub fn enough(&self) -> usize {
        (SCORED / self.walk.all.max(1) as usize).clamp(*SAMPLE.start(), *SAMPLE.end())
    }

    /// How many there should be for the next placement.
    pub fn wanted(&self) -> usize {
        2 * self.enough() + MORE * self.placed
    }

    /// One more was placed.
    pub fn count(&mut self) {
        self.placed += 1;
    }

    /// The order in which those found are looked at: those near which it is to be, then the others from where the last round ended.
    pub fn round(&self) -> impl Iterator<Item = usize> + use<> {
        let (near, all) = (self.near, self.found.len());
        let first = near + self.turn;
        (0..near).chain(first..all).chain(near..first.min(all))
    }

    /// The next round begins so much further on.
    pub fn turn_by(&mut self, looked: usize) {
        let others = self.found.len() - self.near;
        if !self.all_at_once() && others > 0 {
            self.turn = (self.turn + looked.saturating_sub(self.near)) % others;
        }
    }

    /// Finds more until there are so many. False if there are no more to be found.
    pub fn discover(&mut self, view: &View<'_>, request: &Request<'_>, until: usize) -> bool {
        while self.found.len() < until {
            let Some(seat) = self.walk.next() else {
                return false;
            };
            if stands(view, request, &self.asked, seat) && !self.known.contains(&seat) {
                self.found.push(candidate(view, request, seat));
            }
        }
        true
    }

    /// The place of a node among those found, if it stands the checks.
    pub fn index_of(&mut self, view: &View<'_>, request: &Request<'_>, node: NodeId) -> Option<usize> {
        let seat = view.find(node)?;
        if let Some(index) = self.found.iter().position(|one| one.seat == seat) {
            return Some(index);
        }
        if !stands(view, request, &self.asked, seat) || !self.known.insert(seat) {
            return None;
        }
        self.found.push(candidate(view, request, seat));
        Some(self.found.len() - 1)
    }

    /// All that stand the checks, found or not.
    pub fn all(&self, view: &View<'_>, request: &Request<'_>) -> impl Iterator<Item = usize> {
        let rest = self.walk.clone().filter(|seat| !self.known.contains(seat));
        let rest = rest.filter(|seat| stands(view, request, &self.asked, *seat));
        self.found.iter().map(|one| one.seat).chain(rest)
    }

    /// What stands against those that do not.
    pub fn refusal(&self, view: &View<'_>, request: &Request<'_>) -> Refusal {
        let tell = || {
            let mut refusal = Refusal::of(request.reservation);
            for seat in 0..view.seats.len() {
                if let Some(obstacle) = obstacle(view, request, seat) {
                    refusal.add(obstacle, view.seats[seat].node.name.as_str());
                }
            }
            refusal
        };
        self.standing.get_or_init(tell).clone()
    }
}

/// The nodes that have the rarest of the labels that are asked for, if it is rare enough that looking for them among all would cost more.
fn rare(view: &View<'_>, request: &Request<'_>) -> Option<Rc<[usize]>> {
    if let Some(node) = request.constraints.volumes.node() {
        return Some(view.find(node).into_iter().collect());
    }
    let most = view.seats.len() / COMMON;
    let labels = request.node_labels.iter();
    let lists = labels.filter_map(|(key, value)| view.labelled(key, value, most));
    lists.min_by_key(|nodes| nodes.len())
}

/// What stands against a node whatever is placed in the same plan.
pub fn obstacle(view: &View<'_>, request: &Request<'_>, seat: usize) -> Option<filter::Obstacle> {
    let seat = &view.seats[seat];
    filter::STANDING.iter().find_map(|check| check(seat, request))
}

/// Whether nothing does; `asked`: what the request asks of a first look.
pub fn stands(view: &View<'_>, request: &Request<'_>, asked: &Asked, seat: usize) -> bool {
    view.seats.gate(seat).is_none_or(|gate| asked.admits(gate)) && obstacle(view, request, seat).is_none()
}

/// A node as candidate.
pub fn candidate(view: &View<'_>, request: &Request<'_>, at: usize) -> Candidate {
    let seat = &view.seats[at];
    Candidate {
        seat: at,
        replicas: request.replicas.get(&seat.node.id).copied().unwrap_or(0),
        image: request.image_on.contains(&seat.node.id),
        standing: constraints::standing_parts(seat, request),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_passes_every_node_once() {
        for all in [0, 1, 2, 512, 513, 600, 1_000, 10_007] {
            for seed in [
                None,
                Some(0),
                Some(1),
                Some(7 << 20),
                Some(u64::MAX),
                Some(0x9e37_79b9_7f4a_7c15),
            ] {
                let mut passed: Vec<_> = Walk::new(all, seed).collect();
                passed.sort_unstable();
                assert_eq!(passed, (0..all).collect::<Vec<_>>(), "{all} {seed:?}");
            }
        }
    }
}
