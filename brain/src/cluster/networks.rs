//! Networks in the state: who is on them, on which nodes, and what a node has to know of that.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{ContainerId, Name, NodeId, TenantId};
use berth_common::model::{
    ContainerRecord, Endpoint, HostNumber, NetworkRecord, RunState, ServiceRecord, Vni,
};
use berth_common::protocol::Named;
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};

use super::sites::site;
use super::{Change, State};
use crate::allocate::Hosts;

/// A network with what is kept about its numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// It.
    #[serde(flatten)]
    pub record: NetworkRecord,
    /// Which numbers rest, and where the round is.
    #[serde(default)]
    pub hosts: Hosts,
    /// Services' own addresses on it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub addresses: BTreeMap<Name, HostNumber>,
}

impl Network {
    /// One that nobody is on.
    pub fn new(record: NetworkRecord) -> Self {
        Self {
            record,
            hosts: Hosts::default(),
            addresses: BTreeMap::new(),
        }
    }
}

/// Endpoints of a network on nodes. A persistent map: whoever keeps an old one can tell cheaply what changed since.
pub type Placed = OrdMap<HostNumber, NodeId>;

/// Who takes requests on a network, by name, and services' own addresses. Persistent, as [`Placed`] is.
pub type Names = OrdSet<Named>;

impl State {
    /// A network by tenant and name.
    pub fn network(&self, tenant: TenantId, name: &Name) -> Option<&Network> {
        let vni = self.network_names.get(&(tenant, name.clone()))?;
        self.networks.get(vni).map(|network| &**network)
    }

    /// Networks of a tenant, by identifier.
    pub fn networks_of(&self, tenant: TenantId) -> impl Iterator<Item = &Network> {
        let all = self.networks.values().map(|network| &**network);
        all.filter(move |network| network.record.tenant == tenant)
    }

    /// Who has which number on a network.
    pub fn endpoints_of(&self, vni: Vni) -> impl Iterator<Item = (HostNumber, ContainerId)> {
        let held = self.endpoints.get(&vni).into_iter().flatten();
        held.map(|(host, container)| (*host, *container))
    }

    /// Nodes with endpoints on a network.
    pub fn nodes_on(&self, vni: Vni) -> impl Iterator<Item = NodeId> {
        self.network_nodes
            .get(&vni)
            .into_iter()
            .flat_map(|nodes| nodes.keys().copied())
    }

    /// Networks that a node has endpoints on.
    pub fn networks_on(&self, node: NodeId) -> BTreeSet<Vni> {
        let endpoints = self.containers_on(node).flat_map(|c| &c.endpoints);
        endpoints.map(|endpoint| endpoint.vni).collect()
    }

    /// Puts a container's endpoints into the indexes, or takes them out.
    pub(super) fn index_endpoints(&mut self, container: &ContainerRecord, there: bool) {
        // One that is being removed is reachable until its node says that it is gone: what it does ends in order.
        let on = container.node;
        for Endpoint { vni, host } in &container.endpoints {
            if there {
                self.endpoints
                    .entry(*vni)
                    .or_default()
                    .insert(*host, container.id);
                if let Some(node) = on {
                    self.placed.entry(*vni).or_default().insert(*host, node);
                    *self
                        .network_nodes
                        .entry(*vni)
                        .or_default()
                        .entry(node)
                        .or_default() += 1;
                }
                continue;
            }
            // Its successor may have it already.
            let held = self.endpoints.get(vni).and_then(|held| held.get(host));
            if held != Some(&container.id) {
                continue;
            }
            take(&mut self.endpoints, *vni, host);
            let endpoint = Endpoint {
                vni: *vni,
                host: *host,
            };
            self.name(container, endpoint, None);
            if let Some(node) = on {
                take(&mut self.placed, *vni, host);
                let count = self
                    .network_nodes
                    .get_mut(vni)
                    .and_then(|nodes| nodes.get_mut(&node));
                let left = count.map_or(0, |count| {
                    *count -= 1;
                    *count
                });
                if left == 0 {
                    take(&mut self.network_nodes, *vni, &node);
                }
            }
        }
    }

    /// Whether a container takes requests: it is to run, its node is there, and says that it runs. Of a node that has not said
    /// yet what it has, since the brain is new or the link is down, what was placed there is believed to run: names outlive
    /// the brain.
    pub fn takes_requests(&self, container: &ContainerRecord) -> bool {
        let Some(node) = container.node else { return false };
        if container.removing || container.run != RunState::Running {
            return false;
        }
        if self.nodes.get(&node).is_none_or(|node| node.lost) {
            return false;
        }
        match self.observed.get(&container.id) {
            Some(seen) => seen.serves(),
            None => self.connections.get(&node).is_none_or(|link| !link.synced),
        }
    }

    /// Brings a container's names up to date with whether it takes requests.
    pub(super) fn rename(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get(&id).cloned() else {
            return;
        };
        let takes = self.takes_requests(&container);
        for endpoint in &container.endpoints {
            let held = self.endpoints.get(&endpoint.vni);
            // Its successor may have the place already.
            if held.and_then(|held| held.get(&endpoint.host)) == Some(&id) {
                self.name(&container, *endpoint, container.node.map(|_| takes));
            }
        }
    }

    /// The same for all containers of a node.
    pub(super) fn rename_on(&mut self, node: NodeId) {
        let bound: Vec<_> = self.by_node.get(&node).into_iter().flatten().copied().collect();
        bound.into_iter().for_each(|id| self.rename(id));
    }

    /// Names a container's endpoint as one that takes requests, or doesn't, or none of both any more.
    fn name(&mut self, container: &ContainerRecord, endpoint: Endpoint, takes: Option<bool>) {
        let (replica, host) = (container.replica, endpoint.host);
        let name = || container.service_name.clone();
        let active = Named::replica(name(), replica, host);
        let idle = Named::idle(name(), replica, host);
        self.put_name(endpoint.vni, active, takes == Some(true));
        self.put_name(endpoint.vni, idle, takes == Some(false));
    }

    fn put_name(&mut self, vni: Vni, name: Named, there: bool) {
        if there {
            self.names.entry(vni).or_default().insert(name);
        } else if let Some(names) = self.names.get_mut(&vni) {
            names.remove(&name);
            if names.is_empty() {
                self.names.remove(&vni);
            }
        }
    }

    /// Puts a network in place, or takes it away, with the services' addresses on it.
    pub(super) fn put_network(&mut self, vni: Vni, new: Option<Network>) {
        let new = new.map(Arc::new);
        let named = |network: &Network| (network.record.tenant, network.record.name.clone());
        let old = match &new {
            Some(new) => {
                self.network_names.insert(named(new), vni);
                self.networks.insert(vni, Arc::clone(new))
            }
            None => {
                let old = self.networks.remove(&vni);
                if let Some(old) = &old {
                    self.network_names.remove(&named(old));
                }
                old
            }
        };
        let none = BTreeMap::new();
        let (before, after) = (
            old.as_ref().map_or(&none, |old| &old.addresses),
            new.as_ref().map_or(&none, |new| &new.addresses),
        );
        for (held, other, there) in [(before, after, false), (after, before, true)] {
            for (name, host) in held.iter().filter(|(name, host)| other.get(*name) != Some(host)) {
                self.put_name(vni, Named::service(name.clone(), *host), there);
            }
        }
    }

    /// A service's own addresses, in the order in which it names its networks.
    pub fn addresses<'a>(
        &'a self,
        service: &'a ServiceRecord,
    ) -> impl Iterator<Item = (HostNumber, &'a NetworkRecord)> {
        let named = service.spec.networks.iter();
        named.filter_map(|name| {
            let network = self.network(service.tenant, name)?;
            let host = network.addresses.get(&service.spec.name)?;
            Some((*host, &network.record))
        })
    }

    /// A container's places with their networks, in the order in which its service names them.
    pub fn places<'a>(
        &'a self,
        container: &'a ContainerRecord,
    ) -> impl Iterator<Item = (Endpoint, &'a NetworkRecord)> {
        let named = container
            .spec
            .networks
            .iter()
            .filter_map(|name| self.network(container.tenant, name));
        named.filter_map(|network| {
            let mut held = container.endpoints.iter();
            let endpoint = held.find(|endpoint| endpoint.vni == network.record.vni)?;
            Some((*endpoint, &network.record))
        })
    }
}

/// Takes one entry out of a map of maps, with the inner map when it was the last.
fn take<K: Ord + Clone, V: Clone>(maps: &mut OrdMap<Vni, OrdMap<K, V>>, vni: Vni, key: &K) {
    if let Some(map) = maps.get_mut(&vni) {
        map.remove(key);
        if map.is_empty() {
            maps.remove(&vni);
        }
    }
}

/// Nodes that have to hear of changes on their networks.
pub fn concerned(changes: &[Change], before: &State, after: &State) -> BTreeSet<NodeId> {
    let mut networks = BTreeSet::new();
    for change in changes {
        match change {
            Change::PutContainer(new) => {
                let old = before.containers.get(&new.id);
                let of = |c: &ContainerRecord| c.node.map(|node| (node, c.endpoints.clone()));
                let renamed = old.is_some_and(|old| before.takes_requests(old)) != after.takes_requests(new);
                let (old, new) = (old.and_then(|old| of(old)), of(new));
                if old != new || renamed {
                    let both = old.into_iter().chain(new);
                    networks.extend(both.flat_map(|(_, endpoints)| endpoints).map(|e| e.vni));
                }
            }
            Change::DeleteContainer(id) => {
                let old = before.containers.get(id);
                networks.extend(old.into_iter().flat_map(|c| c.endpoints.iter().map(|e| e.vni)));
            }
            Change::PutNetwork(new) => {
                let vni = new.record.vni;
                let old = before.networks.get(&vni).map(|old| &old.addresses);
                if old.map_or(!new.addresses.is_empty(), |old| *old != new.addresses) {
                    networks.insert(vni);
                }
            }
            Change::PutNode(new) => {
                let same = before
                    .nodes
                    .get(&new.id)
                    .is_some_and(|old| old.facts.underlay == new.facts.underlay && site(old) == site(new));
                if !same && !after.publications.is_empty() {
                    return after.nodes.keys().copied().collect();
                }
                if !same {
                    networks.extend(after.networks_on(new.id));
                }
                networks.extend(renamed_on(new.id, before, after));
            }
            Change::Observed { node, .. } | Change::Connected(node, _) | Change::Disconnected(node, _) => {
                networks.extend(renamed_on(*node, before, after));
            }
            _ => {}
        }
    }
    if before.publications != after.publications {
        // What is published is published everywhere.
        return after.nodes.keys().copied().collect();
    }
    let both = networks
        .iter()
        .flat_map(|vni| before.nodes_on(*vni).chain(after.nodes_on(*vni)));
    both.collect()
}

/// Networks on which containers of a node began or ceased to take requests.
fn renamed_on<'a>(node: NodeId, before: &'a State, after: &'a State) -> impl Iterator<Item = Vni> + use<'a> {
    let changed = after.containers_on(node).filter(|container| {
        let old = before.containers.get(&container.id);
        old.is_some_and(|old| before.takes_requests(old)) != after.takes_requests(container)
    });
    changed.flat_map(|container| container.endpoints.iter().map(|endpoint| endpoint.vni))
}
