//! The command: reads, replays, writes.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;

use super::engine::{self, Event, Telemetry};
use super::floor::Floor;
use super::policy::{self, NAMES};
use super::report::{self, Figures};
use super::scenario::{Scenario, Settings};
use super::{clairvoyant, plot, summary, trace};

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
    /// Policy, `clairvoyant` (who knows the whole day in advance), or `all`.
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
    /// Draw how full every host was over the day here, as SVG, a panel for each policy.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Write every placement, move and end here, one JSON object a line; only of a single policy.
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
}

/// Runs it, and prints a table.
///
/// # Errors
/// What can't be read, written, or makes no sense.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let names = names(&options.policy)?;
    if options.log.is_some() && names.len() > 1 {
        bail!("--log is of one policy: name it with --policy");
    }
    if options.plot.is_some() && options.nodes as usize > plot::MOST_HOSTS {
        bail!(
            "--plot tells no more than {} hosts apart: lower --nodes, or leave --plot out",
            plot::MOST_HOSTS
        );
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
        let events = replay(&scenario, name, telemetry)?;
        if let Some(path) = &options.log {
            write_log(path, &scenario, &events).with_context(|| format!("writing {}", path.display()))?;
        }
        all.push((report::figures(name, &scenario, &events), events));
    }
    if let Some(path) = &options.plot {
        let text = draw(&scenario, telemetry, &all);
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let all: Vec<Figures> = all.into_iter().map(|(figures, _)| figures).collect();
    let floor = Floor::of(&scenario);
    print!("{}{}", table(&scenario, &all), bounds(&all, &floor));
    if let Some(path) = &options.report {
        let text = serde_json::to_vec_pretty(&serde_json::json!({
            "settings": scenario.settings, "overcommit_percent": scenario.overcommit, "telemetry": telemetry, "policies": all,
            "floor": floor,
        }))?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// The policies that a word means: the one of that name, or all, and last who knows everything.
pub(super) fn names(word: &str) -> anyhow::Result<Vec<&'static str>> {
    let known = NAMES.iter().map(|(name, _)| *name).chain([clairvoyant::NAME]);
    if word == "all" {
        return Ok(known.collect());
    }
    if let Some(name) = known.into_iter().find(|name| *name == word) {
        return Ok(vec![name]);
    }
    let known: Vec<_> = NAMES
        .iter()
        .map(|(name, what)| format!("  {name}: {what}"))
        .collect();
    let last = clairvoyant::NAME;
    bail!(
        "there is no policy {word:?}; there are:\n{}\n  {last}: who knows the whole day in advance, and moves nothing",
        known.join("\n")
    );
}

/// What happens under a policy.
pub(super) fn replay(scenario: &Scenario, name: &str, telemetry: Telemetry) -> anyhow::Result<Vec<Event>> {
    if name == clairvoyant::NAME {
        return Ok(clairvoyant::replay(scenario));
    }
    let mut policy =
        policy::by_name(name, scenario.settings.seed).with_context(|| format!("policy {name}"))?;
    Ok(engine::run(scenario, &mut *policy, telemetry))
}

/// The picture of replays.
fn draw(scenario: &Scenario, telemetry: Telemetry, all: &[(Figures, Vec<Event>)]) -> String {
    let settings = &scenario.settings;
    let title = format!(
        "{} containers on {} hosts of {} cores over a day; reports {} s late, {} % lost",
        scenario.arrivals.len(),
        settings.hosts,
        settings.host_cpu / 1_000,
        telemetry.delay,
        telemetry.loss
    );
    let panels = all.iter().map(|(one, events)| {
        let away = match one.turned_away_percent >= 0.05 {
            true => format!(", {:.1} % turned away", one.turned_away_percent),
            false => String::new(),
        };
        let told = format!(
            "{:.2} % avoidably overloaded, {} moves{away}",
            one.avoidable_percent, one.moves
        );
        (&*one.policy, told, &**events)
    });
    plot::svg(scenario, &title, &panels.collect::<Vec<_>>())
}

/// What could be had at best, and how far berth is from it.
fn bounds(all: &[Figures], floor: &Floor) -> String {
    let mut text = format!(
        "no placement of all containers can do better than {:.2} % overloaded",
        floor.percent
    );
    let of = |name: &str| all.iter().find(|one| one.policy == name);
    // Who turns containers away may well be below what all of them need.
    let berth = of("berth").filter(|one| one.turned_away_percent <= summary::NOBODY);
    if let (Some(berth), Some(best)) = (berth, of(clairvoyant::NAME)) {
        text.push_str(&format!(
            "; berth is {:+.2} from that, and {:+.2} from the clairvoyant",
            berth.overloaded_percent - floor.percent,
            berth.overloaded_percent - best.overloaded_percent
        ));
    }
    text.push('\n');
    text
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
