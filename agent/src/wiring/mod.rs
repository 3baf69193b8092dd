//! Puts the parts together and runs them until told to stop.
//!
//! Owns no decision: facilities come in as trait objects, so that the whole agent also runs on fakes. [`host`] makes the
//! real ones, [`volumes`] opens the pool, [`halt`] stops all for a shutdown, [`meter`] turns samples into reports, [`lock`] keeps two agents apart,
//! [`wipe`] undoes everything.

pub mod halt;
pub mod host;
pub mod lock;
pub mod meter;
pub mod volumes;
pub mod wipe;

#[cfg(test)]
mod loopback;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use berth_common::daemon;
use berth_common::id::ContainerId;
use berth_common::model::NodeFacts;
use berth_common::protocol::{LogLine, LogOptions};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::cgroup::{self, CgroupError};
use crate::config::{Config, allocatable};
use crate::facts::{self, RuntimeFacts};
use crate::join::{NodeFiles, NodeIdentity};
use crate::ledger::Ledger;
use crate::link::{Link, LinkSettings, LogSource, Server, dial};
use crate::network::{Kernel, NetworkSettings, Networks};
use crate::reconcile::apply::{Facilities, chain};
use crate::reconcile::{Board, Reconciler, Settings};
use crate::usage::{Sampler, Sources};
use crate::volume::keeper::RuntimeCommands;

/// Pause between collections of unused images.
const COLLECT_EVERY: Duration = Duration::from_secs(300);
/// Pause between looks at whether the key for other sites is old.
const KEYS_EVERY: Duration = Duration::from_secs(30);
/// Pause between looks at whether the host changed: a restarted containerd may be another version.
const FACTS_EVERY: Duration = Duration::from_secs(15);
/// Interval of usage reports until the brain says another, milliseconds.
const USAGE_INTERVAL_MS: u32 = 2_000;

/// The connection to the brain, shared by who asks over it.
pub type Connection = watch::Sender<Option<quinn::Connection>>;

/// What runs the containers.
pub struct Host {
    /// The facilities.
    pub facilities: Facilities,
    /// Containers' output.
    pub logs: Arc<dyn LogSource>,
    /// The snapshotter in use.
    pub snapshotter: String,
    /// Whether it enforces disk limits.
    pub disk_limit_hard: bool,
    /// Containers' networks; none: containers have their loopback alone.
    pub network: Option<(Kernel, NetworkSettings)>,
    /// Where its volumes are from; none: it has none.
    pub pools: Option<Arc<dyn volumes::Pools>>,
}

/// Logs as `berth-log` writes them: one folder for each container.
#[derive(Debug, Clone)]
pub struct LogFolders(pub PathBuf);

#[async_trait]
impl LogSource for LogFolders {
    async fn open(
        &self,
        container: ContainerId,
        options: LogOptions,
    ) -> Result<mpsc::Receiver<LogLine>, String> {
        let dir = self.0.join(container.to_string());
        match tokio::fs::metadata(&dir).await {
            Ok(found) if found.is_dir() => Ok(crate::logs::reader::read(&dir, options)),
            Ok(_) => Err(format!("the log of container {container} is damaged")),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(format!("container {container} has no log on this node"))
            }
            Err(error) => Err(format!("the log of container {container} can't be read: {error}")),
        }
    }
}

/// An agent that has joined, ready to run.
pub struct Agent {
    /// Its settings.
    pub config: Config,
    /// Who it is.
    pub who: NodeIdentity,
    /// Its certificate and where it is renewed.
    pub files: NodeFiles,
    /// What runs the containers.
    pub host: Host,
    /// Told the present connection.
    pub connection: Connection,
}

impl Agent {
    /// Runs until `shutdown`; containers go on. Calls `ready` once everything is set up.
    ///
    /// # Errors
    /// What keeps it from starting; afterwards it goes on whatever happens.
    pub async fn run(self, shutdown: CancellationToken, ready: impl FnOnce()) -> anyhow::Result<()> {
        let Self {
            config,
            who,
            files,
            mut host,
            connection,
        } = self;
        let board = Arc::new(Board::new());
        let networks = host.network.take().map(|(kernel, mut settings)| {
            if settings.brains.is_empty() {
                settings.brains.clone_from(&who.addresses);
            }
            Networks::new(kernel, settings, board.clone())
        });
        if let Some(networks) = &networks {
            networks.find_underlay().await;
            host.facilities.runtime.attach_to(networks.clone());
        }
        let (known_in, known) = watch::channel(volumes::Known::default());
        let pool = match host.pools.take() {
            Some(pools) => {
                let line = volumes::Line {
                    port: config.volume_port,
                    rate: config.volume_rate,
                    files: files.clone(),
                };
                volumes::Volumes::open(pools, line, &config.run_dir, &board, known_in)
            }
            None => volumes::Volumes::none(),
        };
        if let Some(keeper) = pool.keeper() {
            keeper.run_commands_by(Arc::new(RuntimeCommands(host.facilities.runtime.clone())));
            host.facilities.runtime.provide_by(keeper);
        }
        let mut facts = describe(&config, &host, networks.as_deref(), &known).await?;
        ensure_root(&config, &host, &facts).await?;
        weigh_slice(&config, &facts).await;
        let (ledger, restored) = Ledger::open(&config.state_dir, who.node).context("opening the ledger")?;
        let damage = restored.damage.clone();
        facts.warnings.extend(damage.iter().cloned());
        let (generation, containers) = match &restored.desired {
            Some(set) => (set.generation.0, set.containers.len()),
            None => (0, 0),
        };
        tracing::info!(
            node = %who.node, name = %who.name, generation, containers, runtime = facts.runtime, cgroups = facts.cgroup_version,
            snapshotter = facts.snapshotter, "starting"
        );
        for warning in &facts.warnings {
            tracing::warn!("{warning}");
        }
        let settings = Settings {
            nameservers: config.nameservers.clone(),
            disk_limit_hard: host.disk_limit_hard,
            disk_every: Duration::from_secs(10),
            ..Settings::default()
        };
        let identity = files.identity()?;
        let (reconciler, loop_task) =
            Reconciler::start(host.facilities.clone(), settings, ledger, restored, board.clone());
        let (facts_in, facts_out) = watch::channel(facts);
        let (usage_in, usage_out) = mpsc::channel(4);
        let (interval_in, interval_out) = watch::channel(USAGE_INTERVAL_MS);
        let sources = Sources {
            proc: "/proc".into(),
            sys: "/sys".into(),
            layers: facts::nearest(&config.containerd_root).to_owned(),
        };
        let sampler = Sampler::new(sources, host.facilities.cgroups.clone());
        let beats = board.clone();
        let told = pool.report();
        let background = [
            tokio::spawn(meter::run(
                sampler,
                host.facilities.cgroups.clone(),
                board.clone(),
                interval_out,
                connection.subscribe(),
                usage_in,
            )),
            tokio::spawn(collect_images(config.clone(), host.facilities.clone())),
            tokio::spawn(keep_networks(networks.clone())),
            tokio::spawn(renew_keys(networks.clone(), connection.subscribe())),
            tokio::spawn(pool.keep()),
        ];
        let hears = networks.clone();
        // The loop ends with its last handle: not before the link.
        let orders = reconciler.clone();
        let link = Link {
            settings: LinkSettings {
                node: who.node,
                addresses: if config.brain.is_empty() {
                    who.addresses
                } else {
                    config.brain.clone()
                },
                identity,
                files: Some(files),
                endpoint: None,
            },
            reconciler,
            board: board.clone(),
            facts: facts_out,
            volumes: told,
            usage: usage_out,
            usage_interval_ms: interval_in,
            neighbours: Box::new(move |update| {
                if let Some(networks) = &hears {
                    networks.hear(update);
                }
            }),
            server: Server {
                facilities: host.facilities.clone(),
                logs: host.logs.clone(),
                board,
                networks: networks.clone(),
            },
            connection,
            shutdown: shutdown.clone(),
            idle: dial::IDLE_TIMEOUT,
        };
        let refresh = tokio::spawn(refresh_facts(config, host, damage, facts_in, networks, known));
        ready();
        let alive = tokio::spawn(daemon::watchdog(move || beats.silence()));
        let mut link = tokio::spawn(async move {
            link.run().await;
        });
        let mut loop_task = loop_task;
        let ended = tokio::select! {
            result = &mut link => result.context("the link panicked"),
            // Going on without it would look alive and do nothing; the service manager starts anew, containers go on.
            result = &mut loop_task => result.context("the reconciler panicked")
                .and_then(|()| Err(anyhow::anyhow!("the reconciler ended by itself"))),
        };
        for task in background {
            task.abort();
        }
        refresh.abort();
        alive.abort();
        ended?;
        drop(orders);
        let _ = tokio::time::timeout(Duration::from_secs(5), loop_task).await;
        Ok(())
    }
}

/// Looks after the networks, if there are any, for ever.
async fn keep_networks(networks: Option<Arc<Networks>>) {
    if let Some(networks) = networks {
        networks.run().await;
    }
}

/// Takes new keys for other sites from time to time, while the brain can say so to them.
async fn renew_keys(networks: Option<Arc<Networks>>, connection: watch::Receiver<Option<quinn::Connection>>) {
    let Some(networks) = networks else { return };
    loop {
        tokio::time::sleep(KEYS_EVERY).await;
        let connected = connection.borrow().is_some();
        if connected {
            networks.renew_key().await;
        }
    }
}

/// The host's facts, asking the runtime for its version.
async fn describe(
    config: &Config,
    host: &Host,
    networks: Option<&Networks>,
    volumes: &watch::Receiver<volumes::Known>,
) -> anyhow::Result<NodeFacts> {
    let version = tokio::time::timeout(Duration::from_secs(3), host.facilities.runtime.version()).await;
    let version = match version {
        Ok(Ok(version)) => version,
        Ok(Err(error)) => format!("can't be reached: {}", chain(&error)),
        Err(_) => "does not answer".to_owned(),
    };
    let runtime = RuntimeFacts {
        version,
        snapshotter: host.snapshotter.clone(),
        disk_limit_hard: host.disk_limit_hard,
    };
    let mut facts = facts::gather(config, &*host.facilities.cgroups, runtime)?;
    if let Some(networks) = networks {
        facts.underlay = *networks.underlay().borrow();
        facts.warnings.extend(networks.problems());
    }
    let volumes = volumes.borrow();
    facts.volumes.clone_from(&volumes.facts);
    facts.warnings.extend(volumes.warnings.iter().cloned());
    Ok(facts)
}

async fn ensure_root(config: &Config, host: &Host, facts: &NodeFacts) -> anyhow::Result<()> {
    let allocatable = allocatable(facts.capacity, config.system_reserve.into());
    let cgroups = host.facilities.cgroups.clone();
    match tokio::task::spawn_blocking(move || cgroups.ensure_root(allocatable)).await? {
        // Containers of an earlier, larger setting: each keeps its own limits, so going on is safe.
        Err(error @ CgroupError::InUse { .. }) => {
            tracing::warn!(error = chain(&error), "the top cgroup keeps its old memory limit");
            Ok(())
        }
        result => result.with_context(|| {
            format!(
                "setting up the {} cgroup; `berth-agent check` says what this host lacks",
                config.cgroup_parent
            )
        }),
    }
}

/// Asks systemd, whose group it is, to weigh all of berth's containers by what they may use.
async fn weigh_slice(config: &Config, facts: &NodeFacts) {
    let parent = cgroup::parent_for(&config.cgroup_mount, &config.cgroup_parent);
    if !parent.starts_with(cgroup::DELEGATED) {
        return;
    }
    let weight = cgroup::root_weight(allocatable(facts.capacity, config.system_reserve.into()));
    let asked = tokio::process::Command::new("systemctl")
        .args(["set-property", "--runtime", cgroup::DEFAULT_PARENT])
        .arg(format!("CPUWeight={weight}"))
        .kill_on_drop(true)
        .output();
    let why = match tokio::time::timeout(Duration::from_secs(10), asked).await {
        Ok(Ok(out)) if out.status.success() => return,
        Ok(Ok(out)) => String::from_utf8_lossy(&out.stderr).trim().to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "systemctl does not answer".to_owned(),
    };
    tracing::warn!(
        why,
        weight,
        "systemd did not set the CPU weight of berth.slice; it keeps the present one"
    );
}

/// Looks at the host again and again; what was found damaged at the start stays told.
async fn refresh_facts(
    config: Config,
    host: Host,
    damage: Vec<String>,
    facts: watch::Sender<NodeFacts>,
    networks: Option<Arc<Networks>>,
    mut volumes: watch::Receiver<volumes::Known>,
) {
    let mut underlay = networks.as_ref().map(|networks| networks.underlay());
    loop {
        let moved = async {
            match &mut underlay {
                Some(underlay) => drop(underlay.changed().await),
                None => std::future::pending().await,
            }
        };
        // Other nodes wait for a new address, and volumes for a place; everything else has time.
        tokio::select! {
            () = moved => {}
            Ok(()) = volumes.changed() => {}
            () = tokio::time::sleep(FACTS_EVERY) => {}
        }
        match describe(&config, &host, networks.as_deref(), &volumes).await {
            Ok(mut now) => {
                now.warnings.extend(damage.iter().cloned());
                facts.send_if_modified(|held| {
                    for new in now.warnings.iter().filter(|w| !held.warnings.contains(w)) {
                        tracing::warn!("{new}");
                    }
                    let changed = *held != now;
                    *held = now;
                    changed
                });
            }
            Err(error) => tracing::warn!("the host can't be described anew: {error:#}"),
        }
    }
}

async fn collect_images(config: Config, facilities: Facilities) {
    let (high, low) = (config.image_gc_high_percent, config.image_gc_low_percent);
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        match facilities.images.collect_garbage(high, low).await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => {
                let names: Vec<_> = removed.iter().map(ToString::to_string).collect();
                tracing::info!(images = names.join(", "), "unused images removed");
            }
            Err(error) => tracing::warn!(error = chain(&error), "unused images are not collected"),
        }
    }
}
