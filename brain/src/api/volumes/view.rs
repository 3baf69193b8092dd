//! How volumes are shown. Pure over a snapshot.

use berth_common::api::{
    MoveView, ScheduleView, SnapshotState, SnapshotView, SourceView, VolumeState, VolumeView,
};
use berth_common::id::{Name, NodeId};
use berth_common::model::{NodeState, ObservedVolume, VolumeRecord};

use crate::api::views;
use crate::cluster::{Cluster, State};

/// Most containers that are named.
const MAX_CONTAINERS: usize = 1_000;

/// Services that mount a volume, by name.
pub fn services(state: &State, volume: &VolumeRecord) -> Vec<Name> {
    let ids = state.services_with(volume);
    let named = ids.iter().filter_map(|id| state.services.get(id));
    let mut names: Vec<_> = named.map(|service| service.spec.name.clone()).collect();
    names.sort_unstable();
    names
}

/// A volume; `whole`: with its snapshots and the containers that have it.
pub fn view(state: &State, cluster: &Cluster, volume: &VolumeRecord, whole: bool) -> VolumeView {
    let seen = volume.node.and_then(|node| state.volume_seen(node, volume.id));
    let seen = seen.map(|seen| &**seen);
    let (standing, reason) = standing(state, cluster, volume, seen);
    let mut shown = VolumeView {
        id: volume.id,
        name: volume.name.clone(),
        tenant_name: views::tenant_name(state, volume.tenant),
        size: volume.size,
        used: seen.map(|seen| seen.used),
        node_name: volume.node.and_then(|node| views::node_name(state, node)),
        state: standing,
        reason,
        moving: moving(state, volume),
        services: services(state, volume),
        containers: Vec::new(),
        snapshot_count: volume.snapshots.len(),
        snapshots: Vec::new(),
        schedule: schedule(volume),
        hooks: volume.hooks.clone(),
        source: source(state, volume),
        made_for: volume.made_for.clone(),
        epoch: volume.epoch,
        created_at: volume.created_at,
        revision: volume.revision,
    };
    if whole {
        let having = state.containers_with(volume).map(|c| views::container_name(c));
        shown.containers = having.take(MAX_CONTAINERS).collect();
        shown.containers.sort_unstable();
        // A container and its successor have one name.
        shown.containers.dedup();
        shown.snapshots = snapshots(volume, seen);
    }
    shown
}

fn source(state: &State, volume: &VolumeRecord) -> Option<SourceView> {
    let source = volume.source?;
    let from = state.volumes.get(&source.volume);
    let snapshot = from.and_then(|from| from.snapshots.iter().find(|one| one.id == source.snapshot));
    Some(SourceView {
        volume: from.map(|from| from.name.clone()),
        snapshot: snapshot.map(|one| one.name.clone()),
    })
}

fn schedule(volume: &VolumeRecord) -> Option<ScheduleView> {
    let schedule = volume.schedule?;
    Some(ScheduleView {
        every_ms: schedule.every_ms,
        keep: schedule.keep,
        next: volume.next_snapshot(),
        problem: volume.scheduled.as_ref().and_then(|state| state.problem.clone()),
    })
}

fn snapshots(volume: &VolumeRecord, seen: Option<&ObservedVolume>) -> Vec<SnapshotView> {
    let shown = volume.snapshots.iter().map(|one| {
        let there = seen.and_then(|seen| seen.snapshots.iter().find(|there| there.id == one.id));
        SnapshotView {
            id: one.id,
            name: one.name.clone(),
            state: match (one.removing, there) {
                (true, _) => SnapshotState::Removing,
                (false, Some(_)) => SnapshotState::Ready,
                (false, None) => SnapshotState::Making,
            },
            referenced: there.map(|there| there.referenced),
            exclusive: there.map(|there| there.exclusive),
            scheduled: one.scheduled,
            created_at: one.created_at,
        }
    });
    shown.collect()
}

fn moving(state: &State, volume: &VolumeRecord) -> Option<MoveView> {
    let moves = volume.moves.as_ref()?;
    let sending = volume
        .node
        .and_then(|node| state.sending(node, volume.id, moves.last));
    Some(MoveView {
        to: state.name_of_node(moves.to),
        why: moves.why.clone(),
        stage: moves.stage,
        since: moves.since,
        round: sending.map(|sending| sending.round),
        sent: sending.map(|sending| sending.sent),
        expected: sending.map(|sending| sending.expected),
    })
}

/// Why a node is out of reach.
fn silence(state: &State, cluster: &Cluster, id: NodeId) -> Option<&'static str> {
    let Some(node) = state.nodes.get(&id) else {
        return Some("was removed");
    };
    match views::node_state(state, node, cluster.silent_ms(id)) {
        NodeState::Ready => None,
        NodeState::Lost => Some("is lost"),
        NodeState::Silent => Some("does not answer"),
    }
}

fn standing(
    state: &State,
    cluster: &Cluster,
    volume: &VolumeRecord,
    seen: Option<&ObservedVolume>,
) -> (VolumeState, Option<String>) {
    let silence = |node: NodeId| silence(state, cluster, node).map(|how| (state.name_of_node(node), how));
    let problem = seen.and_then(|seen| seen.problem.clone());
    let name = &volume.name;
    if volume.removing {
        let left = volume.moved.and_then(|moved| moved.left);
        let waits = volume.node.into_iter().chain(left).find_map(silence);
        let reason = waits.map(|(node, how)| {
            format!(
                "node {node} {how}, and is to delete what it has; if that host is gone for good: berth volume rm {name} --force, then berth node rm {node} --force"
            )
        });
        return (VolumeState::Removing, reason.or(problem));
    }
    let Some(node) = volume.node else {
        return (VolumeState::Unbound, None);
    };
    if let Some((node, how)) = silence(node) {
        let reason = format!(
            "its data is on node {node}, which {how}: it is there again once that node is; if that host is gone for good, berth volume rm {name} --force gives it up"
        );
        return (VolumeState::Unreachable, Some(reason));
    }
    if volume.rollback.is_some() {
        let mounted = seen.is_some_and(|seen| seen.mounted);
        let waits = mounted.then(|| "the containers that have it stop first".to_owned());
        return (VolumeState::RollingBack, problem.or(waits));
    }
    if let Some(moves) = &volume.moves {
        let there = state.volume_seen(moves.to, volume.id);
        let there = there.and_then(|there| there.problem.clone());
        let away = silence(moves.to).map(|(node, how)| format!("node {node} {how}"));
        return (VolumeState::Moving, problem.or(away).or(there));
    }
    match seen.is_some_and(|seen| seen.writable) {
        true => (VolumeState::Ready, problem),
        false => (VolumeState::Creating, problem),
    }
}
