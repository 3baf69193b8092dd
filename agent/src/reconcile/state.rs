//! What is known of each container: what the runtime holds, and the little that only the agent remembers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{ExitInfo, Health, Limits, UnixMillis};
use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::container::runtime::RuntimeContainer;
use crate::image::ImageInfo;

/// Why a running container is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum StopReason {
    /// Its owner stopped it.
    Asked,
    /// It is not desired any more.
    Removed,
    /// A restart was asked for.
    Restart,
    /// Its spec changed in more than limits.
    Recreate,
    /// Its checks say that it does not do its work.
    Unhealthy,
    /// Its writable layer outgrew its limit where the kernel does not enforce it.
    DiskLimit {
        /// The limit that was exceeded.
        limit: Bytes,
    },
}

/// A stop that has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopping {
    /// Why.
    #[serde(flatten)]
    pub reason: StopReason,
    /// When SIGKILL is due.
    pub deadline: UnixMillis,
    /// When SIGKILL was sent last.
    #[serde(default)]
    pub killed_at: Option<UnixMillis>,
}

/// Why an ended container is not started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "snake_case")]
pub enum Rest {
    /// Its restart policy says so, or it used up its restarts.
    Policy,
    /// Its owner stopped it; it starts when that is taken back.
    Stopped,
    /// Its layer outgrew its limit; it starts when the limit is raised or a restart is asked for.
    DiskLimit {
        /// The limit then.
        limit: Bytes,
    },
}

/// What must survive a crash of the agent and can't be read back from the runtime.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Starts by policy so far, for people.
    pub restarts: u32,
    /// Ends in a row without a good run between; drives the back-off.
    pub ends_in_a_row: u32,
    /// Failed pulls, creations or starts in a row; drives their back-off.
    pub failures_in_a_row: u32,
    /// Not to be tried before.
    pub not_before: Option<UnixMillis>,
    /// The last failure in words, until something succeeds.
    pub failure: Option<String>,
    /// The failure can't be cured by trying again; tried at the longest interval only.
    pub hopeless: bool,
    /// Present while a stop is under way.
    pub stopping: Option<Stopping>,
    /// Present when it ended for good.
    pub rest: Option<Rest>,
    /// How the present run is, where it is checked.
    pub health: Option<Health>,
    /// Start of the present or last run.
    pub started_at: Option<UnixMillis>,
    /// A run was seen whose end is not counted yet.
    pub running: bool,
    /// The last end.
    pub last_exit: Option<ExitInfo>,
    /// Restarts asked for that were done.
    pub restarts_done: u32,
    /// OOM kills of earlier runs.
    pub oom_past: u64,
    /// OOM kills of this run as far as noticed.
    pub oom_run: u64,
    /// When `oom_run` last grew.
    pub oom_at: Option<UnixMillis>,
}

impl Memory {
    /// OOM kills over the container's whole life.
    pub const fn oom_kills(&self) -> u64 {
        self.oom_past.saturating_add(self.oom_run)
    }
}

/// One container as the agent sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// What the runtime holds.
    pub runtime: Option<RuntimeContainer>,
    /// Its image, once known to be here; only kept until the container is made.
    pub image: Option<Arc<ImageInfo>>,
    /// What was remembered.
    pub memory: Memory,
    /// The runtime said that its process ended; not collected yet.
    pub ended: bool,
    /// What the runtime said of its process contradicts itself: nothing is done to it before the next list.
    pub doubtful: bool,
    /// Limits as read back.
    pub limits: Option<Limits>,
    /// Reading limits back was tried since the last start or update.
    pub limits_tried: bool,
    /// Bytes in its writable layer when last measured.
    pub disk: Option<u64>,
}

/// Everything that was observed on this host.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// Containers, known from the runtime or the desired set.
    pub containers: BTreeMap<ContainerId, Seen>,
    /// Containers with a step under way; nothing else is planned for them.
    pub busy: BTreeSet<ContainerId>,
    /// Tenants' cgroups with the CPU weight that was set; none: it is there, with an unknown weight.
    pub tenants: BTreeMap<TenantId, Option<u16>>,
    /// Tenants with a step under way.
    pub busy_tenants: BTreeSet<TenantId>,
    /// The first list of the runtime is in. Before it nothing is made or deleted: it may exist.
    pub listed: bool,
    /// Whether the kernel enforces disk limits; else they are watched.
    pub disk_limit_hard: bool,
}
