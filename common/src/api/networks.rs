//! Networks as the API takes and shows them.

use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision};
use crate::model::UnixMillis;

/// A new network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateNetwork {
    /// Unique in the tenant.
    pub name: Name,
    /// Its IPv4 addresses, /8 to /29, such as `10.80.0.0/16`; none: berth chooses. Other tenants may have the same, and hosts
    /// may route them elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<String>,
}

/// A network with how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkView {
    /// Its name.
    pub name: Name,
    /// The tenant's name.
    pub tenant_name: Name,
    /// Its identifier on the wire.
    pub vni: u32,
    /// Its IPv4 addresses.
    pub cidr: String,
    /// Its IPv6 addresses.
    pub cidr6: String,
    /// The gateway's IPv4 address, on every node.
    pub gateway: String,
    /// Addresses in use.
    pub endpoints: usize,
    /// Nodes that it is on.
    pub nodes: Vec<Name>,
    /// Services on it.
    pub services: Vec<Name>,
    /// Containers on it; only when a single network is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<EndpointView>,
    /// Nodes between which it does not work, and why (R9); only when a single network is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// A service's own address on a network: its replicas there take turns behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceAddress {
    /// The network.
    pub network: Name,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Its IPv6 address.
    pub ipv6: String,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EndpointView {
    /// The network.
    pub network: Name,
    /// `service.replica`.
    pub container: String,
    /// Where it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// Its IPv4 address.
    pub ipv4: String,
    /// Its IPv6 address.
    pub ipv6: String,
    /// Its hardware address.
    pub mac: String,
}
