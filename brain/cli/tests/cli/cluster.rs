//! Nodes, events, images, and how problems are told.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use crate::fake::{Fake, Ran};

#[test]
fn problems_and_their_exit_codes() {
    let fake = Fake::start();
    let cases: [(&[&str], i32, &str); 6] = [
        (
            &["service", "inspect", "nope"],
            3,
            "error: no service \"nope\"\ncure: list them with `berth service ls`\n",
        ),
        (
            &["run", "nginx", "--name", "big", "-d"],
            4,
            "error: memory: 4GiB of 1GiB\ncure: ask for less or raise the quota\n",
        ),
        (&["run", "nginx", "--cpu-weight", "0"], 2, "cpu_weight"),
        (&["run", "nginx", "--memory", "512"], 2, "write 512MiB"),
        (
            &["service", "inspect", "broken"],
            1,
            "status 502 without problem details",
        ),
        (&["exec", "-t", "web.1", "sh"], 2, "-t needs a terminal"),
    ];
    for (args, code, text) in cases {
        let ran = fake.run(args);
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert!(ran.err.contains(text), "{args:?}: {ran:?}");
        assert_eq!(ran.out, "", "{args:?}");
    }
    let ran = fake.run(&["service", "inspect", "nope", "-o", "json"]);
    let problem: serde_json::Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(problem["kind"], "not-found");
}

#[test]
fn what_cannot_be_reached_or_trusted_is_told_and_gets_no_token() {
    let fake = Fake::start();
    let free = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut command = fake.command(&["ps"]);
    let ran = Ran::of(
        command
            .env("BERTH_SERVER", format!("https://{free}"))
            .output()
            .unwrap(),
    );
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(
        ran.err.contains("Connection refused") && ran.err.contains("systemctl status berth-brain"),
        "{ran:?}"
    );

    let other = Fake::start();
    let mut command = other.command(&["ps"]);
    let ran = Ran::of(command.env("BERTH_SERVER", &fake.url).output().unwrap());
    assert_eq!(ran.code, 5, "{ran:?}");
    assert!(ran.err.contains("right --ca"), "{ran:?}");
    assert!(
        fake.seen.lock().unwrap().is_empty(),
        "nothing was sent to a server of another CA"
    );

    let mut command = fake.command(&["ps"]);
    let ran = Ran::of(command.env("BERTH_TOKEN", "berth_x_wrong").output().unwrap());
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(!ran.err.contains("wrong"), "{ran:?}");
}

#[test]
fn nodes_top_events_and_version() {
    let fake = Fake::start();
    let nodes = fake.run(&["node", "ls"]).out;
    assert!(
        nodes.contains("h1     ready    shared   default   0            0.1/2          256MiB/2GiB"),
        "{nodes}"
    );
    let ran = fake.run(&["node", "token", "--ttl", "10m", "--label", "a=b"]);
    assert_eq!(ran.out, "join-me\n");
    assert_eq!(fake.seen.lock().unwrap().last().unwrap().1["ttl_secs"], 600);
    let top = fake.run(&["top", "--once"]).out;
    assert!(top.contains("0.50/2") && top.contains("25%"), "{top}");
    assert!(top.contains("-/256MiB"), "what is unknown is a dash: {top}");
    assert_eq!(
        fake.run(&["top", "-o", "json"]).json()["nodes"][0]["usage"]["cpu"],
        500
    );
    assert!(
        fake.run(&["events"])
            .out
            .contains("1970-01-01T00:00:01.000Z  placed")
    );
    assert!(fake.run(&["version"]).out.contains("brain   9.9.9"));
}

#[test]
fn drain_waits_until_the_node_is_empty_and_says_for_what() {
    let fake = Fake::start();
    let ran = fake.run(&["node", "drain", "h1"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "h1: empty\n"), "{ran:?}");
    assert!(
        ran.err
            .contains("2 of 2 containers left: web.1 waits for its successor"),
        "{ran:?}"
    );
    let other = Fake::start();
    let ran = other.run(&["node", "drain", "h1", "--timeout", "0s"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(ran.err.contains("still has 2 containers: web.1 waits"), "{ran:?}");
}

#[test]
fn followed_events_resume_where_they_broke() {
    let fake = Fake::start();
    let mut child = fake
        .command(&["events", "-f", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .take(3)
        .collect();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        lines[0].contains("placed") && lines[1].contains("oom") && lines[2].contains("exited"),
        "{lines:?}"
    );
    let seen = fake.seen.lock().unwrap();
    let watches: Vec<&str> = seen
        .iter()
        .filter_map(|(l, _)| l.strip_prefix("GET /v1/watch"))
        .collect();
    assert_eq!(
        watches[..2],
        ["?after_event=1&kinds=event", "?after_event=2&kinds=event"]
    );
}

#[test]
fn images_are_loaded_and_pulled() {
    let fake = Fake::start();
    let file = fake.home.path().join("app.tar");
    std::fs::write(&file, vec![7; 300_000]).unwrap();
    let ran = fake.run(&["image", "load", file.to_str().unwrap(), "--name", "app:1"]);
    let digest = berth_common::model::Digest::of(&vec![7; 300_000]);
    assert_eq!(
        ran.out,
        format!("loaded library/app:1 ({digest})\n").replace("library/", ""),
        "{ran:?}"
    );
    let ran = fake.run(&["image", "pull", "nginx"]);
    assert_eq!(ran.code, 4, "one node failed: {ran:?}");
    assert!(ran.out.starts_with("h1: sha256:"), "{ran:?}");
    assert!(
        ran.err.contains("h1 abc: download") && ran.err.contains("h2: the registry hangs"),
        "{ran:?}"
    );
}

#[test]
fn networks_are_made_shown_and_removed() {
    let fake = Fake::start();
    let made = fake.run(&["network", "create", "back", "--cidr", "10.20.0.0/16"]);
    assert_eq!(
        (made.code, made.out.as_str()),
        (0, "back: made, 10.20.0.0/16 and fd00:7::/64\n"),
        "{made:?}"
    );
    let listed = fake.run(&["net", "ls"]);
    assert!(
        listed
            .out
            .contains("back   10.20.0.0/16   fd00:7::/64   2           2       web        5m"),
        "{listed:?}"
    );
    let shown = fake.run(&["network", "inspect", "back"]);
    assert!(shown.out.contains("different sites"), "{shown:?}");
    let quiet = fake.run(&["network", "rm", "back", "-q"]);
    assert_eq!((quiet.code, quiet.out.as_str()), (0, "back\n"), "{quiet:?}");
    let bad = fake.run(&["run", "nginx", "--network", "Back"]);
    assert!(bad.code == 2 && bad.err.contains("--network"), "{bad:?}");
}

#[test]
fn a_node_changes_only_where_it_is_asked_to() {
    let fake = Fake::start();
    let ran = fake.run(&[
        "node",
        "update",
        "h1",
        "--label",
        "disk=ssd",
        "--taint",
        "gpu=a:no-schedule",
    ]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "h1: changed\n"), "{ran:?}");
    let (line, body) = fake.seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(line, "PATCH /v1/nodes/h1");
    assert_eq!(
        body,
        serde_json::json!({"labels": {"disk": "ssd"}, "taints": ["gpu=a:no-schedule"]})
    );
    for (flag, value, named) in [
        ("--taint-rm", "gpu", "no such taint"),
        ("--label-rm", "disk", "no such label"),
        ("--taint", "gpu", "lacks its effect"),
    ] {
        let ran = fake.run(&["node", "update", "h1", flag, value]);
        assert!(ran.code == 2 && ran.err.contains(named), "{ran:?}");
    }
}

#[test]
fn packing_shows_its_plan_and_waits_until_nodes_are_empty() {
    let fake = Fake::start();
    // The fake counts its answers from the drain on.
    fake.run(&["node", "drain", "h1", "-d"]);
    let ran = fake.run(&["node", "pack", "--keep", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("h1        web.1       default   h2\n"),
        "{ran:?}"
    );
    assert!(
        ran.out.ends_with("1 of 2 nodes are emptied: 2 containers move\n"),
        "{ran:?}"
    );
    assert!(ran.err.contains("h1: empty"), "{ran:?}");
    let seen = fake.seen.lock().unwrap();
    let (_, body) = seen
        .iter()
        .find(|(line, _)| line == "POST /v1/nodes/pack")
        .unwrap();
    assert_eq!(
        *body,
        serde_json::json!({"pool": "default", "keep": 1, "dry_run": false})
    );
    drop(seen);
    assert_eq!(fake.run(&["node", "pack", "--keep", "0"]).code, 2);
}
