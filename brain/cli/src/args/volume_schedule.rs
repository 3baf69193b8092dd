//! Arguments about snapshots by schedule, and commands around snapshots.

use berth_common::api::{PutHooks, PutSchedule};
use berth_common::model::{DEFAULT_HOOK_LIMIT_MS, Retention, SnapshotHooks};
use clap::Args;

use super::value;

/// Which snapshots are made by themselves, and which of them stay.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ScheduleArgs {
    /// Have a snapshot made every so often, 1m to a year, at multiples of it in UTC: hourly ones on the hour.
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    pub snapshot_every: Option<u64>,
    /// Of those, keep so many of the newest.
    #[arg(long, value_name = "COUNT")]
    pub keep_last: Option<u32>,
    /// Keep the newest of each of so many hours in which there are some.
    #[arg(long, value_name = "COUNT")]
    pub keep_hourly: Option<u32>,
    /// Keep the newest of each of so many days, in UTC.
    #[arg(long, value_name = "COUNT")]
    pub keep_daily: Option<u32>,
    /// Keep the newest of each of so many weeks.
    #[arg(long, value_name = "COUNT")]
    pub keep_weekly: Option<u32>,
    /// Keep the newest of each of so many months.
    #[arg(long, value_name = "COUNT")]
    pub keep_monthly: Option<u32>,
}

/// What runs in a container around each snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct HookArgs {
    /// Run this command of a shell in a container that writes to the volume before each snapshot; if it fails, there is none.
    #[arg(long, value_name = "COMMAND")]
    pub snapshot_before: Option<String>,
    /// Run this one after each snapshot, whether or not it could be made.
    #[arg(long, value_name = "COMMAND")]
    pub snapshot_after: Option<String>,
    /// End each after so long, 1s to 10m; default 1m.
    #[arg(long, value_name = "TIME", value_parser = value::duration)]
    pub snapshot_limit: Option<u64>,
}

impl ScheduleArgs {
    /// What they ask for, where `old` is what there is; none if they ask for nothing.
    ///
    /// # Errors
    /// When they say what stays and nothing says how often.
    pub fn over(&self, old: Option<&PutSchedule>) -> Result<Option<PutSchedule>, String> {
        if *self == Self::default() {
            return Ok(None);
        }
        let every_ms = self.snapshot_every.map(|seconds| seconds.saturating_mul(1_000));
        let Some(every_ms) = every_ms.or(old.map(|old| old.every_ms)) else {
            return Err("--keep-…: say how often with --snapshot-every, too".to_owned());
        };
        // What stays is said as a whole: a rule that is left out is none.
        let said = [
            self.keep_last,
            self.keep_hourly,
            self.keep_daily,
            self.keep_weekly,
            self.keep_monthly,
        ];
        let keep = match (said.iter().any(Option::is_some), old) {
            (false, Some(old)) => old.keep,
            (false, None) => {
                return Err(
                    "--snapshot-every: say which stay, as with --keep-last 4 --keep-daily 7".to_owned(),
                );
            }
            (true, _) => {
                let [last, hourly, daily, weekly, monthly] = said.map(Option::unwrap_or_default);
                Retention {
                    last,
                    hourly,
                    daily,
                    weekly,
                    monthly,
                }
            }
        };
        Ok(Some(PutSchedule { every_ms, keep }))
    }
}

impl HookArgs {
    /// What they ask for, where `old` is what there is; none if they ask for nothing.
    ///
    /// # Errors
    /// When there is a limit and nothing to limit.
    pub fn over(&self, old: Option<&SnapshotHooks>) -> Result<Option<PutHooks>, String> {
        if *self == Self::default() {
            return Ok(None);
        }
        let shell = |command: &String| ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let before = self.snapshot_before.as_ref().map(shell);
        let after = self.snapshot_after.as_ref().map(shell);
        let before = before.or_else(|| old?.before.clone());
        let after = after.or_else(|| old?.after.clone());
        if before.is_none() && after.is_none() {
            return Err(
                "--snapshot-limit: say what to run with --snapshot-before or --snapshot-after".to_owned(),
            );
        }
        let limit_ms = match self.snapshot_limit {
            Some(seconds) => u32::try_from(seconds.saturating_mul(1_000)).unwrap_or(u32::MAX),
            None => old.map_or(DEFAULT_HOOK_LIMIT_MS, |old| old.limit_ms),
        };
        Ok(Some(PutHooks {
            before,
            after,
            limit_ms,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_stays_as_it_is() {
        let none = ScheduleArgs::default();
        assert_eq!(none.over(None), Ok(None));
        let keep = |last, daily| Retention {
            last,
            daily,
            ..Retention::default()
        };
        let hourly = ScheduleArgs {
            snapshot_every: Some(3_600),
            keep_last: Some(4),
            keep_daily: Some(7),
            ..none.clone()
        };
        let old = PutSchedule {
            every_ms: 3_600_000,
            keep: keep(4, 7),
        };
        assert_eq!(hourly.over(None), Ok(Some(old)));
        let kept = ScheduleArgs {
            keep_last: Some(9),
            ..none.clone()
        };
        assert!(kept.over(None).unwrap_err().contains("--snapshot-every"));
        assert_eq!(kept.over(Some(&old)).unwrap().unwrap().keep, keep(9, 0));
        let often = ScheduleArgs {
            snapshot_every: Some(60),
            ..none
        };
        assert!(often.over(None).unwrap_err().contains("--keep-last"));
        let then = often.over(Some(&old)).unwrap().unwrap();
        assert_eq!((then.every_ms, then.keep), (60_000, keep(4, 7)));
    }

    #[test]
    fn commands_are_a_shells_and_are_changed_one_by_one() {
        let none = HookArgs::default();
        assert_eq!(none.over(None), Ok(None));
        let before = HookArgs {
            snapshot_before: Some("redis-cli save".to_owned()),
            ..none.clone()
        };
        let first = before.over(None).unwrap().unwrap();
        let words = ["/bin/sh", "-c", "redis-cli save"].map(str::to_owned).to_vec();
        assert_eq!((&first.before, first.limit_ms), (&Some(words), 60_000));
        let old = SnapshotHooks::from(first);
        let limit = HookArgs {
            snapshot_limit: Some(5),
            ..none
        };
        assert!(limit.over(None).is_err());
        let then = limit.over(Some(&old)).unwrap().unwrap();
        assert_eq!((then.before, then.limit_ms), (old.before, 5_000));
    }
}
