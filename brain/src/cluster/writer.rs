//! The one writer: takes queued messages in batches, plans, commits, publishes, answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, ServiceId};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Change, ClusterSettings, Committed, Message, Shared, State, keys};
use crate::controllers::decisions::Tally;
use crate::controllers::{self, Dirty, Input, NewEvent, Now};
use crate::outlook::Watched;
use crate::store::{Op, Outcome, Store, StoreError};

/// Messages taken into one transaction. Bounds how long the first of them waits.
const BATCH: usize = 512;
/// Rounds of planning in one batch. One is the rule; more would be a defect, and the next tick goes on.
const ROUNDS: usize = 8;
const TICK: Duration = Duration::from_millis(500);
/// The change log keeps so many revisions for watchers that resume.
const LOG_KEPT: u64 = 10_000;

struct Pending {
    answer: oneshot::Sender<Answer>,
    value: Result<Box<dyn std::any::Any + Send>, Problem>,
}

struct Batch {
    working: State,
    dirty: Dirty,
    /// Durable changes by key, the last one of each wins; with the order in which keys first came.
    durable: BTreeMap<String, (Op, Change)>,
    transient: Vec<Change>,
    events: Vec<NewEvent>,
    recheck: Option<(u64, Dirty)>,
    decisions: Tally,
    /// Services whose policies are to be asked.
    wanted: BTreeSet<ServiceId>,
}

impl Batch {
    fn new(state: &State, dirty: Dirty) -> Self {
        Self {
            working: state.clone(),
            dirty,
            durable: BTreeMap::new(),
            transient: Vec::new(),
            events: Vec::new(),
            recheck: None,
            decisions: Tally::default(),
            wanted: BTreeSet::new(),
        }
    }

    fn apply(
        &mut self,
        changes: Vec<Change>,
        state: &State,
        outlook: &Watched,
    ) -> Result<(), serde_json::Error> {
        if changes.is_empty() {
            return Ok(());
        }
        self.dirty.merge(Dirty::of(&changes, &self.working));
        self.transient
            .extend(changes.iter().filter(|c| !c.durable()).cloned());
        for change in self.working.apply(changes, state.revision.next()) {
            outlook.follow(&change);
            if let Some(op) = keys::op(&change)? {
                self.durable.insert(op.key().to_owned(), (op, change));
            }
        }
        Ok(())
    }

    fn plan(
        &mut self,
        shared: &Shared,
        state: &State,
        settings: ClusterSettings,
        now: Now,
    ) -> Result<(), serde_json::Error> {
        let last_heard = |node| shared.last_heard(node);
        let mut new_id = ContainerId::random;
        for _ in 0..ROUNDS {
            if self.dirty.is_empty() {
                return Ok(());
            }
            let dirty = std::mem::take(&mut self.dirty);
            let outlook = shared.outlook.at(now.mono_ms);
            let input = Input {
                state: &self.working,
                dirty: &dirty,
                now,
                last_heard: &last_heard,
                lease_ms: settings.lease_ms,
                patient_until_ms: settings.patience_ms,
                outlook: &outlook,
            };
            let plan = controllers::plan(&input, &mut new_id);
            // What the plan decided is told to it next.
            drop(outlook);
            if let Some(at) = plan.recheck_at_ms {
                let mut again = plan.recheck_dirty();
                if let Some((earlier, other)) = self.recheck.take() {
                    again.merge(other);
                    self.recheck = Some((earlier.min(at), again));
                } else {
                    self.recheck = Some((at, again));
                }
            }
            self.events.extend(plan.events);
            self.decisions.merge(&plan.decisions);
            self.wanted.extend(plan.wanted);
            self.apply(plan.changes, state, &shared.outlook)?;
            // What a plan did is what it wanted: only room it freed, or new facts, are worth another look.
            self.dirty.leases = false;
        }
        tracing::warn!("plans did not settle in {ROUNDS} rounds; going on at the next tick");
        Ok(())
    }
}

/// Runs until every handle on the cluster is gone.
pub async fn run(
    shared: Arc<Shared>,
    store: Arc<dyn Store>,
    settings: ClusterSettings,
    mut inbox: mpsc::Receiver<Message>,
) {
    let mut dirty = Dirty::everything();
    let mut recheck: Option<(u64, Dirty)> = None;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut commits = 0u64;
    loop {
        let mono = shared.now().mono_ms;
        shared.beat.store(mono, Ordering::Relaxed);
        let until_recheck = recheck.as_ref().map_or(Duration::from_secs(3600), |(at, _)| {
            Duration::from_millis(at.saturating_sub(mono))
        });
        let mut messages = Vec::new();
        tokio::select! {
            received = inbox.recv_many(&mut messages, BATCH) => if received == 0 { return },
            _ = tick.tick() => dirty.leases = true,
            () = tokio::time::sleep(until_recheck) => {}
        }
        if let Some((at, _)) = &recheck
            && *at <= shared.now().mono_ms
            && let Some((_, due)) = recheck.take()
        {
            dirty.merge(due);
        }
        let now = shared.now();
        let state = Arc::clone(&shared.state.read());
        let mut batch = Batch::new(&state, std::mem::take(&mut dirty));
        let mut pending = Vec::new();
        let result = fill(&mut batch, messages, &mut pending, &shared, &state, now).and_then(|()| {
            if batch.dirty.is_empty() {
                return Ok(());
            }
            let begun = Instant::now();
            let planned = batch.plan(&shared, &state, settings, now);
            shared.metrics.planned(begun.elapsed());
            planned
        });
        if let Err(error) = result {
            shared.outlook.reset(&state);
            fail(
                pending,
                &Problem::new(ErrorKind::Internal, format!("a record can't be written: {error}")),
            );
            continue;
        }
        if let Some((at, again)) = batch.recheck.take() {
            recheck = Some(match recheck.take() {
                Some((earlier, mut held)) => {
                    held.merge(again);
                    (earlier.min(at), held)
                }
                None => (at, again),
            });
        }
        let (ops, mut changes): (Vec<Op>, Vec<Change>) = batch.durable.into_values().unzip();
        let durable = !ops.is_empty();
        if durable {
            let begun = Instant::now();
            let committed = commit(&*store, ops, &state).await;
            shared.metrics.committed(begun.elapsed(), committed.is_ok());
            match committed {
                Ok(()) => commits += 1,
                Err(problem) => {
                    tracing::error!(%problem, "a write was refused");
                    shared.outlook.reset(&state);
                    fail(pending, &problem);
                    // What nodes said is true all the same; what was planned is planned again.
                    let mut kept = (*state).clone();
                    kept.apply(batch.transient.clone(), state.revision);
                    publish(
                        &shared,
                        &state,
                        kept,
                        Committed {
                            revision: state.revision,
                            durable: false,
                            changes: batch.transient,
                        },
                    );
                    dirty = Dirty::everything();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            }
            if commits.is_multiple_of(1_000) {
                let upto = berth_common::id::Revision(batch.working.revision.0.saturating_sub(LOG_KEPT));
                if let Err(error) = store.compact(upto).await {
                    tracing::warn!(%error, "the change log could not be trimmed");
                }
            }
        }
        dirty.merge(batch.dirty);
        changes.append(&mut batch.transient);
        let committed = Committed {
            revision: batch.working.revision,
            durable,
            changes,
        };
        let visible = publish(&shared, &state, batch.working, committed);
        shared.metrics.decided(&batch.decisions);
        shared.outlook.want(batch.wanted);
        for event in batch.events {
            shared.metrics.event(event.kind);
            tracing::info!(kind = event.kind, subject = %event.subject, "{}", event.text);
            shared.events.push(event, now.wall);
        }
        for Pending { answer, value } in pending {
            // A caller that went away has no use for its answer.
            let _ = answer.send(value.map(|value| (value, Arc::clone(&visible))));
        }
    }
}

fn fill(
    batch: &mut Batch,
    messages: Vec<Message>,
    pending: &mut Vec<Pending>,
    shared: &Shared,
    state: &State,
    now: Now,
) -> Result<(), serde_json::Error> {
    for message in messages {
        match message {
            Message::Write(propose, answer) => match propose(&batch.working, now) {
                Ok((changes, events, value)) => {
                    batch.apply(changes, state, &shared.outlook)?;
                    batch.events.extend(events);
                    pending.push(Pending {
                        answer,
                        value: Ok(value),
                    });
                }
                // Answered after the commit like the rest: it was judged on a state that may yet fail.
                Err(problem) => pending.push(Pending {
                    answer,
                    value: Err(problem),
                }),
            },
            Message::Plan(services, events) => {
                batch.dirty.services.extend(services);
                batch.events.extend(events);
            }
            Message::Report(changes, events) => {
                batch.apply(changes, state, &shared.outlook)?;
                batch.events.extend(events);
            }
        }
    }
    Ok(())
}

async fn commit(store: &dyn Store, ops: Vec<Op>, state: &State) -> Result<(), Problem> {
    let wanted = state.revision.next();
    match store.txn(Vec::new(), ops).await {
        Ok(Outcome::Committed(revision)) if revision == wanted => Ok(()),
        Ok(other) => Err(Problem::new(
            ErrorKind::Internal,
            format!("the store answered {other:?} where revision {wanted} was due; another brain may be writing it"),
        )
        .cure("make sure that only one brain uses this store, then restart it")),
        Err(error) => Err(store_problem(&error)),
    }
}

fn store_problem(error: &StoreError) -> Problem {
    let mut detail = format!("nothing was changed: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Problem::unavailable(detail).cure("free disk space or mend the brain's disk, then try again")
}

fn fail(pending: Vec<Pending>, problem: &Problem) {
    for Pending { answer, .. } in pending {
        let _ = answer.send(Err(problem.clone()));
    }
}

fn publish(shared: &Shared, before: &State, after: State, committed: Committed) -> Arc<State> {
    let after = Arc::new(after);
    *shared.state.write() = Arc::clone(&after);
    if committed.changes.is_empty() {
        return after;
    }
    for change in &committed.changes {
        match change {
            Change::PutNode(node)
                if before
                    .nodes
                    .get(&node.id)
                    .is_none_or(|old| old.generation != node.generation) =>
            {
                let all = shared.generations.read();
                if let Some(sender) = all.get(&node.id) {
                    sender.send_replace(node.generation);
                } else {
                    drop(all);
                    let sender = tokio::sync::watch::Sender::new(node.generation);
                    shared.generations.write().insert(node.id, sender);
                }
            }
            Change::DeleteNode(node) => {
                // Whoever serves this node sees its channel close.
                shared.generations.write().remove(node);
                shared.neighbours.write().remove(node);
                shared.heard.write().remove(node);
                shared.usage.forget(*node);
            }
            _ => {}
        }
    }
    let concerned = super::networks::concerned(&committed.changes, before, &after);
    if !concerned.is_empty() {
        let all = shared.neighbours.read();
        for tick in concerned.iter().filter_map(|node| all.get(node)) {
            tick.send_modify(|n| *n += 1);
        }
    }
    let weight = committed.changes.len();
    shared.feed.push(Arc::new(committed), weight);
    shared.changed.send_modify(|n| *n += 1);
    after
}
