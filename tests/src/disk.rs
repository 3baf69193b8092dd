//! A btrfs of its own, in a file.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::run;

/// It, mounted. Dropped, it is unmounted with all that is mounted below it.
#[derive(Debug)]
pub struct Btrfs {
    /// Where.
    pub mount: PathBuf,
}

impl Btrfs {
    /// Makes one of so many bytes at `mount`, in a file beside it.
    pub fn new(mount: &Path, size: u64) -> Self {
        let file = mount.with_extension("img");
        std::fs::create_dir_all(mount).expect("folder");
        let made = std::fs::File::create(&file).and_then(|file| file.set_len(size));
        made.expect("sparse file");
        run(Command::new("mkfs.btrfs").arg("-q").arg(&file));
        run(Command::new("mount").args(["-o", "loop"]).arg(&file).arg(mount));
        Self {
            mount: mount.to_owned(),
        }
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        crate::containerd::unmount_below(&self.mount);
        let _ = nix::mount::umount2(&self.mount, nix::mount::MntFlags::MNT_DETACH);
    }
}
