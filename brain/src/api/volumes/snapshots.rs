//! Snapshots of volumes, and going back to one.

use std::sync::Arc;

use axum::extract::{Path, State as Extract};
use berth_common::api::{CreateSnapshot, RollBackVolume, VolumeView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, NodeId, SnapshotId, clip};
use berth_common::model::{
    ContainerRecord, MAX_SNAPSHOTS, MoveStage, RollBack, SnapshotRecord, UnixMillis, VolumeRecord,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{bound, change, event, find, refuse, shown, staying};
use crate::api::auth::Scope;
use crate::api::problem::Json;
use crate::api::{Answer, ApiState, tenants};
use crate::cluster::snapshots::free_name;
use crate::cluster::{Change, State};

/// Most characters of a name.
const NAME_LEN: usize = 63;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(create))
        .routes(routes!(remove))
        .routes(routes!(roll_back))
}

/// That a volume has no such snapshot.
pub fn missing(volume: &VolumeRecord, name: &impl ToString) -> Problem {
    let name = clip(&name.to_string(), NAME_LEN);
    Problem::not_found(format!("volume {} has no snapshot {name:?}", volume.name))
        .cure(format!("berth volume inspect {} lists those it has", volume.name))
}

/// Whether a volume can have one more.
fn room(volume: &VolumeRecord) -> Result<(), Problem> {
    if volume.snapshots.len() < MAX_SNAPSHOTS {
        return Ok(());
    }
    Err(refuse(
        format!("volume {} has {MAX_SNAPSHOTS} snapshots already", volume.name),
        format!(
            "remove those no longer needed: berth volume snapshot-rm {} SNAPSHOT",
            volume.name
        ),
    ))
}

/// `snap-20250131-120000`.
fn dated(now: UnixMillis) -> String {
    let seconds = i64::try_from(now.0 / 1000).unwrap_or_default();
    let at = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    format!(
        "snap-{:04}{:02}{:02}-{:02}{:02}{:02}",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

/// Make a snapshot of a volume
#[utoipa::path(post, path = "/tenants/{tenant}/volumes/{volume}/snapshots", tag = "volumes", operation_id = "createSnapshot",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = CreateSnapshot,
    responses((status = 200, description = "The volume; its last snapshot is the new one", body = VolumeView)))]
async fn create(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(body): Json<CreateSnapshot>,
) -> Answer<VolumeView> {
    let now = api.cluster.now().wall;
    let id = SnapshotId::random();
    change(scope, api, volume, move |state, tenant, record| {
        bound(record, "snapshotted")?;
        if let Some(name) = body.name.as_ref().filter(|name| record.snapshot(name).is_some()) {
            let detail = format!("volume {} has a snapshot {name} already", record.name);
            return Err(Problem::new(ErrorKind::AlreadyExists, detail)
                .field("/name")
                .cure("choose another name, or none"));
        }
        room(record)?;
        if let Some(moves) = record
            .moves
            .as_ref()
            .filter(|moves| moves.stage != MoveStage::Copying)
        {
            let to = state.name_of_node(moves.to);
            let detail = format!("volume {} is about to arrive on node {to}", record.name);
            return Err(refuse(detail, "try again once it is there"));
        }
        let name = body.name.unwrap_or_else(|| free_name(record, &dated(now)));
        let told = event(
            tenant,
            "volume-snapshot",
            &record.name,
            format!("snapshot {name}"),
        );
        record.snapshots.push(SnapshotRecord {
            id,
            name,
            created_at: now,
            scheduled: false,
            removing: false,
        });
        Ok(vec![told])
    })
    .await
}

/// Remove a snapshot of a volume
#[utoipa::path(delete, path = "/tenants/{tenant}/volumes/{volume}/snapshots/{snapshot}", tag = "volumes", operation_id = "removeSnapshot",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name"),
        ("snapshot" = String, Path, description = "The snapshot's name")),
    responses((status = 200, description = "The volume; the snapshot goes once its node has deleted it", body = VolumeView)))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume, snapshot)): Path<(String, String, String)>,
) -> Answer<VolumeView> {
    change(scope, api, volume, move |state, tenant, record| {
        let parsed = snapshot.parse::<Name>().ok();
        let found = parsed.and_then(|name| record.snapshot(&name));
        let id = found.ok_or_else(|| missing(record, &snapshot))?.id;
        needed(state, record, id, &snapshot)?;
        for one in record.snapshots.iter_mut().filter(|one| one.id == id) {
            one.removing = true;
        }
        let text = format!("snapshot {snapshot} is deleted");
        Ok(vec![event(tenant, "volume-snapshot", &record.name, text)])
    })
    .await
}

/// Whether nothing needs a snapshot.
fn needed(state: &State, volume: &VolumeRecord, id: SnapshotId, name: &str) -> Result<(), Problem> {
    let used = |rollback: &RollBack| rollback.snapshot == id || rollback.keep == id;
    if volume.rollback.as_ref().is_some_and(used) {
        let detail = format!("volume {} is being rolled back with snapshot {name}", volume.name);
        return Err(refuse(detail, "try again once that is done"));
    }
    if let Some(reader) = name.parse().ok().and_then(|name| state.reader_of(volume, &name)) {
        return Err(refuse(
            format!("{reader} reads snapshot {name} of volume {}", volume.name),
            "have it mount something else or remove it first: berth service update SERVICE -v …, berth service rm SERVICE",
        ));
    }
    match state.clone_in_the_making(volume, Some(id)) {
        None => Ok(()),
        Some(clone) => Err(refuse(
            format!(
                "volume {} is being made as a clone of snapshot {name}",
                clone.name
            ),
            format!(
                "try again once that is ready: berth volume inspect {}",
                clone.name
            ),
        )),
    }
}

/// Have a volume become what a snapshot of it is
#[utoipa::path(post, path = "/tenants/{tenant}/volumes/{volume}/rollback", tag = "volumes", operation_id = "rollBackVolume",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = RollBackVolume,
    responses((status = 200, description = "The volume; its last snapshot keeps what it was, and its containers are restarted", body = VolumeView)))]
async fn roll_back(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(RollBackVolume { snapshot }): Json<RollBackVolume>,
) -> Answer<VolumeView> {
    let keep = SnapshotId::random();
    let (id, state) = api
        .cluster
        .write(move |state, now| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            let old = find(state, tenant, &volume)?;
            staying(&old)?;
            let node = bound(&old, "rolled back")?;
            let target = old.snapshot(&snapshot).ok_or_else(|| missing(&old, &snapshot))?;
            quiet(state, &old)?;
            made(state, &old, node, target)?;
            room(&old)?;
            let mut new = (*old).clone();
            new.rollback = Some(RollBack {
                snapshot: target.id,
                keep,
            });
            let kept = free_name(&old, &format!("before-{snapshot}"));
            let text = format!("to snapshot {snapshot}; what it was is kept as {kept}");
            let told = event(tenant, "volume-rollback", &old.name, text);
            new.snapshots.push(SnapshotRecord {
                id: keep,
                name: kept,
                created_at: now.wall,
                scheduled: false,
                removing: false,
            });
            let mut changes = vec![Change::PutVolume(new)];
            // In the same transaction, so that its agent stops each, rolls back, and starts it.
            changes.extend(state.containers_with(&old).filter_map(restarted));
            Ok((changes, vec![told], old.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}

fn restarted(container: &Arc<ContainerRecord>) -> Option<Change> {
    (container.node.is_some() && !container.removing).then(|| {
        Change::PutContainer(ContainerRecord {
            restarts_asked: container.restarts_asked.saturating_add(1),
            ..(**container).clone()
        })
    })
}

/// Whether nothing under way stands against a roll back.
fn quiet(state: &State, volume: &VolumeRecord) -> Result<(), Problem> {
    if volume.rollback.is_some() {
        let detail = format!("volume {} is being rolled back already", volume.name);
        return Err(refuse(
            detail,
            format!("wait until that is done: berth volume inspect {}", volume.name),
        ));
    }
    let Some(moves) = &volume.moves else {
        return Ok(());
    };
    let to = state.name_of_node(moves.to);
    Err(refuse(
        format!("volume {} moves to node {to}", volume.name),
        format!(
            "roll it back once it is there, or first: berth volume cancel-move {}",
            volume.name
        ),
    ))
}

/// Whether a snapshot is there already.
fn made(
    state: &State,
    volume: &VolumeRecord,
    node: NodeId,
    snapshot: &SnapshotRecord,
) -> Result<(), Problem> {
    let seen = state.volume_seen(node, volume.id);
    if seen.is_some_and(|seen| seen.snapshots.iter().any(|one| one.id == snapshot.id)) {
        return Ok(());
    }
    Err(refuse(
        format!(
            "node {} has not said yet that it has snapshot {} of volume {}",
            state.name_of_node(node),
            snapshot.name,
            volume.name
        ),
        format!(
            "try again once berth volume inspect {} shows it as ready",
            volume.name
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dated() {
        assert_eq!(dated(UnixMillis(1_738_324_800_999)), "snap-20250131-120000");
        assert_eq!(dated(UnixMillis(0)), "snap-19700101-000000");
    }
}
