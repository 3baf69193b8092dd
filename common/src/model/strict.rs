//! Reading what a user wrote, where the same type also travels between brain and agent.
//!
//! A peer of another version may say more than this one knows, so the types themselves ignore unknown fields and take
//! unknown words for `Unknown`. A user who does so made a typo, which must be told and not ignored.

use serde::{Deserialize, Deserializer};

use super::health;
use super::service::{restart_delay, restart_max, restart_reset, tmpfs_size};
use crate::id::Name;
use crate::model::{
    Bandwidth, Class, HealthCheck, HttpCheck, Restart, RestartPolicy, Retention, Tmpfs, VolumeMount,
};
use crate::units::Bytes;

#[derive(Deserialize)]
#[serde(remote = "Restart", rename_all = "kebab-case")]
enum StrictRestart {
    Always,
    OnFailure,
    Never,
}

#[derive(Deserialize)]
#[serde(remote = "Class", rename_all = "kebab-case")]
enum StrictClass {
    Standard,
    BestEffort,
}

/// For a field that holds a user's class.
pub(super) fn class<'de, D: Deserializer<'de>>(d: D) -> Result<Class, D::Error> {
    StrictClass::deserialize(d)
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

#[derive(Deserialize)]
#[serde(remote = "Bandwidth", deny_unknown_fields)]
struct StrictBandwidth {
    #[serde(default, rename = "in")]
    inward: Option<Bytes>,
    #[serde(default, rename = "out")]
    outward: Option<Bytes>,
}

/// For a field that holds a user's bandwidth.
pub(super) fn bandwidth<'de, D: Deserializer<'de>>(d: D) -> Result<Bandwidth, D::Error> {
    StrictBandwidth::deserialize(d)
}

#[derive(Deserialize)]
#[serde(remote = "HttpCheck", deny_unknown_fields)]
struct StrictHttp {
    port: u16,
    #[serde(default = "health::root")]
    path: String,
}

#[derive(Deserialize)]
#[serde(remote = "HealthCheck", deny_unknown_fields)]
struct StrictHealth {
    #[serde(default, deserialize_with = "http")]
    http: Option<HttpCheck>,
    #[serde(default)]
    tcp: Option<u16>,
    #[serde(default)]
    command: Option<Vec<String>>,
    #[serde(default = "health::interval")]
    interval_ms: u32,
    #[serde(default = "health::timeout")]
    timeout_ms: u32,
    #[serde(default = "health::retries")]
    retries: u32,
    #[serde(default = "health::start_period")]
    start_period_ms: u32,
    #[serde(default = "health::restart")]
    restart: bool,
}

fn http<'de, D: Deserializer<'de>>(d: D) -> Result<Option<HttpCheck>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "StrictHttp")] HttpCheck);
    Ok(Option::<One>::deserialize(d)?.map(|one| one.0))
}

/// For a field that may hold a user's health check.
pub(super) fn health<'de, D: Deserializer<'de>>(d: D) -> Result<Option<HealthCheck>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "StrictHealth")] HealthCheck);
    Ok(Option::<One>::deserialize(d)?.map(|one| one.0))
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

#[derive(Deserialize)]
#[serde(remote = "VolumeMount", deny_unknown_fields)]
struct StrictMount {
    volume: Name,
    #[serde(default)]
    snapshot: Option<Name>,
    path: String,
    #[serde(default)]
    read_only: bool,
    #[serde(default)]
    per_replica: bool,
    #[serde(default)]
    size: Option<Bytes>,
}

/// For a field that holds a user's volumes.
pub(super) fn volumes<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<VolumeMount>, D::Error> {
    #[derive(Deserialize)]
    struct One(#[serde(with = "StrictMount")] VolumeMount);
    Ok(Vec::<One>::deserialize(d)?.into_iter().map(|one| one.0).collect())
}

#[derive(Deserialize)]
#[serde(remote = "Retention", deny_unknown_fields)]
struct StrictRetention {
    #[serde(default)]
    last: u32,
    #[serde(default)]
    hourly: u32,
    #[serde(default)]
    daily: u32,
    #[serde(default)]
    weekly: u32,
    #[serde(default)]
    monthly: u32,
}

/// For a field that holds what a user has kept of snapshots.
pub(crate) fn retention<'de, D: Deserializer<'de>>(d: D) -> Result<Retention, D::Error> {
    StrictRetention::deserialize(d)
}
