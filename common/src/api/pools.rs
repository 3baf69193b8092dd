//! Pools of nodes, as they are asked for and shown.

use serde::{Deserialize, Serialize};

use crate::id::Name;
use crate::model::{Overcommit, Reservation};

/// A pool of nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolView {
    /// Its name.
    pub name: Name,
    /// That of its nodes that have none of their own.
    pub overcommit: Overcommit,
    /// How many of its nodes the caller may see.
    pub nodes: u32,
    /// What reservations on these may add up to.
    pub allocatable: Reservation,
    /// What they add up to.
    pub reserved: Reservation,
}

/// A new pool, or a new overcommit of one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PutPool {
    /// By how much reservations may exceed capacity, in percent of it; default 100, which is none.
    #[serde(default)]
    pub overcommit: Overcommit,
}
