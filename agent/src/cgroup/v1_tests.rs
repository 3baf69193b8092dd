//! Tests of the v1 control groups on plain files.

use std::fs;

use berth_common::units::Millicores;

use super::*;
use crate::cgroup::DEFAULT_PARENT;

const PAGE: Kernel = Kernel {
    page: 4096,
    pid_max: 32_768,
};
const VDA: Device = Device { major: 254, minor: 0 };

fn host() -> (tempfile::TempDir, V1, TenantId, ContainerId) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["cpu", "cpuacct", "memory", "pids", "blkio", "devices"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("cgroup.procs"), "").unwrap();
    }
    let v1 = V1::new(
        Hierarchies::below(dir.path()).unwrap(),
        PAGE,
        DEFAULT_PARENT.to_owned(),
    );
    (
        dir,
        v1,
        TenantId::from_bytes([1; 10]),
        ContainerId::from_bytes([2; 10]),
    )
}

fn unlimited(mount: &Path, path: &str) {
    for (controller, name, value) in [
        ("cpu", "cpu.shares", "1024\n"),
        ("cpu", "cpu.cfs_quota_us", "-1\n"),
        ("cpu", "cpu.cfs_period_us", "50000\n"),
        ("memory", "memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory", "memory.memsw.limit_in_bytes", "9223372036854771712\n"),
        ("pids", "pids.max", "max\n"),
    ] {
        let dir = mount.join(controller).join(path.trim_start_matches('/'));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), value).unwrap();
    }
}

#[test]
fn limits_are_written_and_read_back() {
    let (dir, v1, tenant, container) = host();
    unlimited(dir.path(), &container_path(DEFAULT_PARENT, tenant, container));
    let wanted = Limits::default();
    let before = v1.read_limits(tenant, container, &wanted, None).unwrap();
    assert_eq!(before.cpu, Millicores(u32::MAX));
    assert_eq!(before.pids, u32::MAX);
    assert_ne!(before.memory, wanted.memory);
    assert_eq!(before.cpu_weight, weight_of_shares(1024));
    assert_eq!((before.io, before.disk), (wanted.io, wanted.disk));

    v1.write_limits(tenant, container, &wanted, None).unwrap();
    assert_eq!(v1.read_limits(tenant, container, &wanted, None).unwrap(), wanted);
    let lower = Limits {
        cpu: Millicores(250),
        memory: Bytes::mib(64),
        pids: 9,
        cpu_weight: 1,
        ..wanted
    };
    v1.write_limits(tenant, container, &lower, None).unwrap();
    assert_eq!(v1.read_limits(tenant, container, &lower, None).unwrap(), lower);
    let seen = v1.read_limits(tenant, container, &wanted, None).unwrap();
    assert_eq!(
        (seen.cpu, seen.memory, seen.cpu_weight),
        (lower.cpu, lower.memory, 1)
    );
}

#[test]
fn swap_that_is_left_open_is_an_error_and_repaired_by_writing() {
    let (dir, v1, tenant, container) = host();
    let path = container_path(DEFAULT_PARENT, tenant, container);
    unlimited(dir.path(), &path);
    let wanted = Limits::default();
    v1.write_limits(tenant, container, &wanted, None).unwrap();
    let both = below(&dir.path().join("memory"), &path).join("memory.memsw.limit_in_bytes");
    fs::write(&both, "9223372036854771712\n").unwrap();
    let error = v1.read_limits(tenant, container, &wanted, None).unwrap_err();
    assert!(error.to_string().contains("swap"), "{error}");
    v1.write_limits(tenant, container, &wanted, None).unwrap();
    assert_eq!(v1.read_limits(tenant, container, &wanted, None).unwrap(), wanted);
    fs::remove_file(&both).unwrap();
    assert_eq!(v1.read_limits(tenant, container, &wanted, None).unwrap(), wanted);
}

#[test]
fn throttles_of_other_devices_do_not_count() {
    let (dir, v1, tenant, container) = host();
    let path = container_path(DEFAULT_PARENT, tenant, container);
    unlimited(dir.path(), &path);
    let blkio = below(&dir.path().join("blkio"), &path);
    fs::create_dir_all(&blkio).unwrap();
    for (name, _) in throttles(&Limits::default().io) {
        fs::write(blkio.join(name), "25:0 7\n").unwrap();
    }
    let wanted = Limits::default();
    let seen = v1.read_limits(tenant, container, &wanted, Some(VDA)).unwrap();
    assert_eq!(
        (seen.io.read_bps, seen.io.write_iops),
        (Bytes(u64::MAX), u32::MAX)
    );
    v1.write_limits(tenant, container, &wanted, Some(VDA)).unwrap();
    assert_eq!(
        v1.read_limits(tenant, container, &wanted, Some(VDA)).unwrap(),
        wanted
    );
}

#[test]
fn a_container_without_groups_is_an_error_and_has_no_counters() {
    let (_dir, v1, tenant, container) = host();
    let wanted = Limits::default();
    assert!(v1.read_limits(tenant, container, &wanted, None).is_err());
    assert!(v1.write_limits(tenant, container, &wanted, None).is_err());
    assert_eq!(v1.stats(tenant, container), RawStats::default());
    assert_eq!(v1.pids(tenant, container).unwrap(), Vec::<u32>::new());
    v1.remove_container(tenant, container).unwrap();
    v1.remove_tenant(tenant).unwrap();
}

#[test]
fn a_tenant_with_a_group_anywhere_stays() {
    let (dir, v1, tenant, container) = host();
    let leaf = below(
        &dir.path().join("devices"),
        &container_path(DEFAULT_PARENT, tenant, container),
    );
    fs::create_dir_all(&leaf).unwrap();
    fs::create_dir_all(below(
        &dir.path().join("cpu"),
        &tenant_path(DEFAULT_PARENT, tenant),
    ))
    .unwrap();
    assert_eq!(v1.tenants().unwrap(), [tenant]);
    v1.remove_tenant(tenant).unwrap();
    assert!(below(&dir.path().join("cpu"), &tenant_path(DEFAULT_PARENT, tenant)).exists());
    v1.remove_container(tenant, container).unwrap();
    assert!(!leaf.exists());
    v1.remove_tenant(tenant).unwrap();
    assert_eq!(v1.tenants().unwrap(), []);
}

#[test]
fn root_takes_the_allocatable_and_leaves_the_system_pids() {
    let (dir, v1, ..) = host();
    unlimited(dir.path(), DEFAULT_PARENT);
    let allocatable = Reservation {
        cpu: Millicores(1900),
        memory: Bytes(3_000_000_001),
        disk: Bytes(0),
    };
    // Plain files don't round to pages as the kernel does, so the read-back must notice.
    let error = v1.ensure_root(allocatable).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("expected 2999996416 after writing 3000000001"),
        "{error}"
    );
    let allocatable = Reservation {
        memory: Bytes::gib(3),
        ..allocatable
    };
    v1.ensure_root(allocatable).unwrap();
    v1.ensure_root(allocatable).unwrap();
    let held = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
    assert_eq!(
        held("memory/berth.slice/memory.limit_in_bytes"),
        Bytes::gib(3).0.to_string()
    );
    assert_eq!(
        held("memory/berth.slice/memory.memsw.limit_in_bytes"),
        Bytes::gib(3).0.to_string()
    );
    assert_eq!(held("cpu/berth.slice/cpu.shares"), "1945");
    assert_eq!(held("pids/berth.slice/pids.max"), "28672");
    assert_eq!(
        held("cpu/berth.slice/cpu.cfs_quota_us"),
        "-1\n",
        "a cap here would refuse larger containers"
    );
}
