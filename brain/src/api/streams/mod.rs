//! What the API streams: logs, exec, pulls, the watch; and images, which come and go as streams.
//!
//! Owns the translation between HTTP streams and a node's request streams. Refuses to buffer: every side waits for the
//! other, and a client that goes away ends the stream to the node.

mod check;
mod events;
mod exec;
mod images;
mod logs;
mod permit;
mod trace;
mod watch;

#[cfg(test)]
mod cases;

use std::time::Duration;

use berth_common::error::{ErrorKind, Problem};
use berth_common::model::ContainerRecord;
use berth_common::protocol::{FrameDecoder, decode};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use utoipa_axum::router::OpenApiRouter;

use super::ApiState;

use permit::Permit;
pub use permit::Streams;

/// Largest reply a node may send, bytes; a list of a few thousand images fits.
const MAX_REPLY: usize = 4 << 20;

/// Routes of all streams.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .merge(logs::routes())
        .merge(exec::routes())
        .merge(images::routes())
        .merge(check::routes())
        .merge(trace::routes())
        .merge(watch::routes())
        .merge(events::routes())
}

/// A node's replies, one by one.
struct Replies {
    recv: Box<dyn AsyncRead + Send + Unpin>,
    decoder: FrameDecoder,
    node: String,
}

impl Replies {
    fn new(recv: Box<dyn AsyncRead + Send + Unpin>, node: impl ToString) -> Self {
        Self {
            recv,
            decoder: FrameDecoder::new(MAX_REPLY),
            node: node.to_string(),
        }
    }

    /// The next reply, none at the stream's clean end. Cancel-safe.
    async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Problem> {
        let broken = |why: &dyn std::fmt::Display| {
            Problem::unavailable(format!("the stream from node {} broke: {why}", self.node)).cure("try again")
        };
        let mut chunk = [0; 16 << 10];
        loop {
            if let Some(frame) = self.decoder.poll_frame().map_err(|error| broken(&error))? {
                return decode(&frame).map(Some).map_err(|error| broken(&error));
            }
            let read = self.recv.read(&mut chunk).await.map_err(|error| broken(&error))?;
            if read == 0 {
                return Ok(None);
            }
            self.decoder.handle_bytes(&chunk[..read]);
        }
    }

    /// The next reply within `limit`; a stream that ends instead is a problem.
    async fn within<T: DeserializeOwned>(&mut self, limit: Duration) -> Result<T, Problem> {
        match tokio::time::timeout(limit, self.next()).await {
            Ok(Ok(Some(reply))) => Ok(reply),
            Ok(Ok(None)) => Err(Problem::unavailable(format!(
                "node {} ended the stream early",
                self.node
            ))),
            Ok(Err(problem)) => Err(problem),
            Err(_) => Err(Problem::new(
                ErrorKind::Timeout,
                format!("node {} did not answer within {} s", self.node, limit.as_secs()),
            )),
        }
    }
}

/// What is said of a container that has no node yet.
fn unplaced(container: &ContainerRecord) -> Problem {
    let name = super::views::container_name(container);
    Problem::new(
        ErrorKind::Precondition,
        format!("container {name} waits for a node, so nothing of it runs"),
    )
    .cure("berth ps tells what it waits for")
}

/// What is said when a node answers something else than was asked.
fn unexpected(node: &dyn std::fmt::Display) -> Problem {
    Problem::new(
        ErrorKind::Internal,
        format!("node {node} answered something else than was asked"),
    )
    .cure("agent and brain may be of versions too far apart: upgrade the older")
}
