//! A simulated cluster in virtual time: nodes that obey their desired set with delays, vanish, return and reboot, images
//! that crash or end. Property tests drive it with random actions and check the rules after every plan.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, Generation, NodeId, ServiceId, VolumeId};
use berth_common::model::{
    Endpoint, ExitInfo, Health, HealthState, NodeRecord, ObservedContainer, Phase, Restart, RunState,
    UnixMillis,
};

use super::fixtures::{container_id, tenant};
use super::volume_sim::FakeVolumes;
use super::{Dirty, Input, NewEvent, Now, Plan, plan};
use crate::cluster::{Change, Connection, State};
use crate::outlook::Watched;

pub(super) const TICK_MS: u64 = 500;
pub(super) const LEASE_MS: u64 = 10_000;

#[derive(Default)]
struct FakeNode {
    /// Up and reachable.
    up: bool,
    /// Has a link to the brain.
    linked: bool,
    serial: u64,
    applied: Generation,
    ledger: BTreeSet<ContainerId>,
    has: BTreeMap<ContainerId, ObservedContainer>,
    reported: BTreeMap<ContainerId, ObservedContainer>,
    volumes: FakeVolumes,
}

pub(super) struct World {
    pub state: State,
    pub now: u64,
    skipped: u64,
    pub events: Vec<NewEvent>,
    /// What nodes are expected to use: nothing is known unless a test tells it.
    pub watched: Watched,
    nodes: BTreeMap<NodeId, FakeNode>,
    heard: BTreeMap<NodeId, u64>,
    pub patient_until_ms: u64,
    ids: u64,
    pending: Option<(u64, Dirty)>,
    /// How many writes to each volume were acknowledged.
    pub acknowledged: BTreeMap<VolumeId, u64>,
    /// Places that nobody has any more, and since when.
    pub given_back: BTreeMap<Endpoint, u64>,
}

impl World {
    pub fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            now: 0,
            skipped: 0,
            events: vec![],
            watched: Watched::default(),
            nodes: BTreeMap::new(),
            heard: BTreeMap::new(),
            patient_until_ms: 0,
            ids: 0,
            pending: None,
            acknowledged: BTreeMap::new(),
            given_back: BTreeMap::new(),
        };
        for n in 1..=2 {
            world.commit(vec![Change::PutTenant(tenant(n))]);
        }
        world
    }

    pub fn join(&mut self, record: NodeRecord) {
        let id = record.id;
        self.commit(vec![Change::PutNode(record)]);
        self.nodes.insert(
            id,
            FakeNode {
                up: true,
                ..Default::default()
            },
        );
    }

    /// What the writer does with a batch: apply, plan, apply the plan, in one transaction; here with every rule checked.
    pub fn commit(&mut self, changes: Vec<Change>) {
        let dirty = Dirty::of(&changes, &self.state);
        self.apply(changes);
        self.run_plan(&dirty);
    }

    fn apply(&mut self, changes: Vec<Change>) {
        let before: BTreeMap<_, _> = self
            .state
            .nodes
            .iter()
            .map(|(id, n)| (*id, n.generation))
            .collect();
        let next = self.state.revision.next();
        for change in self.state.apply(changes, next) {
            self.watched.follow(&change);
        }
        for (id, generation) in before {
            if let Some(node) = self.state.nodes.get(&id) {
                assert!(node.generation >= generation, "R8: a generation went back");
            }
        }
    }

    pub fn dry_plan(&self, dirty: &Dirty) -> Plan {
        let heard = |id| self.heard.get(&id).copied();
        let input = Input {
            state: &self.state,
            dirty,
            now: Now {
                wall: self.wall(),
                mono_ms: self.now,
            },
            last_heard: &heard,
            lease_ms: LEASE_MS,
            patient_until_ms: self.patient_until_ms,
            outlook: &self.watched.at(self.now),
        };
        let mut ids = self.ids;
        plan(&input, &mut || {
            ids += 1;
            container_id(ids)
        })
    }

    /// Plans as often as plans make something dirty, as the writer does.
    pub fn run_plan(&mut self, dirty: &Dirty) {
        let mut dirty = self.plan_once(dirty);
        let mut rounds = 1;
        while !dirty.is_empty() {
            dirty = self.plan_once(&dirty);
            rounds += 1;
            assert!(rounds < 8, "plans do not settle: {dirty:?}");
        }
    }

    fn plan_once(&mut self, dirty: &Dirty) -> Dirty {
        let plan = self.dry_plan(dirty);
        assert_eq!(
            format!("{plan:?}"),
            format!("{:?}", self.dry_plan(dirty)),
            "equal inputs, equal plans"
        );
        super::sim_rules::check_tally(&plan);
        self.watched.want(plan.wanted.clone());
        self.ids += 1_000;
        if let Some(at) = plan.recheck_at_ms {
            assert!(at > self.now, "a recheck in the past would spin");
            let mut dirty = plan.recheck_dirty();
            let mut first = at;
            if let Some((earlier, more)) = self.pending.take() {
                first = first.min(earlier);
                dirty.merge(more);
            }
            self.pending = Some((first, dirty));
        }
        let before = self.state.clone();
        self.events.extend(plan.events);
        let mut next = Dirty::of(&plan.changes, &before);
        next.leases = false;
        self.apply(plan.changes);
        self.check_rules(&before);
        self.check_places(&before);
        super::sim_rules::check_seated(&before, &self.state);
        super::sim_rules::check_preemption(&before, &self.state);
        next
    }

    /// The wall clock, as plans see it.
    pub fn wall(&self) -> UnixMillis {
        UnixMillis(1_000_000 + self.skipped + self.now)
    }

    /// Time passes in which nothing happens: the wall clock goes on.
    pub fn skip(&mut self, ms: u64) {
        self.skipped += ms;
    }

    /// A node makes no snapshots that are asked for, or does again.
    pub fn stop_snapshots(&mut self, node: NodeId, stop: bool) {
        if let Some(fake) = self.nodes.get_mut(&node) {
            fake.volumes.stuck = stop;
        }
    }

    pub fn set_up(&mut self, node: NodeId, up: bool) {
        if let Some(fake) = self.nodes.get_mut(&node) {
            fake.up = up;
        }
    }

    pub fn reboot(&mut self, node: NodeId) {
        if let Some(fake) = self.nodes.get_mut(&node) {
            for seen in fake.has.values_mut() {
                seen.phase = Phase::Pending;
            }
            fake.linked = false;
        }
    }

    pub fn everyone_up(&mut self) {
        for fake in self.nodes.values_mut() {
            fake.up = true;
        }
    }

    pub fn drop_node(&mut self, node: NodeId) {
        self.nodes.remove(&node);
        self.commit(vec![Change::DeleteNode(node)]);
    }

    pub fn run(&mut self, ticks: u64) {
        for _ in 0..ticks {
            self.now += TICK_MS;
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.tick_node(id);
            }
            self.transfer();
            let due = self.pending.take_if(|(at, _)| *at <= self.now);
            if let Some((_, dirty)) = due {
                self.run_plan(&dirty);
            }
            if self.now.is_multiple_of(1_000) {
                self.run_plan(&Dirty {
                    leases: true,
                    ..Dirty::default()
                });
            }
        }
    }

    fn tick_node(&mut self, id: NodeId) {
        let mut fake = self.nodes.remove(&id).unwrap();
        let mut batch = Vec::new();
        if fake.up {
            self.heard.insert(id, self.now);
            let link = |fake: &FakeNode, synced| {
                let (serial, applied) = (fake.serial, fake.applied);
                Change::Connected(
                    id,
                    Connection {
                        serial,
                        address: "198.51.100.7:9".into(),
                        synced,
                        applied,
                    },
                )
            };
            let generation = self.state.nodes[&id].generation;
            let news = fake.applied != generation || !fake.linked;
            if !fake.linked {
                fake.serial += 1;
                batch.push(link(&fake, false));
            }
            if news {
                let bound = self.state.containers_on(id).filter(|c| !c.removing);
                fake.ledger = bound.map(|c| c.id).collect();
                fake.volumes
                    .order(&crate::cluster::desired::desired_set(&self.state, id));
                fake.applied = generation;
            }
            self.live(&mut fake);
            let gone = fake
                .reported
                .keys()
                .filter(|c| !fake.has.contains_key(c))
                .copied()
                .collect();
            let full = !fake.linked;
            let changed = |seen: &&ObservedContainer| full || fake.reported.get(&seen.id) != Some(*seen);
            let containers = fake.has.values().filter(changed).cloned().collect();
            batch.push(Change::Observed {
                node: id,
                full,
                containers,
                gone,
            });
            let observed = fake.volumes.observed();
            if full || fake.volumes.reported.as_ref() != Some(&observed) {
                fake.volumes.reported = Some(observed.clone());
                let (volumes, gone) = observed;
                batch.push(Change::ObservedVolumes {
                    node: id,
                    volumes,
                    gone,
                });
            }
            fake.reported = fake.has.clone();
            fake.linked = true;
            if news {
                batch.push(link(&fake, true));
            }
        } else {
            if fake.linked {
                batch.push(Change::Disconnected(id, fake.serial));
                fake.linked = false;
            }
            // The host works on without the brain.
            self.live(&mut fake);
        }
        self.nodes.insert(id, fake);
        if !batch.is_empty() {
            self.commit(batch);
        }
    }

    /// What agents send one another of volumes.
    fn transfer(&mut self) {
        for from in self.nodes.keys().copied().collect::<Vec<_>>() {
            let fake = self.nodes.get_mut(&from).expect("it is there");
            if !fake.up {
                continue;
            }
            for sent in fake.volumes.send() {
                if let Some(to) = self.nodes.get_mut(&sent.to).filter(|to| to.up) {
                    to.volumes.take(&sent, from);
                }
            }
        }
    }

    /// What a node has of a volume that can be written, in writes.
    pub fn writable(&self, node: NodeId, volume: VolumeId) -> Option<u64> {
        self.nodes.get(&node)?.volumes.writable(volume)
    }

    /// How many snapshots of a volume a node has; none if it has nothing of it.
    pub fn snapshots(&self, node: NodeId, volume: VolumeId) -> Option<usize> {
        self.nodes.get(&node)?.volumes.snapshots(volume)
    }

    /// One tick of a node's containers, each at most one phase forward.
    fn live(&mut self, fake: &mut FakeNode) {
        self.live_containers(fake);
        fake.volumes.write(&fake.has, &mut self.acknowledged);
        fake.volumes.live(&mut self.acknowledged);
    }

    fn live_containers(&self, fake: &mut FakeNode) {
        for id in &fake.ledger {
            fake.has
                .entry(*id)
                .or_insert_with(|| ObservedContainer::pending(*id));
        }
        let ledger = &fake.ledger;
        fake.has
            .retain(|id, seen| ledger.contains(id) || seen.phase != Phase::Stopping);
        for (id, seen) in &mut fake.has {
            let Some(want) = self.state.containers.get(id).filter(|_| ledger.contains(id)) else {
                seen.phase = Phase::Stopping;
                continue;
            };
            let stop = want.run == RunState::Stopped;
            let image = want.spec.image.to_string();
            let end = |code| {
                Some(ExitInfo {
                    code,
                    oom: false,
                    reason: format!("exited with code {code}"),
                    at: UnixMillis(self.now),
                })
            };
            seen.phase = match seen.phase {
                Phase::Pending => Phase::Creating,
                Phase::Creating if !stop && !fake.volumes.ready(*id, want.spec.volumes.len()) => {
                    Phase::Creating
                }
                Phase::Creating | Phase::Backoff if !stop => {
                    seen.started_at = Some(UnixMillis(self.now));
                    Phase::Running
                }
                Phase::Running if stop => Phase::Stopping,
                Phase::Running if image.contains("bad") => {
                    seen.restarts += 1;
                    seen.last_exit = end(1);
                    Phase::Backoff
                }
                Phase::Running if image.contains("job") && want.spec.restart.on != Restart::Always => {
                    seen.last_exit = end(0);
                    Phase::Exited
                }
                Phase::Stopping | Phase::Creating | Phase::Backoff => Phase::Exited,
                Phase::Exited if !stop && seen.last_exit.is_none() => Phase::Creating,
                other => other,
            };
            let runs = seen.phase == Phase::Running;
            let at = UnixMillis(self.now);
            // Well a second after its start, as soon as its image lets it.
            seen.health = want.spec.health.as_ref().filter(|_| runs).map(|_| Health {
                state: match seen.started_at.is_some_and(|start| at.since(start) >= 1_000) {
                    true if image.contains("sick") => HealthState::Unhealthy,
                    true => HealthState::Healthy,
                    false => HealthState::Starting,
                },
                output: image.contains("sick").then(|| "it coughs".to_owned()),
                ..Health::starting(at)
            });
        }
    }

    /// Containers of a service that run on their node in fact.
    pub fn running(&self, service: ServiceId) -> usize {
        let live = self.state.containers_of(service).filter(|c| !c.removing);
        live.filter(|c| {
            let fake = c.node.and_then(|id| self.nodes.get(&id));
            fake.and_then(|f| f.has.get(&c.id))
                .is_some_and(|seen| seen.phase == Phase::Running)
        })
        .count()
    }

    /// Containers that exist on nodes.
    pub fn existing(&self) -> BTreeSet<ContainerId> {
        self.nodes
            .values()
            .flat_map(|fake| fake.has.keys().copied())
            .collect()
    }
}
