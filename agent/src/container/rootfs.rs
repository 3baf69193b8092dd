//! Effects on a container's root file system: id mapping, owners, and reading single files from it safely.
//!
//! Nothing here follows a link out of the container: files are opened by openat2 inside its root, must be regular, and
//! are read up to a bound.

use std::fs;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, umount2};

use super::idrange;
use crate::sys::idmap;

/// Largest passwd or group file that is read.
const MAX_FILE: u64 = 1 << 20;

/// What a snapshotter's mounts mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Layers below a writable directory.
    Overlay {
        /// Read-only layers, top first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// The kernel's scratch beside it.
        work: PathBuf,
        /// Other options.
        rest: Vec<String>,
    },
    /// A btrfs subvolume or plain directory that is the whole root.
    Whole(Mount),
}

/// Understands a snapshotter's mounts; `None` if they are of an unknown form.
pub fn layout(mounts: &[Mount]) -> Option<Layout> {
    let [mount] = mounts else { return None };
    if mount.r#type != "overlay" {
        return Some(Layout::Whole(mount.clone()));
    }
    let (mut lower, mut upper, mut work, mut rest) = (None, None, None, Vec::new());
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", dirs)) => lower = Some(dirs.split(':').map(PathBuf::from).collect()),
            Some(("upperdir", dir)) => upper = Some(PathBuf::from(dir)),
            Some(("workdir", dir)) => work = Some(PathBuf::from(dir)),
            _ => rest.push(option.clone()),
        }
    }
    Some(Layout::Overlay {
        lower: lower?,
        upper: upper?,
        work: work?,
        rest,
    })
}

/// Where the writable layer of `layout` is on the host, if it is a directory of its own.
pub fn writable(layout: &Layout) -> Option<&Path> {
    match layout {
        Layout::Overlay { upper, .. } => Some(upper),
        Layout::Whole(mount) if mount.r#type == "bind" => Some(Path::new(&mount.source)),
        Layout::Whole(_) => None,
    }
}

/// Gives the writable layer to the container's root, so that it may write; already given is fine. `base` 0: nobody.
///
/// # Errors
/// As chown(2).
pub fn give_writable(layout: &Layout, base: u32) -> io::Result<()> {
    let Layout::Overlay { upper, work, .. } = layout else {
        return Ok(());
    };
    for dir in [upper, work] {
        let found = fs::symlink_metadata(dir)?;
        let shift = |id: u32| if id < idrange::SIZE { base + id } else { id };
        let (uid, gid) = (shift(found.uid()), shift(found.gid()));
        if (uid, gid) != (found.uid(), found.gid()) {
            chown(dir, Some(uid), Some(gid))?;
        }
    }
    Ok(())
}

/// A mount that is taken away again when this is dropped. Overlay mounts made from it keep what they need.
#[derive(Debug)]
pub struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

/// Takes every mount off `path` and removes the empty directory; nothing there is fine.
pub fn detach(path: &Path) {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    let _ = fs::remove_dir(path);
}

fn fresh_dir(path: &Path) -> io::Result<()> {
    // A killed predecessor may have left its mount.
    detach(path);
    fs::create_dir_all(path)
}

/// The mounts for the runtime with owners shifted to `base`, through a mount below `dir` that must live until the
/// runtime has mounted them. One mapped mount of the folder that holds all layers serves them all.
///
/// # Errors
/// When the kernel or file system can't map ids (Linux before 5.19 for overlayfs), or a mount fails.
pub fn mapped(layout: &Layout, dir: &Path, base: u32) -> io::Result<(Vec<Mount>, Mounted)> {
    let target = dir.join("l");
    fresh_dir(&target)?;
    let namespace = idmap::user_namespace(base)?;
    match layout {
        Layout::Overlay {
            lower,
            upper,
            work,
            rest,
        } => {
            let shared = common_parent(lower).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::InvalidData,
                    "the image's layers have no common folder",
                )
            })?;
            idmap::mount(&shared, &target, &namespace)?;
            let held = Mounted(target.clone());
            let shift = |path: &PathBuf| match path.strip_prefix(&shared) {
                Ok(tail) => target.join(tail).to_string_lossy().into_owned(),
                Err(_) => path.to_string_lossy().into_owned(),
            };
            let dirs: Vec<String> = lower.iter().map(shift).collect();
            let mut options = rest.clone();
            options.push(format!("workdir={}", work.display()));
            options.push(format!("upperdir={}", upper.display()));
            options.push(format!("lowerdir={}", dirs.join(":")));
            let mount = Mount {
                r#type: "overlay".into(),
                source: "overlay".into(),
                options,
                ..Default::default()
            };
            Ok((vec![mount], held))
        }
        Layout::Whole(whole) => {
            let plain = dir.join("p");
            fresh_dir(&plain)?;
            mount_whole(whole, &plain)?;
            let under = Mounted(plain.clone());
            idmap::mount(&plain, &target, &namespace)?;
            let held = Mounted(target.clone());
            drop(under);
            let source = target.to_string_lossy().into_owned();
            let options = vec!["bind".to_owned(), "rw".to_owned()];
            Ok((
                vec![Mount {
                    r#type: "bind".into(),
                    source,
                    options,
                    ..Default::default()
                }],
                held,
            ))
        }
    }
}

fn mount_whole(mount: &Mount, target: &Path) -> io::Result<()> {
    let source = Path::new(&mount.source);
    if mount.r#type == "bind" {
        return Ok(nix::mount::mount(
            Some(source),
            target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?);
    }
    let data: Vec<&str> = mount
        .options
        .iter()
        .map(String::as_str)
        .filter(|o| !matches!(*o, "rw" | "ro"))
        .collect();
    let kind = Some(mount.r#type.as_str());
    Ok(nix::mount::mount(
        Some(source),
        target,
        kind,
        MsFlags::empty(),
        Some(data.join(",").as_str()),
    )?)
}

/// Runs `work` on the path of a whole-root snapshot, mounted for the moment.
///
/// # Errors
/// As mount(2), or what `work` returns.
pub fn with_whole<T>(mount: &Mount, dir: &Path, work: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let target = dir.join("p");
    fresh_dir(&target)?;
    mount_whole(mount, &target)?;
    let held = Mounted(target.clone());
    let result = work(&target);
    drop(held);
    result
}

fn common_parent(paths: &[PathBuf]) -> Option<PathBuf> {
    // `<root>/snapshots/<n>/fs`: the folder above all numbers.
    let mut shared = paths.first()?.parent()?.parent()?.to_owned();
    while !paths.iter().all(|path| path.starts_with(&shared)) {
        shared = shared.parent()?.to_owned();
    }
    (shared != Path::new("/")).then_some(shared)
}

/// The image's passwd and group files, read from a mount that exists only for this call.
///
/// # Errors
/// When the root can't be mounted.
pub fn account_files(layout: &Layout, dir: &Path) -> io::Result<(String, String)> {
    match layout {
        Layout::Overlay { lower, .. } if lower.len() == 1 => accounts_below(&open_root(&lower[0])?),
        Layout::Overlay { lower, .. } => {
            let shared = common_parent(lower).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
            // Through a short path: the option string of a mount is limited to a page.
            let (short, root) = (dir.join("s"), dir.join("r"));
            fresh_dir(&short)?;
            nix::mount::mount(
                Some(&shared),
                &short,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            let _short = Mounted(short.clone());
            fresh_dir(&root)?;
            let dirs: Vec<String> = lower
                .iter()
                .filter_map(|path| path.strip_prefix(&shared).ok())
                .map(|tail| short.join(tail).to_string_lossy().into_owned())
                .collect();
            let data = format!("lowerdir={}", dirs.join(":"));
            nix::mount::mount(
                Some("overlay"),
                &root,
                Some("overlay"),
                MsFlags::MS_RDONLY,
                Some(data.as_str()),
            )?;
            let _root = Mounted(root.clone());
            accounts_below(&open_root(&root)?)
        }
        Layout::Whole(mount) => with_whole(mount, dir, |path| accounts_below(&open_root(path)?)),
    }
}

/// The passwd and group files below an opened root; empty where there are none.
///
/// # Errors
/// When one exists and can't be read.
pub fn accounts_below(root: &OwnedFd) -> io::Result<(String, String)> {
    Ok((read_inside(root, "etc/passwd")?, read_inside(root, "etc/group")?))
}

/// Opens a root directory for [`accounts_below`]: a mount, or `/proc/<pid>/root` of a running container.
///
/// # Errors
/// As open(2).
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, nix::sys::stat::Mode::empty())?)
}

fn read_inside(root: &OwnedFd, path: &str) -> io::Result<String> {
    // Not blocking: a hostile image may have a fifo there.
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(root.as_fd(), path, how) {
        Ok(file) => fs::File::from(file),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR | nix::errno::Errno::ELOOP) => {
            return Ok(String::new());
        }
        Err(errno) => return Err(errno.into()),
    };
    if !file.metadata()?.is_file() {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_options_are_understood() {
        let mount = Mount {
            r#type: "overlay".into(),
            options: [
                "index=off",
                "workdir=/s/3/work",
                "upperdir=/s/3/fs",
                "lowerdir=/s/2/fs:/s/1/fs",
            ]
            .map(String::from)
            .to_vec(),
            ..Default::default()
        };
        let Some(Layout::Overlay {
            lower,
            upper,
            work,
            rest,
        }) = layout(&[mount])
        else {
            panic!()
        };
        assert_eq!(lower, [PathBuf::from("/s/2/fs"), PathBuf::from("/s/1/fs")]);
        assert_eq!(
            (upper, work),
            (PathBuf::from("/s/3/fs"), PathBuf::from("/s/3/work"))
        );
        assert_eq!(rest, ["index=off"]);
        assert_eq!(common_parent(&lower), Some(PathBuf::from("/s")));
        assert_eq!(layout(&[]), None);
    }

    #[test]
    fn links_stay_inside_and_pipes_do_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let (root, etc) = (dir.path().join("root"), dir.path().join("root/etc"));
        fs::create_dir_all(&etc).unwrap();
        fs::write(dir.path().join("secret"), "outside").unwrap();
        std::os::unix::fs::symlink("../../../secret", etc.join("passwd")).unwrap();
        nix::unistd::mkfifo(&etc.join("group"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        assert_eq!(
            accounts_below(&open_root(&root).unwrap()).unwrap(),
            (String::new(), String::new())
        );
        fs::write(root.join("secret"), "inside").unwrap();
        assert_eq!(accounts_below(&open_root(&root).unwrap()).unwrap().0, "inside");
    }
}
