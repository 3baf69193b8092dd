//! Nodes: hosts with an agent.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::id::{Generation, Name, NodeId, Revision, TenantId};
use crate::model::pool::own_overcommit;
use crate::model::{PoolFacts, Reservation, Taint, UnixMillis, WireGuard, default_pool};
use crate::units::{Bytes, Millicores};

/// Whose a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NodeKind {
    /// The platform's: every tenant's containers may use it.
    Shared,
    /// One tenant's: only its containers may.
    Private {
        /// The owner.
        tenant: TenantId,
    },
}

/// What a node offers in all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Capacity {
    /// CPU in millicores.
    pub cpu: Millicores,
    /// Memory in bytes.
    pub memory: Bytes,
    /// Disk where layers live, bytes.
    pub disk: Bytes,
}

/// By how much reservations may exceed capacity, in percent of it; 100 is no overcommit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Overcommit {
    /// CPU, percent.
    pub cpu_percent: u32,
    /// Memory, percent.
    pub memory_percent: u32,
}

impl Default for Overcommit {
    fn default() -> Self {
        Self {
            cpu_percent: 100,
            memory_percent: 100,
        }
    }
}

/// Processor architecture in OCI words (`amd64`, `arm64`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct Architecture(pub String);

/// Where a host's packets of other nodes' networks come from and go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Underlay {
    /// Its address there.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub address: IpAddr,
    /// The MTU there, bytes.
    pub mtu: u32,
    /// The UDP port that VXLAN is spoken on.
    pub port: u16,
    /// How hosts of other sites reach it; none of one that can't encrypt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuard>,
    /// The IPv6 address of the same link, at which the world reaches published ports; none of a host without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address6: Option<Ipv6Addr>,
}

/// What an agent says about its host; sent in Hello and when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeFacts {
    /// Host name.
    pub hostname: String,
    /// The agent's version.
    pub agent_version: String,
    /// `PRETTY_NAME` of the operating system.
    pub os: String,
    /// Kernel release.
    pub kernel: String,
    /// Architecture.
    pub arch: Architecture,
    /// What the hardware has.
    pub capacity: Capacity,
    /// Kept back for the system and berth itself.
    pub system_reserve: Capacity,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// containerd's version, or why it can't be reached.
    pub runtime: String,
    /// Snapshotter in use.
    pub snapshotter: String,
    /// Whether disk limits are enforced by the kernel.
    pub disk_limit_hard: bool,
    /// Kernel boot id, to tell a reboot from a reconnect.
    pub boot_id: String,
    /// Where other nodes reach its networks; none of an agent that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub underlay: Option<Underlay>,
    /// What it has for volumes; none of an agent that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volumes: Option<PoolFacts>,
    /// What this host can't do, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
}

impl NodeFacts {
    /// Of a host of which no more is known than its name and what it has: an amd64 with cgroup v2.
    pub fn of(hostname: &str, capacity: Capacity) -> Self {
        Self {
            hostname: hostname.to_owned(),
            agent_version: String::new(),
            os: String::new(),
            kernel: String::new(),
            arch: Architecture("amd64".to_owned()),
            capacity,
            system_reserve: Capacity::default(),
            cgroup_version: 2,
            runtime: String::new(),
            snapshotter: String::new(),
            disk_limit_hard: false,
            boot_id: String::new(),
            underlay: None,
            volumes: None,
            warnings: Vec::new(),
        }
    }

    /// Capacity less the system reserve, times overcommit: what reservations may add up to (R4).
    pub fn allocatable(&self, overcommit: Overcommit) -> Reservation {
        let cpu = self.capacity.cpu.saturating_sub(self.system_reserve.cpu);
        let memory = self.capacity.memory.saturating_sub(self.system_reserve.memory);
        let cpu = u64::from(cpu.0) * u64::from(overcommit.cpu_percent) / 100;
        let memory = u128::from(memory.0) * u128::from(overcommit.memory_percent) / 100;
        Reservation {
            cpu: Millicores(u32::try_from(cpu).unwrap_or(u32::MAX)),
            memory: Bytes(u64::try_from(memory).unwrap_or(u64::MAX)),
            disk: self.capacity.disk.saturating_sub(self.system_reserve.disk),
        }
    }
}

/// A node as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NodeRecord {
    /// Its id; the same that its certificate carries.
    pub id: NodeId,
    /// Unique name; the host's name unless the token said otherwise.
    pub name: Name,
    /// Whose it is.
    #[serde(flatten)]
    pub kind: NodeKind,
    /// Labels for placement.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// What keeps containers away that do not tolerate it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub taints: Vec<Taint>,
    /// Takes no new containers.
    #[serde(default)]
    pub cordoned: bool,
    /// Its containers are being moved away.
    #[serde(default)]
    pub draining: bool,
    /// The pool it is in.
    #[serde(default = "default_pool")]
    pub pool: Name,
    /// Reservations may exceed capacity by this much; none: as its pool says.
    #[serde(default, with = "own_overcommit", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Overcommit>))]
    pub overcommit: Option<Overcommit>,
    /// What it last said about itself.
    pub facts: NodeFacts,
    /// Version of its desired set.
    pub generation: Generation,
    /// It was declared lost and has not come back. Kept, so that a restarted brain does not forget.
    #[serde(default)]
    pub lost: bool,
    /// SHA-256 fingerprint (hex) of the public key its certificate carries; only that key may renew.
    #[serde(default)]
    pub key_fingerprint: String,
    /// When it joined.
    pub joined_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// The label that every node has of itself: its value is the node's name.
pub const NODE_LABEL: &str = "node";

impl NodeRecord {
    /// The value of a label, the one of its name included.
    pub fn label(&self, key: &str) -> Option<&str> {
        if key == NODE_LABEL {
            return Some(self.name.as_str());
        }
        self.labels.get(key).map(String::as_str)
    }

    /// One that has only just come: it takes containers, and nothing was said of it.
    pub fn new(id: NodeId, name: Name, kind: NodeKind, facts: NodeFacts) -> Self {
        Self {
            id,
            name,
            kind,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            cordoned: false,
            draining: false,
            pool: default_pool(),
            overcommit: None,
            facts,
            generation: Generation(0),
            lost: false,
            key_fingerprint: String::new(),
            joined_at: UnixMillis(0),
            revision: Revision(0),
        }
    }
}

/// How a node stands right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heard from within its lease.
    Ready,
    /// Not heard from, lease not over yet.
    Silent,
    /// Its lease is over.
    Lost,
}

/// What of a node is set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Taken {
    /// Sum of reservations.
    pub reserved: Reservation,
    /// Number of containers bound.
    pub containers: u32,
    /// What best-effort containers use beside the reservations, as long as nobody reserves it.
    #[serde(default)]
    pub lent: Reservation,
}
