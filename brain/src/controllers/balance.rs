//! Balance: containers leave nodes that stay too hot. What moves, where to and why is decided here, from one state and one outlook; how a
//! container moves is the services' controller's, which starts the successor first.
//!
//! Refuses to touch what can't move without harm: what must stop before its successor may start, what does not run well where it is, what
//! is not to be started again once it ends, and services of which something is being replaced anyway.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, Moves, Restart, RunState};

use super::{NewEvent, wishes};
use crate::cluster::{Change, State};
use crate::outlook::At;
use crate::scheduler::forecast::{CPU, plus};
use crate::scheduler::load::Watermarks;
use crate::scheduler::rebalance::{self, Budget, Host, Memory, Shift, Tenancy};
use crate::scheduler::{Search, View, capacity};

/// What a round decides.
#[derive(Debug, Default)]
pub struct Decided {
    /// Containers that are to move.
    pub moves: Vec<(ContainerId, Moves)>,
    /// What to tell people.
    pub events: Vec<NewEvent>,
    /// Services that could not move, since their policies were not heard.
    pub wanted: BTreeSet<ServiceId>,
}

/// Looks for nodes that are too hot, and for what to do about it. `now`: seconds of any steady clock.
pub fn round(state: &State, outlook: &At<'_>, memory: &mut Memory<NodeId, ContainerId>, now: u32) -> Decided {
    let marks = Watermarks::default();
    let view = View::new(state, &BTreeMap::new()).with_loads(outlook);
    let replacing = Replacing::of(state);
    let mut hosts: Vec<_> = state
        .nodes
        .keys()
        .filter_map(|node| host(state, outlook, &replacing, *node, &marks))
        .collect();
    let mut room = Room {
        state,
        outlook,
        view,
        searches: HashMap::new(),
        used: BTreeSet::new(),
        wanted: BTreeSet::new(),
    };
    let round = rebalance::plan(&mut hosts, marks, Budget::default(), memory, now, &mut room);
    let mut decided = Decided {
        wanted: room.wanted,
        ..Decided::default()
    };
    for shift in round.shifts {
        let moves = Moves {
            to: shift.to,
            why: why(state, &shift, &marks),
            emptying: false,
        };
        decided.moves.push((shift.container, moves));
    }
    for node in round.stuck {
        decided.events.extend(stuck(state, outlook, node, &marks));
    }
    decided
}

/// The changes that begin these moves, of what is still as it was.
pub fn begin(state: &State, moves: Vec<(ContainerId, Moves)>) -> Vec<Change> {
    let replacing = Replacing::of(state);
    let still = moves.into_iter().filter_map(|(id, moves)| {
        let record = state.containers.get(&id)?;
        (movable(state, &replacing, record) && record.node != Some(moves.to)).then(|| {
            Change::PutContainer(ContainerRecord {
                moves: Some(moves),
                ..(**record).clone()
            })
        })
    });
    still.collect()
}

/// What is being replaced: containers that have a successor, and services of these.
pub(super) struct Replacing {
    containers: BTreeSet<ContainerId>,
    pub(super) services: BTreeSet<ServiceId>,
}

impl Replacing {
    pub(super) fn of(state: &State) -> Self {
        let all = || {
            let successors = state.successors.iter().filter_map(|id| state.containers.get(id));
            successors.filter_map(|one| Some((one.replaces?, one.service)))
        };
        Self {
            containers: all().map(|(old, _)| old).collect(),
            services: all().map(|(_, service)| service).collect(),
        }
    }
}

fn host(
    state: &State,
    outlook: &At<'_>,
    replacing: &Replacing,
    node: NodeId,
    marks: &Watermarks,
) -> Option<Host<NodeId, ContainerId>> {
    let record = state.nodes.get(&node)?;
    let synced = state.connections.get(&node).is_some_and(|c| c.synced);
    if record.lost || !synced {
        return None;
    }
    let parts = outlook.parts(node)?;
    let (load, measured) = (plus(parts.foreign, parts.containers), outlook.measured(node)?);
    let capacity = capacity(record);
    let mut leaving = 0;
    let mut containers = Vec::new();
    // What is on nodes that are not hot matters to nobody, and is by far the most.
    let hot = marks.heat(&measured, &capacity).1 > marks.evict;
    let on_it = hot.then(|| state.containers_on(node));
    for container in on_it.into_iter().flatten() {
        let followed = replacing.containers.contains(&container.id);
        if container.removing || container.moves.is_some() || followed {
            leaving += 1;
        } else if let Some(told) = outlook.container(container.id) {
            containers.push(Tenancy {
                container: container.id,
                load: told.measured(),
                movable: told.own.is_some() && movable(state, replacing, container),
            });
        }
    }
    Some(Host {
        node,
        capacity,
        load,
        measured,
        containers,
        leaving,
    })
}

fn movable(state: &State, replacing: &Replacing, container: &ContainerRecord) -> bool {
    hindrance(state, replacing, container).is_none()
}

/// What keeps a container from moving without harm, in words that follow its name.
pub(super) fn hindrance(
    state: &State,
    replacing: &Replacing,
    container: &ContainerRecord,
) -> Option<&'static str> {
    let service = state.services.get(&container.service);
    let seen = state.observed.get(&container.id);
    match service {
        None => Some("is being removed"),
        _ if container.removing => Some("is being removed"),
        _ if container.run != RunState::Running => Some("is stopped"),
        _ if container.moves.is_some() => Some("is moving already"),
        Some(service) if !service.spec.volumes.is_empty() => Some("has volumes"),
        Some(service) if !service.spec.starts_first() => Some("must stop before its successor may start"),
        _ if container.spec.restart.on != Restart::Always => Some("is not to be started again when it ends"),
        _ if !seen.is_some_and(|seen| seen.serves()) => Some("does not serve where it is"),
        Some(service) if replacing.services.contains(&service.id) => {
            Some("waits until another of its service is replaced")
        }
        _ => None,
    }
}

/// Room on the cluster's nodes, by all that stands against a placement.
struct Room<'a> {
    state: &'a State,
    outlook: &'a At<'a>,
    view: View<'a>,
    searches: HashMap<ServiceId, Search<'a>>,
    /// Services of which something moves in this round: one at a time.
    used: BTreeSet<ServiceId>,
    /// Services whose policies were not heard.
    wanted: BTreeSet<ServiceId>,
}

impl Room<'_> {
    fn service(&mut self, container: ContainerId) -> Option<ServiceId> {
        let record = self.state.containers.get(&container)?;
        let service = self.state.services.get(&record.service)?;
        if self.outlook.unheard(service).is_some() {
            self.wanted.insert(service.id);
            return None;
        }
        if !self.searches.contains_key(&service.id) {
            let mut request = wishes::request(
                self.state,
                service,
                &record.spec,
                record.replica,
                &BTreeSet::new(),
                self.outlook,
            );
            request.load = self.outlook.container(container)?.measured();
            self.searches.insert(service.id, Search::new(&self.view, request));
        }
        Some(service.id)
    }
}

impl rebalance::Room<NodeId, ContainerId> for Room<'_> {
    fn fits(&mut self, to: NodeId, container: ContainerId) -> bool {
        let Some(service) = self.service(container) else {
            return false;
        };
        !self.used.contains(&service) && self.searches[&service].fits(&self.view, to)
    }

    fn take(&mut self, to: NodeId, container: ContainerId) {
        let Some(service) = self.service(container) else {
            return;
        };
        self.used.insert(service);
        if let Some(search) = self.searches.get_mut(&service) {
            search.take(&mut self.view, to);
        }
    }
}

fn percent(share: f32) -> u32 {
    (share * 100.0) as u32
}

fn resource(of: usize) -> &'static str {
    if of == CPU { "CPU" } else { "memory" }
}

fn why(state: &State, shift: &Shift<NodeId, ContainerId>, marks: &Watermarks) -> String {
    format!(
        "{} percent of the {} of {} are expected to be in use, over {}; {} without it, and {} on {} with it",
        percent(shift.heat),
        resource(shift.resource),
        state.name_of_node(shift.from),
        percent(marks.evict),
        percent(shift.after),
        percent(shift.there),
        state.name_of_node(shift.to),
    )
}

fn stuck(state: &State, outlook: &At<'_>, node: NodeId, marks: &Watermarks) -> Option<NewEvent> {
    let record = state.nodes.get(&node)?;
    let parts = outlook.parts(node)?;
    let (of, heat) = marks.heat(&outlook.measured(node)?, &capacity(record));
    let foreign = parts.foreign[of].mean / capacity(record)[of].max(1.0);
    let text = format!(
        "{} percent of its {} are in use, over {}, {} of them not by containers; nothing that is here can be moved to where there is room for \
         it: end what else runs there, or add a node",
        percent(heat),
        resource(of),
        percent(marks.evict),
        percent(foreign),
    );
    Some(NewEvent {
        kind: "node-hot",
        tenant: None,
        subject: format!("node {}", record.name),
        text,
    })
}
