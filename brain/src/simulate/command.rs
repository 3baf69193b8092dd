//! The command: reads, replays, writes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::engine::{self, Event, Telemetry};
use super::policy::{self, NAMES};
use super::report::{self, Figures};
use super::scenario::{Scenario, Settings};
use super::trace;

/// Replay traces of real load under scheduling policies.
///
/// Rows of the usage trace are containers, and for a share of them load from outside on a share of the hosts. Containers arrive over the
/// first hours, or as a trace of arrivals says. What is told follows from the traces, these settings and the seed alone.
#[derive(Debug, Args)]
pub struct Options {
    /// Rows of CPU samples in percent, five minutes apart: a .csv or .csv.gz file.
    #[arg(long, value_name = "FILE")]
    pub usage: PathBuf,
    /// Containers with requests, arrival and end: a .csv or .csv.gz file; default: one container a row, over the first hours.
    #[arg(long, value_name = "FILE")]
    pub arrivals: Option<PathBuf>,
    /// How many hosts there are.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub nodes: u32,
    /// CPU of each host, cores.
    #[arg(long, value_name = "CORES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub node_cores: u32,
    /// Memory of each host, GiB.
    #[arg(long, value_name = "GIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub node_memory: u64,
    /// What reservations on a host may add up to, percent of its capacity; default: so much that the hosts without load from outside could take all containers, and a fifth more.
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub overcommit: Option<u32>,
    /// Policy, or `all`.
    #[arg(long, default_value = "all")]
    pub policy: String,
    /// All choices follow from it.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Seconds until a host's report arrives.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub telemetry_delay: u32,
    /// Reports that never arrive, percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub telemetry_loss: u32,
    /// Write the figures here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Write every placement, move and end here, one JSON object a line; only of a single policy.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// Runs it, and prints a table.
///
/// # Errors
/// What can't be read, written, or makes no sense.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let names: Vec<&str> = match options.policy.as_str() {
        "all" => NAMES.iter().map(|(name, _)| *name).collect(),
        one => match NAMES.iter().find(|(name, _)| *name == one) {
            Some((name, _)) => vec![name],
            None => {
                let known: Vec<_> = NAMES
                    .iter()
                    .map(|(name, what)| format!("  {name}: {what}"))
                    .collect();
                bail!("there is no policy {one:?}; there are:\n{}", known.join("\n"));
            }
        },
    };
    if options.log.is_some() && names.len() > 1 {
        bail!("--log is of one policy: name it with --policy");
    }
    let rows = trace::usage(&options.usage)?;
    let asked = options.arrivals.as_deref().map(trace::arrivals).transpose()?;
    let settings = Settings {
        hosts: options.nodes as usize,
        host_cpu: options.node_cores * 1_000,
        host_memory_mib: options.node_memory << 10,
        overcommit: options.overcommit,
        seed: options.seed,
        ..Settings::default()
    };
    let scenario = Scenario::new(settings, rows, asked.as_deref())?;
    let telemetry = Telemetry {
        delay: options.telemetry_delay,
        loss: options.telemetry_loss,
    };
    let mut all = Vec::new();
    for name in names {
        let mut policy = policy::by_name(name, options.seed).with_context(|| format!("policy {name}"))?;
        let events = engine::run(&scenario, &mut *policy, telemetry);
        if let Some(path) = &options.log {
            write_log(path, &scenario, &events).with_context(|| format!("writing {}", path.display()))?;
        }
        all.push(report::figures(name, &scenario, &events));
    }
    print!("{}", table(&scenario, &all));
    if let Some(path) = &options.report {
        let text = serde_json::to_vec_pretty(&serde_json::json!({
            "settings": scenario.settings, "overcommit_percent": scenario.overcommit, "telemetry": telemetry, "policies": all,
        }))?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// First what the events don't say: the settings, and which rows load which hosts from outside.
fn write_log(path: &std::path::Path, scenario: &Scenario, events: &[Event]) -> anyhow::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let head = serde_json::json!({
        "event": "scenario", "settings": scenario.settings, "overcommit_percent": scenario.overcommit, "foreign": scenario.foreign,
    });
    writeln!(file, "{head}")?;
    for event in events {
        serde_json::to_writer(&mut file, event)?;
        writeln!(file)?;
    }
    file.flush()?;
    Ok(())
}

fn table(scenario: &Scenario, all: &[Figures]) -> String {
    let mut text = format!(
        "{} containers on {} hosts of {} cores, overcommit {}.{:02}\n{:<12} {:>12} {:>12} {:>12} {:>12} {:>8} {:>8} {:>9}\n",
        scenario.arrivals.len(),
        scenario.settings.hosts,
        scenario.settings.host_cpu / 1_000,
        scenario.overcommit / 100,
        scenario.overcommit % 100,
        "POLICY",
        "OVERLOADED",
        "AVOIDABLE",
        "UNMET CPU",
        "TURNED AWAY",
        "MOVES",
        "REFUSED",
        "FAIRNESS"
    );
    for one in all {
        text.push_str(&format!(
            "{:<12} {:>10.2} % {:>10.2} % {:>10.3} % {:>10.3} % {:>8} {:>8} {:>9.4}\n",
            one.policy,
            one.overloaded_percent,
            one.avoidable_percent,
            one.unmet_percent,
            one.turned_away_percent,
            one.moves,
            one.refused,
            one.fairness
        ));
    }
    text
}
