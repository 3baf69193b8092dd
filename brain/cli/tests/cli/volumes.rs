//! Volumes: what is sent, what is waited for, and what is said meanwhile.

use serde_json::{Value, json};

use crate::fake::Fake;

/// The last request that was no look at a volume.
fn sent(fake: &Fake) -> (String, Value) {
    let seen = fake.seen.lock().unwrap();
    let asked = seen.iter().rev().find(|(line, _)| !line.starts_with("GET "));
    let (line, body) = asked.unwrap().clone();
    (line.replace("/v1/tenants/default/volumes", "…"), body)
}

#[test]
fn every_command_sends_what_it_says() {
    let fake = Fake::start();
    let cases: [(&[&str], &str, Value, &str); 14] = [
        (
            &["create", "data", "--size", "10GiB", "--node", "h2"],
            "POST …",
            json!({"name": "data", "size": 10_u64 << 30, "node": "h2"}),
            "data: 10GiB, on h2\n",
        ),
        (
            &["create", "data", "--snapshot-every", "1h", "--keep-last", "4"],
            "POST …",
            json!({"name": "data", "schedule": {"every_ms": 3_600_000, "keep": {"last": 4}}}),
            "data: 10GiB, on h2\n",
        ),
        (
            &["schedule", "data", "--snapshot-every", "1d", "--keep-daily", "7"],
            "PUT …/data/schedule",
            json!({"every_ms": 86_400_000, "keep": {"daily": 7}}),
            "data: no schedule\n",
        ),
        (
            &["schedule", "data", "--snapshot-before", "save"],
            "PUT …/data/hooks",
            json!({"before": ["/bin/sh", "-c", "save"], "limit_ms": 60_000}),
            "data: no schedule\n",
        ),
        (
            &["schedule", "data", "--off"],
            "DELETE …/data/schedule",
            Value::Null,
            "data: no schedule\n",
        ),
        (
            &["clone", "data", "before", "copy"],
            "POST …",
            json!({"name": "copy", "source": {"volume": "data", "snapshot": "before"}}),
            "data: 10GiB, on h2\n",
        ),
        (
            &["resize", "data", "20GiB"],
            "PATCH …/data",
            json!({"size": 20_u64 << 30}),
            "data: 20GiB\n",
        ),
        (
            &["snapshot", "data"],
            "POST …/data/snapshots",
            json!({}),
            "data: snapshot before\n",
        ),
        (
            &["snapshot", "data", "before"],
            "POST …/data/snapshots",
            json!({"name": "before"}),
            "data: snapshot before\n",
        ),
        (
            &["snapshot-rm", "data", "old"],
            "DELETE …/data/snapshots/old",
            Value::Null,
            "data: snapshot old removed\n",
        ),
        (
            &["rollback", "data", "first"],
            "POST …/data/rollback",
            json!({"snapshot": "first"}),
            "data: is as in first; what it was is kept as before\n",
        ),
        (
            &["cancel-move", "data"],
            "DELETE …/data/move",
            Value::Null,
            "data: stays on h2\n",
        ),
        (
            &["move", "data", "h2", "-d"],
            "POST …/data/move",
            json!({"node": "h2"}),
            "data: moves to h2; `berth volume inspect data` shows how far it is\n",
        ),
        (
            &["rm", "loose", "--force"],
            "DELETE …/loose?force=true",
            Value::Null,
            "loose: given up; its data stays on h9, which is lost\n",
        ),
    ];
    for (args, line, body, said) in cases {
        let ran = fake.run(&[&["volume"], args].concat());
        assert_eq!((ran.code, ran.out.as_str()), (0, said), "{args:?}: {ran:?}");
        assert_eq!(sent(&fake), (line.to_owned(), body), "{args:?}");
    }
    let quiet = fake.run(&["vol", "snapshot", "data", "-q"]);
    assert_eq!(
        (quiet.out.as_str(), quiet.err.as_str()),
        ("before\n", ""),
        "{quiet:?}"
    );
    let json = fake
        .run(&["volume", "resize", "data", "20GiB", "-o", "json"])
        .json();
    assert_eq!(json["name"], "data");
}

#[test]
fn a_schedule_without_what_stays_is_refused_before_anything_is_sent() {
    let fake = Fake::start();
    for args in [
        &["--snapshot-every", "1h"][..],
        &["--keep-last", "3"],
        &["--off", "--snapshot-every", "1h"],
        &["--snapshot-limit", "3s"],
    ] {
        let ran = fake.run(&[&["volume", "schedule", "data"], args].concat());
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
    }
    assert!(
        fake.seen
            .lock()
            .unwrap()
            .iter()
            .all(|(line, _)| line.starts_with("GET "))
    );
}

#[test]
fn lists_and_inspections_show_what_there_is() {
    let fake = Fake::start();
    let listed = fake.run(&["volume", "ls"]);
    assert!(
        listed
            .out
            .contains("data   10GiB   1.5GiB   h2     ready   1           db"),
        "{listed:?}"
    );
    assert_eq!(fake.run(&["volume", "ls", "-q"]).out, "data\n");
    let shown = fake.run(&["volume", "inspect", "data"]);
    assert!(
        shown.out.contains("moving:") && shown.out.contains("to: h2"),
        "{shown:?}"
    );
}

#[test]
fn a_move_is_followed_until_the_volume_is_there() {
    let fake = Fake::start();
    let ran = fake.run(&["volume", "move", "data"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "data: on h2\n"), "{ran:?}");
    assert_eq!(sent(&fake), ("POST …/data/move".to_owned(), json!({})));
    for part in [
        "to h2: round 1, 0B of 4GiB (0%)",
        "round 1, 1GiB of 4GiB (25%), ",
        "/s, ",
    ] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    let other = Fake::start();
    let ran = other.run(&["volume", "move", "data", "--timeout", "0s"]);
    assert_eq!(ran.code, 4, "{ran:?}");
    assert!(
        ran.err.contains("is not on h2 yet") && ran.err.contains("berth volume cancel-move data"),
        "{ran:?}"
    );
}

#[test]
fn a_removal_is_followed_until_nothing_is_left() {
    let fake = Fake::start();
    let ran = fake.run(&["volume", "rm", "gone"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, "gone: removed\n"), "{ran:?}");
    assert!(ran.err.contains("h2 deletes it"), "{ran:?}");
    let other = Fake::start();
    let ran = other.run(&["volume", "rm", "gone", "-d"]);
    assert_eq!(
        (ran.code, ran.out.as_str()),
        (0, "gone: is being removed\n"),
        "{ran:?}"
    );
}

#[test]
fn services_mount_volumes_by_options_and_no_folders_of_hosts() {
    let fake = Fake::start();
    let run = [
        "run",
        "nginx",
        "--name",
        "web",
        "-d",
        "-v",
        "data:/srv:size=2GiB",
        "--volume",
        "logs:/logs:ro",
    ];
    assert_eq!(fake.run(&run).code, 0);
    let (_, spec) = sent(&fake);
    assert_eq!(
        spec["volumes"],
        json!([{"volume": "data", "path": "/srv", "size": 2_u64 << 30},
            {"volume": "logs", "path": "/logs", "read_only": true}])
    );
    for (mount, said) in [
        ("/var/lib:/data", "a folder of the host can't be mounted"),
        ("./data:/data", "a folder of the host can't be mounted"),
        ("data", "write NAME:/PATH"),
        ("data:/srv:fast", "options: ro, per-replica, size=10GiB"),
        ("data:srv", "volumes"),
    ] {
        let ran = fake.run(&["run", "nginx", "-d", "-v", mount]);
        assert!(ran.code == 2 && ran.err.contains(said), "{mount}: {ran:?}");
    }
}
