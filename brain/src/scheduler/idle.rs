//! Best-effort containers: room for them is what reservations leave idle, less what others of their kind use already. They count against no
//! reservation (R4); where somebody reserves what they use, they go.

use berth_common::id::NodeId;
use berth_common::model::Reservation;

use super::constraints::Broken;
use super::filter::{self, Obstacle};
use super::{Seat, View};

/// Taken from a node's score where best-effort containers would have to go: it is used before replicas crowd and before nodes that would
/// rather have none.
const DISPLACES: i64 = 2_000;

/// What a node lacks of what a best-effort container uses.
pub fn room(seat: &Seat<'_>, need: Reservation) -> Option<Broken> {
    match filter::room(seat.allocatable, seat.held().plus(seat.lent), need)? {
        Obstacle::Memory(idle) => Some(Broken::IdleMemory {
            need: need.memory,
            idle,
        }),
        Obstacle::Cpu(idle) => Some(Broken::IdleCpu { need: need.cpu, idle }),
        _ => None,
    }
}

/// Whether some of what best-effort containers use on a node is reserved by others, once `more` is.
fn overdrawn(seat: &Seat<'_>, more: Reservation) -> bool {
    exceeds(seat, more, seat.lent)
}

fn exceeds(seat: &Seat<'_>, more: Reservation, lent: Reservation) -> bool {
    let all = seat.taken.plus(more).plus(lent);
    lent != Reservation::default() && (all.memory > seat.allocatable.memory || all.cpu > seat.allocatable.cpu)
}

/// What it takes from a node's score that somebody has to go.
pub fn reluctance(seat: &Seat<'_>, asked: Reservation) -> i64 {
    if overdrawn(seat, asked) { DISPLACES } else { 0 }
}

impl View<'_> {
    /// Nodes on which this plan has reserved what best-effort containers use.
    pub fn displacing(&self) -> Vec<NodeId> {
        let all = self
            .seats
            .looked_at()
            .filter(|seat| seat.grown && overdrawn(seat, Reservation::default()));
        all.map(|seat| seat.node.id).collect()
    }

    /// Whether best-effort containers use what is reserved even once those that use `stopped` are gone.
    pub fn overdrawn_without(&self, node: NodeId, stopped: Reservation) -> bool {
        let Some(at) = self.find(node) else { return false };
        let seat = &self.seats[at];
        exceeds(seat, Reservation::default(), seat.lent.minus(stopped))
    }
}
