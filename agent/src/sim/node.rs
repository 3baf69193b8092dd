//! One simulated agent: real link, reconciler and ledger; the host below is made up.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use berth_agent::fakes::{self, FakeCgroups, FakeImages, FakeProber, FakeRuntime};
use berth_agent::join::NodeFiles;
use berth_agent::ledger::Ledger;
use berth_agent::link::{Link, LinkSettings, LogSource, Server, dial};
use berth_agent::reconcile::apply::Facilities;
use berth_agent::reconcile::{Board, Reconciler, Settings};
use berth_agent::usage::Reporter;
use berth_common::id::ContainerId;
use berth_common::model::{Capacity, NodeFacts, UnixMillis};
use berth_common::protocol::{LogLine, LogOptions, LogStream, UsageReport};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::wave;

/// Pause between looks at a host that never changes by itself.
const QUIET: Duration = Duration::from_secs(60);

/// What a simulated host says about itself.
pub fn facts(name: &str, capacity: Capacity) -> NodeFacts {
    NodeFacts {
        hostname: name.to_owned(),
        boot_id: format!("boot-of-{name}"),
        capacity,
        ..fakes::facts()
    }
}

/// One line, and with `follow` one more each second.
struct Chatter;

#[async_trait]
impl LogSource for Chatter {
    async fn open(&self, id: ContainerId, options: LogOptions) -> Result<mpsc::Receiver<LogLine>, String> {
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            for n in 1u64.. {
                let line = LogLine {
                    at: UnixMillis::now(),
                    stream: LogStream::Stdout,
                    text: format!("line {n} of simulated container {id}"),
                    partial: false,
                };
                if sender.send(line).await.is_err() || !options.follow {
                    return;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        Ok(receiver)
    }
}

/// A simulated agent that runs.
pub struct Node {
    capacity: Capacity,
    board: Arc<Board>,
    connection: watch::Receiver<Option<quinn::Connection>>,
    interval_ms: watch::Receiver<u32>,
    reports: mpsc::Sender<UsageReport>,
    reporter: Reporter,
    reported_to: Option<usize>,
    due: Instant,
    /// Ends with `shutdown`.
    pub link: JoinHandle<()>,
    // The agent has nobody else who would hold it; the link only borrows changes from it.
    _facts: watch::Sender<NodeFacts>,
}

impl Node {
    /// Starts the agent whose identity is in `dir`. Many share an `endpoint`.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub fn start(
        dir: &Path,
        capacity: Capacity,
        endpoint: quinn::Endpoint,
        shutdown: CancellationToken,
    ) -> anyhow::Result<Self> {
        let files = NodeFiles::new(dir);
        let (who, identity) = (files.who()?, files.identity()?);
        let (ledger, restored) = Ledger::open(dir, who.node).context("opening the ledger")?;
        for damage in &restored.damage {
            tracing::warn!(name = %who.name, "{damage}");
        }
        let facilities = Facilities {
            runtime: Arc::new(FakeRuntime::default()),
            images: Arc::new(FakeImages::default()),
            cgroups: Arc::new(FakeCgroups::default()),
            prober: Arc::new(FakeProber::default()),
        };
        let settings = Settings {
            relist_every: QUIET,
            disk_every: QUIET,
            ..Settings::default()
        };
        let board = Arc::new(Board::new());
        // The loop ends with its last handle, which the link holds.
        let (reconciler, _loop) =
            Reconciler::start(facilities.clone(), settings, ledger, restored, board.clone());
        let (facts_in, facts_out) = watch::channel(facts(who.name.as_str(), capacity));
        let (reports, usage) = mpsc::channel(2);
        let (interval_in, interval_ms) = watch::channel(2_000);
        let connection = watch::channel(None).0;
        let seen = connection.subscribe();
        let link = Link {
            settings: LinkSettings {
                node: who.node,
                addresses: who.addresses,
                identity,
                files: Some(files),
                endpoint: Some(endpoint),
            },
            reconciler,
            board: board.clone(),
            facts: facts_out,
            // Simulated hosts have none.
            volumes: watch::channel(None).1,
            usage,
            usage_interval_ms: interval_in,
            neighbours: Box::new(drop),
            server: Server {
                facilities,
                logs: Arc::new(Chatter),
                board: board.clone(),
                networks: None,
            },
            connection,
            shutdown,
            idle: dial::IDLE_TIMEOUT,
        };
        Ok(Self {
            capacity,
            board,
            connection: seen,
            interval_ms,
            reports,
            reporter: Reporter::default(),
            reported_to: None,
            due: Instant::now(),
            link: tokio::spawn(link.run()),
            _facts: facts_in,
        })
    }

    /// Which connection it has.
    pub fn connection(&self) -> Option<usize> {
        self.connection
            .borrow()
            .as_ref()
            .map(quinn::Connection::stable_id)
    }

    /// Containers that run.
    pub fn running(&self) -> usize {
        self.board.running().len()
    }

    /// Reports usage if it is time to. Costs next to nothing otherwise: one timer serves all agents.
    pub fn report(&mut self, now: Instant) {
        let Some(connection) = self.connection() else {
            return;
        };
        if self.reported_to != Some(connection) {
            self.reported_to = Some(connection);
            self.reporter = Reporter::default();
        } else if now < self.due {
            return;
        }
        self.due = now + Duration::from_millis(u64::from(*self.interval_ms.borrow()).max(1_000));
        let at = UnixMillis::now();
        let running = self.board.running();
        let usage = running.into_iter().map(|running| {
            let limits = self.board.container(running.id).and_then(|seen| seen.limits);
            wave::container(running.id, &limits.unwrap_or_default(), at)
        });
        let sample = wave::node(&self.capacity, usage.collect(), at);
        if self.reports.try_send(self.reporter.report(&sample)).is_err() {
            self.reporter = Reporter::default();
        }
    }
}
