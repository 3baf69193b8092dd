//! Whether nodes reach each other's networks: who takes part ([`parts`]) and what measurements mean ([`judge`]), both pure; [`run`] asks.
//! [`way`] is that of one packet.
//!
//! Owns no state: a check lives as long as its request.

mod judge;
mod run;
#[cfg(test)]
mod tests;
pub mod way;
#[cfg(test)]
mod way_tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{Name, NodeId, TenantId};
use berth_common::model::{HostNumber, NodeRecord, Subnets, Vni};
use berth_common::protocol::{DesiredEndpoint, Neighbours, NodeRequest, ProbePeer};
use ipnet::Ipv4Net;

pub use self::judge::{Side, judge};
pub use self::run::run;
use crate::allocate;
use crate::cluster::sites;

/// The most nodes that one check takes: each measures the way to each other.
pub const MOST: usize = 200;

/// The addresses of a probe's network, in a namespace of its own on every node: those for measuring networks (RFC 2544).
const ADDRESSES: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(198, 18, 0, 0), 16);

/// A node that takes part.
#[derive(Debug, Clone)]
pub struct Part {
    /// It.
    pub node: Arc<NodeRecord>,
    /// Its endpoint's number.
    pub host: HostNumber,
    /// Nodes that it measures the way to.
    pub peers: Vec<ProbePeer>,
    /// What it is asked.
    pub request: NodeRequest,
}

/// Two nodes that may have networks in common: of one owner. All others are kept apart on purpose.
pub fn related(a: &NodeRecord, b: &NodeRecord) -> bool {
    sites::owner(a) == sites::owner(b)
}

/// What each of these nodes is asked. A node that can't be joined to any other is asked, too: it says what is wrong with it.
pub fn parts(nodes: &[Arc<NodeRecord>]) -> Vec<Part> {
    let v6 = allocate::ula(TenantId::from_bytes([0; 10]), Vni::PROBE);
    // Constant addresses, which are allowed: see the test.
    let Ok(subnets) = Subnets::new(ADDRESSES, v6) else {
        return Vec::new();
    };
    let Ok(network) = "probe".parse::<Name>() else {
        return Vec::new();
    };
    let hosts = nodes
        .iter()
        .zip(*subnets.hosts().start()..)
        .map(|(node, n)| (node.id, HostNumber(n)));
    let hosts: BTreeMap<NodeId, HostNumber> = hosts.collect();
    let part = |node: &Arc<NodeRecord>| {
        let host = *hosts.get(&node.id)?;
        let others = nodes
            .iter()
            .filter(|other| other.id != node.id && related(node, other));
        let joined: Vec<_> = others
            .filter(|other| sites::apart(node, other).is_none())
            .collect();
        let peers = joined.iter().filter_map(|other| {
            let host = *hosts.get(&other.id)?;
            Some(ProbePeer { node: other.id, host })
        });
        let peers: Vec<_> = peers.collect();
        let at = joined
            .iter()
            .filter_map(|other| Some((other.id, other.facts.underlay?.address)));
        let neighbours = Neighbours {
            nodes: at.collect(),
            networks: [(
                Vni::PROBE,
                peers.iter().map(|peer| (peer.host, peer.node)).collect(),
            )]
            .into(),
            sealed: joined
                .iter()
                .filter_map(|other| sites::sealed(node, other))
                .collect(),
            ..Neighbours::default()
        };
        let endpoint = DesiredEndpoint {
            vni: Vni::PROBE,
            network: network.clone(),
            subnets,
            host,
        };
        Some(Part {
            node: node.clone(),
            host,
            peers,
            request: NodeRequest::Probe { endpoint, neighbours },
        })
    };
    nodes.iter().filter_map(part).collect()
}
