//! Services: from a spec to its containers, slot by slot (1 to `replicas`).
//!
//! A slot holds one container, or two while the second (`replaces` the first) proves itself. What waits for a node is
//! recorded with its reason (R9); what is removed stays reserved until its node confirms that nothing is left (R4).
//! A deleted service leaves containers without a service, and those are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, ContainerSpec, RunState, ServiceRecord};

use super::context::{Context, ended, failing};
use super::decisions::{Decision, Reason};
use super::rollout;
use super::seating::remove;
use super::volumes;
use crate::scheduler::{Refusal, Search, taints};

/// A container with what this plan makes of it.
pub(super) struct Live {
    pub record: ContainerRecord,
    pub original: Option<Arc<ContainerRecord>>,
}

/// One replica's place.
#[derive(Default)]
struct Slot {
    current: Option<Live>,
    next: Option<Live>,
}

/// The planning of one service.
pub(super) struct Pass<'p, 'a, 'n> {
    pub cx: &'p mut Context<'a, 'n>,
    pub service: &'a ServiceRecord,
    pub want: Arc<ContainerSpec>,
    pub search: Option<Search<'a>>,
    /// Refusals of this pass, by the node that somebody would have left: equal containers find no room either.
    pub refused: BTreeMap<Option<NodeId>, Box<Refusal>>,
    /// Nobody can make room either.
    pub hopeless: bool,
    /// Containers that this pass has removed.
    pub gone: BTreeSet<ContainerId>,
    pub told_waiting: bool,
    /// The replica whose turn it is: its volumes say where it can be.
    pub replica: u32,
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
            return cx.forget_estimate(id);
        }
    };
    Pass {
        cx,
        service,
        want: Arc::new(want),
        search: None,
        refused: BTreeMap::new(),
        hopeless: false,
        gone: BTreeSet::new(),
        told_waiting: false,
        replica: 1,
    }
    .run(live);
}

impl<'a> Pass<'_, 'a, '_> {
    fn run(mut self, live: Vec<Live>) {
        self.cx.address_service(self.service);
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
        if let Some(current) = &mut slot.current
            && slot.next.is_none()
            && current.record.moves.as_ref().is_some_and(|moves| moves.emptying)
            && !self.driven_away(current)
        {
            // Its node is not to be emptied after all.
            self.forget_move(current);
        }
        if let Some(next) = slot.next.take() {
            let Some(mut current) = slot.current.take() else {
                return;
            };
            // What only moves for the sake of load gives up at the first trouble.
            if current.record.moves.is_some() && failing(&next.record, self.seen(&next.record)) {
                self.give_up(&mut current, "its successor fails");
            }
            let stranded = next.record.node.is_none_or(|node| self.cx.lost(node));
            let unwanted = self.outdated(&next) || !self.must_leave(&current);
            // Whoever serves alone stays, wanted or not: taking it away would leave the slot with nobody.
            let alone = self.serves(&next) && !self.serves(&current);
            if stranded || unwanted && !alone {
                self.remove(next);
            } else if unwanted || self.lost(&current) || self.settled(&next.record) {
                let text = format!("{} takes over from {}", next.record.id, current.record.id);
                self.cx.container_event("replaced", &next.record, text);
                self.cx.plan.decisions.add(Decision::Replaced);
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
                record.spec.pool == self.want.pool
                    && record.spec.class == self.want.class
                    && record.spec.differs_only_in_limits(&self.want)
                    && self.cx.view().exchange(node, &record.spec, &self.want)
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

    /// Its node is being emptied, or no longer wants it, or it had better be elsewhere.
    pub fn leaving(&self, one: &Live) -> bool {
        one.record.moves.as_ref().is_some_and(|moves| !moves.emptying) || self.driven_away(one)
    }

    /// Its node is being emptied, or no longer wants it.
    fn driven_away(&self, one: &Live) -> bool {
        let node = one.record.node.and_then(|node| self.cx.node(node));
        node.is_some_and(|node| {
            node.draining || taints::drives_away(node, &self.service.spec.tolerations).is_some()
        })
    }

    /// Why it must leave its node, in words.
    pub fn why_leave(&self, one: &Live) -> String {
        if let Some(moves) = &one.record.moves {
            return moves.why.clone();
        }
        let node = one.record.node.and_then(|node| self.cx.node(node));
        let taint = node
            .filter(|node| !node.draining)
            .and_then(|node| taints::drives_away(node, &self.service.spec.tolerations));
        match taint {
            Some(taint) => format!("the node has the taint {taint}"),
            None => "the node is being drained".to_owned(),
        }
    }

    /// The same, as it is counted.
    pub fn reason(&self, one: &Live) -> Reason {
        let node = one.record.node.and_then(|node| self.cx.node(node));
        match self.driven_away(one) {
            false => Reason::Load,
            true if node.is_some_and(|node| node.draining) => Reason::Drain,
            true => Reason::Taint,
        }
    }

    pub fn must_leave(&self, one: &Live) -> bool {
        self.outdated(one) || self.lost(one) || self.leaving(one)
    }

    /// Its node says, and the saying is current, that it does not serve.
    pub fn idle(&self, one: &Live) -> bool {
        let Some(node) = one.record.node else { return true };
        one.record.run == RunState::Stopped
            || self.cx.current(node) && self.seen(&one.record).is_none_or(|seen| !seen.serves())
    }

    /// It runs and can do its work, as far as its node can be asked.
    pub fn serves(&self, one: &Live) -> bool {
        one.record.node.is_some_and(|node| self.cx.current(node))
            && self.seen(&one.record).is_some_and(|seen| seen.serves())
    }

    /// Brings one slot forward by at most one step.
    fn fill(&mut self, replica: u32, slot: Slot, flight: &mut rollout::Flight) {
        let Slot { current, next } = slot;
        self.turn_to(replica);
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
        if let Some((volume, to)) = volumes::drawn_away(self.cx, &current.record) {
            return self.follow(current, &volume, to);
        }
        let done = ended(&current.record, self.seen(&current.record));
        if self.lost(&current) {
            if !done && current.record.run == RunState::Running {
                return self.rescue(current);
            }
        } else if self.outdated(&current) {
            return self.update(current, flight);
        } else if self.leaving(&current) && !done {
            return self.evacuate(current, flight);
        }
        self.keep(current);
    }

    /// It is this replica's turn: what was found for another counts for it only if neither has volumes.
    fn turn_to(&mut self, replica: u32) {
        self.replica = replica;
        if self.want.volumes.is_empty() {
            return;
        }
        volumes::ensure(self.cx, self.service, replica);
        self.search = None;
        self.refused.clear();
        self.hopeless = false;
    }

    pub fn node_name(&self, one: &Live) -> String {
        one.record
            .node
            .map_or_else(String::new, |node| self.cx.node_name(node))
    }
}
