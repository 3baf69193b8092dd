//! IPv6 between containers and the world: the way out, published ports, and that a host that begins to pass packets on loses nothing of
//! its own and becomes nobody's router.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener};
use std::time::Duration;

use berth_agent::network::Namespace;
use berth_tests::answer::{answers, asked, asked_udp, serve, serve_udp};
use berth_tests::fleet::{Fleet, Inside, all};
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::overlay::{dial_at, sh};
use berth_tests::process::eventually;
use socket2::{Domain, Protocol, Socket, Type};

fn address(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x64, 0, 0, 0, 0, last)
}

fn at(last: u16, port: u16) -> SocketAddr {
    SocketAddr::new(address(last).into(), port)
}

/// What of a host berth may switch, and what it makes.
fn state(host: &Host) -> String {
    let links = host.ip("-o addr").replace("tentative ", "");
    let switches = "cd /proc/sys/net/ipv6/conf; for l in $(ls | grep -v berth); do echo $l $(cat $l/forwarding) $(cat $l/accept_ra); done; nft list tables; ip route; ip -6 route | grep -v fe80 | sed 's/expires [0-9a-z]*//'";
    format!("{links}{}", sh(&host.space(), switches).1)
}

/// Who a server sees when somebody dials it.
fn seen(from: &Namespace, server: &TcpListener) -> Option<IpAddr> {
    let stream = dial_at(from, server.local_addr().expect("address")).ok()?;
    let peer = server.accept().ok()?.1;
    drop(stream);
    Some(peer.ip())
}

fn listen(space: &Namespace, at: SocketAddr) -> TcpListener {
    let bound = space.within(move || TcpListener::bind(at));
    bound.expect("namespace").expect("listens")
}

/// Says to all that this host is a router (RFC 4861, 4.2): for half an hour, without any prefix.
fn announce(router: &Host) {
    let said = router.space().within(|| {
        let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
        socket.set_multicast_hops_v6(255)?;
        let message = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
        let scope = nix::net::if_::if_nametoindex("eth0")?;
        let all = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, scope);
        socket.send_to(&message, &SocketAddr::V6(all).into())
    });
    // Its own address may still be tentative.
    let _ = said.expect("namespace");
}

/// Waits until an address is answered by exactly these.
fn answered_by(f: &Fleet, from: &Namespace, at: SocketAddr, want: &[&str]) {
    let want: BTreeSet<String> = want.iter().map(|name| (*name).to_owned()).collect();
    let found = eventually(Duration::from_secs(30), || {
        let found: BTreeSet<String> = answers(from, at).into_keys().collect();
        (found == want).then_some(())
    });
    let rules = |n: usize| {
        sh(
            &f.hosts[n].space(),
            "nft list table inet berth_out; ip -6 route; ip -6 neigh",
        )
        .1
    };
    assert!(
        found.is_some(),
        "{at}: {want:?} wanted, {:?} answered\n{}\n{}\n{}",
        answers(from, at),
        rules(0),
        rules(1),
        f.agents[0].log()
    );
}

#[test]
fn r6_over_ipv6_the_world_is_reached_and_reaches_what_is_published_and_nothing_else() {
    let f = Fleet::new(3);
    let outside = Host::new("world");
    f.lan.attach(&outside, "eth0", 200);
    outside.ip(&format!("addr add {}/64 dev eth0 nodad", address(200)));
    // The third has none. All hear from a router that it is the way out. The first passes IPv4 packets on by its administrator's will,
    // which says nothing of IPv6.
    for (n, host) in f.hosts.iter().take(2).enumerate() {
        host.ip(&format!("addr add {}/64 dev eth0 nodad", address(11 + n as u16)));
    }
    f.hosts[0].forward();
    let router = Host::new("router");
    f.lan.attach(&router, "eth0", 201);
    let announced = |host: &Host| {
        eventually(Duration::from_secs(10), || {
            announce(&router);
            host.ip("-6 route show default")
                .contains("proto ra")
                .then_some(())
        })
    };
    assert!(f.hosts.iter().all(|host| announced(host).is_some()));
    let before: Vec<_> = f.hosts.iter().map(state).collect();
    for (n, node) in ["h1", "h2"].iter().enumerate() {
        let known = eventually(Duration::from_secs(20), || {
            let node = f.brain.json(&["node", "inspect", node]);
            let own = address(11 + n as u16).to_string();
            (node["facts"]["underlay"]["address6"] == own.as_str()).then_some(())
        });
        assert!(known.is_some(), "{}", f.brain.berth(&["node", "inspect", node]));
    }
    let ports = ["-p", "8080:80", "-p", "5353:53/udp", "-p", "7000-7001:8000-8001"];
    f.brain.run_sleepers("web", 3, &ports);
    f.brain.run_sleepers("near", 1, &["-p", "9090:80,mode=node"]);
    f.brain.wait_running(4, 90);
    let now = all(&f.brain);
    let on = |node: &str| -> (&String, &Inside) {
        let found = now
            .iter()
            .find(|(name, one)| one.node == node && name.starts_with("web"));
        found.expect("one replica a node")
    };
    for (name, container) in &now {
        serve(&container.space, 80, name);
        serve(&container.space, 8001, name);
        serve_udp(&container.space, 53, name);
    }
    let world = outside.space();

    // Out: by the host's address. A host without IPv6 says at once that there is no way.
    let server = listen(&world, at(200, 80));
    for (node, last) in [("h1", 11), ("h2", 12)] {
        let who = eventually(Duration::from_secs(15), || seen(&on(node).1.space, &server));
        assert_eq!(who, Some(address(last).into()), "{}", f.agents[0].log());
    }
    assert!(dial_at(&on("h3").1.space, at(200, 80)).is_err());
    let (ok, text) = sh(
        &on("h1").1.space,
        &format!("ping -6 -c1 -W5 -s 1402 {}", address(200)),
    );
    assert!(ok, "{text}");
    // Not: the host itself, what gives a cloud's credentials away, a program of the host.
    let own = listen(&f.hosts[0].space(), at(11, 81));
    assert!(seen(&world, &own).is_some(), "it listens");
    assert_eq!(seen(&on("h1").1.space, &own), None, "the container's own host");
    outside.ip("addr add fd00:ec2::254/128 dev eth0 nodad");
    f.hosts[0].ip("-6 route add fd00:ec2::254/128 dev eth0");
    let metadata = listen(&world, "[fd00:ec2::254]:80".parse().expect("address"));
    assert!(seen(&f.hosts[0].space(), &metadata).is_some());
    assert_eq!(seen(&on("h1").1.space, &metadata), None, "metadata");

    // In: at each node that has an address, by all replicas on nodes that have one, from outside, the hosts and containers.
    let both = [on("h1").0.as_str(), on("h2").0.as_str()];
    for last in [11, 12] {
        answered_by(&f, &world, at(last, 8080), &both);
        answered_by(&f, &world, at(last, 7001), &both);
        answered_by(&f, &f.hosts[0].space(), at(last, 8080), &both);
        answered_by(&f, &on("h1").1.space, at(last, 8080), &both);
        let heard: BTreeSet<_> = (0..24)
            .filter_map(|_| asked_udp(&world, at(last, 5353)))
            .collect();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert_eq!(asked(&world, at(last, 80)), None, "what is not published");
    }
    // A replica on the node that was asked sees the client, others the node that passed it on.
    let found = answers(&world, at(11, 8080));
    assert_eq!(found[both[0]], address(200).to_string(), "{found:?}");
    assert_eq!(found[both[1]], address(11).to_string(), "{found:?}");
    let near = &now["near.1"];
    let home = 10 + near.node[1..].parse::<u16>().expect("number");
    if home < 13 {
        answered_by(&f, &world, at(home, 9090), &["near.1"]);
        answered_by(&f, &world, at(23 - home, 9090), &[]);
    }

    // The host is nobody's router, and kept its own way out.
    let there = Host::new("far");
    f.hosts[0].ip("link add other type veth peer name far");
    f.hosts[0].ip("addr add 2001:db8:99::1/64 dev other nodad");
    f.hosts[0].ip(&format!("link set far netns {}", there.netns()));
    f.hosts[0].ip("link set other up");
    there.ip("addr add 2001:db8:99::2/64 dev far nodad");
    there.ip("link set far up");
    there.ip("-6 route add default via 2001:db8:99::1");
    outside.ip(&format!("-6 route add 2001:db8:99::/64 via {}", address(11)));
    outside.ip(&format!("-6 route add fd00::/8 via {}", address(11)));
    let far = listen(&there.space(), "[2001:db8:99::2]:80".parse().expect("address"));
    let reached = eventually(Duration::from_secs(5), || seen(&f.hosts[0].space(), &far));
    assert!(reached.is_some());
    assert_eq!(seen(&world, &far), None);
    for to in [on("h1").1.ipv6.to_string(), "fd5b:e4a7:9c31:64::2".to_owned()] {
        let (ok, _) = sh(&world, &format!("ping -6 -c1 -W1 {to}"));
        assert!(!ok, "{to} answered the world");
    }
    drop(far);
    f.hosts[0].ip("link del other");
    drop(there);
    f.hosts[0].ip("-6 route del fd00:ec2::254/128 dev eth0");
    let kept = f.hosts[1].ip("-6 route show default");
    assert!(kept.contains("proto ra"), "{}", state(&f.hosts[1]));
    f.hosts[1].ip("-6 route flush default");
    assert!(announced(&f.hosts[1]).is_some(), "{}", state(&f.hosts[1]));

    // Somebody takes parts of it away.
    for meddle in [
        "echo 0 >/proc/sys/net/ipv6/conf/all/forwarding",
        "ip -6 addr flush dev $(ip -o link | grep -o 'berth[0-9]*' | head -1)",
        "nft flush ruleset",
    ] {
        let (ok, text) = sh(&f.hosts[0].space(), meddle);
        assert!(ok, "{meddle}: {text}");
        let mended = eventually(Duration::from_secs(20), || {
            let out = seen(&on("h1").1.space, &server)?;
            let inward = answers(&world, at(11, 8080));
            (out == IpAddr::from(address(11)) && inward.len() == 2).then_some(())
        });
        assert!(
            mended.is_some(),
            "{meddle}\n{}\n{}",
            state(&f.hosts[0]),
            f.agents[0].log()
        );
    }

    // With the last container each host is as it was.
    for service in ["web", "near"] {
        f.brain.berth(&["service", "rm", service]);
    }
    let after = eventually(Duration::from_secs(60), || {
        let now: Vec<_> = f.hosts.iter().map(state).collect();
        (now == before).then_some(())
    });
    let now: Vec<_> = f.hosts.iter().map(state).collect();
    assert!(after.is_some(), "{before:#?}\n{now:#?}\n{}", f.agents[0].log());
}
