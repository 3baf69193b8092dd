//! Volumes with everything there is of berth: hosts with a btrfs each, containers that write all the time.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use berth_tests::acknowledged::Acknowledged;
use berth_tests::fleet::Fleet;
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

/// Writes numbered lines, each on disk before it is acknowledged, and goes on from the last one. Each has when its writer began and when it was
/// written, by the host's uptime: a number that was acknowledged and lost would be there again by another writer.
const WRITER: &str = "t=$(cut -d' ' -f1 /proc/uptime); n=$(tail -n1 /data/log 2>/dev/null | cut -d' ' -f1); while true; do n=$((n+1)); \
    echo $n $t $(cut -d' ' -f1 /proc/uptime) >>/data/log; sync /data/log; echo ack $n $t; sleep 0.05; done";

/// Sleeps, and ends as soon as it is told to.
const SLEEPER: &str = "trap 'exit 0' TERM; sleep 1000000 & wait";

fn start(f: &Fleet, name: &str, more: &[&str], script: &str) {
    let mut args = vec!["run", "example:1", "--name", name, "-d", "--stop-grace", "1s"];
    args.extend(["--memory", "32MiB", "--disk", "8MiB", "--cpus", "0.2"]);
    args.extend(more);
    args.extend(["--", "sh", "-c", script]);
    f.brain.berth(&args);
}

fn exec(f: &Fleet, name: &str, script: &str) -> (bool, String) {
    let out = f.brain.try_berth(&["exec", name, "sh", "-c", script]);
    let text = [out.stdout, out.stderr].concat();
    (
        out.status.success(),
        String::from_utf8_lossy(&text).trim().to_owned(),
    )
}

fn read(f: &Fleet, name: &str, script: &str) -> String {
    let found = eventually(SOON, || {
        let (ok, text) = exec(f, name, script);
        ok.then_some(text)
    });
    found.unwrap_or_else(|| {
        panic!(
            "{name}: {script}: {:?}\n{}",
            exec(f, name, script),
            f.brain.berth(&["ps"])
        )
    })
}

fn volume(f: &Fleet, name: &str) -> Value {
    f.brain.json(&["volume", "inspect", name])
}

/// What a host's pool holds of volumes: data and snapshots.
fn held(pool: &Path) -> Vec<String> {
    let out = Command::new("btrfs")
        .args(["subvolume", "list"])
        .arg(pool)
        .output();
    let out = out.expect("btrfs-progs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let paths = text.lines().filter(|line| line.contains("pool/v/"));
    paths.map(str::to_owned).collect()
}

/// Waits until it holds nothing.
fn emptied(pool: &Path) {
    let gone = eventually(SOON, || held(pool).is_empty().then_some(()));
    assert!(gone.is_some(), "something is left: {:?}", held(pool));
}

#[test]
fn a_volume_is_limited_snapshotted_rolled_back_and_cloned_and_outlasts_its_containers() {
    let mut f = Fleet::with_volumes(1, 1 << 30);
    start(&f, "db", &["-v", "data:/data:size=64MiB"], SLEEPER);
    f.brain.wait_running(1, 30);
    // Its owner within is the container's root, whatever it is on the host.
    assert_eq!(
        read(&f, "db", "echo one >/data/f && stat -c '%u %g' /data /data/f"),
        "0 0\n0 0"
    );
    let (ok, text) = exec(&f, "db", "dd if=/dev/zero of=/data/big bs=1M count=100");
    assert!(
        !ok && (text.contains("quota exceeded") || text.contains("No space")),
        "{text}"
    );
    // More room, live; and back.
    f.brain.berth(&["volume", "resize", "data", "128MiB"]);
    assert_eq!(
        read(
            &f,
            "db",
            "dd if=/dev/zero of=/data/big bs=1M count=100 2>/dev/null && sync && echo fits"
        ),
        "fits"
    );
    let no = f.brain.try_berth(&["volume", "resize", "data", "32MiB"]);
    assert!(!no.status.success(), "its content does not fit");
    read(&f, "db", "rm /data/big && sync");

    // The agent is killed, and the container does not notice; nor do its volumes.
    let before = f.brain.running()[0]["observed"]["pid"].clone();
    f.agents[0].kill9();
    f.agents[0].restart();
    f.brain.wait_node("h1", "ready", 30);
    assert_eq!(f.brain.running()[0]["observed"]["pid"], before, "R3");
    assert_eq!(read(&f, "db", "cat /data/f"), "one");

    f.brain.berth(&["volume", "snapshot", "data", "good"]);
    read(&f, "db", "echo two >/data/f && sync");
    f.brain.berth(&["volume", "rollback", "data", "good"]);
    assert_eq!(read(&f, "db", "cat /data/f"), "one", "{}", volume(&f, "data"));
    // What it was before is a snapshot, and a volume for whoever wants it.
    f.brain.berth(&["volume", "clone", "data", "before-good", "copy"]);
    start(&f, "other", &["-v", "copy:/x:ro"], SLEEPER);
    assert_eq!(read(&f, "other", "cat /x/f"), "two");
    let (ok, text) = exec(&f, "other", "echo no >/x/f");
    assert!(!ok && text.contains("Read-only"), "{text}");

    assert!(
        held(&f.disks[0].mount).len() >= 5,
        "two volumes and their snapshots"
    );
    // The service goes, its data stays, and the next has it.
    let no = f.brain.try_berth(&["volume", "rm", "data"]);
    let told = String::from_utf8_lossy(&no.stderr).into_owned();
    assert!(!no.status.success() && told.contains("db"), "{told}");
    f.brain.berth(&["service", "rm", "db"]);
    start(&f, "next", &["-v", "data:/y"], SLEEPER);
    assert_eq!(read(&f, "next", "cat /y/f"), "one");
    for service in ["next", "other"] {
        f.brain.berth(&["service", "rm", service]);
    }
    for name in ["data", "copy"] {
        // As soon as its containers have stopped.
        let removed = eventually(SOON, || {
            let out = f.brain.try_berth(&["volume", "rm", name]);
            out.status.success().then_some(())
        });
        assert!(removed.is_some(), "{}", volume(&f, name));
    }
    assert_eq!(f.brain.items(&["volume", "ls"]), Vec::<Value>::new());
    emptied(&f.disks[0].mount);
    let mounts = std::fs::read_to_string("/proc/mounts").expect("mounts");
    let run_dir = f.agents[0].run_dir().join("volumes").display().to_string();
    assert!(!mounts.contains(&run_dir), "nothing stays mounted");
}

#[test]
fn commands_run_around_snapshots_and_an_old_one_is_read_beside_the_volume() {
    let f = Fleet::with_volumes(1, 1 << 30);
    f.brain.berth(&[
        "volume",
        "create",
        "data",
        "--size",
        "64MiB",
        "--snapshot-every",
        "300d",
        "--keep-last",
        "4",
        "--snapshot-before",
        "echo frozen >>/data/hooks; test ! -e /data/no || { echo not today; exit 3; }",
        "--snapshot-after",
        "echo thawed >>/data/hooks",
        "--snapshot-limit",
        "20s",
    ]);
    let schedule = f.brain.berth(&["volume", "schedule", "data"]);
    assert!(
        schedule.contains("a snapshot every 300d, kept are 4 last") && schedule.contains("limit: 20s"),
        "{schedule}"
    );
    start(&f, "db", &["-v", "data:/data"], SLEEPER);
    f.brain.wait_running(1, 30);
    read(&f, "db", "echo one >/data/f && sync");
    f.brain.berth(&["volume", "snapshot", "data", "old"]);
    // The snapshot has what the command before it wrote, and not what the one after it did.
    read(&f, "db", "echo two >/data/f && sync");
    start(&f, "audit", &["-v", "data@old:/old"], SLEEPER);
    f.brain.wait_running(2, 30);
    assert_eq!(read(&f, "audit", "cat /old/f /old/hooks"), "one\nfrozen");
    assert_eq!(read(&f, "db", "cat /data/f"), "two");
    assert_eq!(read(&f, "db", "cat /data/hooks"), "frozen\nthawed");
    assert_eq!(
        read(&f, "audit", "stat -c '%u %g' /old/f"),
        "0 0",
        "its owner within is the container's root"
    );
    let (ok, text) = exec(&f, "audit", "echo no >/old/f");
    assert!(!ok && text.contains("Read-only"), "{text}");
    let no = f.brain.try_berth(&["volume", "snapshot-rm", "data", "old"]);
    let told = String::from_utf8_lossy(&no.stderr).into_owned();
    assert!(
        !no.status.success() && told.contains("service audit reads snapshot old"),
        "{told}"
    );

    // A command that fails says why there is no snapshot, until it fails no more.
    read(&f, "db", "touch /data/no");
    f.brain.berth(&["volume", "snapshot", "data", "new", "-d"]);
    let told = eventually(SOON, || {
        let reason = volume(&f, "data")["reason"].as_str()?.to_owned();
        reason.contains("not today").then_some(reason)
    });
    let told = told.unwrap_or_else(|| panic!("{}", volume(&f, "data")));
    assert!(told.contains("the command before its snapshot failed"), "{told}");
    let state = |name: &str| {
        let shown = volume(&f, "data");
        let all = shown["snapshots"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|one| one["name"] == name);
        found.map(|one| one["state"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(state("new").as_deref(), Some("making"));
    read(&f, "db", "rm /data/no");
    let made = eventually(SOON, || (state("new").as_deref() == Some("ready")).then_some(()));
    assert!(made.is_some(), "{}", volume(&f, "data"));
    assert_eq!(volume(&f, "data")["reason"], Value::Null);

    // Nobody runs: nobody is asked. And nobody reads it any more: it goes.
    for service in ["db", "audit"] {
        f.brain.berth(&["service", "rm", service]);
    }
    let ended = eventually(SOON, || f.brain.running().is_empty().then_some(()));
    assert!(ended.is_some(), "{}", f.brain.berth(&["ps"]));
    f.brain.berth(&["volume", "snapshot", "data", "quiet"]);
    let gone = eventually(SOON, || {
        let out = f.brain.try_berth(&["volume", "snapshot-rm", "data", "old"]);
        out.status.success().then_some(())
    });
    assert!(gone.is_some(), "{}", volume(&f, "data"));
}

/// The writer's lines: who wrote each, and when, seconds. They are numbered from 1 on.
fn lines(log: &str) -> Vec<(String, f64)> {
    let lines = log.lines().enumerate().map(|(n, line)| {
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("torn: {line:?}"));
        assert_eq!(word(), (n + 1).to_string(), "a line is missing or there twice");
        (word().to_owned(), word().parse().expect("time"))
    });
    lines.collect()
}

/// The longest time between two of them after this one, seconds.
fn pause(lines: &[(String, f64)], after: usize) -> f64 {
    let times = lines.windows(2).skip(after).map(|two| two[1].1 - two[0].1);
    times.fold(0.0, f64::max)
}

fn where_is(f: &Fleet, name: &str) -> String {
    volume(f, name)["node_name"]
        .as_str()
        .unwrap_or("nowhere")
        .to_owned()
}

#[test]
fn r2_a_volume_moves_while_its_container_writes_and_no_acknowledged_line_is_lost() {
    let f = Fleet::with_volumes(2, 1 << 30);
    start(
        &f,
        "db",
        &["-v", "data:/data:size=100MiB", "-v", "more:/more:size=100MiB"],
        WRITER,
    );
    let first = f.brain.wait_running(1, 30);
    read(
        &f,
        "db",
        "dd if=/dev/urandom of=/more/blob bs=1M count=48 2>/dev/null && sync && echo x >/data/f",
    );
    let sum = read(&f, "db", "sha256sum </more/blob");
    f.brain.berth(&["volume", "snapshot", "data", "early"]);
    let address = first[0]["addresses"][0]["ipv4"].clone();
    let acknowledged = Acknowledged::follow(&f, "db");
    let mut pauses = Vec::new();
    for round in 0..10 {
        let from = where_is(&f, "data");
        let to = if from == "h1" { "h2" } else { "h1" };
        let before = lines(&read(&f, "db", "cat /data/log")).len();
        // It says what goes with it, and waits until it is there.
        f.brain.berth(&["volume", "move", "data", to]);
        let now = f.brain.wait_running(1, 60);
        assert_eq!(now[0]["node_name"], to, "round {round}");
        assert_eq!(
            now[0]["addresses"][0]["ipv4"], address,
            "its address goes with it"
        );
        assert_eq!(
            (where_is(&f, "data").as_str(), where_is(&f, "more").as_str()),
            (to, to)
        );
        let log = eventually(SOON, || {
            let (ok, log) = exec(&f, "db", "cat /data/log");
            ok.then(|| lines(&log)).filter(|lines| lines.len() > before + 40)
        });
        pauses.push(pause(&log.expect("it goes on"), before));
        assert_eq!(read(&f, "db", "sha256sum </more/blob"), sum, "round {round}");
        emptied(&f.disks[usize::from(from == "h2")].mount);
    }
    pauses.sort_by(f64::total_cmp);
    eprintln!(
        "pauses of ten moves: median {:.2} s, longest {:.2} s",
        pauses[5], pauses[9]
    );
    let acknowledged = acknowledged.all();
    let log = lines(&read(&f, "db", "cat /data/log"));
    for told in &acknowledged {
        let (number, writer) = told.split_once(' ').expect("number and writer");
        let number: usize = number.parse().expect("number");
        let line = log.get(number - 1).map(|(writer, _)| writer.as_str());
        assert_eq!(line, Some(writer), "line {number} was acknowledged and is lost");
    }
    let writers: BTreeSet<_> = log.iter().map(|(writer, _)| writer).collect();
    assert_eq!(writers.len(), 11, "each node's container wrote");
    assert!(
        acknowledged.len() > log.len() / 2,
        "{} of {}",
        acknowledged.len(),
        log.len()
    );
    // Its snapshots went along.
    f.brain.berth(&["volume", "rollback", "data", "early"]);
    assert!(!lines(&read(&f, "db", "cat /data/log")).is_empty());
    assert_eq!(read(&f, "db", "cat /data/f"), "x");
}

#[test]
fn a_drained_host_gives_its_volumes_away_and_a_lost_one_is_waited_for() {
    let mut f = Fleet::with_volumes(2, 1 << 30);
    start(
        &f,
        "db",
        &["-v", "own:/data:per-replica,size=100MiB", "--replicas", "2"],
        WRITER,
    );
    f.brain.wait_running(2, 30);
    f.brain.berth(&["node", "drain", "h1"]);
    let all = eventually(Duration::from_secs(120), || {
        let running = f.brain.running();
        let there = running.iter().filter(|c| c["node_name"] == "h2").count();
        (there == 2).then_some(())
    });
    assert!(
        all.is_some(),
        "{}\n{}",
        f.brain.berth(&["ps"]),
        f.brain.berth(&["volume", "ls"])
    );
    for name in ["db.1", "db.2"] {
        assert!(!lines(&read(&f, name, "cat /data/log")).is_empty());
    }
    f.brain.berth(&["node", "uncordon", "h1"]);
    // Its host is lost: the data is there and nowhere else.
    f.agents[1].kill9();
    f.brain.wait_node("h2", "lost", 30);
    let told = eventually(SOON, || {
        let events = f.brain.berth(&["events", "--limit", "50"]);
        events
            .contains("does not have its volume own-1, which is on h2")
            .then_some(())
    });
    assert!(told.is_some(), "{}", f.brain.berth(&["events", "--limit", "50"]));
    let state = volume(&f, "own-1");
    assert_eq!(state["state"], "unreachable", "{state}");
    f.agents[1].restart();
    f.brain.wait_node("h2", "ready", 30);
    assert_eq!(f.brain.wait_running(2, 30).len(), 2);
}
