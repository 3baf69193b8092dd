//! Series of services: how many replicas are wanted, and how many are there. Pure over a snapshot.

use berth_common::model::{Phase, RunState};

use crate::api::views::tenant_name;
use crate::cluster::State;

/// What is read of a service for one scrape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Its tenant's name.
    pub tenant: String,
    /// Its name.
    pub service: String,
    /// How many replicas there are to be; none while it is stopped.
    pub wanted: u32,
    /// How many run on nodes that are not lost.
    pub running: u32,
    /// How many of these take requests, as far as their checks say.
    pub healthy: u32,
    /// How many containers wait for a node.
    pub waiting: u32,
}

/// One series of every service.
pub struct Series {
    /// Its name without prefix.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// Its value.
    pub value: fn(&Reading) -> u32,
}

/// What is told of every service.
pub const SERIES: [Series; 4] = [
    Series {
        name: "service_replicas_wanted",
        help: "Replicas that there are to be; none while it is stopped",
        value: |s| s.wanted,
    },
    Series {
        name: "service_replicas_running",
        help: "Containers whose process runs, on nodes that are not lost",
        value: |s| s.running,
    },
    Series {
        name: "service_replicas_healthy",
        help: "Of those that run, containers that take requests by their checks",
        value: |s| s.healthy,
    },
    Series {
        name: "service_replicas_waiting",
        help: "Containers that wait for a node",
        value: |s| s.waiting,
    },
];

/// How all services stand.
pub fn readings(state: &State) -> Vec<Reading> {
    let all = state.services.values().map(|service| {
        let mut reading = Reading {
            tenant: tenant_name(state, service.tenant).to_string(),
            service: service.spec.name.to_string(),
            wanted: match service.run {
                RunState::Running => service.spec.replicas,
                RunState::Stopped | RunState::Unknown => 0,
            },
            running: 0,
            healthy: 0,
            waiting: 0,
        };
        for container in state.containers_of(service.id).filter(|c| !c.removing) {
            let Some(node) = container.node else {
                reading.waiting += 1;
                continue;
            };
            let lost = state.nodes.get(&node).is_none_or(|node| node.lost);
            let seen = state.observed.get(&container.id).filter(|_| !lost);
            reading.running += u32::from(seen.is_some_and(|seen| seen.phase == Phase::Running));
            reading.healthy += u32::from(seen.is_some_and(|seen| seen.serves()));
        }
        reading
    });
    all.collect()
}
