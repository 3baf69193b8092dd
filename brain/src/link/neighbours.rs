//! What to tell a node of others on its networks: everything first, changes afterwards. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::id::NodeId;
use berth_common::model::Vni;
use berth_common::protocol::{
    Called, Elsewhere, Gone, Named, Neighbours, NeighboursUpdate, Published, Reached, Sealed,
};
use imbl::ordmap::DiffItem;
use imbl::ordset;

use crate::cluster::State;
use crate::cluster::networks::{Names, Placed};

/// What one connection was told. Endpoints are kept as the state had them, which shares its memory with every other connection.
#[derive(Debug, Default)]
pub(super) struct NeighboursOutbox {
    sent: Option<Sent>,
}

#[derive(Debug, Clone)]
struct Sent {
    nodes: BTreeMap<NodeId, IpAddr>,
    networks: BTreeMap<Vni, (Placed, Names)>,
    published: Vec<Published>,
    sealed: BTreeSet<Sealed>,
}

impl NeighboursOutbox {
    /// The update that brings the node up to date; none if it is.
    pub(super) fn next(&mut self, state: &State, node: NodeId) -> Option<NeighboursUpdate> {
        let networks = state.networks_on(node);
        let nodes = state.neighbours(node, &networks);
        let of = |vni: &Vni| {
            let placed = state.placed.get(vni).cloned().unwrap_or_default();
            (placed, state.names.get(vni).cloned().unwrap_or_default())
        };
        let now: BTreeMap<Vni, _> = networks.iter().map(|vni| (*vni, of(vni))).collect();
        let elsewhere = |placed: &Placed| -> BTreeMap<_, _> {
            let others = placed.iter().filter(|(_, on)| **on != node);
            others.map(|(host, on)| (*host, *on)).collect()
        };
        let sent = Sent {
            nodes: nodes.clone(),
            networks: now.clone(),
            published: state.published_at(node),
            sealed: state.sealed(node, &networks),
        };
        let (published, sealed) = (sent.published.clone(), sent.sealed.clone());
        let Some(before) = self.sent.replace(sent) else {
            let all = now.iter();
            let names = all.clone().filter(|(_, (_, names))| !names.is_empty());
            let neighbours = Neighbours {
                nodes,
                networks: all.map(|(vni, (placed, _))| (*vni, elsewhere(placed))).collect(),
                names: names
                    .map(|(vni, (_, names))| (*vni, names.iter().cloned().collect()))
                    .collect(),
                published,
                sealed,
            };
            return Some(NeighboursUpdate::Full { neighbours });
        };
        let held = before.networks;
        let (mut added, mut gone) = (Vec::new(), Vec::new());
        let (mut named, mut unnamed) = (Vec::new(), Vec::new());
        for (vni, (placed, names)) in &now {
            let Some((before, names_before)) = held.get(vni) else {
                added.push(Elsewhere::new(*vni, elsewhere(placed)));
                if !names.is_empty() {
                    named.push(Called::new(*vni, names.iter().cloned()));
                }
                continue;
            };
            let (mut begun, mut ceased): (Vec<Named>, Vec<Named>) = Default::default();
            for item in names_before.diff(names) {
                match item {
                    ordset::DiffItem::Add(name) => begun.push(name.clone()),
                    ordset::DiffItem::Remove(name) => ceased.push(name.clone()),
                }
            }
            if !begun.is_empty() {
                named.push(Called::new(*vni, begun));
            }
            if !ceased.is_empty() {
                unnamed.push(Called::new(*vni, ceased));
            }
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
        let nodes = (nodes != before.nodes).then(|| Reached::list(&nodes));
        let published = (published != before.published).then_some(published);
        let sealed = (sealed != before.sealed).then_some(sealed);
        let lists = [
            published.is_none(),
            sealed.is_none(),
            named.is_empty(),
            unnamed.is_empty(),
            added.is_empty(),
            gone.is_empty(),
            left.is_empty(),
        ];
        if nodes.is_none() && lists.iter().all(|empty| *empty) {
            return None;
        }
        Some(NeighboursUpdate::Delta {
            nodes,
            added,
            gone,
            left,
            named,
            unnamed,
            published,
            sealed,
        })
    }
}

#[cfg(test)]
mod tests {
    use berth_common::id::{Generation, Revision};
    use berth_common::model::{
        ContainerRecord, Endpoint, HostNumber, NetworkRecord, NodeKind, ObservedContainer, Phase, RunState,
        Subnets, Underlay, UnixMillis, WireGuard, WireGuardKey,
    };
    use berth_common::protocol::Member;
    use berth_common::units::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::{Change, Connection};
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
                // The last one can't encrypt.
                wireguard: (n < 3).then_some(WireGuard {
                    key: WireGuardKey([n as u8; 32]),
                    port: 51_821,
                }),
                address6: None,
            });
            state.apply(vec![Change::PutNode(record)], Revision(1));
        }
        let mut published = service(1, 1, "web", 1, Bytes::mib(64));
        published.spec.ports = vec!["80:8080".parse().unwrap(), "81,mode=node".parse().unwrap()];
        let record = NetworkRecord {
            vni: vni(1),
            tenant: tenant_id(1),
            name: "default".parse().unwrap(),
            subnets: Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap(),
            created_at: UnixMillis(0),
            revision: Revision(0),
        };
        let network = crate::cluster::Network::new(record);
        let changes = vec![Change::PutService(published), Change::PutNetwork(network)];
        state.apply(changes, Revision(1));
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
            claim: None,
            moves: None,
            waiting: None,
            spec: service(1, 1, "web", 1, Bytes::mib(64))
                .spec
                .container_spec()
                .unwrap()
                .into(),
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

    fn observed(n: u64, runs: bool) -> ObservedContainer {
        ObservedContainer {
            phase: if runs { Phase::Running } else { Phase::Backoff },
            ..ObservedContainer::pending(container_id(n))
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// Container, node, networks it is on, whether it is being removed.
        Put(u64, u64, u8, bool),
        Delete(u64),
        /// A node's address becomes another, or it goes to another site.
        Move(u64, u8, bool),
        /// A node says what it has: containers, which of them run, and whether these are all.
        Say(u64, u16, u16, bool),
        /// A node's link comes up, has said everything, or breaks.
        Link(u64, u8),
        /// A node is lost or back.
        Lose(u64, bool),
        /// A container is to stop or to run.
        Run(u64, bool),
        /// A service gets an address of its own on the first network, another one, or loses it.
        Address(bool, u32),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..12_u64, 0..4_u64, 0..4_u8, any::<bool>()).prop_map(|(c, n, on, gone)| Act::Put(c, n, on, gone)),
            2 => (0..12_u64).prop_map(Act::Delete),
            1 => (0..4_u64, 1..9_u8, any::<bool>()).prop_map(|(n, to, away)| Act::Move(n, to, away)),
            4 => (0..4_u64, any::<u16>(), any::<u16>(), any::<bool>()).prop_map(|(n, has, up, full)| Act::Say(n, has, up, full)),
            2 => (0..4_u64, 0..3_u8).prop_map(|(n, to)| Act::Link(n, to)),
            1 => (0..4_u64, any::<bool>()).prop_map(|(n, lost)| Act::Lose(n, lost)),
            1 => (0..12_u64, any::<bool>()).prop_map(|(c, run)| Act::Run(c, run)),
            1 => (any::<bool>(), 90..93_u32).prop_map(|(has, host)| Act::Address(has, host)),
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
                    Act::Say(n, has, up, full) => {
                        let said = (0..12).filter(|c| has & (1 << c) != 0).map(|c| observed(c, up & (1 << c) != 0));
                        Change::Observed { node: node_id(n), full, containers: said.collect(), gone: Vec::new() }
                    }
                    Act::Link(n, 2) => Change::Disconnected(node_id(n), 1),
                    Act::Link(n, to) => Change::Connected(node_id(n), Connection {
                        serial: 1, address: String::new(), synced: to == 1, applied: Generation(0),
                    }),
                    Act::Lose(n, lost) => {
                        let mut record = (*state.nodes[&node_id(n)]).clone();
                        record.lost = lost;
                        Change::PutNode(record)
                    }
                    Act::Address(has, host) => {
                        let mut network = (*state.networks[&vni(1)]).clone();
                        let address = has.then(|| ("s1".parse().unwrap(), HostNumber(host)));
                        network.addresses = address.into_iter().collect();
                        Change::PutNetwork(network)
                    }
                    Act::Run(c, run) => {
                        let Some(record) = state.containers.get(&container_id(c)) else { continue };
                        let mut record = (**record).clone();
                        record.run = if run { RunState::Running } else { RunState::Stopped };
                        Change::PutContainer(record)
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
                    // Whoever is at another site is reached encrypted or not at all.
                    let at = |n: &NodeId| state.nodes[n].labels.get("site");
                    for other in held.nodes.keys().filter(|other| at(other) != at(&node_id(n))) {
                        prop_assert!(held.sealed.iter().any(|sealed| sealed.node == *other), "{other} is told without its key");
                    }
                    for sealed in &held.sealed {
                        prop_assert!(at(&sealed.node) != at(&node_id(n)) && sealed.node != node_id(3) && n != 3);
                    }
                    let passed_to = held.published.iter().flat_map(|one| &one.elsewhere).map(|on| on.address);
                    let apart = |to: &IpAddr| state.nodes.values().filter(|on| on.facts.underlay.unwrap().address == *to)
                        .all(|on| on.id != node_id(n) && at(&on.id) != at(&node_id(n)));
                    for to in passed_to.filter(apart) {
                        prop_assert!(held.sealed.iter().any(|sealed| sealed.address == to), "passed on to {to} without its key");
                    }
                    // Requests are passed on to those on other nodes that can be reached, each as often as another.
                    let own = &state.nodes[&node_id(n)];
                    let others = state.containers.values().filter(|c| {
                        let on = c.node.and_then(|on| state.nodes.get(&on));
                        on.is_some_and(|on| on.id != node_id(n) && crate::cluster::sites::apart(own, on).is_none())
                            && c.endpoints.iter().any(|e| e.vni == vni(1))
                            && state.takes_requests(c)
                    });
                    let passed_on = |at: usize| held.published[at].elsewhere.iter().map(|on| on.replicas as usize).sum::<usize>();
                    prop_assert_eq!((held.published.len(), passed_on(0), passed_on(1)), (2, others.count(), 0));
                    // Services' own addresses are those that their networks have.
                    let addresses = held.names.iter().flat_map(|(net, names)| {
                        let own = names.iter().filter(|x| x.member == Member::Service);
                        own.map(|x| (*net, x.service.clone(), x.host))
                    });
                    let given = held.networks.keys().filter_map(|net| state.networks.get(net)).flat_map(|network| {
                        network.addresses.iter().map(|(name, host)| (network.record.vni, name.clone(), *host))
                    });
                    prop_assert_eq!(addresses.collect::<Vec<_>>(), given.collect::<Vec<_>>());
                    // Who takes requests is called by name, and nobody else.
                    let takes = state.containers.values().filter(|c| state.takes_requests(c)).flat_map(|c| {
                        c.endpoints.iter().map(|e| (e.vni, c.replica, e.host))
                    });
                    let takes: std::collections::BTreeSet<_> =
                        takes.filter(|(net, ..)| held.networks.contains_key(net)).collect();
                    let named = held.names.iter().flat_map(|(net, names)| {
                        names.iter().filter_map(|x| Some((*net, x.as_replica()?, x.host)))
                    });
                    prop_assert_eq!(named.collect::<std::collections::BTreeSet<_>>(), takes.clone());
                    // All others that have a place are known, too.
                    let all = state.containers.values().filter(|c| c.node.is_some()).flat_map(|c| {
                        c.endpoints.iter().map(|e| (e.vni, c.replica, e.host))
                    });
                    let all = all.filter(|(net, ..)| held.networks.contains_key(net));
                    let idle = held.names.iter().flat_map(|(net, names)| {
                        names.iter().filter_map(|x| match x.member {
                            Member::Idle(replica) => Some((*net, replica, x.host)),
                            _ => None,
                        })
                    });
                    let idle: std::collections::BTreeSet<_> = idle.collect();
                    prop_assert_eq!(idle, all.filter(|one| !takes.contains(one)).collect::<std::collections::BTreeSet<_>>());
                }
            }
            // Nothing is left in the indexes of what is gone.
            let all: Vec<_> = state.containers.keys().copied().collect();
            state.apply(all.into_iter().map(Change::DeleteContainer).collect(), Revision(99));
            prop_assert!(state.endpoints.is_empty() && state.placed.is_empty() && state.network_nodes.is_empty());
            let mut network = (*state.networks[&vni(1)]).clone();
            network.addresses.clear();
            state.apply(vec![Change::PutNetwork(network)], Revision(100));
            prop_assert!(state.names.is_empty());
        }
    }
}
