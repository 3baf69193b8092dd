//! Volumes as the API takes and shows them.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{PutHooks, PutSchedule, ScheduleView};
use crate::id::{Epoch, Name, Revision, SnapshotId, VolumeId};
use crate::model::{MoveStage, SnapshotHooks, UnixMillis};
use crate::units::Bytes;

/// A new volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateVolume {
    /// Unique in the tenant.
    pub name: Name,
    /// Most that it holds, 1MiB to 64TiB; default 1GiB, or that of the volume that it is a clone of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
    /// The node that is to have it; none: the one where its first container is placed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// What it begins as; none: empty. A clone is on its source's node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CloneOf>,
    /// Snapshots that are made by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<PutSchedule>,
    /// Commands around its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<PutHooks>,
}

/// A snapshot of a volume, by names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CloneOf {
    /// The volume.
    pub volume: Name,
    /// Its snapshot.
    pub snapshot: Name,
}

/// A new size of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// Most that it holds, 1MiB to 64TiB, and not less than it holds now.
    pub size: Bytes,
}

/// A new snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// Unique in the volume; default `snap-` with the moment in UTC: `snap-20250131-120000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
}

/// What a volume is to become again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct RollBackVolume {
    /// The snapshot's name.
    pub snapshot: Name,
}

/// Where a volume is to go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct MoveVolume {
    /// The node; none: the one with the most room for volumes of those that can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
}

/// How a volume stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// No node has it yet: that is decided with its first container.
    Unbound,
    /// Its node makes it, or makes what arrived there writable.
    Creating,
    /// It can be used.
    Ready,
    /// It is on its way to another node.
    Moving,
    /// It becomes what a snapshot of it is.
    RollingBack,
    /// Its node deletes it.
    Removing,
    /// Its node is lost, or does not answer.
    Unreachable,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

impl VolumeState {
    /// The word for people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unbound => "unbound",
            Self::Creating => "creating",
            Self::Ready => "ready",
            Self::Moving => "moving",
            Self::RollingBack => "rolling back",
            Self::Removing => "removing",
            Self::Unreachable => "unreachable",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A volume with how it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeView {
    /// Its id.
    pub id: VolumeId,
    /// Its name.
    pub name: Name,
    /// The tenant's name.
    pub tenant_name: Name,
    /// Most that it holds, bytes.
    pub size: Bytes,
    /// What it holds, bytes, as its node last said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Bytes>,
    /// The node that has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<Name>,
    /// How it stands.
    pub state: VolumeState,
    /// Why it does not stand better, and what can be done (R9).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its move, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<MoveView>,
    /// Services that mount it.
    pub services: Vec<Name>,
    /// Containers that have it, `service.replica`; only when a single volume is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub containers: Vec<String>,
    /// How many snapshots it has, with those being made and removed.
    pub snapshot_count: usize,
    /// Its snapshots, the oldest first; only when a single volume is shown.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotView>,
    /// Snapshots that are made by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleView>,
    /// Commands around its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<SnapshotHooks>,
    /// What it began as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceView>,
    /// The service that it was made for, if it was not made by command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<Name>,
    /// Fencing number: grows whenever another node, or the same anew, may write to it (R2).
    pub epoch: Epoch,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// Where a clone is from, as far as that is still there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SourceView {
    /// The volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Name>,
    /// Its snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
}

/// How a snapshot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SnapshotState {
    /// The node has not said yet that it made it.
    Making,
    /// It is there.
    Ready,
    /// The node deletes it.
    Removing,
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}

/// A snapshot of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotView {
    /// Its id.
    pub id: SnapshotId,
    /// Unique in the volume.
    pub name: Name,
    /// How it stands.
    pub state: SnapshotState,
    /// Its content, bytes, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub referenced: Option<Bytes>,
    /// What would be free if it went, bytes, once it is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exclusive: Option<Bytes>,
    /// The schedule made it: it goes once that keeps it no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scheduled: bool,
    /// When it was asked for.
    pub created_at: UnixMillis,
}

/// A volume's way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MoveView {
    /// Where to; the id of a node that was removed meanwhile.
    pub to: String,
    /// Why.
    pub why: String,
    /// How far it is.
    pub stage: MoveStage,
    /// When it was begun.
    pub since: UnixMillis,
    /// The round of sending under way, from 0; absent until the first begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub round: Option<u32>,
    /// Bytes of this round that were sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent: Option<Bytes>,
    /// About how many there will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<Bytes>,
}

/// What the removal of a volume did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovedVolume {
    /// Its name.
    pub name: Name,
    /// It is gone; else its node deletes it now, and it is shown as `removing` until then.
    pub gone: bool,
    /// The lost node on which its data stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_on: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_of_a_newer_brain_are_unknown() {
        for (text, want) in [
            ("\"rolling-back\"", VolumeState::RollingBack),
            ("\"mirroring\"", VolumeState::Unknown),
        ] {
            assert_eq!(serde_json::from_str::<VolumeState>(text).unwrap(), want, "{text}");
        }
        assert_eq!(
            serde_json::from_str::<SnapshotState>("\"sealed\"").unwrap(),
            SnapshotState::Unknown
        );
        assert_eq!(format!("{:>13}", VolumeState::RollingBack), " rolling back");
    }
}
