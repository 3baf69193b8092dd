//! What a developer does on one host: run, look, change, stop, remove. Real brain, agent and containerd.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::operator::Operator as _;
use berth_tests::process::{alive, eventually};

fn bench() -> (tempfile::TempDir, Brain, Agent) {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    (dir, brain, agent)
}

fn pid_of(brain: &Brain, name: &str) -> u32 {
    let items = brain.items(&["ps"]);
    let found = items
        .iter()
        .find(|c| c["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"));
    found["observed"]["pid"]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} has no pid: {found:#}")) as u32
}

#[test]
fn a_service_lives_from_run_to_rm() {
    let (_dir, brain, agent) = bench();
    let out = brain.berth(&[
        "run",
        "example:1",
        "--name",
        "web",
        "--cpus",
        "0.5",
        "--memory",
        "64MiB",
        "--pids",
        "50",
        "--disk",
        "32MiB",
        "-e",
        "COLOUR=blue",
        "--",
        "sh",
        "-c",
        "echo out-$COLOUR; echo err >&2; trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done",
    ]);
    assert!(out.contains("web"), "{out}");
    let web = &brain.wait_running(1, 20)[0];
    assert_eq!(web["name"], "web.1");

    // Limits as the kernel has them, through the pid alone.
    let pid = pid_of(&brain, "web.1");
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("cgroup");
    let file = |controller: &str, name: &str| {
        let line = cgroups
            .lines()
            .find(|l| l.split(':').nth(1) == Some(controller))
            .expect(controller);
        let path = line.splitn(3, ':').nth(2).expect("path");
        std::fs::read_to_string(format!("/sys/fs/cgroup/{controller}{path}/{name}"))
            .expect(name)
            .trim()
            .to_owned()
    };
    assert_eq!(file("memory", "memory.limit_in_bytes"), (64 << 20).to_string());
    assert_eq!(file("pids", "pids.max"), "50");
    let quota: i64 = file("cpu", "cpu.cfs_quota_us").parse().expect("quota");
    let period: i64 = file("cpu", "cpu.cfs_period_us").parse().expect("period");
    assert_eq!(quota * 2, period, "half a core");
    assert!(
        !file("blkio", "blkio.throttle.write_bps_device").is_empty(),
        "IO limits"
    );
    // Not root on the host, and no new privileges.
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    assert!(
        !status.contains("Uid:\t0\t"),
        "user namespace expected:\n{status}"
    );
    assert!(
        status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"),
        "{status}"
    );

    // Output, both streams, in order.
    let logs = eventually(Duration::from_secs(5), || {
        let out = brain.try_berth(&["logs", "web.1"]);
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        (text.contains("out-blue") && String::from_utf8_lossy(&out.stderr).contains("err")).then_some(text)
    });
    assert!(logs.is_some(), "{:?}", brain.try_berth(&["logs", "web.1"]));

    // Exec passes input, output and exit codes.
    let out = brain.try_berth(&["exec", "web.1", "sh", "-c", "echo in; id -u; exit 7"]);
    assert_eq!(out.status.code(), Some(7), "{out:?}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "in\n0\n");
    let mut cat = brain.berth_command(&["exec", "-i", "web.1", "cat"]);
    let mut cat = cat
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("exec");
    std::io::Write::write_all(&mut cat.stdin.take().expect("stdin"), b"through\n").expect("write");
    let out = cat.wait_with_output().expect("cat");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "through\n");

    // A live change keeps the process.
    brain.berth(&[
        "service",
        "update",
        "web",
        "--memory",
        "96MiB",
        "--cpus",
        "0.75",
        "--pids",
        "60",
        "--write-bps",
        "8MiB",
    ]);
    let changed = eventually(Duration::from_secs(10), || {
        (file("memory", "memory.limit_in_bytes") == (96 << 20).to_string()
            && file("pids", "pids.max") == "60"
            && file("blkio", "blkio.throttle.write_bps_device").ends_with(&(8 << 20).to_string()))
        .then_some(())
    });
    assert!(changed.is_some(), "limits did not change:\n{}", agent.log());
    assert_eq!(
        pid_of(&brain, "web.1"),
        pid,
        "a change of limits must not restart"
    );

    // Scale, stop, start, restart.
    brain.berth(&["service", "scale", "web", "3"]);
    brain.wait_running(3, 20);
    brain.berth(&["service", "scale", "web", "1"]);
    brain.wait_running(1, 30);
    brain.berth(&["stop", "web"]);
    brain.wait_running(0, 20);
    let dead = eventually(Duration::from_secs(15), || (!alive(pid)).then_some(()));
    assert!(dead.is_some(), "{pid} still runs after stop");
    brain.berth(&["start", "web"]);
    brain.wait_running(1, 20);
    let before = pid_of(&brain, "web.1");
    brain.berth(&["restart", "web.1"]);
    let restarted = eventually(Duration::from_secs(20), || {
        brain
            .running()
            .iter()
            .any(|c| c["observed"]["pid"].as_u64().is_some_and(|p| p as u32 != before))
            .then_some(())
    });
    assert!(restarted.is_some(), "{}", brain.berth(&["ps"]));

    // Nothing is left behind.
    brain.berth(&["service", "rm", "web"]);
    let gone = eventually(Duration::from_secs(30), || {
        brain.items(&["ps"]).is_empty().then_some(())
    });
    assert!(gone.is_some(), "{}", brain.berth(&["ps"]));
    assert_nothing_left(&agent);
}

fn assert_nothing_left(agent: &Agent) {
    let clean = eventually(Duration::from_secs(10), || {
        let containers = agent.containerd.ctr(&["containers", "ls", "-q"]);
        let tasks = agent.containerd.ctr(&["tasks", "ls", "-q"]);
        let snapshots = agent.containerd.ctr(&["snapshots", "ls"]);
        let active = snapshots.lines().filter(|l| l.contains("Active")).count();
        (containers.trim().is_empty() && tasks.trim().is_empty() && active == 0).then_some(())
    });
    assert!(
        clean.is_some(),
        "left over:\n{}\n{}\n{}",
        agent.containerd.ctr(&["containers", "ls"]),
        agent.containerd.ctr(&["tasks", "ls"]),
        agent.containerd.ctr(&["snapshots", "ls"])
    );
    assert!(agent.containerd.shims().is_empty(), "shims left");
    let dir = agent.dir().display().to_string();
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let left: Vec<_> = mounts
        .lines()
        .filter(|l| l.contains(&format!("{dir}/run")))
        .collect();
    assert!(left.is_empty(), "mounts left: {left:?}");
}

#[test]
fn logs_follow_while_the_container_writes() {
    let (_dir, brain, _agent) = bench();
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "count",
        "--",
        "sh",
        "-c",
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done",
    ]);
    brain.wait_running(1, 20);
    let mut follow: Command = brain.berth_command(&["logs", "-f", "--tail", "2", "count.1"]);
    let mut child = follow.stdout(Stdio::piped()).spawn().expect("logs");
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let numbers: Vec<u64> = lines
        .map_while(Result::ok)
        .filter_map(|line| line.rsplit(' ').next()?.parse().ok())
        .take(40)
        .collect();
    let _ = child.kill();
    let _ = child.wait();
    assert_eq!(numbers.len(), 40);
    assert!(
        numbers.windows(2).all(|pair| pair[1] == pair[0] + 1),
        "a line is missing or doubled: {numbers:?}"
    );
}

#[test]
fn r9_a_container_that_fits_nowhere_says_why() {
    let (_dir, brain, _agent) = bench();
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "big",
        "-d",
        "--memory",
        "900GiB",
        "--",
        "sleep",
        "1000",
    ]);
    let waiting = eventually(Duration::from_secs(5), || {
        let items = brain.items(&["ps"]);
        items
            .iter()
            .find_map(|c| c["waiting"].as_str().map(str::to_owned))
    })
    .expect("a reason");
    assert!(waiting.contains("memory") && waiting.contains("900"), "{waiting}");
    let table = brain.berth(&["ps"]);
    assert!(table.contains("memory"), "ps shows the reason:\n{table}");
}

#[test]
fn exits_and_restarts_are_told_truthfully() {
    let (_dir, brain, _agent) = bench();
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "once",
        "-d",
        "--restart",
        "never",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]);
    let exit = eventually(Duration::from_secs(20), || {
        brain
            .items(&["ps"])
            .iter()
            .find(|c| c["observed"]["phase"] == "exited")
            .cloned()
    })
    .unwrap_or_else(|| panic!("{}", brain.berth(&["ps"])));
    assert_eq!(exit["observed"]["last_exit"]["code"], 3);
    brain.berth(&["service", "rm", "once"]);

    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "crash",
        "-d",
        "--",
        "sh",
        "-c",
        "sleep 0.2; exit 1",
    ]);
    let restarts = eventually(Duration::from_secs(30), || {
        let items = brain.items(&["ps"]);
        items
            .iter()
            .find(|c| c["observed"]["restarts"].as_u64().is_some_and(|n| n >= 2))
            .cloned()
    });
    assert!(restarts.is_some(), "{}", brain.berth(&["ps"]));
    brain.berth(&["service", "rm", "crash"]);

    // PID 1 is the one that eats: out of memory, exit 137.
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "eater",
        "-d",
        "--restart",
        "never",
        "--memory",
        "32MiB",
        "--",
        "sh",
        "-c",
        "x=aaaaaaaaaaaaaaaa; while true; do x=$x$x; done",
    ]);
    let dead = eventually(Duration::from_secs(30), || {
        brain
            .items(&["ps"])
            .iter()
            .find(|c| c["observed"]["phase"] == "exited")
            .cloned()
    })
    .unwrap_or_else(|| panic!("{}", brain.berth(&["ps"])));
    assert_eq!(dead["observed"]["last_exit"]["oom"], true, "{dead:#}");
    assert_eq!(dead["observed"]["last_exit"]["code"], 137, "{dead:#}");
}
