//! Other nodes: snapshots of volumes go from agent to agent, over QUIC, and never through the brain.
//!
//! Owns one UDP port, which serves and dials. Both ends show their node certificates, and each transfer is what the brain ordered
//! of both over their own links: [`Admission`] tells the receiver's order (docs/decisions/0033). [`wire`] and [`frame`] are what is said,
//! [`window`] what is kept for a broken link, [`pack`] when compression pays, [`rate`] how fast it may go: all pure. [`send`] and
//! [`receive`] are the two ends, [`arrivals`] what outlives a link. Refuses to decide what goes where, and keeps nothing that was not
//! verified as a whole.

mod arrivals;
mod body;
mod dial;
mod error;
pub mod frame;
mod pack;
mod rate;
mod receive;
mod send;
mod server;
mod window;
mod wire;

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{Epoch, NodeId, SnapshotId, VolumeId};
use berth_common::identity::{self, Identity};
use berth_common::units::Bytes;
use parking_lot::Mutex;
use quinn::crypto::rustls::QuicServerConfig;
use tokio_util::sync::CancellationToken;

pub use error::{LineError, PeerError};
pub use rate::Rate;
pub use window::OutsideWindow;

use crate::volume::{Meta, Pool};

/// How long a receiver keeps a transfer whose link broke, and a sender tries to reach it again.
pub const RESUME_FOR: Duration = Duration::from_secs(60);
/// Silence after which a link is taken for dead.
const IDLE: Duration = Duration::from_secs(10);
/// First pause before dialling again after a link broke, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Streams of one connection: one is in use, and another may be ending.
const STREAMS: u32 = 4;
/// Bytes of one connection that may wait to be read.
const RECEIVE_WINDOW: u32 = 4 << 20;

/// QUIC close code: it is over.
const DONE: u32 = 0;
/// QUIC close code: the peer did not behave.
const REFUSED: u32 = 1;
/// QUIC close code: the sender takes the transfer back.
const CANCELLED: u32 = 2;
/// QUIC close code: the sender will come again.
const AGAIN: u32 = 3;
/// QUIC close code: not now.
const BUSY: u32 = 4;
/// QUIC close code: the agent stops.
const STOPPING: u32 = 5;
const TOO_MANY: &[u8] = b"too many connections of this node";

/// What this node's orders say of arriving snapshots.
pub trait Admission: Send + Sync + 'static {
    /// The volume as it is to be here, if this node is to have snapshots of it from that node now. Asked at the beginning of a
    /// transfer, at each resumption, and before its end is taken for one. Must not block.
    fn arrival(&self, from: NodeId, volume: VolumeId) -> Option<Meta>;

    /// A snapshot of the volume is here now. Must not block.
    fn arrived(&self, volume: VolumeId);
}

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Which.
    pub node: NodeId,
    /// Where it may be reached, the best first.
    pub addresses: Vec<SocketAddr>,
}

/// A snapshot to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To whom.
    pub to: Destination,
    /// Of which volume.
    pub volume: VolumeId,
    /// The hand-over that this node was told of.
    pub epoch: Epoch,
    /// Which.
    pub snapshot: SnapshotId,
    /// What the receiver is thought to have, to send only what differs; where it has not, other snapshots of the volume that it has
    /// serve as well. None: the whole is sent.
    pub parent: Option<SnapshotId>,
}

/// How far a transfer is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Read from the pool.
    pub read: Bytes,
    /// Put on the wire, what was sent again included.
    pub wire: Bytes,
    /// About so much will be read; none: nobody knows (an increment).
    pub expected: Option<Bytes>,
    /// How often a broken link was taken up again.
    pub resumed: u32,
}

/// A snapshot that is on the other node, verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// It was there before.
    pub already: bool,
    /// What only the difference to was sent; none: the whole, or nothing.
    pub parent: Option<SnapshotId>,
    /// As it was in the end.
    pub progress: Progress,
    /// How often it was begun anew because the receiver had forgotten it.
    pub restarted: u32,
}

/// Times that tests shorten.
#[derive(Debug, Clone, Copy)]
struct Timing {
    idle: Duration,
    resume_for: Duration,
}

/// What every connection works with.
struct Shared {
    pool: Arc<dyn Pool>,
    policy: Arc<dyn Admission>,
    arrivals: Arc<arrivals::Arrivals>,
    connections: server::Connections,
    stop: CancellationToken,
    timing: Timing,
}

/// Transfers to and from other nodes. Dropped, it ends them all.
pub struct Peers {
    endpoint: quinn::Endpoint,
    identity: Mutex<Arc<Identity>>,
    sending: Mutex<HashSet<(NodeId, VolumeId, SnapshotId)>>,
    shared: Arc<Shared>,
}

impl Peers {
    /// Binds the UDP port and serves other nodes.
    ///
    /// # Errors
    /// `Bind`, `Identity`.
    pub fn bind(
        address: SocketAddr,
        identity: &Identity,
        pool: Arc<dyn Pool>,
        policy: Arc<dyn Admission>,
    ) -> Result<Self, PeerError> {
        let timing = Timing {
            idle: IDLE,
            resume_for: RESUME_FOR,
        };
        Self::bind_with(address, identity, pool, policy, timing)
    }

    fn bind_with(
        address: SocketAddr,
        identity: &Identity,
        pool: Arc<dyn Pool>,
        policy: Arc<dyn Admission>,
        timing: Timing,
    ) -> Result<Self, PeerError> {
        let config = server_config(identity, timing).map_err(PeerError::Identity)?;
        let endpoint =
            quinn::Endpoint::server(config, address).map_err(|source| PeerError::Bind { address, source })?;
        let shared = Arc::new(Shared {
            pool,
            policy,
            arrivals: Arc::default(),
            connections: server::Connections::default(),
            stop: CancellationToken::new(),
            timing,
        });
        tokio::spawn(Arc::clone(&shared).serve(endpoint.clone()));
        Ok(Self {
            endpoint,
            identity: Mutex::new(Arc::new(identity.clone())),
            sending: Mutex::default(),
            shared,
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Shows another certificate from now on; connections that are there keep theirs.
    ///
    /// # Errors
    /// `Identity`: nothing has changed.
    pub fn renew(&self, identity: &Identity) -> Result<(), PeerError> {
        let config = server_config(identity, self.shared.timing).map_err(PeerError::Identity)?;
        self.endpoint.set_server_config(Some(config));
        *self.identity.lock() = Arc::new(identity.clone());
        Ok(())
    }

    /// Ends all transfers, and waits until the other nodes were told. Senders try again for a while.
    pub async fn close(self) {
        self.end();
        self.endpoint.wait_idle().await;
    }

    fn end(&self) {
        self.shared.stop.cancel();
        self.endpoint.close(STOPPING.into(), b"the agent stops");
        self.shared.arrivals.end();
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.end();
    }
}

fn server_config(identity: &Identity, timing: Timing) -> Result<quinn::ServerConfig, LineError> {
    let tls = QuicServerConfig::try_from(identity::peer_server_tls(identity)?)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(Arc::new(transport(timing, STREAMS)));
    Ok(config)
}

/// `streams`: so many may the other side open.
fn transport(timing: Timing, streams: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(timing.idle / 3))
        .max_idle_timeout(quinn::IdleTimeout::try_from(timing.idle).ok())
        .max_concurrent_bidi_streams(streams.into())
        .max_concurrent_uni_streams(0u32.into())
        .stream_receive_window(RECEIVE_WINDOW.into())
        .receive_window(RECEIVE_WINDOW.into())
        .send_window(u64::from(RECEIVE_WINDOW))
        .datagram_receive_buffer_size(None);
    transport
}

#[cfg(test)]
mod tests;
