//! Destroying subvolumes with all that a container made in them.
//!
//! Whoever may write to a folder of a btrfs may make subvolumes and snapshots in it, without any privilege, and may make them
//! read-only. So a volume may hold trees of them, and each level has to go before the one above.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::sys::{btrfs_search, btrfs_subvolume};

/// A container that still writes may make new ones meanwhile; each round takes what the last one found.
const ROUNDS: usize = 4;

struct Found {
    id: u64,
    /// Index of what it lies in; the first is the top.
    parent: usize,
    /// Folder and name, from the top of its parent.
    path: PathBuf,
}

/// The subvolumes that lie in the one with number `top`, at any depth, parents before children; the top is the first.
fn below(pool: &File, top: u64) -> io::Result<Vec<Found>> {
    let mut found = vec![Found {
        id: top,
        parent: 0,
        path: PathBuf::new(),
    }];
    let mut at = 0;
    while at < found.len() {
        let id = found[at].id;
        for child in btrfs_search::nested(pool, Some(id))? {
            let folder = match btrfs_subvolume::path_of_folder(pool, id, child.folder) {
                Ok(folder) => folder,
                // Only needed where a read-only one has to be opened.
                Err(_) => PathBuf::new(),
            };
            found.push(Found {
                id: child.id,
                parent: at,
                path: folder.join(child.name),
            });
        }
        at += 1;
    }
    Ok(found)
}

/// Opens the one at `index`, step by step, following no link.
fn open(top: &File, found: &[Found], index: usize) -> io::Result<OwnedFd> {
    let mut way = Vec::new();
    let mut at = index;
    while at != 0 {
        way.push(&found[at]);
        at = found[at].parent;
    }
    let mut dir = top.as_fd().try_clone_to_owned()?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    for step in way.iter().rev() {
        for part in &step.path {
            dir = openat(&dir, part, flags, Mode::empty())?;
        }
    }
    // Somebody may have put another folder in its place.
    match btrfs_subvolume::info(&dir)?.id == found[index].id {
        true => Ok(dir),
        false => Err(io::Error::from_raw_os_error(libc::EAGAIN)),
    }
}

/// Destroys the subvolume at `path` and all that lie in it.
pub(super) fn subvolume(pool: &File, path: &Path) -> io::Result<()> {
    let top = File::open(path)?;
    let id = btrfs_subvolume::info(&top)?.id;
    let mut last = io::Error::from_raw_os_error(libc::ENOTEMPTY);
    for _ in 0..ROUNDS {
        let found = below(pool, id)?;
        let mut whole = true;
        for (index, one) in found.iter().enumerate().rev() {
            let mut result = btrfs_subvolume::destroy(pool, one.id);
            if index != 0
                && result
                    .as_ref()
                    .is_err_and(|e| e.raw_os_error() == Some(libc::EROFS))
            {
                let holder = open(&top, &found, one.parent)?;
                btrfs_subvolume::make_writable(&holder)?;
                result = btrfs_subvolume::destroy(pool, one.id);
            }
            match result {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) => {
                    whole = false;
                    last = error;
                }
                other => other?,
            }
        }
        if whole {
            return Ok(());
        }
    }
    Err(last)
}

/// Removes a folder that berth made, with the subvolumes, files and folders in it. Stops at what can't go.
pub(super) fn folder(pool: &File, path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !found.is_dir() {
        return fs::remove_file(path);
    }
    if btrfs_subvolume::is_subvolume(File::open(path)?)? {
        return subvolume(pool, path);
    }
    for entry in fs::read_dir(path)? {
        folder(pool, &entry?.path())?;
    }
    fs::remove_dir(path)
}
