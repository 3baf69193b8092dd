//! The agents' link: the QUIC server that agents dial, and the way back to them.
//!
//! Owns connections, who may have one, and the order in which what they say reaches the cluster. Refuses to decide: it
//! carries desired sets down and what agents observe up. Everything an agent says is taken for its own node only (R7).

mod desired;
pub mod gateway;
mod hello;
mod join;
mod neighbours;
mod parts;
mod requests;
mod seen;
mod server;
mod session;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::NodeId;
use berth_common::model::Digest;
use berth_common::protocol::{CodecError, NodeRequest, write_frame};
use parking_lot::Mutex;
use tokio::io::AsyncRead;

use crate::cluster::{Change, Cluster};
use crate::controllers::NewEvent;
use gateway::{Gateway, NodeStream};

pub use server::{LinkError, LinkServer, LinkSettings};

/// Time a node has to take a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// QUIC close code: this connection's place was taken by a newer one of the same node.
const REPLACED: u32 = 2;

/// A blob's length from the offset to its end, and its bytes.
pub type Blob = (u64, Box<dyn AsyncRead + Send + Unpin>);

/// Where blobs of loaded images are read.
#[async_trait]
pub trait BlobSource: Send + Sync + 'static {
    /// The bytes of a blob from `offset` on; none if it is not there.
    ///
    /// # Errors
    /// When it is there and can't be read.
    async fn open(&self, digest: Digest, offset: u64) -> io::Result<Option<Blob>>;
}

#[async_trait]
impl BlobSource for crate::images::BlobStore {
    async fn open(&self, digest: Digest, offset: u64) -> io::Result<Option<Blob>> {
        let found = self.read(digest, offset).await?;
        Ok(found.map(|(length, file)| (length, Box::new(file) as Box<dyn AsyncRead + Send + Unpin>)))
    }
}

/// One node's place in the table of connections.
#[derive(Default)]
struct Slot {
    /// Serial of the connection in force; 0: none. Whoever reports for the node holds it, so that nothing of an older
    /// connection reaches the cluster after a newer one's.
    serial: tokio::sync::Mutex<u64>,
    connection: Mutex<Option<quinn::Connection>>,
}

/// The connections of all nodes. Cheap to clone.
#[derive(Clone)]
pub struct Links(Arc<Table>);

struct Table {
    cluster: Cluster,
    slots: Mutex<HashMap<NodeId, Arc<Slot>>>,
    serials: AtomicU64,
}

impl Links {
    /// No connections yet.
    pub fn new(cluster: Cluster) -> Self {
        Self(Arc::new(Table {
            cluster,
            slots: Mutex::default(),
            serials: AtomicU64::new(1),
        }))
    }

    /// How many nodes are connected.
    pub fn connected(&self) -> usize {
        let slots: Vec<_> = self.0.slots.lock().values().cloned().collect();
        slots
            .iter()
            .filter(|slot| slot.connection.lock().is_some())
            .count()
    }

    /// Makes `connection` the one in force for `node` and ends an older one.
    async fn enter(&self, node: NodeId, connection: quinn::Connection) -> Membership {
        let slot = Arc::clone(self.0.slots.lock().entry(node).or_default());
        let serial = self.0.serials.fetch_add(1, Ordering::Relaxed);
        let mut held = slot.serial.lock().await;
        // Two that arrive at once: the later serial stays.
        if serial > *held {
            *held = serial;
            if let Some(old) = slot.connection.lock().replace(connection) {
                old.close(REPLACED.into(), b"a newer connection of this node took over");
            }
        }
        drop(held);
        Membership {
            cluster: self.0.cluster.clone(),
            slot,
            node,
            serial,
        }
    }
}

/// One connection's right to speak for its node.
struct Membership {
    cluster: Cluster,
    slot: Arc<Slot>,
    node: NodeId,
    serial: u64,
}

impl Membership {
    /// Reports, unless a newer connection took over. Says whether it was reported.
    async fn report(&self, changes: Vec<Change>, events: Vec<NewEvent>) -> bool {
        let held = self.slot.serial.lock().await;
        let current = *held == self.serial;
        if current {
            self.cluster.report(changes, events).await;
        }
        current
    }

    /// The connection is over.
    async fn leave(self) {
        let held = self.slot.serial.lock().await;
        if *held == self.serial {
            *self.slot.connection.lock() = None;
            self.cluster
                .report(vec![Change::Disconnected(self.node, self.serial)], Vec::new())
                .await;
        }
    }
}

#[async_trait]
impl Gateway for Links {
    async fn open(&self, node: NodeId, request: &NodeRequest) -> Result<NodeStream, Problem> {
        let connection = self
            .0
            .slots
            .lock()
            .get(&node)
            .and_then(|slot| slot.connection.lock().clone());
        let Some(connection) = connection else {
            return Err(self.unreachable(node, "is not connected"));
        };
        let opened = tokio::time::timeout(REQUEST_TIMEOUT, async {
            let (mut send, recv) = connection.open_bi().await.map_err(io::Error::from)?;
            write_frame(&mut send, request).await?;
            Ok::<_, CodecError>((send, recv))
        })
        .await;
        match opened {
            Ok(Ok((send, recv))) => Ok(NodeStream {
                send: Box::new(send),
                recv: Box::new(recv),
            }),
            Ok(Err(error @ (CodecError::TooLong { .. } | CodecError::Malformed { .. }))) => {
                Err(Problem::new(
                    ErrorKind::TooLarge,
                    format!("the request can't be sent to the node: {error}"),
                ))
            }
            Ok(Err(_)) => Err(self.unreachable(node, "lost its connection")),
            Err(_) => Err(self.unreachable(node, "takes no more requests")),
        }
    }
}

impl Links {
    fn unreachable(&self, node: NodeId, what: &str) -> Problem {
        let state = self.0.cluster.snapshot();
        let Some(record) = state.nodes.get(&node) else {
            return Problem::not_found(format!("there is no node {node}"));
        };
        let silence = match self.0.cluster.silent_ms(node) {
            Some(ms) => format!("it was last heard {}.{} s ago", ms / 1000, ms % 1000 / 100),
            None => "it was not heard since the brain started".to_owned(),
        };
        Problem::unavailable(format!("node {} {what}; {silence}", record.name))
            .cure("check that the host is up and its berth-agent runs, then try again")
    }
}
