//! What is in a pool. Blocks.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::Path;

use berth_common::id::{SnapshotId, VolumeId};
use berth_common::units::Bytes;

use super::meta::FILE;
use super::store::{ARRIVING, DATA, SNAPSHOTS, Store, io_error};
use super::{Data, Listing, Meta, Snapshot, Volume, VolumeError};
use crate::sys::btrfs_search::{self, Usage};
use crate::sys::btrfs_subvolume::{self, SubvolumeInfo};

type Counted = BTreeMap<u64, Usage>;

fn counted(store: &Store) -> Result<Counted, VolumeError> {
    btrfs_search::usage(&store.open).map_err(io_error("reading quotas of", &store.root))
}

fn snapshot_of(id: SnapshotId, info: &SubvolumeInfo, counted: &Counted) -> Snapshot {
    let usage = counted.get(&info.id).copied().unwrap_or_default();
    Snapshot {
        id,
        uuid: info.uuid,
        received_uuid: info.received_uuid,
        generation: info.generation,
        changed: info.changed,
        made_at: info.made_at,
        referenced: Bytes(usage.referenced),
        exclusive: Bytes(usage.exclusive),
        read_only: info.read_only,
    }
}

/// One snapshot.
pub(super) fn snapshot(
    store: &Store,
    volume: VolumeId,
    snapshot: SnapshotId,
) -> Result<Snapshot, VolumeError> {
    let (_, info) = store.there(volume, snapshot)?;
    Ok(snapshot_of(snapshot, &info, &counted(store)?))
}

/// What btrfs knows of a subvolume's top; `None` if it isn't one.
fn top(path: &Path) -> Result<Option<SubvolumeInfo>, VolumeError> {
    let looked = || {
        let open = File::open(path)?;
        match btrfs_subvolume::is_subvolume(&open)? {
            true => btrfs_subvolume::info(&open).map(Some),
            false => Ok(None),
        }
    };
    looked().map_err(io_error("looking at", path))
}

fn names(dir: &Path) -> Result<Vec<std::ffi::OsString>, VolumeError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io_error("reading", dir))? {
        found.push(entry.map_err(io_error("reading", dir))?.file_name());
    }
    found.sort();
    Ok(found)
}

struct Looker<'a> {
    store: &'a Store,
    counted: Counted,
    /// How many subvolumes lie directly in each.
    holding: BTreeMap<u64, usize>,
    listing: Listing,
}

impl Looker<'_> {
    fn strange(&mut self, path: &Path, what: impl std::fmt::Display) {
        self.listing.strange.push(format!("{}: {what}", path.display()));
    }

    fn volume(&mut self, id: VolumeId, dir: &Path) -> Result<(), VolumeError> {
        let Some(meta) = Meta::read(dir)? else {
            self.strange(dir, "no description of the volume");
            return Ok(());
        };
        if meta.id != id {
            self.strange(dir, format!("describes another volume, {}", meta.id));
            return Ok(());
        }
        let mut volume = Volume {
            meta,
            data: None,
            snapshots: Vec::new(),
        };
        for name in names(dir)? {
            let path = dir.join(&name);
            match name.to_str() {
                Some(FILE) => {}
                Some(DATA) => volume.data = self.data(&path)?,
                Some(SNAPSHOTS) => volume.snapshots = self.snapshots(&path)?,
                // Half written, and written anew the next time.
                Some(name) if name.strip_suffix(".tmp") == Some(FILE) => {}
                _ => self.strange(&path, "not of berth"),
            }
        }
        self.listing.volumes.push(volume);
        Ok(())
    }

    fn data(&mut self, path: &Path) -> Result<Option<Data>, VolumeError> {
        let Some(info) = top(path)? else {
            self.strange(path, "no subvolume");
            return Ok(None);
        };
        if let Some(many) = self.holding.get(&info.id).copied() {
            self.strange(
                path,
                format!("its container made {many} subvolumes in it, which its limit does not bound"),
            );
        }
        let usage = self.counted.get(&info.id).copied().unwrap_or_default();
        Ok(Some(Data {
            uuid: info.uuid,
            generation: info.generation,
            limit: usage.limit.map(Bytes),
            referenced: Bytes(usage.referenced),
            exclusive: Bytes(usage.exclusive),
            read_only: info.read_only,
        }))
    }

    fn snapshots(&mut self, dir: &Path) -> Result<Vec<Snapshot>, VolumeError> {
        let mut found = Vec::new();
        for name in names(dir)? {
            let path = dir.join(&name);
            if name.to_string_lossy().starts_with(ARRIVING) {
                continue;
            }
            let id = name.to_str().and_then(|name| name.parse::<SnapshotId>().ok());
            match (id, top(&path)?) {
                (Some(id), Some(info)) => {
                    if !info.read_only {
                        self.strange(&path, "a snapshot that somebody made writable");
                    }
                    found.push(snapshot_of(id, &info, &self.counted));
                }
                _ => self.strange(&path, "no snapshot of berth"),
            }
        }
        Ok(found)
    }
}

/// Everything. What can't be read of one volume hides no other.
pub(super) fn all(store: &Store) -> Result<Listing, VolumeError> {
    let state = btrfs_search::quota_state(&store.open).map_err(io_error("reading quotas of", &store.root))?;
    if state.inconsistent && !state.counting {
        // So it is after a large snapshot was cleaned away: the kernel spares itself the walk, and someone has to ask for it.
        crate::sys::btrfs::count_anew(&store.open).map_err(io_error("counting", &store.root))?;
    }
    let mut holding = BTreeMap::new();
    for one in btrfs_search::nested(&store.open, None).map_err(io_error("looking into", &store.root))? {
        *holding.entry(one.parent).or_default() += 1;
    }
    let mut looker = Looker {
        store,
        counted: counted(store)?,
        holding,
        listing: Listing {
            counting: state.inconsistent || state.counting,
            ..Listing::default()
        },
    };
    for (id, dir) in store.dirs()? {
        // Two listings of one volume's folder are never of different moments.
        let _lock = looker.store.lock(id);
        if !dir.exists() {
            continue;
        }
        if let Err(error) = looker.volume(id, &dir) {
            let what = crate::reconcile::apply::chain(&error);
            looker.strange(&dir, what);
        }
    }
    let dir = store.root.join("v");
    for name in names(&dir)? {
        if name
            .to_str()
            .and_then(|name| name.parse::<VolumeId>().ok())
            .is_none()
        {
            looker.strange(&dir.join(OsStr::new(&name)), "not of berth");
        }
    }
    Ok(looker.listing)
}
