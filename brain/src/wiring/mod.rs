//! Puts the brain's parts together and runs them until it is told to stop.
//!
//! Owns the order of start and stop: nothing listens before the store is read, readiness is told once both ports are bound,
//! and a stop lets requests under way finish. Refuses a state folder that another brain uses.

mod addresses;
mod first;

use std::collections::HashSet;
use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use berth_common::daemon;
use berth_common::identity::Identity;
use rustls::crypto::ring;
use tokio_util::sync::CancellationToken;

use crate::api::install::Installer;
use crate::api::{self, ApiSettings, ApiState};
use crate::ca::{CaError, CertificateAuthority};
use crate::cluster::{Cluster, ClusterError, ClusterSettings};
use crate::config::{self, Config};
use crate::controllers::{self, balance::Decided};
use crate::images::{BlobError, BlobStore};
use crate::link::{LinkError, LinkServer, LinkSettings, Links};
use crate::outlook;
use crate::policies;
use crate::policies::run::{Clients, PolicyError};
use crate::scheduler::forecast::SAMPLE_SECS;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;

/// Interval of agents' usage reports, milliseconds.
const USAGE_INTERVAL_MS: u32 = 2_000;
/// Time between two looks at what was learned of services' load: what a brain that is killed forgets.
const ESTIMATES_EVERY: Duration = Duration::from_secs(300);
/// How long a brain that is told to stop may take to write that down.
const ESTIMATES_AT_END: Duration = Duration::from_secs(2);
/// Time between two searches for blobs that no image needs any more.
const COLLECT_EVERY: Duration = Duration::from_secs(600);

/// Why the brain can't run.
#[derive(Debug, thiserror::Error)]
pub enum BrainError {
    /// A file or folder.
    #[error("{doing} {path}")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
    /// Another brain uses the folder.
    #[error("another berth-brain runs in {0}; stop it first, or give this one a state_dir of its own")]
    Locked(PathBuf),
    /// The CA.
    #[error("the certificate authority")]
    Ca(#[from] CaError),
    /// The store.
    #[error("opening the store {path}")]
    Store {
        /// Its file.
        path: PathBuf,
        /// The store's complaint.
        #[source]
        source: StoreError,
    },
    /// The cluster.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// Blobs of loaded images.
    #[error("the store of loaded images")]
    Blobs(#[from] BlobError),
    /// The first records could not be written.
    #[error("making the first tenant and token: {0}")]
    First(Box<berth_common::error::Problem>),
    /// The TCP port is not to be had.
    #[error("binding TCP {listen}; is another program using it?")]
    Bind {
        /// Which.
        listen: SocketAddr,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
    /// The agents' link.
    #[error("the agents' link")]
    Link(#[from] LinkError),
    /// A policy of the settings.
    #[error("a placement policy")]
    Policy(#[from] PolicyError),
    /// TLS of the API.
    #[error("TLS of the API")]
    Tls(#[from] rustls::Error),
    /// The API's listener failed.
    #[error("serving the API")]
    Serve(#[source] io::Error),
}

fn file(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BrainError {
    let path = path.to_owned();
    move |source| BrainError::File { doing, path, source }
}

/// Runs the brain until `shutdown`; `ready` is called once it answers.
///
/// # Errors
/// [`BrainError`], when it can't start or its listener fails.
pub async fn run(
    config: Config,
    shutdown: CancellationToken,
    ready: impl FnOnce(),
) -> Result<(), BrainError> {
    let dir = config.state_dir.clone();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .map_err(file("making the folder", &dir))?;
    let _lock = lock(&dir)?;
    let ca = CertificateAuthority::open_or_create(&dir.join("ca"))?;
    let node_life = Duration::from_secs(config.node_certificate_secs.into());
    let ca = Arc::new(ca.with_node_life(node_life));
    let blobs = BlobStore::open(&dir.join("blobs"))?;
    let path = dir.join("brain.db");
    let store = SqliteStore::open(&path).map_err(|source| BrainError::Store { path, source })?;
    let lease_ms = config.lease_secs * 1000;
    let settings = ClusterSettings {
        lease_ms: u64::from(lease_ms),
        patience_ms: patience_ms(uptime()),
    };
    let clients = Clients::open(&config.policy)?;
    let cluster = Cluster::open_with(Arc::new(store), settings, &config.policy).await?;
    first::prepare(&cluster, &dir).await?;

    let own = addresses::of_this_host(config.listen.ip());
    let advertise = addresses::advertised(&config.advertise, &own, config.listen.port());
    let (mut names, mut ips) = (config.tls_names.clone(), own);
    for (host, _) in advertise.iter().filter_map(|address| config::split(address)) {
        match host.parse() {
            Ok(ip) => ips.push(ip),
            Err(_) => names.push(host.to_owned()),
        }
    }
    let identity = ca.issue_server(&names, &ips)?;
    let tls = Arc::new(api_tls(&identity)?);

    let links = Links::new(cluster.clone());
    let link = LinkServer::bind(
        config.listen,
        &identity,
        Arc::clone(&ca),
        cluster.clone(),
        links.clone(),
        Arc::new(blobs.clone()),
        LinkSettings {
            lease_ms,
            usage_interval_ms: USAGE_INTERVAL_MS,
            addresses: advertise.clone(),
        },
    )?;
    let listener = TcpListener::bind(config.listen).map_err(|source| BrainError::Bind {
        listen: config.listen,
        source,
    })?;
    let settings = ApiSettings {
        max_upload: config.api.max_upload.0,
        rates: (&config.api).into(),
        ..ApiSettings::new(blobs.tmp_dir())
    };
    let state = ApiState::new(
        cluster.clone(),
        Arc::new(links),
        ca.fingerprint(),
        advertise.clone(),
        Installer::new(daemon::program_dir(&config.program_dir), ca.pin()),
        blobs.clone(),
        settings,
    );
    let writer = cluster.clone();
    let alive = tokio::spawn(daemon::watchdog(move || writer.writer_silence()));
    tracing::info!(listen = %config.listen, ?advertise, version = berth_common::VERSION, "the brain is up");
    ready();
    let stop = shutdown.clone().cancelled_owned();
    let balancer = config.rebalance.then(|| tokio::spawn(balance(cluster.clone())));
    let advisers = (!clients.is_empty()).then(|| tokio::spawn(policies::run::run(cluster.clone(), clients)));
    let estimates = tokio::spawn(keep_estimates(cluster.clone()));
    let collector = tokio::spawn(collect(cluster.clone(), blobs));
    let ended = shutdown.clone();
    let (served, ()) = tokio::join!(
        async {
            let served = api::serve_on(state, listener, tls, stop).await;
            // An API that fails takes the brain down: the service manager starts it anew.
            ended.cancel();
            served
        },
        link.run(shutdown),
    );
    collector.abort();
    estimates.abort();
    match tokio::time::timeout(ESTIMATES_AT_END, cluster.keep_estimates()).await {
        Ok(Ok(kept)) => tracing::debug!(kept, "what was learned of services' load was written"),
        Ok(Err(problem)) => {
            tracing::warn!(%problem, "what was learned of services' load could not be written")
        }
        Err(_) => tracing::warn!("what was learned of services' load was not written in time"),
    }
    if let Some(advisers) = advisers {
        advisers.abort();
    }
    if let Some(balancer) = balancer {
        balancer.abort();
    }
    alive.abort();
    served.map_err(BrainError::Serve)
}

/// How long other hosts may still take to boot after this one did, milliseconds: a power cut takes a whole site, and to
/// replace what is about to come back by itself would move everything for nothing.
fn patience_ms(uptime: Option<Duration>) -> u64 {
    const BOOTING: Duration = Duration::from_secs(180);
    let left = uptime.map_or(Duration::ZERO, |up| BOOTING.saturating_sub(up));
    left.as_millis() as u64
}

/// How long this host has been up, suspended or not.
fn uptime() -> Option<Duration> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).ok()?;
    Some(now.into())
}

/// Takes the folder for this process; given back when dropped, or by the kernel.
fn lock(dir: &Path) -> Result<File, BrainError> {
    let path = dir.join("lock");
    let lock = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .map_err(file("opening", &path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(BrainError::Locked(dir.to_owned())),
        Err(TryLockError::Error(source)) => Err(file("locking", &path)(source)),
    }
}

/// TLS of the API: the link's identity, for clients without certificates.
fn api_tls(identity: &Identity) -> Result<rustls::ServerConfig, rustls::Error> {
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Moves containers away from nodes that stay too hot, and to where their services ask for once nodes come.
async fn balance(cluster: Cluster) {
    let mut memory = controllers::moves::Memory::default();
    let mut tick = tokio::time::interval(Duration::from_secs(SAMPLE_SECS.into()));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let (state, now) = (cluster.snapshot(), outlook::seconds(cluster.now().mono_ms));
        let decided = controllers::moves::decide(&state, &|| cluster.outlook(), &mut memory, now);
        drop(state);
        let Decided {
            moves,
            events,
            wanted,
        } = decided;
        cluster.want(wanted);
        if moves.is_empty() && events.is_empty() {
            continue;
        }
        let begun =
            cluster.write(move |state, _| Ok((controllers::balance::begin(state, moves), events, ())));
        if let Err(problem) = begun.await {
            tracing::warn!(%problem, "moves could not be begun; they are decided anew");
        }
    }
}

/// Writes down what was learned of services' load, now and then.
async fn keep_estimates(cluster: Cluster) {
    let mut tick = tokio::time::interval(ESTIMATES_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if let Err(problem) = cluster.keep_estimates().await {
            tracing::warn!(%problem, "what was learned of services' load could not be written; it is tried again");
        }
    }
}

/// Removes blobs that no loaded image needs, now and then.
async fn collect(cluster: Cluster, blobs: BlobStore) {
    let mut tick = tokio::time::interval(COLLECT_EVERY);
    loop {
        tick.tick().await;
        let state = cluster.snapshot();
        let keep: HashSet<_> = state
            .images
            .values()
            .flat_map(|image| {
                image
                    .blobs
                    .iter()
                    .map(|(digest, _)| *digest)
                    .chain([image.manifest])
            })
            .collect();
        drop(state);
        let blobs = blobs.clone();
        match tokio::task::spawn_blocking(move || blobs.collect(&keep)).await {
            Ok(Ok(0)) => {}
            Ok(Ok(removed)) => tracing::info!(removed, "blobs without an image were removed"),
            Ok(Err(error)) => tracing::warn!(%error, "blobs without an image could not be removed"),
            Err(error) => tracing::error!(%error, "the search for unused blobs failed"),
        }
    }
}

#[cfg(test)]
mod tests;
