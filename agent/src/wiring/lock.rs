//! Keeps two agents apart: whoever changes this node holds a lock on its state folder.
//!
//! The kernel lets go of it when the holder ends, however it ends, so there is nothing to clean up.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else has it.
    #[error(
        "an agent is running with {0}: stop it first (`systemctl stop berth-agent`), or give this one another state_dir and run_dir"
    )]
    Held(PathBuf),
    /// The folder or file can't be made.
    #[error("locking {path}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
}

/// Held until dropped.
#[derive(Debug)]
pub struct Lock {
    _files: Vec<Flock<File>>,
}

impl Lock {
    /// Locks every one of `dirs`, making those that are not there, or none.
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process has one.
    pub fn take(dirs: &[&Path]) -> Result<Self, LockError> {
        let mut files = Vec::with_capacity(dirs.len());
        for dir in dirs {
            let path = dir.join("agent.lock");
            let failed = |source: io::Error| LockError::Io {
                path: path.clone(),
                source,
            };
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)
                .map_err(failed)?;
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)
                .map_err(failed)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => files.push(file),
                Err((_, Errno::EWOULDBLOCK)) => return Err(LockError::Held((*dir).to_owned())),
                Err((_, error)) => return Err(failed(error.into())),
            }
        }
        Ok(Self { _files: files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_and_free_again_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let (state, run) = (dir.path().join("state"), dir.path().join("run"));
        let held = Lock::take(&[&state, &run]).unwrap();
        let error = Lock::take(&[&run]).unwrap_err();
        assert!(matches!(&error, LockError::Held(path) if *path == run), "{error}");
        drop(held);
        Lock::take(&[&state, &run]).unwrap();
    }
}
