//! Tenants. Only administrators make, change and remove them; a tenant sees itself.

use axum::extract::{Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{CreateTenant, Listing, UpdateTenant};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::TenantId;
use berth_common::model::{NodeKind, PRIORITIES, Quota, Role, TenantRecord};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{AdminOnly, Caller, Scope, no_tenant};
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState};
use crate::cluster::{Change, State};

/// The tenant that exists from the first start and can't be removed.
pub const DEFAULT: &str = "default";

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, update, remove))
}

/// The tenant as it is now, for proposals judged by the writer.
///
/// # Errors
/// `not-found` if it was removed meanwhile.
pub fn current(state: &State, tenant: TenantId) -> Result<&TenantRecord, Problem> {
    state
        .tenants
        .get(&tenant)
        .map(|tenant| &**tenant)
        .ok_or_else(|| Problem::not_found("the tenant was removed meanwhile"))
}

/// List tenants
#[utoipa::path(get, path = "/tenants", tag = "tenants", operation_id = "listTenants", params(Page),
    responses((status = 200, description = "Tenants the caller may see, by name", body = Listing<TenantRecord>)))]
async fn list(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<TenantRecord>> {
    let state = api.cluster.snapshot();
    let all = state
        .tenant_names
        .iter()
        .filter(|(_, id)| caller.sees(**id))
        .filter_map(|(name, id)| Some((name.clone(), state.tenants.get(id)?)));
    let page = page.of(all, state.revision, |tenant| (**tenant).clone())?;
    Ok(Json(page))
}

/// Create a tenant
#[utoipa::path(post, path = "/tenants", tag = "tenants", operation_id = "createTenant",
    request_body = CreateTenant,
    responses((status = 201, description = "The new tenant", body = TenantRecord)))]
async fn create(
    _admin: AdminOnly,
    Extract(api): Extract<ApiState>,
    Json(body): Json<CreateTenant>,
) -> Result<(StatusCode, Json<TenantRecord>), ApiError> {
    let id = TenantId::random();
    let ((), state) = api
        .cluster
        .write(move |state, now| {
            if state.tenant(&body.name).is_some() {
                return Err(Problem::new(
                    ErrorKind::AlreadyExists,
                    format!("there is a tenant {} already", body.name),
                )
                .field("/name"));
            }
            let record = TenantRecord {
                quota: body.quota,
                ..new_tenant(id, body.name, now.wall)
            };
            Ok((vec![Change::PutTenant(record)], Vec::new(), ()))
        })
        .await?;
    Ok((StatusCode::CREATED, Json(current(&state, id)?.clone())))
}

/// A tenant with default settings, as the brain also makes the first one.
pub fn new_tenant(
    id: TenantId,
    name: berth_common::id::Name,
    now: berth_common::model::UnixMillis,
) -> TenantRecord {
    TenantRecord {
        id,
        name,
        quota: Quota::default(),
        cpu_weight: 100,
        privileged: false,
        max_priority: 0,
        created_at: now,
        revision: Default::default(),
    }
}

/// Show a tenant
#[utoipa::path(get, path = "/tenants/{tenant}", tag = "tenants", operation_id = "showTenant",
    params(("tenant" = String, Path, description = "Its name")),
    responses((status = 200, description = "The tenant", body = TenantRecord)))]
async fn show(scope: Scope) -> Json<TenantRecord> {
    Json((*scope.tenant).clone())
}

/// Change a tenant's quota, weight or rights
#[utoipa::path(patch, path = "/tenants/{tenant}", tag = "tenants", operation_id = "updateTenant",
    params(("tenant" = String, Path, description = "Its name")),
    request_body = UpdateTenant,
    responses((status = 200, description = "The tenant as it is now", body = TenantRecord)))]
async fn update(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(body): Json<UpdateTenant>,
) -> Answer<TenantRecord> {
    scope.caller.need_admin("changing a tenant")?;
    if let Some(weight) = body.cpu_weight
        && !(1..=10_000).contains(&weight)
    {
        return Err(Problem::invalid(format!("{weight} is out of range: 1 to 10000"))
            .field("/cpu_weight")
            .into());
    }
    if let Some(most) = body.max_priority
        && !PRIORITIES.contains(&most)
    {
        return Err(Problem::invalid(format!("{most} is out of range: -1000 to 1000"))
            .field("/max_priority")
            .into());
    }
    let id = scope.tenant.id;
    let ((), state) = api
        .cluster
        .write(move |state, _| {
            let old = current(state, id)?;
            let new = TenantRecord {
                quota: body.quota.unwrap_or(old.quota),
                cpu_weight: body.cpu_weight.unwrap_or(old.cpu_weight),
                privileged: body.privileged.unwrap_or(old.privileged),
                max_priority: body.max_priority.unwrap_or(old.max_priority),
                ..old.clone()
            };
            let changes = if new == *old {
                Vec::new()
            } else {
                vec![Change::PutTenant(new)]
            };
            Ok((changes, Vec::new(), ()))
        })
        .await?;
    Ok(Json(current(&state, id)?.clone()))
}

/// Remove an empty tenant with its tokens, credentials and loaded images
#[utoipa::path(delete, path = "/tenants/{tenant}", tag = "tenants", operation_id = "removeTenant",
    params(("tenant" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove(scope: Scope, Extract(api): Extract<ApiState>) -> Result<StatusCode, ApiError> {
    scope.caller.need_admin("removing a tenant")?;
    let id = scope.tenant.id;
    api.cluster
        .write(move |state, _| Ok((removal(state, id)?, Vec::new(), ())))
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// What removing a tenant changes.
fn removal(state: &State, id: TenantId) -> Result<Vec<Change>, Problem> {
    let tenant = state.tenants.get(&id).ok_or_else(|| no_tenant(""))?;
    let refuse = |detail: String, cure: &str| Err(Problem::new(ErrorKind::Precondition, detail).cure(cure));
    if tenant.name.as_str() == DEFAULT {
        return refuse("the tenant default can't be removed".to_owned(), "leave it empty");
    }
    let private = NodeKind::Private { tenant: id };
    let services = state.services.values().filter(|s| s.tenant == id).count();
    let containers = state.containers.values().filter(|c| c.tenant == id).count();
    let nodes = state.nodes.values().filter(|n| n.kind == private).count();
    let name = &tenant.name;
    if services > 0 {
        return refuse(
            format!("tenant {name} has {services} services"),
            "remove them first",
        );
    }
    if containers > 0 {
        return refuse(
            format!("{containers} containers of tenant {name} are still being removed"),
            "try again in a moment; berth ps shows what holds them",
        );
    }
    if nodes > 0 {
        return refuse(
            format!("tenant {name} has {nodes} private nodes"),
            "remove them first",
        );
    }
    let volumes: Vec<_> = super::volumes::of_tenant(state, id).map(|v| &v.name).collect();
    if !volumes.is_empty() {
        return refuse(
            format!("tenant {name} has volumes: {}", super::volumes::named(&volumes)),
            "remove them first, with all that they hold: berth volume rm",
        );
    }
    let role = Role::Tenant { tenant: id };
    let tokens = state.tokens.values().filter(|t| t.role == role);
    let joins = state.join_tokens.values().filter(|t| t.kind == private);
    let mut changes: Vec<_> = tokens.map(|t| Change::DeleteToken(t.id)).collect();
    changes.extend(joins.map(|t| Change::DeleteJoinToken(t.id)));
    let own = state.registries.keys().filter(|(tenant, _)| *tenant == id);
    changes.extend(own.map(|(_, host)| Change::DeleteRegistry(id, host.clone())));
    let own = state.images.keys().filter(|(tenant, _)| *tenant == id);
    changes.extend(own.map(|(_, image)| Change::DeleteImage(id, image.clone())));
    changes.extend(
        state
            .networks_of(id)
            .map(|network| Change::DeleteNetwork(network.record.vni)),
    );
    changes.push(Change::DeleteTenant(id));
    Ok(changes)
}
