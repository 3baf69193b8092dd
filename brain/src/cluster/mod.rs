//! The cluster: one in-memory state, one writer, many readers.
//!
//! Owns the order of things: a proposal is judged on the newest state, what the controllers plan from it is added, all of it
//! becomes durable in one transaction, then visible, then acknowledged (R5). Refuses to decide: proposals and plans do that.

mod change;
pub mod desired;
pub mod events;
pub mod feed;
mod index;
pub mod keys;
pub mod networks;
mod pools;
mod publications;
pub mod sites;
pub mod snapshots;
pub mod state;
pub mod volumes;
mod writer;

pub use change::Change;
pub use desired::desired_set;
pub use events::EventLog;
pub use feed::{Cursor, Lagged};
pub use keys::Committed;
pub use networks::Network;
pub use state::{Connection, JoinTokenRecord, State, Stored};

use std::any::Any;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Generation, Name, NodeId, Revision, ServiceId};
use berth_common::model::UnixMillis;
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot, watch};

use crate::controllers::{NewEvent, Now};
use crate::metrics::Metrics;
use crate::outlook::{self, Watched};
use crate::policies::{Ask, Next, PolicySettings, Verdict};
use crate::store::{Store, StoreError};
use crate::usage::UsageBook;
use feed::Feed;

/// Messages that may wait for the writer; further senders wait.
const QUEUE: usize = 4_096;
/// Estimates in one transaction: others wait for no longer than that.
const ESTIMATES_AT_ONCE: usize = 500;
/// Batches kept for watchers to resume from.
const FEED_ITEMS: usize = 20_000;
/// Changes kept in those batches.
const FEED_CHANGES: usize = 200_000;
/// Log entries read back at start, so that watchers can resume over a restart.
const RESUME_ENTRIES: u64 = 2_000;

/// Nodes that are looked up in the outlook before others may have it.
const HELD_FOR: usize = 256;

/// How the cluster behaves.
#[derive(Debug, Clone, Copy)]
pub struct ClusterSettings {
    /// Silence after which a node is lost, milliseconds.
    pub lease_ms: u64,
    /// How long after the start nodes that were never heard count as just heard, milliseconds.
    pub patience_ms: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            lease_ms: 10_000,
            patience_ms: 0,
        }
    }
}

/// Why the cluster can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The store failed.
    #[error("reading the cluster from the store")]
    Store(#[from] StoreError),
    /// A record is unreadable.
    #[error("the store holds a record that this brain can't read: {0}; it may come from a newer version")]
    Record(String),
}

type Proposal =
    Box<dyn FnOnce(&State, Now) -> Result<(Vec<Change>, Vec<NewEvent>, Box<dyn Any + Send>), Problem> + Send>;
type Answer = Result<(Box<dyn Any + Send>, Arc<State>), Problem>;

enum Message {
    Write(Proposal, oneshot::Sender<Answer>),
    Report(Vec<Change>, Vec<NewEvent>),
    Plan(BTreeSet<ServiceId>, Vec<NewEvent>),
}

struct Shared {
    state: RwLock<Arc<State>>,
    changed: watch::Sender<u64>,
    feed: Arc<Feed<Committed>>,
    /// The oldest revision from which the feed is complete.
    feed_from: Revision,
    events: EventLog,
    usage: UsageBook,
    outlook: Watched,
    /// Names of the policies in the settings.
    policies: Arc<[Name]>,
    metrics: Metrics,
    heard: RwLock<HashMap<NodeId, Arc<AtomicU64>>>,
    generations: RwLock<HashMap<NodeId, watch::Sender<Generation>>>,
    /// Ticks when what a node has to know of its neighbours may have changed.
    neighbours: RwLock<HashMap<NodeId, watch::Sender<u64>>>,
    started: Instant,
    beat: AtomicU64,
}

impl Shared {
    fn now(&self) -> Now {
        Now {
            wall: UnixMillis::now(),
            mono_ms: self.started.elapsed().as_millis() as u64,
        }
    }

    fn last_heard(&self, node: NodeId) -> Option<u64> {
        self.heard.read().get(&node).map(|at| at.load(Ordering::Relaxed))
    }
}

/// A handle on the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Message>,
}

/// Follows what becomes visible.
pub struct WatchStream(Cursor<Committed>);

impl WatchStream {
    /// The next batch. Cancel-safe.
    ///
    /// # Errors
    /// [`Lagged`] when this reader was too slow: read a snapshot and watch anew.
    pub async fn next(&mut self) -> Result<Arc<Committed>, Lagged> {
        self.0.next().await
    }
}

impl Cluster {
    /// Loads the cluster and starts its writer.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn open(store: Arc<dyn Store>, settings: ClusterSettings) -> Result<Self, ClusterError> {
        Self::open_with(store, settings, &[]).await
    }

    /// The same with policies that services may ask for.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn open_with(
        store: Arc<dyn Store>,
        settings: ClusterSettings,
        policies: &[PolicySettings],
    ) -> Result<Self, ClusterError> {
        let mut state = State::default();
        let mut after = None;
        loop {
            let (entries, revision) = store.range(keys::PREFIX.to_owned(), after.take(), 1_000).await?;
            state.revision = revision;
            let Some(last) = entries.last() else { break };
            after = Some(last.key.clone());
            for entry in &entries {
                if let Some(stored) = keys::read(entry).map_err(ClusterError::Record)? {
                    state.restore(stored);
                }
            }
        }
        state.publish(&State::default());
        let feed = Feed::new(FEED_ITEMS, FEED_CHANGES);
        let feed_from = prefill(&*store, &feed, state.revision).await?;
        let generations = state
            .nodes
            .values()
            .map(|n| (n.id, watch::Sender::new(n.generation)))
            .collect::<HashMap<_, _>>();
        let shared = Arc::new(Shared {
            state: RwLock::new(Arc::new(state)),
            changed: watch::Sender::new(0),
            feed,
            feed_from,
            events: EventLog::new(UnixMillis::now()),
            usage: UsageBook::default(),
            outlook: Watched::with_policies(policies),
            policies: policies.iter().map(|one| one.name.clone()).collect(),
            metrics: Metrics::default(),
            heard: RwLock::default(),
            generations: RwLock::new(generations),
            neighbours: RwLock::default(),
            started: Instant::now(),
            beat: AtomicU64::new(0),
        });
        shared.outlook.reset(&shared.state.read());
        let (queue, inbox) = mpsc::channel(QUEUE);
        tokio::spawn(writer::run(Arc::clone(&shared), store, settings, inbox));
        Ok(Self { shared, queue })
    }

    /// The newest visible state.
    pub fn snapshot(&self) -> Arc<State> {
        Arc::clone(&self.shared.state.read())
    }

    /// Runs `propose` on the newest state inside the one writer and commits what it returns together with what the
    /// controllers plan from it. Answers when that is durable and visible, with the state that has it.
    ///
    /// # Errors
    /// The proposal's refusal, or `unavailable` when the store can't be written; then nothing has happened.
    pub async fn write<T: Send + 'static>(
        &self,
        propose: impl FnOnce(&State, Now) -> Result<(Vec<Change>, Vec<NewEvent>, T), Problem> + Send + 'static,
    ) -> Result<(T, Arc<State>), Problem> {
        let erased: Proposal = Box::new(move |state, now| {
            let (changes, events, value) = propose(state, now)?;
            Ok((changes, events, Box::new(value) as Box<dyn Any + Send>))
        });
        let (answer, wait) = oneshot::channel();
        let stopped = || Problem::unavailable("the brain is stopping").cure("try again in a moment");
        self.queue
            .send(Message::Write(erased, answer))
            .await
            .map_err(|_| stopped())?;
        let (value, state) = wait.await.map_err(|_| stopped())??;
        let value = value
            .downcast::<T>()
            .map_err(|_| Problem::new(ErrorKind::Internal, "a write answered with another type"))?;
        Ok((*value, state))
    }

    /// Takes what nodes say. Waits while the writer is far behind.
    pub async fn report(&self, changes: Vec<Change>, events: Vec<NewEvent>) {
        // The only failure is that the writer has stopped; then there is nobody left to tell.
        let _ = self.queue.send(Message::Report(changes, events)).await;
    }

    /// How long the writer has not been round.
    pub fn writer_silence(&self) -> std::time::Duration {
        let at = self.shared.beat.load(Ordering::Relaxed);
        std::time::Duration::from_millis(self.shared.now().mono_ms.saturating_sub(at))
    }

    /// A node gave a sign of life.
    pub fn heard(&self, node: NodeId) {
        let now = self.shared.now().mono_ms;
        if let Some(at) = self.shared.heard.read().get(&node) {
            at.store(now, Ordering::Relaxed);
            return;
        }
        self.shared
            .heard
            .write()
            .insert(node, Arc::new(AtomicU64::new(now)));
    }

    /// What becomes visible after revision `from`.
    ///
    /// # Errors
    /// `compacted` when changes since then are no longer kept, or `from` is of another store's future.
    pub fn watch(&self, from: Revision) -> Result<WatchStream, Problem> {
        let compacted = |detail: String| {
            Err(Problem::new(ErrorKind::Compacted, detail)
                .cure("list again and watch from the list's revision"))
        };
        let held = self.snapshot().revision;
        if from > held {
            return compacted(format!(
                "revision {from} is not reached yet; the newest is {held}"
            ));
        }
        let oldest = self.shared.feed.oldest().map_or(self.shared.feed_from, |first| {
            let before = if first.durable {
                Revision(first.revision.0.saturating_sub(1))
            } else {
                first.revision
            };
            before.max(self.shared.feed_from)
        });
        if from < oldest {
            return compacted(format!(
                "changes after revision {from} are no longer kept; the oldest is {oldest}"
            ));
        }
        let cursor = self.shared.feed.follow_from(|c| {
            if c.durable {
                c.revision > from
            } else {
                c.revision >= from
            }
        });
        Ok(WatchStream(cursor))
    }

    /// Ticks after every visible change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// The generation of a node's desired set, as it changes.
    pub fn node_changed(&self, node: NodeId) -> watch::Receiver<Generation> {
        if let Some(sender) = self.shared.generations.read().get(&node) {
            return sender.subscribe();
        }
        let mut all = self.shared.generations.write();
        all.entry(node)
            .or_insert_with(|| watch::Sender::new(Generation(0)))
            .subscribe()
    }

    /// Ticks when what a node has to know of its networks' other nodes may have changed.
    pub fn neighbours_changed(&self, node: NodeId) -> watch::Receiver<u64> {
        let mut all = self.shared.neighbours.write();
        all.entry(node)
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe()
    }

    /// What happened lately.
    pub fn events(&self) -> &EventLog {
        &self.shared.events
    }

    /// Last usage reports.
    pub fn usage(&self) -> &UsageBook {
        &self.shared.usage
    }

    /// What nodes are expected to use now; nothing new is learned while it is held.
    pub fn outlook(&self) -> outlook::At<'_> {
        self.outlook_at(self.now())
    }

    /// The same at a given time: what is looked at bit by bit is to have one.
    pub fn outlook_at(&self, now: Now) -> outlook::At<'_> {
        self.shared.outlook.at(now.mono_ms)
    }

    /// What each of these nodes is expected to use, taken apart. The one writer waits while the outlook is held, so it is given back
    /// between some hundred nodes and the next.
    pub fn load_parts(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<Option<outlook::Parts>> {
        let nodes: Vec<NodeId> = nodes.collect();
        let mut parts = Vec::with_capacity(nodes.len());
        for some in nodes.chunks(HELD_FOR) {
            let outlook = self.outlook();
            parts.extend(some.iter().map(|node| outlook.parts(*node)));
        }
        parts
    }

    /// Names of the policies that services may ask for.
    pub fn policies(&self) -> Arc<[Name]> {
        Arc::clone(&self.shared.policies)
    }

    /// Has these services' policies asked, for what is decided outside the writer.
    pub fn want(&self, services: BTreeSet<ServiceId>) {
        self.shared.outlook.want(services);
    }

    /// Comes back when a policy may have to be asked. Cancel-safe.
    pub async fn wanted(&self) {
        self.shared.outlook.wanted().await;
    }

    /// Which policy to ask next.
    pub fn next_ask(&self) -> Next {
        let (state, now) = (self.snapshot(), outlook::seconds(self.now().mono_ms));
        self.shared.outlook.policies().next(&state, now)
    }

    /// Takes what a policy said, or why it said nothing. Gives what to tell people.
    pub fn heard_of(&self, ask: &Ask, result: Result<(Verdict, u32), String>) -> Option<NewEvent> {
        self.shared.metrics.asked(&ask.policy, result.is_ok());
        let now = outlook::seconds(self.now().mono_ms);
        self.shared.outlook.policies().finish(ask, result, now)
    }

    /// Has services planned again, since something that no change tells of is otherwise now.
    pub async fn plan_again(&self, services: BTreeSet<ServiceId>, events: Vec<NewEvent>) {
        // The only failure is that the writer has stopped; then there is nothing to plan any more.
        let _ = self.queue.send(Message::Plan(services, events)).await;
    }

    /// What is counted of decisions and durations.
    pub fn metrics(&self) -> &Metrics {
        &self.shared.metrics
    }

    /// Writes down what was learned of services' load, where that says something else than what was written before. Gives of how many
    /// services. Cancel-safe: what was not written will be the next time.
    ///
    /// # Errors
    /// `unavailable` when the store can't be written.
    pub async fn keep_estimates(&self) -> Result<usize, Problem> {
        let learned = self.shared.outlook.learned(&self.snapshot());
        for some in learned.chunks(ESTIMATES_AT_ONCE) {
            let some = some.to_vec();
            let put = move |state: &State, _: Now| {
                let there = some.into_iter().filter(|(id, _)| state.services.contains_key(id));
                let changes = there.map(|(id, learned)| Change::PutEstimate(id, learned));
                Ok((changes.collect(), Vec::new(), ()))
            };
            self.write(put).await?;
        }
        Ok(learned.len())
    }

    /// Takes a sample of what a node last said of its load, if it is time for one.
    pub fn sample(&self, node: NodeId) {
        let now = outlook::seconds(self.shared.now().mono_ms);
        if !self.shared.outlook.due(node, now) {
            return;
        }
        // One lock after the other, never one within the other.
        let samples = self
            .shared
            .usage
            .show(node, |usage, all| outlook::samples(usage, all));
        if let Some(samples) = samples {
            self.shared.outlook.record(node, now, samples);
        }
    }

    /// Now.
    pub fn now(&self) -> Now {
        self.shared.now()
    }

    /// Milliseconds since a node was last heard; none if never since this brain started.
    pub fn silent_ms(&self, node: NodeId) -> Option<u64> {
        let at = self.shared.last_heard(node)?;
        Some(self.shared.now().mono_ms.saturating_sub(at))
    }
}

/// Puts the newest durable changes into the feed, so that watchers resume over a restart of the brain. Returns the revision
/// from which the feed is complete.
async fn prefill(
    store: &dyn Store,
    feed: &Feed<Committed>,
    newest: Revision,
) -> Result<Revision, ClusterError> {
    let from = Revision(newest.0.saturating_sub(RESUME_ENTRIES));
    let from = match store.changes_after(from, 1).await {
        Err(StoreError::Compacted { oldest }) => oldest,
        other => other.map(|_| from)?,
    };
    let mut at = from;
    loop {
        let entries = store.changes_after(at, 1_000).await?;
        let Some(last) = entries.last() else {
            return Ok(from);
        };
        at = last.revision;
        for batch in entries.chunk_by(|a, b| a.revision == b.revision) {
            let changes: Vec<Change> = batch
                .iter()
                .map(keys::change)
                .collect::<Result<_, _>>()
                .map_err(ClusterError::Record)?;
            let weight = changes.len();
            let committed = Committed {
                revision: batch[0].revision,
                durable: true,
                changes,
            };
            feed.push(Arc::new(committed), weight);
        }
    }
}

#[cfg(test)]
mod tests;
