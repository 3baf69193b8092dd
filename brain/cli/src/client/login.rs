//! Fetches a brain's CA by its fingerprint, for a login where only the fingerprint is at hand.
//!
//! The handshake itself proves that the CA with this fingerprint signed the server's certificate; nothing is sent
//! before that, the token least of all.

use std::io::{self, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use berth_common::identity::{self, BRAIN_NAME};
use rustls_pki_types::ServerName;

use super::{ClientError, endpoint};

const LIMIT: Duration = Duration::from_secs(5);

/// The PEM of the CA with this SHA-256 fingerprint (hex, colons allowed) that signed the server.
///
/// # Errors
/// [`ClientError::Unreachable`] also when the server's CA is another one.
pub fn fetch_ca(server: &str, fingerprint: &str) -> Result<String, ClientError> {
    let (host, port) = endpoint(server)?;
    let fingerprint: String = fingerprint
        .chars()
        .filter(|c| *c != ':')
        .map(|c| c.to_ascii_lowercase())
        .collect();
    let broken = |error: io::Error| ClientError::Unreachable {
        server: server.to_owned(),
        why: error.to_string(),
    };
    let mut config = identity::join_tls(&fingerprint)?;
    config.alpn_protocols.clear();
    let name = ServerName::try_from(BRAIN_NAME).expect("a valid DNS name");
    let mut tls = rustls::ClientConnection::new(Arc::new(config), name)
        .map_err(|error| broken(io::Error::other(error)))?;
    let mut tcp = connect(&host, port).map_err(broken)?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp).map_err(broken)?;
    }
    let ca = tls
        .peer_certificates()
        .into_iter()
        .flatten()
        .find(|cert| identity::fingerprint(cert) == fingerprint)
        .map(|cert| pem(cert))
        .ok_or_else(|| broken(io::Error::other("the server did not send its CA")))?;
    tls.send_close_notify();
    // The answer is complete; whether the peer hears our good-bye changes nothing.
    let _ = tls.complete_io(&mut tcp).and_then(|_| tcp.flush());
    Ok(ca)
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::other("its name has no address");
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, LIMIT) {
            Ok(tcp) => {
                tcp.set_read_timeout(Some(LIMIT))?;
                tcp.set_write_timeout(Some(LIMIT))?;
                return Ok(tcp);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// DER as PEM.
fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}
