//! Snapshots of volumes by schedule: when, how long they are kept, and what runs in a container before and after one.

use serde::{Deserialize, Serialize};

use super::UnixMillis;
use super::validate::SpecError;

/// The shortest time between two scheduled snapshots, milliseconds.
pub const LEAST_EVERY_MS: u64 = 60_000;
/// The longest, milliseconds: a year.
pub const LONGEST_EVERY_MS: u64 = 366 * 86_400_000;
/// Most scheduled snapshots that may be kept: it leaves room for those made by hand.
pub const MOST_KEPT: u32 = 200;
/// Most words of a command around snapshots.
const MAX_WORDS: usize = 64;
/// Most bytes of one.
const MAX_COMMAND: usize = 4_096;
/// Time that one may take unless something else is said, milliseconds.
pub const DEFAULT_HOOK_LIMIT_MS: u32 = 60_000;
/// The shortest and the longest time that one may take, milliseconds.
const LIMITS_MS: (u32, u32) = (1_000, 600_000);

/// Snapshots that the brain makes by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotSchedule {
    /// Time between two, milliseconds, 60,000 to a year; they are due at multiples of it since 1970 in UTC, so hourly ones on the hour.
    pub every_ms: u64,
    /// Which of them stay.
    pub keep: Retention,
}

/// Which scheduled snapshots stay: those that any of these keeps, at most 200 together. Those made by hand stay anyway.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Retention {
    /// So many of the newest.
    #[serde(default, skip_serializing_if = "is_none")]
    pub last: u32,
    /// The newest of each of so many hours in which there are some.
    #[serde(default, skip_serializing_if = "is_none")]
    pub hourly: u32,
    /// Likewise of days, in UTC.
    #[serde(default, skip_serializing_if = "is_none")]
    pub daily: u32,
    /// Likewise of weeks, which begin on Monday.
    #[serde(default, skip_serializing_if = "is_none")]
    pub weekly: u32,
    /// Likewise of months.
    #[serde(default, skip_serializing_if = "is_none")]
    pub monthly: u32,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "what serde asks of such a function"
)]
const fn is_none(count: &u32) -> bool {
    *count == 0
}

/// How far a schedule is. The brain writes it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScheduleState {
    /// All that was due up to then is done, or made up for by one snapshot.
    pub upto: UnixMillis,
    /// Why the one that is due now can't be made, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Commands around each snapshot that is made by schedule or by hand, run in one container that has the volume and may write to it.
/// Where none runs, the snapshot is made without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotHooks {
    /// Run before: program and arguments. If it fails, there is no snapshot, and it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Vec<String>>,
    /// Run after, whether or not the snapshot could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// Each is ended after so long and has failed, milliseconds, 1,000 to 600,000; default 60,000.
    #[serde(default = "hook_limit")]
    pub limit_ms: u32,
}

pub(super) const fn hook_limit() -> u32 {
    DEFAULT_HOOK_LIMIT_MS
}

impl SnapshotSchedule {
    /// The first moment after `after` at which a snapshot is due.
    pub const fn next(&self, after: UnixMillis) -> UnixMillis {
        let every = if self.every_ms == 0 { 1 } else { self.every_ms };
        UnixMillis((after.0 / every).saturating_add(1).saturating_mul(every))
    }

    /// The last moment up to `now` at which one was due, if that is after `upto`: however many were missed, there is one to make.
    pub fn due(&self, upto: UnixMillis, now: UnixMillis) -> Option<UnixMillis> {
        let last = UnixMillis(now.0 - now.0 % self.every_ms.max(1));
        (last > upto).then_some(last)
    }

    /// Checks what the types alone don't.
    ///
    /// # Errors
    /// The first field at fault, with what would be right.
    pub fn check(&self) -> Result<(), SpecError> {
        let err = |field, why: String| Err(SpecError::new(field, why));
        if !(LEAST_EVERY_MS..=LONGEST_EVERY_MS).contains(&self.every_ms) {
            return err(
                "/every_ms",
                "snapshots can be made every minute at most, and once a year at least".to_owned(),
            );
        }
        let Retention {
            last,
            hourly,
            daily,
            weekly,
            monthly,
        } = self.keep;
        let counts = [last, hourly, daily, weekly, monthly];
        let all = counts.iter().fold(0_u32, |all, count| all.saturating_add(*count));
        match all {
            0 => err(
                "/keep",
                "say which snapshots stay: so many of the last, hourly, daily, weekly or monthly ones"
                    .to_owned(),
            ),
            all if all > MOST_KEPT => err(
                "/keep",
                format!("{all} snapshots are to stay; at most {MOST_KEPT} of a volume"),
            ),
            _ => Ok(()),
        }
    }
}

impl SnapshotHooks {
    /// Checks what the types alone don't.
    ///
    /// # Errors
    /// The first field at fault, with what would be right.
    pub fn check(&self) -> Result<(), SpecError> {
        let err = |field, why: String| Err(SpecError::new(field, why));
        if self.before.is_none() && self.after.is_none() {
            return err(
                "/before",
                "name a command to run before, after, or both".to_owned(),
            );
        }
        for (field, words) in [("/before", &self.before), ("/after", &self.after)] {
            let Some(words) = words else { continue };
            let bytes: usize = words.iter().map(String::len).sum();
            let bad = words.iter().any(|word| word.contains('\0'));
            if words.first().is_none_or(String::is_empty) || words.len() > MAX_WORDS || bad {
                return err(
                    field,
                    format!("a command is a program and at most {MAX_WORDS} words, without NUL bytes"),
                );
            }
            if bytes > MAX_COMMAND {
                return err(
                    field,
                    format!("{bytes} bytes; a command has at most {MAX_COMMAND}: put it in a script"),
                );
            }
        }
        let (least, most) = LIMITS_MS;
        if !(least..=most).contains(&self.limit_ms) {
            return err("/limit_ms", "a command gets 1 s to 10 min".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(every_ms: u64) -> SnapshotSchedule {
        SnapshotSchedule {
            every_ms,
            keep: Retention {
                last: 1,
                ..Retention::default()
            },
        }
    }

    #[test]
    fn what_was_missed_is_due_once() {
        let hourly = every(3_600_000);
        let at = |minutes: u64| UnixMillis(minutes * 60_000);
        assert_eq!(hourly.next(at(59)), at(60));
        assert_eq!(hourly.next(at(60)), at(120), "what is done is not next");
        for (upto, now, due) in [
            (at(59), at(60), Some(at(60))),
            (at(60), at(119), None),
            (at(60), at(121), Some(at(120))),
            (at(60), at(1_000), Some(at(960))),
            (at(2_000), at(1_000), None),
        ] {
            assert_eq!(hourly.due(upto, now), due, "{upto:?} {now:?}");
        }
        // A record that nobody checked divides by nothing.
        assert!(every(0).next(at(1)) > at(1));
        assert_eq!(every(0).due(at(0), at(1)), Some(at(1)));
        assert_eq!(every(u64::MAX).next(at(1)), UnixMillis(u64::MAX));
    }

    #[test]
    fn schedules_are_bounded() {
        assert!(every(60_000).check().is_ok());
        let field = |schedule: SnapshotSchedule| schedule.check().unwrap_err().field;
        assert_eq!(field(every(59_999)), "/every_ms");
        assert_eq!(field(every(LONGEST_EVERY_MS + 1)), "/every_ms");
        let with = |last, monthly| SnapshotSchedule {
            keep: Retention {
                last,
                monthly,
                ..Retention::default()
            },
            ..every(60_000)
        };
        assert_eq!(field(with(0, 0)), "/keep");
        assert_eq!(field(with(200, 1)), "/keep");
        assert_eq!(field(with(u32::MAX, u32::MAX)), "/keep");
        assert!(with(100, 100).check().is_ok());
    }

    #[test]
    fn commands_are_bounded() {
        let hooks = |words: &[&str]| SnapshotHooks {
            before: Some(words.iter().map(|word| (*word).to_owned()).collect()),
            after: None,
            limit_ms: 60_000,
        };
        assert!(hooks(&["redis-cli", "save"]).check().is_ok());
        let long = "x".repeat(4_097);
        for words in [&[][..], &["", "x"], &["a\0"], &[long.as_str()], &["x"; 65]] {
            let told = hooks(words).check().unwrap_err();
            assert_eq!(told.field, "/before");
        }
        let limited = |limit_ms| SnapshotHooks {
            limit_ms,
            ..hooks(&["x"])
        };
        for limit in [0, 999, 600_001] {
            assert_eq!(limited(limit).check().unwrap_err().field, "/limit_ms");
        }
        let none = SnapshotHooks {
            before: None,
            ..limited(1_000)
        };
        assert!(none.check().is_err());
    }
}
