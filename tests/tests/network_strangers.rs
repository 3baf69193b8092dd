//! Who may send what into a network, in the real kernel: hosts that are no nodes, and nodes of other sites.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use berth_agent::network::Namespace;
use berth_agent::network::nft::Tables;
use berth_agent::network::ruleset::{self, ON_HOST};
use berth_agent::network::sealed;
use berth_common::model::{HostNumber, WireGuardKey};
use berth_tests::overlay::{World, containers, pair, sh, talk};

#[test]
fn r6_vxlan_packets_from_strangers_are_dropped() {
    let world = World::new(3);
    let endpoints = [(2, 0), (3, 1)];
    let inside = containers(&[2, 3]);
    // The third host is no node, but knows everything and says it is the second.
    let mut liar = world.overlay(7, 2, &[(3, 2), (2, 0)]);
    let intruder = containers(&[3]);
    for at in [0, 1] {
        world.settle(at, &world.overlay(7, at, &endpoints), &inside);
    }
    world.settle(2, &liar, &intruder);
    let net = liar.subnets;
    let bound = inside[&2].within(|| std::net::UdpSocket::bind("0.0.0.0:99"));
    let socket = bound.expect("namespace").expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_millis(700)))
        .expect("option");
    let to = SocketAddr::new(net.address(HostNumber(2)).into(), 99);
    let shout = |from: &Namespace| {
        let sent =
            from.within(move || std::net::UdpSocket::bind("0.0.0.0:0").and_then(|s| s.send_to(b"x", to)));
        sent.expect("namespace").expect("sent");
        let mut buffer = [0; 9];
        socket.recv_from(&mut buffer).is_ok()
    };
    assert!(shout(&intruder[&3]), "without the rules it gets in");

    let host = Namespace::open(&PathBuf::from("/run/netns").join(world.hosts[0].netns())).expect("host");
    let mut tables = Tables::default();
    let nodes = BTreeSet::from([world.address(0), world.address(1)]);
    assert!(
        tables
            .ensure(&host, ON_HOST, &ruleset::host(&nodes, &BTreeSet::new(), 4789))
            .expect("loaded")
    );
    assert!(!shout(&intruder[&3]), "a stranger's");
    // Only VXLAN is meant: a stranger reaches everything else of the host, as before.
    let stranger = Namespace::open(&PathBuf::from("/run/netns").join(world.hosts[2].netns())).expect("host");
    assert!(sh(&stranger, &format!("ping -c1 -W1 {}", world.address(0))).0);
    talk(&stranger, &host, world.address(0));
    assert!(shout(&inside[&3]), "a node's");
    // Known later, and forgotten again.
    let more = BTreeSet::from([world.address(0), world.address(1), world.address(2)]);
    assert!(
        tables
            .ensure(&host, ON_HOST, &ruleset::host(&more, &BTreeSet::new(), 4789))
            .expect("loaded")
    );
    assert!(shout(&intruder[&3]), "a new node's");
    assert!(
        tables
            .ensure(&host, ON_HOST, &ruleset::host(&nodes, &BTreeSet::new(), 4789))
            .expect("loaded")
    );
    assert!(!shout(&intruder[&3]), "a stranger's again");
    // With the VXLAN port elsewhere, everything follows.
    liar.port = 4790;
    world.settle(2, &liar, &intruder);
    assert!(!shout(&intruder[&3]), "nobody hears that port");
}

#[test]
fn r6_a_node_of_another_site_is_not_heard_in_the_clear_and_nothing_is_sent_to_it_so() {
    let (world, inside, overlays) = pair();
    let to: [IpAddr; 2] = [3, 2].map(|host| overlays[0].subnets.address(HostNumber(host)).into());
    let hosts = [0, 1].map(|at: usize| {
        Namespace::open(&PathBuf::from("/run/netns").join(world.hosts[at].netns())).expect("host")
    });
    talk(&inside[&2], &inside[&3], to[0]);
    let nodes = BTreeSet::from([world.address(0), world.address(1)]);
    let mut tables = Tables::default();
    let mut load = |at: usize, sealed: &[usize]| {
        let sealed = sealed.iter().map(|at| world.address(*at)).collect();
        let script = ruleset::host(&nodes, &sealed, 4789);
        tables
            .ensure(&hosts[at], ruleset::on_underlay(4789), &script)
            .expect("loaded");
    };
    let counted = |at: usize, chain: &str| {
        let (_, text) = sh(
            &hosts[at],
            &format!("nft list chain inet berth {chain} | grep sealed"),
        );
        let count = text
            .split("packets ")
            .nth(1)
            .and_then(|rest| rest.split(' ').next());
        count
            .and_then(|count| count.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{text}"))
    };
    let ping = |from: u32, to: IpAddr| sh(&inside[&from], &format!("ping -c1 -W1 {to}")).0;
    // Each way alone: what is heard, and what is sent.
    load(0, &[1]);
    assert!(!ping(2, to[0]) && counted(0, "to_nodes") > 0, "sent in the clear");
    assert!(
        !ping(3, to[1]) && counted(0, "from_who") > 0,
        "heard in the clear"
    );
    load(0, &[]);
    assert!(ping(2, to[0]) && ping(3, to[1]), "of the same site again");

    // Rules and routes, as the kernel takes them: a link that is no WireGuard in the device's place is seen to be none.
    let device = sealed::device(4789);
    sh(
        &hosts[0],
        &format!("ip link add {device} type bridge; ip link set {device} up"),
    );
    let mut seal = sealed::Seal {
        device,
        public: WireGuardKey([1; 32]),
        listen: 51_821,
        mtu: 1440,
        vxlan_port: 4789,
        peers: BTreeMap::new(),
    };
    for (n, address) in [world.address(1), "2001:db8::7".parse().expect("address")]
        .into_iter()
        .enumerate()
    {
        let peer = sealed::Peer {
            endpoint: SocketAddr::new(address, 51_821),
            address,
        };
        seal.peers.insert(WireGuardKey([n as u8 + 2; 32]), peer);
    }
    let wanted = seal.as_seen();
    let ways = wanted.ways.iter().map(|way| sealed::Step::AddWay(*way));
    let rules = wanted.rules.iter().map(|rule| sealed::Step::AddRule(*rule));
    let steps: Vec<_> = ways.chain(rules).collect();
    let run = |steps: &[sealed::Step]| {
        let done = sealed::kernel::apply(&hosts[0], 4789, Some((&seal, [0; 32])), steps);
        world.runtime.block_on(done).expect("done");
        let seen = world.runtime.block_on(sealed::kernel::observe(&hosts[0], 4789));
        seen.expect("observed")
    };
    for _ in 0..2 {
        let seen = run(&steps);
        assert_eq!((&seen.ways, &seen.rules), (&wanted.ways, &wanted.rules));
        assert_eq!(seen.device.expect("a link").public, None, "no WireGuard");
    }
    let (_, way) = sh(
        &hosts[0],
        &format!("ip route get {} ipproto udp dport 4789", world.address(1)),
    );
    let (_, rules) = sh(&hosts[0], "ip rule; ip route show table 4789");
    assert!(way.contains("wgberth"), "{way}{rules}");
    let (_, other) = sh(
        &hosts[0],
        &format!("ip route get {} ipproto udp dport 4790", world.address(1)),
    );
    assert!(other.contains("eth0"), "VXLAN alone goes there: {other}");
    // The device goes, and VXLAN goes nowhere.
    let seen = run(&[sealed::Step::Delete]);
    assert_eq!(seen.device, None);
    let (found, way) = sh(
        &hosts[0],
        &format!("ip route get {} ipproto udp dport 4789", world.address(1)),
    );
    assert!(!found, "{way}");
    let steps = sealed::plan(None, None, &seen);
    assert_eq!(run(&steps), sealed::Seen::default());
    let (_, way) = sh(
        &hosts[0],
        &format!("ip route get {} ipproto udp dport 4789", world.address(1)),
    );
    assert!(way.contains("eth0"), "{way}");
}
