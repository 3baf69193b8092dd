//! Dialling: names to addresses, sockets, the QUIC handshake. Also used by joining and by `check`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use berth_common::error::Problem;
use berth_common::identity::{BRAIN_NAME, IdentityError};
use berth_common::protocol::CodecError;
use quinn::crypto::rustls::QuicClientConfig;

/// Silence after which a connection is taken for dead, until a brain says how long its lease is.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Streams the brain may have open at once on this node.
const MAX_STREAMS: u32 = 1_024;

/// Why there is no link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// An address does not resolve.
    #[error("{address} can't be resolved")]
    Resolve {
        /// The address.
        address: String,
        /// The resolver's complaint.
        #[source]
        source: std::io::Error,
    },
    /// No local socket.
    #[error("no UDP socket")]
    Socket(#[source] std::io::Error),
    /// The identity can't be used.
    #[error("this node's identity can't be used")]
    Identity(#[source] IdentityError),
    /// TLS can't be used for QUIC.
    #[error("TLS can't be used for QUIC")]
    Tls(#[source] quinn::crypto::rustls::NoInitialCipherSuite),
    /// QUIC refuses to dial.
    #[error("{address} can't be dialled")]
    Dial {
        /// The address.
        address: String,
        /// QUIC's complaint.
        #[source]
        source: quinn::ConnectError,
    },
    /// The handshake failed or the connection ended.
    #[error("connection to {address}")]
    Connection {
        /// The address.
        address: String,
        /// How it ended.
        #[source]
        source: quinn::ConnectionError,
    },
    /// Nobody answers there.
    #[error("{address} does not answer")]
    Silent {
        /// The address.
        address: String,
    },
    /// The control stream broke.
    #[error("control stream")]
    Control(#[from] CodecError),
    /// The brain or the agent refuses the session.
    #[error("{0}")]
    Refused(Box<Problem>),
    /// The agent shuts down.
    #[error("shutting down")]
    Shutdown,
}

/// The address from which packets to the brain leave, as the kernel routes now. Sends nothing.
pub fn local_address(remote: SocketAddr) -> Option<IpAddr> {
    let socket = std::net::UdpSocket::bind(unspecified(remote)).ok()?;
    socket.connect(remote).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The address that a socket for reaching `remote` is bound to: any of its family, any port.
pub fn unspecified(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The first address of `host:port`.
///
/// # Errors
/// [`LinkError::Resolve`].
pub async fn resolve(address: &str) -> Result<SocketAddr, LinkError> {
    let failed = |source| LinkError::Resolve {
        address: address.to_owned(),
        source,
    };
    let mut found = tokio::net::lookup_host(address).await.map_err(failed)?;
    found
        .next()
        .ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))
}

/// Dials with given TLS settings; silence of `idle` ends the connection.
///
/// # Errors
/// As it says; the peer's judgement of our certificate may come only later.
pub async fn dial(
    endpoint: &quinn::Endpoint,
    remote: SocketAddr,
    address: &str,
    tls: rustls::ClientConfig,
    idle: Duration,
) -> Result<quinn::Connection, LinkError> {
    let crypto = QuicClientConfig::try_from(tls).map_err(LinkError::Tls)?;
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(idle / 3))
        .max_idle_timeout(quinn::IdleTimeout::try_from(idle).ok())
        .max_concurrent_bidi_streams(MAX_STREAMS.into())
        .max_concurrent_uni_streams(0u32.into());
    config.transport_config(Arc::new(transport));
    let connecting = endpoint
        .connect_with(config, remote, BRAIN_NAME)
        .map_err(|source| LinkError::Dial {
            address: address.to_owned(),
            source,
        })?;
    match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|source| LinkError::Connection {
            address: address.to_owned(),
            source,
        }),
        Err(_) => Err(LinkError::Silent {
            address: address.to_owned(),
        }),
    }
}

/// An endpoint for dialling `remote`.
///
/// # Errors
/// [`LinkError::Socket`].
pub fn client_endpoint(remote: SocketAddr) -> Result<quinn::Endpoint, LinkError> {
    quinn::Endpoint::client(unspecified(remote)).map_err(LinkError::Socket)
}
