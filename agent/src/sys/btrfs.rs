//! Space limits of btrfs subvolumes: quotas on and off, limits, and what is left of quotas of subvolumes that are gone.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

const MAX_REFERENCED: u64 = 1;
const MAX_EXCLUSIVE: u64 = 1 << 1;
const QUOTA_ENABLE: u64 = 1;

#[repr(C)]
struct QgroupLimit {
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

#[repr(C)]
struct QgroupLimitArgs {
    qgroup: u64,
    limit: QgroupLimit,
}

#[repr(C)]
struct QuotaArgs {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupCreateArgs {
    create: u64,
    qgroup: u64,
}

#[repr(C)]
struct RescanArgs {
    flags: u64,
    progress: u64,
    reserved: [u64; 6],
}

mod ioctls {
    nix::ioctl_write_ptr!(qgroup_create, 0x94, 42, super::QgroupCreateArgs);
    nix::ioctl_write_ptr!(rescan, 0x94, 44, super::RescanArgs);
    nix::ioctl_read!(qgroup_limit, 0x94, 43, super::QgroupLimitArgs);
    nix::ioctl_readwrite!(quota_ctl, 0x94, 40, super::QuotaArgs);
}

/// Turns quotas on for the file system that holds `path`; already on is fine.
///
/// # Errors
/// When it isn't btrfs.
pub fn enable_quota(path: &Path) -> io::Result<()> {
    let dir = File::open(path)?;
    let mut arguments = QuotaArgs {
        command: QUOTA_ENABLE,
        status: 0,
    };
    // SAFETY: the argument has the kernel's layout and outlives the call.
    match unsafe { ioctls::quota_ctl(dir.as_raw_fd(), &raw mut arguments) } {
        Ok(_) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn limit(path: &Path, flags: u64, bytes: u64) -> io::Result<()> {
    let dir = File::open(path)?;
    let mut arguments = QgroupLimitArgs {
        // 0 is the subvolume itself.
        qgroup: 0,
        limit: QgroupLimit {
            flags,
            max_referenced: bytes,
            max_exclusive: bytes,
            reserved_referenced: 0,
            reserved_exclusive: 0,
        },
    };
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::qgroup_limit(dir.as_raw_fd(), &raw mut arguments) }?;
    Ok(())
}

/// Limits what the subvolume at `path` may hold beyond what it shares with others, bytes.
///
/// # Errors
/// When it isn't a btrfs subvolume or quotas are off.
pub fn limit_exclusive(path: &Path, bytes: u64) -> io::Result<()> {
    limit(path, MAX_EXCLUSIVE, bytes)
}

/// Limits what the subvolume at `path` may hold, shared with others or not, bytes.
///
/// # Errors
/// When it isn't a btrfs subvolume or quotas are off.
pub fn limit_referenced(path: &Path, bytes: u64) -> io::Result<()> {
    limit(path, MAX_REFERENCED, bytes)
}

/// Forgets what is counted for a subvolume that is gone; kernels before 6.11 don't do so themselves.
///
/// # Errors
/// `EBUSY` while the subvolume is there, `ENOENT` if nothing is counted.
pub fn forget(anywhere: impl AsFd, subvolume: u64) -> io::Result<()> {
    let arguments = QgroupCreateArgs {
        create: 0,
        qgroup: subvolume,
    };
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::qgroup_create(anywhere.as_fd().as_raw_fd(), &raw const arguments) }?;
    Ok(())
}

/// Begins to count everything anew; already begun is fine. Limits hold meanwhile against what is counted so far.
///
/// # Errors
/// `ENOTCONN` or `EINVAL` where quotas are off.
pub fn count_anew(anywhere: impl AsFd) -> io::Result<()> {
    let arguments = RescanArgs {
        flags: 0,
        progress: 0,
        reserved: [0; 6],
    };
    // SAFETY: the argument has the kernel's layout and outlives the call.
    match unsafe { ioctls::rescan(anywhere.as_fd().as_raw_fd(), &raw const arguments) } {
        Ok(_) | Err(nix::errno::Errno::EINPROGRESS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_system_refuses() {
        let dir = tempfile::Builder::new()
            .prefix("quota")
            .tempdir_in("/dev/shm")
            .unwrap();
        assert!(enable_quota(dir.path()).is_err());
        assert!(limit_exclusive(dir.path(), 1 << 20).is_err());
        assert!(limit_referenced(dir.path(), 1 << 20).is_err());
        let open = File::open(dir.path()).unwrap();
        assert!(forget(&open, 256).is_err() && count_anew(&open).is_err());
    }
}
