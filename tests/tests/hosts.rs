//! Several hosts: a lost one, a returning one, drain, and a private one behind NAT.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use berth_tests::cluster::Agent;
use berth_tests::containerd::Version;
use berth_tests::fleet::Fleet;
use berth_tests::host::{Host, Lan};
use berth_tests::operator::Operator as _;
use berth_tests::process::{alive, eventually};

fn node_of(container: &serde_json::Value) -> String {
    container["node_name"].as_str().unwrap_or("").to_owned()
}

#[test]
fn a_lost_nodes_containers_are_replaced_and_a_returning_node_stops_its_own() {
    let c = Fleet::new(2);
    c.brain.run_sleepers("web", 4, &[]);
    let before = c.brain.wait_running(4, 30);
    let on_h2: Vec<u32> = before
        .iter()
        .filter(|x| node_of(x) == "h2")
        .map(|x| x["observed"]["pid"].as_u64().expect("pid") as u32)
        .collect();
    assert!(!on_h2.is_empty(), "replicas spread over both nodes");
    c.hosts[1].ip("link set eth0 down");
    c.brain.wait_node("h2", "lost", 20);
    let replaced = eventually(Duration::from_secs(20), || {
        let running = c.brain.running();
        let on_h1 = running
            .iter()
            .filter(|x| node_of(x) == "h1" && x["stale"] != true)
            .count();
        (on_h1 == 4).then_some(())
    });
    assert!(
        replaced.is_some(),
        "{}\n{}",
        c.brain.berth(&["ps"]),
        c.brain.log()
    );
    assert!(
        on_h2.iter().all(|pid| alive(*pid)),
        "the cut-off node goes on by itself"
    );
    c.hosts[1].ip("link set eth0 up");
    c.brain.wait_node("h2", "ready", 40);
    let stopped = eventually(Duration::from_secs(30), || {
        on_h2.iter().all(|pid| !alive(*pid)).then_some(())
    });
    assert!(
        stopped.is_some(),
        "the returned node must stop what was replaced:\n{}",
        c.agents[1].log()
    );
    c.brain.wait_running(4, 20);
}

#[test]
fn drain_moves_replicas_one_by_one_and_never_below() {
    let c = Fleet::new(2);
    c.brain.run_sleepers("web", 4, &[]);
    c.brain.wait_running(4, 30);
    let mut drain = c.brain.berth_command(&["node", "drain", "h1"]);
    let mut child = drain
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("drain");
    let mut lowest = usize::MAX;
    let empty = eventually(Duration::from_secs(90), || {
        let running = c.brain.running();
        lowest = lowest.min(running.len());
        let left = c
            .brain
            .items(&["ps"])
            .iter()
            .filter(|x| node_of(x) == "h1")
            .count();
        (left == 0).then_some(())
    });
    assert!(empty.is_some(), "{}\n{}", c.brain.berth(&["ps"]), c.brain.log());
    assert!(lowest >= 4, "below four running: {lowest}");
    assert!(child.wait().expect("drain").success());
    c.brain.wait_running(4, 10);
    // Nothing comes back until the node is allowed again.
    c.brain.run_sleepers("more", 2, &[]);
    let running = c.brain.wait_running(6, 30);
    assert!(running.iter().all(|x| node_of(x) == "h2"));
    c.brain.berth(&["node", "uncordon", "h1"]);
    c.brain.run_sleepers("again", 2, &[]);
    let running = c.brain.wait_running(8, 30);
    assert!(running.iter().any(|x| node_of(x) == "h1"));
}

#[test]
fn a_private_node_behind_nat_does_everything_over_one_outbound_connection() {
    let c = Fleet::new(1);
    // A home router: masquerades outward and lets no new packet in.
    let router = Host::new("router");
    c.lan.attach(&router, "wan", 50);
    router.ip("addr add 192.168.7.1/24 dev lo");
    let home = Host::new("home");
    let inner = Lan::new();
    inner.attach(&router, "lan", 1);
    inner.attach(&home, "eth0", 2);
    home.ip(&format!("route add default via {}", inner.address(1)));
    router.forward();
    router.nft(
        "table ip nat {\n chain outward { type nat hook postrouting priority 100; oifname \"wan\" masquerade random; }\n \
         chain inward { type filter hook forward priority 0; policy drop; iifname \"lan\" accept; ct state established,related accept; }\n}\n",
    );
    c.brain.berth(&["tenant", "create", "acme"]);
    let token = c.brain.json(&["node", "token", "--private", "acme"])["token"]
        .as_str()
        .expect("token")
        .to_owned();
    let extra = format!("cgroup_parent = \"berth-{}-home.slice\"", std::process::id());
    let agent = Agent::join(
        &token,
        &c.dir.path().join("home"),
        "home",
        Some(&home),
        Version::System,
        &extra,
    );
    c.brain.wait_node("home", "ready", 20);

    // R6: only its tenant's containers use it.
    c.brain.run_sleepers("public", 6, &[]);
    let public = c.brain.wait_running(6, 40);
    assert!(
        public.iter().all(|x| node_of(x) == "h1"),
        "{}",
        c.brain.berth(&["ps"])
    );

    let archive = berth_tests::example_image().display().to_string();
    c.brain.berth(&[
        "--tenant",
        "acme",
        "image",
        "load",
        &archive,
        "--name",
        "example:1",
    ]);
    c.brain.berth(&["node", "cordon", "h1"]);
    c.brain.berth(&[
        "--tenant",
        "acme",
        "run",
        "example:1",
        "--name",
        "mine",
        "-d",
        "--memory",
        "16MiB",
        "--disk",
        "8MiB",
        "--",
        "sh",
        "-c",
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.1; done",
    ]);
    let running = eventually(Duration::from_secs(30), || {
        let items = c.brain.items(&["--tenant", "acme", "ps"]);
        items
            .iter()
            .find(|x| x["observed"]["phase"] == "running")
            .cloned()
    })
    .unwrap_or_else(|| panic!("{}\n{}", c.brain.berth(&["--tenant", "acme", "ps"]), agent.log()));
    assert_eq!(node_of(&running), "home");

    let out = c
        .brain
        .try_berth(&["--tenant", "acme", "exec", "mine.1", "echo", "through"]);
    assert_eq!(String::from_utf8_lossy(&out.stdout), "through\n", "{out:?}");

    // Nothing comes in, so the log travels over the connection that the node dialled.
    let mut follow = c
        .brain
        .berth_command(&["--tenant", "acme", "logs", "-f", "--tail", "1", "mine.1"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().expect("logs");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout"))
        .lines()
        .map_while(Result::ok);
    let mut number = move || -> u64 {
        lines
            .next()
            .and_then(|l| l.rsplit(' ').next()?.parse().ok())
            .expect("a line")
    };
    let mut before = number();
    let mut goes_on = |count: u32, when: &str| {
        for _ in 0..count {
            let next = number();
            assert_eq!(next, before + 1, "{when}: the log goes on without a gap");
            before = next;
        }
    };
    goes_on(20, "at first");
    let seen_address = || {
        let nodes = c.brain.items(&["node", "ls"]);
        let node = nodes.iter().find(|n| n["name"] == "home").expect("home");
        node["address"].as_str().expect("address").to_owned()
    };
    assert_eq!(
        seen_address(),
        c.lan.address(50),
        "the brain sees the router's address"
    );

    // The provider gives the router another address: what was open goes on over it (QUIC migration).
    router.ip(&format!("addr del {}/24 dev wan", c.lan.address(50)));
    router.ip(&format!("addr add {}/24 dev wan", c.lan.address(51)));
    goes_on(100, "after the address changed");
    let moved = eventually(Duration::from_secs(10), || {
        (seen_address() == c.lan.address(51)).then_some(())
    });
    assert!(moved.is_some(), "{}", c.brain.berth(&["node", "ls"]));
    let id = c
        .brain
        .items(&["node", "ls"])
        .into_iter()
        .find(|n| n["name"] == "home")
        .expect("home")["id"]
        .as_str()
        .expect("id")
        .to_owned();
    let log = c.brain.log();
    let ups = log
        .lines()
        .filter(|line| line.contains("link up") && line.contains(&id));
    assert_eq!(ups.count(), 1, "the link never broke:\n{log}");
    let _ = child.kill();
    let _ = child.wait();
}
