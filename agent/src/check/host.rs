//! Checks of the host itself.

use std::path::Path;

use berth_common::units::Bytes;

use super::{Finding, version, volumes};
use crate::cgroup::{self, Backing, Device};
use crate::config::Config;
use crate::facts::{nearest, program};

/// Room below which the agent can't work, bytes.
const LEAST_ROOM: Bytes = Bytes::gib(1);

/// All of them, in the order people fix them.
pub(super) fn all(config: &Config) -> Vec<Finding> {
    let mut report = vec![
        root(nix::unistd::geteuid().is_root()),
        kernel(&read("/proc/sys/kernel/osrelease")),
        user_namespaces(
            Path::new("/proc/self/ns/user").exists(),
            &read("/proc/sys/user/max_user_namespaces"),
        ),
        overlayfs(&config.snapshotter, &read("/proc/filesystems")),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
    ];
    report.extend(cgroups(config));
    report.push(nft());
    report.push(vxlan());
    report.push(wireguard(config.wireguard_port));
    // One that is installed already is fine.
    let _ = rustls::crypto::ring::default_provider().install_default();
    report.push(authorities(reqwest::Client::builder().build().is_ok()));
    for (check, path) in [("disk", &config.containerd_root), ("state", &config.state_dir)] {
        report.push(room(check, path));
    }
    report.push(volumes::finding(config));
    let backing = cgroup::backing_of(nearest(&config.containerd_root));
    let backing = backing.map_err(|error| crate::reconcile::apply::chain(&error));
    report.push(throttle(&config.io_device, &config.containerd_root, backing));
    report.push(clock(
        jiff::Timestamp::now().as_second(),
        read("/sys/class/rtc/rtc0/since_epoch").trim().parse().ok(),
    ));
    report
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn root(is_root: bool) -> Finding {
    match is_root {
        true => Finding::ok("user", "root"),
        false => Finding::fail(
            "user",
            "not root: much of the rest can't be judged",
            "run it with sudo; the agent makes cgroups and mounts",
        ),
    }
}

fn kernel(release: &str) -> Finding {
    let release = release.trim();
    match version(release) {
        Some(found) if found >= (5, 10) => Finding::ok("kernel", release),
        Some(_) => Finding::fail(
            "kernel",
            format!("{release} is too old"),
            "use Linux 5.10 or newer",
        ),
        None => Finding::warn(
            "kernel",
            format!("version {release:?} can't be read"),
            "use Linux 5.10 or newer",
        ),
    }
}

fn user_namespaces(there: bool, max: &str) -> Finding {
    const CHECK: &str = "userns";
    if !there {
        return Finding::fail(
            CHECK,
            "the kernel has no user namespaces",
            "use a kernel with CONFIG_USER_NS",
        );
    }
    match max.trim().parse::<u64>() {
        Ok(0) => Finding::fail(
            CHECK,
            "user namespaces are switched off",
            "sysctl -w user.max_user_namespaces=15000, and in /etc/sysctl.d to keep it",
        ),
        Ok(max) if max < 256 => Finding::warn(
            CHECK,
            format!("only {max} user namespaces: each container needs one"),
            "raise user.max_user_namespaces",
        ),
        _ => Finding::ok(CHECK, "user namespaces"),
    }
}

/// Whether the kernel could load a module; nothing is loaded.
fn loadable(module: &str) -> bool {
    let dry_run = std::process::Command::new("modprobe")
        .args(["-n", "-q", module])
        .status();
    dry_run.is_ok_and(|status| status.success())
}

fn overlayfs(snapshotter: &str, filesystems: &str) -> Finding {
    const CHECK: &str = "overlayfs";
    if snapshotter == "btrfs" {
        return Finding::ok(CHECK, "not needed: snapshotter is btrfs");
    }
    if filesystems
        .lines()
        .any(|line| line.trim() == "overlay" || line.ends_with("\toverlay"))
    {
        return Finding::ok(CHECK, "overlay file systems");
    }
    if loadable("overlay") {
        return Finding::ok(CHECK, "overlay file systems, loaded when first used");
    }
    Finding::fail(
        CHECK,
        "the kernel has no overlay file system",
        "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS",
    )
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        return Finding::ok("seccomp", "system call filters");
    }
    Finding::fail(
        "seccomp",
        "the kernel can't filter system calls",
        "use a kernel with CONFIG_SECCOMP_FILTER",
    )
}

fn cgroups(config: &Config) -> Vec<Finding> {
    const CHECK: &str = "cgroups";
    let cgroups = match cgroup::detect(&config.cgroup_mount, &config.cgroup_parent) {
        Ok(cgroups) => cgroups,
        Err(cgroup::CgroupError::NoController { controller, cure }) => {
            return vec![Finding::fail(CHECK, format!("no {controller} controller"), cure)];
        }
        Err(error) => {
            let found = crate::reconcile::apply::chain(&error);
            return vec![Finding::fail(
                CHECK,
                found,
                "mount control groups at cgroup_mount",
            )];
        }
    };
    let all = "cpu, memory, pids and IO controllers";
    let mut report = vec![match cgroups.version() {
        1 => Finding::warn(
            CHECK,
            format!("version 1, with {all}"),
            "boot with systemd.unified_cgroup_hierarchy=1 for version 2",
        ),
        two => Finding::ok(CHECK, format!("version {two}, with {all}")),
    }];
    let warnings = cgroups.warnings().into_iter();
    report.extend(warnings.map(|warning| match warning.split_once("; ") {
        Some((found, cure)) => Finding::warn(CHECK, found, cure),
        None => Finding::warn(CHECK, warning, "works without"),
    }));
    report
}

/// Whether IO limits can be in force; without them no container starts (R1).
fn throttle(io_device: &str, root: &Path, backing: Result<Backing, String>) -> Finding {
    const CHECK: &str = "io";
    let root = root.display();
    let found = match (io_device, backing) {
        ("none", _) => {
            return Finding::warn(
                CHECK,
                "containers run without IO limits (io_device = \"none\")",
                "set io_device = \"auto\"",
            );
        }
        ("auto", Ok(Backing::Disk(Device { major, minor }))) => {
            return Finding::ok(
                CHECK,
                format!("limits throttle device {major}:{minor}, which holds {root}"),
            );
        }
        ("auto", Ok(Backing::Memory)) => {
            return Finding::warn(
                CHECK,
                format!("{root} lies in memory: writable layers count as memory, there is no IO to limit"),
                "put containerd's data on a disk",
            );
        }
        ("auto", Ok(Backing::Other { file_system })) => {
            format!(
                "{root} is on {file_system}, which no single block device holds: IO can't be limited, so no container starts"
            )
        }
        ("auto", Err(why)) => {
            format!("the device that holds {root} can't be found out, so no container starts: {why}")
        }
        (path, _) => return Finding::ok(CHECK, format!("limits throttle {path}")),
    };
    Finding::fail(
        CHECK,
        found,
        "put containerd's data on a disk, or set io_device to a device, or to \"none\" to do without IO limits",
    )
}

fn nft() -> Finding {
    match program("nft") {
        Some(file) => Finding::ok("nft", file.display().to_string()),
        None => Finding::fail(
            "nft",
            "nft is not installed: no container that is on a network starts",
            "apt install nftables",
        ),
    }
}

/// Whether networks can reach other hosts.
fn vxlan() -> Finding {
    const CHECK: &str = "vxlan";
    if Path::new("/sys/module/vxlan").exists() {
        return Finding::ok(CHECK, "VXLAN devices");
    }
    if loadable("vxlan") {
        return Finding::ok(CHECK, "VXLAN devices, loaded when first used");
    }
    // One that is built into the kernel says nothing of itself.
    Finding::warn(
        CHECK,
        "no VXLAN module is found: unless the kernel has it built in, no container that is on a network starts",
        "modprobe vxlan, or use a kernel with CONFIG_VXLAN",
    )
}

/// Whether hosts of other sites can be reached.
fn wireguard(port: u16) -> Finding {
    const CHECK: &str = "wireguard";
    if port == 0 {
        return Finding::ok(
            CHECK,
            "switched off: hosts of other sites can't share networks with this one",
        );
    }
    if Path::new("/sys/module/wireguard").exists() || loadable("wireguard") {
        return Finding::ok(
            CHECK,
            format!("encrypts what goes to hosts of other sites, at UDP port {port}"),
        );
    }
    Finding::warn(
        CHECK,
        "no WireGuard module is found: unless the kernel has it built in, hosts of other sites can't share networks with this one; those of its own site can",
        "modprobe wireguard, or use a kernel with CONFIG_WIREGUARD; not needed within one site",
    )
}

/// Whether the system's trusted certificate authorities can be used.
fn authorities(usable: bool) -> Finding {
    match usable {
        true => Finding::ok("tls", "the system's certificate authorities are trusted"),
        false => Finding::warn(
            "tls",
            "this host trusts no certificate authority: no image can be pulled over HTTPS",
            "apt install ca-certificates",
        ),
    }
}

fn room(check: &'static str, path: &Path) -> Finding {
    let shown = path.display();
    match nix::sys::statvfs::statvfs(nearest(path)) {
        Err(error) => Finding::fail(
            check,
            format!("{shown} can't be judged: {error}"),
            "see the system's log",
        ),
        Ok(stat) => {
            let bytes = |blocks: u64| Bytes(blocks.saturating_mul(stat.fragment_size()));
            let free = bytes(stat.blocks_available());
            judge_room(
                check,
                &shown.to_string(),
                free,
                bytes(stat.blocks()),
                stat.files_available(),
            )
        }
    }
}

fn judge_room(check: &'static str, path: &str, free: Bytes, total: Bytes, inodes: u64) -> Finding {
    let found = format!("{free} of {total} free under {path}");
    // Some file systems make inodes as needed and report none.
    if free < LEAST_ROOM {
        return Finding::fail(
            check,
            found,
            format!("free at least {LEAST_ROOM}, or move it to a larger file system"),
        );
    }
    if free.0 < total.0 / 10 {
        return Finding::warn(check, found, "free some, or use a larger file system");
    }
    if (1..10_000).contains(&inodes) {
        return Finding::warn(
            check,
            format!("{found}, but only {inodes} inodes"),
            "remove small files",
        );
    }
    Finding::ok(check, found)
}

/// `now` and the hardware clock in seconds since the epoch.
fn clock(now: i64, hardware: Option<i64>) -> Finding {
    const CHECK: &str = "clock";
    // The year this was written.
    const EARLIEST: i64 = 1_735_689_600;
    let shown = jiff::Timestamp::from_second(now).map_or_else(|_| now.to_string(), |at| at.to_string());
    if now < EARLIEST {
        return Finding::fail(
            CHECK,
            format!("it says {shown}"),
            "set it (for example with chrony): certificates are judged by it",
        );
    }
    match hardware.map(|hardware| hardware.abs_diff(now)) {
        // Whole hours apart: a hardware clock in local time, which is common.
        Some(apart) if apart > 120 && !(apart % 900 <= 5 || apart % 900 >= 895) => Finding::warn(
            CHECK,
            format!("it says {shown}, {apart} s off the hardware clock"),
            "run a time service (for example chrony)",
        ),
        _ => Finding::ok(CHECK, shown),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn judgements_table() {
        let disk = Backing::Disk(Device { major: 8, minor: 0 });
        let overlay = Backing::Other {
            file_system: "overlay".into(),
        };
        use Level::{Fail, Ok, Warn};
        for (finding, want) in [
            (root(false), Fail),
            (authorities(true), Ok),
            (authorities(false), Warn),
            (
                throttle("none", Path::new("/x"), Result::Ok(Backing::Memory)),
                Warn,
            ),
            (
                throttle("auto", Path::new("/x"), Result::Ok(Backing::Memory)),
                Warn,
            ),
            (throttle("auto", Path::new("/x"), Result::Ok(disk)), Ok),
            (
                throttle("auto", Path::new("/x"), Result::Ok(overlay.clone())),
                Fail,
            ),
            (throttle("auto", Path::new("/x"), Err("no".into())), Fail),
            (throttle("/dev/sda", Path::new("/x"), Result::Ok(overlay)), Ok),
            (kernel("6.1.0-13-amd64\n"), Ok),
            (kernel("5.4.0"), Fail),
            (kernel(""), Warn),
            (user_namespaces(true, "15000\n"), Ok),
            (user_namespaces(true, "0\n"), Fail),
            (user_namespaces(true, "10\n"), Warn),
            (user_namespaces(false, ""), Fail),
            (overlayfs("auto", "nodev\tsysfs\nnodev\toverlay\n"), Ok),
            (overlayfs("btrfs", ""), Ok),
            (seccomp("kill_process kill_thread trap errno trace log allow"), Ok),
            (seccomp(""), Fail),
            (judge_room("disk", "/x", Bytes::mib(10), Bytes::gib(100), 9), Fail),
            (judge_room("disk", "/x", Bytes::gib(5), Bytes::gib(100), 0), Warn),
            (judge_room("disk", "/x", Bytes::gib(50), Bytes::gib(100), 9), Warn),
            (judge_room("disk", "/x", Bytes::gib(50), Bytes::gib(100), 0), Ok),
            (clock(0, None), Fail),
            (clock(1_800_000_000, Some(1_800_000_060)), Ok),
            (clock(1_800_000_000, Some(1_800_007_200)), Ok),
            (clock(1_800_000_000, Some(1_800_000_400)), Warn),
        ] {
            assert_eq!(finding.level, want, "{finding:?}");
            assert_eq!(
                finding.cure.is_empty(),
                want == Ok,
                "a cure for what is not well: {finding:?}"
            );
        }
    }

    #[test]
    fn cgroups_that_are_not_there_fail() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            cgroup_mount: dir.path().to_owned(),
            ..Config::default()
        };
        let report = cgroups(&config);
        assert_eq!((report.len(), report[0].level), (1, Level::Fail), "{report:?}");
    }
}
