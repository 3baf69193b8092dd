//! Why containers are where they are, and where they would be, as the API tells it.

use serde::{Deserialize, Serialize};

use super::EventView;
use crate::id::{ContainerId, Name, NodeId};
use crate::model::{DEFAULT_POOL, Reservation};

/// A container's place, compared with all others as if it were placed now, itself taken away first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlacementView {
    /// Which container.
    pub container: ContainerId,
    /// `service.replica`.
    pub name: String,
    /// Where it is; absent while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// Where it would be placed now; absent where no node fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<Name>,
    /// In words: why it is there, or why it waits.
    pub verdict: String,
    /// What it reserves.
    pub asked: Reservation,
    /// CPU that it is expected to use, millicores.
    pub cpu: u32,
    /// Memory that it is expected to use, bytes.
    pub memory: u64,
    /// Nodes that the caller may see: those that fit first, and of these the best first.
    pub nodes: Vec<NodeFit>,
    /// What was decided about it lately, oldest first.
    pub events: Vec<EventView>,
}

/// A node as a place for one container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeFit {
    /// Which.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// The container is there.
    pub here: bool,
    /// It would be placed there.
    pub best: bool,
    /// What stands against it, each in words that follow the node's name; nothing: it fits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub against: Vec<String>,
    /// How good it would be; absent where something stands against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<ScoreParts>,
    /// What is free of what may be reserved there, without the container.
    pub free: Reservation,
    /// Other replicas of its service that are there.
    pub replicas: u32,
    /// What would be in use with it; absent where nothing is known of the node's load.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedShares>,
}

/// How good a node would be: the sum, and its parts. What speaks against a node is negative.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ScoreParts {
    /// The sum of all others: the highest is chosen.
    pub total: i64,
    /// How little and how evenly it would be reserved.
    pub reservation: i64,
    /// How far from overload it would stay.
    pub load: i64,
    /// Replicas of the same service that it has.
    pub replicas: i64,
    /// It alone has replicas of the service.
    pub alone: i64,
    /// Its domain has more replicas than the emptiest, where an even spread is asked for.
    pub spread: i64,
    /// A service that it is to be near is not.
    pub together: i64,
    /// Taints that would rather have no new containers.
    pub taints: i64,
    /// What the service's policy says of it.
    #[serde(default)]
    pub policy: i64,
    /// It has the image already.
    pub image: i64,
    /// Best-effort containers would have to go.
    pub displaces: i64,
}

impl ScoreParts {
    /// Every part with its name.
    pub const fn parts(&self) -> [(&'static str, i64); 10] {
        [
            ("reservation", self.reservation),
            ("load", self.load),
            ("replicas", self.replicas),
            ("alone", self.alone),
            ("spread", self.spread),
            ("together", self.together),
            ("taints", self.taints),
            ("policy", self.policy),
            ("image", self.image),
            ("displaces", self.displaces),
        ]
    }
}

/// What would be in use on a node, in percent of what it has.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExpectedShares {
    /// CPU, on average.
    pub cpu_percent: u32,
    /// CPU that is exceeded one time in a thousand.
    pub cpu_high_percent: u32,
    /// Memory.
    pub memory_percent: u32,
    /// How far that is from overload, in standard deviations; 8 are as good as any more.
    pub deviations: f32,
}

/// What would become of a service, or of what is on a node, with nothing changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForeseenView {
    /// In words.
    pub verdict: String,
    /// Whether all of them would have a place.
    pub fits: bool,
    /// Replicas, by service and number.
    pub replicas: Vec<ForeseenReplica>,
    /// Nodes that would have some of them.
    pub nodes: Vec<ForeseenNode>,
    /// Other replicas that would not go on where they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<ForeseenReplica>,
    /// Who would be preempted for whom, in words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preempted: Vec<String>,
    /// It was looked no further ahead than this: the rest goes on likewise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
}

/// One replica as it would be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForeseenReplica {
    /// `service.replica`.
    pub name: String,
    /// What becomes of it.
    pub fate: Fate,
    /// Where it is now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Name>,
    /// Where it would be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Name>,
    /// Why it would wait, or stay where it should not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What becomes of a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It would be made.
    New,
    /// It would go on as it is.
    Stays,
    /// It would get other limits where it is, without a restart.
    Changed,
    /// Another would take its place.
    Replaced,
    /// It would wait for a node.
    Waits,
    /// It would be stopped.
    Removed,
    /// It would be lost until its node comes back.
    Lost,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

/// A node with what it would have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ForeseenNode {
    /// Its name.
    pub name: Name,
    /// How many of the replicas it would have.
    pub replicas: u32,
    /// How many of them it does not have now.
    pub new: u32,
}

/// Empty nodes whose containers fit elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PackNodes {
    /// The pool whose shared nodes are meant; default `default`.
    #[serde(default = "default_pool")]
    pub pool: Name,
    /// So many of them stay open at least, 1 to 100,000; default 1.
    #[serde(default = "one")]
    pub keep: u32,
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

fn default_pool() -> Name {
    DEFAULT_POOL.parse().expect("a DNS label")
}

const fn one() -> u32 {
    1
}

/// Nodes that are emptied, and those that are not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackView {
    /// In words.
    pub verdict: String,
    /// Nothing was done, only said.
    pub dry_run: bool,
    /// Nodes that are cordoned and drained, in order.
    pub freed: Vec<PackedNode>,
    /// Nodes that stay open, and why.
    pub kept: Vec<KeptNode>,
}

/// A node that is emptied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackedNode {
    /// Its name.
    pub name: Name,
    /// What of it is reserved now, percent of its scarcest resource.
    pub reserved_percent: u64,
    /// Where its containers go.
    pub moves: Vec<PackedMove>,
}

/// A container's move.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PackedMove {
    /// Which container.
    pub container: ContainerId,
    /// `service.replica`.
    pub name: String,
    /// Its tenant's name.
    pub tenant_name: Name,
    /// The node that it goes to.
    pub to: Name,
}

/// A node that stays open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptNode {
    /// Its name.
    pub name: Name,
    /// Why it can't be emptied.
    pub why: String,
}
