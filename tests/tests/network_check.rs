//! `berth network check`: what is wrong between hosts is found, named with its direction and its cure, and nothing is left behind.

use std::time::Duration;

use berth_tests::fleet::Fleet;
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::overlay::sh;
use berth_tests::process::eventually;
use serde_json::Value;

/// A check of these nodes (none: all), whatever it finds.
fn check(fleet: &Fleet, nodes: &[&str]) -> (Option<i32>, Value) {
    let mut args = vec!["network", "check", "-o", "json"];
    args.extend(nodes);
    let out = fleet.brain.try_berth(&args);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let found = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&out.stderr)));
    (out.status.code(), found)
}

/// The only finding between two nodes, and all that was measured there.
fn finding(fleet: &Fleet, nodes: [&str; 2]) -> (String, Value) {
    let (code, found) = check(fleet, &nodes);
    assert_eq!(code, Some(4), "{found:#}");
    let findings = found["pairs"][0]["findings"].as_array().expect("findings");
    assert_eq!(findings.len(), 1, "{found:#}");
    assert!(findings[0]["cure"].is_string(), "{found:#}");
    let told = findings[0]["problem"].as_str().expect("words").to_owned();
    (told, found["pairs"][0].clone())
}

fn pings(host: &Host, range: &str) {
    let set = format!("echo '{range}' > /proc/sys/net/ipv4/ping_group_range");
    assert!(sh(&host.space(), &set).0);
}

/// What a host has of networks.
fn state(host: &Host) -> String {
    sh(&host.space(), "ip -o link | cut -d: -f2; nft list tables").1
}

#[test]
fn what_is_wrong_between_hosts_is_found_and_named() {
    let fleet = Fleet::new(3);
    let before: Vec<_> = fleet.hosts.iter().map(state).collect();
    let [h1, h2, h3] = fleet.hosts.as_slice() else {
        panic!("three");
    };

    // All is well; hosts that let nobody send pings are checked, too.
    pings(h1, "1 0");
    let (code, found) = check(&fleet, &[]);
    assert_eq!(code, Some(0), "{found:#}");
    let pairs = found["pairs"].as_array().expect("pairs");
    assert_eq!(pairs.len(), 3, "{found:#}");
    for pair in pairs {
        assert_eq!(pair["path"], "direct");
        assert_eq!(
            (&pair["mtu"], &pair["expected_mtu"]),
            (&1450.into(), &1450.into()),
            "{pair:#}"
        );
        assert_eq!(pair["loss_percent"], 0);
        assert!(
            pair["latency_us"]
                .as_u64()
                .is_some_and(|us| (1..1_000_000).contains(&us)),
            "{pair:#}"
        );
    }
    for host in &fleet.hosts {
        pings(host, "0 2147483647");
    }
    let people = fleet.brain.berth(&["network", "check", "h1", "h2"]);
    assert!(
        people.contains("direct") && people.contains("ok") && people.contains("1450"),
        "{people}"
    );

    // Packets of networks in one direction, in both, and of all kinds.
    let drop = |host: &Host, rule: &str| {
        host.nft(&format!(
            "add table inet foe\ndelete table inet foe\ntable inet foe {{ chain c {{ type filter hook prerouting priority -300; {rule}; }}; }}"
        ));
    };
    let mend = |host: &Host| host.nft("delete table inet foe");
    let (at1, at2) = (fleet.lan.address(11), fleet.lan.address(12));
    drop(h2, &format!("ip saddr {at1} udp dport 4789 drop"));
    let (told, _) = finding(&fleet, ["h1", "h2"]);
    assert!(
        told.contains("from h1 don't reach h2") && told.contains("UDP port 4789"),
        "{told}"
    );
    assert!(told.contains("pings from host to host do"), "{told}");
    drop(h1, &format!("ip saddr {at2} udp dport 4789 drop"));
    let (told, _) = finding(&fleet, ["h1", "h2"]);
    assert!(told.contains("in neither direction"), "{told}");
    drop(h1, &format!("ip saddr {at2} drop"));
    let (told, _) = finding(&fleet, ["h1", "h2"]);
    assert!(
        told.contains("not even pings") && told.contains(&at1) && told.contains(&at2),
        "{told}"
    );
    mend(h1);
    mend(h2);

    // A card that makes wrong checksums: what arrives of h1's datagrams and connections is thrown away, pings are not. The inner packet's
    // protocol is 39 bytes behind the outer UDP header's begin.
    drop(
        h2,
        &format!("ip saddr {at1} udp dport 4789 @th,312,8 {{ 6, 17 }} drop"),
    );
    let (told, _) = finding(&fleet, ["h1", "h2"]);
    assert!(
        told.contains("pings come through") && told.contains("h1's network card"),
        "{told}"
    );
    mend(h2);

    // A way that carries less than the links.
    fleet.lan.narrow(h3, "eth0", 1400);
    let (told, pair) = finding(&fleet, ["h1", "h3"]);
    assert!(told.contains("1400 bytes at most"), "{told}");
    // A bridge lets four bytes more through, for a VLAN's tag.
    let mtu = pair["mtu"].as_u64();
    assert!(mtu.is_some_and(|mtu| (1350..=1354).contains(&mtu)), "{pair:#}");
    fleet.lan.narrow(h3, "eth0", 1500);

    // One of eight packets is lost.
    drop(h3, "udp dport 4789 numgen random mod 8 < 1 drop");
    let (told, _) = finding(&fleet, ["h2", "h3"]);
    assert!(told.contains("% of pings get no answer"), "{told}");
    mend(h3);

    // Nothing is left of it.
    let clean = eventually(Duration::from_secs(10), || {
        let after: Vec<_> = fleet.hosts.iter().map(state).collect();
        (after == before).then_some(())
    });
    assert!(
        clean.is_some(),
        "{before:?}\n{:?}",
        fleet.hosts.iter().map(state).collect::<Vec<_>>()
    );
}

#[test]
fn a_node_that_is_away_is_named_and_others_are_checked_beside_containers() {
    let mut fleet = Fleet::new(3);
    let brain = &fleet.brain;
    brain.run_sleepers_spread("web", 2, &[]);
    brain.wait_running(2, 30);
    // Only one at a time on a node.
    let (one, two) = std::thread::scope(|scope| {
        let first = scope.spawn(|| check(&fleet, &["h1", "h2"]));
        std::thread::sleep(Duration::from_millis(700));
        let second = scope.spawn(|| check(&fleet, &["h1", "h2"]));
        (first.join().expect("first"), second.join().expect("second"))
    });
    assert_eq!(one.0, Some(0), "{:#}", one.1);
    assert_eq!(two.0, Some(4), "{:#}", two.1);
    assert!(two.1.to_string().contains("another check"), "{:#}", two.1);

    fleet.agents[2].kill9();
    let (code, found) = check(&fleet, &[]);
    assert_eq!(code, Some(4), "{found:#}");
    assert_eq!(found["absent"][0]["node"], "h3", "{found:#}");
    assert!(
        found["absent"][0]["problem"]["detail"]
            .as_str()
            .is_some_and(|text| text.contains("h3"))
    );
    assert_eq!(found["pairs"].as_array().map(Vec::len), Some(1), "{found:#}");
    assert_eq!(
        found["pairs"][0]["findings"],
        Value::Array(Vec::new()),
        "{found:#}"
    );

    // Bad words are refused before anything is done.
    for (args, said) in [(vec!["h1", "nobody"], "nobody"), (vec!["h1"], "one node alone")] {
        let mut all = vec!["network", "check"];
        all.extend(args);
        let out = fleet.brain.try_berth(&all);
        assert!(!out.status.success());
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(text.contains(said), "{text}");
    }
}

/// A packet's way, whatever becomes of it: the last place, and all.
fn trace(fleet: &Fleet, args: &[&str]) -> (Option<i32>, Value, Value) {
    let mut all = vec!["network", "trace", "-o", "json"];
    all.extend(args);
    let out = fleet.brain.try_berth(&all);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let found: Value = serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("{e}: {text}\n{}", String::from_utf8_lossy(&out.stderr)));
    let last = found["hops"].as_array().and_then(|hops| hops.last()).cloned();
    (out.status.code(), last.expect("a place"), found)
}

#[test]
fn a_packets_way_is_explained_and_where_it_ends() {
    let mut fleet = Fleet::new(2);
    let brain = &fleet.brain;
    brain.berth(&["network", "create", "lonely"]);
    brain.run_sleepers("db", 1, &["--ingress-from", "web", "-p", "6000:80"]);
    brain.run_sleepers_spread("web", 2, &[]);
    brain.run_sleepers("shop", 1, &[]);
    brain.run_sleepers("hermit", 1, &["--network", "lonely"]);
    let running = brain.wait_running(5, 30);
    let node_of = |name: &str| {
        let found = running.iter().find(|c| c["name"] == name).expect("runs");
        found["node_name"].as_str().expect("node").to_owned()
    };
    // Of the two replicas, which spread, one is not where the database is.
    let there = node_of("db.1");
    let far = if node_of("web.1") == there {
        "web.2"
    } else {
        "web.1"
    };
    let near = if far == "web.1" { "web.2" } else { "web.1" };
    assert!(node_of(far) != there && node_of(near) == there, "{running:#?}");

    let settled = eventually(Duration::from_secs(10), || {
        let (code, ..) = trace(&fleet, &[far, "db"]);
        (code == Some(0)).then_some(())
    });
    assert!(settled.is_some(), "{:#}", trace(&fleet, &[far, "db"]).2);
    let places = |found: &Value| -> Vec<String> {
        let hops = found["hops"].as_array().expect("hops").iter();
        hops.map(|hop| hop["place"].as_str().expect("place").to_owned())
            .collect()
    };
    let (_, _, found) = trace(&fleet, &[far, "db"]);
    let whole = [
        "container",
        "service address",
        "bridge",
        "tunnel",
        "host",
        "wire",
        "host",
        "tunnel",
        "bridge",
        "ingress",
        "container",
    ];
    assert_eq!(places(&found), whole, "{found:#}");
    assert_eq!(found["hops"][0]["node"], node_of(far).as_str());
    assert_eq!(found["hops"][10]["node"], there.as_str());
    let (code, _, here) = trace(&fleet, &[near, "db.1"]);
    assert_eq!(
        (code, places(&here)),
        (
            Some(0),
            ["container", "bridge", "bridge", "ingress", "container"]
                .map(str::to_owned)
                .to_vec()
        )
    );

    // Who is not let in, and who has no network in common.
    let (code, last, _) = trace(&fleet, &["shop.1", "db"]);
    assert_eq!((code, &last["place"]), (Some(4), &"ingress".into()), "{last:#}");
    assert!(
        last["text"]
            .as_str()
            .is_some_and(|text| text.contains("it lets in web")),
        "{last:#}"
    );
    let (code, last, _) = trace(&fleet, &["hermit.1", "db"]);
    assert_eq!((code, &last["place"]), (Some(4), &"network".into()), "{last:#}");
    // A tenant sees no host's address, and may check no hosts but its own.
    let token = brain.json(&["tenant", "token", "default"])["token"]
        .as_str()
        .expect("token")
        .to_owned();
    let as_tenant = |args: &[&str]| {
        brain
            .berth_command(args)
            .env("BERTH_TOKEN", &token)
            .output()
            .expect("runs")
    };
    let out = as_tenant(&["network", "trace", far, "db"]);
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(
        out.status.success() && text.contains(" to h") && text.contains(far),
        "{text}"
    );
    let addresses = [11, 12].map(|last| fleet.lan.address(last));
    assert!(!addresses.iter().any(|address| text.contains(address)), "{text}");
    assert!(
        found.to_string().contains(&addresses[0]),
        "its administrator does: {found:#}"
    );
    let out = as_tenant(&["network", "check"]);
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success() && text.contains("there is no node that you may see"),
        "{text}"
    );
    brain.berth(&["tenant", "create", "other"]);
    let refused = brain.try_berth(&["--tenant", "other", "network", "trace", far, "db"]);
    assert_eq!(refused.status.code(), Some(3), "another tenant's are not there");

    // Somebody removes the entry that leads there: told until the agent has mended it.
    let host = &fleet.hosts[if node_of(far) == "h1" { 0 } else { 1 }];
    let agent = &fleet.agents[if node_of(far) == "h1" { 0 } else { 1 }];
    let seen = eventually(Duration::from_secs(20), || {
        let folder = agent.run_dir().join("networks");
        let meddle = format!(
            "for n in {}/*; do nsenter --net=$n sh -c 'bridge fdb show dev vx0 | grep dst | while read mac rest; do bridge fdb del $mac dev vx0 self; done'; done",
            folder.display()
        );
        assert!(sh(&host.space(), &meddle).0);
        let (code, last, _) = trace(&fleet, &[far, "db.1"]);
        (code == Some(4)).then_some(last)
    });
    let last = seen.expect("the missing entry is told");
    assert_eq!(last["place"], "tunnel", "{last:#}");
    assert!(last["cure"].is_string(), "{last:#}");
    let mended = eventually(Duration::from_secs(15), || {
        (trace(&fleet, &[far, "db.1"]).0 == Some(0)).then_some(())
    });
    assert!(mended.is_some(), "{:#}", trace(&fleet, &[far, "db.1"]).2);

    // A node that is away can't say.
    let at = usize::from(there != "h1");
    fleet.agents[at].kill9();
    let (code, last, _) = trace(&fleet, &[far, "db.1"]);
    assert_eq!((code, &last["verdict"]), (Some(4), &"unknown".into()), "{last:#}");
    assert!(
        last["text"].as_str().is_some_and(|text| text.contains(&there)),
        "{last:#}"
    );
}
