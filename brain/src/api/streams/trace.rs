//! The way of a packet between containers, told by the nodes that it goes through.

use std::time::Duration;

use axum::extract::{Path, Query, State as Extract};
use berth_common::api::Trace;
use berth_common::error::Problem;
use berth_common::id::{Name, NodeId, TenantId};
use berth_common::protocol::{Hop, NodeReply, NodeRequest, Verdict};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::Scope;
use super::super::problem::Json;
use super::super::{Answer, ApiState, containers, views};
use super::{Replies, unexpected};
use crate::cluster::State;
use crate::network_check::way::{Ask, To, told, way, without_address};

/// How long a node may take to look.
const LOOK: Duration = Duration::from_secs(5);

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(trace))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    /// The container that sends: id, beginning of one, or service.replica.
    from: String,
    /// Where: a container likewise, or a service.
    to: String,
    /// Only by this network.
    #[serde(default)]
    network: Option<Name>,
}

/// Explain how a packet gets from a container to another
#[utoipa::path(get, path = "/tenants/{tenant}/trace", tag = "networks", operation_id = "trace",
    params(("tenant" = String, Path, description = "The tenant's name"), Which),
    responses((status = 200, description = "Its way place by place, as the nodes have it now", body = Trace)))]
async fn trace(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path(_tenant): Path<String>,
    Query(asked): Query<Which>,
) -> Answer<Trace> {
    let state = api.cluster.snapshot();
    let tenant = scope.tenant.id;
    let from = containers::find(&state, tenant, &asked.from).map_err(|problem| problem.field("from"))?;
    let service = service(&state, tenant, &asked.to);
    let container = match &service {
        Some(_) => None,
        None => Some(containers::find(&state, tenant, &asked.to).map_err(|problem| problem.field("to"))?),
    };
    let to = match (&service, &container) {
        (Some(record), _) => To::Service(record.id, &record.spec.name),
        (None, Some(record)) => To::Container(record),
        (None, None) => return Err(Problem::not_found("there is nothing to send to").into()),
    };
    let sends = views::container_name(&from);
    let takes = match to {
        To::Service(_, name) => format!("service {name}"),
        To::Container(record) => views::container_name(record),
    };
    if let To::Container(record) = to
        && record.id == from.id
    {
        return Err(Problem::invalid("a container reaches itself by its loopback")
            .field("to")
            .into());
    }
    let mut places = Vec::new();
    match way(&state, &from, to, asked.network.as_ref()) {
        Err(end) => places.push((None, end)),
        Ok(way) => {
            let (out, into) = tokio::join!(ask(&api, &state, &way.out), ask(&api, &state, &way.into));
            let node = |id| state.nodes.get(&id).map(|node| node.name.clone());
            // Why two nodes are apart is told where it is known best.
            let apart = way
                .wire
                .as_ref()
                .is_some_and(|wire| wire.verdict == Verdict::Drops);
            let out = out
                .into_iter()
                .filter(|hop| !apart || hop.verdict == Verdict::Passes);
            places.extend(out.map(|hop| (node(way.out.node), hop)));
            places.extend(way.wire.into_iter().map(|hop| (None, hop)));
            places.extend(into.into_iter().map(|hop| (node(way.into.node), hop)));
            if !scope.caller.is_admin() {
                for (_, hop) in &mut places {
                    hide(&state, [way.out.node, way.into.node], hop);
                }
            }
        }
    }
    Ok(Json(told(sends, takes, places)))
}

/// A service of this name.
fn service(
    state: &State,
    tenant: TenantId,
    text: &str,
) -> Option<std::sync::Arc<berth_common::model::ServiceRecord>> {
    let name: Name = text.parse().ok()?;
    let id = state.service_names.get(&(tenant, name))?;
    state.services.get(id).cloned()
}

/// What a node says of its half.
async fn ask(api: &ApiState, state: &State, ask: &Ask) -> Vec<Hop> {
    let node = state
        .nodes
        .get(&ask.node)
        .map(|node| node.name.to_string())
        .unwrap_or_default();
    let asked = async {
        let opened = api
            .gateway
            .open(ask.node, &NodeRequest::Trace(ask.request.clone()))
            .await?;
        let _send = opened.send;
        match Replies::new(opened.recv, &node).within(LOOK).await? {
            NodeReply::Hops { hops } => Ok(hops),
            NodeReply::Problem { problem } => Err(problem),
            _ => Err(unexpected(&node)),
        }
    };
    let called = state
        .containers
        .get(&ask.request.container)
        .map(|record| views::container_name(record));
    let (id, called) = (ask.request.container.to_string(), called.unwrap_or_default());
    match asked.await {
        Ok(hops) => hops
            .into_iter()
            .map(|hop| Hop {
                text: hop.text.replace(&id, &called),
                ..hop
            })
            .collect(),
        Err(problem) => {
            let hop = Hop::unknown("node", problem.detail);
            vec![match problem.cure {
                Some(cure) => hop.cure(cure),
                None => hop,
            }]
        }
    }
}

fn hide(state: &State, nodes: [NodeId; 2], hop: &mut Hop) {
    for node in nodes.iter().filter_map(|id| state.nodes.get(id)) {
        if let Some(at) = node.facts.underlay {
            hop.text = without_address(&hop.text, &at.address.to_string(), node.name.as_str());
        }
    }
}
