//! Takes a pool off a host again, when nothing is in it. Blocks.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::pool::Settings;
use super::pool_apply;
use crate::reconcile::apply::chain;

/// Pause between attempts to unmount it.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a pool stays.
#[derive(Debug, thiserror::Error)]
pub enum Stays {
    /// There are volumes in it.
    #[error(
        "volumes are left below {root} ({count}): move them to other nodes or remove them (`berth volume move`, `berth volume rm`), \
         or delete them here with `berth-agent wipe --volumes`"
    )]
    Holds {
        /// How many.
        count: usize,
        /// Where.
        root: String,
    },
    /// Somebody is in it.
    #[error("{0} is in use: `fuser -vm {0}` shows by whom; end that, and type the same again")]
    Busy(String),
    /// It can't be looked into.
    #[error("whether volumes are left on this host can't be told: {0}")]
    Unknown(String),
    /// The kernel or the disk refused.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: String,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Stays {
    let path = path.display().to_string();
    move |source| Stays::Io {
        operation,
        path,
        source,
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// Unmounts an empty pool and removes its file, or its folder on a btrfs, and what remembers it. None is fine.
///
/// # Errors
/// `Holds` before anything is changed; `Busy`, `Unknown`, `Io`.
pub fn take_away(settings: &Settings) -> Result<(), Stays> {
    let (root, marker) = (settings.root(), settings.marker());
    let unknown = |error: super::pool_error::PoolError| Stays::Unknown(chain(&error));
    let mut seen = pool_apply::observe(settings).map_err(unknown)?;
    if seen.marker.is_none() && seen.file.is_none() && !seen.root {
        return Ok(());
    }
    if seen.file.is_some() && seen.mounted.is_none() {
        pool_apply::ensure(settings).map_err(unknown)?;
        seen = pool_apply::observe(settings).map_err(unknown)?;
    }
    let volumes = root.join("v");
    let count = match fs::read_dir(&volumes) {
        Ok(entries) => entries.count(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(failed("listing", &volumes)(error)),
    };
    if count > 0 {
        let root = root.display().to_string();
        return Err(Stays::Holds { count, root });
    }
    if seen.mounted.is_some() {
        // Its loop device goes with it.
        // What was deleted a moment ago is still being cleaned up.
        for last in (0..20).map(|n| n == 19) {
            match umount2(&root, MntFlags::empty()) {
                Ok(()) | Err(Errno::EINVAL) => break,
                Err(Errno::EBUSY) if !last => std::thread::sleep(PAUSE),
                Err(Errno::EBUSY) => return Err(Stays::Busy(root.display().to_string())),
                Err(errno) => return Err(failed("unmounting", &root)(errno.into())),
            }
        }
    } else {
        let rest = root.join("tmp");
        gone(fs::remove_dir(&volumes)).map_err(failed("removing", &volumes))?;
        gone(fs::remove_dir_all(&rest)).map_err(failed("removing", &rest))?;
    }
    gone(fs::remove_dir(&root)).map_err(failed("removing", &root))?;
    for file in [settings.file(), settings.new_file(), marker] {
        gone(fs::remove_file(&file)).map_err(failed("removing", &file))?;
    }
    // Somebody else's may be in it.
    let _ = fs::remove_dir(&settings.dir);
    Ok(())
}
