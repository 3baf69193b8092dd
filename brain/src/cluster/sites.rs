//! Which nodes reach each other's networks, how, and why not. Pure over the state.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::id::{NodeId, TenantId};
use berth_common::model::{NodeKind, NodeRecord, Vni};
use berth_common::protocol::Sealed;

use super::State;

/// The label that says where a node is. Packets between nodes of different sites are encrypted; those between a private node and
/// others would be its owner's to forge, and are not sent.
pub const SITE: &str = "site";

/// Where a node is, as far as networks are concerned: its owner if it is private, and its site.
pub(super) fn site(node: &NodeRecord) -> (Option<TenantId>, Option<&str>) {
    (owner(node), node.labels.get(SITE).map(String::as_str))
}

/// Whose a private node is; none: it is shared.
pub const fn owner(node: &NodeRecord) -> Option<TenantId> {
    match node.kind {
        NodeKind::Private { tenant } => Some(tenant),
        NodeKind::Shared => None,
    }
}

/// How a node is reached through WireGuard by one of another site; none: it is of the same, or they are [`apart`].
pub fn sealed(own: &NodeRecord, other: &NodeRecord) -> Option<Sealed> {
    if site(own) == site(other) || apart(own, other).is_some() {
        return None;
    }
    let underlay = other.facts.underlay?;
    Some(Sealed {
        node: other.id,
        address: underlay.address,
        wireguard: underlay.wireguard?,
    })
}

/// Why the networks of two nodes can't be joined; none if they are.
pub fn apart(a: &NodeRecord, b: &NodeRecord) -> Option<String> {
    let reached = |node: &NodeRecord| match node.facts.underlay {
        None => Some(format!(
            "node {} has not said where its networks are reached; is its agent older?",
            node.name
        )),
        Some(at) if at.address.is_loopback() || at.address.is_unspecified() || at.address.is_multicast() => {
            Some(format!(
                "node {} says that its networks are reached at {}, where no other host can; set `underlay` in its agent.toml",
                node.name, at.address
            ))
        }
        Some(_) => None,
    };
    if let Some(why) = reached(a).or_else(|| reached(b)) {
        return Some(why);
    }
    let ((owner, at), (other_owner, other_at)) = (site(a), site(b));
    if owner != other_owner {
        return Some(format!(
            "nodes {} and {} share no networks: one is private, and nobody else's packets go through another's host",
            a.name, b.name
        ));
    }
    let unsealed = |node: &NodeRecord| node.facts.underlay.is_none_or(|at| at.wireguard.is_none());
    if at != other_at
        && let Some(without) = [a, b].into_iter().find(|node| unsealed(node))
    {
        return Some(format!(
            "nodes {} and {} are at different sites ({} and {}), and {} can't encrypt what goes between them: it has no WireGuard (`berth-agent check` there says why), or its agent is older",
            a.name,
            b.name,
            at.unwrap_or("none"),
            other_at.unwrap_or("none"),
            without.name
        ));
    }
    match (a.facts.underlay, b.facts.underlay) {
        (Some(one), Some(other)) if one.port != other.port => Some(format!(
            "nodes {} and {} use different VXLAN ports, {} and {}",
            a.name, b.name, one.port, other.port
        )),
        (Some(one), Some(other)) if one.address.is_ipv4() != other.address.is_ipv4() => Some(format!(
            "nodes {} and {} have addresses of different kinds, {} and {}",
            a.name, b.name, one.address, other.address
        )),
        (Some(one), Some(other)) if one.address == other.address => Some(format!(
            "nodes {} and {} have the same address, {}; set `underlay` in their agent.toml to addresses at which they reach each other",
            a.name, b.name, one.address
        )),
        _ => None,
    }
}

impl State {
    /// Where the nodes are reached that a node has networks in common with and may speak to.
    pub fn neighbours(&self, node: NodeId, networks: &BTreeSet<Vni>) -> BTreeMap<NodeId, IpAddr> {
        let Some(own) = self.nodes.get(&node) else {
            return BTreeMap::new();
        };
        let others: BTreeSet<NodeId> = networks.iter().flat_map(|vni| self.nodes_on(*vni)).collect();
        let others = others.into_iter().filter(|other| *other != node);
        others
            .filter_map(|other| {
                let record = self.nodes.get(&other)?;
                let underlay = record.facts.underlay?;
                apart(own, record).is_none().then_some((other, underlay.address))
            })
            .collect()
    }

    /// Nodes of other sites that a node exchanges packets with: of its networks, and of published ports that are passed on.
    pub fn sealed(&self, node: NodeId, networks: &BTreeSet<Vni>) -> BTreeSet<Sealed> {
        let Some(own) = self.nodes.get(&node) else {
            return BTreeSet::new();
        };
        if own.facts.underlay.is_none_or(|at| at.wireguard.is_none()) {
            return BTreeSet::new();
        }
        let mut others: BTreeSet<NodeId> = networks.iter().flat_map(|vni| self.nodes_on(*vni)).collect();
        for publication in self.publications.iter() {
            if publication.nodes.contains_key(&node) {
                others.extend(self.nodes.keys().copied());
                break;
            }
            others.extend(publication.nodes.keys().copied());
        }
        let others = others.iter().filter_map(|other| self.nodes.get(other));
        others.filter_map(|other| sealed(own, other)).collect()
    }
}

#[cfg(test)]
mod tests {
    use berth_common::model::{Underlay, WireGuard, WireGuardKey};

    use super::*;
    use crate::controllers::fixtures::{node, tenant_id};

    fn at(n: u64, site: &str, encrypts: bool) -> NodeRecord {
        let mut record = node(n, NodeKind::Shared, 4, 8);
        record.facts.underlay = Some(Underlay {
            address: IpAddr::from([192, 0, 2, n as u8]),
            mtu: 1500,
            port: 4789,
            wireguard: encrypts.then_some(WireGuard {
                key: WireGuardKey([n as u8; 32]),
                port: 51_821,
            }),
            address6: None,
        });
        if !site.is_empty() {
            record.labels.insert(SITE.to_owned(), site.to_owned());
        }
        record
    }

    #[test]
    fn r6_who_is_reached_how_or_why_not() {
        let private = |mut record: NodeRecord, owner: u64| {
            record.kind = NodeKind::Private {
                tenant: tenant_id(owner),
            };
            record
        };
        let moved = |mut record: NodeRecord, change: fn(&mut Underlay)| {
            change(record.facts.underlay.as_mut().unwrap());
            record
        };
        let silent = |mut record: NodeRecord| {
            record.facts.underlay = None;
            record
        };
        let east = || at(1, "east", true);
        // The other node; whether it is sealed, or why they are apart.
        let cases: Vec<(NodeRecord, Result<bool, &str>)> = vec![
            (at(2, "east", true), Ok(false)),
            (at(2, "east", false), Ok(false)),
            (at(2, "west", true), Ok(true)),
            (at(2, "", true), Ok(true)),
            (at(2, "west", false), Err("can't encrypt")),
            (private(at(2, "east", true), 1), Err("one is private")),
            (silent(at(2, "west", true)), Err("has not said")),
            (
                moved(at(2, "west", true), |at| at.port = 4790),
                Err("different VXLAN ports"),
            ),
            (
                moved(at(2, "east", true), |at| at.address = [192, 0, 2, 1].into()),
                Err("same address"),
            ),
            (
                moved(at(2, "west", true), |at| at.address = [127, 0, 0, 1].into()),
                Err("no other host can"),
            ),
            (
                moved(at(2, "west", true), |at| {
                    at.address = "2001:db8::1".parse().unwrap()
                }),
                Err("different kinds"),
            ),
        ];
        for (other, expected) in cases {
            let found = match apart(&east(), &other) {
                None => Ok(sealed(&east(), &other).is_some()),
                Some(why) => Err(why),
            };
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{other:?}"),
                (Err(why), Err(part)) => {
                    assert!(why.contains(part), "{why}");
                    assert_eq!(sealed(&east(), &other), None);
                }
                _ => panic!("{found:?}, not {expected:?}: {other:?}"),
            }
        }
        // A tenant's own hosts may be at several sites, and one that can't encrypt itself speaks to none.
        let own = |record| private(record, 1);
        assert!(sealed(&own(at(1, "east", true)), &own(at(2, "west", true))).is_some());
        assert!(apart(&own(at(1, "", true)), &private(at(2, "", true), 2)).is_some());
        assert!(apart(&at(1, "east", false), &at(2, "west", true)).is_some());
    }
}
