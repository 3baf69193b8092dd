//! One plan in the making: the state it reads, what it has decided so far, and questions both controllers ask.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, NodeId, ServiceId, TenantId};
use berth_common::model::{ContainerRecord, NodeRecord, ObservedContainer, Phase, Restart, RunState};

use super::endpoints::Networks;
use super::preemption::Preemption;
use super::volumes::Planned;
use super::{Input, NewEvent, NewIds, Plan};
use crate::cluster::{Change, State};
use crate::scheduler::{Footprint, View};

pub(super) struct Context<'a, 'n> {
    pub input: &'a Input<'a>,
    pub state: &'a State,
    pub plan: Plan,
    /// Containers whose records this plan deletes.
    pub deleted: BTreeSet<ContainerId>,
    /// Containers that this plan stops.
    stopping: BTreeSet<ContainerId>,
    /// Nodes that this plan declares lost (true) or back (false).
    pub turned: BTreeMap<NodeId, bool>,
    /// Services that this plan has been through.
    pub planned: BTreeSet<ServiceId>,
    /// How many containers this plan has begun to move away from each node.
    departing: BTreeMap<NodeId, usize>,
    /// Who makes room for others.
    pub preemption: Preemption,
    pub(super) view: Option<View<'a>>,
    released: Vec<(NodeId, Footprint)>,
    /// Networks as this plan leaves them.
    pub networks: Networks,
    /// Volumes as this plan leaves them.
    pub volumes: Planned,
    new_id: &'a mut NewIds<'n>,
}

impl<'a, 'n> Context<'a, 'n> {
    pub fn new(input: &'a Input<'a>, new_id: &'a mut NewIds<'n>) -> Self {
        Self {
            input,
            state: input.state,
            plan: Plan::default(),
            deleted: BTreeSet::new(),
            stopping: BTreeSet::new(),
            turned: BTreeMap::new(),
            planned: BTreeSet::new(),
            departing: BTreeMap::new(),
            preemption: Preemption::default(),
            view: None,
            released: Vec::new(),
            networks: Networks::default(),
            volumes: Planned::default(),
            new_id,
        }
    }

    /// The nodes with what is free, built when a plan first needs it: most plans place nothing.
    pub fn view(&mut self) -> &mut View<'a> {
        self.view.get_or_insert_with(|| {
            let outlook = self.input.outlook;
            let mut view = View::new(self.state, &self.turned).with_loads(outlook);
            for (node, gone) in self.released.drain(..) {
                view.release(node, &gone);
            }
            view
        })
    }

    /// A container begins to move away from its node.
    pub fn departs(&mut self, node: Option<NodeId>) {
        if let Some(node) = node {
            *self.departing.entry(node).or_default() += 1;
        }
    }

    /// How many containers are on their way from a node: being stopped, or with a successor.
    pub fn leaving_from(&self, node: Option<NodeId>) -> usize {
        let Some(node) = node else { return 0 };
        let on = self.state.containers_on(node);
        let going = on.filter(|c| !self.deleted.contains(&c.id) && (c.removing || self.state.is_followed(c)));
        going.count() + self.departing.get(&node).copied().unwrap_or(0)
    }

    pub fn fresh_id(&mut self) -> ContainerId {
        (self.new_id)()
    }

    pub fn node(&self, id: NodeId) -> Option<&'a NodeRecord> {
        self.state.nodes.get(&id).map(|node| &**node)
    }

    pub fn node_name(&self, id: NodeId) -> String {
        self.state.name_of_node(id)
    }

    pub fn lost(&self, id: NodeId) -> bool {
        self.turned
            .get(&id)
            .copied()
            .unwrap_or_else(|| self.node(id).is_none_or(|node| node.lost))
    }

    /// What was learned of a service goes with it.
    pub fn forget_estimate(&mut self, service: ServiceId) {
        if self.state.estimates.contains_key(&service) {
            self.plan.changes.push(Change::DeleteEstimate(service));
        }
    }

    /// Whether what is observed of this node is current.
    pub fn current(&self, id: NodeId) -> bool {
        !self.lost(id) && self.state.connections.get(&id).is_some_and(|c| c.synced)
    }

    /// Whether there is a view yet: without one, nothing was placed.
    pub fn has_view(&self) -> bool {
        self.view.is_some()
    }

    /// Whether it is on its way out, by this plan or before.
    pub fn goes(&self, container: &ContainerRecord) -> bool {
        (container.removing || self.stopping.contains(&container.id)) && !self.deleted.contains(&container.id)
    }

    /// What a container takes up on its node.
    pub fn footprint(&self, container: &ContainerRecord) -> Footprint {
        let told = self.input.outlook.container(container.id);
        Footprint {
            reserved: container.spec.reservation,
            idle: container.spec.idle_use(),
            load: told.map_or_else(Default::default, |told| told.expected),
        }
    }

    /// Makes or changes a container.
    pub fn put(&mut self, container: ContainerRecord) {
        if container.removing {
            self.stopping.insert(container.id);
        }
        self.plan.changes.push(Change::PutContainer(container));
    }

    /// Deletes the record of a container of which nothing is left.
    pub fn delete(&mut self, container: &ContainerRecord) {
        if !self.deleted.insert(container.id) {
            return;
        }
        self.plan.changes.push(Change::DeleteContainer(container.id));
        for endpoint in &container.endpoints {
            self.give_back(*endpoint);
        }
        if let (None, Some(node)) = (container.node, container.claim) {
            self.view().unclaim(node, container.spec.reservation);
        }
        if let Some(node) = container.node {
            let gone = self.footprint(container);
            match &mut self.view {
                Some(view) => view.release(node, &gone),
                None => self.released.push((node, gone)),
            }
        }
    }

    pub fn event(&mut self, kind: &'static str, tenant: Option<TenantId>, subject: String, text: String) {
        let tenant = tenant
            .and_then(|id| self.state.tenants.get(&id))
            .map(|t| t.name.clone());
        self.plan.events.push(NewEvent {
            kind,
            tenant,
            subject,
            text,
        });
    }

    pub fn container_event(&mut self, kind: &'static str, container: &ContainerRecord, text: String) {
        let subject = format!("container {} ({})", label(container), container.id);
        self.event(kind, Some(container.tenant), subject, text);
    }

    /// Plans `service` again at `at_ms`.
    pub fn recheck(&mut self, service: ServiceId, at_ms: u64) {
        self.plan.recheck.insert(service);
        self.recheck_leases(at_ms);
    }

    /// Plans again at `at_ms`.
    pub fn recheck_leases(&mut self, at_ms: u64) {
        let first = self
            .plan
            .recheck_at_ms
            .map_or(at_ms, |earlier| earlier.min(at_ms));
        self.plan.recheck_at_ms = Some(first);
    }

    pub fn finish(mut self) -> Plan {
        let networks: Vec<_> = self.changed_networks().collect();
        self.plan.changes.splice(0..0, networks);
        self.plan.changes.extend(self.volumes.changes());
        // Removals before additions; the sort is stable, so the order is otherwise that of the decisions.
        self.plan.changes.sort_by_key(|change| match change {
            Change::DeleteContainer(_) | Change::DeleteToken(_) | Change::DeleteJoinToken(_) => 0,
            Change::PutNetwork(_) | Change::PutVolume(_) => 0,
            Change::PutContainer(c) if c.removing => 1,
            _ => 2,
        });
        self.plan
    }
}

/// `service.replica`.
pub(super) fn label(container: &ContainerRecord) -> String {
    format!("{}.{}", container.service_name, container.replica)
}

/// It has ended and its policy wants no other run: nothing is to be moved or kept up.
pub(super) fn ended(container: &ContainerRecord, seen: Option<&ObservedContainer>) -> bool {
    let Some(seen) = seen else { return false };
    let ok = seen.last_exit.as_ref().is_some_and(|exit| exit.code == 0);
    container.run == RunState::Running
        && seen.phase == Phase::Exited
        && match container.spec.restart.on {
            Restart::Always => false,
            Restart::OnFailure => ok,
            // Its agent says that it stays ended, and that is all that is known of the policy.
            Restart::Never | Restart::Unknown => true,
        }
}

/// It has ended well and counts as done.
pub(super) fn complete(container: &ContainerRecord, seen: Option<&ObservedContainer>) -> bool {
    ended(container, seen)
        && seen
            .and_then(|seen| seen.last_exit.as_ref())
            .is_some_and(|exit| exit.code == 0)
}

/// It can't be made, or falls over again and again.
pub(super) fn failing(container: &ContainerRecord, seen: Option<&ObservedContainer>) -> bool {
    let Some(seen) = seen else { return false };
    container.run == RunState::Running
        && (seen.restarts > 0
            || matches!(seen.phase, Phase::Backoff | Phase::Failed)
            || seen.is_unhealthy()
            || seen.phase == Phase::Exited && !complete(container, Some(seen)))
}

/// Why it fails, in words.
pub(super) fn failure(seen: &ObservedContainer) -> String {
    let ill = seen.health.as_ref().filter(|health| health.is_unhealthy());
    let why = ill
        .and_then(|health| Some(format!("unhealthy: {}", health.output.as_ref()?)))
        .or_else(|| seen.reason.clone())
        .or_else(|| seen.last_exit.as_ref().map(|exit| exit.reason.clone()));
    let why = why.unwrap_or_else(|| "no reason given by the node".to_owned());
    match seen.restarts {
        0 => why,
        1 => format!("{why} (restarted once)"),
        n => format!("{why} (restarted {n} times)"),
    }
}
