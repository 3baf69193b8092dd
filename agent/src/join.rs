//! Joining: from a token to an identity of this node's own, and the files that hold it.
//!
//! The key is made here and never leaves. The brain is recognised by the CA fingerprint in the token. Files appear in an
//! order that a crash can't turn into half an identity: `node.json`, which makes a node joined, is written last.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_common::id::{Name, NodeId};
use berth_common::identity::{self, Identity, IdentityError};
use berth_common::model::NodeFacts;
use berth_common::protocol::{
    CodecError, JoinReply, JoinRequest, JoinToken, MAX_FRAME, read_frame, write_frame,
};
use serde::{Deserialize, Serialize};

use crate::ledger::{LedgerError, write_atomically};
use crate::link::{Brain, LinkError, dial};
use crate::reconcile::apply::chain;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Why joining, or using what joining left, failed.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// There is an identity already.
    #[error(
        "this host has joined already, as node {name} ({node}); to join it anew, remove the node from its old brain and use --force"
    )]
    Already {
        /// Its name.
        name: Name,
        /// Its id.
        node: NodeId,
    },
    /// There is no identity.
    #[error(
        "this host has not joined: no {0}; run `berth-agent join TOKEN` with a token from `berth node token`"
    )]
    NotJoined(PathBuf),
    /// Another cluster, or someone in between.
    #[error(
        "the brain at {address} is not the one this token was made for: its CA has another fingerprint. Make a new token there, or check who answers at that address"
    )]
    WrongCa {
        /// Where.
        address: String,
    },
    /// The certificate is not valid by this host's clock.
    #[error(
        "the brain's certificate is not valid now: this host's clock says {now}; set it right (for example with chrony) and try again"
    )]
    Clock {
        /// The clock.
        now: String,
    },
    /// No address answers.
    #[error(
        "no brain answers at {addresses}: {last}. Check that it runs, and that UDP to that port passes the firewalls between"
    )]
    Unreachable {
        /// The token's addresses.
        addresses: String,
        /// The last failure.
        last: String,
    },
    /// The brain said no.
    #[error("the brain refuses: {0}")]
    Refused(Box<berth_common::error::Problem>),
    /// The brain's answer is of a kind that this version does not know.
    #[error(
        "the brain answers in a way that this agent is too old to understand; install the brain's version of it"
    )]
    Newer,
    /// The exchange broke.
    #[error("the exchange with the brain broke off: {0}; try again, with a new token if this one is used up")]
    Broken(String),
    /// What the brain sent can't be used.
    #[error("what the brain sent can't be used")]
    Identity(#[from] IdentityError),
    /// The certificate is not for the key or the node it should be for.
    #[error("the brain sent a certificate for another node")]
    Mismatch,
    /// No key could be made or read.
    #[error("making a certificate request")]
    Key(#[from] rcgen::Error),
    /// A file could not be written.
    #[error(transparent)]
    Write(#[from] LedgerError),
    /// A file could not be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// `node.json` is damaged.
    #[error("{path} is damaged; join again with --force")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// The decoder's complaint.
        #[source]
        source: serde_json::Error,
    },
}

/// Who this node is, `node.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// The brain's addresses.
    pub addresses: Vec<String>,
}

/// The identity's files under the state folder.
#[derive(Debug, Clone)]
pub struct NodeFiles {
    dir: PathBuf,
}

impl NodeFiles {
    /// Under `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.to_owned(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn read(&self, name: &str) -> Result<String, JoinError> {
        let path = self.path(name);
        std::fs::read_to_string(&path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => JoinError::NotJoined(path),
            _ => JoinError::Read { path, source },
        })
    }

    /// Who this node is.
    ///
    /// # Errors
    /// [`JoinError::NotJoined`] or what is wrong with the file.
    pub fn who(&self) -> Result<NodeIdentity, JoinError> {
        let text = self.read("node.json")?;
        serde_json::from_str(&text).map_err(|source| JoinError::Damaged {
            path: self.path("node.json"),
            source,
        })
    }

    /// The certificate, key and CA.
    ///
    /// # Errors
    /// As it says.
    pub fn identity(&self) -> Result<Identity, JoinError> {
        Ok(Identity::from_pem(
            &self.read("node.crt")?,
            &self.read("node.key")?,
            &self.read("ca.crt")?,
        )?)
    }

    /// The brain moved.
    ///
    /// # Errors
    /// As it says.
    pub fn save_addresses(&self, addresses: &[String]) -> Result<(), JoinError> {
        let who = NodeIdentity {
            addresses: addresses.to_vec(),
            ..self.who()?
        };
        self.write("node.json", &json(&who))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), JoinError> {
        Ok(write_atomically(&self.path(name), text.as_bytes(), true)?)
    }

    fn make_dir(&self) -> Result<(), JoinError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(|source| JoinError::Read {
                path: self.dir.clone(),
                source,
            })
    }
}

fn json(who: &NodeIdentity) -> String {
    // Ids, names and strings always encode.
    serde_json::to_string_pretty(who).unwrap_or_default()
}

fn csr(key: &rcgen::KeyPair) -> Result<String, JoinError> {
    // Empty: the brain chooses the names.
    let params = rcgen::CertificateParams::new(Vec::<String>::new())?;
    Ok(params.serialize_request(key)?.pem()?)
}

/// Joins and writes the identity.
///
/// # Errors
/// [`JoinError`], each with its cure; nothing is written unless the brain said yes.
pub async fn join(
    files: &NodeFiles,
    token: &JoinToken,
    name: Option<Name>,
    facts: NodeFacts,
    force: bool,
) -> Result<NodeIdentity, JoinError> {
    match files.who() {
        Ok(who) if !force => {
            return Err(JoinError::Already {
                name: who.name,
                node: who.node,
            });
        }
        Err(JoinError::Damaged { path, source }) if !force => {
            return Err(JoinError::Damaged { path, source });
        }
        _ => {}
    }
    files.make_dir()?;
    let key = rcgen::KeyPair::generate()?;
    let request = JoinRequest {
        secret: token.secret.clone(),
        csr_pem: csr(&key)?,
        name,
        facts,
    };
    let (reply, key_pem) = (ask(token, &request).await?, key.serialize_pem());
    let (node, name, cert_pem, ca_pem, addresses) = match reply {
        JoinReply::Joined {
            node,
            name,
            cert_pem,
            ca_pem,
            addresses,
        } => (node, name, cert_pem, ca_pem, addresses),
        JoinReply::Problem { problem } => return Err(JoinError::Refused(Box::new(problem))),
        JoinReply::Unknown => return Err(JoinError::Newer),
    };
    let identity = Identity::from_pem(&cert_pem, &key_pem, &ca_pem)?;
    if identity::node_of(&identity.chain[0])? != node {
        return Err(JoinError::Mismatch);
    }
    if identity::fingerprint(&identity.ca) != token.ca_fingerprint.to_ascii_lowercase() {
        return Err(JoinError::WrongCa {
            address: token.addresses.join(", "),
        });
    }
    // Proves that key and certificate belong together before anything is kept.
    identity::agent_tls(&identity)?;
    let addresses = if addresses.is_empty() {
        token.addresses.clone()
    } else {
        addresses
    };
    let who = NodeIdentity {
        node,
        name,
        addresses,
    };
    files.write("node.key", &key_pem)?;
    files.write("node.crt", &cert_pem)?;
    files.write("ca.crt", &ca_pem)?;
    files.write("node.json", &json(&who))?;
    Ok(who)
}

async fn ask(token: &JoinToken, request: &JoinRequest) -> Result<JoinReply, JoinError> {
    let mut last = String::new();
    for address in &token.addresses {
        let connection = match reach(token, address).await {
            Ok(connection) => connection,
            Err(error) => {
                last = chain(&error);
                if last.contains("not the one this token was made for") {
                    return Err(JoinError::WrongCa {
                        address: address.clone(),
                    });
                }
                if last.contains("expired") || last.contains("not valid yet") || last.contains("NotValidYet")
                {
                    return Err(JoinError::Clock {
                        now: jiff::Timestamp::now().to_string(),
                    });
                }
                continue;
            }
        };
        // From here on the token may be used up: no second address.
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|e| chain(&e))?;
            write_frame(&mut send, request).await.map_err(|e| chain(&e))?;
            let _ = send.finish();
            let reply = read_frame::<JoinReply>(&mut receive, MAX_FRAME).await;
            reply.map_err(|e: CodecError| chain(&e))
        };
        let reply = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| JoinError::Broken("no answer in time".to_owned()))?
            .map_err(JoinError::Broken)?;
        connection.close(0u32.into(), b"done");
        return Ok(reply);
    }
    Err(JoinError::Unreachable {
        addresses: token.addresses.join(", "),
        last,
    })
}

async fn reach(token: &JoinToken, address: &str) -> Result<quinn::Connection, LinkError> {
    let remote = dial::resolve(address).await?;
    let endpoint = dial::client_endpoint(remote)?;
    let tls = identity::join_tls(&token.ca_fingerprint).map_err(LinkError::Identity)?;
    dial::dial(&endpoint, remote, address, tls, dial::IDLE_TIMEOUT).await
}

/// Gets and writes a new certificate for the same key: only the key that joined may renew.
///
/// # Errors
/// As it says; the old certificate stays.
pub async fn renew(files: &NodeFiles, brain: &Brain) -> Result<Identity, JoinError> {
    let key_pem = files.read("node.key")?;
    let key = rcgen::KeyPair::from_pem(&key_pem)?;
    let (cert_pem, ca_pem) = brain.renew(csr(&key)?).await.map_err(JoinError::Broken)?;
    let identity = Identity::from_pem(&cert_pem, &key_pem, &ca_pem)?;
    if identity::node_of(&identity.chain[0])? != files.who()?.node {
        return Err(JoinError::Mismatch);
    }
    identity::agent_tls(&identity)?;
    files.write("ca.crt", &ca_pem)?;
    files.write("node.crt", &cert_pem)?;
    Ok(identity)
}
