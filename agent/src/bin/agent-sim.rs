//! `agent-sim`: many simulated agents in one process and on one core, to load a brain without hosts.

#[path = "../sim/mod.rs"]
mod sim;

use std::io::Read as _;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use berth_agent::join::{JoinError, NodeFiles, join};
use berth_agent::link::dial;
use berth_common::id::Name;
use berth_common::model::Capacity;
use berth_common::protocol::JoinToken;
use berth_common::units::{Bytes, Millicores};
use clap::Parser;
use futures::StreamExt as _;
use nix::sys::socket::{setsockopt, sockopt};
use sim::node::{self, Node};
use sim::outage::Tracker;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Pause between looks at all agents: links, and whose usage is due.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Pause between starts: spreads handshakes and usage reports.
const START_PAUSE: Duration = Duration::from_millis(2);
/// Bytes of packets that may wait at one socket.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Most that is read of tokens, bytes.
const MAX_TOKENS: u64 = 64 << 20;

/// Simulates many nodes: the real protocol and reconciler, made-up hosts.
#[derive(Debug, Parser)]
#[command(name = "agent-sim", version)]
struct Args {
    /// Number of agents.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    agents: u32,
    /// Where identities and ledgers are kept; a second run with the same folder needs no tokens.
    #[arg(long)]
    dir: PathBuf,
    /// Join tokens, one a line, for agents that have not joined; `-` reads standard input.
    #[arg(long)]
    tokens: Option<PathBuf>,
    /// Agents are named PREFIX-1, PREFIX-2 and so on.
    #[arg(long, default_value = "sim")]
    name_prefix: String,
    /// Seconds between lines of statistics.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    stats_secs: u64,
    /// Cores of each node.
    #[arg(long, default_value = "64")]
    cpu: Millicores,
    /// Memory of each node.
    #[arg(long, default_value = "256GiB")]
    memory: Bytes,
    /// Disk of each node.
    #[arg(long, default_value = "1TiB")]
    disk: Bytes,
    /// Joins at the same time.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    parallel_joins: u16,
    /// UDP sockets that all agents share.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    sockets: u16,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(std::io::stderr)
        .init();
    // One core, and few threads for the ledgers' fsyncs.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()?;
    runtime.block_on(run(args))
}

async fn run(args: Args) -> anyhow::Result<()> {
    let capacity = Capacity {
        cpu: args.cpu,
        memory: args.memory,
        disk: args.disk,
    };
    let names = (1..=args.agents)
        .map(|n| format!("{}-{n}", args.name_prefix).parse::<Name>())
        .collect::<Result<Vec<_>, _>>()
        .context("--name-prefix")?;
    join_missing(&args, &names, capacity).await?;
    let endpoints = endpoints(&args.dir.join(names[0].as_str()), args.sockets).await?;
    let shutdown = CancellationToken::new();
    tokio::spawn(stop_on_signal(shutdown.clone()));
    let mut nodes = Vec::with_capacity(names.len());
    let (mut tracker, mut starting) = (Tracker::default(), names.iter().zip(endpoints.iter().cycle()));
    let mut start = tokio::time::interval(START_PAUSE);
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut stats = tokio::time::interval(Duration::from_secs(args.stats_secs));
    for ticks in [&mut start, &mut look, &mut stats] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    while !shutdown.is_cancelled() {
        tokio::select! {
            _ = start.tick(), if nodes.len() < names.len() => {
                if let Some((name, endpoint)) = starting.next() {
                    let dir = args.dir.join(name.as_str());
                    let node = Node::start(&dir, capacity, endpoint.clone(), shutdown.clone());
                    nodes.push(node.with_context(|| format!("starting {name}"))?);
                }
            }
            _ = look.tick() => {
                let now = Instant::now();
                if nodes.len() == names.len() {
                    tracker.look(now, nodes.iter().map(Node::connection));
                }
                for node in &mut nodes {
                    node.report(now);
                }
            }
            _ = stats.tick() => println!("{}", line(&nodes, names.len(), &tracker)),
            () = shutdown.cancelled() => {}
        }
    }
    let links = futures::future::join_all(nodes.into_iter().map(|node| node.link));
    let _ = tokio::time::timeout(Duration::from_secs(10), links).await;
    Ok(())
}

fn line(nodes: &[Node], wanted: usize, tracker: &Tracker) -> String {
    let up = nodes.iter().filter(|node| node.connection().is_some()).count();
    let running: usize = nodes.iter().map(Node::running).sum();
    let outage = match (tracker.outage(Instant::now()), tracker.last_outage) {
        (Some(now), _) => format!("{:.1}s so far", now.as_secs_f64()),
        (None, Some(last)) => format!("{:.1}s", last.as_secs_f64()),
        (None, None) => "none".to_owned(),
    };
    let reconnects = tracker.reconnects;
    format!("connected {up}/{wanted} running {running} reconnects {reconnects} outage {outage}")
}

async fn stop_on_signal(shutdown: CancellationToken) {
    if let Ok(mut terminate) = signal(SignalKind::terminate()) {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        shutdown.cancel();
    }
}

/// Sockets of the family that the first agent's brain answers on.
async fn endpoints(dir: &Path, sockets: u16) -> anyhow::Result<Vec<quinn::Endpoint>> {
    let who = NodeFiles::new(dir).who()?;
    let address = who
        .addresses
        .first()
        .context("node.json names no address of the brain")?;
    let remote = dial::resolve(address).await?;
    (0..sockets).map(|_| socket(remote)).collect()
}

/// An endpoint for hundreds of agents: each of them would have a receive buffer of its own on a host of its own.
fn socket(remote: SocketAddr) -> anyhow::Result<quinn::Endpoint> {
    let socket = UdpSocket::bind(dial::unspecified(remote)).context("binding a UDP socket")?;
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    if let Err(error) = forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)) {
        tracing::error!(%error, "the UDP receive buffer can't be enlarged: agents may lose packets");
    }
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime).context("a QUIC endpoint")
}

fn read_tokens(path: &Path) -> anyhow::Result<Vec<JoinToken>> {
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).with_context(|| format!("opening {}", path.display()))?)
    };
    source.take(MAX_TOKENS).read_to_string(&mut text)?;
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| line.parse().with_context(|| format!("line {}", at + 1)))
        .collect()
}

async fn join_missing(args: &Args, names: &[Name], capacity: Capacity) -> anyhow::Result<()> {
    let mut missing = Vec::new();
    for name in names {
        match NodeFiles::new(&args.dir.join(name.as_str())).who() {
            Ok(_) => {}
            Err(JoinError::NotJoined(_)) => missing.push(name),
            Err(error) => return Err(error).with_context(|| format!("identity of {name}")),
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let tokens = args
        .tokens
        .as_deref()
        .map(read_tokens)
        .transpose()
        .context("--tokens")?
        .unwrap_or_default();
    let (have, need) = (tokens.len(), missing.len());
    ensure!(
        have >= need,
        "{need} agents have not joined, and --tokens holds {have}; make more with `berth node token`"
    );
    let began = Instant::now();
    let joins = missing.into_iter().zip(tokens).map(|(name, token)| async move {
        let files = NodeFiles::new(&args.dir.join(name.as_str()));
        let facts = node::facts(name.as_str(), capacity);
        let joined = join(&files, &token, Some(name.clone()), facts, false).await;
        joined.with_context(|| format!("joining {name}"))
    });
    let results: Vec<_> = futures::stream::iter(joins)
        .buffer_unordered(usize::from(args.parallel_joins))
        .collect()
        .await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).collect();
    if let Some(first) = failed.first() {
        bail!(
            "{} of {need} joins failed; the others are kept. The first: {first:#}",
            failed.len()
        );
    }
    println!("joined {need} in {:.1}s", began.elapsed().as_secs_f64());
    Ok(())
}
