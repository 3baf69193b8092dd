//! Accepts connections of other nodes: who they are, and how many.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::NodeId;
use berth_common::identity::node_of;
use parking_lot::Mutex;
use quinn::{Connection, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::sync::Semaphore;

use super::{BUSY, REFUSED, STREAMS, Shared, TOO_MANY};

/// Time for a handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way.
const PENDING: usize = 64;
/// Free places for handshakes below which addresses must first prove that they are theirs.
const PENDING_UNPROVEN: usize = 48;
/// Connections of one node: each transfer has its own, and one that broke is noticed only after a while.
const CONNECTIONS_PER_NODE: usize = 2 * super::arrivals::MOST_PER_NODE;

/// Connections by node.
#[derive(Default)]
pub(super) struct Connections(Mutex<HashMap<NodeId, usize>>);

/// A node's place for one connection; given back when dropped.
struct Place(Arc<Shared>, NodeId);

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.0.connections.0.lock();
        if let Some(count) = held.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.1);
            }
        }
    }
}

impl Connections {
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.lock().values().sum()
    }
}

impl Shared {
    fn enter(self: &Arc<Self>, node: NodeId) -> Option<Place> {
        let mut held = self.connections.0.lock();
        let count = held.entry(node).or_default();
        if *count >= CONNECTIONS_PER_NODE {
            return None;
        }
        *count += 1;
        drop(held);
        Some(Place(Arc::clone(self), node))
    }

    /// Serves until the endpoint is closed.
    pub(super) async fn serve(self: Arc<Self>, endpoint: quinn::Endpoint) {
        let pending = Arc::new(Semaphore::new(PENDING));
        while let Some(incoming) = endpoint.accept().await {
            let free = pending.available_permits();
            if free < PENDING_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let Ok(place) = Arc::clone(&pending).try_acquire_owned() else {
                incoming.refuse();
                continue;
            };
            let shared = Arc::clone(&self);
            tokio::spawn(async move {
                let connection = handshake(incoming).await;
                drop(place);
                if let Some(connection) = connection {
                    shared.serve_connection(connection).await;
                }
            });
        }
    }

    async fn serve_connection(self: Arc<Self>, connection: Connection) {
        let Some(from) = node(&connection) else {
            return connection.close(REFUSED.into(), b"no node's certificate");
        };
        let Some(_place) = self.enter(from) else {
            return connection.close(BUSY.into(), TOO_MANY);
        };
        // A stream that was reset counts for QUIC no more, but what it asked for may still be under way.
        let places = Arc::new(Semaphore::new(STREAMS as usize));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Ok((send, receive)) = connection.accept_bi().await else {
                return;
            };
            let stream = Arc::clone(&self).serve_stream(from, connection.clone(), send, receive);
            tokio::spawn(async move {
                stream.await;
                drop(place);
            });
        }
    }
}

async fn handshake(incoming: Incoming) -> Option<Connection> {
    let remote = incoming.remote_address();
    let connecting = incoming
        .accept()
        .inspect_err(|error| tracing::debug!(%remote, %error, "a handshake was not begun"))
        .ok()?;
    match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => Some(connection),
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "a handshake failed");
            None
        }
        Err(_) => None,
    }
}

/// Whose certificate the other side showed; rustls has verified it.
fn node(connection: &Connection) -> Option<NodeId> {
    let shown = connection.peer_identity()?;
    let chain = shown.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    node_of(chain.first()?).ok()
}
