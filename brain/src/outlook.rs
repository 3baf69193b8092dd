//! The outlook: what nodes are expected to use, kept in step with what was decided and what agents report.
//!
//! Owns the [`Forecast`] of the cluster and the lock around it. The one writer tells it of every container that it gives to a node, before
//! that is committed even, so that the next of the same batch sees it; a batch that fails is told as a whole anew. Samples come from the
//! usage book, one every ten seconds of each node.

use std::collections::BTreeMap;

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, ContainerSpec};
use berth_common::protocol::{ContainerUsage, NodeUsage};
use parking_lot::{Mutex, MutexGuard};

use crate::cluster::{Change, State};
use crate::scheduler::forecast::{
    CPU, Consumer, DISK, Forecast, Loads, MEMORY, NETWORK, RESOURCES, Sample, Told, minus, plus,
};
use crate::scheduler::load::Known;

type Held = Forecast<NodeId, ContainerId, ServiceId>;

/// The forecast of the cluster.
#[derive(Default)]
pub struct Watched(Mutex<Held>);

/// The outlook at one time, seconds since the brain started. It stays as it is while it is held, so that a plan sees one; nothing is told to
/// the forecast meanwhile.
pub struct At<'a> {
    held: MutexGuard<'a, Held>,
    now: u32,
    supposed: Supposed,
}

/// What would be otherwise if containers were elsewhere than they are: for questions, never for decisions.
#[derive(Debug, Clone, Default)]
pub struct Supposed {
    /// Containers that the forecast does not know, or knows elsewhere.
    containers: BTreeMap<ContainerId, Told>,
    /// What comes to each node, and what goes from it.
    nodes: BTreeMap<NodeId, (Loads, Loads)>,
}

fn consumer(service: ServiceId, spec: &ContainerSpec) -> Consumer<ServiceId> {
    let mut limits = [0.0; RESOURCES];
    limits[CPU] = spec.limits.cpu.0 as f32;
    limits[MEMORY] = spec.limits.memory.0 as f32;
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
        rest(together(usage.disk_read_bps, usage.disk_write_bps), DISK),
        rest(together(usage.net_rx_bps, usage.net_tx_bps), NETWORK),
    ]
}

/// What is foreign on a node, and what its containers use.
pub type Samples = (Sample, Vec<(ContainerId, Sample)>);

/// Samples of what a node last said of itself and its containers.
pub fn samples<'u>(usage: &NodeUsage, containers: impl Iterator<Item = &'u ContainerUsage>) -> Samples {
    let containers: Vec<_> = containers.map(|one| (one.id, of_container(one))).collect();
    (foreign(usage, &containers), containers)
}

impl Watched {
    /// A container was given to a node, or taken from one.
    pub fn follow(&self, change: &Change) {
        let mut held = self.0.lock();
        match change {
            Change::PutContainer(record) => assign(&mut held, record),
            Change::DeleteContainer(id) => {
                held.unassign(*id);
            }
            Change::DeleteNode(id) => held.forget(*id),
            _ => {}
        }
    }

    /// Takes over where everything is; what was seen of what is still there stays.
    pub fn reset(&self, state: &State) {
        let mut held = self.0.lock();
        held.keep(|container| state.containers.contains_key(&container));
        for record in state.containers.values() {
            assign(&mut held, record);
        }
    }

    /// Whether a report of this node is worth a sample now, seconds since the brain started.
    pub fn due(&self, node: NodeId, now: u32) -> bool {
        self.0.lock().due(node, now)
    }

    /// What a node and its containers used, by [`samples`].
    pub fn record(&self, node: NodeId, now: u32, (foreign, containers): Samples) {
        self.0.lock().report(node, now, foreign, containers);
    }

    /// As it is at `mono_ms`, milliseconds since the brain started.
    pub fn at(&self, mono_ms: u64) -> At<'_> {
        At {
            held: self.0.lock(),
            now: seconds(mono_ms),
            supposed: Supposed::default(),
        }
    }
}

/// Seconds of a monotonic time in milliseconds.
pub fn seconds(mono_ms: u64) -> u32 {
    u32::try_from(mono_ms / 1_000).unwrap_or(u32::MAX)
}

fn assign(forecast: &mut Held, record: &ContainerRecord) {
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
        Some(Parts {
            foreign: self.held.foreign(node, self.now)?,
            containers: self.held.containers(node),
        })
    }

    /// What a node uses by what was measured; none of one that said nothing of late.
    pub fn measured(&self, node: NodeId) -> Option<Loads> {
        self.held.measured(node, self.now)
    }

    /// What is known of a container's load.
    pub fn container(&self, container: ContainerId) -> Option<Told> {
        let supposed = self.supposed.containers.get(&container).copied();
        supposed.or_else(|| self.held.container(container))
    }

    /// With what was supposed before.
    #[must_use]
    pub fn given(mut self, supposed: Supposed) -> Self {
        self.supposed = supposed;
        self
    }

    /// What is supposed, so that it can be given to another outlook.
    pub fn into_supposed(self) -> Supposed {
        self.supposed
    }

    /// Supposes a change of `before`.
    pub fn suppose(&mut self, before: &State, change: &Change) {
        let (id, new) = match change {
            Change::PutContainer(record) => (record.id, Some(record)),
            Change::DeleteContainer(id) => (*id, None),
            _ => return,
        };
        let old = before.containers.get(&id).and_then(|old| old.node);
        let node = new.and_then(|record| record.node);
        if old == node {
            return;
        }
        let newcomer = |record: &ContainerRecord| Told {
            expected: self.newcomer(record.service, &record.spec),
            own: None,
        };
        // What moves begins anew: its successor is as little known as any.
        let (was, is) = (self.container(id), new.map(newcomer));
        if let (Some(node), Some(was)) = (old, was) {
            let (_, gone) = self.supposed.nodes.entry(node).or_default();
            *gone = plus(*gone, was.expected);
        }
        if let (Some(node), Some(is)) = (node, is) {
            let (added, _) = self.supposed.nodes.entry(node).or_default();
            *added = plus(*added, is.expected);
            self.supposed.containers.insert(id, is);
        }
    }

    /// What is known of a node's load.
    pub fn known(&self, node: NodeId) -> Known {
        match self.held.node(node, self.now) {
            Some(loads) => Known::Expected(match self.supposed.nodes.get(&node) {
                Some((added, gone)) => minus(plus(loads, *added), *gone),
                None => loads,
            }),
            // One that has only just come has not had the time to say anything; it comes after all whose load is known.
            None if self.held.never_heard(node) => Known::Unwatched,
            None => Known::Silent,
        }
    }

    /// What a new container of a service is expected to use.
    pub fn newcomer(&self, service: ServiceId, spec: &ContainerSpec) -> Loads {
        self.held.newcomer(&consumer(service, spec))
    }
}
