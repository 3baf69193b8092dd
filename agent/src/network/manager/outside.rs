//! What networks need of their host: where it is reached, where the brain is, numbers for the ways out, and the host's own part.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use berth_common::model::{Underlay, Vni};

use super::Networks;
use super::sealed::Told;
use crate::link::dial;
use crate::network::egress::{Transit, UPLINK};
use crate::network::gate::Need;
use crate::network::plan::{Link, Seen};
use crate::network::{NetworkError, publish};
use crate::reconcile::apply::chain;

impl Networks {
    /// Finds out where this host is reached, if it is not told.
    pub async fn find_underlay(&self) {
        let brains = self.find_brains().await;
        let found = self.settings.address.or_else(|| toward(&brains));
        let mut problem = None;
        let wireguard = self.offer().await;
        // Not knowing is no reason to take IPv6 away from what has it.
        let address6 = match found {
            Some(address) => self.kernel.six_at(address).await,
            None => Ok(None),
        };
        let held = *self.underlay.borrow();
        let address6 = address6.unwrap_or_else(|_| held.and_then(|at| at.address6));
        let underlay = match found {
            None => {
                problem = Some(
                    "this host has no address that leads to the brain, so it can't have networks yet; see whether a route leads there, or set `underlay` in agent.toml"
                        .to_owned(),
                );
                None
            }
            Some(address) => match self.kernel.mtu_at(address).await {
                // A loopback has no bounds worth anything.
                Ok(Some(mtu)) => Some(Underlay {
                    address,
                    mtu: if address.is_loopback() { 1500 } else { mtu },
                    port: self.settings.port,
                    wireguard,
                    address6,
                }),
                Ok(None) => {
                    problem = Some(format!(
                        "no link of this host has the address {address}; set `underlay` to one that it has"
                    ));
                    None
                }
                Err(error) => {
                    problem = Some(chain(&error));
                    None
                }
            },
        };
        self.tell("underlay", problem);
        if underlay.is_some() {
            self.underlay.send_if_modified(|held| {
                let changed = *held != underlay;
                *held = underlay;
                changed
            });
        }
    }

    /// Where the brain is; of an address that can't be resolved now, nothing, but containers are kept from where it was.
    async fn find_brains(&self) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        for brain in &self.settings.brains {
            if let Ok(Ok(at)) = tokio::time::timeout(Duration::from_secs(2), dial::resolve(brain)).await {
                found.push(at);
            }
        }
        if found.len() == self.settings.brains.len() {
            *self.brains.lock() = found.iter().copied().collect();
        } else {
            self.brains.lock().extend(&found);
        }
        found
    }

    /// A network's number on this host: the one that it has, or had when the kernel was looked at, or a new one.
    pub(super) async fn transit(&self, vni: Vni, seen: Option<&Seen>) -> Result<Transit, NetworkError> {
        if let Some(held) = self.transits.lock().get(&vni) {
            return Ok(*held);
        }
        let seen = seen.and_then(|seen| match seen.links.get(UPLINK)? {
            Link::Uplink { number, .. } => *number,
            _ => None,
        });
        let links = self.kernel.transits().await?;
        let mut held = self.transits.lock();
        let taken = |number| links.contains(&number) || held.values().any(|other| *other == number);
        let number = seen.or_else(|| Transit::free(taken)).ok_or(NetworkError::Full)?;
        held.insert(vni, number);
        Ok(number)
    }

    /// The host's own part. It goes with the last network.
    pub(super) async fn keep_host(&self, look: bool) -> Result<(), String> {
        let mut gate = self.gate.lock().await;
        let host = self
            .kernel
            .host()
            .try_clone()
            .map_err(|error| error.to_string())?;
        let told = self.seal();
        let at = *self.underlay.borrow();
        let own = match at.map(|at| at.address) {
            Some(IpAddr::V4(four)) => Some(four),
            _ => None,
        };
        let (local, transits) = (self.wanted.lock().local(), self.transits.lock().clone());
        let need = {
            let known = self.known.lock();
            let known = known.all();
            Need {
                nodes: known.map(|known| known.nodes.values().copied().collect()),
                brains: self.brains.lock().clone(),
                transits: transits.values().copied().collect(),
                sealed: told
                    .as_ref()
                    .map_or_else(BTreeSet::new, |told| told.addresses.clone()),
                own,
                six: at.is_some_and(|at| at.address6.is_some()),
                open: known.map_or_else(Vec::new, |known| publish::open(known, &local, &transits)),
            }
        };
        let needless = self.nets.lock().is_empty() && need.open.is_empty();
        if needless {
            self.guarded(BTreeSet::new());
            self.keep_sealed(None, look).await;
            gate.remove(host).await?;
        } else {
            // The filter first: whatever becomes of the rest, nothing goes in the clear.
            if let Err(why) = gate.keep(host, &need, look).await {
                self.guarded(BTreeSet::new());
                return Err(why);
            }
            if let Some(Told { seal, .. }) = told {
                let peers = seal.iter().flat_map(|seal| seal.peers.values());
                self.guarded(peers.map(|peer| peer.address).collect());
                self.keep_sealed(seal, look).await;
            }
        }
        let shut = gate.shut();
        self.tell("published ports", (!shut.is_empty()).then(|| shut.join("\n")));
        Ok(())
    }
}

/// The address that packets to a brain leave from.
fn toward(brains: &[SocketAddr]) -> Option<IpAddr> {
    let leaves = |at: &SocketAddr| dial::local_address(*at);
    let (loopback, outside): (Vec<_>, Vec<_>) =
        brains.iter().filter_map(leaves).partition(IpAddr::is_loopback);
    // The brain's own host: other nodes reach it where its packets to everywhere else leave from. The address is one for
    // documentation (RFC 5737): nothing is sent there.
    let elsewhere = || dial::local_address(([192, 0, 2, 1], 9).into());
    let outside = outside.into_iter().next();
    let outside = outside.or_else(|| elsewhere().filter(|address| !address.is_unspecified()));
    outside.or(loopback.into_iter().next())
}
