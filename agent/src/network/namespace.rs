//! Network namespaces: made, kept by a mount, entered by threads of their own.
//!
//! A thread that has entered another namespace never goes back to the runtime's pool: it ends. So no task can find itself in
//! the wrong network.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The namespace of the thread that asks.
const OWN: &str = "/proc/thread-self/ns/net";

/// An open network namespace: it lives as long as this.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// The one that this thread is in.
    ///
    /// # Errors
    /// When `/proc` can't be read.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new(OWN))
    }

    /// A process's.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn of_process(pid: u32) -> io::Result<Self> {
        Self::open(&PathBuf::from(format!("/proc/{pid}/ns/net")))
    }

    /// One that was kept under a path.
    ///
    /// # Errors
    /// When there is none; [`io::ErrorKind::InvalidData`] for a file that is no namespace, as a crash between making the file
    /// and mounting on it leaves it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is no namespace", path.display()),
            ));
        }
        Ok(Self(file))
    }

    /// A new one, kept by nothing but the value returned.
    ///
    /// # Errors
    /// When the kernel makes none.
    pub fn new() -> io::Result<Self> {
        on_thread(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Self::current()
        })
    }

    /// Keeps it under a path, over whatever was there, until [`Self::release`].
    ///
    /// # Errors
    /// When it can't be mounted there.
    pub fn keep(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        Self::release(path)?;
        File::create(path)?;
        self.within({
            let path = path.to_owned();
            move || {
                let none = None::<&str>;
                mount(Some(OWN), &path, none, MsFlags::MS_BIND, none).map_err(io::Error::from)
            }
        })?
    }

    /// Lets go of what is kept under a path; nothing there is success.
    ///
    /// # Errors
    /// When it can't be unmounted or deleted.
    pub fn release(path: &Path) -> io::Result<()> {
        // Others' mounts may have been put over ours.
        while Self::open(path).is_ok() {
            umount2(path, MntFlags::MNT_DETACH)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Another handle on it.
    ///
    /// # Errors
    /// When the process has no file descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Does something inside it, on a thread of its own.
    ///
    /// # Errors
    /// When it can't be entered, or no thread be made.
    pub fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let file = self.0.try_clone()?;
        on_thread(move || {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })
    }

    /// Whether both are the same.
    ///
    /// # Errors
    /// When one of them can't be asked.
    pub fn is_same(&self, other: &Self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt as _;
        let (a, b) = (self.0.metadata()?, other.0.metadata()?);
        Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("namespace".into()).spawn(work)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("a thread in another namespace panicked")))
}
