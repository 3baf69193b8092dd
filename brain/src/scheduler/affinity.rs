//! Where a service's replicas may be for the sake of the others: spread over domains of nodes that share a label's value, so many to a
//! node at most, and near another service's containers.
//!
//! A domain counts as long as one of its nodes could be asked at all (reachable, open, in the pool): one that is lost as a whole does
//! not hold up the others. Full nodes count, else nothing would ever be uneven. Counted are replicas that stay: not those that a
//! successor is about to replace, nor those on lost nodes.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use berth_common::id::{Name, NodeId};
use berth_common::model::{NODE_LABEL, NodeRecord, Spread};
use imbl::OrdSet;

use super::View;
use super::constraints::Broken;
use super::seat::Seats;
use crate::cluster::State;

/// Taken from a node's score for each replica that its domain has more than the emptiest one: more than any number of replicas that a
/// node has, since somebody asked for it.
const SPREAD: i64 = 100_000_000;
/// Taken where a companion is asked for and not there. Below an uneven spread, above everything else.
const APART: i64 = 50_000_000;
/// Domains up to which it is looked at whether any node of each could be asked, for soft spreads too.
const FEW: usize = 256;

/// Another service near whose containers a service is to be, as it stands.
#[derive(Debug, Clone)]
pub struct Companion<'a> {
    /// The other service.
    pub with: &'a Name,
    /// The label that makes nodes near; none: the node itself.
    pub by: Option<&'a str>,
    /// Nowhere else at all.
    pub hard: bool,
    /// Nodes that have containers of it.
    pub nodes: BTreeSet<NodeId>,
    /// Their values of the label.
    pub values: BTreeSet<&'a str>,
}

impl Companion<'_> {
    /// Whether the other service is near this node.
    fn near(&self, node: &NodeRecord) -> bool {
        match self.by {
            None => self.nodes.contains(&node.id),
            Some(by) => node.label(by).is_some_and(|value| self.values.contains(value)),
        }
    }
}

/// What a node, whatever is placed in the same plan, lacks for a service's spread and companions.
pub fn standing(node: &NodeRecord, spread: &[Spread], companions: &[Companion<'_>]) -> Option<Broken> {
    let unlabelled = spread
        .iter()
        .find(|spread| spread.hard && node.label(&spread.by).is_none());
    if let Some(spread) = unlabelled {
        return Some(Broken::Unlabelled(spread.by.clone()));
    }
    let apart = companions.iter().find(|one| one.hard && !one.near(node))?;
    Some(Broken::Apart {
        with: apart.with.to_string(),
        by: apart.by.map(str::to_owned),
        nowhere: apart.nodes.is_empty(),
    })
}

/// What a node's distance from companions takes from its score.
pub fn reluctance(node: &NodeRecord, companions: &[Companion<'_>]) -> i64 {
    let apart = companions.iter().filter(|one| !one.near(node)).count();
    APART * apart as i64
}

/// Nodes by the values of a label: those with one value are one domain.
#[derive(Debug)]
pub struct Domains {
    by: String,
    /// Values of the label that nodes have, sorted.
    values: Vec<String>,
    /// Nodes of each domain.
    members: Vec<OrdSet<NodeId>>,
    /// The domain of each node that somebody asked for, by its place in the view.
    of: RefCell<Vec<Of>>,
}

#[derive(Debug, Clone, Copy)]
enum Of {
    NotAsked,
    Nothing,
    Domain(u32),
}

impl Domains {
    /// Of the nodes of a state.
    pub fn of_state(state: &State, by: &str) -> Self {
        if by == NODE_LABEL {
            let names = state.node_names.iter();
            let each = names.map(|(name, node)| (name.to_string(), OrdSet::unit(*node)));
            return Self::new(state.nodes.len(), by, each);
        }
        let values = state.labelled.get(by).into_iter().flatten();
        let each = values.map(|(value, nodes)| (value.clone(), nodes.clone()));
        Self::new(state.nodes.len(), by, each)
    }

    /// Of these nodes.
    pub fn of_nodes<'n>(nodes: impl Iterator<Item = &'n NodeRecord>, by: &str) -> Self {
        let mut found: BTreeMap<String, OrdSet<NodeId>> = BTreeMap::new();
        let mut all = 0;
        for node in nodes {
            all += 1;
            if let Some(value) = node.label(by) {
                found.entry(value.to_owned()).or_default().insert(node.id);
            }
        }
        Self::new(all, by, found.into_iter())
    }

    fn new(nodes: usize, by: &str, sorted: impl Iterator<Item = (String, OrdSet<NodeId>)>) -> Self {
        let (values, members) = sorted.unzip();
        Self {
            by: by.to_owned(),
            values,
            members,
            of: RefCell::new(vec![Of::NotAsked; nodes]),
        }
    }

    /// The domain of a node.
    fn of(&self, seats: &Seats<'_>, node: usize) -> Option<usize> {
        let mut of = self.of.borrow_mut();
        if let Of::NotAsked = of[node] {
            let value = seats[node].node.label(&self.by);
            let found =
                value.and_then(|value| self.values.binary_search_by(|one| one.as_str().cmp(value)).ok());
            of[node] = found.map_or(Of::Nothing, |domain| Of::Domain(domain as u32));
        }
        match of[node] {
            Of::Domain(domain) => Some(domain as usize),
            _ => None,
        }
    }
}

/// One way in which a service's replicas are spread.
#[derive(Debug)]
struct Spreading {
    hard: bool,
    max_skew: u32,
    domains: Rc<Domains>,
    /// Replicas in each domain; none: the domain has no node that could be asked.
    counts: Vec<Option<u32>>,
    /// How many domains have each number of replicas.
    levels: BTreeMap<u32, u32>,
}

/// How a service's replicas are distributed. Nodes are named by their place in the view.
#[derive(Debug)]
pub struct Distribution {
    spread: Vec<Spreading>,
    /// Most on one node.
    most: Option<u32>,
    /// Those that each node has, where it has any; those being stopped included, since they are still there.
    present: HashMap<usize, u32>,
}

/// A service's replicas by node.
#[derive(Debug, Clone, Default)]
pub struct Replicas {
    /// Those that stay.
    pub staying: BTreeMap<NodeId, u32>,
    /// All that are there.
    pub present: BTreeMap<NodeId, u32>,
}

impl Distribution {
    /// Counts replicas by what `spread` says, over the domains of nodes that could be `asked`.
    pub fn new(
        view: &View<'_>,
        asked: impl Fn(usize) -> bool,
        spread: &[Spread],
        most: Option<u32>,
        replicas: &Replicas,
    ) -> Self {
        let spread = spread.iter().map(|spread| {
            let domains = view.domains(&spread.by);
            let could =
                |members: &OrdSet<NodeId>| members.iter().any(|node| view.find(*node).is_some_and(&asked));
            // For scores it makes no difference what the emptiest of all has, which is the same for each.
            let sure = spread.hard || domains.members.len() <= FEW;
            let open = domains
                .members
                .iter()
                .map(|members| (!sure || could(members)).then_some(0));
            let mut counts: Vec<Option<u32>> = open.collect();
            for (node, count) in &replicas.staying {
                let seat = view.find(*node).filter(|seat| !view.seats[*seat].lost);
                if let Some(domain) = seat.and_then(|seat| domains.of(&view.seats, seat)) {
                    counts[domain].iter_mut().for_each(|held| *held += count);
                }
            }
            let mut levels = BTreeMap::new();
            for count in counts.iter().flatten() {
                *levels.entry(*count).or_insert(0) += 1;
            }
            Spreading {
                hard: spread.hard,
                max_skew: spread.max_skew,
                domains,
                counts,
                levels,
            }
        });
        let present = replicas.present.iter();
        Self {
            spread: spread.collect(),
            most,
            present: present
                .filter_map(|(node, count)| Some((view.find(*node)?, *count)))
                .collect(),
        }
    }

    /// Whether the place that one replica leaves matters to where another may be.
    pub fn is_hard(&self) -> bool {
        self.spread.iter().any(|spread| spread.hard)
    }

    fn here(&self, node: usize) -> u32 {
        self.present.get(&node).copied().unwrap_or(0)
    }

    /// Whether one more replica may be on a node; `leaving`: the node that another one leaves for it.
    pub fn allows(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> bool {
        let mut hard = self.spread.iter().filter(|spread| spread.hard);
        self.most.is_none_or(|most| self.here(node) < most)
            && hard.all(|spread| !spread.too_many(seats, node, leaving))
    }

    /// What stands against that.
    pub fn obstacle(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> Option<Broken> {
        self.judge(seats, node, leaving, self.here(node))
    }

    /// The same once a replica that is on the node now has gone.
    pub fn obstacle_after_one_went(&self, seats: &Seats<'_>, node: usize) -> Option<Broken> {
        self.judge(seats, node, Some(node), self.here(node).saturating_sub(1))
    }

    fn judge(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>, here: u32) -> Option<Broken> {
        if let Some(most) = self.most.filter(|most| here >= *most) {
            return Some(Broken::Crowded { here, most });
        }
        let mut hard = self.spread.iter().filter(|spread| spread.hard);
        let broken = hard.find(|spread| spread.too_many(seats, node, leaving))?;
        broken.uneven(seats, node, leaving)
    }

    /// What one more replica on a node takes from its score.
    pub fn reluctance(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> i64 {
        let uneven = self
            .spread
            .iter()
            .map(|spread| match spread.skew(seats, node, leaving) {
                Some((there, least)) => there - least,
                // Without the label it is nowhere: worse than the fullest domain.
                None => spread.levels.last_key_value().map_or(0, |(most, _)| most + 1),
            });
        uneven.map(|steps| i64::from(steps.min(1_000)) * SPREAD).sum()
    }

    /// Counts one more replica on a node.
    pub fn add(&mut self, seats: &Seats<'_>, node: usize) {
        *self.present.entry(node).or_insert(0) += 1;
        for spread in &mut self.spread {
            spread.change(seats, node, |count| count + 1);
        }
    }

    /// Counts one replica less on a node, where it is not after all.
    pub fn forget(&mut self, seats: &Seats<'_>, node: usize) {
        if let Some(count) = self.present.get_mut(&node) {
            *count = count.saturating_sub(1);
        }
        self.leave(seats, node);
    }

    /// Counts one replica less that stays on a node. It is there until it has stopped.
    pub fn leave(&mut self, seats: &Seats<'_>, node: usize) {
        for spread in &mut self.spread {
            spread.change(seats, node, |count| count.saturating_sub(1));
        }
    }
}

impl Spreading {
    /// The domain of a node and how many replicas it has; none if it is in none that counts.
    fn domain(&self, seats: &Seats<'_>, node: usize) -> Option<(usize, u32)> {
        let domain = self.domains.of(seats, node)?;
        Some((domain, self.counts[domain]?))
    }

    /// How many replicas the node's domain has, and the emptiest one.
    fn skew(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> Option<(u32, u32)> {
        let (own, mut there) = self.domain(seats, node)?;
        let (mut least, _) = self.levels.first_key_value().map(|(least, of)| (*least, *of))?;
        if let Some((left, count)) = leaving.and_then(|node| self.domain(seats, node)) {
            let count = count.saturating_sub(1);
            least = least.min(count);
            there = if left == own { count } else { there };
        }
        Some((there, least))
    }

    /// Whether one more replica on a node would be more uneven than it may be.
    fn too_many(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> bool {
        let skew = self.skew(seats, node, leaving);
        skew.is_some_and(|(there, least)| there + 1 > least + self.max_skew)
    }

    /// That in words.
    fn uneven(&self, seats: &Seats<'_>, node: usize, leaving: Option<usize>) -> Option<Broken> {
        let (there, least) = self.skew(seats, node, leaving)?;
        let (own, _) = self.domain(seats, node)?;
        let left = leaving
            .and_then(|node| self.domain(seats, node))
            .map(|(left, _)| left);
        let held = |domain: usize| Some(self.counts[domain]?.saturating_sub(u32::from(left == Some(domain))));
        let emptiest = (0..self.counts.len()).find(|domain| held(*domain) == Some(least))?;
        Some(Broken::Uneven {
            by: self.domains.by.clone(),
            here: self.domains.values[own].clone(),
            with: there + 1,
            emptiest: self.domains.values[emptiest].clone(),
            has: least,
            max_skew: self.max_skew,
        })
    }

    /// Changes how many replicas a node's domain has.
    fn change(&mut self, seats: &Seats<'_>, node: usize, to: impl Fn(u32) -> u32) {
        let Some((domain, before)) = self.domain(seats, node) else {
            return;
        };
        let after = to(before);
        self.counts[domain] = Some(after);
        if let Some(of) = self.levels.get_mut(&before) {
            *of -= 1;
            if *of == 0 {
                self.levels.remove(&before);
            }
        }
        *self.levels.entry(after).or_insert(0) += 1;
    }
}
