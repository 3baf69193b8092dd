//! Joining: the token people copy, and the one exchange that happens without a client certificate.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::id::{Name, NodeId};
use crate::model::NodeFacts;

const PREFIX: &str = "berth1.";

/// What `berth node token` prints: where the brain is, how to recognise it, and a one-time secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Brain addresses, `host:port`, tried in order.
    #[serde(rename = "a")]
    pub addresses: Vec<String>,
    /// SHA-256 of the CA certificate (DER), hex.
    #[serde(rename = "f")]
    pub ca_fingerprint: String,
    /// One-time secret: the token's id, a dot, 64 hex digits.
    #[serde(rename = "s")]
    pub secret: String,
}

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("this is not a join token: {why}; copy the whole line that `berth node token` printed")]
pub struct TokenError {
    why: &'static str,
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken")
            .field("addresses", &self.addresses)
            .field("ca_fingerprint", &self.ca_fingerprint)
            .finish_non_exhaustive()
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{PREFIX}{}", hex_text(&json))
    }
}

// Hex rather than base64: it survives every shell, mail client and double click.
fn hex_text(bytes: &[u8]) -> String {
    hex::encode(bytes)
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let fail = |why| Err(TokenError { why });
        let Some(body) = text.trim().strip_prefix(PREFIX) else {
            return fail("it does not begin with `berth1.`");
        };
        if body.len() > 8192 {
            return fail("it is too long");
        }
        let Ok(json) = hex::decode(body) else {
            return fail("characters are missing or changed");
        };
        let Ok(token) = serde_json::from_slice::<Self>(&json) else {
            return fail("its content is damaged");
        };
        if token.addresses.is_empty() || token.ca_fingerprint.len() != 64 || token.secret.is_empty() {
            return fail("its content is incomplete");
        }
        Ok(token)
    }
}

/// The agent's one message on `berth-join/1`.
#[derive(Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: String,
    /// Certificate request, PEM. The key never leaves the node.
    pub csr_pem: String,
    /// Name the node would like; default its host name.
    #[serde(default)]
    pub name: Option<Name>,
    /// The host.
    pub facts: NodeFacts,
}

impl fmt::Debug for JoinRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinRequest")
            .field("name", &self.name)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

/// The brain's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum JoinReply {
    /// Welcome to the cluster.
    Joined {
        /// Who the node is from now on.
        node: NodeId,
        /// Its name.
        name: Name,
        /// Its certificate, PEM.
        cert_pem: String,
        /// The CA's certificate, PEM.
        ca_pem: String,
        /// Addresses to dial.
        addresses: Vec<String>,
    },
    /// Refused.
    Problem {
        /// Why.
        problem: Problem,
    },
    /// Of a newer brain: the node has not joined.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_and_damage() {
        let token = JoinToken {
            addresses: vec!["10.0.0.1:7443".into()],
            ca_fingerprint: "a".repeat(64),
            secret: "x.y".into(),
        };
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!("  {text}\n").parse::<JoinToken>().unwrap(), token);
        assert!(
            !format!("{token:?}").contains("x.y"),
            "Debug must not show the secret"
        );
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<JoinToken>().is_err());
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".{0,80}") {
            let _ = text.parse::<JoinToken>();
            let _ = format!("berth1.{text}").parse::<JoinToken>();
        }
    }
}
