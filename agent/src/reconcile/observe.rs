//! Observing: merging the runtime's list into what is known, and the board on which the link reads changes.
//!
//! The list is the truth about everything that no step is touching. What a step touched after the list began is newer
//! than the list and stays.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use berth_common::id::{ContainerId, Generation, Name, TenantId};
use berth_common::model::{Bandwidth, ObservedContainer, Phase, Restart, RunState};
use berth_common::protocol::{DesiredContainer, DesiredEndpoint, DesiredSet};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::outcome::{Notice, image_of, on_wish_changed};
use super::plan::{Step, rests};
use super::state::{Observed, Rest, Seen};
use super::volume_orders::VolumeOrders;
use crate::container::runtime::{RuntimeContainer, TaskState};

/// Events kept while the link is down.
const MAX_NOTICES: usize = 256;

/// Takes over a list of the runtime. `newer` says whether a container was touched since the list began.
pub fn merge(observed: &mut Observed, list: Vec<RuntimeContainer>, newer: impl Fn(ContainerId) -> bool) {
    let mut there: BTreeMap<_, _> = list.into_iter().map(|c| (c.meta.id, c)).collect();
    for (id, seen) in &mut observed.containers {
        let found = there.remove(id);
        if newer(*id) {
            continue;
        }
        take_over(seen, found);
    }
    for (id, found) in there {
        if newer(id) {
            continue;
        }
        take_over(observed.containers.entry(id).or_default(), Some(found));
    }
    observed.listed = true;
}

fn take_over(seen: &mut Seen, found: Option<RuntimeContainer>) {
    let changed = seen.runtime != found;
    if let Some(RuntimeContainer {
        task: TaskState::Running {
            started_at: Some(at), ..
        },
        ..
    }) = &found
    {
        seen.memory.started_at = Some(*at);
    }
    match found.as_ref().map(|f| &f.task) {
        Some(TaskState::Running { .. }) => seen.memory.running = true,
        // A run of before a reboot must not vouch for the next start.
        None | Some(TaskState::None) => seen.memory.running = false,
        Some(TaskState::Created | TaskState::Stopped(_)) => {}
    }
    seen.doubtful = false;
    seen.ended = matches!(found.as_ref().map(|f| &f.task), Some(TaskState::Stopped(_)));
    // Limits that could not be read are tried once more with every list.
    if changed || seen.limits.is_none() {
        seen.limits_tried = false;
    }
    if changed && seen.ended {
        on_wish_changed(seen);
    }
    if found.is_none() {
        seen.memory.stopping = None;
    }
    seen.runtime = found;
}

/// How a container looks to the brain and to people.
pub fn view(
    id: ContainerId,
    want: Option<&DesiredContainer>,
    seen: &Seen,
    step: Option<&Step>,
    hint: Option<&str>,
    disk_limit_hard: bool,
) -> ObservedContainer {
    let memory = &seen.memory;
    let task = seen.runtime.as_ref().map(|r| &r.task);
    let pid = match task {
        Some(TaskState::Running { pid, .. }) => Some(*pid),
        _ => None,
    };
    let phase = phase(want, seen, step);
    let reason = match phase {
        Phase::Pending | Phase::Pulling | Phase::Creating => hint.map(str::to_owned),
        Phase::Running | Phase::Failed => memory.failure.clone().or_else(|| held_reason(want)),
        Phase::Backoff | Phase::Exited => held_reason(want).or_else(|| exited_reason(want, memory)),
        Phase::Stopping | Phase::Unknown => None,
    };
    ObservedContainer {
        id,
        phase,
        reason,
        pid,
        started_at: memory.started_at,
        health: memory.health.clone().filter(|_| phase == Phase::Running),
        last_exit: memory.last_exit.clone(),
        restarts: memory.restarts,
        oom_kills: memory.oom_kills(),
        image: image_of(seen).or_else(|| seen.image.as_ref().map(|i| i.manifest)),
        limits: seen.limits,
        disk_limit_hard,
        restarts_done: memory.restarts_done,
    }
}

/// Why nothing is done for it, when what is wanted of it is not known here.
fn held_reason(want: Option<&DesiredContainer>) -> Option<String> {
    want.filter(|want| want.run == RunState::Unknown).map(|_| {
        "the brain wants a state of it that this agent does not know, so it is left as it is; upgrade the agent"
            .to_owned()
    })
}

fn exited_reason(want: Option<&DesiredContainer>, memory: &super::state::Memory) -> Option<String> {
    let last = memory.last_exit.as_ref().map(|exit| exit.reason.clone());
    let policy = want.map(|want| want.spec.restart.on);
    match memory.rest {
        Some(Rest::Policy) if policy == Some(Restart::Unknown) => Some(format!(
            "{}; not started again, as this agent does not know its restart policy: upgrade the agent",
            last.as_deref().unwrap_or("ended")
        )),
        Some(Rest::Stopped) => Some(match last {
            Some(last) => format!("stopped ({last})"),
            None => "stopped".to_owned(),
        }),
        _ => last,
    }
}

fn phase(want: Option<&DesiredContainer>, seen: &Seen, step: Option<&Step>) -> Phase {
    let memory = &seen.memory;
    if matches!(
        seen.runtime.as_ref().map(|r| &r.task),
        Some(TaskState::Running { .. } | TaskState::Stopped(_))
    ) {
        let stopping = memory.stopping.is_some()
            || matches!(
                step,
                Some(Step::Stop { .. } | Step::Kill { .. } | Step::Delete { .. })
            );
        return if stopping { Phase::Stopping } else { Phase::Running };
    }
    match step {
        Some(Step::Pull { .. }) => return Phase::Pulling,
        Some(Step::Create { .. } | Step::Start { .. }) => return Phase::Creating,
        _ => {}
    }
    let Some(want) = want else {
        return Phase::Stopping;
    };
    if want.run != RunState::Running || rests(want, seen) {
        return Phase::Exited;
    }
    if memory.failure.is_some() {
        return Phase::Failed;
    }
    if memory.not_before.is_some() {
        return Phase::Backoff;
    }
    if seen.image.is_some() || seen.runtime.is_some() {
        return Phase::Creating;
    }
    Phase::Pending
}

/// A running container, for the usage sampler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningContainer {
    /// Which.
    pub id: ContainerId,
    /// Whose.
    pub tenant: TenantId,
    /// Host pid of PID 1.
    pub pid: u32,
    /// Writable layer, bytes, when it was measured.
    pub disk: Option<u64>,
}

/// Changes since they were last taken.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Changes {
    /// Generation that is persisted and acted on.
    pub generation: Generation,
    /// Containers that changed.
    pub containers: Vec<ObservedContainer>,
    /// Containers of which nothing is left.
    pub gone: Vec<ContainerId>,
    /// Events.
    pub notices: Vec<Notice>,
}

#[derive(Debug, Default)]
struct BoardState {
    ready: bool,
    generation: Generation,
    generation_changed: bool,
    all: BTreeMap<ContainerId, ObservedContainer>,
    running: BTreeMap<ContainerId, RunningContainer>,
    dirty: BTreeSet<ContainerId>,
    gone: BTreeSet<ContainerId>,
    notices: VecDeque<Notice>,
}

/// What the agent sees, written by the reconciler, read by the link. Bounded by the number of containers.
#[derive(Debug, Default)]
pub struct Board {
    state: Mutex<BoardState>,
    changed: Notify,
    beat: Mutex<Option<std::time::Instant>>,
    endpoints: watch::Sender<Option<Arc<Endpoints>>>,
    volumes: watch::Sender<Option<Arc<VolumeOrders>>>,
}

/// A container's places on networks, and what is allowed there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The places, the first with the default route.
    pub at: Vec<DesiredEndpoint>,
    /// Services whose containers may open connections to it; none: all.
    pub ingress_from: Option<Vec<Name>>,
    /// Most that it sends and receives.
    pub bandwidth: Bandwidth,
}

/// Places on networks that containers are to have.
pub type Endpoints = BTreeMap<ContainerId, Places>;

impl Board {
    /// An empty board that is not ready.
    pub fn new() -> Self {
        Self::default()
    }

    /// The desired set that is acted on from now on: networks and volumes are read from it here.
    pub fn set_desired(&self, set: &DesiredSet) {
        let on_networks = set.containers.iter().filter(|c| !c.endpoints.is_empty());
        let places = |c: &DesiredContainer| Places {
            at: c.endpoints.clone(),
            ingress_from: c.spec.ingress_from.clone(),
            bandwidth: c.spec.bandwidth,
        };
        let endpoints: Endpoints = on_networks.map(|c| (c.id, places(c))).collect();
        self.endpoints.send_if_modified(|held| {
            let changed = held.as_deref() != Some(&endpoints);
            if changed {
                *held = Some(Arc::new(endpoints));
            }
            changed
        });
        let volumes = VolumeOrders::of(set);
        self.volumes.send_if_modified(|held| {
            let changed = held.as_deref() != Some(&volumes);
            if changed {
                *held = Some(Arc::new(volumes));
            }
            changed
        });
    }

    /// Volumes as they are to be, and who mounts them; none while nobody knows what is desired.
    pub fn volumes(&self) -> watch::Receiver<Option<Arc<VolumeOrders>>> {
        self.volumes.subscribe()
    }

    /// Places on networks that containers are to have; none while nobody knows what is desired.
    pub fn endpoints(&self) -> watch::Receiver<Option<Arc<Endpoints>>> {
        self.endpoints.subscribe()
    }

    /// The loop went round.
    pub fn beat(&self) {
        *self.beat.lock() = Some(std::time::Instant::now());
    }

    /// How long ago it did. Before the first time, none: setting up has a time limit of its own.
    pub fn silence(&self) -> std::time::Duration {
        self.beat
            .lock()
            .map_or(std::time::Duration::ZERO, |at| at.elapsed())
    }

    /// The runtime was listed: the board is complete from now on.
    pub fn set_ready(&self) {
        self.state.lock().ready = true;
        self.changed.notify_one();
    }

    /// Whether the runtime was listed once. Before, an empty board does not mean an empty host.
    pub fn is_ready(&self) -> bool {
        self.state.lock().ready
    }

    /// The generation that is persisted and acted on.
    pub fn set_generation(&self, generation: Generation) {
        let mut state = self.state.lock();
        state.generation_changed |= state.generation != generation;
        state.generation = generation;
        drop(state);
        self.changed.notify_one();
    }

    /// The generation that is persisted and acted on.
    pub fn generation(&self) -> Generation {
        self.state.lock().generation
    }

    /// Publishes a container; unchanged ones cost nothing further.
    pub fn publish(&self, container: ObservedContainer, running: Option<RunningContainer>) {
        let mut state = self.state.lock();
        let id = container.id;
        match running {
            Some(running) => drop(state.running.insert(id, running)),
            None => drop(state.running.remove(&id)),
        }
        if state.all.get(&id) == Some(&container) {
            return;
        }
        state.all.insert(id, container);
        state.gone.remove(&id);
        state.dirty.insert(id);
        drop(state);
        self.changed.notify_one();
    }

    /// Nothing is left of a container.
    pub fn remove(&self, id: ContainerId) {
        let mut state = self.state.lock();
        state.running.remove(&id);
        state.dirty.remove(&id);
        if state.all.remove(&id).is_some() {
            state.gone.insert(id);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds an event; the oldest go when nobody takes them.
    pub fn notice(&self, notice: Notice) {
        let mut state = self.state.lock();
        if state.notices.len() == MAX_NOTICES {
            state.notices.pop_front();
        }
        state.notices.push_back(notice);
        drop(state);
        self.changed.notify_one();
    }

    /// Everything, and marks it as taken.
    pub fn take_all(&self) -> Changes {
        let mut state = self.state.lock();
        state.dirty.clear();
        state.gone.clear();
        state.generation_changed = false;
        Changes {
            generation: state.generation,
            containers: state.all.values().cloned().collect(),
            gone: Vec::new(),
            notices: state.notices.drain(..).collect(),
        }
    }

    /// What changed since the last `take_*`; none if nothing did.
    pub fn take_changes(&self) -> Option<Changes> {
        let mut state = self.state.lock();
        if state.dirty.is_empty()
            && state.gone.is_empty()
            && state.notices.is_empty()
            && !state.generation_changed
        {
            return None;
        }
        state.generation_changed = false;
        let dirty = std::mem::take(&mut state.dirty);
        Some(Changes {
            generation: state.generation,
            containers: dirty.iter().filter_map(|id| state.all.get(id).cloned()).collect(),
            gone: std::mem::take(&mut state.gone).into_iter().collect(),
            notices: state.notices.drain(..).collect(),
        })
    }

    /// Resolves when something may have changed. One reader.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// One container as last published.
    pub fn container(&self, id: ContainerId) -> Option<ObservedContainer> {
        self.state.lock().all.get(&id).cloned()
    }

    /// Every container as last published.
    pub fn containers(&self) -> Vec<ObservedContainer> {
        self.state.lock().all.values().cloned().collect()
    }

    /// Containers whose processes ended and were not started again yet.
    pub fn ended(&self) -> BTreeSet<ContainerId> {
        let state = self.state.lock();
        let ended = state.all.values().filter(|c| c.phase.has_ended());
        ended.map(|c| c.id).collect()
    }

    /// Running containers.
    pub fn running(&self) -> Vec<RunningContainer> {
        self.state.lock().running.values().cloned().collect()
    }
}
