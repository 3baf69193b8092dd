//! Checks of the network between nodes, and the way of one packet, as the API takes and shows them.

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::id::Name;
use crate::protocol::Verdict;

/// Check whether nodes reach each other's networks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CheckNetworks {
    /// These; empty: all that the caller may see.
    #[serde(default)]
    pub nodes: Vec<Name>,
}

/// How packets of networks get from one node to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodePath {
    /// As they are.
    Direct,
    /// Encrypted: the nodes are at different sites.
    Wireguard,
    /// Not at all.
    None,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

/// What is wrong between two nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// What was seen.
    pub problem: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// Two nodes, and what was measured between them; of the two directions the worse.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PairCheck {
    /// They.
    pub nodes: [Name; 2],
    /// How packets get there.
    pub path: NodePath,
    /// Mean time to an answer, microseconds; none without any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_us: Option<u32>,
    /// Pings without an answer, percent; none where none were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_percent: Option<u32>,
    /// The largest packet of a container that gets there and back whole, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The largest that should.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_mtu: Option<u32>,
    /// What is wrong; nothing: all is well.
    #[serde(default)]
    pub findings: Vec<Finding>,
}

/// One line of a check's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum CheckEvent {
    /// It goes on.
    Progress {
        /// Ways measured, each direction one.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// A node takes no part.
    Absent {
        /// Which.
        node: Name,
        /// Why.
        problem: Problem,
    },
    /// Two nodes were checked.
    Pair {
        /// How they stand.
        pair: PairCheck,
    },
    /// Everything was said.
    Done,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

/// One place on a packet's way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HopView {
    /// On which node; none: between nodes, or nowhere yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// Where there.
    pub place: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// How, or why.
    pub text: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// A packet's way from a container to another, or to a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Trace {
    /// The container that it leaves.
    pub from: String,
    /// Where it is sent.
    pub to: String,
    /// Whether it arrives, by all that is known.
    pub verdict: Verdict,
    /// Its way, in order. After a place where it ends the rest of the way is not told.
    pub hops: Vec<HopView>,
}
