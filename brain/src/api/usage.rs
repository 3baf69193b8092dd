//! Live load. A tenant sees its own containers and its private nodes; a load that is not known is absent, never zero.

use axum::extract::State as Extract;
use berth_common::api::{ContainerLoad, NodeLoad, UsageView};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::problem::Json;
use super::{ApiState, nodes, views};
use crate::outlook::Parts;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(usage))
}

/// Load of nodes and containers against what is set aside
#[utoipa::path(get, path = "/usage", tag = "platform", operation_id = "usage",
    responses((status = 200, description = "What the caller may see", body = UsageView)))]
async fn usage(caller: Caller, Extract(api): Extract<ApiState>) -> Json<UsageView> {
    let state = api.cluster.snapshot();
    let now_ms = api.cluster.now().mono_ms;
    let book = api.cluster.usage();
    let visible = || {
        let all = state.node_names.values().filter_map(|id| state.nodes.get(id));
        all.filter(|node| nodes::visible(&caller, node))
    };
    let parts = api.cluster.load_parts(visible().map(|node| node.id));
    let nodes = visible()
        .zip(parts)
        .map(|(node, parts)| {
            let reading = book.node(node.id, now_ms);
            NodeLoad {
                node: node.id,
                name: node.name.clone(),
                capacity: node.facts.capacity,
                allocatable: state.allocatable(node),
                reserved: state.taken_on(node.id).reserved,
                expected: parts.map(Parts::shown),
                age_ms: reading.as_ref().map(|reading| reading.age_ms),
                usage: reading.map(|reading| reading.usage),
            }
        })
        .collect();
    let containers = state
        .containers
        .values()
        .filter(|c| caller.sees(c.tenant))
        .filter_map(|c| {
            let node = state.nodes.get(&c.node?)?;
            Some(ContainerLoad {
                container: c.id,
                name: views::container_name(c),
                tenant_name: views::tenant_name(&state, c.tenant),
                node_name: node.name.clone(),
                reservation: c.spec.reservation,
                limits: c.spec.limits,
                usage: book.container(node.id, c.id, now_ms).map(|reading| reading.usage),
            })
        })
        .collect();
    Json(UsageView { nodes, containers })
}
