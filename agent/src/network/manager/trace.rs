//! A packet's way through this host: what is known and what the kernel has, gathered for [`crate::network::trace`].

use std::net::IpAddr;

use berth_common::id::ContainerId;
use berth_common::protocol::{Hop, Neighbours, TraceRequest};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::inside::Cache;
use super::{Networks, namespace_of};
use crate::network::Namespace;
use crate::network::plan::inside;
use crate::network::trace::{End, Known, hops};
use crate::reconcile::apply::chain;

impl Networks {
    /// The way of a packet, as this host has it now. Changes nothing and sends nothing.
    pub async fn trace(&self, asked: &TraceRequest) -> Vec<Hop> {
        self.refresh();
        let (vni, id) = (asked.vni, asked.container);
        let wanted = match self.overlay(vni) {
            Ok(Some(wanted)) => wanted,
            Ok(None) => {
                return vec![
                    Hop::drops("node", "nobody on this node is on the network")
                        .cure("berth ps says where containers are"),
                ];
            }
            Err(why) => return vec![Hop::drops("node", why)],
        };
        let seen = match self.kernel.observe(vni).await {
            Ok(seen) => seen,
            Err(error) => return vec![Hop::unknown("node", chain(&error))],
        };
        let pid = self
            .board
            .running()
            .into_iter()
            .find(|one| one.id == id)
            .map(|one| one.pid);
        let place = {
            let wanted = self.wanted.lock();
            wanted
                .of(id)
                .iter()
                .position(|place| place.vni == vni && place.host == asked.host)
        };
        let space = pid.and_then(|pid| namespace_of(id, pid));
        let end = match (&space, place) {
            (Some(space), Some(place)) => match end(space, inside(place)) {
                Ok(end) => Some(end),
                Err(error) => {
                    return vec![Hop::unknown(
                        "container",
                        format!("its namespace can't be looked at: {error}"),
                    )];
                }
            },
            _ => None,
        };
        let led = match (pid, &space) {
            (Some(pid), Some(space)) => self.is_led(id, pid, space).await,
            _ => None,
        };
        let lets_in = self.wanted.lock().lets_in(id).map(<[_]>::to_vec);
        let (names, sealed, left_out) = {
            let known = self.known.lock();
            let known = known.all();
            let names = known.and_then(|known| known.names.get(&vni)).cloned();
            let sealed = known.map(|known| known.sealed.iter().map(|other| other.address).collect());
            let left_out = known.and_then(|known| self.left_out(known, asked));
            (names.unwrap_or_default(), sealed.unwrap_or_default(), left_out)
        };
        hops(&Known {
            asked,
            container: id.to_string(),
            end,
            wanted: &wanted,
            seen: seen.as_ref(),
            names: &names,
            led,
            lets_in: lets_in.as_deref(),
            sealed,
            left_out,
        })
    }

    /// Whether the table that leads to services is in force in a container; none: it needs none.
    async fn is_led(&self, id: ContainerId, pid: u32, space: &Namespace) -> Option<bool> {
        let table = self.table(id, &mut Cache::new(), false)?;
        let held = self.insides.lock().get(&id).cloned()?;
        let held = held.lock().await;
        Some(held.in_force(pid, space, &table))
    }

    /// Why an endpoint whose node is known is left out.
    fn left_out(&self, known: &Neighbours, asked: &TraceRequest) -> Option<String> {
        let node = known.networks.get(&asked.vni)?.get(&asked.other)?;
        if !known.nodes.contains_key(node) {
            return Some("the two nodes can't be joined; `berth network inspect` says why".to_owned());
        }
        // Held by the caller: `unguarded` would ask for the same lock again.
        let sealed = known.sealed.iter().find(|other| other.node == *node)?;
        let open = !self.guarded.lock().contains(&sealed.address);
        open.then(|| {
            format!(
                "the other node is at another site, and nothing may be sent to {} in the clear: WireGuard is not ready here; `berth node inspect` says what keeps it",
                sealed.address
            )
        })
    }
}

/// A link of a container's namespace.
fn end(space: &Namespace, name: String) -> std::io::Result<End> {
    space.within(move || {
        let mut end = End::default();
        for link in getifaddrs()?.filter(|link| link.interface_name == name) {
            end.name.clone_from(&name);
            end.up = link.flags.contains(InterfaceFlags::IFF_UP);
            let address = link.address.and_then(|address| {
                let four = address.as_sockaddr_in().map(|four| IpAddr::from(four.ip()));
                let six = || address.as_sockaddr_in6().map(|six| IpAddr::from(six.ip()));
                four.or_else(six)
            });
            end.addresses.extend(address);
        }
        Ok(end)
    })?
}
