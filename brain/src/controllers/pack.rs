//! Packing: which nodes can be emptied because what is on them fits elsewhere, and where each container goes. On request, never by itself.
//!
//! Owns the choice. Refuses to make anything worse but room: no destination gets over `target`, none is hot afterwards (so that balance moves
//! nothing back), replicas that are apart stay apart, and what can't move with its successor first keeps its node. Destinations are chosen
//! before anything stops; how a container moves is the services' controller's, which drains the node.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, Name, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, Moves, NodeKind, NodeRecord};

use super::balance::{Replacing, hindrance};
use super::context::label;
use super::explained;
use crate::cluster::{Change, State};
use crate::outlook::{At, Supposed};
use crate::scheduler::compare::Choice;
use crate::scheduler::load::Watermarks;
use crate::scheduler::score::Parts;

/// Nodes that are compared at most, all containers together: some seconds' work.
const WORK: usize = 20_000_000;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The pool whose shared nodes are to be packed.
    pub pool: Name,
    /// So many of them stay open at least.
    pub keep: usize,
}

/// A node that can be emptied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Freed {
    /// Which.
    pub node: NodeId,
    /// What of it is reserved now, percent of its scarcest resource.
    pub reserved_percent: u64,
    /// Its containers, and where each goes.
    pub moves: Vec<(ContainerId, NodeId)>,
}

/// What can be done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Nodes that can be emptied, in order.
    pub freed: Vec<Freed>,
    /// Open ones that stay, and why.
    pub kept: Vec<(NodeId, String)>,
    /// There were too many to look at them all.
    pub cut: bool,
    /// Services that keep a node since their policies were not heard: they are to be asked.
    pub wanted: BTreeSet<ServiceId>,
}

/// What keeps containers where they are.
struct Held {
    replacing: Replacing,
    /// Services whose policies were not heard, and why.
    unheard: BTreeMap<ServiceId, String>,
}

/// Why a node can't be emptied.
struct Kept {
    why: String,
    /// The service whose policy is to be asked first.
    asks: Option<ServiceId>,
}

impl From<String> for Kept {
    fn from(why: String) -> Self {
        Self { why, asks: None }
    }
}

/// The cluster as it would be with what is planned so far.
struct Trial<'a, 'o> {
    state: State,
    supposed: Supposed,
    outlook: &'a dyn Fn() -> At<'o>,
}

impl Clone for Trial<'_, '_> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            supposed: self.supposed.clone(),
            outlook: self.outlook,
        }
    }
}

/// What can be emptied. Equal inputs give equal plans. `outlook` is taken anew for each container and given back, so that nobody waits
/// for it as long as this takes; what agents report meanwhile is part of the inputs.
pub fn plan<'o>(state: &State, outlook: &dyn Fn() -> At<'o>, ask: &Ask) -> Packed {
    let replacing = Replacing::of(state);
    let unheard = {
        let outlook = outlook();
        let services = state.services.values();
        services
            .filter_map(|service| Some((service.id, outlook.unheard(service)?)))
            .collect()
    };
    let held = Held { replacing, unheard };
    let mut now = Trial {
        state: state.clone(),
        supposed: Supposed::default(),
        outlook,
    };
    let mut packed = Packed::default();
    let mut work = 0;
    let mut order = Vec::new();
    loop {
        let open = open_nodes(&now.state, &ask.pool);
        packed.kept.clear();
        let mut again = false;
        let mut left = open.len();
        for node in open {
            if left <= ask.keep.max(1) {
                let why = format!("{} nodes are to stay open", ask.keep.max(1));
                packed.kept.push((node, why));
                continue;
            }
            work += now.state.nodes.len() * (1 + now.state.containers_on(node).count());
            if work > WORK {
                packed.cut = true;
                packed
                    .kept
                    .push((node, "there were too many to look at them all".to_owned()));
                continue;
            }
            match now.without(node, &held) {
                Ok(next) => {
                    now = next;
                    order.push(node);
                    left -= 1;
                    again = true;
                }
                Err(Kept { why, asks }) => {
                    packed.kept.push((node, why));
                    packed.wanted.extend(asks);
                }
            }
        }
        // What moved elsewhere may have made another one the emptiest.
        if !again {
            break;
        }
    }
    packed.freed = order
        .into_iter()
        .map(|node| freed(state, &now.state, node))
        .collect();
    packed
}

/// Shared nodes of a pool that take containers, the emptiest first.
fn open_nodes(state: &State, pool: &Name) -> Vec<NodeId> {
    let open = state
        .nodes
        .values()
        .filter(|node| node.pool == *pool && node.kind == NodeKind::Shared && state.is_open(node));
    let mut open: Vec<_> = open
        .map(|node| {
            (
                reserved_percent(state, node),
                state.taken_on(node.id).containers,
                node.id,
            )
        })
        .collect();
    open.sort_unstable();
    open.into_iter().map(|(_, _, node)| node).collect()
}

/// What is reserved of a node, percent of its scarcest resource.
fn reserved_percent(state: &State, node: &NodeRecord) -> u64 {
    let (taken, whole) = (state.taken_on(node.id).reserved, state.allocatable(node));
    let share = |part: u64, whole: u64| part.saturating_mul(100) / whole.max(1);
    share(u64::from(taken.cpu.0), u64::from(whole.cpu.0)).max(share(taken.memory.0, whole.memory.0))
}

/// Where everything of a node has gone in the end.
fn freed(before: &State, after: &State, node: NodeId) -> Freed {
    let moved = before.containers_on(node).filter_map(|c| {
        let to = after.containers.get(&c.id)?.node?;
        (to != node).then_some((c.id, to))
    });
    Freed {
        node,
        reserved_percent: before
            .nodes
            .get(&node)
            .map_or(0, |record| reserved_percent(before, record)),
        moves: moved.collect(),
    }
}

impl Trial<'_, '_> {
    /// The same with a node emptied and closed.
    fn without(&self, node: NodeId, held: &Held) -> Result<Self, Kept> {
        let mut trial = self.clone();
        let mut there: Vec<_> = self.state.containers_on(node).cloned().collect();
        there.retain(|c| !c.removing);
        // Large ones first: small ones find room beside them.
        there.sort_by_key(|c| {
            let held = c.spec.reservation;
            (Reverse((held.memory, held.cpu)), c.id)
        });
        for container in &there {
            if let Some(why) = hindrance(&self.state, &held.replacing, container) {
                return Err(format!("{} {why}", label(container)).into());
            }
            if let Some(why) = held.unheard.get(&container.service) {
                return Err(Kept {
                    why: format!("{} {why}", label(container)),
                    asks: Some(container.service),
                });
            }
        }
        for container in &there {
            let to = trial.destination(container, node)?;
            trial.apply(Change::PutContainer(ContainerRecord {
                node: Some(to),
                ..(**container).clone()
            }));
        }
        let record = trial.state.nodes.get(&node).map(|record| NodeRecord {
            cordoned: true,
            ..(**record).clone()
        });
        if let Some(record) = record {
            trial.apply(Change::PutNode(record));
        }
        Ok(trial)
    }

    fn apply(&mut self, change: Change) {
        let mut outlook = (self.outlook)().given(std::mem::take(&mut self.supposed));
        outlook.suppose(&self.state, &change);
        self.supposed = outlook.into_supposed();
        let revision = self.state.revision;
        self.state.apply(vec![change], revision);
    }

    /// The fullest node that takes a container and is not worse for it than `from`.
    fn destination(&self, container: &ContainerRecord, from: NodeId) -> Result<NodeId, String> {
        let outlook = (self.outlook)().given(self.supposed.clone());
        let told = explained::successor(&self.state, &outlook, container);
        drop(outlook);
        let told = told.ok_or_else(|| format!("{} is being removed", label(container)))?;
        let marks = Watermarks::default();
        let own = told.choices.iter().find(|choice| choice.node == from);
        let least = own.and_then(|own| own.rating.as_ref()).map_or(0, wishes);
        let fits = |choice: &&Choice| choice.node != from && choice.rating.is_some();
        let cool = |choice: &&Choice| choice.stays_cool(&marks);
        let good = |choice: &&Choice| {
            choice
                .rating
                .as_ref()
                .is_some_and(|rating| wishes(rating) >= least)
        };
        let fullest = |choice: &&Choice| {
            let room = choice.rating.as_ref().map_or(0, |parts| parts.reservation);
            (room, choice.node)
        };
        let all = || told.choices.iter().filter(fits);
        if let Some(best) = all().filter(cool).filter(good).min_by_key(fullest) {
            return Ok(best.node);
        }
        let name = label(container);
        Err(match (all().next(), all().find(good)) {
            (None, _) => {
                let others = told.choices.iter().filter(|choice| choice.node != from).count();
                format!("{name} fits on none of the {others} other nodes")
            }
            (Some(_), None) => format!(
                "{name} would be nearer to its other replicas elsewhere, or farther from what it is to be with"
            ),
            (Some(_), Some(_)) => format!("{name} would make every other node too busy"),
        })
    }
}

/// What of a rating is not room: what somebody asked for, and replicas that keep apart.
fn wishes(parts: &Parts) -> i64 {
    parts.replicas + parts.alone + parts.standing.total() + parts.spread + parts.displaces
}

/// The changes that empty these nodes, of what is still as it was; none if one of the nodes is not.
pub fn begin(state: &State, freed: &[Freed]) -> Option<Vec<Change>> {
    let replacing = Replacing::of(state);
    let closing: BTreeSet<NodeId> = freed.iter().map(|one| one.node).collect();
    let mut changes = Vec::new();
    for one in freed {
        let node = state.nodes.get(&one.node)?;
        if node.cordoned || node.draining || node.lost {
            return None;
        }
        changes.push(Change::PutNode(NodeRecord {
            cordoned: true,
            draining: true,
            ..(**node).clone()
        }));
        let moves: BTreeMap<_, _> = one.moves.iter().copied().collect();
        for container in state.containers_on(one.node).filter(|c| !c.removing) {
            let to = *moves.get(&container.id)?;
            let there = state.nodes.get(&to).filter(|node| !closing.contains(&node.id))?;
            if hindrance(state, &replacing, container).is_some() {
                return None;
            }
            changes.push(Change::PutContainer(ContainerRecord {
                moves: Some(Moves {
                    to,
                    why: why(node, there, one),
                    emptying: true,
                }),
                ..(**container).clone()
            }));
        }
    }
    Some(changes)
}

/// Why a container of a node moves.
fn why(from: &NodeRecord, to: &NodeRecord, freed: &Freed) -> String {
    format!(
        "{} is emptied, of which {} percent are reserved: all that is on it fits elsewhere, this on {}",
        from.name, freed.reserved_percent, to.name
    )
}
