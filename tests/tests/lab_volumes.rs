//! Volumes on real hosts: stock kernels and units, a pool in a file, Debian 12 and 13.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Content, Debian, Machine, Template, eventually};
use berth_tests::operator::Operator as _;

/// Emulated hosts boot in minutes.
const BACK: Duration = Duration::from_secs(400);

/// Writes numbered lines, each on disk before it is told, and goes on from the last one; what the full volume refuses is written later.
const WRITER: &str = "trap 'exit 0' TERM; n=$(tail -n1 /data/log 2>/dev/null); while true; do \
    if echo $((n+1)) >>/data/log; then n=$((n+1)); sync /data/log && echo ack $n; fi; sleep 0.5; done";

/// The writer's lines, which are numbered from 1 on without a gap.
fn lines(c: &Cluster) -> u64 {
    let text = eventually(BACK, || {
        let out = c.try_berth(&["exec", "db", "cat", "/data/log"]);
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    let text = text.unwrap_or_else(|| panic!("{}\n{}", c.berth(&["ps"]), c.berth(&["volume", "ls"])));
    for (n, line) in text.lines().enumerate() {
        assert_eq!(
            line.trim(),
            (n + 1).to_string(),
            "a line is missing, torn or there twice"
        );
    }
    text.lines().count() as u64
}

/// It writes on.
fn goes_on(c: &Cluster, from: u64) -> u64 {
    let more = eventually(BACK, || Some(lines(c)).filter(|now| *now > from));
    more.unwrap_or_else(|| panic!("nothing after line {from}: {}", c.berth(&["ps"])))
}

fn holder(c: &Cluster) -> &Machine {
    let node = c.json(&["volume", "inspect", "data"])["node_name"].clone();
    let found = c.lab.hosts.iter().find(|host| node == host.name.as_str());
    found.unwrap_or_else(|| panic!("{node}"))
}

#[test]
fn r2_volumes_move_between_debian_12_and_13_and_outlast_power_cuts_and_killed_agents() {
    let new = Template::find(Debian::Trixie, Content::Prepared);
    let old = Template::find(Debian::Bookworm, Content::Prepared);
    // Longer than a host takes to boot.
    let mut c = Cluster::start(&[&new, &old], "lease_secs = 300\n");
    c.load_example();
    let mut args = vec![
        "run",
        "example:1",
        "--name",
        "db",
        "-d",
        "-v",
        "data:/data:size=64MiB",
    ];
    args.extend([
        "--memory", "32MiB", "--disk", "8MiB", "--cpus", "0.1", "--", "sh", "-c", WRITER,
    ]);
    c.berth(&args);
    c.wait_running(1, 120);
    let first = goes_on(&c, 3);
    c.lab.step("it writes");
    // Where it lies is told, and its limit is the kernel's.
    let node = holder(&c).name.clone();
    let facts = c.json(&["node", "inspect", &node])["facts"]["volumes"].clone();
    assert!(
        facts["port"].is_u64() && facts["kind"].as_str().is_some(),
        "{facts}"
    );
    let full = c.try_berth(&[
        "exec",
        "db",
        "dd",
        "if=/dev/zero",
        "of=/data/big",
        "bs=1M",
        "count=100",
    ]);
    let told = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(
        !full.status.success() && (told.contains("quota") || told.contains("space")),
        "{told}"
    );
    c.berth(&["exec", "db", "rm", "/data/big"]);

    // There and back, each with another kernel.
    let mut written = first;
    for _ in 0..2 {
        let from = holder(&c).name.clone();
        c.berth(&["volume", "move", "data"]);
        assert_ne!(holder(&c).name, from);
        written = goes_on(&c, written);
        c.lab.step(&format!("moved from {from}"));
    }

    // A killed agent: its container never notices, and the next agent finds what is mounted.
    let before = pids(&c.running());
    let host = holder(&c);
    host.ok("systemctl kill -s KILL berth-agent");
    host.eventually("systemctl is-active -q berth-agent", BACK);
    written = goes_on(&c, written);
    assert_eq!(pids(&c.running()), before, "R3");
    c.lab.step("the agent was killed");

    // A power cut of the holder: what was on disk is there, and goes on under the same epoch.
    let epoch = c.json(&["volume", "inspect", "data"])["epoch"].clone();
    let number = usize::from(holder(&c).name == "host2") + 1;
    c.lab.host_mut(number).crash();
    c.lab.host_mut(number).boot();
    c.wait_brain();
    written = goes_on(&c, written);
    assert_eq!(c.json(&["volume", "inspect", "data"])["epoch"], epoch);
    c.lab.step("its host lost power");

    c.berth(&["volume", "snapshot", "data", "kept"]);
    let at = lines(&c);
    goes_on(&c, at + 3);
    c.berth(&["volume", "rollback", "data", "kept"]);
    assert!(written > first && goes_on(&c, 0) > 0);
    c.berth(&["service", "rm", "db"]);
    let removed = eventually(BACK, || {
        let out = c.try_berth(&["volume", "rm", "data"]);
        out.status.success().then_some(())
    });
    assert!(removed.is_some(), "{}", c.berth(&["volume", "ls"]));
    let host = c.lab.host(number);
    host.eventually("! grep -q /run/berth/volumes/ /proc/mounts", BACK);
    // Of the pool that is mounted there nothing of a volume is left.
    host.eventually(
        "mountpoint -q /var/lib/berth-agent/volumes/pool && test -z \"$(ls -A /var/lib/berth-agent/volumes/pool/v)\"",
        BACK,
    );
}
