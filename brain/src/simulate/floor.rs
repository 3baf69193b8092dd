//! The floor: how many overloaded intervals of hosts no placement gets below, however much it knows and moves.
//!
//! Owns a bound that is proven, not reached: [`clairvoyant`](super::clairvoyant) says what can be reached.

use serde::Serialize;

use super::engine::STEP;
use super::report::{Stay, outside, whole};
use super::scenario::{INTERVAL, Scenario};

/// What cannot be avoided by who turns nobody away.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Floor {
    /// Intervals of a host in which load from outside alone is more than it has.
    pub outside: usize,
    /// Those that must come on top, since containers ask for more than hosts have left.
    pub more: usize,
    /// Both, percent of all intervals of hosts.
    pub percent: f64,
}

impl Floor {
    /// Of a scenario of which every container finds a place when it comes.
    pub fn of(scenario: &Scenario) -> Self {
        let end = scenario.end();
        let all = scenario.arrivals.iter().enumerate().map(|(container, one)| Stay {
            container,
            host: 0,
            from: one.at.next_multiple_of(STEP),
            to: one.until.min(end),
        });
        Self::under(
            scenario,
            &all.filter(|stay| stay.from < stay.to).collect::<Vec<_>>(),
        )
    }

    /// Of containers that are there at these times, wherever.
    ///
    /// In one interval, let `m` hosts be overloaded: at least those that are by load from outside alone. The others have, beside load from
    /// outside, no more than what the `hosts - m` of them with most have left; containers on them ask for no more than that. What containers
    /// on the overloaded hosts ask for has no such limit, but their reservations do (R4): at every moment they add up to no more than `m`
    /// times what a host may set aside, so reservation times seconds to no more than that times the interval. The most that containers
    /// within this sum can ask for is had by taking those with most demand by reservation first, the last one in part: the relaxed knapsack
    /// problem, whose answer is at least that of any real choice. Moves help nothing, since it is sums over the interval that are bounded,
    /// and a move reserves twice. Hence all that is asked for is no more than both together; the smallest `m` for which it is, is the bound,
    /// and its sum over intervals bounds the sum.
    pub(super) fn under(scenario: &Scenario, stays: &[Stay]) -> Self {
        let (hosts, intervals) = (scenario.settings.hosts, (scenario.end() / INTERVAL) as usize);
        let (foreign, whole) = (outside(scenario), whole(scenario));
        let mut present: Vec<Vec<Asked>> = vec![Vec::new(); intervals];
        for stay in stays {
            let one = &scenario.arrivals[stay.container];
            for (interval, seconds) in stay.seconds() {
                present[interval as usize].push(Asked {
                    demand: u64::from(scenario.demand(one.row, one.limit, interval * INTERVAL))
                        * u64::from(seconds),
                    reserved: u64::from(one.cpu.max(1)) * u64::from(seconds),
                });
            }
        }
        let aside = u64::from(scenario.allocatable()) * u64::from(INTERVAL);
        let (mut sure, mut all) = (0, 0);
        for (interval, present) in present.iter_mut().enumerate() {
            let load = (0..hosts).map(|host| foreign[host * intervals + interval]);
            let mut left: Vec<u64> = load.filter_map(|load| whole.checked_sub(load)).collect();
            let outside = hosts - left.len();
            sure += outside;
            all += fewest(&mut left, outside, present, aside);
        }
        Self {
            outside: sure,
            more: all - sure,
            percent: all as f64 * 100.0 / (hosts * intervals).max(1) as f64,
        }
    }
}

/// A container in an interval, millicore seconds.
#[derive(Debug, Clone, Copy)]
struct Asked {
    demand: u64,
    reserved: u64,
}

/// The fewest overloaded hosts, where `over` are and the others have so much `left`.
fn fewest(left: &mut [u64], over: usize, present: &mut [Asked], aside: u64) -> usize {
    left.sort_unstable_by(|a, b| b.cmp(a));
    let demand: u64 = present.iter().map(|one| one.demand).sum();
    let mut free: u64 = left.iter().sum();
    if demand <= free {
        return over;
    }
    let ratio = |one: &Asked, other: &Asked| {
        let (this, that) = (
            u128::from(one.demand) * u128::from(other.reserved),
            u128::from(other.demand) * u128::from(one.reserved),
        );
        that.cmp(&this)
    };
    present.sort_unstable_by(ratio);
    let mut count = over;
    while demand > free + most(present, count as u64 * aside) {
        // Of the others that with least left: that is the best that can be.
        let Some(least) = left.get((left.len() + over).wrapping_sub(count + 1)) else {
            break;
        };
        free -= least;
        count += 1;
    }
    count
}

/// The most that containers within a sum of reservations ask for, the last one in part; `present` begins with the greediest.
fn most(present: &[Asked], mut room: u64) -> u64 {
    let mut sum = 0;
    for one in present {
        if one.reserved > room {
            let part = u128::from(one.demand) * u128::from(room);
            return sum + part.div_ceil(u128::from(one.reserved)) as u64;
        }
        room -= one.reserved;
        sum += one.demand;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_are_those_that_can_be_counted() {
        let asked = |demand| Asked { demand, reserved: 10 };
        let count = |left: &[u64], over, demands: &[u64], aside| {
            let mut present: Vec<_> = demands.iter().map(|demand| asked(*demand)).collect();
            fewest(&mut left.to_vec(), over, &mut present, aside)
        };
        assert_eq!(count(&[100, 100], 0, &[100, 100], 20), 0, "it fits");
        assert_eq!(count(&[100, 100], 0, &[101, 100], 20), 1, "one too much");
        assert_eq!(
            count(&[100, 100], 0, &[60, 60, 60, 60, 60], 20),
            2,
            "one host takes two of the five"
        );
        assert_eq!(
            count(&[100, 100], 0, &[60, 60, 60, 60], 20),
            2,
            "and leaves 120 for the other"
        );
        assert_eq!(count(&[100, 100], 0, &[60, 60, 50, 50], 20), 1);
        assert_eq!(
            count(&[100], 1, &[60, 60, 60], 20),
            1,
            "one that is overloaded anyway takes two more"
        );
        assert_eq!(
            count(&[100], 1, &[60, 60, 60], 10),
            2,
            "but not if reservations forbid it"
        );
        assert_eq!(count(&[], 2, &[500], 10), 2, "no more than all");
        assert_eq!(
            most(&[asked(50), asked(30), asked(1)], 15),
            65,
            "the last one in part"
        );
    }
}
