//! Tenants, their quotas, and the tokens that speak for them.

use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision, TenantId, TokenId};
use crate::model::{Reservation, UnixMillis};
use crate::units::{Bytes, Millicores};

/// What a tenant may reserve at most; zero fields are no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Sum of CPU reservations, millicores; 0: unlimited.
    #[serde(default)]
    pub cpu: Millicores,
    /// Sum of memory reservations, bytes; 0: unlimited.
    #[serde(default)]
    pub memory: Bytes,
    /// Sum of disk reservations, bytes; 0: unlimited.
    #[serde(default)]
    pub disk: Bytes,
    /// Containers; 0: unlimited.
    #[serde(default)]
    pub containers: u32,
}

impl Quota {
    /// Why `wanted` in `containers` containers does not fit, naming the resource; none if it fits.
    pub fn exceeded_by(&self, wanted: Reservation, containers: u32) -> Option<String> {
        if self.cpu.0 > 0 && wanted.cpu > self.cpu {
            return Some(format!("CPU: {} of {} cores", wanted.cpu, self.cpu));
        }
        if self.memory.0 > 0 && wanted.memory > self.memory {
            return Some(format!("memory: {} of {}", wanted.memory, self.memory));
        }
        if self.disk.0 > 0 && wanted.disk > self.disk {
            return Some(format!("disk: {} of {}", wanted.disk, self.disk));
        }
        if self.containers > 0 && containers > self.containers {
            return Some(format!("containers: {containers} of {}", self.containers));
        }
        None
    }
}

/// A tenant as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TenantRecord {
    /// Its id.
    pub id: TenantId,
    /// Unique name.
    pub name: Name,
    /// What it may reserve.
    #[serde(default)]
    pub quota: Quota,
    /// CPU weight of its slice on every node, 1 to 10,000; default 100.
    #[serde(default = "hundred")]
    pub cpu_weight: u16,
    /// Whether its services may be `privileged`.
    #[serde(default)]
    pub privileged: bool,
    /// The highest priority that its services may have without an administrator, -1,000 to 1,000; default 0.
    #[serde(default)]
    pub max_priority: i32,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

const fn hundred() -> u16 {
    100
}

/// What a token may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Role {
    /// Everything, in every tenant.
    Admin,
    /// Everything inside one tenant, nothing outside.
    Tenant {
        /// Which.
        tenant: TenantId,
    },
    /// Reading the brain's metrics, and nothing else.
    Metrics,
}

/// An API token. Only a hash of its secret is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenRecord {
    /// Its id, the public part of the token.
    pub id: TokenId,
    /// What it may do.
    #[serde(flatten)]
    pub role: Role,
    /// What it is for, in the maker's words.
    #[serde(default)]
    pub note: String,
    /// SHA-256 (hex) of the secret. The secret has 256 random bits, so a slow hash would add nothing.
    pub secret_hash: String,
    /// When it stops working; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<UnixMillis>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}
