//! Dials another node: one connection for each transfer, so that closing it says how that one ended.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::identity::{PEER_NAME, peer_client_tls};
use berth_common::protocol::CodecError;
use quinn::Connection;
use quinn::crypto::rustls::QuicClientConfig;

use super::{AGAIN, CANCELLED, DONE, Destination, LineError, Peers, transport};

const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection of one transfer. Dropped before anything was settled it tells the receiver that the transfer is taken back.
pub(super) struct Line {
    pub(super) connection: Connection,
    address: SocketAddr,
    code: u32,
}

impl Line {
    /// The transfer is over.
    pub(super) fn done(mut self) {
        self.code = DONE;
    }

    /// The sender will come again.
    pub(super) fn again(mut self) {
        self.code = AGAIN;
    }

    /// Why a stream broke: the connection says more than the stream.
    pub(super) fn broken(&self, error: CodecError) -> LineError {
        match self.connection.close_reason() {
            Some(source) => LineError::Connection {
                address: self.address,
                source,
            },
            None => LineError::Stream {
                address: self.address,
                source: error,
            },
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.connection.close(self.code.into(), b"");
    }
}

impl Peers {
    /// A connection to the first address at which the node answers, and no other node.
    pub(super) async fn dial(&self, to: &Destination) -> Result<Line, LineError> {
        let identity = Arc::clone(&self.identity.lock());
        let crypto = QuicClientConfig::try_from(peer_client_tls(&identity, to.node)?)?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport(self.shared.timing, 0)));
        let mut last = LineError::NoAddress;
        for &address in &to.addresses {
            match self.dial_one(config.clone(), address).await {
                Ok(connection) => {
                    return Ok(Line {
                        connection,
                        address,
                        code: CANCELLED,
                    });
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn dial_one(
        &self,
        config: quinn::ClientConfig,
        address: SocketAddr,
    ) -> Result<Connection, LineError> {
        let connecting = self
            .endpoint
            .connect_with(config, address, PEER_NAME)
            .map_err(|source| LineError::Dial { address, source })?;
        match tokio::time::timeout(DIAL_TIMEOUT, connecting).await {
            Ok(connected) => connected.map_err(|source| LineError::Connection { address, source }),
            Err(_) => Err(LineError::Silent(address)),
        }
    }
}
