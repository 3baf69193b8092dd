//! Live load: what nodes and containers use, and are expected to, against what is set aside and enforced.

use serde::{Deserialize, Serialize};

use crate::id::{ContainerId, Name, NodeId};
use crate::model::{Capacity, Reservation};
use crate::protocol::{ContainerUsage, NodeUsage};

/// Live load for `berth top`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct UsageView {
    /// Nodes the caller may see.
    pub nodes: Vec<NodeLoad>,
    /// Containers the caller may see.
    pub containers: Vec<ContainerLoad>,
}

/// A node's load against what is set aside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeLoad {
    /// Which.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// What it has.
    pub capacity: Capacity,
    /// What may be reserved.
    pub allocatable: Reservation,
    /// What is reserved.
    pub reserved: Reservation,
    /// What is used; absent when no fresh report exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<NodeUsage>,
    /// Age of the report, milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
    /// What it is expected to use in the next minutes; absent when it said nothing of late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<ExpectedLoad>,
}

/// What a node is expected to use in the next minutes: of what was measured, and of what was placed there and not measured yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExpectedLoad {
    /// CPU, millicores.
    pub cpu: u32,
    /// CPU that is exceeded one time in a thousand, millicores: placements leave room for it.
    pub cpu_high: u32,
    /// Of `cpu`, system and foreign processes.
    pub cpu_foreign: u32,
    /// Memory, bytes.
    pub memory: u64,
    /// Of it, system and foreign processes.
    pub memory_foreign: u64,
    /// Read from and written to disks, bytes a second.
    pub disk_bps: u64,
    /// Received and sent, bytes a second.
    pub net_bps: u64,
}

/// A container's load against its reservation and limits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ContainerLoad {
    /// Which.
    pub container: ContainerId,
    /// `service.replica`.
    pub name: String,
    /// Its tenant's name.
    pub tenant_name: Name,
    /// Its node's name.
    pub node_name: Name,
    /// What is set aside.
    pub reservation: Reservation,
    /// What is enforced.
    pub limits: crate::model::Limits,
    /// What is used; absent when no fresh report exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<ContainerUsage>,
}
