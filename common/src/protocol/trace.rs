//! The way of a packet between two containers, as one of their nodes has it.

use serde::{Deserialize, Serialize};

use crate::id::ContainerId;
use crate::model::{HostNumber, Vni};

/// Which half of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// From the container to the wire, or to the other container on the same node.
    Out,
    /// From the wire to the container.
    In,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

/// What a node is asked of a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRequest {
    /// Which half.
    pub half: Half,
    /// The container on this node.
    pub container: ContainerId,
    /// The network.
    pub vni: Vni,
    /// The container's endpoint there.
    pub host: HostNumber,
    /// The other's.
    pub other: HostNumber,
    /// The service's own address that the packet is sent to, if it is not sent to the other directly.
    #[serde(default)]
    pub service: Option<HostNumber>,
}

/// What becomes of the packet somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It goes on.
    Passes,
    /// It ends here.
    Drops,
    /// Nobody can tell.
    #[serde(other)]
    Unknown,
}

/// One place on the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Hop {
    /// Where: `container`, `service address`, `bridge`, `tunnel`, `host`, `wire` …
    pub place: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// How, or why.
    pub text: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

impl Hop {
    /// It goes on.
    pub fn passes(place: &str, text: impl Into<String>) -> Self {
        Self::new(place, Verdict::Passes, text.into())
    }

    /// It ends here.
    pub fn drops(place: &str, text: impl Into<String>) -> Self {
        Self::new(place, Verdict::Drops, text.into())
    }

    /// Nobody can tell.
    pub fn unknown(place: &str, text: impl Into<String>) -> Self {
        Self::new(place, Verdict::Unknown, text.into())
    }

    fn new(place: &str, verdict: Verdict, text: String) -> Self {
        Self {
            place: place.to_owned(),
            verdict,
            text,
            cure: None,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }
}
