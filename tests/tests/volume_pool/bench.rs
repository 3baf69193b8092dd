//! A pool of its own for each test, in a loop file, taken away with everything mounted below it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use berth_agent::volume::pool::Settings;
use berth_agent::volume::pool_apply::{Ready, ensure};
use berth_agent::volume::{BtrfsPool, Meta};
use berth_common::id::{Epoch, TenantId, VolumeId};
use berth_common::units::Bytes;
use berth_tests::process::run;
use nix::mount::{MntFlags, umount2};

/// Takes off what is mounted below `dir`, the last first.
pub fn unmount_below(dir: &Path) {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().rev().filter_map(|line| line.split(' ').nth(4));
    for point in points.filter(|point| Path::new(point).starts_with(dir)) {
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// Unmounts all below a folder when a test ends, however it ends.
pub struct Unmounts(pub PathBuf);

impl Drop for Unmounts {
    fn drop(&mut self) {
        unmount_below(&self.0);
    }
}

/// A folder with a pool.
pub struct Bench {
    pub pool: BtrfsPool,
    pub ready: Ready,
    pub settings: Settings,
    // In this order: mounts before the folder.
    _unmounts: Unmounts,
    pub dir: tempfile::TempDir,
}

impl Bench {
    /// With a loop file of so many MiB.
    pub fn new(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users have to reach the mounts in it.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let settings = Settings {
            dir: dir.path().join("volumes"),
            size: Some(Bytes::mib(mib)),
        };
        let unmounts = Unmounts(dir.path().to_owned());
        Self::on(dir, unmounts, settings)
    }

    /// In memory: what is measured is btrfs, and not the disk that others use too.
    pub fn in_memory(mib: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let unmounts = Unmounts(dir.path().to_owned());
        let size = format!("size={}m", mib + 64);
        run(Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "none"])
            .arg(dir.path()));
        let settings = Settings {
            dir: dir.path().join("volumes"),
            size: Some(Bytes::mib(mib)),
        };
        Self::on(dir, unmounts, settings)
    }

    fn on(dir: tempfile::TempDir, unmounts: Unmounts, settings: Settings) -> Self {
        let ready = ensure(&settings)
            .unwrap_or_else(|error| panic!("{error}: {:?}", std::error::Error::source(&error)));
        let (pool, troubles) = BtrfsPool::open(&ready.root).unwrap();
        assert!(troubles.is_empty(), "{troubles:?}");
        Self {
            pool,
            ready,
            settings,
            _unmounts: unmounts,
            dir,
        }
    }

    /// As after a reboot: everything is unmounted, and found again.
    pub fn again(self) -> Self {
        self.closed().opened()
    }

    /// Everything is unmounted.
    pub fn closed(self) -> Closed {
        drop(self.pool);
        unmount_below(&self.settings.dir);
        wait_detached(&self.settings.file());
        Closed {
            settings: self.settings,
            _unmounts: self._unmounts,
            dir: self.dir,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.ready.root.clone()
    }

    pub fn data(&self, meta: &Meta) -> PathBuf {
        self.root().join(format!("v/{}/data", meta.id))
    }
}

/// A host whose pool is not mounted.
pub struct Closed {
    pub settings: Settings,
    _unmounts: Unmounts,
    dir: tempfile::TempDir,
}

impl Closed {
    pub fn opened(self) -> Bench {
        Bench::on(self.dir, self._unmounts, self.settings)
    }
}

/// Waits until no loop device has the file.
pub fn wait_detached(file: &Path) {
    let attached = || {
        let blocks = fs::read_dir("/sys/block").unwrap().flatten();
        blocks.into_iter().any(|block| {
            let backing = fs::read_to_string(block.path().join("loop/backing_file")).unwrap_or_default();
            Path::new(backing.trim()) == file
        })
    };
    for _ in 0..3000 {
        if !attached() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} stays attached", file.display());
}

/// A new volume of so many MiB.
pub fn meta(mib: u64) -> Meta {
    Meta {
        id: VolumeId::random(),
        tenant: TenantId::random(),
        size: Bytes::mib(mib),
        epoch: Epoch(1),
    }
}

/// Writes a file anew up to so many MiB, to the disk: how many bytes it took, and what stopped it.
pub fn fill(path: &Path, mib: usize) -> (u64, Option<nix::errno::Errno>) {
    let mut written = 0;
    let mut write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        for n in 0..mib * 16 {
            file.write_all(&[n as u8; 64 << 10])?;
            written += 64 << 10;
            if n % 16 == 15 {
                file.sync_all()?;
            }
        }
        Ok(())
    };
    let error = write().err();
    (
        written,
        error.map(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    )
}
