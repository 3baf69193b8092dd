//! A volume's data as a mount for one container.
//!
//! On the disk, owners are as the container sees them: its root is 0 whatever range the host gave it, so that a volume moves
//! between hosts as it is. The mount shifts them. An image's content at the path of an empty volume is not copied into it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};

use berth_common::id::{Epoch, SnapshotId, VolumeId};
use nix::mount::{MntFlags, umount2};
use procfs::process::MountInfo;

use super::VolumeError;
use super::store::{DATA, SNAPSHOTS, Store, io_error};
use crate::cgroup::unescape;
use crate::sys::{btrfs_subvolume, idmap};

/// What a container wants of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub volume: VolumeId,
    /// The hand-over that lets it have the volume (R2).
    pub epoch: Epoch,
    /// Its snapshot that is read, instead of what it is now.
    pub snapshot: Option<SnapshotId>,
    /// Where, an absolute path on the host of one container's own: made if need be, the source of its bind mount.
    pub target: PathBuf,
    /// First id of the container's range on this host; 0: owners as they are.
    pub base: u32,
    /// Nothing can be written through it; a snapshot never is.
    pub read_only: bool,
}

impl Store {
    /// Mounts of this pool's file system in this mount namespace, in the table's order. Containers have their own, which end with them.
    fn mounts(&self) -> Result<Vec<Mount>, VolumeError> {
        Ok(of_file_system(read_table()?, mount_id(&self.open)))
    }

    /// Where data of volumes, or snapshots of them, is mounted.
    pub(super) fn mounted(&self) -> Result<Vec<(PathBuf, VolumeId)>, VolumeError> {
        let mounts = self.mounts()?.into_iter();
        Ok(mounts
            .filter_map(|mount| shown(&mount).map(|(volume, _)| (mount.point, volume)))
            .collect())
    }

    /// Where a snapshot is mounted, the first place.
    pub(super) fn mounted_snapshot(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
    ) -> Result<Option<PathBuf>, VolumeError> {
        let mut mounts = self.mounts()?.into_iter();
        let found = mounts.find(|mount| shown(mount) == Some((volume, Some(snapshot))));
        Ok(found.map(|mount| mount.point))
    }
}

/// The number of the mount through which a file was opened (proc(5), fdinfo).
fn mount_id(file: &File) -> Option<i32> {
    let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// Those of the file system that is mounted under this number; all, if none is: then nothing is destroyed by mistake. An older state of a
/// pool, looked into on the same host, has the same paths. Pure.
fn of_file_system(table: Vec<Mount>, id: Option<i32>) -> Vec<Mount> {
    let own = table.iter().find(|mount| Some(mount.id) == id);
    let Some(device) = own.map(|mount| mount.device.clone()) else {
        return table;
    };
    table.into_iter().filter(|mount| mount.device == device).collect()
}

/// Of which volume a mount shows the data, or a snapshot: its root ends with `/v/<volume>/data` or `/v/<volume>/s/<snapshot>`.
fn shown(mount: &Mount) -> Option<(VolumeId, Option<SnapshotId>)> {
    if mount.kind != "btrfs" {
        return None;
    }
    let (last, parent) = (mount.root.file_name()?, mount.root.parent()?);
    let (dir, snapshot) = match last == DATA {
        true => (parent, None),
        false if parent.file_name()? == SNAPSHOTS => (parent.parent()?, Some(last.to_str()?.parse().ok()?)),
        false => return None,
    };
    let volume = dir.file_name()?.to_str()?.parse().ok()?;
    (dir.parent()?.file_name()? == "v").then_some((volume, snapshot))
}

/// One line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number.
    pub id: i32,
    /// The file system's device, `major:minor`: the same for all mounts of one btrfs.
    pub device: String,
    /// The path within its file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// Nothing can be written: the mount or the whole file system is read-only.
    pub read_only: bool,
    /// Owners are shifted.
    pub mapped: bool,
}

/// The mount table's text (proc(5), mountinfo), in its order: of several at one point the last is seen. Pure.
pub fn parse_table(text: &str) -> Vec<Mount> {
    let lines = text.lines().filter_map(|line| MountInfo::from_line(line).ok());
    let mount = |line: MountInfo| {
        let has = |options: &HashMap<String, Option<String>>, wanted: &str| options.contains_key(wanted);
        Mount {
            id: line.mnt_id,
            device: line.majmin.clone(),
            root: unescape(Path::new(&line.root)),
            point: unescape(&line.mount_point),
            read_only: has(&line.mount_options, "ro") || has(&line.super_options, "ro"),
            mapped: has(&line.mount_options, "idmapped"),
            kind: line.fs_type,
        }
    };
    lines.map(mount).collect()
}

/// This process's mounts.
pub(super) fn read_table() -> Result<Vec<Mount>, VolumeError> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(path).map_err(io_error("reading", path))?;
    Ok(parse_table(&text))
}

/// The mount that is seen at `target`.
fn at(target: &Path) -> Result<Option<Mount>, VolumeError> {
    Ok(read_table()?
        .into_iter()
        .rev()
        .find(|mount| mount.point == target))
}

impl Store {
    pub(super) fn mount(&self, wanted: &Wanted) -> Result<(), VolumeError> {
        let _lock = self.lock(wanted.volume);
        let target = &wanted.target;
        let meta = self.meta(wanted.volume)?;
        if meta.epoch != wanted.epoch {
            return Err(VolumeError::Epoch {
                volume: wanted.volume,
                held: meta.epoch,
                given: wanted.epoch,
            });
        }
        let writable = self.writable(wanted.volume)?;
        // Whatever is asked for, nobody writes to a snapshot: it would be no base for an increment any more.
        let read_only = wanted.read_only || wanted.snapshot.is_some();
        let data = match wanted.snapshot {
            Some(snapshot) => self.there(wanted.volume, snapshot)?.0,
            None => writable,
        };
        let id = |path: &Path| {
            File::open(path)
                .and_then(btrfs_subvolume::info)
                .map(|info| info.id)
        };
        let data_id = id(&data).map_err(io_error("looking at", &data))?;
        fs::create_dir_all(target).map_err(io_error("making", target))?;
        // The table does not tell which range a mount is shifted by. A mark of ours beside it does.
        let mark = format!("{}-{read_only}", wanted.base);
        if let Some(mount) = at(target)? {
            let same = mount.mapped == (wanted.base != 0)
                && mount.read_only == read_only
                && id(target).is_ok_and(|found| found == data_id)
                && fs::read_to_string(mark_of(target)).is_ok_and(|found| found == mark);
            if same {
                return Ok(());
            }
            take_off(target)?;
        }
        fs::write(mark_of(target), mark).map_err(io_error("marking", target))?;
        let namespace = match wanted.base {
            0 => None,
            base => {
                Some(idmap::user_namespace(base).map_err(io_error("making a user namespace for", target))?)
            }
        };
        let namespace = namespace.as_ref().map(|namespace| namespace.as_fd());
        idmap::mount_as(&data, target, namespace, read_only).map_err(io_error("mounting at", target))
    }
}

/// Takes what is mounted at `target` away, with its folder and mark. Needs no pool. Nothing there is fine.
///
/// # Errors
/// `Io`.
pub(super) fn release(target: &Path) -> Result<(), VolumeError> {
    take_off(target)?;
    let gone = |result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("removing", target)(error)),
        _ => Ok(()),
    };
    gone(fs::remove_dir(target))?;
    gone(fs::remove_file(mark_of(target)))
}

/// The file that says how `target` was mounted, beside it.
fn mark_of(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".mark");
    target.with_file_name(name)
}

fn take_off(target: &Path) -> Result<(), VolumeError> {
    while at(target)?.is_some() {
        // Containers hold mounts of their own made from this one; who still has a file open here finishes.
        umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| io_error("unmounting", target)(errno.into()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_understood() {
        let text = "36 35 0:45 /v/x/data /run/a\\040b ro,nosuid,idmapped shared:1 - btrfs /dev/loop0 rw,subvolid=5\n\
                    37 35 8:1 / / rw,relatime - ext4 /dev/sda1 ro\n\
                    nonsense\n";
        let table = parse_table(text);
        assert_eq!(table.len(), 2);
        assert_eq!(table[0].point, Path::new("/run/a b"));
        assert_eq!(table[0].root, Path::new("/v/x/data"));
        assert!(table[0].read_only && table[0].mapped);
        assert_eq!(
            (table[1].kind.as_str(), table[1].read_only, table[1].mapped),
            ("ext4", true, false)
        );
    }

    #[test]
    fn other_file_systems_are_told_apart_and_where_that_is_not_possible_none_is_left_out() {
        let text = "36 35 0:45 / /pool rw - btrfs /dev/loop0 rw\n\
                    37 35 0:46 /v/x/data /a rw - btrfs /dev/loop1 rw\n\
                    38 35 0:45 /v/x/data /b rw - btrfs /dev/loop0 rw\n";
        let points = |id| {
            let own = of_file_system(parse_table(text), id).into_iter();
            own.map(|mount| mount.point.display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(points(Some(36)), ["/pool", "/b"]);
        assert_eq!(points(Some(37)), ["/a"]);
        assert_eq!(points(Some(99)).len(), 3);
        assert_eq!(points(None).len(), 3);
        assert!(mount_id(&File::open("/proc/self/mountinfo").unwrap()).is_some());
    }

    #[test]
    fn mounts_of_volumes_are_told_from_others() {
        let volume = VolumeId::from_bytes([7; 10]);
        let of = |root: String, kind: &str| {
            let text = format!("36 35 0:45 {root} /m rw - {kind} /dev/loop0 rw\n");
            shown(&parse_table(&text)[0])
        };
        let snapshot = SnapshotId::from_bytes([8; 10]);
        assert_eq!(of(format!("/v/{volume}/data"), "btrfs"), Some((volume, None)));
        assert_eq!(of(format!("/a/b/v/{volume}/data"), "btrfs"), Some((volume, None)));
        assert_eq!(
            of(format!("/pool/v/{volume}/s/{snapshot}"), "btrfs"),
            Some((volume, Some(snapshot)))
        );
        for (root, kind) in [
            (format!("/v/{volume}/data"), "ext4"),
            (format!("/v/{volume}/data/x"), "btrfs"),
            (format!("/w/{volume}/data"), "btrfs"),
            ("/v/x/data".to_owned(), "btrfs"),
            (format!("/v/{volume}/s"), "btrfs"),
            (format!("/v/{volume}/s/x"), "btrfs"),
            (format!("/v/{volume}/t/{snapshot}"), "btrfs"),
            ("/".to_owned(), "btrfs"),
        ] {
            assert_eq!(of(root.clone(), kind), None, "{root}");
        }
    }
}
