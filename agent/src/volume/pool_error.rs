//! Why there is no pool, and what to do about it.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::PathBuf;

use berth_common::units::Bytes;

use super::Uuid;
use super::pool::LEAST;

/// Why there is no pool.
#[derive(Debug)]
pub enum PoolError {
    /// The kernel can't.
    NoKernel,
    /// The programs are not installed.
    NoTools(&'static str),
    /// The loop file was there and is not.
    Lost {
        /// The file.
        file: PathBuf,
        /// What remembers it.
        marker: PathBuf,
    },
    /// The disk with the volumes is not mounted.
    NotMounted {
        /// The folder.
        dir: PathBuf,
        /// The file system that is missing.
        id: Uuid,
        /// What remembers it.
        marker: PathBuf,
    },
    /// Another file system is in the pool's place.
    Another {
        /// The place.
        path: PathBuf,
        /// Remembered.
        wanted: Uuid,
        /// There.
        found: Uuid,
        /// What remembers it.
        marker: PathBuf,
    },
    /// The loop file holds no btrfs.
    NotBtrfs {
        /// The file.
        file: PathBuf,
    },
    /// Something that is no btrfs is mounted in the pool's place.
    Covered(PathBuf),
    /// No room for a loop file.
    BeneathFull {
        /// The folder.
        dir: PathBuf,
        /// How large it was to be.
        wanted: Bytes,
        /// What is free.
        free: Bytes,
    },
    /// Writes fail.
    ReadOnly {
        /// Where it is.
        root: PathBuf,
        /// What is free beneath.
        free: Bytes,
    },
    /// Its quotas are of the other kind.
    SimpleQuotas(PathBuf),
    /// No loop device.
    NoLoop {
        /// The file.
        file: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
    /// A step failed.
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's complaint.
        source: io::Error,
    },
    /// The marker can't be understood.
    Marker {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The steps didn't lead to a pool.
    Unsettled(PathBuf),
}

impl PoolError {
    /// What was found, with the system's complaint if there is one.
    pub fn found(&self) -> String {
        let said = self.source().map(|source| format!(": {source}"));
        format!("{}{}", self.what(), said.unwrap_or_default())
    }

    fn what(&self) -> String {
        match self {
            Self::NoKernel => "the kernel has no btrfs: no volume can be on this node".to_owned(),
            Self::NoTools(program) => format!("{program} is not installed: no volume can be on this node"),
            Self::Lost { file, marker } => format!(
                "the volumes' file {} is gone, and {} says that it was there",
                file.display(),
                marker.display()
            ),
            Self::NotMounted { dir, id, .. } => format!("{} was on the btrfs {id} and is not", dir.display()),
            Self::Another {
                path, wanted, found, ..
            } => format!(
                "the volumes of this node are on the btrfs {wanted}, and {} is {found}",
                path.display()
            ),
            Self::NotBtrfs { file } => {
                format!("{} holds no btrfs: it is damaged or not berth's", file.display())
            }
            Self::Covered(root) => format!("something that is no btrfs is mounted on {}", root.display()),
            Self::BeneathFull { dir, wanted, free } => format!(
                "a pool of {wanted} needs that much on the disk of {}, where {free} are free",
                dir.display()
            ),
            Self::ReadOnly { root, free } => format!(
                "the pool at {} is read-only, {free} are free on the disk beneath: the kernel makes it so after write errors, as when that disk is full (see dmesg)",
                root.display()
            ),
            Self::SimpleQuotas(root) => format!(
                "the btrfs of {} counts by simple quotas, which don't count what a volume shares with its snapshots",
                root.display()
            ),
            Self::NoLoop { file, .. } => format!("no loop device can be had for {}", file.display()),
            Self::Io { operation, path, .. } => format!("{operation} {} failed", path.display()),
            Self::Marker { path, .. } => format!("{} is damaged", path.display()),
            Self::Unsettled(dir) => format!(
                "{} does not become a pool, something undoes what the agent does there",
                dir.display()
            ),
        }
    }

    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::NoKernel => "modprobe btrfs, or use a kernel with CONFIG_BTRFS_FS".to_owned(),
            Self::NoTools(_) => "apt install btrfs-progs".to_owned(),
            Self::Lost { marker, .. } => format!(
                "put it back, or remove {} if the volumes are given up for lost",
                marker.display()
            ),
            Self::NotMounted { marker, .. } => format!(
                "mount that disk there, or remove {} if its volumes are given up for lost",
                marker.display()
            ),
            Self::Another { marker, .. } => format!(
                "put the right one there, or remove {} if its volumes are given up for lost",
                marker.display()
            ),
            Self::NotBtrfs { .. } => {
                "put the right one there, or move it away if there were no volumes".to_owned()
            }
            Self::Covered(_) => "unmount it, or mount a btrfs on the folder above instead".to_owned(),
            Self::BeneathFull { .. } => {
                format!("free some, or set volume_pool_size to less (at least {LEAST})")
            }
            Self::ReadOnly { root, .. } => format!(
                "free some, stop the agent, unmount {}, start the agent",
                root.display()
            ),
            Self::SimpleQuotas(_) => {
                "turn them off (btrfs quota disable), berth turns on the full ones".to_owned()
            }
            Self::NoLoop { .. } => "modprobe loop, or raise its max_loop".to_owned(),
            Self::Io { .. } => "see the system's log (dmesg) for the disk and the file system".to_owned(),
            Self::Marker { .. } => {
                "write into it which pool it was, or remove it if there was none".to_owned()
            }
            Self::Unsettled(_) => "see the agent's log for its steps (log_level = \"debug\")".to_owned(),
        }
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.what(), self.cure())
    }
}

impl Error for PoolError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::NoLoop { source, .. } | Self::Io { source, .. } => Some(source),
            Self::Marker { source, .. } => Some(source),
            _ => None,
        }
    }
}
