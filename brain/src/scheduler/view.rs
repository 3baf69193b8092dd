//! What a search looks at: every node with what is free on it, counting what the same plan has already placed (R4).

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use berth_common::id::NodeId;
use berth_common::model::{ContainerSpec, Reservation};

use super::affinity::Domains;
use super::filter;
use super::forecast::{Loads, minus, plus};
use super::load::Watermarks;
use super::seat::{Seat, Seats, Watcher};
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

/// Every node with what is free on it, in the order of ids.
#[derive(Debug, Clone)]
pub struct View<'a> {
    pub(super) seats: Seats<'a>,
    pub(super) marks: Watermarks,
    /// Nodes by the values of the labels that somebody was spread by.
    domains: RefCell<HashMap<String, Rc<Domains>>>,
    /// Nodes that have labels that somebody asked for, where they are few.
    labelled: RefCell<HashMap<String, Labelled>>,
}

/// Seats of the nodes that have one label, by its values; none: too many.
type Labelled = HashMap<String, Option<Rc<[usize]>>>;

impl<'a> View<'a> {
    fn over(seats: Seats<'a>) -> Self {
        Self {
            seats,
            marks: Watermarks::default(),
            domains: RefCell::default(),
            labelled: RefCell::default(),
        }
    }

    /// These nodes, in the order of ids.
    pub fn of(seats: Vec<Seat<'a>>) -> Self {
        Self::over(Seats::of(seats))
    }

    /// The nodes of `state`, of whose load nothing is known; `lost` overrides what their records say.
    pub fn new(state: &'a State, lost: &BTreeMap<NodeId, bool>) -> Self {
        let mut view = Self::over(Seats::from(state, lost.clone()));
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
            if let (false, Some(at)) = (state.is_followed(container), view.find(moves.to)) {
                let seat = &mut view.seats[at];
                seat.claimed = seat.claimed.plus(container.spec.reservation);
            }
        }
        view
    }

    /// With what is known of each node's load.
    #[must_use]
    pub fn with_loads(mut self, watcher: &'a dyn Watcher) -> Self {
        self.seats.watch(watcher);
        self
    }

    /// All nodes as they are now.
    pub fn all(&self) -> impl Iterator<Item = &Seat<'a>> {
        (0..self.seats.len()).map(|at| &self.seats[at])
    }

    /// The nodes by the values of a label. They are sorted once for all that are spread by it.
    pub(super) fn domains(&self, by: &str) -> Rc<Domains> {
        if let Some(found) = self.domains.borrow().get(by) {
            return found.clone();
        }
        let made = Rc::new(self.seats.domains(by));
        self.domains.borrow_mut().insert(by.to_owned(), made.clone());
        made
    }

    /// The nodes with a label, in order, if these are no more than `most` and it is known without looking at each; the same `most` for all of a view.
    pub(super) fn labelled(&self, key: &str, value: &str, most: usize) -> Option<Rc<[usize]>> {
        let mut all = self.labelled.borrow_mut();
        if let Some(found) = all.get(key).and_then(|values| values.get(value)) {
            return found.clone();
        }
        let made: Option<Rc<[usize]>> = self.seats.labelled(key, value, most).map(Rc::from);
        all.entry(key.to_owned())
            .or_default()
            .insert(value.to_owned(), made.clone());
        made
    }

    pub(super) fn find(&self, node: NodeId) -> Option<usize> {
        self.seats.find(node)
    }

    /// Gives back what a container took up on `node`.
    pub fn release(&mut self, node: NodeId, gone: &Footprint) {
        if let Some(at) = self.find(node) {
            let seat = &mut self.seats[at];
            seat.taken = seat.taken.minus(gone.reserved);
            seat.lent = seat.lent.minus(gone.idle);
            seat.change(|known| *known = known.without(&gone.load));
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
