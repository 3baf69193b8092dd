//! Removing volumes, and giving up those whose nodes are lost.

use std::sync::Arc;

use axum::extract::{Path, Query, State as Extract};
use berth_common::api::RemovedVolume;
use berth_common::error::Problem;
use berth_common::id::NodeId;
use berth_common::model::{NodeRecord, VolumeRecord};
use serde::Deserialize;
use utoipa::IntoParams;

use super::{event, find, named, refuse, view};
use crate::api::auth::Scope;
use crate::api::problem::Json;
use crate::api::{Answer, ApiState, tenants, views};
use crate::cluster::{Change, State};
use crate::controllers::volumes as controller;

/// Query of a removal.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Force {
    /// Give up a volume whose node is lost: it is forgotten, and its data stays on that host.
    #[serde(default)]
    force: bool,
}

/// Remove a volume with its data and snapshots
#[utoipa::path(delete, path = "/tenants/{tenant}/volumes/{volume}", tag = "volumes", operation_id = "removeVolume",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name"), Force),
    responses((status = 200, description = "It is gone, or its node deletes it", body = RemovedVolume)))]
pub(super) async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Query(Force { force }): Query<Force>,
) -> Answer<RemovedVolume> {
    let (removed, _) = api
        .cluster
        .write(move |state, _| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            let old = find(state, tenant, &volume)?;
            unused(state, &old, force)?;
            let (left_on, change) = match force {
                true => given_up(state, &old)?,
                false => (None, goes(&old)),
            };
            let gone = matches!(change, Some(Change::DeleteVolume(_)));
            let told = match (&left_on, gone) {
                (Some(node), _) => Some(format!("given up; its data stays on node {node}, which is lost")),
                (None, true) => Some("no node had it".to_owned()),
                (None, false) => change.is_some().then(|| "its node deletes it".to_owned()),
            };
            let kind = if gone { "volume-removed" } else { "volume-removing" };
            let told = told.map(|text| event(tenant, kind, &old.name, text));
            let removed = RemovedVolume {
                name: old.name.clone(),
                gone,
                left_on,
            };
            Ok((change.into_iter().collect(), told.into_iter().collect(), removed))
        })
        .await?;
    Ok(Json(removed))
}

/// The change with which a volume begins to go; none if it does so already.
fn goes(old: &VolumeRecord) -> Option<Change> {
    if old.removing {
        return None;
    }
    if old.node.is_none() {
        return Some(Change::DeleteVolume(old.id));
    }
    Some(Change::PutVolume(VolumeRecord {
        removing: true,
        ..old.clone()
    }))
}

/// The change with which a volume on a lost node is given up, and that node.
fn given_up(state: &State, old: &VolumeRecord) -> Result<(Option<String>, Option<Change>), Problem> {
    let lost = |id: &NodeId| state.nodes.get(id).is_none_or(|node| node.lost);
    let Some(node) = old.node else {
        return Ok((None, goes(old)));
    };
    let name = state.name_of_node(node);
    if !lost(&node) {
        return Err(refuse(
            format!("volume {} is on node {name}, which is not lost", old.name),
            "without --force that node deletes it; a node counts as lost once it has not answered for a while",
        ));
    }
    let mut new = VolumeRecord {
        removing: true,
        ..old.clone()
    };
    controller::cancel(&mut new);
    // What another node has of it, by a move, is still deleted there.
    let elsewhere = new.moved.and_then(|moved| moved.left);
    let change = match elsewhere.filter(|other| !lost(other)) {
        Some(_) => {
            new.node = None;
            Change::PutVolume(new)
        }
        None => Change::DeleteVolume(old.id),
    };
    Ok((Some(name), Some(change)))
}

/// Whether nobody needs a volume any more.
fn unused(state: &State, volume: &VolumeRecord, force: bool) -> Result<(), Problem> {
    let name = &volume.name;
    let services = view::services(state, volume);
    if let Some(service) = services.first() {
        return Err(refuse(
            format!("volume {name} is mounted by service {}", named(&services)),
            format!(
                "remove it, or take the volume off it first: berth service update {service} --volume-rm {name}"
            ),
        ));
    }
    if force {
        return Ok(());
    }
    let containers: Vec<_> = state
        .containers_with(volume)
        .map(|c| views::container_name(c))
        .collect();
    if !containers.is_empty() {
        return Err(refuse(
            format!("container {} still has volume {name}", named(&containers)),
            "try again once it has stopped; berth ps shows what holds it",
        ));
    }
    if let Some(clone) = state.clone_in_the_making(volume, None) {
        return Err(refuse(
            format!("volume {} is being made as a clone of {name}", clone.name),
            format!(
                "try again once that is ready: berth volume inspect {}",
                clone.name
            ),
        ));
    }
    Ok(())
}

/// Whether a node can be removed for the sake of volumes: it holds none, and none is on its way to it. What a move left there is no
/// reason to keep it.
///
/// # Errors
/// Names those that are there.
pub(in crate::api) fn none_on(state: &State, node: &NodeRecord) -> Result<(), Problem> {
    let on = state.volumes_on.get(&node.id).into_iter().flatten();
    let on = on.filter_map(|id| state.volumes.get(id));
    let bound = |volume: &&Arc<VolumeRecord>| {
        let coming = volume.moves.as_ref().is_some_and(|moves| moves.to == node.id);
        volume.node == Some(node.id) || coming
    };
    let volumes: Vec<_> = on.filter(bound).collect();
    let Some(first) = volumes.first() else {
        return Ok(());
    };
    let tenant = |volume: &VolumeRecord| views::tenant_name(state, volume.tenant);
    let names: Vec<_> = volumes
        .iter()
        .map(|volume| format!("{} of tenant {}", volume.name, tenant(volume)))
        .collect();
    let (name, owner) = (&first.name, tenant(first));
    Err(refuse(
        format!("node {} has volumes: {}", node.name, named(&names)),
        format!(
            "move them away first (berth volume move {name} --tenant {owner}), or remove them; if the host is gone for good, give each up: berth volume rm {name} --force --tenant {owner}"
        ),
    ))
}
