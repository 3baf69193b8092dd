//! Snapshots of volumes, and what is made of them: clones, roll backs, mere copies. Every call blocks.
//!
//! A snapshot is read-only from its first moment and never flipped; what is writable is a snapshot of one.

use std::fs::File;
use std::io;
use std::path::Path;

use berth_common::id::{SnapshotId, VolumeId};
use berth_common::units::Bytes;
use nix::fcntl::RenameFlags;

use super::store::{Store, io_error};
use super::{LEAST_SIZE, Meta, Snapshot, VolumeError, destroy, list};
use crate::sys::btrfs_subvolume;

impl Store {
    pub(super) fn snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Snapshot, VolumeError> {
        let _lock = self.lock(volume);
        let data = self.writable(volume)?;
        if self.known(volume, snapshot)?.is_none() {
            self.freeze(&data, volume, snapshot)?;
        }
        list::snapshot(self, volume, snapshot)
    }

    fn freeze(&self, data: &Path, volume: VolumeId, snapshot: SnapshotId) -> Result<(), VolumeError> {
        let path = self.snapshots(volume).join(snapshot.to_string());
        // Read-only from its first moment, and committed when the call returns.
        btrfs_subvolume::snapshot(data, &path, true).map_err(io_error("taking snapshot", &path))
    }

    pub(super) fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), VolumeError> {
        let _lock = self.lock(volume);
        let Some((path, info)) = self.known(volume, snapshot)? else {
            return Ok(());
        };
        // The kernel would take it away under who reads it.
        if let Some(at) = self.mounted_snapshot(volume, snapshot)? {
            return Err(VolumeError::Mounted { volume, at });
        }
        match btrfs_subvolume::destroy(&self.open, info.id) {
            Ok(()) => Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Err(VolumeError::BeingSent { volume, snapshot })
            }
            Err(error) => Err(io_error("destroying", &path)(error)),
        }
    }

    /// A writable snapshot of a snapshot, at `to`, limited.
    fn thaw(
        &self,
        from: (VolumeId, SnapshotId),
        to: &Path,
        volume: VolumeId,
        size: Bytes,
    ) -> Result<(), VolumeError> {
        let (path, info) = self.there(from.0, from.1)?;
        self.fits(volume, info.id, size)?;
        btrfs_subvolume::snapshot(&path, to, false).map_err(io_error("making subvolume", to))?;
        self.limit(to, size)
    }

    pub(super) fn clone_snapshot(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        meta: &Meta,
    ) -> Result<(), VolumeError> {
        if meta.size < LEAST_SIZE {
            return Err(VolumeError::LeastSize(meta.size));
        }
        let _lock = self.lock(meta.id);
        if self.already(meta)? {
            return Ok(());
        }
        self.build(meta, |data| self.thaw((from, snapshot), data, meta.id, meta.size))
    }

    pub(super) fn roll_back(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        keep: Option<SnapshotId>,
    ) -> Result<(), VolumeError> {
        let _lock = self.lock(volume);
        let meta = self.meta(volume)?;
        self.not_mounted(volume)?;
        let (_, source) = self.there(volume, snapshot)?;
        let data = self.data(volume);
        let current = match File::open(&data) {
            Ok(open) => Some(btrfs_subvolume::info(open).map_err(io_error("looking at", &data))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("opening", &data)(error)),
        };
        let kept = keep.map(|keep| self.known(volume, keep)).transpose()?.flatten();
        if let (Some((path, kept)), Some(current)) = (&kept, &current)
            && kept.parent_uuid != current.uuid
        {
            // The state that was to be kept is, and this one came from the snapshot since.
            return match current.parent_uuid == source.uuid {
                true => Ok(()),
                false => Err(VolumeError::Strange {
                    path: path.clone(),
                    found: "a snapshot of another state",
                }),
            };
        }
        let new = self.temporary(volume);
        let undone = |error| {
            let _ = destroy::folder(&self.open, &new);
            error
        };
        self.thaw((volume, snapshot), &new, volume, meta.size)
            .map_err(undone)?;
        if current.is_none() {
            return self
                .rename(&new, &data, RenameFlags::RENAME_NOREPLACE)
                .and_then(|()| self.sync())
                .map_err(undone);
        }
        if let (Some(keep), None) = (keep, &kept) {
            self.freeze(&data, volume, keep).map_err(undone)?;
        }
        self.rename(&new, &data, RenameFlags::RENAME_EXCHANGE)
            .map_err(undone)?;
        // Before the old state goes: a power cut must not bring its name back without it.
        self.sync()?;
        destroy::folder(&self.open, &new).map_err(io_error("destroying", &new))
    }

    pub(super) fn retire(&self, volume: VolumeId, keep: Option<SnapshotId>) -> Result<(), VolumeError> {
        let _lock = self.lock(volume);
        self.meta(volume)?;
        let data = self.data(volume);
        if !data.exists() {
            return Ok(());
        }
        self.not_mounted(volume)?;
        if let Some(keep) = keep {
            let open = File::open(&data).map_err(io_error("opening", &data))?;
            let current = btrfs_subvolume::info(&open).map_err(io_error("looking at", &data))?;
            match self.known(volume, keep)? {
                None => self.freeze(&data, volume, keep)?,
                // An earlier attempt's; if anything was written since, it is taken anew under another id.
                Some((_, kept)) if kept.parent_uuid == current.uuid && current.changed <= kept.made => {}
                Some((path, _)) => {
                    return Err(VolumeError::Strange {
                        path,
                        found: "a snapshot of another state",
                    });
                }
            }
        }
        self.discard(volume, &data)
    }
}
