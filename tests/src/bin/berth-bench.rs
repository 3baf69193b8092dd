//! Benchmarks of the whole: `scripts/bench [start|idle|writes|network|agents|place|volume [MIB]]`. Ratios against the peer in one run, never a verdict.

use std::time::Duration;

use berth_tests::bench::{agents, idle, network, start, volume, writes};

fn main() -> anyhow::Result<()> {
    let what = std::env::args().nth(1).unwrap_or_else(|| "all".into());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let _guard = runtime.enter();
    println!("machine: {}", machine());
    let all = what == "all";
    if all || what == "start" {
        start::run(&runtime)?;
    }
    if all || what == "idle" {
        idle::run(100, Duration::from_secs(20))?;
    }
    if all || what == "writes" {
        writes::run(&runtime)?;
    }
    if all || what == "network" {
        network::run()?;
    }
    if all || what == "agents" {
        let count = std::env::args()
            .nth(2)
            .and_then(|n| n.parse().ok())
            .unwrap_or(1_000);
        agents::run(count, 20, Duration::from_secs(20))?;
    }
    if all || what == "volume" {
        let mib = std::env::args().nth(2).and_then(|n| n.parse().ok());
        volume::run(mib.unwrap_or(1_024))?;
    }
    if all || what == "place" {
        agents::place(100, 5_000)?;
    }
    Ok(())
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("")
        .trim_matches([' ', '\t', ':']);
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{cores} × {model}, load {}",
        load.split(' ').next().unwrap_or("?")
    )
}
