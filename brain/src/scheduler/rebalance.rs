//! Rebalancing: which containers leave nodes that stay too hot, and where to.
//!
//! Owns the choice. Refuses to read clocks, to know how a container moves, and to remember more than what [`Memory`] holds: the caller
//! gives it back with the next round. A move is planned with its destination; the caller reserves that before anything stops.
//!
//! What is known to go wrong elsewhere is ruled out by construction: a node is hot by what was measured there over minutes, not by one
//! sample, and for some rounds running; a destination stays under `target`, which is less than `evict`, so no move makes another; only what
//! cools moves, so where load that is not ours is all there is, nothing does; and a container that moved rests.

use std::collections::{BTreeMap, BTreeSet};

use super::forecast::{Loads, RESOURCES, minus, plus};
use super::load::{self, Watermarks};

/// How much may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Rounds that a node has to be hot.
    pub rounds: u32,
    /// Moves of one round.
    pub a_round: usize,
    /// Moves away from one node at a time.
    pub a_node: usize,
    /// Seconds that a container rests after it moved.
    pub rest_secs: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            rounds: 3,
            a_round: 5,
            a_node: 2,
            rest_secs: 1800,
        }
    }
}

/// A container as rebalancing sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tenancy<C> {
    /// Which.
    pub container: C,
    /// What it uses, and will use elsewhere, too.
    pub load: Loads,
    /// It can move without harm.
    pub movable: bool,
}

/// A node as rebalancing sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Host<N, C> {
    /// Which.
    pub node: N,
    /// What it has: millicores, bytes.
    pub capacity: [f32; RESOURCES],
    /// What it is expected to use, with all that is on it and on its way there.
    pub load: Loads,
    /// What it uses by what was measured: whether it is hot is no matter of what is thought of its newest containers.
    pub measured: Loads,
    /// What is on it and not already leaving.
    pub containers: Vec<Tenancy<C>>,
    /// How many are leaving.
    pub leaving: usize,
}

/// What one round leaves for the next.
#[derive(Debug, Clone)]
pub struct Memory<N, C> {
    /// For how many rounds each node has been hot.
    hot: BTreeMap<N, u32>,
    /// Nodes that nothing can be done for.
    stuck: BTreeSet<N>,
    /// When what moved last moved, seconds.
    moved: BTreeMap<C, u32>,
}

impl<N, C> Default for Memory<N, C> {
    fn default() -> Self {
        Self {
            hot: BTreeMap::new(),
            stuck: BTreeSet::new(),
            moved: BTreeMap::new(),
        }
    }
}

/// A move, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shift<N, C> {
    /// Which container.
    pub container: C,
    /// From where.
    pub from: N,
    /// To where.
    pub to: N,
    /// The resource that is too hot there.
    pub resource: usize,
    /// The share of it that is expected to be used there.
    pub heat: f32,
    /// And what is left of that without the container.
    pub after: f32,
    /// And how full the destination will be.
    pub there: f32,
}

/// Where containers can be, by all but their load.
pub trait Room<N, C> {
    /// Whether a node takes a container, with what was taken before.
    fn fits(&mut self, to: N, container: C) -> bool;
    /// Takes its place there.
    fn take(&mut self, to: N, container: C);
}

/// What a round decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Round<N, C> {
    /// What moves.
    pub shifts: Vec<Shift<N, C>>,
    /// Nodes that are hot, and that nothing can be moved away from to help it; each is told once, until it has cooled.
    pub stuck: Vec<N>,
}

/// One round.
pub fn plan<N: Copy + Ord, C: Copy + Ord>(
    hosts: &mut [Host<N, C>],
    marks: Watermarks,
    budget: Budget,
    memory: &mut Memory<N, C>,
    now: u32,
    room: &mut dyn Room<N, C>,
) -> Round<N, C> {
    let heat_of = |host: &Host<N, C>| marks.heat(&host.measured, &host.capacity);
    memory.moved.retain(|_, at| now < *at + budget.rest_secs);
    let mut hot: Vec<usize> = Vec::new();
    for (at, host) in hosts.iter().enumerate() {
        if heat_of(host).1 > marks.evict {
            let rounds = memory.hot.entry(host.node).or_default();
            *rounds += 1;
            if *rounds >= budget.rounds {
                hot.push(at);
            }
        } else {
            memory.hot.remove(&host.node);
            memory.stuck.remove(&host.node);
        }
    }
    hot.sort_by(|a, b| heat_of(&hosts[*b]).1.total_cmp(&heat_of(&hosts[*a]).1));
    let (mut shifts, mut stuck) = (Vec::new(), Vec::new());
    for from in hot {
        while shifts.len() < budget.a_round && hosts[from].leaving < budget.a_node {
            let (resource, heat) = heat_of(&hosts[from]);
            if heat <= marks.evict {
                break;
            }
            let Some((nth, to)) = choose(hosts, from, resource, marks, memory, room) else {
                if hosts[from].leaving == 0 && memory.stuck.insert(hosts[from].node) {
                    stuck.push(hosts[from].node);
                }
                break;
            };
            let one = hosts[from].containers.remove(nth);
            room.take(hosts[to].node, one.container);
            for (host, sign) in [(from, minus as fn(Loads, Loads) -> Loads), (to, plus)] {
                hosts[host].load = sign(hosts[host].load, one.load);
                hosts[host].measured = sign(hosts[host].measured, one.load);
            }
            hosts[from].leaving += 1;
            memory.moved.insert(one.container, now);
            shifts.push(Shift {
                container: one.container,
                from: hosts[from].node,
                to: hosts[to].node,
                resource,
                heat,
                after: heat_of(&hosts[from]).1,
                there: heat_of(&hosts[to]).1,
            });
        }
    }
    Round { shifts, stuck }
}

/// The container that cures the excess alone and uses least more than that, else the one that takes most of it away; and the node
/// that would be least full with it.
fn choose<N: Copy + Ord, C: Copy + Ord>(
    hosts: &[Host<N, C>],
    from: usize,
    resource: usize,
    marks: Watermarks,
    memory: &Memory<N, C>,
    room: &mut dyn Room<N, C>,
) -> Option<(usize, usize)> {
    let source = &hosts[from];
    let excess = source.measured[resource].high(marks.typical) - marks.evict * source.capacity[resource];
    // What uses nearly nothing cools nothing.
    let least = source.capacity[resource] * 0.01;
    let mut order: Vec<usize> = (0..source.containers.len())
        .filter(|nth| {
            let one = &source.containers[*nth];
            one.movable && one.load[resource].mean >= least && !memory.moved.contains_key(&one.container)
        })
        .collect();
    order.sort_by(|a, b| {
        let (a, b) = (&source.containers[*a], &source.containers[*b]);
        let rank = |one: &Tenancy<C>| {
            let mean = one.load[resource].mean;
            // Those that suffice first, of these the smallest; of the others the largest.
            if mean >= excess { (0, mean) } else { (1, -mean) }
        };
        let (x, y) = (rank(a), rank(b));
        x.0.cmp(&y.0)
            .then(x.1.total_cmp(&y.1))
            .then(a.container.cmp(&b.container))
    });
    order.into_iter().find_map(|nth| {
        let one = &source.containers[nth];
        let mut best: Option<(f32, usize)> = None;
        for (to, host) in hosts.iter().enumerate() {
            if to == from || !marks.leaves_room(&plus(host.load, one.load), &host.capacity, marks.target) {
                continue;
            }
            let left = load::room(&host.load, &one.load, &host.capacity);
            if best.is_none_or(|(most, _)| left > most) && room.fits(host.node, one.container) {
                best = Some((left, to));
            }
        }
        best.map(|(_, to)| (nth, to))
    })
}
