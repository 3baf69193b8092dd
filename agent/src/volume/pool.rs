//! What makes a folder a pool: a plan from what is there. Pure.
//!
//! Below `<dir>` lies `pool`, where the volumes are. If `<dir>` is on a btrfs, `pool` is a folder on it; else a btrfs in the file
//! `pool.btrfs` is mounted there. A marker beside `<dir>` remembers which of both and the file system's id: what is missing later
//! is an error, and never made anew, which would look like a pool that lost its volumes. Only a file that the same plan
//! made is ever formatted; it gets its name when it is one.

use std::path::{Path, PathBuf};

use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use super::Uuid;
use super::pool_error::PoolError;
use crate::sys::btrfs_search::QuotaState;

/// A loop file of no given size has half of what is free beneath, and no more than this.
pub const MOST_BY_DEFAULT: Bytes = Bytes::gib(100);
/// No pool is smaller: btrfs itself needs about half of it.
pub const LEAST: Bytes = Bytes::mib(256);
/// Below this, the file system that holds the loop file counts as full.
pub const LEAST_FREE: Bytes = Bytes::mib(256);
/// The file system's name, for people.
pub const LABEL: &str = "berth-volumes";

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The folder, an absolute path.
    pub dir: PathBuf,
    /// Size of the loop file; `None`: half of the free space, at most [`MOST_BY_DEFAULT`].
    pub size: Option<Bytes>,
}

impl Settings {
    /// Where the volumes are.
    pub fn root(&self) -> PathBuf {
        self.dir.join("pool")
    }

    /// The loop file.
    pub fn file(&self) -> PathBuf {
        self.dir.join("pool.btrfs")
    }

    /// The loop file while it is being made.
    pub fn new_file(&self) -> PathBuf {
        self.dir.join("pool.btrfs.new")
    }

    /// What remembers that there was a pool, beside the folder: it is there too when a disk is not mounted on the folder.
    pub fn marker(&self) -> PathBuf {
        let mut name = self.dir.file_name().unwrap_or_default().to_owned();
        name.push(".pool.json");
        self.dir.with_file_name(name)
    }
}

/// Where the volumes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// On a btrfs that was there.
    Existing,
    /// In a file.
    Loop,
}

/// What is remembered of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Where it lay.
    pub kind: Kind,
    /// The file system.
    pub file_system: Uuid,
}

/// How a file begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signature {
    /// A btrfs with this id.
    Btrfs(Uuid),
    /// Zeros.
    Nothing,
    /// Something else.
    Unknown,
}

/// The loop file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolFile {
    /// Its length.
    pub size: Bytes,
    /// How it begins.
    pub signature: Signature,
}

/// A loop device of the loop file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its path.
    pub path: PathBuf,
    /// Its size.
    pub size: Bytes,
}

/// A btrfs on which the pool lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Its id.
    pub id: Uuid,
    /// Nothing can be written.
    pub read_only: bool,
    /// How much of its device it uses.
    pub size: Bytes,
    /// Its quotas.
    pub quota: QuotaState,
}

/// What is there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observed {
    /// What the marker says.
    pub marker: Option<Marker>,
    /// The btrfs that `<dir>` lies on, if it does.
    pub beneath: Option<FileSystem>,
    /// `<dir>/pool` is there.
    pub root: bool,
    /// The btrfs that is mounted on `<dir>/pool`, if one is.
    pub mounted: Option<FileSystem>,
    /// Something else is mounted there.
    pub mounted_other: bool,
    /// The loop file.
    pub file: Option<PoolFile>,
    /// A loop file that was being made.
    pub new_file: bool,
    /// Loop devices of the loop file.
    pub devices: Vec<Device>,
    /// Free in the file system of `<dir>`.
    pub free: Bytes,
    /// Programs that are lacking, of `btrfs` and `mkfs.btrfs`.
    pub lacking: Vec<&'static str>,
    /// The kernel has btrfs, or can load it.
    pub kernel: bool,
}

/// One thing to do. Each is fine to do again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make the folder, for root only.
    MakeFolder(PathBuf),
    /// Remove a loop file that never became one.
    RemoveUnfinished(PathBuf),
    /// Make a sparse file that must not be there.
    CreateFile {
        /// Where.
        path: PathBuf,
        /// Its length.
        size: Bytes,
    },
    /// Make a btrfs in it; the program refuses where anything is.
    Format {
        /// The file.
        path: PathBuf,
        /// The file system's name.
        label: &'static str,
    },
    /// Give it its name, which nothing has.
    Name {
        /// From here.
        from: PathBuf,
        /// To here.
        to: PathBuf,
    },
    /// Remember the pool.
    Remember {
        /// Where.
        path: PathBuf,
        /// What.
        marker: Marker,
    },
    /// Attach the file to a loop device and mount that.
    MountFile {
        /// The file.
        file: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Mount a device that has the file already.
    MountDevice {
        /// The device.
        device: PathBuf,
        /// Where.
        target: PathBuf,
    },
    /// Make the loop file longer.
    Extend {
        /// The file.
        file: PathBuf,
        /// Its length to be.
        to: Bytes,
    },
    /// Tell the device that its file is longer.
    TellDevice(PathBuf),
    /// Let the file system use its whole device.
    GrowFileSystem(PathBuf),
    /// Count what each volume uses.
    EnableQuota(PathBuf),
}

/// What to do, and what is not well though the pool works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order; what follows from them needs another look. Empty: the pool is ready.
    pub steps: Vec<Step>,
    /// For the node's warnings.
    pub warnings: Vec<Warning>,
}

/// Something that is not well though the pool works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// What was found, with numbers.
    pub found: String,
    /// What to do about it.
    pub cure: String,
}

impl std::fmt::Display for Warning {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.found, self.cure)
    }
}

/// The size of a loop file that is to be made with `free` bytes left.
pub fn size_for(wanted: Option<Bytes>, free: Bytes) -> Bytes {
    let size = wanted.unwrap_or(Bytes(free.0 / 2).min(MOST_BY_DEFAULT));
    // Whole MiB: no odd end of a block.
    Bytes(size.0 >> 20 << 20)
}

impl Plan {
    /// Where the volumes are, or will be, for people.
    pub fn place(&self, settings: &Settings, observed: &Observed) -> String {
        let dir = settings.dir.display();
        let made = self.steps.iter().find_map(|step| match step {
            Step::CreateFile { size, .. } => Some(*size),
            _ => None,
        });
        match (made, observed.file) {
            (Some(size), _) => format!("a btrfs will be made in a file of up to {size} below {dir}"),
            (None, Some(file)) => format!("on the btrfs in a file of up to {} below {dir}", file.size),
            (None, None) => format!("on the btrfs that holds {dir}"),
        }
    }

    fn warn(&mut self, found: String, cure: impl Into<String>) {
        self.warnings.push(Warning {
            found,
            cure: cure.into(),
        });
    }
}

fn check(marker: Option<Marker>, found: Uuid, path: &Path, settings: &Settings) -> Result<(), PoolError> {
    match marker {
        Some(marker) if marker.file_system != found => Err(PoolError::Another {
            path: path.to_owned(),
            wanted: marker.file_system,
            found,
            marker: settings.marker(),
        }),
        _ => Ok(()),
    }
}

/// What leads from what is there to a pool.
///
/// # Errors
/// [`PoolError`] where only people can help.
pub fn plan(settings: &Settings, observed: &Observed) -> Result<Plan, PoolError> {
    if !observed.kernel {
        return Err(PoolError::NoKernel);
    }
    // Without it volumes can't move.
    if let Some(program) = observed.lacking.iter().find(|program| **program == "btrfs") {
        return Err(PoolError::NoTools(program));
    }
    if observed.mounted_other {
        return Err(PoolError::Covered(settings.root()));
    }
    let in_file = observed.marker.is_some_and(|marker| marker.kind == Kind::Loop) || observed.file.is_some();
    match (&observed.mounted, &observed.beneath) {
        (Some(file_system), _) => ready(settings, observed, file_system, Kind::Loop),
        (None, Some(file_system)) if !in_file => ready(settings, observed, file_system, Kind::Existing),
        _ => mount(settings, observed),
    }
}

/// A btrfs is in its place: what else it needs.
fn ready(
    settings: &Settings,
    observed: &Observed,
    file_system: &FileSystem,
    kind: Kind,
) -> Result<Plan, PoolError> {
    let root = settings.root();
    check(observed.marker, file_system.id, &root, settings)?;
    if file_system.read_only {
        return Err(PoolError::ReadOnly {
            root,
            free: observed.free,
        });
    }
    if file_system.quota.on && file_system.quota.simple {
        return Err(PoolError::SimpleQuotas(root));
    }
    let mut plan = Plan::default();
    if observed.marker.is_none() {
        plan.steps.push(Step::Remember {
            path: settings.marker(),
            marker: Marker {
                kind,
                file_system: file_system.id,
            },
        });
    }
    if !observed.root {
        plan.steps.push(Step::MakeFolder(root.clone()));
    }
    if kind == Kind::Loop {
        grow(settings, observed, file_system, &mut plan);
    }
    if !file_system.quota.on {
        plan.steps.push(Step::EnableQuota(root));
    }
    Ok(plan)
}

/// Grows the file, the device and the file system, each to the one beneath.
fn grow(settings: &Settings, observed: &Observed, file_system: &FileSystem, plan: &mut Plan) {
    let Some(file) = observed.file else {
        plan.warn(
            format!(
                "the volumes' file {} was removed while in use, it is gone with the next reboot",
                settings.file().display()
            ),
            "move the volumes to another node",
        );
        return;
    };
    if observed.free < LEAST_FREE {
        plan.warn(
            format!(
                "{} are free beneath the volumes' file: when nothing is, volumes' writes fail and the pool becomes read-only",
                observed.free
            ),
            format!("free some on the disk of {}", settings.dir.display()),
        );
    }
    // Less than a MiB apart is rounding of block sizes.
    let behind = |small: Bytes, large: Bytes| small.saturating_add(Bytes::mib(1)) <= large;
    let wanted = settings.size.map(|size| size_for(Some(size), Bytes::ZERO));
    if let Some(wanted) = wanted.filter(|wanted| behind(file.size, *wanted)) {
        if wanted.saturating_sub(file.size) > observed.free {
            plan.warn(
                format!(
                    "the pool can't grow from {} to volume_pool_size {wanted}, only {} are free",
                    file.size, observed.free
                ),
                format!("free some on the disk of {}", settings.dir.display()),
            );
        } else {
            plan.steps.push(Step::Extend {
                file: settings.file(),
                to: wanted,
            });
            return;
        }
    } else if wanted.is_some_and(|wanted| behind(wanted, file.size)) {
        plan.warn(
            format!(
                "the pool has {} and does not shrink to volume_pool_size",
                file.size
            ),
            "give that as volume_pool_size",
        );
    }
    let [device] = observed.devices.as_slice() else {
        return;
    };
    if behind(device.size, file.size) {
        plan.steps.push(Step::TellDevice(device.path.clone()));
    } else if behind(file_system.size, device.size) {
        plan.steps.push(Step::GrowFileSystem(settings.root()));
    }
}

/// Nothing is in its place: from the loop file, or a new one.
fn mount(settings: &Settings, observed: &Observed) -> Result<Plan, PoolError> {
    let (dir, root, file) = (settings.dir.clone(), settings.root(), settings.file());
    if let Some(marker) = observed.marker.filter(|marker| marker.kind == Kind::Existing) {
        return Err(PoolError::NotMounted {
            dir,
            id: marker.file_system,
            marker: settings.marker(),
        });
    }
    let mut steps = Vec::new();
    if let Some(found) = observed.file {
        let Signature::Btrfs(id) = found.signature else {
            return Err(PoolError::NotBtrfs { file });
        };
        check(observed.marker, id, &file, settings)?;
        if observed.marker.is_none() {
            steps.push(Step::Remember {
                path: settings.marker(),
                marker: Marker {
                    kind: Kind::Loop,
                    file_system: id,
                },
            });
        }
        if !observed.root {
            steps.push(Step::MakeFolder(root.clone()));
        }
        // Two devices of one file would be two file systems that know nothing of each other.
        steps.push(match observed.devices.first() {
            Some(device) => Step::MountDevice {
                device: device.path.clone(),
                target: root,
            },
            None => Step::MountFile { file, target: root },
        });
        return Ok(Plan {
            steps,
            warnings: Vec::new(),
        });
    }
    if observed.marker.is_some() {
        return Err(PoolError::Lost {
            file,
            marker: settings.marker(),
        });
    }
    if let Some(program) = observed.lacking.first() {
        return Err(PoolError::NoTools(program));
    }
    let size = size_for(settings.size, observed.free);
    if size < LEAST || size > observed.free {
        return Err(PoolError::BeneathFull {
            dir,
            wanted: size.max(LEAST),
            free: observed.free,
        });
    }
    let new = settings.new_file();
    steps.push(Step::MakeFolder(dir));
    if observed.new_file {
        steps.push(Step::RemoveUnfinished(new.clone()));
    }
    steps.push(Step::CreateFile {
        path: new.clone(),
        size,
    });
    steps.push(Step::Format {
        path: new.clone(),
        label: LABEL,
    });
    steps.push(Step::Name { from: new, to: file });
    Ok(Plan {
        steps,
        warnings: Vec::new(),
    })
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod pool_tests;
