//! The cluster's certificate authority: made on first start, it vouches for every node and for the brain.
//!
//! Owns the CA's key and the shape of every certificate. Refuses to let a requester choose anything but its key: names,
//! purposes and validity are the brain's, whatever a certificate request says, so a node can't become another one or
//! play the brain. Refuses also to make a new CA in the place of a damaged one, since that would lock out every node.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use berth_common::id::NodeId;
use berth_common::identity::{self, BRAIN_NAME, Identity, IdentityError};
use berth_common::model::UnixMillis;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
    SerialNumber,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};
use time::{Duration, OffsetDateTime};

/// File of the CA's certificate.
const CERT_FILE: &str = "ca.crt";
/// File of the CA's key.
const KEY_FILE: &str = "ca.key";
const SERVER_KEY_FILE: &str = "server.key";
/// Validity of the CA.
const CA_LIFE: Duration = Duration::days(3_650);
/// Validity of a node's certificate; agents renew at two thirds of it.
pub const NODE_LIFE: Duration = Duration::days(30);
/// Certificates are valid a little before they are made, as hosts' clocks differ.
const SKEW: Duration = Duration::days(1);
/// Largest certificate request looked at, bytes.
const MAX_CSR: usize = 16 << 10;

/// Why the CA could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file could not be read or written.
    #[error("{doing} {path}")]
    File {
        /// What was attempted.
        doing: &'static str,
        /// On which file.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
    /// The certificate is there, its key is not.
    #[error(
        "{0} is missing but the CA's certificate is there; restore it from a backup: with a new CA every node would have to join anew"
    )]
    KeyMissing(PathBuf),
    /// Key and certificate belong to different CAs.
    #[error("ca.key in {0} does not belong to ca.crt; restore both from the same backup")]
    Mismatch(PathBuf),
    /// The CA's files don't parse.
    #[error("the CA's {what} can't be used; restore it from a backup")]
    Damaged {
        /// Which file.
        what: &'static str,
        /// The complaint.
        #[source]
        source: rcgen::Error,
    },
    /// A certificate that does not parse.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A certificate request that is none, or that its key did not sign.
    #[error("the certificate request can't be used: {0}")]
    Request(String),
    /// Signing failed.
    #[error("making a certificate")]
    Sign(#[from] rcgen::Error),
}

/// The CA, ready to sign.
pub struct CertificateAuthority {
    cert: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    server: KeyPair,
    ends: OffsetDateTime,
    node_life: Duration,
}

impl CertificateAuthority {
    /// Nodes' certificates are valid for so long instead of [`NODE_LIFE`].
    #[must_use]
    pub fn with_node_life(mut self, life: std::time::Duration) -> Self {
        self.node_life = Duration::try_from(life).unwrap_or(NODE_LIFE);
        self
    }

    /// The CA in `dir`, made if there is none yet.
    ///
    /// # Errors
    /// [`CaError`], each naming the file and the cure.
    pub fn open_or_create(dir: &Path) -> Result<Self, CaError> {
        let file = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| CaError::File { doing, path, source }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o700)))
            .map_err(file("making the folder", dir))?;
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(file("reading", path)(error)),
        };
        let server_path = dir.join(SERVER_KEY_FILE);
        // Kept, so that lines of the installer, which pin it, outlive a restart.
        let server = |held: Option<String>| match held {
            Some(pem) => KeyPair::from_pem(&pem).map_err(|source| CaError::Damaged {
                what: "server key",
                source,
            }),
            None => {
                let key = KeyPair::generate()?;
                write_private(&server_path, &key.serialize_pem()).map_err(file("writing", &server_path))?;
                Ok(key)
            }
        };
        match (read(&cert_path)?, read(&key_path)?) {
            (Some(cert), Some(key)) => Self::load(dir, cert, &key, server(read(&server_path)?)?),
            (Some(_), None) => Err(CaError::KeyMissing(key_path)),
            // The certificate is written last: without it nothing was ever signed.
            (None, _) => {
                let (cert, key) = create()?;
                write_private(&key_path, &key).map_err(file("writing", &key_path))?;
                write_private(&cert_path, &cert).map_err(file("writing", &cert_path))?;
                Self::load(dir, cert, &key, server(read(&server_path)?)?)
            }
        }
    }

    fn load(dir: &Path, pem: String, key: &str, server: KeyPair) -> Result<Self, CaError> {
        let cert = identity::parse_cert("the CA certificate", &pem)?;
        let key = KeyPair::from_pem(key).map_err(|source| CaError::Damaged { what: "key", source })?;
        if hex::encode(Sha256::digest(key.subject_public_key_info())) != identity::key_fingerprint(&cert)? {
            return Err(CaError::Mismatch(dir.to_owned()));
        }
        let (_, ends) = identity::validity(&cert)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, key).map_err(|source| CaError::Damaged {
            what: "certificate",
            source,
        })?;
        Ok(Self {
            cert,
            pem,
            issuer,
            server,
            ends: OffsetDateTime::from_unix_timestamp(ends).unwrap_or(OffsetDateTime::UNIX_EPOCH),
            node_life: NODE_LIFE,
        })
    }

    /// The brain's public key, as curl's `--pinnedpubkey` wants it.
    pub fn pin(&self) -> String {
        use base64::Engine as _;
        let digest = Sha256::digest(self.server.subject_public_key_info());
        format!(
            "sha256//{}",
            base64::engine::general_purpose::STANDARD.encode(digest)
        )
    }

    /// SHA-256 (hex) of the CA's certificate, which join tokens carry.
    pub fn fingerprint(&self) -> String {
        identity::fingerprint(&self.cert)
    }

    /// A secret for one purpose that stays the same for the CA's life and tells nothing of the CA's key.
    pub fn derived_secret(&self, purpose: &str) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(b"berth derived secret\0");
        hash.update(purpose.as_bytes());
        hash.update([0]);
        hash.update(self.issuer.key().serialize_der());
        hash.finalize().into()
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for a node with the key of a certificate request, and that key's fingerprint. Only the key is taken
    /// from the request.
    ///
    /// # Errors
    /// [`CaError::Request`] if the request is malformed or not signed by its key.
    pub fn issue_node(
        &self,
        csr_pem: &str,
        node: NodeId,
        now: UnixMillis,
    ) -> Result<(String, String), CaError> {
        if csr_pem.len() > MAX_CSR {
            return Err(CaError::Request(format!("it is longer than {MAX_CSR} bytes")));
        }
        let mut request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| CaError::Request(e.to_string()))?;
        let now = i64::try_from(now.0 / 1000)
            .ok()
            .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
            .unwrap_or(OffsetDateTime::UNIX_EPOCH);
        let mut params = leaf(&node.to_string(), now, (now + self.node_life).min(self.ends));
        params.subject_alt_names = vec![SanType::URI(identity::node_uri(node).try_into()?)];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        request.params = params;
        let cert = request.signed_by(&self.issuer)?;
        Ok((cert.pem(), identity::key_fingerprint(cert.der())?))
    }

    /// The brain's identity with a new key that never touches the disk, so it is valid as long as the CA: it ends with
    /// the process anyway.
    ///
    /// # Errors
    /// [`CaError::Sign`] if a name is no DNS name.
    pub fn issue_server(&self, names: &[String], ips: &[IpAddr]) -> Result<Identity, CaError> {
        let mut params = leaf(BRAIN_NAME, OffsetDateTime::now_utc(), self.ends);
        let mut dns: Vec<&str> = vec![BRAIN_NAME, "localhost"];
        dns.extend(names.iter().map(String::as_str));
        let mut addresses: Vec<IpAddr> =
            vec![[127, 0, 0, 1].into(), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)];
        addresses.extend(ips);
        dns.sort_unstable();
        dns.dedup();
        addresses.sort_unstable();
        addresses.dedup();
        for name in dns {
            params.subject_alt_names.push(SanType::DnsName(name.try_into()?));
        }
        params
            .subject_alt_names
            .extend(addresses.into_iter().map(SanType::IpAddress));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let cert = params.signed_by(&self.server, &self.issuer)?;
        let key =
            PrivateKeyDer::try_from(self.server.serialize_der()).map_err(|why| IdentityError::Malformed {
                what: "the brain's new key",
                why: why.to_owned(),
            })?;
        Ok(Identity {
            chain: vec![cert.der().clone(), self.cert.clone()],
            key,
            ca: self.cert.clone(),
        })
    }
}

fn create() -> Result<(String, String), CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let now = OffsetDateTime::now_utc();
    let mut params = leaf("berth CA", now, now + CA_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok((params.self_signed(&key)?.pem(), key.serialize_pem()))
}

fn leaf(common_name: &str, now: OffsetDateTime, ends: OffsetDateTime) -> CertificateParams {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    // A tenth of a short life: renewal counts from here.
    params.not_before = now - SKEW.min((ends - now) / 10);
    params.not_after = ends;
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

/// Writes a file that only its owner may read, in one step that survives a crash.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)?;
    file.write_all(text.as_bytes())?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests;
