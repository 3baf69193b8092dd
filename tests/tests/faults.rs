//! kill −9 at every step: nothing is lost, started twice or leaked.

use std::collections::BTreeMap;
use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::containerd::Version;
use berth_tests::operator::Operator as _;
use berth_tests::process::{alive, eventually};
use berth_tests::registry::{Fault, Image, Layer, Packing, Registry};

fn bench() -> (tempfile::TempDir, Brain, Agent) {
    bench_on(Version::System)
}

fn bench_on(version: Version) -> (tempfile::TempDir, Brain, Agent) {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let token = brain.json(&["node", "token"])["token"]
        .as_str()
        .expect("token")
        .to_owned();
    let agent = Agent::join(&token, &dir.path().join("h1"), "h1", None, version, "");
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    (dir, brain, agent)
}

fn pids(brain: &Brain) -> BTreeMap<String, u64> {
    brain
        .running()
        .iter()
        .map(|c| {
            (
                c["id"].as_str().expect("id").to_owned(),
                c["observed"]["pid"].as_u64().expect("pid"),
            )
        })
        .collect()
}

fn start_sleepers(brain: &Brain, count: usize) -> BTreeMap<String, u64> {
    let replicas = count.to_string();
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "sleeper",
        "-d",
        "--replicas",
        &replicas,
        "--memory",
        "16MiB",
        "--disk",
        "8MiB",
        "--",
        "sh",
        "-c",
        "trap 'exit 0' TERM; while true; do sleep 0.2; done",
    ]);
    brain.wait_running(count, 40);
    pids(brain)
}

#[test]
fn r3_killing_agent_brain_and_containerd_stops_no_container() {
    let (_dir, mut brain, mut agent) = bench();
    let before = start_sleepers(&brain, 4);
    let all_alive = || before.values().all(|pid| alive(*pid as u32));

    agent.kill9();
    assert!(all_alive());
    agent.restart();
    brain.wait_node("h1", "ready", 20);
    assert!(all_alive());
    brain.wait_running(4, 20);
    assert_eq!(pids(&brain), before, "adopted, not started again");

    brain.kill9();
    assert!(all_alive());
    brain.restart();
    brain.wait_node("h1", "ready", 20);
    brain.wait_running(4, 20);
    assert_eq!(pids(&brain), before);

    agent.containerd.kill9();
    assert!(all_alive());
    agent.containerd.restart();
    brain.wait_running(4, 20);
    assert_eq!(pids(&brain), before);

    // All three at once.
    agent.kill9();
    agent.containerd.kill9();
    brain.kill9();
    assert!(all_alive());
    agent.containerd.restart();
    agent.restart();
    brain.restart();
    brain.wait_node("h1", "ready", 20);
    brain.wait_running(4, 20);
    assert_eq!(pids(&brain), before);
}

#[test]
fn r3_with_the_brain_away_crashed_containers_start_again_and_a_restarted_agent_keeps_its_set() {
    let (_dir, mut brain, mut agent) = bench();
    let before = start_sleepers(&brain, 2);
    brain.kill9();
    let victim = *before.values().next().expect("one") as u32;
    berth_tests::process::signal(victim, nix::sys::signal::Signal::SIGKILL);
    let tasks = |agent: &Agent| {
        agent
            .containerd
            .ctr(&["tasks", "ls"])
            .lines()
            .filter(|line| line.contains("RUNNING"))
            .count()
    };
    let back = eventually(Duration::from_secs(20), || {
        (tasks(&agent) == 2 && !alive(victim)).then_some(())
    });
    assert!(back.is_some(), "{}", agent.log());
    // The agent dies too; without a brain it knows from its ledger what to run.
    agent.kill9();
    for pid in before.values().skip(1) {
        berth_tests::process::signal(*pid as u32, nix::sys::signal::Signal::SIGKILL);
    }
    agent.restart();
    let back = eventually(Duration::from_secs(20), || (tasks(&agent) == 2).then_some(()));
    assert!(back.is_some(), "{}", agent.log());
    brain.restart();
    brain.wait_running(2, 30);
}

#[test]
fn a_killed_shim_and_a_killed_pid_1_are_replaced() {
    let (_dir, brain, agent) = bench();
    let before = start_sleepers(&brain, 1);
    let pid = *before.values().next().expect("one") as u32;
    berth_tests::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
    let second = eventually(Duration::from_secs(20), || {
        brain
            .running()
            .iter()
            .find_map(|c| c["observed"]["pid"].as_u64().filter(|p| *p as u32 != pid))
    })
    .unwrap_or_else(|| panic!("{}\n{}", brain.berth(&["ps"]), agent.log()));
    let shim = agent.containerd.shims();
    assert_eq!(shim.len(), 1);
    berth_tests::process::signal(shim[0], nix::sys::signal::Signal::SIGKILL);
    let third = eventually(Duration::from_secs(40), || {
        brain
            .running()
            .iter()
            .find_map(|c| c["observed"]["pid"].as_u64().filter(|p| *p != second))
    });
    assert!(third.is_some(), "{}\n{}", brain.berth(&["ps"]), agent.log());
    assert!(
        !alive(second as u32),
        "the orphan of the killed shim must not go on beside its replacement"
    );
}

#[test]
fn r5_what_the_api_acknowledged_survives_kill_9_of_the_brain() {
    let dir = tempfile::tempdir().expect("folder");
    let mut brain = Brain::start(&dir.path().join("brain"));
    let mut acknowledged = 0;
    for round in 0..5 {
        let base = round * 1000;
        let stop = std::sync::atomic::AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut done = Vec::new();
                for n in base.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("t{n}");
                    if brain.try_berth(&["tenant", "create", &name]).status.success() {
                        done.push(name);
                    } else {
                        break;
                    }
                }
                done
            });
            std::thread::sleep(Duration::from_millis(400 + 90 * round));
            berth_tests::process::signal(brain.pid(), nix::sys::signal::Signal::SIGKILL);
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            writer.join().expect("writer")
        });
        brain.restart();
        let names: std::collections::BTreeSet<String> = brain
            .items(&["tenant", "ls"])
            .iter()
            .map(|t| t["name"].as_str().expect("name").to_owned())
            .collect();
        for name in &done {
            assert!(names.contains(name), "{name} was acknowledged and is lost");
        }
        acknowledged += done.len();
    }
    assert!(
        acknowledged > 20,
        "the test must have written something: {acknowledged}"
    );
}

/// What is left of containers on a node once their service is gone: records, snapshots with a process' writes, shims, cgroups.
fn leftovers(agent: &Agent) -> Vec<String> {
    let mut left = Vec::new();
    for line in agent.containerd.ctr(&["containers", "ls", "-q"]).lines() {
        left.push(format!("container {line}"));
    }
    for line in agent.containerd.ctr(&["snapshots", "ls"]).lines().skip(1) {
        if line.contains("Active") {
            left.push(format!("snapshot {line}"));
        }
    }
    for shim in agent.containerd.shims() {
        left.push(format!("shim {shim}"));
    }
    left
}

fn wait_nothing_left(brain: &Brain, agent: &Agent, seconds: u64) {
    let gone = eventually(Duration::from_secs(seconds), || {
        (brain.items(&["ps"]).is_empty() && leftovers(agent).is_empty()).then_some(())
    });
    assert!(
        gone.is_some(),
        "left: {:?}\n{}",
        leftovers(agent),
        brain.berth(&["ps"])
    );
}

fn run_tasks(agent: &Agent) -> usize {
    let tasks = agent.containerd.ctr(&["tasks", "ls"]);
    tasks.lines().filter(|line| line.contains("RUNNING")).count()
}

const SLEEPER: [&str; 3] = ["sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"];

fn run_detached(brain: &Brain, name: &str, replicas: &str) {
    let mut args = vec!["run", "example:1", "--name", name, "-d", "--replicas", replicas];
    args.extend(["--memory", "16MiB", "--disk", "8MiB", "--"]);
    args.extend(SLEEPER);
    brain.berth(&args);
}

#[test]
fn containerd_killed_during_start_is_survived() {
    for version in Version::ALL {
        let (_dir, brain, mut agent) = bench_on(version);
        for pause in [20, 60, 120, 200] {
            let name = format!("s{pause}");
            run_detached(&brain, &name, "3");
            std::thread::sleep(Duration::from_millis(pause));
            agent.containerd.kill9();
            std::thread::sleep(Duration::from_millis(300));
            agent.containerd.restart();
            brain.wait_running(3, 60);
            assert_eq!(run_tasks(&agent), 3, "nothing twice");
            brain.berth(&["service", "rm", &name]);
            wait_nothing_left(&brain, &agent, 30);
        }
    }
}

#[test]
fn killing_the_agent_at_every_moment_of_start_and_stop_leaks_nothing() {
    let (_dir, brain, mut agent) = bench();
    for pause in [0, 15, 30, 60, 90, 130, 200, 300] {
        let name = format!("s{pause}");
        run_detached(&brain, &name, "3");
        std::thread::sleep(Duration::from_millis(pause));
        agent.kill9();
        agent.restart();
        brain.wait_running(3, 60);
        assert_eq!(run_tasks(&agent), 3, "nothing twice");
        brain.berth(&["service", "rm", &name]);
        std::thread::sleep(Duration::from_millis(pause * 4));
        agent.kill9();
        agent.restart();
        wait_nothing_left(&brain, &agent, 60);
    }
}

#[test]
fn a_stuck_shim_costs_its_container_nothing_and_does_not_keep_it_from_being_removed() {
    let (_dir, brain, agent) = bench();
    let before = start_sleepers(&brain, 1);
    let shims = agent.containerd.shims();
    assert_eq!(shims.len(), 1);
    berth_tests::process::signal(shims[0], nix::sys::signal::Signal::SIGSTOP);
    // Another container comes and goes, so that the node is looked at while the shim is silent.
    run_detached(&brain, "other", "1");
    brain.wait_running(2, 60);
    brain.berth(&["service", "rm", "other"]);
    std::thread::sleep(Duration::from_secs(5));
    let after = brain.wait_running(1, 60);
    assert_eq!(
        after[0]["observed"]["pid"].as_u64(),
        before.values().next().copied()
    );
    assert!(before.values().all(|pid| alive(*pid as u32)));

    brain.berth(&["service", "rm", "sleeper"]);
    wait_nothing_left(&brain, &agent, 90);
    assert!(before.values().all(|pid| !alive(*pid as u32)));
}

#[test]
fn an_agent_killed_in_the_middle_of_a_pull_resumes_it_and_leaks_nothing() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let registry = runtime.block_on(Registry::start());
    let mut state = 7u64;
    let mut noise = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    let big: Vec<u8> = (0..6 << 20).map(&mut noise).collect();
    let image = Image::new(&[(Layer::files(&[("data", &big)]), Packing::Gzip)], false);
    let layer = image.layers[0];
    registry.add("x:1", &image, image.manifest);
    registry.fault(layer, Fault::Stall(4 << 20, 1));

    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let token = brain.json(&["node", "token"])["token"]
        .as_str()
        .expect("token")
        .to_owned();
    let extra = format!("insecure_registries = [\"{}\"]", registry.host());
    let home = dir.path().join("h1");
    let mut agent = Agent::join(&token, &home, "h1", None, Version::System, &extra);
    brain.wait_node("h1", "ready", 20);
    let reference = registry.reference("x:1").to_string();
    brain.berth(&[
        "run", &reference, "--name", "x", "-d", "--disk", "32MiB", "--", "/data",
    ]);
    let active = |agent: &Agent| agent.containerd.ctr(&["content", "active"]);
    let stalled = eventually(Duration::from_secs(20), || {
        active(&agent)
            .lines()
            .any(|line| line.contains("MB"))
            .then_some(())
    });
    assert!(
        stalled.is_some(),
        "no download: {}\n{}",
        active(&agent),
        agent.log()
    );
    agent.kill9();
    agent.restart();
    let there = eventually(Duration::from_secs(40), || {
        let images = brain.try_berth(&["image", "ls", "-o", "json"]);
        String::from_utf8_lossy(&images.stdout)
            .contains(&image.manifest.to_string())
            .then_some(())
    });
    assert!(there.is_some(), "the pull did not go on:\n{}", agent.log());
    let asked: Vec<_> = registry
        .seen()
        .into_iter()
        .filter(|seen| seen.path.ends_with(&layer.to_string()))
        .collect();
    let from: u64 = asked
        .last()
        .and_then(|seen| seen.range.as_deref())
        .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
        .expect("the rest was asked for, not the whole");
    assert!(asked.len() == 2 && from >= 1 << 20, "{asked:?}");
    brain.berth(&["service", "rm", "x"]);
    let clean = eventually(Duration::from_secs(30), || {
        let leases = agent.containerd.ctr(&["leases", "ls", "-q"]);
        (active(&agent).lines().count() <= 1 && leases.trim().is_empty()).then_some(())
    });
    assert!(
        clean.is_some(),
        "left: {} {}",
        active(&agent),
        agent.containerd.ctr(&["leases", "ls"])
    );
    drop(registry);
}
