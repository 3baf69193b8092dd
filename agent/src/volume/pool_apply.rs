//! Makes a folder a pool: looks at the host, does what [`pool::plan`] says, looks again. Blocks.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_common::id::clip;
use berth_common::units::Bytes;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::mount::MsFlags;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::mount::read_table;
use super::pool::{self, Device, FileSystem, Marker, Observed, PoolFile, Settings, Signature, Step, Warning};
use super::pool_error::PoolError;
use super::{Uuid, VolumeError};
use crate::facts::{nearest, program};
use crate::ledger::write_atomically;
use crate::sys::{btrfs, btrfs_search, btrfs_subvolume, loop_device};

/// A loop file takes three looks; what needs more is being undone by somebody.
const LOOKS: usize = 8;
/// Where btrfs has its first superblock, bytes from the start, and how much of a file is looked at.
const SUPERBLOCK: usize = 64 << 10;
const LOOKED_AT: u64 = 128 << 10;
/// In the superblock: the file system's id, and what says that it is one.
const ID: usize = SUPERBLOCK + 0x20;
const MAGIC: usize = SUPERBLOCK + 0x40;
/// Freed space goes back to the file system beneath, without waiting for it.
const OPTIONS: &str = "discard=async";

/// A pool that can be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// Where the volumes are.
    pub root: PathBuf,
    /// What it is.
    pub shape: Shape,
    /// What is not well though it works.
    pub warnings: Vec<Warning>,
}

/// What a pool is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// What volumes' sizes may add up to, bytes: the file, or the whole file system where it is no file.
    pub capacity: Bytes,
    /// Where it is, for people.
    pub kind: String,
}

fn shape(settings: &Settings, plan: &pool::Plan, observed: &Observed) -> Result<Shape, PoolError> {
    let root = settings.root();
    let capacity = match observed.file {
        Some(file) => file.size,
        None => {
            let stat = nix::sys::statvfs::statvfs(nearest(&root))
                .map_err(|errno| failed("looking at", &root)(errno.into()))?;
            Bytes(stat.blocks().saturating_mul(stat.fragment_size()))
        }
    };
    Ok(Shape {
        capacity,
        kind: plan.place(settings, observed),
    })
}

/// What the pool is now. Changes nothing.
///
/// # Errors
/// As [`ensure`].
pub fn look(settings: &Settings) -> Result<Ready, PoolError> {
    let observed = observe(settings)?;
    let plan = pool::plan(settings, &observed)?;
    Ok(Ready {
        root: settings.root(),
        shape: shape(settings, &plan, &observed)?,
        warnings: plan.warnings,
    })
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PoolError {
    let path = path.to_owned();
    move |source| PoolError::Io {
        operation,
        path,
        source,
    }
}

/// `None` for what is not there.
fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the kernel has btrfs, or a module of it can be loaded.
fn kernel_has_btrfs() -> bool {
    let has = |text: String| text.lines().any(|line| line.trim() == "btrfs");
    fs::read_to_string("/proc/filesystems").is_ok_and(has)
        || Command::new("modprobe")
            .args(["-n", "-q", "btrfs"])
            .status()
            .is_ok_and(|status| status.success())
}

/// Whether a path that is there lies on btrfs.
fn on_btrfs(path: &Path) -> io::Result<bool> {
    Ok(statfs(path)?.filesystem_type() == BTRFS_SUPER_MAGIC)
}

fn file_system(path: &Path) -> io::Result<FileSystem> {
    let open = File::open(path)?;
    let read_only = nix::sys::statvfs::fstatvfs(&open)?
        .flags()
        .contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    Ok(FileSystem {
        id: btrfs_subvolume::file_system(&open)?,
        read_only,
        // Only asked of our own, which has one device.
        size: Bytes(btrfs_subvolume::device_size(&open).unwrap_or(0)),
        quota: btrfs_search::quota_state(&open)?,
    })
}

fn signature(file: &mut File) -> io::Result<Signature> {
    file.rewind()?;
    let mut begin = Vec::new();
    file.take(LOOKED_AT).read_to_end(&mut begin)?;
    if begin.get(MAGIC..MAGIC + 8) == Some(b"_BHRfS_M") {
        let id = begin.get(ID..ID + 16).and_then(|id| id.try_into().ok());
        return Ok(id.map_or(Signature::Unknown, |id| Signature::Btrfs(Uuid::from_bytes(id))));
    }
    Ok(match begin.iter().all(|byte| *byte == 0) {
        true => Signature::Nothing,
        false => Signature::Unknown,
    })
}

fn pool_file(path: &Path) -> io::Result<Option<PoolFile>> {
    let Some(mut file) = if_there(File::open(path))? else {
        return Ok(None);
    };
    Ok(Some(PoolFile {
        size: Bytes(file.metadata()?.len()),
        signature: signature(&mut file)?,
    }))
}

/// The loop devices that have `file`.
fn devices(file: &Path) -> io::Result<Vec<Device>> {
    let mut found = Vec::new();
    let Some(blocks) = if_there(fs::read_dir("/sys/block"))? else {
        return Ok(found);
    };
    for block in blocks {
        let block = block?;
        let backing = fs::read_to_string(block.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end_matches('\n')) != file {
            continue;
        }
        let sectors = fs::read_to_string(block.path().join("size"))?;
        found.push(Device {
            path: Path::new("/dev").join(block.file_name()),
            // In sectors of 512 bytes, whatever the device's own are.
            size: Bytes(sectors.trim().parse::<u64>().unwrap_or(0) * 512),
        });
    }
    Ok(found)
}

/// Looks at everything the plan asks for. Changes nothing.
///
/// # Errors
/// `Io`, `Marker`.
pub fn observe(settings: &Settings) -> Result<Observed, PoolError> {
    let (dir, root, file) = (nearest(&settings.dir), settings.root(), settings.file());
    let marker = settings.marker();
    let remembered: Option<Marker> = match if_there(fs::read(&marker)).map_err(failed("reading", &marker))? {
        None => None,
        Some(text) => {
            serde_json::from_slice(&text).map_err(|source| PoolError::Marker { path: marker, source })?
        }
    };
    let table = read_table().map_err(|error| match error {
        VolumeError::Io { path, source, .. } => failed("reading", &path)(source),
        other => failed("reading", &root)(io::Error::other(other.to_string())),
    })?;
    // Whose path the kernel names without links.
    let real = fs::canonicalize(dir).map_err(failed("looking for", dir))?;
    let below = settings.dir.strip_prefix(dir).unwrap_or(Path::new(""));
    let real_root = real.join(below).join("pool");
    let over = table.iter().rev().find(|mount| mount.point == real_root);
    let stat = nix::sys::statvfs::statvfs(dir).map_err(|errno| failed("looking at", dir)(errno.into()))?;
    let look = |path: &Path| -> Result<Option<FileSystem>, PoolError> {
        match on_btrfs(path).map_err(failed("looking at", path))? {
            true => file_system(path).map(Some).map_err(failed("looking at", path)),
            false => Ok(None),
        }
    };
    let mounted = match over {
        Some(_) => look(&root)?,
        None => None,
    };
    Ok(Observed {
        marker: remembered,
        beneath: look(dir)?,
        root: root.is_dir(),
        mounted,
        mounted_other: over.is_some() && mounted.is_none(),
        file: pool_file(&file).map_err(failed("reading", &file))?,
        new_file: settings.new_file().exists(),
        devices: devices(&real.join(below).join("pool.btrfs"))
            .map_err(failed("looking for loop devices of", &file))?,
        free: Bytes(stat.blocks_available().saturating_mul(stat.fragment_size())),
        lacking: ["btrfs", "mkfs.btrfs"]
            .into_iter()
            .filter(|name| program(name).is_none())
            .collect(),
        kernel: kernel_has_btrfs(),
    })
}

fn mount_device(device: &Path, target: &Path) -> Result<(), PoolError> {
    let flags = MsFlags::MS_NOATIME | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    nix::mount::mount(Some(device), target, Some("btrfs"), flags, Some(OPTIONS))
        .map_err(|errno| failed("mounting the pool on", target)(errno.into()))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

fn apply(step: &Step) -> Result<(), PoolError> {
    match step {
        Step::MakeFolder(path) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("making", path)),
        Step::RemoveUnfinished(path) => if_there(fs::remove_file(path))
            .map(|_| ())
            .map_err(failed("removing", path)),
        Step::CreateFile { path, size } => {
            let make = || {
                let mut options = File::options();
                let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
                file.flush()?;
                file.set_len(size.0)?;
                file.sync_all()
            };
            make().map_err(failed("making", path))
        }
        Step::Format { path, label } => {
            // Not forced: whatever it finds there makes it refuse.
            let mut command = Command::new(program("mkfs.btrfs").ok_or(PoolError::NoTools("mkfs.btrfs"))?);
            command.args(["-q", "-L", label]).arg(path);
            let done = command.output().map_err(failed("making a btrfs in", path))?;
            if !done.status.success() {
                let said = String::from_utf8_lossy(&done.stderr);
                let why = io::Error::other(clip(said.trim(), 400));
                return Err(failed("making a btrfs in", path)(why));
            }
            File::open(path)
                .and_then(|file| file.sync_all())
                .map_err(failed("syncing", path))
        }
        Step::Name { from, to } => {
            let named = renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE);
            named
                .map_err(io::Error::from)
                .and_then(|()| sync_parent(to))
                .map_err(failed("renaming to", to))
        }
        Step::Remember { path, marker } => {
            let text = serde_json::to_vec(marker).map_err(|source| PoolError::Marker {
                path: path.clone(),
                source,
            })?;
            write_atomically(path, &text, true).map_err(|error| {
                failed("writing", path)(io::Error::other(crate::reconcile::apply::chain(&error)))
            })
        }
        Step::MountFile { file, target } => {
            let attached = loop_device::attach(file).map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO | libc::EBUSY) => PoolError::NoLoop {
                    file: file.clone(),
                    source,
                },
                _ => failed("attaching", file)(source),
            })?;
            tracing::info!(file = %file.display(), device = %attached.device.display(), direct = attached.direct, "volume pool attached");
            // Unless this succeeds, the device goes with `attached`.
            mount_device(&attached.device, target)
        }
        Step::MountDevice { device, target } => mount_device(device, target),
        Step::Extend { file, to } => {
            let extend = || {
                let file = File::options().write(true).open(file)?;
                if file.metadata()?.len() < to.0 {
                    file.set_len(to.0)?;
                }
                file.sync_all()
            };
            extend().map_err(failed("extending", file))
        }
        Step::TellDevice(device) => loop_device::set_capacity(device).map_err(failed("growing", device)),
        Step::GrowFileSystem(root) => File::open(root)
            .and_then(btrfs_subvolume::grow)
            .map_err(failed("growing the file system of", root)),
        Step::EnableQuota(root) => btrfs::enable_quota(root).map_err(failed("turning on quotas of", root)),
    }
}

/// Makes the folder a pool, or finds that it is one. After a reboot: attaches and mounts what is there.
///
/// # Errors
/// [`PoolError`], each with its cause and its cure.
pub fn ensure(settings: &Settings) -> Result<Ready, PoolError> {
    for _ in 0..LOOKS {
        let observed = observe(settings)?;
        let plan = pool::plan(settings, &observed)?;
        if plan.steps.is_empty() {
            return Ok(Ready {
                root: settings.root(),
                shape: shape(settings, &plan, &observed)?,
                warnings: plan.warnings,
            });
        }
        for step in &plan.steps {
            tracing::debug!(?step, "volume pool");
            apply(step)?;
        }
    }
    Err(PoolError::Unsettled(settings.dir.clone()))
}
