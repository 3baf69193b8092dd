//! The loop: the one owner and writer of what is desired and observed on this host.
//!
//! It waits for orders, finished steps, runtime events and due times, and gives each container at most one step at a
//! time to a short-lived worker. A new container whose image is here goes from order to running without a timer and
//! without a list in between. An order is persisted before anything is done for it (R8).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{Health, UnixMillis};
use berth_common::protocol::{Apply, DesiredSet, Progress};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::apply::{Bounds, Facilities, apply, chain};
use super::observe::{Board, RunningContainer, view};
use super::orders::{Accepted, Handle, Order, Refusal, refusal};
use super::outcome::{self, Outcome};
use super::plan::{Step, plan_containers, plan_tenants};
use super::state::Observed;
use crate::container::runtime::{RuntimeContainer, TaskState};
use crate::health::Watch;
use crate::ledger::{Ledger, Restored};

/// How the reconciler works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name servers for containers; empty: the host's.
    pub nameservers: Vec<IpAddr>,
    /// Whether the kernel enforces disk limits.
    pub disk_limit_hard: bool,
    /// Creations, starts and deletions at once.
    pub starts_at_once: usize,
    /// Pulls at once.
    pub pulls_at_once: usize,
    /// Time between full lists of the runtime.
    pub relist_every: Duration,
    /// Pause between measurements of writable layers: for usage, and where limits are watched.
    pub disk_every: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            disk_limit_hard: false,
            starts_at_once: 8,
            pulls_at_once: 3,
            relist_every: Duration::from_secs(30),
            disk_every: Duration::from_secs(5),
        }
    }
}

pub(super) enum Message {
    Done(Step, Outcome),
    Listed(u64, Result<Vec<RuntimeContainer>, String>),
    Pulling(ContainerId, String),
    OomKills(ContainerId, u64),
    Disk(Vec<(ContainerId, u64)>),
    /// What a check found of the process of that pid.
    Health(ContainerId, u32, Health),
}

/// The reconciler's state. [`Reconciler::start`] runs it.
pub struct Reconciler {
    pub(super) facilities: Facilities,
    pub(super) settings: Settings,
    pub(super) bounds: Bounds,
    pub(super) ledger: Ledger,
    pub(super) board: Arc<Board>,
    pub(super) desired: DesiredSet,
    /// No set is known: on a fresh node, and after the ledger was damaged. Until the brain says one nothing is done, since
    /// whatever runs here may well be wanted.
    pub(super) blind: bool,
    pub(super) observed: Observed,
    pub(super) steps: HashMap<ContainerId, Step>,
    pub(super) hints: HashMap<ContainerId, String>,
    pub(super) tenant_failures: BTreeMap<TenantId, String>,
    /// Ends noticed while a step was under way.
    pub(super) ended_early: BTreeSet<ContainerId>,
    pub(super) touched: HashMap<ContainerId, u64>,
    pub(super) clock: u64,
    pub(super) waits: BTreeSet<(UnixMillis, ContainerId)>,
    pub(super) listing: bool,
    pub(super) relist_at: Instant,
    pub(super) disk_at: Option<Instant>,
    pub(super) tenants_dirty: bool,
    pub(super) watches: HashMap<ContainerId, Watch>,
    pub(super) inbox: mpsc::UnboundedSender<Message>,
}

impl Reconciler {
    /// Adopts what is there and goes on from `restored`, brain or no brain (R3). Ends when the handle is dropped; containers go on.
    pub fn start(
        facilities: Facilities,
        settings: Settings,
        ledger: Ledger,
        restored: Restored,
        board: Arc<Board>,
    ) -> (Handle, JoinHandle<()>) {
        let (orders, orders_in) = mpsc::channel(64);
        // Bounded by the number of containers: each has at most one step under way.
        let (inbox, messages) = mpsc::unbounded_channel();
        let mut observed = Observed {
            disk_limit_hard: settings.disk_limit_hard,
            ..Observed::default()
        };
        for (id, memory) in restored.memories {
            observed.containers.entry(id).or_default().memory = memory;
        }
        let blind = restored.desired.is_none();
        let desired = restored
            .desired
            .unwrap_or_else(|| DesiredSet::empty(ledger.node()));
        board.set_generation(desired.generation);
        if !blind {
            board.set_desired(&desired);
        }
        let reconciler = Self {
            blind,
            bounds: Bounds {
                starts: Arc::new(Semaphore::new(settings.starts_at_once.max(1))),
                pulls: Arc::new(Semaphore::new(settings.pulls_at_once.max(1))),
            },
            facilities,
            ledger,
            board,
            desired,
            observed,
            steps: HashMap::new(),
            hints: HashMap::new(),
            tenant_failures: BTreeMap::new(),
            ended_early: BTreeSet::new(),
            touched: HashMap::new(),
            clock: 0,
            waits: BTreeSet::new(),
            listing: false,
            relist_at: Instant::now(),
            disk_at: Some(Instant::now() + settings.disk_every),
            tenants_dirty: false,
            watches: HashMap::new(),
            inbox,
            settings,
        };
        let task = tokio::spawn(reconciler.run(orders_in, messages));
        (Handle { orders }, task)
    }

    async fn run(
        mut self,
        mut orders: mpsc::Receiver<Order>,
        mut messages: mpsc::UnboundedReceiver<Message>,
    ) {
        let mut events = self.facilities.runtime.events();
        let mut events_open = true;
        self.adopt_tenants().await;
        loop {
            self.board.beat();
            let wake = self.next_wake();
            tokio::select! {
                order = orders.recv() => match order {
                    Some(first) => self.on_orders(first, &mut orders).await,
                    None => return,
                },
                Some(message) = messages.recv() => self.on_message(message),
                event = events.recv(), if events_open => match event {
                    Some(event) => self.on_event(event),
                    None => events_open = false,
                },
                () = tokio::time::sleep_until(wake) => {}
            }
            self.on_due();
        }
    }

    async fn adopt_tenants(&mut self) {
        let cgroups = self.facilities.cgroups.clone();
        match tokio::task::spawn_blocking(move || cgroups.tenants()).await {
            Ok(Ok(tenants)) => self.observed.tenants = tenants.into_iter().map(|t| (t, None)).collect(),
            Ok(Err(error)) => tracing::warn!(error = chain(&error), "tenants' cgroups can't be listed"),
            Err(error) => tracing::error!(%error, "listing tenants' cgroups panicked"),
        }
    }

    fn next_wake(&self) -> Instant {
        let mut wake = self.relist_at;
        if let Some(disk_at) = self.disk_at {
            wake = wake.min(disk_at);
        }
        if let Some((at, _)) = self.waits.first() {
            // At most a second ahead: the wall clock may jump.
            let ahead = at.since(UnixMillis::now()).min(1_000);
            wake = wake.min(Instant::now() + Duration::from_millis(ahead));
        }
        wake
    }

    fn on_due(&mut self) {
        let now = UnixMillis::now();
        let mut due = Vec::new();
        while let Some((at, id)) = self.waits.first().copied()
            && at <= now
        {
            self.waits.pop_first();
            due.push(id);
        }
        if !due.is_empty() {
            self.kick(due);
        }
        if self.tenants_dirty && !self.blind {
            self.tenants_dirty = false;
            for step in plan_tenants(&self.desired, &self.observed) {
                self.dispatch(step);
            }
        }
        let now = Instant::now();
        if now >= self.relist_at && !self.listing {
            self.relist();
        }
        if self.disk_at.is_some_and(|at| now >= at) {
            self.measure_disks();
        }
    }

    /// Takes an order and whatever waits behind it: persisted once, then acted on.
    async fn on_orders(&mut self, first: Order, orders: &mut mpsc::Receiver<Order>) {
        let mut next = self.desired.clone();
        let mut pending = Vec::new();
        let mut order = Some(first);
        while let Some((update, reply)) = order {
            let apply = next.apply(&update);
            if let Some(refusal) = refusal(&apply, next.generation, &update) {
                tracing::warn!(held = %refusal.held, refused = %refusal.refused, "{}", refusal.problem);
                let _ = reply.send(Err(refusal));
            } else {
                if let Apply::New(set) = apply {
                    next = *set;
                }
                pending.push((update.generation(), reply));
            }
            order = orders.try_recv().ok();
        }
        if next.generation != self.desired.generation || next != self.desired {
            let (ledger, set) = (self.ledger.clone(), next);
            let persisted = tokio::task::spawn_blocking(move || ledger.persist(&set).map(|()| set)).await;
            let why = match persisted {
                Ok(Ok(set)) => {
                    self.on_desired(set);
                    None
                }
                Ok(Err(error)) => Some(chain(&error)),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::error!(
                    why,
                    "the desired set can't be persisted; the old one stays in force"
                );
                let problem = Problem::new(
                    ErrorKind::Unavailable,
                    format!("the node can't persist its desired set: {why}"),
                )
                .cure("free disk space under the agent's state_dir");
                for (refused, reply) in pending {
                    let held = self.desired.generation;
                    let _ = reply.send(Err(Refusal {
                        held,
                        refused,
                        problem: problem.clone(),
                    }));
                }
                return;
            }
        }
        if self.blind && !pending.is_empty() {
            self.blind = false;
            self.board.set_desired(&self.desired);
            self.tenants_dirty = true;
            self.kick(self.observed.containers.keys().copied().collect());
        }
        for (_, reply) in pending {
            let generation = self.desired.generation;
            let _ = reply.send(Ok(Accepted { generation }));
        }
    }

    fn on_desired(&mut self, new: DesiredSet) {
        let old = std::mem::replace(&mut self.desired, new);
        let blind = std::mem::take(&mut self.blind);
        let mut changed = BTreeSet::new();
        for want in &self.desired.containers {
            if old.container(want.id) != Some(want) {
                changed.insert(want.id);
            }
        }
        changed.extend(
            old.containers
                .iter()
                .map(|c| c.id)
                .filter(|id| self.desired.container(*id).is_none()),
        );
        for id in &changed {
            let seen = self.observed.containers.entry(*id).or_default();
            // To somebody who knew no wish every wish is new, and what is remembered still holds.
            if !blind {
                outcome::on_wish_changed(seen);
            }
        }
        if blind {
            changed.extend(self.observed.containers.keys());
        }
        self.board.set_generation(self.desired.generation);
        self.board.set_desired(&self.desired);
        // Parents first, in this very turn, so that a tenant's first container does not wait.
        for step in plan_tenants(&self.desired, &self.observed) {
            self.dispatch(step);
        }
        self.kick(changed.into_iter().collect());
    }

    pub(super) fn kick(&mut self, ids: Vec<ContainerId>) {
        for id in &ids {
            self.watch(*id);
        }
        if self.blind {
            return ids.into_iter().for_each(|id| self.publish(id));
        }
        let (steps, waits) = plan_containers(
            &self.desired,
            &self.observed,
            ids.iter().copied(),
            UnixMillis::now(),
        );
        self.waits.extend(waits);
        for step in steps {
            self.dispatch(step);
        }
        for id in ids {
            self.publish(id);
        }
    }

    pub(super) fn dispatch(&mut self, step: Step) {
        match (&step, step.container()) {
            (Step::Forget { id }, _) => {
                self.observed.containers.remove(id);
                self.hints.remove(id);
                self.touched.remove(id);
                self.watches.remove(id);
                self.ledger.forget(*id);
                self.board.remove(*id);
                self.tenants_dirty = true;
                return;
            }
            (Step::EnsureTenant { tenant, .. } | Step::RemoveTenant { tenant }, _) => {
                self.observed.busy_tenants.insert(*tenant);
            }
            (_, Some(id)) => {
                self.clock += 1;
                self.touched.insert(id, self.clock);
                self.observed.busy.insert(id);
                self.steps.insert(id, step.clone());
                if let Step::Start { restarts_done, .. } = &step
                    && let Some(seen) = self.observed.containers.get_mut(&id)
                    && seen.memory.restarts_done != *restarts_done
                {
                    seen.memory.restarts_done = *restarts_done;
                    self.remember(id);
                }
            }
            _ => {}
        }
        // Never the step itself: specs carry environments, pulls carry credentials.
        tracing::debug!(step = step.name(), id = ?step.container(), "step");
        let (facilities, bounds) = (self.facilities.clone(), self.bounds.clone());
        let (nameservers, inbox) = (self.settings.nameservers.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let progress = pull_progress(&step, &inbox);
            let outcome = apply(&facilities, &bounds, &nameservers, &step, progress).await;
            if step.container().is_none() && matches!(outcome, Outcome::Failed { .. }) {
                // Tenants remember no back-off; this pause is theirs.
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
            let _ = inbox.send(Message::Done(step, outcome));
        });
    }

    pub(super) fn remember(&self, id: ContainerId) {
        let Some(seen) = self.observed.containers.get(&id) else {
            return;
        };
        if let Err(error) = self.ledger.remember(id, &seen.memory) {
            // Only a counter is at stake: going on is better than stopping.
            tracing::warn!(container = %id, error = chain(&error), "not remembered");
        }
    }

    pub(super) fn publish(&self, id: ContainerId) {
        if !self.observed.listed {
            return;
        }
        let Some(seen) = self.observed.containers.get(&id) else {
            return;
        };
        let want = self.desired.container(id);
        let hint = self
            .hints
            .get(&id)
            .or_else(|| want.and_then(|w| self.tenant_failures.get(&w.tenant)));
        let step = self.steps.get(&id);
        let container = view(
            id,
            want,
            seen,
            step,
            hint.map(String::as_str),
            self.settings.disk_limit_hard,
        );
        let running = match &seen.runtime {
            Some(RuntimeContainer {
                meta,
                task: TaskState::Running { pid, .. },
                ..
            }) => Some(RunningContainer {
                id,
                tenant: meta.tenant,
                pid: *pid,
                disk: seen.disk,
            }),
            _ => None,
        };
        self.board.publish(container, running);
    }
}

/// Turns a pull's progress into hints, at most one a second.
fn pull_progress(step: &Step, inbox: &mpsc::UnboundedSender<Message>) -> mpsc::Sender<Progress> {
    let (sender, mut receiver) = mpsc::channel::<Progress>(16);
    if let Step::Pull { id, reference, .. } = step {
        let (id, inbox, reference) = (*id, inbox.clone(), reference.clone());
        tokio::spawn(async move {
            let mut last: Option<Instant> = None;
            while let Some(progress) = receiver.recv().await {
                if last.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
                    continue;
                }
                last = Some(Instant::now());
                let amount = match progress.total {
                    0 => String::new(),
                    total => format!(" {}%", progress.done.saturating_mul(100) / total),
                };
                let text = format!("{} {}{amount}", progress.step, reference.familiar());
                if inbox.send(Message::Pulling(id, text)).is_err() {
                    return;
                }
            }
        });
    }
    sender
}
