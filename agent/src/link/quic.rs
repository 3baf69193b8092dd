//! Dials the brain and moves bytes, for ever: addresses in order, growing pauses with jitter between rounds.
//!
//! One connection carries everything. When the host's address changes the socket is rebound and QUIC migrates the
//! connection; if that fails, the idle timeout ends it and a new one is dialled.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::NodeId;
use berth_common::identity::{self, Identity};
use berth_common::model::NodeFacts;
use berth_common::protocol::{
    BrainMessage, CodecError, MAX_FRAME, NeighboursUpdate, UsageReport, read_frame, write_frame,
};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::brain::Brain;
use super::dial::{LinkError, client_endpoint, dial, local_address, resolve, unspecified};
use super::renewal::{Due, Renewal};
use super::session::{Action, Session, Welcome};
use super::streams::Server;
use crate::join::NodeFiles;
use crate::reconcile::apply::chain;
use crate::reconcile::{Accepted, Board, Handle, Refusal};
use crate::volume::keeper::Report;

const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
const ADDRESS_CHECK: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Everything the link needs.
pub struct LinkSettings {
    /// Who this node is.
    pub node: NodeId,
    /// Addresses to dial, in order.
    pub addresses: Vec<String>,
    /// Certificate and key.
    pub identity: Identity,
    /// Where certificates are written after renewal; none: never renewed (simulation).
    pub files: Option<NodeFiles>,
    /// An endpoint to share; none: an own one, which follows the host's address changes.
    pub endpoint: Option<quinn::Endpoint>,
}

/// What the link connects.
pub struct Link {
    /// See there.
    pub settings: LinkSettings,
    /// The reconciler.
    pub reconciler: Handle,
    /// What is observed.
    pub board: Arc<Board>,
    /// The host; changes are sent.
    pub facts: watch::Receiver<NodeFacts>,
    /// What is to be told of volumes; none until it is known.
    pub volumes: watch::Receiver<Option<Arc<Report>>>,
    /// Usage reports; dropped while the link is down. Their sequence is set here.
    pub usage: mpsc::Receiver<UsageReport>,
    /// Told the interval of usage reports, milliseconds.
    pub usage_interval_ms: watch::Sender<u32>,
    /// Told of other nodes on this one's networks.
    pub neighbours: Box<dyn Fn(NeighboursUpdate) + Send>,
    /// Serves the brain's streams.
    pub server: Server,
    /// Told the present connection, for [`Brain`].
    pub connection: watch::Sender<Option<quinn::Connection>>,
    /// Ends the link with Goodbye.
    pub shutdown: CancellationToken,
    /// Silence after which a connection is taken for dead: [`IDLE_TIMEOUT`] at first, then the brain's lease.
    pub idle: Duration,
}

impl Link {
    /// Runs until shutdown.
    pub async fn run(mut self) {
        let mut pause = FIRST_PAUSE;
        while !self.shutdown.is_cancelled() {
            for address in self.settings.addresses.clone() {
                let was_up = match self.connect(&address).await {
                    Err(LinkError::Shutdown) => return,
                    Err(error) => {
                        let up = self.connection.send_replace(None).is_some();
                        tracing::warn!(address, error = chain(&error), "no link to the brain");
                        up
                    }
                    Ok(()) => self.connection.send_replace(None).is_some(),
                };
                if was_up {
                    pause = FIRST_PAUSE;
                    // A brain that restarts is back within moments.
                    break;
                }
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            tokio::select! {
                () = tokio::time::sleep(pause.mul_f64(jitter)) => {}
                () = self.shutdown.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One connection, from dialling to its end.
    async fn connect(&mut self, address: &str) -> Result<(), LinkError> {
        let remote = resolve(address).await?;
        let endpoint = match &self.settings.endpoint {
            Some(endpoint) => endpoint.clone(),
            None => client_endpoint(remote)?,
        };
        let tls = identity::agent_tls(&self.settings.identity).map_err(LinkError::Identity)?;
        let shutdown = self.shutdown.clone();
        let connection = tokio::select! {
            connection = dial(&endpoint, remote, address, tls, self.idle) => connection?,
            () = shutdown.cancelled() => return Err(LinkError::Shutdown),
        };
        let result = self.talk(&endpoint, &connection, address).await;
        let (code, reason) = match &result {
            Err(LinkError::Refused(problem)) => (1u32, problem.detail.clone()),
            _ => (0, "bye".to_owned()),
        };
        connection.close(code.into(), reason.as_bytes());
        if matches!(result, Err(LinkError::Shutdown)) && self.settings.endpoint.is_none() {
            let _ = tokio::time::timeout(Duration::from_millis(500), endpoint.wait_idle()).await;
        }
        result
    }

    async fn talk(
        &mut self,
        endpoint: &quinn::Endpoint,
        connection: &quinn::Connection,
        address: &str,
    ) -> Result<(), LinkError> {
        let ended = |source| LinkError::Connection {
            address: address.to_owned(),
            source,
        };
        let (mut send, mut receive) = connection.open_bi().await.map_err(ended)?;
        let facts = self.facts.borrow_and_update().clone();
        // Whatever it says is news to this session.
        self.volumes.mark_changed();
        let mut session = Session::new(self.settings.node, self.board.generation(), facts);
        flush(&mut session, &mut send).await?;
        let welcome =
            tokio::time::timeout(HELLO_TIMEOUT, read_frame::<BrainMessage>(&mut receive, MAX_FRAME));
        let message = match welcome.await {
            Ok(Ok(message)) => message,
            // The certificate is judged after connect(): the connection says more than the stream.
            Ok(Err(error)) => match connection.close_reason() {
                Some(source) => return Err(ended(source)),
                None => return Err(error.into()),
            },
            Err(_) => {
                return Err(LinkError::Silent {
                    address: address.to_owned(),
                });
            }
        };
        session.handle_message(message);
        // One reader for the stream: reading a frame can't be cancelled half-way.
        let (sender, mut messages) = mpsc::channel(16);
        let reader = tokio::spawn(async move {
            loop {
                let message = read_frame::<BrainMessage>(&mut receive, MAX_FRAME).await;
                let last = message.is_err();
                if sender.send(message).await.is_err() || last {
                    return;
                }
            }
        });
        let result = self
            .drive(
                endpoint,
                connection,
                address,
                &mut session,
                &mut send,
                &mut messages,
            )
            .await;
        reader.abort();
        result
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "the parts of one connection, borrowed apart"
    )]
    async fn drive(
        &mut self,
        endpoint: &quinn::Endpoint,
        connection: &quinn::Connection,
        address: &str,
        session: &mut Session,
        send: &mut quinn::SendStream,
        messages: &mut mpsc::Receiver<Result<BrainMessage, CodecError>>,
    ) -> Result<(), LinkError> {
        let (verdicts_in, mut verdicts) = mpsc::unbounded_channel::<Result<Accepted, Refusal>>();
        let (orders_in, orders) = mpsc::unbounded_channel();
        let handle = self.reconciler.clone();
        let orderly = tokio::spawn(pass_orders(handle, orders, verdicts_in));
        let mut check = tokio::time::interval(ADDRESS_CHECK);
        let mut local = local_address(connection.remote_address());
        let mut renewal = self.renewal();
        // Its clones are the streams that are open.
        let streams = Arc::new(());
        let result = loop {
            while let Some(action) = session.poll_action() {
                match action {
                    Action::Up(welcome) => self.on_up(connection, address, welcome),
                    Action::Order(update) => drop(orders_in.send(*update)),
                    Action::Neighbours(update) => (self.neighbours)(update),
                    Action::Close(problem) => {
                        orderly.abort();
                        return Err(LinkError::Refused(Box::new(problem)));
                    }
                }
            }
            if session.wants_full() && self.board.is_ready() {
                session.handle_observed(true, self.board.take_all());
            }
            if let Err(error) = flush(session, send).await {
                break Err(error);
            }
            tokio::select! {
                message = messages.recv() => match message {
                    Some(Ok(message)) => session.handle_message(message),
                    Some(Err(error)) => break Err(match connection.close_reason() {
                        Some(source) => LinkError::Connection { address: address.to_owned(), source },
                        None => error.into(),
                    }),
                    None => break Err(CodecError::Closed.into()),
                },
                Some(verdict) = verdicts.recv() => session.handle_verdict(verdict),
                () = self.board.changed() => {
                    if !session.wants_full() && let Some(changes) = self.board.take_changes() {
                        session.handle_observed(false, changes);
                    }
                }
                Ok(()) = self.volumes.changed(), if session.is_up() => {
                    let report = self.volumes.borrow_and_update().clone();
                    if let Some(report) = report {
                        session.handle_volumes(&report);
                    }
                }
                Ok(()) = self.facts.changed() => session.handle_facts(self.facts.borrow_and_update().clone()),
                Some(report) = self.usage.recv() => send_usage(session, connection, report),
                stream = connection.accept_bi() => match stream {
                    Ok((send, receive)) => {
                        let (server, open) = (self.server.clone(), Arc::clone(&streams));
                        tokio::spawn(async move {
                            server.serve(send, receive).await;
                            drop(open);
                        });
                    }
                    Err(source) => break Err(LinkError::Connection { address: address.to_owned(), source }),
                },
                _ = check.tick() => {
                    let now = local_address(connection.remote_address());
                    if self.settings.endpoint.is_none() && now.is_some() && now != local {
                        migrate(endpoint, connection, local, now);
                        local = now;
                    }
                    if let Some(renewal) = &mut renewal {
                        match renewal.due(unix_seconds(), Arc::strong_count(&streams) - 1) {
                            Due::Nothing => {}
                            Due::Renew => self.renew(renewal).await,
                            Due::Redial => break Ok(()),
                        }
                    }
                }
                () = self.shutdown.cancelled() => {
                    session.handle_goodbye();
                    let _ = flush(session, send).await;
                    let _ = send.finish();
                    let _ = tokio::time::timeout(Duration::from_millis(500), send.stopped()).await;
                    break Err(LinkError::Shutdown);
                }
            }
        };
        orderly.abort();
        result
    }

    fn on_up(&mut self, connection: &quinn::Connection, address: &str, welcome: Welcome) {
        tracing::info!(address, name = %welcome.name, brain = welcome.brain_version, "link up");
        // Of the next connection: QUIC settles this one's when it is dialled.
        self.idle = idle_of(welcome.lease_ms);
        self.usage_interval_ms.send_replace(welcome.usage_interval_ms);
        self.connection.send_replace(Some(connection.clone()));
        if !welcome.addresses.is_empty() && welcome.addresses != self.settings.addresses {
            self.settings.addresses = welcome.addresses;
            if let Some(files) = &self.settings.files
                && let Err(error) = files.save_addresses(&self.settings.addresses)
            {
                tracing::warn!(error = chain(&error), "the brain's new addresses are not saved");
            }
        }
    }

    /// The renewal of the certificate in use; none in simulations.
    fn renewal(&self) -> Option<Renewal> {
        self.settings.files.as_ref()?;
        let (from, to) = identity::validity(self.settings.identity.chain.first()?).ok()?;
        Some(Renewal::new(from, to))
    }

    async fn renew(&mut self, renewal: &mut Renewal) {
        let Some(files) = self.settings.files.clone() else {
            return;
        };
        let brain = Brain::new(self.connection.subscribe());
        match crate::join::renew(&files, &brain).await {
            Ok(identity) => {
                tracing::info!("certificate renewed");
                self.settings.identity = identity;
                renewal.renewed();
            }
            Err(error) => {
                tracing::warn!(
                    error = chain(&error),
                    "certificate not renewed; it will be tried again"
                );
                renewal.failed(unix_seconds());
            }
        }
    }
}

fn unix_seconds() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_secs()).unwrap_or(i64::MAX))
}

/// A link that is silent for the brain's lease is dead to the brain, so it is to the agent; within reason.
fn idle_of(lease_ms: u32) -> Duration {
    Duration::from_millis(u64::from(lease_ms)).clamp(Duration::from_secs(2), Duration::from_secs(60))
}

/// Orders in their sequence, beside the select loop, so that fsync never delays the link.
async fn pass_orders(
    handle: Handle,
    mut orders: mpsc::UnboundedReceiver<berth_common::protocol::DesiredUpdate>,
    verdicts: mpsc::UnboundedSender<Result<Accepted, Refusal>>,
) {
    while let Some(update) = orders.recv().await {
        if verdicts.send(handle.order(update).await).is_err() {
            return;
        }
    }
}

async fn flush(session: &mut Session, send: &mut quinn::SendStream) -> Result<(), LinkError> {
    while let Some(message) = session.poll_transmit() {
        write_frame(send, &message).await?;
    }
    Ok(())
}

fn send_usage(session: &mut Session, connection: &quinn::Connection, mut report: UsageReport) {
    let Some(sequence) = session.next_usage_sequence() else {
        return;
    };
    report.sequence = sequence;
    let connection = connection.clone();
    tokio::spawn(async move {
        // A report that can't leave soon is worth nothing.
        let send = async {
            let mut stream = connection.open_uni().await.ok()?;
            write_frame(&mut stream, &report).await.ok()?;
            stream.finish().ok()
        };
        let _ = tokio::time::timeout(Duration::from_secs(2), send).await;
    });
}

fn migrate(
    endpoint: &quinn::Endpoint,
    connection: &quinn::Connection,
    from: Option<IpAddr>,
    to: Option<IpAddr>,
) {
    let bind = unspecified(connection.remote_address());
    match std::net::UdpSocket::bind(bind).and_then(|socket| endpoint.rebind(socket)) {
        Ok(()) => tracing::info!(?from, ?to, "the host's address changed; the link follows"),
        Err(error) => tracing::warn!(%error, "the link can't follow the host's new address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_borne_as_long_as_the_lease_within_reason() {
        for (lease_ms, want_s) in [(0, 2), (5_000, 5), (15_000, 15), (u32::MAX, 60)] {
            assert_eq!(idle_of(lease_ms), Duration::from_secs(want_s));
        }
    }
}
