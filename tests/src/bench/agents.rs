//! Many agents on one brain: real protocol over real QUIC, fakes below.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{cpu_seconds, rss_mib};
use crate::cluster::Brain;
use crate::operator::Operator as _;
use crate::process::{Process, eventually};
use crate::program;

/// `agents` simulated agents with `each` containers: the brain's cost in steady state, and reconnecting after its restart.
///
/// # Errors
/// When they can't be set up.
pub fn run(agents: usize, each: usize, span: Duration) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut brain = Brain::start(&dir.path().join("brain"));
    let (client, base, token) = brain.http()?;
    let runtime = tokio::runtime::Handle::current();
    let tokens = dir.path().join("tokens");
    let mut lines = String::new();
    for _ in 0..agents {
        let answer = client
            .post(format!("{base}/v1/nodes/tokens"))
            .bearer_auth(&token)
            .json(&serde_json::json!({}));
        let value: serde_json::Value =
            runtime.block_on(async { answer.send().await?.error_for_status()?.json().await })?;
        lines.push_str(value["token"].as_str().unwrap_or_default());
        lines.push('\n');
    }
    std::fs::write(&tokens, lines)?;
    let mut command = Command::new(program("agent-sim"));
    command
        .args(["--agents", &agents.to_string(), "--dir"])
        .arg(dir.path().join("sim"))
        .arg("--tokens")
        .arg(&tokens);
    command.stdin(Stdio::null());
    let sim = Process::spawn(command, &dir.path().join("sim.log"));
    let connected = |brain: &Brain| {
        brain
            .items(&["node", "ls"])
            .iter()
            .filter(|n| n["state"] == "ready")
            .count()
    };
    let up = eventually(Duration::from_secs(180), || {
        (connected(&brain) == agents).then_some(())
    });
    anyhow::ensure!(
        up.is_some(),
        "only {} of {agents} joined\n{}",
        connected(&brain),
        sim.output()
    );
    let began = Instant::now();
    let services = each;
    for n in 0..services {
        let name = format!("s{n}");
        let replicas = agents.to_string();
        brain.berth(&[
            "run",
            "example:1",
            "--name",
            &name,
            "-d",
            "--replicas",
            &replicas,
            "--memory",
            "64MiB",
            "--",
            "x",
        ]);
    }
    let wanted = agents * services;
    let all = eventually(Duration::from_secs(240), || {
        (brain.count_running() >= wanted).then_some(())
    });
    println!(
        "agents: {agents} agents, {} of {wanted} containers running after {:.1} s",
        brain.count_running(),
        began.elapsed().as_secs_f64()
    );
    anyhow::ensure!(all.is_some(), "containers did not come up");
    std::thread::sleep(Duration::from_secs(5));
    let before = cpu_seconds(brain.pid());
    std::thread::sleep(span);
    println!(
        "agents: brain in steady state: {:.1} % of a core, {:.0} MiB RSS (simulator: {:.0} MiB)",
        (cpu_seconds(brain.pid()) - before) / span.as_secs_f64() * 100.0,
        rss_mib(brain.pid()),
        rss_mib(sim.pid())
    );
    let spent = cpu_seconds(sim.pid());
    brain.kill9();
    let began = Instant::now();
    brain.restart();
    let up = began.elapsed();
    let mut half = None;
    let back = eventually(Duration::from_secs(60), || {
        let count = connected(&brain);
        if half.is_none() && count * 2 >= agents {
            half = Some(began.elapsed());
        }
        (count == agents).then_some(())
    });
    anyhow::ensure!(back.is_some(), "only {} came back", connected(&brain));
    println!(
        "agents: after kill -9 of the brain its API was back in {:.1} s, half of {agents} agents were connected in {:.1} s, \
         all in {:.1} s; CPU meanwhile: brain {:.1} s, simulator {:.1} s (it has one core)",
        up.as_secs_f64(),
        half.unwrap_or_default().as_secs_f64(),
        began.elapsed().as_secs_f64(),
        cpu_seconds(brain.pid()),
        cpu_seconds(sim.pid()) - spent,
    );
    Ok(())
}
