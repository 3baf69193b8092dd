//! What services publish at nodes, and which nodes answer. Pure over the state.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{Name, NodeId, TenantId};
use berth_common::model::{NodeKind, PublishMode, PublishedPort, Vni};
use berth_common::protocol::{Named, Published, PublishedOn};

use super::State;
use super::sites::{apart, sealed};

/// A service's published ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    /// Whose.
    pub tenant: TenantId,
    /// The service.
    pub service: Name,
    /// The network on which its containers are reached: their first.
    pub vni: Vni,
    /// The ports.
    pub ports: Vec<PublishedPort>,
    /// Nodes with replicas that take requests, and how many.
    pub nodes: BTreeMap<NodeId, u32>,
}

impl State {
    /// Makes the publications anew where anything that they follow from is not as it was.
    pub(super) fn publish(&mut self, before: &Self) {
        let same = self.publishing.ptr_eq(&before.publishing)
            && self.services.ptr_eq(&before.services)
            && self.network_names.ptr_eq(&before.network_names)
            && self.names.ptr_eq(&before.names);
        if same || (self.publishing.is_empty() && before.publishing.is_empty()) {
            return;
        }
        let new: Vec<Publication> = self
            .publishing
            .iter()
            .filter_map(|id| {
                let record = self.services.get(id)?;
                let first = record.spec.networks.first()?;
                let vni = *self.network_names.get(&(record.tenant, first.clone()))?;
                Some(Publication {
                    tenant: record.tenant,
                    service: record.spec.name.clone(),
                    vni,
                    ports: record.spec.ports.clone(),
                    nodes: self.answering(&record.spec.name, vni),
                })
            })
            .collect();
        if *self.publications != new {
            self.publications = Arc::new(new);
        }
    }

    /// Nodes with replicas of a service that take requests on a network, and how many.
    fn answering(&self, service: &Name, vni: Vni) -> BTreeMap<NodeId, u32> {
        let (names, placed) = (self.names.get(&vni), self.placed.get(&vni));
        let from = Named::first(service.clone());
        let of = names.into_iter().flat_map(|names| names.range(from.clone()..));
        let mut nodes = BTreeMap::new();
        let of = of.take_while(|named| named.service == *service);
        for named in of.filter(|named| named.as_replica().is_some()) {
            if let Some(node) = placed.and_then(|placed| placed.get(&named.host)) {
                *nodes.entry(*node).or_default() += 1;
            }
        }
        nodes
    }

    /// What is published at a node, and where it passes it on to. A private node has its tenant's ports alone.
    pub fn published_at(&self, node: NodeId) -> Vec<Published> {
        let Some(own) = self.nodes.get(&node) else {
            return Vec::new();
        };
        let seen = |publication: &&Publication| match own.kind {
            NodeKind::Shared => true,
            NodeKind::Private { tenant } => tenant == publication.tenant,
        };
        let all = self.publications.iter().filter(seen);
        let ports = all.flat_map(|publication| publication.ports.iter().map(move |port| (publication, port)));
        ports
            .map(|(publication, port)| {
                let others = publication
                    .nodes
                    .iter()
                    .filter(|(on, _)| port.mode == PublishMode::Cluster && **on != node);
                let reached = others.filter_map(|(on, replicas)| {
                    let other = self.nodes.get(on)?;
                    let at = other.facts.underlay?;
                    // Between sites only what WireGuard carries, which is the nodes' first addresses.
                    let address6 = at.address6.filter(|_| sealed(own, other).is_none());
                    apart(own, other).is_none().then_some(PublishedOn {
                        address: at.address,
                        replicas: *replicas,
                        address6,
                    })
                });
                Published {
                    protocol: port.protocol,
                    first: port.published,
                    count: port.count,
                    target: port.first_target(),
                    service: publication.service.clone(),
                    vni: publication.vni,
                    elsewhere: reached.collect(),
                }
            })
            .collect()
    }
}
