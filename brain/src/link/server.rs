//! The QUIC endpoint: accepts connections, bounds what strangers cost, and hands each to joining or to a session.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use berth_common::identity::{self, Identity, IdentityError};
use berth_common::protocol::{ALPN_JOIN, ALPN_LINK};
use nix::sys::socket::{setsockopt, sockopt};
use parking_lot::Mutex;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{Incoming, VarInt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{BlobSource, Links, join, session};
use crate::ca::CertificateAuthority;
use crate::cluster::Cluster;

/// Time for a handshake. A site's nodes come back all at once, and packets get lost in such a storm.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Shortest time between two stateless resets. None: all nodes ask in the same moment, and who gets no answer waits for
/// seconds. Each is smaller than the packet that asks for it, so nobody is amplified.
const RESET_INTERVAL: Duration = Duration::ZERO;
/// Handshakes and joins under way from one address (IPv6: one /64). A site's nodes come back all at once after an outage.
const PENDING_PER_ADDRESS: usize = 1_024;
/// Handshakes and joins under way in all, above which addresses must first prove that they are theirs.
const PENDING_UNPROVEN: usize = 512;
/// Handshakes and joins under way in all.
const PENDING: usize = 4_096;
/// Streams an agent may have open for requests, the control stream included.
const MAX_BIDI: u32 = 64;
/// Usage reports an agent may have under way.
const MAX_UNI: u32 = 4;
/// Bytes of one connection that may wait to be read.
const RECEIVE_WINDOW: u32 = 4 << 20;
/// Bytes of packets that may wait to be looked at.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Time that connections have to close when the brain stops.
const GRACE: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// QUIC close code: the brain stops.
const STOPPING: u32 = 0;
/// QUIC close code: the peer did not behave.
pub(super) const REFUSED: u32 = 1;

/// Why the link can't be served.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The UDP port is not to be had.
    #[error("binding UDP {listen}")]
    Bind {
        /// Which.
        listen: SocketAddr,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
    /// The identity can't be used.
    #[error("the brain's identity")]
    Identity(#[from] IdentityError),
    /// The identity can't be used for QUIC.
    #[error("TLS can't be used for QUIC")]
    Tls(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// What agents are told.
#[derive(Debug, Clone)]
pub struct LinkSettings {
    /// Silence after which a node is lost, milliseconds. Also the idle timeout of connections.
    pub lease_ms: u32,
    /// Interval of usage reports, milliseconds.
    pub usage_interval_ms: u32,
    /// Addresses (host:port) at which nodes reach the brain.
    pub addresses: Vec<String>,
}

/// What every connection works with.
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) links: Links,
    pub(super) ca: Arc<CertificateAuthority>,
    pub(super) blobs: Arc<dyn BlobSource>,
    pub(super) settings: LinkSettings,
    pending: Pending,
}

/// The link's server, bound but not yet accepting.
pub struct LinkServer {
    endpoint: quinn::Endpoint,
    shared: Arc<Shared>,
}

impl LinkServer {
    /// Binds the UDP port.
    ///
    /// # Errors
    /// [`LinkError`].
    pub fn bind(
        listen: SocketAddr,
        identity: &Identity,
        ca: Arc<CertificateAuthority>,
        cluster: Cluster,
        links: Links,
        blobs: Arc<dyn BlobSource>,
        settings: LinkSettings,
    ) -> Result<Self, LinkError> {
        let tls = QuicServerConfig::try_from(identity::brain_tls(identity)?)?;
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        config.transport_config(Arc::new(transport(settings.lease_ms)));
        config.migration(true);
        let runtime: Arc<dyn quinn::Runtime> = Arc::new(quinn::TokioRuntime);
        let endpoint = socket(listen)
            .and_then(|socket| quinn::Endpoint::new(endpoint_config(&ca), Some(config), socket, runtime))
            .map_err(|source| LinkError::Bind { listen, source })?;
        Ok(Self {
            endpoint,
            shared: Arc::new(Shared {
                cluster,
                links,
                ca,
                blobs,
                settings,
                pending: Pending::default(),
            }),
        })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// The system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Serves until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        loop {
            let incoming = tokio::select! {
                incoming = self.endpoint.accept() => incoming,
                () = shutdown.cancelled() => None,
            };
            let Some(incoming) = incoming else { break };
            let remote = incoming.remote_address();
            let total = self.shared.pending.total();
            if total >= PENDING_UNPROVEN && !incoming.remote_address_validated() && incoming.may_retry() {
                let _ = incoming.retry();
                continue;
            }
            let place = match Pending::enter(&self.shared, remote.ip()) {
                Some(place) if total < PENDING => place,
                _ => {
                    incoming.refuse();
                    continue;
                }
            };
            tasks.spawn(serve(Arc::clone(&self.shared), incoming, place));
        }
        tasks.close();
        self.endpoint.close(STOPPING.into(), b"the brain stops");
        let _ = tokio::time::timeout(GRACE, async {
            tasks.wait().await;
            self.endpoint.wait_idle().await;
        })
        .await;
    }
}

/// The UDP socket, with room for the first packets of all nodes at once: a brain that restarts hears from every one within
/// a moment, and each lost packet costs that node a second.
fn socket(listen: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(listen)?;
    // Beyond the system's limit only with a capability that the brain need not have.
    let forced = setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER);
    if let Err(error) = forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER)) {
        tracing::warn!(%error, "the UDP receive buffer can't be enlarged");
    }
    Ok(socket)
}

/// A brain that was killed said no goodbye: its nodes' packets reach a process that knows none of their connections. With
/// keys that outlive the process it can tell them so at once (RFC 9000, 10.3, stateless reset); otherwise each would wait for
/// its idle timeout before it dials again.
fn endpoint_config(ca: &CertificateAuthority) -> quinn::EndpointConfig {
    let reset = ca.derived_secret("stateless reset");
    let [a, b, c, d, e, f, g, h, ..] = ca.derived_secret("connection ids");
    let ids = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let mut config =
        quinn::EndpointConfig::new(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &reset)));
    config
        .cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(ids)))
        .min_reset_interval(RESET_INTERVAL);
    config
}

fn transport(lease_ms: u32) -> quinn::TransportConfig {
    let mut transport = quinn::TransportConfig::default();
    transport
        .keep_alive_interval(Some(
            KEEP_ALIVE.min(Duration::from_millis(u64::from(lease_ms) / 3)),
        ))
        .max_idle_timeout(Some(VarInt::from_u32(lease_ms).into()))
        .max_concurrent_bidi_streams(MAX_BIDI.into())
        .max_concurrent_uni_streams(MAX_UNI.into())
        .receive_window(RECEIVE_WINDOW.into())
        .datagram_receive_buffer_size(None);
    transport
}

async fn serve(shared: Arc<Shared>, incoming: Incoming, place: Place) {
    let remote = incoming.remote_address();
    let connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return tracing::debug!(%remote, %error, "a handshake was not begun"),
    };
    let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "a handshake failed"),
        Err(_) => return tracing::debug!(%remote, "a handshake took too long"),
    };
    let protocol = connection
        .handshake_data()
        .and_then(|data| data.downcast::<HandshakeData>().ok())
        .and_then(|data| data.protocol);
    match protocol.as_deref() {
        // A joiner keeps its place until it is done: it has proved nothing yet.
        Some(ALPN_JOIN) => join::serve(&shared, &connection).await,
        Some(ALPN_LINK) => session::serve(&shared, &connection, place).await,
        _ => connection.close(REFUSED.into(), b"unknown protocol"),
    }
}

/// Connections that have not proved yet whose they are, by address.
#[derive(Default)]
struct Pending(Mutex<(usize, HashMap<IpAddr, usize>)>);

/// A place among the pending; given back when dropped.
pub(super) struct Place {
    shared: Arc<Shared>,
    address: IpAddr,
}

impl Pending {
    fn total(&self) -> usize {
        self.0.lock().0
    }

    fn enter(shared: &Arc<Shared>, address: IpAddr) -> Option<Place> {
        let address = network(address);
        shared.pending.take(address).then(|| Place {
            shared: Arc::clone(shared),
            address,
        })
    }

    fn take(&self, address: IpAddr) -> bool {
        let mut held = self.0.lock();
        let count = held.1.entry(address).or_default();
        if *count >= PENDING_PER_ADDRESS {
            return false;
        }
        *count += 1;
        held.0 += 1;
        true
    }

    fn give_back(&self, address: IpAddr) {
        let mut held = self.0.lock();
        held.0 = held.0.saturating_sub(1);
        if let Some(count) = held.1.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                held.1.remove(&address);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.pending.give_back(self.address);
    }
}

/// What counts as one address: whoever has one IPv6 address has its whole /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_is_bounded_by_address_and_given_back() {
        let pending = Pending::default();
        let at = |text: &str| network(text.parse().unwrap());
        for n in 0..PENDING_PER_ADDRESS {
            assert!(pending.take(at(&format!("2001:db8::{n:x}"))));
        }
        assert!(!pending.take(at("2001:db8::ffff")));
        assert!(pending.take(at("::ffff:192.0.2.1")) && pending.take(at("192.0.2.1")));
        assert_eq!(pending.0.lock().1[&at("192.0.2.1")], 2);
        for _ in 0..PENDING_PER_ADDRESS {
            pending.give_back(at("2001:db8::1"));
        }
        assert_eq!(pending.total(), 2);
        assert!(pending.take(at("2001:db8::1")));
    }
}
