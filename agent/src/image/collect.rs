//! Which images may go, and in which order.
//!
//! Pure: the caller brings the records, the counts of containers and the time. Refuses images in use and images touched a
//! moment ago, whose container may be on its way.

use std::collections::HashMap;

use berth_common::id::TenantId;
use berth_common::model::{Digest, UnixMillis};

use super::record::Record;

/// Images that may be removed, least recently used first. Images are safe for `grace_ms` after their last use.
pub(super) fn removable(
    records: Vec<Record>,
    in_use: &HashMap<(TenantId, Digest), u32>,
    now: UnixMillis,
    grace_ms: u64,
) -> Vec<Record> {
    let free = |record: &Record| {
        let last = record.used.max(record.created);
        // A clock that went back makes `since` zero, which keeps the image.
        !in_use.contains_key(&(record.tenant, record.manifest)) && now.since(last) >= grace_ms
    };
    let mut records: Vec<_> = records.into_iter().filter(free).collect();
    records.sort_by(|a, b| (a.used, &a.reference, a.tenant).cmp(&(b.used, &b.reference, b.tenant)));
    records
}

/// Whole percent of a file system in use, rounded up, as `df` shows it: of what ordinary users could have.
pub(super) fn used_percent(blocks: u64, free: u64, available: u64) -> u8 {
    let used = u128::from(blocks.saturating_sub(free));
    let total = used + u128::from(available);
    if total == 0 {
        return 0;
    }
    u8::try_from((used * 100).div_ceil(total)).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(n: u8, used: u64) -> Record {
        Record {
            tenant: TenantId::from_bytes([n % 3; 10]),
            reference: format!("r.example/x:{n}").parse().unwrap(),
            manifest: Digest::from_bytes([n; 32]),
            media_type: String::new(),
            manifest_size: 1,
            size: 1,
            used: UnixMillis(used),
            created: UnixMillis(0),
        }
    }

    #[test]
    fn percent() {
        let table = [
            ((0, 0, 0), 0),
            ((100, 100, 100), 0),
            ((100, 50, 50), 50),
            ((1000, 499, 499), 51),
            ((100, 0, 0), 100),
            ((100, 15, 10), 90),
        ];
        for ((blocks, free, available), expected) in table {
            assert_eq!(used_percent(blocks, free, available), expected);
        }
    }

    proptest! {
        #[test]
        fn never_in_use_never_fresh_always_oldest_first(
            images in proptest::collection::vec((any::<u8>(), 0u64..1_000_000, any::<bool>()), 0..30),
            now in 0u64..1_000_000,
        ) {
            let records: Vec<_> = images.iter().map(|(n, used, _)| record(*n, *used)).collect();
            let in_use: HashMap<_, _> = images.iter().filter(|(_, _, busy)| *busy)
                .map(|(n, used, _)| (record(*n, *used).tenant, record(*n, *used).manifest)).map(|key| (key, 1)).collect();
            let plan = removable(records, &in_use, UnixMillis(now), 1000);
            for one in &plan {
                prop_assert!(!in_use.contains_key(&(one.tenant, one.manifest)));
                prop_assert!(one.used.0 + 1000 <= now);
            }
            prop_assert!(plan.windows(2).all(|pair| pair[0].used <= pair[1].used));
        }
    }
}
