//! Space limits of btrfs subvolumes.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

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

mod ioctls {
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

/// Limits what the subvolume at `path` may hold beyond what it shares with others, bytes.
///
/// # Errors
/// When it isn't a btrfs subvolume or quotas are off.
pub fn limit_exclusive(path: &Path, bytes: u64) -> io::Result<()> {
    let dir = File::open(path)?;
    let mut arguments = QgroupLimitArgs {
        // 0 is the subvolume itself.
        qgroup: 0,
        limit: QgroupLimit {
            flags: MAX_EXCLUSIVE,
            max_referenced: 0,
            max_exclusive: bytes,
            reserved_referenced: 0,
            reserved_exclusive: 0,
        },
    };
    // SAFETY: the argument has the kernel's layout and outlives the call.
    unsafe { ioctls::qgroup_limit(dir.as_raw_fd(), &raw mut arguments) }?;
    Ok(())
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
    }
}
