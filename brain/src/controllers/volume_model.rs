//! The hand-over of a volume, exhaustively: every order in which two agents and the brain can hear of one another, act and fail
//! while one volume moves, with the brain's real controllers and its real words on the link.
//!
//! Whatever an agent says can be told late, after it has gone on; what the brain wants can reach an agent late. A fault comes at any
//! moment: an agent's host reboots, a node is taken for lost (and returns), the brain restarts, the move is cancelled. In every state in which a container runs it may write, and each write must find all acknowledged ones (R2). And from every
//! state, once nothing fails any more, the volume comes to be at one node, with its container.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{ContainerId, NodeId, SnapshotId, VolumeId};
use berth_common::model::{
    ContainerSpec, MoveStage, NodeKind, ObservedContainer, ObservedVolume, Phase, PoolFacts, UnixMillis,
    VolumeMove,
};
use berth_common::protocol::DesiredSet;
use berth_common::units::Bytes;

use super::fixtures::{container_id, node, node_id, service, tenant};
use super::volume_sim::{FakeVolumes, Sent};
use super::{Dirty, Input, Now, plan};
use crate::cluster::desired::desired_set;
use crate::cluster::{Change, Connection, State};
use crate::outlook::Watched;

const NOW: u64 = 1_000_000;
const LEASE: u64 = 10_000;
/// Writes after which a container is content.
const WRITES: u64 = 1;
/// Faults in one run.
const FAULTS: u8 = 1;

/// What an agent saw, and will tell or not.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Look {
    pub set: DesiredSet,
    pub containers: Vec<ObservedContainer>,
    pub volumes: Vec<ObservedVolume>,
    pub gone: Vec<VolumeId>,
}

#[derive(Debug, Clone)]
pub(super) struct Host {
    set: DesiredSet,
    pub has: BTreeMap<ContainerId, ObservedContainer>,
    pub volumes: FakeVolumes,
    pub look: Option<Look>,
    /// The brain hears it.
    pub linked: bool,
}

#[derive(Clone)]
pub(super) struct Model {
    pub state: State,
    pub hosts: [Host; 2],
    pub acknowledged: BTreeMap<VolumeId, u64>,
    pub spec: Arc<ContainerSpec>,
    pub ids: u64,
    pub faults: u8,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Act {
    /// What the brain wants reaches an agent.
    Deliver(usize),
    /// Its containers start or stop.
    Containers(usize),
    /// Its volumes come one step nearer to what is wanted.
    Volumes(usize),
    /// It sends, and that arrives.
    Send(usize),
    /// A container writes.
    Write(usize),
    /// It looks at what there is.
    Look(usize),
    /// What it saw is told.
    Tell(usize),
    Reboot(usize),
    Lose(usize),
    Return(usize),
    BrainRestarts,
    Cancel,
}

pub(super) const ACTS: [Act; 22] = [
    Act::Deliver(0),
    Act::Deliver(1),
    Act::Containers(0),
    Act::Containers(1),
    Act::Volumes(0),
    Act::Volumes(1),
    Act::Send(0),
    Act::Send(1),
    Act::Write(0),
    Act::Write(1),
    Act::Look(0),
    Act::Look(1),
    Act::Tell(0),
    Act::Tell(1),
    Act::Return(0),
    Act::Return(1),
    Act::Reboot(0),
    Act::Reboot(1),
    Act::Lose(0),
    Act::Lose(1),
    Act::BrainRestarts,
    Act::Cancel,
];

pub(super) fn id_of(host: usize) -> NodeId {
    node_id(host as u64 + 1)
}

pub(super) fn host_of(node: NodeId) -> usize {
    usize::from(node == node_id(2))
}

impl Model {
    /// One container with one volume on the first host, and the move to the second has just begun.
    pub fn begin() -> Self {
        let host = |n: usize| Host {
            set: DesiredSet::empty(id_of(n)),
            has: BTreeMap::new(),
            volumes: FakeVolumes::default(),
            look: None,
            linked: true,
        };
        let mut record = service(1, 1, "web:1", 1, Bytes::mib(256));
        record.spec.volumes = vec!["data:/x".parse().expect("mount")];
        record.spec.update.settle_ms = 0;
        record.spec.networks.clear();
        let mut model = Self {
            spec: record.spec.container_spec().expect("a spec").into(),
            state: State::default(),
            hosts: [host(0), host(1)],
            acknowledged: BTreeMap::new(),
            ids: 0,
            faults: 0,
        };
        let mut changes = vec![Change::PutTenant(tenant(1))];
        for n in 1..=2 {
            let mut record = node(n, NodeKind::Shared, 4, 8);
            record.facts.volumes = Some(PoolFacts {
                capacity: Bytes::gib(10),
                kind: "btrfs".to_owned(),
                port: Some(7444),
            });
            record.cordoned = n == 2;
            changes.push(Change::PutNode(record));
        }
        model.commit(changes);
        for n in 0..2 {
            model.connect(n);
        }
        model.commit(vec![Change::PutService(record)]);
        model.settle();
        assert!(model.is_settled(Some(0)), "{}", model.told());
        let mut opened = (*model.state.nodes[&node_id(2)]).clone();
        opened.cordoned = false;
        let mut volume = model.volume();
        volume.moves = Some(VolumeMove {
            to: node_id(2),
            why: "asked".to_owned(),
            last: SnapshotId::from_bytes([8; 10]),
            stage: MoveStage::Copying,
            since: UnixMillis(0),
        });
        model.commit(vec![Change::PutNode(opened), Change::PutVolume(volume)]);
        model
    }

    pub fn volume(&self) -> berth_common::model::VolumeRecord {
        (**self.state.volumes.values().next().expect("the volume")).clone()
    }

    fn commit(&mut self, changes: Vec<Change>) {
        let mut dirty = Dirty::of(&changes, &self.state);
        dirty.leases = true;
        let next = self.state.revision.next();
        self.state.apply(changes, next);
        let watched = Watched::default();
        for round in 0.. {
            assert!(round < 8, "plans do not settle: {}", self.told());
            let linked = [self.hosts[0].linked, self.hosts[1].linked];
            let heard = |id: NodeId| Some(if linked[host_of(id)] { NOW } else { 1 });
            let mut ids = self.ids;
            let input = Input {
                state: &self.state,
                dirty: &dirty,
                now: Now {
                    wall: UnixMillis(NOW),
                    mono_ms: NOW,
                },
                last_heard: &heard,
                lease_ms: LEASE,
                patient_until_ms: 0,
                outlook: &watched.at(NOW),
            };
            let planned = plan(&input, &mut || {
                ids += 1;
                container_id(ids)
            });
            self.ids = ids;
            if planned.changes.is_empty() {
                return;
            }
            dirty = Dirty::of(&planned.changes, &self.state);
            let next = self.state.revision.next();
            self.state.apply(planned.changes, next);
        }
    }

    fn connect(&mut self, n: usize) {
        let connection = Connection {
            serial: 1,
            address: String::new(),
            synced: true,
            applied: self.hosts[n].set.generation,
        };
        self.commit(vec![Change::Connected(id_of(n), connection)]);
    }

    /// The state after an act; none if it does nothing.
    pub fn after(&self, act: Act) -> Option<Self> {
        // What is seen at a glance needs no state of its own.
        let nothing = match act {
            Act::Return(n) => self.hosts[n].linked,
            Act::Tell(n) => self.hosts[n].look.is_none(),
            Act::Reboot(_) | Act::Lose(_) | Act::BrainRestarts | Act::Cancel => self.faults >= FAULTS,
            _ => false,
        };
        if nothing {
            return None;
        }
        let mut next = self.clone();
        next.act(act).then_some(next)
    }

    pub fn act(&mut self, act: Act) -> bool {
        match act {
            Act::Deliver(n) => {
                let set = desired_set(&self.state, id_of(n));
                let host = &mut self.hosts[n];
                if !host.linked || host.set == set {
                    return false;
                }
                host.volumes.order(&set);
                host.set = set;
                true
            }
            Act::Containers(n) => self.containers(n),
            Act::Volumes(n) => {
                let host = &mut self.hosts[n];
                let before = host.volumes.clone();
                host.volumes.use_by(&host.has);
                host.volumes.live(&mut self.acknowledged);
                before != host.volumes
            }
            Act::Send(n) => {
                let before = [self.hosts[0].volumes.clone(), self.hosts[1].volumes.clone()];
                let sent: Vec<Sent> = self.hosts[n].volumes.send();
                for one in sent {
                    self.hosts[host_of(one.to)].volumes.take(&one, id_of(n));
                }
                before != [self.hosts[0].volumes.clone(), self.hosts[1].volumes.clone()]
            }
            Act::Write(n) => {
                let host = &mut self.hosts[n];
                let runs = host.has.values().any(|seen| seen.phase == Phase::Running);
                if !runs || self.acknowledged.values().any(|writes| *writes >= WRITES) {
                    // It reads all the same: what it has must be all there is.
                    host.volumes.check(&host.has, &self.acknowledged);
                    return false;
                }
                host.volumes.write(&host.has, &mut self.acknowledged);
                true
            }
            Act::Look(n) => {
                let host = &mut self.hosts[n];
                host.volumes.use_by(&host.has);
                let (volumes, gone) = host.volumes.observed();
                let look = Look {
                    set: host.set.clone(),
                    containers: host.has.values().cloned().collect(),
                    volumes,
                    gone,
                };
                let same = host.look.as_ref() == Some(&look);
                host.look = Some(look);
                !same
            }
            Act::Tell(n) => {
                let host = &mut self.hosts[n];
                let Some(look) = host.look.take().filter(|_| host.linked) else {
                    return false;
                };
                let connection = Connection {
                    serial: 1,
                    address: String::new(),
                    synced: true,
                    applied: look.set.generation,
                };
                let observed = Change::Observed {
                    node: id_of(n),
                    full: true,
                    containers: look.containers,
                    gone: Vec::new(),
                };
                let volumes = Change::ObservedVolumes {
                    node: id_of(n),
                    volumes: look.volumes,
                    gone: look.gone,
                };
                self.commit(vec![observed, volumes, Change::Connected(id_of(n), connection)]);
                true
            }
            Act::Reboot(n) => {
                let host = &mut self.hosts[n];
                if host.has.is_empty() {
                    return false;
                }
                for seen in host.has.values_mut() {
                    seen.phase = Phase::Creating;
                }
                host.look = None;
                self.fault()
            }
            Act::Lose(n) => {
                if !self.hosts[n].linked || self.faults >= FAULTS {
                    return false;
                }
                self.hosts[n].linked = false;
                self.commit(vec![Change::Disconnected(id_of(n), 1)]);
                self.fault()
            }
            Act::Return(n) => {
                if self.hosts[n].linked {
                    return false;
                }
                self.hosts[n].linked = true;
                self.hosts[n].look = None;
                self.connect(n);
                true
            }
            Act::BrainRestarts => {
                let mut anew = State::default();
                let tenants = self
                    .state
                    .tenants
                    .values()
                    .map(|one| Change::PutTenant((**one).clone()));
                let nodes = self
                    .state
                    .nodes
                    .values()
                    .map(|one| Change::PutNode((**one).clone()));
                let services = self
                    .state
                    .services
                    .values()
                    .map(|one| Change::PutService((**one).clone()));
                let containers = self.state.containers.values();
                let containers = containers.map(|one| Change::PutContainer((**one).clone()));
                let volumes = self
                    .state
                    .volumes
                    .values()
                    .map(|one| Change::PutVolume((**one).clone()));
                let generations: Vec<_> = self.state.nodes.values().map(|one| (**one).clone()).collect();
                let all = tenants
                    .chain(nodes)
                    .chain(services)
                    .chain(containers)
                    .chain(volumes);
                anew.apply(all.collect(), self.state.revision);
                // Loading raises no generation.
                anew.apply(
                    generations.into_iter().map(Change::PutNode).collect(),
                    self.state.revision,
                );
                self.state = anew;
                for n in 0..2 {
                    self.hosts[n].look = None;
                    if self.hosts[n].linked {
                        self.connect(n);
                    }
                }
                self.fault()
            }
            Act::Cancel => {
                let mut volume = self.volume();
                let on_its_way = volume.moves.as_ref();
                if on_its_way.is_none_or(|moves| moves.stage == MoveStage::Finishing) {
                    return false;
                }
                super::volumes::cancel(&mut volume);
                self.commit(vec![Change::PutVolume(volume)]);
                self.fault()
            }
        }
    }

    fn fault(&mut self) -> bool {
        self.faults += 1;
        self.faults <= FAULTS
    }

    fn containers(&mut self, n: usize) -> bool {
        let host = &mut self.hosts[n];
        let before = host.has.clone();
        let wanted: Vec<ContainerId> = host.set.containers.iter().map(|c| c.id).collect();
        host.has.retain(|id, _| wanted.contains(id));
        for id in wanted {
            let ready = host.volumes.ready(id, 1);
            let seen = host
                .has
                .entry(id)
                .or_insert_with(|| ObservedContainer::pending(id));
            seen.phase = match seen.phase {
                Phase::Running => Phase::Running,
                _ if ready => Phase::Running,
                _ => Phase::Creating,
            };
            seen.started_at = (seen.phase == Phase::Running).then_some(UnixMillis(1));
        }
        host.volumes.use_by(&host.has);
        host.has != before
    }
}
