//! What agents of other systems make of a host's load before their schedulers see it: means over minutes, told now and then.

use std::collections::{BTreeMap, VecDeque};

use super::Report;

/// A host's load as it was told last.
#[derive(Debug, Clone, Default)]
pub(super) struct Told {
    /// When its newest sample was measured, seconds.
    pub at: u32,
    /// Mean CPU in use, millicores.
    pub total: u32,
    /// Of it not of containers.
    pub foreign: u32,
    /// Of each container that was there at the end, its mean while it was.
    pub containers: BTreeMap<usize, u32>,
}

/// Means over a window, told every so often.
#[derive(Debug)]
pub(super) struct Measured {
    window: u32,
    every: u32,
    held: BTreeMap<usize, VecDeque<Report>>,
    told: BTreeMap<usize, Told>,
}

impl Measured {
    /// Means over `window` seconds, told every `every`.
    pub(super) const fn new(window: u32, every: u32) -> Self {
        Self {
            window,
            every,
            held: BTreeMap::new(),
            told: BTreeMap::new(),
        }
    }

    /// A report arrives.
    pub(super) fn hear(&mut self, report: &Report) {
        let held = self.held.entry(report.host).or_default();
        held.push_back(report.clone());
        while held
            .front()
            .is_some_and(|first| first.at + self.window <= report.at)
        {
            held.pop_front();
        }
        let due = self
            .told
            .get(&report.host)
            .is_none_or(|told| told.at + self.every <= report.at);
        if due {
            self.told.insert(report.host, mean(held, report));
        }
    }

    /// A host's load, if it ever told.
    pub(super) fn of(&self, host: usize) -> Option<&Told> {
        self.told.get(&host)
    }
}

fn mean(held: &VecDeque<Report>, newest: &Report) -> Told {
    let over = |sum: u64, count: usize| (sum / count.max(1) as u64) as u32;
    let sum = |of: fn(&Report) -> u32| held.iter().map(|report| u64::from(of(report))).sum::<u64>();
    let mut containers: BTreeMap<usize, (u64, usize)> = BTreeMap::new();
    for report in held {
        for (container, cpu) in &report.containers {
            let (sum, count) = containers.entry(*container).or_default();
            *sum += u64::from(*cpu);
            *count += 1;
        }
    }
    let here: std::collections::BTreeSet<usize> = newest
        .containers
        .iter()
        .map(|(container, _)| *container)
        .collect();
    containers.retain(|container, _| here.contains(container));
    Told {
        at: newest.at,
        total: over(sum(|report| report.total), held.len()),
        foreign: over(sum(|report| report.foreign), held.len()),
        containers: containers
            .into_iter()
            .map(|(container, (sum, count))| (container, over(sum, count)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_of_the_window_and_told_when_due() {
        let report = |at, total, containers: &[(usize, u32)]| Report {
            host: 3,
            at,
            total,
            foreign: 0,
            containers: containers.to_vec(),
        };
        let mut measured = Measured::new(30, 20);
        assert!(measured.of(3).is_none());
        measured.hear(&report(0, 100, &[(1, 100)]));
        measured.hear(&report(10, 200, &[(1, 150), (2, 50)]));
        assert_eq!(measured.of(3).map(|told| (told.at, told.total)), Some((0, 100)));
        measured.hear(&report(20, 300, &[(2, 250)]));
        let told = measured.of(3).unwrap();
        assert_eq!(
            (told.at, told.total, told.containers.clone()),
            (20, 200, [(2, 150)].into())
        );
        measured.hear(&report(40, 600, &[]));
        assert_eq!(measured.of(3).map(|told| told.total), Some(450), "20 and 40");
    }
}
