//! Containers: one replica of a service, bound to one node for life.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, Name, NodeId, Revision, ServiceId, TenantId};
use crate::model::{
    Bandwidth, Class, Digest, Endpoint, Health, HealthCheck, ImageRef, Limits, Reservation, RestartPolicy,
    Tmpfs, UnixMillis, VolumeMount, default_networks,
};

/// Everything an agent needs to make one container. No field is optional in effect: what the user left out is filled in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerSpec {
    /// The image.
    pub image: ImageRef,
    /// Overrides the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Overrides the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Added to the image's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Overrides the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Overrides the image's user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host name; default `<service>-<replica>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Name>,
    /// What the scheduler set aside.
    pub reservation: Reservation,
    /// What the kernel enforces.
    pub limits: Limits,
    /// Scratch file systems.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// Volumes that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// When to start it again.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Seconds from stop signal to SIGKILL.
    pub stop_grace_secs: u32,
    /// Overrides the image's stop signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Run an init as PID 1.
    #[serde(default)]
    pub init: bool,
    /// Read-only root.
    #[serde(default)]
    pub read_only: bool,
    /// Capabilities added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities dropped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// No confinement.
    #[serde(default)]
    pub privileged: bool,
    /// Labels its node must carry.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// The pool that its node must be in; none: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Whether it reserves what it needs, or uses what reservations leave idle.
    #[serde(default, skip_serializing_if = "Class::is_standard")]
    pub class: Class,
    /// Networks it is on, the first with the default route.
    #[serde(default = "default_networks")]
    pub networks: Vec<Name>,
    /// How its health is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Services whose containers may open connections to it; none: all of its tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_from: Option<Vec<Name>>,
    /// Most that it sends and receives.
    #[serde(default, skip_serializing_if = "Bandwidth::is_free")]
    pub bandwidth: Bandwidth,
}

impl ContainerSpec {
    /// Whether `other` can be reached from `self` by changing limits of the running container alone. Where it is to be, and who goes first, is the brain's: an agent
    /// that kept a spec without what it did not know yet must not make the container anew when it does.
    pub fn differs_only_in_limits(&self, other: &Self) -> bool {
        let mut same = other.clone();
        same.limits = self.limits;
        same.reservation = self.reservation;
        same.restart = self.restart;
        same.stop_grace_secs = self.stop_grace_secs;
        same.health.clone_from(&self.health);
        same.ingress_from.clone_from(&self.ingress_from);
        same.bandwidth = self.bandwidth;
        same.pool.clone_from(&self.pool);
        same.class = self.class;
        same == *self
    }
}

/// Whether something should run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// It should run.
    #[default]
    Running,
    /// It should be stopped and kept: layer, logs, place.
    Stopped,
    /// A state of a newer brain. Never taken for either of the others: nothing is started for it, and nothing stopped.
    #[serde(other)]
    Unknown,
}

/// A container as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerRecord {
    /// Its id.
    pub id: ContainerId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its service.
    pub service: ServiceId,
    /// The service's name, for people and host names.
    pub service_name: Name,
    /// Which replica, from 1.
    pub replica: u32,
    /// Where it runs; none while it waits for a node. Never changes once set.
    pub node: Option<NodeId>,
    /// The node on which room is being made for it: others of lower priority stop there, and what it needs is kept for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<NodeId>,
    /// Why it waits, per cause, when it has no node, or runs without one of its networks (R9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting: Option<String>,
    /// What it is made from.
    pub spec: Arc<ContainerSpec>,
    /// The service generation that `spec` came from.
    pub service_generation: u64,
    /// Whether it should run.
    pub run: RunState,
    /// Grows with every `restart`.
    #[serde(default)]
    pub restarts_asked: u32,
    /// It is to go: the agent stops and deletes it, then the record goes.
    #[serde(default)]
    pub removing: bool,
    /// The container it takes over from, which goes once this one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<ContainerId>,
    /// Where it had better be: its successor is started there first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<Moves>,
    /// Its places on its networks. They are its own as long as it is there; one that takes over from a container that can't
    /// run beside it takes its places, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// A move that was decided with its destination: for the sake of a node's load, or to empty it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Moves {
    /// Where to.
    pub to: NodeId,
    /// Why, with numbers.
    pub why: String,
    /// Its node is being emptied: it waits for its turn, room is kept for it, and where that is no more another place is as good.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub emptying: bool,
}

/// Where a container is in its life, as its agent sees it. It moves forward, except from `backoff` to `creating`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Known, nothing done yet.
    #[default]
    Pending,
    /// Its image is being fetched or unpacked.
    Pulling,
    /// Being made and started.
    Creating,
    /// Its process runs.
    Running,
    /// Got its stop signal.
    Stopping,
    /// Ended; will be started again after a delay.
    Backoff,
    /// Ended and stays so: by policy or because it was stopped.
    Exited,
    /// Can't be made or started; the reason says why. Tried again with growing delay.
    Failed,
    /// A phase of a newer agent.
    #[serde(other)]
    Unknown,
}

impl Phase {
    /// No process of it runs or is being started.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Backoff | Self::Exited | Self::Failed)
    }
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExitInfo {
    /// Exit code; 128 + signal for a signal.
    pub code: i32,
    /// The kernel's OOM killer took PID 1.
    #[serde(default)]
    pub oom: bool,
    /// In words: `exited with code 3`, `killed by SIGKILL`, `out of memory (limit 64MiB)`, `disk limit 1GiB exceeded`.
    pub reason: String,
    /// When.
    pub at: UnixMillis,
}

/// A container as its agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ObservedContainer {
    /// Which.
    pub id: ContainerId,
    /// Where in its life.
    pub phase: Phase,
    /// Why it is in this phase, when that isn't obvious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Host pid of PID 1, while running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Start of the present or last run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<UnixMillis>,
    /// How it is, while it runs and where it is checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
    /// The last end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitInfo>,
    /// How often it was started again by policy.
    #[serde(default)]
    pub restarts: u32,
    /// OOM kills inside its cgroup so far, also of children that PID 1 survived.
    #[serde(default)]
    pub oom_kills: u64,
    /// The image it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Digest>,
    /// The limits as read back from the kernel, when they could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Whether the disk limit is enforced by the kernel (btrfs) or watched.
    #[serde(default)]
    pub disk_limit_hard: bool,
    /// `restarts_asked` of the desired container that this state already reflects.
    #[serde(default)]
    pub restarts_done: u32,
}

impl ObservedContainer {
    /// It runs and can do its work, as far as it is known.
    pub fn serves(&self) -> bool {
        self.phase == Phase::Running && self.health.as_ref().is_none_or(Health::takes_requests)
    }

    /// Its checks say that it does not do its work.
    pub fn is_unhealthy(&self) -> bool {
        self.health.as_ref().is_some_and(Health::is_unhealthy)
    }

    /// A container nothing was done for yet.
    pub fn pending(id: ContainerId) -> Self {
        Self {
            id,
            phase: Phase::Pending,
            reason: None,
            pid: None,
            started_at: None,
            health: None,
            last_exit: None,
            restarts: 0,
            oom_kills: 0,
            image: None,
            limits: None,
            disk_limit_hard: false,
            restarts_done: 0,
        }
    }
}

/// Credentials for one registry of one tenant. Debug never shows the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryCredential {
    /// Registry host with port.
    pub registry: String,
    /// User name.
    pub username: String,
    /// Password or access token.
    pub password: String,
}

impl std::fmt::Debug for RegistryCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryCredential")
            .field("registry", &self.registry)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}
