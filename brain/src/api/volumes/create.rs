//! Making volumes, empty or as clones.

use axum::extract::State as Extract;
use axum::http::StatusCode;
use berth_common::api::{CreateVolume, VolumeView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, NodeId, VolumeId};
use berth_common::model::{
    DEFAULT_VOLUME, SnapshotHooks, SnapshotSchedule, TenantRecord, VolumeRecord, VolumeSource, check_size,
};
use berth_common::units::Bytes;

use super::schedule::Wishes;
use super::{bound, event, find, of_tenant, refuse, room, shown, snapshots, staying};
use crate::api::auth::Scope;
use crate::api::problem::{ApiError, Json};
use crate::api::{ApiState, quota, tenants};
use crate::cluster::{Change, State};

/// Most volumes of one tenant: it bounds the brain's memory.
const MAX_OF_TENANT: usize = 10_000;

/// What a new volume is made of.
struct Wanted {
    size: Bytes,
    node: Option<NodeId>,
    source: Option<VolumeSource>,
}

/// Looks up what a request names.
fn wanted(state: &State, tenant: &TenantRecord, body: &CreateVolume) -> Result<Wanted, Problem> {
    let node = match &body.node {
        Some(name) => Some(room::node(state, tenant, name)?),
        None => None,
    };
    let Some(of) = &body.source else {
        return Ok(Wanted {
            size: body.size.unwrap_or(DEFAULT_VOLUME),
            node: node.map(|node| node.id),
            source: None,
        });
    };
    let bad = |problem: Problem| Problem::invalid(problem.detail).field("/source/volume");
    let from = find(state, tenant, of.volume.as_str())
        .map_err(|problem| bad(problem).cure("berth volume ls lists them"))?;
    staying(&from)?;
    let at = bound(&from, "cloned")?;
    let snapshot = from
        .snapshot(&of.snapshot)
        .ok_or_else(|| snapshots::missing(&from, &of.snapshot).field("/source/snapshot"))?;
    if let Some(node) = node.filter(|node| node.id != at) {
        let detail = format!(
            "volume {} is on node {}, not on {}: a clone is made where its source is",
            from.name,
            state.name_of_node(at),
            node.name
        );
        return Err(Problem::invalid(detail)
            .field("/node")
            .cure("leave the node out, and move the clone once it is made: berth volume move"));
    }
    if let Some(moves) = &from.moves {
        return Err(refuse(
            format!(
                "volume {} moves to {}: a clone made now would be left behind",
                from.name,
                state.name_of_node(moves.to)
            ),
            "clone it once it is there",
        ));
    }
    let size = body.size.unwrap_or(from.size);
    let seen = state.volume_seen(at, from.id);
    let content = seen.and_then(|seen| seen.snapshots.iter().find(|one| one.id == snapshot.id));
    if let Some(content) = content.filter(|content| content.referenced > size) {
        let detail = format!(
            "{size} is too small: snapshot {} of volume {} holds {}",
            snapshot.name, from.name, content.referenced
        );
        return Err(Problem::invalid(detail)
            .field("/size")
            .cure("ask for more, or leave the size out"));
    }
    Ok(Wanted {
        size,
        node: Some(at),
        source: Some(VolumeSource {
            volume: from.id,
            snapshot: snapshot.id,
        }),
    })
}

/// Whether a volume is what a request asks for: asked twice, it is made once.
fn is_so(state: &State, volume: &VolumeRecord, body: &CreateVolume) -> bool {
    let size = match body.size {
        Some(size) => volume.size == size,
        None => body.source.is_some() || volume.size == DEFAULT_VOLUME,
    };
    let on = |name: &Name| {
        let node = volume.node.and_then(|id| state.nodes.get(&id));
        node.is_some_and(|node| node.name == *name)
    };
    let source = match (&body.source, volume.source) {
        (None, None) => true,
        (Some(of), Some(source)) => state.volume(volume.tenant, &of.volume).is_some_and(|from| {
            let snapshot = from.snapshot(&of.snapshot);
            from.id == source.volume && snapshot.is_some_and(|one| one.id == source.snapshot)
        }),
        _ => false,
    };
    let schedule = body.schedule.map(SnapshotSchedule::from);
    let schedule = schedule.is_none() || schedule == volume.schedule;
    let hooks = body.hooks.clone().map(SnapshotHooks::from);
    let hooks = hooks.is_none() || hooks == volume.hooks;
    !volume.removing && schedule && hooks && size && source && body.node.as_ref().is_none_or(on)
}

/// Make a volume, empty or as a clone of a snapshot
#[utoipa::path(post, path = "/tenants/{tenant}/volumes", tag = "volumes", operation_id = "createVolume",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = CreateVolume,
    responses((status = 200, description = "It is there already, as it was asked for", body = VolumeView),
        (status = 201, description = "The new volume", body = VolumeView)))]
pub(super) async fn create(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(body): Json<CreateVolume>,
) -> Result<(StatusCode, Json<VolumeView>), ApiError> {
    if let Some(size) = body.size {
        check_size(size)?;
    }
    let wishes = Wishes::of(&body)?;
    let fresh = VolumeId::random();
    let ((id, status), state) = api
        .cluster
        .write(move |state, now| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            if let Some(there) = state.volume(tenant.id, &body.name) {
                if is_so(state, there, &body) {
                    return Ok((Vec::new(), Vec::new(), (there.id, StatusCode::OK)));
                }
                staying(there)?;
                let detail = format!("tenant {} has another volume {} already", tenant.name, body.name);
                return Err(Problem::new(ErrorKind::AlreadyExists, detail)
                    .field("/name")
                    .cure(format!(
                        "choose another name; berth volume inspect {} shows the one there is",
                        body.name
                    )));
            }
            let wanted = wanted(state, tenant, &body)?;
            if of_tenant(state, tenant.id).count() >= MAX_OF_TENANT {
                let detail = format!("tenant {} has {MAX_OF_TENANT} volumes already", tenant.name);
                return Err(refuse(detail, "remove those no longer needed"));
            }
            if let Some(node) = wanted.node {
                room::fits_anew(state, node, wanted.size)?;
            }
            quota::judge_volume(state, tenant, &body.name, wanted.size)?;
            let place = match wanted.node {
                Some(node) => format!("on node {}", state.name_of_node(node)),
                None => "where its first container will be placed".to_owned(),
            };
            let text = format!("{}, {place}", wanted.size);
            let told = event(tenant, "volume-created", &body.name, text);
            let mut record = VolumeRecord::new(fresh, tenant.id, body.name, wanted.size, now.wall);
            record.source = wanted.source;
            wishes.give(&mut record, now.wall);
            if let Some(node) = wanted.node {
                record.hand_to(node);
            }
            let changes = vec![Change::PutVolume(record)];
            Ok((changes, vec![told], (fresh, StatusCode::CREATED)))
        })
        .await?;
    Ok((status, shown(&state, &api.cluster, id)?))
}
