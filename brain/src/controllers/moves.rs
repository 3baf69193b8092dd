//! What moves by itself: away from nodes that are hot first, else to nodes that came.

use berth_common::id::{ContainerId, NodeId};

use super::balance::{self, Decided};
use super::respread;
use crate::cluster::State;
use crate::outlook::At;
use crate::scheduler::rebalance;

/// What is remembered from round to round.
#[derive(Default)]
pub struct Memory {
    hot: rebalance::Memory<NodeId, ContainerId>,
    came: respread::Memory,
}

/// One round's moves. `now`: seconds of any steady clock. `outlook` is taken as often as it is needed, and given back.
pub fn decide<'o>(state: &State, outlook: &dyn Fn() -> At<'o>, memory: &mut Memory, now: u32) -> Decided {
    let cooled = balance::round(state, &outlook(), &mut memory.hot, now);
    if !cooled.moves.is_empty() {
        // What cools a node may be the very move that its services ask for.
        return cooled;
    }
    let spread = respread::round(state, outlook, &mut memory.came, now);
    Decided {
        moves: spread.moves,
        events: cooled.events,
        wanted: &cooled.wanted | &spread.wanted,
    }
}
