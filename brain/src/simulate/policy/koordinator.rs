//! Koordinator: its scheduler's `LoadAwareScheduling` and its descheduler's `LowNodeLoad`, with public defaults
//! (koordinator-sh/koordinator, pkg/scheduler/plugins/loadaware and apis/config/v1/defaults.go; pkg/descheduler/framework/plugins/loadaware
//! and apis/config/v1alpha2/defaults.go; thresholds of `LowNodeLoad`, which the code leaves open, are those of its chart 1.8.0).
//!
//! Scheduling: a container counts as 85 percent of its limit until it was measured for long enough; a node over 65 percent with it is left
//! out, so is one whose metrics are older than 180 s, one without any is not; scores are what is left of the node, and those of requests.
//! Descheduling, every 10 s: a node over 75 percent for more than five rounds gives containers away while nodes under 45 percent have
//! room; the one that cures the excess alone and least, else the largest; two at a time from a node. The scheduler chooses where to.
//!
//! A trace says nothing of owners, and what has none is never evicted: a tenant's containers are taken for one workload here, of which a
//! tenth may move in five minutes. Metrics are means of five minutes, told every minute.

use std::collections::BTreeMap;

use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;

use super::measured::Measured;
use super::{Move, Policy, Report, one_of_the_best, requests};
use crate::simulate::cluster::Cluster;

/// Percent of its limit that a container is taken for.
const SCALING: u32 = 85;
/// Percent of a node over which nothing is placed.
const SCHEDULE: u64 = 65;
/// Seconds after which metrics are none.
const EXPIRES: u32 = 180;
/// Seconds between metrics.
const INTERVAL: u32 = 60;
/// Seconds that they are the mean of.
const WINDOW: u32 = 300;
/// Percent over which a node gives away, and under which it takes.
const HIGH: u32 = 75;
const LOW: u32 = 45;
/// Rounds over it that are borne.
const ABNORMAL: u32 = 5;
/// Seconds that a node counts as abnormal.
const HOLDS: u32 = 60;
/// Moves from one node at a time.
const FROM_ONE: usize = 2;
/// Seconds in which a tenth of a workload may move.
const LIMITED: u32 = 300;

/// A node's standing with the descheduler.
#[derive(Debug, Default, Clone, Copy)]
struct Detector {
    rounds: u32,
    /// Abnormal until, seconds.
    until: Option<u32>,
}

impl Detector {
    /// One more round over the threshold; whether it is abnormal.
    fn mark(&mut self, now: u32) -> bool {
        if self.until.is_some_and(|until| now < until) {
            return true;
        }
        self.until = None;
        self.rounds += 1;
        if self.rounds > ABNORMAL {
            *self = Self {
                rounds: 0,
                until: Some(now + HOLDS),
            };
        }
        self.until.is_some()
    }
}

/// It.
pub(super) struct Koordinator {
    random: ChaCha12Rng,
    metrics: Measured,
    detectors: BTreeMap<usize, Detector>,
    /// When the next container of each workload may move.
    next: BTreeMap<u32, u32>,
}

impl Koordinator {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: ChaCha12Rng::seed_from_u64(seed),
            metrics: Measured::new(WINDOW, INTERVAL),
            detectors: BTreeMap::new(),
            next: BTreeMap::new(),
        }
    }

    /// What a node is taken to use, millicores; none without metrics.
    fn used(&self, cluster: &Cluster<'_>, host: usize) -> Option<u32> {
        let told = self.metrics.of(host)?;
        let young = cluster.hosts[host].containers.iter().map(|container| {
            let since = cluster.placed[*container].map_or(0, |(_, since)| since);
            let measured = told.containers.get(container).copied();
            match measured {
                Some(cpu) if told.at.saturating_sub(INTERVAL) >= since => (cpu, cpu),
                measured => (estimate(cluster, *container), measured.unwrap_or(0)),
            }
        });
        let arriving = (0..cluster.moving.len()).filter(|container| cluster.moving[*container] == Some(host));
        let arriving: u32 = arriving.map(|container| estimate(cluster, container)).sum();
        let more: u32 = young
            .map(|(estimate, measured)| estimate.saturating_sub(measured))
            .sum();
        Some(told.total + more + arriving)
    }

    fn choose(
        &mut self,
        cluster: &Cluster<'_>,
        container: usize,
        but: Option<usize>,
        now: u32,
    ) -> Option<usize> {
        let whole = cluster.scenario.settings.host_cpu;
        let mut scored = Vec::new();
        for host in
            (0..cluster.hosts.len()).filter(|host| Some(*host) != but && cluster.fits(*host, container))
        {
            let fresh = self
                .metrics
                .of(host)
                .map(|told| now.saturating_sub(told.at) < EXPIRES);
            if fresh == Some(false) {
                continue;
            }
            let with = self
                .used(cluster, host)
                .map(|used| used + estimate(cluster, container));
            let percent = with.map_or(0, |with| {
                (u64::from(with) * 100 + u64::from(whole) / 2) / u64::from(whole)
            });
            if percent > SCHEDULE {
                continue;
            }
            let load = with.map_or(0, |with| requests::least(with.into(), whole.into()));
            scored.push((load + requests::score(cluster, host, container), host));
        }
        one_of_the_best(&scored, &mut self.random)
    }

    /// What a node uses as its descheduler sees it: what is measured, its system's and its containers'.
    fn measured(&self, cluster: &Cluster<'_>, host: usize, now: u32) -> Option<u32> {
        let told = self
            .metrics
            .of(host)
            .filter(|told| now.saturating_sub(told.at) < EXPIRES)?;
        let here = cluster.hosts[host].containers.iter();
        Some(
            told.foreign
                + here
                    .filter_map(|container| told.containers.get(container))
                    .sum::<u32>(),
        )
    }
}

fn estimate(cluster: &Cluster<'_>, container: usize) -> u32 {
    let one = cluster.container(container);
    (one.limit.max(one.cpu) * SCALING + 50) / 100
}

/// Smaller goes first: those that cure the excess alone come first, the least of them before the others; then the largest.
fn order(cpu: u32, excess: u32) -> std::cmp::Reverse<u64> {
    let part = f64::from(cpu) / f64::from(excess.max(1));
    let key = if part < 1.0 { part } else { 1.0 + 1.0 / part };
    std::cmp::Reverse((key * 1e6) as u64)
}

impl Policy for Koordinator {
    fn hear(&mut self, report: &Report) {
        self.metrics.hear(report);
    }

    fn place(&mut self, cluster: &Cluster<'_>, container: usize, now: u32) -> Option<usize> {
        self.choose(cluster, container, None, now)
    }

    fn rebalance(&mut self, cluster: &Cluster<'_>, now: u32) -> Vec<Move> {
        let whole = cluster.scenario.settings.host_cpu;
        let (high, low) = (whole * HIGH / 100, whole * LOW / 100);
        let mut used: BTreeMap<usize, u32> = BTreeMap::new();
        for host in 0..cluster.hosts.len() {
            used.extend(self.measured(cluster, host, now).map(|used| (host, used)));
        }
        let mut over = Vec::new();
        let mut room = 0;
        let mut takes = false;
        for (host, used) in &used {
            if *used > high {
                over.push((*used, *host));
            } else if *used <= low {
                self.detectors.insert(*host, Detector::default());
                room += high - used;
                takes = true;
            }
        }
        over.retain(|(_, host)| self.detectors.entry(*host).or_default().mark(now));
        if !takes {
            return Vec::new();
        }
        over.sort_by_key(|(used, host)| (std::cmp::Reverse(*used), *host));
        let mut moves = Vec::new();
        for (mut used, host) in over {
            let away = cluster.hosts[host]
                .containers
                .iter()
                .filter(|held| cluster.moving[**held].is_some());
            let mut going = away.count();
            let Some(told) = self.metrics.of(host) else {
                continue;
            };
            let mut victims: Vec<(usize, u32)> = cluster.hosts[host]
                .containers
                .iter()
                .filter(|held| cluster.moving[**held].is_none())
                .filter_map(|held| Some((*held, *told.containers.get(held)?)))
                .collect();
            victims.sort_by_key(|(container, cpu)| (order(*cpu, used - high), *container));
            for (container, cpu) in victims {
                if used <= high || room == 0 || going >= FROM_ONE {
                    break;
                }
                let tenant = cluster.container(container).tenant;
                if self.next.get(&tenant).is_some_and(|next| now < *next) {
                    continue;
                }
                let Some(to) = self.choose(cluster, container, Some(host), now) else {
                    continue;
                };
                let workload = cluster.placed.iter().enumerate();
                let size = workload
                    .filter(|(other, place)| place.is_some() && cluster.container(*other).tenant == tenant)
                    .count();
                let most = (size / 10).max(1) as u32;
                self.next.insert(tenant, now + LIMITED / most);
                moves.push(Move { container, to });
                going += 1;
                used = used.saturating_sub(cpu);
                room = room.saturating_sub(cpu);
            }
            if used <= high {
                self.detectors.insert(host, Detector::default());
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_abnormal_from_the_sixth_round_on_and_for_a_minute() {
        let mut detector = Detector::default();
        let rounds: Vec<bool> = (0..14).map(|round| detector.mark(round * 10)).collect();
        let expected: Vec<bool> = (0..14).map(|round| (5..11).contains(&round)).collect();
        assert_eq!(rounds, expected);
    }

    #[test]
    fn who_cures_the_excess_alone_and_least_goes_first() {
        let mut cpus = [100, 900, 1_000, 2_000, 400];
        cpus.sort_by_key(|cpu| order(*cpu, 900));
        assert_eq!(cpus, [900, 1_000, 2_000, 400, 100]);
    }
}
