//! MAD-MMT, the policy that the papers of the PlanetLab traces recommend (Beloglazov and Buyya, Concurrency and Computation 24(13),
//! 2012), with the parameters of CloudSim 3.0.3: a host is overloaded over 1 - 2.5 MAD of its last 30 samples (70 percent while there are
//! fewer than 12); what has least memory leaves it; each goes where power grows least (SPECpower of an HP ProLiant G5); the least used
//! hosts are emptied where all that is on them fits elsewhere. Every five minutes.
//!
//! Other than there memory and reservations bind moves as they bind placements, and load from outside is part of a host's. What is on an
//! overloaded host's destination may not be emptied in the same step, which the code means and misses.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{Move, Policy, Report};
use crate::simulate::cluster::Cluster;

/// Seconds between steps, and when in an interval: once its first reports have come.
const EVERY: u32 = 300;
const OFFSET: u32 = 60;
/// Samples remembered.
const HISTORY: usize = 30;
/// As many are needed.
const ENOUGH: usize = 12;
/// How safe.
const SAFETY: f64 = 2.5;
/// The threshold until then.
const FALLBACK: f64 = 0.7;
/// Watts at 0, 10 … 100 percent of an HP ProLiant ML110 G5.
const WATTS: [f64; 11] = [
    93.7, 97.0, 101.0, 105.0, 110.0, 116.0, 121.0, 125.0, 129.0, 133.0, 135.0,
];

/// It.
#[derive(Default)]
pub(super) struct MadMmt {
    /// CPU of each container and, apart, of what is not one's, newest first, millicores.
    history: BTreeMap<usize, VecDeque<u32>>,
    foreign: BTreeMap<usize, VecDeque<u32>>,
}

/// Hosts with what a plan would have on them.
struct Plan<'a> {
    policy: &'a MadMmt,
    whole: f64,
    on: Vec<BTreeSet<usize>>,
}

impl Plan<'_> {
    fn now(&self, container: usize) -> f64 {
        let history = self.policy.history.get(&container);
        history
            .and_then(|history| history.front())
            .map_or(0.0, |cpu| f64::from(*cpu))
    }

    fn asked(&self, host: usize) -> f64 {
        let foreign = self.policy.foreign.get(&host).and_then(|history| history.front());
        let own: f64 = self.on[host].iter().map(|container| self.now(*container)).sum();
        own + f64::from(foreign.copied().unwrap_or(0))
    }

    fn is_over(&self, host: usize) -> bool {
        let mut samples = vec![0.0; HISTORY];
        let held = self.on[host]
            .iter()
            .filter_map(|container| self.policy.history.get(container));
        for history in held.chain(self.policy.foreign.get(&host)) {
            for (sum, cpu) in samples.iter_mut().zip(history) {
                *sum += f64::from(*cpu) / self.whole;
            }
        }
        while samples.last() == Some(&0.0) {
            samples.pop();
        }
        self.asked(host) / self.whole > threshold(&samples)
    }

    fn watts(&self, asked: f64) -> f64 {
        let at = (asked / self.whole).clamp(0.0, 1.0) * 10.0;
        let low = (at.floor() as usize).min(9);
        WATTS[low] + (WATTS[low + 1] - WATTS[low]) * (at - low as f64)
    }

    /// Where power grows least, and puts it there.
    fn put(
        &mut self,
        cluster: &Cluster<'_>,
        container: usize,
        cpu: f64,
        but: &BTreeSet<usize>,
    ) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for host in (0..self.on.len()).filter(|host| !but.contains(host)) {
            let asked = self.asked(host);
            let planned = self.on[host]
                .iter()
                .filter(|held| cluster.placed[**held].is_none_or(|(on, _)| on != host));
            let reserved: u32 = planned.map(|held| cluster.container(*held).cpu).sum();
            let room = cluster.fits(host, container)
                && cluster.hosts[host].cpu + reserved + cluster.container(container).cpu
                    <= cluster.scenario.allocatable();
            if !room || asked + cpu > self.whole {
                continue;
            }
            self.on[host].insert(container);
            let over = asked > 0.0 && self.is_over(host);
            self.on[host].remove(&container);
            if over {
                continue;
            }
            let more = self.watts(asked + cpu) - self.watts(asked);
            if best.is_none_or(|(least, _)| more < least) {
                best = Some((more, host));
            }
        }
        let (_, host) = best?;
        self.on[host].insert(container);
        Some(host)
    }
}

fn threshold(samples: &[f64]) -> f64 {
    if samples.len() < ENOUGH {
        return FALLBACK;
    }
    let middle = median(samples.to_vec());
    1.0 - SAFETY * median(samples.iter().map(|sample| (sample - middle).abs()).collect())
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let half = samples.len() / 2;
    match samples.len() % 2 {
        0 => f64::midpoint(samples[half - 1], samples[half]),
        _ => samples[half],
    }
}

impl MadMmt {
    fn plan<'a>(&'a self, cluster: &Cluster<'_>) -> Plan<'a> {
        let on = cluster
            .hosts
            .iter()
            .map(|host| host.containers.iter().copied().collect());
        Plan {
            policy: self,
            whole: f64::from(cluster.scenario.settings.host_cpu),
            on: on.collect(),
        }
    }
}

impl Policy for MadMmt {
    fn hear(&mut self, report: &Report) {
        if !report.at.is_multiple_of(EVERY) {
            return;
        }
        let remember = |history: &mut VecDeque<u32>, cpu: u32| {
            history.push_front(cpu);
            history.truncate(HISTORY);
        };
        remember(self.foreign.entry(report.host).or_default(), report.foreign);
        for (container, cpu) in &report.containers {
            remember(self.history.entry(*container).or_default(), *cpu);
        }
    }

    /// What comes counts with all that it may use.
    fn place(&mut self, cluster: &Cluster<'_>, container: usize, _now: u32) -> Option<usize> {
        let mut plan = self.plan(cluster);
        let limit = f64::from(cluster.container(container).limit);
        plan.put(cluster, container, limit, &BTreeSet::new())
    }

    fn rebalance(&mut self, cluster: &Cluster<'_>, now: u32) -> Vec<Move> {
        if now % EVERY != OFFSET {
            return Vec::new();
        }
        let mut plan = self.plan(cluster);
        let (hosts, mut moves) = (plan.on.len(), Vec::new());
        let over: BTreeSet<usize> = (0..hosts).filter(|host| plan.is_over(*host)).collect();
        let mut leaving: Vec<(usize, usize)> = Vec::new();
        for host in &over {
            while plan.is_over(*host) {
                let least = plan.on[*host]
                    .iter()
                    .copied()
                    .min_by_key(|held| (cluster.container(*held).memory_mib, *held));
                let Some(container) = least else { break };
                plan.on[*host].remove(&container);
                leaving.push((container, *host));
            }
        }
        leaving.sort_by(|(a, _), (b, _)| plan.now(*b).total_cmp(&plan.now(*a)).then(a.cmp(b)));
        let mut tried = over.clone();
        for (container, from) in leaving {
            let cpu = plan.now(container);
            match plan.put(cluster, container, cpu, &over) {
                Some(to) => {
                    tried.insert(to);
                    moves.push(Move { container, to });
                }
                None => drop(plan.on[from].insert(container)),
            }
        }
        let off = |plan: &Plan<'_>| {
            (0..hosts)
                .filter(|host| plan.on[*host].is_empty())
                .collect::<BTreeSet<_>>()
        };
        let mut banned: BTreeSet<usize> = over.union(&off(&plan)).copied().collect();
        tried.extend(&banned);
        loop {
            let left = (0..hosts).filter(|host| !tried.contains(host));
            let Some(host) = left.min_by(|a, b| plan.asked(*a).total_cmp(&plan.asked(*b))) else {
                break;
            };
            tried.insert(host);
            banned.insert(host);
            let before = plan.on.clone();
            let mut all: Vec<usize> = std::mem::take(&mut plan.on[host]).into_iter().collect();
            all.sort_by(|a, b| plan.now(*b).total_cmp(&plan.now(*a)).then(a.cmp(b)));
            let found: Option<Vec<Move>> = all
                .into_iter()
                .map(|container| {
                    let cpu = plan.now(container);
                    let to = plan.put(cluster, container, cpu, &banned)?;
                    Some(Move { container, to })
                })
                .collect();
            match found {
                Some(found) => {
                    tried.extend(found.iter().map(|one| one.to));
                    moves.extend(found);
                }
                None => plan.on = before,
            }
        }
        moves
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_the_papers() {
        assert!((threshold(&[0.5; 11]) - 0.7).abs() < 1e-9, "too few");
        assert!((threshold(&[0.5; 12]) - 1.0).abs() < 1e-9, "steady");
        let swings: Vec<f64> = (0..20).map(|n| if n % 2 == 0 { 0.3 } else { 0.5 }).collect();
        assert!((threshold(&swings) - 0.75).abs() < 1e-9, "MAD of 0.1");
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
    }
}
