//! What to tell a node of others on its networks: everything first, changes afterwards. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use berth_common::id::NodeId;
use berth_common::model::Vni;
use berth_common::protocol::{Elsewhere, Gone, Neighbours, NeighboursUpdate, Reached};
use imbl::ordmap::DiffItem;

use crate::cluster::State;
use crate::cluster::networks::Placed;

/// What one connection was told. Endpoints are kept as the state had them, which shares its memory with every other connection.
#[derive(Debug, Default)]
pub(super) struct NeighboursOutbox {
    sent: Option<(BTreeMap<NodeId, IpAddr>, BTreeMap<Vni, Placed>)>,
}

impl NeighboursOutbox {
    /// The update that brings the node up to date; none if it is.
    pub(super) fn next(&mut self, state: &State, node: NodeId) -> Option<NeighboursUpdate> {
        let networks = state.networks_on(node);
        let nodes = state.neighbours(node, &networks);
        let placed = |vni: &Vni| state.placed.get(vni).cloned().unwrap_or_default();
        let now: BTreeMap<Vni, Placed> = networks.iter().map(|vni| (*vni, placed(vni))).collect();
        let elsewhere = |placed: &Placed| -> BTreeMap<_, _> {
            let others = placed.iter().filter(|(_, on)| **on != node);
            others.map(|(host, on)| (*host, *on)).collect()
        };
        let Some((held_nodes, held)) = self.sent.replace((nodes.clone(), now.clone())) else {
            let networks = now.iter().map(|(vni, placed)| (*vni, elsewhere(placed)));
            let neighbours = Neighbours {
                nodes,
                networks: networks.collect(),
            };
            return Some(NeighboursUpdate::Full { neighbours });
        };
        let (mut added, mut gone) = (Vec::new(), Vec::new());
        for (vni, placed) in &now {
            let Some(before) = held.get(vni) else {
                added.push(Elsewhere::new(*vni, elsewhere(placed)));
                continue;
            };
            let (mut new, mut lost) = (Vec::new(), Vec::new());
            for item in before.diff(placed) {
                match item {
                    DiffItem::Add(host, on) | DiffItem::Update { new: (host, on), .. } if *on != node => {
                        new.push((*host, *on));
                    }
                    // It came to this node, whose desired set says so.
                    DiffItem::Update { new: (host, _), .. } => lost.push(*host),
                    DiffItem::Remove(host, on) if *on != node => lost.push(*host),
                    DiffItem::Add(..) | DiffItem::Remove(..) => {}
                }
            }
            if !new.is_empty() {
                added.push(Elsewhere::new(*vni, new));
            }
            if !lost.is_empty() {
                gone.push(Gone {
                    vni: *vni,
                    hosts: lost,
                });
            }
        }
        let left: Vec<_> = held
            .keys()
            .filter(|vni| !now.contains_key(vni))
            .copied()
            .collect();
        let nodes = (nodes != held_nodes).then(|| Reached::list(&nodes));
        if nodes.is_none() && added.is_empty() && gone.is_empty() && left.is_empty() {
            return None;
        }
        Some(NeighboursUpdate::Delta {
            nodes,
            added,
            gone,
            left,
        })
    }
}

#[cfg(test)]
mod tests {
    use berth_common::id::Revision;
    use berth_common::model::{
        ContainerRecord, Endpoint, HostNumber, NodeKind, RunState, Underlay, UnixMillis,
    };
    use berth_common::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::Change;
    use crate::controllers::fixtures::{container_id, node, node_id, service, service_id, tenant_id};

    fn vni(n: u32) -> Vni {
        Vni::try_from(n).unwrap()
    }

    fn world(nodes: u64) -> State {
        let mut state = State::default();
        for n in 0..nodes {
            let mut record = node(n, NodeKind::Shared, 4, 8);
            record.facts.underlay = Some(Underlay {
                address: IpAddr::from([192, 0, 2, n as u8 + 1]),
                mtu: 1500,
                port: 4789,
            });
            state.apply(vec![Change::PutNode(record)], Revision(1));
        }
        state
    }

    fn container(n: u64, on: Option<u64>, endpoints: &[(u32, u32)], removing: bool) -> ContainerRecord {
        ContainerRecord {
            id: container_id(n),
            tenant: tenant_id(1),
            service: service_id(1),
            service_name: "s1".parse().unwrap(),
            replica: n as u32 + 1,
            node: on.map(node_id),
            waiting: None,
            spec: service(1, 1, "web", 1, Bytes::mib(64))
                .spec
                .container_spec()
                .unwrap(),
            service_generation: 1,
            run: RunState::Running,
            restarts_asked: 0,
            removing,
            replaces: None,
            endpoints: endpoints
                .iter()
                .map(|(net, host)| Endpoint {
                    vni: vni(*net),
                    host: HostNumber(*host),
                })
                .collect(),
            created_at: UnixMillis(0),
            revision: Revision(0),
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// Container, node, networks it is on, whether it is being removed.
        Put(u64, u64, u8, bool),
        Delete(u64),
        /// A node's address becomes another, or it goes to another site.
        Move(u64, u8, bool),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..12_u64, 0..4_u64, 0..4_u8, any::<bool>()).prop_map(|(c, n, on, gone)| Act::Put(c, n, on, gone)),
            2 => (0..12_u64).prop_map(Act::Delete),
            1 => (0..4_u64, 1..9_u8, any::<bool>()).prop_map(|(n, to, away)| Act::Move(n, to, away)),
        ];
        proptest::collection::vec(act, 1..60)
    }

    proptest! {
        #[test]
        fn r7_changes_add_up_to_the_whole_and_a_node_hears_of_its_own_networks_alone(acts in acts()) {
            let mut state = world(4);
            let mut outboxes: BTreeMap<u64, (NeighboursOutbox, Neighbours)> = BTreeMap::new();
            for (at, act) in acts.into_iter().enumerate() {
                let change = match act {
                    Act::Put(c, n, on, gone) => {
                        // A container keeps its node.
                        let n = state.containers.get(&container_id(c)).and_then(|c| c.node)
                            .and_then(|held| (0..4).find(|n| node_id(*n) == held)).unwrap_or(n);
                        let nets: Vec<_> = (0..2).filter(|bit| on & (1 << bit) != 0).map(|bit| (bit + 1, c as u32 + 2)).collect();
                        Change::PutContainer(container(c, Some(n), &nets, gone))
                    }
                    Act::Delete(c) => Change::DeleteContainer(container_id(c)),
                    Act::Move(n, to, away) => {
                        let mut record = (*state.nodes[&node_id(n)]).clone();
                        record.facts.underlay.as_mut().unwrap().address = IpAddr::from([198, 51, 100, to]);
                        if away { record.labels.insert("site".into(), to.to_string()); }
                        Change::PutNode(record)
                    }
                };
                let before = state.clone();
                let changes = vec![change];
                state.apply(changes.clone(), Revision(at as u64 + 2));
                let told = crate::cluster::networks::concerned(&changes, &before, &state);
                for n in 0..4 {
                    let (outbox, held) = outboxes.entry(n).or_default();
                    let update = outbox.next(&state, node_id(n));
                    if let Some(update) = &update {
                        let first = matches!(update, NeighboursUpdate::Full { .. });
                        prop_assert!(first || told.contains(&node_id(n)), "node {n} was not woken for {update:?}");
                    }
                    update.into_iter().for_each(|update| { held.apply(update); });
                    let whole = NeighboursOutbox::default().next(&state, node_id(n));
                    let Some(NeighboursUpdate::Full { neighbours }) = whole else { panic!("{whole:?}") };
                    prop_assert_eq!(&*held, &neighbours);
                    for (net, endpoints) in &held.networks {
                        prop_assert!(state.networks_on(node_id(n)).contains(net));
                        prop_assert!(endpoints.values().all(|on| *on != node_id(n)));
                    }
                    prop_assert!(!held.nodes.contains_key(&node_id(n)));
                }
            }
            // Nothing is left in the indexes of what is gone.
            let all: Vec<_> = state.containers.keys().copied().collect();
            state.apply(all.into_iter().map(Change::DeleteContainer).collect(), Revision(99));
            prop_assert!(state.endpoints.is_empty() && state.placed.is_empty() && state.network_nodes.is_empty());
        }
    }
}
