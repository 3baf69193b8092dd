//! A tenant's volumes: shown, and given another size. They are made in [`create`], removed in [`remove`]; snapshots and roll backs are in
//! [`snapshots`], their schedules in [`schedule`], moves in [`moves`].
//!
//! Owns what is said about volumes and what is refused before anything changes. What nodes do about it is the desired set's, and how a
//! move goes on once it was begun is [`crate::controllers::volumes`]'s.

mod create;
mod moves;
mod remove;
mod room;
mod schedule;
mod snapshots;
mod view;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod move_cases;
#[cfg(test)]
mod schedule_cases;
#[cfg(test)]
mod snapshot_cases;

use std::sync::Arc;

use axum::extract::{Path, Query, State as Extract};
use berth_common::api::{Listing, ResizeVolume, VolumeView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, NodeId, TenantId, VolumeId, clip};
use berth_common::model::{TenantRecord, VolumeRecord, check_size};
use berth_common::units::Bytes;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Scope;
use super::page::Page;
use super::problem::Json;
use super::{Answer, ApiState, quota, tenants};
use crate::cluster::{Change, Cluster, State};
use crate::controllers::NewEvent;

pub(super) use remove::none_on;

/// Most names in a refusal.
const MAX_NAMED: usize = 5;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create::create))
        .routes(routes!(show, resize, remove::remove))
        .merge(snapshots::routes())
        .merge(schedule::routes())
        .merge(moves::routes())
}

/// The volume of the tenant that a path names.
fn find(state: &State, tenant: &TenantRecord, name: &str) -> Result<Arc<VolumeRecord>, Problem> {
    let parsed = name.parse::<Name>().ok();
    let found = parsed.and_then(|name| state.volume(tenant.id, &name));
    found.cloned().ok_or_else(|| {
        Problem::not_found(format!(
            "tenant {} has no volume {:?}",
            tenant.name,
            clip(name, 63)
        ))
        .cure("berth volume ls lists them")
    })
}

/// A tenant's volumes, by name.
pub(super) fn of_tenant(state: &State, tenant: TenantId) -> impl Iterator<Item = &Arc<VolumeRecord>> {
    let first: Name = "a".parse().expect("the least of all names");
    let own = state.volume_names.range((tenant, first)..);
    own.take_while(move |((of, _), _)| *of == tenant)
        .filter_map(|(_, id)| state.volumes.get(id))
}

fn refuse(detail: impl Into<String>, cure: impl Into<String>) -> Problem {
    Problem::new(ErrorKind::Precondition, detail).cure(cure)
}

/// Some names as they stand in a sentence.
pub(super) fn named(all: &[impl ToString]) -> String {
    let mut text: Vec<String> = all.iter().take(MAX_NAMED).map(ToString::to_string).collect();
    if all.len() > MAX_NAMED {
        text.push(format!("{} more", all.len() - MAX_NAMED));
    }
    text.join(", ")
}

fn event(tenant: &TenantRecord, kind: &'static str, volume: &Name, text: impl Into<String>) -> NewEvent {
    NewEvent {
        kind,
        tenant: Some(tenant.name.clone()),
        subject: format!("volume {volume}"),
        text: text.into(),
    }
}

fn shown(state: &State, cluster: &Cluster, id: VolumeId) -> Answer<VolumeView> {
    let record = state
        .volumes
        .get(&id)
        .ok_or_else(|| Problem::not_found("the volume was removed meanwhile"))?;
    Ok(Json(view::view(state, cluster, record, true)))
}

/// Its node; one that has none can't do what `what` says.
fn bound(volume: &VolumeRecord, what: &str) -> Result<NodeId, Problem> {
    volume.node.ok_or_else(|| {
        refuse(
            format!(
                "volume {} can't be {what}: no node has it yet, it goes where its first container is placed",
                volume.name
            ),
            format!(
                "run something with it: berth run --volume {}:/data …",
                volume.name
            ),
        )
    })
}

/// One that is to go can't be changed any more.
fn staying(volume: &VolumeRecord) -> Result<(), Problem> {
    match volume.removing {
        false => Ok(()),
        true => Err(refuse(
            format!("volume {} is being removed", volume.name),
            "once it is gone, a new one can have its name; berth volume ls shows it until then",
        )),
    }
}

/// List volumes
#[utoipa::path(get, path = "/tenants/{tenant}/volumes", tag = "volumes", operation_id = "listVolumes",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Volumes, by name", body = Listing<VolumeView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<VolumeView>> {
    let state = api.cluster.snapshot();
    let own = of_tenant(&state, scope.tenant.id).map(|volume| (volume.name.clone(), volume));
    Ok(Json(page.of(own, state.revision, |volume| {
        view::view(&state, &api.cluster, volume, false)
    })?))
}

/// Show a volume with its snapshots and who has it
#[utoipa::path(get, path = "/tenants/{tenant}/volumes/{volume}", tag = "volumes", operation_id = "showVolume",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, description = "The volume and how it stands", body = VolumeView)))]
async fn show(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
) -> Answer<VolumeView> {
    let state = api.cluster.snapshot();
    let record = find(&state, &scope.tenant, &volume)?;
    Ok(Json(view::view(&state, &api.cluster, &record, true)))
}

/// Changes a volume and shows it.
async fn change(
    scope: Scope,
    api: ApiState,
    volume: String,
    edit: impl FnOnce(&State, &TenantRecord, &mut VolumeRecord) -> Result<Vec<NewEvent>, Problem> + Send + 'static,
) -> Answer<VolumeView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            let old = find(state, tenant, &volume)?;
            staying(&old)?;
            let mut new = (*old).clone();
            let told = edit(state, tenant, &mut new)?;
            let changes = match new == *old {
                true => Vec::new(),
                false => vec![Change::PutVolume(new)],
            };
            Ok((changes, told, old.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}

/// Give a volume another size, while it is in use too
#[utoipa::path(patch, path = "/tenants/{tenant}/volumes/{volume}", tag = "volumes", operation_id = "resizeVolume",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = ResizeVolume,
    responses((status = 200, description = "The volume as it is to be now", body = VolumeView)))]
async fn resize(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(ResizeVolume { size }): Json<ResizeVolume>,
) -> Answer<VolumeView> {
    check_size(size)?;
    change(scope, api, volume, move |state, tenant, record| {
        let old = std::mem::replace(&mut record.size, size);
        let more = size.saturating_sub(old);
        let to = record.moves.as_ref().map(|moves| moves.to);
        if more > Bytes::ZERO {
            for node in record.node.into_iter().chain(to) {
                room::grows(state, node, more)?;
            }
            quota::judge_volume(state, tenant, &record.name, more)?;
        }
        if size < old
            && let Some(node) = record.node
        {
            shrinks(state, record, node, size)?;
        }
        if size == old {
            return Ok(Vec::new());
        }
        let text = format!("{size} instead of {old}");
        Ok(vec![event(tenant, "volume-resized", &record.name, text)])
    })
    .await
}

/// Whether a volume holds no more than it is to have room for.
fn shrinks(state: &State, volume: &VolumeRecord, node: NodeId, size: Bytes) -> Result<(), Problem> {
    let Some(seen) = state.volume_seen(node, volume.id) else {
        let detail = format!(
            "node {} has not said yet how much volume {} holds",
            state.name_of_node(node),
            volume.name
        );
        return Err(refuse(detail, "try again once berth volume ls shows it"));
    };
    if seen.used <= size {
        return Ok(());
    }
    let detail = format!("{size} is too small: volume {} holds {}", volume.name, seen.used);
    Err(Problem::invalid(detail)
        .field("/size")
        .cure("ask for more, or remove from it first; what snapshots alone hold counts, too"))
}
