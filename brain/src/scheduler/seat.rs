//! Nodes as placement sees them, each made when it is first looked at: of ten thousand, one placement looks at some hundred.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Index, IndexMut};

use berth_common::id::{Name, NodeId};
use berth_common::model::{NODE_LABEL, NodeRecord, Reservation};
use berth_common::units::Bytes;

use super::affinity::Domains;
use super::filter::Obstacle;
use super::forecast::{CPU, Loads, RESOURCES};
use super::gate::Gate;
use super::load::{self, Known, Watermarks};
use crate::cluster::State;

/// Who knows what nodes are expected to use. It is asked of those alone that are looked at: that costs more than all else about a node.
pub trait Watcher {
    /// What is known of a node's load.
    fn known(&self, node: NodeId) -> Known;
}

/// What is known of a node's load, asked when it is first needed.
#[derive(Clone)]
pub struct Lazy<'a> {
    watcher: Option<&'a dyn Watcher>,
    known: OnceCell<Known>,
}

impl Lazy<'_> {
    /// This.
    pub fn of(known: Known) -> Self {
        Self {
            watcher: None,
            known: known.into(),
        }
    }

    fn get(&self, node: NodeId) -> &Known {
        let ask = || {
            self.watcher
                .map_or(Known::Unwatched, |watcher| watcher.known(node))
        };
        self.known.get_or_init(ask)
    }
}

impl std::fmt::Debug for Lazy<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.known.fmt(f)
    }
}

/// A node as placement sees it.
#[derive(Debug, Clone)]
pub struct Seat<'a> {
    /// The node.
    pub node: &'a NodeRecord,
    /// Its lease is over.
    pub lost: bool,
    /// Its agent is connected and has said what runs there.
    pub synced: bool,
    /// What reservations may add up to.
    pub allocatable: Reservation,
    /// What they add up to, with what this plan added.
    pub taken: Reservation,
    /// What is kept for those that preempt others there.
    pub claimed: Reservation,
    /// What the host has of each resource; infinite: not known.
    pub capacity: [f32; RESOURCES],
    /// What it is expected to use, with what this plan added.
    pub known: Lazy<'a>,
    /// What best-effort containers use of what is left.
    pub lent: Reservation,
    /// What its volumes' sizes add up to, bytes, and how many they are.
    pub volumes: (Bytes, usize),
    /// This plan has reserved more there.
    pub grown: bool,
}

impl Seat<'_> {
    /// What is known of its load, with what this plan added.
    pub fn known(&self) -> &Known {
        self.known.get(self.node.id)
    }

    /// Changes that.
    pub(super) fn change(&mut self, change: impl FnOnce(&mut Known)) {
        let mut known = *self.known();
        change(&mut known);
        self.known = Lazy::of(known);
    }

    /// What nobody else can have.
    pub(super) fn held(&self) -> Reservation {
        self.taken.plus(self.claimed)
    }

    /// What its load has against taking `more`.
    pub(super) fn busy(&self, more: &Loads, marks: &Watermarks) -> Option<Obstacle> {
        self.busy_without(&Loads::default(), more, marks)
    }

    /// The same once what uses `gone` has gone.
    pub(super) fn busy_without(&self, gone: &Loads, more: &Loads, marks: &Watermarks) -> Option<Obstacle> {
        let overcommitted = self.allocatable.cpu.0 as f32 > self.capacity[CPU];
        let known = self.known().without(gone);
        load::obstacle(&known, more, &self.capacity, overcommitted, marks)
    }
}

/// What a node's hardware has, as loads are told.
pub fn capacity(node: &NodeRecord) -> [f32; RESOURCES] {
    let held = &node.facts.capacity;
    [
        held.cpu.0 as f32,
        held.memory.0 as f32,
        f32::INFINITY,
        f32::INFINITY,
    ]
}

/// All seats, in the order of their nodes' ids.
#[derive(Clone)]
pub struct Seats<'a> {
    ids: Vec<NodeId>,
    made: Vec<OnceCell<Box<Seat<'a>>>>,
    source: Option<Source<'a>>,
}

/// What seats are made of.
#[derive(Clone)]
struct Source<'a> {
    state: &'a State,
    nodes: Vec<&'a NodeRecord>,
    gates: &'a [Gate],
    /// What is known better than their records do.
    lost: BTreeMap<NodeId, bool>,
    watcher: Option<&'a dyn Watcher>,
}

impl<'a> Source<'a> {
    fn make(&self, at: usize) -> Seat<'a> {
        let node = self.nodes[at];
        let taken = self.state.taken_on(node.id);
        let connection = self.state.connections.get(&node.id);
        Seat {
            node,
            lost: self.lost.get(&node.id).copied().unwrap_or(node.lost),
            synced: connection.is_some_and(|c| c.synced),
            allocatable: self.state.allocatable(node),
            taken: taken.reserved,
            claimed: Reservation::default(),
            capacity: capacity(node),
            known: Lazy {
                watcher: self.watcher,
                known: OnceCell::new(),
            },
            lent: taken.lent,
            volumes: (
                self.state.volumes_taken_on(node.id),
                self.state.volumes_on.get(&node.id).map_or(0, imbl::OrdSet::len),
            ),
            grown: false,
        }
    }
}

impl<'a> Seats<'a> {
    /// These.
    pub fn of(seats: Vec<Seat<'a>>) -> Self {
        Self {
            ids: seats.iter().map(|seat| seat.node.id).collect(),
            made: seats.into_iter().map(|seat| Box::new(seat).into()).collect(),
            source: None,
        }
    }

    /// Of all nodes of a state.
    pub fn from(state: &'a State, lost: BTreeMap<NodeId, bool>) -> Self {
        let nodes: Vec<&NodeRecord> = state.nodes.values().map(|node| &**node).collect();
        Self {
            ids: state.nodes.keys().copied().collect(),
            made: vec![OnceCell::new(); nodes.len()],
            source: Some(Source {
                state,
                nodes,
                gates: state.gates.all(state),
                lost,
                watcher: None,
            }),
        }
    }

    /// Those that are made from now on know what `watcher` does.
    pub fn watch(&mut self, watcher: &'a dyn Watcher) {
        for seat in self.made.iter_mut().filter_map(OnceCell::get_mut) {
            seat.known = Lazy {
                watcher: Some(watcher),
                known: OnceCell::new(),
            };
        }
        if let Some(source) = &mut self.source {
            source.watcher = Some(watcher);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// The place of a node.
    pub fn find(&self, node: NodeId) -> Option<usize> {
        self.ids.binary_search(&node).ok()
    }

    /// A first look at a node, which makes no seat of it.
    #[inline]
    pub fn gate(&self, at: usize) -> Option<&Gate> {
        self.source.as_ref().map(|source| &source.gates[at])
    }

    /// The nodes by the values of a label.
    pub fn domains(&self, by: &str) -> Domains {
        match &self.source {
            Some(source) => Domains::of_state(source.state, by),
            None => Domains::of_nodes((0..self.len()).map(|at| self[at].node), by),
        }
    }

    /// The places of the nodes with a label, in order, if these are no more than `most` and it is known without looking at each.
    pub fn labelled(&self, key: &str, value: &str, most: usize) -> Option<Vec<usize>> {
        let state = self.source.as_ref()?.state;
        if key == NODE_LABEL {
            let node = value
                .parse::<Name>()
                .ok()
                .and_then(|name| state.node_names.get(&name));
            return Some(node.and_then(|id| self.find(*id)).into_iter().collect());
        }
        let Some(nodes) = state.labelled.get(key).and_then(|values| values.get(value)) else {
            return Some(Vec::new());
        };
        (nodes.len() <= most).then(|| nodes.iter().filter_map(|id| self.find(*id)).collect())
    }

    /// Those that somebody has looked at.
    pub fn looked_at(&self) -> impl Iterator<Item = &Seat<'a>> {
        self.made.iter().filter_map(OnceCell::get).map(|seat| &**seat)
    }
}

impl<'a> Index<usize> for Seats<'a> {
    type Output = Seat<'a>;

    fn index(&self, at: usize) -> &Seat<'a> {
        self.made[at].get_or_init(|| {
            let source = self.source.as_ref().expect("seats without a source are all made");
            Box::new(source.make(at))
        })
    }
}

impl<'a> IndexMut<usize> for Seats<'a> {
    fn index_mut(&mut self, at: usize) -> &mut Seat<'a> {
        let _ = &self[at];
        self.made[at].get_mut().expect("made just before")
    }
}

impl fmt::Debug for Seats<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.looked_at()).finish()
    }
}
