//! `GET /metrics`: what Prometheus scrapes, and the layer that counts requests.
//!
//! A scrape reads a snapshot and copies what else it needs a bit at a time, so neither the writer nor any lock is held up by it; it is
//! written out on a thread of its own, one at a time.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State as Extract};
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use berth_common::error::{ErrorKind, Problem};
use tokio::sync::Semaphore;

use super::auth::Scraper;
use super::{ApiError, ApiState, views};
use crate::cluster::Cluster;
use crate::metrics::nodes::Reading;
use crate::metrics::present::Present;
use crate::metrics::{Form, route_class, services};
use crate::scheduler::forecast::{DISK, NETWORK};

/// Scrapes that are under way or wait for one. A second Prometheus beside the first has its place; more would be an accident.
const SCRAPES: usize = 8;

/// Who is served: one at a time, some waiting.
#[derive(Debug, Clone)]
pub struct Scrapes {
    admitted: Arc<Semaphore>,
    one: Arc<Semaphore>,
}

impl Default for Scrapes {
    fn default() -> Self {
        Self {
            admitted: Arc::new(Semaphore::new(SCRAPES)),
            one: Arc::new(Semaphore::new(1)),
        }
    }
}

/// The route. It is not part of `/v1`: its form is Prometheus's, and its paths are where scrapers look.
pub fn routes() -> Router<ApiState> {
    Router::new().route("/metrics", get(scrape))
}

async fn scrape(
    _: Scraper,
    Extract(api): Extract<ApiState>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let busy = || {
        Problem::new(
            ErrorKind::RateLimited,
            format!("{SCRAPES} scrapes are under way already"),
        )
        .cure("scrape less often, or from fewer places")
    };
    let _admitted = api.scrapes.admitted.try_acquire().map_err(|_| busy())?;
    let turn = Arc::clone(&api.scrapes.one)
        .acquire_owned()
        .await
        .map_err(|_| busy())?;
    let form = asked(&headers);
    let cluster = api.cluster.clone();
    let told = tokio::task::spawn_blocking(move || {
        let text = cluster.metrics().told(present(&cluster), form);
        drop(turn);
        text
    });
    let text = told
        .await
        .map_err(|error| Problem::new(ErrorKind::Internal, format!("the scrape failed: {error}")))?;
    Ok(([(CONTENT_TYPE, form.media_type())], text).into_response())
}

/// OpenMetrics for whoever takes it, as Prometheus does; else the older form.
fn asked(headers: &HeaderMap) -> Form {
    let mut all = headers.get_all(ACCEPT).iter();
    match all.any(|accept| {
        accept
            .to_str()
            .is_ok_and(|text| text.contains("application/openmetrics-text"))
    }) {
        true => Form::OpenMetrics,
        false => Form::Prometheus,
    }
}

/// The cluster as it is now.
fn present(cluster: &Cluster) -> Present {
    let state = cluster.snapshot();
    let now_ms = cluster.now().mono_ms;
    let parts = cluster.load_parts(state.nodes.keys().copied());
    let nodes = state.nodes.values().zip(parts).map(|(node, parts)| {
        let stands = views::node_state(&state, node, cluster.silent_ms(node.id));
        let mut reading = Reading::of(node, stands, state.allocatable(node), state.taken_on(node.id));
        if let Some(fresh) = cluster.usage().node(node.id, now_ms) {
            reading.age_ms = Some(fresh.age_ms);
            reading.usage = Some(fresh.usage);
        }
        if let Some(parts) = parts {
            let foreign = |of: usize| parts.foreign[of].mean as u64;
            reading.foreign_bps = Some((foreign(DISK), foreign(NETWORK)));
            reading.expected = Some(parts.shown());
        }
        reading
    });
    Present {
        nodes: nodes.collect(),
        services: services::readings(&state),
        link_sessions: state.connections.len(),
        containers: state.containers.len(),
        waiting: state.unplaced.len(),
    }
}

/// Layer: counts answers by the kind of route, never by what a path says.
pub async fn count(Extract(api): Extract<ApiState>, request: Request, next: Next) -> Response {
    let route = match request.extensions().get::<MatchedPath>() {
        Some(path) => route_class(path.as_str()).to_owned(),
        None => "other".to_owned(),
    };
    let method = request.method().clone();
    let response = next.run(request).await;
    let metrics = api.cluster.metrics();
    metrics.answered(route, method.as_str(), response.status().as_u16());
    response
}

#[cfg(test)]
mod tests;
