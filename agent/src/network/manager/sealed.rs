//! Nodes of other sites: the key that this host offers them, and what carries packets there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use berth_common::id::NodeId;
use berth_common::model::{WireGuard, WireGuardKey};
use berth_common::protocol::Neighbours;

use super::Networks;
use crate::network::sealed::key::Key;
use crate::network::sealed::{Seal, Seen, kernel, plan};
use crate::network::{Kernel, Namespace, NetworkError};
use crate::reconcile::apply::chain;

/// Looks between tries whether there is WireGuard now where there was none: somebody may have installed it.
const TRY_EVERY: u32 = 60;

/// What is kept of it.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    key: Option<Key>,
    /// The kernel has WireGuard.
    there: bool,
    /// Looks since that was tried first.
    looks: u32,
    /// What was made last; none: nothing of it is there.
    applied: Option<Seal>,
    /// That is how it is, as far as is known.
    settled: bool,
}

/// What there must be for other sites.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// What carries packets there.
    pub seal: Option<Seal>,
    /// Nodes that nothing may be sent to in the clear.
    pub addresses: BTreeSet<IpAddr>,
}

impl Networks {
    /// How other sites reach this host; none where it can't encrypt.
    pub(super) async fn offer(&self) -> Option<WireGuard> {
        let port = self.settings.wireguard_port;
        if port == 0 {
            return None;
        }
        let mut sealing = self.sealing.lock().await;
        let offered = sealing.offer(self.kernel.host(), self.settings.port, &self.settings.key);
        let offered = offered.await;
        let problem = offered.as_ref().err();
        let problem = problem.map(|why| {
            format!("hosts of other sites can't be reached: {why}; this is tried again every few seconds")
        });
        self.tell("wireguard", problem);
        let key = offered.ok()??;
        Some(WireGuard { key, port })
    }

    /// Takes a new key when the old one has been used for long. Only while the brain is heard: others must learn of it.
    pub async fn renew_key(&self) {
        let mut sealing = self.sealing.lock().await;
        let Some(key) = sealing.key.as_mut().filter(|key| key.is_old(SystemTime::now())) else {
            return;
        };
        match key.renew() {
            Ok(()) => tracing::info!(key = %key.public(), "this host has a new WireGuard key"),
            Err(why) => {
                return tracing::warn!(why, "the WireGuard key can't be renewed; the old one goes on");
            }
        }
        drop(sealing);
        self.find_underlay().await;
        self.wake.notify_one();
    }

    /// What there must be for other sites; none while nobody has said who is there.
    pub(super) fn seal(&self) -> Option<Told> {
        let known = self.known.lock();
        let known = known.all()?;
        let near = near(known);
        let addresses = known.sealed.iter().map(|other| other.address);
        let addresses = addresses.filter(|address| !near.contains(address)).collect();
        let at = *self.underlay.borrow();
        let offered = at.and_then(|at| Some((at, at.wireguard?)));
        let (seal, wrong) = offered.map_or((None, Vec::new()), |(at, own)| {
            Seal::new(at, own, &known.sealed, &near)
        });
        self.tell("other sites", (!wrong.is_empty()).then(|| wrong.join("\n")));
        Some(Told { seal, addresses })
    }

    /// Brings about what carries packets to other sites; `look`: also where that is believed to be. What is wrong is told and tried
    /// again: everything else goes on, and nothing is sent there meanwhile.
    pub(super) async fn keep_sealed(&self, wanted: Option<Seal>, look: bool) {
        let (host, port) = (self.kernel.host(), self.settings.port);
        let kept = self.sealing.lock().await.keep(host, port, wanted, look).await;
        let problem = kept.err().map(|error| {
            format!(
                "hosts of other sites can't be reached: {}; see whether UDP port {} is another program's (`wireguard_port` in agent.toml); this is tried again every few seconds",
                chain(&error),
                self.settings.wireguard_port
            )
        });
        self.tell("wireguard device", problem);
    }

    /// From when on packets may be sent to nodes of other sites: once nothing of theirs can leave in the clear.
    pub(super) fn guarded(&self, now: BTreeSet<IpAddr>) {
        let mut held = self.guarded.lock();
        if *held != now {
            *held = now;
            // Networks leave out whom they may not send to yet.
            self.wake.notify_one();
        }
    }

    /// Nodes of other sites to which nothing may be sent now.
    pub(super) fn unguarded(&self) -> BTreeSet<NodeId> {
        let known = self.known.lock();
        let others = known.all().into_iter().flat_map(|known| &known.sealed);
        let guarded = self.guarded.lock();
        let shut = others.filter(|other| !guarded.contains(&other.address));
        shut.map(|other| other.node).collect()
    }
}

/// Addresses of nodes of this site.
fn near(known: &Neighbours) -> BTreeSet<IpAddr> {
    let far: BTreeSet<NodeId> = known.sealed.iter().map(|other| other.node).collect();
    let near = known.nodes.iter().filter(|(node, _)| !far.contains(node));
    near.map(|(_, address)| *address).collect()
}

impl Sealing {
    /// The key that others know this host by; none where the kernel has no WireGuard.
    async fn offer(
        &mut self,
        host: &Namespace,
        vxlan_port: u16,
        file: &Path,
    ) -> Result<Option<WireGuardKey>, String> {
        if !self.there && self.looks.is_multiple_of(TRY_EVERY) {
            let there = kernel::is_there(host, vxlan_port).await;
            self.there = there.map_err(|error| chain(&error))?;
        }
        self.looks = self.looks.wrapping_add(1);
        if self.there && self.key.is_none() {
            let key = Key::load_or_make(file.to_owned());
            self.key = Some(key.map_err(|why| format!("this host can't keep a WireGuard key: {why}"))?);
        }
        Ok(self.key.as_ref().map(Key::public))
    }

    async fn keep(
        &mut self,
        host: &Namespace,
        vxlan_port: u16,
        mut wanted: Option<Seal>,
        look: bool,
    ) -> Result<(), NetworkError> {
        let secret = self.key.as_ref().map(Key::secret).unwrap_or_default();
        // One that was renewed a moment ago is not told to others yet, and is this host's all the same.
        if let (Some(wanted), Some(key)) = (&mut wanted, &self.key) {
            wanted.public = key.public();
        }
        if self.settled && self.applied == wanted && (!look || wanted.is_none()) {
            return Ok(());
        }
        self.settled = false;
        let seen = kernel::observe(host, vxlan_port).await?;
        let steps = plan(wanted.as_ref(), self.applied.as_ref(), &seen);
        if !steps.is_empty() {
            tracing::debug!(count = steps.len(), first = ?steps.first(), "changing what leads to other sites");
        }
        let with_secret = wanted.as_ref().map(|wanted| (wanted, secret));
        kernel::apply(host, vxlan_port, with_secret, &steps).await?;
        (self.applied, self.settled) = (wanted, true);
        Ok(())
    }
}

/// Takes all of it away. For a host that berth leaves.
///
/// # Errors
/// In words, what the kernel refused.
pub async fn remove(kernel: &Kernel, vxlan_port: u16) -> Result<(), String> {
    let failed = |error: NetworkError| format!("what led to other sites can't be removed: {}", chain(&error));
    let seen = kernel::observe(kernel.host(), vxlan_port).await.map_err(failed)?;
    if seen == Seen::default() {
        return Ok(());
    }
    let steps = plan(None, None, &seen);
    let done = kernel::apply(kernel.host(), vxlan_port, None, &steps).await;
    done.map_err(failed)
}
