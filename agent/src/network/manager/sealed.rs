//! Nodes of other sites: the key that this host offers them, and what carries packets there.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::SystemTime;

use berth_common::model::WireGuard;
use berth_common::protocol::Sealed;

use super::Networks;
use crate::network::NetworkError;
use crate::network::sealed::key::Key;
use crate::network::sealed::{Seal, Seen, kernel, plan};
use crate::reconcile::apply::chain;

/// Looks between tries whether there is WireGuard now where there was none: somebody may have installed it.
const TRY_EVERY: u32 = 60;

/// What is kept of it.
#[derive(Debug, Default)]
pub(super) struct Sealing {
    key: Option<Key>,
    /// Whether the kernel has WireGuard, and how often that has been believed.
    there: Option<bool>,
    believed: u32,
    /// What was made last.
    applied: Option<Seal>,
    /// There is nothing of it, as far as is known.
    absent: bool,
}

impl Networks {
    /// How other sites reach this host; none where it can't encrypt.
    pub(super) async fn offer(&self) -> Option<WireGuard> {
        let port = self.settings.wireguard_port;
        if port == 0 {
            return None;
        }
        let mut sealing = self.sealing.lock().await;
        sealing.believed += 1;
        if sealing.there.is_none() || (sealing.there == Some(false) && sealing.believed > TRY_EVERY) {
            sealing.believed = 0;
            match kernel::is_there(self.kernel.host(), self.settings.port).await {
                Ok(there) => sealing.there = Some(there),
                Err(error) => self.tell("wireguard", Some(chain(&error))),
            }
        }
        if sealing.there != Some(true) {
            return None;
        }
        if sealing.key.is_none() {
            match Key::load_or_make(self.settings.key.clone()) {
                Ok(key) => sealing.key = Some(key),
                Err(why) => {
                    let why =
                        format!("other sites can't be reached: this host can't keep a WireGuard key: {why}");
                    self.tell("wireguard", Some(why));
                    return None;
                }
            }
        }
        self.tell("wireguard", None);
        let key = sealing.key.as_ref()?.public();
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

    /// What there must be for other sites; none of it while nobody has said who is there.
    pub(super) fn seal(&self) -> Option<(Option<Seal>, BTreeSet<IpAddr>)> {
        let others: BTreeSet<Sealed> = self.neighbours.lock().as_ref()?.sealed.clone();
        let addresses = others.iter().map(|other| other.address).collect();
        let at = *self.underlay.borrow();
        let offered = at.and_then(|at| Some((at, at.wireguard?)));
        let (seal, wrong) = offered.map_or((None, Vec::new()), |(at, own)| Seal::new(at, own, &others));
        self.tell("other sites", (!wrong.is_empty()).then(|| wrong.join("\n")));
        Some((seal, addresses))
    }

    /// Brings about what carries packets to other sites; `look`: also where that is believed to be.
    pub(super) async fn keep_sealed(&self, wanted: Option<&Seal>, look: bool) -> Result<(), String> {
        let failed = |error: NetworkError| format!("other sites can't be reached: {}", chain(&error));
        let mut sealing = self.sealing.lock().await;
        let same = sealing.applied.as_ref() == wanted && (wanted.is_some() || sealing.absent);
        if same && (!look || wanted.is_none()) {
            return Ok(());
        }
        let (host, port) = (self.kernel.host(), self.settings.port);
        let before = sealing.applied.take();
        sealing.absent = false;
        let seen = kernel::observe(host, port).await.map_err(failed)?;
        let steps = plan(wanted, before.as_ref(), &seen);
        if !steps.is_empty() {
            tracing::debug!(count = steps.len(), first = ?steps.first(), "changing what leads to other sites");
        }
        let secret = sealing.key.as_ref().map(Key::secret).unwrap_or_default();
        let wanted_with = wanted.map(|wanted| (wanted, secret));
        kernel::apply(host, port, wanted_with, &steps)
            .await
            .map_err(failed)?;
        sealing.applied = wanted.cloned();
        sealing.absent = wanted.is_none();
        Ok(())
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
    pub(super) fn unguarded(&self) -> BTreeSet<IpAddr> {
        let neighbours = self.neighbours.lock();
        let others = neighbours.iter().flat_map(|known| &known.sealed);
        let guarded = self.guarded.lock();
        others
            .map(|other| other.address)
            .filter(|address| !guarded.contains(address))
            .collect()
    }
}

/// Takes all of it away. For a host that berth leaves.
///
/// # Errors
/// In words, what the kernel refused.
pub async fn remove(kernel: &crate::network::Kernel, vxlan_port: u16) -> Result<(), String> {
    let seen = kernel::observe(kernel.host(), vxlan_port)
        .await
        .map_err(|error| chain(&error))?;
    if seen == Seen::default() {
        return Ok(());
    }
    let steps = plan(None, None, &seen);
    let done = kernel::apply(kernel.host(), vxlan_port, None, &steps).await;
    done.map_err(|error| chain(&error))
}
