//! The list of recent events. Not durable: they explain, nothing depends on them.

use axum::extract::{Query, State as Extract};
use berth_common::api::{EventView, Listing};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::{Caller, visible_tenant};
use super::super::page::Page;
use super::super::problem::Json;
use super::super::{Answer, ApiState};

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(events))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only of this tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// The newest so many, 1 to 1,000; default 100.
    #[serde(default)]
    limit: Option<String>,
}

/// List recent events
#[utoipa::path(get, path = "/events", tag = "platform", operation_id = "listEvents", params(Filter),
    responses((status = 200, description = "The newest, oldest of them first", body = Listing<EventView>)))]
async fn events(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Query(filter): Query<Filter>,
) -> Answer<Listing<EventView>> {
    // Read before the events: whoever watches from it may see one twice and misses none.
    let state = api.cluster.snapshot();
    let only = match (&filter.tenant, caller.only_tenant()) {
        (Some(name), _) => Some(visible_tenant(&state, &caller, name)?.name.clone()),
        (None, Some(own)) => Some(super::super::views::tenant_name(&state, own)),
        (None, None) => None,
    };
    let page = Page {
        limit: filter.limit,
        after: None,
    };
    let found = api.cluster.events().newest(page.limit()?, |event| {
        only.as_ref()
            .is_none_or(|only| event.tenant.as_ref() == Some(only))
    });
    Ok(Json(Listing {
        items: found.iter().map(|event| (**event).clone()).collect(),
        next: None,
        revision: state.revision,
    }))
}
