//! Preemption: whose going would make room for a container that fits nowhere, on one node, and which node that had best be.
//!
//! Chosen is only among nodes where the container then really fits, everything else that it asks for included; so nobody goes for
//! nothing. What is being stopped already costs nobody anything: where that is enough, the answer is to wait there.

use std::cmp::Reverse;
use std::fmt;

use berth_common::id::{ContainerId, NodeId};
use berth_common::model::{Class, Reservation, ServiceSpec};
use berth_common::units::{Bytes, Millicores};

use super::{Footprint, Search, View, filter};

/// Nodes for which it is looked at closely who of so many would find a place elsewhere.
const LOOKED_AT: usize = 8;

/// Whom a container may preempt: those of lower rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// It reserves what it needs; those that use what is idle are below all of them.
    pub standard: bool,
    /// The service's priority.
    pub priority: i32,
}

impl Rank {
    /// Of a service's containers.
    pub const fn of(spec: &ServiceSpec) -> Self {
        Self {
            standard: !matches!(spec.class, Class::BestEffort),
            priority: spec.priority,
        }
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.standard {
            true => write!(f, "priority {}", self.priority),
            false => f.write_str("best-effort"),
        }
    }
}

/// A container that may be preempted.
#[derive(Debug, Clone, Copy)]
pub struct Victim {
    /// Which.
    pub id: ContainerId,
    /// Its rank.
    pub rank: Rank,
    /// What it takes up.
    pub footprint: Footprint,
}

/// Who is on a node, as far as preemption goes.
#[derive(Debug, Clone, Default)]
pub struct Occupants {
    /// Taken up by containers that are being stopped.
    pub going: Footprint,
    /// Those that may be preempted.
    pub victims: Vec<Victim>,
}

/// Room to be made on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eviction {
    /// Where.
    pub node: NodeId,
    /// Who goes; nobody where those that are being stopped are enough.
    pub victims: Vec<ContainerId>,
}

struct Candidate {
    seat: usize,
    victims: Vec<Victim>,
}

impl Candidate {
    fn highest(&self) -> Option<Rank> {
        self.victims.iter().map(|victim| victim.rank).max()
    }

    /// How many go, and how much of them: the less the better.
    fn loss(&self) -> (usize, Bytes, Millicores) {
        let all = self.victims.iter();
        let sum = all.fold(Reservation::default(), |sum, victim| {
            sum.plus(victim.footprint.reserved)
        });
        (self.victims.len(), sum.memory, sum.cpu)
    }
}

impl Search<'_> {
    /// The best node to make room on; none if no node would fit even then. `occupants` tells who is on a node; `elsewhere` takes another
    /// place for one of them in the view that it is given, if there is one.
    pub fn eviction(
        &self,
        view: &View<'_>,
        occupants: impl Fn(NodeId) -> Occupants,
        elsewhere: impl Fn(&mut View<'_>, ContainerId) -> bool,
    ) -> Option<Eviction> {
        let mut candidates: Vec<Candidate> = self
            .candidates
            .all(view, &self.request)
            .filter(|seat| self.uneven(view, *seat, None).is_none())
            .filter_map(|seat| {
                let victims = self.fewest(view, seat, occupants(view.seats[seat].node.id))?;
                Some(Candidate { seat, victims })
            })
            .collect();
        // Stable: of equals the smallest node id comes first.
        candidates.sort_by_key(|one| (one.highest(), one.loss()));
        let first = candidates.first()?.highest();
        let close = candidates.into_iter().take_while(|one| one.highest() == first);
        let best = close.take(LOOKED_AT).min_by_key(|one| {
            let mut trial = view.clone();
            let looked_at = one.victims.iter().take(LOOKED_AT);
            let placed = looked_at
                .filter(|victim| elsewhere(&mut trial, victim.id))
                .count();
            (one.victims.len() - placed, one.loss())
        })?;
        Some(Eviction {
            node: view.seats[best.seat].node.id,
            victims: best.victims.iter().map(|victim| victim.id).collect(),
        })
    }

    /// The fewest of the lowest ranks whose going makes room on a node; none if all of them are not enough.
    fn fewest(&self, view: &View<'_>, seat: usize, occupants: Occupants) -> Option<Vec<Victim>> {
        let fits = |gone: Footprint| self.has_room(view, seat, &occupants.going.plus(gone));
        let mut candidates = occupants.victims;
        // Of equal rank the largest first: fewer of them are enough.
        candidates.sort_by_key(|one| {
            let held = one.footprint.reserved;
            (one.rank, Reverse((held.memory, held.cpu, held.disk)), one.id)
        });
        let mut freed = Footprint::default();
        let mut going: Vec<Victim> = Vec::new();
        let mut rest = candidates.into_iter();
        while !fits(freed) {
            let next = rest.next()?;
            freed = freed.plus(next.footprint);
            going.push(next);
        }
        // Whoever is not needed after all stays, the highest first.
        for at in (0..going.len()).rev() {
            let without = freed.minus(going[at].footprint);
            if fits(without) {
                freed = without;
                going.remove(at);
            }
        }
        Some(going)
    }

    /// Whether it fits on this node.
    pub fn fits(&self, view: &View<'_>, node: NodeId) -> bool {
        view.find(node)
            .is_some_and(|seat| self.stands(view, seat) && self.obstacle(view, seat, None).is_none())
    }

    /// Takes a place on this node and no other, if it fits there.
    pub fn take(&mut self, view: &mut View<'_>, node: NodeId) -> bool {
        let Some(index) = self.candidates.index_of(view, &self.request, node) else {
            return false;
        };
        if !self.allows(view, self.candidates.found[index].seat, None) {
            return false;
        }
        self.occupy(view, index);
        true
    }

    /// Whether it fits on this node once `going` is given back there.
    pub fn fits_without(&self, view: &View<'_>, node: NodeId, going: &Footprint) -> bool {
        let Some(at) = view.find(node) else { return false };
        self.stands(view, at) && self.uneven(view, at, None).is_none() && self.has_room(view, at, going)
    }

    /// Whether it fits on this node as far as reservations go.
    pub fn fits_reserved(&self, view: &View<'_>, node: NodeId) -> bool {
        let Some(at) = view.find(node) else { return false };
        let seat = &view.seats[at];
        self.stands(view, at)
            && self.uneven(view, at, None).is_none()
            && filter::room(seat.allocatable, seat.held(), self.request.reservation).is_none()
    }

    /// Takes some place on a node other than `node`, if there is one.
    pub fn take_elsewhere(&mut self, view: &mut View<'_>, node: NodeId) -> bool {
        let here = view.find(node);
        let mut all = self.candidates.all(view, &self.request);
        let found = all.find(|seat| Some(*seat) != here && self.allows(view, *seat, here));
        let Some(node) = found.map(|seat| view.seats[seat].node.id) else {
            return false;
        };
        drop(all);
        let index = self.candidates.index_of(view, &self.request, node);
        index.map(|index| self.occupy(view, index)).is_some()
    }

    /// Keeps room on a node for one that is to come there.
    pub fn claim(&mut self, view: &mut View<'_>, node: NodeId) {
        let Some(seat) = view.find(node) else { return };
        view.seats[seat].claimed = view.seats[seat].claimed.plus(self.request.reservation);
        if let Some(distribution) = &mut self.distribution {
            distribution.add(&view.seats, seat);
        }
    }

    /// Gives up the room that was kept on a node, of this size.
    pub fn unclaim(&mut self, view: &mut View<'_>, node: NodeId, kept: Reservation) {
        let Some(seat) = view.find(node) else { return };
        view.unclaim(node, kept);
        if let Some(distribution) = &mut self.distribution {
            distribution.forget(&view.seats, seat);
        }
    }
}

impl View<'_> {
    /// Gives up the room that was kept on a node.
    pub fn unclaim(&mut self, node: NodeId, kept: Reservation) {
        if let Some(at) = self.find(node) {
            self.seats[at].claimed = self.seats[at].claimed.minus(kept);
        }
    }
}
