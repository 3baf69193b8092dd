//! The plan of a pool by tables and at random, on a model of the host.

use super::*;
use proptest::prelude::*;

const A: Uuid = Uuid::from_bytes([1; 16]);
const B: Uuid = Uuid::from_bytes([2; 16]);
const OFF: QuotaState = QuotaState {
    on: false,
    simple: false,
    counting: false,
    inconsistent: false,
};

fn settings() -> Settings {
    Settings {
        dir: "/s/volumes".into(),
        size: Some(Bytes::gib(1)),
    }
}

fn bare() -> Observed {
    Observed {
        free: Bytes::gib(10),
        kernel: true,
        ..Observed::default()
    }
}

fn file_system(id: Uuid) -> FileSystem {
    FileSystem {
        id,
        read_only: false,
        size: Bytes::gib(1),
        quota: QuotaState { on: true, ..OFF },
    }
}

fn marker(kind: Kind, file_system: Uuid) -> Option<Marker> {
    Some(Marker { kind, file_system })
}

fn file(signature: Signature) -> Option<PoolFile> {
    Some(PoolFile {
        size: Bytes::gib(1),
        signature,
    })
}

/// What a step does to a host, as far as plans look at it.
fn apply(settings: &Settings, observed: &mut Observed, step: &Step) {
    match step {
        Step::MakeFolder(path) => observed.root |= *path == settings.root(),
        Step::RemoveUnfinished(_) => observed.new_file = false,
        Step::CreateFile { .. } => {
            assert!(!observed.new_file, "it must not be there");
            observed.new_file = true;
        }
        Step::Format { path, .. } => assert_eq!(*path, settings.new_file()),
        Step::Name { .. } => {
            assert!(observed.file.is_none());
            observed.new_file = false;
            let size = size_for(settings.size, observed.free);
            observed.file = Some(PoolFile {
                size,
                signature: Signature::Btrfs(A),
            });
        }
        Step::Remember { marker, .. } => observed.marker = Some(*marker),
        Step::MountFile { .. } | Step::MountDevice { .. } => {
            let Some(PoolFile {
                size,
                signature: Signature::Btrfs(id),
            }) = observed.file
            else {
                panic!("no file system to mount")
            };
            if observed.devices.is_empty() {
                observed.devices.push(Device {
                    path: "/dev/loop0".into(),
                    size,
                });
            }
            let quota = OFF;
            observed.mounted = Some(FileSystem {
                size: observed.devices[0].size,
                quota,
                ..file_system(id)
            });
        }
        Step::Extend { to, .. } => observed.file.as_mut().unwrap().size = *to,
        Step::TellDevice(_) => observed.devices[0].size = observed.file.unwrap().size,
        Step::GrowFileSystem(_) => observed.mounted.as_mut().unwrap().size = observed.devices[0].size,
        Step::EnableQuota(_) => match (&mut observed.mounted, &mut observed.beneath) {
            (Some(one), _) | (None, Some(one)) => one.quota.on = true,
            _ => panic!("nothing to count on"),
        },
    }
}

#[test]
fn what_only_people_can_mend_is_told_by_name_with_its_cure() {
    let with = |change: fn(&mut Observed)| {
        let mut observed = bare();
        change(&mut observed);
        observed
    };
    for (observed, what, cure) in [
        (with(|o| o.kernel = false), "no btrfs", "modprobe btrfs"),
        (
            with(|o| o.lacking = vec!["btrfs"]),
            "btrfs is not installed",
            "apt install btrfs-progs",
        ),
        (
            with(|o| o.lacking = vec!["mkfs.btrfs"]),
            "mkfs.btrfs is not",
            "apt install btrfs-progs",
        ),
        (
            with(|o| o.marker = marker(Kind::Loop, A)),
            "is gone",
            "put it back",
        ),
        (
            with(|o| o.marker = marker(Kind::Existing, A)),
            "and is not",
            "mount that disk",
        ),
        (
            with(|o| o.file = file(Signature::Nothing)),
            "holds no btrfs",
            "move it away",
        ),
        (
            with(|o| o.file = file(Signature::Unknown)),
            "holds no btrfs",
            "move it away",
        ),
        (
            with(|o| o.mounted_other = true),
            "no btrfs is mounted",
            "unmount it",
        ),
        (with(|o| o.free = Bytes::mib(100)), "100MiB are free", "free some"),
        (
            with(|o| {
                o.mounted = Some(FileSystem {
                    read_only: true,
                    ..file_system(A)
                });
            }),
            "read-only",
            "start the agent",
        ),
        (
            with(|o| {
                o.file = file(Signature::Btrfs(B));
                o.marker = marker(Kind::Loop, A);
            }),
            "the right one",
            "remove",
        ),
        (
            with(|o| {
                o.beneath = Some(file_system(B));
                o.marker = marker(Kind::Existing, A);
            }),
            "the right one",
            "remove",
        ),
        (
            with(|o| {
                let mut found = file_system(A);
                found.quota.simple = true;
                o.beneath = Some(found);
            }),
            "simple quotas",
            "btrfs quota disable",
        ),
    ] {
        let error = plan(&settings(), &observed).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains(cure), "{error}");
    }
}

#[test]
fn from_nothing_from_a_file_and_from_a_disk() {
    let settings = settings();
    let mut observed = bare();
    observed.new_file = true;
    let first = plan(&settings, &observed).unwrap().steps;
    assert!(matches!(first[1], Step::RemoveUnfinished(_)), "{first:?}");
    let after_boot = Observed {
        file: file(Signature::Btrfs(A)),
        marker: marker(Kind::Loop, A),
        root: true,
        ..bare()
    };
    let want = Step::MountFile {
        file: settings.file(),
        target: settings.root(),
    };
    assert_eq!(plan(&settings, &after_boot).unwrap().steps, [want]);
    let attached = Observed {
        devices: vec![Device {
            path: "/dev/loop3".into(),
            size: Bytes::gib(1),
        }],
        ..after_boot
    };
    let steps = plan(&settings, &attached).unwrap().steps;
    assert!(matches!(&steps[..], [Step::MountDevice { device, .. }] if device == Path::new("/dev/loop3")));
    let disk = Observed {
        beneath: Some(file_system(B)),
        lacking: vec!["mkfs.btrfs"],
        free: Bytes::ZERO,
        ..bare()
    };
    let steps = plan(&settings, &disk).unwrap().steps;
    assert_eq!(steps.len(), 2, "a folder and a marker: {steps:?}");
}

#[test]
fn sizes() {
    assert_eq!(size_for(None, Bytes::gib(10)), Bytes::gib(5));
    assert_eq!(size_for(None, Bytes::gib(1000)), MOST_BY_DEFAULT);
    assert_eq!(size_for(Some(Bytes(3_000_000)), Bytes::ZERO), Bytes::mib(2));
    assert_eq!(settings().marker(), Path::new("/s/volumes.pool.json"));
}

fn signatures() -> impl Strategy<Value = Signature> {
    prop_oneof![
        Just(Signature::Btrfs(A)),
        Just(Signature::Btrfs(B)),
        Just(Signature::Nothing),
        Just(Signature::Unknown)
    ]
}

fn systems() -> impl Strategy<Value = Option<FileSystem>> {
    let one =
        (any::<bool>(), any::<[bool; 3]>(), 1u64..4).prop_map(|(which, [read_only, on, simple], size)| {
            FileSystem {
                id: if which { A } else { B },
                read_only,
                size: Bytes::gib(size),
                quota: QuotaState { on, simple, ..OFF },
            }
        });
    prop_oneof![3 => Just(None), 2 => one.prop_map(Some)]
}

prop_compose! {
    fn hosts()(
        marker in prop_oneof![Just(None), (any::<bool>(), any::<bool>()).prop_map(|(kind, id)| marker(
            if kind { Kind::Loop } else { Kind::Existing }, if id { A } else { B }))],
        beneath in systems(),
        mounted in systems(),
        file in prop_oneof![Just(None), (signatures(), 1u64..4).prop_map(|(signature, size)|
            Some(PoolFile { size: Bytes::gib(size), signature }))],
        (root, mounted_other, new_file) in (any::<bool>(), proptest::bool::weighted(0.1), any::<bool>()),
        device in prop_oneof![Just(None), (1u64..4).prop_map(Some)],
        free in 0u64..5000,
    ) -> Observed {
        Observed {
            marker,
            beneath,
            root: root || mounted.is_some(),
            mounted,
            mounted_other: mounted_other && mounted.is_none(),
            devices: device.map(|size| Device { path: "/dev/loop0".into(), size: Bytes::gib(size) }).into_iter().collect(),
            file,
            new_file,
            free: Bytes::mib(free),
            lacking: Vec::new(),
            kernel: true,
        }
    }
}

proptest! {
    #[test]
    fn it_settles_formats_nothing_that_has_data_and_is_then_a_no_op(start in hosts(), size in proptest::option::of(1u64..4)) {
        let settings = Settings { size: size.map(Bytes::gib), ..settings() };
        let mut observed = start.clone();
        for _ in 0..8 {
            let Ok(plan) = plan(&settings, &observed) else { return Ok(()) };
            if plan.steps.is_empty() {
                let lies = observed.mounted.or(observed.beneath).expect("a pool lies somewhere");
                prop_assert!(lies.quota.on && !lies.read_only && observed.root);
                prop_assert_eq!(observed.marker.expect("remembered").file_system, lies.id);
                prop_assert_eq!(super::plan(&settings, &observed).expect("as before").steps, vec![]);
                return Ok(());
            }
            let mut made = false;
            for step in &plan.steps {
                if let Step::Format { .. } = step {
                    prop_assert!(made, "only what this plan made is formatted");
                    prop_assert!(start.file.is_none() && start.marker.is_none(), "never beside what was there");
                }
                made |= matches!(step, Step::CreateFile { .. });
                apply(&settings, &mut observed, step);
            }
            prop_assert!(start.file.is_none() || observed.file.map(|f| f.signature) == start.file.map(|f| f.signature));
        }
        prop_assert!(false, "it does not settle: {:?}", start);
    }
}
