//! What a killed containerd leaves of a start: the bundle's folder.
//!
//! containerd makes it before anything else. Killed then, it tries to clear up when it comes back; where the folder is not
//! complete yet that fails ("failed to clean up after shim disconnected"), the folder stays, and every later start ends at it:
//! `failed to start shim: mkdir …: file exists` (containerd 1.6, `runtime/v2/shim_load.go` and `bundle.go`).

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use berth_common::id::ContainerId;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

/// The folder in the way, if that is what a failed creation complains of: it must be this container's.
pub fn in_the_way(message: &str, namespace: &str, id: ContainerId) -> Option<PathBuf> {
    let (_, rest) = message.split_once("mkdir /")?;
    let (path, _) = rest.split_once(": file exists")?;
    let path = PathBuf::from(format!("/{path}"));
    let own = Path::new("io.containerd.runtime.v2.task")
        .join(namespace)
        .join(id.to_string());
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    (plain && path.ends_with(own)).then_some(path)
}

/// How long containerd takes at most from making the folder to having a shim, with room.
const MAKING: Duration = Duration::from_secs(5);

/// Whether containerd may still be at work in it: asked by an agent that is gone meanwhile it goes on, without task or shim yet.
pub fn is_being_made(bundle: &Path, now: SystemTime) -> bool {
    let changed = fs::metadata(bundle).and_then(|about| about.modified());
    // One from the future is of a clock that was set back, and tells nothing.
    changed.is_ok_and(|then| now.duration_since(then).is_ok_and(|age| age < MAKING))
}

/// Removes it. Only to be called for a container that has neither task nor shim.
///
/// # Errors
/// When something is still mounted or kept in it, which stays then.
pub fn remove(bundle: &Path) -> io::Result<()> {
    let rootfs = bundle.join("rootfs");
    loop {
        match umount2(&rootfs, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::symlink_metadata(&rootfs) {
        // Whatever is in it would be the container's own files: an empty folder or nothing at all may go.
        Ok(found) if found.dev() == fs::symlink_metadata(bundle)?.dev() => fs::remove_dir(&rootfs)?,
        Ok(_) => return Err(io::Error::other(format!("{} is still mounted", rootfs.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    match fs::remove_dir_all(bundle) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_containers_own_folder_is_in_the_way() {
        let id = ContainerId::random();
        let path = format!("/run/containerd/io.containerd.runtime.v2.task/berth/{id}");
        let said = |path: &str| format!("failed to start shim: mkdir {path}: file exists: unknown");
        assert_eq!(in_the_way(&said(&path), "berth", id), Some(PathBuf::from(&path)));
        assert_eq!(in_the_way(&said(&path), "k8s.io", id), None);
        assert_eq!(in_the_way(&said(&path), "berth", ContainerId::random()), None);
        let up = format!("/run/../io.containerd.runtime.v2.task/berth/{id}");
        assert_eq!(in_the_way(&said(&up), "berth", id), None);
        assert_eq!(in_the_way("mkdir /run/x: permission denied", "berth", id), None);
    }

    #[test]
    fn what_is_in_the_root_is_never_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join("b");
        fs::create_dir_all(bundle.join("rootfs")).unwrap();
        fs::write(bundle.join("config.json"), "{}").unwrap();
        let now = SystemTime::now();
        assert!(is_being_made(&bundle, now) && !is_being_made(&bundle, now + MAKING));
        assert!(!is_being_made(&bundle, now - Duration::from_secs(3600)));
        assert!(!is_being_made(&dir.path().join("nothing"), now));
        let kept = bundle.join("rootfs/file");
        fs::write(&kept, "x").unwrap();
        assert!(remove(&bundle).is_err());
        assert!(kept.exists());
        fs::remove_file(&kept).unwrap();
        remove(&bundle).unwrap();
        assert!(!bundle.exists());
        remove(&bundle).unwrap();
    }
}
