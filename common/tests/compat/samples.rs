//! The values behind the recorded messages: every field set, and set to something that is not its default.

use std::sync::Arc;

use std::collections::BTreeMap;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, Epoch, Generation, NodeId, ServiceId, SnapshotId, TenantId, VolumeId};
use berth_common::model::*;
use berth_common::protocol::*;
use berth_common::units::{Bytes, Millicores};

pub fn node() -> NodeId {
    NodeId::from_bytes([1; 10])
}

pub fn tenant() -> TenantId {
    TenantId::from_bytes([2; 10])
}

pub fn container() -> ContainerId {
    ContainerId::from_bytes([4; 10])
}

fn map(key: &str, value: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(key.to_owned(), value.to_owned())])
}

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|&word| word.to_owned()).collect()
}

pub fn digest() -> Digest {
    Digest::from_bytes([0xab; 32])
}

pub fn reference() -> ImageRef {
    "registry.example:5000/team/web:1.2".parse().unwrap()
}

pub fn problem() -> Problem {
    let mut problem = Problem::new(ErrorKind::Precondition, "container web-1 is not running")
        .cure("start it")
        .field("/container");
    problem.request_id = Some("r-17".to_owned());
    problem
}

pub fn credential() -> RegistryCredential {
    RegistryCredential {
        registry: "registry.example:5000".to_owned(),
        username: "reader".to_owned(),
        password: "not-a-real-one".to_owned(),
    }
}

pub fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "host-1.example".to_owned(),
        agent_version: "0.1.0".to_owned(),
        os: "Debian GNU/Linux 13".to_owned(),
        kernel: "6.12.0".to_owned(),
        arch: Architecture("amd64".to_owned()),
        capacity: Capacity {
            cpu: Millicores(8000),
            memory: Bytes::gib(32),
            disk: Bytes::gib(500),
        },
        system_reserve: Capacity {
            cpu: Millicores(500),
            memory: Bytes::gib(1),
            disk: Bytes::gib(10),
        },
        cgroup_version: 2,
        runtime: "containerd 2.1.0".to_owned(),
        snapshotter: "btrfs".to_owned(),
        disk_limit_hard: true,
        boot_id: "5f0c6a3e".to_owned(),
        underlay: None,
        volumes: None,
        warnings: words(&["no swap accounting"]),
    }
}

pub fn limits() -> Limits {
    Limits {
        cpu: Millicores(1500),
        cpu_weight: 200,
        memory: Bytes::mib(300),
        memory_high: None,
        swap: MemorySwap::None,
        pids: 77,
        disk: Bytes::gib(2),
        io: IoLimits {
            read_bps: Bytes::mib(20),
            write_bps: Bytes::mib(10),
            read_iops: 900,
            write_iops: 800,
        },
    }
}

pub fn spec() -> ContainerSpec {
    ContainerSpec {
        image: reference(),
        entrypoint: Some(words(&["/bin/web"])),
        command: Some(words(&["--port", "80"])),
        env: map("MODE", "live"),
        working_dir: Some("/srv".to_owned()),
        user: Some("www:www".to_owned()),
        hostname: Some("web-1".parse().unwrap()),
        reservation: Reservation {
            cpu: Millicores(150),
            memory: Bytes::mib(256),
            disk: Bytes::gib(1),
        },
        limits: limits(),
        tmpfs: vec![Tmpfs {
            path: "/run".to_owned(),
            size: Bytes::mib(16),
        }],
        volumes: Vec::new(),
        restart: RestartPolicy {
            on: Restart::OnFailure,
            delay_ms: 500,
            max_delay_ms: 30_000,
            reset_after_ms: 20_000,
            max_restarts: Some(9),
        },
        stop_grace_secs: 12,
        stop_signal: Some("SIGQUIT".to_owned()),
        init: true,
        read_only: true,
        cap_add: words(&["NET_RAW"]),
        cap_drop: words(&["CHOWN"]),
        privileged: true,
        node_labels: map("zone", "north"),
        pool: None,
        class: Class::Standard,
        networks: default_networks(),
        health: None,
        ingress_from: None,
        bandwidth: Bandwidth::default(),
    }
}

pub fn endpoint() -> DesiredEndpoint {
    DesiredEndpoint {
        vni: 7.try_into().unwrap(),
        network: "back".parse().unwrap(),
        subnets: Subnets::new("10.20.0.0/16".parse().unwrap(), "fd00:1::/64".parse().unwrap()).unwrap(),
        host: HostNumber(258),
    }
}

pub fn desired_container() -> DesiredContainer {
    DesiredContainer {
        id: container(),
        tenant: tenant(),
        tenant_name: "acme".parse().unwrap(),
        service: ServiceId::from_bytes([3; 10]),
        service_name: "web".parse().unwrap(),
        replica: 1,
        spec: spec().into(),
        run: RunState::Stopped,
        restarts_asked: 2,
        endpoints: Vec::new(),
        volumes: Vec::new(),
    }
}

/// Of a brain that knows networks.
pub fn on_networks() -> DesiredUpdate {
    let mut container = desired_container();
    Arc::make_mut(&mut container.spec).networks = vec!["back".parse().unwrap()];
    container.endpoints = vec![endpoint()];
    DesiredUpdate::Full {
        set: DesiredSet {
            node: node(),
            generation: Generation(9),
            tenants: vec![share()],
            containers: vec![container],
            volumes: Vec::new(),
        },
    }
}

pub fn observed_volume() -> ObservedVolume {
    ObservedVolume {
        id: VolumeId::from_bytes([8; 10]),
        epoch: Epoch(3),
        writable: true,
        size: Bytes::gib(1),
        used: Bytes::mib(7),
        mounted: true,
        snapshots: vec![ObservedSnapshot {
            id: SnapshotId::from_bytes([7; 10]),
            referenced: Bytes::mib(5),
            exclusive: Bytes::mib(2),
        }],
        problem: Some("the pool is full".to_owned()),
        sending: Some(ObservedSending {
            // Of an agent that did not say it yet.
            last: None,
            round: 2,
            sent: Bytes::mib(3),
            expected: Bytes::mib(9),
            ready: true,
        }),
        snapshots_gone: vec![SnapshotId::from_bytes([6; 10])],
    }
}

/// Of a brain that knows volumes.
pub fn with_volumes() -> DesiredUpdate {
    let (id, other) = (VolumeId::from_bytes([8; 10]), NodeId::from_bytes([5; 10]));
    let snapshot = |n| SnapshotId::from_bytes([n; 10]);
    let mut container = desired_container();
    Arc::make_mut(&mut container.spec).volumes = vec!["data:/data:ro".parse().unwrap()];
    container.volumes = vec![DesiredMount {
        volume: id,
        epoch: Epoch(3),
        snapshot: None,
    }];
    let held = DesiredVolume {
        id,
        tenant: tenant(),
        size: Bytes::gib(1),
        epoch: Epoch(3),
        place: VolumePlace::Held {
            source: Some(VolumeSource {
                volume: VolumeId::from_bytes([7; 10]),
                snapshot: snapshot(1),
            }),
            made: true,
            resume: Some(snapshot(2)),
        },
        snapshots: vec![snapshot(3)],
        hooks: None,
        snapshots_gone: vec![snapshot(4)],
        rollback: Some(RollBack {
            snapshot: snapshot(3),
            keep: snapshot(5),
        }),
        send: Some(SendTo {
            node: other,
            addresses: vec!["192.0.2.7:7444".parse().unwrap()],
            last: snapshot(6),
            finish: true,
        }),
        moved: Some(snapshot(2)),
    };
    let arriving = DesiredVolume {
        id: VolumeId::from_bytes([9; 10]),
        place: VolumePlace::Arriving { from: other },
        send: None,
        ..held.clone()
    };
    DesiredUpdate::Full {
        set: DesiredSet {
            node: node(),
            generation: Generation(10),
            tenants: vec![share()],
            containers: vec![container],
            volumes: vec![held, arriving],
        },
    }
}

/// Of a brain that knows of commands around snapshots, and of snapshots that are read.
pub fn with_snapshots() -> DesiredUpdate {
    let DesiredUpdate::Full { mut set } = with_volumes() else {
        unreachable!("it is a whole set")
    };
    set.volumes[0].hooks = Some(SnapshotHooks {
        before: Some(vec!["redis-cli".to_owned(), "save".to_owned()]),
        after: Some(vec!["true".to_owned()]),
        limit_ms: 5_000,
    });
    let container = &mut set.containers[0];
    Arc::make_mut(&mut container.spec).volumes = vec!["data@before:/old".parse().unwrap()];
    container.volumes[0].snapshot = Some(SnapshotId::from_bytes([3; 10]));
    DesiredUpdate::Full { set }
}

/// Other nodes on a node's networks.
pub fn neighbours() -> Vec<(&'static str, BrainMessage)> {
    let (vni, other) = (7.try_into().unwrap(), NodeId::from_bytes([5; 10]));
    let nodes = BTreeMap::from([(other, "192.0.2.7".parse().unwrap())]);
    let networks = BTreeMap::from([(vni, BTreeMap::from([(HostNumber(3), other)]))]);
    let web = || "web".parse().expect("name");
    let named = [
        Named::service(web(), HostNumber(9)),
        Named::replica(web(), 1, HostNumber(3)),
        Named::idle(web(), 2, HostNumber(4)),
    ];
    let published = vec![Published {
        protocol: Protocol::Tcp,
        first: 8080,
        count: 1,
        target: 80,
        service: "web".parse().expect("name"),
        vni,
        elsewhere: vec![PublishedOn {
            address: "192.0.2.7".parse().unwrap(),
            replicas: 2,
            address6: Some("2001:db8::7".parse().unwrap()),
        }],
    }];
    let sealed = Sealed {
        node: other,
        address: "192.0.2.7".parse().unwrap(),
        wireguard: WireGuard {
            key: WireGuardKey([9; 32]),
            port: 51_821,
        },
    };
    let full = NeighboursUpdate::Full {
        neighbours: Neighbours {
            nodes: nodes.clone(),
            networks,
            names: [(vni, named.clone().into())].into(),
            published: published.clone(),
            sealed: [sealed].into(),
        },
    };
    let delta = NeighboursUpdate::Delta {
        nodes: Some(Reached::list(&nodes)),
        added: vec![Elsewhere::new(vni, [(HostNumber(4), other)])],
        gone: vec![Gone {
            vni,
            hosts: vec![HostNumber(3)],
        }],
        left: vec![8.try_into().unwrap()],
        named: vec![Called::new(vni, named.clone())],
        unnamed: vec![Called::new(vni, named)],
        published: Some(published),
        sealed: Some([sealed].into()),
    };
    vec![
        ("brain_neighbours_full", BrainMessage::Neighbours(full)),
        ("brain_neighbours_delta", BrainMessage::Neighbours(delta)),
    ]
}

pub fn share() -> TenantShare {
    TenantShare {
        tenant: tenant(),
        name: "acme".parse().unwrap(),
        cpu_weight: 150,
        credentials: vec![credential()],
    }
}

pub fn full() -> DesiredUpdate {
    DesiredUpdate::Full {
        set: DesiredSet {
            node: node(),
            generation: Generation(7),
            tenants: vec![share()],
            containers: vec![desired_container()],
            volumes: Vec::new(),
        },
    }
}

pub fn delta() -> DesiredUpdate {
    DesiredUpdate::Delta {
        node: node(),
        base: Generation(7),
        generation: Generation(8),
        tenants: vec![share()],
        tenants_gone: vec![TenantId::from_bytes([5; 10])],
        containers: vec![desired_container()],
        gone: vec![ContainerId::from_bytes([6; 10])],
        volumes: Vec::new(),
        volumes_left: Vec::new(),
    }
}

pub fn observed_container() -> ObservedContainer {
    ObservedContainer {
        id: container(),
        phase: Phase::Backoff,
        reason: Some("starts again in 4 s".to_owned()),
        pid: Some(4321),
        started_at: Some(UnixMillis(1_700_000_000_000)),
        health: None,
        last_exit: Some(ExitInfo {
            code: 137,
            oom: true,
            reason: "out of memory (limit 300MiB)".to_owned(),
            at: UnixMillis(1_700_000_001_000),
        }),
        restarts: 3,
        oom_kills: 4,
        image: Some(digest()),
        limits: Some(limits()),
        disk_limit_hard: true,
        restarts_done: 2,
    }
}

pub fn usage() -> UsageReport {
    let pressure = |some| Some(Pressure { some, full: some / 2 });
    UsageReport {
        sequence: 11,
        at: UnixMillis(1_700_000_002_000),
        node: NodeUsage {
            cpu: Some(1),
            cpu_containers: Some(2),
            cpu_foreign: Some(3),
            memory: Some(4),
            memory_containers: Some(5),
            memory_foreign: Some(6),
            disk: Some(7),
            disk_read_bps: Some(8),
            disk_write_bps: Some(9),
            net_rx_bps: Some(10),
            net_tx_bps: Some(11),
            psi_cpu: pressure(12),
            psi_memory: pressure(14),
            psi_io: pressure(16),
            cpu_minute: Some([1, 2, 3, 4]),
        },
        containers: vec![ContainerUsage {
            id: container(),
            at: UnixMillis(1_700_000_001_900),
            cpu: Some(21),
            throttled: Some(22),
            memory: Some(23),
            oom_kills: Some(24),
            pids: Some(25),
            disk: Some(26),
            read_bps: Some(27),
            write_bps: Some(28),
            net_rx_bps: Some(29),
            net_tx_bps: Some(30),
            cpu_minute: Some([5, 6, 7, 8]),
            memory_minute_max: Some(31),
            psi_cpu: None,
            psi_memory: None,
            psi_io: None,
        }],
        full: true,
    }
}

/// One that uses what others leave, in a pool.
pub fn best_effort() -> DesiredUpdate {
    let mut container = desired_container();
    Arc::make_mut(&mut container.spec).pool = Some("batch".parse().unwrap());
    Arc::make_mut(&mut container.spec).class = Class::BestEffort;
    DesiredUpdate::Full {
        set: DesiredSet {
            node: node(),
            generation: Generation(10),
            tenants: vec![share()],
            containers: vec![container],
            volumes: Vec::new(),
        },
    }
}

/// A container that is checked, as it is wanted and as it is seen.
pub fn checked() -> (DesiredUpdate, ObservedContainer) {
    let DesiredUpdate::Full { mut set } = full() else {
        unreachable!()
    };
    Arc::make_mut(&mut set.containers[0].spec).health = Some(HealthCheck {
        http: Some(HttpCheck {
            port: 8080,
            path: "/ready".to_owned(),
        }),
        tcp: Some(8080),
        command: Some(words(&["true"])),
        interval_ms: 2_000,
        timeout_ms: 1_000,
        retries: 5,
        start_period_ms: 20_000,
        restart: false,
    });
    let spec = Arc::make_mut(&mut set.containers[0].spec);
    spec.ingress_from = Some(vec!["front".parse().unwrap()]);
    spec.bandwidth = Bandwidth {
        inward: Some(Bytes::mib(5)),
        outward: Some(Bytes::mib(6)),
    };
    let seen = ObservedContainer {
        health: Some(Health {
            state: HealthState::Unhealthy,
            since: UnixMillis(1_700_000_003_000),
            failures: 5,
            output: Some("GET /ready was answered with 503".to_owned()),
        }),
        ..observed_container()
    };
    (DesiredUpdate::Full { set }, seen)
}
