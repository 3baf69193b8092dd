//! What the daemons cost while nothing happens.

use std::time::Duration;

use super::{cpu_seconds, rss_mib};
use crate::cluster::{Agent, Brain};
use crate::operator::Operator as _;

/// Runs `count` idle containers and reads memory and CPU of agent and brain over `span`.
///
/// # Errors
/// When the cluster can't be set up.
pub fn run(count: usize, span: Duration) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let brain = Brain::start(&dir.path().join("brain"));
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    let replicas = count.to_string();
    for (network, of) in [("default", "a network"), ("none", "no network")] {
        brain.berth(&[
            "run",
            "example:1",
            "--name",
            "idle",
            "-d",
            "--network",
            network,
            "--replicas",
            &replicas,
            "--cpus",
            "0.1",
            "--reserve-cpu",
            "1m",
            "--memory",
            "8MiB",
            "--disk",
            "2MiB",
            "--",
            "sleep",
            "1000000",
        ]);
        brain.wait_running(count, 180);
        std::thread::sleep(Duration::from_secs(5));
        let before = (cpu_seconds(agent.pid()), cpu_seconds(brain.pid()));
        std::thread::sleep(span);
        let percent = |now: f64, then: f64| (now - then) / span.as_secs_f64() * 100.0;
        println!(
            "idle: agent with {count} containers on {of}: {:.1} MiB RSS, {:.2} % of a core; brain with one node: {:.1} MiB RSS, {:.2} %",
            rss_mib(agent.pid()),
            percent(cpu_seconds(agent.pid()), before.0),
            rss_mib(brain.pid()),
            percent(cpu_seconds(brain.pid()), before.1),
        );
        brain.berth(&["service", "rm", "idle"]);
        brain.wait_running(0, 120);
    }
    Ok(())
}
