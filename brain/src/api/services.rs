//! Services: what users ask for. Judged here (and once more by the writer): the spec, the rights it needs, the quota.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{Listing, Scale, ServiceView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, ServiceId, TenantId, clip};
use berth_common::model::{RunState, ServiceRecord, ServiceSpec, TenantRecord};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Scope;
use super::page::Page;
use super::problem::{ApiError, Json, spec_problem};
use super::{Answer, ApiState, quota, tenants, views};
use crate::cluster::{Change, Cluster, State};
use crate::controllers::{NewEvent, commands};

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, put, remove))
        .routes(routes!(scale))
        .routes(routes!(stop))
        .routes(routes!(start))
        .routes(routes!(restart))
}

fn missing(tenant: &TenantRecord, name: &str) -> Problem {
    Problem::not_found(format!(
        "tenant {} has no service {:?}",
        tenant.name,
        clip(name, 40)
    ))
    .cure("berth service ls lists them")
}

/// A service by the name in a path.
fn find(state: &State, tenant: &TenantRecord, name: &str) -> Result<Arc<ServiceRecord>, Problem> {
    name.parse()
        .ok()
        .and_then(|parsed: Name| state.service(tenant.id, &parsed))
        .cloned()
        .ok_or_else(|| missing(tenant, name))
}

/// Whether a tenant may have this spec, in place of `replaced` if it has that.
///
/// # Errors
/// What stands against it.
pub(super) fn judge(
    state: &State,
    scope: &Scope,
    spec: &ServiceSpec,
    replaced: Option<&ServiceRecord>,
) -> Result<(), Problem> {
    let tenant = tenants::current(state, scope.tenant.id)?;
    if !scope.caller.is_admin() {
        super::placement::judge_priority(tenant, spec, replaced)?;
    }
    // Whose right was taken away keeps what it has, and may only have less of it.
    let only_less = replaced.is_some_and(|old| {
        let mut same = old.spec.clone();
        same.replicas = spec.replicas;
        spec.replicas <= old.spec.replicas && same == *spec
    });
    if spec.privileged && !tenant.privileged && !only_less {
        return Err(Problem::new(
            ErrorKind::Forbidden,
            format!("tenant {} may not run privileged services", tenant.name),
        )
        .field("/privileged")
        .cure(format!(
            "leave it out, or ask an administrator for: berth tenant quota {} --privileged=true",
            tenant.name
        )));
    }
    let asked_before = replaced.is_some_and(|old| old.spec.pool == spec.pool);
    if let Some(pool) = spec.pool.as_ref().filter(|_| !asked_before) {
        super::pools::judge(state, pool)?;
    }
    super::networks::judge(state, tenant.id, &spec.networks)?;
    judge_ports(state, tenant.id, spec)?;
    judge_links(state, tenant.id, spec)?;
    super::placement::judge(state, tenant.id, spec)?;
    quota::judge(state, tenant, spec, replaced)
}

/// Whether nobody else has the ports. Who has them is told to its own tenant alone.
fn judge_ports(state: &State, tenant: TenantId, spec: &ServiceSpec) -> Result<(), Problem> {
    let publishing = state.publishing.iter().filter_map(|id| state.services.get(id));
    let others = publishing.filter(|other| other.tenant != tenant || other.spec.name != spec.name);
    for other in others {
        let theirs = &other.spec.ports;
        let clash = spec.ports.iter().find_map(|port| {
            let taken = theirs.iter().find_map(|their| port.clash(their))?;
            Some(format!("{taken}/{}", port.protocol))
        });
        if let Some(port) = clash {
            let who = match other.tenant == tenant {
                true => format!("service {}", other.spec.name),
                false => "another tenant's service".to_owned(),
            };
            return Err(
                Problem::new(ErrorKind::Conflict, format!("port {port} is published by {who}"))
                    .field("/ports")
                    .cure("publish another port; in the containers it can stay the same: OTHER:PORT"),
            );
        }
    }
    Ok(())
}

/// Whether its links lead somewhere: to services that it can reach, and not in a circle, where each would wait for the other. One that is
/// not there yet may come.
fn judge_links(state: &State, tenant: TenantId, spec: &ServiceSpec) -> Result<(), Problem> {
    let refused = |detail: String, cure: &str| Err(Problem::invalid(detail).field("/links").cure(cure));
    let linked = spec
        .links
        .iter()
        .filter_map(|link| state.service(tenant, &link.service));
    let reached = |other: &ServiceRecord| {
        other
            .spec
            .networks
            .iter()
            .any(|network| spec.networks.contains(network))
    };
    if let Some(apart) = linked.clone().find(|other| !reached(other)) {
        let detail = format!(
            "it links to service {}, but the two have no network in common",
            apart.spec.name
        );
        return refused(detail, "put both on one network");
    }
    let mut seen = BTreeSet::new();
    let mut ahead: Vec<(&ServiceSpec, Vec<&Name>)> = vec![(spec, vec![&spec.name])];
    while let Some((from, way)) = ahead.pop() {
        for link in &from.links {
            let name = &link.service;
            let way = [&way[..], &[name]].concat();
            if *name == spec.name {
                let way: Vec<&str> = way.iter().map(|name| name.as_str()).collect();
                let detail = format!(
                    "its links lead back to itself: {}; each would wait for the other for ever",
                    way.join(" → ")
                );
                return refused(detail, "leave out one of these links; names resolve without them");
            }
            if let Some(next) = state.service(tenant, name)
                && seen.insert(name)
            {
                ahead.push((&next.spec, way));
            }
        }
    }
    Ok(())
}

fn event(scope: &Scope, kind: &'static str, name: &Name, text: String) -> NewEvent {
    NewEvent {
        kind,
        tenant: Some(scope.tenant.name.clone()),
        subject: format!("service {name}"),
        text,
    }
}

fn shown(state: &State, cluster: &Cluster, id: ServiceId) -> Result<Json<ServiceView>, ApiError> {
    let record = state
        .services
        .get(&id)
        .ok_or_else(|| Problem::not_found("the service was removed meanwhile"))?;
    Ok(Json(views::service(state, cluster, record)))
}

/// List services
#[utoipa::path(get, path = "/tenants/{tenant}/services", tag = "services", operation_id = "listServices",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Its services, by name", body = Listing<ServiceView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<ServiceView>> {
    let state = api.cluster.snapshot();
    let own = state
        .service_names
        .iter()
        .filter(|((tenant, _), _)| *tenant == scope.tenant.id)
        .filter_map(|((_, name), id)| Some((name.clone(), state.services.get(id)?)));
    Ok(Json(page.of(own, state.revision, |record| {
        views::service(&state, &api.cluster, record)
    })?))
}

/// A new record of a spec.
pub(super) fn new_record(
    id: ServiceId,
    tenant: TenantId,
    spec: ServiceSpec,
    now: crate::controllers::Now,
) -> ServiceRecord {
    ServiceRecord {
        id,
        tenant,
        spec,
        generation: 1,
        run: RunState::Running,
        restarts_asked: 0,
        created_at: now.wall,
        revision: Default::default(),
    }
}

/// Create a service
#[utoipa::path(post, path = "/tenants/{tenant}/services", tag = "services", operation_id = "createService",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = ServiceSpec,
    responses((status = 201, description = "The new service", body = ServiceView)))]
async fn create(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(spec): Json<ServiceSpec>,
) -> Result<(StatusCode, Json<ServiceView>), ApiError> {
    spec.validate()?;
    let id = ServiceId::random();
    let policies = api.cluster.policies();
    let ((), state) = api
        .cluster
        .write(move |state, now| {
            if state.service(scope.tenant.id, &spec.name).is_some() {
                return Err(Problem::new(
                    ErrorKind::AlreadyExists,
                    format!("tenant {} has a service {} already", scope.tenant.name, spec.name),
                )
                .field("/name")
                .cure("choose another name, or change the one there is: PUT, or berth service update"));
            }
            judge(state, &scope, &spec, None)?;
            super::placement::judge_policy(&policies, &spec, None)?;
            let told = event(
                &scope,
                "created",
                &spec.name,
                format!("{} × {}", spec.replicas, spec.image),
            );
            let record = new_record(id, scope.tenant.id, spec, now);
            Ok((vec![Change::PutService(record)], vec![told], ()))
        })
        .await?;
    Ok((StatusCode::CREATED, shown(&state, &api.cluster, id)?))
}

/// Show a service
#[utoipa::path(get, path = "/tenants/{tenant}/services/{name}", tag = "services", operation_id = "showService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    responses((status = 200, description = "The service and how it stands", body = ServiceView)))]
async fn show(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Answer<ServiceView> {
    let state = api.cluster.snapshot();
    let record = find(&state, &scope.tenant, &name)?;
    Ok(Json(views::service(&state, &api.cluster, &record)))
}

/// Query of a conditional update.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Expected {
    /// Only if the service has this generation; 0: only if there is none.
    #[serde(default)]
    generation: Option<u64>,
}

impl Expected {
    fn check(self, old: Option<&ServiceRecord>, name: &Name) -> Result<(), Problem> {
        let Some(expected) = self.generation else {
            return Ok(());
        };
        let found = old.map_or(0, |old| old.generation);
        if found == expected {
            return Ok(());
        }
        let detail = match found {
            0 => format!("service {name} does not exist; generation {expected} was expected"),
            _ => format!("service {name} has generation {found}; {expected} was expected"),
        };
        Err(Problem::new(ErrorKind::Conflict, detail)
            .cure("fetch it again, see what others changed, and send your change on top of that"))
    }
}

/// Create or update a service
#[utoipa::path(put, path = "/tenants/{tenant}/services/{name}", tag = "services", operation_id = "putService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name"), Expected),
    request_body = ServiceSpec,
    responses((status = 200, description = "The service, changed or already so", body = ServiceView),
        (status = 201, description = "The new service", body = ServiceView)))]
async fn put(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
    Query(expected): Query<Expected>,
    Json(spec): Json<ServiceSpec>,
) -> Result<(StatusCode, Json<ServiceView>), ApiError> {
    if spec.name.as_str() != name {
        return Err(Problem::invalid(format!(
            "the path names service {:?} and the body {:?}",
            clip(&name, 63),
            spec.name
        ))
        .field("/name")
        .cure("a service can't be renamed; create a new one and remove the old")
        .into());
    }
    spec.validate()?;
    let fresh = ServiceId::random();
    let policies = api.cluster.policies();
    let ((id, status), state) = api
        .cluster
        .write(move |state, now| {
            let old = state.service(scope.tenant.id, &spec.name).cloned();
            expected.check(old.as_deref(), &spec.name)?;
            judge(state, &scope, &spec, old.as_deref())?;
            super::placement::judge_policy(&policies, &spec, old.as_deref())?;
            let Some(old) = old else {
                let told = event(
                    &scope,
                    "created",
                    &spec.name,
                    format!("{} × {}", spec.replicas, spec.image),
                );
                let record = new_record(fresh, scope.tenant.id, spec, now);
                let answer = (fresh, StatusCode::CREATED);
                return Ok((vec![Change::PutService(record)], vec![told], answer));
            };
            let answer = (old.id, StatusCode::OK);
            if old.spec == spec {
                return Ok((Vec::new(), Vec::new(), answer));
            }
            let (change, told) = changed(&scope, &old, spec);
            Ok((vec![change], vec![told], answer))
        })
        .await?;
    Ok((status, shown(&state, &api.cluster, id)?))
}

fn changed(scope: &Scope, old: &ServiceRecord, spec: ServiceSpec) -> (Change, NewEvent) {
    let record = ServiceRecord {
        generation: old.generation + 1,
        spec,
        ..old.clone()
    };
    let text = format!(
        "generation {}: {} × {}",
        record.generation, record.spec.replicas, record.spec.image
    );
    let told = event(scope, "updated", &record.spec.name, text);
    (Change::PutService(record), told)
}

/// Remove a service and its containers
#[utoipa::path(delete, path = "/tenants/{tenant}/services/{name}", tag = "services", operation_id = "removeService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    responses((status = 204, description = "It is gone; its containers are being removed")))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    api.cluster
        .write(move |state, _| {
            let old = find(state, &scope.tenant, &name)?;
            let told = event(&scope, "removed", &old.spec.name, "removed".to_owned());
            Ok((vec![Change::DeleteService(old.id)], vec![told], ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set the number of replicas
#[utoipa::path(post, path = "/tenants/{tenant}/services/{name}/scale", tag = "services", operation_id = "scaleService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    request_body = Scale,
    responses((status = 200, description = "The service with its new number", body = ServiceView)))]
async fn scale(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
    Json(body): Json<Scale>,
) -> Answer<ServiceView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let old = find(state, &scope.tenant, &name)?;
            if old.spec.replicas == body.replicas {
                return Ok((Vec::new(), Vec::new(), old.id));
            }
            let mut spec = old.spec.clone();
            spec.replicas = body.replicas;
            spec.validate().map_err(|error| spec_problem(&error))?;
            judge(state, &scope, &spec, Some(&old))?;
            let (change, told) = changed(&scope, &old, spec);
            Ok((vec![change], vec![told], old.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}

/// What a command does to a service.
async fn command(
    scope: Scope,
    api: ApiState,
    name: String,
    kind: &'static str,
    change: fn(&mut ServiceRecord),
) -> Answer<ServiceView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let old = find(state, &scope.tenant, &name)?;
            let mut new = (*old).clone();
            change(&mut new);
            let mut changes = commands::command(state, new.clone());
            if new == *old {
                changes.pop(); // The service itself; single containers may still have to follow.
            }
            let told = (!changes.is_empty()).then(|| event(&scope, kind, &new.spec.name, kind.to_owned()));
            Ok((changes, told.into_iter().collect(), old.id))
        })
        .await?;
    shown(&state, &api.cluster, id)
}

/// Stop all containers of a service and keep them
#[utoipa::path(post, path = "/tenants/{tenant}/services/{name}/stop", tag = "services", operation_id = "stopService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    responses((status = 200, description = "The service", body = ServiceView)))]
async fn stop(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Answer<ServiceView> {
    command(scope, api, name, "stopped", |s| s.run = RunState::Stopped).await
}

/// Start all containers of a service
#[utoipa::path(post, path = "/tenants/{tenant}/services/{name}/start", tag = "services", operation_id = "startService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    responses((status = 200, description = "The service", body = ServiceView)))]
async fn start(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Answer<ServiceView> {
    command(scope, api, name, "started", |s| s.run = RunState::Running).await
}

/// Stop and start all containers of a service
#[utoipa::path(post, path = "/tenants/{tenant}/services/{name}/restart", tag = "services", operation_id = "restartService",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The service's name")),
    responses((status = 200, description = "The service", body = ServiceView)))]
async fn restart(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Answer<ServiceView> {
    command(scope, api, name, "restarted", |s| {
        s.run = RunState::Running;
        s.restarts_asked = s.restarts_asked.saturating_add(1);
    })
    .await
}
