//! Checks whether nodes reach each other's networks, as NDJSON of [`CheckEvent`].

use std::collections::BTreeMap;
use std::io;

use axum::body::Body;
use axum::extract::State as Extract;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use berth_common::api::{CheckEvent, CheckNetworks};
use berth_common::error::Problem;
use futures::{StreamExt as _, stream};
use tokio::sync::mpsc;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::Caller;
use super::super::problem::Json;
use super::super::{ApiError, ApiState, nodes};
use super::Permit;
use super::logs::{NDJSON, ndjson};
use crate::network_check;

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(check))
}

/// Check whether nodes reach each other's networks
#[utoipa::path(post, path = "/nodes/check", tag = "nodes", operation_id = "checkNodes", request_body = CheckNetworks,
    responses((status = 200, description = "How it goes, and what was found between each two nodes", body = CheckEvent, content_type = "application/x-ndjson")))]
async fn check(
    caller: Caller,
    permit: Permit,
    Extract(api): Extract<ApiState>,
    Json(asked): Json<CheckNetworks>,
) -> Result<Response, ApiError> {
    let state = api.cluster.snapshot();
    let mut chosen = BTreeMap::new();
    for name in &asked.nodes {
        let node = nodes::find(&state, &caller, name.as_str())?;
        chosen.insert(node.name.clone(), node);
    }
    if asked.nodes.is_empty() {
        let all = state.nodes.values().filter(|node| nodes::visible(&caller, node));
        chosen.extend(all.map(|node| (node.name.clone(), node.clone())));
    }
    let refuse = |detail: String, cure: &str| Err(Problem::invalid(detail).field("/nodes").cure(cure).into());
    match chosen.len() {
        0 => {
            return refuse(
                "there is no node that you may see".to_owned(),
                "berth node token adds one",
            );
        }
        1 => {
            return refuse(
                "one node alone has nobody to reach".to_owned(),
                "name at least two, or add another: berth node token",
            );
        }
        count if count > network_check::MOST => {
            return refuse(
                format!(
                    "{count} nodes are more than one check takes ({})",
                    network_check::MOST
                ),
                "name those to check",
            );
        }
        _ => {}
    }
    let (events, mut taken) = mpsc::channel::<CheckEvent>(64);
    // The work is part of the body, not a task: when the client goes, so do the nodes' parts.
    let done = stream::once(async move {
        let nodes: Vec<_> = chosen.into_values().collect();
        network_check::run(&*api.gateway, &nodes, &events).await;
        drop((events, permit));
    })
    .filter_map(|()| async { None });
    let lines = stream::poll_fn(move |cx| taken.poll_recv(cx))
        .map(|event| Some(ndjson(&event).map_err(io::Error::other)));
    let body = Body::from_stream(stream::select(lines, done).filter_map(|line| async { line }));
    Ok(([(CONTENT_TYPE, NDJSON)], body).into_response())
}
