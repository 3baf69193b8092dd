//! Limits on cgroup v2 under systemd, by what they do rather than by what is written.

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Machine, PATIENCE};
use berth_tests::operator::Operator as _;

const NODE: &str = "/sys/fs/cgroup/berth.slice/berth-containers.service/node";

/// A service of one container on the only host: its id, once it runs.
fn run(c: &Cluster, name: &str, options: &[&str], script: &str) -> String {
    let mut args = vec![
        "run",
        "example:1",
        "--name",
        name,
        "-d",
        "--stop-grace",
        "1s",
        "--disk",
        "64MiB",
    ];
    args.extend(options);
    args.extend(["--", "sh", "-c", script]);
    c.berth(&args);
    running(c, name)
}

fn running(c: &Cluster, name: &str) -> String {
    let found = c.wait_for(PATIENCE, |all| all.iter().any(|x| x["service_name"] == name));
    let all = found.unwrap_or_else(|why| panic!("{name}: {why}"));
    let its = all.iter().find(|x| x["service_name"] == name).expect("found");
    its["id"].as_str().expect("id").to_owned()
}

/// A file of a container's control group.
fn file(host: &Machine, id: &str, name: &str) -> String {
    host.ok(&format!("cat {NODE}/*/{id}/{name}"))
}

fn keyed(text: &str, key: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key} ")));
    line.and_then(|value| value.trim().parse().ok())
        .unwrap_or_else(|| panic!("{key} in {text}"))
}

/// CPU time of containers over some seconds, microseconds each.
fn cpu(host: &Machine, ids: &[&str], seconds: u64) -> Vec<f64> {
    let files: Vec<String> = ids.iter().map(|id| format!("{NODE}/*/{id}/cpu.stat")).collect();
    cpu_of(host, &files, seconds)
}

/// The same of groups by their files, all read at the same moments.
fn cpu_of(host: &Machine, files: &[String], seconds: u64) -> Vec<f64> {
    let read = format!("grep -h usage_usec {}", files.join(" "));
    let text = host.ok(&format!("{read}; sleep {seconds}; {read}"));
    let values: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split(' ').nth(1)?.parse().ok())
        .collect();
    assert_eq!(values.len(), files.len() * 2, "{text}");
    let (before, after) = values.split_at(files.len());
    before
        .iter()
        .zip(after)
        .map(|(before, after)| after - before)
        .collect()
}

const BUSY: &str = "while :; do :; done";
const TWICE_BUSY: &str = "while :; do :; done & while :; do :; done";

#[test]
fn r1_every_limit_holds_on_v2_and_systemd_leaves_them_alone() {
    let c = Cluster::trixie(1);
    let host = c.lab.host(1);
    cpu_limits(&c, host);
    memory_limits(&c, host);
    pids_and_io(&c, host);
    parents(&c, host);
    systemd(&c, host);
}

fn cpu_limits(c: &Cluster, host: &Machine) {
    // A quota holds while there is CPU to spare, and says in usage that it does.
    let quota = run(c, "quota", &["--cpus", "0.3", "--memory", "32MiB"], BUSY);
    let used = cpu(host, &[&quota], 6)[0] / 6e6;
    assert!((0.2..0.36).contains(&used), "{used} of 0.3 cores");
    assert!(keyed(&file(host, &quota, "cpu.stat"), "nr_throttled") > 0);
    // Live: the same process gets more.
    let before = pids(&c.running());
    c.berth(&["service", "update", "quota", "--cpus", "0.6"]);
    host.eventually(&format!("grep -q '^60000 ' {NODE}/*/{quota}/cpu.max"), PATIENCE);
    let used = cpu(host, &[&quota], 6)[0] / 6e6;
    assert!((0.42..0.7).contains(&used), "{used} of 0.6 cores");
    assert_eq!(pids(&c.running()), before, "no restart");
    c.berth(&["service", "rm", "quota"]);
    // Shares decide when there is not enough.
    let light = run(
        c,
        "light",
        &["--cpus", "2", "--cpu-weight", "100", "--memory", "32MiB"],
        TWICE_BUSY,
    );
    let heavy = run(
        c,
        "heavy",
        &["--cpus", "2", "--cpu-weight", "400", "--memory", "32MiB"],
        TWICE_BUSY,
    );
    let used = cpu(host, &[&light, &heavy], 10);
    let ratio = used[1] / used[0];
    assert!(
        (2.6..6.0).contains(&ratio),
        "shares of 1 to 4 came out as 1 to {ratio}"
    );
    // Waiting for CPU is pressure, and usage tells whose.
    let pressed = berth_tests::lab::eventually(PATIENCE, || {
        let top = c.json(&["top", "--once"]);
        let containers = top["containers"].as_array()?.clone();
        let light = containers.iter().find(|x| x["name"] == "light.1")?;
        light["usage"]["psi_cpu"]["some"]
            .as_u64()
            .filter(|some| *some > 500)
    });
    assert!(pressed.is_some(), "{}", c.berth(&["top", "--once", "-o", "json"]));
    c.berth(&["service", "rm", "light", "heavy"]);
}

fn memory_limits(c: &Cluster, host: &Machine) {
    // `tail` keeps what has no line end: it grows to what it is fed.
    let grow = "sleep 2; head -c 100000000 /dev/zero | tail >/dev/null; sleep 1000";
    let high = run(c, "high", &["--memory", "160MiB", "--memory-high", "40MiB"], grow);
    host.eventually(
        &format!("awk '$1==\"high\" && $2>0 {{ok=1}} END {{exit !ok}}' {NODE}/*/{high}/memory.events"),
        PATIENCE,
    );
    let events = file(host, &high, "memory.events");
    let current: u64 = file(host, &high, "memory.current").trim().parse().expect("bytes");
    assert_eq!(keyed(&events, "oom_kill"), 0, "slowed down, not killed: {events}");
    assert!(current < 80 << 20, "held near 40 MiB: {current}");
    c.berth(&["service", "rm", "high"]);
    // Over the limit: one OOM kill, the container ends and says why; the host does not notice.
    let args = ["--memory", "48MiB", "--restart", "never"];
    run(c, "hungry", &args, "sleep 4; exec tail /dev/zero");
    let said = berth_tests::lab::eventually(PATIENCE, || {
        let ps = c.berth(&["ps", "hungry"]);
        ps.contains("out of memory").then_some(ps)
    });
    assert!(said.is_some(), "{}", c.berth(&["ps", "hungry"]));
    let kills = host.ok("journalctl -k --no-pager | grep -c 'Memory cgroup out of memory'");
    assert!(kills.parse::<u64>().is_ok_and(|n| n >= 1), "{kills}");
    assert_eq!(
        host.ok("systemctl is-active berth-containers berth-agent berth-brain"),
        "active\nactive\nactive"
    );
    c.berth(&["service", "rm", "hungry"]);
}

fn pids_and_io(c: &Cluster, host: &Machine) {
    let script = "for i in $(seq 60); do sleep 1000 & done; wait";
    let bomb = run(
        c,
        "bomb",
        &["--pids", "16", "--memory", "64MiB", "--restart", "never"],
        &format!("sleep 1; ({script}); sleep 1000"),
    );
    host.eventually(
        &format!("awk '$1==\"max\" && $2>0 {{ok=1}} END {{exit !ok}}' {NODE}/*/{bomb}/pids.events"),
        PATIENCE,
    );
    let peak: u64 = host
        .ok(&format!("cat {NODE}/*/{bomb}/pids.current"))
        .parse()
        .expect("pids");
    assert!(peak <= 16, "{peak}");
    c.berth(&["service", "rm", "bomb"]);
    // Buffered writes are throttled on v2: the same with and without a tight limit, in one container's life.
    let script = "while :; do dd if=/dev/zero of=/f bs=1M count=16 2>/dev/null; sync /f; rm /f; done";
    let writer = run(c, "writer", &["--write-bps", "4MiB", "--memory", "64MiB"], script);
    let rate = |seconds: u64| {
        let stat = format!(
            "{{ cat {NODE}/*/{writer}/io.stat; echo wbytes=0; }} | grep -o 'wbytes=[0-9]*' | cut -d= -f2 | sort -n | tail -1"
        );
        let text = host.ok(&format!(
            "cat /proc/uptime; {stat}; sleep {seconds}; cat /proc/uptime; {stat}"
        ));
        let numbers: Vec<f64> = text
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        // uptime, idle, bytes, twice
        (numbers[5] - numbers[2]) / (numbers[3] - numbers[0])
    };
    host.eventually(&format!("test -n \"$(cat {NODE}/*/{writer}/io.stat)\""), PATIENCE);
    let limited = rate(12);
    assert!(
        (1.0e6..5.5e6).contains(&limited),
        "{limited} bytes a second at a limit of 4 MiB"
    );
    let before = pids(&c.running());
    c.berth(&["service", "update", "writer", "--write-bps", "100MiB"]);
    host.eventually(
        &format!("grep -q wbps=104857600 {NODE}/*/{writer}/io.max"),
        PATIENCE,
    );
    let free = rate(6);
    assert!(free > limited * 2.0, "{free} after, {limited} before");
    assert_eq!(pids(&c.running()), before, "no restart");
    c.berth(&["service", "rm", "writer"]);
}

fn parents(c: &Cluster, host: &Machine) {
    // Tenants share by weight, whatever their containers have.
    for (tenant, weight) in [("red", "100"), ("blue", "300")] {
        c.berth(&["tenant", "create", tenant]);
        c.berth(&["tenant", "quota", tenant, "--cpu-weight", weight]);
        c.berth(&[
            "image",
            "load",
            "/tmp/example.tar",
            "--name",
            "example:1",
            "--tenant",
            tenant,
        ]);
        let args = [
            "run",
            "example:1",
            "--name",
            tenant,
            "--tenant",
            tenant,
            "-d",
            "--memory",
            "32MiB",
            "--disk",
            "8MiB",
        ];
        let mut args = args.to_vec();
        args.extend(["--cpus", "2", "--stop-grace", "1s", "--", "sh", "-c", TWICE_BUSY]);
        c.berth(&args);
    }
    let (red, blue) = (c.only_container_of("red"), c.only_container_of("blue"));
    let used = cpu(host, &[&red, &blue], 10);
    let ratio = used[1] / used[0];
    assert!(
        (2.0..4.5).contains(&ratio),
        "shares of 1 to 3 came out as 1 to {ratio}"
    );
    // All together never get more than the node's allocatable, so that the system keeps its reserve.
    let node = c.items(&["node", "ls"]).remove(0);
    let allocatable = node["allocatable"]["memory"].as_u64().expect("bytes");
    let held: u64 = host.ok(&format!("cat {NODE}/memory.max")).parse().expect("bytes");
    assert!(held.abs_diff(allocatable) < 4096, "{held} for {allocatable}");
    let cores = node["allocatable"]["cpu"].as_u64().expect("millicores");
    assert_eq!(
        host.ok(&format!("cat {NODE}/cpu.max")),
        format!("{} 100000", cores * 100)
    );
    // Four busy loops want both processors: what keeps them below is the parent's quota.
    let throttled = || keyed(&host.ok(&format!("cat {NODE}/cpu.stat")), "nr_throttled");
    let before = throttled();
    let used = cpu_of(host, &[format!("{NODE}/cpu.stat")], 6)[0] / 6e6;
    assert!(throttled() > before, "the parent's quota was met");
    assert!(used < cores as f64 / 1000.0 * 1.02, "{used} cores");
    for tenant in ["red", "blue"] {
        c.berth(&["service", "rm", tenant, "--tenant", tenant]);
    }
}

fn systemd(c: &Cluster, host: &Machine) {
    let calm = run(
        c,
        "calm",
        &["--cpus", "0.5", "--memory", "32MiB", "--pids", "20"],
        "sleep 1000",
    );
    let files = [
        "cpu.max",
        "cpu.weight",
        "memory.max",
        "memory.swap.max",
        "pids.max",
        "io.max",
    ];
    let limits = || files.map(|name| file(host, &calm, name));
    let (before, running) = (limits(), pids(&c.running()));
    // What systemd does on its own group does not reach berth's, and the other way round.
    host.ok(
        "systemctl daemon-reload; systemctl daemon-reexec; systemctl set-property --runtime berth.slice CPUWeight=50
        systemctl set-property --runtime berth-containers.service MemoryHigh=infinity; systemctl restart containerd; sleep 2",
    );
    assert_eq!(limits(), before);
    assert_eq!(
        host.ok("systemctl show -p Delegate --value berth-containers"),
        "yes"
    );
    // The one process that holds the group is not what containers hang on.
    host.ok("kill -9 $(systemctl show -p MainPID --value berth-containers); sleep 3");
    assert_eq!(
        host.ok("systemctl is-active berth-containers"),
        "active",
        "it is started again"
    );
    // An agent that hangs is ended by its watchdog and started anew.
    host.write(
        "/etc/systemd/system/berth-agent.service.d/lab.conf",
        b"[Service]\nWatchdogSec=15\n",
        0o644,
    );
    host.ok("systemctl daemon-reload; systemctl restart berth-agent");
    let agent = host.ok("systemctl show -p MainPID --value berth-agent");
    host.ok(&format!("kill -STOP {agent}"));
    host.eventually(
        &format!("new=$(systemctl show -p MainPID --value berth-agent); test $new != {agent} -a $new != 0 && systemctl is-active -q berth-agent"),
        PATIENCE,
    );
    let log = host.ok("journalctl -u berth-agent --no-pager | grep -c -i 'watchdog timeout'");
    assert_eq!(log, "1");
    c.wait_node("host1", "ready", 30);
    assert_eq!(pids(&c.running()), running, "R3");
    assert_eq!(limits(), before);
    // Logs have fields of their own, and the units are no more exposed than the README says.
    let found =
        host.ok("journalctl -u berth-agent -q -o cat --no-pager BERTH_NAME=host1 BERTH_CGROUPS=2 | sort -u");
    assert!(
        found.contains("starting") && found.contains("name=host1"),
        "{found}"
    );
    for (unit, most) in [("berth-agent", 6.2), ("berth-brain", 1.7)] {
        let line = host.ok(&format!(
            "systemd-analyze security {unit}.service --no-pager | tail -1"
        ));
        let figure: f64 = line
            .split(": ")
            .nth(1)
            .and_then(|x| x.split(' ').next()?.parse().ok())
            .expect("figure");
        assert!(figure <= most, "{line}");
    }
    c.berth(&["service", "rm", "calm"]);
}
