//! A crowd of simulated agents, with the real protocol, reconciler and ledger, on one real brain that is killed under them.

use std::collections::BTreeSet;
use std::time::Duration;

use berth_tests::cluster::Brain;
use berth_tests::crowd::{assert_r4, ready, spawn, tokens};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;

const AGENTS: usize = 40;
const REPLICAS: usize = 120;

#[test]
fn r4_a_crowd_comes_back_to_a_killed_brain_whole_and_nothing_is_doubled() {
    let dir = tempfile::tempdir().expect("folder");
    let mut brain = Brain::start(&dir.path().join("brain"));
    let tokens = tokens(&brain, AGENTS);
    let sizes = ["--cpu", "2", "--memory", "4GiB", "--disk", "64GiB"];
    let sim = spawn(dir.path(), AGENTS, &tokens, &sizes);
    let all = |brain: &Brain, what: &str| {
        let all = eventually(Duration::from_secs(60), || (ready(brain) == AGENTS).then_some(()));
        assert!(
            all.is_some(),
            "{what}: {} of {AGENTS}\n{}",
            ready(brain),
            sim.output()
        );
    };
    all(&brain, "joined");
    let replicas = REPLICAS.to_string();
    for name in ["web", "api"] {
        brain.berth(&[
            "run",
            "example:1",
            "--name",
            name,
            "-d",
            "--replicas",
            &replicas,
            "--memory",
            "256MiB",
            "--disk",
            "64MiB",
            "--",
            "x",
        ]);
    }
    let settled = |brain: &Brain| {
        let running = brain.wait_running(2 * REPLICAS, 60);
        let ids: BTreeSet<_> = running
            .iter()
            .map(|c| c["id"].as_str().expect("id").to_owned())
            .collect();
        let places: BTreeSet<_> = running
            .iter()
            .map(|c| (c["service_name"].to_string(), c["replica"].as_u64()))
            .collect();
        assert_eq!((ids.len(), places.len()), (2 * REPLICAS, 2 * REPLICAS), "doubled");
        assert_r4(brain);
        ids
    };
    let before = settled(&brain);
    for round in 0..2 {
        brain.kill9();
        brain.restart();
        all(&brain, "came back");
        assert_eq!(
            settled(&brain),
            before,
            "round {round}: no container was replaced"
        );
    }
    // Changes that are cut off: some replicas are asked for just before the kill.
    brain.berth(&["service", "scale", "web", "100"]);
    brain.berth(&["service", "scale", "api", "140"]);
    brain.kill9();
    brain.restart();
    all(&brain, "came back");
    settled(&brain);
    drop(sim);
}
