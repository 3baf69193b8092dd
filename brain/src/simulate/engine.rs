//! The replay: containers come and go, hosts report, a policy places and moves. Pure: it reads no clock and does no I/O.
//!
//! Time goes in steps of [`STEP`]. Within one, what a trace says of a five-minute interval holds. A policy hears of a host only by its
//! reports, which arrive late and may be lost.

use std::collections::{BTreeMap, VecDeque};

use rand::Rng as _;
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;

use super::cluster::Cluster;
use super::policy::{Policy, Report};
use super::scenario::Scenario;

/// Seconds of one step.
pub const STEP: u32 = 10;
/// Seconds between a host's reports.
const REPORT: u32 = 10;
/// Seconds that a move takes: the new one starts, then the old one stops.
pub const MOVE: u32 = 20;
/// Seconds between tries to place what did not fit.
const AGAIN: u32 = 60;

/// How reports travel.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Telemetry {
    /// Seconds until one arrives.
    pub delay: u32,
    /// Of a hundred, so many never do.
    pub loss: u32,
}

/// What happened. With the trace and the scenario all figures follow from these.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A container was placed.
    Place {
        /// When, seconds.
        time: u32,
        /// Which.
        container: usize,
        /// Where.
        node: usize,
        /// What it sets aside, millicores.
        cpu_milli: u32,
        /// Its row of the trace.
        row: usize,
        /// What 100 percent of the row are, millicores.
        limit_milli: u32,
    },
    /// It runs elsewhere from now on.
    Move {
        /// When.
        time: u32,
        /// Which.
        container: usize,
        /// From where.
        from: usize,
        /// Where to.
        node: usize,
        /// What it sets aside, millicores.
        cpu_milli: u32,
    },
    /// It went.
    End {
        /// When.
        time: u32,
        /// Which.
        container: usize,
        /// From where.
        node: usize,
    },
    /// It never found a place.
    Refuse {
        /// When it went, or the trace ended.
        time: u32,
        /// Which.
        container: usize,
    },
}

/// Replays a scenario under a policy.
pub fn run(scenario: &Scenario, policy: &mut dyn Policy, telemetry: Telemetry) -> Vec<Event> {
    let mut cluster = Cluster::new(scenario);
    let mut events = Vec::new();
    // The same reports are lost whatever the policy does.
    let mut random = ChaCha12Rng::seed_from_u64(scenario.settings.seed ^ 0x7e1e);
    let mut under_way: VecDeque<(u32, Report)> = VecDeque::new();
    let mut coming = 0;
    let mut waiting: Vec<usize> = Vec::new();
    let mut ends: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut moves: VecDeque<(u32, usize)> = VecDeque::new();
    let end = scenario.end();
    for now in (0..end).step_by(STEP as usize) {
        for report in due(&mut under_way, now) {
            policy.hear(&report);
        }
        let later = ends.split_off(&(now + 1));
        for gone in std::mem::replace(&mut ends, later).into_values() {
            for container in gone {
                match cluster.placed[container] {
                    Some((node, _)) => events.push(Event::End {
                        time: now,
                        container,
                        node,
                    }),
                    None => events.push(Event::Refuse { time: now, container }),
                }
                cluster.remove(container);
                waiting.retain(|held| *held != container);
            }
        }
        for container in due(&mut moves, now) {
            // One that went meanwhile moves nowhere.
            if let (Some(node), Some((from, _))) = (cluster.moving[container], cluster.placed[container]) {
                cluster.end_move(container, now);
                events.push(Event::Move {
                    time: now,
                    container,
                    from,
                    node,
                    cpu_milli: cluster.container(container).cpu,
                });
            }
        }
        let mut new = Vec::new();
        if now % AGAIN == 0 {
            new.append(&mut waiting);
        }
        while scenario.arrivals.get(coming).is_some_and(|one| one.at <= now) {
            ends.entry(scenario.arrivals[coming].until)
                .or_default()
                .push(coming);
            new.push(coming);
            coming += 1;
        }
        for container in new {
            // A policy may err; R4 does not.
            let found = policy
                .place(&cluster, container, now)
                .filter(|host| cluster.fits(*host, container));
            let Some(node) = found else {
                waiting.push(container);
                continue;
            };
            cluster.place(container, node, now);
            let one = cluster.container(container);
            events.push(Event::Place {
                time: now,
                container,
                node,
                cpu_milli: one.cpu,
                row: one.row,
                limit_milli: one.limit,
            });
        }
        for one in policy.rebalance(&cluster, now) {
            let somewhere = cluster.placed.get(one.container).copied().flatten();
            let free =
                somewhere.is_some_and(|(from, _)| from != one.to) && cluster.moving[one.container].is_none();
            if free && one.to < cluster.hosts.len() && cluster.fits(one.to, one.container) {
                cluster.begin_move(one.container, one.to);
                moves.push_back((now + MOVE, one.container));
            }
        }
        if now % REPORT == 0 {
            for host in 0..cluster.hosts.len() {
                // Drawn also where nothing can be lost: a run with loss differs in nothing else.
                let lost = random.random_range(0..100) < telemetry.loss;
                if !lost {
                    under_way.push_back((now + telemetry.delay.max(STEP), report(&cluster, host, now)));
                }
            }
        }
    }
    let left = (0..coming).filter(|container| cluster.placed[*container].is_none());
    let refused: Vec<usize> = left
        .filter(|container| scenario.arrivals[*container].until >= end)
        .collect();
    events.extend(
        refused
            .into_iter()
            .map(|container| Event::Refuse { time: end, container }),
    );
    events
}

/// What is due by now, of what is due one after another.
fn due<T>(queue: &mut VecDeque<(u32, T)>, now: u32) -> Vec<T> {
    let count = queue.partition_point(|(due, _)| *due <= now);
    queue.drain(..count).map(|(_, what)| what).collect()
}

/// What a host says of its load: what it really gives, which is less than what is asked for where it has too little. As the kernel
/// shares CPU, each gets the same part of what it asks for, near enough.
fn report(cluster: &Cluster<'_>, host: usize, now: u32) -> Report {
    let scenario = cluster.scenario;
    let whole = scenario.settings.host_cpu;
    let asked = cluster.hosts[host].containers.iter().map(|container| {
        let one = cluster.container(*container);
        (*container, scenario.demand(one.row, one.limit, now))
    });
    let asked: Vec<(usize, u32)> = asked.collect();
    let on_this = scenario.foreign.iter().filter(|(_, on)| *on == host);
    let foreign: u32 = on_this
        .map(|(row, _)| scenario.demand(*row, scenario.settings.limit, now))
        .sum();
    let total = asked.iter().map(|(_, cpu)| *cpu).sum::<u32>() + foreign;
    let given = |cpu: u32| match total > whole {
        true => (u64::from(cpu) * u64::from(whole) / u64::from(total)) as u32,
        false => cpu,
    };
    Report {
        host,
        at: now,
        total: total.min(whole),
        foreign: given(foreign),
        containers: asked
            .into_iter()
            .map(|(container, cpu)| (container, given(cpu)))
            .collect(),
    }
}
