//! The control groups against the running kernel. Needs root; works below a group of its own, so that it disturbs
//! nothing, in v1 and v2 alike.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use berth_agent::cgroup::v1::{Hierarchies, V1};
use berth_agent::cgroup::v2::V2;
use berth_agent::cgroup::{
    Backing, CgroupError, Cgroups, DEFAULT_PARENT, Kernel, RawStats, backing_of, container_path, detect,
    tenant_path,
};
use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{IoLimits, Limits, Reservation};
use berth_common::units::{Bytes, Millicores};

const MOUNT: &str = "/sys/fs/cgroup";

/// A private place in every hierarchy, removed with everything in it when dropped.
struct Place {
    tops: Vec<PathBuf>,
    cgroups: Box<dyn Cgroups>,
    tenant: TenantId,
    container: ContainerId,
    children: Vec<(Child, Option<ChildStdin>)>,
}

impl Place {
    fn new() -> Self {
        let name = format!("berth-test-{}", TenantId::random());
        let mount = Path::new(MOUNT);
        let kernel = Kernel::running().unwrap();
        let (tops, cgroups): (Vec<PathBuf>, Box<dyn Cgroups>) =
            if detect(mount, DEFAULT_PARENT).unwrap().version() == 2 {
                let control = mount.join("cgroup.subtree_control");
                std::fs::write(control, "+cpu +memory +pids +io").unwrap();
                let top = mount.join(&name);
                std::fs::create_dir(&top).unwrap();
                (
                    vec![top.clone()],
                    Box::new(V2::new(top, kernel, DEFAULT_PARENT.to_owned()).unwrap()),
                )
            } else {
                let real = Hierarchies::below(mount).unwrap();
                let all: Vec<PathBuf> = real.all.iter().map(|path| path.join(&name)).collect();
                for path in &all {
                    std::fs::create_dir(path).unwrap();
                }
                let inside = Hierarchies {
                    cpu: real.cpu.join(&name),
                    cpuacct: real.cpuacct.join(&name),
                    memory: real.memory.join(&name),
                    pids: real.pids.join(&name),
                    blkio: real.blkio.join(&name),
                    unified: real.unified.map(|path| path.join(&name)),
                    all: all.clone(),
                };
                (all, Box::new(V1::new(inside, kernel, DEFAULT_PARENT.to_owned())))
            };
        Self {
            tops,
            cgroups,
            tenant: TenantId::random(),
            container: ContainerId::random(),
            children: Vec::new(),
        }
    }

    fn leaves(&self) -> Vec<PathBuf> {
        let path = container_path(DEFAULT_PARENT, self.tenant, self.container);
        self.tops
            .iter()
            .map(|top| top.join(path.trim_start_matches('/')))
            .collect()
    }

    /// What the runtime does: makes the leaf everywhere.
    fn make_leaf(&self) {
        self.cgroups
            .ensure_root(Reservation {
                cpu: Millicores(1000),
                memory: Bytes::gib(1),
                disk: Bytes(0),
            })
            .unwrap();
        self.cgroups.ensure_tenant(self.tenant, 100).unwrap();
        for leaf in self.leaves() {
            std::fs::create_dir_all(leaf).unwrap();
        }
    }

    /// Starts `script` inside the container's groups.
    fn run(&mut self, script: &str) -> u32 {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let pid = child.id();
        for leaf in self.leaves() {
            // The runtime does not join cpuset without giving it CPUs; neither do we.
            if !leaf.join("cpuset.cpus").exists() || self.cgroups.version() == 2 {
                std::fs::write(leaf.join("cgroup.procs"), pid.to_string()).unwrap();
            }
        }
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"go\n").unwrap();
        self.children.push((child, Some(stdin)));
        pid
    }

    fn kill_all(&mut self) {
        for pid in self.cgroups.pids(self.tenant, self.container).unwrap_or_default() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        for (mut child, _) in self.children.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn stats(&self) -> RawStats {
        self.cgroups.stats(self.tenant, self.container)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.kill_all();
        let _ = self.cgroups.remove_container(self.tenant, self.container);
        let _ = self.cgroups.remove_tenant(self.tenant);
        for top in &self.tops {
            let _ = std::fs::remove_dir(top.join("berth.slice"));
            let gone = std::fs::remove_dir(top);
            if !std::thread::panicking() {
                gone.unwrap_or_else(|error| panic!("{} is left behind: {error}", top.display()));
            }
        }
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{what} did not happen within 10 s"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn r1_every_limit_of_a_live_container_can_be_raised_and_lowered() {
    let mut place = Place::new();
    place.make_leaf();
    place.run("exec sleep 60");
    let device = root_disk();
    let small = Limits {
        cpu: Millicores(10),
        cpu_weight: 1,
        memory: Bytes(6 * 1024 * 1024 + 1),
        pids: 1,
        io: IoLimits {
            read_bps: Bytes(4096),
            write_bps: Bytes(4097),
            read_iops: 1,
            write_iops: 2,
        },
        ..Limits::default()
    };
    // More CPU and memory than all of berth has: a limit is not a reservation.
    let large = Limits {
        cpu: Millicores(1_024_000),
        cpu_weight: 10_000,
        memory: Bytes(1 << 50),
        pids: 1_000_000,
        io: IoLimits {
            read_bps: Bytes(1 << 50),
            write_bps: Bytes(1 << 50),
            read_iops: 10_000_000,
            write_iops: 10_000_000,
        },
        ..Limits::default()
    };
    let (cgroups, tenant, container) = (&place.cgroups, place.tenant, place.container);
    for wanted in [
        Limits::default(),
        small,
        large,
        small,
        Limits::default(),
        large,
        Limits::default(),
    ] {
        cgroups.write_limits(tenant, container, &wanted, device).unwrap();
        assert_eq!(
            cgroups.read_limits(tenant, container, &wanted, device).unwrap(),
            wanted
        );
    }
    let seen = cgroups.read_limits(tenant, container, &small, device).unwrap();
    assert_ne!(seen.memory, small.memory);
    assert_ne!(seen.cpu, small.cpu);
}

#[test]
fn counters_move_with_what_a_container_does_and_the_quota_holds() {
    let mut place = Place::new();
    place.make_leaf();
    let limits = Limits {
        cpu: Millicores(200),
        ..Limits::default()
    };
    place
        .cgroups
        .write_limits(place.tenant, place.container, &limits, None)
        .unwrap();
    let before = place.stats();
    assert_eq!(
        (before.cpu_ns.is_some(), before.pids, before.oom_kills),
        (true, Some(0), Some(0))
    );
    let mut meter = place.cgroups.meter(place.tenant, place.container).unwrap();
    meter.read();
    let start = Instant::now();
    place.run("while :; do :; done");
    std::thread::sleep(Duration::from_secs(1));
    let after = place.stats();
    let used = after.cpu_ns.unwrap() - before.cpu_ns.unwrap();
    let share = used as f64 / start.elapsed().as_nanos() as f64;
    assert!(
        (0.05..0.32).contains(&share),
        "a fifth of a core was allowed, {share:.2} used"
    );
    assert!(
        after.throttled.unwrap() > 0 && after.periods >= after.throttled,
        "{after:?}"
    );
    assert!(after.memory.is_some());
    assert_eq!(after.pids, Some(1));
    assert!(after.read_bytes.is_some() && after.write_bytes.is_some() && after.inactive_file.is_some());
    let metered = meter.read();
    assert!(
        metered.cpu_ns >= after.cpu_ns && metered.pids == Some(1),
        "{metered:?}"
    );
}

#[test]
fn a_meter_follows_a_restart_and_says_nothing_in_between() {
    let mut place = Place::new();
    place.make_leaf();
    place.run("exec sleep 60");
    let mut meter = place.cgroups.meter(place.tenant, place.container).unwrap();
    until("the process", || {
        meter.read().pids == Some(1) || meter.read().cpu_ns.is_none()
    });
    place.kill_all();
    place
        .cgroups
        .remove_container(place.tenant, place.container)
        .unwrap();
    assert_eq!(meter.read(), RawStats::default());
    assert_eq!(place.stats(), RawStats::default());
    place.make_leaf();
    let fresh = meter.read();
    assert_eq!((fresh.pids, fresh.cpu_ns), (Some(0), Some(0)));
}

#[test]
fn removal_never_touches_a_live_process() {
    let mut place = Place::new();
    place.make_leaf();
    let pid = place.run("exec sleep 60");
    for leaf in place.leaves() {
        std::fs::create_dir(leaf.join("nested")).unwrap();
    }
    let error = place
        .cgroups
        .remove_container(place.tenant, place.container)
        .unwrap_err();
    match error {
        CgroupError::Busy { pids, .. } => assert_eq!(pids, [pid]),
        other => panic!("{other}"),
    }
    assert_eq!(place.cgroups.pids(place.tenant, place.container).unwrap(), [pid]);
    assert!(place.leaves().iter().all(|leaf| leaf.join("nested").exists()));
    place.cgroups.remove_tenant(place.tenant).unwrap();
    assert_eq!(place.cgroups.tenants().unwrap(), [place.tenant]);
    let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = tenant_path(DEFAULT_PARENT, place.tenant);
    assert!(group.contains(&path), "it was moved: {group}");

    place.kill_all();
    place
        .cgroups
        .remove_container(place.tenant, place.container)
        .unwrap();
    place
        .cgroups
        .remove_container(place.tenant, place.container)
        .unwrap();
    assert!(place.leaves().iter().all(|leaf| !leaf.exists()));
    place.cgroups.remove_tenant(place.tenant).unwrap();
    assert!(place.cgroups.tenants().unwrap().is_empty());
}

#[test]
fn what_a_runtime_lost_is_killed_when_its_container_is_cleared_away() {
    let mut place = Place::new();
    place.make_leaf();
    place.run("sleep 60 & exec sleep 60");
    until("both", || {
        place.stats().pids == Some(2) || place.cgroups.pids(place.tenant, place.container).unwrap().len() == 2
    });
    place
        .cgroups
        .clear_container(place.tenant, place.container)
        .unwrap();
    assert!(place.leaves().iter().all(|leaf| !leaf.exists()));
    place
        .cgroups
        .clear_container(place.tenant, place.container)
        .unwrap();
}

#[test]
fn memory_is_not_lowered_below_what_is_in_use() {
    let mut place = Place::new();
    place.make_leaf();
    let (tenant, container) = (place.tenant, place.container);
    let wanted = Limits::default();
    place
        .cgroups
        .write_limits(tenant, container, &wanted, None)
        .unwrap();
    // tail keeps the line that never ends in memory.
    place.run("(head -c 64000000 /dev/zero; exec sleep 60) | tail");
    until("64 MB in use", || {
        place.stats().memory.is_some_and(|bytes| bytes > 60_000_000)
    });
    let low = Limits {
        memory: Bytes::mib(16),
        pids: 99,
        ..wanted
    };
    match place
        .cgroups
        .write_limits(tenant, container, &low, None)
        .unwrap_err()
    {
        CgroupError::InUse { used, .. } => assert!(used > 16 << 20, "{used}"),
        other => panic!("{other}"),
    }
    assert_eq!(place.stats().oom_kills, Some(0));
    assert!(!place.cgroups.pids(tenant, container).unwrap().is_empty());
    let seen = place
        .cgroups
        .read_limits(tenant, container, &wanted, None)
        .unwrap();
    assert_eq!((seen.memory, seen.pids), (wanted.memory, 99));
}

#[test]
fn the_kernel_kills_at_the_limit_and_it_is_counted() {
    let mut place = Place::new();
    place.make_leaf();
    let limits = Limits {
        memory: Bytes::mib(16),
        ..Limits::default()
    };
    place
        .cgroups
        .write_limits(place.tenant, place.container, &limits, None)
        .unwrap();
    place.run("head -c 64000000 /dev/zero | tail");
    until("an OOM kill", || {
        place.stats().oom_kills.is_some_and(|kills| kills > 0)
    });
}

#[test]
fn stalls_are_measured_where_there_is_a_unified_tree() {
    let place = Place::new();
    place.make_leaf();
    let unified = place
        .leaves()
        .iter()
        .any(|leaf| leaf.join("cpu.pressure").exists());
    let stalls = place.cgroups.stalls(place.tenant, place.container);
    assert_eq!(stalls.cpu.is_some(), unified);
    assert_eq!(stalls.memory.is_some(), unified);
}

fn root_disk() -> Option<berth_agent::cgroup::Device> {
    match backing_of(Path::new("/")).unwrap() {
        Backing::Disk(device) => Some(device),
        _ => None,
    }
}

#[test]
fn the_device_of_the_root_is_a_whole_disk() {
    let device = root_disk().expect("the root file system is on a disk");
    let dir = PathBuf::from(format!("/sys/dev/block/{}:{}", device.major, device.minor));
    assert!(dir.exists() && !dir.join("partition").exists());
}
