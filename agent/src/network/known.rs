//! What is known of other nodes: what the brain says, and those of a probe while there is one. Pure.

use berth_common::model::Vni;
use berth_common::protocol::{Neighbours, NeighboursUpdate};

/// It.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// None: nobody has said yet, so what the kernel has of other nodes stays.
    told: Option<Neighbours>,
    /// With a probe's; none: there is no probe.
    with_probe: Option<(Neighbours, Neighbours)>,
}

impl Known {
    pub(super) const fn new(told: Option<Neighbours>) -> Self {
        Self {
            told,
            with_probe: None,
        }
    }

    /// What the brain said, and only that.
    pub(super) const fn told(&self) -> Option<&Neighbours> {
        self.told.as_ref()
    }

    /// All that is known; none while nobody has said.
    pub(super) fn all(&self) -> Option<&Neighbours> {
        self.with_probe
            .as_ref()
            .map(|(_, all)| all)
            .or(self.told.as_ref())
    }

    /// Takes what the brain says; whether that is news.
    pub(super) fn hear(&mut self, update: NeighboursUpdate) -> bool {
        let first = matches!(update, NeighboursUpdate::Full { .. });
        // A change to what is not known leads nowhere; the brain begins each connection with everything.
        if self.told.is_none() && !first {
            return false;
        }
        let news = self.told.get_or_insert_default().apply(update);
        if let Some((probe, _)) = self.with_probe.take() {
            self.probe(Some(probe));
        }
        news
    }

    /// Takes those of a probe besides, or them away. Nothing is to be probed while nobody has said who there is: whether it was taken.
    pub(super) fn probe(&mut self, others: Option<Neighbours>) -> bool {
        self.with_probe = None;
        match (others, &self.told) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(others), Some(told)) => {
                let mut all = told.clone();
                // What the brain says of all times is newer than what it said when the probe began.
                for (node, address) in &others.nodes {
                    all.nodes.entry(*node).or_insert(*address);
                }
                let known: std::collections::BTreeSet<_> =
                    all.sealed.iter().map(|other| other.node).collect();
                let new = others.sealed.iter().filter(|other| !known.contains(&other.node));
                all.sealed.extend(new.copied());
                let endpoints = others.networks.get(&Vni::PROBE).cloned().unwrap_or_default();
                all.networks.insert(Vni::PROBE, endpoints);
                self.with_probe = Some((others, all));
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use berth_common::id::NodeId;
    use berth_common::model::HostNumber;
    use berth_common::protocol::Reached;

    use super::*;

    #[test]
    fn a_probe_adds_and_takes_nothing() {
        let (one, two) = (NodeId::from_bytes([1; 10]), NodeId::from_bytes([2; 10]));
        let at = |n: u8| IpAddr::from([192, 0, 2, n]);
        let probe = Neighbours {
            nodes: [(one, at(1)), (two, at(2))].into(),
            networks: [
                (Vni::PROBE, [(HostNumber(3), two)].into()),
                // Not a probe's to say.
                (Vni::MIN, [(HostNumber(9), two)].into()),
            ]
            .into(),
            ..Neighbours::default()
        };
        let mut known = Known::new(None);
        assert!(!known.probe(Some(probe.clone())), "nobody has said who there is");
        assert_eq!(known.all(), None);
        let delta = |nodes: &BTreeMap<_, _>| NeighboursUpdate::Delta {
            nodes: Some(Reached::list(nodes)),
            added: Vec::new(),
            gone: Vec::new(),
            left: Vec::new(),
            named: Vec::new(),
            unnamed: Vec::new(),
            published: None,
            sealed: None,
        };
        assert!(!known.hear(delta(&[(one, at(1))].into())), "a change to nothing");
        known.hear(NeighboursUpdate::Full {
            neighbours: Neighbours {
                nodes: [(one, at(7))].into(),
                networks: [(Vni::MIN, BTreeMap::new())].into(),
                ..Neighbours::default()
            },
        });
        assert!(known.probe(Some(probe)));
        let all = known.all().unwrap();
        assert_eq!(all.nodes, [(one, at(7)), (two, at(2))].into());
        assert_eq!(all.networks[&Vni::MIN], BTreeMap::new());
        assert_eq!(all.networks[&Vni::PROBE], [(HostNumber(3), two)].into());
        assert_eq!(known.told().unwrap().nodes.len(), 1);
        // News while it goes on is taken in.
        assert!(known.hear(delta(&BTreeMap::new())));
        assert_eq!(known.all().unwrap().nodes, [(one, at(1)), (two, at(2))].into());
        assert!(known.probe(None));
        assert_eq!(known.all(), known.told());
    }
}
