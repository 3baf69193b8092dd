//! Containers: shown one by one, and told to stop or start one by one. Logs and exec are in [`super::streams`].
//!
//! What is said to one container holds until its service is told otherwise or gets a new spec.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State as Extract};
use berth_common::api::{ContainerView, Listing};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, ID_LEN, Name, TenantId, clip};
use berth_common::model::{ContainerRecord, RunState};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Scope;
use super::page::Page;
use super::problem::Json;
use super::{Answer, ApiState, views};
use crate::cluster::{Change, State};
use crate::controllers::NewEvent;

/// Fewest characters of an id's beginning that name a container.
const MIN_PREFIX: usize = 3;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(stop))
        .routes(routes!(start))
        .routes(routes!(restart))
}

/// The tenant's container that `text` names: an id, an unambiguous beginning of one, or `service.replica`, which is the
/// newest of that place that is not being removed.
///
/// # Errors
/// `not-found`, also for other tenants' containers; `invalid` if several match.
pub fn find(state: &State, tenant: TenantId, text: &str) -> Result<Arc<ContainerRecord>, Problem> {
    let missing = || {
        Problem::not_found(format!("there is no container {:?}", clip(text, 80)))
            .cure("berth ps lists ids and names; a name is service.replica, such as web.1")
    };
    if let Some((service, replica)) = text.rsplit_once('.') {
        let name: Name = service.parse().map_err(|_| missing())?;
        let replica: u32 = replica.parse().map_err(|_| missing())?;
        let id = state.service_names.get(&(tenant, name)).ok_or_else(missing)?;
        return state
            .containers_of(*id)
            .filter(|c| c.replica == replica && !c.removing)
            // Two of one millisecond: the one that takes over is the newer.
            .max_by_key(|c| (c.created_at, c.replaces.is_some(), c.id))
            .cloned()
            .ok_or_else(missing);
    }
    if !(MIN_PREFIX..=ID_LEN).contains(&text.len())
        || !text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
    {
        return Err(missing());
    }
    // Ids order as their text does in the alphabet a-z2-7, whose first letter is `a`.
    let first: ContainerId = format!("{text:a<ID_LEN$}").parse().map_err(|_| missing())?;
    let mut matching = state
        .containers
        .range(first..)
        .map(|(_, record)| record)
        .take_while(|record| record.id.to_string().starts_with(text))
        .filter(|record| record.tenant == tenant);
    let found = matching.next().ok_or_else(missing)?;
    let others: Vec<String> = matching.take(4).map(|c| c.id.to_string()).collect();
    if others.is_empty() {
        return Ok(found.clone());
    }
    let detail = format!(
        "{text:?} is the beginning of several ids: {}, {}",
        found.id,
        others.join(", ")
    );
    Err(Problem::invalid(detail).cure("write more of it"))
}

/// Query of the list.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Filter {
    /// Only of this service, by name.
    #[serde(default)]
    service: Option<String>,
    /// Only on this node, by name or id.
    #[serde(default)]
    node: Option<String>,
}

impl Filter {
    fn takes(&self, state: &State, record: &ContainerRecord) -> bool {
        let service = self
            .service
            .as_deref()
            .is_none_or(|name| record.service_name.as_str() == name);
        let node = self.node.as_deref().is_none_or(|wanted| {
            let node = record.node.and_then(|id| state.nodes.get(&id));
            node.is_some_and(|node| node.name.as_str() == wanted || node.id.to_string() == wanted)
        });
        service && node
    }
}

/// Key of a page. `!` sorts before every character of a name, so keys order like (name, replica, id).
fn key(record: &ContainerRecord) -> String {
    format!("{}!{:05}!{}", record.service_name, record.replica, record.id)
}

/// List containers
#[utoipa::path(get, path = "/tenants/{tenant}/containers", tag = "containers", operation_id = "listContainers",
    params(("tenant" = String, Path, description = "The tenant's name"), Filter, Page),
    responses((status = 200, description = "Its containers, by service and replica", body = Listing<ContainerView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(filter): Query<Filter>,
    Query(page): Query<Page>,
) -> Answer<Listing<ContainerView>> {
    let state = api.cluster.snapshot();
    // Also services that were removed, while containers of theirs are still going.
    let mut services: BTreeMap<&Name, Vec<_>> = BTreeMap::new();
    for (service, ids) in &state.by_service {
        let first = ids.get_min().and_then(|id| state.containers.get(id));
        if let Some(first) = first.filter(|c| c.tenant == scope.tenant.id) {
            services.entry(&first.service_name).or_default().push(*service);
        }
    }
    let begun = page.after.as_deref().and_then(|after| after.split('!').next());
    let own = services
        .iter()
        .filter(|(name, _)| begun.is_none_or(|begun| name.as_str() >= begun))
        .flat_map(|(_, services)| {
            let all = services.iter().flat_map(|service| state.containers_of(*service));
            let mut all: Vec<_> = all
                .filter(|c| filter.takes(&state, c))
                .map(|c| (key(c), c))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        });
    Ok(Json(page.of(own, state.revision, |record| {
        views::container(&state, &api.cluster, record)
    })?))
}

/// Show a container
#[utoipa::path(get, path = "/tenants/{tenant}/containers/{container}", tag = "containers", operation_id = "showContainer",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 200, description = "The container and how it stands", body = ContainerView)))]
async fn show(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
) -> Answer<ContainerView> {
    let state = api.cluster.snapshot();
    let record = find(&state, scope.tenant.id, &container)?;
    Ok(Json(views::container(&state, &api.cluster, &record)))
}

async fn command(
    scope: Scope,
    api: ApiState,
    container: String,
    kind: &'static str,
    change: fn(&mut ContainerRecord),
) -> Answer<ContainerView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let old = find(state, scope.tenant.id, &container)?;
            let name = views::container_name(&old);
            if old.removing {
                return Err(Problem::new(
                    ErrorKind::Precondition,
                    format!("container {name} ({}) is being removed", old.id),
                )
                .cure("berth ps shows the one that takes over"));
            }
            let mut new = (*old).clone();
            change(&mut new);
            if new == *old {
                return Ok((Vec::new(), Vec::new(), old.id));
            }
            let told = NewEvent {
                kind,
                tenant: Some(scope.tenant.name.clone()),
                subject: format!("container {name} ({})", old.id),
                text: kind.to_owned(),
            };
            Ok((vec![Change::PutContainer(new)], vec![told], old.id))
        })
        .await?;
    let record = state
        .containers
        .get(&id)
        .ok_or_else(|| Problem::not_found("the container was removed meanwhile"))?;
    Ok(Json(views::container(&state, &api.cluster, record)))
}

/// Stop one container and keep it
#[utoipa::path(post, path = "/tenants/{tenant}/containers/{container}/stop", tag = "containers", operation_id = "stopContainer",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 200, description = "The container", body = ContainerView)))]
async fn stop(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
) -> Answer<ContainerView> {
    command(scope, api, container, "stopped", |c| c.run = RunState::Stopped).await
}

/// Start one container
#[utoipa::path(post, path = "/tenants/{tenant}/containers/{container}/start", tag = "containers", operation_id = "startContainer",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 200, description = "The container", body = ContainerView)))]
async fn start(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
) -> Answer<ContainerView> {
    command(scope, api, container, "started", |c| c.run = RunState::Running).await
}

/// Stop and start one container
#[utoipa::path(post, path = "/tenants/{tenant}/containers/{container}/restart", tag = "containers", operation_id = "restartContainer",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 200, description = "The container", body = ContainerView)))]
async fn restart(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
) -> Answer<ContainerView> {
    command(scope, api, container, "restarted", |c| {
        c.run = RunState::Running;
        c.restarts_asked = c.restarts_asked.saturating_add(1);
    })
    .await
}
