//! Packing on an administrator's request: planned on a snapshot, and begun in one write if nothing that it rests on has changed.

use std::sync::Arc;

use axum::extract::State as Extract;
use berth_common::api::{KeptNode, PackNodes, PackView, PackedMove, PackedNode};
use berth_common::error::{ErrorKind, Problem};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::AdminOnly;
use super::problem::Json;
use super::views::node_name;
use super::{Answer, ApiState, pools, schedule, views};
use crate::cluster::State;
use crate::controllers::NewEvent;
use crate::controllers::pack::{self, Ask, Freed, Packed};

/// Most nodes that can be asked to stay.
const MAX_KEEP: u32 = 100_000;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(pack_nodes))
}

/// Empty nodes whose containers fit on others
#[utoipa::path(post, path = "/nodes/pack", tag = "nodes", operation_id = "packNodes",
    request_body = PackNodes,
    responses((status = 200, description = "Nodes that are emptied, or would be", body = PackView)))]
async fn pack_nodes(
    _admin: AdminOnly,
    Extract(api): Extract<ApiState>,
    Json(body): Json<PackNodes>,
) -> Answer<PackView> {
    if !(1..=MAX_KEEP).contains(&body.keep) {
        let detail = format!("{} is out of range: 1 to {MAX_KEEP}", body.keep);
        return Err(Problem::invalid(detail).field("/keep").into());
    }
    let state = api.cluster.snapshot();
    pools::judge(&state, &body.pool)?;
    let ask = Ask {
        pool: body.pool,
        keep: body.keep as usize,
    };
    let (cluster, held) = (api.cluster.clone(), Arc::clone(&state));
    let now = cluster.now();
    let packed =
        schedule::in_turn(&api, move || pack::plan(&held, &|| cluster.outlook_at(now), &ask)).await?;
    api.cluster.want(packed.wanted.clone());
    let view = shown(&state, &packed, body.dry_run);
    if !body.dry_run && !packed.freed.is_empty() {
        let freed = packed.freed;
        api.cluster
            .write(move |state, _| {
                let Some(changes) = pack::begin(state, &freed) else {
                    let detail = "what runs on these nodes changed while it was planned";
                    return Err(Problem::new(ErrorKind::Conflict, detail).cure("ask again"));
                };
                Ok((changes, told(state, &freed), ()))
            })
            .await?;
    }
    Ok(Json(view))
}

fn told(state: &State, freed: &[Freed]) -> Vec<NewEvent> {
    let told = freed.iter().filter_map(|one| {
        Some(NewEvent {
            kind: "draining",
            tenant: None,
            subject: format!("node {}", node_name(state, one.node)?),
            text: format!("it is emptied: its {} containers fit on others", one.moves.len()),
        })
    });
    told.collect()
}

fn shown(state: &State, packed: &Packed, dry_run: bool) -> PackView {
    let moves = |one: &Freed| {
        let moves = one.moves.iter().filter_map(|(id, to)| {
            let record = state.containers.get(id)?;
            Some(PackedMove {
                container: *id,
                name: views::container_name(record),
                tenant_name: views::tenant_name(state, record.tenant),
                to: node_name(state, *to)?,
            })
        });
        moves.collect()
    };
    let freed = packed.freed.iter().filter_map(|one| {
        Some(PackedNode {
            name: node_name(state, one.node)?,
            reserved_percent: one.reserved_percent,
            moves: moves(one),
        })
    });
    let kept = packed.kept.iter().filter_map(|(node, why)| {
        Some(KeptNode {
            name: node_name(state, *node)?,
            why: why.clone(),
        })
    });
    let (count, stay) = (packed.freed.len(), packed.kept.len());
    let containers: usize = packed.freed.iter().map(|one| one.moves.len()).sum();
    let what = if dry_run { "can be emptied" } else { "are emptied" };
    let mut verdict = match count {
        0 => format!("no node can be emptied; {stay} stay open"),
        _ => format!(
            "{count} of {} nodes {what}: {containers} containers move",
            count + stay
        ),
    };
    if packed.cut {
        verdict.push_str("; there were too many to look at them all, ask again afterwards");
    }
    PackView {
        verdict,
        dry_run,
        freed: freed.collect(),
        kept: kept.collect(),
    }
}
