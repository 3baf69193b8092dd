//! Usage as agents report it. A value that could not be read is absent, never zero.

use serde::{Deserialize, Serialize};

use crate::id::ContainerId;
use crate::model::UnixMillis;

/// Share of time that tasks were stalled over the last ten seconds, percent ×100 (0 to 10,000).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pressure {
    /// Some tasks stalled.
    pub some: u16,
    /// All tasks stalled.
    pub full: u16,
}

/// A node's load. Rates are over the interval since the previous sample.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeUsage {
    /// CPU in use, millicores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Of it, berth's containers, millicores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_containers: Option<u32>,
    /// The rest: system and foreign processes, millicores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_foreign: Option<u32>,
    /// Memory that is not available (total − MemAvailable), bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Of it, working sets of berth's containers, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_containers: Option<u64>,
    /// The rest, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_foreign: Option<u64>,
    /// Used bytes of the file system that holds layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Read from all disks, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_read_bps: Option<u64>,
    /// Written to all disks, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_write_bps: Option<u64>,
    /// Received on physical interfaces, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_bps: Option<u64>,
    /// Sent, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_bps: Option<u64>,
    /// CPU pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_cpu: Option<Pressure>,
    /// Memory pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_memory: Option<Pressure>,
    /// IO pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_io: Option<Pressure>,
    /// CPU percentiles over the last minute, millicores: mean, p50, p95, max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_minute: Option<[u32; 4]>,
}

/// A container's load.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerUsage {
    /// Which.
    pub id: ContainerId,
    /// When it was read, so that a suppressed report is not mistaken for a fresh one.
    pub at: UnixMillis,
    /// CPU, millicores over the interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u32>,
    /// Share of scheduling periods in which it was throttled, percent ×100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttled: Option<u16>,
    /// Working set (usage − inactive file), bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// OOM kills since it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Processes and threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pids: Option<u32>,
    /// Writable layer, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Read, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_bps: Option<u64>,
    /// Written, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_bps: Option<u64>,
    /// Received, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_rx_bps: Option<u64>,
    /// Sent, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_tx_bps: Option<u64>,
    /// CPU percentiles over the last minute, millicores: mean, p50, p95, max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_minute: Option<[u32; 4]>,
    /// Largest working set over the last minute, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_minute_max: Option<u64>,
    /// CPU pressure. Like the other two read when it is reported; a change of pressure alone is no reason to report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_cpu: Option<Pressure>,
    /// Memory pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_memory: Option<Pressure>,
    /// IO pressure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub psi_io: Option<Pressure>,
}

/// One report; a frame alone on a unidirectional stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageReport {
    /// Counts up within one connection; the brain drops what arrives late.
    pub sequence: u64,
    /// When the newest sample was read, by the node's clock.
    pub at: UnixMillis,
    /// The node.
    pub node: NodeUsage,
    /// Containers whose load changed noticeably since their last report, and once every ten reports all.
    #[serde(default)]
    pub containers: Vec<ContainerUsage>,
    /// `containers` is all there are.
    #[serde(default)]
    pub full: bool,
}
