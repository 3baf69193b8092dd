//! What is mounted inside a container, and which namespaces it has. Pure.

use berth_common::model::ContainerSpec;
use oci_spec::OciSpecError;
use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount, MountBuilder};

use super::spec::{BadSpec, Given, Host, INIT, absolute};

/// Size of /dev/shm, as Docker's.
const SHM: &str = "size=65536k";

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        .build()
}

/// Every mount inside, in order.
///
/// # Errors
/// When a tmpfs or a volume has a bad path.
pub(super) fn mounts(spec: &ContainerSpec, host: &Host, given: &Given<'_>) -> Result<Vec<Mount>, BadSpec> {
    let sys = if spec.privileged { "rw" } else { "ro" };
    let mut list = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])?,
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        )?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        )?,
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", SHM],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"])?,
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys])?,
    ];
    if host.cgroup_namespaces || host.cgroup_version == 1 {
        // Read-only also when privileged: limits are not the container's to change.
        list.push(mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"],
        )?);
    }
    let mut own = Vec::new();
    for tmpfs in &spec.tmpfs {
        let target = absolute("tmpfs", &tmpfs.path)?;
        let size = format!("size={}", tmpfs.size.0);
        let options = ["nosuid", "nodev", "mode=1777", size.as_str()];
        own.push(mount(&target.to_string_lossy(), "tmpfs", "tmpfs", &options)?);
    }
    for (number, volume) in spec.volumes.iter().enumerate() {
        let target = absolute("volume path", &volume.path)?;
        let source = given.volumes.join(number.to_string());
        let access = if volume.is_read_only() { "ro" } else { "rw" };
        let options = ["bind", access, "nosuid", "nodev", "rprivate"];
        own.push(mount(
            &target.to_string_lossy(),
            "bind",
            &source.to_string_lossy(),
            &options,
        )?);
    }
    // One at a path within another's would be hidden by it.
    own.sort_by_key(|mount| mount.destination().components().count());
    list.extend(own);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let source = given.files.join(name);
        let options = ["bind", "ro", "nosuid", "nodev", "noexec", "rprivate"];
        list.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source.to_string_lossy(),
            &options,
        )?);
    }
    if spec.init {
        list.push(mount(
            INIT,
            "bind",
            &given.init.to_string_lossy(),
            &["bind", "ro", "nosuid", "nodev", "rprivate"],
        )?);
    }
    Ok(list)
}

/// The namespaces a container gets.
///
/// # Errors
/// Never in practice: only if oci-spec's builders refuse.
pub(super) fn namespaces(spec: &ContainerSpec, host: &Host) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let mut kinds = vec![
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Network,
    ];
    if host.cgroup_namespaces {
        kinds.push(LinuxNamespaceType::Cgroup);
    }
    if !spec.privileged {
        kinds.push(LinuxNamespaceType::User);
    }
    kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
        .collect()
}
