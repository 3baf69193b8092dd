//! What replays of several days come to: means and the worst, and berth beside the others. Pure.

use std::fmt::Write as _;

use serde::Serialize;

use super::clairvoyant;
use super::floor::Floor;
use super::report::Figures;

/// Up to so many percent of what containers ask for may be turned away for nobody to be: they wait for the scheduler's next round.
pub(super) const NOBODY: f64 = 0.1;

/// What came of one scenario.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Day {
    /// Its trace.
    pub trace: String,
    /// Hosts there were.
    pub hosts: usize,
    /// Its seed.
    pub seed: u64,
    /// Figures of each policy.
    pub policies: Vec<Figures>,
    /// What could not be avoided.
    pub floor: Floor,
}

impl Day {
    /// The figures of a policy.
    pub fn of(&self, policy: &str) -> Option<&Figures> {
        self.policies.iter().find(|one| one.policy == policy)
    }
}

/// With how many hosts berth is overloaded no more than `requests` with `hosts`.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Needed {
    /// How many `requests` had.
    pub hosts: usize,
    /// The fewest; none: it needs more.
    pub fewest: Option<usize>,
    /// The fewest with which all containers find a place besides.
    pub turning_nobody_away: Option<usize>,
}

/// A column: its title, what it shows, how many digits of it, and whether more is worse.
type Column = (&'static str, fn(&Figures) -> f64, usize, bool);

const COLUMNS: [Column; 7] = [
    ("OVERLOADED %", |one| one.overloaded_percent, 2, true),
    ("AVOIDABLE %", |one| one.avoidable_percent, 3, true),
    ("UNMET CPU %", |one| one.unmet_percent, 3, true),
    ("TURNED AWAY %", |one| one.turned_away_percent, 3, true),
    ("MOVES", |one| one.moves as f64, 0, true),
    ("REFUSED", |one| one.refused as f64, 1, true),
    ("FAIRNESS", |one| one.fairness, 4, false),
];

/// Mean and worst of something over the days on which a policy was replayed.
fn over(days: &[&Day], policy: &str, what: fn(&Figures) -> f64, more_is_worse: bool) -> (f64, f64) {
    let all = days.iter().filter_map(|day| day.of(policy)).map(what);
    let (count, sum) = all
        .clone()
        .fold((0.0, 0.0), |(count, sum), one| (count + 1.0, sum + one));
    let worst = all.fold(None, |worst: Option<f64>, one| {
        Some(worst.map_or(one, |worst| {
            if more_is_worse {
                worst.max(one)
            } else {
                worst.min(one)
            }
        }))
    });
    (sum / f64::max(count, 1.0), worst.unwrap_or(0.0))
}

fn mean(days: &[&Day], policy: &str, what: fn(&Figures) -> f64) -> f64 {
    over(days, policy, what, true).0
}

/// All there is to tell.
pub(super) fn text(sizes: &[usize], days: &[Day], needed: &[Needed]) -> String {
    let mut text = String::new();
    let of_size = |hosts: usize| days.iter().filter(|day| day.hosts == hosts).collect::<Vec<_>>();
    for hosts in sizes {
        table(&mut text, *hosts, &of_size(*hosts));
    }
    ratios(&mut text, sizes, &of_size);
    hosts_needed(&mut text, needed);
    text
}

fn table(text: &mut String, hosts: usize, days: &[&Day]) {
    let _ = write!(text, "{:<12}", format!("{hosts} hosts"));
    for (title, ..) in COLUMNS {
        let _ = write!(text, " {title:>18}");
    }
    let policies = days.first().map_or(&[][..], |day| &day.policies);
    for policy in policies.iter().map(|one| &one.policy) {
        let _ = write!(text, "\n{policy:<12}");
        for (_, what, digits, more_is_worse) in COLUMNS {
            let (mean, worst) = over(days, policy, what, more_is_worse);
            let _ = write!(text, " {:>18}", format!("{mean:.digits$} ({worst:.digits$})"));
        }
    }
    let sum: f64 = days.iter().map(|day| day.floor.percent).sum();
    let _ = writeln!(
        text,
        "\nno placement of all containers can do better than {:.2} % overloaded, on average\n",
        sum / days.len().max(1) as f64
    );
}

/// A part of something; of nothing there is none.
fn part(of: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.3}", of / whole),
        false if of > 0.0 => "more than none".to_owned(),
        false => "none, and none".to_owned(),
    }
}

fn ratios<'a>(text: &mut String, sizes: &[usize], of_size: &dyn Fn(usize) -> Vec<&'a Day>) {
    let avoidable: fn(&Figures) -> f64 = |one| one.avoidable_percent;
    let away: fn(&Figures) -> f64 = |one| one.turned_away_percent;
    let moves: fn(&Figures) -> f64 = |one| one.moves as f64;
    let mut lines = [
        "avoidable overloads, of those of requests (goal: 0.05)".to_owned(),
        "  of the best other's (goal: 0.5)".to_owned(),
        "  of the best other's that turns away no more (goal: 0.5)".to_owned(),
        "moves, of those of koordinator".to_owned(),
    ]
    .map(|title| format!("{title:<58}"));
    let mut head = format!("{:<58}", "berth");
    for hosts in sizes {
        let days = of_size(*hosts);
        let berth = mean(&days, "berth", avoidable);
        let best = |no_more_away: bool| {
            let all = days.first().map_or(&[][..], |day| &day.policies);
            all.iter()
                .map(|one| &*one.policy)
                .filter(|name| !["berth", clairvoyant::NAME].contains(name))
                .filter(|name| !no_more_away || mean(&days, name, away) <= mean(&days, "berth", away))
                .map(|name| (mean(&days, name, avoidable), name))
                .min_by(|a, b| a.0.total_cmp(&b.0))
                .map_or_else(
                    || "nobody".to_owned(),
                    |(other, name)| format!("{} ({name})", part(berth, other)),
                )
        };
        let cells = [
            part(berth, mean(&days, "requests", avoidable)),
            best(false),
            best(true),
            part(mean(&days, "berth", moves), mean(&days, "koordinator", moves)),
        ];
        let _ = write!(head, " {:>28}", format!("{hosts} hosts"));
        for (line, cell) in lines.iter_mut().zip(cells) {
            let _ = write!(line, " {cell:>28}");
        }
    }
    let _ = writeln!(text, "{head}\n{}\n", lines.join("\n"));
}

fn hosts_needed(text: &mut String, needed: &[Needed]) {
    let Some(had) = needed.first().map(|one| one.hosts) else {
        return;
    };
    let _ = writeln!(
        text,
        "hosts needed to be overloaded no more than requests with {had}"
    );
    let fewest: Vec<_> = needed.iter().map(|one| one.fewest).collect();
    let nobody: Vec<_> = needed.iter().map(|one| one.turning_nobody_away).collect();
    for (words, all) in [
        ("whoever is turned away", fewest),
        ("turning nobody away", nobody),
    ] {
        // Where it needs more than there were: one more at least.
        let all: Vec<usize> = all.into_iter().map(|one| one.unwrap_or(had + 1)).collect();
        let mean = all.iter().sum::<usize>() as f64 / all.len() as f64;
        let _ = writeln!(
            text,
            "  {words:<24} {mean:.1} on average, {} at worst: {:.0} % fewer (goal: 35)",
            all.iter().max().copied().unwrap_or(0),
            100.0 - mean * 100.0 / had as f64
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(policy: &str, avoidable: f64, moves: usize, away: f64) -> Figures {
        Figures {
            policy: policy.to_owned(),
            hosts: 30,
            hosts_used: 30,
            intervals: 100,
            overloaded: 0,
            overloaded_percent: avoidable + 1.0,
            overloaded_from_outside: 1,
            avoidable_percent: avoidable,
            unmet_core_hours: 0.0,
            unmet_percent: 0.0,
            turned_away_percent: away,
            moves,
            refused: 0,
            fairness: 1.0 - avoidable / 100.0,
        }
    }

    #[test]
    fn means_the_worst_and_parts_are_those_of_numbers_that_can_be_counted() {
        let day = |seed, berth, requests, careful| Day {
            trace: "one".to_owned(),
            hosts: 30,
            seed,
            policies: vec![
                figures("berth", berth, 3, 2.0),
                figures("requests", requests, 0, 0.0),
                figures("koordinator", careful, 12, 9.0),
                figures(clairvoyant::NAME, 0.0, 0, 0.0),
            ],
            floor: Floor {
                outside: 1,
                more: 0,
                percent: 1.0,
            },
        };
        let days = [day(1, 0.25, 8.0, 0.0), day(2, 0.75, 12.0, 0.5)];
        let needed = [(Some(20), Some(24)), (Some(18), None)].map(|(fewest, turning_nobody_away)| Needed {
            hosts: 30,
            fewest,
            turning_nobody_away,
        });
        let told = text(&[30], &days, &needed);
        let line = |begin: &str| {
            let found = told.lines().find(|line| line.trim_start().starts_with(begin));
            found
                .unwrap_or_else(|| panic!("{begin}: {told}"))
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line("requests"),
            "requests 11.00 (13.00) 10.000 (12.000) 0.000 (0.000) 0.000 (0.000) 0 (0) 0.0 (0.0) 0.9000 (0.8800)"
        );
        assert!(line("avoidable").ends_with(") 0.050"), "{told}");
        assert!(
            line("of the best other's (").ends_with("2.000 (koordinator)"),
            "{told}"
        );
        assert!(
            line("of the best other's that").ends_with("0.050 (requests)"),
            "{told}"
        );
        assert!(line("moves, of").ends_with("koordinator 0.250"), "{told}");
        assert!(
            line("whoever").ends_with("19.0 on average, 20 at worst: 37 % fewer (goal: 35)"),
            "{told}"
        );
        assert!(
            line("turning").ends_with("27.5 on average, 31 at worst: 8 % fewer (goal: 35)"),
            "{told}"
        );
        assert!(line("no placement").contains("1.00 %"), "{told}");
    }
}
