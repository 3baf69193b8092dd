//! The way out of containers' networks: what it leads to, what it does not, and what is left of it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use berth_agent::network::Namespace;
use berth_tests::fleet::{Fleet, Inside, all, all_of};
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::overlay::{dial_at, sh, speak, talk_at};
use berth_tests::process::eventually;

const METADATA: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

fn listen(space: &Namespace, at: SocketAddr) -> TcpListener {
    space
        .within(move || TcpListener::bind(at))
        .expect("namespace")
        .expect("listens")
}

/// Who a server sees when a container dials it; none if it can't.
fn seen(from: &Inside, server: &TcpListener) -> Option<IpAddr> {
    let at = server.local_addr().expect("address");
    let mut stream = dial_at(&from.space, at).ok()?;
    let (mut other, peer) = server.accept().ok()?;
    stream.write_all(b"x").ok()?;
    other.read_exact(&mut [0]).ok()?;
    Some(peer.ip())
}

/// Whether a datagram from a container arrives.
fn arrives(from: &Inside, server: &UdpSocket) -> bool {
    let to = server.local_addr().expect("address");
    server
        .set_read_timeout(Some(Duration::from_millis(700)))
        .expect("socket");
    let sent = from.space.within(move || {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"x", to)
    });
    assert!(matches!(sent, Ok(Ok(1))), "{sent:?}");
    server.recv(&mut [0]).is_ok()
}

fn forwarding(host: &Host) -> String {
    let mut files = host.command("sh");
    files.args(["-c", "grep -H . /proc/sys/net/ipv4/conf/*/forwarding | sort"]);
    String::from_utf8_lossy(&files.output().expect("sh").stdout).into_owned()
}

fn state(host: &Host) -> String {
    // What of the test's own making is still under way is no difference.
    let links = host.ip("-o addr").replace("tentative ", "");
    let rules = sh(&host.space(), "nft list tables; ip route").1;
    format!("{links}{rules}{}", forwarding(host))
}

#[test]
fn r6_containers_reach_the_world_by_their_hosts_address_and_nothing_of_berth() {
    let mut f = Fleet::new(2);
    let outside = Host::new("world");
    f.lan.attach(&outside, "eth0", 200);
    outside.ip("addr add 169.254.169.254/32 dev eth0");
    for host in &f.hosts {
        host.ip("route add 169.254.169.254 dev eth0");
    }
    let at = |last: u8, port: u16| SocketAddr::new(f.lan.address(last).parse().expect("address"), port);
    let before: Vec<_> = f.hosts.iter().map(state).collect();

    // Two tenants with the same addresses.
    let of = |tenant: &str| all_of(&f.brain, tenant).into_values().collect::<Vec<_>>();
    for tenant in ["red", "blue"] {
        f.brain.berth(&["tenant", "create", tenant]);
        f.brain.load_example_for(tenant);
        let args = [
            "--tenant",
            tenant,
            "run",
            "example:1",
            "--name",
            "web",
            "-d",
            "--replicas",
            "2",
        ];
        let small = ["--memory", "16MiB", "--disk", "8MiB", "--", "sleep", "1000000"];
        f.brain.berth(&[&args[..], &small[..]].concat());
        let up = eventually(Duration::from_secs(90), || (of(tenant).len() == 2).then_some(()));
        assert!(up.is_some(), "{}", f.brain.berth(&["--tenant", tenant, "ps"]));
    }
    let (red, blue) = (of("red"), of("blue"));
    assert_eq!(red[0].ipv4, blue[0].ipv4);

    let world = listen(&outside.space(), at(200, 80));
    let address = |c: &Inside| f.lan.address(10 + c.node[1..].parse::<u8>().expect("number"));
    for container in red.iter().chain(&blue) {
        let who = seen(container, &world);
        assert_eq!(
            who.map(|ip| ip.to_string()),
            Some(address(container)),
            "{}",
            f.agents[0].log()
        );
    }
    let datagrams = |space: &Namespace, at: SocketAddr| {
        let made = space.within(move || UdpSocket::bind(at));
        made.expect("namespace").expect("binds")
    };
    assert!(arrives(&red[0], &datagrams(&outside.space(), at(200, 53))));
    // Large packets arrive whole.
    let (ok, text) = sh(
        &red[0].space,
        &format!("ping -c1 -W5 -s 1422 {}", f.lan.address(200)),
    );
    assert!(ok, "{text}");

    // Not: what gives a cloud's credentials away, VXLAN to anybody, a host of theirs, the brain, another tenant's network.
    let metadata = listen(&outside.space(), SocketAddr::new(METADATA, 80));
    assert!(dial_at(&f.hosts[0].space(), metadata.local_addr().expect("address")).is_ok());
    assert_eq!(seen(&red[0], &metadata), None, "metadata");
    assert!(
        !arrives(&red[0], &datagrams(&outside.space(), at(200, 4789))),
        "VXLAN"
    );
    let own = usize::from(red[0].node == "h2");
    for (last, port) in [(11, 80), (12, 80)] {
        let server = listen(&f.hosts[usize::from(last - 11)].space(), at(last, port));
        let reached = seen(&red[0], &server).is_some();
        assert_eq!(
            reached,
            usize::from(last - 11) != own,
            "a service of {last}, from {own}"
        );
    }
    assert!(
        dial_at(&f.hosts[0].space(), at(1, 7443)).is_ok(),
        "the brain is there"
    );
    assert!(dial_at(&red[0].space, at(1, 7443)).is_err(), "the brain");
    let neighbours = f.hosts[own].ip("-o route show");
    let others = neighbours
        .split_whitespace()
        .filter(|word| word.starts_with("169.254.64."));
    let others: std::collections::BTreeSet<_> = others.filter(|word| *word != "169.254.64.1").collect();
    let answered = others
        .iter()
        .filter(|to| sh(&red[0].space, &format!("ping -c1 -W1 {to}")).0);
    // The own network's answers, as its gateway does.
    assert_eq!((others.len(), answered.count()), (2, 1), "{neighbours}");

    // Nobody comes in, and the host has not become anybody's router.
    let h1 = f.lan.address(11);
    outside.ip(&format!("route add 169.254.64.0/18 via {h1}"));
    outside.ip(&format!("route add 10.64.0.0/16 via {h1}"));
    outside.ip(&format!("route add 192.0.2.0/24 via {h1}"));
    f.hosts[0].ip("link add other type veth peer name far");
    f.hosts[0].ip("addr add 192.0.2.1/24 dev other");
    let far = Host::new("far");
    f.hosts[0].ip(&format!("link set far netns {}", far.netns()));
    f.hosts[0].ip("link set other up");
    far.ip("addr add 192.0.2.2/24 dev far");
    far.ip("link set far up");
    far.ip("route add default via 192.0.2.1");
    let there = listen(&far.space(), "192.0.2.2:80".parse().expect("address"));
    assert!(dial_at(&f.hosts[0].space(), there.local_addr().expect("address")).is_ok());
    assert!(dial_at(&outside.space(), there.local_addr().expect("address")).is_err());
    for to in ["169.254.64.2".to_owned(), red[0].ipv4.to_string()] {
        let (ok, _) = sh(&outside.space(), &format!("ping -c1 -W1 {to}"));
        assert!(!ok, "{to} answered the world");
    }
    drop(there);
    f.hosts[0].ip("link del other");
    drop(far);

    // An open connection outlives the agent; meddling is repaired.
    let (mut client, mut server) = talk_at(&red[0].space, &world);
    f.agents[own].kill9();
    speak(&mut client, &mut server);
    f.agents[own].restart();
    for _ in 0..12 {
        std::thread::sleep(Duration::from_millis(500));
        speak(&mut client, &mut server);
    }
    let links = f.hosts[own].ip("-o link");
    let pairs: Vec<_> = links
        .split_whitespace()
        .filter(|word| word.starts_with("berth"))
        .collect();
    let pair = pairs[0].split('@').next().expect("name");
    for meddle in [
        format!("ip link del {pair}"),
        format!("ip addr flush dev {pair}"),
        format!("ip link set {pair} down"),
        "nft flush ruleset".to_owned(),
        "for f in /proc/sys/net/ipv4/conf/*/forwarding; do echo 0 >$f; done".to_owned(),
    ] {
        let (ok, text) = sh(&f.hosts[own].space(), &meddle);
        assert!(ok, "{meddle}: {text}");
        let on_this = |all: &[Inside]| all.iter().position(|c| c.node == red[0].node).expect("one");
        let mended = eventually(Duration::from_secs(40), || {
            let both = seen(&red[0], &world).is_some() && seen(&blue[on_this(&blue)], &world).is_some();
            both.then_some(())
        });
        assert!(
            mended.is_some(),
            "{meddle}\n{}\n{}",
            state(&f.hosts[own]),
            f.agents[own].log()
        );
    }

    // With the last container the host is as it was.
    for tenant in ["red", "blue"] {
        f.brain.berth(&["--tenant", tenant, "service", "rm", "web"]);
    }
    let after = eventually(Duration::from_secs(60), || {
        let now: Vec<_> = f.hosts.iter().map(state).collect();
        (now == before).then_some(())
    });
    let now = state(&f.hosts[own]);
    assert!(after.is_some(), "{}\n{now}\n{}", before[own], f.agents[own].log());
    assert!(all(&f.brain).is_empty());
}
