//! Snapshots by schedule as the API takes and shows them. A typo of a user's is told and not ignored, as the types that are stored would.

use serde::{Deserialize, Serialize};

use crate::model::strict;
use crate::model::{DEFAULT_HOOK_LIMIT_MS, Retention, SnapshotHooks, SnapshotSchedule, UnixMillis};

/// A schedule for a volume's snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PutSchedule {
    /// Time between two, milliseconds, 60,000 to a year; they are due at multiples of it since 1970 in UTC, so hourly ones on the hour.
    pub every_ms: u64,
    /// Which of them stay, at least one and at most 200.
    #[serde(deserialize_with = "strict::retention")]
    pub keep: Retention,
}

/// Commands around a volume's snapshots, at least one of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PutHooks {
    /// Run before: program and at most 63 arguments, 4,096 bytes. If it fails, there is no snapshot, and it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Vec<String>>,
    /// Run after, whether or not the snapshot could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Vec<String>>,
    /// Each is ended after so long and has failed, milliseconds, 1,000 to 600,000; default 60,000.
    #[serde(default = "hook_limit")]
    pub limit_ms: u32,
}

/// A volume's schedule and how far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScheduleView {
    /// Time between two, milliseconds.
    pub every_ms: u64,
    /// Which of them stay.
    pub keep: Retention,
    /// When the next is due; absent while no node has the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<UnixMillis>,
    /// Why the one that is due can't be made, and what can be done (R9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl From<PutSchedule> for SnapshotSchedule {
    fn from(PutSchedule { every_ms, keep }: PutSchedule) -> Self {
        Self { every_ms, keep }
    }
}

impl From<PutHooks> for SnapshotHooks {
    fn from(body: PutHooks) -> Self {
        let PutHooks {
            before,
            after,
            limit_ms,
        } = body;
        Self {
            before,
            after,
            limit_ms,
        }
    }
}

const fn hook_limit() -> u32 {
    DEFAULT_HOOK_LIMIT_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typos_are_told() {
        let read = |text: &str| serde_json::from_str::<PutSchedule>(text).map_err(|error| error.to_string());
        assert_eq!(
            read(r#"{"every_ms": 60000, "keep": {"last": 3}}"#)
                .unwrap()
                .keep
                .last,
            3
        );
        for text in [
            r#"{"every_ms": 60000, "keep": {"lsat": 3}}"#,
            r#"{"every": 60000, "keep": {"last": 3}}"#,
        ] {
            let told = read(text).unwrap_err();
            assert!(told.contains("unknown field"), "{told}");
        }
        let hooks: PutHooks = serde_json::from_str(r#"{"before": ["save"]}"#).unwrap();
        assert_eq!(hooks.limit_ms, 60_000);
        assert!(serde_json::from_str::<PutHooks>(r#"{"befor": ["save"]}"#).is_err());
    }
}
