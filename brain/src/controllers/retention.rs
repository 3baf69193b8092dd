//! Which scheduled snapshots stay. Pure.

use std::collections::BTreeSet;

use berth_common::id::SnapshotId;
use berth_common::model::{Retention, UnixMillis};

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
/// 1970 began on a Thursday: days from the Monday before.
const MONDAY: u64 = 3;

/// In which hour, day, week or month since 1970 a second is.
type Period = fn(u64) -> u64;

fn month(seconds: u64) -> u64 {
    let at = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok());
    // Beyond the calendar all is one month: nothing is let go for what is no date.
    at.map_or(0, |at| {
        u64::try_from(at.year()).unwrap_or(0) * 12 + u64::from(u8::from(at.month()))
    })
}

/// Those that a retention keeps: the newest of each period, for so many periods in which there are some, the latest first.
pub(super) fn kept(keep: &Retention, snapshots: &[(SnapshotId, UnixMillis)]) -> BTreeSet<SnapshotId> {
    let mut newest_first: Vec<_> = snapshots.iter().map(|(id, at)| (at.0 / 1_000, *id)).collect();
    newest_first.sort_unstable_by(|a, b| b.cmp(a));
    let last = newest_first.iter().take(keep.last as usize);
    let mut kept: BTreeSet<_> = last.map(|(_, id)| *id).collect();
    let rules: [(u32, Period); 4] = [
        (keep.hourly, |seconds| seconds / HOUR),
        (keep.daily, |seconds| seconds / DAY),
        (keep.weekly, |seconds| (seconds / DAY + MONDAY) / 7),
        (keep.monthly, month),
    ];
    for (count, period) in rules {
        let (mut left, mut before) = (count, None);
        for (seconds, id) in &newest_first {
            let now = Some(period(*seconds));
            if left == 0 {
                break;
            }
            if now != before {
                kept.insert(*id);
                left -= 1;
                before = now;
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(n: usize) -> SnapshotId {
        let mut raw = [0; 10];
        raw[..8].copy_from_slice(&(n as u64).to_be_bytes());
        SnapshotId::from_bytes(raw)
    }

    fn at(text: &str) -> UnixMillis {
        let format = time::format_description::well_known::Rfc3339;
        let at = time::OffsetDateTime::parse(&format!("{text}:00Z"), &format).expect(text);
        UnixMillis(u64::try_from(at.unix_timestamp()).expect("after 1970") * 1_000)
    }

    fn keep(last: u32, hourly: u32, daily: u32, weekly: u32, monthly: u32) -> Retention {
        Retention {
            last,
            hourly,
            daily,
            weekly,
            monthly,
        }
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        // 2026-11-29 is a Sunday, 2026-11-30 a Monday.
        let times = [
            "2026-10-31T23:00",
            "2026-11-01T00:00",
            "2026-11-28T10:10",
            "2026-11-28T10:50",
            "2026-11-28T11:00",
            "2026-11-29T23:59",
            "2026-11-30T00:00",
            "2026-12-01T09:00",
        ];
        let all: Vec<_> = times
            .iter()
            .enumerate()
            .map(|(n, text)| (id(n), at(text)))
            .collect();
        for (rules, want) in [
            (keep(0, 0, 0, 0, 0), &[][..]),
            (keep(2, 0, 0, 0, 0), &[6, 7]),
            (keep(99, 0, 0, 0, 0), &[0, 1, 2, 3, 4, 5, 6, 7]),
            (keep(0, 5, 0, 0, 0), &[3, 4, 5, 6, 7]),
            (keep(0, 0, 4, 0, 0), &[4, 5, 6, 7]),
            // A day without any does not count.
            (keep(0, 0, 5, 0, 0), &[1, 4, 5, 6, 7]),
            (keep(0, 0, 0, 1, 0), &[7]),
            (keep(0, 0, 0, 2, 0), &[5, 7]),
            // The week from 26 October to 1 November.
            (keep(0, 0, 0, 3, 0), &[1, 5, 7]),
            (keep(0, 0, 0, 0, 3), &[0, 6, 7]),
            (keep(1, 0, 2, 0, 3), &[0, 6, 7]),
        ] {
            let want: BTreeSet<_> = want.iter().map(|n| id(*n)).collect();
            assert_eq!(kept(&rules, &all), want, "{rules:?}");
        }
    }

    fn retention() -> impl Strategy<Value = Retention> {
        [0_u32..5, 0..5, 0..5, 0..5, 0..5]
            .prop_map(|[last, hourly, daily, weekly, monthly]| keep(last, hourly, daily, weekly, monthly))
    }

    proptest! {
        /// Never more than was asked for, always the newest, and more rules let go of no more.
        #[test]
        fn it_keeps_the_newest_and_no_more_than_was_asked(
            rules in retention(), minutes in prop::collection::btree_set(0_u64..200_000, 1..60),
        ) {
            let all: Vec<_> = minutes.iter().enumerate().map(|(n, m)| (id(n), UnixMillis(m * 60_000))).collect();
            let found = kept(&rules, &all);
            let most = rules.last + rules.hourly + rules.daily + rules.weekly + rules.monthly;
            prop_assert!(found.len() <= most as usize);
            let newest = id(all.len() - 1);
            prop_assert_eq!(found.contains(&newest), most > 0);
            let more = kept(&Retention { daily: rules.daily + 1, ..rules }, &all);
            prop_assert!(found.is_subset(&more));
            // What is let go now is not missed later: what stays is the same however often it is asked.
            let left: Vec<_> = all.iter().filter(|(id, _)| found.contains(id)).copied().collect();
            prop_assert_eq!(kept(&rules, &left), found);
        }

        /// Letting go after each new one keeps what letting go at the end would.
        #[test]
        fn letting_go_all_along_keeps_the_same(
            rules in retention(), minutes in prop::collection::btree_set(0_u64..200_000, 1..60),
        ) {
            let all: Vec<_> = minutes.iter().enumerate().map(|(n, m)| (id(n), UnixMillis(m * 60_000))).collect();
            let mut left: Vec<(SnapshotId, UnixMillis)> = Vec::new();
            for one in &all {
                left.push(*one);
                let found = kept(&rules, &left);
                left.retain(|(id, _)| found.contains(id));
            }
            let left: BTreeSet<_> = left.iter().map(|(id, _)| *id).collect();
            prop_assert_eq!(left, kept(&rules, &all));
        }
    }
}
