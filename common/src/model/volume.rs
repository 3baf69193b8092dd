//! Volumes: data that follows its containers. What the brain keeps of them, and what agents see; how services mount them is in
//! [`super::volume_mount`].

use serde::{Deserialize, Serialize};

use super::validate::SpecError;
use crate::id::{Epoch, Name, NodeId, Revision, SnapshotId, TenantId, VolumeId};
use crate::model::{ScheduleState, SnapshotHooks, SnapshotSchedule, UnixMillis};
use crate::units::Bytes;

/// The smallest volume.
pub const LEAST_VOLUME: Bytes = Bytes::mib(1);
/// The largest.
pub const LARGEST_VOLUME: Bytes = Bytes::gib(64 << 10);
/// Size of a volume of which nothing else was said.
pub const DEFAULT_VOLUME: Bytes = Bytes::gib(1);
/// Most snapshots of one volume: what btrfs's quotas cost at each commit grows with them.
pub const MAX_SNAPSHOTS: usize = 256;
/// Most volumes on one node, for the same reason.
pub const MAX_VOLUMES: usize = 1_000;

/// Checks a volume's size.
///
/// # Errors
/// What sizes there are.
pub fn check_size(size: Bytes) -> Result<(), SpecError> {
    if size < LEAST_VOLUME || size > LARGEST_VOLUME {
        return Err(SpecError::new(
            "/size",
            format!("{size} is no size of a volume: {LEAST_VOLUME} to {LARGEST_VOLUME}"),
        ));
    }
    Ok(())
}

/// A volume as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeRecord {
    /// Its id.
    pub id: VolumeId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Unique in the tenant.
    pub name: Name,
    /// Most that it holds, bytes; its node's kernel enforces it.
    pub size: Bytes,
    /// The node that has it, and may write to it; none before it is first used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// Fencing number: grows whenever another node, or the same anew, may write to it (R2).
    pub epoch: Epoch,
    /// The snapshot of another volume that it begins as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<VolumeSource>,
    /// Its node has made it: from then on it is lost if it is not there, and never made anew.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made: bool,
    /// Its snapshots, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotRecord>,
    /// Snapshots that are made by themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<SnapshotSchedule>,
    /// How far that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduled: Option<ScheduleState>,
    /// Commands around its snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<SnapshotHooks>,
    /// The last roll back that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollback: Option<RollBack>,
    /// It is on its way to another node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moves: Option<VolumeMove>,
    /// The move before: what is left of its snapshots goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<VolumeMoved>,
    /// It is to go: its node deletes it, then the record goes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
    /// The service that it was made for, if it was not made by command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_for: Option<Name>,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// Where a volume's first content is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeSource {
    /// The volume.
    pub volume: VolumeId,
    /// Its snapshot.
    pub snapshot: SnapshotId,
}

/// A volume's state at one moment, on the volume's node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SnapshotRecord {
    /// Its id.
    pub id: SnapshotId,
    /// Unique in the volume.
    pub name: Name,
    /// When it was asked for.
    pub created_at: UnixMillis,
    /// The schedule made it: it goes once that keeps it no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub scheduled: bool,
    /// It is to go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub removing: bool,
}

/// A roll back: done once the snapshot `keep` is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RollBack {
    /// What the volume becomes.
    pub snapshot: SnapshotId,
    /// What it was before becomes this snapshot.
    pub keep: SnapshotId,
}

/// A volume's way to another node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeMove {
    /// Where to.
    pub to: NodeId,
    /// Why, for people.
    pub why: String,
    /// The snapshot that it ends with; those of the rounds before are numbered from it.
    pub last: SnapshotId,
    /// How far it is.
    pub stage: MoveStage,
    /// When it was begun.
    pub since: UnixMillis,
}

/// How far a volume's move is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum MoveStage {
    /// Snapshots are sent while its containers write.
    Copying,
    /// Its containers stop.
    Stopping,
    /// They have stopped; the last increment is sent.
    Finishing,
}

/// What is left of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeMoved {
    /// The node that had it, or would have had it, and deletes what it has; none: it did so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<NodeId>,
    /// The snapshot that it was to end with.
    pub last: SnapshotId,
    /// The holder may have given up its writable state for that snapshot: the volume goes on from it where there is no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumes: bool,
}

impl VolumeRecord {
    /// One that is new, empty and nowhere.
    pub fn new(id: VolumeId, tenant: TenantId, name: Name, size: Bytes, created_at: UnixMillis) -> Self {
        Self {
            id,
            tenant,
            name,
            size,
            node: None,
            epoch: Epoch(0),
            source: None,
            made: false,
            snapshots: Vec::new(),
            schedule: None,
            scheduled: None,
            hooks: None,
            rollback: None,
            moves: None,
            moved: None,
            removing: false,
            made_for: None,
            created_at,
            revision: Revision::default(),
        }
    }

    /// Gives it to a node, under a new epoch.
    pub fn hand_to(&mut self, node: NodeId) {
        self.node = Some(node);
        self.epoch = Epoch(self.epoch.0 + 1);
    }

    /// When its schedule is to be looked at next; none while there is nothing to make snapshots of.
    pub fn next_snapshot(&self) -> Option<UnixMillis> {
        let schedule = self.schedule.filter(|_| self.made && !self.removing)?;
        let upto = self
            .scheduled
            .as_ref()
            .map_or(self.created_at, |state| state.upto);
        self.node.map(|_| schedule.next(upto))
    }

    /// A snapshot by name.
    pub fn snapshot(&self, name: &Name) -> Option<&SnapshotRecord> {
        self.snapshots
            .iter()
            .find(|one| one.name == *name && !one.removing)
    }
}

/// What a node has for volumes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PoolFacts {
    /// What volumes' sizes may add up to, bytes.
    pub capacity: Bytes,
    /// What it is, for people: a btrfs, or a file on another file system.
    pub kind: String,
    /// UDP port at which other nodes' agents send volumes; none: it takes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A volume as an agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ObservedVolume {
    /// Its id.
    pub id: VolumeId,
    /// The epoch that its node keeps for it.
    pub epoch: Epoch,
    /// It has a state that can be written; else only snapshots.
    pub writable: bool,
    /// The limit in force, bytes.
    pub size: Bytes,
    /// What counts against it, bytes, as of the last look.
    pub used: Bytes,
    /// Some container has it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mounted: bool,
    /// Its snapshots, by id.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<ObservedSnapshot>,
    /// What keeps it from being as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How far its sending is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sending: Option<ObservedSending>,
    /// Snapshots that were to go and are not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub snapshots_gone: Vec<SnapshotId>,
}

/// A snapshot as an agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ObservedSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Its content, bytes.
    pub referenced: Bytes,
    /// What would be free if it went, bytes.
    pub exclusive: Bytes,
}

/// How far a volume's sending is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ObservedSending {
    /// The last snapshot of the move that this is of; none: an older agent, which does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<SnapshotId>,
    /// The round under way, from 0.
    pub round: u32,
    /// Bytes of this round so far.
    pub sent: Bytes,
    /// About how many there will be.
    pub expected: Bytes,
    /// The rest is small: what was written since the last round is sent in a moment.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ready: bool,
}
