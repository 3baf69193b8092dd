//! Where a service's replicas may be for the sake of the others: spread over domains of nodes that share a label's value, so many to a
//! node at most, and near another service's containers.
//!
//! A domain counts as long as one of its nodes could be asked at all (reachable, open, in the pool): one that is lost as a whole does
//! not hold up the others. Full nodes count, else nothing would ever be uneven. Counted are replicas that stay: not those that a
//! successor is about to replace, nor those on lost nodes.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Name, NodeId};
use berth_common::model::{NodeRecord, Spread};

use super::Seat;
use super::constraints::Broken;

/// Taken from a node's score for each replica that its domain has more than the emptiest one: more than any number of replicas that a
/// node has, since somebody asked for it.
const SPREAD: i64 = 100_000_000;
/// Taken where a companion is asked for and not there. Below an uneven spread, above everything else.
const APART: i64 = 50_000_000;

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

/// One way in which replicas are spread.
#[derive(Debug)]
struct Domains {
    by: String,
    hard: bool,
    max_skew: u32,
    /// Values of the label that nodes in question have.
    values: Vec<String>,
    /// Replicas that each of them has.
    counts: Vec<u32>,
    /// The domain of each node; none: it is in none that counts.
    of: Vec<Option<usize>>,
}

/// How a service's replicas are distributed. Nodes are named by their place in the view.
#[derive(Debug)]
pub struct Distribution {
    domains: Vec<Domains>,
    /// Most on one node.
    most: Option<u32>,
    /// Those that each node has, those being stopped included, since they are still there.
    present: Vec<u32>,
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
    /// Counts replicas by what `spread` says, over the domains of the nodes `asked`.
    pub fn new(
        seats: &[Seat<'_>],
        asked: impl Iterator<Item = usize> + Clone,
        spread: &[Spread],
        most: Option<u32>,
        replicas: &Replicas,
    ) -> Self {
        let count = |of: &BTreeMap<NodeId, u32>, seat: &Seat<'_>| of.get(&seat.node.id).copied().unwrap_or(0);
        let domains = spread.iter().map(|spread| {
            let value = |seat: &Seat<'_>| seat.node.label(&spread.by).map(str::to_owned);
            let distinct: BTreeSet<String> = asked.clone().filter_map(|seat| value(&seats[seat])).collect();
            let values: Vec<String> = distinct.into_iter().collect();
            let of: Vec<Option<usize>> = seats
                .iter()
                .map(|seat| values.binary_search(&value(seat)?).ok())
                .collect();
            let mut counts = vec![0; values.len()];
            for (seat, domain) in seats.iter().zip(&of) {
                if let Some(domain) = domain.filter(|_| !seat.lost) {
                    counts[domain] += count(&replicas.staying, seat);
                }
            }
            Domains {
                by: spread.by.clone(),
                hard: spread.hard,
                max_skew: spread.max_skew,
                values,
                counts,
                of,
            }
        });
        Self {
            domains: domains.collect(),
            most,
            present: seats.iter().map(|seat| count(&replicas.present, seat)).collect(),
        }
    }

    /// Whether the place that one replica leaves matters to where another may be.
    pub fn is_hard(&self) -> bool {
        self.domains.iter().any(|domains| domains.hard)
    }

    /// What stands against one more replica on a node; `leaving`: the node that another one leaves for it.
    pub fn obstacle(&self, node: usize, leaving: Option<usize>) -> Option<Broken> {
        self.judge(node, leaving, self.present[node])
    }

    /// The same once a replica that is on the node now has gone.
    pub fn obstacle_after_one_went(&self, node: usize) -> Option<Broken> {
        self.judge(node, Some(node), self.present[node].saturating_sub(1))
    }

    fn judge(&self, node: usize, leaving: Option<usize>, here: u32) -> Option<Broken> {
        if let Some(most) = self.most.filter(|most| here >= *most) {
            return Some(Broken::Crowded { here, most });
        }
        self.domains
            .iter()
            .filter(|domains| domains.hard)
            .find_map(|domains| {
                let ((there, own), (least, emptiest)) = domains.skew(node, leaving)?;
                (there + 1 > least + domains.max_skew).then(|| Broken::Uneven {
                    by: domains.by.clone(),
                    here: domains.values[own].clone(),
                    with: there + 1,
                    emptiest: domains.values[emptiest].clone(),
                    has: least,
                    max_skew: domains.max_skew,
                })
            })
    }

    /// What one more replica on a node takes from its score.
    pub fn reluctance(&self, node: usize, leaving: Option<usize>) -> i64 {
        let uneven = self
            .domains
            .iter()
            .map(|domains| match domains.skew(node, leaving) {
                Some(((there, _), (least, _))) => there - least,
                // Without the label it is nowhere: worse than the fullest domain.
                None => domains.counts.iter().max().map_or(0, |most| most + 1),
            });
        uneven.map(|steps| i64::from(steps.min(1_000)) * SPREAD).sum()
    }

    /// Counts one more replica on a node.
    pub fn add(&mut self, node: usize) {
        self.present[node] += 1;
        for count in self.counts(node) {
            *count += 1;
        }
    }

    /// Counts one replica less on a node, where it is not after all.
    pub fn forget(&mut self, node: usize) {
        self.present[node] = self.present[node].saturating_sub(1);
        self.leave(node);
    }

    /// Counts one replica less that stays on a node. It is there until it has stopped.
    pub fn leave(&mut self, node: usize) {
        for count in self.counts(node) {
            *count = count.saturating_sub(1);
        }
    }

    /// The counts in which a node's replicas are.
    fn counts(&mut self, node: usize) -> impl Iterator<Item = &mut u32> {
        self.domains.iter_mut().filter_map(move |domains| {
            let domain = domains.of[node]?;
            Some(&mut domains.counts[domain])
        })
    }
}

impl Domains {
    /// How many replicas the node's domain has, and the emptiest one, each with its place in `values`.
    fn skew(&self, node: usize, leaving: Option<usize>) -> Option<((u32, usize), (u32, usize))> {
        let own = self.of[node]?;
        let left = leaving.and_then(|node| self.of[node]);
        let held = |domain: usize| {
            let one = u32::from(left == Some(domain));
            (self.counts[domain].saturating_sub(one), domain)
        };
        let least = (0..self.counts.len()).map(held).min()?;
        Some((held(own), least))
    }
}
