//! What a search looks at: every node with what is free on it, counting what the same plan has already placed (R4).

use std::collections::BTreeMap;

use berth_common::id::NodeId;
use berth_common::model::{ContainerSpec, NodeRecord, Reservation};

use super::filter::{self, Obstacle};
use super::forecast::{CPU, Loads, RESOURCES, minus, plus};
use super::load::{self, Known, Watermarks};
use crate::cluster::State;

/// What a container takes up on its node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Footprint {
    /// What it sets aside.
    pub reserved: Reservation,
    /// What it uses of what is idle.
    pub idle: Reservation,
    /// What it is expected to use.
    pub load: Loads,
}

impl Footprint {
    /// This one and another.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            reserved: self.reserved.plus(other.reserved),
            idle: self.idle.plus(other.idle),
            load: plus(self.load, other.load),
        }
    }

    /// This one without another that is part of it.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            reserved: self.reserved.minus(other.reserved),
            idle: self.idle.minus(other.idle),
            load: minus(self.load, other.load),
        }
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
    pub known: Known,
    /// What best-effort containers use of what is left.
    pub lent: Reservation,
    /// This plan has reserved more there.
    pub grown: bool,
}

impl Seat<'_> {
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
        let known = self.known.without(gone);
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

/// Every node with what is free on it, in the order of ids.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub(super) seats: Vec<Seat<'a>>,
    pub(super) marks: Watermarks,
}

impl<'a> View<'a> {
    /// These nodes, in the order of ids.
    pub fn of(seats: Vec<Seat<'a>>) -> Self {
        let marks = Watermarks::default();
        Self { seats, marks }
    }

    /// The nodes of `state`, of whose load nothing is known; `lost` overrides what their records say.
    pub fn new(state: &'a State, lost: &BTreeMap<NodeId, bool>) -> Self {
        let seats: Vec<_> = state
            .nodes
            .iter()
            .map(|(id, node)| Seat {
                node,
                lost: lost.get(id).copied().unwrap_or(node.lost),
                synced: state.connections.get(id).is_some_and(|c| c.synced),
                allocatable: state.allocatable(node),
                taken: state.taken_on(*id).reserved,
                claimed: Reservation::default(),
                capacity: capacity(node),
                known: Known::Unwatched,
                lent: state.taken_on(*id).lent,
                grown: false,
            })
            .collect();
        let mut view = Self::of(seats);
        let claims = state.claiming.iter().filter_map(|id| state.containers.get(id));
        for (claim, container) in claims.filter_map(|c| Some((c.claim?, c))) {
            if let Some(at) = view.find(claim) {
                let seat = &mut view.seats[at];
                seat.claimed = seat.claimed.plus(container.spec.reservation);
            }
        }
        // What is to move there, and has no successor there yet.
        let moving = state.moving.iter().filter_map(|id| state.containers.get(id));
        for (moves, container) in moving.filter_map(|c| Some((c.moves.as_ref()?, c))) {
            let mut siblings = state.containers_of(container.service);
            let followed = siblings.any(|one| one.replaces == Some(container.id) && !one.removing);
            if let (false, Some(at)) = (followed, view.find(moves.to)) {
                let seat = &mut view.seats[at];
                seat.claimed = seat.claimed.plus(container.spec.reservation);
            }
        }
        view
    }

    /// With what is known of each node's load.
    #[must_use]
    pub fn with_loads(mut self, known: impl Fn(NodeId) -> Known) -> Self {
        for seat in &mut self.seats {
            seat.known = known(seat.node.id);
        }
        self
    }

    pub(super) fn find(&self, node: NodeId) -> Option<usize> {
        self.seats.binary_search_by_key(&node, |seat| seat.node.id).ok()
    }

    /// Gives back what a container took up on `node`.
    pub fn release(&mut self, node: NodeId, gone: &Footprint) {
        if let Some(at) = self.find(node) {
            let seat = &mut self.seats[at];
            seat.taken = seat.taken.minus(gone.reserved);
            seat.lent = seat.lent.minus(gone.idle);
            seat.known = seat.known.without(&gone.load);
        }
    }

    /// Exchanges what a container sets aside on `node`, and what it uses of what is idle there, for what another does, if that fits; false,
    /// and nothing changed, if not.
    pub fn exchange(&mut self, node: NodeId, old: &ContainerSpec, new: &ContainerSpec) -> bool {
        let Some(at) = self.find(node) else { return false };
        let seat = &mut self.seats[at];
        let taken = seat.taken.minus(old.reservation);
        let lent = seat.lent.minus(old.idle_use());
        // Less than before always fits, even on a node whose capacity has shrunk below what is taken.
        let fits = |was: Reservation, is: Reservation, rest: Reservation| {
            let shrinks = is.cpu <= was.cpu && is.memory <= was.memory && is.disk <= was.disk;
            shrinks || filter::room(seat.allocatable, rest, is).is_none()
        };
        if !fits(old.reservation, new.reservation, taken.plus(seat.claimed)) {
            return false;
        }
        let held = taken.plus(new.reservation).plus(seat.claimed);
        if !fits(old.idle_use(), new.idle_use(), held.plus(lent)) {
            return false;
        }
        seat.grown |= old.reservation != new.reservation;
        (seat.taken, seat.lent) = (taken.plus(new.reservation), lent.plus(new.idle_use()));
        true
    }
}
