//! Volumes on the link: what the brain wants of those on a node.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Epoch, NodeId, SnapshotId, TenantId, VolumeId};
use crate::model::{RollBack, SnapshotHooks, VolumeSource};
use crate::units::Bytes;

/// Most volumes of one message of an agent.
pub const VOLUMES_A_MESSAGE: usize = 50;

/// Which volume a container's mount is; where, its spec says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredMount {
    /// The volume.
    pub volume: VolumeId,
    /// The epoch under which it may be written here (R2).
    pub epoch: Epoch,
    /// The snapshot that its spec names: that is read, and nobody writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotId>,
}

/// One volume of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredVolume {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Most that it holds, bytes.
    pub size: Bytes,
    /// Fencing number.
    pub epoch: Epoch,
    /// What this node is to it.
    pub place: VolumePlace,
    /// Snapshots that there are to be; what is missing is made.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotId>,
    /// What runs in a container before and after each of them is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<SnapshotHooks>,
    /// Snapshots to delete. All others are left alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots_gone: Vec<SnapshotId>,
    /// A roll back to do, once no container has it mounted, unless it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollBack>,
    /// Where it is to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<SendTo>,
    /// A move that is over: the snapshots of its rounds go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<SnapshotId>,
}

/// What a node is to a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum VolumePlace {
    /// It has it, and its containers may write to it.
    Held {
        /// What it begins as; nothing: empty.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source: Option<VolumeSource>,
        /// It was here: it is not made anew.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        made: bool,
        /// Where there is no writable state: it goes on from this snapshot. Without it, and with a copy here, nothing is made of it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        resume: Option<SnapshotId>,
    },
    /// It takes its snapshots from this node, and nobody mounts it.
    Arriving {
        /// The sender.
        from: NodeId,
    },
    /// It deletes it with all of its snapshots.
    Deleted,
    /// Of a newer brain: nothing is done to it.
    #[serde(other)]
    Unknown,
}

/// An order to send a volume to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendTo {
    /// The node.
    pub node: NodeId,
    /// Where its agent takes volumes.
    pub addresses: Vec<SocketAddr>,
    /// The last snapshot's id; those of the rounds before follow from it, see [`round_snapshot`].
    pub last: SnapshotId,
    /// Once no container has it mounted its writable state becomes the last snapshot, which is sent: from then on this node can't write.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub finish: bool,
}

/// The id of the snapshot of a round of a move, from 0, which both its nodes can tell from others.
pub fn round_snapshot(last: SnapshotId, round: u16) -> SnapshotId {
    last.turned(round.wrapping_add(1))
}

/// Which round of a move a snapshot was made for, if it was for one.
pub fn round_of(snapshot: SnapshotId, last: SnapshotId) -> Option<u16> {
    let ([head @ .., a, b], [same @ .., c, d]) = (snapshot.bytes(), last.bytes());
    let number = u16::from_be_bytes([a ^ c, b ^ d]);
    (head == same && number != 0).then(|| number - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_have_their_own_ids() {
        let last = SnapshotId::from_bytes([7; 10]);
        let ids: std::collections::BTreeSet<_> = (0..64).map(|round| round_snapshot(last, round)).collect();
        assert_eq!(ids.len(), 64);
        assert!(!ids.contains(&last));
        assert!(ids.iter().all(|id| round_of(*id, last).is_some()));
        assert_eq!(round_of(SnapshotId::from_bytes([8; 10]), last), None);
        assert!((0..64).all(|round| round_of(round_snapshot(last, round), last) == Some(round)));
        assert_eq!(round_of(last, last), None);
    }

    #[test]
    fn a_place_of_a_newer_brain_is_unknown() {
        let place: VolumePlace = serde_json::from_str(r#"{"place":"mirrored","by":"x"}"#).unwrap();
        assert_eq!(place, VolumePlace::Unknown);
    }
}
