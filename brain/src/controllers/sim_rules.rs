//! What holds of every container that a plan of the simulated cluster seats: told anew from the records, not from the scheduler.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::ContainerId;
use berth_common::model::{
    Class, ContainerRecord, DEFAULT_POOL, NodeKind, NodeRecord, Reservation, ServiceRecord, Spread,
    TaintEffect, Together,
};

use super::Plan;
use super::decisions::Decision;
use crate::cluster::{Change, State};
use crate::scheduler::preempt::Rank;

/// Checks that every index is what follows from the records.
pub(super) fn check_indexes(state: &State) {
    let mut anew = State::default();
    let nodes = state.nodes.values().map(|one| Change::PutNode((**one).clone()));
    let services = state
        .services
        .values()
        .map(|one| Change::PutService((**one).clone()));
    let containers = state
        .containers
        .values()
        .map(|one| Change::PutContainer((**one).clone()));
    let volumes = state
        .volumes
        .values()
        .map(|one| Change::PutVolume((**one).clone()));
    let all = nodes.chain(services).chain(containers).chain(volumes);
    anew.apply(all.collect(), state.revision);
    assert_eq!(state.volume_names, anew.volume_names);
    assert_eq!(state.volumes_on, anew.volumes_on);
    assert_eq!(state.volumes_taken, anew.volumes_taken);
    assert_eq!(state.snapshots_due, anew.snapshots_due);
    assert_eq!(state.mounting, anew.mounting);
    assert_eq!(state.labelled, anew.labelled);
    assert_eq!(state.gates.all(state), anew.gates.all(&anew));
    assert_eq!(state.successors, anew.successors);
    assert_eq!(state.moving, anew.moving);
    assert_eq!(
        (&state.unplaced, &state.claiming),
        (&anew.unplaced, &anew.claiming)
    );
    for id in state.nodes.keys() {
        assert_eq!(state.taken_on(*id), anew.taken_on(*id));
    }
}

/// Checks every container that has got its node between two states.
pub(super) fn check_seated(before: &State, after: &State) {
    for container in after.containers.values() {
        let old = before.containers.get(&container.id).and_then(|old| old.node);
        let (Some(node), None) = (container.node, old) else {
            continue;
        };
        let node = &after.nodes[&node];
        let service = &after.services[&container.service];
        let what = format!(
            "{}.{} on {}",
            container.service_name, container.replica, node.name
        );
        assert!(takes(after, node, service), "a hard constraint is broken: {what}");
        if container.spec.class == Class::BestEffort {
            let (most, taken) = (after.allocatable(node), after.taken_on(node.id));
            let used = taken.reserved.plus(taken.lent);
            assert!(within(most, used), "nothing is idle for it: {what}");
        }
        if let Some(most) = service.spec.max_per_node {
            let there = after.containers_on(node.id).filter(|c| c.service == service.id);
            assert!(there.count() <= most as usize, "more than max_per_node: {what}");
        }
        for together in service.spec.together.iter().filter(|one| one.hard) {
            assert!(
                near(before, node, service, together),
                "far from {}: {what}",
                together.with
            );
        }
        // Whom the same plan took away counted when it seated the others, or not yet.
        let lost_some = before
            .containers_of(service.id)
            .any(|c| !c.removing && after.containers.get(&c.id).is_none_or(|now| now.removing));
        for spread in service.spec.spread.iter().filter(|one| one.hard && !lost_some) {
            check_even(after, service, node, spread, &what);
        }
    }
}

/// Whether a node is one that the service may be asked about: everything but room and other replicas.
fn takes(state: &State, node: &NodeRecord, service: &ServiceRecord) -> bool {
    let spec = &service.spec;
    let kept_off = node.taints.iter().any(|taint| {
        taint.effect != TaintEffect::PreferNoSchedule && !spec.tolerations.iter().any(|one| one.covers(taint))
    });
    let pool = spec.pool.as_ref().map_or(DEFAULT_POOL, |pool| pool.as_str());
    let own = match node.kind {
        NodeKind::Shared => true,
        NodeKind::Private { tenant } => tenant == service.tenant,
    };
    let labels = spec
        .node_labels
        .iter()
        .all(|(key, value)| node.label(key) == Some(value.as_str()));
    let domains = spec.spread.iter().filter(|one| one.hard);
    own && labels
        && !kept_off
        && !node.lost
        && !node.cordoned
        && !node.draining
        && state.connections.get(&node.id).is_some_and(|c| c.synced)
        && node.pool.as_str() == pool
        && domains.into_iter().all(|one| node.label(&one.by).is_some())
}

fn near(state: &State, node: &NodeRecord, service: &ServiceRecord, together: &Together) -> bool {
    let Some(other) = state.service(service.tenant, &together.with) else {
        return false;
    };
    let mut nodes = state
        .containers_of(other.id)
        .filter(|c| !c.removing)
        .filter_map(|c| state.nodes.get(&c.node?));
    nodes.any(|at| match &together.by {
        None => at.id == node.id,
        Some(by) => at.label(by).is_some() && at.label(by) == node.label(by),
    })
}

fn check_even(state: &State, service: &ServiceRecord, node: &NodeRecord, spread: &Spread, what: &str) {
    let live = |c: &&std::sync::Arc<ContainerRecord>| !c.removing && c.node.is_some();
    let superseded: BTreeSet<ContainerId> = state
        .containers_of(service.id)
        .filter(live)
        .filter_map(|c| c.replaces)
        .collect();
    let mut counts: BTreeMap<&str, u32> = state
        .nodes
        .values()
        .filter(|node| {
            let companions = service.spec.together.iter().filter(|one| one.hard);
            takes(state, node, service) && companions.into_iter().all(|one| near(state, node, service, one))
        })
        .map(|node| (node.label(&spread.by).expect("it takes it"), 0))
        .collect();
    // For whom room is being made is as good as there.
    for container in state.containers_of(service.id).filter(|c| !c.removing) {
        let at = container
            .node
            .or(container.claim)
            .and_then(|id| state.nodes.get(&id));
        let Some(at) = at.filter(|at| !at.lost && !superseded.contains(&container.id)) else {
            continue;
        };
        if let Some(count) = at.label(&spread.by).and_then(|value| counts.get_mut(value)) {
            *count += 1;
        }
    }
    let here = counts
        .get(node.label(&spread.by).expect("it took it"))
        .copied()
        .unwrap_or(0);
    let least = counts.values().copied().min().unwrap_or(0);
    assert!(
        here <= least + spread.max_skew,
        "{here} in its {} where another has {least}: {what}",
        spread.by
    );
}

/// What containers that stay set aside on a node, with what is kept for those that are to come.
fn after_all_have_gone(state: &State, node: &NodeRecord) -> Reservation {
    let staying = state.containers_on(node.id).filter(|c| !c.removing);
    let claiming = state
        .containers
        .values()
        .filter(|c| c.claim == Some(node.id) && c.node.is_none());
    staying
        .chain(claiming)
        .fold(Reservation::default(), |sum, c| sum.plus(c.spec.reservation))
}

fn within(most: Reservation, sum: Reservation) -> bool {
    sum.cpu <= most.cpu && sum.memory <= most.memory && sum.disk <= most.disk
}

/// Containers that a plan has stopped for others: with a successor that was made for that.
pub(super) fn preempted<'s>(
    before: &'s State,
    after: &'s State,
) -> impl Iterator<Item = &'s std::sync::Arc<ContainerRecord>> {
    let successors: BTreeSet<ContainerId> = after
        .containers
        .values()
        .filter(|c| c.waiting.as_ref().is_some_and(|why| why.starts_with("preempted")))
        .filter(|c| !before.containers.contains_key(&c.id))
        .filter_map(|c| c.replaces)
        .collect();
    let went = move |c: &&std::sync::Arc<ContainerRecord>| {
        let old = before.containers.get(&c.id);
        c.removing && old.is_some_and(|old| !old.removing) && successors.contains(&c.id)
    };
    after.containers.values().filter(went)
}

/// Best-effort containers that went since others reserved what they used.
fn displaced(after: &State) -> BTreeSet<ContainerId> {
    let told = |c: &&std::sync::Arc<ContainerRecord>| {
        c.waiting
            .as_ref()
            .is_some_and(|why| why.contains("what was idle there is reserved now"))
    };
    after
        .containers
        .values()
        .filter(told)
        .filter_map(|c| c.replaces)
        .collect()
}

/// Preemption is of lower ranks alone, makes room that is enough and no more, is never for nothing, and what it makes room for gets it.
pub(super) fn check_preemption(before: &State, after: &State) {
    let rank = |c: &ContainerRecord| Rank::of(&after.services[&c.service].spec);
    let new: Vec<_> = after
        .containers
        .values()
        .filter(|c| {
            c.claim.is_some()
                && before
                    .containers
                    .get(&c.id)
                    .is_none_or(|old| old.claim != c.claim)
        })
        .collect();
    let displaced = displaced(after);
    for victim in preempted(before, after).filter(|c| displaced.contains(&c.id)) {
        let node = &after.nodes[&victim.node.unwrap()];
        let (was, is) = (
            before.taken_on(node.id).reserved,
            after.taken_on(node.id).reserved,
        );
        assert!(
            victim.spec.class == Class::BestEffort && !within(was, is),
            "nobody reserved what it used"
        );
        let staying = after.containers_on(node.id).filter(|c| !c.removing);
        let used = staying.fold(is, |sum, c| sum.plus(c.spec.idle_use()));
        let most = after.allocatable(node);
        assert!(
            !within(most, used.plus(victim.spec.idle_use())),
            "{} went from {} for nothing",
            victim.service_name,
            node.name
        );
    }
    for victim in preempted(before, after).filter(|c| !displaced.contains(&c.id)) {
        let by = new.iter().filter(|c| c.claim == victim.node);
        let highest = by.map(|c| rank(c)).max();
        assert!(
            highest > Some(rank(victim)),
            "R4: {} was preempted by no higher rank",
            victim.service_name
        );
    }
    for node in after.nodes.values() {
        let most = after.allocatable(node);
        let (was, is) = (
            after_all_have_gone(before, node),
            after_all_have_gone(after, node),
        );
        assert!(
            within(most, is) || within(was, is),
            "R4: {is:?} of {most:?} will be taken on {}",
            node.name
        );
        let claims: Vec<_> = new.iter().filter(|c| c.claim == Some(node.id)).collect();
        let victims = preempted(before, after).filter(|c| !displaced.contains(&c.id));
        for victim in victims.filter(|c| c.node == Some(node.id)) {
            let without = is.plus(victim.spec.reservation);
            assert!(
                claims.len() > 1 || !within(most, without),
                "{} was preempted for nothing on {}",
                victim.service_name,
                node.name
            );
        }
    }
    for claimer in new {
        let service = &after.services[&claimer.service];
        let spec = &service.spec;
        let counts = !spec.spread.is_empty() || spec.max_per_node.is_some();
        let nodes = after
            .nodes
            .values()
            .filter(|node| !counts && takes(after, node, service));
        let companions = || spec.together.iter().filter(|one| one.hard);
        for node in nodes.filter(|node| companions().all(|one| near(after, node, service, one))) {
            let claims = after
                .containers
                .values()
                .filter(|c| c.node.is_none() && c.claim == Some(node.id));
            let held = claims
                .filter(|c| c.id != claimer.id)
                .fold(after.taken_on(node.id).reserved, |sum, c| {
                    sum.plus(c.spec.reservation)
                });
            assert!(
                !within(after.allocatable(node), held.plus(claimer.spec.reservation)),
                "room is made for {} though {} has some",
                claimer.service_name,
                node.name
            );
        }
    }
}

/// What a plan counts is what it tells.
pub(super) fn check_tally(plan: &Plan) {
    let told = |kind| {
        let of_containers = plan.events.iter().filter(|e| e.subject.starts_with("container"));
        of_containers.filter(|e| e.kind == kind).count() as u64
    };
    let counted = |fits: fn(&Decision) -> bool| -> u64 {
        let all = plan.decisions.iter().filter(|(decision, _)| fits(decision));
        all.map(|(_, count)| count).sum()
    };
    assert_eq!(counted(|d| matches!(d, Decision::Placed)), told("placed"));
    assert_eq!(counted(|d| matches!(d, Decision::Moved(_))), told("moved"));
    assert_eq!(
        counted(|d| matches!(d, Decision::Preempted(_))),
        told("preempted")
    );
    assert_eq!(counted(|d| matches!(d, Decision::Replaced)), told("replaced"));
    let (refused, obstacles) = (
        counted(|d| matches!(d, Decision::Refused)),
        counted(|d| matches!(d, Decision::Obstacle(_))),
    );
    assert!(obstacles >= refused, "every refusal has a kind");
}
