//! Nodes as the API shows them, joins them and changes them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::model::{NodeRecord, NodeState, Overcommit, Reservation, Taint, Taken, UnixMillis};

/// A node with how it stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeView {
    /// What is kept.
    #[serde(flatten)]
    pub record: NodeRecord,
    /// Owner's name, for private nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_name: Option<Name>,
    /// How it stands.
    pub state: NodeState,
    /// Milliseconds since it was last heard from; absent if never by this brain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silent_ms: Option<u64>,
    /// The address it dials from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What reservations may add up to (R4).
    pub allocatable: Reservation,
    /// What they add up to.
    pub taken: Taken,
    /// Generation that its agent acts on.
    pub applied: u64,
    /// Containers still to leave while it drains or has a no-execute taint that they don't tolerate, and what holds them (R9).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drain_waits: Vec<String>,
}

/// A new join token.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateJoinToken {
    /// Make a private node of this tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub private: Option<Name>,
    /// Labels the node will carry.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Taints it will have from its first moment on, as in [`UpdateNode`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub taints: Vec<Taint>,
    /// The pool it will be in; default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Seconds it can be used, 1 to 604,800; default 3,600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_secs: Option<u64>,
    /// Addresses (host:port) at which the node reaches the brain; default those of the brain's configuration.
    #[serde(default)]
    pub addresses: Vec<String>,
}

/// The only time a join token is shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedJoinToken {
    /// The token for `berth-agent join`.
    pub token: String,
    /// The line that makes a host with nothing but Linux a node, the token in it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub install: String,
    /// When it stops working.
    pub expires_at: UnixMillis,
}

/// Changes to a node; what is absent stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdateNode {
    /// Labels, replacing all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Taints, replacing all: `key:effect` or `key=value:effect`, effect one of `no-schedule`, `prefer-no-schedule`, `no-execute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub taints: Option<Vec<Taint>>,
    /// The pool it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// An overcommit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overcommit: Option<Overcommit>,
    /// Have no overcommit of its own any more, but its pool's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overcommit_of_pool: bool,
}
