//! The outlook: what nodes are expected to use, kept in step with what was decided and what agents report.
//!
//! Owns the [`Forecast`] of the cluster and the lock around it. The one writer tells it of every container that it gives to a node, before
//! that is committed even, so that the next of the same batch sees it; a batch that fails is told as a whole anew. Samples come from the
//! usage book, one every ten seconds of each node.

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, ContainerSpec};
use berth_common::protocol::{ContainerUsage, NodeUsage};
use parking_lot::Mutex;

use crate::cluster::{Change, State};
use crate::scheduler::forecast::{Consumer, Forecast, Loads, RESOURCES, SAMPLE_SECS, Sample, Told};
use crate::scheduler::load::Known;

/// Seconds between looks at what there is to learn of services.
const LEARN_SECS: u32 = 60;

/// What placement asks about load.
pub trait Outlook {
    /// What is known of a node's load now.
    fn known(&self, node: NodeId) -> Known;
    /// What a new container of a service is expected to use.
    fn newcomer(&self, service: ServiceId, spec: &ContainerSpec) -> Loads;
}

/// Nobody watches load: placement is by reservations alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl Outlook for Unwatched {
    fn known(&self, _: NodeId) -> Known {
        Known::Unwatched
    }

    fn newcomer(&self, _: ServiceId, _: &ContainerSpec) -> Loads {
        Loads::default()
    }
}

#[derive(Default)]
struct Held {
    forecast: Forecast<NodeId, ContainerId, ServiceId>,
    learned: u32,
}

/// The forecast of the cluster.
#[derive(Default)]
pub struct Watched(Mutex<Held>);

/// The outlook at one time, seconds since the brain started.
pub struct At<'a> {
    watched: &'a Watched,
    now: u32,
}

fn consumer(service: ServiceId, spec: &ContainerSpec) -> Consumer<ServiceId> {
    let mut limits = [0.0; RESOURCES];
    limits[0] = spec.limits.cpu.0 as f32;
    limits[1] = spec.limits.memory.0 as f32;
    Consumer { service, limits }
}

fn together(one: Option<u64>, other: Option<u64>) -> Option<f32> {
    Some(one?.saturating_add(other?) as f32)
}

fn of_container(usage: &ContainerUsage) -> Sample {
    [
        usage.cpu.map(|cpu| cpu as f32),
        usage.memory.map(|memory| memory as f32),
        together(usage.read_bps, usage.write_bps),
        together(usage.net_rx_bps, usage.net_tx_bps),
    ]
}

/// What of a node's usage is no container's.
fn foreign(usage: &NodeUsage, containers: &[(ContainerId, Sample)]) -> Sample {
    let rest = |whole: Option<f32>, of: usize| {
        let ours: f32 = containers.iter().filter_map(|(_, sample)| sample[of]).sum();
        Some((whole? - ours).max(0.0))
    };
    [
        usage.cpu_foreign.map(|cpu| cpu as f32),
        usage.memory_foreign.map(|memory| memory as f32),
        rest(together(usage.disk_read_bps, usage.disk_write_bps), 2),
        rest(together(usage.net_rx_bps, usage.net_tx_bps), 3),
    ]
}

impl Watched {
    /// A container was given to a node, or taken from one.
    pub fn follow(&self, change: &Change) {
        let mut held = self.0.lock();
        match change {
            Change::PutContainer(record) => assign(&mut held.forecast, record),
            Change::DeleteContainer(id) => {
                held.forecast.unassign(*id);
            }
            Change::DeleteNode(id) => held.forecast.forget(*id),
            _ => {}
        }
    }

    /// Takes over where everything is; what was seen of what is still there stays.
    pub fn reset(&self, state: &State) {
        let mut held = self.0.lock();
        held.forecast
            .keep(|container| state.containers.contains_key(&container));
        for record in state.containers.values() {
            assign(&mut held.forecast, record);
        }
    }

    /// Whether a report of this node is worth a sample now, seconds since the brain started.
    pub fn due(&self, node: NodeId, now: u32) -> bool {
        self.0.lock().forecast.due(node, now)
    }

    /// A node's usage and that of its containers.
    pub fn sample<'u>(
        &self,
        node: NodeId,
        now: u32,
        usage: &NodeUsage,
        containers: impl Iterator<Item = &'u ContainerUsage>,
    ) {
        let containers: Vec<_> = containers.map(|one| (one.id, of_container(one))).collect();
        let foreign = foreign(usage, &containers);
        let mut held = self.0.lock();
        held.forecast.report(node, now, foreign, containers);
        if now >= held.learned + LEARN_SECS {
            held.learned = now;
            held.forecast.learn();
        }
    }

    /// As it is at `mono_ms`, milliseconds since the brain started.
    pub fn at(&self, mono_ms: u64) -> At<'_> {
        At {
            watched: self,
            now: seconds(mono_ms),
        }
    }
}

/// Seconds of a monotonic time in milliseconds.
pub fn seconds(mono_ms: u64) -> u32 {
    u32::try_from(mono_ms / 1_000).unwrap_or(u32::MAX)
}

fn assign(forecast: &mut Forecast<NodeId, ContainerId, ServiceId>, record: &ContainerRecord) {
    match record.node {
        Some(node) => forecast.assign(record.id, node, consumer(record.service, &record.spec)),
        None => {
            forecast.unassign(record.id);
        }
    }
}

/// A node's load, taken apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Parts {
    /// What no container of ours uses.
    pub foreign: Loads,
    /// What containers are expected to use.
    pub containers: Loads,
}

impl At<'_> {
    /// What a node is expected to use; none of one that said nothing of late.
    pub fn parts(&self, node: NodeId) -> Option<Parts> {
        let held = self.watched.0.lock();
        Some(Parts {
            foreign: held.forecast.foreign(node, self.now)?,
            containers: held.forecast.containers(node),
        })
    }

    /// What a node uses by what was measured; none of one that said nothing of late.
    pub fn measured(&self, node: NodeId) -> Option<Loads> {
        self.watched.0.lock().forecast.measured(node, self.now)
    }

    /// What is known of a container's load.
    pub fn container(&self, container: ContainerId) -> Option<Told> {
        self.watched.0.lock().forecast.container(container)
    }
}

impl Outlook for At<'_> {
    fn known(&self, node: NodeId) -> Known {
        let held = self.watched.0.lock();
        match held.forecast.node(node, self.now) {
            Some(loads) => Known::Expected(loads),
            // One that has only just come has not had the time to say anything; it comes after all whose load is known.
            None if held.forecast.never_heard(node) => Known::Unwatched,
            None => Known::Silent,
        }
    }

    fn newcomer(&self, service: ServiceId, spec: &ContainerSpec) -> Loads {
        self.watched.0.lock().forecast.newcomer(&consumer(service, spec))
    }
}

/// Seconds between rounds that look at load: one of new samples each.
pub const ROUND_SECS: u32 = SAMPLE_SECS;
