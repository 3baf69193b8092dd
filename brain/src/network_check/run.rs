//! Carrying out a check: all nodes take part at once, since each answers all others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_common::api::{CheckEvent, PairCheck};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, NodeId};
use berth_common::model::{HostNumber, NodeRecord};
use berth_common::protocol::{CodecError, NodeReply, ProbePeer, ProbeStep, Probed, read_frame, write_frame};
use futures::future::join_all;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::mpsc;

use super::{Part, Side, judge, parts, related};
use crate::link::gateway::{Gateway, NodeStream};

/// How long a node may take to make its part.
const READY: Duration = Duration::from_secs(15);
/// How long it may measure without a word: a way that carries little takes longest, some twenty seconds.
const SILENCE: Duration = Duration::from_secs(60);
/// How long it may take to say whom it heard.
const HEARD: Duration = Duration::from_secs(5);
/// Largest reply, bytes.
const MAX_REPLY: usize = 1 << 20;

/// A node whose part stands.
struct Ready<'a> {
    part: &'a Part,
    stream: NodeStream,
    probed: BTreeMap<NodeId, Probed>,
    heard: Option<BTreeSet<HostNumber>>,
}

/// Checks these nodes, and says how it goes and what was found. Ends early when nobody listens: the nodes' parts end with it.
pub async fn run(gateway: &dyn Gateway, nodes: &[Arc<NodeRecord>], events: &mpsc::Sender<CheckEvent>) {
    let parts = parts(nodes);
    let begun = join_all(parts.iter().map(|part| begin(gateway, part))).await;
    let mut ready = Vec::new();
    for (part, begun) in parts.iter().zip(begun) {
        match begun {
            Ok(part) => ready.push(part),
            Err(problem) => {
                let node = part.node.name.clone();
                let _ = events.send(CheckEvent::Absent { node, problem }).await;
            }
        }
    }
    let here: BTreeSet<NodeId> = ready.iter().map(|one| one.part.node.id).collect();
    let asked = |part: &Part| -> Vec<ProbePeer> {
        let peers = part.peers.iter();
        peers.filter(|peer| here.contains(&peer.node)).copied().collect()
    };
    let total: usize = ready.iter().map(|one| asked(one.part).len()).sum();
    let progress = Progress {
        done: AtomicU64::new(0),
        total: total as u64,
        events,
    };
    let measured = join_all(
        ready
            .iter_mut()
            .map(|one| measure(one, asked(one.part), &progress)),
    )
    .await;
    // Only now: each answered all others until here.
    join_all(ready.iter_mut().map(hear)).await;
    let left = ready.iter().zip(measured).filter_map(|(one, measured)| {
        let (node, problem) = (one.part.node.name.clone(), measured.err()?);
        Some(CheckEvent::Absent { node, problem })
    });
    let mut found: Vec<_> = left.collect();
    found.extend(pairs(&ready).into_iter().map(|pair| CheckEvent::Pair { pair }));
    drop(ready);
    for event in found {
        let _ = events.send(event).await;
    }
    let _ = events.send(CheckEvent::Done).await;
}

fn pairs(ready: &[Ready<'_>]) -> Vec<PairCheck> {
    let sides: Vec<_> = ready.iter().map(Ready::side).collect();
    let each = sides.iter().enumerate();
    let pairs = each.flat_map(|(nth, one)| sides[nth + 1..].iter().map(move |other| (one, other)));
    let related = pairs.filter(|(one, other)| related(one.node, other.node));
    related.map(|(one, other)| judge(one, other)).collect()
}

struct Progress<'a> {
    done: AtomicU64,
    total: u64,
    events: &'a mpsc::Sender<CheckEvent>,
}

impl Progress<'_> {
    async fn one(&self) {
        let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let event = CheckEvent::Progress {
            done,
            total: self.total,
        };
        let _ = self.events.send(event).await;
    }
}

impl Ready<'_> {
    fn side(&self) -> Side<'_> {
        Side {
            node: &self.part.node,
            host: self.part.host,
            probed: &self.probed,
            heard: self.heard.as_ref(),
        }
    }
}

async fn begin<'a>(gateway: &dyn Gateway, part: &'a Part) -> Result<Ready<'a>, Problem> {
    let mut stream = gateway.open(part.node.id, &part.request).await?;
    match reply(&mut stream, &part.node.name, READY).await? {
        NodeReply::Ready => Ok(Ready {
            part,
            stream,
            probed: BTreeMap::new(),
            heard: None,
        }),
        other => Err(refused(other, &part.node.name)),
    }
}

async fn measure(one: &mut Ready<'_>, peers: Vec<ProbePeer>, progress: &Progress<'_>) -> Result<(), Problem> {
    let name = &one.part.node.name;
    let asked: BTreeSet<NodeId> = peers.iter().map(|peer| peer.node).collect();
    let sent = write_frame(&mut one.stream.send, &ProbeStep::Go { peers }).await;
    sent.map_err(|error| broken(name, &error))?;
    loop {
        match reply(&mut one.stream, name, SILENCE).await? {
            NodeReply::Probed { probed } => {
                // What it was not asked it can't know.
                if asked.contains(&probed.node) && one.probed.insert(probed.node, probed).is_none() {
                    progress.one().await;
                }
            }
            NodeReply::Finished => return Ok(()),
            NodeReply::Unknown => {}
            other => return Err(refused(other, name)),
        }
    }
}

/// Whom a node heard. One that does not say leaves that unknown.
async fn hear(one: &mut Ready<'_>) {
    let _ = one.stream.send.shutdown().await;
    if let Ok(NodeReply::Heard { heard }) = reply(&mut one.stream, &one.part.node.name, HEARD).await {
        one.heard = Some(heard.hosts);
    }
}

async fn reply(stream: &mut NodeStream, node: &Name, limit: Duration) -> Result<NodeReply, Problem> {
    match tokio::time::timeout(limit, read_frame(&mut stream.recv, MAX_REPLY)).await {
        Ok(reply) => reply.map_err(|error| broken(node, &error)),
        Err(_) => Err(Problem::new(
            ErrorKind::Timeout,
            format!("node {node} said nothing for {} s", limit.as_secs()),
        )
        .cure("see what its agent is busy with (journalctl -u berth-agent there), then run the check again")),
    }
}

fn broken(node: &Name, error: &CodecError) -> Problem {
    Problem::unavailable(format!("the stream from node {node} broke: {error}")).cure("run the check again")
}

fn refused(reply: NodeReply, node: &Name) -> Problem {
    match reply {
        NodeReply::Problem { problem } => problem,
        _ => Problem::new(
            ErrorKind::Internal,
            format!("node {node} answered something else than was asked"),
        )
        .cure("agent and brain may be of versions too far apart: upgrade the older"),
    }
}
