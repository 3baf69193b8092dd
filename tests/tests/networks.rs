//! Containers' networks with everything there is of berth: brain, agents, containerd, on several hosts.

use std::net::{IpAddr, TcpStream};
use std::time::Duration;

use berth_agent::network::Namespace;
use berth_tests::fleet::{Fleet, Inside, all, all_of};
use berth_tests::operator::Operator as _;
use berth_tests::overlay::{dial, sh, speak, talk};
use berth_tests::process::eventually;

/// Networks' entries spread a moment after containers run.
fn reaches(from: &Inside, to: &Inside, address: IpAddr) -> bool {
    let found = eventually(Duration::from_secs(60), || {
        let listener = to
            .space
            .within(move || std::net::TcpListener::bind((address, 80)));
        let _listener = listener.expect("namespace").expect("listens");
        dial(&from.space, address).ok().map(drop)
    });
    found.is_some()
}

fn refused(from: &Inside, address: IpAddr) -> bool {
    dial(&from.space, address).is_err()
}

#[test]
fn containers_of_all_hosts_reach_one_another_and_keep_their_addresses_whatever_is_restarted() {
    let mut f = Fleet::new(2);
    f.brain.run_sleepers_spread("web", 4, &[]);
    f.brain.wait_running(4, 90);
    let before = all(&f.brain);
    let nodes: std::collections::BTreeSet<_> = before.values().map(|c| c.node.as_str()).collect();
    assert_eq!(nodes.len(), 2, "replicas are on both hosts");
    for (from, a) in &before {
        for (to, b) in before.iter().filter(|(to, _)| *to != from) {
            for address in [b.ipv4, b.ipv6] {
                assert!(
                    reaches(a, b, address),
                    "{from} to {to} at {address}\n{}",
                    f.agents[0].log()
                );
            }
        }
    }
    // Whole packets pass: 1500 less what VXLAN puts around.
    let (a, b) = (
        &before["web.1"],
        before
            .values()
            .find(|c| c.node != before["web.1"].node)
            .expect("elsewhere"),
    );
    let (ok, text) = sh(&a.space, &format!("ping -c5 -i0.3 -W5 -M do -s 1422 {}", b.ipv4));
    assert!(ok, "{text}");
    let (ok, text) = sh(&a.space, &format!("ping -c1 -W5 -M do -s 1423 {}", b.ipv4));
    assert!(!ok && text.contains("1450"), "{text}");

    // An open connection outlives the brain and both agents.
    let (mut client, mut server): (TcpStream, TcpStream) = talk(&a.space, &b.space, b.ipv4);
    f.brain.kill9();
    f.agents.iter_mut().for_each(|agent| agent.kill9());
    speak(&mut client, &mut server);
    f.agents.iter_mut().for_each(|agent| agent.restart());
    // Each agent looks at its networks at once and every five seconds.
    for _ in 0..14 {
        std::thread::sleep(Duration::from_millis(500));
        speak(&mut client, &mut server);
    }
    assert!(reaches(a, b, b.ipv6), "without a brain\n{}", f.agents[0].log());
    f.brain.restart();
    for node in ["h1", "h2"] {
        f.brain.wait_node(node, "ready", 30);
    }
    speak(&mut client, &mut server);

    // A restarted container has the same addresses, here and to others.
    f.brain.berth(&["restart", "web"]);
    let after = eventually(Duration::from_secs(90), || {
        let now = all(&f.brain);
        let anew = |name: &String| {
            let (old, new) = (&before[name], now.get(name)?);
            (!old.space.is_same(&new.space).ok()?).then_some(())
        };
        (now.len() == 4 && before.keys().all(|name| anew(name).is_some())).then_some(now)
    });
    let after = after.unwrap_or_else(|| panic!("{}", f.brain.berth(&["ps"])));
    for (name, old) in &before {
        let new = &after[name];
        assert_eq!(
            (new.ipv4, new.ipv6, &new.mac),
            (old.ipv4, old.ipv6, &old.mac),
            "{name}"
        );
    }
    let (a, b) = (
        &after["web.1"],
        after
            .values()
            .find(|c| c.node != after["web.1"].node)
            .expect("elsewhere"),
    );
    assert!(reaches(a, b, b.ipv4) && reaches(b, a, a.ipv6));

    // Nothing is left of what nobody is on, also where the agent that made it was killed meanwhile.
    f.brain.berth(&["service", "rm", "web"]);
    let gone = eventually(Duration::from_secs(60), || {
        let kept = |n: usize| {
            std::fs::read_dir(f.dir.path().join(format!("h{n}/run/networks"))).map_or(0, Iterator::count)
        };
        let tables = |n: usize| {
            f.hosts[n - 1]
                .command("nft")
                .args(["list", "tables"])
                .output()
                .expect("nft")
                .stdout
        };
        (1..=2)
            .all(|n| kept(n) == 0 && tables(n).is_empty())
            .then_some(())
    });
    assert!(gone.is_some(), "{}", f.agents[0].log());
    // Nor of an agent that was killed between the end of its networks and that of its table.
    f.agents[0].kill9();
    f.hosts[0].nft("add table inet berth");
    f.agents[0].restart();
    let tables = || {
        f.hosts[0]
            .command("nft")
            .args(["list", "tables"])
            .output()
            .expect("nft")
            .stdout
    };
    let gone = eventually(Duration::from_secs(30), || tables().is_empty().then_some(()));
    assert!(gone.is_some(), "{}", f.agents[0].log());
    f.brain.berth(&["network", "rm", "default"]);
    assert!(f.brain.items(&["network", "ls"]).is_empty());
}

#[test]
fn r6_tenants_with_the_same_addresses_do_not_reach_each_other() {
    let f = Fleet::new(2);
    for tenant in ["red", "blue"] {
        f.brain.berth(&["tenant", "create", tenant]);
        f.brain.berth(&[
            "--tenant",
            tenant,
            "network",
            "create",
            "back",
            "--cidr",
            "10.20.0.0/16",
        ]);
    }
    let of = |tenant: &str| all_of(&f.brain, tenant);
    for tenant in ["red", "blue"] {
        f.brain.load_example_for(tenant);
        let mut args = vec![
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
        args.extend([
            "--network",
            "back",
            "--network",
            "default",
            "--memory",
            "16MiB",
            "--disk",
            "8MiB",
        ]);
        args.extend(["--", "sleep", "1000"]);
        f.brain.berth(&args);
        let up = eventually(Duration::from_secs(90), || (of(tenant).len() == 2).then_some(()));
        assert!(up.is_some(), "{}", f.brain.berth(&["--tenant", tenant, "ps"]));
    }
    let (red, blue) = (of("red"), of("blue"));
    // The first number of either network: the same address twice.
    let twins: Vec<_> = red
        .values()
        .filter(|r| blue.values().any(|b| b.ipv4 == r.ipv4))
        .collect();
    assert_eq!(twins.len(), 2, "both tenants chose the same addresses");
    for (mine, others) in [(&red, &blue), (&blue, &red)] {
        let (a, b) = (&mine["web.1"], &mine["web.2"]);
        assert!(reaches(a, b, b.ipv4) && reaches(a, b, b.ipv6));
        // Whoever answers at an address is of the own tenant; where only the other has it, nobody does.
        for other in others.values() {
            let listening = other.space.within({
                let address = other.ipv4;
                move || std::net::TcpListener::bind((address, 80))
            });
            let _listening = listening.expect("namespace").expect("listens");
            assert!(refused(a, other.ipv4), "{} answered", other.ipv4);
            assert!(refused(a, other.ipv6), "{} answered", other.ipv6);
        }
    }
    // Two networks, two links; the second has no way to everywhere.
    let (ok, links) = sh(&red["web.1"].space, "ip -o -4 addr show; ip route");
    assert!(
        ok && links.contains("eth1") && links.matches("default via").count() == 1,
        "{links}"
    );
    let shown = f.brain.json(&["--tenant", "red", "network", "inspect", "back"]);
    assert_eq!(shown["containers"].as_array().map(Vec::len), Some(2), "{shown}");
    let problem = f.brain.try_berth(&["--tenant", "red", "network", "rm", "back"]);
    let said = String::from_utf8_lossy(&problem.stderr).into_owned();
    assert!(
        !problem.status.success() && said.contains("service web is on network back"),
        "{said}"
    );
}

#[test]
fn a_meddled_network_is_right_again_within_seconds_and_a_moved_containers_address_goes_with_it() {
    let f = Fleet::new(3);
    f.brain.run_sleepers_spread("web", 3, &[]);
    f.brain.wait_running(3, 90);
    let before = all(&f.brain);
    let (a, b) = (&before["web.1"], &before["web.2"]);
    assert!(a.node != b.node && reaches(a, b, b.ipv4));
    let host = |inside: &Inside| inside.node[1..].parse::<usize>().expect("number");
    let kept = f.dir.path().join(format!("{}/run/networks", a.node));
    let network = || {
        let found = std::fs::read_dir(&kept).ok()?.flatten().next()?;
        Namespace::open(&found.path()).ok()
    };
    let flush = "nft flush ruleset";
    for (what, meddle) in [
        ("a deleted tunnel", "ip link del vx0"),
        ("a deleted bridge", "ip link del br0"),
        (
            "deleted ends",
            "for l in $(ip -o link | grep -o 'ep[0-9a-f]*'); do ip link del $l; done",
        ),
        (
            "flushed entries",
            "ip neigh flush dev br0 nud permanent; bridge fdb flush dev vx0 2>/dev/null || ip link set vx0 down",
        ),
        ("a flushed ruleset", flush),
    ] {
        let space = network().expect("a network");
        let (done, text) = sh(&space, meddle);
        assert!(done, "{what} could not be tried: {text}");
        let mended = eventually(Duration::from_secs(40), || {
            let (_, rules) = sh(&network()?, "nft list tables");
            let right = rules.contains("bridge berth") && rules.contains("inet berth");
            (right && dial_up(a, b) && dial_up(b, a)).then_some(())
        });
        assert!(
            mended.is_some(),
            "{what}: {text}\n{}",
            f.agents[host(a) - 1].log()
        );
    }
    // The host's own table, flushed by somebody else's firewall.
    let own = &f.hosts[host(a) - 1];
    let tables = || {
        String::from_utf8_lossy(
            &own.command("nft")
                .args(["list", "tables"])
                .output()
                .expect("nft")
                .stdout,
        )
        .into_owned()
    };
    assert!(tables().contains("inet berth"));
    own.nft("flush ruleset");
    let back = eventually(Duration::from_secs(40), || {
        tables().contains("inet berth").then_some(())
    });
    assert!(back.is_some(), "{}", f.agents[host(a) - 1].log());

    // A lost host's container comes back elsewhere with its address.
    let lost = host(b);
    f.hosts[lost - 1].ip("link set eth0 down");
    f.brain.wait_node(&b.node, "lost", 20);
    let moved = eventually(Duration::from_secs(60), || {
        let now = all(&f.brain);
        now.into_iter()
            .find(|(name, c)| name == "web.2" && c.node != b.node)
            .map(|(_, c)| c)
    });
    let moved = moved.unwrap_or_else(|| panic!("{}", f.brain.berth(&["ps"])));
    assert_eq!((moved.ipv4, moved.ipv6, &moved.mac), (b.ipv4, b.ipv6, &b.mac));
    assert!(reaches(a, &moved, moved.ipv4), "{}", f.agents[host(a) - 1].log());
}

fn dial_up(from: &Inside, to: &Inside) -> bool {
    let address = to.ipv4;
    let listener = to
        .space
        .within(move || std::net::TcpListener::bind((address, 80)));
    let Ok(Ok(_listener)) = listener else { return false };
    dial(&from.space, address).is_ok()
}
