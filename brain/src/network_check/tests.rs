use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use berth_common::api::NodePath;
use berth_common::id::TenantId;
use berth_common::model::{HostNumber, NodeKind, NodeRecord, Underlay, Vni, WireGuard, WireGuardKey};
use berth_common::protocol::{Echoes, NodeRequest, Probed};

use super::{Part, Side, judge, parts, related};
use crate::cluster::sites::SITE;
use crate::controllers::fixtures::{node, tenant_id};

pub(super) fn at(n: u64, mtu: u32) -> NodeRecord {
    let mut record = node(n, NodeKind::Shared, 4, 8);
    record.facts.underlay = Some(Underlay {
        address: IpAddr::from([192, 0, 2, n as u8]),
        mtu,
        port: 4789,
        wireguard: Some(WireGuard {
            key: WireGuardKey([n as u8; 32]),
            port: 51_821,
        }),
        address6: None,
    });
    record
}

fn site(mut record: NodeRecord, site: &str) -> NodeRecord {
    record.labels.insert(SITE.to_owned(), site.to_owned());
    record
}

pub(super) fn private(mut record: NodeRecord, owner: TenantId) -> NodeRecord {
    record.kind = NodeKind::Private { tenant: owner };
    record
}

#[test]
fn each_is_told_of_all_it_can_be_joined_to_and_r6_of_nobody_elses() {
    let mut silent = at(5, 1500);
    silent.facts.underlay = None;
    let nodes: Vec<_> = [
        at(1, 1500),
        at(2, 1500),
        site(at(3, 1500), "west"),
        private(at(4, 1500), tenant_id(1)),
        silent,
    ]
    .into_iter()
    .map(Arc::new)
    .collect();
    let parts = parts(&nodes);
    let peers = |part: &Part| -> Vec<u64> {
        let names = part
            .peers
            .iter()
            .map(|peer| nodes.iter().position(|node| node.id == peer.node));
        names.map(|at| at.expect("of these") as u64 + 1).collect()
    };
    let all: Vec<_> = parts.iter().map(peers).collect();
    assert_eq!(all, [vec![2, 3], vec![1, 3], vec![1, 2], vec![], vec![]]);
    assert!(!related(&nodes[0], &nodes[3]) && related(&nodes[0], &nodes[2]));
    // Numbers are all different, and those that others are told.
    let numbers: BTreeSet<HostNumber> = parts.iter().map(|part| part.host).collect();
    assert_eq!(numbers.len(), parts.len());
    for part in &parts {
        let NodeRequest::Probe { endpoint, neighbours } = &part.request else {
            panic!("{:?}", part.request);
        };
        assert_eq!((endpoint.vni, endpoint.host), (Vni::PROBE, part.host));
        for peer in &part.peers {
            let other = parts.iter().find(|other| other.node.id == peer.node).unwrap();
            assert_eq!(other.host, peer.host);
            assert_eq!(neighbours.networks[&Vni::PROBE][&peer.host], peer.node);
            assert_eq!(
                Some(neighbours.nodes[&peer.node]),
                other.node.facts.underlay.map(|at| at.address)
            );
        }
        let sealed = neighbours.sealed.iter().map(|other| other.node);
        let expected: Vec<_> = match part.node.labels.contains_key(SITE) {
            true => part.peers.iter().map(|peer| peer.node).collect(),
            false => part
                .peers
                .iter()
                .map(|peer| peer.node)
                .filter(|id| *id == nodes[2].id)
                .collect(),
        };
        assert_eq!(sealed.collect::<Vec<_>>(), expected, "{}", part.node.name);
    }
}

const fn echoes(answered: u32) -> Echoes {
    Echoes {
        sent: 50,
        answered,
        min_us: 100,
        mean_us: 200,
        max_us: 900,
    }
}

/// A way on which all is well.
fn well() -> Probed {
    Probed {
        node: node(9, NodeKind::Shared, 1, 1).id,
        underlay: Some(echoes(50)),
        underlay_mtu: Some(1500),
        network: echoes(50),
        network_mtu: Some(1450),
        udp: true,
        tcp: true,
    }
}

/// A way on which nothing comes through.
fn nothing() -> Probed {
    Probed {
        network: echoes(0),
        network_mtu: None,
        udp: false,
        tcp: false,
        ..well()
    }
}

/// What is said of two nodes: what each measured, whether the first was heard by the second, and the other way round.
fn judged(
    nodes: [NodeRecord; 2],
    ways: [Option<Probed>; 2],
    heard: [Option<bool>; 2],
) -> berth_common::api::PairCheck {
    let [a, b] = nodes;
    let hosts = [HostNumber(2), HostNumber(3)];
    let [there, back] = ways;
    let of = |way: Option<Probed>, other: &NodeRecord| -> BTreeMap<_, _> {
        way.map(|way| {
            (
                other.id,
                Probed {
                    node: other.id,
                    ..way
                },
            )
        })
        .into_iter()
        .collect()
    };
    let (there, back) = (of(there, &b), of(back, &a));
    let set =
        |heard: Option<bool>, who| heard.map(|yes| yes.then_some(who).into_iter().collect::<BTreeSet<_>>());
    let (by_b, by_a) = (set(heard[0], hosts[0]), set(heard[1], hosts[1]));
    let one = Side {
        node: &a,
        host: hosts[0],
        probed: &there,
        heard: by_a.as_ref(),
    };
    let other = Side {
        node: &b,
        host: hosts[1],
        probed: &back,
        heard: by_b.as_ref(),
    };
    judge(&one, &other)
}

#[test]
fn r9_what_is_wrong_between_two_nodes_is_told_with_its_direction() {
    let two = || [at(1, 1500), at(2, 1500)];
    let far = || [at(1, 1500), site(at(2, 1500), "west")];
    let (yes, no) = (Some(true), Some(false));
    let blind = |way: Probed| Probed {
        underlay: None,
        underlay_mtu: None,
        ..way
    };
    let dead = Probed {
        underlay: Some(echoes(0)),
        underlay_mtu: None,
        ..nothing()
    };
    let with = |change: fn(&mut Probed)| {
        let mut way = well();
        change(&mut way);
        way
    };
    type Case = (
        [NodeRecord; 2],
        [Option<Probed>; 2],
        [Option<bool>; 2],
        Vec<&'static str>,
    );
    let cases: Vec<Case> = vec![
        (two(), [Some(well()), Some(well())], [yes, yes], vec![]),
        // One that measured is enough.
        (two(), [None, Some(well())], [None, None], vec![]),
        (two(), [None, None], [None, None], vec!["nothing was measured"]),
        (
            two(),
            [Some(dead.clone()), Some(dead.clone())],
            [no, no],
            vec!["not even pings"],
        ),
        // Pings are dropped by many firewalls: datagrams that arrive tell more.
        (
            two(),
            [Some(dead.clone()), Some(dead)],
            [yes, no],
            vec!["from h2 don't reach h1"],
        ),
        (
            two(),
            [Some(nothing()), Some(nothing())],
            [no, no],
            vec!["VXLAN packets (UDP port 4789) come through in neither direction"],
        ),
        (
            two(),
            [Some(nothing()), Some(nothing())],
            [no, yes],
            vec!["from h1 don't reach h2"],
        ),
        (
            two(),
            [Some(nothing()), Some(nothing())],
            [yes, yes],
            vec!["answers don't"],
        ),
        (
            two(),
            [Some(blind(nothing())), None],
            [no, no],
            vec!["is not known"],
        ),
        (
            far(),
            [Some(nothing()), Some(nothing())],
            [no, no],
            vec!["WireGuard packets (UDP port 51821)"],
        ),
        (
            two(),
            [Some(with(|way| way.tcp = false)), Some(well())],
            [yes, yes],
            vec!["connections (TCP) don't: most likely one of the two hosts'"],
        ),
        (
            two(),
            [
                Some(with(|way| (way.udp, way.tcp) = (false, false))),
                Some(with(|way| way.udp = false)),
            ],
            [no, yes],
            vec!["h1's network card"],
        ),
        (
            two(),
            [Some(with(|way| way.underlay_mtu = Some(1400))), Some(well())],
            [yes, yes],
            vec!["1400 bytes at most, the links 1500"],
        ),
        (
            two(),
            [Some(with(|way| way.underlay_mtu = None)), Some(well())],
            [yes, yes],
            vec!["no packet of 1280 bytes"],
        ),
        (
            two(),
            [Some(blind(with(|way| way.network_mtu = Some(1400)))), None],
            [yes, yes],
            vec!["up to 1400 bytes, and should up to 1450"],
        ),
        (
            two(),
            [Some(blind(with(|way| way.network_mtu = None))), None],
            [yes, yes],
            vec!["no packet of a container"],
        ),
        (
            [at(1, 9000), at(2, 1500)],
            [Some(well()), Some(well())],
            [yes, yes],
            vec!["different MTUs, 9000 and 1500"],
        ),
        (
            two(),
            [Some(with(|way| way.network = echoes(49))), Some(well())],
            [yes, yes],
            vec![],
        ),
        (
            two(),
            [Some(with(|way| way.network = echoes(48))), Some(well())],
            [yes, yes],
            vec!["4 % of pings"],
        ),
        // Where most is lost, so are datagrams.
        (
            two(),
            [
                Some(with(|way| (way.network, way.udp) = (echoes(20), false))),
                None,
            ],
            [yes, yes],
            vec!["60 % of pings"],
        ),
        (
            two(),
            [
                Some(with(|way| {
                    (way.network, way.underlay_mtu) = (echoes(40), Some(1400))
                })),
                None,
            ],
            [yes, yes],
            vec!["1400 bytes at most", "20 % of pings"],
        ),
        (
            [at(1, 1500), private(at(2, 1500), tenant_id(1))],
            [None, None],
            [None, None],
            vec!["one is private"],
        ),
    ];
    for (nodes, ways, heard, expected) in cases {
        let context = format!("{ways:?} {heard:?}");
        let pair = judged(nodes, ways, heard);
        let problems: Vec<_> = pair.findings.iter().map(|found| found.problem.as_str()).collect();
        assert_eq!(problems.len(), expected.len(), "{problems:?} of {context}");
        for (problem, part) in problems.iter().zip(&expected) {
            assert!(problem.contains(part), "{problem:?} without {part:?}: {context}");
        }
        let cured = pair.findings.iter().all(|found| found.cure.is_some());
        assert!(cured || pair.path == NodePath::None, "{pair:?}");
    }
    let pair = judged(
        far(),
        [Some(well()), Some(with(|way| way.network_mtu = Some(1390)))],
        [yes, yes],
    );
    assert_eq!(pair.path, NodePath::Wireguard);
    assert_eq!((pair.mtu, pair.expected_mtu), (Some(1390), Some(1390)));
}
