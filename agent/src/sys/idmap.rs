//! Mounts whose files appear under other owners (Linux ≥ 5.12, under overlayfs ≥ 5.19).
//!
//! A container's user namespace maps its ids to a range of its own on the host; image layers are stored with the ids of
//! the image. An id-mapped bind mount shifts what is read through it by the range, without touching a file.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::unistd::Pid;

/// Ids in one container's range.
pub const RANGE: u32 = 65_536;

fn path_of(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

/// A user namespace that maps ids 0 to 65535 onto the host's `base` and up; it lives as long as the descriptor.
///
/// # Errors
/// When user namespaces are disabled or used up on this host.
pub fn user_namespace(base: u32) -> io::Result<OwnedFd> {
    let parent = std::process::id() as libc::pid_t;
    // The child is held by nothing that a second child, made at the same moment, could inherit and keep open.
    // SAFETY: like fork(); the child shares nothing with us and runs only async-signal-safe system calls, on its own
    // copy of this stack, until it ends. No exit signal, so nobody's SIGCHLD handling is disturbed.
    let child = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::CLONE_NEWUSER,
            0usize,
            0usize,
            0usize,
            0usize,
        )
    };
    if child == 0 {
        // SAFETY: plain system calls; `_exit` never returns. The child dies with the thread that made it, which waits for
        // it below; if that thread died before the first call took effect, the parent is another one.
        unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while libc::getppid() == parent {
                libc::pause();
            }
            libc::_exit(0);
        }
    }
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let pid = Pid::from_raw(child as i32);
    let opened = (|| {
        let map = format!("0 {base} {RANGE}");
        fs::write(format!("/proc/{pid}/uid_map"), &map)?;
        fs::write(format!("/proc/{pid}/gid_map"), &map)?;
        File::open(format!("/proc/{pid}/ns/user")).map(OwnedFd::from)
    })();
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL));
    opened
}

/// Mounts the tree at `source` on the directory `target`, its owners shifted by `namespace`.
///
/// # Errors
/// `EINVAL` where the file system or kernel can't map ids; else as mount(2).
pub fn mount(source: &Path, target: &Path, namespace: impl AsFd) -> io::Result<()> {
    mount_as(source, target, Some(namespace.as_fd()), false)
}

/// Like [`mount`], with owners as they are for `None`, and read-only if asked: both before anyone can see the mount.
///
/// # Errors
/// As [`mount`].
pub fn mount_as(
    source: &Path,
    target: &Path,
    namespace: Option<BorrowedFd<'_>>,
    read_only: bool,
) -> io::Result<()> {
    let source = path_of(source)?;
    let target = path_of(target)?;
    // SAFETY: the string outlives the call; a new descriptor or −1 is returned.
    let tree = unsafe {
        libc::syscall(
            libc::SYS_open_tree,
            libc::AT_FDCWD,
            source.as_ptr(),
            libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC,
        )
    };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fresh from open_tree, owned by nobody else.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    let attributes = libc::mount_attr {
        attr_set: namespace.map_or(0, |_| libc::MOUNT_ATTR_IDMAP)
            | if read_only { libc::MOUNT_ATTR_RDONLY } else { 0 },
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: namespace.map_or(0, |namespace| namespace.as_raw_fd() as u64),
    };
    // SAFETY: the empty path and the attributes outlive the call, the size is theirs.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if set < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both strings outlive the call.
    let moved = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            libc::MOVE_MOUNT_F_EMPTY_PATH,
        )
    };
    if moved < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_mapped_mount_shows_shifted_owners_and_leaves_no_process() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("a"), dir.path().join("b"));
        fs::create_dir(&source).unwrap();
        fs::create_dir(&target).unwrap();
        fs::write(source.join("file"), "x").unwrap();
        let namespace = user_namespace(0x7001_0000).unwrap();
        mount(&source, &target, &namespace).unwrap();
        let owner = fs::metadata(target.join("file")).unwrap().uid();
        nix::mount::umount2(&target, nix::mount::MntFlags::MNT_DETACH).unwrap();
        assert_eq!(owner, 0x7001_0000);
        assert_eq!(fs::metadata(source.join("file")).unwrap().uid(), 0);
    }

    #[test]
    fn namespaces_made_at_the_same_time_do_not_wait_for_each_other() {
        let made = std::thread::scope(|scope| {
            let many =
                |thread: u32| (0..100u32).all(|_| user_namespace(0x7001_0000 + thread * RANGE).is_ok());
            let threads: Vec<_> = (0..4).map(|thread| scope.spawn(move || many(thread))).collect();
            threads.into_iter().all(|thread| thread.join().unwrap())
        });
        assert!(made);
    }
}
