//! Services and containers: run, update, ps, logs, exec, stop.

use std::io::Write as _;
use std::process::Stdio;

use crate::fake::{Fake, Ran};

#[test]
fn services_are_listed_over_all_pages() {
    let fake = Fake::start();
    let ran = fake.run(&["service", "ls"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(
        ran.out,
        "NAME   IMAGE          REPLICAS   STATUS    PORTS   AGE   PROBLEM\n\
         api    nginx:latest   1/2        waiting           10m   1 replica has no node\n\
         web    nginx:latest   2/2        running           10m\n"
    );
    assert_eq!(fake.run(&["service", "ls", "-q"]).out, "api\nweb\n");
    let json = fake.run(&["service", "ls", "-o", "json"]).json();
    assert_eq!(json[1]["spec"]["name"], "web");
    let yaml = fake.run(&["service", "inspect", "web", "-o", "yaml"]).out;
    assert!(yaml.contains("image: docker.io/library/nginx:latest"), "{yaml}");
}

#[test]
fn ps_says_why_a_container_waits() {
    let fake = Fake::start();
    let ran = fake.run(&["ps", "stuck"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(
        ran.out.contains("no node has 64 cores free: h1 has 1.5"),
        "{}",
        ran.out
    );
    assert!(
        fake.run(&["ps"])
            .out
            .contains("web.1   aaaaaaaaaaaaaaab   nginx:latest   running   h1     -         5m")
    );
}

#[test]
fn run_sends_the_spec_and_waits() {
    let fake = Fake::start();
    let ran = fake.run(&[
        "run",
        "nginx",
        "--name",
        "web",
        "--replicas",
        "2",
        "--cpus",
        "0.5",
        "-m",
        "64MiB",
        "-e",
        "A=b=c",
        "--tmpfs",
        "/t:1MiB",
        "--on",
        "disk=ssd",
        "--pool=batch",
        "--toleration=gpu",
        "--spread=zone,hard",
        "--together=db,by=zone",
        "--max-per-node=2",
        "--priority=-5",
        "--best-effort",
        "--",
        "sleep",
        "--help",
    ]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "web: 2 of 2 running\n"),
        "{ran:?}"
    );
    let seen = fake.seen.lock().unwrap();
    let (line, body) = &seen[0];
    assert_eq!(line, "POST /v1/tenants/default/services");
    assert_eq!(
        body["resources"]["limits"],
        serde_json::json!({"cpu": 500, "memory": 64 << 20})
    );
    assert_eq!(body["env"]["A"], "b=c");
    assert_eq!(body["command"], serde_json::json!(["sleep", "--help"]));
    assert_eq!(body["node_labels"]["disk"], "ssd");
    assert_eq!(
        (&body["pool"], &body["max_per_node"]),
        (&"batch".into(), &2.into())
    );
    assert_eq!(
        (&body["priority"], &body["class"]),
        (&(-5).into(), &"best-effort".into())
    );
    assert_eq!(body["tolerations"], serde_json::json!(["gpu"]));
    assert_eq!(
        body["spread"],
        serde_json::json!([{"by": "zone", "hard": true, "max_skew": 1}])
    );
    assert_eq!(
        body["together"],
        serde_json::json!([{"with": "db", "by": "zone", "hard": false}])
    );
}

#[test]
fn run_explains_why_it_does_not_run() {
    let fake = Fake::start();
    let ran = fake.run(&["run", "nginx", "--name", "stuck", "--replicas", "2"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err
            .contains("error: service stuck does not run: stuck.1 is waiting: no node has 64 cores"),
        "{ran:?}"
    );
    assert!(ran.err.contains("cure: `berth ps stuck`"), "{ran:?}");
}

#[test]
fn updates_name_the_generation_they_change() {
    let fake = Fake::start();
    let ran = fake.run(&["service", "update", "web", "--memory", "1GiB", "-d"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let seen = fake.seen.lock().unwrap();
    let (line, body) = seen.last().unwrap();
    assert_eq!(line, "PUT /v1/tenants/default/services/web?generation=3");
    assert_eq!(
        (
            body["resources"]["limits"]["memory"].as_u64(),
            body["replicas"].as_u64()
        ),
        (Some(1 << 30), Some(2))
    );
}

#[test]
fn logs_of_replicas_are_merged_by_time_with_streams_apart() {
    let fake = Fake::start();
    let ran = fake.run(&["logs", "web"]);
    assert_eq!(ran.out, "web.1 | one\nweb.2 | two\nweb.1 | three\n", "{ran:?}");
    assert_eq!(ran.err, "web.2 | four\n");
    let ran = fake.run(&[
        "logs",
        "-t",
        "--tail",
        "5",
        "--since",
        "1970-01-01T00:00:01Z",
        "web.1",
    ]);
    assert_eq!(
        ran.out, "1970-01-01T00:00:01.000Z one\n1970-01-01T00:00:03.000Z three\n",
        "{ran:?}"
    );
    let seen = fake.seen.lock().unwrap();
    assert_eq!(
        seen.last().unwrap().0,
        "GET /v1/tenants/default/containers/web.1/logs?follow=false&tail=5&since=1000"
    );
}

#[test]
fn exec_passes_streams_and_exit_code() {
    let fake = Fake::start();
    let ran = fake.run(&["exec", "web.1", "ls", "-l"]);
    assert_eq!(ran.code, 42, "{ran:?}");
    assert_eq!(
        (ran.out.as_str(), ran.err.as_str()),
        ("ran [\"ls\",\"-l\"]\n", "oops\n")
    );
    let mut command = fake.command(&["exec", "-i", "web", "cat"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than one frame, so that order is seen.
    let data: String = (0..20_000).map(|n| format!("{n}\n")).collect();
    let mut stdin = child.stdin.take().unwrap();
    let sent = data.clone();
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()).unwrap());
    let ran = Ran::of(child.wait_with_output().unwrap());
    writer.join().unwrap();
    assert_eq!(ran.code, 42);
    assert_eq!(ran.out, format!("ran [\"cat\"]\n{data}"));
}

#[test]
fn a_target_is_a_service_or_else_a_container() {
    let fake = Fake::start();
    assert_eq!(fake.run(&["stop", "web"]).out, "web: stops\n");
    assert_eq!(fake.run(&["stop", "web.1"]).out, "web.1: stops\n");
    assert_eq!(fake.run(&["stop", "aaaa"]).out, "web.1: stops\n");
}

#[test]
fn a_place_is_explained_and_others_are_foreseen_with_an_exit_code() {
    let fake = Fake::start();
    let ran = fake.run(&["schedule", "explain", "web.1"]);
    assert!(
        ran.code == 0 && ran.out.ends_with("\n\nweb.1 is on h1\n"),
        "{ran:?}"
    );
    assert!(
        ran.out.contains("*   h1     7       7      1.5        1GiB"),
        "{ran:?}"
    );
    let ran = fake.run(&["schedule", "explain", "web.1", "-o", "json"]);
    assert_eq!(ran.json()["nodes"][0]["score"]["load"], 7);
    let file = fake.home.path().join("web.yaml");
    std::fs::write(&file, "name: web\nimage: nginx\nreplicas: 2\n").unwrap();
    let file = file.to_str().unwrap();
    let ran = fake.run(&["schedule", "what-if", "-f", file]);
    assert!(
        ran.code == 0 && ran.out.ends_with("all would have a place\n"),
        "{ran:?}"
    );
    let ran = fake.run(&["sched", "what-if", "-f", file, "--replicas", "4", "-o", "json"]);
    assert_eq!(
        (ran.code, &ran.json()[0]["fits"]),
        (4, &serde_json::json!(false)),
        "{ran:?}"
    );
    let (line, body) = fake.seen.lock().unwrap().last().unwrap().clone();
    assert_eq!(
        (line.as_str(), &body["replicas"]),
        ("POST /v1/tenants/default/schedule", &serde_json::json!(4))
    );
    let ran = fake.run(&["schedule", "what-if", "--without", "h1"]);
    assert!(ran.code == 4 && ran.err.contains("1 would wait"), "{ran:?}");
    for wrong in [
        &["schedule", "what-if"][..],
        &["schedule", "what-if", "--without", "h1", "--replicas", "2"],
    ] {
        assert_eq!(fake.run(wrong).code, 2, "{wrong:?}");
    }
}
