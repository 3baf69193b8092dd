//! Packing and its questions, with everything there is of berth: four hosts on which little runs, of which two are emptied while one of each
//! replica serves all the while and no request to a published port is lost.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use berth_tests::cluster::serves;
use berth_tests::fleet::Fleet;
use berth_tests::hammer::Hammer;
use berth_tests::host::Host;
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use serde_json::Value;

/// Lets these nodes alone take new containers.
fn open(f: &Fleet, names: &[&str]) {
    for name in ["h1", "h2", "h3", "h4"] {
        let verb = if names.contains(&name) {
            "uncordon"
        } else {
            "cordon"
        };
        f.brain.berth(&["node", verb, name]);
    }
}

fn containers(f: &Fleet, node: &str) -> u64 {
    let shown = f.brain.json(&["node", "inspect", node]);
    shown["taken"]["containers"].as_u64().expect("a number")
}

fn names(list: &Value) -> Vec<String> {
    let list = list.as_array().expect("a list").iter();
    list.map(|one| one["name"].as_str().expect("a name").to_owned())
        .collect()
}

/// Waits until both replicas of `web` take requests.
fn both_healthy(f: &Fleet) {
    let healthy = eventually(Duration::from_secs(30), || {
        let all = f.brain.items(&["ps", "web"]);
        (all.iter().filter(|c| c["status"] == "healthy").count() == 2).then_some(())
    });
    assert!(healthy.is_some(), "{:?}", f.brain.items(&["ps"]));
}

fn name_of(container: &Value) -> String {
    container["name"].as_str().expect("a name").to_owned()
}

#[test]
fn what_is_spread_thin_is_explained_foreseen_and_packed_and_no_request_is_lost() {
    let f = Fleet::of_machines(4);
    let world = Host::new("world");
    f.lan.attach(&world, "eth0", 200);
    open(&f, &["h1", "h2"]);
    let small = ["--cpus", "0.1"];
    f.brain
        .run_servers("web", 2, &small, "while true; do sleep 0.2; done");
    f.brain.wait_running(2, 60);
    for name in ["h3", "h4"] {
        open(&f, &[name]);
        f.brain.run_sleepers(&format!("quiet-{name}"), 1, &small);
    }
    f.brain.wait_running(4, 60);
    open(&f, &["h1", "h2", "h3", "h4"]);
    for name in ["h1", "h2", "h3", "h4"] {
        assert_eq!(containers(&f, name), 1, "{:?}", f.brain.items(&["ps"]));
    }

    both_healthy(&f);

    // Every node is compared, and what would be if one were lost is told.
    let told = f.brain.json(&["schedule", "explain", "web.1"]);
    let here = told["node_name"].as_str().expect("a node").to_owned();
    let nodes = told["nodes"].as_array().expect("nodes");
    assert_eq!(nodes.len(), 4, "{told:#}");
    assert!(
        nodes.iter().all(|node| node["score"]["total"].is_i64()),
        "{told:#}"
    );
    assert_eq!(nodes.iter().filter(|node| node["here"] == true).count(), 1);
    assert!(
        told["events"]
            .as_array()
            .expect("events")
            .iter()
            .any(|event| event["kind"] == "placed")
    );
    eprintln!("{}", f.brain.berth(&["schedule", "explain", "web.1"]));
    let lost = f.brain.json(&["schedule", "what-if", "--without", &here]);
    assert_eq!(
        (&lost["fits"], &lost["replicas"][0]["fate"]),
        (&Value::from(true), &Value::from("replaced")),
        "{lost:#}"
    );

    let dry = f.brain.json(&["node", "pack", "--dry-run"]);
    let freed = names(&dry["freed"]);
    assert_eq!(freed.len(), 2, "the replicas of web stay apart: {dry:#}");
    // At each node: those that stay, those that are emptied, and one where a replica begins. Each passes some on to the others, which
    // hear of what changes sooner or later than it does.
    let hammers = [1, 2, 3, 4].map(|n| {
        let at = format!("{}:8080", f.lan.address(10 + n));
        let at: SocketAddr = at.parse().expect("address");
        (at, Hammer::new(&world.space(), at))
    });
    let mut pack = f
        .brain
        .berth_command(&["node", "pack", "--timeout", "2m"])
        .spawn()
        .expect("berth");
    let ended = loop {
        let serving = f
            .brain
            .items(&["ps"])
            .iter()
            .filter(|c| serves(c))
            .map(name_of)
            .collect::<BTreeSet<_>>();
        assert_eq!(
            serving.len(),
            4,
            "one of each replica serves all the while: {serving:?}"
        );
        if let Some(ended) = pack.try_wait().expect("its end") {
            break ended;
        }
    };
    assert!(ended.success(), "{ended}");
    for name in &freed {
        assert_eq!(containers(&f, name), 0);
    }
    let up = eventually(Duration::from_secs(30), || {
        let running = f
            .brain
            .items(&["ps"])
            .iter()
            .filter(|c| c["observed"]["phase"] == "running")
            .count();
        (running == 4).then_some(())
    });
    assert!(up.is_some(), "{:?}", f.brain.items(&["ps"]));
    for (at, hammer) in hammers {
        hammer.lost_nothing(&format!("at {at} while nodes are emptied"));
    }
    let events = f.brain.items(&["events"]);
    let moved: Vec<_> = events.iter().filter(|event| event["kind"] == "moved").collect();
    assert_eq!(moved.len(), 2, "{events:?}");
    assert!(moved.iter().all(|event| {
        event["text"]
            .as_str()
            .expect("text")
            .contains("is emptied, of which")
    }));
    let again = f.brain.json(&["node", "pack", "--dry-run"]);
    assert_eq!(names(&again["freed"]), Vec::<String>::new(), "{again:#}");
}

#[test]
fn replicas_that_had_to_share_a_node_come_apart_once_another_comes_and_no_request_is_lost() {
    let f = Fleet::of_machines(2);
    let world = Host::new("world");
    f.lan.attach(&world, "eth0", 200);
    f.brain.berth(&["node", "cordon", "h2"]);
    let small = ["--cpus", "0.1"];
    f.brain
        .run_servers("web", 2, &small, "while true; do sleep 0.2; done");
    f.brain.wait_running(2, 60);
    both_healthy(&f);
    assert_eq!((containers(&f, "h1"), containers(&f, "h2")), (2, 0));
    let hammers: Vec<_> = [11, 12]
        .map(|at| {
            Hammer::new(
                &world.space(),
                format!("{}:8080", f.lan.address(at)).parse().expect("an address"),
            )
        })
        .into();
    f.brain.berth(&["node", "uncordon", "h2"]);
    let apart = eventually(Duration::from_secs(180), || {
        (containers(&f, "h1") == 1 && containers(&f, "h2") == 1).then_some(())
    });
    assert!(apart.is_some(), "{:?}", f.brain.items(&["events"]));
    for hammer in hammers {
        hammer.lost_nothing("while a replica moves to the node that came");
    }
    let events = f.brain.items(&["events"]);
    let moved: Vec<_> = events.iter().filter(|event| event["kind"] == "moved").collect();
    assert_eq!(moved.len(), 1, "{events:?}");
    let text = moved[0]["text"].as_str().expect("text");
    assert!(text.contains("a node came, and on h2 replicas"), "{text}");
}
