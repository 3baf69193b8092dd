//! Services: from a spec to its containers, slot by slot (1 to `replicas`).
//!
//! A slot holds one container, or two while the second (`replaces` the first) proves itself. What waits for a node is
//! recorded with its reason (R9); what is removed stays reserved until its node confirms that nothing is left (R4).
//! A deleted service leaves containers without a service, and those are removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{
    ContainerRecord, ContainerSpec, Endpoint, Phase, RunState, ServiceRecord, UpdateOrder,
};

use super::context::{Context, ended, failing, label};
use super::endpoints::NoPlace;
use super::rollout;
use crate::cluster::Change;
use crate::scheduler::{Refusal, Search};

/// A container with what this plan makes of it.
pub(super) struct Live {
    pub record: ContainerRecord,
    original: Option<Arc<ContainerRecord>>,
}

/// One replica's place.
#[derive(Default)]
struct Slot {
    current: Option<Live>,
    next: Option<Live>,
}

/// What is particular about a new container.
#[derive(Default)]
pub(super) struct New {
    pub replica: u32,
    pub replaces: Option<ContainerId>,
    pub node: Option<NodeId>,
    pub waiting: Option<String>,
    /// What the service says, or, for one that only moves, what was said to the one before.
    pub run: RunState,
    /// Places on networks that it takes over.
    pub endpoints: Vec<Endpoint>,
}

/// The planning of one service.
pub(super) struct Pass<'p, 'a, 'n> {
    pub cx: &'p mut Context<'a, 'n>,
    pub service: &'a ServiceRecord,
    pub want: ContainerSpec,
    search: Option<Search>,
    /// The first refusal of this pass: equal containers find no room either.
    refused: Option<Box<Refusal>>,
    told_waiting: bool,
}

/// Plans one service, or what is left of one.
pub(super) fn plan_service(cx: &mut Context<'_, '_>, id: ServiceId) {
    let state = cx.state;
    let live: Vec<Live> = state
        .containers_of(id)
        .filter(|c| !c.removing && !cx.deleted.contains(&c.id))
        .map(|c| Live {
            record: (**c).clone(),
            original: Some(c.clone()),
        })
        .collect();
    // The API validated the spec, so a failure here is one of an older brain's rules: what runs is left alone.
    let wanted = state
        .services
        .get(&id)
        .map(|service| (service, service.spec.container_spec()));
    let (service, want) = match wanted {
        Some((service, Ok(want))) => (service, want),
        Some((service, Err(error))) => {
            let subject = format!("service {}", service.spec.name);
            return cx.event("invalid-spec", Some(service.tenant), subject, error.to_string());
        }
        None => {
            for one in live {
                remove(cx, &one.record);
            }
            return;
        }
    };
    Pass {
        cx,
        service,
        want,
        search: None,
        refused: None,
        told_waiting: false,
    }
    .run(live);
}

fn remove(cx: &mut Context<'_, '_>, container: &ContainerRecord) {
    if container.node.is_none() {
        cx.delete(container);
    } else {
        let record = ContainerRecord {
            removing: true,
            waiting: None,
            ..container.clone()
        };
        cx.plan.changes.push(Change::PutContainer(record));
    }
}

impl<'a> Pass<'_, 'a, '_> {
    fn run(mut self, live: Vec<Live>) {
        let mut slots = self.slots(live);
        for slot in slots.values_mut() {
            self.tend(slot);
        }
        let mut flight = rollout::Flight::default();
        for one in slots
            .values()
            .flat_map(|slot| [&slot.current, &slot.next])
            .flatten()
        {
            if one.record.replaces.is_some() {
                flight.unsettled += 1;
                flight.failing |= failing(&one.record, self.seen(&one.record));
            }
        }
        for replica in 1..=self.service.spec.replicas {
            let slot = slots.remove(&replica).unwrap_or_default();
            self.fill(replica, slot, &mut flight);
        }
    }

    pub fn seen(&self, container: &ContainerRecord) -> Option<&'a berth_common::model::ObservedContainer> {
        self.cx.state.observed.get(&container.id).map(|seen| &**seen)
    }

    /// Sorts containers into slots; those beyond the wanted number go, the highest first.
    fn slots(&mut self, live: Vec<Live>) -> BTreeMap<u32, Slot> {
        let mut slots: BTreeMap<u32, Vec<Live>> = BTreeMap::new();
        for one in live {
            slots.entry(one.record.replica).or_default().push(one);
        }
        let beyond = slots.split_off(&(self.service.spec.replicas + 1));
        for one in beyond.into_values().rev().flatten() {
            self.remove(one);
        }
        slots
            .into_iter()
            .map(|(replica, group)| {
                let ids: Vec<ContainerId> = group.iter().map(|one| one.record.id).collect();
                let mut slot = Slot::default();
                for one in group {
                    let follows = one.record.replaces.is_some_and(|old| ids.contains(&old));
                    let place = if follows {
                        &mut slot.next
                    } else {
                        &mut slot.current
                    };
                    match place {
                        None => *place = Some(one),
                        // A third one can only come from a state that no plan makes; it goes.
                        Some(_) => self.remove(one),
                    }
                }
                if slot.current.is_none() {
                    slot.current = slot.next.take();
                }
                (replica, slot)
            })
            .collect()
    }

    /// What needs no new place: passing on settings, and judging replacements under way.
    fn tend(&mut self, slot: &mut Slot) {
        for one in [&mut slot.current, &mut slot.next].into_iter().flatten() {
            self.pass_on(one);
        }
        if let Some(next) = slot.next.take() {
            let Some(mut current) = slot.current.take() else {
                return;
            };
            let stranded = next.record.node.is_none_or(|node| self.cx.lost(node));
            let unwanted = self.outdated(&next) || !self.must_leave(&current);
            // Whoever serves alone stays, wanted or not: taking it away would leave the slot with nobody.
            let alone = self.serves(&next) && !self.serves(&current);
            if stranded || unwanted && !alone {
                self.remove(next);
            } else if unwanted || self.lost(&current) || self.settled(&next.record) {
                let text = format!("{} takes over from {}", next.record.id, current.record.id);
                self.cx.container_event("replaced", &next.record, text);
                self.remove(current);
                current = next;
                current.record.replaces = None;
            } else {
                slot.next = Some(next);
            }
            slot.current = Some(current);
        } else if let Some(current) = &mut slot.current
            && current.record.node.is_some()
            && current.record.replaces.is_some()
            && self.settled(&current.record)
        {
            current.record.replaces = None;
        }
    }

    /// Gives a container what can change without replacing it.
    fn pass_on(&mut self, one: &mut Live) {
        let record = &mut one.record;
        if record.spec == self.want {
            return;
        }
        let adopt = match record.node {
            None => true,
            Some(node) => {
                record.spec.differs_only_in_limits(&self.want)
                    && (record.spec.reservation == self.want.reservation
                        || self
                            .cx
                            .view()
                            .exchange(node, record.spec.reservation, self.want.reservation))
            }
        };
        if adopt {
            record.spec = self.want.clone();
            record.service_generation = self.service.generation;
            record.run = self.service.run;
        }
    }

    pub fn outdated(&self, one: &Live) -> bool {
        one.record.spec != self.want
    }

    pub fn lost(&self, one: &Live) -> bool {
        one.record.node.is_some_and(|node| self.cx.lost(node))
    }

    pub fn draining(&self, one: &Live) -> bool {
        one.record
            .node
            .and_then(|node| self.cx.node(node))
            .is_some_and(|node| node.draining)
    }

    pub fn must_leave(&self, one: &Live) -> bool {
        self.outdated(one) || self.lost(one) || self.draining(one)
    }

    /// Its node says, and the saying is current, that it does not serve.
    pub fn idle(&self, one: &Live) -> bool {
        let Some(node) = one.record.node else { return true };
        one.record.run == RunState::Stopped
            || self.cx.current(node)
                && self
                    .seen(&one.record)
                    .is_none_or(|seen| seen.phase != Phase::Running)
    }

    /// It runs, as far as its node can be asked.
    pub fn serves(&self, one: &Live) -> bool {
        one.record.node.is_some_and(|node| self.cx.current(node))
            && self
                .seen(&one.record)
                .is_some_and(|seen| seen.phase == Phase::Running)
    }

    /// Brings one slot forward by at most one step.
    fn fill(&mut self, replica: u32, slot: Slot, flight: &mut rollout::Flight) {
        let Slot { current, next } = slot;
        let Some(mut current) = current else {
            self.create(replica, None, true);
            return;
        };
        if let Some(next) = next {
            self.keep(current);
            return self.keep(next);
        }
        if current.record.node.is_none() {
            self.seat(&mut current);
            return self.keep(current);
        }
        let done = ended(&current.record, self.seen(&current.record));
        if self.lost(&current) {
            if !done && current.record.run == RunState::Running {
                return self.rescue(current);
            }
        } else if self.outdated(&current) {
            return self.update(current, flight);
        } else if self.draining(&current) && !done {
            return self.evacuate(current, flight);
        }
        self.keep(current);
    }

    pub fn node_name(&self, one: &Live) -> String {
        one.record
            .node
            .map_or_else(String::new, |node| self.cx.node_name(node))
    }

    /// Seats a container that has no node, or says why not.
    fn seat(&mut self, one: &mut Live) {
        let predecessor = one
            .record
            .replaces
            .and_then(|old| self.cx.state.containers.get(&old))
            .filter(|old| {
                old.removing
                    && !self.cx.deleted.contains(&old.id)
                    && old.node.is_some_and(|node| !self.cx.lost(node))
            });
        let before = predecessor.map(|old| {
            (
                label(old),
                old.node.map_or_else(String::new, |n| self.cx.node_name(n)),
            )
        });
        if let Some((name, node)) = &before
            && self.service.spec.update.order == UpdateOrder::StopFirst
        {
            one.record.waiting = Some(format!(
                "waits until {name} on {node} has stopped, which it replaces"
            ));
            return;
        }
        match self.place() {
            Ok(node) => {
                if let Err(no) = self.cx.address(&mut one.record) {
                    let waiting = self.no_place(no);
                    self.tell_waiting(one.record.waiting.as_deref(), &waiting);
                    one.record.waiting = Some(waiting);
                    return;
                }
                one.record.node = Some(node);
                one.record.waiting = None;
                let text = format!("placed on {}", self.cx.node_name(node));
                self.cx.container_event("placed", &one.record, text);
            }
            Err(refusal) => {
                let waiting = match before {
                    None => refusal.to_string(),
                    Some((name, node)) => format!("{refusal}; {name} on {node} is still stopping"),
                };
                self.tell_waiting(one.record.waiting.as_deref(), &waiting);
                one.record.waiting = Some(waiting);
            }
        }
    }

    /// Why a container has no place on a network, and to be looked at again when it may have.
    fn no_place(&mut self, no: NoPlace) -> String {
        if let Some(ms) = no.again_ms {
            self.cx.recheck(self.service.id, self.cx.input.now.mono_ms + ms);
        }
        no.why
    }

    fn tell_waiting(&mut self, old: Option<&str>, new: &str) {
        if !self.told_waiting && old != Some(new) {
            self.told_waiting = true;
            let subject = format!("service {}", self.service.spec.name);
            self.cx
                .event("waiting", Some(self.service.tenant), subject, new.to_owned());
        }
    }

    /// A new container, placed at once where that is possible and `now` allows.
    pub fn create(&mut self, replica: u32, replaces: Option<ContainerId>, now: bool) {
        let placed = if now {
            self.place()
        } else {
            let waiting = "waits until the container it replaces has stopped".to_owned();
            return self.add(New {
                replica,
                replaces,
                waiting: Some(waiting),
                run: self.service.run,
                ..New::default()
            });
        };
        let (node, waiting) = match placed {
            Ok(node) => (Some(node), None),
            Err(refusal) => {
                let waiting = refusal.to_string();
                self.tell_waiting(None, &waiting);
                (None, Some(waiting))
            }
        };
        self.add(New {
            replica,
            replaces,
            node,
            waiting,
            run: self.service.run,
            ..New::default()
        });
    }

    /// A new container.
    pub fn add(&mut self, new: New) {
        let New {
            replica,
            replaces,
            node,
            waiting,
            run,
            endpoints,
        } = new;
        let mut record = ContainerRecord {
            id: self.cx.fresh_id(),
            tenant: self.service.tenant,
            service: self.service.id,
            service_name: self.service.spec.name.clone(),
            replica,
            node,
            waiting,
            spec: self.want.clone(),
            service_generation: self.service.generation,
            run,
            restarts_asked: self.service.restarts_asked,
            removing: false,
            replaces,
            endpoints,
            created_at: self.cx.input.now.wall,
            revision: Default::default(),
        };
        if record.node.is_some()
            && let Err(no) = self.cx.address(&mut record)
        {
            let waiting = self.no_place(no);
            self.tell_waiting(None, &waiting);
            (record.node, record.waiting) = (None, Some(waiting));
        }
        if let Some(node) = record.node {
            let text = format!("placed on {}", self.cx.node_name(node));
            self.cx.container_event("placed", &record, text);
        }
        self.cx.plan.changes.push(Change::PutContainer(record));
    }

    pub fn place(&mut self) -> Result<NodeId, Box<Refusal>> {
        if let Some(refusal) = &self.refused {
            return Err(refusal.clone());
        }
        self.prepare();
        let search = self.search.as_mut().expect("prepared just before");
        let placed = search.place(self.cx.view());
        if let Err(refusal) = &placed {
            self.refused = Some(refusal.clone());
        }
        placed
    }

    /// Whether the successor would find room once `current` is gone, on its node or already elsewhere.
    pub fn room_after(&mut self, current: &Live) -> bool {
        self.prepare();
        let search = self.search.as_ref().expect("prepared just before");
        let view = self.cx.view();
        let there = current
            .record
            .node
            .is_some_and(|node| search.fits_after(view, node, current.record.spec.reservation));
        there || search.possible(view).is_ok()
    }

    fn prepare(&mut self) {
        if self.search.is_none() {
            let request = rollout::request(self.cx.state, self.service.id, self.service.tenant, &self.want);
            self.search = Some(Search::new(self.cx.view(), &request));
        }
    }

    pub fn remove(&mut self, one: Live) {
        // What was passed on to it no longer matters: it goes as it was.
        let record = one.original.as_deref().unwrap_or(&one.record);
        remove(self.cx, record);
    }

    /// Removes a container for another that takes over its places on networks, and gives these.
    pub fn remove_for_successor(&mut self, one: Live) -> Vec<Endpoint> {
        let mut record = one.original.as_deref().unwrap_or(&one.record).clone();
        let endpoints = std::mem::take(&mut record.endpoints);
        remove(self.cx, &record);
        endpoints
    }

    pub fn keep(&mut self, mut one: Live) {
        // Of a brain that knew no networks yet.
        if one.record.node.is_some()
            && !self.cx.addressed(&one.record)
            && let Err(no) = self.cx.address(&mut one.record)
        {
            let why = self.no_place(no);
            self.tell_waiting(Some(&why), &why);
        }
        if one.original.as_deref() != Some(&one.record) {
            self.cx.plan.changes.push(Change::PutContainer(one.record));
        }
    }
}
