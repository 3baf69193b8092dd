//! Image references and digests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{TenantId, clip};
use crate::model::{Architecture, UnixMillis};
use crate::units::Bytes;

/// A normalised image reference: registry/repository with a tag and/or a digest.
///
/// Docker's short forms are completed (`nginx` → `docker.io/library/nginx:latest`), so that two spellings of one image
/// are one image.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ImageRef(Box<str>);

/// Why a reference or digest was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not an image reference: {why}")]
pub struct ImageRefError {
    value: String,
    why: &'static str,
}

impl ImageRef {
    /// The complete reference.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Registry host with port.
    pub fn registry(&self) -> &str {
        self.0.split_once('/').map_or("", |(host, _)| host)
    }

    /// Repository path below the registry.
    pub fn repository(&self) -> &str {
        let rest = self.0.split_once('/').map_or("", |(_, rest)| rest);
        let rest = rest.split_once('@').map_or(rest, |(name, _)| name);
        rest.rsplit_once(':').map_or(rest, |(name, _)| name)
    }

    /// The tag, if one is named.
    pub fn tag(&self) -> Option<&str> {
        let name = self.0.split_once('@').map_or(&*self.0, |(name, _)| name);
        let last = name.rsplit_once('/').map_or(name, |(_, last)| last);
        last.split_once(':').map(|(_, tag)| tag)
    }

    /// The digest, if one is named.
    pub fn digest(&self) -> Option<Digest> {
        self.0.split_once('@').and_then(|(_, digest)| digest.parse().ok())
    }

    /// The shortest form a person would type.
    pub fn familiar(&self) -> &str {
        let text = &*self.0;
        let Some(rest) = text.strip_prefix("docker.io/") else {
            return text;
        };
        match rest.split_once('/') {
            Some(("library", official)) if !official.contains('/') => official,
            // Without its registry the first part would be read as one.
            Some((first, _)) if is_host(first) => text,
            _ => rest,
        }
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;
    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let fail = |why| {
            Err(ImageRefError {
                value: clip(text, 60),
                why,
            })
        };
        if text.is_empty() || text.len() > 512 {
            return fail("it must have 1 to 512 characters");
        }
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => match digest.parse::<Digest>() {
                Ok(digest) => (name, Some(digest)),
                Err(_) => return fail("what follows '@' must be sha256: and 64 hex digits"),
            },
            None => (text, None),
        };
        let (head, tag) = match name.rsplit_once(':') {
            Some((head, tag)) if !tag.contains('/') => (head, Some(tag)),
            _ => (name, None),
        };
        if let Some(tag) = tag {
            let ok = (1..=128).contains(&tag.len())
                && !tag.starts_with(['.', '-'])
                && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'));
            if !ok {
                return fail("the tag may hold up to 128 of A-Z a-z 0-9 _ . -");
            }
        }
        let (registry, rest) = match head.split_once('/') {
            Some((first, rest)) if is_host(first) => (first, rest),
            _ => (HUB, head),
        };
        let registry = if registry == "index.docker.io" {
            HUB
        } else {
            registry
        };
        if let Err(why) = check_host(registry) {
            return fail(why);
        }
        let repository = if registry == HUB && !rest.contains('/') {
            format!("library/{rest}")
        } else {
            rest.to_owned()
        };
        if repository.len() > 255 {
            return fail("the repository name has more than 255 characters");
        }
        if !repository.split('/').all(is_path_component) {
            return fail(
                "repository names are parts of a-z 0-9 between slashes; inside a part . _ __ and - may separate",
            );
        }
        let mut full = format!("{registry}/{repository}");
        match (tag, &digest) {
            (Some(tag), _) => full.push_str(&format!(":{tag}")),
            (None, None) => full.push_str(":latest"),
            (None, Some(_)) => {}
        }
        if let Some(digest) = digest {
            full.push_str(&format!("@{digest}"));
        }
        Ok(Self(full.into()))
    }
}

/// Where images without a registry come from.
const HUB: &str = "docker.io";

const fn word(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b == b'_'
}

/// Whether a reference's first part names a registry.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost"
}

/// `domain` of the distribution grammar: a name of alphanumeric labels, or an IPv6 address in brackets, and a port.
fn check_host(host: &str) -> Result<(), &'static str> {
    let (name, port) = if let Some(rest) = host.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return Err("the registry's IPv6 address lacks its closing bracket");
        };
        let plain = address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        if !plain || address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("the registry's address in brackets is not an IPv6 address");
        }
        match (port.is_empty(), port.strip_prefix(':')) {
            (true, _) => (None, None),
            (false, Some(port)) => (None, Some(port)),
            (false, None) => return Err("after the registry's address only a port may follow"),
        }
    } else {
        match host.split_once(':') {
            Some((name, port)) => (Some(name), Some(port)),
            None => (Some(host), None),
        }
    };
    let label = |label: &str| {
        let (first, last) = (label.bytes().next(), label.bytes().next_back());
        first.is_some_and(|b| b.is_ascii_alphanumeric())
            && last.is_some_and(|b| b.is_ascii_alphanumeric())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    if name.is_some_and(|name| name.len() > 253 || !name.split('.').all(label)) {
        return Err(
            "the registry host is malformed: parts of letters, digits and inner hyphens between dots",
        );
    }
    let digits = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    if port.is_some_and(|port| !digits(port) || !port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err("the registry's port must be 1 to 65535");
    }
    Ok(())
}

/// `path-component` of the distribution grammar: alphanumerics, with `.`, `_`, `__` or hyphens between them.
fn is_path_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator =
        |text: &str| matches!(text, "." | "_" | "__") || !text.is_empty() && text.bytes().all(|b| b == b'-');
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part
            .split(alphanumeric)
            .filter(|gap| !gap.is_empty())
            .all(separator)
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for ImageRef {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A sha256 content digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// From the 32 bytes of a finished sha256.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// The digest of `data`.
    pub fn of(data: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(data).into())
    }

    /// The 64 hex digits, without `sha256:`; safe as a file name.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl FromStr for Digest {
    type Err = ImageRefError;
    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        let fail = || ImageRefError {
            value: clip(text, 80),
            why: "a digest is sha256: and 64 lower-case hex digits",
        };
        let digits = text.strip_prefix("sha256:").ok_or_else(fail)?;
        if digits.len() != 64 || digits.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail());
        }
        let mut raw = [0; 32];
        hex::decode_to_slice(digits, &mut raw).map_err(|_| fail())?;
        Ok(Self(raw))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// An image that was loaded into the brain from an archive; agents fetch its blobs over the link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LoadedImage {
    /// Whose it is; no other tenant sees it (R6).
    pub tenant: TenantId,
    /// Its name.
    pub reference: ImageRef,
    /// Digest of the manifest of this image (one platform).
    pub manifest: Digest,
    /// Every blob it needs with its size: manifest, config, layers.
    pub blobs: Vec<(Digest, Bytes)>,
    /// The architecture that it is for; none of one that an older brain loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<Architecture>,
    /// When it was loaded.
    pub loaded_at: UnixMillis,
}

#[cfg(feature = "openapi")]
mod schema {
    use super::{Digest, ImageRef};
    use utoipa::openapi::{RefOr, schema::Schema};
    impl utoipa::PartialSchema for ImageRef {
        fn schema() -> RefOr<Schema> {
            crate::openapi::string_schema(
                "an image reference; short forms are completed as Docker does",
                None,
            )
        }
    }
    impl utoipa::ToSchema for ImageRef {}
    impl utoipa::PartialSchema for Digest {
        fn schema() -> RefOr<Schema> {
            crate::openapi::string_schema("a content digest", Some("^sha256:[0-9a-f]{64}$"))
        }
    }
    impl utoipa::ToSchema for Digest {}
}

#[cfg(test)]
mod tests;
