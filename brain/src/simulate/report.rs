//! Figures of a replay, from its events, its scenario and the trace alone: whoever has these can compute them again.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::engine::Event;
use super::scenario::{INTERVAL, Scenario};

/// The figures of one replay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// The policy.
    pub policy: String,
    /// Hosts there were.
    pub hosts: usize,
    /// Hosts that ever had a container.
    pub hosts_used: usize,
    /// Intervals of a host.
    pub intervals: usize,
    /// Of them, those in which more CPU was asked for than the host has, on average over the interval.
    pub overloaded: usize,
    /// The same, percent.
    pub overloaded_percent: f64,
    /// Of them, those in which load from outside alone was more than the host has: no policy helps these.
    pub overloaded_from_outside: usize,
    /// The others, percent of all intervals: those that a policy can avoid, or cause.
    pub avoidable_percent: f64,
    /// CPU that was asked for and not there, core hours.
    pub unmet_core_hours: f64,
    /// The same of what was asked for, percent.
    pub unmet_percent: f64,
    /// What containers would have asked for while they waited for a place, of what all of them would have, percent.
    pub turned_away_percent: f64,
    /// Containers moved.
    pub moves: usize,
    /// Containers that never found a place.
    pub refused: usize,
    /// How alike tenants' shares of unmet CPU are: 1 all the same, 1/tenants one has all of it (Jain's index of what was given of what was
    /// asked for).
    pub fairness: f64,
}

/// From when to when a container was somewhere, seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stay {
    pub container: usize,
    pub host: usize,
    pub from: u32,
    pub to: u32,
}

impl Stay {
    /// The intervals of its time there, and of how many seconds of each.
    pub fn seconds(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let (from, to) = (self.from, self.to);
        (from / INTERVAL..to.div_ceil(INTERVAL)).map(move |interval| {
            let (begin, over) = (interval * INTERVAL, (interval + 1) * INTERVAL);
            (interval, to.min(over) - from.max(begin))
        })
    }
}

/// Where containers were, by what happened.
pub(super) fn stays(events: &[Event], end: u32) -> Vec<Stay> {
    let mut held: BTreeMap<usize, (usize, u32)> = BTreeMap::new();
    let mut stays = Vec::new();
    let mut close = |held: Option<(usize, u32)>, container: usize, to: u32| {
        if let Some((host, from)) = held.filter(|(_, from)| *from < to) {
            stays.push(Stay {
                container,
                host,
                from,
                to,
            });
        }
    };
    for event in events {
        match *event {
            Event::Place {
                time,
                container,
                node,
                ..
            }
            | Event::Move {
                time,
                container,
                node,
                ..
            } => {
                close(held.insert(container, (node, time)), container, time);
            }
            Event::End { time, container, .. } => close(held.remove(&container), container, time),
            Event::Refuse { .. } => {}
        }
    }
    for (container, place) in held {
        close(Some(place), container, end);
    }
    stays
}

/// What a container asks for while it is somewhere, millicore seconds of each interval.
pub(super) fn demand(scenario: &Scenario, stay: &Stay) -> impl Iterator<Item = (usize, u64)> {
    let one = &scenario.arrivals[stay.container];
    stay.seconds().map(|(interval, seconds)| {
        let demand = scenario.demand(one.row, one.limit, interval * INTERVAL);
        (interval as usize, u64::from(demand) * u64::from(seconds))
    })
}

/// Of what containers would use from when they come to when they go, the part that they had no place for, percent.
fn turned_away(scenario: &Scenario, stays: &[Stay]) -> f64 {
    let used = |stay: &Stay| demand(scenario, stay).map(|(_, asked)| asked).sum::<u64>();
    let (end, come) = (scenario.end(), scenario.arrivals.iter().enumerate());
    let whole = come.map(|(container, one)| Stay {
        container,
        host: 0,
        from: one.at.min(end),
        to: one.until.min(end),
    });
    let wanted: u64 = whole.map(|stay| used(&stay)).sum();
    // The replay looks at who goes every step: what is there a moment longer makes up for nobody.
    let placed: u64 = stays
        .iter()
        .map(|stay| Stay {
            to: stay.to.min(scenario.arrivals[stay.container].until),
            ..*stay
        })
        .filter(|stay| stay.from < stay.to)
        .map(|stay| used(&stay))
        .sum();
    wanted.saturating_sub(placed) as f64 * 100.0 / wanted.max(1) as f64
}

/// What a host has in an interval, millicore seconds.
pub(super) fn whole(scenario: &Scenario) -> u64 {
    u64::from(scenario.settings.host_cpu) * u64::from(INTERVAL)
}

/// What is asked for from outside, millicore seconds: of the first host in each interval, then of the next.
pub(super) fn outside(scenario: &Scenario) -> Vec<u64> {
    let intervals = (scenario.end() / INTERVAL) as usize;
    let mut asked = vec![0_u64; scenario.settings.hosts * intervals];
    for (row, host) in &scenario.foreign {
        for interval in 0..intervals {
            let demand = scenario.demand(*row, scenario.settings.limit, interval as u32 * INTERVAL);
            asked[host * intervals + interval] += u64::from(demand) * u64::from(INTERVAL);
        }
    }
    asked
}

/// The same with what containers ask for.
pub(super) fn asked(scenario: &Scenario, events: &[Event]) -> Vec<u64> {
    let intervals = (scenario.end() / INTERVAL) as usize;
    let mut asked = outside(scenario);
    for stay in stays(events, scenario.end()) {
        for (interval, demand) in demand(scenario, &stay) {
            asked[stay.host * intervals + interval] += demand;
        }
    }
    asked
}

/// Computes them.
pub fn figures(policy: &str, scenario: &Scenario, events: &[Event]) -> Figures {
    let (hosts, end) = (scenario.settings.hosts, scenario.end());
    let intervals = (end / INTERVAL) as usize;
    let tenants = scenario.settings.tenants as usize;
    let stays = stays(events, end);
    let (asked, whole) = (asked(scenario, events), whole(scenario));
    let outside = outside(scenario).iter().filter(|asked| **asked > whole).count();
    // Of each tenant on each host in each interval.
    let mut of_tenant = vec![0_u64; hosts * intervals * tenants];
    for stay in &stays {
        let tenant = scenario.arrivals[stay.container].tenant as usize;
        for (interval, demand) in demand(scenario, stay) {
            of_tenant[(stay.host * intervals + interval) * tenants + tenant] += demand;
        }
    }
    let over = asked.iter().filter(|asked| **asked > whole).count();
    let unmet: u64 = asked.iter().map(|asked| asked.saturating_sub(whole)).sum();
    let total: u64 = asked.iter().sum();
    // Each gets the same part of what it asks for there.
    let (mut wanted, mut given) = (vec![0_f64; tenants], vec![0_f64; tenants]);
    for (at, asked) in asked.iter().enumerate() {
        let part = (whole as f64 / (*asked).max(1) as f64).min(1.0);
        for tenant in 0..tenants {
            let of = of_tenant[at * tenants + tenant] as f64;
            wanted[tenant] += of;
            given[tenant] += of * part;
        }
    }
    let shares: Vec<f64> = wanted
        .iter()
        .zip(&given)
        .filter(|(wanted, _)| **wanted > 0.0)
        .map(|(wanted, given)| given / wanted)
        .collect();
    let (sum, squares) = (
        shares.iter().sum::<f64>(),
        shares.iter().map(|share| share * share).sum::<f64>(),
    );
    let fairness = if squares > 0.0 {
        sum * sum / (shares.len() as f64 * squares)
    } else {
        1.0
    };
    let used: BTreeSet<usize> = stays.iter().map(|stay| stay.host).collect();
    let core_hours = 1_000.0 * 3_600.0;
    Figures {
        policy: policy.to_owned(),
        hosts,
        hosts_used: used.len(),
        intervals: asked.len(),
        overloaded: over,
        overloaded_percent: over as f64 * 100.0 / asked.len().max(1) as f64,
        overloaded_from_outside: outside,
        avoidable_percent: (over - outside) as f64 * 100.0 / asked.len().max(1) as f64,
        unmet_core_hours: unmet as f64 / core_hours,
        unmet_percent: unmet as f64 * 100.0 / total.max(1) as f64,
        turned_away_percent: turned_away(scenario, &stays),
        moves: events
            .iter()
            .filter(|event| matches!(event, Event::Move { .. }))
            .count(),
        refused: events
            .iter()
            .filter(|event| matches!(event, Event::Refuse { .. }))
            .count(),
        fairness,
    }
}
