//! The OCI runtime spec of a container. Pure: what the image's files say about users, what the host can do, and which
//! ids are free are inputs.
//!
//! Every spec carries every limit (R1), privileged or not. hosts, hostname and resolv.conf are read-only binds, since
//! they lie outside the writable layer and its disk limit. /dev/shm and tmpfs count as the container's memory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use berth_common::model::{Class, ContainerSpec, Limits, MemorySwap};
use oci_spec::OciSpecError;
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{
    LinuxBlockIoBuilder, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxCpu, LinuxDeviceCgroupBuilder,
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxMemory, LinuxPids, LinuxResources, LinuxResourcesBuilder,
    LinuxThrottleDevice, LinuxThrottleDeviceBuilder, PosixRlimitBuilder, PosixRlimitType, Process,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::caps::{self, UnknownCapability};
use super::mounts;
use super::runtime::ContainerMeta;
use super::seccomp;
use super::users::Identity;
use crate::cgroup::{self, Device};

/// Search path when image and user give none.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where the init appears inside; /dev is a fresh tmpfs, so that it leaves no trace in the image.
pub const INIT: &str = "/dev/.berth-init";
const OPEN_FILES: u64 = 1 << 20;
const OPEN_FILES_SOFT: u64 = 1 << 16;

const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/security",
];
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// The OOM score adjustment of best-effort containers: the highest there is.
const OOM_FIRST: i32 = 1000;

/// What a spec depends on besides the request.
#[derive(Debug, Clone)]
pub struct Host {
    /// The device to throttle, if there is one.
    pub device: Option<Device>,
    /// The host's bounding set: what a privileged container can at most have.
    pub bounding: BTreeSet<u8>,
    /// Hard limit on open files that may not be exceeded.
    pub open_files: u64,
    /// OOM score adjustment; not below containerd's.
    pub oom_score_adj: i32,
    /// Whether the kernel has cgroup namespaces.
    pub cgroup_namespaces: bool,
    /// 1 or 2.
    pub cgroup_version: u8,
    /// `std::env::consts::ARCH`.
    pub machine: &'static str,
}

/// Files and ids chosen for one container.
#[derive(Debug, Clone)]
pub struct Given<'a> {
    /// First host id of its range.
    pub base: u32,
    /// Whom it runs as.
    pub identity: &'a Identity,
    /// Holds hosts, hostname and resolv.conf.
    pub files: &'a Path,
    /// Its volumes are mounted in there, each in a folder named by its place in the spec, from 0.
    pub volumes: &'a Path,
    /// The init binary.
    pub init: &'a Path,
    /// Its cgroup below each controller's mount, see [`Cgroups::container_path`](crate::cgroup::Cgroups::container_path).
    pub cgroup: &'a str,
}

/// Why no spec could be made. Trying again does not help.
#[derive(Debug, thiserror::Error)]
pub enum BadSpec {
    /// Nothing to run.
    #[error("neither the image nor the service says what to run; give a command")]
    NoCommand,
    /// A capability's name.
    #[error(transparent)]
    Capability(#[from] UnknownCapability),
    /// A path that must be absolute.
    #[error("{what} {path:?} must be an absolute path without \"..\"")]
    Path {
        /// Which field.
        what: &'static str,
        /// Its value.
        path: String,
    },
    /// A NUL byte, which no program can be given.
    #[error("{0} contains a NUL byte")]
    Nul(&'static str),
    /// A limit that can't be put in force (R1).
    #[error("its limit on swap is of a kind that this agent does not know; upgrade the agent")]
    Swap,
    /// The user.
    #[error(transparent)]
    User(#[from] super::users::UserError),
    /// oci-spec's own checks.
    #[error("the OCI spec can't be built")]
    Oci(#[from] OciSpecError),
}

/// The host name inside.
pub fn hostname(meta: &ContainerMeta, spec: &ContainerSpec) -> String {
    match &spec.hostname {
        Some(name) => name.to_string(),
        // A host name has at most 63 characters here; a long service name gives way to the number.
        None => {
            let tail = format!("-{}", meta.replica);
            let room = 63 - tail.len();
            let name: String = meta.service_name.as_str().chars().take(room).collect();
            format!("{name}{tail}")
        }
    }
}

/// The user a container runs as, still as text.
pub fn user<'a>(spec: &'a ContainerSpec, image: &'a ImageConfiguration) -> &'a str {
    let from_image = || image.config().as_ref().and_then(|c| c.user().as_deref());
    spec.user.as_deref().or_else(from_image).unwrap_or("").trim()
}

/// Program and arguments: a given entrypoint drops the image's command, as everywhere.
fn args(spec: &ContainerSpec, image: &ImageConfiguration) -> Result<Vec<String>, BadSpec> {
    let config = image.config().as_ref();
    let image_entry = config.and_then(|c| c.entrypoint().clone()).unwrap_or_default();
    let image_command = config.and_then(|c| c.cmd().clone()).unwrap_or_default();
    let (mut args, command) = match (&spec.entrypoint, &spec.command) {
        (Some(entry), command) => (entry.clone(), command.clone().unwrap_or_default()),
        (None, Some(command)) => (image_entry, command.clone()),
        (None, None) => (image_entry, image_command),
    };
    args.extend(command);
    if args.first().is_none_or(String::is_empty) {
        return Err(BadSpec::NoCommand);
    }
    if args.iter().any(|a| a.contains('\0')) {
        return Err(BadSpec::Nul("command"));
    }
    if spec.init {
        args.insert(0, INIT.to_owned());
    }
    Ok(args)
}

/// `KEY=value` lists merged, later ones winning, in a stable order.
pub fn merged_env<'a>(
    base: impl IntoIterator<Item = &'a String>,
    over: &BTreeMap<String, String>,
) -> Result<Vec<String>, BadSpec> {
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    for entry in base {
        if let Some((key, value)) = entry.split_once('=') {
            env.insert(key.to_owned(), value.to_owned());
        }
    }
    env.extend(over.clone());
    let list: Vec<String> = env
        .into_iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    if list.iter().any(|entry| entry.contains('\0')) {
        return Err(BadSpec::Nul("env"));
    }
    Ok(list)
}

pub(super) fn absolute(what: &'static str, path: &str) -> Result<PathBuf, BadSpec> {
    let given = Path::new(path);
    let dots = given
        .components()
        .any(|c| matches!(c, std::path::Component::ParentDir));
    if !given.is_absolute() || dots || path.contains('\0') {
        return Err(BadSpec::Path {
            what,
            path: berth_common::id::clip(path, 80),
        });
    }
    Ok(given.to_owned())
}

/// The OCI resources for `limits`; also what `Tasks.Update` gets.
///
/// # Errors
/// [`BadSpec::Swap`]; else never in practice: only if oci-spec's builders refuse.
pub fn resources(
    limits: &Limits,
    device: Option<Device>,
    privileged: bool,
) -> Result<LinuxResources, BadSpec> {
    if limits.swap != MemorySwap::None {
        return Err(BadSpec::Swap);
    }
    let mut cpu = LinuxCpu::default();
    cpu.set_quota(i64::try_from(cgroup::quota_us(limits.cpu)).ok());
    cpu.set_period(Some(cgroup::CPU_PERIOD_US));
    cpu.set_shares(Some(cgroup::shares_of_weight(limits.cpu_weight)));
    let bytes = i64::try_from(limits.memory.0).unwrap_or(i64::MAX);
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(bytes));
    // memory + swap = memory: no swap.
    memory.set_swap(Some(bytes));
    let mut pids = LinuxPids::default();
    pids.set_limit(i64::from(limits.pids));
    let devices = vec![
        LinuxDeviceCgroupBuilder::default()
            .allow(privileged)
            .access("rwm")
            .build()?,
    ];
    let builder = LinuxResourcesBuilder::default()
        .devices(devices)
        .cpu(cpu)
        .memory(memory)
        .pids(pids);
    let Some(device) = device else {
        return Ok(builder.build()?);
    };
    let throttle = |rate: u64| -> Result<Vec<LinuxThrottleDevice>, OciSpecError> {
        let major = i64::try_from(device.major).unwrap_or_default();
        let minor = i64::try_from(device.minor).unwrap_or_default();
        Ok(vec![
            LinuxThrottleDeviceBuilder::default()
                .major(major)
                .minor(minor)
                .rate(rate)
                .build()?,
        ])
    };
    let block = LinuxBlockIoBuilder::default()
        .throttle_read_bps_device(throttle(limits.io.read_bps.0)?)
        .throttle_write_bps_device(throttle(limits.io.write_bps.0)?)
        .throttle_read_iops_device(throttle(limits.io.read_iops.into())?)
        .throttle_write_iops_device(throttle(limits.io.write_iops.into())?)
        .build()?;
    Ok(builder.block_io(block).build()?)
}

fn process(
    spec: &ContainerSpec,
    image: &ImageConfiguration,
    host: &Host,
    given: &Given<'_>,
    capabilities: &BTreeSet<u8>,
) -> Result<Process, BadSpec> {
    let config = image.config().as_ref();
    let path = DEFAULT_PATH.to_owned();
    let image_env = config.and_then(|c| c.env().clone()).unwrap_or_default();
    let env = merged_env(std::iter::once(&path).chain(&image_env), &spec.env)?;
    let image_dir = config
        .and_then(|c| c.working_dir().as_deref())
        .filter(|d| !d.is_empty());
    let cwd = absolute(
        "working directory",
        spec.working_dir.as_deref().or(image_dir).unwrap_or("/"),
    )?;
    let set = caps::as_oci(capabilities);
    // Root has them in effect; another user gets none, but may reach the bounding set's by file capabilities unless
    // no_new_privileges forbids it. Nothing is inheritable or ambient.
    let mut oci = LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .inheritable([])
        .ambient([]);
    oci = if given.identity.uid == 0 {
        oci.effective(set.clone()).permitted(set)
    } else {
        oci.effective([]).permitted([])
    };
    let hard = host.open_files.min(OPEN_FILES);
    let files = PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .hard(hard)
        .soft(hard.min(OPEN_FILES_SOFT))
        .build()?;
    let who = UserBuilder::default()
        .uid(given.identity.uid)
        .gid(given.identity.gid)
        .additional_gids(given.identity.groups.clone())
        .build()?;
    Ok(ProcessBuilder::default()
        .terminal(false)
        .user(who)
        .args(args(spec, image)?)
        .env(env)
        .cwd(cwd)
        .capabilities(oci.build()?)
        .rlimits(vec![files])
        .no_new_privileges(!spec.privileged)
        .oom_score_adj(match spec.class {
            // Where the kernel has to choose, it chooses whoever has only what others leave.
            Class::BestEffort => OOM_FIRST,
            Class::Standard | Class::Unknown => host.oom_score_adj,
        })
        .build()?)
}

/// The whole spec.
///
/// # Errors
/// When the request can't be turned into a process: see [`BadSpec`].
pub fn build(
    meta: &ContainerMeta,
    spec: &ContainerSpec,
    image: &ImageConfiguration,
    host: &Host,
    given: &Given<'_>,
) -> Result<Spec, BadSpec> {
    let capabilities = if spec.privileged {
        host.bounding.clone()
    } else {
        caps::resolve(&spec.cap_add, &spec.cap_drop)?
    };
    let process = process(spec, image, host, given, &capabilities)?;
    let owned = |list: &[&str]| list.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>();
    let mut linux = LinuxBuilder::default()
        .resources(resources(&spec.limits, host.device, spec.privileged)?)
        .cgroups_path(given.cgroup)
        .namespaces(mounts::namespaces(spec, host)?)
        .rootfs_propagation("private");
    if spec.privileged {
        linux = linux.masked_paths(Vec::new()).readonly_paths(Vec::new());
    } else {
        let mapping: LinuxIdMapping = LinuxIdMappingBuilder::default()
            .container_id(0u32)
            .host_id(given.base)
            .size(super::idrange::SIZE)
            .build()?;
        linux = linux
            .uid_mappings(vec![mapping])
            .gid_mappings(vec![mapping])
            .seccomp(seccomp::profile(&capabilities, host.machine)?)
            .masked_paths(owned(&MASKED))
            .readonly_paths(owned(&READ_ONLY));
        // Pings and low ports without capabilities, as people expect of containers since Docker 20.10.
        linux = linux.sysctl(std::collections::HashMap::from([(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        )]));
    }
    Ok(SpecBuilder::default()
        .version("1.0.2")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(spec.read_only)
                .build()?,
        )
        .hostname(hostname(meta, spec))
        .process(process)
        .mounts(mounts::mounts(spec, host, given)?)
        .linux(linux.build()?)
        .build()?)
}
