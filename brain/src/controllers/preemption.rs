//! Preemption: making room for a container that fits nowhere by stopping others of lower rank on one node.
//!
//! The container claims the node: what it needs is kept there, against everybody, while the others stop, and is its own once they have
//! gone (R4). Those that go get successors, which look for places like any container, and both sides are told in words.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use berth_common::id::{ContainerId, NodeId, ServiceId, TenantId};
use berth_common::model::{Class, ContainerRecord, Reservation, RunState};

use super::context::{Context, ended, label};
use super::decisions::{Decision, Whom};
use super::services::{Live, Pass};
use super::wishes;
use crate::scheduler::preempt::{Eviction, Occupants, Rank, Victim};
use crate::scheduler::{Footprint, Search, View};

/// What preemption has done and found out in one plan.
#[derive(Debug, Default)]
pub(super) struct Preemption {
    /// Services of preempted containers, which are planned again on the state without them.
    pub disturbed: BTreeSet<ServiceId>,
    /// The lowest rank there is.
    lowest: Option<Option<Rank>>,
    /// Containers that have a successor, which may not lose their place twice.
    superseded: Option<BTreeSet<ContainerId>>,
}

impl Context<'_, '_> {
    fn lowest_rank(&mut self) -> Option<Rank> {
        let state = self.state;
        *self.preemption.lowest.get_or_insert_with(|| {
            state
                .services
                .values()
                .map(|service| Rank::of(&service.spec))
                .min()
        })
    }

    fn superseded(&mut self) -> &BTreeSet<ContainerId> {
        let state = self.state;
        self.preemption.superseded.get_or_insert_with(|| {
            let live = state.containers.values().filter(|c| !c.removing);
            live.filter_map(|c| c.replaces).collect()
        })
    }

    /// Taken up on a node by containers that are being stopped.
    fn going(&self, node: NodeId) -> Footprint {
        let on = self.state.containers_on(node);
        on.filter(|c| self.goes(c))
            .fold(Footprint::default(), |sum, c| sum.plus(self.footprint(c)))
    }

    /// Whether it can be stopped for others: not on its way out, not in the middle of a replacement, not of a service that this plan has been
    /// through and may have done something about, and not done, since it would begin anew. `superseded` must have been asked for before.
    fn may_be_stopped(&self, c: &ContainerRecord) -> bool {
        let seen = self.state.observed.get(&c.id).map(|seen| &**seen);
        let live = |id: &ContainerId| self.state.containers.get(id).is_some_and(|c| !c.removing);
        !self.goes(c)
            && !self.deleted.contains(&c.id)
            && !self.planned.contains(&c.service)
            && !self
                .preemption
                .superseded
                .as_ref()
                .is_some_and(|all| all.contains(&c.id))
            && !c.replaces.as_ref().is_some_and(live)
            && !ended(c, seen)
    }

    /// Stops a container for another, and makes it a successor that looks for a place.
    fn evict(&mut self, victim: &ContainerRecord, why: &str) {
        self.put(ContainerRecord {
            removing: true,
            waiting: None,
            ..victim.clone()
        });
        let id = self.fresh_id();
        self.put(ContainerRecord {
            id,
            node: None,
            claim: None,
            moves: None,
            waiting: Some(format!("{why}; it looks for another place")),
            replaces: Some(victim.id),
            endpoints: Vec::new(),
            created_at: self.input.now.wall,
            revision: Default::default(),
            ..victim.clone()
        });
        self.preemption.disturbed.insert(victim.service);
    }

    /// A container as one tenant may know of it, with its priority.
    fn told_to(&self, tenant: TenantId, of: TenantId, name: &str, rank: Rank) -> String {
        match tenant == of {
            true => format!("{name} ({rank})"),
            false => format!("another tenant's container ({rank})"),
        }
    }
}

impl Pass<'_, '_, '_> {
    /// Where room can be made for one more container of this service, and who goes for it; none if nowhere.
    pub fn find_room(&mut self) -> Option<Eviction> {
        let rank = Rank::of(&self.service.spec);
        // What is not to run needs no room at once, and what gets what others leave takes it from nobody.
        if self.hopeless
            || !rank.standard
            || self.service.run != RunState::Running
            || self.cx.lowest_rank() >= Some(rank)
        {
            return None;
        }
        self.prepare();
        self.cx.view();
        self.cx.superseded();
        let cx = &*self.cx;
        let (search, view) = (self.search.as_ref()?, cx.view.as_ref()?);
        let near: Vec<_> = self.service.spec.together.iter().filter(|one| one.hard).collect();
        let may_go = |c: &ContainerRecord| -> Option<Victim> {
            let service = cx.state.services.get(&c.service)?;
            // Who needs another can't take its place: neither one that it must be near nor one that it links to.
            let near = near.iter().map(|one| &one.with);
            let linked = self.service.spec.links.iter().map(|link| &link.service);
            let wanted =
                c.tenant == self.service.tenant && near.chain(linked).any(|name| *name == c.service_name);
            let victim = Victim {
                id: c.id,
                rank: Rank::of(&service.spec),
                footprint: cx.footprint(c),
            };
            (!wanted && victim.rank < rank && cx.may_be_stopped(c)).then_some(victim)
        };
        let occupants = |node| Occupants {
            going: cx.going(node),
            victims: cx.state.containers_on(node).filter_map(|c| may_go(c)).collect(),
        };
        let elsewhere = |trial: &mut View<'_>, id| {
            let found = cx.state.containers.get(&id);
            found.is_some_and(|c: &std::sync::Arc<ContainerRecord>| {
                let (Some(node), Some(service)) = (c.node, cx.state.services.get(&c.service)) else {
                    return false;
                };
                let outlook = cx.input.outlook;
                let request =
                    wishes::request(cx.state, service, &c.spec, c.replica, &BTreeSet::new(), outlook);
                Search::new(trial, request).take_elsewhere(trial, node)
            })
        };
        let found = search.eviction(view, occupants, elsewhere);
        // What holds for one holds for its equals.
        self.hopeless = found.is_none();
        found
    }

    /// Claims the place that `eviction` makes, and stops those that go for it.
    pub fn make_room(&mut self, container: &mut ContainerRecord, eviction: &Eviction) {
        let node = eviction.node;
        let place = self.cx.node_name(node);
        if let Some(search) = &mut self.search {
            search.claim(self.cx.view(), node);
        }
        container.claim = Some(node);
        let (tenant, rank) = (container.tenant, Rank::of(&self.service.spec));
        let state = self.cx.state;
        let victims: Vec<_> = eviction
            .victims
            .iter()
            .filter_map(|id| state.containers.get(id))
            .collect();
        let own = label(container);
        let mut told = Vec::new();
        for victim in victims {
            let theirs = state
                .services
                .get(&victim.service)
                .map_or(rank, |service| Rank::of(&service.spec));
            let sentence = |cx: &Context<'_, '_>, to| {
                let (gone, come) = (
                    cx.told_to(to, victim.tenant, &label(victim), theirs),
                    cx.told_to(to, tenant, &own, rank),
                );
                format!("preempted {gone} on {place} for {come}")
            };
            let (there, here) = (sentence(self.cx, victim.tenant), sentence(self.cx, tenant));
            self.cx.container_event("preempted", victim, there.clone());
            self.cx.plan.decisions.add(Decision::Preempted(Whom::of(theirs)));
            self.cx.container_event("preempts", container, here);
            if victim.tenant != tenant {
                let name = |tenant| {
                    state
                        .tenants
                        .get(&tenant)
                        .map_or_else(String::new, |t| t.name.to_string())
                };
                let text = format!(
                    "preempted {} of {} ({theirs}) for {own} of {} ({rank})",
                    label(victim),
                    name(victim.tenant),
                    name(tenant),
                );
                self.cx.event("preempted", None, format!("node {place}"), text);
            }
            self.cx.evict(victim, &there);
            told.push(self.cx.told_to(tenant, victim.tenant, &label(victim), theirs));
        }
        let waiting = match told.is_empty() {
            true => format!("waits for room on {place}, where others are being stopped"),
            false => format!("waits for room on {place}, where it preempts {}", told.join(", ")),
        };
        self.tell_waiting(container.waiting.as_deref(), &waiting);
        container.waiting = Some(waiting);
    }

    /// Gives up the place that a container has claimed, if it has.
    pub fn unclaim(&mut self, one: &mut Live) {
        let kept = one.original.as_ref().map_or(&one.record, |old| old);
        if let (Some(node), kept) = (one.record.claim, kept.spec.reservation) {
            one.record.claim = None;
            self.prepare();
            let search = self.search.as_mut().expect("prepared just before");
            search.unclaim(self.cx.view(), node, kept);
        }
    }

    /// Takes the place that a container has claimed, or goes on waiting for it; false if there is nothing to wait for any more.
    pub fn redeem(&mut self, one: &mut Live) -> Option<Redeemed> {
        let node = one.record.claim.take()?;
        let kept = one
            .original
            .as_ref()
            .map_or(one.record.spec.reservation, |old| old.spec.reservation);
        self.prepare();
        let going = self.cx.going(node);
        // Of a node that is being reconnected it is not known what has stopped there; it will be.
        let away = !self.cx.lost(node) && !self.cx.current(node) && self.cx.node(node).is_some();
        let search = self.search.as_mut().expect("prepared just before");
        let view = self.cx.view();
        search.unclaim(view, node, kept);
        if search.take(view, node) {
            return Some(Redeemed::Placed(node));
        }
        // Room is there, and only load stands against it: then any place is as good, and if there is none the reason is that load.
        let busy = !away && search.fits_reserved(view, node);
        if !away && !busy && !search.fits_without(view, node, &going) {
            return None;
        }
        let elsewhere = busy.then(|| self.place(None));
        if let Some(Ok(other)) = elsewhere {
            return Some(Redeemed::Placed(other));
        }
        if let Some(search) = &mut self.search {
            search.claim(self.cx.view(), node);
        }
        one.record.claim = Some(node);
        if let Some(Err(refusal)) = elsewhere {
            self.wait_for(&mut one.record, &refusal, refusal.to_string());
        }
        Some(Redeemed::Waits)
    }
}

/// What became of a claim.
pub(super) enum Redeemed {
    /// The container has its place.
    Placed(NodeId),
    /// Others are still being stopped.
    Waits,
}

/// Stops best-effort containers where this plan has reserved what they use, those of lowest priority first, of equals the newest.
pub(super) fn displace(cx: &mut Context<'_, '_>) {
    if !cx.has_view() {
        return;
    }
    for node in cx.view().displacing() {
        cx.superseded();
        let state = cx.state;
        let rank = |c: &ContainerRecord| {
            state
                .services
                .get(&c.service)
                .map(|service| Rank::of(&service.spec))
        };
        let mut using: Vec<_> = state
            .containers_on(node)
            .filter(|c| c.spec.class == Class::BestEffort && cx.may_be_stopped(c))
            .collect();
        using.sort_by_key(|c| (rank(c), Reverse((c.created_at, c.id))));
        let place = cx.node_name(node);
        // Those that are on their way out use nothing any more once they are gone.
        let out = state.containers_on(node).filter(|c| cx.goes(c));
        let mut stopped = out.fold(Reservation::default(), |sum, c| sum.plus(c.spec.idle_use()));
        let mut going = Vec::new();
        let mut rest = using.into_iter();
        while cx.view().overdrawn_without(node, stopped) {
            let Some(next) = rest.next() else { break };
            stopped = stopped.plus(next.spec.idle_use());
            going.push(next);
        }
        // Whoever is not needed after all stays, the highest first.
        for at in (0..going.len()).rev() {
            let without = stopped.minus(going[at].spec.idle_use());
            if !cx.view().overdrawn_without(node, without) {
                stopped = without;
                going.remove(at);
            }
        }
        for container in going {
            let text = format!(
                "preempted {} (best-effort) on {place}: what was idle there is reserved now",
                label(container)
            );
            cx.container_event("preempted", container, text.clone());
            cx.plan.decisions.add(Decision::Preempted(Whom::BestEffort));
            cx.evict(container, &text);
        }
    }
}
