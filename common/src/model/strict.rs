//! Reading what a user wrote, where the same type also travels between brain and agent.
//!
//! A peer of another version may say more than this one knows, so the types themselves ignore unknown fields and take
//! unknown words for `Unknown`. A user who does so made a typo, which must be told and not ignored.

use serde::{Deserialize, Deserializer};

use super::service::{restart_delay, restart_max, restart_reset, tmpfs_size};
use crate::model::{Restart, RestartPolicy, Tmpfs};
use crate::units::Bytes;

#[derive(Deserialize)]
#[serde(remote = "Restart", rename_all = "kebab-case")]
enum StrictRestart {
    Always,
    OnFailure,
    Never,
}

#[derive(Deserialize)]
#[serde(remote = "RestartPolicy", deny_unknown_fields)]
struct StrictPolicy {
    #[serde(default, with = "StrictRestart")]
    on: Restart,
    #[serde(default = "restart_delay")]
    delay_ms: u32,
    #[serde(default = "restart_max")]
    max_delay_ms: u32,
    #[serde(default = "restart_reset")]
    reset_after_ms: u32,
    #[serde(default)]
    max_restarts: Option<u32>,
}

#[derive(Deserialize)]
#[serde(remote = "Tmpfs", deny_unknown_fields)]
struct StrictTmpfs {
    path: String,
    #[serde(default = "tmpfs_size")]
    size: Bytes,
}

/// For a field that holds a user's restart policy.
pub(super) fn restart<'de, D: Deserializer<'de>>(d: D) -> Result<RestartPolicy, D::Error> {
    StrictPolicy::deserialize(d)
}

/// For a field that holds a user's scratch file systems.
pub(super) fn tmpfs<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Tmpfs>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "StrictTmpfs")] Tmpfs);
    Ok(Vec::<One>::deserialize(d)?.into_iter().map(|one| one.0).collect())
}
