//! Moving volumes to other nodes by command.
//!
//! Volumes that containers have together go together. The command only begins a move; [`crate::controllers::volumes`] takes it from there.

use std::sync::Arc;

use axum::extract::{Path, State as Extract};
use berth_common::api::{MoveVolume, VolumeView};
use berth_common::error::Problem;
use berth_common::id::{Name, NodeId, ServiceId, SnapshotId};
use berth_common::model::{MoveStage, NodeRecord, TenantRecord, VolumeMove, VolumeRecord};
use berth_common::units::Bytes;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{bound, event, find, refuse, room, shown, staying};
use crate::api::auth::Scope;
use crate::api::problem::Json;
use crate::api::{Answer, ApiState, nodes, tenants};
use crate::cluster::{Change, State};
use crate::controllers::volumes::{self as controller, Follow};

/// Most nodes of which a refusal says what they lack.
const MAX_TOLD: usize = 4;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(begin, cancel))
}

/// Volumes that move together.
struct Party<'a> {
    volumes: Vec<&'a Arc<VolumeRecord>>,
    services: Follow<'a>,
}

impl<'a> Party<'a> {
    fn of(state: &'a State, volume: &VolumeRecord) -> Self {
        let ids = controller::companions(state, volume);
        let volumes: Vec<_> = ids.iter().filter_map(|id| state.volumes.get(id)).collect();
        let mut services: Vec<ServiceId> = volumes.iter().flat_map(|v| state.services_with(v)).collect();
        services.sort_unstable();
        services.dedup();
        let services = services.iter().filter_map(|id| state.services.get(id));
        Self {
            services: Follow::of(state, services.map(|service| &**service)),
            volumes,
        }
    }

    fn size(&self) -> Bytes {
        let sizes = self.volumes.iter().map(|volume| volume.size);
        sizes.fold(Bytes::ZERO, Bytes::saturating_add)
    }

    /// What a node lacks to take them, and what to do about it.
    fn lack(&self, state: &State, node: &NodeRecord) -> Option<(String, String)> {
        let name = &node.name;
        let closed = match (node.lost, node.draining, node.cordoned) {
            (true, ..) => Some("is lost"),
            (_, true, _) => Some("is being drained"),
            (.., true) => Some("is cordoned"),
            _ => (!state.is_open(node)).then_some("is not connected"),
        };
        if let Some(how) = closed {
            return Some((format!("node {name} {how}"), "name another node".to_owned()));
        }
        let lack = room::lack(state, node, self.volumes.len(), self.size());
        if let Some((detail, cure)) = lack {
            return Some((detail, cure.to_owned()));
        }
        let pool = node.facts.volumes.as_ref();
        if pool.is_none_or(|pool| pool.port.is_none()) || node.facts.underlay.is_none() {
            return Some((
                format!(
                    "node {name} takes no volumes from other nodes: its agent has said no address or port for them"
                ),
                "`berth-agent check` there says why; or name another node".to_owned(),
            ));
        }
        let why = self.services.hindrance(node)?;
        let cure = "name another node, or have the service go there: berth service update".to_owned();
        Some((why, cure))
    }
}

/// Whether a volume can leave its node now.
fn free_to_go(state: &State, volume: &VolumeRecord) -> Result<(), Problem> {
    let name = &volume.name;
    staying(volume)?;
    if let Some(moves) = &volume.moves {
        let to = state.name_of_node(moves.to);
        return Err(refuse(
            format!("volume {name} moves to node {to} already"),
            format!("wait until it is there, or first: berth volume cancel-move {name}"),
        ));
    }
    if volume.rollback.is_some() {
        return Err(refuse(
            format!("volume {name} is being rolled back"),
            "move it once that is done",
        ));
    }
    if let Some(clone) = state.clone_in_the_making(volume, None) {
        return Err(refuse(
            format!("volume {} is being made as a clone of {name}", clone.name),
            format!("move it once that is ready: berth volume inspect {}", clone.name),
        ));
    }
    let left = volume.moved.and_then(|moved| moved.left);
    let left = left
        .and_then(|left| state.nodes.get(&left))
        .filter(|node| !node.lost);
    left.map_or(Ok(()), |node| {
        Err(refuse(
            format!(
                "what is left of volume {name} on node {} is still being deleted",
                node.name
            ),
            "try again in a moment",
        ))
    })
}

/// The node that is to take a party.
fn destination(
    state: &State,
    tenant: &TenantRecord,
    party: &Party<'_>,
    from: NodeId,
    wanted: Option<&Name>,
    volume: &Name,
) -> Result<NodeId, Problem> {
    if let Some(name) = wanted {
        let node = room::node(state, tenant, name)?;
        if node.id == from {
            let detail = format!("volume {volume} is on node {name} already");
            return Err(refuse(detail, "name another node, or none to have one chosen").field("/node"));
        }
        return match party.lack(state, node) {
            None => Ok(node.id),
            Some((detail, cure)) => Err(refuse(detail, cure).field("/node")),
        };
    }
    let others = state.node_names.values().filter_map(|id| state.nodes.get(id));
    let others = others.filter(|node| node.id != from && nodes::usable(tenant.id, node));
    let (mut best, mut told, mut more) = (None, Vec::new(), 0);
    for node in others {
        match party.lack(state, node) {
            None => {
                let free = room::free(state, node).unwrap_or(Bytes::ZERO);
                if best.is_none_or(|(most, _)| free > most) {
                    best = Some((free, node.id));
                }
            }
            Some((detail, _)) if told.len() < MAX_TOLD => told.push(detail),
            Some(_) => more += 1,
        }
    }
    if let Some((_, node)) = best {
        return Ok(node);
    }
    if more > 0 {
        told.push(format!("{more} more nodes can't take it either"));
    }
    let why = match told.is_empty() {
        true => "there is no other node".to_owned(),
        false => told.join("; "),
    };
    Err(refuse(
        format!("there is nowhere to move volume {volume} to: {why}"),
        "mend what is named, or let another host join: berth node token",
    ))
}

/// Move a volume, and those that containers have together with it, to another node
#[utoipa::path(post, path = "/tenants/{tenant}/volumes/{volume}/move", tag = "volumes", operation_id = "moveVolume",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = MoveVolume,
    responses((status = 200, description = "The volume; its containers stop only for the last increment", body = VolumeView)))]
async fn begin(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(body): Json<MoveVolume>,
) -> Answer<VolumeView> {
    let (id, state) = api
        .cluster
        .write(move |state, now| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            let asked = find(state, tenant, &volume)?;
            staying(&asked)?;
            let from = bound(&asked, "moved")?;
            let party = Party::of(state, &asked);
            party.volumes.iter().try_for_each(|one| free_to_go(state, one))?;
            if state.nodes.get(&from).is_none_or(|node| node.lost) {
                let node = state.name_of_node(from);
                return Err(refuse(
                    format!("volume {} is on node {node}, which is lost", asked.name),
                    "it can move once that node is back; if that host is gone for good, its data is, too",
                ));
            }
            let to = destination(state, tenant, &party, from, body.node.as_ref(), &asked.name)?;
            let why = "asked by command".to_owned();
            let (mut changes, mut told) = (Vec::new(), Vec::new());
            for one in &party.volumes {
                let mut new = (***one).clone();
                let text = format!("begins to move to {}: {why}", state.name_of_node(to));
                told.push(event(tenant, "volume-moves", &new.name, text));
                new.moves = Some(VolumeMove {
                    to,
                    why: why.clone(),
                    last: SnapshotId::random(),
                    stage: MoveStage::Copying,
                    since: now.wall,
                });
                changes.push(Change::PutVolume(new));
            }
            Ok((changes, told, asked.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}

/// Cancel a move, as long as the volume is still writable where it was
#[utoipa::path(delete, path = "/tenants/{tenant}/volumes/{volume}/move", tag = "volumes", operation_id = "cancelVolumeMove",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, description = "The volume, which stays where it is", body = VolumeView)))]
async fn cancel(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
) -> Answer<VolumeView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let tenant = tenants::current(state, scope.tenant.id)?;
            let asked = find(state, tenant, &volume)?;
            staying(&asked)?;
            let Some(moves) = &asked.moves else {
                return Err(refuse(
                    format!("volume {} does not move", asked.name),
                    format!("berth volume inspect {} shows where it is", asked.name),
                ));
            };
            // Those that go with it would wait for it for ever.
            let party = Party::of(state, &asked);
            let same = |one: &&&Arc<VolumeRecord>| one.moves.as_ref().is_some_and(|m| m.to == moves.to);
            let (mut changes, mut told) = (Vec::new(), Vec::new());
            for one in party.volumes.iter().filter(same) {
                if one
                    .moves
                    .as_ref()
                    .is_some_and(|m| m.stage == MoveStage::Finishing)
                {
                    return Err(refuse(
                        format!(
                            "the move of volume {} can't be cancelled any more: its last part is being sent",
                            one.name
                        ),
                        "wait until it is there, then move it back",
                    ));
                }
                let mut new = (***one).clone();
                controller::cancel(&mut new);
                let to = state.name_of_node(moves.to);
                let text = format!("does not move to {to}: cancelled by command");
                told.push(event(tenant, "volume-stays", &new.name, text));
                changes.push(Change::PutVolume(new));
            }
            Ok((changes, told, asked.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}
