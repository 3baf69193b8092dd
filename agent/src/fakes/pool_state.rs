//! What a pool in memory holds.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_common::id::{SnapshotId, VolumeId};
use berth_common::units::Bytes;

use crate::volume::{LEAST_SIZE, Meta, Snapshot, Uuid, VolumeError, Wanted};

/// A state of a volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) uuid: Uuid,
    /// Of which state it was made.
    pub(super) parent: Uuid,
    pub(super) received: Uuid,
    pub(super) changed: u64,
    pub(super) content: Vec<u8>,
}

#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) meta: Meta,
    pub(super) data: Option<State>,
    pub(super) snapshots: BTreeMap<SnapshotId, State>,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) volumes: BTreeMap<VolumeId, Held>,
    pub(super) mounts: BTreeMap<PathBuf, Wanted>,
    pub(super) clock: u64,
}

impl Inner {
    pub(super) fn held(&mut self, volume: VolumeId) -> Result<&mut Held, VolumeError> {
        self.volumes.get_mut(&volume).ok_or(VolumeError::NoVolume(volume))
    }

    /// The next transaction, and an id that nothing else has.
    pub(super) fn tick(&mut self) -> (u64, Uuid) {
        self.clock += 1;
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&SnapshotId::random().bits().to_be_bytes());
        raw[8..].copy_from_slice(&self.clock.to_be_bytes());
        (self.clock, Uuid::from_bytes(raw))
    }

    pub(super) fn child(&mut self, of: &State) -> State {
        let (changed, uuid) = self.tick();
        State {
            uuid,
            parent: of.uuid,
            received: Uuid::default(),
            changed,
            content: of.content.clone(),
        }
    }

    pub(super) fn not_mounted(&self, volume: VolumeId) -> Result<(), VolumeError> {
        match self.mounts.iter().find(|(_, wanted)| wanted.volume == volume) {
            Some((at, _)) => Err(VolumeError::Mounted {
                volume,
                at: at.clone(),
            }),
            None => Ok(()),
        }
    }

    pub(super) fn already(&self, meta: &Meta) -> Result<bool, VolumeError> {
        let Some(held) = self.volumes.get(&meta.id) else {
            return Ok(false);
        };
        held.meta.is_wanted(meta, held.data.is_some()).map(|()| true)
    }

    pub(super) fn state(&mut self, volume: VolumeId, snapshot: SnapshotId) -> Result<State, VolumeError> {
        let held = self.held(volume)?;
        held.snapshots
            .get(&snapshot)
            .cloned()
            .ok_or(VolumeError::NoSnapshot { volume, snapshot })
    }
}

pub(super) fn fits(volume: VolumeId, wanted: Bytes, content: &[u8]) -> Result<(), VolumeError> {
    match Bytes(content.len() as u64) {
        used if used > wanted => Err(VolumeError::TooSmall { volume, wanted, used }),
        _ if wanted < LEAST_SIZE => Err(VolumeError::LeastSize(wanted)),
        _ => Ok(()),
    }
}

pub(super) fn shown(id: SnapshotId, state: &State) -> Snapshot {
    Snapshot {
        id,
        uuid: state.uuid,
        received_uuid: state.received,
        generation: state.changed,
        changed: state.changed,
        made_at: state.changed,
        referenced: Bytes(state.content.len() as u64),
        exclusive: Bytes::ZERO,
        read_only: true,
    }
}
