//! Live load. A tenant sees its own containers and its private nodes; a load that is not known is absent, never zero.

use axum::extract::State as Extract;
use berth_common::api::{ContainerLoad, ExpectedLoad, NodeLoad, UsageView};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Caller;
use super::problem::Json;
use super::{ApiState, nodes, views};
use crate::outlook::Parts;
use crate::scheduler::forecast::{CPU, DISK, MEMORY, NETWORK, plus};
use crate::scheduler::load::Watermarks;

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
    // The one writer waits while the outlook is held: no longer than it takes to copy what is asked of it.
    let parts: Vec<Option<Parts>> = {
        let outlook = api.cluster.outlook();
        visible().map(|node| outlook.parts(node.id)).collect()
    };
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
                expected: parts.map(expected),
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

/// What a node is expected to use, in the API's words.
fn expected(parts: Parts) -> ExpectedLoad {
    let all = plus(parts.foreign, parts.containers);
    let high = |of: usize| all[of].high(Watermarks::default().deviations);
    ExpectedLoad {
        cpu: all[CPU].mean as u32,
        cpu_high: high(CPU) as u32,
        cpu_foreign: parts.foreign[CPU].mean as u32,
        memory: all[MEMORY].mean as u64,
        memory_foreign: parts.foreign[MEMORY].mean as u64,
        disk_bps: all[DISK].mean as u64,
        net_bps: all[NETWORK].mean as u64,
    }
}
