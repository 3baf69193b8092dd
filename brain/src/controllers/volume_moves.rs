//! How volumes move from node to node.
//!
//! A move is three stages, each begun only on its nodes' own words: snapshots are sent while containers write; these stop; the last
//! increment is sent, which the sender can only make by giving up its writable state. Only when the receiver has that last snapshot the
//! volume is its own, under a new epoch (R2). Until then the move can be given up, and the volume stays where it was.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{Epoch, Name, NodeId, SnapshotId, VolumeId};
use berth_common::model::{
    ContainerRecord, MoveStage, NodeRecord, Reservation, ServiceRecord, VolumeMove, VolumeMoved, VolumeRecord,
};
use berth_common::units::Bytes;

use super::context::Context;
use super::volumes::event;
use super::wishes;
use crate::cluster::State;
use crate::outlook::Watched;
use crate::scheduler::volumes::Volumes;
use crate::scheduler::{Search, View, place};

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

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

/// Whether services could follow their volumes to a node, by what placement asks for whatever room there is.
pub struct Follow<'a> {
    view: View<'a>,
    searches: Vec<(&'a Name, Search<'a>)>,
}

impl<'a> Follow<'a> {
    /// Of these services.
    pub fn of(state: &'a State, services: impl Iterator<Item = &'a ServiceRecord>) -> Self {
        let view = View::new(state, &BTreeMap::new());
        // What is used where does not matter here.
        let nothing = Watched::default();
        let search = |service: &'a ServiceRecord| {
            let spec = service.spec.container_spec().ok()?;
            let mut request = wishes::request(state, service, &spec, 1, &BTreeSet::new(), &nothing.at(0));
            request.constraints.volumes = Volumes::default();
            Some((&service.spec.name, Search::new(&view, request)))
        };
        let searches = services.filter_map(search).collect();
        Self { view, searches }
    }

    /// Which could not, and why not, in words.
    pub fn hindrance(&self, node: &NodeRecord) -> Option<String> {
        self.searches.iter().find_map(|(service, search)| {
            let why = search.standing(&self.view, node.id)?;
            let why = why.sentence(Reservation::default(), node.name.as_str());
            Some(format!(
                "service {service} could not follow: node {} {why}",
                node.name
            ))
        })
    }
}

/// Whether something is under way on its node that a move must not disturb.
fn stays_for_now(state: &State, volume: &VolumeRecord) -> bool {
    volume.removing
        || volume.rollback.is_some()
        || volume.moved.is_some_and(|moved| moved.left.is_some())
        || state.clone_in_the_making(volume, None).is_some()
}

/// Those that go with a volume, as this plan leaves them so far, without itself.
fn others(cx: &Context<'_, '_>, volume: &VolumeRecord, together: &BTreeSet<VolumeId>) -> Vec<VolumeRecord> {
    let others = together.iter().filter(|id| **id != volume.id);
    others
        .filter_map(|id| cx.volumes.latest(cx.state, *id).cloned())
        .collect()
}

/// Its node is being drained: it begins to move with all that must go with it, if there is an elsewhere.
pub(super) fn depart(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, from: NodeId) {
    let together = companions(cx.state, volume);
    let others = others(cx, volume, &together);
    if stays_for_now(cx.state, volume) || others.iter().any(|one| stays_for_now(cx.state, one)) {
        return;
    }
    let first = others.iter().find_map(|other| other.moves.as_ref());
    let to = match first.map(|moves| moves.to) {
        Some(to) => to,
        None => {
            let wish = leaving(cx.state, &together, cx.volumes.given.clone());
            let needs = wish.needs;
            // Why not is told by `berth node inspect`; it is tried again with the next change that may help.
            let Some(to) = destination(cx, volume, wish, from) else {
                return;
            };
            cx.volumes.give(to, needs);
            to
        }
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

/// What volumes ask of the node that is to take them.
pub(super) fn leaving(
    state: &State,
    together: &BTreeSet<VolumeId>,
    given: BTreeMap<NodeId, Bytes>,
) -> Volumes {
    let sizes = together.iter().filter_map(|id| Some(state.volumes.get(id)?.size));
    Volumes {
        at: None,
        needs: sizes.fold(Bytes::ZERO, Bytes::saturating_add),
        arrive: true,
        given,
    }
}

/// Where volumes that ask this could go from a node: where the container that mounts them would be placed.
fn destination(
    cx: &mut Context<'_, '_>,
    volume: &VolumeRecord,
    wish: Volumes,
    from: NodeId,
) -> Option<NodeId> {
    let state = cx.state;
    let mut containers = state.containers_with(volume);
    let container = containers.find(|c| c.node == Some(from) && !c.removing);
    let request = match container.and_then(|c| Some((c, state.services.get(&c.service)?))) {
        Some((container, service)) => {
            let mut request = wishes::anew(state, service, container, cx.input.outlook);
            request.constraints.volumes = wish;
            request
        }
        None => wishes::of_volume(volume.tenant, wish, &NO_LABELS),
    };
    place(cx.view(), request).ok()
}

/// The volume stays where it is, and what arrived elsewhere goes.
pub(super) fn give_up(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, why: &str) {
    let Some(to) = volume.moves.as_ref().map(|moves| moves.to) else {
        return;
    };
    let text = format!("does not move to {}: {why}", cx.node_name(to));
    event(cx, volume, "volume-stays", text);
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
    let stopped = |other: &VolumeRecord| {
        let moves = other.moves.as_ref();
        moves.is_some_and(|moves| moves.stage != MoveStage::Copying)
    };
    let services = state.services_with(volume);
    let containers = services.iter().flat_map(|service| state.containers_of(*service));
    containers.filter(|c| !c.removing).any(|c| {
        let volumes: Vec<VolumeId> = state.volumes_of(c).flatten().map(|volume| volume.id).collect();
        let goes_too = volumes.iter().any(|id| together.contains(id));
        let apart = volumes.iter().filter(|id| !together.contains(id));
        let mut apart = apart.filter_map(|id| cx.volumes.latest(state, *id));
        !goes_too && c.replaces.is_some() || apart.any(stopped)
    })
}

/// Brings a move forward.
pub(super) fn travel(cx: &mut Context<'_, '_>, volume: &mut VolumeRecord, node: NodeId) {
    let Some(moves) = volume.moves.clone() else { return };
    if cx.node(moves.to).is_none_or(|to| to.facts.volumes.is_none()) || cx.lost(moves.to) {
        return give_up(cx, volume, "that node is lost");
    }
    let together = companions(cx.state, volume);
    let others = others(cx, volume, &together);
    match moves.stage {
        MoveStage::Copying => {
            let ready = |id: VolumeId, last: SnapshotId| {
                let sending = cx.state.sending(node, id, last).filter(|_| cx.current(node));
                sending.is_some_and(|sending| sending.ready)
            };
            let goes_too =
                |other: &&VolumeRecord| other.moves.as_ref().is_some_and(|theirs| theirs.to == moves.to);
            if let Some(stays) = others.iter().find(|other| !goes_too(other)) {
                let why = format!("it is mounted together with {}, which does not", stays.name);
                return give_up(cx, volume, &why);
            }
            let with = |other: &VolumeRecord| {
                let moves = other.moves.as_ref();
                moves.is_some_and(|theirs| theirs.stage != MoveStage::Copying || ready(other.id, theirs.last))
            };
            let busy = in_turn(cx, volume, &together);
            if ready(volume.id, moves.last) && others.iter().all(with) && !busy {
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
                volume.hand_to(moves.to);
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
