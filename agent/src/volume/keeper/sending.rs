//! Sends volumes that move: round after round while containers write, then the last snapshot.
//!
//! What is sent next is decided by [`next`], from the order and what is here (pure); the rest carries it out. A round makes a snapshot
//! and sends what differs from the one before. Once a round was small the brain is told that the rest is; until it stops the containers
//! further rounds keep it so, ever less often. The last snapshot is not made here: it is what the keeper makes of the writable state,
//! once nobody has it (R2).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{NodeId, SnapshotId, VolumeId};
use berth_common::model::ObservedSending;
use berth_common::protocol::{DesiredVolume, SendTo, round_of, round_snapshot};
use berth_common::units::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::peers::{Destination, Outgoing, PeerError, Peers, Progress, Rate};
use crate::reconcile::VolumeOrders;
use crate::reconcile::apply::chain;
use crate::volume::{Pool, Volume};

/// A round of which no more than this was read is small, bytes: at 20 MB/s it is written in less than a second.
const SMALL: u64 = 16 << 20;
/// Rounds after which the rest is called small whatever it is: a container that writes faster than can be sent would never move.
const MOST_ROUNDS: u16 = 8;
/// Pause between rounds once the rest is small, and the longest it grows to.
const AGAIN: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(60));
/// Pause after a failure, and the longest it grows to.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Pause between reports of how far it is.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// What is sent next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// A snapshot that is here; what differs from this one, if there is one.
    Send(SnapshotId, Option<SnapshotId>),
    /// One that is to be made first.
    Round(SnapshotId, Option<SnapshotId>),
    /// The last one is not here yet.
    Wait,
    /// It has all been sent.
    Done,
}

/// What was sent so far, in order.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sent {
    snapshots: Vec<SnapshotId>,
    rounds: u16,
}

impl Sent {
    /// After a start of the agent: a round is never made twice, since the receiver may have the first one under its id. Whether it has the
    /// latest is not known; it says what it has when the next is offered.
    fn resumed(order: &SendTo, here: &Volume) -> Self {
        let rounds = here
            .snapshots
            .iter()
            .filter_map(|one| round_of(one.id, order.last));
        Self {
            snapshots: Vec::new(),
            rounds: rounds.max().map_or(0, |round| round.saturating_add(1)),
        }
    }
}

/// What is sent next: the user's snapshots, the oldest first, since each is the base of the one after it; then rounds; then the last one.
fn next(want: &DesiredVolume, order: &SendTo, here: &Volume, sent: &Sent) -> Next {
    let has = |id: SnapshotId| here.snapshots.iter().any(|one| one.id == id);
    // Whatever the receiver has serves; this is what it should have.
    let latest = sent
        .rounds
        .checked_sub(1)
        .map(|round| round_snapshot(order.last, round));
    let base = sent.snapshots.last().copied().or(latest);
    let mut own = want.snapshots.iter().copied();
    if let Some(snapshot) = own.find(|id| has(*id) && !sent.snapshots.contains(id)) {
        return Next::Send(snapshot, base);
    }
    if !order.finish {
        return Next::Round(round_snapshot(order.last, sent.rounds), base);
    }
    if sent.snapshots.contains(&order.last) {
        return Next::Done;
    }
    // Its writable state is still there: what stands under that name is of an attempt that was cut off.
    match has(order.last) && here.data.is_none() {
        true => Next::Send(order.last, base),
        false => Next::Wait,
    }
}

/// How far a volume is that is being sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Far {
    /// For the brain.
    pub sending: ObservedSending,
    /// Why it was not sent when it was tried last (R9).
    pub problem: Option<String>,
}

/// How far each is.
#[derive(Debug, Default)]
pub(super) struct Told(Mutex<BTreeMap<VolumeId, Far>>);

impl Told {
    /// For the report.
    pub fn all(&self) -> BTreeMap<VolumeId, Far> {
        self.0.lock().clone()
    }

    /// Of the move that ends with `last`; what was told of one before is forgotten.
    fn change(&self, volume: VolumeId, last: SnapshotId, how: impl FnOnce(&mut Far)) {
        let new = || Far {
            sending: ObservedSending {
                last: Some(last),
                round: 0,
                sent: Bytes::ZERO,
                expected: Bytes::ZERO,
                ready: false,
            },
            problem: None,
        };
        let mut all = self.0.lock();
        let far = all.entry(volume).or_insert_with(new);
        if far.sending.last != Some(last) {
            *far = new();
        }
        how(far);
    }
}

/// All that this node sends.
pub(super) struct Sending {
    pub told: Arc<Told>,
    /// Told when there is something to report, or something was made.
    wake: Arc<Notify>,
    rate: Rate,
    running: BTreeMap<VolumeId, (NodeId, SnapshotId, watch::Sender<DesiredVolume>, AbortHandle)>,
}

impl Sending {
    pub fn new(wake: Arc<Notify>, rate: Rate) -> Self {
        Self {
            told: Arc::default(),
            wake,
            rate,
            running: BTreeMap::new(),
        }
    }

    /// Begins what is ordered and ends what is not any more.
    pub fn follow(&mut self, orders: &VolumeOrders, pool: &Arc<dyn Pool>, peers: Option<&Arc<Peers>>) {
        let ordered: BTreeMap<VolumeId, (&DesiredVolume, &SendTo)> = orders
            .volumes
            .iter()
            .filter_map(|want| Some((want.id, (want, want.send.as_ref()?))))
            .collect();
        let told = &self.told;
        self.running.retain(|volume, (to, last, _, task)| {
            let same = ordered.get(volume);
            let goes_on = same.is_some_and(|(_, order)| order.node == *to && order.last == *last);
            if !goes_on {
                task.abort();
                told.0.lock().remove(volume);
            }
            goes_on
        });
        let Some(peers) = peers else { return };
        for (volume, (want, order)) in ordered {
            if let Some((.., orders, _)) = self.running.get(&volume) {
                orders.send_if_modified(|held| {
                    let changed = held != want;
                    held.clone_from(want);
                    changed
                });
                continue;
            }
            let (changes, orders) = watch::channel(want.clone());
            let one = One {
                volume,
                last: order.last,
                orders,
                pool: Arc::clone(pool),
                peers: Arc::clone(peers),
                told: Arc::clone(&self.told),
                wake: Arc::clone(&self.wake),
                rate: self.rate.clone(),
                sent: None,
            };
            let task = tokio::spawn(one.run()).abort_handle();
            self.running
                .insert(volume, (order.node, order.last, changes, task));
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.running.values().for_each(|(.., task)| task.abort());
    }
}

/// One volume on its way.
struct One {
    volume: VolumeId,
    last: SnapshotId,
    orders: watch::Receiver<DesiredVolume>,
    pool: Arc<dyn Pool>,
    peers: Arc<Peers>,
    told: Arc<Told>,
    wake: Arc<Notify>,
    rate: Rate,
    /// None: it was not looked yet.
    sent: Option<Sent>,
}

/// What happened.
enum Step {
    /// Go on at once.
    On,
    /// Nothing to do for so long, unless the order changes.
    Pause(Duration),
}

impl One {
    async fn run(mut self) {
        let (mut retry, mut again) = (RETRY.0, AGAIN.0);
        loop {
            let want = self.orders.borrow_and_update().clone();
            let pause = match self.step(&want, &mut again).await {
                Ok(Step::On) => {
                    retry = RETRY.0;
                    self.hindered(None);
                    continue;
                }
                Ok(Step::Pause(pause)) => {
                    self.hindered(None);
                    pause
                }
                Err(why) => {
                    tracing::warn!(volume = %self.volume, why, "a volume is not sent");
                    self.hindered(Some(format!("it can't be sent now, and is tried again: {why}")));
                    let pause = retry;
                    retry = (retry * 2).min(RETRY.1);
                    pause
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                changed = self.orders.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Notes what keeps it from being sent, if that is news.
    fn hindered(&self, why: Option<String>) {
        let mut news = false;
        self.told.change(self.volume, self.last, |far| {
            news = far.problem != why;
            far.problem = why;
        });
        if news {
            self.wake.notify_one();
        }
    }

    async fn step(&mut self, want: &DesiredVolume, again: &mut Duration) -> Result<Step, String> {
        let Some(order) = &want.send else {
            return Ok(Step::Pause(RETRY.1));
        };
        let listing = self.pool.list().await.map_err(|error| chain(&error))?;
        let here = listing.volumes.into_iter().find(|one| one.meta.id == self.volume);
        let Some(here) = here else {
            return Ok(Step::Pause(RETRY.0));
        };
        if here.meta.epoch != want.epoch {
            return Ok(Step::Pause(RETRY.0));
        }
        let sent = self.sent.get_or_insert_with(|| Sent::resumed(order, &here));
        match next(want, order, &here, sent) {
            Next::Wait => Ok(Step::Pause(Duration::from_millis(200))),
            Next::Done => Ok(Step::Pause(RETRY.1)),
            Next::Send(snapshot, base) => {
                let expected = here.snapshots.iter().find(|one| one.id == snapshot);
                let expected = expected.map_or(Bytes::ZERO, |one| one.referenced);
                self.send(want, order, snapshot, base, expected).await?;
                Ok(Step::On)
            }
            Next::Round(snapshot, base) => {
                let made = self.pool.snapshot(self.volume, snapshot).await;
                let made = made.map_err(|error| chain(&error))?;
                let read = self.send(want, order, snapshot, base, made.referenced).await?;
                let rounds = self.sent.as_ref().map_or(0, |sent| sent.rounds).saturating_add(1);
                if let Some(sent) = &mut self.sent {
                    sent.rounds = rounds;
                }
                self.drop_old_round(order, rounds).await;
                // The first is of everything: what was written meanwhile is not known before the second.
                let small = rounds > 1 && read.0 <= SMALL || rounds >= MOST_ROUNDS;
                self.told.change(self.volume, self.last, |far| {
                    far.sending.round = u32::from(rounds);
                    far.sending.ready |= small;
                });
                self.wake.notify_one();
                if !small {
                    return Ok(Step::On);
                }
                let pause = *again;
                *again = (*again * 2).min(AGAIN.1);
                Ok(Step::Pause(pause))
            }
        }
    }

    /// Keeps the last two rounds: the one that the next differs from, and one more should the receiver have lost that.
    async fn drop_old_round(&self, order: &SendTo, rounds: u16) {
        let old = rounds.checked_sub(3);
        if let Some(old) = old.map(|round| round_snapshot(order.last, round)) {
            let gone = self.pool.delete_snapshot(self.volume, old).await;
            if let Err(error) = gone {
                tracing::debug!(volume = %self.volume, error = chain(&error), "an old round stays for now");
            }
        }
    }

    /// Sends one snapshot, and returns how much was read of it.
    async fn send(
        &mut self,
        want: &DesiredVolume,
        order: &SendTo,
        snapshot: SnapshotId,
        parent: Option<SnapshotId>,
        whole: Bytes,
    ) -> Result<Bytes, String> {
        let outgoing = Outgoing {
            to: Destination {
                node: order.node,
                addresses: order.addresses.clone(),
            },
            volume: self.volume,
            epoch: want.epoch,
            snapshot,
            parent,
        };
        let (progress, mut seen) = watch::channel(Progress::default());
        let round = self.sent.as_ref().map_or(0, |sent| u32::from(sent.rounds));
        let sent = {
            let sending = self.peers.send(&outgoing, &progress, &self.rate);
            tokio::pin!(sending);
            let mut told = Instant::now();
            loop {
                tokio::select! {
                    sent = &mut sending => break sent,
                    changed = seen.changed() => {
                        let far = *seen.borrow_and_update();
                        if changed.is_err() || told.elapsed() < TELL_EVERY {
                            continue;
                        }
                        told = Instant::now();
                        let expected = far.expected.or(parent.is_none().then_some(whole));
                        self.told.change(self.volume, self.last, |now| {
                            now.sending.round = round;
                            now.sending.sent = far.read;
                            now.sending.expected = expected.unwrap_or(Bytes::ZERO).max(far.read);
                        });
                        self.wake.notify_one();
                    }
                    // Cancelled, or finished: what is under way is still of use in the latter.
                    changed = self.orders.changed() => if changed.is_err() {
                        return Err("it is not to be sent any more".to_owned());
                    },
                }
            }
        };
        let sent = sent.map_err(|error: PeerError| chain(&error))?;
        tracing::info!(
            volume = %self.volume, to = %order.node, %snapshot, read = %sent.progress.read, wire = %sent.progress.wire,
            "sent"
        );
        if let Some(sent) = &mut self.sent {
            sent.snapshots.push(snapshot);
        }
        Ok(sent.progress.read)
    }
}

#[cfg(test)]
#[path = "sending_tests.rs"]
mod sending_tests;
