//! Why a snapshot did not get to another node.

use std::net::SocketAddr;

use berth_common::id::{NodeId, SnapshotId, VolumeId};
use berth_common::identity::IdentityError;
use berth_common::protocol::CodecError;

use super::window::OutsideWindow;
use crate::volume::VolumeError;

/// Why there is no connection, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// Nothing to dial.
    #[error("no address of it is known")]
    NoAddress,
    /// Our identity can't be used.
    #[error("this node's identity can't be used")]
    Identity(#[from] IdentityError),
    /// TLS can't be used for QUIC.
    #[error("TLS can't be used for QUIC")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
    /// QUIC refuses to dial.
    #[error("{address} can't be dialled")]
    Dial {
        /// Which address.
        address: SocketAddr,
        /// QUIC's complaint.
        #[source]
        source: quinn::ConnectError,
    },
    /// Nobody answers in time.
    #[error("{0} does not answer")]
    Silent(SocketAddr),
    /// The handshake failed or the connection ended.
    #[error("connection to {address}")]
    Connection {
        /// Which address.
        address: SocketAddr,
        /// How it ended.
        #[source]
        source: quinn::ConnectionError,
    },
    /// The stream ended early.
    #[error("stream to {address}")]
    Stream {
        /// Which address.
        address: SocketAddr,
        /// How it ended.
        #[source]
        source: CodecError,
    },
}

/// Why a transfer failed.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The UDP port is not to be had.
    #[error("binding UDP {address}")]
    Bind {
        /// Which.
        address: SocketAddr,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// This node's identity can't be used.
    #[error("this node's identity can't be used between nodes")]
    Identity(#[source] LineError),
    /// The same is being sent there already.
    #[error("snapshot {snapshot} of volume {volume} is being sent to node {node} already")]
    Underway {
        /// To whom.
        node: NodeId,
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
    },
    /// This node's pool can't begin to send.
    #[error("sending snapshot {snapshot} of volume {volume}")]
    Pool {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
        /// Why.
        #[source]
        source: VolumeError,
    },
    /// This node's pool failed to read on; nothing was kept over there.
    #[error("reading snapshot {snapshot} of volume {volume}")]
    Read {
        /// Of which volume.
        volume: VolumeId,
        /// Which.
        snapshot: SnapshotId,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node can't be reached.
    #[error("node {node} can't be reached")]
    Unreachable {
        /// Which.
        node: NodeId,
        /// The last address's failure.
        #[source]
        source: LineError,
    },
    /// The link broke and did not come back.
    #[error("the link to node {node} broke and was not back in time")]
    Lost {
        /// Which.
        node: NodeId,
        /// The last failure.
        #[source]
        source: LineError,
    },
    /// The receiver does not want it.
    #[error("node {node} refuses: {reason}")]
    Refused {
        /// Which.
        node: NodeId,
        /// Its words.
        reason: String,
        /// Whether it may want it later.
        retryable: bool,
    },
    /// The receiver could not keep it.
    #[error("node {node} failed: {reason}")]
    Failed {
        /// Which.
        node: NodeId,
        /// Its words.
        reason: String,
        /// Whether the same may work later.
        retryable: bool,
    },
    /// The receiver speaks of what it can't have.
    #[error("node {node} loses count")]
    Count {
        /// Which.
        node: NodeId,
        /// Of what.
        #[source]
        source: OutsideWindow,
    },
    /// The receiver says what nobody asked.
    #[error("node {node} answers {what} out of turn")]
    OutOfTurn {
        /// Which.
        node: NodeId,
        /// What it said.
        what: &'static str,
    },
}

impl PeerError {
    /// Whether the same may work later without anybody doing anything.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Pool { source, .. } => source.retryable(),
            Self::Refused { retryable, .. } | Self::Failed { retryable, .. } => *retryable,
            Self::Underway { .. } | Self::Read { .. } | Self::Unreachable { .. } | Self::Lost { .. } => true,
            Self::Bind { .. } | Self::Identity(_) | Self::Count { .. } | Self::OutOfTurn { .. } => false,
        }
    }
}
