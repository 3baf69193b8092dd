//! Looking ahead: what the controllers would make of a change, played forward on a copy of the state until it comes to rest.
//!
//! The plans are the ones that the writer makes; nodes are supposed to do at once and without fault what they are told. Refuses to change
//! anything, and to look further ahead than is asked: who asks for too much is told that it goes on.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{
    ContainerRecord, Health, HealthState, ObservedContainer, Phase, RunState, ServiceRecord, UnixMillis,
};

use super::context::label;
use super::{Dirty, Input, NewEvent, NewIds, Now, plan};
use crate::cluster::{Change, State};
use crate::outlook::{At, Supposed};

/// Longer than any lease: no further node is lost while it is looked ahead.
const NO_END_MS: u64 = 1 << 50;
/// Containers that plans may go through, all plans together: about a second's work.
const WORK: usize = 200_000;
/// Plans in a row that change nothing after which waiting has brought nothing.
const IDLE_PLANS: u32 = 3;

/// Where it would end.
#[derive(Debug)]
pub struct Ahead {
    /// The state as it would be.
    pub state: State,
    /// What would be told meanwhile.
    pub events: Vec<NewEvent>,
    /// It would go on; this is as far as was looked.
    pub cut: bool,
    /// Where load would be.
    pub supposed: Supposed,
}

/// A look ahead in the making.
struct Play<'a, 'o> {
    state: State,
    events: Vec<NewEvent>,
    supposed: Supposed,
    now: Now,
    outlook: &'a dyn Fn() -> At<'o>,
    /// Containers that were made or stopped, and that their nodes have not answered for yet.
    open: BTreeSet<ContainerId>,
    dirty: Dirty,
    again: Option<(u64, Dirty)>,
}

/// Plays `changes` of `state` forward. `outlook` is taken anew for each plan and given back after it.
pub fn look<'o>(
    state: &State,
    changes: Vec<Change>,
    now: Now,
    outlook: &dyn Fn() -> At<'o>,
    new_id: &mut NewIds<'_>,
) -> Ahead {
    let mut play = Play {
        state: state.clone(),
        events: Vec::new(),
        supposed: Supposed::default(),
        now,
        outlook,
        open: state
            .containers
            .values()
            .filter(|c| c.removing || !state.observed.contains_key(&c.id))
            .map(|c| c.id)
            .collect(),
        dirty: Dirty::default(),
        again: None,
    };
    play.apply(changes);
    let (mut work, mut idle) = (0, 0);
    while idle < IDLE_PLANS && work < WORK {
        if play.dirty.is_empty() && !play.answer() && !play.wait() {
            break;
        }
        work += play.weight();
        idle = if play.plan(new_id) { 0 } else { idle + 1 };
    }
    Ahead {
        state: play.state,
        events: play.events,
        cut: work >= WORK,
        supposed: play.supposed,
    }
}

impl Play<'_, '_> {
    fn apply(&mut self, changes: Vec<Change>) {
        let mut outlook = (self.outlook)().given(std::mem::take(&mut self.supposed));
        for change in &changes {
            outlook.suppose(&self.state, change);
        }
        self.supposed = outlook.into_supposed();
        self.dirty.merge(Dirty::of(&changes, &self.state));
        for change in &changes {
            if let Change::PutContainer(record) = change {
                self.open.insert(record.id);
            }
        }
        let revision = self.state.revision.next();
        self.state.apply(changes, revision);
    }

    /// How much the next plan has to go through, roughly.
    fn weight(&self) -> usize {
        let services = self.dirty.services.iter();
        let count = |id: &ServiceId| self.state.by_service.get(id).map_or(0, imbl::OrdSet::len);
        500 + services.map(count).sum::<usize>()
    }

    /// One plan; whether it did anything.
    fn plan(&mut self, new_id: &mut NewIds<'_>) -> bool {
        let dirty = std::mem::take(&mut self.dirty);
        let outlook = (self.outlook)().given(self.supposed.clone());
        let (state, now) = (&self.state, self.now.mono_ms);
        let heard = |node: NodeId| {
            state
                .nodes
                .get(&node)
                .is_some_and(|node| !node.lost)
                .then_some(now)
        };
        let input = Input {
            state,
            dirty: &dirty,
            now: self.now,
            last_heard: &heard,
            lease_ms: NO_END_MS,
            patient_until_ms: 0,
            outlook: &outlook,
        };
        let plan = plan(&input, new_id);
        drop(outlook);
        if let Some(at) = plan.recheck_at_ms.filter(|_| !plan.recheck.is_empty()) {
            let mut again = plan.recheck_dirty();
            let mut first = at;
            if let Some((earlier, other)) = self.again.take() {
                again.merge(other);
                first = first.min(earlier);
            }
            self.again = Some((first, again));
        }
        self.events.extend(plan.events);
        let some = !plan.changes.is_empty();
        self.apply(plan.changes);
        self.dirty.leases = false;
        some
    }

    /// Nodes do what they were told; false if there is nothing to do.
    fn answer(&mut self) -> bool {
        let mut told: BTreeMap<NodeId, (Vec<ObservedContainer>, Vec<ContainerId>)> = BTreeMap::new();
        for id in std::mem::take(&mut self.open) {
            let Some(record) = self.state.containers.get(&id) else {
                continue;
            };
            let Some(node) = record.node.filter(|node| self.reachable(*node)) else {
                continue;
            };
            let (up, gone) = told.entry(node).or_default();
            if record.removing {
                gone.push(id);
            } else if record.run == RunState::Running && !self.state.observed.contains_key(&id) {
                up.push(running(record, self.now.wall));
            }
        }
        told.retain(|_, (up, gone)| !up.is_empty() || !gone.is_empty());
        let changes = told
            .into_iter()
            .map(|(node, (containers, gone))| Change::Observed {
                node,
                full: false,
                containers,
                gone,
            });
        let changes: Vec<_> = changes.collect();
        let some = !changes.is_empty();
        self.apply(changes);
        some && !self.dirty.is_empty()
    }

    fn reachable(&self, node: NodeId) -> bool {
        self.state.nodes.get(&node).is_some_and(|node| !node.lost)
            && self.state.connections.get(&node).is_some_and(|c| c.synced)
    }

    /// Time passes until something is to be looked at again; false if there is nothing.
    fn wait(&mut self) -> bool {
        let Some((at, dirty)) = self.again.take() else {
            return false;
        };
        let passed = at.saturating_sub(self.now.mono_ms);
        self.now.mono_ms += passed;
        self.now.wall = UnixMillis(self.now.wall.0.saturating_add(passed));
        self.dirty.merge(dirty);
        true
    }
}

/// What a node says of a container that runs well.
fn running(record: &ContainerRecord, now: UnixMillis) -> ObservedContainer {
    ObservedContainer {
        phase: Phase::Running,
        started_at: Some(now),
        restarts_done: record.restarts_asked,
        health: record.spec.health.as_ref().map(|_| Health {
            state: HealthState::Healthy,
            since: now,
            failures: 0,
            output: None,
        }),
        ..ObservedContainer::pending(record.id)
    }
}

/// One replica before and after.
#[derive(Debug)]
pub struct Replica<'a> {
    /// As it is; none if there is none.
    pub before: Option<&'a ContainerRecord>,
    /// As it would be; none if it would be no more.
    pub after: Option<&'a ContainerRecord>,
}

impl Replica<'_> {
    /// `service.replica`.
    pub fn name(&self) -> String {
        self.after.or(self.before).map_or_else(String::new, label)
    }
}

/// The replicas of a service before and after, by number.
pub fn replicas<'a>(before: &'a State, after: &'a State, service: ServiceId) -> Vec<Replica<'a>> {
    let (old, new) = (newest(before, service), newest(after, service));
    let numbers: BTreeSet<u32> = old.keys().chain(new.keys()).copied().collect();
    let pair = |number: u32| Replica {
        before: old.get(&number).copied(),
        after: new.get(&number).copied(),
    };
    numbers.into_iter().map(pair).collect()
}

/// The newest container of each replica.
fn newest(state: &State, service: ServiceId) -> BTreeMap<u32, &ContainerRecord> {
    let mut found: BTreeMap<u32, &ContainerRecord> = BTreeMap::new();
    for container in state.containers_of(service).filter(|c| !c.removing) {
        let held = found.entry(container.replica).or_insert(container);
        if container.replaces.is_some() || container.created_at > held.created_at {
            *held = container;
        }
    }
    found
}

/// Replicas of other services that would not go on where they are.
pub fn disturbed<'a>(before: &'a State, after: &'a State, but: &BTreeSet<ContainerId>) -> Vec<Replica<'a>> {
    let goes =
        |old: &ContainerRecord| !old.removing && after.containers.get(&old.id).is_none_or(|new| new.removing);
    let all = before.containers.values().map(|old| &**old);
    all.filter(|old| goes(old) && !but.contains(&old.id))
        .map(|old| Replica {
            before: Some(old),
            after: newest(after, old.service).remove(&old.replica),
        })
        .collect()
}

/// What makes a service what `spec` says, for [`look`]; the record of it as it would be.
pub fn of_spec(old: Option<&ServiceRecord>, fresh: ServiceRecord) -> ServiceRecord {
    match old {
        Some(old) if old.spec == fresh.spec => old.clone(),
        Some(old) => ServiceRecord {
            spec: fresh.spec,
            generation: old.generation + 1,
            ..old.clone()
        },
        None => fresh,
    }
}

/// What makes a node lost, for [`look`].
pub fn of_loss(state: &State, node: NodeId) -> Vec<Change> {
    let Some(record) = state.nodes.get(&node) else {
        return Vec::new();
    };
    let mut lost = (**record).clone();
    lost.lost = true;
    let link = state.connections.get(&node);
    let off = link.map(|link| Change::Disconnected(node, link.serial));
    [Change::PutNode(lost)].into_iter().chain(off).collect()
}
