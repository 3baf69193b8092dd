//! Typed identifiers and names.
//!
//! Owns how objects are identified on the wire, in the store and on disk. Refuses anything that is not in canonical
//! form: ids and names end up in paths, cgroup names and containerd labels, so they are parsed once, at the edge,
//! and trusted afterwards.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
const ID_BYTES: usize = 10;
/// Characters in the text form of every id.
pub const ID_LEN: usize = 16;

/// Why an id or a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 16 characters of `a`–`z`, `2`–`7`.
    #[error("{kind} id {value:?} is not {ID_LEN} characters of a-z and 2-7")]
    Malformed {
        /// Which id type was parsed.
        kind: &'static str,
        /// The text, cut to 40 characters.
        value: String,
    },
    /// Not a DNS label.
    #[error(
        "name {value:?} is not valid: use 1 to 63 characters of a-z, 0-9 and '-', beginning with a letter and not ending with '-'"
    )]
    Name {
        /// The text, cut to 40 characters.
        value: String,
    },
}

/// `text` shortened to `max` characters, so that hostile input can't flood an error message.
pub fn clip(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(max).collect();
    cut.push('…');
    cut
}

fn encode(raw: &[u8; ID_BYTES]) -> [u8; ID_LEN] {
    // 80 bits are exactly 16 groups of 5.
    let mut out = [0u8; ID_LEN];
    let mut bits: u128 = 0;
    for byte in raw {
        bits = (bits << 8) | u128::from(*byte);
    }
    for (i, slot) in out.iter_mut().enumerate() {
        let shift = 5 * (ID_LEN - 1 - i);
        *slot = ALPHABET[((bits >> shift) & 31) as usize];
    }
    out
}

fn decode(text: &str) -> Option<[u8; ID_BYTES]> {
    let bytes = text.as_bytes();
    if bytes.len() != ID_LEN {
        return None;
    }
    let mut bits: u128 = 0;
    for byte in bytes {
        let value = match byte {
            b'a'..=b'z' => byte - b'a',
            b'2'..=b'7' => byte - b'2' + 26,
            _ => return None,
        };
        bits = (bits << 5) | u128::from(value);
    }
    let mut raw = [0u8; ID_BYTES];
    raw.copy_from_slice(&bits.to_be_bytes()[16 - ID_BYTES..]);
    Some(raw)
}

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; ID_BYTES]);

        impl $name {
            /// An id from 80 given bits; plans take ids as inputs, so randomness stays with the caller.
            pub const fn from_bytes(raw: [u8; ID_BYTES]) -> Self {
                Self(raw)
            }

            /// A fresh id from the operating system's randomness.
            pub fn random() -> Self {
                Self(rand::random())
            }

            /// The 80 bits.
            pub const fn bytes(self) -> [u8; ID_BYTES] {
                self.0
            }

            /// Another id that follows from this one, for what is counted from it; the number 0 gives itself.
            pub const fn turned(self, number: u16) -> Self {
                let [more, less] = number.to_be_bytes();
                let mut raw = self.0;
                raw[8] ^= more;
                raw[9] ^= less;
                Self(raw)
            }

            /// 64 of its bits, for what is to differ from id to id.
            pub const fn bits(self) -> u64 {
                let [_, _, a, b, c, d, e, f, g, h] = self.0;
                u64::from_be_bytes([a, b, c, d, e, f, g, h])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = encode(&self.0);
                f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($kind, ":{}"), self)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                decode(text)
                    .map(Self)
                    .ok_or_else(|| IdError::Malformed { kind: $kind, value: clip(text, 40) })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }

        #[cfg(feature = "openapi")]
        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                crate::openapi::string_schema(concat!($kind, " id"), Some("^[a-z2-7]{16}$"))
            }
        }
        #[cfg(feature = "openapi")]
        impl utoipa::ToSchema for $name {}
    };
}

typed_id!(
    /// A node: a host with an agent.
    NodeId, "node");
typed_id!(
    /// A tenant.
    TenantId, "tenant");
typed_id!(
    /// A service of a tenant.
    ServiceId, "service");
typed_id!(
    /// One container: a replica of a service, bound to a node for life.
    ContainerId, "container");
typed_id!(
    /// A volume: data that follows its container.
    VolumeId, "volume");
typed_id!(
    /// The state of a volume at one moment, on one node and on those that hold copies.
    SnapshotId, "snapshot");
typed_id!(
    /// One API or join token (not its secret).
    TokenId, "token");

/// A DNS label (RFC 1123, starting with a letter): the name of a tenant, service, node or image context.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Name(Box<str>);

impl Name {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let bytes = text.as_bytes();
        let ok = (1..=63).contains(&bytes.len())
            && bytes[0].is_ascii_lowercase()
            && bytes[bytes.len() - 1] != b'-'
            && bytes
                .iter()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if ok {
            Ok(Self(text.into()))
        } else {
            Err(IdError::Name {
                value: clip(text, 40),
            })
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for Name {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Name {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        crate::openapi::string_schema("a DNS label", Some("^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"))
    }
}
#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Name {}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The following one.
            #[must_use]
            pub const fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter!(
    /// Version of a node's desired set; grows by one for every change of that node's set (R8).
    Generation);
counter!(
    /// Version of the whole store; every transaction raises it by one. API lists carry it, watches resume from it.
    Revision);
counter!(
    /// Fencing number of who may mount a volume for writing; grows with every hand-over (R2).
    Epoch);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_round_trip(raw in any::<[u8; ID_BYTES]>()) {
            let id = ContainerId::from_bytes(raw);
            prop_assert_eq!(id.to_string().parse::<ContainerId>().unwrap(), id);
        }

        #[test]
        fn id_text_orders_like_its_bytes_never_panics(text in ".{0,40}") {
            let _ = text.parse::<NodeId>();
            let _ = text.parse::<Name>();
        }
    }

    #[test]
    fn names_are_dns_labels() {
        for good in [
            "a",
            "web",
            "web-1",
            "a234567890123456789012345678901234567890123456789012345678901bc",
        ] {
            assert!(good.parse::<Name>().is_ok(), "{good}");
        }
        let long = "a".repeat(10_000);
        for bad in [
            "",
            "-a",
            "a-",
            "1a",
            "A",
            "a_b",
            "a.b",
            "ä",
            "a/../b",
            long.as_str(),
        ] {
            let error = bad.parse::<Name>().unwrap_err().to_string();
            assert!(
                error.len() < 300,
                "an error must not echo a hostile name whole: {error}"
            );
        }
    }
}
