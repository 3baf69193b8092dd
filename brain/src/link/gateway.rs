//! How the rest of the brain reaches a node: one stream for each request.

use async_trait::async_trait;
use berth_common::error::Problem;
use berth_common::id::NodeId;
use berth_common::protocol::NodeRequest;
use tokio::io::{AsyncRead, AsyncWrite};

/// Both directions of a request's stream, after the request frame was sent.
pub struct NodeStream {
    /// To the agent.
    pub send: Box<dyn AsyncWrite + Send + Unpin>,
    /// From the agent.
    pub recv: Box<dyn AsyncRead + Send + Unpin>,
}

/// Opens streams to nodes. Implemented by the link, and by a fake in tests.
#[async_trait]
pub trait Gateway: Send + Sync + 'static {
    /// Sends `request` on a new stream to `node`.
    ///
    /// # Errors
    /// `unavailable`, naming the node and since when it is silent, if it is not connected.
    async fn open(&self, node: NodeId, request: &NodeRequest) -> Result<NodeStream, Problem>;
}
