//! Volumes: made with the containers that mount them, bound to the node where the first of these is placed, and taken away once nothing is
//! left of them. Owns a volume's node and epoch (R2); how it gets to another node is in [`super::volume_moves`].

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Name, NodeId, TenantId, VolumeId};
use berth_common::model::{
    ContainerRecord, DEFAULT_VOLUME, MoveStage, RollBack, ServiceRecord, VolumeMount, VolumeRecord,
};
use berth_common::units::Bytes;

use super::context::Context;
use super::snapshots;
pub use super::volume_moves::{Follow, cancel, companions};
use super::volume_moves::{depart, give_up, travel};
use crate::cluster::{Change, State};
use crate::scheduler::volumes::Volumes;

/// Volumes as one plan leaves them.
#[derive(Debug, Default)]
pub(super) struct Planned {
    pub changed: BTreeMap<VolumeId, VolumeRecord>,
    deleted: BTreeSet<VolumeId>,
    made: BTreeMap<(TenantId, Name), VolumeId>,
    pub given: BTreeMap<NodeId, Bytes>,
    /// Snapshots that are not to go, once somebody asked.
    pub needed: OnceCell<snapshots::Needed>,
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
        let find = |mount: &VolumeMount| self.find(state, tenant, mount, replica);
        Volumes::of(state, mounts, find, self.given.clone())
    }

    /// A volume as this plan leaves it so far.
    pub fn latest<'a>(&'a self, state: &'a State, id: VolumeId) -> Option<&'a VolumeRecord> {
        let known = state.volumes.get(&id).map(|volume| &**volume);
        self.changed.get(&id).or(known)
    }

    /// Room on a node is given away.
    pub fn give(&mut self, node: NodeId, size: Bytes) {
        let given = self.given.entry(node).or_insert(Bytes::ZERO);
        *given = given.saturating_add(size);
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
        let volume = cx.volumes.find(cx.state, service.tenant, mount, replica);
        if let Some(snapshot) = &mount.snapshot
            && volume.is_none_or(|volume| volume.snapshot(snapshot).is_none())
        {
            return Some(format!(
                "volume {} has no snapshot {snapshot}, which it reads: `berth volume inspect {0}` lists those it has",
                mount.volume
            ));
        }
        let Some(volume) = volume else { continue };
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
    // What a snapshot is read of is not made for it.
    let own = service
        .spec
        .volumes
        .iter()
        .filter(|mount| mount.snapshot.is_none());
    for mount in own {
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
        let id = VolumeId::from_bytes(cx.fresh_id().bytes());
        let size = mount.size.unwrap_or(DEFAULT_VOLUME);
        let mut volume = VolumeRecord::new(id, service.tenant, name.clone(), size, cx.input.now.wall);
        volume.made_for = Some(service.spec.name.clone());
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
        volume.hand_to(node);
        cx.volumes.give(node, volume.size);
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
        let Some(before) = cx.volumes.latest(cx.state, *id).cloned() else {
            continue;
        };
        let mut volume = before.clone();
        if !tend(cx, &mut volume) {
            cx.volumes.changed.remove(id);
            cx.volumes.deleted.insert(*id);
        } else if volume != before {
            cx.volumes.changed.insert(*id, volume);
        }
    }
}

pub(super) fn event(cx: &mut Context<'_, '_>, volume: &VolumeRecord, kind: &'static str, text: String) {
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
        if seen.writable && !volume.made {
            volume.made = true;
            snapshots::made(volume, cx.input.now.wall);
        }
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
    if let Some(node) = volume.node {
        snapshots::tend(cx, volume, node);
    }
    true
}
