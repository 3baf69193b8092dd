//! What nodes of different sites know of one another, so that packets between them are encrypted.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// A WireGuard public key (X25519, RFC 7748), written as `wg` writes it: base64 of 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct WireGuardKey(pub [u8; 32]);

/// It is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a WireGuard key is 32 bytes in base64, 44 characters")]
pub struct NoKey;

impl FromStr for WireGuardKey {
    type Err = NoKey;

    fn from_str(text: &str) -> Result<Self, NoKey> {
        let bytes = STANDARD.decode(text).map_err(|_| NoKey)?;
        bytes.try_into().map(Self).map_err(|_| NoKey)
    }
}

impl TryFrom<String> for WireGuardKey {
    type Error = NoKey;

    fn try_from(text: String) -> Result<Self, NoKey> {
        text.parse()
    }
}

impl From<WireGuardKey> for String {
    fn from(key: WireGuardKey) -> Self {
        key.to_string()
    }
}

impl fmt::Display for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for WireGuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a host speaks WireGuard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WireGuard {
    /// Its public key, base64.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub key: WireGuardKey,
    /// The UDP port that it listens on.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_as_wg_does_and_nothing_else_is_one() {
        let text = "8bdQrVLqiw3ZoHCucNh1YfH0iCWuyStniRr8t7H24Fk=";
        let key: WireGuardKey = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        assert_eq!(serde_json::to_string(&key).unwrap(), format!("\"{text}\""));
        for bad in [
            "",
            "8bdQ",
            "not base64 at all, however long it may be ..",
            &"A".repeat(88),
        ] {
            assert_eq!(bad.parse::<WireGuardKey>(), Err(NoKey), "{bad}");
        }
    }
}
