//! Making, seating and removing a service's containers: each step changes at most one record, with its places on networks.

use berth_common::id::{ContainerId, NodeId};
use berth_common::model::{ContainerRecord, Endpoint, RunState};

use super::context::{Context, label};
use super::decisions::Decision;
use super::preemption::Redeemed;
use super::services::{Live, Pass};
use super::{volumes, wishes};
use crate::scheduler::preempt::Eviction;
use crate::scheduler::{Refusal, Search};

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
    /// Room that is to be made for it.
    pub eviction: Option<Eviction>,
}

pub(super) fn remove(cx: &mut Context<'_, '_>, container: &ContainerRecord) {
    if container.node.is_none() {
        cx.delete(container);
    } else {
        let record = ContainerRecord {
            removing: true,
            waiting: None,
            ..container.clone()
        };
        cx.put(record);
    }
}

/// Milliseconds until what found no place for load's sake looks again.
const BUSY_MS: u64 = 5_000;

/// Whether two refusals tell the same with other numbers.
fn same_but_for_numbers(one: &str, other: &str) -> bool {
    let words = |text: &str| -> String { text.chars().filter(|c| !c.is_ascii_digit()).collect() };
    words(one) == words(other)
}

impl Pass<'_, '_, '_> {
    /// Seats a container that has no node, or says why not.
    pub fn seat(&mut self, one: &mut Live) {
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
            && !self.service.spec.starts_first()
        {
            one.record.waiting = Some(format!(
                "waits until {name} on {node} has stopped, which it replaces"
            ));
            return;
        }
        if one.record.replaces.is_none()
            && let Some(why) = self.link_missing()
        {
            // Others may need the room meanwhile, the one that it links to among them.
            self.unclaim(one);
            self.tell_waiting(one.record.waiting.as_deref(), &why);
            one.record.waiting = Some(why);
            return;
        }
        if let Some(why) = volumes::hindrance(self.cx, self.service, self.replica) {
            self.unclaim(one);
            self.tell_waiting(one.record.waiting.as_deref(), &why);
            one.record.waiting = Some(why);
            return;
        }
        let placed = match self.redeem(one) {
            Some(Redeemed::Waits) => return,
            Some(Redeemed::Placed(node)) => Ok(node),
            None => self.place(None),
        };
        match placed {
            Ok(node) => {
                if !self.connect(&mut one.record) {
                    return;
                }
                one.record.node = Some(node);
                volumes::bind(self.cx, self.service, self.replica, node);
                let text = format!("placed on {}", self.cx.node_name(node));
                self.cx.container_event("placed", &one.record, text);
                self.cx.plan.decisions.add(Decision::Placed);
            }
            Err(refusal) => {
                if let Some(eviction) = self.find_room() {
                    return self.claim(&mut one.record, &eviction);
                }
                let waiting = match before {
                    None => refusal.to_string(),
                    Some((name, node)) => format!("{refusal}; {name} on {node} is still stopping"),
                };
                self.wait_for(&mut one.record, &refusal, waiting);
            }
        }
    }

    /// Notes why a container waits, and tells it if it is news.
    pub fn wait_for(&mut self, container: &mut ContainerRecord, refusal: &Refusal, waiting: String) {
        // Load is never the same twice: that only its numbers moved is no news, and not worth a write.
        let old = container.waiting.as_deref();
        if refusal.is_asking() {
            // That it is being asked is over in a moment, and what stood there before says more.
            container.waiting.get_or_insert(waiting);
            return;
        }
        if refusal.may_pass() && old.is_some_and(|old| same_but_for_numbers(old, &waiting)) {
            return;
        }
        self.tell_waiting(old, &waiting);
        container.waiting = Some(waiting);
    }

    /// Has room made for a container that has none, if nothing else stands against it.
    fn claim(&mut self, container: &mut ContainerRecord, eviction: &Eviction) {
        if self.connect(container) {
            self.make_room(container, eviction);
        }
    }

    /// Gives a container its places on networks, or says why not and looks again when it may be otherwise.
    fn connect(&mut self, container: &mut ContainerRecord) -> bool {
        let Err(no) = self.cx.address(container) else {
            container.waiting = None;
            return true;
        };
        if let Some(ms) = no.again_ms {
            self.cx.recheck(self.service.id, self.cx.input.now.mono_ms + ms);
        }
        self.tell_waiting(container.waiting.as_deref(), &no.why);
        container.waiting = Some(no.why);
        false
    }

    pub fn tell_waiting(&mut self, old: Option<&str>, new: &str) {
        if !self.told_waiting && old != Some(new) {
            self.told_waiting = true;
            let subject = format!("service {}", self.service.spec.name);
            self.cx
                .event("waiting", Some(self.service.tenant), subject, new.to_owned());
        }
    }

    /// Why containers of this service can't begin yet: a service that it links to takes no requests. Those that take over from others
    /// don't wait for that, since something serves already.
    fn link_missing(&self) -> Option<String> {
        let (state, tenant) = (self.cx.state, self.service.tenant);
        self.service.spec.links.iter().find_map(|link| {
            let name = &link.service;
            let Some(other) = state.service(tenant, name) else {
                return Some(format!("waits for service {name}, which it links to and which is not there; make it with `berth run` or `berth service apply`"));
            };
            let ready = state.containers_of(other.id).any(|c| state.takes_requests(c));
            (!ready).then(|| format!("waits for service {name}, which it links to: no container of it takes requests yet; see `berth ps {name}`"))
        })
    }

    /// A new container, placed at once where that is possible and `now` allows.
    pub fn create(&mut self, replica: u32, replaces: Option<ContainerId>, now: bool) {
        let links = replaces.is_none().then(|| self.link_missing()).flatten();
        let links = links.or_else(|| volumes::hindrance(self.cx, self.service, self.replica));
        let (mut eviction, mut asking) = (None, false);
        let placed = match links {
            _ if !now => Err("waits until the container it replaces has stopped".to_owned()),
            Some(why) => Err(why),
            None => self.place(None).map_err(|refusal| {
                eviction = self.find_room();
                asking = refusal.is_asking();
                refusal.to_string()
            }),
        };
        if let (true, None, Err(why)) = (now && !asking, &eviction, &placed) {
            self.tell_waiting(None, why);
        }
        let (node, waiting) = match placed {
            Ok(node) => (Some(node), None),
            Err(why) => (None, Some(why)),
        };
        self.add(New {
            replica,
            replaces,
            node,
            waiting,
            run: self.service.run,
            eviction,
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
            eviction,
        } = new;
        let mut record = ContainerRecord {
            id: self.cx.fresh_id(),
            tenant: self.service.tenant,
            service: self.service.id,
            service_name: self.service.spec.name.clone(),
            replica,
            node,
            claim: None,
            moves: None,
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
        if let Some(eviction) = &eviction {
            self.claim(&mut record, eviction);
        }
        if record.node.is_some() && !self.connect(&mut record) {
            record.node = None;
        }
        if let Some(node) = record.node {
            volumes::bind(self.cx, self.service, self.replica, node);
            let text = format!("placed on {}", self.cx.node_name(node));
            self.cx.container_event("placed", &record, text);
            self.cx.plan.decisions.add(Decision::Placed);
        }
        self.cx.put(record);
    }

    /// Takes a place for a container; `leaving`: the node that another one leaves for it.
    pub fn place(&mut self, leaving: Option<NodeId>) -> Result<NodeId, Box<Refusal>> {
        self.heard()?;
        self.prepare();
        let search = self.search.as_mut().expect("prepared just before");
        let matters = leaving.filter(|_| search.asks_who_leaves());
        if let Some(refusal) = self.refused.get(&matters) {
            return Err(refusal.clone());
        }
        let placed = search.place_for(self.cx.view(), leaving);
        match &placed {
            // With one more, a place may have become even enough that was not.
            Ok(_) if search.asks_who_leaves() => self.refused.clear(),
            Ok(_) => {}
            Err(refusal) => {
                self.cx.plan.decisions.refused(refusal);
                // Load falls without anything being told of it.
                if refusal.may_pass() {
                    let again = self.cx.input.now.mono_ms + BUSY_MS;
                    self.cx.recheck(self.service.id, again);
                }
                self.refused.insert(matters, refusal.clone());
            }
        }
        if let Err(refusal) = &placed {
            self.doubt(refusal);
        }
        placed
    }

    /// Takes a place on this node and no other, if one more fits there.
    pub fn take(&mut self, node: NodeId) -> bool {
        self.prepare();
        let search = self.search.as_mut().expect("prepared just before");
        search.take(self.cx.view(), node)
    }

    /// Whether the successor would find room once `current` is gone, on its node or already elsewhere.
    pub fn room_after(&mut self, current: &Live) -> bool {
        self.prepare();
        let gone = self.cx.footprint(&current.record);
        let search = self.search.as_ref().expect("prepared just before");
        let view = self.cx.view();
        let there = current
            .record
            .node
            .is_some_and(|node| search.fits_after(view, node, &gone));
        there || search.possible_for(view, current.record.node).is_ok()
    }

    pub fn prepare(&mut self) {
        if self.search.is_none() {
            let outlook = self.cx.input.outlook;
            let mut request = wishes::request(
                self.cx.state,
                self.service,
                &self.want,
                self.replica,
                &self.gone,
                outlook,
            );
            let (tenant, mounts) = (self.service.tenant, &self.want.volumes);
            let wish = self.cx.volumes.wish(self.cx.state, tenant, mounts, self.replica);
            request.constraints.volumes = wish;
            self.search = Some(Search::new(self.cx.view(), request));
        }
    }

    /// It no longer counts where replicas are spread.
    fn note_gone(&mut self, container: &ContainerRecord) {
        self.gone.insert(container.id);
        if let (Some(search), Some(node)) = (&mut self.search, container.node)
            && !self.cx.lost(node)
        {
            search.leave(self.cx.view(), node);
        }
    }

    pub fn remove(&mut self, one: Live) {
        // What was passed on to it no longer matters: it goes as it was.
        let record = one.original.as_deref().unwrap_or(&one.record);
        self.note_gone(record);
        remove(self.cx, record);
    }

    /// Removes a container for another that takes over its places on networks, and gives these.
    pub fn remove_for_successor(&mut self, one: Live) -> Vec<Endpoint> {
        let mut record = one.original.as_deref().unwrap_or(&one.record).clone();
        let endpoints = std::mem::take(&mut record.endpoints);
        self.note_gone(&record);
        remove(self.cx, &record);
        endpoints
    }

    pub fn keep(&mut self, mut one: Live) {
        // One of a brain that knew no networks yet gets its places while it runs; where it can't, it runs on without and says so.
        if one.record.node.is_some() {
            self.connect(&mut one.record);
        }
        if one.original.as_deref() != Some(&one.record) {
            self.cx.put(one.record);
        }
    }
}
