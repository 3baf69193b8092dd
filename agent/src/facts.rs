//! What this host is: gathered at start and every quarter of a minute, told when it changes.
//!
//! Owns reading `/proc`, `os-release` and the file systems of containerd's data and the agent's own. What can't be read is told
//! as a warning and never invented; only memory and CPU must be there, since nothing can be limited without knowing them.

use std::path::{Path, PathBuf};

use berth_common::model::{Architecture, Capacity, NodeFacts};
use berth_common::units::{Bytes, Millicores};
use procfs::Current as _;
use sysinfo::System;

use crate::cgroup::Cgroups;
use crate::config::{Config, allocatable};

/// Free room below which a disk counts as full; on small ones it is a twentieth.
const LEAST_FREE: Bytes = Bytes::mib(256);

/// Why the host can't be described.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// `/proc` can't be read.
    #[error("reading {what}")]
    Proc {
        /// Which part.
        what: &'static str,
        /// The complaint.
        #[source]
        source: procfs::ProcError,
    },
    /// Nothing is left for containers.
    #[error("system_reserve leaves no {0} for containers on this host; lower it")]
    NothingLeft(&'static str),
}

/// What the runtime side told: passed in, since asking it is not this module's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeFacts {
    /// containerd's version, or why it can't be reached.
    pub version: String,
    /// The snapshotter in use.
    pub snapshotter: String,
    /// Whether it enforces disk limits.
    pub disk_limit_hard: bool,
}

/// The facts of this host.
///
/// # Errors
/// [`FactsError`].
pub fn gather(
    config: &Config,
    cgroups: &dyn Cgroups,
    runtime: RuntimeFacts,
) -> Result<NodeFacts, FactsError> {
    let mut warnings = cgroups.warnings();
    let (capacity, missing) = capacity(&config.containerd_root)?;
    warnings.extend(missing);
    warnings.extend(rooms(config));
    let reserve: Capacity = config.system_reserve.into();
    let left = allocatable(capacity, reserve);
    if left.cpu.0 == 0 {
        return Err(FactsError::NothingLeft("CPU"));
    }
    if left.memory.0 == 0 {
        return Err(FactsError::NothingLeft("memory"));
    }
    if left.disk.0 == 0 {
        warnings.push(format!(
            "no disk is left for containers: the file system of {} has {}, of which {} are reserved",
            config.containerd_root.display(),
            capacity.disk,
            reserve.disk
        ));
    }
    if !runtime.disk_limit_hard {
        warnings.push(
            "disk limits are watched, not enforced: a container can exceed its limit for some seconds before it is stopped; \
             put containerd's data on btrfs for hard limits"
                .to_owned(),
        );
    }
    let unknown = || "unknown".to_owned();
    Ok(NodeFacts {
        hostname: System::host_name().unwrap_or_else(unknown),
        agent_version: berth_common::VERSION.to_owned(),
        os: os_name(System::name(), System::os_version()),
        kernel: System::kernel_version().unwrap_or_else(unknown),
        arch: Architecture(architecture(std::env::consts::ARCH).to_owned()),
        capacity,
        system_reserve: reserve,
        cgroup_version: cgroups.version(),
        runtime: runtime.version,
        snapshotter: runtime.snapshotter,
        disk_limit_hard: runtime.disk_limit_hard,
        boot_id: boot_id(),
        underlay: None,
        volumes: None,
        warnings,
    })
}

/// Facts before anything is set up, for joining; the runtime is told to be unknown.
///
/// # Errors
/// [`FactsError`].
pub fn before_running(
    config: &Config,
    cgroups: &dyn Cgroups,
    version: String,
) -> Result<NodeFacts, FactsError> {
    let (snapshotter, disk_limit_hard) = snapshotter(config);
    gather(
        config,
        cgroups,
        RuntimeFacts {
            version,
            snapshotter,
            disk_limit_hard,
        },
    )
}

/// The snapshotter in use and whether it enforces disk limits.
pub fn snapshotter(config: &Config) -> (String, bool) {
    let name = match config.snapshotter.as_str() {
        "auto" if is_btrfs(&config.containerd_root) => "btrfs",
        "auto" => "overlayfs",
        other => other,
    };
    (name.to_owned(), name == "btrfs")
}

fn is_btrfs(path: &Path) -> bool {
    nix::sys::statfs::statfs(nearest(path))
        .is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::BTRFS_SUPER_MAGIC)
}

/// Where a program is; also where only root's path has it.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path);
    let usual = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    dirs.chain(usual)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// The path, or the nearest above it that exists: containerd makes its folder only when it starts.
pub fn nearest(path: &Path) -> &Path {
    path.ancestors()
        .find(|part| part.exists())
        .unwrap_or(Path::new("/"))
}

/// What the hardware has, and what of it could not be told.
fn capacity(layers: &Path) -> Result<(Capacity, Vec<String>), FactsError> {
    let memory = procfs::Meminfo::current().map_err(|source| FactsError::Proc {
        what: "/proc/meminfo",
        source,
    })?;
    // Not what this process may use: the service manager's limits on the agent are not the containers'.
    let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
    let cpus = cpus.ok().flatten().unwrap_or(1).max(1);
    let mut warnings = Vec::new();
    let disk = match nix::sys::statvfs::statvfs(nearest(layers)) {
        Ok(stat) => Bytes(stat.blocks().saturating_mul(stat.fragment_size())),
        Err(error) => {
            warnings.push(format!("the size of {} is unknown: {error}", layers.display()));
            Bytes(0)
        }
    };
    let capacity = Capacity {
        cpu: Millicores(u32::try_from(cpus).unwrap_or(u32::MAX).saturating_mul(1000)),
        memory: Bytes(memory.mem_total),
        disk,
    };
    Ok((capacity, warnings))
}

/// What is wrong with the file systems that the agent and containerd write to; each is named once.
fn rooms(config: &Config) -> Vec<String> {
    let mut seen = Vec::new();
    let mut warnings = Vec::new();
    for path in [&config.containerd_root, &config.state_dir] {
        let Ok(stat) = nix::sys::statvfs::statvfs(nearest(path)) else {
            continue;
        };
        if !seen.contains(&stat.filesystem_id()) {
            seen.push(stat.filesystem_id());
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.fragment_size()));
            let read_only = stat.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
            let (free, total) = (bytes(stat.blocks_available()), bytes(stat.blocks()));
            warnings.extend(room(&path.display().to_string(), free, total, read_only));
        }
    }
    warnings
}

/// Without figures: a warning that changes with each block written would be news each time.
fn room(path: &str, free: Bytes, total: Bytes, read_only: bool) -> Option<String> {
    if read_only {
        return Some(format!(
            "the file system of {path} is read-only, as after an IO error: nothing can start here; see `dmesg`, mend it, then \
             mount it anew or reboot"
        ));
    }
    let least = Bytes(LEAST_FREE.0.min(total.0 / 20));
    (free < least).then(|| {
        format!(
            "the disk is full: less than {LEAST_FREE} or a twentieth is free under {path}, so starts, pulls and writes fail; \
             free some, or enlarge it"
        )
    })
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|text| text.trim().to_owned())
        .unwrap_or_default()
}

/// As image indexes name it.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What people call the system: its name and, where it has one, its version.
fn os_name(name: Option<String>, version: Option<String>) -> String {
    let parts = [name, version].into_iter().flatten();
    let parts: Vec<_> = parts.filter(|part| !part.trim().is_empty()).collect();
    if parts.is_empty() {
        return "unknown Linux".to_owned();
    }
    berth_common::id::clip(&parts.join(" "), 120)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeCgroups;

    #[test]
    fn systems_without_version_or_name_are_told_as_they_are() {
        let some = |text: &str| Some(text.to_owned());
        for (name, version, want) in [
            (some("Debian GNU/Linux"), some("12"), "Debian GNU/Linux 12"),
            (some("Arch Linux"), None, "Arch Linux"),
            (some(""), some(" "), "unknown Linux"),
            (None, None, "unknown Linux"),
        ] {
            assert_eq!(os_name(name, version), want);
        }
    }

    #[test]
    fn full_and_read_only_disks_are_told() {
        let told = |free, total, read_only| room("/x", free, total, read_only).unwrap_or_default();
        assert!(told(Bytes::gib(90), Bytes::gib(100), true).contains("read-only"));
        assert!(told(Bytes::mib(255), Bytes::gib(100), false).contains("full"));
        assert!(
            told(Bytes(0), Bytes(0), false).is_empty(),
            "a file system without blocks"
        );
        assert!(told(Bytes::mib(256), Bytes::gib(100), false).is_empty());
        assert!(
            told(Bytes::mib(60), Bytes::gib(1), false).is_empty(),
            "small disks may be small"
        );
    }

    #[test]
    fn this_host_can_be_described() {
        let config = Config {
            containerd_root: "/nonexistent/containerd".into(),
            ..Config::default()
        };
        let facts = before_running(&config, &FakeCgroups::default(), "1.6.20".into()).unwrap();
        assert!(facts.capacity.cpu.0 >= 1000 && facts.capacity.memory > Bytes::mib(64));
        assert!(facts.capacity.disk > Bytes(0), "the nearest folder's file system");
        assert_eq!(facts.boot_id.len(), 36);
        assert_eq!((facts.runtime.as_str(), facts.cgroup_version), ("1.6.20", 2));
        assert_eq!(
            facts.disk_limit_hard,
            facts.warnings.iter().all(|w| !w.contains("watched"))
        );
    }

    #[test]
    fn a_reserve_above_the_host_is_an_error() {
        let mut config = Config::default();
        config.system_reserve.memory = Bytes(u64::MAX);
        let error = before_running(&config, &FakeCgroups::default(), String::new()).unwrap_err();
        assert!(error.to_string().contains("memory") && error.to_string().contains("system_reserve"));
    }
}
