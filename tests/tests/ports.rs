//! Published ports, with everything there is of berth: the world reaches services at their nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use berth_agent::network::Namespace;
use berth_tests::answer::{answers, asked, asked_udp, serve, serve_udp};
use berth_tests::fleet::{Fleet, Inside, all, all_of};
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::overlay::sh;
use berth_tests::process::eventually;

struct World {
    f: Fleet,
    outside: Host,
}

impl World {
    fn new() -> Self {
        let f = Fleet::new(2);
        let outside = Host::new("world");
        f.lan.attach(&outside, "eth0", 200);
        Self { f, outside }
    }

    fn at(&self, last: u8, port: u16) -> SocketAddr {
        SocketAddr::new(self.f.lan.address(last).parse().expect("address"), port)
    }

    /// Waits until an address is answered by exactly these.
    fn answered_by(&self, from: &Namespace, at: SocketAddr, want: &[&str]) -> BTreeMap<String, String> {
        let want: BTreeSet<String> = want.iter().map(|name| (*name).to_owned()).collect();
        let found = eventually(Duration::from_secs(30), || {
            let found = answers(from, at);
            (found.keys().cloned().collect::<BTreeSet<_>>() == want).then_some(found)
        });
        found.unwrap_or_else(|| {
            let rules = |n: usize| sh(&self.f.hosts[n].space(), "nft list table inet berth_out").1;
            panic!(
                "{at}: {want:?} wanted, {:?} answered\n{}\n{}\n{}",
                answers(from, at),
                rules(0),
                rules(1),
                self.f.agents[0].log()
            )
        })
    }
}

#[test]
fn a_published_service_answers_at_every_node_whoever_asks_and_goes_on_without_the_brain() {
    let mut w = World::new();
    let world = w.outside.space();
    let ports = ["-p", "8080:80", "-p", "5353:53/udp", "-p", "7000-7002:8000-8002"];
    w.f.brain.run_sleepers_spread("web", 2, &ports);
    w.f.brain.wait_running(2, 90);
    let now = all(&w.f.brain);
    let (a, b) = (&now["web.1"], &now["web.2"]);
    assert_ne!(a.node, b.node);
    for (name, container) in &now {
        serve(&container.space, 80, name);
        serve(&container.space, 8001, name);
        serve_udp(&container.space, 53, name);
    }
    let last = |inside: &Inside| 10 + inside.node[1..].parse::<u8>().expect("number");
    let both = ["web.1", "web.2"];
    // From outside, at each node; a replica on that node sees the client.
    for (here, there) in [("web.1", "web.2"), ("web.2", "web.1")] {
        let own = last(&now[here]);
        let found = w.answered_by(&world, w.at(own, 8080), &both);
        assert_eq!(found[here], w.f.lan.address(200), "{found:?}");
        assert_eq!(found[there], w.f.lan.address(own), "{found:?}");
        w.answered_by(&world, w.at(own, 7001), &both);
        let heard: BTreeSet<_> = (0..24)
            .filter_map(|_| asked_udp(&world, w.at(own, 5353)))
            .collect();
        assert_eq!(heard.len(), 2, "{heard:?}");
    }
    assert_eq!(
        asked(&world, w.at(11, 80)),
        None,
        "what is not published is not open"
    );
    assert_eq!(asked(&world, w.at(11, 7003)), None);
    // From the nodes themselves, by whichever address; at 127.0.0.1 the replica here answers.
    let h1 = w.f.hosts[0].space();
    for at in [w.at(11, 8080), w.at(12, 8080)] {
        w.answered_by(&h1, at, &both);
    }
    let here = now.iter().find(|(_, c)| c.node == "h1").expect("one").0;
    let localhost = SocketAddr::new([127, 0, 0, 1].into(), 8080);
    w.answered_by(&h1, localhost, &[here]);
    // From containers: of the service itself, and of another tenant; still nothing else of the host.
    w.f.brain.berth(&["tenant", "create", "blue"]);
    w.f.brain.load_example_for("blue");
    w.f.brain.run_sleepers("other", 1, &["--tenant", "blue"]);
    let blue = eventually(Duration::from_secs(60), || {
        all_of(&w.f.brain, "blue").into_values().next()
    });
    let blue = blue.expect("runs");
    for from in [a, &blue] {
        for node in [11, 12] {
            w.answered_by(&from.space, w.at(node, 8080), &both);
            assert_eq!(asked(&from.space, w.at(node, 80)), None);
        }
    }

    // Ports belong to one service.
    let taken = w.f.brain.try_berth(&[
        "--tenant",
        "blue",
        "run",
        "example:1",
        "--name",
        "thief",
        "-d",
        "-p",
        "8000-8100:80-180",
    ]);
    let said = String::from_utf8_lossy(&taken.stderr).into_owned();
    assert!(
        !taken.status.success() && said.contains("8080/tcp is published by another tenant's service"),
        "{said}"
    );
    let listed = w.f.brain.berth(&["service", "ls"]);
    assert!(
        listed.contains("8080:80/tcp, 5353:53/udp, 7000-7002:8000-8002/tcp"),
        "{listed}"
    );

    // Fewer replicas: whoever is left answers everywhere, also with everything restarted and no brain.
    w.f.brain.berth(&["service", "scale", "web", "1"]);
    let gone = last(b);
    w.answered_by(&world, w.at(gone, 8080), &["web.1"]);
    std::thread::sleep(Duration::from_secs(1));
    w.f.brain.kill9();
    w.f.agents.iter_mut().for_each(|agent| agent.kill9());
    for node in [11, 12] {
        w.answered_by(&world, w.at(node, 8080), &["web.1"]);
    }
    w.f.agents.iter_mut().for_each(|agent| agent.restart());
    std::thread::sleep(Duration::from_secs(6));
    for node in [11, 12] {
        w.answered_by(&world, w.at(node, 8080), &["web.1"]);
    }
    w.f.brain.restart();
    for node in ["h1", "h2"] {
        w.f.brain.wait_node(node, "ready", 30);
    }
    w.answered_by(&world, w.at(gone, 8080), &["web.1"]);

    // Another port instead, without touching the container; then nothing.
    let pid = w.f.brain.running()[0]["observed"]["pid"].clone();
    w.f.brain.berth(&[
        "service",
        "update",
        "web",
        "--publish-rm",
        "8080",
        "-p",
        "8088:80",
        "-d",
    ]);
    w.answered_by(&world, w.at(gone, 8088), &["web.1"]);
    w.answered_by(&world, w.at(gone, 8080), &[]);
    assert_eq!(
        w.f.brain.running()[0]["observed"]["pid"],
        pid,
        "it was not restarted"
    );
    for (tenant, service) in [("default", "web"), ("blue", "other")] {
        w.f.brain.berth(&["--tenant", tenant, "service", "rm", service]);
    }
    let left = || -> String {
        w.f.hosts
            .iter()
            .map(|host| sh(&host.space(), "nft list ruleset; ss -lntH").1)
            .collect()
    };
    let clean = eventually(Duration::from_secs(60), || left().is_empty().then_some(()));
    assert!(clean.is_some(), "{}", left());
}

#[test]
fn a_port_at_its_replicas_nodes_shows_the_client_and_a_hosts_own_programs_keep_theirs() {
    let w = World::new();
    let world = w.outside.space();
    serve(&w.f.hosts[0].space(), 2222, "sshd");
    w.f.brain
        .run_sleepers("near", 1, &["-p", "9090:80,mode=node", "-p", "2222:80"]);
    w.f.brain.wait_running(1, 90);
    let now = all(&w.f.brain);
    let near = &now["near.1"];
    serve(&near.space, 80, "near.1");
    let here = 10 + near.node[1..].parse::<u8>().expect("number");
    let there = 23 - here;
    let found = w.answered_by(&world, w.at(here, 9090), &["near.1"]);
    assert_eq!(found["near.1"], w.f.lan.address(200));
    w.answered_by(&world, w.at(there, 9090), &[]);
    // Who listened first goes on.
    w.answered_by(&world, w.at(11, 2222), &["sshd"]);
    // But nobody passes requests on to it: where the replica's own node can't have the port, there is no answer elsewhere.
    let elsewhere: &[&str] = if here == 11 { &[] } else { &["near.1"] };
    w.answered_by(&world, w.at(12, 2222), elsewhere);
    let told = eventually(Duration::from_secs(60), || {
        let node = w.f.brain.json(&["node", "inspect", "h1"])["facts"]["warnings"].to_string();
        node.contains("port 2222/tcp of this host can't be published for service near")
            .then_some(())
    });
    assert!(told.is_some(), "{}", w.f.brain.berth(&["node", "inspect", "h1"]));
    // And whoever comes later is told that it is taken.
    let late = w.f.hosts[0].space().within(|| TcpListener::bind("0.0.0.0:9090"));
    assert_eq!(
        late.expect("namespace").expect_err("taken").kind(),
        std::io::ErrorKind::AddrInUse
    );

    // A client with an address that the network also has.
    let subnet = w.f.lan.address(0);
    w.outside.ip("addr add 10.64.0.77/32 dev eth0");
    w.outside
        .ip(&format!("route replace {subnet}/24 dev eth0 src 10.64.0.77"));
    w.f.hosts[usize::from(here - 11)].ip("route add 10.64.0.77/32 dev eth0");
    w.answered_by(&world, w.at(here, 9090), &["near.1"]);
}
