//! A tenant's registry credentials. Passwords go in and, but to agents that pull, never out.

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{Listing, PutRegistry, RegistryView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::clip;
use berth_common::model::{ImageRef, RegistryCredential};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Scope;
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState, tenants};
use crate::cluster::Change;

/// Most registries of one tenant.
const MAX_REGISTRIES: usize = 100;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
}

fn missing(scope: &Scope, host: &str) -> Problem {
    Problem::not_found(format!(
        "tenant {} has no credentials for {:?}",
        scope.tenant.name,
        clip(host, 80)
    ))
}

fn view(credential: &RegistryCredential) -> RegistryView {
    RegistryView {
        registry: credential.registry.clone(),
        username: credential.username.clone(),
    }
}

/// Registry host with port, in the form that image names have it.
fn parse_host(host: &str) -> Result<String, Problem> {
    let host = match host {
        // Docker's tools write their hub in several ways; images name it docker.io.
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let looks_like_host = host.contains(['.', ':']) || host == "localhost";
    let probe = format!("{host}/probe").parse::<ImageRef>();
    match probe {
        Ok(image) if looks_like_host && host.len() <= 255 && image.registry() == host => Ok(host.to_owned()),
        _ => Err(
            Problem::invalid(format!("{:?} is not a registry host", clip(host, 80))).cure(
                "write host or host:port, such as registry.example.com:5000, without https:// or a path",
            ),
        ),
    }
}

/// List registry credentials
#[utoipa::path(get, path = "/tenants/{tenant}/registries", tag = "images", operation_id = "listRegistries",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Registries, without passwords", body = Listing<RegistryView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<RegistryView>> {
    let state = api.cluster.snapshot();
    let own = state
        .registries
        .range((scope.tenant.id, String::new())..)
        .take_while(|((tenant, _), _)| *tenant == scope.tenant.id)
        .map(|((_, host), credential)| (host.clone(), credential));
    Ok(Json(page.of(own, state.revision, |credential| view(credential))?))
}

/// Show for whom a registry is used
#[utoipa::path(get, path = "/tenants/{tenant}/registries/{host}", tag = "images", operation_id = "showRegistry",
    params(("tenant" = String, Path, description = "The tenant's name"), ("host" = String, Path, description = "Registry host with port")),
    responses((status = 200, description = "The registry, without its password", body = RegistryView)))]
async fn show(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, host)): Path<(String, String)>,
) -> Answer<RegistryView> {
    let state = api.cluster.snapshot();
    let host = parse_host(&host)?;
    let found = state.registries.get(&(scope.tenant.id, host.clone()));
    let found = found.ok_or_else(|| missing(&scope, &host))?;
    Ok(Json(view(found)))
}

/// Set credentials for a registry
#[utoipa::path(put, path = "/tenants/{tenant}/registries/{host}", tag = "images", operation_id = "putRegistry",
    params(("tenant" = String, Path, description = "The tenant's name"), ("host" = String, Path, description = "Registry host with port")),
    request_body = PutRegistry,
    responses((status = 200, description = "What is kept, without the password", body = RegistryView)))]
async fn put(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, host)): Path<(String, String)>,
    Json(body): Json<PutRegistry>,
) -> Answer<RegistryView> {
    let registry = parse_host(&host)?;
    let username_ok = (1..=256).contains(&body.username.len())
        && !body.username.contains(':')
        && !body.username.chars().any(char::is_control);
    if !username_ok {
        let detail = "a user name has 1 to 256 printable characters and no ':'";
        return Err(Problem::invalid(detail).field("/username").into());
    }
    if body.password.is_empty() || body.password.len() > 16_384 || body.password.chars().any(char::is_control)
    {
        let detail = "a password has 1 to 16384 printable characters";
        return Err(Problem::invalid(detail).field("/password").into());
    }
    let credential = RegistryCredential {
        registry,
        username: body.username,
        password: body.password,
    };
    let answer = view(&credential);
    let tenant = scope.tenant.id;
    api.cluster
        .write(move |state, _| {
            tenants::current(state, tenant)?;
            let old = state.registries.get(&(tenant, credential.registry.clone()));
            if old.is_some_and(|old| **old == credential) {
                return Ok((Vec::new(), Vec::new(), ()));
            }
            let count = state.registries.keys().filter(|(t, _)| *t == tenant).count();
            if old.is_none() && count >= MAX_REGISTRIES {
                return Err(Problem::new(
                    ErrorKind::Precondition,
                    format!("there are {MAX_REGISTRIES} registries already"),
                )
                .cure("remove those no longer needed"));
            }
            Ok((vec![Change::PutRegistry(tenant, credential)], Vec::new(), ()))
        })
        .await?;
    Ok(Json(answer))
}

/// Forget credentials for a registry
#[utoipa::path(delete, path = "/tenants/{tenant}/registries/{host}", tag = "images", operation_id = "removeRegistry",
    params(("tenant" = String, Path, description = "The tenant's name"), ("host" = String, Path, description = "Registry host with port")),
    responses((status = 204, description = "They are gone")))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, host)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let host = parse_host(&host)?;
    api.cluster
        .write(move |state, _| {
            let key = (scope.tenant.id, host);
            if !state.registries.contains_key(&key) {
                return Err(missing(&scope, &key.1));
            }
            Ok((vec![Change::DeleteRegistry(key.0, key.1)], Vec::new(), ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
