//! The receiver's side of one stream: judges an opening, and feeds what comes to the pool.

use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{Epoch, NodeId, VolumeId};
use berth_common::protocol::{read_frame, write_frame};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio_util::sync::CancellationToken;

use super::arrivals::{Arrival, Feed, Piece};
use super::frame::{Decoder, Frame, FrameError};
use super::wire::{Answer, Candidate, MAX_OPENING, MAX_PARENTS, Offer, Opening, TransferId};
use super::{AGAIN, CANCELLED, DONE, Shared};
use crate::reconcile::apply::chain;
use crate::volume::Meta;

/// Time to say what one wants.
const OPENING_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence in a body, with a living link, after which its sender is taken for stuck. `btrfs send` can search long for the
/// next difference.
const STALLED: Duration = Duration::from_secs(600);
/// Pieces that are read at once: each is what one packet brought.
const PIECES: usize = 64;
/// Bytes after which the sender is told what is here.
const ACK_EVERY: u64 = 1 << 20;

/// How a stream's turn ended.
enum Turn {
    /// With this last word.
    Told(Answer),
    /// The sender took it back, or does not keep to the rules; what came is dropped.
    Ended(Option<Answer>),
    /// The link broke.
    Lost,
    /// Another stream of the same sender goes on.
    TakenOver,
}

fn bad(error: &FrameError) -> Turn {
    Turn::Ended(Some(Answer::failed(chain(error), true)))
}

impl Shared {
    /// Serves one stream to its end.
    pub(super) async fn serve_stream(
        self: Arc<Self>,
        from: NodeId,
        connection: Connection,
        mut send: SendStream,
        mut receive: RecvStream,
    ) {
        let opening = tokio::time::timeout(OPENING_TIMEOUT, read_frame(&mut receive, MAX_OPENING)).await;
        let begun = match opening {
            Ok(Ok(Opening::Offer(offer))) => self.offered(from, &offer).await,
            Ok(Ok(Opening::Resume { transfer })) => self.resumed(from, transfer),
            Ok(Ok(Opening::Unknown)) => Err(Answer::refused(
                "this agent does not know that request: upgrade it",
                false,
            )),
            Ok(Err(error)) => Err(Answer::refused(chain(&error), false)),
            Err(_) => return,
        };
        let (arrival, first) = match begun {
            Ok(begun) => begun,
            Err(answer) => return tell(&mut send, &mut receive, &answer).await,
        };
        let mine = arrival.take_over();
        let mut feed = tokio::select! {
            feed = arrival.feed.lock() => feed,
            () = mine.cancelled() => return,
        };
        let first = first.unwrap_or(Answer::Resume {
            offset: feed.position.offset,
        });
        let mut stream = Stream {
            connection: &connection,
            send: &mut send,
            receive: &mut receive,
            arrival: &arrival,
            mine: &mine,
        };
        let turn = match write_frame(stream.send, &first).await {
            Ok(()) => self.feed(&mut stream, &mut feed).await,
            Err(_) => stream.broken(),
        };
        drop(feed);
        match turn {
            Turn::Told(answer) => tell(&mut send, &mut receive, &answer).await,
            Turn::Ended(answer) => {
                if !mine.is_cancelled() {
                    arrival.end("its sender took it back");
                }
                if let Some(answer) = answer {
                    tell(&mut send, &mut receive, &answer).await;
                }
            }
            Turn::TakenOver => {}
            Turn::Lost => {
                tracing::info!(%from, volume = %arrival.volume, "a transfer's link broke; it may go on");
                let stop = self.stop.clone();
                let keep = self.timing.resume_for;
                // Not on this task: the connection's place is given back.
                tokio::spawn(async move {
                    tokio::select! {
                        () = mine.cancelled() => {}
                        () = stop.cancelled() => arrival.end("the agent stops"),
                        () = tokio::time::sleep(keep) => arrival.end("its link did not come back"),
                    }
                });
            }
        }
    }

    /// What this node is to have, by its own orders.
    fn ordered(&self, from: NodeId, volume: VolumeId, epoch: Epoch) -> Result<Meta, Answer> {
        let Some(meta) = self.policy.arrival(from, volume).filter(|meta| meta.id == volume) else {
            let why = format!("volume {volume} is not expected here from node {from}");
            return Err(Answer::refused(why, true));
        };
        if meta.epoch != epoch {
            let why = format!(
                "volume {volume} is expected in epoch {}, and comes in {epoch}",
                meta.epoch
            );
            // An order for the newer one may be under way to this node.
            return Err(Answer::refused(why, epoch > meta.epoch));
        }
        Ok(meta)
    }

    async fn offered(&self, from: NodeId, offer: &Offer) -> Result<(Arc<Arrival>, Option<Answer>), Answer> {
        let meta = self.ordered(from, offer.volume, offer.epoch)?;
        if offer.parents.len() > MAX_PARENTS {
            return Err(Answer::refused("more parents than allowed", false));
        }
        self.arrivals.supersede(from, offer).await;
        let listed = self.pool.list().await;
        let here = listed.map_err(|error| Answer::refused(chain(&error), error.retryable()))?;
        let here = here.volumes.into_iter().find(|volume| volume.meta.id == meta.id);
        if here.as_ref().is_some_and(|here| here.meta.tenant != meta.tenant) {
            let why = format!("volume {} is here as another tenant's", meta.id);
            return Err(Answer::refused(why, false));
        }
        let snapshots = here.map(|here| here.snapshots).unwrap_or_default();
        let has = |candidate: &&Candidate| snapshots.iter().any(|snapshot| candidate.is(snapshot));
        if has(&&offer.content) {
            return Err(Answer::Here);
        }
        let parent = offer.parents.iter().find(has).map(|parent| parent.snapshot);
        let arrival = self
            .arrivals
            .begin((&self.pool, &self.policy), from, offer, meta)
            .map_err(|why| Answer::refused(why, true))?;
        tracing::info!(
            %from, volume = %offer.volume, snapshot = %offer.content.snapshot, ?parent, expected = %offer.expected,
            "a snapshot arrives"
        );
        Ok((arrival, Some(Answer::Send { parent })))
    }

    fn resumed(&self, from: NodeId, transfer: TransferId) -> Result<(Arc<Arrival>, Option<Answer>), Answer> {
        let arrival = self.arrivals.find(from, transfer).ok_or(Answer::Forgotten)?;
        self.ordered(from, arrival.volume, arrival.epoch)
            .inspect_err(|_| arrival.end("it is no longer expected"))?;
        Ok((arrival, None))
    }

    async fn feed(&self, stream: &mut Stream<'_>, feed: &mut Feed) -> Turn {
        let arrival = stream.arrival;
        let Ok(mut frames) = Decoder::new() else {
            return Turn::Ended(Some(Answer::failed("no memory for zstd", true)));
        };
        let mut told = feed.position.offset;
        let mut pieces = [const { bytes::Bytes::new() }; PIECES];
        while feed.pieces.is_some() {
            let frame = loop {
                match frames.poll_frame() {
                    Ok(Some(frame)) => break frame,
                    Ok(None) => {}
                    Err(error) => return bad(&error),
                }
                match stream.read(&mut pieces).await {
                    Ok(count) => pieces[..count]
                        .iter_mut()
                        .for_each(|piece| frames.handle_bytes(&std::mem::take(piece))),
                    Err(turn) => return turn,
                }
            };
            let Some(pool) = &feed.pieces else { break };
            let (piece, position) = match frame {
                Frame::Chunk(chunk) => match feed.position.then(&chunk) {
                    Ok(position) => (Piece::Content(chunk.content), position),
                    Err(error) => return bad(&error),
                },
                Frame::End(end) => {
                    if let Err(error) = feed.position.ends(end) {
                        return bad(&error);
                    }
                    // A body takes long, and a hand-over may have come meanwhile.
                    if let Err(answer) = self.ordered(arrival.from, arrival.volume, arrival.epoch) {
                        return Turn::Ended(Some(answer));
                    }
                    (Piece::End, feed.position)
                }
            };
            let last = matches!(piece, Piece::End);
            match stream.interrupted(pool.reserve()).await {
                Ok(Ok(permit)) => permit.send(piece),
                // The pool has seen enough.
                Ok(Err(_)) => return Turn::Told(arrival.outcome().await),
                Err(turn) => return turn,
            }
            feed.position = position;
            if last {
                feed.pieces = None;
            } else if position.offset - told >= ACK_EVERY {
                told = position.offset;
                let ack = Answer::Ack { offset: told };
                if write_frame(stream.send, &ack).await.is_err() {
                    return stream.broken();
                }
            }
        }
        tokio::select! {
            answer = arrival.outcome() => Turn::Told(answer),
            () = stream.mine.cancelled() => Turn::TakenOver,
        }
    }
}

/// A sender's stream, while it feeds an arrival.
struct Stream<'a> {
    connection: &'a Connection,
    send: &'a mut SendStream,
    receive: &'a mut RecvStream,
    arrival: &'a Arrival,
    mine: &'a CancellationToken,
}

impl Stream<'_> {
    /// The next bytes, in so many pieces.
    async fn read(&mut self, pieces: &mut [bytes::Bytes]) -> Result<usize, Turn> {
        let (connection, arrival, mine) = (self.connection, self.arrival, self.mine);
        tokio::select! {
            // What else there is to wait for is looked at when there is nothing to read: a body is half a million packets in a gigabyte.
            biased;
            read = self.receive.read_chunks(pieces) => match read {
                Ok(Some(count)) => Ok(count),
                Ok(None) => Err(Turn::Ended(Some(Answer::failed("the body has no end", true)))),
                Err(quinn::ReadError::ConnectionLost(_)) => Err(ended(connection.closed().await)),
                Err(quinn::ReadError::Reset(code)) if code == AGAIN.into() => Err(Turn::Lost),
                Err(_) => Err(Turn::Ended(None)),
            },
            // It may be done, or have failed, before it has read all.
            answer = arrival.outcome() => Err(Turn::Told(answer)),
            () = mine.cancelled() => Err(Turn::TakenOver),
            () = tokio::time::sleep(STALLED) => {
                Err(Turn::Ended(Some(Answer::failed("nothing came for ten minutes", true))))
            }
        }
    }

    /// Waits for the pool, but not when nobody waits for it any more.
    async fn interrupted<T>(&self, wait: impl Future<Output = T>) -> Result<T, Turn> {
        tokio::select! {
            done = wait => Ok(done),
            () = self.mine.cancelled() => Err(Turn::TakenOver),
            why = self.connection.closed() => Err(ended(why)),
        }
    }

    /// How a stream ended on which nothing can be written.
    fn broken(&self) -> Turn {
        match self.connection.close_reason() {
            Some(why) => ended(why),
            // The sender does not want to hear: it gave up.
            None => Turn::Ended(None),
        }
    }
}

/// Who closes a connection takes the transfer back; who falls silent may come again.
fn ended(why: ConnectionError) -> Turn {
    match why {
        ConnectionError::ApplicationClosed(close) if close.error_code != AGAIN.into() => {
            tracing::debug!(cancelled = close.error_code == CANCELLED.into(), "a sender left");
            Turn::Ended(None)
        }
        _ => Turn::Lost,
    }
}

async fn tell(send: &mut SendStream, receive: &mut RecvStream, answer: &Answer) {
    let _ = receive.stop(DONE.into());
    if write_frame(send, answer).await.is_ok() {
        let _ = send.finish();
    }
}
