//! Volumes and snapshots on a btrfs. Every call blocks: keep it off async threads.
//!
//! `v/<volume>/` holds [`Meta`], the subvolume `data`, and the subvolume `s` with the snapshots: `s` is one so that what
//! receives a stream can be locked into it. All that takes more than one step is made or taken apart below `tmp/` and renamed,
//! so a kill at any moment leaves a volume that is the old or the new one, and rubbish in `tmp/`, which goes at the next start.
//!
//! The limit is on *referenced* bytes, what a volume shows: the tenant sees the size it asked for, and what snapshots hold on to is the
//! pool's to bear. A limit on exclusive bytes would let content grow without bound as long as a snapshot shares it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use berth_common::id::{Epoch, SnapshotId, VolumeId};
use berth_common::units::Bytes;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use parking_lot::{Mutex, MutexGuard};

use super::{LEAST_SIZE, Meta, VolumeError, destroy};
use crate::sys::{btrfs, btrfs_search, btrfs_subvolume};

/// What a volume's container writes.
pub(super) const DATA: &str = "data";
/// The subvolume with a volume's snapshots.
pub(super) const SNAPSHOTS: &str = "s";
/// How names of snapshots begin that are still being received.
pub(super) const ARRIVING: &str = ".in-";
/// Operations on volumes that share one of these wait for one another.
const LOCKS: usize = 64;

/// The volumes below one folder of a btrfs.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) root: PathBuf,
    pub(super) open: File,
    locks: [Mutex<()>; LOCKS],
    counter: AtomicU64,
}

pub(super) fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io {
        operation,
        path,
        source,
    }
}

fn make_folder(path: &Path) -> Result<(), VolumeError> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(io_error("making", path)(error)),
        _ => Ok(()),
    }
}

impl Store {
    /// Opens the pool at `root`, a folder on btrfs with quotas on: finishes what a kill cut short, puts limits in force again.
    /// Also tells what could not be mended, in words.
    pub(super) fn open(root: &Path) -> Result<(Self, Vec<String>), VolumeError> {
        let store = Self {
            root: root.to_owned(),
            open: File::open(root).map_err(io_error("opening", root))?,
            locks: std::array::from_fn(|_| Mutex::new(())),
            counter: AtomicU64::new(0),
        };
        for dir in ["v", "tmp"] {
            make_folder(&root.join(dir))?;
        }
        let mut troubles = Vec::new();
        store.sweep("", &mut troubles)?;
        for (volume, dir) in store.dirs()? {
            if let Err(error) = store.mend(volume, &dir) {
                troubles.push(format!(
                    "volume {volume}: {}",
                    crate::reconcile::apply::chain(&error)
                ));
            }
        }
        store.forget_gone();
        Ok((store, troubles))
    }

    /// Folders of volumes; what has another name is not berth's.
    pub(super) fn dirs(&self) -> Result<Vec<(VolumeId, PathBuf)>, VolumeError> {
        let dir = self.root.join("v");
        let mut found = Vec::new();
        for entry in fs::read_dir(&dir).map_err(io_error("reading", &dir))? {
            let path = entry.map_err(io_error("reading", &dir))?.path();
            let id = path
                .file_name()
                .and_then(OsStr::to_str)
                .and_then(|name| name.parse().ok());
            found.extend(id.map(|id| (id, path)));
        }
        found.sort();
        Ok(found)
    }

    /// Destroys rubbish whose name ends with `ending`.
    fn sweep(&self, ending: &str, troubles: &mut Vec<String>) -> Result<(), VolumeError> {
        let dir = self.root.join("tmp");
        for entry in fs::read_dir(&dir).map_err(io_error("reading", &dir))? {
            let path = entry.map_err(io_error("reading", &dir))?.path();
            if path.to_string_lossy().ends_with(ending)
                && let Err(error) = destroy::folder(&self.open, &path)
            {
                troubles.push(format!("{} can't be removed: {error}", path.display()));
            }
        }
        Ok(())
    }

    fn mend(&self, volume: VolumeId, dir: &Path) -> Result<(), VolumeError> {
        let snapshots = dir.join(SNAPSHOTS);
        for entry in fs::read_dir(&snapshots).map_err(io_error("reading", &snapshots))? {
            let path = entry.map_err(io_error("reading", &snapshots))?.path();
            let arriving = path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(ARRIVING));
            if arriving {
                destroy::folder(&self.open, &path).map_err(io_error("removing", &path))?;
            }
        }
        let (meta, data) = (self.meta(volume)?, dir.join(DATA));
        match data.exists() {
            true => self.limit(&data, meta.size),
            false => Ok(()),
        }
    }

    /// Forgets what is counted for subvolumes that are gone. Best effort: on new kernels there is nothing to do.
    fn forget_gone(&self) {
        let (Ok(counted), Ok(there)) = (
            btrfs_search::usage(&self.open),
            btrfs_search::subvolumes(&self.open),
        ) else {
            return;
        };
        for id in counted.into_keys().filter(|id| !there.contains(id)) {
            let _ = btrfs::forget(&self.open, id);
        }
    }

    pub(super) fn lock(&self, volume: VolumeId) -> MutexGuard<'_, ()> {
        self.locks[(volume.bits() % LOCKS as u64) as usize].lock()
    }

    pub(super) fn dir(&self, volume: VolumeId) -> PathBuf {
        self.root.join("v").join(volume.to_string())
    }

    pub(super) fn data(&self, volume: VolumeId) -> PathBuf {
        self.dir(volume).join(DATA)
    }

    pub(super) fn snapshots(&self, volume: VolumeId) -> PathBuf {
        self.dir(volume).join(SNAPSHOTS)
    }

    /// A name that nothing has yet, below `tmp/`.
    pub(super) fn temporary(&self, volume: VolumeId) -> PathBuf {
        let dir = self.root.join("tmp");
        loop {
            let number = self.counter.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{number}-{volume}"));
            if fs::symlink_metadata(&path).is_err() {
                return path;
            }
        }
    }

    pub(super) fn sync(&self) -> Result<(), VolumeError> {
        btrfs_subvolume::sync(&self.open).map_err(io_error("committing", &self.root))
    }

    pub(super) fn limit(&self, data: &Path, size: Bytes) -> Result<(), VolumeError> {
        btrfs::limit_referenced(data, size.0).map_err(io_error("limiting", data))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path, flags: RenameFlags) -> Result<(), VolumeError> {
        renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)
            .map_err(|errno| io_error("renaming into place", to)(errno.into()))
    }

    /// The volume's description.
    pub(super) fn meta(&self, volume: VolumeId) -> Result<Meta, VolumeError> {
        Meta::read(&self.dir(volume))?.ok_or(VolumeError::NoVolume(volume))
    }

    /// The writable state's path, which is there.
    pub(super) fn writable(&self, volume: VolumeId) -> Result<PathBuf, VolumeError> {
        let data = self.data(volume);
        match data.exists() {
            true => Ok(data),
            false => self.meta(volume).and(Err(VolumeError::OnlyCopy(volume))),
        }
    }

    /// A snapshot's path and what btrfs knows of it.
    pub(super) fn known(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Option<(PathBuf, btrfs_subvolume::SubvolumeInfo)>, VolumeError> {
        let path = self.snapshots(volume).join(snapshot.to_string());
        let open = match File::open(&path) {
            Ok(open) => open,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error("opening", &path)(error)),
        };
        if !btrfs_subvolume::is_subvolume(&open).map_err(io_error("looking at", &path))? {
            return Err(VolumeError::Strange {
                path,
                found: "no subvolume",
            });
        }
        let info = btrfs_subvolume::info(&open).map_err(io_error("looking at", &path))?;
        if !info.read_only {
            return Err(VolumeError::Strange {
                path,
                found: "a snapshot that somebody made writable",
            });
        }
        Ok(Some((path, info)))
    }

    pub(super) fn there(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<(PathBuf, btrfs_subvolume::SubvolumeInfo), VolumeError> {
        self.known(volume, snapshot)?
            .ok_or(VolumeError::NoSnapshot { volume, snapshot })
    }

    /// Whether what the subvolume with number `id` shows, after a commit, fits into `wanted`.
    pub(super) fn fits(&self, volume: VolumeId, id: u64, wanted: Bytes) -> Result<(), VolumeError> {
        self.sync()?;
        let usage = btrfs_search::usage(&self.open).map_err(io_error("reading quotas of", &self.root))?;
        let used = Bytes(usage.get(&id).map_or(0, |usage| usage.referenced));
        match used > wanted {
            true => Err(VolumeError::TooSmall { volume, wanted, used }),
            false => Ok(()),
        }
    }

    /// Whether the volume is here already, as it is wanted.
    pub(super) fn already(&self, meta: &Meta) -> Result<bool, VolumeError> {
        let Some(held) = Meta::read(&self.dir(meta.id))? else {
            return Ok(false);
        };
        held.is_wanted(meta, self.data(meta.id).exists()).map(|()| true)
    }

    /// Makes a volume's folder below `tmp/` with what `fill` puts there, and gives it its name. Once visible it is whole.
    pub(super) fn build(
        &self,
        meta: &Meta,
        fill: impl FnOnce(&Path) -> Result<(), VolumeError>,
    ) -> Result<(), VolumeError> {
        let dir = self.temporary(meta.id);
        let make = || {
            make_folder(&dir)?;
            let snapshots = dir.join(SNAPSHOTS);
            btrfs_subvolume::create(&snapshots).map_err(io_error("making subvolume", &snapshots))?;
            fs::set_permissions(&snapshots, fs::Permissions::from_mode(0o700))
                .map_err(io_error("closing", &snapshots))?;
            meta.write(&dir)?;
            fill(&dir.join(DATA))?;
            self.rename(&dir, &self.dir(meta.id), RenameFlags::RENAME_NOREPLACE)?;
            self.sync()
        };
        let made = make();
        if made.is_err() {
            let _ = destroy::folder(&self.open, &dir);
        }
        made
    }

    pub(super) fn create(&self, meta: &Meta) -> Result<(), VolumeError> {
        if meta.size < LEAST_SIZE {
            return Err(VolumeError::LeastSize(meta.size));
        }
        let _lock = self.lock(meta.id);
        if self.already(meta)? {
            return Ok(());
        }
        self.build(meta, |data| {
            btrfs_subvolume::create(data).map_err(io_error("making subvolume", data))?;
            fs::set_permissions(data, fs::Permissions::from_mode(0o755))
                .map_err(io_error("opening up", data))?;
            self.limit(data, meta.size)
        })
    }

    pub(super) fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), VolumeError> {
        if size < LEAST_SIZE {
            return Err(VolumeError::LeastSize(size));
        }
        let _lock = self.lock(volume);
        let mut meta = self.meta(volume)?;
        let data = self.data(volume);
        let open = match File::open(&data) {
            Ok(open) => Some(open),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io_error("opening", &data)(error)),
        };
        if let Some(open) = &open
            && size < meta.size
        {
            let info = btrfs_subvolume::info(open).map_err(io_error("looking at", &data))?;
            self.fits(volume, info.id, size)?;
        }
        // The file first: if nothing follows, the next start puts its limit in force.
        if meta.size != size {
            meta.size = size;
            meta.write(&self.dir(volume))?;
        }
        match open {
            Some(_) => self.limit(&data, size),
            None => Ok(()),
        }
    }

    pub(super) fn set_epoch(&self, volume: VolumeId, epoch: Epoch) -> Result<(), VolumeError> {
        let _lock = self.lock(volume);
        let mut meta = self.meta(volume)?;
        if epoch < meta.epoch {
            return Err(VolumeError::Epoch {
                volume,
                held: meta.epoch,
                given: epoch,
            });
        }
        if epoch == meta.epoch {
            return Ok(());
        }
        meta.epoch = epoch;
        meta.write(&self.dir(volume))
    }

    /// Moves a folder or subvolume out of sight and destroys it.
    pub(super) fn discard(&self, volume: VolumeId, path: &Path) -> Result<(), VolumeError> {
        let gone = self.temporary(volume);
        self.rename(path, &gone, RenameFlags::RENAME_NOREPLACE)?;
        destroy::folder(&self.open, &gone).map_err(io_error("destroying", &gone))
    }

    pub(super) fn not_mounted(&self, volume: VolumeId) -> Result<(), VolumeError> {
        match self.mounted()?.into_iter().find(|(_, of)| *of == volume) {
            Some((at, _)) => Err(VolumeError::Mounted { volume, at }),
            None => Ok(()),
        }
    }

    pub(super) fn delete(&self, volume: VolumeId) -> Result<(), VolumeError> {
        let _lock = self.lock(volume);
        let dir = self.dir(volume);
        if dir.exists() {
            self.not_mounted(volume)?;
            self.discard(volume, &dir)?;
        } else {
            // What an earlier attempt could not destroy.
            let mut troubles = Vec::new();
            self.sweep(&format!("-{volume}"), &mut troubles)?;
            if let Some(why) = troubles.pop() {
                return Err(io_error("destroying", &dir)(io::Error::other(why)));
            }
        }
        self.forget_gone();
        Ok(())
    }
}
