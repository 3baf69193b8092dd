//! A large cluster as benches need it: nodes of several kinds, services with all sorts of wishes, a load on every node.

use std::collections::BTreeMap;

use berth_brain::cluster::{Change, Connection, State};
use berth_brain::outlook::Watched;
use berth_brain::scheduler::affinity::{Companion, Replicas};
use berth_brain::scheduler::forecast::{CPU, Loads, MEMORY};
use berth_brain::scheduler::load::Known;
use berth_brain::scheduler::{Constraints, Request, Watcher};
use berth_common::id::{ContainerId, Generation, Name, NodeId, Revision, ServiceId, TenantId};
use berth_common::model::{
    Architecture, Capacity, ContainerRecord, NodeFacts, NodeKind, NodeRecord, ObservedContainer, Overcommit,
    Phase, PoolRecord, Reservation, RunState, ServiceRecord, ServiceSpec, Spread, Taint, Toleration,
    UnixMillis,
};
use berth_common::units::{Bytes, Millicores};

/// Numbers that look random and are the same each time (SplitMix64).
pub fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn raw(kind: u8, n: u64) -> [u8; 10] {
    let mut raw = [kind; 10];
    raw[2..].copy_from_slice(&n.to_be_bytes());
    raw
}

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

/// One node of `n`: of three sizes, in ten zones and 200 racks, some with taints, in a pool of their own, private, cordoned or lost.
fn node(n: u64) -> NodeRecord {
    let luck = scatter(n);
    let part = |at: u32, of: u64| (luck >> at) % of;
    let size = [1, 1, 1, 1, 1, 1, 2, 2, 2, 4][part(0, 10) as usize];
    let capacity = Capacity {
        cpu: Millicores(16_000 * size),
        memory: Bytes::gib(64 * u64::from(size)),
        disk: Bytes::gib(500 * u64::from(size)),
    };
    let mut facts = NodeFacts::of(&format!("h{n}"), capacity);
    facts.arch = Architecture(if part(8, 10) == 0 { "arm64" } else { "amd64" }.to_owned());
    let kind = match part(12, 50) {
        0 => NodeKind::Private {
            tenant: TenantId::from_bytes(raw(2, n % 100)),
        },
        _ => NodeKind::Shared,
    };
    let mut record = NodeRecord::new(NodeId::from_bytes(raw(1, n)), name(&format!("h{n}")), kind, facts);
    record.labels = [
        ("zone".to_owned(), format!("z{}", part(20, 10))),
        ("rack".to_owned(), format!("r{}", part(24, 200))),
        (
            "disk".to_owned(),
            if part(32, 10) < 3 { "ssd" } else { "hdd" }.to_owned(),
        ),
    ]
    .into();
    let taint = |text: &str| -> Taint { text.parse().expect("a taint") };
    match part(36, 20) {
        0 => record.taints.push(taint("gpu:no-schedule")),
        1 | 2 => record.taints.push(taint("spot:prefer-no-schedule")),
        _ => {}
    }
    if part(42, 5) == 0 {
        record.pool = name("batch");
    }
    record.cordoned = part(46, 100) == 0;
    record.lost = part(54, 100) == 0;
    record
}

/// A service of an existing container's.
fn service(n: u64) -> ServiceRecord {
    let mut spec = ServiceSpec::new(
        name(&format!("s{n}")),
        "docker.io/library/web:1".parse().expect("an image"),
    );
    spec.replicas = 50;
    spec.resources.limits.memory = Some(Bytes::mib(256));
    ServiceRecord {
        id: ServiceId::from_bytes(raw(3, n)),
        tenant: TenantId::from_bytes(raw(2, n % 100)),
        spec,
        generation: 1,
        run: RunState::Running,
        restarts_asked: 0,
        created_at: UnixMillis(0),
        revision: Revision(0),
    }
}

/// So many nodes, connected, with so many containers on them.
pub fn state(nodes: u64, containers: u64) -> State {
    let mut state = State::default();
    let mut changes = vec![Change::PutPool(PoolRecord {
        name: name("batch"),
        overcommit: Overcommit {
            cpu_percent: 150,
            ..Overcommit::default()
        },
        created_at: UnixMillis(0),
        revision: Revision(0),
    })];
    for n in 0..nodes {
        let record = node(n);
        let connection = Connection {
            serial: n,
            address: "198.51.100.7:9".to_owned(),
            synced: true,
            applied: Generation(0),
        };
        let id = record.id;
        changes.push(Change::PutNode(record));
        changes.push(Change::Connected(id, connection));
    }
    state.apply(changes, Revision(1));
    for n in 0..containers.div_ceil(50) {
        let service = service(n);
        let spec = std::sync::Arc::new(service.spec.container_spec().expect("a spec"));
        let all = (0..50).map(|replica| {
            let id = n * 50 + replica;
            Change::PutContainer(ContainerRecord {
                id: ContainerId::from_bytes(raw(4, id)),
                tenant: service.tenant,
                service: service.id,
                service_name: service.spec.name.clone(),
                replica: replica as u32 + 1,
                node: Some(NodeId::from_bytes(raw(1, scatter(id) % nodes))),
                claim: None,
                moves: None,
                waiting: None,
                spec: spec.clone(),
                service_generation: 1,
                run: RunState::Running,
                restarts_asked: 0,
                removing: false,
                replaces: None,
                endpoints: Vec::new(),
                created_at: UnixMillis(0),
                revision: Revision(0),
            })
        });
        let mut changes: Vec<Change> = all.collect();
        changes.push(Change::PutService(service));
        state.apply(changes, Revision(n + 2));
    }
    state
}

/// What agents have said of all containers of a state: that they run.
pub fn observe(state: &mut State) {
    let nodes: Vec<NodeId> = state.nodes.keys().copied().collect();
    for node in nodes {
        let seen = state.containers_on(node).map(|container| {
            let mut seen = ObservedContainer::pending(container.id);
            seen.phase = Phase::Running;
            seen.pid = Some(4_711);
            seen.started_at = Some(UnixMillis(1));
            seen.limits = Some(container.spec.limits);
            seen
        });
        let change = Change::Observed {
            node,
            full: true,
            containers: seen.collect(),
            gone: Vec::new(),
        };
        let revision = state.revision;
        state.apply(vec![change], revision);
    }
}

/// What the brain has learned of such a cluster in a quarter of an hour; one node in a hundred is hot by what its containers use.
pub fn outlook(state: &State) -> Watched {
    let watched = Watched::default();
    watched.reset(state);
    for round in 0..90 {
        for (n, id) in (0_u64..).zip(state.nodes.keys()) {
            // Ninety samples of a hundred nodes tell enough, and the last five of all others: none of them is young any more.
            if !n.is_multiple_of(100) && round < 85 {
                continue;
            }
            let containers: Vec<_> = state.containers_on(*id).map(|one| one.id).collect();
            let capacity = state.nodes[id].facts.capacity.cpu.0 as f32;
            let share = if n.is_multiple_of(100) { 1.1 } else { 0.5 };
            let each = capacity * share / containers.len().max(1) as f32;
            let used = |id: ContainerId| (id, [Some(each), Some(100e6), Some(1e5), Some(1e5)]);
            let samples = (
                [Some(200.0), Some(1e9), Some(0.0), Some(0.0)],
                containers.into_iter().map(used).collect(),
            );
            watched.record(*id, round * 10, samples);
        }
    }
    watched
}

/// Load of every node: a tenth to three quarters of what it has.
#[derive(Debug)]
pub struct Load(BTreeMap<NodeId, Loads>);

impl Load {
    /// Of the nodes of a state.
    pub fn of(state: &State) -> Self {
        let load = |node: &NodeRecord, luck: u64| {
            let mut loads = Loads::default();
            let share = 0.1 + (luck % 650) as f32 / 1000.0;
            let held = &node.facts.capacity;
            loads[CPU].mean = share * held.cpu.0 as f32;
            loads[CPU].variance = (0.05 * held.cpu.0 as f32).powi(2);
            loads[MEMORY].mean = 0.4 * held.memory.0 as f32;
            loads
        };
        let nodes = (0..).zip(&state.nodes);
        Self(
            nodes
                .map(|(n, (id, node))| (*id, load(node, scatter(n ^ 0xabc))))
                .collect(),
        )
    }
}

impl Watcher for Load {
    fn known(&self, node: NodeId) -> Known {
        self.0.get(&node).copied().map_or(Known::Silent, Known::Expected)
    }
}

/// What services ask of places, as it is needed to make requests of it.
#[derive(Debug, Default)]
pub struct Wishes {
    ssd: BTreeMap<String, String>,
    none: BTreeMap<String, String>,
    batch: Option<Name>,
    arm: Option<Architecture>,
    gpu: Vec<Toleration>,
    zone: Vec<Spread>,
    zone_hard: Vec<Spread>,
    rack: Vec<Spread>,
    other: Option<Name>,
}

/// A service to be placed: its request and how many replicas it has.
pub type Wanted<'a> = (Request<'a>, usize);

impl Wishes {
    /// All of them.
    pub fn new() -> Self {
        let spread = |text: &str| vec![text.parse().expect("a spread")];
        Self {
            ssd: [("disk".to_owned(), "ssd".to_owned())].into(),
            none: BTreeMap::new(),
            batch: Some(name("batch")),
            arm: Some(Architecture("arm64".to_owned())),
            gpu: vec!["gpu".parse().expect("a toleration")],
            zone: spread("zone"),
            zone_hard: spread("zone,hard"),
            rack: spread("rack"),
            other: Some(name("db")),
        }
    }

    /// The service `n`: six in ten ask for nothing in particular, of the rest each for something else. One to 40 replicas.
    pub fn service(&self, n: u64, state: &State) -> Wanted<'_> {
        let luck = scatter(n ^ 0x5eed);
        let cpu = 50 + (luck >> 8) % 450;
        let mut load = Loads::default();
        load[CPU].mean = cpu as f32 * 0.6;
        load[CPU].variance = (cpu as f32 * 0.2).powi(2);
        load[MEMORY].mean = 128e6;
        let reservation = Reservation {
            cpu: Millicores(cpu as u32),
            memory: Bytes::mib(64 + (luck >> 20) % 448),
            disk: Bytes::mib(100),
        };
        let mut asked = Constraints::default();
        let mut labels = &self.none;
        match luck % 20 {
            0 | 1 => labels = &self.ssd,
            2 => asked.pool = self.batch.as_ref(),
            3 => asked.arch = self.arm.as_ref(),
            4 => asked.tolerations = &self.gpu,
            5 => asked.spread = &self.zone,
            6 => asked.spread = &self.zone_hard,
            7 => asked.spread = &self.rack,
            8 => asked.max_per_node = Some(1),
            9 => {
                let near = (0..3).map(|at| scatter(n * 3 + at) as usize % state.nodes.len().max(1));
                let nodes = near.filter_map(|at| state.nodes.keys().nth(at).copied());
                asked.companions.push(Companion {
                    with: self.other.as_ref().expect("a name"),
                    by: None,
                    hard: false,
                    nodes: nodes.collect(),
                    values: Default::default(),
                });
            }
            10 => asked.idle = reservation,
            _ => {}
        }
        asked.replicas = Replicas::default();
        let request = Request {
            tenant: TenantId::from_bytes(raw(2, n % 100)),
            reservation: match asked.idle == reservation {
                true => Reservation {
                    disk: reservation.disk,
                    ..Reservation::default()
                },
                false => reservation,
            },
            node_labels: labels,
            replicas: BTreeMap::new(),
            image_on: Default::default(),
            constraints: asked,
            load,
            seed: luck,
        };
        (request, 1 + (luck >> 40) as usize % 40)
    }
}
