//! Tests of the OCI spec builder.

use std::collections::BTreeSet;
use std::path::Path;

use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{Class, ContainerSpec, IoLimits, Limits, MemorySwap, Tmpfs};
use berth_common::units::{Bytes, Millicores};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use proptest::prelude::*;

use super::runtime::ContainerMeta;
use super::spec::{BadSpec, Given, Host, build, hostname};
use super::users::Identity;
use crate::cgroup::{Device, quota_us};

fn meta() -> ContainerMeta {
    ContainerMeta {
        id: ContainerId::from_bytes([1; 10]),
        tenant: TenantId::from_bytes([2; 10]),
        tenant_name: "acme".parse().unwrap(),
        service_name: "web".parse().unwrap(),
        replica: 2,
    }
}

fn plain() -> ContainerSpec {
    serde_json::from_value(serde_json::json!({
        "image": "docker.io/library/busybox:latest",
        "reservation": {"cpu": 100, "memory": 1 << 20, "disk": 1 << 20},
        "limits": Limits::default(),
        "stop_grace_secs": 10,
    }))
    .unwrap()
}

fn image(config: serde_json::Value) -> ImageConfiguration {
    serde_json::from_value(serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
    }))
    .unwrap()
}

fn host() -> Host {
    Host {
        device: Some(Device { major: 254, minor: 0 }),
        bounding: (0..41).filter(|c| *c != 24).collect(),
        open_files: 20_000,
        oom_score_adj: 100,
        cgroup_namespaces: true,
        cgroup_version: 1,
        machine: "x86_64",
    }
}

fn make(spec: &ContainerSpec, image: &ImageConfiguration, identity: &Identity) -> Result<Spec, BadSpec> {
    let given = Given {
        base: 0x7001_0000,
        identity,
        files: Path::new("/var/lib/berth/x"),
        volumes: Path::new("/run/berth/volumes/c"),
        init: Path::new("/usr/lib/berth/berth-init"),
        cgroup: "/berth.slice/tenant-x.slice/c",
    };
    build(&meta(), spec, image, &host(), &given)
}

#[test]
fn who_has_only_what_others_leave_goes_first() {
    let image = image(serde_json::json!({"Cmd": ["x"]}));
    let score = |class| {
        let spec = ContainerSpec { class, ..plain() };
        let made = make(&spec, &image, &Identity::default()).unwrap();
        made.process().as_ref().unwrap().oom_score_adj()
    };
    assert_eq!(score(Class::Standard), Some(100));
    assert_eq!(score(Class::BestEffort), Some(1000));
    assert_eq!(score(Class::Unknown), Some(100), "a word of a newer brain");
}

fn args_of(spec: &Spec) -> Vec<String> {
    spec.process().as_ref().unwrap().args().clone().unwrap()
}

#[test]
fn r1_a_limit_of_a_newer_brain_is_refused_and_not_left_out() {
    let mut spec = plain();
    spec.command = Some(vec!["/bin/x".into()]);
    spec.limits.swap = MemorySwap::Unknown;
    let error = make(&spec, &image(serde_json::json!({})), &Identity::default()).unwrap_err();
    assert!(error.to_string().contains("upgrade the agent"), "{error}");
}

#[test]
fn entrypoint_and_command_combine_as_people_expect() {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let full = image(serde_json::json!({"Entrypoint": ["/entry"], "Cmd": ["a", "b"]}));
    let root = Identity::default();
    let cases = [
        (None, None, "/entry a b"),
        (None, Some("c"), "/entry c"),
        (Some("/e"), None, "/e"),
        (Some("/e"), Some("c d"), "/e c d"),
    ];
    for (entry, command, want) in cases {
        let spec = ContainerSpec {
            entrypoint: entry.map(words),
            command: command.map(words),
            ..plain()
        };
        assert_eq!(args_of(&make(&spec, &full, &root).unwrap()).join(" "), want);
    }
    let empty = image(serde_json::json!({}));
    assert!(matches!(make(&plain(), &empty, &root), Err(BadSpec::NoCommand)));
    let spec = ContainerSpec {
        command: Some(words("sh")),
        init: true,
        ..plain()
    };
    assert_eq!(
        args_of(&make(&spec, &empty, &root).unwrap()),
        ["/dev/.berth-init", "sh"]
    );
}

#[test]
fn env_user_and_place_come_from_image_then_user() {
    let base = image(serde_json::json!({"Cmd": ["x"], "Env": ["A=1", "B=2"], "WorkingDir": "/srv"}));
    let mut spec = plain();
    spec.env.insert("B".into(), "3".into());
    let made = make(
        &spec,
        &base,
        &Identity {
            uid: 33,
            gid: 34,
            groups: vec![40],
        },
    )
    .unwrap();
    let process = made.process().as_ref().unwrap();
    let env = process.env().clone().unwrap();
    assert!(env.contains(&"A=1".to_owned()) && env.contains(&"B=3".to_owned()));
    assert!(env.iter().any(|e| e.starts_with("PATH=")));
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    let caps = process.capabilities().as_ref().unwrap();
    assert!(
        caps.effective().as_ref().unwrap().is_empty(),
        "only root has capabilities in effect"
    );
    assert_eq!(process.no_new_privileges(), Some(true));
    let files = process.rlimits().as_ref().unwrap()[0];
    assert!(files.hard() <= 20_000 && files.soft() <= files.hard());
    assert_eq!(hostname(&meta(), &spec), "web-2");
}

#[test]
fn bad_paths_words_and_bytes_are_refused() {
    let base = image(serde_json::json!({"Cmd": ["x"]}));
    let root = Identity::default();
    for dir in ["relative", "/a/../b", ""] {
        let spec = ContainerSpec {
            working_dir: Some(dir.into()),
            ..plain()
        };
        assert!(make(&spec, &base, &root).is_err(), "{dir:?}");
    }
    let spec = ContainerSpec {
        tmpfs: vec![Tmpfs {
            path: "/../etc".into(),
            size: Bytes::mib(1),
        }],
        ..plain()
    };
    assert!(make(&spec, &base, &root).is_err());
    let spec = ContainerSpec {
        cap_add: vec!["EVERYTHING".into()],
        ..plain()
    };
    assert!(make(&spec, &base, &root).is_err());
    let spec = ContainerSpec {
        command: Some(vec!["a\0b".into()]),
        ..plain()
    };
    assert!(matches!(make(&spec, &base, &root), Err(BadSpec::Nul(_))));
}

#[test]
fn volumes_are_bound_by_their_place_and_mounted_from_the_outside_in() {
    let base = image(serde_json::json!({"Cmd": ["x"]}));
    let spec = ContainerSpec {
        volumes: ["a:/data/deep:ro", "b:/data", "c:/data/deep/er"]
            .map(|text| text.parse().unwrap())
            .to_vec(),
        tmpfs: vec![Tmpfs {
            path: "/data/tmp".into(),
            size: Bytes::mib(1),
        }],
        ..plain()
    };
    let made = make(&spec, &base, &Identity::default()).unwrap();
    let mounts = made.mounts().as_ref().unwrap();
    let own: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.destination().starts_with("/data"))
        .map(|mount| {
            let source = mount.source().as_ref().unwrap().to_string_lossy().into_owned();
            let options = mount.options().clone().unwrap().join(",");
            (mount.destination().to_str().unwrap(), source, options)
        })
        .collect();
    let bound = |at, number: u8, access: &str| {
        let source = format!("/run/berth/volumes/c/{number}");
        (at, source, format!("bind,{access},nosuid,nodev,rprivate"))
    };
    assert_eq!(
        (&own[0], &own[2], &own[3]),
        (
            &bound("/data", 1, "rw"),
            &bound("/data/deep", 0, "ro"),
            &bound("/data/deep/er", 2, "rw")
        )
    );
    assert_eq!((own[1].0, own.len()), ("/data/tmp", 4));
    for path in ["relative", "/a/../b"] {
        let mut bad = spec.clone();
        bad.volumes[0].path = path.into();
        assert!(make(&bad, &base, &Identity::default()).is_err(), "{path}");
    }
}

#[test]
fn privileged_drops_confinement_only() {
    let base = image(serde_json::json!({"Cmd": ["x"]}));
    let spec = ContainerSpec {
        privileged: true,
        ..plain()
    };
    let made = make(&spec, &base, &Identity::default()).unwrap();
    let linux = made.linux().as_ref().unwrap();
    assert!(linux.seccomp().is_none() && linux.uid_mappings().is_none());
    let kinds: BTreeSet<String> = linux
        .namespaces()
        .as_ref()
        .unwrap()
        .iter()
        .map(|n| n.typ().to_string())
        .collect();
    assert!(!kinds.contains(&LinuxNamespaceType::User.to_string()));
    let caps = made.process().as_ref().unwrap().capabilities().as_ref().unwrap();
    assert_eq!(
        caps.bounding().as_ref().unwrap().len(),
        40,
        "never more than the agent itself has"
    );
    let cgroup = made
        .mounts()
        .as_ref()
        .unwrap()
        .iter()
        .find(|m| m.destination() == Path::new("/sys/fs/cgroup"));
    assert!(
        cgroup
            .unwrap()
            .options()
            .as_ref()
            .unwrap()
            .contains(&"ro".to_owned())
    );
}

proptest! {
    #[test]
    fn r1_every_spec_has_every_limit(
        privileged in any::<bool>(), init in any::<bool>(), read_only in any::<bool>(),
        cpu in 10u32..1_024_000, weight in 1u16..=10_000, memory in (6u64 << 20)..(1 << 50), pids in 1u32..1_000_000,
        rates in proptest::array::uniform2(4096u64..(1 << 50)), ops in proptest::array::uniform2(1u32..10_000_000),
    ) {
        let limits = Limits {
            cpu: Millicores(cpu), cpu_weight: weight, memory: Bytes(memory), memory_high: None, swap: MemorySwap::None, pids,
            disk: Bytes::gib(1),
            io: IoLimits { read_bps: Bytes(rates[0]), write_bps: Bytes(rates[1]), read_iops: ops[0], write_iops: ops[1] },
        };
        let spec = ContainerSpec { privileged, init, read_only, limits, ..plain() };
        let made = make(&spec, &image(serde_json::json!({"Cmd": ["x"]})), &Identity::default()).unwrap();
        let linux = made.linux().as_ref().unwrap();
        prop_assert!(linux.cgroups_path().as_ref().unwrap().starts_with("/berth.slice"));
        let held = linux.resources().as_ref().unwrap();
        let kernel_cpu = held.cpu().as_ref().unwrap();
        prop_assert_eq!(kernel_cpu.quota().unwrap() as u64, quota_us(limits.cpu));
        prop_assert!(kernel_cpu.shares().unwrap() >= 2);
        let kernel_memory = held.memory().as_ref().unwrap();
        prop_assert_eq!(kernel_memory.limit(), Some(memory as i64));
        prop_assert_eq!(kernel_memory.swap(), Some(memory as i64));
        prop_assert_eq!(held.pids().as_ref().unwrap().limit(), i64::from(pids));
        let block = held.block_io().as_ref().unwrap();
        prop_assert_eq!(block.throttle_read_bps_device().as_ref().unwrap()[0].rate(), rates[0]);
        prop_assert_eq!(block.throttle_write_bps_device().as_ref().unwrap()[0].rate(), rates[1]);
        prop_assert_eq!(block.throttle_read_iops_device().as_ref().unwrap()[0].rate(), u64::from(ops[0]));
        prop_assert_eq!(block.throttle_write_iops_device().as_ref().unwrap()[0].rate(), u64::from(ops[1]));
    }
}
