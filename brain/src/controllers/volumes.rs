//! Volumes: made with the containers that mount them, bound to the node where the first of these is placed, moved from node to node, and
//! taken away once nothing is left of them.
//!
//! Owns a volume's node and epoch (R2). A move is three stages, each begun only on its nodes' own words: snapshots are sent while
//! containers write; these stop; the last increment is sent, which the sender can only make by giving up its writable state. Only when the
//! receiver has that last snapshot the volume is its own, under a new epoch. Until then the move can be given up, and the volume stays where
//! it was.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Epoch, Name, NodeId, SnapshotId, TenantId, VolumeId};
use berth_common::model::{
    ContainerRecord, DEFAULT_VOLUME, MoveStage, RollBack, ServiceRecord, VolumeMount, VolumeMove,
    VolumeMoved, VolumeRecord,
};
use berth_common::units::Bytes;

use super::context::Context;
use super::wishes;
use crate::cluster::{Change, State};
use crate::scheduler::volumes::Volumes;
use crate::scheduler::{Search, place};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// Volumes as one plan leaves them.
#[derive(Debug, Default)]
pub(super) struct Planned {
    changed: BTreeMap<VolumeId, VolumeRecord>,
    deleted: BTreeSet<VolumeId>,
    made: BTreeMap<(TenantId, Name), VolumeId>,
    given: BTreeMap<NodeId, Bytes>,
}

impl Planned {
    /// The volume of a replica's mount.
    fn find<'a>(
        &'a self,
        state: &'a State,
        tenant: TenantId,
        mount: &VolumeMount,
        replica: u32,
    ) -> Option<&'a VolumeRecord> {
        let name = mount.name_for(replica).ok()?;
        if let Some(id) = self.made.get(&(tenant, name.clone())) {
            return self.changed.get(id);
        }
        let volume = state.volume(tenant, &name)?;
        Some(self.changed.get(&volume.id).unwrap_or(volume))
    }

    /// What a replica asks of nodes for its volumes' sake, with what this plan has done.
    pub fn wish(&self, state: &State, tenant: TenantId, mounts: &[VolumeMount], replica: u32) -> Volumes {
        let mut wish = Volumes {
            any: !mounts.is_empty(),
            given: self.given.clone(),
            ..Volumes::default()
        };
        for mount in mounts {
            match self.find(state, tenant, mount, replica) {
                Some(volume) => match volume.node {
                    Some(node) => {
                        let named = (node, volume.name.to_string(), state.name_of_node(node));
                        wish.at.get_or_insert(named);
                    }
                    None => wish.needs = wish.needs.saturating_add(volume.size),
                },
                None => wish.needs = wish.needs.saturating_add(mount.size.unwrap_or(DEFAULT_VOLUME)),
            }
        }
        wish
    }

    /// The changes.
    pub fn changes(self) -> impl Iterator<Item = Change> {
        let gone = self.deleted.into_iter().map(Change::DeleteVolume);
        gone.chain(self.changed.into_values().map(Change::PutVolume))
    }
}

/// Why a replica's volumes keep it from having a place now.
pub(super) fn hindrance(cx: &Context<'_, '_>, service: &ServiceRecord, replica: u32) -> Option<String> {
    let mut found: Option<&VolumeRecord> = None;
    for mount in &service.spec.volumes {
        let Some(volume) = cx.volumes.find(cx.state, service.tenant, mount, replica) else {
            continue;
        };
        if volume.removing {
            return Some(format!(
                "its volume {} is being removed; wait until that is done, or name another",
                volume.name
            ));
        }
        if let Some(moves) = volume
            .moves
            .as_ref()
            .filter(|moves| moves.stage != MoveStage::Copying)
        {
            return Some(format!(
                "its volume {} moves to {}",
                volume.name,
                cx.node_name(moves.to)
            ));
        }
        if let (Some(first), Some(node)) = (found, volume.node)
            && let Some(other) = first.node.filter(|other| *other != node)
        {
            return Some(format!(
                "its volumes {} on {} and {} on {} are apart: `berth volume move {} {}`",
                first.name,
                cx.node_name(other),
                volume.name,
                cx.node_name(node),
                volume.name,
                cx.node_name(other),
            ));
        }
        if volume.node.is_some() {
            found = Some(volume);
        }
    }
    None
}

/// Makes what a replica mounts and is not there.
pub(super) fn ensure(cx: &mut Context<'_, '_>, service: &ServiceRecord, replica: u32) {
    for mount in &service.spec.volumes {
        let Ok(name) = mount.name_for(replica) else {
            continue;
        };
        if cx
            .volumes
            .find(cx.state, service.tenant, mount, replica)
            .is_some()
        {
            continue;
        }
        let volume = VolumeRecord {
            id: VolumeId::from_bytes(cx.fresh_id().bytes()),
            tenant: service.tenant,
            name: name.clone(),
            size: mount.size.unwrap_or(DEFAULT_VOLUME),
            node: None,
            epoch: Epoch(0),
            source: None,
            made: false,
            snapshots: Vec::new(),
            rollback: None,
            moves: None,
            moved: None,
            removing: false,
            made_for: Some(service.spec.name.clone()),
            created_at: cx.input.now.wall,
            revision: Default::default(),
        };
        let text = format!("{} for service {}", volume.size, service.spec.name);
        cx.event(
            "volume-created",
            Some(volume.tenant),
            format!("volume {name}"),
            text,
        );
        cx.volumes.made.insert((service.tenant, name), volume.id);
        cx.volumes.changed.insert(volume.id, volume);
    }
}

/// Binds what a replica mounts and is nowhere yet to the node where it was placed.
pub(super) fn bind(cx: &mut Context<'_, '_>, service: &ServiceRecord, replica: u32, node: NodeId) {
    for mount in &service.spec.volumes {
        let found = cx.volumes.find(cx.state, service.tenant, mount, replica);
        let Some(mut volume) = found.filter(|volume| volume.node.is_none()).cloned() else {
            continue;
        };
        volume.node = Some(node);
        volume.epoch = Epoch(volume.epoch.0 + 1);
        let given = cx.volumes.given.entry(node).or_insert(Bytes::ZERO);
        *given = given.saturating_add(volume.size);
        cx.volumes.changed.insert(volume.id, volume);
    }
}

/// Whether a container must give way, since one of its volumes is about to move, or has moved, from its node: the volume and where to.
pub(super) fn drawn_away(cx: &Context<'_, '_>, container: &ContainerRecord) -> Option<(Name, NodeId)> {
    let node = container.node?;
    let mut volumes = container.spec.volumes.iter().filter_map(|mount| {
        cx.volumes
            .find(cx.state, container.tenant, mount, container.replica)
    });
    volumes.find_map(|volume| {
        let moves = volume
            .moves
            .as_ref()
            .filter(|moves| moves.stage != MoveStage::Copying);
        let to = moves.map(|moves| moves.to).or(volume.node)?;
        (to != node).then(|| (volume.name.clone(), to))
    })
}

/// Volumes that look for a place to move to.
pub(super) fn waiting(state: &State) -> impl Iterator<Item = VolumeId> {
    let draining = state.nodes.values().filter(|node| node.draining);
    let on = draining.filter_map(|node| state.volumes_on.get(&node.id));
    on.flatten().copied()
}

/// Looks at these volumes.
pub(super) fn plan(cx: &mut Context<'_, '_>, ids: &BTreeSet<VolumeId>) {
    for id in ids {
        let found = cx
            .volumes
            .changed
            .get(id)
            .or_else(|| cx.state.volumes.get(id).map(|v| &**v));
        let Some(before) = found.cloned() else { continue };
        let mut volume = before.clone();
        if !tend(cx, &mut volume) {
            cx.volumes.changed.remove(id);
            cx.volumes.deleted.insert(*id);
        } else if volume != before {
            cx.volumes.changed.insert(*id, volume);
        }
    }
}

fn event(cx: &mut Context<'_, '_>, volume: &VolumeRecord, kind: &'static str, text: String) {
    let subject = format!("volume {}", volume.name);
    cx.event(kind, Some(volume.tenant), subject, text);
}

/// One step; false once nothing is left of it.
fn tend(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord) -> bool {
    let gone = |node: NodeId| cx.state.volumes_gone.contains(&(node, volume.id));
    if let Some(left) = volume.moved.and_then(|moved| moved.left)
        && (gone(left) || cx.node(left).is_none())
        && let Some(moved) = &mut volume.moved
    {
        moved.left = None;
    }
    if volume.removing {
        if volume.moves.is_some() {
            give_up(cx, volume, "it is being removed");
        }
        let left = volume.moved.is_some_and(|moved| moved.left.is_some());
        let here = volume.node.is_some_and(|node| {
            !cx.state.volumes_gone.contains(&(node, volume.id)) && cx.node(node).is_some()
        });
        if here || left {
            return true;
        }
        event(cx, volume, "volume-removed", "nothing is left of it".to_owned());
        return false;
    }
    let Some(node) = volume.node else { return true };
    if let Some(seen) = cx.state.volume_seen(node, volume.id).filter(|_| cx.current(node)) {
        volume
            .snapshots
            .retain(|one| !one.removing || !seen.snapshots_gone.contains(&one.id));
        volume.made |= seen.writable;
        // Done, and not to be done again wherever what it kept is no more.
        let kept = |rollback: &RollBack| seen.snapshots.iter().any(|one| one.id == rollback.keep);
        volume.rollback = volume.rollback.filter(|rollback| !kept(rollback));
    }
    if volume.moves.is_none() && cx.node(node).is_some_and(|record| record.draining) {
        depart(cx, volume, node);
    }
    if volume.moves.is_some() {
        travel(cx, volume, node);
    }
    true
}

/// All volumes that must go together with one, since containers mount both, itself included.
pub fn companions(state: &State, volume: &VolumeRecord) -> BTreeSet<VolumeId> {
    let mut all = BTreeSet::from([volume.id]);
    let mut next = vec![volume.id];
    while let Some(record) = next.pop().and_then(|id| state.volumes.get(&id)) {
        for container in state.containers_with(record) {
            for other in state.volumes_of(container).flatten() {
                if other.node == volume.node && all.insert(other.id) {
                    next.push(other.id);
                }
            }
        }
    }
    all
}

/// Whether something is under way on its node that a move must not disturb.
fn stays_for_now(state: &State, volume: &VolumeRecord) -> bool {
    let begins_from_it = |other: &std::sync::Arc<VolumeRecord>| {
        !other.made && other.source.is_some_and(|source| source.volume == volume.id)
    };
    volume.removing
        || volume.rollback.is_some()
        || volume.moved.is_some_and(|moved| moved.left.is_some())
        || state.volumes.values().any(begins_from_it)
}

/// Its node is being drained: it begins to move with all that must go with it, if there is an elsewhere.
fn depart(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, from: NodeId) {
    let together = companions(cx.state, volume);
    let latest = |cx: &Context<'_, '_>, id: VolumeId| {
        let known = cx.state.volumes.get(&id).map(|volume| &**volume);
        cx.volumes.changed.get(&id).or(known).cloned()
    };
    let others: Vec<VolumeRecord> = together
        .iter()
        .filter(|id| **id != volume.id)
        .filter_map(|id| latest(cx, *id))
        .collect();
    if others
        .iter()
        .chain([&*volume])
        .any(|one| stays_for_now(cx.state, one))
    {
        return;
    }
    let first = others
        .iter()
        .find_map(|other| other.moves.as_ref().map(|moves| moves.to));
    let to = match first {
        Some(to) => to,
        // Why not is told by `berth node inspect`; it is tried again with the next change that may help.
        None => match destination(cx, volume, &together, from) {
            Ok(to) => to,
            Err(_) => return,
        },
    };
    let why = format!("node {} is being drained", cx.node_name(from));
    begin(cx, volume, to, why.clone());
    for mut other in others.into_iter().filter(|other| other.moves.is_none()) {
        begin(cx, &mut other, to, why.clone());
        cx.volumes.changed.insert(other.id, other);
    }
}

/// Begins a move.
fn begin(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, to: NodeId, why: String) {
    let text = format!("begins to move to {}: {why}", cx.node_name(to));
    event(cx, volume, "volume-moves", text);
    volume.moves = Some(VolumeMove {
        to,
        why,
        last: SnapshotId::from_bytes(cx.fresh_id().bytes()),
        stage: MoveStage::Copying,
        since: cx.input.now.wall,
    });
}

/// Where volumes that go together could go from a node: where the containers that mount them would be placed.
///
/// # Errors
/// Why nowhere.
fn destination(
    cx: &mut Context<'_, '_>,
    volume: &VolumeRecord,
    together: &BTreeSet<VolumeId>,
    from: NodeId,
) -> Result<NodeId, String> {
    let state = cx.state;
    let sizes = together
        .iter()
        .filter_map(|id| state.volumes.get(id))
        .map(|v| v.size);
    let needs = sizes.fold(Bytes::ZERO, Bytes::saturating_add);
    let wish = Volumes {
        at: None,
        any: true,
        needs,
        given: cx.volumes.given.clone(),
    };
    let container = state
        .containers_with(volume)
        .find(|c| c.node == Some(from) && !c.removing);
    let chosen = match container.and_then(|c| Some((c, state.services.get(&c.service)?))) {
        Some((container, service)) => {
            let outlook = cx.input.outlook;
            let mut request = wishes::anew(state, service, container, outlook);
            request.constraints.volumes = wish;
            let view = cx.view();
            Search::new(view, request).place(view)
        }
        None => {
            let request = wishes::of_volume(volume.tenant, wish, &NO_LABELS);
            let view = cx.view();
            place(view, request)
        }
    };
    let node = chosen.map_err(|refusal| refusal.to_string())?;
    let given = cx.volumes.given.entry(node).or_insert(Bytes::ZERO);
    *given = given.saturating_add(needs);
    Ok(node)
}

/// The volume stays where it is, and what arrived elsewhere goes.
fn give_up(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, why: &str) {
    let Some(moves) = volume.moves.take() else { return };
    let text = format!("does not move to {}: {why}", cx.node_name(moves.to));
    event(cx, volume, "volume-stays", text);
    volume.moves = Some(moves);
    cancel(volume);
}

/// A move is over before it was done: the volume stays where it is.
pub fn cancel(volume: &mut VolumeRecord) {
    let Some(moves) = volume.moves.take() else { return };
    // What was kept of it may have been given up for the last snapshot already: it goes on from that, as somebody new.
    volume.epoch = Epoch(volume.epoch.0 + 1);
    volume.moved = Some(VolumeMoved {
        left: Some(moves.to),
        last: moves.last,
        resumes: moves.stage == MoveStage::Finishing,
    });
}

/// Whether others of its services are being replaced, whose turn it is: those that share no volume go one after the other.
fn in_turn(cx: &Context<'_, '_>, volume: &VolumeRecord, together: &BTreeSet<VolumeId>) -> bool {
    let state = cx.state;
    let latest = |id: VolumeId| {
        let known = state.volumes.get(&id).map(|volume| &**volume);
        cx.volumes.changed.get(&id).or(known)
    };
    let on_its_way = |other: &VolumeRecord| {
        let moves = other.moves.as_ref();
        !together.contains(&other.id) && moves.is_some_and(|moves| moves.stage != MoveStage::Copying)
    };
    let services = state.services_with(volume);
    let mut containers = services.iter().flat_map(|service| state.containers_of(*service));
    containers.any(|c| {
        let mut volumes = state
            .volumes_of(c)
            .flatten()
            .filter_map(|volume| latest(volume.id));
        let shares = |id: &VolumeId| together.contains(id);
        let own = state.volumes_of(c).flatten().any(|volume| shares(&volume.id));
        !c.removing && (!own && c.replaces.is_some() || volumes.any(on_its_way))
    })
}

/// Brings a move forward.
fn travel(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, node: NodeId) {
    let Some(moves) = volume.moves.clone() else { return };
    if cx.node(moves.to).is_none_or(|to| to.facts.volumes.is_none()) || cx.lost(moves.to) {
        return give_up(cx, volume, "that node is lost");
    }
    let together = companions(cx.state, volume);
    let latest = |id: &VolumeId| {
        let known = cx.state.volumes.get(id).map(|volume| &**volume);
        cx.volumes.changed.get(id).or(known)
    };
    let others: Vec<VolumeRecord> = together
        .iter()
        .filter(|id| **id != volume.id)
        .filter_map(|id| latest(id).cloned())
        .collect();
    match moves.stage {
        MoveStage::Copying => {
            let ready = |id: VolumeId| {
                let seen = cx.state.volume_seen(node, id).filter(|_| cx.current(node));
                seen.is_some_and(|seen| seen.sending.as_ref().is_some_and(|sending| sending.ready))
            };
            let goes_too =
                |other: &&VolumeRecord| other.moves.as_ref().is_some_and(|theirs| theirs.to == moves.to);
            if let Some(stays) = others.iter().find(|other| !goes_too(other)) {
                let why = format!("it is mounted together with {}, which does not", stays.name);
                return give_up(cx, volume, &why);
            }
            let with = |other: &VolumeRecord| {
                let moves = other.moves.as_ref();
                moves.is_some_and(|theirs| theirs.stage != MoveStage::Copying) || ready(other.id)
            };
            let busy = in_turn(cx, volume, &together);
            if ready(volume.id) && others.iter().all(with) && !busy {
                let text = "all but the last increment is there; its containers stop".to_owned();
                event(cx, volume, "volume-moves", text);
                volume.moves = Some(VolumeMove {
                    stage: MoveStage::Stopping,
                    ..moves
                });
            }
        }
        MoveStage::Stopping => {
            let state = cx.state;
            let stays =
                |c: &std::sync::Arc<ContainerRecord>| c.node == Some(node) && !cx.deleted.contains(&c.id);
            let left = state.containers_with(volume).any(stays);
            if !left {
                volume.moves = Some(VolumeMove {
                    stage: MoveStage::Finishing,
                    ..moves
                });
            }
        }
        MoveStage::Finishing => {
            let seen = cx
                .state
                .volume_seen(moves.to, volume.id)
                .filter(|_| cx.current(moves.to));
            // The sender makes the last snapshot by giving up its writable state: who has it may write.
            if seen.is_some_and(|seen| seen.snapshots.iter().any(|one| one.id == moves.last)) {
                let text = format!(
                    "moved from {} to {}: {}",
                    cx.node_name(node),
                    cx.node_name(moves.to),
                    moves.why
                );
                event(cx, volume, "volume-moved", text);
                volume.node = Some(moves.to);
                volume.epoch = Epoch(volume.epoch.0 + 1);
                volume.moves = None;
                volume.moved = Some(VolumeMoved {
                    left: Some(node),
                    last: moves.last,
                    resumes: true,
                });
            }
        }
    }
}
