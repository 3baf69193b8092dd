//! Bodies of the HTTP API `/v1` that are not model types themselves: what is asked, and how objects are shown.
//!
//! Paths, all under `/v1` and, except where marked, with `Authorization: Bearer <token>`:
//!
//! | method and path | body → answer |
//! | --- | --- |
//! | GET `/version` (open) | → [`VersionInfo`] |
//! | GET `/openapi.json` (open) | → OpenAPI 3.1 |
//! | GET, POST `/tenants` | [`CreateTenant`] → [`Listing`] of, or one `TenantRecord` |
//! | GET, DELETE `/tenants/{t}` | → `TenantRecord` |
//! | PATCH `/tenants/{t}` | [`UpdateTenant`] → `TenantRecord` |
//! | GET, POST `/tenants/{t}/tokens`, DELETE `/tenants/{t}/tokens/{id}` | [`CreateToken`] → [`CreatedToken`], list of [`TokenView`] |
//! | GET, PUT, DELETE `/tenants/{t}/registries[/{host}]` | [`PutRegistry`] → list of [`RegistryView`] |
//! | GET, POST `/tenants/{t}/networks`, GET, DELETE `/tenants/{t}/networks/{name}` | [`CreateNetwork`] → [`Listing`] of, or one [`NetworkView`] |
//! | GET, POST `/tenants/{t}/volumes` | [`CreateVolume`] → [`Listing`] of, or one [`VolumeView`] |
//! | GET, PATCH `/tenants/{t}/volumes/{v}` | [`ResizeVolume`] → [`VolumeView`] |
//! | DELETE `/tenants/{t}/volumes/{v}?force=` | → [`RemovedVolume`] |
//! | POST `/tenants/{t}/volumes/{v}/snapshots`, DELETE `…/snapshots/{s}` | [`CreateSnapshot`] → [`VolumeView`] |
//! | PUT, DELETE `/tenants/{t}/volumes/{v}/schedule` | [`PutSchedule`] → [`VolumeView`] |
//! | PUT, DELETE `/tenants/{t}/volumes/{v}/hooks` | [`PutHooks`] → [`VolumeView`] |
//! | POST `/tenants/{t}/volumes/{v}/rollback` | [`RollBackVolume`] → [`VolumeView`] |
//! | POST, DELETE `/tenants/{t}/volumes/{v}/move` | [`MoveVolume`] → [`VolumeView`] |
//! | GET, POST `/tenants/{t}/services` | `ServiceSpec` → [`Listing`] of, or one [`ServiceView`] |
//! | GET, PUT, DELETE `/tenants/{t}/services/{name}` | `ServiceSpec` (`?generation=N` compares) → [`ServiceView`] |
//! | POST `/tenants/{t}/services/{name}/scale` | [`Scale`] → [`ServiceView`] |
//! | POST `/tenants/{t}/services/{name}/{stop,start,restart}` | → [`ServiceView`] |
//! | GET `/tenants/{t}/containers?service=&node=` | → [`Listing`] of [`ContainerView`] |
//! | GET `/tenants/{t}/containers/{c}` | → [`ContainerView`]; `{c}` is an id, an unambiguous beginning of one, or `service.replica` |
//! | POST `/tenants/{t}/containers/{c}/{stop,start,restart}` | → [`ContainerView`] |
//! | GET `/tenants/{t}/containers/{c}/schedule` | → [`PlacementView`]: why it is where it is, or waits |
//! | POST `/tenants/{t}/schedule` | `ServiceSpec` → [`ForeseenView`]: where it would run; changes nothing |
//! | GET `/tenants/{t}/containers/{c}/logs?follow&tail&since` | → NDJSON of `LogLine` |
//! | GET `/tenants/{t}/containers/{c}/exec` | WebSocket: first text message an `ExecSpec`, then `ExecUp`/`ExecDown` as text |
//! | GET `/tenants/{t}/images` | → [`Listing`] of [`ImageView`] |
//! | POST `/tenants/{t}/images?name=` | OCI or docker archive (tar, gzip, zstd) → `LoadedImage`s |
//! | POST `/tenants/{t}/images/pull` | [`PullImage`] → NDJSON of [`PullEvent`] |
//! | DELETE `/tenants/{t}/images?reference=` | → [`RemovedImage`] |
//! | GET `/tenants/{t}/trace?from=&to=` | → [`Trace`] |
//! | POST `/nodes/check` | [`CheckNetworks`] → NDJSON of [`CheckEvent`] |
//! | GET `/nodes`, `/nodes/{n}` | → [`Listing`] of, or one [`NodeView`] |
//! | POST `/nodes/tokens` | [`CreateJoinToken`] → [`CreatedJoinToken`] |
//! | PATCH `/nodes/{n}` | [`UpdateNode`] → [`NodeView`] |
//! | POST `/nodes/{n}/{cordon,uncordon,drain}` | → [`NodeView`] |
//! | POST `/nodes/pack` | [`PackNodes`] → [`PackView`] |
//! | GET `/nodes/{n}/loss` | → [`ForeseenView`]: what its loss would do; changes nothing |
//! | DELETE `/nodes/{n}?force=` | → 204 |
//! | GET `/pools`, `/pools/{p}` | → [`Listing`] of, or one [`PoolView`] |
//! | PUT, DELETE `/pools/{p}` | [`PutPool`] → [`PoolView`] |
//! | GET `/usage` | → [`UsageView`] |
//! | GET `/events?tenant=&limit=` | → [`Listing`] of [`EventView`] |
//! | GET `/watch?from=&tenant=&kinds=` | → SSE of [`WatchEvent`]; `Last-Event-ID` resumes |
//!
//! Errors are `application/problem+json` ([`crate::error::Problem`]). Lists take `?limit=` (1 to 1,000, default 100)
//! and `?after=` (the `next` of the page before).

mod check;
mod networks;
mod nodes;
mod pools;
mod schedule;
mod usage;
mod volume_schedule;
mod volumes;

pub use check::{CheckEvent, CheckNetworks, Finding, HopView, NodePath, PairCheck, Trace};
pub use networks::{CreateNetwork, EndpointView, NetworkView, ServiceAddress};
pub use nodes::{CreateJoinToken, CreatedJoinToken, NodeView, UpdateNode};
pub use pools::{PoolView, PutPool};
pub use schedule::{
    ExpectedShares, Fate, ForeseenNode, ForeseenReplica, ForeseenView, KeptNode, NodeFit, PackNodes,
    PackView, PackedMove, PackedNode, PlacementView, ScoreParts,
};
pub use usage::{ContainerLoad, ExpectedLoad, NodeLoad, UsageView};
pub use volume_schedule::{PutHooks, PutSchedule, ScheduleView};
pub use volumes::{
    CloneOf, CreateSnapshot, CreateVolume, MoveView, MoveVolume, RemovedVolume, ResizeVolume, RollBackVolume,
    SnapshotState, SnapshotView, SourceView, VolumeState, VolumeView,
};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision, TokenId};
use crate::model::{
    ContainerRecord, Digest, ImageRef, ObservedContainer, Quota, Role, ServiceRecord, UnixMillis,
};
use crate::protocol::Progress;
use crate::units::Bytes;

/// One page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listing<T> {
    /// The objects.
    pub items: Vec<T>,
    /// Pass as `?after=` for the next page; absent on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
    /// State of the store that this page shows; watch from here to miss nothing.
    pub revision: Revision,
}

/// Versions of the brain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionInfo {
    /// The brain's version.
    pub version: String,
    /// Newest link protocol it speaks.
    pub protocol: u32,
    /// Oldest link protocol it speaks.
    pub protocol_min: u32,
}

/// A new tenant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateTenant {
    /// Its name.
    pub name: Name,
    /// What it may reserve; default unlimited.
    #[serde(default)]
    pub quota: Quota,
}

/// Changes to a tenant; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateTenant {
    /// What it may reserve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Weight of its slice on nodes, 1 to 10,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_weight: Option<u16>,
    /// Whether its services may be privileged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub privileged: Option<bool>,
    /// The highest priority that its services may have without an administrator, -1,000 to 1,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_priority: Option<i32>,
}

/// A new API token of a tenant, or (tenant `default` with `admin`) of an administrator.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is for.
    #[serde(default)]
    pub note: String,
    /// Seconds until it stops working; absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Make an administrator's token. Only administrators may.
    #[serde(default)]
    pub admin: bool,
    /// Make a token that reads `/metrics` and nothing else. Only administrators may, in the tenant `default`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub metrics: bool,
}

/// The only time a token's secret is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedToken {
    /// The token: `berth_<id>_<secret>`.
    pub token: String,
    /// What is kept of it.
    pub view: TokenView,
}

/// A token without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// What it may do.
    #[serde(flatten)]
    pub role: Role,
    /// What it is for.
    pub note: String,
    /// When it stops working.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    /// When it was made.
    pub created_at: UnixMillis,
}

/// Credentials of a tenant for one registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PutRegistry {
    /// User name.
    pub username: String,
    /// Password or access token; never shown again.
    pub password: String,
}

/// Credentials without their secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RegistryView {
    /// Registry host with port.
    pub registry: String,
    /// User name.
    pub username: String,
}

/// A new number of replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// 0 to 10,000.
    pub replicas: u32,
}

/// A service with how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceView {
    /// What is kept.
    #[serde(flatten)]
    pub record: ServiceRecord,
    /// The tenant's name.
    pub tenant_name: Name,
    /// Containers that run and, where that is checked, are healthy.
    pub running: u32,
    /// Containers of an older generation that still run.
    pub outdated: u32,
    /// Its own addresses, its first network first; none on one that was full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<ServiceAddress>,
    /// Why not all run, in words (R9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A container with what its agent sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerView {
    /// What is kept.
    #[serde(flatten)]
    pub record: ContainerRecord,
    /// `service.replica`.
    pub name: String,
    /// The tenant's name.
    pub tenant_name: Name,
    /// Its node's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// What the agent last said of it; absent until it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<ObservedContainer>,
    /// Its node does not answer, so `observed` may be out of date.
    #[serde(default)]
    pub stale: bool,
    /// Its addresses, the first network with the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<EndpointView>,
    /// One word for people: `running`, `waiting`, `pulling`, `stopped`, `unreachable`…
    pub status: String,
    /// Why, when it isn't simply running (R9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// An image with where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageView {
    /// Its name.
    pub reference: ImageRef,
    /// Manifest digest.
    pub digest: Digest,
    /// Sum of its compressed blobs.
    pub size: Bytes,
    /// The brain holds it (it was loaded from an archive).
    pub loaded: bool,
    /// Names of nodes that have it.
    pub nodes: Vec<Name>,
    /// Containers made from it.
    pub used_by: u32,
    /// When it came.
    pub created_at: UnixMillis,
}

/// Fetch an image to nodes ahead of time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// Which.
    pub reference: ImageRef,
    /// To which nodes; empty: every ready node the tenant may use.
    #[serde(default)]
    pub nodes: Vec<Name>,
}

/// One line of a pull's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum PullEvent {
    /// It goes on.
    Progress {
        /// Where.
        node: Name,
        /// How far.
        progress: Progress,
    },
    /// One node is done.
    Done {
        /// Which.
        node: Name,
        /// Manifest digest.
        digest: Digest,
    },
    /// One node failed; others go on.
    Failed {
        /// Which.
        node: Name,
        /// Why.
        problem: crate::error::Problem,
    },
}

/// What removing an image did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovedImage {
    /// The brain dropped it.
    pub unloaded: bool,
    /// Nodes that dropped it.
    pub nodes: Vec<Name>,
    /// Nodes that could not, and why.
    pub kept: BTreeMap<String, String>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventView {
    /// Counts up.
    pub sequence: u64,
    /// When.
    pub at: UnixMillis,
    /// Short kind: `placed`, `started`, `exited`, `oom`, `node-lost`, `joined`…
    pub kind: String,
    /// Tenant it concerns, by name; absent: the platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
    /// Object it concerns, such as `container web.1 (abc…)` or `node h1`.
    pub subject: String,
    /// One sentence.
    pub text: String,
}

/// One change, as SSE `data`; the SSE `id` is the revision to resume from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "streamed one at a time")]
pub enum WatchEvent {
    /// A service was made or changed.
    Service {
        /// It.
        service: ServiceView,
    },
    /// A container was made or changed, also in what its agent sees.
    Container {
        /// It.
        container: ContainerView,
    },
    /// A node was made or changed.
    Node {
        /// It.
        node: NodeView,
    },
    /// A tenant was made or changed.
    Tenant {
        /// It.
        tenant: crate::model::TenantRecord,
    },
    /// Something happened.
    Event {
        /// It.
        event: EventView,
    },
    /// An object is gone.
    Gone {
        /// `service`, `container`, `node` or `tenant`.
        object: String,
        /// Its id.
        id: String,
    },
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}
