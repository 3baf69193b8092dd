//! Subvolumes and snapshots of btrfs: making, looking at and destroying them, and growing the file system.

use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// Longest name of a subvolume in one call, bytes.
const NAME_MAX: usize = 4039;
/// Of `VolArgsV2::flags`: the snapshot is read-only from its first moment.
const READ_ONLY: u64 = 1 << 1;
/// Of `VolArgsV2::flags`: destroy by number, not by name.
const BY_ID: u64 = 1 << 4;
/// Of `SubvolumeInfo::flags`, as stored on disk.
const ROOT_READ_ONLY: u64 = 1;

#[repr(C)]
struct VolArgs {
    fd: i64,
    name: [u8; 4088],
}

#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_MAX + 1],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Time {
    seconds: u64,
    nanoseconds: u32,
}

#[repr(C)]
struct InfoArgs {
    id: u64,
    name: [u8; 256],
    parent_id: u64,
    dir_id: u64,
    generation: u64,
    flags: u64,
    uuid: [u8; 16],
    parent_uuid: [u8; 16],
    received_uuid: [u8; 16],
    changed: u64,
    made: u64,
    sent: u64,
    received: u64,
    times: [Time; 4],
    reserved: [u64; 8],
}

#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

#[repr(C)]
struct FsInfoArgs {
    max_id: u64,
    devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct DeviceInfoArgs {
    id: u64,
    uuid: [u8; 16],
    used: u64,
    total: u64,
    rest: [u8; 4056],
}

const _: () = assert!(
    size_of::<VolArgs>() == 4096
        && size_of::<VolArgsV2>() == 4096
        && size_of::<InfoArgs>() == 504
        && size_of::<LookupArgs>() == 4096
        && size_of::<FsInfoArgs>() == 1024
        && size_of::<DeviceInfoArgs>() == 4096
);

mod ioctls {
    nix::ioctl_write_ptr!(resize, 0x94, 3, super::VolArgs);
    nix::ioctl_none!(sync, 0x94, 8);
    nix::ioctl_readwrite!(lookup, 0x94, 18, super::LookupArgs);
    nix::ioctl_write_ptr!(snapshot, 0x94, 23, super::VolArgsV2);
    nix::ioctl_write_ptr!(create, 0x94, 24, super::VolArgsV2);
    nix::ioctl_read!(flags, 0x94, 25, u64);
    nix::ioctl_write_ptr!(set_flags, 0x94, 26, u64);
    nix::ioctl_readwrite!(device_info, 0x94, 30, super::DeviceInfoArgs);
    nix::ioctl_read!(fs_info, 0x94, 31, super::FsInfoArgs);
    nix::ioctl_read!(info, 0x94, 60, super::InfoArgs);
    nix::ioctl_write_ptr!(destroy, 0x94, 63, super::VolArgsV2);
}

/// What btrfs knows of a subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubvolumeInfo {
    /// Its number in the file system; never used again.
    pub id: u64,
    /// Number of the subvolume that holds it; 0 for the topmost.
    pub parent_id: u64,
    /// Its own name for ever.
    pub uuid: Uuid,
    /// Of which subvolume it was made as a snapshot; nil: of none.
    pub parent_uuid: Uuid,
    /// What it is a received copy of; nil: it was made here.
    pub received_uuid: Uuid,
    /// The transaction that changed anything in it last.
    pub generation: u64,
    /// The transaction that changed its content last: what a stream announces as the state of its source.
    pub changed: u64,
    /// The transaction in which it was made.
    pub made: u64,
    /// For a received one: `changed` of its source when it was sent.
    pub sent: u64,
    /// When it was made, seconds since 1970.
    pub made_at: u64,
    /// Whether nobody can write to it.
    pub read_only: bool,
}

fn args(fd: i64, flags: u64, name: &OsStr) -> io::Result<Box<VolArgsV2>> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > NAME_MAX || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut args = Box::new(VolArgsV2 {
        fd,
        transid: 0,
        flags,
        unused: [0; 4],
        name: [0; NAME_MAX + 1],
    });
    args.name[..bytes.len()].copy_from_slice(bytes);
    Ok(args)
}

/// The folder and the name of `path`.
fn place(path: &Path) -> io::Result<(File, &OsStr)> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok((File::open(parent)?, name)),
        _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
    }
}

/// Makes an empty subvolume at `path`, of mode 0777 less the umask.
///
/// # Errors
/// `EEXIST` if something is there, `ENOTTY` where it isn't btrfs; else as mkdir(2).
pub fn create(path: &Path) -> io::Result<()> {
    let (dir, name) = place(path)?;
    let args = args(0, 0, name)?;
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::create(dir.as_raw_fd(), &raw const *args) }?;
    Ok(())
}

/// Makes a snapshot of the subvolume `source` at `path`.
///
/// # Errors
/// `EEXIST` if something is there, `EINVAL` if `source` is no subvolume, `EDQUOT` or `ENOSPC` where there is no room.
pub fn snapshot(source: &Path, path: &Path, read_only: bool) -> io::Result<()> {
    let source = File::open(source)?;
    let (dir, name) = place(path)?;
    let flags = if read_only { READ_ONLY } else { 0 };
    let args = args(i64::from(source.as_raw_fd()), flags, name)?;
    // SAFETY: the argument has the kernel's layout and outlives the call, as does the source's descriptor within it.
    unsafe { ioctls::snapshot(dir.as_raw_fd(), &raw const *args) }?;
    Ok(())
}

/// Destroys the subvolume with this number in the file system of `anywhere`; its space is given back in the background.
///
/// # Errors
/// `ENOENT` if there is none, `ENOTEMPTY` while it holds other subvolumes, `EPERM` while it is being sent, `EROFS` if what
/// holds it is read-only.
pub fn destroy(anywhere: impl AsFd, id: u64) -> io::Result<()> {
    let mut args = args(0, BY_ID, OsStr::new("x"))?;
    args.name[..8].copy_from_slice(&id.to_ne_bytes());
    // SAFETY: the argument has the kernel's layout, with a number where the flag says so, and outlives the call.
    unsafe { ioctls::destroy(anywhere.as_fd().as_raw_fd(), &raw const *args) }?;
    Ok(())
}

/// Whether the directory is the top of a subvolume.
///
/// # Errors
/// As fstat(2) and fstatfs(2).
pub fn is_subvolume(dir: impl AsFd) -> io::Result<bool> {
    // The top of every subvolume has this inode number, and on btrfs nothing else has.
    const TOP: u64 = 256;
    let on_btrfs = nix::sys::statfs::fstatfs(&dir)?.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC;
    Ok(on_btrfs && nix::sys::stat::fstat(dir)?.st_ino == TOP)
}

/// What is known of the subvolume that an opened file or folder lies in.
///
/// # Errors
/// `ENOTTY` where it isn't btrfs.
pub fn info(inside: impl AsFd) -> io::Result<SubvolumeInfo> {
    let none = Time {
        seconds: 0,
        nanoseconds: 0,
    };
    let mut args = Box::new(InfoArgs {
        id: 0,
        name: [0; 256],
        parent_id: 0,
        dir_id: 0,
        generation: 0,
        flags: 0,
        uuid: [0; 16],
        parent_uuid: [0; 16],
        received_uuid: [0; 16],
        changed: 0,
        made: 0,
        sent: 0,
        received: 0,
        times: [none; 4],
        reserved: [0; 8],
    });
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::info(inside.as_fd().as_raw_fd(), &raw mut *args) }?;
    Ok(SubvolumeInfo {
        id: args.id,
        parent_id: args.parent_id,
        uuid: Uuid::from_bytes(args.uuid),
        parent_uuid: Uuid::from_bytes(args.parent_uuid),
        received_uuid: Uuid::from_bytes(args.received_uuid),
        generation: args.generation,
        changed: args.changed,
        made: args.made,
        sent: args.sent,
        made_at: args.times[1].seconds,
        read_only: args.flags & ROOT_READ_ONLY != 0,
    })
}

/// Makes a subvolume writable: for those that are about to be destroyed. One that was received would lose its origin.
///
/// # Errors
/// `EINVAL` if `top` is not a subvolume's top.
pub fn make_writable(top: impl AsFd) -> io::Result<()> {
    let fd = top.as_fd().as_raw_fd();
    let mut flags = 0u64;
    // SAFETY: a number, as the kernel wants it, that outlives the call.
    unsafe { ioctls::flags(fd, &raw mut flags) }?;
    if flags & READ_ONLY != 0 {
        flags &= !READ_ONLY;
        // SAFETY: a number, as the kernel wants it, that outlives the call.
        unsafe { ioctls::set_flags(fd, &raw const flags) }?;
    }
    Ok(())
}

/// The path of a folder by its inode number, from the top of the subvolume with number `tree`.
///
/// # Errors
/// `ENOENT` if there is none.
pub fn path_of_folder(anywhere: impl AsFd, tree: u64, folder: u64) -> io::Result<PathBuf> {
    let mut args = Box::new(LookupArgs {
        tree,
        object: folder,
        name: [0; 4080],
    });
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::lookup(anywhere.as_fd().as_raw_fd(), &raw mut *args) }?;
    let name =
        CStr::from_bytes_until_nul(&args.name).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok(PathBuf::from(OsStr::from_bytes(name.to_bytes())))
}

/// Commits the current transaction: what was done is on the disk when this returns, and is counted by quotas.
///
/// # Errors
/// `EIO` and `EROFS` where the disk doesn't take it.
pub fn sync(inside: impl AsFd) -> io::Result<()> {
    // SAFETY: takes no argument.
    unsafe { ioctls::sync(inside.as_fd().as_raw_fd()) }?;
    Ok(())
}

/// The id of the file system.
///
/// # Errors
/// `ENOTTY` where it isn't btrfs.
pub fn file_system(inside: impl AsFd) -> io::Result<Uuid> {
    let mut args = Box::new(FsInfoArgs {
        max_id: 0,
        devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    });
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::fs_info(inside.as_fd().as_raw_fd(), &raw mut *args) }?;
    Ok(Uuid::from_bytes(args.fsid))
}

/// How much of its first device the file system uses, bytes.
///
/// # Errors
/// `ENODEV` if it has no device 1, `ENOTTY` where it isn't btrfs.
pub fn device_size(inside: impl AsFd) -> io::Result<u64> {
    let mut args = Box::new(DeviceInfoArgs {
        id: 1,
        uuid: [0; 16],
        used: 0,
        total: 0,
        rest: [0; 4056],
    });
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::device_info(inside.as_fd().as_raw_fd(), &raw mut *args) }?;
    Ok(args.total)
}

/// Lets the file system use all of its first device.
///
/// # Errors
/// As the kernel: `EPERM`, `EROFS`, and `EINPROGRESS` during a balance.
pub fn grow(inside: impl AsFd) -> io::Result<()> {
    let mut args = Box::new(VolArgs {
        fd: 0,
        name: [0; 4088],
    });
    args.name[..5].copy_from_slice(b"1:max");
    // SAFETY: the argument has the kernel's layout, is terminated by a zero and outlives the call.
    unsafe { ioctls::resize(inside.as_fd().as_raw_fd(), &raw const *args) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_refuses() {
        let dir = tempfile::Builder::new()
            .prefix("subvolume")
            .tempdir_in("/dev/shm")
            .unwrap();
        let open = File::open(dir.path()).unwrap();
        assert!(create(&dir.path().join("a")).is_err());
        assert!(snapshot(dir.path(), &dir.path().join("a"), true).is_err());
        assert!(!is_subvolume(&open).unwrap());
        assert!(info(&open).is_err() && file_system(&open).is_err() && device_size(&open).is_err());
        assert!(create(Path::new("/")).is_err());
    }
}
