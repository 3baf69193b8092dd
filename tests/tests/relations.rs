//! What services have to do with each other, with everything there is of berth: links, who may come in, how much goes over the wire.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use berth_agent::network::Namespace;
use berth_tests::answer::{asked, asked_udp, serve, serve_udp};
use berth_tests::fleet::{Fleet, all};
use berth_tests::operator::Operator as _;
use berth_tests::overlay::{dial_at, sh};
use berth_tests::process::eventually;

#[test]
fn a_linked_service_begins_after_what_it_needs_and_finds_it_in_its_environment() {
    let f = Fleet::new(1);
    f.brain
        .run_sleepers("web", 1, &["--link", "my-db:5432", "-e", "MODE=live"]);
    let waits = eventually(Duration::from_secs(10), || {
        let shown = f.brain.berth(&["ps"]);
        shown.contains("waits for service my-db").then_some(())
    });
    assert!(waits.is_some(), "{}", f.brain.berth(&["ps"]));
    let script = "sleep 2; touch /ready; while true; do sleep 0.2; done";
    let check = [
        "-d",
        "--health-cmd",
        "test -e /ready",
        "--health-interval",
        "200ms",
    ];
    f.brain.run_script("my-db", 1, &check, script);
    std::thread::sleep(Duration::from_millis(1_200));
    assert!(!all(&f.brain).contains_key("web.1"), "it is not healthy yet");
    let up = eventually(Duration::from_secs(20), || {
        all(&f.brain).contains_key("web.1").then_some(())
    });
    assert!(up.is_some(), "{}", f.brain.berth(&["ps"]));
    let env = f.brain.berth(&["exec", "web.1", "env"]);
    for variable in [
        "BERTH_LINK_MY_DB_HOST=my-db",
        "BERTH_LINK_MY_DB_PORT=5432",
        "BERTH_LINK_MY_DB_ADDR=my-db:5432",
        "MODE=live",
    ] {
        assert!(env.lines().any(|line| line == variable), "{variable}: {env}");
    }
    let circle = f
        .brain
        .try_berth(&["service", "update", "my-db", "--link", "web"]);
    let said = String::from_utf8_lossy(&circle.stderr).into_owned();
    assert!(
        !circle.status.success() && said.contains("my-db → web → my-db"),
        "{said}"
    );
}

#[test]
fn r6_only_named_services_come_in_where_some_are_named() {
    let mut f = Fleet::new(2);
    f.brain
        .run_sleepers("db", 1, &["--ingress-from", "front", "-p", "6000:80"]);
    f.brain.run_sleepers("front", 2, &[]);
    f.brain.run_sleepers("other", 2, &[]);
    f.brain.wait_running(5, 90);
    let now = all(&f.brain);
    let db = &now["db.1"];
    serve(&db.space, 80, "db.1");
    serve_udp(&db.space, 53, "db.1");
    let shown = f.brain.json(&["service", "inspect", "db"]);
    let own: IpAddr = shown["addresses"][0]["ipv4"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("address");
    let reaches = |from: &Namespace| {
        let ways = [(own, 80), (db.ipv4, 80), (db.ipv6, 80)];
        let tcp = ways.map(|(at, port)| asked(from, SocketAddr::new(at, port)).is_some());
        let udp = [own, db.ipv4].map(|at| asked_udp(from, SocketAddr::new(at, 53)).is_some());
        [tcp.to_vec(), udp.to_vec()].concat()
    };
    let comes_to = |name: &str, want: bool| {
        let from = &now[name].space;
        let found = eventually(Duration::from_secs(20), || {
            reaches(from).iter().all(|is| *is == want).then_some(())
        });
        assert!(
            found.is_some(),
            "{name}: {want} wanted, {:?}\n{}",
            reaches(from),
            sh(&db.space, "nft list ruleset").1
        );
    };
    let check = || {
        for (name, may) in [
            ("front.1", true),
            ("front.2", true),
            ("other.1", false),
            ("other.2", false),
        ] {
            comes_to(name, may);
        }
    };
    check();
    // It is refused, not lost; and it may itself ask whom it likes.
    let begun = Instant::now();
    let refused = dial_at(&now["other.1"].space, SocketAddr::new(own, 80)).expect_err("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    assert!(begun.elapsed() < Duration::from_secs(1));
    serve(&now["other.1"].space, 80, "other.1");
    serve_udp(&now["other.1"].space, 53, "other.1");
    let other = now["other.1"].ipv4;
    assert!(asked(&db.space, SocketAddr::new(other, 80)).is_some());
    assert!(asked_udp(&db.space, SocketAddr::new(other, 53)).is_some());
    assert!(
        f.brain
            .berth(&["exec", "db.1", "nslookup", "front"])
            .contains("Address")
    );
    // What is published is open to the world.
    for host in &f.hosts {
        let at = format!("{}:6000", f.lan.address(11)).parse().expect("address");
        assert!(asked(&host.space(), at).is_some(), "{}", host.netns());
    }
    // Without a restart: others instead, and everybody. And it stays so with everybody restarted and without the brain.
    let pid = |f: &Fleet| f.brain.items(&["ps", "db"])[0]["observed"]["pid"].clone();
    let before = pid(&f);
    f.brain
        .berth(&["service", "update", "db", "--ingress-from", "other"]);
    for (name, may) in [("front.1", false), ("other.1", true), ("other.2", true)] {
        comes_to(name, may);
    }
    f.brain.berth(&["service", "update", "db", "--ingress-rm"]);
    for name in ["front.1", "other.1"] {
        comes_to(name, true);
    }
    f.brain
        .berth(&["service", "update", "db", "--ingress-from", "front"]);
    check();
    assert_eq!(pid(&f), before, "nothing was restarted");
    std::thread::sleep(Duration::from_secs(1));
    f.brain.kill9();
    f.agents.iter_mut().for_each(|agent| agent.kill9());
    f.agents.iter_mut().for_each(|agent| agent.restart());
    std::thread::sleep(Duration::from_secs(3));
    check();
}

/// Bytes a second from one namespace to an address in another, over some time after a start that a burst is in.
fn rate(from: &Namespace, to: &Namespace, at: SocketAddr) -> f64 {
    let port = at.port();
    let listener = to
        .within(move || TcpListener::bind(("::", port)))
        .expect("namespace")
        .expect("listens");
    let counted = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let mut buffer = vec![0; 256 << 10];
        let begun = Instant::now();
        let (mut count, mut since) = (0, None);
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            if begun.elapsed() > Duration::from_secs(1) {
                count += read;
                since.get_or_insert_with(Instant::now);
            }
        }
        count as f64 / since.map_or(f64::INFINITY, |since| since.elapsed().as_secs_f64())
    });
    let mut stream = dial_at(from, at).expect("connects");
    let (begun, buffer) = (Instant::now(), vec![7; 64 << 10]);
    while begun.elapsed() < Duration::from_secs(4) {
        stream.write_all(&buffer).expect("sent");
    }
    drop(stream);
    counted.join().expect("counted")
}

#[test]
fn what_a_container_sends_and_receives_stays_within_its_bandwidth() {
    let f = Fleet::new(2);
    f.brain
        .run_sleepers("slow", 2, &["--bandwidth-in", "4MiB", "--bandwidth-out", "2MiB"]);
    f.brain.run_sleepers("free", 2, &[]);
    f.brain.wait_running(4, 90);
    let now = all(&f.brain);
    let mib = f64::from(1 << 20);
    // Between hosts and on one, whichever way.
    let mut port = 9_000;
    let mut measured = |from: &str, to: &str| {
        port += 1;
        rate(
            &now[from].space,
            &now[to].space,
            SocketAddr::new(now[to].ipv4, port),
        ) / mib
    };
    for free in ["free.1", "free.2"] {
        let (inward, outward) = (measured(free, "slow.1"), measured("slow.1", free));
        assert!(
            (2.0..4.4).contains(&inward),
            "into slow.1 from {free}: {inward} MiB/s"
        );
        assert!(
            (1.0..2.2).contains(&outward),
            "out of slow.1 to {free}: {outward} MiB/s"
        );
    }
    assert!(measured("free.1", "free.2") > 20.0, "others are not slower");
    // Changed while it runs.
    f.brain.berth(&["service", "update", "slow", "--bandwidth-rm"]);
    let free = eventually(Duration::from_secs(30), || {
        (measured("slow.1", "free.1") > 20.0).then_some(())
    });
    assert!(free.is_some());
}
