//! The sender's side: offers, sends, and comes again when a link breaks.

use std::time::Duration;

use berth_common::id::SnapshotId;
use berth_common::protocol::{CodecError, read_frame, write_frame};
use berth_common::units::Bytes;
use quinn::{RecvStream, SendStream};
use rand::Rng as _;
use tokio::sync::watch;
use tokio::time::Instant;

use super::body::{Body, Kept, Next, Source};
use super::dial::Line;
use super::wire::{Answer, Candidate, MAX_ANSWER, MAX_PARENTS, Offer, Opening, TransferId};
use super::{AGAIN, LineError, Outgoing, PAUSES, PeerError, Peers, Progress, Rate, Sent};
use crate::reconcile::apply::chain;
use crate::volume::VolumeError;

/// A receiver that forgets it so often will not get it this time.
const MOST_RESTARTS: u32 = 5;
/// Attempts in a row by which nothing more arrived.
const MOST_FUTILE: u32 = 20;
/// Time for a last word after the receiver stopped listening.
const LAST_WORD: Duration = Duration::from_secs(10);

/// Why an attempt ended.
enum Failure {
    /// The link; another attempt may go on.
    Link(LineError),
    /// For good.
    Final(PeerError),
}

impl From<PeerError> for Failure {
    fn from(error: PeerError) -> Self {
        Self::Final(error)
    }
}

/// A place among what is being sent; given back when dropped.
struct Place<'a>(&'a Peers, &'a Outgoing);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let Self(peers, it) = self;
        peers.sending.lock().remove(&(it.to.node, it.volume, it.snapshot));
    }
}

impl Peers {
    /// Brings a snapshot to another node, where it is afterwards as a whole or not at all. Links that break are taken up again;
    /// once there was none for [`super::RESUME_FOR`] it fails, and may be repeated: what has arrived as a whole counts. While there is
    /// one, it takes as long as pools and links do. Dropping the future takes it back: the receiver keeps nothing, if at that
    /// moment there is no link only after that time.
    ///
    /// # Errors
    /// [`PeerError`], but `Bind`.
    pub async fn send(
        &self,
        outgoing: &Outgoing,
        progress: &watch::Sender<Progress>,
        limit: &Rate,
    ) -> Result<Sent, PeerError> {
        let node = outgoing.to.node;
        let key = (node, outgoing.volume, outgoing.snapshot);
        if !self.sending.lock().insert(key) {
            return Err(PeerError::Underway {
                node,
                volume: outgoing.volume,
                snapshot: outgoing.snapshot,
            });
        }
        let _place = Place(self, outgoing);
        let mut run = Run {
            peers: self,
            outgoing,
            offer: self.offer(outgoing).await?,
            progress,
            limit,
            heard: false,
            up: false,
            restarted: 0,
        };
        progress.send_replace(Progress::default());
        let (first, longest) = PAUSES;
        let (mut pause, mut lost, mut futile) = (first, Instant::now(), 0);
        let mut body = None;
        loop {
            let before = (acknowledged(body.as_ref()), run.restarted);
            run.up = false;
            let source = match run.attempt(&mut body).await {
                Ok(sent) => return Ok(sent),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Link(source)) => source,
            };
            if !run.heard {
                return Err(PeerError::Unreachable { node, source });
            }
            if run.up {
                lost = Instant::now();
            }
            if before != (acknowledged(body.as_ref()), run.restarted) {
                (pause, futile) = (first, 0);
            }
            futile += 1;
            if lost.elapsed() > self.shared.timing.resume_for || futile > MOST_FUTILE {
                return Err(PeerError::Lost { node, source });
            }
            tracing::info!(%node, volume = %outgoing.volume, error = chain(&source), "a transfer's link broke");
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
                () = self.shared.stop.cancelled() => return Err(PeerError::Lost { node, source }),
            }
            pause = (pause * 2).min(longest);
        }
    }

    /// What is to be offered, from what is here.
    async fn offer(&self, outgoing: &Outgoing) -> Result<Offer, PeerError> {
        let (volume, snapshot) = (outgoing.volume, outgoing.snapshot);
        let pool = |source| PeerError::Pool {
            volume,
            snapshot,
            source,
        };
        let listing = self.shared.pool.list().await.map_err(pool)?;
        let here = listing.volumes.into_iter().find(|here| here.meta.id == volume);
        let mut snapshots = here.ok_or_else(|| pool(VolumeError::NoVolume(volume)))?.snapshots;
        let found = snapshots.iter().position(|here| here.id == snapshot);
        let found = found.ok_or_else(|| pool(VolumeError::NoSnapshot { volume, snapshot }))?;
        let content = snapshots.swap_remove(found);
        let parents = match outgoing.parent {
            None => Vec::new(),
            Some(wanted) => {
                snapshots.retain(|other| other.read_only);
                // The wanted one, then the newest.
                snapshots.sort_by_key(|other| (other.id != wanted, std::cmp::Reverse(other.generation)));
                snapshots.iter().take(MAX_PARENTS).map(Candidate::of).collect()
            }
        };
        Ok(Offer {
            transfer: TransferId::random(),
            volume,
            epoch: outgoing.epoch,
            content: Candidate::of(&content),
            parents,
            expected: content.referenced,
        })
    }
}

fn acknowledged(body: Option<&Body>) -> Option<u64> {
    Some(body?.kept.window.lock().acknowledged())
}

/// One snapshot on its way, over all its attempts. Its body is apart: what a pool reads can't be looked at from two threads.
struct Run<'a> {
    peers: &'a Peers,
    outgoing: &'a Outgoing,
    offer: Offer,
    progress: &'a watch::Sender<Progress>,
    limit: &'a Rate,
    /// The node has spoken: it is there, and lets us in.
    heard: bool,
    /// It has spoken on the present connection.
    up: bool,
    restarted: u32,
}

impl Run<'_> {
    fn sent(&self, already: bool, parent: Option<SnapshotId>) -> Sent {
        Sent {
            already,
            parent,
            progress: *self.progress.borrow(),
            restarted: self.restarted,
        }
    }

    /// One connection, from dialling to its end.
    async fn attempt(&mut self, body: &mut Option<Body>) -> Result<Sent, Failure> {
        let line = self.peers.dial(&self.outgoing.to).await.map_err(Failure::Link)?;
        let result = self.talk(&line, body).await;
        match &result {
            Ok(_) => line.done(),
            Err(Failure::Link(_)) => line.again(),
            // Dropped: taken back.
            Err(Failure::Final(_)) => {}
        }
        result
    }

    async fn talk(&mut self, line: &Line, begun: &mut Option<Body>) -> Result<Sent, Failure> {
        if let Some(body) = begun {
            let resume = Opening::Resume {
                transfer: body.transfer,
            };
            let (answer, send, receive) = self.open(line, &resume).await?;
            self.up = true;
            match answer {
                Answer::Resume { offset } => {
                    let gone_on = body.kept.window.lock().handle_resumed(offset);
                    gone_on.map_err(|source| self.count(source))?;
                    self.progress.send_modify(|progress| progress.resumed += 1);
                    self.pump(line, body, send, receive).await?;
                    return Ok(self.sent(false, body.parent));
                }
                Answer::Forgotten => {
                    *begun = None;
                    self.forgotten()?;
                }
                other => return Err(self.unwelcome(other).into()),
            }
        }
        let offer = Opening::Offer(self.offer.clone());
        let (answer, send, receive) = self.open(line, &offer).await?;
        (self.heard, self.up) = (true, true);
        let body = match answer {
            Answer::Here => return Ok(self.sent(true, None)),
            Answer::Send { parent } => begun.insert(self.begin(parent).await?),
            other => return Err(self.unwelcome(other).into()),
        };
        self.pump(line, body, send, receive).await?;
        Ok(self.sent(false, body.parent))
    }

    /// The receiver knows nothing of it any more: what follows is a new transfer.
    fn forgotten(&mut self) -> Result<(), PeerError> {
        self.restarted += 1;
        self.offer.transfer = TransferId::random();
        if self.restarted > MOST_RESTARTS {
            return Err(PeerError::Failed {
                node: self.outgoing.to.node,
                reason: format!("it forgot the transfer {MOST_RESTARTS} times"),
                retryable: true,
            });
        }
        Ok(())
    }

    /// Reading begins, for a receiver that has `parent`.
    async fn begin(&self, parent: Option<SnapshotId>) -> Result<Body, PeerError> {
        let (volume, snapshot) = (self.outgoing.volume, self.outgoing.snapshot);
        let offered = |parent| {
            self.offer
                .parents
                .iter()
                .any(|offered| offered.snapshot == parent)
        };
        if parent.is_some_and(|parent| !offered(parent)) {
            return Err(self.out_of_turn("with a parent"));
        }
        let sending = self.peers.shared.pool.send(volume, snapshot, parent).await;
        let sending = sending.map_err(|source| PeerError::Pool {
            volume,
            snapshot,
            source,
        })?;
        let source = Source::new(sending).map_err(|source| self.read(source))?;
        self.progress.send_modify(|progress| {
            progress.read = Bytes::ZERO;
            progress.expected = parent.is_none().then_some(self.offer.expected);
        });
        Ok(Body {
            transfer: self.offer.transfer,
            parent,
            source,
            kept: Kept::default(),
        })
    }

    /// Sends the body, from what the receiver does not have, up to its last word.
    async fn pump(
        &self,
        line: &Line,
        body: &mut Body,
        mut send: SendStream,
        mut receive: RecvStream,
    ) -> Result<(), Failure> {
        let result = {
            let writing = self.write(line, &mut body.source, &body.kept, &mut send);
            let hearing = self.hear(line, &body.kept, &mut receive);
            tokio::pin!(writing, hearing);
            tokio::select! {
                heard = &mut hearing => heard,
                failed = &mut writing => match failed {
                    // A receiver that stops listening says why.
                    Failure::Link(_) => tokio::time::timeout(LAST_WORD, hearing)
                        .await
                        .unwrap_or(Err(failed)),
                    Failure::Final(_) => Err(failed),
                },
            }
        };
        if matches!(result, Err(Failure::Link(_))) {
            // Dropped, it would end in order, as if it were taken back.
            let _ = send.reset(AGAIN.into());
        }
        result
    }

    /// Reads, and writes what was read meanwhile; ends only by failing.
    async fn write(&self, line: &Line, source: &mut Source, kept: &Kept, send: &mut SendStream) -> Failure {
        let reading = async {
            loop {
                kept.has_room().await;
                match source.next().await {
                    Err(error) => return Failure::from(self.read(error)),
                    Ok(Some((length, frame))) => {
                        kept.push(length, frame);
                        self.progress
                            .send_modify(|progress| progress.read = Bytes(source.read()));
                    }
                    Ok(None) => {
                        kept.ended(source.end());
                        std::future::pending::<()>().await;
                    }
                }
            }
        };
        let writing = async {
            loop {
                let (frame, last) = match kept.next().await {
                    Next::Chunk(frame) => (frame, false),
                    Next::End(frame) => (frame, true),
                };
                let length = frame.len();
                self.limit.pass(length).await;
                if let Err(error) = send.write_chunk(frame).await {
                    let error = CodecError::Io(std::io::Error::other(error));
                    return Failure::Link(line.broken(error));
                }
                self.progress
                    .send_modify(|progress| progress.wire.0 += length as u64);
                if last {
                    let _ = send.finish();
                    // The receiver has the last word.
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            failed = reading => failed,
            failed = writing => failed,
        }
    }

    /// Hears what the receiver says of the body, up to its last word.
    async fn hear(&self, line: &Line, kept: &Kept, receive: &mut RecvStream) -> Result<(), Failure> {
        loop {
            match answer(receive).await {
                Ok(Answer::Ack { offset }) => kept.handle_ack(offset).map_err(|source| self.count(source))?,
                Ok(Answer::Received) => return Ok(()),
                Ok(other) => return Err(self.unwelcome(other).into()),
                Err(error) => return Err(self.failed(line, error)),
            }
        }
    }

    /// A stream with this opening, and what the receiver says to it.
    async fn open(
        &self,
        line: &Line,
        opening: &Opening,
    ) -> Result<(Answer, SendStream, RecvStream), Failure> {
        let opened = async {
            let stream = line.connection.open_bi().await;
            let (mut send, mut receive) = stream.map_err(|error| CodecError::Io(error.into()))?;
            write_frame(&mut send, opening).await?;
            let answer = answer(&mut receive).await?;
            Ok((answer, send, receive))
        };
        opened.await.map_err(|error| self.failed(line, error))
    }

    fn failed(&self, line: &Line, error: CodecError) -> Failure {
        match error {
            CodecError::TooLong { .. } | CodecError::Malformed { .. } => {
                self.out_of_turn("what can't be read").into()
            }
            CodecError::Closed | CodecError::Io(_) => Failure::Link(line.broken(error)),
        }
    }

    fn read(&self, source: std::io::Error) -> PeerError {
        PeerError::Read {
            volume: self.outgoing.volume,
            snapshot: self.outgoing.snapshot,
            source,
        }
    }

    fn count(&self, source: super::OutsideWindow) -> PeerError {
        PeerError::Count {
            node: self.outgoing.to.node,
            source,
        }
    }

    fn out_of_turn(&self, what: &'static str) -> PeerError {
        PeerError::OutOfTurn {
            node: self.outgoing.to.node,
            what,
        }
    }

    /// An answer that ends the transfer.
    fn unwelcome(&self, answer: Answer) -> PeerError {
        let node = self.outgoing.to.node;
        match answer {
            Answer::Refused { reason, retryable } => PeerError::Refused {
                node,
                reason,
                retryable,
            },
            Answer::Failed { reason, retryable } => PeerError::Failed {
                node,
                reason,
                retryable,
            },
            Answer::Here => self.out_of_turn("that it is there"),
            Answer::Send { .. } => self.out_of_turn("to send"),
            Answer::Resume { .. } => self.out_of_turn("to go on"),
            Answer::Forgotten => self.out_of_turn("that it forgot"),
            Answer::Ack { .. } => self.out_of_turn("what it has"),
            Answer::Received => self.out_of_turn("that it has all"),
            Answer::Unknown => self.out_of_turn("something unknown"),
        }
    }
}

async fn answer(receive: &mut RecvStream) -> Result<Answer, CodecError> {
    read_frame(receive, MAX_ANSWER).await
}
