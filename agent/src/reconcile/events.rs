//! What happens to the reconciler: finished steps, events and lists of the runtime, measurements.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_common::id::ContainerId;
use berth_common::model::{Health, UnixMillis};
use tokio::time::Instant;

use super::actor::{Message, Reconciler};
use super::apply::chain;
use super::observe::merge;
use super::outcome::{self, Outcome};
use super::plan::Step;
use crate::container::runtime::{RuntimeContainer, RuntimeEvent, TaskState};
use crate::health::Watch;

impl Reconciler {
    pub(super) fn on_message(&mut self, message: Message) {
        match message {
            Message::Done(step, outcome) => match step.container() {
                Some(id) => self.on_done(id, &step, outcome),
                None => self.on_tenant_done(&step, outcome),
            },
            Message::Listed(stamp, result) => self.on_listed(stamp, result),
            Message::Pulling(id, text) => {
                if matches!(self.steps.get(&id), Some(Step::Pull { .. })) {
                    self.hints.insert(id, text);
                    self.publish(id);
                }
            }
            Message::OomKills(id, kills) => {
                let Some(seen) = self.observed.containers.get_mut(&id) else {
                    return;
                };
                if let Some(notice) = outcome::on_oom_kills(seen, id, kills, UnixMillis::now()) {
                    self.board.notice(notice);
                    self.remember(id);
                    self.publish(id);
                }
            }
            Message::Health(id, pid, health) => self.on_health(id, pid, health),
            Message::Disk(sizes) => {
                for (id, bytes) in sizes {
                    let Some(seen) = self.observed.containers.get_mut(&id) else {
                        continue;
                    };
                    seen.disk = Some(bytes);
                    self.kick(vec![id]);
                }
                self.disk_at = Some(Instant::now() + self.settings.disk_every);
            }
        }
    }

    /// Keeps checks of a container going while it runs and has some.
    pub(super) fn watch(&mut self, id: ContainerId) {
        let now = UnixMillis::now();
        let Some(seen) = self.observed.containers.get_mut(&id) else {
            return drop(self.watches.remove(&id));
        };
        // One that was adopted without a memory of its health begins anew.
        outcome::note_check(seen, now);
        let want = self.desired.container(id);
        let due = want.and_then(|want| outcome::checked(want, seen));
        let Some((target, health)) = due else {
            return drop(self.watches.remove(&id));
        };
        if self.watches.get(&id).is_some_and(|watch| watch.is_of(&target)) {
            return;
        }
        let ran = Duration::from_millis(seen.memory.started_at.map_or(0, |at| now.since(at)));
        let (inbox, pid) = (self.inbox.clone(), target.pid);
        let tell = move |health| drop(inbox.send(Message::Health(id, pid, health)));
        let prober = self.facilities.prober.clone();
        self.watches
            .insert(id, Watch::begin(target, prober, health, ran, tell));
    }

    fn on_health(&mut self, id: ContainerId, pid: u32, health: Health) {
        let Some(seen) = self.observed.containers.get_mut(&id) else {
            return;
        };
        // An earlier process's last words.
        let task = seen.runtime.as_ref().map(|runtime| &runtime.task);
        if !matches!(task, Some(TaskState::Running { pid: now, .. }) if *now == pid) {
            return;
        }
        let before = seen.memory.health.as_ref().map(|health| health.state);
        let turned = before != Some(health.state);
        if let Some(notice) = outcome::on_health(seen, id, health) {
            self.board.notice(notice);
        }
        // An agent that is started again goes on from here: what was healthy keeps its requests.
        if turned {
            self.remember(id);
        }
        self.kick(vec![id]);
    }

    pub(super) fn on_done(&mut self, id: ContainerId, step: &Step, outcome: Outcome) {
        let now = UnixMillis::now();
        self.clock += 1;
        self.touched.insert(id, self.clock);
        self.observed.busy.remove(&id);
        self.steps.remove(&id);
        self.hints.remove(&id);
        if let Outcome::Failed { message, relist, .. } = &outcome {
            tracing::warn!(container = %id, "{message}");
            if *relist {
                self.relist_at = self.relist_at.min(Instant::now() + Duration::from_millis(200));
            }
        }
        let want = self.desired.container(id);
        let seen = self.observed.containers.entry(id).or_default();
        let before = seen.memory.clone();
        let notice = outcome::settle(seen, step, outcome, want, now);
        if self.ended_early.remove(&id) {
            outcome::on_end_noticed(seen);
        }
        if seen.memory != before {
            self.remember(id);
        }
        if let Some(notice) = notice {
            self.board.notice(notice);
        }
        if self
            .observed
            .containers
            .get(&id)
            .is_some_and(|seen| seen.doubtful)
        {
            self.relist_at = Instant::now();
        }
        if matches!(step, Step::Delete { .. }) {
            self.tenants_dirty = true;
        }
        self.kick(vec![id]);
    }

    pub(super) fn on_tenant_done(&mut self, step: &Step, outcome: Outcome) {
        let (Step::EnsureTenant { tenant, .. } | Step::RemoveTenant { tenant }) = step else {
            return;
        };
        self.observed.busy_tenants.remove(tenant);
        self.tenants_dirty = true;
        if let Outcome::Failed { message, .. } = outcome {
            tracing::warn!(%tenant, "{message}");
            self.tenant_failures.insert(*tenant, message);
        } else {
            self.tenant_failures.remove(tenant);
            match step {
                Step::EnsureTenant { cpu_weight, .. } => {
                    self.observed.tenants.insert(*tenant, Some(*cpu_weight));
                }
                _ => drop(self.observed.tenants.remove(tenant)),
            }
        }
        let its = self.desired.containers.iter().filter(|c| c.tenant == *tenant);
        let ids = its.map(|c| c.id).collect();
        self.kick(ids);
    }

    pub(super) fn on_event(&mut self, event: RuntimeEvent) {
        match event {
            RuntimeEvent::Relist => self.relist_at = Instant::now(),
            RuntimeEvent::Exited(id) => {
                if self.observed.busy.contains(&id) {
                    self.ended_early.insert(id);
                } else if let Some(seen) = self.observed.containers.get_mut(&id) {
                    outcome::on_end_noticed(seen);
                    self.kick(vec![id]);
                }
            }
            RuntimeEvent::Oom(id) => {
                let (runtime, inbox) = (self.facilities.runtime.clone(), self.inbox.clone());
                tokio::spawn(async move {
                    if let Ok(kills) = runtime.oom_kills(id).await {
                        let _ = inbox.send(Message::OomKills(id, kills));
                    }
                });
            }
        }
    }

    pub(super) fn relist(&mut self) {
        self.listing = true;
        self.relist_at = Instant::now() + self.settings.relist_every;
        let (runtime, inbox, stamp) = (self.facilities.runtime.clone(), self.inbox.clone(), self.clock);
        tokio::spawn(async move {
            let list = runtime.list().await.map_err(|error| chain(&error));
            let _ = inbox.send(Message::Listed(stamp, list));
        });
    }

    pub(super) fn on_listed(&mut self, stamp: u64, result: Result<Vec<RuntimeContainer>, String>) {
        self.listing = false;
        let list = match result {
            Ok(list) => list,
            Err(why) => {
                tracing::warn!(why, "the runtime can't be listed; trying again");
                self.relist_at = Instant::now() + Duration::from_secs(1);
                return;
            }
        };
        let (busy, touched) = (&self.observed.busy.clone(), &self.touched);
        let newer = |id| busy.contains(&id) || touched.get(&id).is_some_and(|at| *at > stamp);
        let now = UnixMillis::now();
        let mut vanished = Vec::new();
        for found in list
            .iter()
            .filter(|c| c.task == TaskState::None && !newer(c.meta.id))
        {
            let id = found.meta.id;
            let Some(seen) = self.observed.containers.get_mut(&id) else {
                continue;
            };
            let before = seen.memory.clone();
            if let Some(notice) = outcome::on_vanished(seen, id, self.desired.container(id), now) {
                self.board.notice(notice);
            }
            if seen.memory != before {
                vanished.push(id);
            }
        }
        let unremembered: Vec<_> = list
            .iter()
            .filter(|c| matches!(c.task, TaskState::Running { .. }) && !newer(c.meta.id))
            .map(|c| c.meta.id)
            .filter(|id| {
                !self
                    .observed
                    .containers
                    .get(id)
                    .is_some_and(|seen| seen.memory.running)
            })
            .collect();
        merge(&mut self.observed, list, newer);
        if self.observed.containers.values().any(|seen| seen.doubtful) {
            // The list began before the doubt.
            self.relist_at = Instant::now();
        }
        for id in vanished.into_iter().chain(unremembered) {
            self.remember(id);
        }
        let wanted = self.desired.containers.iter().map(|c| c.id);
        let ids: BTreeSet<_> = wanted.chain(self.observed.containers.keys().copied()).collect();
        for id in &ids {
            self.observed.containers.entry(*id).or_default();
        }
        self.kick(ids.into_iter().collect());
        self.tenants_dirty = true;
        self.board.set_ready();
    }

    pub(super) fn measure_disks(&mut self) {
        self.disk_at = None;
        let (runtime, inbox, running) = (
            self.facilities.runtime.clone(),
            self.inbox.clone(),
            self.board.running(),
        );
        tokio::spawn(async move {
            let mut sizes = Vec::with_capacity(running.len());
            for container in running {
                if let Ok(bytes) = runtime.disk_usage(container.id).await {
                    sizes.push((container.id, bytes));
                }
            }
            let _ = inbox.send(Message::Disk(sizes));
        });
    }
}
