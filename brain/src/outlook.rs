//! The outlook: what nodes are expected to use, kept in step with what was decided and what agents report.
//!
//! Owns the [`Forecast`] of the cluster and the lock around it. The one writer tells it of every container that it gives to a node, before
//! that is committed even, so that the next of the same batch sees it; a batch that fails is told as a whole anew. Samples come from the
//! usage book, one every ten seconds of each node. What operators' policies said ([`Book`]) is kept beside it, since plans need both, as one
//! view that stays as it is while they look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::api::ExpectedLoad;
use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, ContainerSpec, ServiceRecord};
use berth_common::protocol::{ContainerUsage, NodeUsage};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use crate::cluster::{Change, State};
use crate::policies::{Book, Opinion, PolicySettings, Verdict};
use crate::scheduler::Watcher;
use crate::scheduler::forecast::{
    CPU, Consumer, DISK, Estimate, Forecast, Loads, MEMORY, NETWORK, RESOURCES, Sample, Told, minus, plus,
};
use crate::scheduler::load::{Known, Watermarks};
use crate::scheduler::predict::Learned;

type Held = Forecast<NodeId, ContainerId, ServiceId>;

/// The forecast of the cluster, and what operators' policies said.
#[derive(Default)]
pub struct Watched {
    forecast: Mutex<Held>,
    /// Taken after the forecast where both are.
    policies: Mutex<Book>,
    wanted: Notify,
}

/// The outlook at one time, seconds since the brain started. It stays as it is while it is held, so that a plan sees one; nothing is told to
/// the forecast meanwhile.
pub struct At<'a> {
    held: MutexGuard<'a, Held>,
    policies: MutexGuard<'a, Book>,
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
    /// With policies that may be asked.
    pub fn with_policies(policies: &[PolicySettings]) -> Self {
        Self {
            policies: Mutex::new(Book::new(policies)),
            ..Self::default()
        }
    }

    /// Plans wait for the word of these services' policies.
    pub fn want(&self, services: BTreeSet<ServiceId>) {
        if !services.is_empty() {
            self.policies.lock().want(services);
            self.wanted.notify_one();
        }
    }

    /// Comes back when somebody may have to be asked. Cancel-safe.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// Changes what is known of policies.
    pub fn policies(&self) -> MutexGuard<'_, Book> {
        self.policies.lock()
    }

    /// A container was given to a node, or taken from one.
    pub fn follow(&self, change: &Change) {
        let mut held = self.forecast.lock();
        match change {
            Change::PutContainer(record) => assign(&mut held, record),
            Change::DeleteContainer(id) => {
                held.unassign(*id);
            }
            Change::DeleteNode(id) => held.forget(*id),
            Change::DeleteService(id) => {
                held.forget_estimate(*id);
                self.policies.lock().forget(*id);
            }
            _ => {}
        }
    }

    /// Takes over where everything is; what was seen of what is still there stays, and what was learned. Of services that nothing was
    /// learned of, what the state has of them.
    pub fn reset(&self, state: &State) {
        let mut held = self.forecast.lock();
        for (service, learned) in &state.estimates {
            held.recall(*service, *learned);
        }
        held.keep(|container| state.containers.contains_key(&container));
        for record in state.containers.values() {
            assign(&mut held, record);
        }
    }

    /// What was learned of services of this state that says something else than what the state has of them. What was learned of others is
    /// forgotten.
    pub fn learned(&self, state: &State) -> Vec<(ServiceId, Estimate)> {
        let mut held = self.forecast.lock();
        // Containers that are being removed may outlive their service.
        held.keep_estimates(|service| state.services.contains_key(&service));
        let all: Vec<_> = held.estimates().map(|(id, learned)| (id, *learned)).collect();
        drop(held);
        let new = |(id, learned): &(ServiceId, Estimate)| {
            let finite = learned.iter().all(Learned::is_finite);
            let kept = state.estimates.get(id);
            let mut pairs = kept.into_iter().flat_map(|kept| learned.iter().zip(kept));
            finite && (kept.is_none() || pairs.any(|(one, other)| one.differs(other)))
        };
        all.into_iter().filter(new).collect()
    }

    /// Whether a report of this node is worth a sample now, seconds since the brain started.
    pub fn due(&self, node: NodeId, now: u32) -> bool {
        self.forecast.lock().due(node, now)
    }

    /// What a node and its containers used, by [`samples`].
    pub fn record(&self, node: NodeId, now: u32, (foreign, containers): Samples) {
        self.forecast.lock().report(node, now, foreign, containers);
    }

    /// As it is at `mono_ms`, milliseconds since the brain started.
    pub fn at(&self, mono_ms: u64) -> At<'_> {
        At {
            held: self.forecast.lock(),
            policies: self.policies.lock(),
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

impl Parts {
    /// In the API's words.
    pub fn shown(self) -> ExpectedLoad {
        let all = plus(self.foreign, self.containers);
        ExpectedLoad {
            cpu: all[CPU].mean as u32,
            cpu_high: all[CPU].high(Watermarks::default().deviations) as u32,
            cpu_foreign: self.foreign[CPU].mean as u32,
            memory: all[MEMORY].mean as u64,
            memory_foreign: self.foreign[MEMORY].mean as u64,
            disk_bps: all[DISK].mean as u64,
            net_bps: all[NETWORK].mean as u64,
        }
    }
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

    /// What is known of what a service's policy says.
    pub fn opinion(&self, service: &ServiceRecord) -> Opinion {
        self.policies.opinion(service, self.now)
    }

    /// Why a service's policy was not heard; none if it was, or need not be.
    pub fn unheard(&self, service: &ServiceRecord) -> Option<String> {
        match self.opinion(service) {
            Opinion::Free | Opinion::Heard(..) => None,
            Opinion::Unasked(why) | Opinion::Waits { why, .. } => Some(why),
        }
    }

    /// What a service's policy says, if it was heard.
    pub fn verdict(&self, service: &ServiceRecord) -> Option<Arc<Verdict>> {
        match self.opinion(service) {
            Opinion::Heard(verdict, _) => Some(verdict),
            _ => None,
        }
    }

    /// What a new container of a service is expected to use.
    pub fn newcomer(&self, service: ServiceId, spec: &ContainerSpec) -> Loads {
        self.held.newcomer(&consumer(service, spec))
    }
}

impl Watcher for At<'_> {
    fn known(&self, node: NodeId) -> Known {
        match self.held.node(node, self.now) {
            Some(loads) => Known::Expected(match self.supposed.nodes.get(&node) {
                Some((added, gone)) => minus(plus(loads, *added), *gone),
                None => loads,
            }),
            // One that has only just come has not had the time to say anything.
            None if self.held.never_heard(node) => Known::Unwatched,
            None => Known::Silent,
        }
    }
}
