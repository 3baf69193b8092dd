//! Filters: what a node must be to take a container. Each check answers with the obstacle it met, and every obstacle
//! can explain itself (R9).

use berth_common::model::{NodeKind, Reservation};
use berth_common::units::{Bytes, Millicores};

use super::constraints::{self, Broken};
use super::{Request, Seat};

/// Why one node does not take a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Another tenant owns the node.
    Private,
    /// It is lost.
    Lost,
    /// Its agent is not connected, or has not yet said what runs there.
    Unreachable,
    /// It takes no new containers.
    Cordoned,
    /// Its containers are being moved away.
    Draining,
    /// Its agent has said nothing of its load of late.
    Silent,
    /// It lacks a label.
    Label(String),
    /// It does not satisfy what else the service asks of places.
    Broken(Broken),
    /// Not enough unreserved CPU; what is free.
    Cpu(Millicores),
    /// Not enough unreserved memory; what is free.
    Memory(Bytes),
    /// Not enough unreserved disk; what is free.
    Disk(Bytes),
    /// It is overcommitted, and more of its CPU would be in use than a placement may leave; percent of it.
    WarmCpu(u32),
    /// The same of memory, overcommitted or not.
    WarmMemory(u32),
}

/// A check that does not depend on what was placed before in the same plan.
pub type Standing = fn(&Seat<'_>, &Request<'_>) -> Option<Obstacle>;

/// Checks in the order in which they explain a refusal: what can never be helped comes first.
pub const STANDING: [Standing; 5] = [ownership, reachable, open, labels, constraints::standing];

/// A private node takes only its tenant's containers; a shared one takes everybody's (R6).
fn ownership(seat: &Seat<'_>, request: &Request<'_>) -> Option<Obstacle> {
    match seat.node.kind {
        NodeKind::Shared => None,
        NodeKind::Private { tenant } => (tenant != request.tenant).then_some(Obstacle::Private),
    }
}

/// What was said to a silent node may never arrive, and what runs on an unsynced one is not known.
fn reachable(seat: &Seat<'_>, _: &Request<'_>) -> Option<Obstacle> {
    if seat.lost {
        return Some(Obstacle::Lost);
    }
    (!seat.synced).then_some(Obstacle::Unreachable)
}

/// Draining implies cordoned, and is the better explanation of the two.
fn open(seat: &Seat<'_>, _: &Request<'_>) -> Option<Obstacle> {
    if seat.node.draining {
        return Some(Obstacle::Draining);
    }
    seat.node.cordoned.then_some(Obstacle::Cordoned)
}

fn labels(seat: &Seat<'_>, request: &Request<'_>) -> Option<Obstacle> {
    let missing = request
        .node_labels
        .iter()
        .find(|(key, value)| seat.node.label(key) != Some(value.as_str()));
    missing.map(|(key, value)| Obstacle::Label(format!("{key}={value}")))
}

/// R4: what is taken and what is asked stay within what is allocatable.
#[inline]
pub fn room(allocatable: Reservation, taken: Reservation, asked: Reservation) -> Option<Obstacle> {
    let free = allocatable.minus(taken);
    if asked.memory > free.memory {
        Some(Obstacle::Memory(free.memory))
    } else if asked.cpu > free.cpu {
        Some(Obstacle::Cpu(free.cpu))
    } else if asked.disk > free.disk {
        Some(Obstacle::Disk(free.disk))
    } else {
        None
    }
}
