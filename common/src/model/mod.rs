//! The model: what people specify and what both sides keep about it.
//!
//! One writer per field: the user writes specs, the brain writes desired, the agent writes observed. These types are
//! stored and shown; the messages of the link are in [`crate::protocol`].

mod class;
mod container;
mod health;
mod image;
mod link;
mod network;
mod node;
mod placement;
mod pool;
mod port;
mod resources;
mod service;
mod snapshots;
pub(crate) mod strict;
mod taint;
mod tenant;
mod validate;
mod volume;
mod volume_mount;
mod wireguard;

pub use class::Class;
pub use container::{
    ContainerRecord, ContainerSpec, ExitInfo, Moves, ObservedContainer, Phase, RegistryCredential, RunState,
};
pub use health::{Health, HealthCheck, HealthState, HttpCheck, Probe};
pub use image::{Digest, ImageRef, LoadedImage};
pub use link::{Bandwidth, Link};
pub use network::{
    DEFAULT_NETWORK, Endpoint, HostNumber, Mac, NetworkError, NetworkRecord, Subnets, Vni, default_networks,
    parse_cidr,
};
pub use node::{
    Architecture, Capacity, NODE_LABEL, NodeFacts, NodeKind, NodeRecord, NodeState, Overcommit, Taken,
    Underlay,
};
pub use placement::{PRIORITIES, Spread, Together};
pub use pool::{DEFAULT_POOL, PoolRecord, default_pool};
pub use port::{MAX_PORTS, PortError, Protocol, PublishMode, PublishedPort};
pub use resources::{IoLimits, Limits, LimitsSpec, MemorySwap, Reservation, ReserveSpec, ResourceSpec};
pub use service::{Restart, RestartPolicy, ServiceRecord, ServiceSpec, Tmpfs, UpdateOrder, UpdatePolicy};
pub use snapshots::{
    DEFAULT_HOOK_LIMIT_MS, LEAST_EVERY_MS, LONGEST_EVERY_MS, MOST_KEPT, Retention, ScheduleState,
    SnapshotHooks, SnapshotSchedule,
};
pub use taint::{MAX_TAINTS, Taint, TaintEffect, Toleration};
pub use tenant::{Quota, Role, TenantRecord, TokenRecord};
pub use validate::SpecError;
pub use volume::{
    DEFAULT_VOLUME, LARGEST_VOLUME, LEAST_VOLUME, MAX_SNAPSHOTS, MAX_VOLUMES, MoveStage, ObservedSending,
    ObservedSnapshot, ObservedVolume, PoolFacts, RollBack, SnapshotRecord, VolumeMove, VolumeMoved,
    VolumeRecord, VolumeSource, check_size,
};
pub use volume_mount::{MAX_MOUNTS, MountError, VolumeMount};
pub use wireguard::{NoKey, WireGuard, WireGuardKey};

use serde::{Deserialize, Serialize};

/// Wall-clock time in milliseconds since the Unix epoch. For people and logs; leases use monotonic clocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// The system's wall clock now. Only callers at the edge use it; plans take time as an input.
    pub fn now() -> Self {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self(since.as_millis() as u64)
    }

    /// Milliseconds from `earlier` to `self`, zero if the clock went back.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
