//! Which block device holds a path, so that it can be throttled.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};
use procfs::process::MountInfo;

use super::file::{io, read, unexpected};
use super::{CgroupError, Device};

/// What a path's bytes end up on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// A block device, the whole disk: the kernel throttles queues, not partitions.
    Disk(Device),
    /// Memory, where the memory limit counts and there is no IO to throttle.
    Memory,
    /// Something whose IO can't be throttled by device: overlayfs, network file systems, and file systems over several
    /// devices other than btrfs, for which the device that it was mounted from is taken.
    Other {
        /// The file system's type.
        file_system: String,
    },
}

/// What holds `path`.
///
/// # Errors
/// When `path` can't be examined or the kernel's description of its device can't be read.
pub fn backing_of(path: &Path) -> Result<Backing, CgroupError> {
    resolve(path, Path::new("/sys"), Path::new("/proc/self/mountinfo"))
}

/// The whole disk of a block device.
///
/// # Errors
/// When the kernel's description of it can't be read.
pub fn disk_of(device: Device) -> Result<Device, CgroupError> {
    whole_disk(device, Path::new("/sys"))
}

fn resolve(path: &Path, sys: &Path, mountinfo: &Path) -> Result<Backing, CgroupError> {
    let real = path.canonicalize().map_err(|error| io("finding", path, error))?;
    let number = real
        .metadata()
        .map_err(|error| io("examining", &real, error))?
        .dev();
    let device = Device {
        major: major(number),
        minor: minor(number),
    };
    // Major 0 stands for file systems that are no single device; btrfs is one of them, with a number per subvolume.
    if device.major != 0 {
        return whole_disk(device, sys).map(Backing::Disk);
    }
    let text = read(mountinfo)?;
    let Some(mount) = mount_of(&text, &real) else {
        return Ok(Backing::Other {
            file_system: "unknown".to_owned(),
        });
    };
    if matches!(mount.fs_type.as_str(), "tmpfs" | "ramfs") {
        return Ok(Backing::Memory);
    }
    let Some(source) = disk_under(&mount) else {
        return Ok(Backing::Other {
            file_system: mount.fs_type,
        });
    };
    let number = source
        .metadata()
        .map_err(|error| io("examining", &source, error))?
        .rdev();
    let device = Device {
        major: major(number),
        minor: minor(number),
    };
    whole_disk(device, sys).map(Backing::Disk)
}

/// The mount that holds `path`.
fn mount_of(mountinfo: &str, path: &Path) -> Option<MountInfo> {
    mountinfo
        .lines()
        .filter_map(|line| MountInfo::from_line(line).ok())
        .map(|mount| (unescape(&mount.mount_point), mount))
        .filter(|(point, _)| path.starts_with(point))
        // The longest mount point holds the path; of several over each other, the last.
        .max_by_key(|(point, _)| point.components().count())
        .map(|(_, mount)| mount)
}

/// The device file a btrfs was mounted from.
fn disk_under(mount: &MountInfo) -> Option<PathBuf> {
    Some(mount)
        .filter(|mount| mount.fs_type == "btrfs")
        .and_then(|mount| mount.mount_source.as_ref())
        .filter(|source| source.starts_with("/dev/"))
        .map(PathBuf::from)
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
pub(crate) fn unescape(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    PathBuf::from(
        text.replace("\\040", " ")
            .replace("\\011", "\t")
            .replace("\\012", "\n")
            .replace("\\134", "\\"),
    )
}

fn whole_disk(device: Device, sys: &Path) -> Result<Device, CgroupError> {
    let link = sys.join(format!("dev/block/{}:{}", device.major, device.minor));
    let dir = link.canonicalize().map_err(|error| io("finding", &link, error))?;
    if !dir.join("partition").exists() {
        return Ok(device);
    }
    let path = dir.parent().unwrap_or(&dir).join("dev");
    let text = read(&path)?;
    text.trim()
        .split_once(':')
        .and_then(|(major, minor)| {
            Some(Device {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        })
        .ok_or_else(|| unexpected(&path, &text, "major:minor"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_partition_leads_to_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let disk = sys.path().join("devices/pci/block/sda");
        fs::create_dir_all(disk.join("sda1")).unwrap();
        fs::write(disk.join("dev"), "8:0\n").unwrap();
        fs::write(disk.join("sda1/dev"), "8:1\n").unwrap();
        fs::write(disk.join("sda1/partition"), "1\n").unwrap();
        let links = sys.path().join("dev/block");
        fs::create_dir_all(&links).unwrap();
        std::os::unix::fs::symlink("../../devices/pci/block/sda", links.join("8:0")).unwrap();
        std::os::unix::fs::symlink("../../devices/pci/block/sda/sda1", links.join("8:1")).unwrap();
        let sda = Device { major: 8, minor: 0 };
        assert_eq!(
            whole_disk(Device { major: 8, minor: 1 }, sys.path()).unwrap(),
            sda
        );
        assert_eq!(whole_disk(sda, sys.path()).unwrap(), sda);
        assert!(whole_disk(Device { major: 9, minor: 9 }, sys.path()).is_err());
        fs::write(disk.join("dev"), "rubbish").unwrap();
        assert!(whole_disk(Device { major: 8, minor: 1 }, sys.path()).is_err());
    }

    #[test]
    fn mountinfo_table() {
        let text = "\
20 1 8:1 / / rw - ext4 /dev/sda1 rw
21 20 0:30 / /pool rw - btrfs /dev/sdb rw,subvol=/
22 20 0:30 /x /with\\040space rw shared:1 - btrfs /dev/sdc rw
23 21 0:40 / /pool/tmp rw - tmpfs tmpfs rw
24 20 0:41 / /over rw - overlay overlay rw,lowerdir=/a
25 20 0:42 / /zfs rw - zfs tank/x rw
nonsense
26 20 0:43 / /twice rw - tmpfs tmpfs rw
27 26 0:44 / /twice rw - btrfs /dev/sdd rw
";
        let cases = [
            ("/pool/snapshots/1", Some("/dev/sdb")),
            ("/poolside", None),
            ("/with space/y", Some("/dev/sdc")),
            ("/pool/tmp/z", None),
            ("/over/a", None),
            ("/zfs/a", None),
            ("/etc", None),
            ("/twice/a", Some("/dev/sdd")),
        ];
        for (path, want) in cases {
            assert_eq!(
                mount_of(text, Path::new(path)).as_ref().and_then(disk_under),
                want.map(PathBuf::from),
                "{path}"
            );
        }
    }

    #[test]
    fn what_is_no_disk_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let (table, path) = (dir.path().join("mountinfo"), dir.path().canonicalize().unwrap());
        let proc = Path::new("/proc");
        for (kind, want) in [
            ("tmpfs", Backing::Memory),
            ("ramfs", Backing::Memory),
            (
                "overlay",
                Backing::Other {
                    file_system: "overlay".into(),
                },
            ),
            (
                "nfs4",
                Backing::Other {
                    file_system: "nfs4".into(),
                },
            ),
        ] {
            fs::write(&table, format!("20 1 0:40 / /proc rw - {kind} none rw\n")).unwrap();
            assert_eq!(resolve(proc, Path::new("/sys"), &table).unwrap(), want);
        }
        fs::write(&table, "").unwrap();
        assert!(matches!(
            resolve(proc, Path::new("/sys"), &table).unwrap(),
            Backing::Other { .. }
        ));
        assert!(backing_of(&path.join("missing")).is_err());
    }
}
