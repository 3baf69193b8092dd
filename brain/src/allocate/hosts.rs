//! Numbers of endpoints on one network, given round and round with a quarantine.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use berth_common::model::{HostNumber, UnixMillis};
use serde::{Deserialize, Serialize};

/// How long a number that was given back rests, milliseconds. Longer than what other hosts and clients may still remember of
/// it: a node that was cut off acts on an old set until its lease ends, connections are tracked for two minutes after their
/// last packet in most states (nf_conntrack), names are answered with a TTL of seconds.
pub const QUARANTINE_MS: u64 = 180_000;

/// Why no number is given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// All are in use.
    #[error("all {0} addresses of the network are in use; make a larger network")]
    InUse(u32),
    /// Some come free soon.
    #[error(
        "no address of the network is free; {resting} given back lately can be used again, the next in {seconds} s"
    )]
    Resting {
        /// How many.
        resting: usize,
        /// Until the first of them may be given.
        seconds: u64,
    },
}

/// What is kept about a network's numbers beside who has them: where the round is, and which rest until when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hosts {
    /// The one given last.
    #[serde(default)]
    last: u32,
    /// Given back, and when that was.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", with = "pairs")]
    resting: BTreeMap<u32, UnixMillis>,
}

/// A map as a list of pairs: inside a record that is told by a tag, serde reads no key that is a number.
mod pairs {
    use std::collections::BTreeMap;

    use berth_common::model::UnixMillis;
    use serde::{Deserialize as _, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(map: &BTreeMap<u32, UnixMillis>, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(map)
    }

    pub fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<BTreeMap<u32, UnixMillis>, D::Error> {
        Vec::deserialize(from).map(|pairs: Vec<_>| pairs.into_iter().collect())
    }
}

impl Hosts {
    /// The next free number. `taken` tells those that somebody has; the caller keeps the new one there, in one write with self.
    ///
    /// # Errors
    /// [`Full`]; nothing is changed then.
    pub fn take(
        &mut self,
        range: RangeInclusive<u32>,
        taken: impl Fn(HostNumber) -> bool,
        now: UnixMillis,
    ) -> Result<HostNumber, Full> {
        let (first, last) = (*range.start(), *range.end());
        let from = self.last.max(first - 1).min(last);
        let round = (from + 1..=last).chain(first..=from);
        for number in round {
            let rested = self.resting.get(&number).is_none_or(|since| rested(*since, now));
            if rested && !taken(HostNumber(number)) {
                self.last = number;
                self.resting.remove(&number);
                return Ok(HostNumber(number));
            }
        }
        let waits = self
            .resting
            .values()
            .map(|since| QUARANTINE_MS.saturating_sub(now.since(*since)));
        Err(match waits.min() {
            Some(least) => Full::Resting {
                resting: self.resting.len(),
                seconds: least.div_ceil(1000),
            },
            None => Full::InUse(last - first + 1),
        })
    }

    /// Gives a number back; it rests before anybody gets it again.
    pub fn give_back(&mut self, host: HostNumber, now: UnixMillis) {
        // What has rested needs no note any more: so the list stays as short as the churn of one quarantine.
        self.resting.retain(|_, since| !rested(*since, now));
        self.resting.insert(host.0, now);
    }

    /// How many rest.
    pub fn resting(&self, now: UnixMillis) -> usize {
        self.resting
            .values()
            .filter(|since| !rested(**since, now))
            .count()
    }
}

/// By the wall clock, since the note outlives the brain: a clock set back makes numbers rest longer, one set forward shorter.
const fn rested(since: UnixMillis, now: UnixMillis) -> bool {
    now.since(since) >= QUARANTINE_MS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        Take,
        GiveBack(usize),
        Wait(u64),
        /// The write was never acknowledged: the brain comes back with what it had before.
        TakeAndCrash,
        GiveBackAndCrash(usize),
    }

    fn acts() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => Just(Act::Take),
            3 => any::<usize>().prop_map(Act::GiveBack),
            2 => (0..QUARANTINE_MS).prop_map(Act::Wait),
            1 => Just(Act::TakeAndCrash),
            1 => any::<usize>().prop_map(Act::GiveBackAndCrash),
        ]
    }

    proptest! {
        #[test]
        fn r6_no_address_is_given_twice_nor_before_it_rested_and_none_is_lost(
            size in 1_u32..12, acts in proptest::collection::vec(acts(), 1..200)
        ) {
            let range = 2..=1 + size;
            let mut now = UnixMillis(1_000_000);
            let (mut hosts, mut held) = (Hosts::default(), BTreeSet::<u32>::new());
            let mut given_back = std::collections::BTreeMap::<u32, u64>::new();
            for act in acts {
                now.0 += 1;
                let kept = (hosts.clone(), held.clone());
                match act {
                    Act::Take | Act::TakeAndCrash => {
                        let crash = matches!(act, Act::TakeAndCrash);
                        let got = hosts.take(range.clone(), |n| held.contains(&n.0), now);
                        if let Ok(got) = got {
                            prop_assert!(range.contains(&got.0));
                            prop_assert!(held.insert(got.0), "{} is somebody's", got.0);
                            if let Some(at) = given_back.get(&got.0) {
                                prop_assert!(now.0 - at >= QUARANTINE_MS, "{} did not rest", got.0);
                            }
                        } else {
                            prop_assert_eq!(held.len() + hosts.resting(now), size as usize, "it says full and is not");
                        }
                        if crash { (hosts, held) = kept; }
                    }
                    Act::GiveBack(which) | Act::GiveBackAndCrash(which) => {
                        let Some(number) = held.iter().nth(which % held.len().max(1)).copied() else { continue };
                        held.remove(&number);
                        hosts.give_back(HostNumber(number), now);
                        if matches!(act, Act::GiveBackAndCrash(_)) {
                            (hosts, held) = kept;
                        } else {
                            given_back.insert(number, now.0);
                        }
                    }
                    Act::Wait(ms) => now.0 += ms,
                }
                // What is stored is what is read.
                let text = serde_json::to_string(&hosts).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Hosts>(&text).unwrap(), &hosts);
            }
            // With everything back and rested, all can be given again.
            for number in std::mem::take(&mut held) {
                hosts.give_back(HostNumber(number), now);
            }
            now.0 += QUARANTINE_MS;
            for _ in 0..size {
                let got = hosts.take(range.clone(), |n| held.contains(&n.0), now).unwrap();
                held.insert(got.0);
            }
            prop_assert_eq!(hosts.take(range.clone(), |n| held.contains(&n.0), now), Err(Full::InUse(size)));
        }
    }

    #[test]
    fn a_full_network_says_when_there_is_room_again() {
        let mut hosts = Hosts::default();
        let now = UnixMillis(1_000_000);
        let one = hosts.take(2..=2, |_| false, now).unwrap();
        assert_eq!(one, HostNumber(2));
        let full = hosts.take(2..=2, |n| n == one, now).unwrap_err();
        assert_eq!(full, Full::InUse(1));
        hosts.give_back(one, now);
        let resting = hosts
            .take(2..=2, |_| false, UnixMillis(now.0 + 60_000))
            .unwrap_err();
        assert!(resting.to_string().contains("the next in 120 s"), "{resting}");
        assert_eq!(
            hosts.take(2..=2, |_| false, UnixMillis(now.0 + QUARANTINE_MS)),
            Ok(one)
        );
    }

    #[test]
    fn numbers_go_round_before_any_comes_again() {
        let mut hosts = Hosts::default();
        let mut now = UnixMillis(1_000_000);
        for want in [2, 3, 4, 5, 2] {
            let got = hosts.take(2..=5, |_| false, now).unwrap();
            assert_eq!(got.0, want);
            hosts.give_back(got, now);
            now.0 += QUARANTINE_MS;
        }
    }
}
