//! The scheduler: which node takes a container.
//!
//! Owns filters, scores and explanations, over a [`View`] of all nodes that counts what the same plan has already
//! placed, so that one plan never overbooks (R4). Refuses to know anything of rollouts or lost nodes: those are the
//! controllers'. Measured load enters as what each node and the container to place are expected to use ([`forecast`]).

pub mod affinity;
mod candidates;
pub mod compare;
pub mod constraints;
pub mod explain;
pub mod filter;
pub mod forecast;
pub mod gate;
pub mod idle;
pub mod load;
pub mod predict;
pub mod preempt;
pub mod rebalance;
pub mod score;
mod seat;
pub mod taints;
mod view;
pub mod volumes;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{NodeId, TenantId};
use berth_common::model::Reservation;

use affinity::Distribution;
use candidates::{Candidate, Candidates, FAR, GOOD};
pub use constraints::Constraints;
pub use explain::Refusal;
use filter::Obstacle;
use forecast::Loads;
use gate::Asked;
pub use seat::{Lazy, Seat, Watcher, capacity};
pub use view::{Footprint, View};

/// What is asked of a node.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// Whose container it is.
    pub tenant: TenantId,
    /// What it sets aside.
    pub reservation: Reservation,
    /// Labels its node must carry.
    pub node_labels: &'a BTreeMap<String, String>,
    /// Replicas of its service that each node has already.
    pub replicas: BTreeMap<NodeId, u32>,
    /// Nodes known to hold its image.
    pub image_on: BTreeSet<NodeId>,
    /// What else its service asks of places.
    pub constraints: Constraints<'a>,
    /// What it is expected to use.
    pub load: Loads,
    /// Which way the search goes through many nodes; equal inputs go the same way.
    pub seed: u64,
}

/// One request's search: the checks that placements don't change are made once for any number of equal containers.
#[derive(Debug)]
pub struct Search<'a> {
    request: Request<'a>,
    candidates: Candidates,
    /// Replicas of its service by seat, where there are any and the node is not lost.
    replicas: BTreeMap<usize, u32>,
    /// How replicas are distributed, where that matters.
    distribution: Option<Distribution>,
}

/// The best of the candidates looked at so far.
#[derive(Default)]
struct Best {
    /// The node that has all replicas of the service.
    only: Option<usize>,
    /// Its rank, and its place among the candidates.
    found: Option<((i64, Reverse<usize>), usize)>,
    looked: usize,
    fit: usize,
    good: usize,
}

impl Best {
    /// Whether more would hardly be better than these, of which `fit` had better have room.
    const fn is_enough(&self, fit: usize) -> bool {
        self.fit >= fit && self.good >= GOOD || self.found.is_some() && self.looked >= FAR
    }
}

impl<'a> Search<'a> {
    /// Prepares a search for nodes that fit `request`.
    pub fn new(view: &View<'_>, request: Request<'a>) -> Self {
        Self::over(view, request, false)
    }

    /// The same, but every node is scored for each placement: what the choice among fewer is held against.
    pub fn thorough(view: &View<'_>, request: Request<'a>) -> Self {
        Self::over(view, request, true)
    }

    fn over(view: &View<'_>, request: Request<'a>, all: bool) -> Self {
        let live = |(node, count): (&NodeId, &u32)| {
            let seat = view.find(*node).filter(|seat| !view.seats[*seat].lost)?;
            (*count > 0).then_some((seat, *count))
        };
        let first = Asked::by(&request);
        let asked = &request.constraints;
        let matters = !asked.spread.is_empty() || asked.max_per_node.is_some();
        let distribution = matters.then(|| {
            let could = |seat: usize| candidates::stands(view, &request, &first, seat);
            Distribution::new(view, could, asked.spread, asked.max_per_node, &asked.replicas)
        });
        Self {
            replicas: request.replicas.iter().filter_map(live).collect(),
            candidates: Candidates::new(view, &request, first, all),
            distribution,
            request,
        }
    }

    /// What stands against a node as it is now; `leaving`: the node that another replica leaves for the one to be placed.
    fn obstacle(&self, view: &View<'_>, seat: usize, leaving: Option<usize>) -> Option<Obstacle> {
        let uneven = self.uneven(view, seat, leaving).map(Obstacle::Broken);
        uneven.or_else(|| self.lacks(&view.seats[seat], view))
    }

    /// The same but for where other replicas are.
    fn lacks(&self, seat: &Seat<'_>, view: &View<'_>) -> Option<Obstacle> {
        filter::room(seat.allocatable, seat.held(), self.request.reservation)
            .or_else(|| self.lacks_idle(seat))
            .or_else(|| seat.busy(&self.request.load, &view.marks))
    }

    /// Whether nothing does.
    fn allows(&self, view: &View<'_>, seat: usize, leaving: Option<usize>) -> bool {
        let spread = self.distribution.as_ref();
        spread.is_none_or(|spread| spread.allows(&view.seats, seat, leaving))
            && self.lacks(&view.seats[seat], view).is_none()
    }

    /// What of what is idle a best-effort container lacks there.
    fn lacks_idle(&self, seat: &Seat<'_>) -> Option<Obstacle> {
        let idle = self.request.constraints.idle;
        if idle == Reservation::default() {
            return None;
        }
        idle::room(seat, idle).map(Obstacle::Broken)
    }

    /// The same, for the sake of other replicas alone.
    fn uneven(&self, view: &View<'_>, seat: usize, leaving: Option<usize>) -> Option<constraints::Broken> {
        self.distribution.as_ref()?.obstacle(&view.seats, seat, leaving)
    }

    /// Counts one replica less that stays on a node, since this plan removes it.
    pub fn leave(&mut self, view: &View<'_>, node: NodeId) {
        if let (Some(distribution), Some(seat)) = (&mut self.distribution, view.find(node)) {
            distribution.leave(&view.seats, seat);
        }
    }

    /// Whether it matters to one replica which node another leaves for it.
    pub fn asks_who_leaves(&self) -> bool {
        self.distribution.as_ref().is_some_and(Distribution::is_hard)
    }

    /// The node that has all replicas of the service, but for one that leaves `leaving`.
    fn only(&self, leaving: Option<usize>) -> Option<usize> {
        let stays = |(seat, count): &(&usize, &u32)| **count > u32::from(leaving == Some(**seat));
        let mut seats = self.replicas.iter().filter(stays).map(|(seat, _)| *seat);
        seats.next().filter(|_| seats.next().is_none())
    }

    /// The best of enough candidates, by its place among those found.
    fn best(&mut self, view: &View<'_>, leaving: Option<usize>) -> Option<usize> {
        let mut best = Best {
            only: self.only(leaving),
            ..Best::default()
        };
        let (wanted, enough) = (self.candidates.wanted(), self.candidates.enough());
        self.candidates.discover(view, &self.request, wanted);
        let (all, known) = (self.candidates.all_at_once(), self.candidates.found.len());
        for index in self.candidates.round() {
            self.look(view, index, leaving, &mut best);
            if !all && best.is_enough(enough) {
                break;
            }
        }
        self.candidates.turn_by(best.looked);
        // Too few of those have room and nothing against them: on through the rest.
        let mut looked = known;
        while !all && !best.is_enough(enough) {
            self.candidates.discover(view, &self.request, looked + wanted);
            let more = looked..self.candidates.found.len();
            if more.is_empty() {
                break;
            }
            looked = more.end;
            more.for_each(|index| self.look(view, index, leaving, &mut best));
        }
        best.found.map(|(_, index)| index)
    }

    fn look(&self, view: &View<'_>, index: usize, leaving: Option<usize>, best: &mut Best) {
        let candidate = &self.candidates.found[index];
        best.looked += 1;
        if !self.allows(view, candidate.seat, leaving) {
            return;
        }
        let parts = self.parts(view, candidate, leaving, best.only);
        best.fit += 1;
        let far = parts.standing.together != 0 && !self.candidates.nearest_first();
        let hindered = parts.standing.taints != 0 || far || parts.spread != 0;
        best.good += usize::from(candidate.replicas == 0 && !hindered);
        // Of equals the smallest node id wins.
        let rank = (parts.total(), Reverse(candidate.seat));
        if best.found.is_none_or(|(top, _)| rank > top) {
            best.found = Some((rank, index));
        }
    }

    /// Chooses a node and takes the reservation there in `view`.
    ///
    /// # Errors
    /// Why no node fits.
    pub fn place(&mut self, view: &mut View<'_>) -> Result<NodeId, Box<Refusal>> {
        self.place_for(view, None)
    }

    /// The same for one that takes the place of another, which leaves the node `leaving`.
    ///
    /// # Errors
    /// Why no node fits.
    pub fn place_for(
        &mut self,
        view: &mut View<'_>,
        leaving: Option<NodeId>,
    ) -> Result<NodeId, Box<Refusal>> {
        let leaving = leaving.and_then(|node| view.find(node));
        let Some(index) = self.best(view, leaving) else {
            return Err(Box::new(self.refusal(view, leaving)));
        };
        Ok(self.occupy(view, index))
    }

    /// Takes the place of one of the nodes in question.
    fn occupy(&mut self, view: &mut View<'_>, index: usize) -> NodeId {
        let asked = &self.request;
        self.candidates.count();
        let candidate = &mut self.candidates.found[index];
        *self.replicas.entry(candidate.seat).or_insert(0) += 1;
        candidate.replicas += 1;
        if let Some(distribution) = &mut self.distribution {
            distribution.add(&view.seats, candidate.seat);
        }
        let seat = &mut view.seats[candidate.seat];
        seat.taken = seat.taken.plus(asked.reservation);
        seat.change(|known| known.add(&asked.load));
        seat.lent = seat.lent.plus(asked.constraints.idle);
        seat.grown = true;
        seat.node.id
    }

    /// Whether a node fits now, without taking anything.
    ///
    /// # Errors
    /// Why none does.
    pub fn possible(&self, view: &View<'_>) -> Result<(), Box<Refusal>> {
        self.possible_for(view, None)
    }

    /// The same for one that takes the place of another, which leaves the node `leaving`.
    ///
    /// # Errors
    /// Why none does.
    pub fn possible_for(&self, view: &View<'_>, leaving: Option<NodeId>) -> Result<(), Box<Refusal>> {
        let leaving = leaving.and_then(|node| view.find(node));
        let mut all = self.candidates.all(view, &self.request);
        if all.any(|seat| self.allows(view, seat, leaving)) {
            return Ok(());
        }
        Err(Box::new(self.refusal(view, leaving)))
    }

    /// Whether `node` would fit once a replica of this footprint has gone from there.
    pub fn fits_after(&self, view: &View<'_>, node: NodeId, gone: &Footprint) -> bool {
        let Some(at) = view.find(node) else { return false };
        let uneven = self
            .distribution
            .as_ref()
            .and_then(|spread| spread.obstacle_after_one_went(&view.seats, at));
        self.stands(view, at)
            && uneven.is_none()
            && self.has_room(view, at, gone)
            && self.lacks_idle(&view.seats[at]).is_none()
    }

    /// What stands against a node whatever room it has.
    pub fn standing(&self, view: &View<'_>, node: NodeId) -> Option<Obstacle> {
        candidates::obstacle(view, &self.request, view.find(node)?)
    }

    /// Whether a node stands the checks that placements don't change.
    fn stands(&self, view: &View<'_>, seat: usize) -> bool {
        candidates::obstacle(view, &self.request, seat).is_none()
    }

    /// Whether reservations and load leave room on a node once `gone` is given back there.
    fn has_room(&self, view: &View<'_>, seat: usize, gone: &Footprint) -> bool {
        let seat = &view.seats[seat];
        let asked = &self.request;
        filter::room(
            seat.allocatable,
            seat.held().minus(gone.reserved),
            asked.reservation,
        )
        .is_none()
            && seat.busy_without(&gone.load, &asked.load, &view.marks).is_none()
    }

    fn refusal(&self, view: &View<'_>, leaving: Option<usize>) -> Refusal {
        let mut refusal = self.candidates.refusal(view, &self.request);
        for seat in self.candidates.all(view, &self.request) {
            if let Some(obstacle) = self.obstacle(view, seat, leaving) {
                refusal.add(obstacle, view.seats[seat].node.name.as_str());
            }
        }
        refusal
    }
}

/// Chooses a node for one container and takes its reservation there in `view`.
///
/// # Errors
/// Why no node fits.
pub fn place(view: &mut View<'_>, request: Request<'_>) -> Result<NodeId, Box<Refusal>> {
    Search::new(view, request).place(view)
}

#[cfg(test)]
mod load_cases;
#[cfg(test)]
mod tests;
