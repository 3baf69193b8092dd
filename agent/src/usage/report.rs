//! Which containers go into the next usage report. Pure.
//!
//! A container is reported when its load changed noticeably since it was last reported: by more than 5 % and more than
//! a floor below which change is noise. Every tenth report has all, so that nothing goes unreported for longer.

use std::collections::HashMap;

use berth_common::id::ContainerId;
use berth_common::protocol::{ContainerUsage, UsageReport};

use super::Sample;

/// Every so many reports all containers are in.
pub const FULL_EVERY: u64 = 10;

/// Makes reports for one connection. After a reconnect start with a new one.
#[derive(Debug, Default)]
pub struct Reporter {
    sequence: u64,
    reported: HashMap<ContainerId, ContainerUsage>,
}

impl Reporter {
    /// The next report; its sequence number begins with 1 and the first report is a full one.
    pub fn report(&mut self, sample: &Sample) -> UsageReport {
        let full = self.sequence.is_multiple_of(FULL_EVERY);
        self.sequence += 1;
        if full {
            self.reported.clear();
        }
        let containers: Vec<ContainerUsage> = sample
            .containers
            .iter()
            .filter(|now| {
                self.reported
                    .get(&now.id)
                    .is_none_or(|before| noticeable(before, now))
            })
            .cloned()
            .collect();
        for usage in &containers {
            self.reported.insert(usage.id, usage.clone());
        }
        // Those that are gone since the last full report are few and leave with the next one.
        UsageReport {
            sequence: self.sequence,
            at: sample.at,
            node: sample.node.clone(),
            containers,
            full,
        }
    }
}

fn differs(before: Option<u64>, now: Option<u64>, floor: u64) -> bool {
    match (before, now) {
        (None, None) => false,
        (Some(before), Some(now)) => before.abs_diff(now) > floor.max(before / 20),
        _ => true,
    }
}

/// Whether anybody who knows `before` should hear of `now`.
fn noticeable(before: &ContainerUsage, now: &ContainerUsage) -> bool {
    let wide = |value: Option<u32>| value.map(u64::from);
    let share = |value: Option<u16>| value.map(u64::from);
    let same_kills = before.oom_kills == now.oom_kills;
    !same_kills
        || differs(wide(before.cpu), wide(now.cpu), 10)
        || differs(share(before.throttled), share(now.throttled), 100)
        || differs(before.memory, now.memory, 1 << 20)
        || differs(wide(before.pids), wide(now.pids), 0)
        || differs(before.disk, now.disk, 1 << 20)
        || differs(before.read_bps, now.read_bps, 64 << 10)
        || differs(before.write_bps, now.write_bps, 64 << 10)
        || differs(before.net_rx_bps, now.net_rx_bps, 16 << 10)
        || differs(before.net_tx_bps, now.net_tx_bps, 16 << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::model::UnixMillis;
    use berth_common::protocol::NodeUsage;
    use proptest::prelude::*;

    fn usage(id: u8, cpu: Option<u32>) -> ContainerUsage {
        ContainerUsage {
            id: ContainerId::from_bytes([id; 10]),
            at: UnixMillis(0),
            cpu,
            throttled: None,
            memory: None,
            oom_kills: None,
            pids: None,
            disk: None,
            read_bps: None,
            write_bps: None,
            net_rx_bps: None,
            net_tx_bps: None,
            cpu_minute: None,
            memory_minute_max: None,
            psi_cpu: None,
            psi_memory: None,
            psi_io: None,
        }
    }

    fn sample(containers: Vec<ContainerUsage>) -> Sample {
        Sample {
            at: UnixMillis(0),
            node: NodeUsage::default(),
            containers,
        }
    }

    #[test]
    fn table() {
        let mut reporter = Reporter::default();
        let first = reporter.report(&sample(vec![usage(1, Some(1000)), usage(2, Some(0))]));
        assert_eq!((first.sequence, first.full, first.containers.len()), (1, true, 2));
        for (cpu, want) in [
            (Some(1050), 0),
            (Some(1051), 1),
            (Some(1051), 0),
            (None, 1),
            (Some(1051), 1),
        ] {
            let report = reporter.report(&sample(vec![usage(1, cpu), usage(2, Some(10))]));
            assert_eq!((report.full, report.containers.len()), (false, want), "{cpu:?}");
        }
        let report = reporter.report(&sample(vec![usage(3, None)]));
        assert_eq!(report.containers.len(), 1, "a new one is reported at once");
        let mut killed = usage(3, None);
        killed.oom_kills = Some(1);
        assert_eq!(reporter.report(&sample(vec![killed])).containers.len(), 1);
    }

    #[test]
    fn slow_drift_is_reported_in_the_end() {
        let mut reporter = Reporter::default();
        reporter.report(&sample(vec![usage(1, Some(100))]));
        let heard = (1..9).any(|step| {
            let report = reporter.report(&sample(vec![usage(1, Some(100 + step * 4))]));
            !report.containers.is_empty()
        });
        assert!(heard, "compared with what was reported, not with the last sample");
    }

    proptest! {
        #[test]
        fn nobody_is_starved_for_more_than_ten_reports(loads in proptest::collection::vec(proptest::collection::vec(proptest::option::of(0u32..4000), 5), 1..80)) {
            let mut reporter = Reporter::default();
            let mut silent = [0u64; 5];
            for (round, load) in loads.into_iter().enumerate() {
                let containers = load.iter().zip(0u8..).map(|(cpu, id)| usage(id, *cpu)).collect();
                let report = reporter.report(&sample(containers));
                prop_assert_eq!(report.sequence, round as u64 + 1);
                prop_assert!(!report.full || report.containers.len() == 5);
                for (id, silent) in (0u8..).zip(&mut silent) {
                    let heard = report.containers.iter().any(|held| held.id == ContainerId::from_bytes([id; 10]));
                    *silent = if heard { 0 } else { *silent + 1 };
                    prop_assert!(*silent < FULL_EVERY);
                }
            }
        }
    }
}
