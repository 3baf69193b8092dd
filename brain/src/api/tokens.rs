//! API tokens of a tenant; those of administrators are kept with the tenant `default`.

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{CreateToken, CreatedToken, Listing, TokenView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{TokenId, clip};
use berth_common::model::{Role, TokenRecord, UnixMillis};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Scope, new_token};
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState, tenants, views};
use crate::cluster::{Change, State};

/// Longest lifetime of a token, seconds: a century.
const MAX_TTL_SECS: u64 = 100 * 366 * 86_400;
/// Most tokens of one tenant.
const MAX_TOKENS: usize = 1_000;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(remove))
}

/// Whether the caller may see and revoke a token under this tenant.
fn belongs(scope: &Scope, token: &TokenRecord) -> bool {
    match token.role {
        Role::Tenant { tenant } => tenant == scope.tenant.id,
        Role::Admin | Role::Metrics => {
            scope.caller.is_admin() && scope.tenant.name.as_str() == tenants::DEFAULT
        }
    }
}

/// List a tenant's tokens
#[utoipa::path(get, path = "/tenants/{tenant}/tokens", tag = "tenants", operation_id = "listTokens",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Its tokens, without their secrets", body = Listing<TokenView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<TokenView>> {
    let state = api.cluster.snapshot();
    // Ids in bytes do not order like their text, and pages go by text.
    let mut all: Vec<_> = state.tokens.values().filter(|t| belongs(&scope, t)).collect();
    all.sort_by_cached_key(|t| t.id.to_string());
    let all = all.into_iter().map(|t| (t.id.to_string(), t));
    Ok(Json(page.of(all, state.revision, |t| views::token(t))?))
}

/// A role that is not one tenant's: made by administrators, and kept with the tenant `default`.
fn of_platform(scope: &Scope, role: Role, field: &'static str, what: &str) -> Result<Role, Problem> {
    scope.caller.need_admin(&format!("making {what}"))?;
    if scope.tenant.name.as_str() != tenants::DEFAULT {
        return Err(Problem::invalid(format!("{what} is made in the tenant default")).field(field));
    }
    Ok(role)
}

/// Create a token
#[utoipa::path(post, path = "/tenants/{tenant}/tokens", tag = "tenants", operation_id = "createToken",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = CreateToken,
    responses((status = 201, description = "The token; its secret is shown only here", body = CreatedToken)))]
async fn create(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(body): Json<CreateToken>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    if body.note.chars().count() > 256 || body.note.chars().any(char::is_control) {
        return Err(Problem::invalid("a note has at most 256 printable characters")
            .field("/note")
            .into());
    }
    if let Some(ttl) = body.ttl_secs
        && !(1..=MAX_TTL_SECS).contains(&ttl)
    {
        return Err(
            Problem::invalid(format!("{ttl} is out of range: 1 to {MAX_TTL_SECS}"))
                .field("/ttl_secs")
                .into(),
        );
    }
    let tenant = scope.tenant.id;
    let role = match (body.admin, body.metrics) {
        (false, false) => Role::Tenant { tenant },
        (true, true) => {
            return Err(Problem::invalid(
                "an administrator's token reads metrics anyway; ask for one of the two",
            )
            .field("/metrics")
            .into());
        }
        (true, false) => of_platform(&scope, Role::Admin, "/admin", "an administrator's token")?,
        (false, true) => of_platform(&scope, Role::Metrics, "/metrics", "a token for metrics")?,
    };
    let ttl_ms = body.ttl_secs.map(|secs| secs * 1_000);
    let (token, record) = new_token(role, body.note, ttl_ms, api.cluster.now().wall);
    let view = views::token(&record);
    api.cluster
        .write(move |state, _| {
            tenants::current(state, tenant)?;
            if state.tokens.values().filter(|t| t.role == role).count() >= MAX_TOKENS {
                return Err(Problem::new(
                    ErrorKind::Precondition,
                    format!("there are {MAX_TOKENS} tokens already"),
                )
                .cure("revoke those no longer needed: berth tenant token TENANT --ls, then --revoke ID"));
            }
            Ok((vec![Change::PutToken(record)], Vec::new(), ()))
        })
        .await?;
    Ok((StatusCode::CREATED, Json(CreatedToken { token, view })))
}

/// Revoke a token
#[utoipa::path(delete, path = "/tenants/{tenant}/tokens/{id}", tag = "tenants", operation_id = "removeToken",
    params(("tenant" = String, Path, description = "The tenant's name"), ("id" = String, Path, description = "The token's id")),
    responses((status = 204, description = "It no longer works")))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, id)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let missing = Problem::not_found(format!(
        "tenant {} has no token {:?}",
        scope.tenant.name,
        clip(&id, 40)
    ));
    let id: TokenId = id.parse().map_err(|_| missing.clone())?;
    api.cluster
        .write(move |state, now| {
            let token = state
                .tokens
                .get(&id)
                .filter(|token| belongs(&scope, token))
                .ok_or(missing)?;
            if token.role == Role::Admin && !other_admin(state, id, now.wall) {
                return Err(Problem::new(
                    ErrorKind::Precondition,
                    "it is the last administrator's token that still works",
                )
                .cure("make another one first: berth tenant token default --admin"));
            }
            Ok((vec![Change::DeleteToken(id)], Vec::new(), ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn other_admin(state: &State, id: TokenId, now: UnixMillis) -> bool {
    state
        .tokens
        .values()
        .any(|t| t.id != id && t.role == Role::Admin && t.expires_at.is_none_or(|at| at > now))
}
