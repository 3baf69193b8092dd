//! `berth-brain compare`: the same replays over several traces, sizes and seeds, and what they come to.
//!
//! Owns which replays these are and runs them on all cores; [`summary`](super::summary) owns what is told. A single day proves little:
//! which hosts have load from outside, and who arrives when, is chance.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use clap::Args;
use rayon::prelude::*;

use super::command::{names, replay};
use super::engine::Telemetry;
use super::floor::Floor;
use super::report;
use super::scenario::{Scenario, Settings};
use super::summary::{self, Day, Needed};
use super::trace::{self, Row};

/// Replay several traces at several sizes with several seeds under all policies.
///
/// For each number of hosts a table of means (and the worst) over traces and seeds, then berth beside the others: its overloads that a policy
/// can avoid, its moves, and the fewest hosts with which it is overloaded no more than who goes by requests alone.
#[derive(Debug, Args)]
pub struct Options {
    /// Rows of CPU samples in percent, five minutes apart: .csv or .csv.gz files.
    #[arg(required = true, value_name = "FILE")]
    pub usage: Vec<PathBuf>,
    /// Numbers of hosts.
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_values_t = [30, 24, 20], value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub nodes: Vec<u32>,
    /// Seeds: 1 to this one.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=1_000))]
    pub seeds: u64,
    /// Seconds until a host's report arrives.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub telemetry_delay: u32,
    /// Reports that never arrive, percent.
    #[arg(long, value_name = "PERCENT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub telemetry_loss: u32,
    /// Write the figures of every replay here, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// A scenario to replay.
#[derive(Debug, Clone)]
struct Job<'a> {
    trace: String,
    rows: &'a [Row],
    hosts: usize,
    seed: u64,
}

impl Job<'_> {
    fn scenario(&self, hosts: usize) -> anyhow::Result<Scenario> {
        let settings = Settings {
            hosts,
            seed: self.seed,
            ..Settings::default()
        };
        Scenario::new(settings, self.rows.to_vec(), None)
    }
}

/// Runs it, and prints tables.
///
/// # Errors
/// What can't be read, written, or makes no sense.
pub fn run(options: &Options) -> anyhow::Result<()> {
    print!("{}", told(options)?);
    Ok(())
}

pub(super) fn told(options: &Options) -> anyhow::Result<String> {
    let read = |path: &PathBuf| Ok((path.display().to_string(), trace::usage(path)?));
    let traces: Vec<(String, Vec<Row>)> = options.usage.iter().map(read).collect::<anyhow::Result<_>>()?;
    let most = options.nodes.iter().max().map_or(0, |most| *most as usize);
    ensure!(most > 0, "no number of hosts");
    let telemetry = Telemetry {
        delay: options.telemetry_delay,
        loss: options.telemetry_loss,
    };
    let jobs = |hosts: usize| {
        traces.iter().flat_map(move |(name, rows)| {
            (1..=options.seeds).map(move |seed| Job {
                trace: name.clone(),
                rows,
                hosts,
                seed,
            })
        })
    };
    let all: Vec<Job<'_>> = options
        .nodes
        .iter()
        .flat_map(|hosts| jobs(*hosts as usize))
        .collect();
    let days: Vec<Day> = all
        .par_iter()
        .map(|job| day(job, telemetry))
        .collect::<anyhow::Result<_>>()?;
    let largest: Vec<Job<'_>> = jobs(most).collect();
    // Days of one size are in the order of its jobs.
    let measures: Vec<&Day> = days.iter().filter(|day| day.hosts == most).collect();
    let needed: Vec<Needed> = largest
        .par_iter()
        .zip(measures)
        .map(|(job, measure)| needed(job, measure, telemetry))
        .collect::<anyhow::Result<_>>()?;
    if let Some(path) = &options.report {
        let text = serde_json::to_vec_pretty(&serde_json::json!({
            "telemetry": telemetry, "days": days, "needed": needed,
        }))?;
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    let sizes: Vec<usize> = options.nodes.iter().map(|hosts| *hosts as usize).collect();
    let about = format!(
        "{} traces, {} seeds, reports {} s late, {} % lost; means, and in brackets the worst\n\n",
        traces.len(),
        options.seeds,
        telemetry.delay,
        telemetry.loss
    );
    Ok(about + &summary::text(&sizes, &days, &needed))
}

/// All policies on one day.
fn day(job: &Job<'_>, telemetry: Telemetry) -> anyhow::Result<Day> {
    let scenario = job.scenario(job.hosts)?;
    let figures = names("all")?.into_iter().map(|name| {
        let events = replay(&scenario, name, telemetry)?;
        Ok(report::figures(name, &scenario, &events))
    });
    Ok(Day {
        trace: job.trace.clone(),
        hosts: job.hosts,
        seed: job.seed,
        policies: figures.collect::<anyhow::Result<_>>()?,
        floor: Floor::of(&scenario),
    })
}

/// With how many hosts berth is overloaded no more than `requests` on that day: one host less each time, until it is.
fn needed(job: &Job<'_>, measure: &Day, telemetry: Telemetry) -> anyhow::Result<Needed> {
    let requests = measure.of("requests").context("requests was replayed")?;
    let mut needed = Needed {
        hosts: job.hosts,
        fewest: None,
        turning_nobody_away: None,
    };
    let mut nobody = true;
    for hosts in (1..=job.hosts).rev() {
        let scenario = job.scenario(hosts)?;
        let told = report::figures("berth", &scenario, &replay(&scenario, "berth", telemetry)?);
        if told.overloaded_percent > requests.overloaded_percent {
            break;
        }
        needed.fewest = Some(hosts);
        nobody &= told.refused <= requests.refused && told.turned_away_percent <= summary::NOBODY;
        if nobody {
            needed.turning_nobody_away = Some(hosts);
        }
    }
    Ok(needed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comparison_tells_of_every_size_and_policy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.csv");
        let row = |row: u32| {
            let samples = (0..12).map(|at| ((row * 37 + at * at * 13) % 101).to_string());
            samples.collect::<Vec<_>>().join(",")
        };
        std::fs::write(&path, (0..60).map(row).collect::<Vec<_>>().join("\n")).unwrap();
        let options = Options {
            usage: vec![path.clone(), path],
            nodes: vec![4, 3],
            seeds: 2,
            telemetry_delay: 30,
            telemetry_loss: 10,
            report: Some(dir.path().join("report.json")),
        };
        let text = told(&options).unwrap();
        assert!(text.starts_with("2 traces, 2 seeds"), "{text}");
        for word in ["4 hosts", "3 hosts", "clairvoyant", "koordinator", "hosts needed"] {
            assert!(text.contains(word), "{word}: {text}");
        }
        let read = std::fs::read(dir.path().join("report.json")).unwrap();
        let report: serde_json::Value = serde_json::from_slice(&read).unwrap();
        assert_eq!(report["days"].as_array().map(Vec::len), Some(8));
        assert_eq!(report["days"][0]["policies"].as_array().map(Vec::len), Some(7));
        assert_eq!(report["needed"].as_array().map(Vec::len), Some(4));
    }
}
