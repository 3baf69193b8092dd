//! Snapshots that are arriving: each is one [`Pool::receive`] under way, fed by whichever stream its sender has to us now, and
//! kept for a while when there is none.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, OnceLock};

use berth_common::id::{Epoch, NodeId, SnapshotId, VolumeId};
use bytes::Bytes;
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::io::AsyncRead;
use tokio::sync::{mpsc, watch};
use tokio_util::io::StreamReader;
use tokio_util::sync::CancellationToken;

use super::Admission;
use super::frame::Position;
use super::wire::{Answer, Offer, TransferId};
use crate::reconcile::apply::chain;
use crate::volume::{Meta, Pool};

/// Chunks that may wait for the pool.
const WAITING: usize = 4;
/// Snapshots that may arrive from one node at once, those whose link broke included.
pub(super) const MOST_PER_NODE: usize = 8;
/// Snapshots that may arrive at once.
pub(super) const MOST: usize = 64;

/// What the pool is fed with.
pub(super) enum Piece {
    /// Verified bytes.
    Content(Bytes),
    /// That was all: without it the pool reads an error.
    End,
}

/// How far an arrival is; held by the stream that feeds it.
pub(super) struct Feed {
    /// None: the end was fed.
    pub(super) pieces: Option<mpsc::Sender<Piece>>,
    pub(super) position: Position,
}

/// One snapshot that is arriving.
pub(super) struct Arrival {
    pub(super) from: NodeId,
    pub(super) volume: VolumeId,
    pub(super) epoch: Epoch,
    pub(super) snapshot: SnapshotId,
    pub(super) feed: tokio::sync::Mutex<Feed>,
    holder: Mutex<CancellationToken>,
    ended: CancellationToken,
    why: Arc<OnceLock<&'static str>>,
    outcome: watch::Receiver<Option<Answer>>,
}

impl Arrival {
    /// The present stream's turn: it ends when another one takes it over.
    pub(super) fn take_over(&self) -> CancellationToken {
        let mine = CancellationToken::new();
        std::mem::replace(&mut *self.holder.lock(), mine.clone()).cancel();
        mine
    }

    /// Ends it for this reason: what came is dropped, unless the pool has all of it.
    pub(super) fn end(&self, why: &'static str) {
        let _ = self.why.set(why);
        self.ended.cancel();
    }

    /// Waits for what the pool makes of it.
    pub(super) async fn outcome(&self) -> Answer {
        let mut outcome = self.outcome.clone();
        let told = outcome.wait_for(Option::is_some).await;
        told.ok()
            .and_then(|told| told.clone())
            .unwrap_or_else(|| Answer::failed("interrupted", true))
    }
}

/// All that are arriving.
#[derive(Default)]
pub(super) struct Arrivals(Mutex<HashMap<TransferId, Arc<Arrival>>>);

/// Forgets an arrival once the pool is done with it, however that ends.
struct Forgets(Arc<Arrivals>, TransferId);

impl Drop for Forgets {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

impl Arrivals {
    /// Ends what this node was sending of the same before, and waits until the pool has let go of it: its sender began anew.
    pub(super) async fn supersede(&self, from: NodeId, offer: &Offer) {
        let same = |arrival: &&Arc<Arrival>| {
            (arrival.from, arrival.volume, arrival.snapshot) == (from, offer.volume, offer.content.snapshot)
        };
        let before: Vec<_> = self.0.lock().values().filter(same).cloned().collect();
        for arrival in before {
            arrival.end("another transfer of the same snapshot took its place");
            arrival.outcome().await;
        }
    }

    /// Begins one.
    ///
    /// # Errors
    /// Why not, in words; later it may work.
    pub(super) fn begin(
        self: &Arc<Self>,
        (pool, policy): (&Arc<dyn Pool>, &Arc<dyn Admission>),
        from: NodeId,
        offer: &Offer,
        meta: Meta,
    ) -> Result<Arc<Arrival>, &'static str> {
        let mut all = self.0.lock();
        if all.len() >= MOST || all.values().filter(|one| one.from == from).count() >= MOST_PER_NODE {
            return Err("too many snapshots are arriving here at once");
        }
        if all.contains_key(&offer.transfer) {
            return Err("this transfer is under way already");
        }
        let (feeder, pieces) = mpsc::channel(WAITING);
        let (told, outcome) = watch::channel(None);
        let arrival = Arc::new(Arrival {
            from,
            volume: offer.volume,
            epoch: offer.epoch,
            snapshot: offer.content.snapshot,
            feed: tokio::sync::Mutex::new(Feed {
                pieces: Some(feeder),
                position: Position::default(),
            }),
            holder: Mutex::new(CancellationToken::new()),
            ended: CancellationToken::new(),
            why: Arc::default(),
            outcome,
        });
        all.insert(offer.transfer, Arc::clone(&arrival));
        let forgets = Forgets(Arc::clone(self), offer.transfer);
        let (pool, policy, content) = (Arc::clone(pool), Arc::clone(policy), offer.content);
        let mut reader = reader(pieces, arrival.ended.clone());
        let why = Arc::clone(&arrival.why);
        tokio::spawn(async move {
            let received = pool
                .receive(&meta, content.snapshot, content.announced, &mut reader)
                .await;
            drop(forgets);
            if received.is_ok() {
                policy.arrived(meta.id);
            }
            told.send_replace(Some(match received {
                Ok(_) => Answer::Received,
                Err(error) => match why.get() {
                    // What the pool says of it is only that something is missing.
                    Some(why) => Answer::failed(why, true),
                    None => Answer::failed(chain(&error), error.retryable()),
                },
            }));
        });
        Ok(arrival)
    }

    /// The one that this node is sending.
    pub(super) fn find(&self, from: NodeId, transfer: TransferId) -> Option<Arc<Arrival>> {
        let all = self.0.lock();
        all.get(&transfer).filter(|arrival| arrival.from == from).cloned()
    }

    /// Ends all.
    pub(super) fn end(&self) {
        let all = self.0.lock();
        all.values().for_each(|arrival| arrival.end("the agent stops"));
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().len()
    }
}

/// What the pool reads: an end only after [`Piece::End`], else an error, again and again.
fn reader(
    pieces: mpsc::Receiver<Piece>,
    ended: CancellationToken,
) -> impl AsyncRead + Send + Unpin + 'static {
    let stream = futures::stream::unfold((pieces, ended), |(mut pieces, ended)| async move {
        let piece = tokio::select! {
            biased;
            () = ended.cancelled() => None,
            piece = pieces.recv() => piece,
        };
        let read = match piece {
            Some(Piece::Content(bytes)) => Ok(bytes),
            Some(Piece::End) => return None,
            None => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "its sender went away before the end",
            )),
        };
        Some((read, (pieces, ended)))
    });
    StreamReader::new(Box::pin(stream.fuse()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    async fn read(pieces: Vec<Piece>, ended: bool) -> io::Result<Vec<u8>> {
        let (feeder, waiting) = mpsc::channel(WAITING);
        let token = CancellationToken::new();
        for piece in pieces {
            assert!(feeder.try_send(piece).is_ok());
        }
        if ended {
            token.cancel();
        }
        drop(feeder);
        let (mut reader, mut all) = (reader(waiting, token), Vec::new());
        let first = reader.read_to_end(&mut all).await;
        let again = reader.read_to_end(&mut all).await;
        assert_eq!(
            first.is_ok(),
            again.is_ok(),
            "nobody gets past an error by asking again"
        );
        first.map(|_| all)
    }

    /// A stream of btrfs can look whole where it was cut.
    #[tokio::test]
    async fn the_pool_reads_an_end_only_where_one_was_fed() {
        let content = || Piece::Content(Bytes::from_static(b"12"));
        assert_eq!(
            read(vec![content(), content(), Piece::End], false).await.unwrap(),
            b"1212"
        );
        for (pieces, ended) in [
            (vec![], false),
            (vec![content(), content()], false),
            (vec![content(), Piece::End], true),
        ] {
            let error = read(pieces, ended).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
