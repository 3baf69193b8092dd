//! Samples once a second and reports as often as the brain asks.
//!
//! Sampling goes on while there is no link, so that windows and rates are right the moment it is back. Reports are made
//! for one connection: a new one begins with a full report, and what could not leave is not sent late.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_common::model::UnixMillis;
use berth_common::protocol::UsageReport;
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::cgroup::Cgroups;
use crate::reconcile::Board;
use crate::usage::{Reporter, SampledContainer, Sampler};

/// Pause between samples.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Runs until aborted, or until nobody takes reports any more.
pub async fn run(
    mut sampler: Sampler,
    cgroups: Arc<dyn Cgroups>,
    board: Arc<Board>,
    interval_ms: watch::Receiver<u32>,
    mut connection: watch::Receiver<Option<quinn::Connection>>,
    reports: mpsc::Sender<UsageReport>,
) {
    let mut ticks = tokio::time::interval(SAMPLE_EVERY);
    // Two samples right after one another would say nothing.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut reporter = Reporter::default();
    let mut due = Instant::now();
    loop {
        ticks.tick().await;
        let containers: Vec<_> = board
            .running()
            .into_iter()
            .map(|container| SampledContainer {
                id: container.id,
                tenant: container.tenant,
                pid: Some(container.pid),
                disk: container.disk,
            })
            .collect();
        let sampled = tokio::task::spawn_blocking(move || {
            let sample = sampler.sample(UnixMillis::now(), Instant::now(), &containers);
            (sampler, sample)
        })
        .await;
        let sample = match sampled {
            Ok((back, sample)) => {
                sampler = back;
                sample
            }
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "sampling usage panicked; no more usage is reported");
                }
                return;
            }
        };
        if connection.has_changed().is_err() || reports.is_closed() {
            return;
        }
        let now = Instant::now();
        if connection.has_changed().unwrap_or(false) {
            connection.mark_unchanged();
            reporter = Reporter::default();
            due = now;
        }
        if now < due || connection.borrow().is_none() {
            continue;
        }
        let interval = Duration::from_millis(u64::from(*interval_ms.borrow()));
        // Ticks are not exact: half of one must not turn two seconds into three.
        due = now + interval.saturating_sub(SAMPLE_EVERY / 2);
        let mut report = reporter.report(&sample);
        add_stalls(&mut report, &board, &*cgroups);
        if reports.try_send(report).is_err() {
            // The link is busy: begin anew, so that nothing counts as reported that was not.
            reporter = Reporter::default();
        }
    }
}

/// Pressure costs three files for each container, so it is read for those that are reported only.
fn add_stalls(report: &mut UsageReport, board: &Board, cgroups: &dyn Cgroups) {
    let tenants: HashMap<_, _> = board.running().into_iter().map(|c| (c.id, c.tenant)).collect();
    for usage in &mut report.containers {
        if let Some(tenant) = tenants.get(&usage.id) {
            let stalls = cgroups.stalls(*tenant, usage.id);
            (usage.psi_cpu, usage.psi_memory, usage.psi_io) = (stalls.cpu, stalls.memory, stalls.io);
        }
    }
}
