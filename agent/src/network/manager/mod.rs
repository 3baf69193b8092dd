//! Keeps this host's networks as they must be: what the desired set and the brain's neighbours say, against what the kernel has.
//!
//! Owns no wish. A network is brought up to date when something about it changes, and looked at every [`REPAIR_EVERY`] whatever
//! happens: so what somebody else did to it lasts that long. A container is attached between the making of its process and its
//! first instruction; one that lost its end is attached again.

mod inside;
mod outside;
mod probe;
mod sealed;
mod trace;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::ContainerId;
use berth_common::model::{HostNumber, Subnets, Underlay, Vni};
use berth_common::protocol::{DesiredEndpoint, Neighbours, NeighboursUpdate};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

pub use self::probe::Probe;
use self::sealed::Sealing;
pub use self::sealed::remove as remove_sealed;
use super::egress::Transit;
use super::filters::Filters;
use super::gate::Gate;
use super::known::Known;
use super::plan::{Overlay, Seen, missing, plan};
use super::ruleset::{self, ON_BRIDGE, ON_HOST};
use super::wanted::Wanted;
use super::{Kernel, Namespace, NetworkError};
use crate::dns::zone::Answer;
use crate::dns::{DOMAIN, DnsServer, Upstream};
use crate::ledger::write_atomically;
use crate::reconcile::Board;
use crate::reconcile::apply::chain;

/// Pause between looks at what nobody said has changed.
pub const REPAIR_EVERY: Duration = Duration::from_secs(5);
/// How long changes are gathered: they come in crowds.
const CROWD: Duration = Duration::from_millis(5);
/// Networks worked on at a time.
const AT_ONCE: usize = 8;

/// What gives a container its place on its networks.
#[async_trait]
pub trait Attach: Send + Sync + 'static {
    /// Connects the namespace of a process to the networks that its container is on. "Already so" is success.
    async fn attach(&self, container: ContainerId, pid: u32) -> Result<(), String>;

    /// Where a container asks for names; none of one that is on no network.
    fn resolver(&self, container: ContainerId) -> Option<Resolver>;
}

/// Where a container asks for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// The server.
    pub address: IpAddr,
    /// What short names are looked up below, first.
    pub search: Vec<String>,
}

/// How this host's networks are reached.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// The UDP port that nodes speak VXLAN on.
    pub port: u16,
    /// The host's address for it; none: the one that packets to the brain leave from.
    pub address: Option<IpAddr>,
    /// The brain's addresses, `host:port`.
    pub brains: Vec<String>,
    /// Where what is known of other nodes is kept.
    pub file: PathBuf,
    /// Where it is kept on which of the host's links berth switched forwarding on.
    pub switched: PathBuf,
    /// Who is asked for names that are not berth's; empty: the host's resolvers.
    pub nameservers: Vec<IpAddr>,
    /// The UDP port that WireGuard listens on for nodes of other sites; 0: there is none.
    pub wireguard_port: u16,
    /// Where its key is kept.
    pub key: PathBuf,
    /// Checksums of what goes through networks are left to network cards.
    pub checksum_offload: bool,
}

/// One network's state in the kernel, as far as it is known to be right.
#[derive(Debug, Default)]
struct Net {
    applied: Option<Overlay>,
    filters: Filters,
    dns: Option<DnsServer>,
}

/// This host's networks.
#[derive(Debug)]
pub struct Networks {
    /// For what outlives a call and must not keep it alive.
    own: Weak<Self>,
    kernel: Kernel,
    settings: NetworkSettings,
    board: Arc<Board>,
    known: Mutex<Known>,
    /// This host's place in a probe; none: there is none.
    probing: Mutex<Option<DesiredEndpoint>>,
    unsaved: Mutex<bool>,
    underlay: watch::Sender<Option<Underlay>>,
    wanted: Mutex<Wanted>,
    nets: Mutex<HashMap<Vni, Arc<tokio::sync::Mutex<Net>>>>,
    /// What was loaded into containers' own namespaces.
    insides: Mutex<HashMap<ContainerId, Arc<tokio::sync::Mutex<inside::Inside>>>>,
    /// Whose turn it is to be looked at.
    turn: AtomicUsize,
    /// Networks' numbers on this host.
    transits: Mutex<BTreeMap<Vni, Transit>>,
    /// Where the brain was last found.
    brains: Mutex<BTreeSet<SocketAddr>>,
    gate: tokio::sync::Mutex<Gate>,
    sealing: tokio::sync::Mutex<Sealing>,
    guarded: Mutex<BTreeSet<IpAddr>>,
    upstream: Arc<Upstream>,
    problems: Mutex<BTreeMap<String, String>>,
    wake: Notify,
}

impl Networks {
    /// From what is known of other nodes on disk. Touches nothing before [`Self::run`] or [`Attach::attach`].
    pub fn new(kernel: Kernel, settings: NetworkSettings, board: Arc<Board>) -> Arc<Self> {
        let neighbours = known(&settings.file).unwrap_or_else(|why| {
            let file = settings.file.display();
            tracing::warn!(%file, why, "what was known of other nodes' networks is lost; it stays as it is until the brain says it again");
            None
        });
        let upstream = Upstream::new(settings.nameservers.clone(), "/etc/resolv.conf".into());
        let gate = Gate::new(settings.port, settings.switched.clone());
        Arc::new_cyclic(|own| Self {
            own: own.clone(),
            kernel,
            settings,
            board,
            known: Mutex::new(Known::new(neighbours)),
            probing: Mutex::default(),
            unsaved: Mutex::new(false),
            underlay: watch::Sender::new(None),
            wanted: Mutex::default(),
            nets: Mutex::default(),
            insides: Mutex::default(),
            turn: AtomicUsize::new(0),
            transits: Mutex::default(),
            brains: Mutex::default(),
            gate: tokio::sync::Mutex::new(gate),
            sealing: tokio::sync::Mutex::default(),
            guarded: Mutex::default(),
            upstream: Arc::new(upstream),
            problems: Mutex::default(),
            wake: Notify::new(),
        })
    }

    /// What the brain says of other nodes.
    pub fn hear(&self, update: NeighboursUpdate) {
        if self.known.lock().hear(update) {
            *self.unsaved.lock() = true;
        }
        self.wake.notify_one();
    }

    /// Where other nodes reach this host's networks; none until it is known.
    pub fn underlay(&self) -> watch::Receiver<Option<Underlay>> {
        self.underlay.subscribe()
    }

    /// What is wrong, in words.
    pub fn problems(&self) -> Vec<String> {
        self.problems.lock().values().cloned().collect()
    }

    /// Looks after the networks for ever.
    pub async fn run(self: Arc<Self>) {
        let mut due = Instant::now();
        let mut desired = self.board.endpoints();
        loop {
            let all = Instant::now() >= due;
            if all {
                due = Instant::now() + REPAIR_EVERY;
                self.find_underlay().await;
            }
            desired.borrow_and_update();
            self.round(all).await;
            self.save().await;
            tokio::select! {
                () = tokio::time::sleep_until(due) => continue,
                () = self.wake.notified() => {}
                changed = desired.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(CROWD).await;
        }
    }

    fn tell(&self, about: &str, problem: Option<String>) {
        let mut problems = self.problems.lock();
        match problem {
            None => {
                if problems.remove(about).is_some() {
                    tracing::info!(about, "a network's problem is gone");
                }
            }
            Some(why) if problems.get(about) != Some(&why) => {
                tracing::warn!(about, "{why}");
                problems.insert(about.to_owned(), why);
            }
            Some(_) => {}
        }
    }

    /// Takes in what is desired now. None: nobody knows what is desired.
    fn refresh(&self) -> Option<BTreeSet<Vni>> {
        let desired = self.with_probe(self.board.endpoints().borrow().clone()?);
        let running: BTreeSet<_> = self.board.running().into_iter().map(|c| c.id).collect();
        let mut wanted = self.wanted.lock();
        wanted.take(&desired, &running, self.board.ended());
        Some(wanted.networks())
    }

    /// A network as it must be here; none if nobody here is on it.
    fn overlay(&self, vni: Vni) -> Result<Option<Overlay>, String> {
        let wanted = self.wanted.lock();
        if !wanted.networks().contains(&vni) {
            return Ok(None);
        }
        let Some(at) = *self.underlay.borrow() else {
            return Err(
                "this host's own address is not known yet; see whether a route leads to the brain, or set `underlay` in agent.toml"
                    .to_owned(),
            );
        };
        let shut = self.unguarded();
        let overlay = wanted.overlay(vni, at, self.known.lock().all(), &shut);
        let transit = self.transits.lock().get(&vni).copied();
        let offload = self.settings.checksum_offload;
        Ok(overlay.map(|overlay| Overlay {
            transit,
            offload,
            ..overlay
        }))
    }

    fn net(&self, vni: Vni) -> Arc<tokio::sync::Mutex<Net>> {
        Arc::clone(self.nets.lock().entry(vni).or_default())
    }

    async fn round(&self, all: bool) {
        let Some(mut networks) = self.refresh() else {
            return;
        };
        networks.extend(self.nets.lock().keys().copied());
        if all {
            match self.kernel.kept() {
                Ok(kept) => networks.extend(kept),
                Err(error) => self.tell("kept", Some(chain(&error))),
            }
        }
        let work = futures::stream::iter(networks).for_each_concurrent(AT_ONCE, |vni| async move {
            let net = self.net(vni);
            let mut net = net.lock().await;
            let settled = self.settle(vni, &mut net, all).await;
            if matches!(settled, Ok(false)) {
                self.nets.lock().remove(&vni);
                self.transits.lock().remove(&vni);
            }
            let name = self.wanted.lock().name(vni);
            let problem = settled.err().map(|why| format!("{name} can't be kept: {why}"));
            self.tell(&format!("network {vni}"), problem);
        });
        work.await;
        // After the networks: nobody is led to a replica that can't be reached yet.
        self.lead(all).await;
        self.tell("host", self.keep_host(all).await.err());
    }

    /// Brings a network up to date; `look`: also where it is believed to be. Whether there is one.
    async fn settle(&self, vni: Vni, net: &mut Net, look: bool) -> Result<bool, String> {
        let wanted = self.overlay(vni)?;
        if !look && net.applied == wanted {
            return Ok(wanted.is_some());
        }
        // A change costs what changed: a large network is not listed for it, but taken for what it was made, and looked at soon.
        if let Some(known) = net.applied.take().filter(|_| !look) {
            match self
                .change(vni, net, wanted.clone(), Some(known.as_seen()), false)
                .await
            {
                Ok(there) => return Ok(there),
                Err(why) => tracing::debug!(%vni, why, "a network is not what it was made; looking"),
            }
        }
        let seen = self.kernel.observe(vni).await.map_err(|error| chain(&error))?;
        self.change(vni, net, wanted, seen, true).await
    }

    /// Brings a network from what it is to what it has to be. `observed`: it was looked at, and is looked at again when anything was
    /// done.
    async fn change(
        &self,
        vni: Vni,
        net: &mut Net,
        mut wanted: Option<Overlay>,
        seen: Option<Seen>,
        observed: bool,
    ) -> Result<bool, String> {
        let failed = |error: NetworkError| chain(&error);
        if let Some(overlay) = &mut wanted {
            overlay.transit = Some(self.transit(vni, seen.as_ref()).await.map_err(failed)?);
        }
        let steps = plan(wanted.as_ref(), seen.as_ref());
        if !steps.is_empty() {
            // The first say what it is about; a large network has thousands.
            let (first, count) = (&steps[..steps.len().min(4)], steps.len());
            tracing::debug!(%vni, count, ?first, "changing a network");
        }
        self.kernel.apply(vni, &steps).await.map_err(failed)?;
        let Some(overlay) = wanted else {
            return Ok(false);
        };
        let namespace = self.kernel.namespace(vni).map_err(failed)?;
        let namespace = namespace.ok_or_else(|| "it vanished while it was made".to_owned())?;
        let scripts = vec![
            (ON_BRIDGE, ruleset::endpoints(&overlay)),
            (ON_HOST, ruleset::gateway(&overlay)),
        ];
        let space = namespace.try_clone().map_err(|error| error.to_string())?;
        net.filters.keep(namespace, scripts).await?;
        self.serve_names(&overlay, net, space);
        let seen = match observed && !steps.is_empty() {
            true => self.kernel.observe(vni).await.map_err(failed)?,
            false => seen,
        };
        let absent = missing(&overlay, &seen.unwrap_or_default());
        if !absent.is_empty() {
            self.attach_again(&overlay, &absent).await.map_err(failed)?;
        }
        net.applied = Some(overlay);
        Ok(true)
    }

    /// Keeps a network's resolver listening on its gateway. Containers without names are better than none: what is wrong is told
    /// and tried again with the next look.
    fn serve_names(&self, overlay: &Overlay, net: &mut Net, space: Namespace) {
        if net.dns.as_ref().is_some_and(|dns| dns.is_in(&space)) {
            return;
        }
        // The old one's sockets first: they may have the address.
        net.dns = None;
        let (vni, networks) = (overlay.vni, self.own.clone());
        let knows = move |who: IpAddr, labels: &[&str], kind| {
            let Some(networks) = networks.upgrade() else {
                return Answer::NoName;
            };
            let (wanted, known) = (networks.wanted.lock(), networks.known.lock());
            let zone = wanted.zone(vni, who, known.all().map(|known| &known.names));
            zone.answer(labels, kind)
        };
        let at = SocketAddr::new(overlay.subnets.address(Subnets::GATEWAY).into(), 53);
        let started = DnsServer::start(space, at, Arc::new(knows), self.upstream.clone());
        let name = self.wanted.lock().name(vni);
        let problem = started.as_ref().err();
        let problem =
            problem.map(|error| format!("{name} has no names: its resolver can't listen at {at}: {error}; the agent needs the right to (CAP_NET_BIND_SERVICE, as its unit has it), and tries again every few seconds"));
        self.tell(&format!("names of network {vni}"), problem);
        net.dns = started.ok();
    }

    /// Running containers that lost their end.
    async fn attach_again(
        &self,
        overlay: &Overlay,
        absent: &BTreeSet<HostNumber>,
    ) -> Result<(), NetworkError> {
        for running in self.board.running() {
            let place = self.wanted.lock().lost(running.id, overlay.vni, absent);
            let Some((place, host)) = place else { continue };
            // It may have ended a moment ago.
            if let Some(namespace) = namespace_of(running.id, running.pid) {
                self.kernel.attach(overlay, host, &namespace, place).await?;
                tracing::info!(container = %running.id, vni = %overlay.vni, "attached again");
            }
        }
        Ok(())
    }

    async fn save(&self) {
        if !std::mem::take(&mut *self.unsaved.lock()) {
            return;
        }
        let known = self.known.lock().told().cloned();
        let path = self.settings.file.clone();
        let saved = tokio::task::spawn_blocking(move || -> Result<(), String> {
            let text = serde_json::to_vec(&known).map_err(|error| error.to_string())?;
            // Without fsync: what a power cut takes the brain says again, and until then nothing of others is touched.
            write_atomically(&path, &text, false).map_err(|error| chain(&error))
        });
        if let Ok(Err(why)) = saved.await {
            tracing::warn!(why, "what is known of other nodes' networks can't be kept");
        }
    }
}

#[async_trait]
impl Attach for Networks {
    async fn attach(&self, container: ContainerId, pid: u32) -> Result<(), String> {
        self.refresh();
        let endpoints = self.wanted.lock().of(container).to_vec();
        if endpoints.is_empty() {
            return Ok(());
        }
        let namespace =
            Namespace::of_process(pid).map_err(|error| format!("its namespace can't be opened: {error}"))?;
        let (joined, led) = tokio::join!(
            self.join(&endpoints, &namespace),
            self.lead_new(container, pid, &namespace)
        );
        joined?;
        led.map_err(|why| format!("where services' addresses lead: {why}"))?;
        // No container starts before it is settled what it may reach.
        self.keep_host(false).await
    }

    fn resolver(&self, container: ContainerId) -> Option<Resolver> {
        self.refresh();
        let wanted = self.wanted.lock();
        let places = wanted.of(container);
        let gateway = places.first()?.subnets.address(Subnets::GATEWAY);
        let search = places.iter().map(|place| format!("{}.{DOMAIN}", place.network));
        Some(Resolver {
            address: gateway.into(),
            search: search.collect(),
        })
    }
}

impl Networks {
    /// Connects a container's namespace to its networks.
    async fn join(&self, endpoints: &[DesiredEndpoint], namespace: &Namespace) -> Result<(), String> {
        for (place, endpoint) in endpoints.iter().enumerate() {
            let net = self.net(endpoint.vni);
            let mut net = net.lock().await;
            let name = &endpoint.network;
            self.settle(endpoint.vni, &mut net, false)
                .await
                .map_err(|why| format!("network {name}: {why}"))?;
            let Some(overlay) = &net.applied else {
                return Err(format!("network {name} is not wanted here any more"));
            };
            let attached = self.kernel.attach(overlay, endpoint.host, namespace, place).await;
            attached.map_err(|error| format!("network {name}: {}", chain(&error)))?;
        }
        Ok(())
    }
}

/// What is known on disk of other nodes; none if nothing was ever kept, or a power cut took it.
fn known(file: &Path) -> Result<Option<Neighbours>, String> {
    match std::fs::read(file) {
        Ok(text) if text.is_empty() => Ok(None),
        Ok(text) => serde_json::from_slice(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// The network namespace of a container's process, if it is still that.
fn namespace_of(id: ContainerId, pid: u32) -> Option<Namespace> {
    let namespace = Namespace::of_process(pid).ok()?;
    crate::container::holds(id, pid).then_some(namespace)
}
