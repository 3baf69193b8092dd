//! Real load, with everything there is of berth: four hosts with a processor each, containers that burn it, and a process that is not
//! berth's and hogs one of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use berth_tests::cluster::serves;
use berth_tests::fleet::Fleet;
use berth_tests::hammer::{Hammer, page};
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use serde_json::Value;

/// A process of the host's that is no container: it burns so many percent of a processor.
struct Hog(Child);

impl Hog {
    fn new(percent: u32) -> Self {
        // The control group of the processor would do, but it is the machine's; a pause after each piece of work does as well.
        let script = format!(
            "import time\nwhile True:\n b=time.thread_time()\n while time.thread_time()-b<0.{percent:02}*0.1: pass\n time.sleep((1-0.{percent:02})*0.1)\n"
        );
        // It ends with this test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "python3", "-c", &script]);
        let child = command.spawn().expect("setpriv of util-linux, and python3");
        Self(child)
    }
}

impl Drop for Hog {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node's line of `berth top`.
fn node(f: &Fleet, name: &str) -> Value {
    let all = f.brain.json(&["top"]);
    let nodes = all["nodes"].as_array().expect("nodes");
    nodes
        .iter()
        .find(|node| node["name"] == name)
        .expect("the node")
        .clone()
}

fn millis(node: &Value, key: &str) -> u64 {
    node["expected"][key].as_u64().unwrap_or(0)
}

/// CPU in use on a node now, millicores.
fn used(node: &Value) -> u64 {
    node["usage"]["cpu"].as_u64().unwrap_or(0)
}

/// How many containers of a service run on each node.
fn places(f: &Fleet, service: &str) -> BTreeMap<String, usize> {
    let mut places = BTreeMap::new();
    for container in f.brain.items(&["ps"]) {
        let of = container["service_name"] == service && serves(&container);
        if let (true, Some(node)) = (of, container["node_name"].as_str()) {
            *places.entry(node.to_owned()).or_default() += 1;
        }
    }
    places
}

/// Whether a node was told to be hot with nothing to be done about it.
fn told_hot(f: &Fleet, name: &str) -> bool {
    let subject = format!("node {name}");
    let events = f.brain.items(&["events"]);
    events
        .iter()
        .any(|event| event["kind"] == "node-hot" && event["subject"] == subject.as_str())
}

/// Waits until it is.
fn wait_hot(f: &Fleet, name: &str) {
    let told = eventually(Duration::from_secs(240), || told_hot(f, name).then_some(()));
    assert!(
        told.is_some(),
        "{:#}\n{:?}",
        node(f, name),
        f.brain.items(&["events"])
    );
}

fn moved(f: &Fleet) -> usize {
    let events = f.brain.items(&["events"]);
    events.iter().filter(|event| event["kind"] == "moved").count()
}

#[test]
fn placements_avoid_a_hog_an_overloaded_host_cools_and_no_request_is_lost_meanwhile() {
    let f = Fleet::of_machines(4);
    let world = Host::new("world");
    f.lan.attach(&world, "eth0", 200);

    // A process that is not berth's takes most of h2.
    let hog = Hog::new(85);
    f.machines[1].hog(Some(hog.0.id()));
    let seen = eventually(Duration::from_secs(60), || {
        (millis(&node(&f, "h2"), "cpu_foreign") > 600).then_some(())
    });
    assert!(seen.is_some(), "{:#}", node(&f, "h2"));
    f.brain.run_sleepers("quiet", 9, &["--cpus", "0.1"]);
    f.brain.wait_running(9, 60);
    assert_eq!(places(&f, "quiet").get("h2"), None, "{:?}", places(&f, "quiet"));
    f.brain.berth(&["service", "rm", "quiet"]);
    drop(hog);
    f.machines[1].hog(None);

    // All that burns begins on one host, since the others take nothing.
    for name in ["h2", "h3", "h4"] {
        f.brain.berth(&["node", "cordon", name]);
    }
    let small = ["--cpus", "0.165", "--reserve-cpu", "0.1"];
    f.brain.run_servers("burn", 6, &small, "while true; do :; done");
    let up = eventually(Duration::from_secs(60), || {
        (places(&f, "burn").get("h1") == Some(&6)).then_some(())
    });
    assert!(up.is_some(), "{:?}", f.brain.items(&["ps"]));
    let at: SocketAddr = format!("{}:8080", f.lan.address(11)).parse().expect("address");
    let answers = || page(&world.space(), at).ok();
    assert!(
        eventually(Duration::from_secs(60), answers).is_some(),
        "{at} never answered"
    );
    let hammer = Hammer::new(&world.space(), at);
    let hot = eventually(Duration::from_secs(60), || {
        (used(&node(&f, "h1")) > 900).then_some(())
    });
    assert!(hot.is_some(), "{:#}", node(&f, "h1"));
    // So far it had nowhere to give to, and says so.
    wait_hot(&f, "h1");
    for name in ["h2", "h3", "h4"] {
        f.brain.berth(&["node", "uncordon", name]);
    }
    let began = Instant::now();
    let cool = eventually(Duration::from_secs(60), || {
        (places(&f, "burn").get("h1").copied().unwrap_or(0) <= 5).then_some(began.elapsed())
    });
    let events = f.brain.items(&["events"]);
    assert!(
        cool.is_some(),
        "{:?} {:#}\n{events:?}",
        places(&f, "burn"),
        node(&f, "h1")
    );
    eprintln!("cooled after {cool:?}");
    let cooled = eventually(Duration::from_secs(30), || {
        (used(&node(&f, "h1")) < 900).then_some(())
    });
    assert!(cooled.is_some(), "{:#}", node(&f, "h1"));
    let why = events
        .iter()
        .find(|event| event["kind"] == "moved")
        .expect("it is told");
    assert!(
        why["text"]
            .as_str()
            .expect("text")
            .contains("percent of the CPU of h1"),
        "{why}"
    );
    std::thread::sleep(Duration::from_secs(5));
    hammer.lost_nothing("while it moves");

    // The hog alone causes no endless moving: what is there gains nothing elsewhere, or has gone after some moves. Which of both it is
    // hangs on how much the hog gets of a machine that other things use, too: it is seen, and the host is told to be hot, or has got rid of all it can.
    let hog = Hog::new(97);
    f.machines[2].hog(Some(hog.0.id()));
    let at_first = moved(&f);
    let acted = eventually(Duration::from_secs(240), || {
        let seen = millis(&node(&f, "h3"), "cpu_foreign") > 300;
        (seen && (told_hot(&f, "h3") || !places(&f, "burn").contains_key("h3"))).then_some(())
    });
    let events = f.brain.items(&["events"]);
    assert!(acted.is_some(), "{:#}\n{events:?}", node(&f, "h3"));
    // Other work on this machine makes a host look hot for a while, and a move right then: but it comes to rest.
    let rests = (0..3).any(|_| {
        let before = moved(&f);
        std::thread::sleep(Duration::from_secs(45));
        moved(&f) == before
    });
    let moves = moved(&f) - at_first;
    assert!(
        rests && moves <= 6,
        "{moves} moves: {:?}",
        f.brain.items(&["events"])
    );
    assert_eq!(places(&f, "burn").values().sum::<usize>(), 6);
}
