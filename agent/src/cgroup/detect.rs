//! Which control group version this host runs, told from the files below the mount.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{io, read, read_number};
use super::v1::{Hierarchies, V1};
use super::v2::V2;
use super::{CgroupError, Cgroups, DEFAULT_PARENT, DELEGATED};

/// Numbers of the running kernel that conversions need; inputs, so that tests choose them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kernel {
    /// Page size, bytes.
    pub page: u64,
    /// How many processes and threads there can be on the host.
    pub pid_max: u64,
}

impl Kernel {
    /// The running kernel's.
    ///
    /// # Errors
    /// When `/proc/sys/kernel` can't be read.
    pub fn running() -> Result<Self, CgroupError> {
        let number = |path: &str| Ok::<_, CgroupError>(read_number(Path::new(path))?.unwrap_or(u64::MAX));
        let pid_max = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
            .ok()
            .flatten()
            .and_then(|page| u64::try_from(page).ok())
            .filter(|page| *page > 0)
            .unwrap_or(4096);
        Ok(Self { page, pid_max })
    }
}

/// berth's top cgroup below `mount` for a configured one: `auto` is what systemd delegates, where it does, else
/// `berth.slice`.
pub fn parent_for(mount: &Path, configured: &str) -> String {
    if configured != "auto" {
        return configured.to_owned();
    }
    // v2 has one tree; v1 has one for each controller.
    let delegated = [mount.to_path_buf(), mount.join("memory")]
        .iter()
        .any(|tree| tree.join(DELEGATED).is_dir());
    match delegated {
        true => format!("{DELEGATED}/node"),
        false => DEFAULT_PARENT.to_owned(),
    }
}

/// The control groups below `mount` (normally `/sys/fs/cgroup`), with berth's top cgroup `parent`, as
/// [`parent_for`] understands it.
///
/// v1 controllers with a v2 tree beside them that controls none of CPU, memory, pids and IO (hybrid) count as v1.
///
/// # Errors
/// [`CgroupError::NoController`] with a cure when the host lacks one that limits need (R1).
pub fn detect(mount: &Path, parent: &str) -> Result<Arc<dyn Cgroups>, CgroupError> {
    let kernel = Kernel::running()?;
    let parent = parent_for(mount, parent);
    if mount.join("cgroup.controllers").exists() {
        return Ok(Arc::new(V2::new(mount.to_path_buf(), kernel, parent)?));
    }
    let hierarchies = Hierarchies::below(mount)?;
    Ok(Arc::new(V1::new(hierarchies, kernel, parent)))
}

impl Hierarchies {
    /// Finds the v1 hierarchies below `mount`, also controllers mounted together (`cpu,cpuacct`).
    ///
    /// # Errors
    /// [`CgroupError::NoController`] for the first that is missing.
    pub fn below(mount: &Path) -> Result<Self, CgroupError> {
        let entries = std::fs::read_dir(mount).map_err(|error| io("reading", mount, error))?;
        let mut all: Vec<PathBuf> = Vec::new();
        let mut names: Vec<(String, PathBuf)> = Vec::new();
        for entry in entries {
            let path = entry.map_err(|error| io("reading", mount, error))?.path();
            // Distributions link `cpu` to `cpu,cpuacct`: one hierarchy, not two.
            let Ok(real) = path.canonicalize() else { continue };
            if !real.join("cgroup.procs").exists() {
                continue;
            }
            if let Some(name) = path.file_name().and_then(|name| name.to_str()) {
                names.extend(name.split(',').map(|part| (part.to_owned(), real.clone())));
            }
            all.push(real);
        }
        all.sort();
        all.dedup();
        let hierarchy = |controller: &'static str| {
            names
                .iter()
                .find(|(name, _)| name == controller)
                .map(|(_, path)| path.clone())
                .ok_or_else(|| {
                    let unified = all.iter().any(|path| {
                        let held = read(&path.join("cgroup.controllers")).unwrap_or_default();
                        let v2_name = if controller == "blkio" { "io" } else { controller };
                        held.split_whitespace().any(|name| name == v2_name)
                    });
                    let cure = if unified {
                        "it is bound to the v2 tree of a hybrid set-up; boot with systemd.unified_cgroup_hierarchy=1 \
                         to use v2 for all, or take cgroup_no_v1 off the kernel command line"
                            .to_owned()
                    } else {
                        format!(
                            "mount it below {} or, if the kernel has it switched off, boot with cgroup_enable={controller}",
                            mount.display()
                        )
                    };
                    CgroupError::NoController { controller, cure }
                })
        };
        Ok(Self {
            cpu: hierarchy("cpu")?,
            cpuacct: hierarchy("cpuacct")?,
            memory: hierarchy("memory")?,
            pids: hierarchy("pids")?,
            blkio: hierarchy("blkio")?,
            unified: all
                .iter()
                .find(|path| path.join("cgroup.controllers").exists())
                .cloned(),
            all,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(dir: &Path, controllers: Option<&str>) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("cgroup.procs"), "").unwrap();
        if let Some(controllers) = controllers {
            std::fs::write(dir.join("cgroup.controllers"), controllers).unwrap();
        }
    }

    #[test]
    fn hybrid_counts_as_v1_and_joint_mounts_are_one_hierarchy() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu,cpuacct", "memory", "pids", "blkio", "systemd"] {
            group(&dir.path().join(name), None);
        }
        group(&dir.path().join("unified"), Some("hugetlb\n"));
        for link in ["cpu", "cpuacct"] {
            std::os::unix::fs::symlink("cpu,cpuacct", dir.path().join(link)).unwrap();
        }
        std::fs::create_dir(dir.path().join("no-hierarchy")).unwrap();
        let found = Hierarchies::below(dir.path()).unwrap();
        assert_eq!(found.cpu, found.cpuacct);
        assert_eq!(found.all.len(), 6);
        assert!(found.unified.is_some());
        assert_eq!(detect(dir.path(), DEFAULT_PARENT).unwrap().version(), 1);
    }

    #[test]
    fn what_systemd_delegates_is_used() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(parent_for(dir.path(), "auto"), "berth.slice");
        assert_eq!(parent_for(dir.path(), "mine.slice"), "mine.slice");
        std::fs::create_dir_all(dir.path().join("memory").join(DELEGATED)).unwrap();
        let delegated = "berth.slice/berth-containers.service/node";
        assert_eq!(parent_for(dir.path(), "auto"), delegated);
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join(DELEGATED)).unwrap();
        assert_eq!(parent_for(dir.path(), "auto"), delegated);
    }

    #[test]
    fn pure_v2() {
        let dir = tempfile::tempdir().unwrap();
        group(dir.path(), Some("cpuset cpu io memory pids\n"));
        assert_eq!(detect(dir.path(), DEFAULT_PARENT).unwrap().version(), 2);
    }

    #[test]
    fn a_missing_controller_is_named_with_a_cure() {
        let dir = tempfile::tempdir().unwrap();
        group(dir.path(), Some("cpuset cpu io pids\n"));
        let error = detect(dir.path(), DEFAULT_PARENT).err().unwrap().to_string();
        assert!(
            error.contains("memory controller") && error.contains("cgroup_enable=memory"),
            "{error}"
        );

        let dir = tempfile::tempdir().unwrap();
        for name in ["cpu", "cpuacct", "pids", "blkio"] {
            group(&dir.path().join(name), None);
        }
        let error = detect(dir.path(), DEFAULT_PARENT).err().unwrap().to_string();
        assert!(
            error.contains("memory controller") && error.contains("cgroup_enable=memory"),
            "{error}"
        );
        group(&dir.path().join("unified"), Some("memory\n"));
        let error = detect(dir.path(), DEFAULT_PARENT).err().unwrap().to_string();
        assert!(error.contains("systemd.unified_cgroup_hierarchy=1"), "{error}");
    }
}
