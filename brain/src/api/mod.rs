//! The HTTP API `/v1`: who asks, what they may, and how objects are shown (contract: [`berth_common::api`]).
//!
//! Owns parsing, authentication, the tenant boundary (R6) and every refusal's shape (R9). Refuses to decide where anything
//! runs: handlers judge a request on a snapshot and propose changes to the one writer, which judges them again on the state
//! it commits to.

pub mod auth;
pub mod containers;
mod foresight;
pub mod install;
pub mod limits;
mod metrics;
pub mod networks;
pub mod nodes;
pub mod openapi;
mod pack;
mod page;
mod placement;
pub mod pools;
pub mod problem;
pub mod quota;
pub mod registries;
mod schedule;
mod server;
pub mod services;
pub mod streams;
pub mod tenants;
pub mod tokens;
pub mod usage;
pub mod version;
pub mod views;
mod volumes;

#[cfg(test)]
mod borders;
#[cfg(test)]
mod cases;
#[cfg(test)]
pub(crate) mod fixtures;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod placement_cases;
#[cfg(test)]
mod schedule_cases;

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::cluster::Cluster;
use crate::images::BlobStore;
use crate::link::gateway::Gateway;

pub use problem::{ApiError, Json};
pub use server::{serve, serve_on};

/// Settings of the API.
#[derive(Debug, Clone)]
pub struct ApiSettings {
    /// Largest image archive accepted, bytes.
    pub max_upload: u64,
    /// Where uploads are kept while they are read.
    pub upload_dir: PathBuf,
    /// Request rates.
    pub rates: limits::Rates,
}

impl ApiSettings {
    /// Defaults: archives up to 20 GiB.
    pub fn new(upload_dir: PathBuf) -> Self {
        Self {
            max_upload: 20 << 30,
            upload_dir,
            rates: limits::Rates::default(),
        }
    }
}

/// What every handler works with. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

/// See [`ApiState`].
pub struct Inner {
    /// The cluster.
    pub cluster: Cluster,
    /// The way to nodes.
    pub gateway: Arc<dyn Gateway>,
    /// SHA-256 of the CA certificate (DER), hex; goes into join tokens.
    pub ca_fingerprint: String,
    /// Addresses (host:port) at which nodes reach the brain.
    pub advertise: Vec<String>,
    /// Makes hosts nodes.
    pub installer: Arc<install::Installer>,
    /// Blobs of loaded images.
    pub blobs: BlobStore,
    /// Settings.
    pub settings: ApiSettings,
    /// Request rates in force.
    pub limits: limits::Limits,
    /// Open streams.
    pub streams: streams::Streams,
    /// Who reads metrics.
    pub scrapes: metrics::Scrapes,
    /// Turns of those who look ahead.
    looks: tokio::sync::Semaphore,
}

impl Deref for ApiState {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl ApiState {
    /// Puts the parts together.
    pub fn new(
        cluster: Cluster,
        gateway: Arc<dyn Gateway>,
        ca_fingerprint: String,
        advertise: Vec<String>,
        installer: install::Installer,
        blobs: BlobStore,
        settings: ApiSettings,
    ) -> Self {
        let limits = limits::Limits::new(&settings.rates);
        Self(Arc::new(Inner {
            cluster,
            gateway,
            ca_fingerprint,
            advertise,
            installer: Arc::new(installer),
            blobs,
            settings,
            limits,
            streams: streams::Streams::default(),
            scrapes: metrics::Scrapes::default(),
            looks: tokio::sync::Semaphore::new(schedule::LOOKS),
        }))
    }
}

/// What most handlers answer.
pub type Answer<T> = Result<Json<T>, ApiError>;

/// The remote address of a connection, as [`serve`] and tests insert it.
pub type Peer = axum::extract::ConnectInfo<SocketAddr>;

/// Every route with its documentation, still without state. Paths begin with `/v1`.
pub fn documented() -> (Router<ApiState>, OpenApi) {
    let v1 = OpenApiRouter::new()
        .merge(version::routes())
        .merge(tenants::routes())
        .merge(tokens::routes())
        .merge(registries::routes())
        .merge(networks::routes())
        .merge(volumes::routes())
        .merge(services::routes())
        .merge(containers::routes())
        .merge(schedule::routes())
        .merge(nodes::routes())
        .merge(pack::routes())
        .merge(pools::routes())
        .merge(usage::routes())
        .merge(streams::routes());
    OpenApiRouter::new().nest("/v1", v1).split_for_parts()
}

/// The whole API, ready to serve.
pub fn router(state: ApiState) -> Router {
    let (routes, document) = documented();
    let routes = openapi::serve(routes, document)
        .merge(install::routes())
        .merge(metrics::routes());
    server::layers(routes, &state).with_state(state)
}
