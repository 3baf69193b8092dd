//! Logs of a container, as NDJSON of `LogLine`.
//!
//! A problem is a problem answer as long as no line was sent; after that the body breaks off, which a client can tell
//! from its end.

use std::io;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State as Extract};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use berth_common::error::Problem;
use berth_common::model::UnixMillis;
use berth_common::protocol::{LogLine, LogOptions, NodeReply, NodeRequest};
use futures::stream;
use serde::Deserialize;
use tokio::io::AsyncWrite;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::Scope;
use super::super::{ApiError, ApiState, containers};
use super::{Permit, Replies, unexpected, unplaced};

/// Media type of one JSON value a line.
pub(super) const NDJSON: &str = "application/x-ndjson";
/// How long the answer waits for a first line, so that a refusal can still be one.
const FIRST: Duration = Duration::from_secs(2);

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(logs))
}

/// Which lines.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Options {
    /// Go on with new lines.
    #[serde(default)]
    follow: bool,
    /// Only the last so many.
    #[serde(default)]
    tail: Option<u32>,
    /// Only lines read at or after, milliseconds since 1970.
    #[serde(default)]
    since: Option<u64>,
}

/// What one reply means for the body.
enum Step {
    Line(Bytes),
    Nothing,
    End,
}

fn step(reply: Option<NodeReply>, node: &str) -> Result<Step, Problem> {
    match reply {
        Some(NodeReply::Log(line)) => Ok(Step::Line(ndjson(&line)?)),
        Some(NodeReply::End) => Ok(Step::End),
        Some(NodeReply::Problem { problem }) => Err(problem),
        Some(NodeReply::Unknown) => Ok(Step::Nothing),
        Some(_) => Err(unexpected(&node)),
        None => Err(Problem::unavailable(format!(
            "node {node} ended the stream early"
        ))),
    }
}

/// One value with its newline.
pub(super) fn ndjson<T: serde::Serialize>(value: &T) -> Result<Bytes, Problem> {
    let mut line = serde_json::to_vec(value).map_err(|_| {
        Problem::new(
            berth_common::error::ErrorKind::Internal,
            "a line can't be encoded",
        )
    })?;
    line.push(b'\n');
    Ok(line.into())
}

/// Read a container's logs
#[utoipa::path(get, path = "/tenants/{tenant}/containers/{container}/logs", tag = "containers", operation_id = "logs",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica"), Options),
    responses((status = 200, description = "One line for each line of output", body = LogLine, content_type = "application/x-ndjson")))]
async fn logs(
    scope: Scope,
    permit: Permit,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
    Query(options): Query<Options>,
) -> Result<Response, ApiError> {
    let state = api.cluster.snapshot();
    let record = containers::find(&state, scope.tenant.id, &container)?;
    let node = record.node.ok_or_else(|| unplaced(&record))?;
    let request = NodeRequest::Logs {
        container: record.id,
        options: LogOptions {
            follow: options.follow,
            tail: options.tail,
            since: options.since.map(UnixMillis),
        },
    };
    let opened = api.gateway.open(node, &request).await?;
    let name = state
        .nodes
        .get(&node)
        .map_or_else(|| node.to_string(), |n| n.name.to_string());
    let mut replies = Replies::new(opened.recv, name);
    // Silence is no refusal: whoever follows a quiet container gets its headers now and its lines later.
    let first = match tokio::time::timeout(FIRST, replies.next()).await {
        Ok(reply) => Some(step(reply?, &replies.node)?),
        Err(_) => None,
    };
    let lines = Lines {
        replies,
        first,
        ended: false,
        permit,
        _send: opened.send,
    };
    let body = Body::from_stream(stream::unfold(lines, Lines::next));
    Ok(([(CONTENT_TYPE, NDJSON), (CACHE_CONTROL, "no-store")], body).into_response())
}

/// The body. Dropping it ends the stream to the node.
struct Lines {
    replies: Replies,
    first: Option<Step>,
    ended: bool,
    permit: Permit,
    _send: Box<dyn AsyncWrite + Send + Unpin>,
}

impl Lines {
    async fn next(mut self) -> Option<(io::Result<Bytes>, Self)> {
        if self.ended {
            return None;
        }
        loop {
            let next = match self.first.take() {
                Some(first) => Ok(first),
                None => tokio::select! {
                    reply = self.replies.next() => reply.and_then(|reply| step(reply, &self.replies.node)),
                    problem = self.permit.over() => Err(problem),
                },
            };
            match next {
                Ok(Step::Line(line)) => return Some((Ok(line), self)),
                Ok(Step::Nothing) => {}
                Ok(Step::End) => return None,
                Err(problem) => {
                    self.ended = true;
                    return Some((Err(io::Error::other(problem)), self));
                }
            }
        }
    }
}
