//! What a service asks of places beyond room and labels, and how a node that does not satisfy it says so (R9).

use std::collections::BTreeMap;

use berth_common::id::Name;
use berth_common::model::{DEFAULT_POOL, Toleration};

use super::filter::Obstacle;
use super::{Request, Seat, taints};

/// What a service asks of places, as far as it can be told from its spec and the state.
#[derive(Debug, Clone, Default)]
pub struct Constraints<'a> {
    /// The pool that its nodes must be in; none: the default one.
    pub pool: Option<&'a Name>,
    /// Taints that it puts up with.
    pub tolerations: &'a [Toleration],
}

/// What a node does not satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// It is not in this pool.
    Pool(String),
    /// It has a taint, this one.
    Taint(String),
}

impl Broken {
    /// Obstacles of one kind are told together; the order is that of the telling.
    const fn kind(&self) -> u8 {
        match self {
            Self::Pool(_) => 0,
            Self::Taint(_) => 1,
        }
    }

    /// What is wrong with `nodes`, of which this is the first; `mixed` if others of them have another reason of this kind.
    fn sentence(&self, nodes: &str, one: bool, mixed: bool) -> String {
        let verb = |single: &'static str, plural: &'static str| if one { single } else { plural };
        match self {
            Self::Pool(pool) => format!("{nodes} {} not in pool {pool}", verb("is", "are")),
            Self::Taint(taint) => {
                let (has, such) = (verb("has", "have"), if mixed { "such as " } else { "" });
                let what = if mixed { "taints" } else { "the taint" };
                format!("{nodes} {has} {what} {such}{taint}, which it does not tolerate")
            }
        }
    }
}

/// Obstacles of this kind met so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told(BTreeMap<u8, Group>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    nodes: u32,
    first: Broken,
    mixed: bool,
}

impl Told {
    /// Adds what one node does not satisfy.
    pub fn add(&mut self, broken: Broken) {
        let kind = broken.kind();
        match self.0.get_mut(&kind) {
            Some(group) => {
                group.nodes += 1;
                group.mixed |= group.first != broken;
            }
            None => {
                let group = Group {
                    nodes: 1,
                    first: broken,
                    mixed: false,
                };
                self.0.insert(kind, group);
            }
        }
    }

    /// One part of a sentence for each kind; `count` says how many nodes.
    pub fn parts(&self, count: impl Fn(u32) -> String) -> impl Iterator<Item = String> {
        self.0.values().map(move |group| {
            let nodes = count(group.nodes);
            group.first.sentence(&nodes, group.nodes == 1, group.mixed)
        })
    }
}

/// Checks of a node that what is placed in the same plan does not change.
pub fn standing(seat: &Seat<'_>, request: &Request<'_>) -> Option<Obstacle> {
    let asked = &request.constraints;
    let pool = asked.pool.map_or(DEFAULT_POOL, Name::as_str);
    if seat.node.pool.as_str() != pool {
        return Some(Obstacle::Broken(Broken::Pool(pool.to_owned())));
    }
    let taint = taints::keeps_off(seat.node, asked.tolerations);
    taint.map(|taint| Obstacle::Broken(Broken::Taint(taint.to_string())))
}

/// What a node's standing properties take from its score.
pub fn reluctance(seat: &Seat<'_>, request: &Request<'_>) -> i64 {
    taints::reluctance(seat.node, request.constraints.tolerations)
}
