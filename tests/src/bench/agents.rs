//! Many agents on one brain: real protocol over real QUIC, fakes below.

use std::time::{Duration, Instant};

use super::{cpu_seconds, rss_mib};
use crate::cluster::Brain;
use crate::crowd::ready;
use crate::operator::Operator as _;
use crate::process::{Process, eventually};

/// A brain with so many simulated agents, all of them connected.
fn crowd(dir: &std::path::Path, agents: usize) -> anyhow::Result<(Brain, Process)> {
    let brain = Brain::start(&dir.join("brain"));
    let (client, base, token) = brain.http()?;
    let runtime = tokio::runtime::Handle::current();
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
    let sim = crate::crowd::spawn(dir, agents, &lines, &[]);
    let up = eventually(Duration::from_secs(180), || {
        (ready(&brain) == agents).then_some(())
    });
    anyhow::ensure!(
        up.is_some(),
        "only {} of {agents} joined\n{}",
        ready(&brain),
        sim.output()
    );
    Ok((brain, sim))
}

/// One call that asks for so many containers: until it is answered, placed and committed; until every agent has its share on disk and has said so;
/// and until all of them run.
///
/// # Errors
/// When they can't be set up, or don't come up.
pub fn place(agents: usize, containers: usize) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (brain, _sim) = crowd(dir.path(), agents)?;
    let (client, base, token) = brain.http()?;
    let runtime = tokio::runtime::Handle::current();
    let services = format!("{base}/v1/tenants/default/services");
    for round in 0..3 {
        let spec = serde_json::json!({
            "name": format!("big{round}"),
            "image": "example:1",
            "replicas": containers,
            "command": ["x"],
            "resources": {"limits": {"cpu": "0.1", "memory": "32MiB", "disk": "8MiB"}},
        });
        let spent = cpu_seconds(brain.pid());
        let began = Instant::now();
        let call = client.post(&services).bearer_auth(&token).json(&spec);
        runtime.block_on(async { anyhow::Ok(call.send().await?.error_for_status()?) })?;
        let answered = began.elapsed();
        let count = |key: &str| -> anyhow::Result<u64> {
            let call = client.get(format!("{services}/big{round}")).bearer_auth(&token);
            let view: serde_json::Value = runtime
                .block_on(async { anyhow::Ok(call.send().await?.error_for_status()?.json().await?) })?;
            Ok(view[key].as_u64().unwrap_or(0))
        };
        // Generations are raised by the write itself, so what is wanted of the agents is known by now.
        let told = eventually(Duration::from_secs(60), || {
            let call = client
                .get(format!("{base}/v1/nodes?limit=1000"))
                .bearer_auth(&token);
            let page =
                runtime.block_on(async { anyhow::Ok(call.send().await?.json::<serde_json::Value>().await?) });
            let page = page.ok()?;
            let nodes = page["items"].as_array()?;
            let told = |node: &serde_json::Value| {
                let wanted = node["generation"].as_u64();
                wanted.is_some() && node["applied"].as_u64() >= wanted
            };
            (nodes.len() == agents && nodes.iter().all(told)).then(|| began.elapsed())
        });
        let told = told.ok_or_else(|| anyhow::anyhow!("not all agents were told"))?;
        let all = eventually(Duration::from_secs(60), || {
            count("running")
                .is_ok_and(|running| running == containers as u64)
                .then_some(())
        });
        anyhow::ensure!(all.is_some(), "only {} run", count("running")?);
        println!(
            "place: {containers} containers of one call on {agents} agents: placed, committed and answered in {:.2} s, all agents have it on disk and \
             said so in {:.2} s, all started and reported in {:.2} s; CPU of the brain {:.2} s",
            answered.as_secs_f64(),
            told.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            cpu_seconds(brain.pid()) - spent,
        );
    }
    Ok(())
}

/// `agents` simulated agents with `each` containers: the brain's cost in steady state, and reconnecting after its restart.
///
/// # Errors
/// When they can't be set up.
pub fn run(agents: usize, each: usize, span: Duration) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (mut brain, sim) = crowd(dir.path(), agents)?;
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
        let count = ready(&brain);
        if half.is_none() && count * 2 >= agents {
            half = Some(began.elapsed());
        }
        (count == agents).then_some(())
    });
    anyhow::ensure!(back.is_some(), "only {} came back", ready(&brain));
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
