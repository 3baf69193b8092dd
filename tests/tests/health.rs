//! Health checks with everything there is of berth: who gets requests, what is started again, and that changes lose nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use berth_tests::fleet::{Fleet, all};
use berth_tests::hammer::{Hammer, page};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use serde_json::Value;

/// A server that is up a while after its container, says which one it is, and is gone at once with the stop signal.
const SERVER: &str = "mkdir /www; hostname > /www/index.html; echo fine > /www/ok; sleep 1; httpd -p 80 -h /www; \
    while true; do sleep 0.1; done";

fn container(f: &Fleet, name: &str) -> Value {
    let found = f
        .brain
        .items(&["ps"])
        .into_iter()
        .find(|c| c["name"] == name && c["removing"] != true);
    found.unwrap_or_else(|| panic!("no {name}: {}", f.brain.berth(&["ps"])))
}

fn becomes(f: &Fleet, name: &str, what: &str, is: impl Fn(&Value) -> bool) -> Value {
    let found = eventually(Duration::from_secs(30), || {
        Some(container(f, name)).filter(|c| is(c))
    });
    found.unwrap_or_else(|| {
        panic!(
            "{name} never was {what}: {}\n{}",
            container(f, name),
            f.agents[0].log()
        )
    })
}

#[test]
fn a_rollout_a_drain_and_a_killed_agent_lose_no_request() {
    let mut f = Fleet::new(2);
    f.brain.run_sleepers("client", 1, &[]);
    let check = ["--health-http", "80/ok", "--health-interval", "300ms"];
    let begun = Instant::now();
    f.brain.run_script("web", 2, &check, SERVER);
    assert!(
        begun.elapsed() > Duration::from_secs(1),
        "it waits until they answer"
    );
    f.brain.wait_running(3, 90);
    let now = all(&f.brain);
    let client = now["client.1"].space.try_clone().expect("namespace");
    let (here, other) = match now["client.1"].node.as_str() {
        "h1" => ("h1", "h2"),
        _ => ("h2", "h1"),
    };
    let shown = f.brain.json(&["service", "inspect", "web"]);
    assert_eq!(shown["running"], 2, "{shown}");
    let four = shown["addresses"][0]["ipv4"].as_str().expect("address");
    let at = SocketAddr::new(four.parse().expect("address"), 80);
    assert!(eventually(Duration::from_secs(10), || page(&client, at).ok()).is_some());

    let hammer = Hammer::new(&client, at);
    f.brain.berth(&["service", "update", "web", "-e", "NEW=1"]);
    hammer.lost_nothing("a rollout");

    let hammer = Hammer::new(&client, at);
    f.brain.berth(&["service", "scale", "web", "3"]);
    f.brain.berth(&["service", "scale", "web", "1"]);
    std::thread::sleep(Duration::from_secs(3));
    hammer.lost_nothing("scaling down");
    f.brain.berth(&["service", "scale", "web", "2"]);

    // The one that serves stays in service while the agents are away, and when they come back.
    let hammer = Hammer::new(&client, at);
    f.agents.iter_mut().for_each(|agent| agent.kill9());
    std::thread::sleep(Duration::from_secs(2));
    f.agents.iter_mut().for_each(|agent| agent.restart());
    for node in ["h1", "h2"] {
        f.brain.wait_node(node, "ready", 30);
    }
    std::thread::sleep(Duration::from_secs(3));
    hammer.lost_nothing("killed agents");

    let hammer = Hammer::new(&client, at);
    f.brain.berth(&["node", "drain", other]);
    let gone = eventually(Duration::from_secs(60), || {
        all(&f.brain).values().all(|c| c.node == here).then_some(())
    });
    assert!(gone.is_some(), "{}", f.brain.berth(&["ps"]));
    std::thread::sleep(Duration::from_secs(2));
    hammer.lost_nothing("a drain");
}

#[test]
fn who_is_unhealthy_gets_no_requests_and_is_told_with_the_reason() {
    let f = Fleet::new(1);
    f.brain.run_sleepers("client", 1, &[]);
    let check = [
        "--health-http",
        "80/ok",
        "--health-interval",
        "200ms",
        "--health-retries",
        "2",
        "--health-restart=false",
    ];
    f.brain.run_script("web", 2, &check, SERVER);
    f.brain.wait_running(3, 90);
    let now = all(&f.brain);
    let client = &now["client.1"].space;
    let shown = f.brain.json(&["service", "inspect", "web"]);
    let four = shown["addresses"][0]["ipv4"].as_str().expect("address");
    let at = SocketAddr::new(four.parse().expect("address"), 80);
    let answered_by = |want: &[&str]| {
        let want: BTreeSet<String> = want.iter().map(|name| (*name).to_owned()).collect();
        let by = || {
            (0..16)
                .filter_map(|_| page(client, at).ok())
                .collect::<BTreeSet<_>>()
        };
        let found = eventually(Duration::from_secs(20), || (by() == want).then_some(()));
        assert!(found.is_some(), "{want:?} wanted, {:?} answered", by());
    };
    answered_by(&["web-1", "web-2"]);
    assert_eq!(container(&f, "web.1")["status"], "healthy");

    let pid = container(&f, "web.1")["observed"]["pid"].clone();
    f.brain.berth(&["exec", "web.1", "rm", "/www/ok"]);
    let ill = becomes(&f, "web.1", "unhealthy", |c| c["status"] == "unhealthy");
    let said = ill["reason"].as_str().unwrap_or_default();
    assert!(said.contains("GET /ok was answered with 404"), "{ill}");
    answered_by(&["web-2"]);
    let service = f.brain.json(&["service", "inspect", "web"]);
    assert_eq!(service["running"], 1);
    assert!(
        service["problem"].to_string().contains("unhealthy: GET /ok"),
        "{service}"
    );
    let events = f.brain.berth(&["events"]);
    assert!(events.contains("unhealthy"), "{events}");
    // An update is no way to make a sick service worse: the other one stays until the new one is well.
    f.brain.berth(&["exec", "web.1", "touch", "/www/ok"]);
    becomes(&f, "web.1", "healthy", |c| c["status"] == "healthy");
    answered_by(&["web-1", "web-2"]);
    assert_eq!(
        container(&f, "web.1")["observed"]["pid"],
        pid,
        "it was left alone"
    );

    // Other checks without a restart, and none at all.
    f.brain.berth(&["service", "update", "web", "--health-tcp", "81"]);
    for name in ["web.1", "web.2"] {
        let ill = becomes(&f, name, "unhealthy", |c| c["status"] == "unhealthy");
        assert!(ill["reason"].to_string().contains("nobody listens at"), "{ill}");
    }
    let refused = eventually(Duration::from_secs(20), || {
        let error = page(client, at).err()?;
        (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
    });
    assert!(refused.is_some(), "nobody is healthy");
    f.brain.berth(&["service", "update", "web", "--health-rm"]);
    answered_by(&["web-1", "web-2"]);
    assert_eq!(container(&f, "web.1")["status"], "running");
    assert_eq!(container(&f, "web.1")["observed"]["pid"], pid);
}

#[test]
fn who_becomes_unhealthy_is_started_again_by_its_policy() {
    let f = Fleet::new(1);
    let check = [
        "--tmpfs",
        "/run:1MiB",
        "--health-cmd",
        "! test -e /run/sick || { echo caught a cold; false; }",
        "--health-interval",
        "300ms",
        "--health-retries",
        "2",
    ];
    f.brain
        .run_script("worker", 1, &check, "while true; do sleep 0.1; done");
    let before = container(&f, "worker.1");
    assert_eq!(before["status"], "healthy");
    f.brain.berth(&["exec", "worker.1", "touch", "/run/sick"]);
    let after = becomes(&f, "worker.1", "started again", |c| {
        c["observed"]["restarts"] == 1 && c["status"] == "healthy"
    });
    assert_ne!(after["observed"]["pid"], before["observed"]["pid"]);
    let reason = after["observed"]["last_exit"]["reason"]
        .as_str()
        .unwrap_or_default();
    assert!(
        reason.starts_with("unhealthy: ") && reason.contains("caught a cold"),
        "{after}"
    );
    // A command that hangs has failed, and leaves nothing behind.
    let hangs = [
        "--health-cmd",
        "sleep 77",
        "--health-timeout",
        "500ms",
        "--health-restart=false",
    ];
    let update: Vec<&str> = ["service", "update", "worker", "-d"]
        .iter()
        .chain(&hangs)
        .copied()
        .collect();
    f.brain.berth(&update);
    let ill = becomes(&f, "worker.1", "unhealthy", |c| c["status"] == "unhealthy");
    assert!(
        ill["reason"].to_string().contains("no answer within 500 ms"),
        "{ill}"
    );
    // Six or more have hung by now, each a shell and what it runs; one may do so at this moment.
    std::thread::sleep(Duration::from_secs(5));
    let hanging = || {
        let processes = f.brain.berth(&["exec", "worker.1", "ps"]);
        processes.lines().filter(|line| line.contains("sleep 77")).count()
    };
    let left = eventually(Duration::from_secs(5), || (hanging() <= 2).then_some(()));
    assert!(left.is_some(), "{}", f.brain.berth(&["exec", "worker.1", "ps"]));
}
