//! TLS between nodes: both ends show the certificates that they show the brain.
//!
//! A node's certificate may only be used by clients, so that no node can play the brain. Among peers the one that is dialled
//! shows the same certificate, and is judged by the same rules, plus its id: any certificate of the CA would make every private
//! node a stand-in for every other one.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::server::danger::ClientCertVerifier;
use rustls::{DigitallySignedStruct, SignatureScheme};

use super::{Identity, IdentityError, built, client_rules, node_of, provider, server_tls};
use crate::id::NodeId;
use crate::protocol::ALPN_PEER;

/// What a dialling node says it looks for. Nothing depends on it: the certificate names the node.
pub const PEER_NAME: &str = "node.berth";

/// TLS of a node that other nodes dial: none comes in without a node's certificate. [`node_of`] says whose.
///
/// # Errors
/// [`IdentityError::Tls`] if key and certificate don't match, or a CA that is none.
pub fn peer_server_tls(identity: &Identity) -> Result<rustls::ServerConfig, IdentityError> {
    let mut config = server_tls(identity, built(client_rules(identity)?)?)?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    // Every connection shows its certificate anew: a resumed session would outlive it.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// TLS of a node that dials the node `expected`, and talks to no other one.
///
/// # Errors
/// [`IdentityError::Tls`] if key and certificate don't match, or a CA that is none.
pub fn peer_client_tls(identity: &Identity, expected: NodeId) -> Result<rustls::ClientConfig, IdentityError> {
    let judge = ExpectedNode {
        expected,
        rules: built(client_rules(identity)?)?,
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(judge))
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_PEER.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Lets one node in.
#[derive(Debug)]
struct ExpectedNode {
    expected: NodeId,
    rules: Arc<dyn ClientCertVerifier>,
}

impl ServerCertVerifier for ExpectedNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.rules.verify_client_cert(end_entity, intermediates, now)?;
        match node_of(end_entity) {
            Ok(node) if node == self.expected => Ok(ServerCertVerified::assertion()),
            Ok(node) => Err(rustls::Error::General(format!(
                "node {node} answers there, and not node {}",
                self.expected
            ))),
            Err(error) => Err(rustls::Error::General(error.to_string())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.rules.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rules.supported_verify_schemes()
    }
}
