//! Whether nodes reach each other's networks: what is asked of a node, and what it measured.
//!
//! Each node that takes part gets a network with [`Vni::PROBE`](crate::model::Vni::PROBE) and one endpoint on it, as a container
//! would have it. So what is measured is what containers get: the same links, entries, filters and encryption.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::id::NodeId;
use crate::model::HostNumber;

/// From the brain on the stream of a probe, after the request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ProbeStep {
    /// These are ready, too: measure the way to each.
    Go {
        /// They.
        peers: Vec<ProbePeer>,
    },
    /// Of a newer brain; nothing is done.
    #[serde(other)]
    Unknown,
}

/// One that a node measures the way to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbePeer {
    /// The node.
    pub node: NodeId,
    /// Its endpoint.
    pub host: HostNumber,
}

/// Questions sent and answered, and how long answers took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Echoes {
    /// Sent.
    pub sent: u32,
    /// Answered within a second.
    pub answered: u32,
    /// The fastest answer, microseconds; 0 without any.
    pub min_us: u32,
    /// All of them, mean.
    pub mean_us: u32,
    /// The slowest.
    pub max_us: u32,
}

impl Echoes {
    /// Lost of what was sent, percent, rounded up.
    pub fn loss_percent(&self) -> u32 {
        let lost = self.sent.saturating_sub(self.answered);
        (u64::from(lost) * 100).div_ceil(u64::from(self.sent.max(1))) as u32
    }
}

/// What one node measured of the way to another and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// The other.
    pub node: NodeId,
    /// Pings from host to host, outside of all networks; none: this host lets the agent send none.
    #[serde(default)]
    pub underlay: Option<Echoes>,
    /// The largest IP packet that comes back from host to host without being fragmented, bytes; none: none did, or none was sent.
    #[serde(default)]
    pub underlay_mtu: Option<u32>,
    /// Pings from endpoint to endpoint.
    pub network: Echoes,
    /// The largest IP packet that comes back from endpoint to endpoint without being fragmented, bytes.
    #[serde(default)]
    pub network_mtu: Option<u32>,
    /// Datagrams come back. Unlike pings', their checksums are left to the network card.
    pub udp: bool,
    /// A connection brings back all that it was given.
    pub tcp: bool,
}

/// Whom a node heard: where answers don't arrive, this says in which direction packets are lost.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// Nodes' endpoints that datagrams or connections came from.
    pub hosts: BTreeSet<HostNumber>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_rounded_up_so_that_one_lost_is_seen() {
        let lost = |sent, answered| {
            let echoes = Echoes {
                sent,
                answered,
                ..Echoes::default()
            };
            echoes.loss_percent()
        };
        let cases = [
            ((50, 50), 0),
            ((50, 49), 2),
            ((1000, 999), 1),
            ((4, 0), 100),
            ((0, 0), 0),
            ((1, 5), 0),
        ];
        for ((sent, answered), expected) in cases {
            assert_eq!(lost(sent, answered), expected, "{answered} of {sent}");
        }
    }
}
