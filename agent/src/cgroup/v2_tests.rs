//! Tests of the v2 control groups on plain files.

use std::fs;

use berth_common::units::{Bytes, Millicores};

use super::*;
use crate::cgroup::DEFAULT_PARENT;

const PAGE: Kernel = Kernel {
    page: 4096,
    pid_max: 32_768,
};
const SDA: Device = Device { major: 8, minor: 0 };
const ALL: &str = "cpuset cpu io memory pids\n";

fn group(dir: &Path, used: u64) {
    fs::create_dir_all(dir).unwrap();
    for (name, value) in [
        ("cgroup.controllers", ALL),
        ("cgroup.subtree_control", ALL),
        ("cgroup.procs", ""),
        ("cpu.weight", "100\n"),
        ("cpu.max", "max 100000\n"),
        ("memory.max", "max\n"),
        ("memory.high", "max\n"),
        ("memory.swap.max", "max\n"),
        (
            "memory.stat",
            "anon 1\ninactive_file 4096\nactive_file 0\nslab_reclaimable 0\n",
        ),
        ("pids.max", "max\n"),
        ("io.max", ""),
    ] {
        fs::write(dir.join(name), value).unwrap();
    }
    fs::write(dir.join("memory.current"), used.to_string()).unwrap();
}

fn host() -> (tempfile::TempDir, V2, TenantId, ContainerId) {
    let dir = tempfile::tempdir().unwrap();
    group(dir.path(), 0);
    let v2 = V2::new(dir.path().to_path_buf(), PAGE, DEFAULT_PARENT.to_owned()).unwrap();
    (
        dir,
        v2,
        TenantId::from_bytes([1; 10]),
        ContainerId::from_bytes([2; 10]),
    )
}

#[test]
fn limits_are_written_and_read_back() {
    let (_dir, v2, tenant, container) = host();
    group(&v2.group(tenant, container), 0);
    let wanted = Limits::default();
    let error = v2.read_limits(tenant, container, &wanted, Some(SDA)).unwrap_err();
    assert!(error.to_string().contains("swap"), "{error}");
    v2.write_limits(tenant, container, &wanted, Some(SDA)).unwrap();
    assert_eq!(
        v2.read_limits(tenant, container, &wanted, Some(SDA)).unwrap(),
        wanted
    );
    let other = Limits {
        cpu: Millicores(10),
        cpu_weight: 10_000,
        memory: Bytes::mib(512),
        memory_high: Some(Bytes::mib(400)),
        pids: 1,
        ..wanted
    };
    v2.write_limits(tenant, container, &other, Some(SDA)).unwrap();
    assert_eq!(
        v2.read_limits(tenant, container, &other, Some(SDA)).unwrap(),
        other
    );
    v2.write_limits(tenant, container, &wanted, None).unwrap();
}

#[test]
fn what_is_unlimited_differs_from_anything_wanted() {
    let (_dir, v2, tenant, container) = host();
    let dir = v2.group(tenant, container);
    group(&dir, 0);
    fs::write(dir.join("memory.swap.max"), "0\n").unwrap();
    let seen = v2
        .read_limits(tenant, container, &Limits::default(), Some(SDA))
        .unwrap();
    assert_eq!(seen.cpu, Millicores(u32::MAX));
    assert_eq!(seen.memory, Bytes(u64::MAX));
    assert_eq!((seen.pids, seen.io.read_iops), (u32::MAX, u32::MAX));
}

#[test]
fn a_limit_that_would_kill_is_refused_and_the_rest_is_set() {
    let (_dir, v2, tenant, container) = host();
    let dir = v2.group(tenant, container);
    group(&dir, Bytes::mib(300).0 + 4096);
    let wanted = Limits::default();
    match v2.write_limits(tenant, container, &wanted, None).unwrap_err() {
        CgroupError::InUse { used, .. } => assert_eq!(used, Bytes::mib(300).0),
        other => panic!("{other}"),
    }
    assert_eq!(fs::read_to_string(dir.join("memory.max")).unwrap(), "max\n");
    assert_eq!(fs::read_to_string(dir.join("pids.max")).unwrap(), "512");
    let more = Limits {
        memory: Bytes::mib(301),
        ..wanted
    };
    v2.write_limits(tenant, container, &more, None).unwrap();
}

#[test]
fn controllers_that_are_not_passed_on_are_noticed() {
    let (dir, v2, tenant, _) = host();
    group(&dir.path().join(DEFAULT_PARENT), 0);
    fs::write(dir.path().join(DEFAULT_PARENT).join("cgroup.subtree_control"), "").unwrap();
    // A plain file keeps only the last word written, as a kernel that dropped the others would.
    let error = v2.ensure_tenant(tenant, 5).unwrap_err();
    assert!(error.to_string().contains("cpu in it"), "{error}");
    assert!(!v2.dir(&tenant_path(DEFAULT_PARENT, tenant)).exists());
}

#[test]
fn root_takes_the_allocatable() {
    let (dir, v2, tenant, container) = host();
    group(&dir.path().join(DEFAULT_PARENT), Bytes::gib(2).0);
    let allocatable = Reservation {
        cpu: Millicores(1900),
        memory: Bytes::gib(3),
        disk: Bytes(0),
    };
    v2.ensure_root(allocatable).unwrap();
    v2.ensure_root(allocatable).unwrap();
    let held = |file: &str| fs::read_to_string(dir.path().join(DEFAULT_PARENT).join(file)).unwrap();
    assert_eq!(held("cpu.max"), "190000 100000");
    assert_eq!(held("cpu.weight"), "190");
    assert_eq!(held("memory.max"), Bytes::gib(3).0.to_string());
    assert_eq!(held("memory.swap.max"), "0");
    assert_eq!(held("pids.max"), "28672");
    let less = Reservation {
        memory: Bytes::gib(1),
        cpu: Millicores(900),
        ..allocatable
    };
    assert!(matches!(v2.ensure_root(less), Err(CgroupError::InUse { .. })));
    assert_eq!(held("cpu.max"), "90000 100000", "what can be set is set");
    assert_eq!(held("memory.max"), Bytes::gib(3).0.to_string());

    group(&v2.dir(&tenant_path(DEFAULT_PARENT, tenant)), 0);
    v2.ensure_tenant(tenant, 300).unwrap();
    assert_eq!(v2.tenants().unwrap(), [tenant]);
    assert_eq!(v2.stalls(tenant, container), Stalls::default());
    assert!(v2.warnings().is_empty());
}

#[test]
fn agents_with_different_parents_see_nothing_of_one_another() {
    let (dir, one, tenant, container) = host();
    let other = V2::new(dir.path().to_path_buf(), PAGE, "other.slice".to_owned()).unwrap();
    fs::create_dir_all(dir.path().join(format!("other.slice/tenant-{tenant}.slice"))).unwrap();
    assert_eq!(other.tenants().unwrap(), [tenant]);
    assert!(one.tenants().unwrap().is_empty());
    assert_eq!(
        other.container_path(tenant, container),
        format!("/other.slice/tenant-{tenant}.slice/{container}")
    );
}
