//! Respreading: once a node joins or returns, what had to be placed worse for want of it may be placed as was asked. Replicas that share a
//! node come apart, spreads become even again, services come near those that they are to be with.
//!
//! Owns when that is looked at and what moves; how a container moves is the services' controller's, which starts the successor first. Refuses
//! to move anything for the sake of room or load, or at any other time: only what its service asks for counts, and only where the scheduler
//! itself would place the container now.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use berth_common::id::{NodeId, ServiceId};
use berth_common::model::{ContainerRecord, Moves, ServiceRecord};

use super::balance::{Decided, Replacing, hindrance};
use super::explained::{self, Explained, PartOf};
use crate::cluster::State;
use crate::outlook::At;
use crate::scheduler::load::Watermarks;
use crate::scheduler::rebalance::Budget;
use crate::scheduler::score::Parts;

/// Seconds for which a node must have been there: one that comes and goes moves nothing.
const SETTLED_SECS: u32 = 60;
/// Seconds after which the load of what moved is known, and all is looked at once more.
const KNOWN_SECS: u32 = 900;
/// How often all services are looked at after a node came: each time for as long as something moved the time before.
const PASSES: u32 = 50;
/// Rounds for which the end of what moves is waited for before the next look.
const LONGEST_MOVE: u32 = 30;
/// Nodes that are compared and containers that are looked at in one round: some tenths of a second at most.
const WORK: usize = 100_000;
/// Containers of one service that are compared in one round.
const OF_ONE: usize = 4;
/// Rounds for which the word of a service's policy is waited for.
const PATIENCE: u32 = 3;

/// What is remembered from round to round. Nothing of it outlasts the brain: nodes that come back to one that was restarted are nodes that come.
#[derive(Debug, Default)]
pub struct Memory {
    /// Nodes that take containers; none before the first round.
    open: Option<BTreeSet<NodeId>>,
    /// Those of them that came of late, and when, seconds.
    came: BTreeMap<NodeId, u32>,
    pass: Option<Pass>,
    /// When there is to be another look, seconds: what has just moved counts for more than it may use.
    later: Option<u32>,
}

/// One look at all services, some each round.
#[derive(Debug)]
struct Pass {
    /// Services of which something moves: it begins once that is done.
    waits_for: BTreeSet<ServiceId>,
    /// The last one that was looked at.
    after: Option<ServiceId>,
    /// Services of which something moved or was replaced: there is to be another look.
    again: BTreeSet<ServiceId>,
    /// How many more there may be.
    left: u32,
    /// Rounds for which it has waited to begin.
    held_up: u32,
    /// Rounds for which it has waited for the next service's policy.
    unheard: u32,
}

impl Pass {
    const fn new(left: u32, waits_for: BTreeSet<ServiceId>) -> Self {
        Self {
            waits_for,
            after: None,
            again: BTreeSet::new(),
            left,
            held_up: 0,
            unheard: 0,
        }
    }
}

/// Looks for what stands better on nodes that came. `now`: seconds of any steady clock. `outlook` is taken anew for each container.
pub fn round<'o>(state: &State, outlook: &dyn Fn() -> At<'o>, memory: &mut Memory, now: u32) -> Decided {
    let mut decided = Decided::default();
    memory.notice(state, now);
    let Some(mut pass) = memory.pass.take() else {
        return decided;
    };
    let replacing = Replacing::of(state);
    let changing = |service: &ServiceId| {
        replacing.services.contains(service) || state.containers_of(*service).any(|c| c.moves.is_some())
    };
    if pass.waits_for.iter().any(changing) && pass.held_up < LONGEST_MOVE {
        pass.held_up += 1;
        memory.pass = Some(pass);
        return decided;
    }
    pass.waits_for.clear();
    // With those for the sake of load.
    let (budget, mut leaving) = (Budget::default(), BTreeMap::<NodeId, usize>::new());
    let moving = state.moving.iter().filter_map(|id| state.containers.get(id));
    for node in moving.filter_map(|container| container.node) {
        *leaving.entry(node).or_default() += 1;
    }
    let mut work = 0;
    let from = pass.after.map_or(Bound::Unbounded, Bound::Excluded);
    for (id, service) in state.services.range((from, Bound::Unbounded)) {
        if work >= WORK || leaving.values().sum::<usize>() >= budget.a_round {
            memory.pass = Some(pass);
            return decided;
        }
        let asked = candidates(state, service);
        work += 1 + state.by_service.get(id).map_or(0, |all| all.len());
        if asked.is_empty() || changing(id) {
            pass.again.extend((!asked.is_empty()).then_some(*id));
            pass.after = Some(*id);
            continue;
        }
        if outlook().unheard(service).is_some() && pass.unheard < PATIENCE {
            decided.wanted.insert(*id);
            pass.unheard += 1;
            memory.pass = Some(pass);
            return decided;
        }
        pass.unheard = 0;
        let stays = |c: &&ContainerRecord| {
            let crowd = c.node.and_then(|node| leaving.get(&node));
            crowd.is_none_or(|many| *many < budget.a_node) && hindrance(state, &replacing, c).is_none()
        };
        for container in asked.into_iter().filter(stays).take(OF_ONE) {
            work += state.nodes.len();
            let told = explained::explain(state, &outlook(), container);
            if let Some((here, moves)) = told.and_then(|told| better(state, container, &told)) {
                *leaving.entry(here).or_default() += 1;
                pass.again.insert(*id);
                decided.moves.push((container.id, moves));
                break;
            }
        }
        pass.after = Some(*id);
    }
    if !decided.moves.is_empty() || pass.left < PASSES {
        memory.later = Some(now + KNOWN_SECS);
    }
    if !pass.again.is_empty() && pass.left > 0 {
        memory.pass = Some(Pass::new(pass.left - 1, pass.again));
    }
    decided
}

impl Memory {
    /// Which nodes came, and whether that is to be followed by a look at everything.
    fn notice(&mut self, state: &State, now: u32) {
        let open = state.nodes.values().filter(|node| state.is_open(node));
        let open: BTreeSet<NodeId> = open.map(|node| node.id).collect();
        if let Some(before) = &self.open {
            self.came.extend(open.difference(before).map(|node| (*node, now)));
        }
        self.came.retain(|node, _| open.contains(node));
        self.open = Some(open);
        let settled = |since: u32| now >= since.saturating_add(SETTLED_SECS);
        if self.came.values().any(|since| settled(*since)) {
            self.came.retain(|_, since| !settled(*since));
            // What was looked at before they came is looked at again.
            self.pass = Some(Pass::new(PASSES, BTreeSet::new()));
        }
        if self.pass.is_none() && self.later.is_some_and(|at| now >= at) {
            self.later = None;
            self.pass = Some(Pass::new(PASSES, BTreeSet::new()));
        }
    }

    /// Whether there is still something to look at.
    #[cfg(test)]
    pub fn is_busy(&self) -> bool {
        self.pass.is_some() || self.later.is_some() || !self.came.is_empty()
    }
}

/// Containers of a service that may stand better elsewhere by what it asks for: of each node the newest, of the fullest nodes first.
fn candidates<'s>(state: &'s State, service: &ServiceRecord) -> Vec<&'s ContainerRecord> {
    let mut nodes = BTreeMap::<NodeId, (usize, &ContainerRecord)>::new();
    for container in state.containers_of(service.id).filter(|c| !c.removing) {
        if let Some(node) = container.node {
            let (count, newest) = nodes.entry(node).or_insert((0, container));
            *count += 1;
            if (container.created_at, container.id) > (newest.created_at, newest.id) {
                *newest = container;
            }
        }
    }
    let spec = &service.spec;
    let shared = nodes.values().any(|(count, _)| *count > 1);
    if !shared && spec.spread.is_empty() && spec.together.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<_> = nodes.into_values().collect();
    all.sort_by_key(|(count, container)| (std::cmp::Reverse(*count), container.id));
    all.into_iter().map(|(_, container)| container).collect()
}

/// What a service asks for apart from room, in words that follow a node's name.
const ASKED: [(&str, PartOf); 4] = [
    ("replicas keep apart", |r| r.replicas),
    ("replicas survive the loss of a node", |r| r.alone),
    ("replicas are spread", |r| r.spread),
    ("it is near others", |r| r.standing.together),
];

/// Where a container stands better, if it does; with where it is.
fn better(state: &State, container: &ContainerRecord, told: &Explained) -> Option<(NodeId, Moves)> {
    let here = container.node?;
    let best = told.best().filter(|best| best.node != here)?;
    let own = told.choices.iter().find(|choice| choice.node == here)?;
    let (there, own) = (best.rating.as_ref()?, own.rating.as_ref()?);
    let gain: i64 = ASKED.iter().map(|(_, of)| of(there) - of(own)).sum();
    (gain > 0 && there.total() > own.total() && best.stays_cool(&Watermarks::default())).then(|| {
        let moves = Moves {
            to: best.node,
            why: why(state, here, best.node, own, there),
            emptying: false,
        };
        (here, moves)
    })
}

fn why(state: &State, from: NodeId, to: NodeId, own: &Parts, there: &Parts) -> String {
    let gains = ASKED.iter().map(|(what, of)| (of(there) - of(own), *what));
    let (by, what) = gains.max().unwrap_or_default();
    format!(
        "a node came, and on {} {what} better than on {} ({by} points)",
        state.name_of_node(to),
        state.name_of_node(from)
    )
}
