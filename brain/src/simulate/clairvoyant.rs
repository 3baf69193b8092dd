//! The clairvoyant: where containers go if the whole day is known before, and nothing moves.
//!
//! Owns a placement that others are measured by. It is a good one, and no proof that there is none better: for what is proven see
//! [`floor`](super::floor). It keeps reservations (R4) like everybody else: its choice is replayed by the same engine.
//!
//! First the container that asks for most is put where it adds least to what is asked for and not there, then the next. From there on one
//! container moves, or two change places, as long as that lessens the sum over the day. The same is done from where `requests` puts
//! them, which somebody who knows all knows, too; the better one of both counts. All is bounded in work, and nothing is left to chance.

use super::cluster::Cluster;
use super::engine::{self, Event, STEP, Telemetry};
use super::policy::{self, Policy};
use super::report::{Stay, demand, outside, whole};
use super::scenario::{INTERVAL, Scenario};

/// Its name among policies.
pub const NAME: &str = "clairvoyant";
/// How often a search may weigh a change of one host's day.
const WORK: u64 = 4_000_000;

/// What happens under it.
pub fn replay(scenario: &Scenario) -> Vec<Event> {
    let mut best = Search::new(scenario);
    best.greedy();
    best.improve();
    if best.lacks() > (0, 0) {
        let mut other = Search::new(scenario);
        other.as_requests();
        other.greedy();
        other.improve();
        if other.lacks() < best.lacks() {
            best = other;
        }
    }
    engine::run(scenario, &mut Decided(best.on), Telemetry::default())
}

/// Puts each where it was decided.
struct Decided(Vec<Option<usize>>);

impl Policy for Decided {
    fn place(&mut self, _cluster: &Cluster<'_>, container: usize, _now: u32) -> Option<usize> {
        self.0[container]
    }
}

/// CPU and memory set aside.
#[derive(Debug, Clone, Copy, Default)]
struct Aside {
    cpu: u64,
    memory_mib: u64,
}

struct Search<'a> {
    scenario: &'a Scenario,
    whole: i64,
    /// What each container asks for in each interval, millicore seconds; nothing while it is not there.
    want: Vec<Vec<i64>>,
    /// In which intervals it sets something aside.
    span: Vec<std::ops::Range<usize>>,
    /// What is asked of each host in each interval.
    load: Vec<Vec<i64>>,
    /// What is asked from outside and not there: nobody can help it.
    hopeless: Vec<i64>,
    /// What is set aside on each host in each interval.
    aside: Vec<Vec<Aside>>,
    on: Vec<Option<usize>>,
    work: u64,
    none: Vec<i64>,
}

impl<'a> Search<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let (hosts, intervals) = (scenario.settings.hosts, (scenario.end() / INTERVAL) as usize);
        let (end, whole) = (scenario.end(), whole(scenario) as i64);
        let foreign = outside(scenario);
        let load: Vec<Vec<i64>> = foreign
            .chunks(intervals)
            .map(|day| day.iter().map(|asked| *asked as i64).collect())
            .collect();
        let none = vec![0; intervals];
        // The engine looks every step, so a container is there from the next step on.
        let times = scenario.arrivals.iter().map(|one| {
            let from = one.at.next_multiple_of(STEP).min(end);
            (from, one.until.next_multiple_of(STEP).max(from + STEP).min(end))
        });
        let span = times.clone().map(|(from, to)| {
            let (from, to) = (from / INTERVAL, to.div_ceil(INTERVAL));
            from as usize..to as usize
        });
        let want = times.enumerate().map(|(container, (from, to))| {
            let mut want = none.clone();
            let stay = Stay {
                container,
                host: 0,
                from,
                to,
            };
            for (interval, asked) in demand(scenario, &stay) {
                want[interval] = asked as i64;
            }
            want
        });
        Self {
            scenario,
            whole,
            want: want.collect(),
            span: span.collect(),
            hopeless: load
                .iter()
                .map(|day| change(day, &none, &none, whole).0)
                .collect(),
            load,
            aside: vec![vec![Aside::default(); intervals]; hosts],
            on: vec![None; scenario.arrivals.len()],
            work: 0,
            none,
        }
    }

    /// What containers without a place would ask for, and what is asked for and not there, but for what nobody can help.
    fn lacks(&self) -> (i64, i64) {
        let nowhere = self.on.iter().zip(&self.want).filter(|(on, _)| on.is_none());
        let away = nowhere.map(|(_, want)| want.iter().sum::<i64>()).sum();
        (away, (0..self.load.len()).map(|host| self.avoidable(host)).sum())
    }

    fn avoidable(&self, host: usize) -> i64 {
        change(&self.load[host], &self.none, &self.none, self.whole).0 - self.hopeless[host]
    }

    /// By how much a host's overload grows if `less` goes and `more` comes.
    fn weigh(&mut self, host: usize, less: Option<usize>, more: Option<usize>) -> i64 {
        self.work += 1;
        let of = |one: Option<usize>| one.map_or(&self.none, |one| &self.want[one]);
        let (before, after) = change(&self.load[host], of(less), of(more), self.whole);
        after - before
    }

    /// R4, also if `less` is no longer there: a container sets its reservation aside in every interval that it sees a part of.
    fn fits(&self, host: usize, less: Option<usize>, container: usize) -> bool {
        let (asked, settings) = (&self.scenario.arrivals[container], &self.scenario.settings);
        let (cpu, memory) = (u64::from(self.scenario.allocatable()), settings.host_memory_mib);
        self.span[container].clone().all(|interval| {
            let held = self.aside[host][interval];
            let gone = less.filter(|one| self.span[*one].contains(&interval));
            let gone = gone.map(|one| &self.scenario.arrivals[one]);
            held.cpu + u64::from(asked.cpu) <= cpu + gone.map_or(0, |one| u64::from(one.cpu))
                && held.memory_mib + asked.memory_mib <= memory + gone.map_or(0, |one| one.memory_mib)
        })
    }

    fn put(&mut self, container: usize, host: usize) {
        let asked = &self.scenario.arrivals[container];
        self.on[container] = Some(host);
        for (load, want) in self.load[host].iter_mut().zip(&self.want[container]) {
            *load += want;
        }
        for held in &mut self.aside[host][self.span[container].clone()] {
            held.cpu += u64::from(asked.cpu);
            held.memory_mib += asked.memory_mib;
        }
    }

    fn take(&mut self, container: usize) {
        let Some(host) = self.on[container].take() else {
            return;
        };
        let asked = &self.scenario.arrivals[container];
        for (load, want) in self.load[host].iter_mut().zip(&self.want[container]) {
            *load -= want;
        }
        for held in &mut self.aside[host][self.span[container].clone()] {
            held.cpu -= u64::from(asked.cpu);
            held.memory_mib -= asked.memory_mib;
        }
    }

    /// Puts those that are nowhere, the greediest first: where they add least overload, and of such hosts where they meet least.
    fn greedy(&mut self) {
        let total = |one: &usize| self.want[*one].iter().sum::<i64>();
        let mut order: Vec<usize> = (0..self.on.len()).filter(|one| self.on[*one].is_none()).collect();
        order.sort_by_key(|one| (std::cmp::Reverse(total(one)), *one));
        for container in order {
            let mut best: Option<((i64, i128), usize)> = None;
            for host in 0..self.load.len() {
                if self.fits(host, None, container) {
                    let more = self.weigh(host, None, Some(container));
                    let met = self.load[host].iter().zip(&self.want[container]);
                    let met = met
                        .map(|(load, want)| i128::from(*load) * i128::from(*want))
                        .sum();
                    if best.is_none_or(|(least, _)| (more, met) < least) {
                        best = Some(((more, met), host));
                    }
                }
            }
            if let Some((_, host)) = best {
                self.put(container, host);
            }
        }
    }

    /// Puts each where `requests` puts it.
    fn as_requests(&mut self) {
        let Some(mut requests) = policy::by_name("requests", self.scenario.settings.seed) else {
            return;
        };
        for event in engine::run(self.scenario, &mut *requests, Telemetry::default()) {
            if let Event::Place { container, node, .. } = event
                && self.fits(node, None, container)
            {
                self.put(container, node);
            }
        }
    }

    /// Moves and exchanges until nothing gets better, or the work is done.
    fn improve(&mut self) {
        self.work = 0;
        let mut better = true;
        while better && self.work < WORK {
            better = false;
            let mut hosts: Vec<(i64, usize)> = (0..self.load.len())
                .map(|host| (-self.avoidable(host), host))
                .collect();
            hosts.sort_unstable();
            for (_, host) in hosts.into_iter().filter(|(over, _)| *over < 0) {
                let here: Vec<usize> = (0..self.on.len())
                    .filter(|one| self.on[*one] == Some(host))
                    .collect();
                for container in here {
                    if self.work < WORK && self.avoidable(host) > 0 {
                        better |= self.moves(container, host) || self.swaps(container, host);
                    }
                }
            }
        }
    }

    /// Moves one to where it helps most.
    fn moves(&mut self, container: usize, from: usize) -> bool {
        let gain = self.weigh(from, Some(container), None);
        let mut best = None;
        if gain < 0 {
            for to in (0..self.load.len()).filter(|to| *to != from) {
                let sum = gain + self.weigh(to, None, Some(container));
                if sum < best.map_or(0, |(least, _)| least) && self.fits(to, None, container) {
                    best = Some((sum, to));
                }
            }
        }
        if let Some((_, to)) = best {
            self.take(container);
            self.put(container, to);
        }
        best.is_some()
    }

    /// Exchanges one with the first with which it helps.
    fn swaps(&mut self, container: usize, from: usize) -> bool {
        for other in 0..self.on.len() {
            let Some(to) = self.on[other].filter(|to| *to != from) else {
                continue;
            };
            let gain = self.weigh(from, Some(container), Some(other));
            if gain < 0
                && gain + self.weigh(to, Some(other), Some(container)) < 0
                && self.fits(from, Some(container), other)
                && self.fits(to, Some(other), container)
            {
                self.take(container);
                self.take(other);
                self.put(container, to);
                self.put(other, from);
                return true;
            }
            if self.work >= WORK {
                break;
            }
        }
        false
    }
}

/// What a host lacks over the day, before and after `less` goes and `more` comes.
fn change(load: &[i64], less: &[i64], more: &[i64], whole: i64) -> (i64, i64) {
    let (mut before, mut after) = (0, 0);
    for ((load, less), more) in load.iter().zip(less).zip(more) {
        let over = load - whole;
        before += over.max(0);
        after += (over - less + more).max(0);
    }
    (before, after)
}
