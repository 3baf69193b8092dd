//! Controllers: what must change so that the cluster becomes what its users asked for. All pure.
//!
//! The one writer runs [`plan`] after every batch of writes, on the state that contains them, and commits what it returns
//! in the same transaction. So a service and the placement of its containers become durable and visible together.

pub mod balance;
pub mod commands;
mod context;
pub mod decisions;
mod dirty;
pub mod endpoints;
pub mod explained;
pub mod foreseen;
pub mod moves;
pub mod nodes;
pub mod pack;
mod policy;
mod preemption;
mod respread;
mod retention;
mod rollout;
mod seating;
pub mod services;
mod snapshots;
pub mod view;
mod volume_moves;
pub mod volumes;
mod wishes;

#[cfg(test)]
mod affinity_cases;
#[cfg(test)]
mod balance_cases;
#[cfg(test)]
mod best_effort_cases;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod explained_cases;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod network_cases;
#[cfg(test)]
mod node_cases;
#[cfg(test)]
mod pack_cases;
#[cfg(test)]
mod placement_cases;
#[cfg(test)]
mod placement_sim;
#[cfg(test)]
mod policy_cases;
#[cfg(test)]
mod preemption_cases;
#[cfg(test)]
mod preemption_sim;
#[cfg(test)]
mod respread_cases;
#[cfg(test)]
mod sim;
#[cfg(test)]
mod sim_checks;
#[cfg(test)]
mod sim_rules;
#[cfg(test)]
mod snapshot_cases;
#[cfg(test)]
mod volume_cases;
#[cfg(test)]
mod volume_model;
#[cfg(test)]
mod volume_model_search;
#[cfg(test)]
mod volume_move_cases;
#[cfg(test)]
mod volume_sim;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use berth_common::id::{ContainerId, Name, NodeId, ServiceId, VolumeId};
use berth_common::model::UnixMillis;

use crate::cluster::{Change, State};
use crate::outlook;
use crate::scheduler::preempt::Rank;
use context::Context;
use decisions::Tally;

/// Time as plans see it: an input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Wall clock, for people.
    pub wall: UnixMillis,
    /// Monotonic milliseconds since the brain started, for leases and delays.
    pub mono_ms: u64,
}

/// What has changed since the last plan. Small on a quiet cluster, so that planning costs what changed and not what exists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Look at everything.
    pub all: bool,
    /// Services to look at.
    pub services: BTreeSet<ServiceId>,
    /// Volumes to look at.
    pub volumes: BTreeSet<VolumeId>,
    /// Nodes whose liveness or settings changed.
    pub nodes: BTreeSet<NodeId>,
    /// Room may have come free: what waits for some is tried again.
    pub freed: bool,
    /// A service went, or left a network: its addresses may come free.
    pub addresses: bool,
    /// Look at leases and expiry times. The writer sets it in its periodic tick (once a second is fine).
    pub leases: bool,
}

/// What a plan is made from.
pub struct Input<'a> {
    /// The cluster, with the changes that made it dirty.
    pub state: &'a State,
    /// What to look at.
    pub dirty: &'a Dirty,
    /// Now.
    pub now: Now,
    /// Monotonic milliseconds at which a node was last heard; none if never since the brain started (which was at 0).
    pub last_heard: &'a dyn Fn(NodeId) -> Option<u64>,
    /// Silence after which a node is lost, milliseconds.
    pub lease_ms: u64,
    /// Until when nodes that were never heard count as just heard, monotonic milliseconds.
    pub patient_until_ms: u64,
    /// What is known of load.
    pub outlook: &'a outlook::At<'a>,
}

/// Something to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    /// Short kind.
    pub kind: &'static str,
    /// Tenant it concerns.
    pub tenant: Option<Name>,
    /// Object it concerns.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

/// What to do. Every change carries all its parameters.
#[derive(Debug, Default)]
pub struct Plan {
    /// Changes, in order: removals before additions.
    pub changes: Vec<Change>,
    /// What to tell people.
    pub events: Vec<NewEvent>,
    /// Plan again at this monotonic time even if nothing changes (settling, backing off).
    pub recheck_at_ms: Option<u64>,
    /// Services to look at then.
    pub recheck: BTreeSet<ServiceId>,
    /// Services whose policies are to be asked, once the rest is committed: containers wait for their word.
    pub wanted: BTreeSet<ServiceId>,
    /// What was decided, counted.
    pub decisions: Tally,
}

/// Fresh container ids; an input like time.
pub type NewIds<'a> = dyn FnMut() -> ContainerId + 'a;

impl Plan {
    /// What to look at when [`Plan::recheck_at_ms`] comes.
    pub fn recheck_dirty(&self) -> Dirty {
        Dirty {
            services: self.recheck.clone(),
            leases: true,
            ..Dirty::default()
        }
    }

    /// Nothing to commit and nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.events.is_empty()
    }
}

/// What must change now. Equal inputs (with equal fresh ids) give equal plans.
pub fn plan(input: &Input<'_>, new_id: &mut NewIds<'_>) -> Plan {
    let mut cx = Context::new(input, new_id);
    let dirty = input.dirty;
    let mut services = dirty.services.clone();
    let mut freed = dirty.freed || dirty.all;
    if dirty.all || dirty.leases || !dirty.nodes.is_empty() || dirty.services.is_empty() {
        let turned = nodes::leases(&mut cx);
        freed |= !turned.is_empty();
        for node in turned {
            services.extend(input.state.containers_on(node).map(|c| c.service));
        }
        nodes::expiries(&mut cx);
    }
    if dirty.all {
        services.extend(input.state.services.keys().copied());
        services.extend(input.state.by_service.keys().copied());
    }
    for service in &services {
        freed |= nodes::sweep(&mut cx, *service);
    }
    if freed {
        services.extend(nodes::waiting(&cx));
    }
    if dirty.all || dirty.addresses {
        cx.release_addresses();
    }
    // The highest first: what they take or preempt the others need not be planned twice for.
    let rank = |id: &ServiceId| {
        input
            .state
            .services
            .get(id)
            .map(|service| Rank::of(&service.spec))
    };
    let mut services: Vec<ServiceId> = services.into_iter().collect();
    services.sort_by_key(|id| Reverse(rank(id)));
    let last = services.partition_point(|id| rank(id).is_some_and(|rank| rank.standard));
    let best_effort = services.split_off(last);
    for service in services {
        if !cx.preemption.disturbed.contains(&service) {
            services::plan_service(&mut cx, service);
        }
        cx.planned.insert(service);
    }
    // What is reserved now is idle no more; best-effort containers get what is left after that.
    preemption::displace(&mut cx);
    for service in best_effort {
        if !cx.preemption.disturbed.contains(&service) {
            services::plan_service(&mut cx, service);
        }
        cx.planned.insert(service);
    }
    let mut volumes = dirty.volumes.clone();
    if dirty.all {
        volumes.extend(input.state.volumes.keys().copied());
    }
    if dirty.leases {
        volumes.extend(snapshots::due(&cx));
    }
    let turned: BTreeSet<NodeId> = cx.turned.keys().chain(&dirty.nodes).copied().collect();
    for node in turned {
        volumes.extend(input.state.volumes_on.get(&node).into_iter().flatten().copied());
    }
    if freed {
        volumes.extend(volumes::waiting(input.state));
    }
    // Volumes of one service wait for one another's containers.
    let mounting = cx.planned.iter().filter(|id| input.state.mounting.contains(*id));
    let containers = mounting.flat_map(|id| input.state.containers_of(*id));
    let mounted = containers.flat_map(|c| input.state.volumes_of(c)).flatten();
    volumes.extend(mounted.map(|volume| volume.id));
    volumes::plan(&mut cx, &volumes);
    cx.finish()
}
