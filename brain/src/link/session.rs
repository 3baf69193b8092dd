//! One agent's connection: Hello and Welcome, desired sets down, everything it observes up, until either side ends it.
//!
//! Five loops in one task: control stream in, desired sets out, usage, requests, and the connection's end; whichever ends
//! first ends the session. Reports wait while the cluster's writer is behind, which QUIC passes on to the agent.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use berth_common::error::Problem;
use berth_common::id::{NodeId, clip};
use berth_common::model::{NodeFacts, NodeRecord};
use berth_common::protocol::{AgentMessage, BrainMessage, CodecError, UsageReport, read_frame};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

mod orders;

use orders::{Refusal, transmit};

use super::Membership;
use super::hello::{Hello, MAX_TEXT, bounded, greeting, judge, reject, who};
use super::parts::{Observation, Parts, VolumeParts};
use super::requests::{self, Asker};
use super::seen::Seen;
use super::server::{Place, REFUSED, Shared};
use crate::cluster::Change;
use crate::controllers::NewEvent;

/// Time for the control stream and its Hello.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest message on the control stream, bytes: 2,000 observed containers with long reasons.
const MAX_MESSAGE: usize = 4 << 20;
/// Largest usage report, bytes.
const MAX_USAGE: usize = 1 << 20;
/// How often a connection is asked where its node is.
const LOOK_AT_ADDRESS: Duration = Duration::from_secs(2);
/// Facts change seldom, and each change is a write to the store.
const FACTS_PAUSE: Duration = Duration::from_secs(1);
/// Events of one node that are kept in a second.
const EVENTS_A_SECOND: u32 = 20;

/// How a session ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("the agent said goodbye")]
    Goodbye,
    #[error("a newer connection of this node took over")]
    Replaced,
    #[error("{0}")]
    Refused(Box<Problem>),
    #[error("control stream: {0}")]
    Control(#[source] CodecError),
    #[error("the connection ended: {0}")]
    Connection(#[from] quinn::ConnectionError),
    #[error("the agent takes no messages")]
    Stuck,
}

/// Serves one agent. `place` is given back once it has proved who it is.
pub(super) async fn serve(shared: &Arc<Shared>, connection: &quinn::Connection, place: Place) {
    let remote = connection.remote_address();
    let asker = match who(connection) {
        Ok(asker) => asker,
        Err(why) => {
            tracing::warn!(%remote, why, "a link was refused");
            return connection.close(REFUSED.into(), why.as_bytes());
        }
    };
    let node = asker.node;
    let greeted = timeout(HELLO_TIMEOUT, greeting(connection)).await;
    drop(place);
    let (mut send, receive, hello) = match greeted {
        Ok(Ok(greeting)) => greeting,
        Ok(Err(error)) => {
            tracing::warn!(%node, %remote, %error, "no usable Hello");
            return connection.close(REFUSED.into(), b"no usable Hello");
        }
        Err(_) => {
            tracing::warn!(%node, %remote, "no Hello in time");
            return connection.close(REFUSED.into(), b"no Hello in time");
        }
    };
    let welcome = judge(shared, &asker, &hello);
    let welcome = match welcome {
        Ok(welcome) => welcome,
        Err(problem) => {
            tracing::warn!(%node, %remote, %problem, "a link was refused");
            return reject(connection, &mut send, problem).await;
        }
    };
    let member = shared.links.enter(node, connection.clone()).await;
    let session = Session {
        shared,
        connection,
        member: &member,
        asker,
    };
    let end = session.run(send, receive, welcome, hello).await;
    tracing::info!(%node, serial = member.serial, %end, "link down");
    if let End::Refused(problem) = &end {
        connection.close(REFUSED.into(), problem.detail.as_bytes());
    } else {
        connection.close(0u32.into(), b"bye");
    }
    member.leave().await;
}

struct Session<'a> {
    shared: &'a Arc<Shared>,
    connection: &'a quinn::Connection,
    member: &'a Membership,
    asker: Asker,
}

impl Session<'_> {
    fn node(&self) -> NodeId {
        self.asker.node
    }

    async fn run(
        &self,
        mut send: SendStream,
        receive: RecvStream,
        welcome: BrainMessage,
        hello: Hello,
    ) -> End {
        if let Err(end) = transmit(&mut send, &welcome).await {
            return end;
        }
        let mut seen = Seen::new(self.connection.remote_address(), hello.generation);
        self.shared.cluster.heard(self.node());
        let connected = Change::Connected(self.node(), seen.connection(self.member.serial));
        if !self.member.report(vec![connected], Vec::new()).await {
            return End::Replaced;
        }
        tracing::info!(node = %self.node(), address = %seen.address, "link up");
        let (refusals_in, refusals) = mpsc::channel(8);
        let listen = async {
            self.facts(hello.facts).await?;
            self.listen(receive, &mut seen, refusals_in).await
        };
        tokio::select! {
            end = never(listen) => end,
            end = never(self.order(send, refusals)) => end,
            end = never(self.usage()) => end,
            end = never(self.requests()) => end,
            error = self.connection.closed() => error.into(),
        }
    }

    /// The next message. A quiet node's address can change too (QUIC migration), so it is looked at meanwhile.
    async fn next(&self, receive: &mut RecvStream, seen: &mut Seen) -> Result<AgentMessage, End> {
        let mut message = std::pin::pin!(read_frame::<AgentMessage>(receive, MAX_MESSAGE));
        let mut look = tokio::time::interval(LOOK_AT_ADDRESS);
        loop {
            tokio::select! {
                message = &mut message => return message.map_err(End::Control),
                _ = look.tick() => {}
            }
            if seen.moved(self.connection.remote_address()) {
                let change = Change::Connected(self.node(), seen.connection(self.member.serial));
                tracing::info!(node = %self.node(), address = %seen.address, "the node's address changed");
                if !self.member.report(vec![change], Vec::new()).await {
                    return Err(End::Replaced);
                }
            }
        }
    }

    /// The control stream, from the agent.
    async fn listen(
        &self,
        mut receive: RecvStream,
        seen: &mut Seen,
        refusals: mpsc::Sender<Refusal>,
    ) -> Result<(), End> {
        let cluster = &self.shared.cluster;
        let mut facts_due = Instant::now();
        let mut window = (Instant::now(), 0u32);
        let mut parts = Parts::default();
        let mut parts_of_volumes = VolumeParts::default();
        loop {
            let message = self.next(&mut receive, seen).await?;
            cluster.heard(self.node());
            let mut changes = Vec::new();
            let mut events = Vec::new();
            match message {
                AgentMessage::Observed {
                    full,
                    more,
                    generation,
                    containers,
                    gone,
                } => {
                    let part = Observation {
                        full,
                        generation,
                        containers,
                        gone,
                    };
                    let state = cluster.snapshot();
                    let own = |id| {
                        let bound = state.containers.get(&id).and_then(|c| c.node);
                        bound == Some(self.node())
                    };
                    let Some(whole) = parts.take(part, more, own) else {
                        continue;
                    };
                    if seen.observed(whole.full, whole.generation) {
                        changes.push(Change::Connected(
                            self.node(),
                            seen.connection(self.member.serial),
                        ));
                    }
                    changes.push(Change::Observed {
                        node: self.node(),
                        full: whole.full,
                        containers: whole.containers,
                        gone: whole.gone,
                    });
                }
                AgentMessage::Volumes { more, volumes, gone } => {
                    let Some((volumes, gone)) = parts_of_volumes.take(volumes, gone, more) else {
                        continue;
                    };
                    changes.push(Change::ObservedVolumes {
                        node: self.node(),
                        volumes,
                        gone,
                    });
                }
                AgentMessage::Facts { facts } => {
                    sleep_until(facts_due).await;
                    facts_due = Instant::now() + FACTS_PAUSE;
                    self.facts(bounded(facts)).await?;
                }
                AgentMessage::Refused {
                    held,
                    refused,
                    problem,
                } => {
                    tracing::warn!(node = %self.node(), %held, %refused, %problem, "a desired set was refused");
                    let refusal = Refusal {
                        held,
                        refused,
                        problem,
                    };
                    refusals.send(refusal).await.map_err(|_| End::Stuck)?;
                }
                AgentMessage::Event {
                    container,
                    kind,
                    text,
                } => {
                    if window.0.elapsed() > Duration::from_secs(1) {
                        window = (Instant::now(), 0);
                    }
                    window.1 += 1;
                    if window.1 <= EVENTS_A_SECOND {
                        events.extend(self.event(container, &kind, &text));
                    }
                }
                AgentMessage::Goodbye => return Err(End::Goodbye),
                AgentMessage::Hello { .. } => {
                    return Err(End::Refused(Box::new(Problem::invalid(
                        "the agent sent Hello twice",
                    ))));
                }
                AgentMessage::Unknown => {}
            }
            if changes.is_empty() && events.is_empty() {
                continue;
            }
            if !self.member.report(changes, events).await {
                return Err(End::Replaced);
            }
        }
    }

    /// What the host is; written when it is news.
    async fn facts(&self, facts: NodeFacts) -> Result<(), End> {
        let node = self.node();
        let same = |record: &NodeRecord| record.facts == facts;
        match self.shared.cluster.snapshot().nodes.get(&node) {
            Some(record) if same(record) => return Ok(()),
            None => return Err(self.removed()),
            Some(_) => {}
        }
        let propose = move |state: &crate::cluster::State, _| {
            let record = state.nodes.get(&node).filter(|record| record.facts != facts);
            let change = record.map(|record| {
                Change::PutNode(NodeRecord {
                    facts,
                    ..(**record).clone()
                })
            });
            Ok((change.into_iter().collect(), Vec::new(), ()))
        };
        if let Err(problem) = self.shared.cluster.write(propose).await {
            // The store fails now; the next Hello tells them again.
            tracing::warn!(%node, %problem, "a node's facts could not be kept");
        }
        Ok(())
    }

    fn removed(&self) -> End {
        let detail = format!("node {} was removed from this cluster", self.node());
        End::Refused(Box::new(Problem::not_found(detail)))
    }

    /// An event for people; none about a container that is not this node's (R7).
    fn event(
        &self,
        container: Option<berth_common::id::ContainerId>,
        kind: &str,
        text: &str,
    ) -> Option<NewEvent> {
        let state = self.shared.cluster.snapshot();
        let name = &state.nodes.get(&self.node())?.name;
        let container = match container {
            Some(id) => Some(
                state
                    .containers
                    .get(&id)
                    .filter(|c| c.node == Some(self.node()))?,
            ),
            None => None,
        };
        Some(NewEvent {
            kind: event_kind(kind),
            tenant: container.and_then(|c| Some(state.tenants.get(&c.tenant)?.name.clone())),
            subject: match container {
                Some(c) => format!("container {}/{} ({})", c.service_name, c.replica, c.id),
                None => format!("node {name}"),
            },
            text: format!("{} (node {name})", clip(text, MAX_TEXT)),
        })
    }

    /// Usage reports, each on a stream of its own, one after the other.
    async fn usage(&self) -> Result<(), End> {
        let (cluster, node) = (&self.shared.cluster, self.node());
        loop {
            let mut stream = self.connection.accept_uni().await?;
            let report = match timeout(HELLO_TIMEOUT, read_frame::<UsageReport>(&mut stream, MAX_USAGE)).await
            {
                Ok(Ok(report)) => report,
                Ok(Err(error)) => {
                    tracing::debug!(%node, %error, "a usage report can't be read");
                    let _ = stream.stop(1u32.into());
                    continue;
                }
                Err(_) => continue,
            };
            cluster.heard(node);
            let (state, now) = (cluster.snapshot(), cluster.now().mono_ms);
            let own = |id| state.containers.get(&id).is_some_and(|c| c.node == Some(node));
            if cluster.usage().record(node, self.member.serial, report, now, own) {
                cluster.sample(node);
            }
        }
    }

    /// Streams that the agent opens; QUIC bounds their number.
    async fn requests(&self) -> Result<(), End> {
        // Dropped with the session, which ends what it still serves.
        let mut running = JoinSet::new();
        loop {
            let (send, receive) = self.connection.accept_bi().await?;
            while running.try_join_next().is_some() {}
            let (shared, asker) = (Arc::clone(self.shared), self.asker.clone());
            running.spawn(async move { requests::serve(&shared, &asker, send, receive).await });
        }
    }
}

/// Kinds of events that agents may report.
fn event_kind(kind: &str) -> &'static str {
    const KNOWN: [&str; 7] = [
        "oom",
        "disk-limit",
        "exited",
        "failed",
        "unhealthy",
        "healthy",
        "restarted",
    ];
    KNOWN.into_iter().find(|known| *known == kind).unwrap_or("agent")
}

async fn never(loop_: impl Future<Output = Result<(), End>>) -> End {
    match loop_.await {
        Ok(()) => End::Stuck,
        Err(end) => end,
    }
}
