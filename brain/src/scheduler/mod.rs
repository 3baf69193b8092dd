//! The scheduler: which node takes a container.
//!
//! Owns filters, scores and explanations, over a [`View`] of all nodes that counts what the same plan has already
//! placed, so that one plan never overbooks (R4). Refuses to know anything of rollouts or lost nodes: those are the
//! controllers'. Measured load enters as what each node and the container to place are expected to use ([`forecast`]).

pub mod affinity;
pub mod compare;
pub mod constraints;
pub mod explain;
pub mod filter;
pub mod forecast;
pub mod idle;
pub mod load;
pub mod predict;
pub mod preempt;
pub mod rebalance;
pub mod score;
pub mod taints;
mod view;

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{NodeId, TenantId};
use berth_common::model::Reservation;

use affinity::Distribution;
pub use constraints::Constraints;
pub use explain::Refusal;
use filter::Obstacle;
use forecast::Loads;
pub use view::{Footprint, Seat, View, capacity};

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
}

/// One request's search: the checks that placements don't change are made once for any number of equal containers.
#[derive(Debug)]
pub struct Search {
    asked: Reservation,
    load: Loads,
    /// What it uses of what is idle; nothing where it reserves what it needs.
    idle: Reservation,
    eligible: Vec<Candidate>,
    /// Replicas of its service by seat, where there are any and the node is not lost.
    replicas: BTreeMap<usize, u32>,
    standing: Refusal,
    /// How replicas are distributed, where that matters.
    distribution: Option<Distribution>,
}

#[derive(Debug)]
struct Candidate {
    seat: usize,
    replicas: u32,
    image: bool,
    /// What its standing properties take from its score.
    reluctance: i64,
}

impl Search {
    /// Prepares a search for nodes that fit `request`.
    pub fn new(view: &View<'_>, request: &Request<'_>) -> Self {
        let mut standing = Refusal::of(request.reservation);
        let mut eligible = Vec::new();
        for (at, seat) in view.seats.iter().enumerate() {
            match filter::STANDING.iter().find_map(|check| check(seat, request)) {
                Some(obstacle) => standing.add(obstacle, seat.node.name.as_str()),
                None => eligible.push(Candidate {
                    seat: at,
                    replicas: request.replicas.get(&seat.node.id).copied().unwrap_or(0),
                    image: request.image_on.contains(&seat.node.id),
                    reluctance: constraints::reluctance(seat, request),
                }),
            }
        }
        let live = |(node, count): (&NodeId, &u32)| {
            let seat = view.find(*node).filter(|seat| !view.seats[*seat].lost)?;
            (*count > 0).then_some((seat, *count))
        };
        let replicas = request.replicas.iter().filter_map(live).collect();
        let asked = &request.constraints;
        let matters = !asked.spread.is_empty() || asked.max_per_node.is_some();
        let distribution = matters.then(|| {
            let nodes = eligible.iter().map(|candidate: &Candidate| candidate.seat);
            Distribution::new(
                &view.seats,
                nodes,
                asked.spread,
                asked.max_per_node,
                &asked.replicas,
            )
        });
        Self {
            asked: request.reservation,
            load: request.load,
            idle: asked.idle,
            eligible,
            replicas,
            standing,
            distribution,
        }
    }

    /// What stands against a node as it is now; `leaving`: the node that another replica leaves for the one to be placed.
    fn obstacle(&self, view: &View<'_>, seat: usize, leaving: Option<usize>) -> Option<Obstacle> {
        let uneven = self.uneven(seat, leaving).map(Obstacle::Broken);
        let seat = &view.seats[seat];
        uneven
            .or_else(|| filter::room(seat.allocatable, seat.held(), self.asked))
            .or_else(|| self.lacks_idle(seat))
            .or_else(|| seat.busy(&self.load, &view.marks))
    }

    /// What of what is idle a best-effort container lacks there.
    fn lacks_idle(&self, seat: &Seat<'_>) -> Option<Obstacle> {
        if self.idle == Reservation::default() {
            return None;
        }
        idle::room(seat, self.idle).map(Obstacle::Broken)
    }

    /// The same, for the sake of other replicas alone.
    fn uneven(&self, seat: usize, leaving: Option<usize>) -> Option<constraints::Broken> {
        self.distribution.as_ref()?.obstacle(seat, leaving)
    }

    /// Counts one replica less that stays on a node, since this plan removes it.
    pub fn leave(&mut self, view: &View<'_>, node: NodeId) {
        if let (Some(distribution), Some(seat)) = (&mut self.distribution, view.find(node)) {
            distribution.leave(seat);
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

    fn best(&self, view: &View<'_>, leaving: Option<usize>) -> Option<usize> {
        let only = self.only(leaving);
        let mut best: Option<(i64, usize)> = None;
        for (index, candidate) in self.eligible.iter().enumerate() {
            if self.obstacle(view, candidate.seat, leaving).is_some() {
                continue;
            }
            let score = self.parts(view, candidate, leaving, only).total();
            // Strictly greater: of equals the smallest node id wins.
            if best.is_none_or(|(top, _)| score > top) {
                best = Some((score, index));
            }
        }
        best.map(|(_, index)| index)
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
        let candidate = &mut self.eligible[index];
        *self.replicas.entry(candidate.seat).or_insert(0) += 1;
        candidate.replicas += 1;
        if let Some(distribution) = &mut self.distribution {
            distribution.add(candidate.seat);
        }
        let seat = &mut view.seats[candidate.seat];
        seat.taken = seat.taken.plus(self.asked);
        seat.known.add(&self.load);
        seat.lent = seat.lent.plus(self.idle);
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
        if self.best(view, leaving).is_some() {
            Ok(())
        } else {
            Err(Box::new(self.refusal(view, leaving)))
        }
    }

    /// Whether `node` would fit once a replica of this footprint has gone from there.
    pub fn fits_after(&self, view: &View<'_>, node: NodeId, gone: &Footprint) -> bool {
        let Some(at) = view.find(node) else { return false };
        let uneven = self
            .distribution
            .as_ref()
            .and_then(|spread| spread.obstacle_after_one_went(at));
        self.eligible.iter().any(|candidate| candidate.seat == at)
            && uneven.is_none()
            && self.has_room(view, at, gone)
            && self.lacks_idle(&view.seats[at]).is_none()
    }

    /// Whether reservations and load leave room on a node once `gone` is given back there.
    fn has_room(&self, view: &View<'_>, seat: usize, gone: &Footprint) -> bool {
        let seat = &view.seats[seat];
        filter::room(seat.allocatable, seat.held().minus(gone.reserved), self.asked).is_none()
            && seat.busy_without(&gone.load, &self.load, &view.marks).is_none()
    }

    fn refusal(&self, view: &View<'_>, leaving: Option<usize>) -> Refusal {
        let mut refusal = self.standing.clone();
        for candidate in &self.eligible {
            let seat = &view.seats[candidate.seat];
            if let Some(obstacle) = self.obstacle(view, candidate.seat, leaving) {
                refusal.add(obstacle, seat.node.name.as_str());
            }
        }
        refusal
    }
}

/// Chooses a node for one container and takes its reservation there in `view`.
///
/// # Errors
/// Why no node fits.
pub fn place(view: &mut View<'_>, request: &Request<'_>) -> Result<NodeId, Box<Refusal>> {
    Search::new(view, request).place(view)
}

#[cfg(test)]
mod load_cases;
#[cfg(test)]
mod tests;
