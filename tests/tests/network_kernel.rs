//! Networks in the real kernel: hosts and containers are network namespaces, the packets are real.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use berth_agent::network::nft::Tables;
use berth_agent::network::plan::{missing, plan, port_name};
use berth_agent::network::ruleset::{self, ON_BRIDGE, ON_HOST};
use berth_agent::network::{Namespace, Overlay};
use berth_agent::sys::ethtool::{checksums_offloaded, offload_checksums};
use berth_common::model::{HostNumber, Subnets};
use berth_tests::overlay::{World, containers, dial, listen, pair, sh, speak, talk};
use berth_tests::process::eventually;

#[test]
fn endpoints_reach_one_another_here_and_there_and_everything_goes_with_the_last() {
    let world = World::new(2);
    let endpoints = [(2, 0), (3, 0), (4, 1)];
    let inside = containers(&[2, 3, 4]);
    let overlays = [0, 1].map(|at| world.overlay(7, at, &endpoints));
    for (at, overlay) in overlays.iter().enumerate() {
        world.settle(at, overlay, &inside);
    }
    let net = overlays[0].subnets;
    for (from, to) in [(2, 3), (2, 4), (4, 3)] {
        let host = HostNumber(to);
        talk(&inside[&from], &inside[&to], net.address(host).into());
        talk(&inside[&from], &inside[&to], net.address6(host).into());
    }
    // The gateway is there on each host, and refuses rather than being silent.
    for from in [2, 4] {
        let refused = dial(&inside[&from], net.address(Subnets::GATEWAY).into()).expect_err("nobody listens");
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    // A full packet fits, one byte more does not and says so.
    let ping = |size: u32| {
        sh(
            &inside[&2],
            &format!("ping -c1 -W2 -M do -s {size} {}", net.address(HostNumber(4))),
        )
    };
    assert!(ping(1450 - 28).0, "{}", ping(1450 - 28).1);
    assert!(!ping(1450 - 27).0);

    for (at, kernel) in world.kernels.iter().enumerate() {
        let vni = overlays[at].vni;
        let seen = world.runtime.block_on(kernel.observe(vni)).expect("observed");
        let steps = plan(None, seen.as_ref());
        world
            .runtime
            .block_on(kernel.apply(vni, &steps))
            .expect("removed");
        assert_eq!(
            world.runtime.block_on(kernel.observe(vni)).expect("observed"),
            None
        );
        assert!(kernel.kept().expect("listed").is_empty());
        // The kernel takes a namespace's links away a moment after it.
        let links = || world.hosts[at].ip("-o link show");
        let gone = eventually(Duration::from_secs(10), || {
            (links().lines().count() == 2).then_some(())
        });
        assert!(gone.is_some(), "more than loopback and the wire: {}", links());
    }
}

#[test]
fn r6_networks_with_the_same_addresses_are_apart_and_nothing_unknown_leaves_a_host() {
    let world = World::new(2);
    let endpoints = [(2, 0), (3, 1)];
    let (ours, theirs) = (containers(&[2, 3]), containers(&[2, 3]));
    for at in [0, 1] {
        world.settle(at, &world.overlay(7, at, &endpoints), &ours);
        world.settle(at, &world.overlay(8, at, &endpoints), &theirs);
    }
    let net = world.overlay(7, 0, &endpoints).subnets;
    let address: IpAddr = net.address(HostNumber(3)).into();
    // Theirs listens at the address that ours dials: it hears nothing.
    let listener = listen(&theirs[&3], address);
    let refused = dial(&ours[&2], address).expect_err("nobody of ours listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    listener.set_nonblocking(true).expect("option");
    assert_eq!(
        listener.accept().expect_err("nobody").kind(),
        std::io::ErrorKind::WouldBlock
    );
    drop(listener);
    talk(&theirs[&2], &theirs[&3], address);
    talk(&ours[&2], &ours[&3], address);

    // Who asks for an address that nobody has, or shouts to all, is not heard outside.
    let space = Namespace::open(&world.kernels[0].path(world.overlay(7, 0, &[]).vni)).expect("kept");
    let sent = || {
        let (_, counted) = sh(&space, "ip -s -j link show dev vx0");
        let counted: serde_json::Value = serde_json::from_str(&counted).expect("json");
        counted[0]["stats64"]["tx"]["packets"].as_u64().expect("packets")
    };
    let before = sent();
    let (_, said) = sh(
        &ours[&2],
        &format!(
            "ping -c2 -i0.2 -W1 10.80.0.99; ping -c2 -i0.2 -W1 -b 10.80.255.255; ping -c2 -i0.2 -W1 ff02::1%eth0; ping -c1 -W1 {address}"
        ),
    );
    assert!(said.contains("1 received"), "{said}");
    assert_eq!(sent() - before, 1, "the one answered ping, and nothing else");
}

#[test]
fn whatever_somebody_does_to_a_network_is_repaired_and_open_connections_go_on() {
    let (world, inside, overlays) = pair();
    let net = overlays[0].subnets;
    let space = Namespace::open(&world.kernels[0].path(overlays[0].vni)).expect("kept");
    let address: IpAddr = net.address(HostNumber(3)).into();
    let (mut client, mut server) = talk(&inside[&2], &inside[&3], address);
    let (mac, port) = (net.mac(HostNumber(3)), port_name(HostNumber(2)));
    for meddling in [
        "ip link del vx0".to_owned(),
        "ip link del br0".to_owned(),
        format!("ip link del {port}"),
        "ip link set br0 down".to_owned(),
        "ip link set vx0 down; ip link set br0 address 02:00:00:00:00:01".to_owned(),
        format!("bridge fdb del {mac} dev vx0 self"),
        format!("bridge fdb del {mac} dev vx0 master"),
        format!("bridge fdb replace {mac} dev vx0 self dst 192.0.2.9"),
        "bridge fdb append 00:00:00:00:00:00 dev vx0 dst 192.0.2.9".to_owned(),
        format!("bridge fdb replace {mac} dev {port} master static"),
        "ip neigh flush dev br0 nud permanent; ip -6 neigh flush dev br0 nud permanent".to_owned(),
        "ip neigh replace 10.80.0.77 lladdr 02:00:00:00:00:07 dev br0".to_owned(),
        "ip addr flush dev br0; ip addr add 10.80.9.9/16 dev br0".to_owned(),
        "ip link set br0 mtu 1300".to_owned(),
        "bridge link set dev vx0 learning on flood on neigh_suppress off".to_owned(),
        format!("bridge link set dev {port} flood on; ip link set vx0 nomaster"),
        "ip link set vx0 type vxlan learning".to_owned(),
        "ip link add foreign type bridge".to_owned(),
    ] {
        let (done, said) = sh(&space, &meddling);
        assert!(done, "{meddling}: {said}");
        let seen = world
            .runtime
            .block_on(world.kernels[0].observe(overlays[0].vni))
            .expect("observed");
        let seen = seen.expect("there");
        assert!(
            !plan(Some(&overlays[0]), Some(&seen)).is_empty() || !missing(&overlays[0], &seen).is_empty(),
            "{meddling} was not noticed: {seen:#?}"
        );
        world.settle(0, &overlays[0], &inside);
        speak(&mut client, &mut server);
    }
    // Somebody's device with the same identifier: said, not fought over.
    let (_, said) = sh(&space, "ip link del vx0");
    assert!(said.is_empty(), "{said}");
    world.hosts[0].ip("link add foreign type vxlan id 7 dstport 4789");
    let steps = world.steps(0, &overlays[0]);
    let refused = world
        .runtime
        .block_on(world.kernels[0].apply(overlays[0].vni, &steps));
    let refused = refused.expect_err("taken").to_string();
    assert!(
        refused.contains("another device of this host has VNI 7"),
        "{refused}"
    );
    world.hosts[0].ip("link del foreign");
    world.settle(0, &overlays[0], &inside);
    speak(&mut client, &mut server);
    // Another agent finds everything right and changes nothing.
    assert!(world.steps(0, &overlays[0]).is_empty());
    // A namespace that lost its place, as after a reboot: all is made anew.
    Namespace::release(&world.kernels[0].path(overlays[0].vni)).expect("released");
    drop(space);
    world.settle(0, &overlays[0], &inside);
    speak(&mut client, &mut server);
}

#[test]
fn who_makes_checksums_is_as_set_whatever_somebody_does_and_open_connections_go_on() {
    let (world, inside, overlays) = pair();
    let space = Namespace::open(&world.kernels[0].path(overlays[0].vni)).expect("kept");
    let address: IpAddr = overlays[0].subnets.address(HostNumber(3)).into();
    let (mut client, mut server) = talk(&inside[&2], &inside[&3], address);
    let offloaded = || {
        space
            .within(|| checksums_offloaded("vx0"))
            .expect("namespace")
            .expect("asked")
    };
    assert!(offloaded(), "a new device leaves them to the card");
    let kernels = Overlay {
        offload: false,
        ..overlays[0].clone()
    };
    assert_eq!(world.settle(0, &kernels, &inside), 1, "nothing else changes");
    assert!(!offloaded());
    speak(&mut client, &mut server);
    assert!(world.steps(0, &kernels).is_empty());
    let undone = space
        .within(|| offload_checksums("vx0", true))
        .expect("namespace");
    undone.expect("undone");
    assert_eq!(world.settle(0, &kernels, &inside), 1);
    assert!(!offloaded());
    // A new device, too.
    assert!(sh(&space, "ip link del vx0").0);
    world.settle(0, &kernels, &inside);
    assert!(!offloaded());
    world.settle(0, &overlays[0], &inside);
    assert!(offloaded());
    speak(&mut client, &mut server);
}

#[test]
fn an_endpoint_keeps_its_address_on_another_host_and_others_follow() {
    let world = World::new(3);
    let mut inside = containers(&[2, 3]);
    let settle = |endpoints: &[(u32, usize)], inside: &BTreeMap<u32, Namespace>| {
        let on: BTreeSet<usize> = endpoints.iter().map(|(_, host)| *host).collect();
        on.iter()
            .map(|at| world.settle(*at, &world.overlay(7, *at, endpoints), inside))
            .collect::<Vec<_>>()
    };
    settle(&[(2, 0), (3, 1)], &inside);
    let address: IpAddr = world.overlay(7, 0, &[]).subnets.address(HostNumber(3)).into();
    talk(&inside[&2], &inside[&3], address);
    // The container starts again elsewhere.
    inside.insert(3, Namespace::new().expect("namespace"));
    let steps = settle(&[(2, 0), (3, 2)], &inside);
    assert_eq!(steps[0], 1, "the other host changes one entry");
    talk(&inside[&2], &inside[&3], address);
}

#[test]
fn r6_an_endpoint_speaks_with_its_own_addresses_only_and_a_flushed_table_comes_back() {
    let world = World::new(2);
    let endpoints = [(2, 0), (3, 0), (4, 1)];
    let inside = containers(&[2, 3, 4]);
    let mut tables = [Tables::default(), Tables::default()];
    let overlays = [0, 1].map(|at| world.overlay(7, at, &endpoints));
    for (at, overlay) in overlays.iter().enumerate() {
        world.settle(at, overlay, &inside);
        let space = Namespace::open(&world.kernels[at].path(overlay.vni)).expect("kept");
        let loaded = |tables: &mut Tables| {
            let bridge = tables
                .ensure(&space, ON_BRIDGE, &ruleset::endpoints(overlay))
                .expect("loaded");
            bridge
                | tables
                    .ensure(&space, ON_HOST, &ruleset::gateway(overlay))
                    .expect("loaded")
        };
        assert!(loaded(&mut tables[at]), "the first time");
        assert!(!loaded(&mut tables[at]), "nothing to do");
        for meddling in [
            "nft flush ruleset",
            "nft flush chain bridge berth from_endpoints",
            "nft delete table inet berth",
            "nft insert rule bridge berth from_endpoints accept",
        ] {
            assert!(sh(&space, meddling).0, "{meddling}");
            assert!(loaded(&mut tables[at]), "{meddling} was not noticed");
            assert!(!loaded(&mut tables[at]), "it is as it should be");
        }
    }
    let net = overlays[0].subnets;
    let reaches = |from: u32, options: &str, to: IpAddr| {
        let (reached, said) = sh(&inside[&from], &format!("ping -c1 -W1 {options} {to}"));
        assert!(said.contains("transmitted"), "{said}");
        reached
    };
    let (here, there): (IpAddr, IpAddr) = (
        net.address(HostNumber(3)).into(),
        net.address(HostNumber(4)).into(),
    );
    for to in [
        here,
        there,
        net.address6(HostNumber(4)).into(),
        net.address(Subnets::GATEWAY).into(),
    ] {
        let kept = world.kernels[0].path(overlays[0].vni);
        let rules = || {
            sh(
                &Namespace::open(&kept).expect("kept"),
                "nft list ruleset; bridge fdb; ip neigh",
            )
            .1
        };
        assert!(reaches(2, "", to), "{to}: {}", rules());
    }
    talk(&inside[&2], &inside[&4], there);
    // Nothing listens at the gateway, and it says so at once.
    let refused = dial(&inside[&2], net.address(Subnets::GATEWAY).into()).expect_err("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    // Another's address, even with the answer's way prepared; another's hardware address; none of its own.
    assert!(sh(&inside[&2], "ip addr add 10.80.0.3/16 dev eth0").0);
    assert!(!reaches(2, "-I 10.80.0.3", there), "another's address");
    assert!(
        sh(
            &inside[&2],
            "ip addr del 10.80.0.3/16 dev eth0; ip -6 addr add fd00:be::3/64 dev eth0 nodad"
        )
        .0
    );
    assert!(
        !reaches(2, "-I fd00:be::3", net.address6(HostNumber(4)).into()),
        "another's IPv6 address"
    );
    assert!(reaches(2, "", there), "its own still does");
    let other = net.mac(HostNumber(3));
    assert!(sh(&inside[&2], &format!("ip link set eth0 address {other}")).0);
    assert!(!reaches(2, "", there), "another's hardware address");
}

#[test]
fn thousands_of_endpoints_are_told_at_once_and_a_change_is_one() {
    let world = World::new(1);
    let node: IpAddr = world.lan.address(9).parse().expect("address");
    let mut overlay = world.overlay(7, 0, &[(2, 0)]);
    let inside = containers(&[2]);
    let mut others: std::collections::BTreeMap<_, _> =
        (3..10_003).map(|number| (HostNumber(number), node)).collect();
    overlay.remote = Some(others.clone());
    world.settle(0, &overlay, &inside);
    others.remove(&HostNumber(3));
    overlay.remote = Some(others);
    assert_eq!(
        world.settle(0, &overlay, &inside),
        4,
        "two neighbours, a way, a node"
    );
}
