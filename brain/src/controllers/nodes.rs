//! Nodes: leases, what a lost or leaving node means for its containers, and records whose container is confirmed gone.
//!
//! Refuses to move anything itself: which container goes where is decided per service.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{NodeId, ServiceId};
use berth_common::model::NodeRecord;

use super::context::{Context, ended, failing, failure, label};
use super::{volume_moves, wishes};
use crate::cluster::{Change, State};
use crate::outlook::At;
use crate::scheduler::{Search, View, taints};

/// Judges every node's lease. Returns the nodes that became lost or came back.
pub(super) fn leases(cx: &mut Context<'_, '_>) -> Vec<NodeId> {
    let (now, lease) = (cx.input.now.mono_ms, cx.input.lease_ms);
    let mut turned = Vec::new();
    for (id, node) in &cx.state.nodes {
        // Never heard since the brain started counts from then: a restarted brain gives everyone a full lease, and one whose
        // host has just booted time to boot, too, since a power cut rarely takes one host alone.
        let heard = (cx.input.last_heard)(*id);
        let end = heard.unwrap_or(cx.input.patient_until_ms).saturating_add(lease);
        let silent = now >= end;
        if !silent {
            cx.recheck_leases(end);
        }
        let back = !silent && heard.is_some() && cx.state.connections.contains_key(id);
        let lost = if node.lost { !back } else { silent };
        if lost == node.lost {
            continue;
        }
        let mut record = (**node).clone();
        record.lost = lost;
        let name = node.name.to_string();
        cx.plan.changes.push(Change::PutNode(record));
        cx.turned.insert(*id, lost);
        let (kind, text) = if lost {
            let count = cx.state.containers_on(*id).filter(|c| !c.removing).count();
            (
                "node-lost",
                format!("not heard from for {lease} ms; {count} containers were on it"),
            )
        } else {
            (
                "node-back",
                "heard from again; it stops what was replaced elsewhere".to_owned(),
            )
        };
        cx.event(kind, None, format!("node {name}"), text);
        turned.push(*id);
    }
    turned
}

/// Drops tokens that have expired.
pub(super) fn expiries(cx: &mut Context<'_, '_>) {
    let wall = cx.input.now.wall;
    for (id, token) in &cx.state.join_tokens {
        if token.expires_at <= wall {
            cx.plan.changes.push(Change::DeleteJoinToken(*id));
        }
    }
    for (id, token) in &cx.state.tokens {
        if token.expires_at.is_some_and(|at| at <= wall) {
            cx.plan.changes.push(Change::DeleteToken(*id));
        }
    }
}

/// Deletes records of a service's containers of which nothing is left on any node. True if that freed room.
pub(super) fn sweep(cx: &mut Context<'_, '_>, service: ServiceId) -> bool {
    let mut freed = false;
    for container in cx.state.containers_of(service) {
        let Some(id) = container.node else {
            if container.removing {
                cx.delete(container);
            }
            continue;
        };
        let Some(node) = cx.node(id) else {
            cx.container_event("removed", container, "its node was removed".to_owned());
            cx.delete(container);
            continue;
        };
        if !container.removing || !confirmed(cx.state, container.id, id) {
            continue;
        }
        cx.delete(container);
        freed = true;
        let left = cx.state.containers_on(id).any(|c| !cx.deleted.contains(&c.id));
        if node.draining && !left {
            cx.event(
                "drained",
                None,
                format!("node {}", node.name),
                "nothing is left on it".to_owned(),
            );
        }
    }
    freed
}

/// Its node said so, or acts on a set without it and no longer sees it.
fn confirmed(state: &State, container: berth_common::id::ContainerId, node: NodeId) -> bool {
    if state.gone.contains(&container) {
        return true;
    }
    let Some(record) = state.nodes.get(&node) else {
        return true;
    };
    let caught_up = state
        .connections
        .get(&node)
        .is_some_and(|c| c.synced && c.applied >= record.generation);
    caught_up && !state.observed.contains_key(&container)
}

/// Services that wait for room: unplaced containers, and containers on nodes that they should leave.
pub(super) fn waiting(cx: &Context<'_, '_>) -> BTreeSet<ServiceId> {
    let state = cx.state;
    let mut services: BTreeSet<_> = state
        .unplaced
        .iter()
        .filter_map(|id| state.containers.get(id))
        .map(|c| c.service)
        .collect();
    for (id, node) in &state.nodes {
        if empties(node) || cx.lost(*id) {
            services.extend(
                state
                    .containers_on(*id)
                    .filter(|c| !c.removing)
                    .map(|c| c.service),
            );
        }
    }
    services
}

/// Whether some of its containers may have to leave: all of a draining one, with a no-execute taint those that don't tolerate it.
pub fn empties(node: &NodeRecord) -> bool {
    node.draining || taints::drives_away(node, &[]).is_some()
}

/// What still holds containers on a node that they must leave, one sentence a container (R9). Empty when nothing is left.
pub fn drain_waits(state: &State, outlook: &At<'_>, node: NodeId) -> Vec<String> {
    let mut view = None;
    let mut waits = Vec::new();
    for container in state.containers_on(node) {
        let name = label(container);
        let seen = state.observed.get(&container.id).map(|seen| &**seen);
        if container.removing {
            waits.push(format!("{name} is being stopped"));
            continue;
        }
        let service = state.services.get(&container.service);
        let (Some(record), Some(service)) = (state.nodes.get(&node), service) else {
            continue;
        };
        let must = record.draining || taints::drives_away(record, &service.spec.tolerations).is_some();
        if !must || ended(container, seen) {
            continue;
        }
        let siblings = || state.containers_of(container.service).filter(|c| !c.removing);
        if let Some(next) = siblings().find(|c| c.replaces == Some(container.id)) {
            let place = next
                .node
                .and_then(|id| state.nodes.get(&id))
                .map_or("", |n| n.name.as_str());
            waits.push(match state.observed.get(&next.id) {
                Some(seen) if failing(next, Some(seen)) => {
                    format!("the replacement of {name} on {place} fails: {}", failure(seen))
                }
                _ => format!("the replacement of {name} is starting on {place}"),
            });
            continue;
        }
        if let Some(other) = siblings().find(|c| c.replaces.is_some()) {
            waits.push(match state.observed.get(&other.id) {
                Some(seen) if failing(other, Some(seen)) => format!(
                    "{name} waits: the replacement of {} fails: {}",
                    label(other),
                    failure(seen)
                ),
                _ => format!("{name} waits until {} is replaced", label(other)),
            });
            continue;
        }
        if let Some(moves) = container.moves.as_ref().filter(|moves| moves.emptying) {
            let to = state.nodes.get(&moves.to).map_or("", |node| node.name.as_str());
            waits.push(format!("{name} waits for its turn to move to {to}"));
            continue;
        }
        let view = view.get_or_insert_with(|| View::new(state, &BTreeMap::new()).with_loads(outlook));
        if let Some(why) = outlook.unheard(service) {
            waits.push(format!("{name} stays: {why}"));
            continue;
        }
        let mut request = wishes::request(
            state,
            service,
            &container.spec,
            container.replica,
            &BTreeSet::new(),
            outlook,
        );
        // It goes with its volumes, and asks for a place for all of them.
        if let Some(volume) = state.volumes_of(container).flatten().next() {
            if let Some(moves) = &volume.moves {
                let to = state.name_of_node(moves.to);
                waits.push(format!(
                    "{name} waits until its volume {} is on {to}",
                    volume.name
                ));
                continue;
            }
            let together = volume_moves::companions(state, volume);
            request.constraints.volumes = volume_moves::leaving(state, &together, BTreeMap::new());
        }
        waits.push(match Search::new(view, request).possible_for(view, Some(node)) {
            Ok(()) => format!("{name} is next"),
            Err(refusal) => format!("{name} stays: {refusal}"),
        });
    }
    waits
}
