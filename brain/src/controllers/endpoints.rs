//! Containers' places on networks: given in the write that seats a container, given back in the one that deletes it.
//!
//! What is chosen goes into the same plan as what it is for, so nothing is given twice and nothing leaks, whenever the brain dies.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Name, TenantId};
use berth_common::model::{
    ContainerRecord, DEFAULT_NETWORK, Endpoint, HostNumber, NetworkRecord, ServiceRecord, Subnets,
    UnixMillis, Vni,
};
use ipnet::Ipv4Net;

use super::context::Context;
use crate::allocate;
use crate::cluster::{Change, Network, State};

/// Where networks that nobody chose addresses for lie.
const POOL: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 64, 0, 0), 10);
/// Their size.
const PREFIX: u8 = 16;

/// Why a container can't be on a network (R9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NoPlace {
    pub why: String,
    /// When it may be otherwise, milliseconds from now.
    pub again_ms: Option<u64>,
}

/// Networks as one plan leaves them.
#[derive(Debug, Default)]
pub(super) struct Networks {
    changed: BTreeMap<Vni, Network>,
    made: BTreeMap<(TenantId, Name), Vni>,
    given: BTreeSet<(Vni, HostNumber)>,
}

impl Networks {
    fn number(&mut self, state: &State, vni: Vni, now: UnixMillis) -> Result<HostNumber, NoPlace> {
        let network = changed(&mut self.changed, state, vni).ok_or_else(|| NoPlace {
            why: format!("network {vni} is gone"),
            again_ms: None,
        })?;
        let (given, held) = (&self.given, state.endpoints.get(&vni));
        let addresses = &network.addresses;
        let taken = |host| {
            given.contains(&(vni, host))
                || addresses.values().any(|address| *address == host)
                || held.is_some_and(|held| held.contains_key(&host))
        };
        let host = network.hosts.take(network.record.subnets.hosts(), taken, now);
        let host = host.map_err(|full| NoPlace {
            why: format!("network {}: {full}", network.record.name),
            again_ms: match full {
                allocate::Full::Resting { seconds, .. } => Some(seconds * 1_000),
                allocate::Full::InUse(_) => None,
            },
        })?;
        self.given.insert((vni, host));
        Ok(host)
    }
}

/// A network as the plan has it so far, to be changed.
fn changed<'a>(all: &'a mut BTreeMap<Vni, Network>, state: &State, vni: Vni) -> Option<&'a mut Network> {
    match all.entry(vni) {
        Entry::Occupied(held) => Some(held.into_mut()),
        Entry::Vacant(free) => Some(free.insert((**state.networks.get(&vni)?).clone())),
    }
}

/// A new network of a tenant, with addresses that none of its others has.
///
/// # Errors
/// In words, where there is no room.
pub fn make(
    state: &State,
    taken: impl Fn(Vni) -> bool,
    tenant: TenantId,
    name: Name,
    wanted: Option<Ipv4Net>,
    now: UnixMillis,
) -> Result<NetworkRecord, String> {
    // Revisions only grow, so an identifier comes again only after millions of writes.
    let last = u32::try_from(state.revision.0 % u64::from(u32::from(Vni::MAX))).unwrap_or(0) + 1;
    let last = Vni::try_from(last).map_err(|error| error.to_string())?;
    let vni = allocate::vni(last, taken).map_err(|error| error.to_string())?;
    let v4 = match wanted {
        Some(v4) => v4,
        None => {
            let others: Vec<_> = state.networks_of(tenant).map(|n| n.record.subnets.v4()).collect();
            allocate::subnet(POOL, PREFIX, &others).map_err(|error| error.to_string())?
        }
    };
    let subnets = Subnets::new(v4, allocate::ula(tenant, vni)).map_err(|error| error.to_string())?;
    Ok(NetworkRecord {
        vni,
        tenant,
        name,
        subnets,
        created_at: now,
        revision: Default::default(),
    })
}

impl Context<'_, '_> {
    /// Gives a container a place on each of its networks that it has none on, and takes back those on others.
    ///
    /// # Errors
    /// [`NoPlace`]; the record is as it was then.
    pub(super) fn address(&mut self, container: &mut ContainerRecord) -> Result<(), NoPlace> {
        let wanted: Vec<Vni> = container
            .spec
            .networks
            .iter()
            .map(|name| self.network(container.tenant, name))
            .collect::<Result<_, _>>()?;
        let held: BTreeSet<Vni> = container.endpoints.iter().map(|endpoint| endpoint.vni).collect();
        if held.len() == wanted.len() && wanted.iter().all(|vni| held.contains(vni)) {
            return Ok(());
        }
        let mut new = Vec::new();
        for vni in wanted.iter().filter(|vni| !held.contains(vni)) {
            match self.networks.number(self.state, *vni, self.input.now.wall) {
                Ok(host) => new.push(Endpoint { vni: *vni, host }),
                Err(no) => {
                    for endpoint in new {
                        self.give_back(endpoint);
                    }
                    return Err(no);
                }
            }
        }
        let (kept, left): (Vec<_>, Vec<_>) = std::mem::take(&mut container.endpoints)
            .into_iter()
            .partition(|e| wanted.contains(&e.vni));
        for endpoint in left {
            self.give_back(endpoint);
        }
        container.endpoints = kept.into_iter().chain(new).collect();
        Ok(())
    }

    /// A network by name; the default one is made if it is not there.
    fn network(&mut self, tenant: TenantId, name: &Name) -> Result<Vni, NoPlace> {
        let key = (tenant, name.clone());
        let found = self
            .networks
            .made
            .get(&key)
            .or_else(|| self.state.network_names.get(&key));
        if let Some(vni) = found {
            return Ok(*vni);
        }
        let no = |why| NoPlace { why, again_ms: None };
        if name.as_str() != DEFAULT_NETWORK {
            return Err(no(format!(
                "there is no network {name}; make it with `berth network create {name}`"
            )));
        }
        let taken = |vni| self.state.networks.contains_key(&vni) || self.networks.changed.contains_key(&vni);
        let made = make(self.state, taken, tenant, name.clone(), None, self.input.now.wall);
        let record = made.map_err(|why| no(format!("network {name} can't be made: {why}")))?;
        let vni = record.vni;
        let text = format!("{} and {}", record.subnets.v4(), record.subnets.v6());
        self.event("network-created", Some(tenant), format!("network {name}"), text);
        self.networks.changed.insert(vni, Network::new(record));
        self.networks.made.insert(key, vni);
        Ok(vni)
    }

    /// Gives a service an address of its own on each of its networks. One that a full network has none for goes without, since its
    /// replicas need the numbers more: its name means them, then.
    pub(super) fn address_service(&mut self, service: &ServiceRecord) {
        let (name, now) = (&service.spec.name, self.input.now.wall);
        for network in &service.spec.networks {
            let Ok(vni) = self.network(service.tenant, network) else {
                continue;
            };
            let held = self.state.networks.get(&vni);
            if held.is_some_and(|network| network.addresses.contains_key(name)) {
                continue;
            }
            if let Ok(host) = self.networks.number(self.state, vni, now)
                && let Some(network) = changed(&mut self.networks.changed, self.state, vni)
            {
                network.addresses.insert(name.clone(), host);
            }
        }
    }

    /// Takes back the addresses of services that are gone, or not on the network any more.
    pub(super) fn release_addresses(&mut self) {
        let state = self.state;
        for (vni, network) in &state.networks {
            let NetworkRecord { tenant, name, .. } = &network.record;
            let on_it = |service: &Name| {
                let service = state.service(*tenant, service);
                service.is_some_and(|service| service.spec.networks.contains(name))
            };
            for (service, host) in network.addresses.iter().filter(|(service, _)| !on_it(service)) {
                if let Some(network) = changed(&mut self.networks.changed, state, *vni) {
                    network.addresses.remove(service);
                }
                self.give_back(Endpoint {
                    vni: *vni,
                    host: *host,
                });
            }
        }
    }

    /// Gives a place back; it rests before anybody gets it.
    pub(super) fn give_back(&mut self, endpoint: Endpoint) {
        let now = self.input.now.wall;
        self.networks.given.remove(&(endpoint.vni, endpoint.host));
        if let Some(network) = changed(&mut self.networks.changed, self.state, endpoint.vni) {
            network.hosts.give_back(endpoint.host, now);
        }
    }

    /// The networks that this plan changes.
    pub(super) fn changed_networks(&mut self) -> impl Iterator<Item = Change> + use<> {
        std::mem::take(&mut self.networks.changed)
            .into_values()
            .map(Change::PutNetwork)
    }
}
