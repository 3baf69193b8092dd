//! mTLS identities: who a certificate speaks for, and the TLS settings of the link and between nodes.
//!
//! A node's certificate carries `berth://node/<id>` as its only subject alternative name and may only be used by
//! clients; the brain's carries [`BRAIN_NAME`] and may only be used by servers. So neither can play the other, and the
//! agent checks the brain by name, not by address: addresses may change.

mod peer;

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientCertVerifierBuilder, WebPkiClientVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest, Sha256};

use crate::id::NodeId;
use crate::protocol::{ALPN_JOIN, ALPN_LINK};

pub use peer::{PEER_NAME, peer_client_tls, peer_server_tls};

/// The name that the brain's certificate carries, whatever its addresses.
pub const BRAIN_NAME: &str = "brain.berth";
const NODE_URI: &str = "berth://node/";

/// Why an identity could not be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// PEM or DER that does not parse.
    #[error("{what} can't be parsed: {why}")]
    Malformed {
        /// Which object.
        what: &'static str,
        /// The parser's complaint.
        why: String,
    },
    /// The certificate names no node, or more than one.
    #[error("the certificate does not name exactly one berth node")]
    NotANode,
    /// rustls refused the combination.
    #[error("TLS set-up refused")]
    Tls(#[from] rustls::Error),
}

/// A certificate chain with its key, and the CA that peers are judged by.
#[derive(Debug)]
pub struct Identity {
    /// Own certificate first, then the CA's.
    pub chain: Vec<CertificateDer<'static>>,
    /// Own key.
    pub key: PrivateKeyDer<'static>,
    /// The CA.
    pub ca: CertificateDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            chain: self.chain.clone(),
            key: self.key.clone_key(),
            ca: self.ca.clone(),
        }
    }
}

impl Identity {
    /// From PEM texts.
    ///
    /// # Errors
    /// [`IdentityError::Malformed`] naming which of the three is damaged.
    pub fn from_pem(cert_pem: &str, key_pem: &str, ca_pem: &str) -> Result<Self, IdentityError> {
        let ca = parse_cert("the CA certificate", ca_pem)?;
        let cert = parse_cert("the certificate", cert_pem)?;
        let key =
            PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|e| IdentityError::Malformed {
                what: "the private key",
                why: e.to_string(),
            })?;
        Ok(Self {
            chain: vec![cert, ca.clone()],
            key,
            ca,
        })
    }
}

/// The first certificate of a PEM text.
///
/// # Errors
/// [`IdentityError::Malformed`] naming `what`.
pub fn parse_cert(what: &'static str, pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| IdentityError::Malformed {
        what,
        why: e.to_string(),
    })
}

/// SHA-256 of a certificate, hex: how a join token pins the CA.
pub fn fingerprint(cert: &CertificateDer<'_>) -> String {
    hex::encode(Sha256::digest(cert))
}

/// The URI that names a node in its certificate.
pub fn node_uri(node: NodeId) -> String {
    format!("{NODE_URI}{node}")
}

/// The node a (verified) certificate speaks for.
///
/// # Errors
/// [`IdentityError::NotANode`] unless exactly one node is named.
pub fn node_of(cert: &CertificateDer<'_>) -> Result<NodeId, IdentityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| IdentityError::Malformed {
        what: "the peer's certificate",
        why: e.to_string(),
    })?;
    let names = parsed
        .subject_alternative_name()
        .ok()
        .flatten()
        .ok_or(IdentityError::NotANode)?;
    let mut nodes = names.value.general_names.iter().filter_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => uri.strip_prefix(NODE_URI)?.parse().ok(),
        _ => None,
    });
    match (nodes.next(), nodes.next()) {
        (Some(node), None) => Ok(node),
        _ => Err(IdentityError::NotANode),
    }
}

/// Seconds since the epoch between which a certificate is valid.
///
/// # Errors
/// [`IdentityError::Malformed`].
pub fn validity(cert: &CertificateDer<'_>) -> Result<(i64, i64), IdentityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| IdentityError::Malformed {
        what: "the certificate",
        why: e.to_string(),
    })?;
    Ok((
        parsed.validity().not_before.timestamp(),
        parsed.validity().not_after.timestamp(),
    ))
}

/// SHA-256 (hex) of a certificate's public key: a renewal must come from the key that joined.
///
/// # Errors
/// [`IdentityError::Malformed`].
pub fn key_fingerprint(cert: &CertificateDer<'_>) -> Result<String, IdentityError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|e| IdentityError::Malformed {
        what: "the certificate",
        why: e.to_string(),
    })?;
    Ok(hex::encode(Sha256::digest(parsed.public_key().raw)))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    Ok(Arc::new(roots))
}

/// TLS of an agent that dials the brain.
///
/// # Errors
/// [`IdentityError::Tls`] if key and certificate don't match.
pub fn agent_tls(identity: &Identity) -> Result<rustls::ClientConfig, IdentityError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(&identity.ca)?)
        .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec()];
    Ok(config)
}

/// TLS of an agent that joins: no certificate of its own, the brain judged by the CA fingerprint of the token.
///
/// # Errors
/// [`IdentityError::Tls`].
pub fn join_tls(ca_fingerprint: &str) -> Result<rustls::ClientConfig, IdentityError> {
    let verifier = PinnedCa {
        fingerprint: ca_fingerprint.to_ascii_lowercase(),
        provider: provider(),
    };
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    Ok(config)
}

/// How the CA's clients are judged.
fn client_rules(identity: &Identity) -> Result<ClientCertVerifierBuilder, IdentityError> {
    Ok(WebPkiClientVerifier::builder_with_provider(
        roots(&identity.ca)?,
        provider(),
    ))
}

fn built(rules: ClientCertVerifierBuilder) -> Result<Arc<dyn ClientCertVerifier>, IdentityError> {
    rules.build().map_err(|e| IdentityError::Malformed {
        what: "the CA certificate",
        why: e.to_string(),
    })
}

/// TLS 1.3 of a server that judges its clients so.
fn server_tls(
    identity: &Identity,
    rules: Arc<dyn ClientCertVerifier>,
) -> Result<rustls::ServerConfig, IdentityError> {
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(rules)
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    // 0-RTT data could be replayed; nobody here needs it.
    config.max_early_data_size = 0;
    Ok(config)
}

/// TLS of the brain's link endpoint. Client certificates are verified when given; whether one was given is for the
/// application to judge, since joining agents have none.
///
/// # Errors
/// [`IdentityError::Tls`] or a CA that is none.
pub fn brain_tls(identity: &Identity) -> Result<rustls::ServerConfig, IdentityError> {
    let anyone = client_rules(identity)?.allow_unauthenticated();
    let mut config = server_tls(identity, built(anyone)?)?;
    config.alpn_protocols = vec![ALPN_LINK.to_vec(), ALPN_JOIN.to_vec()];
    Ok(config)
}

/// TLS of an HTTP client that trusts exactly one CA.
///
/// # Errors
/// [`IdentityError::Tls`].
pub fn http_client_tls(ca: &CertificateDer<'static>) -> Result<rustls::ClientConfig, IdentityError> {
    Ok(rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca)?)
        .with_no_client_auth())
}

/// Verifies that the server's chain ends in the CA with a known fingerprint, and that this CA signed the server.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = intermediates.iter().find(|cert| fingerprint(cert) == self.fingerprint).ok_or_else(|| {
            rustls::Error::General(
                "the server's CA is not the one this token was made for; it may be another cluster, or someone in between"
                    .into(),
            )
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            self.provider.clone(),
        )
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
