//! Pools of nodes. Everybody sees which there are, since services name them; only administrators make, change and remove them.

use std::collections::BTreeSet;

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{Listing, PoolView, PutPool};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, clip};
use berth_common::model::{DEFAULT_POOL, Overcommit, PoolRecord, Reservation, default_pool};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{AdminOnly, Caller};
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState, nodes};
use crate::cluster::{Change, State};
use crate::controllers::NewEvent;

/// Most pools.
const MAX_POOLS: usize = 1_000;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show, put, remove))
}

/// That there is no such pool.
pub fn missing(name: &str) -> Problem {
    Problem::not_found(format!("there is no pool {:?}", clip(name, 63))).cure("berth pool ls lists them")
}

/// Whether there is a pool to be named in `field`.
///
/// # Errors
/// `invalid`, with how to make it.
pub fn judge(state: &State, name: &Name) -> Result<(), Problem> {
    if state.has_pool(name) {
        return Ok(());
    }
    Err(Problem::invalid(format!("there is no pool {name}"))
        .field("/pool")
        .cure(format!(
            "`berth pool ls` lists them; an administrator makes one: berth pool set {name}"
        )))
}

/// Percentages that an overcommit may have.
///
/// # Errors
/// Names the field that is out of range.
pub fn check_overcommit(overcommit: Overcommit) -> Result<(), Problem> {
    let ranges = [
        ("/overcommit/cpu_percent", overcommit.cpu_percent, 10_000),
        ("/overcommit/memory_percent", overcommit.memory_percent, 1_000),
    ];
    for (field, value, most) in ranges {
        if !(1..=most).contains(&value) {
            return Err(
                Problem::invalid(format!("{value} is out of range: 1 to {most} percent")).field(field),
            );
        }
    }
    Ok(())
}

/// A pool with what of it the caller may see.
fn view(state: &State, caller: &Caller, name: &Name) -> PoolView {
    let mut shown = PoolView {
        name: name.clone(),
        overcommit: state.pool_overcommit(name),
        nodes: 0,
        allocatable: Reservation::default(),
        reserved: Reservation::default(),
    };
    let members = state.nodes.values().filter(|node| node.pool == *name);
    for node in members.filter(|node| nodes::visible(caller, node)) {
        shown.nodes += 1;
        shown.allocatable = shown.allocatable.plus(state.allocatable(node));
        shown.reserved = shown.reserved.plus(state.taken_on(node.id).reserved);
    }
    shown
}

/// List pools
#[utoipa::path(get, path = "/pools", tag = "nodes", operation_id = "listPools", params(Page),
    responses((status = 200, description = "All pools, by name, with the nodes that the caller may see", body = Listing<PoolView>)))]
async fn list(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<PoolView>> {
    let state = api.cluster.snapshot();
    let mut names: BTreeSet<Name> = state.pools.keys().cloned().collect();
    names.insert(default_pool());
    let all = names.iter().map(|name| (name.clone(), name));
    Ok(Json(
        page.of(all, state.revision, |name| view(&state, &caller, name))?,
    ))
}

/// Show a pool
#[utoipa::path(get, path = "/pools/{pool}", tag = "nodes", operation_id = "showPool",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 200, description = "The pool", body = PoolView)))]
async fn show(caller: Caller, Extract(api): Extract<ApiState>, Path(pool): Path<String>) -> Answer<PoolView> {
    let state = api.cluster.snapshot();
    let name = pool.parse().ok().filter(|name| state.has_pool(name));
    let name = name.ok_or_else(|| missing(&pool))?;
    Ok(Json(view(&state, &caller, &name)))
}

/// Make a pool, or change its overcommit
///
/// Nothing that runs is taken away where less is allowed than before; nothing new comes until there is room again (R4).
#[utoipa::path(put, path = "/pools/{pool}", tag = "nodes", operation_id = "putPool",
    params(("pool" = String, Path, description = "Its name")),
    request_body = PutPool,
    responses((status = 200, description = "The pool as it is now", body = PoolView)))]
async fn put(
    AdminOnly(caller): AdminOnly,
    Extract(api): Extract<ApiState>,
    Path(pool): Path<String>,
    Json(body): Json<PutPool>,
) -> Answer<PoolView> {
    check_overcommit(body.overcommit)?;
    let name: Name = pool
        .parse()
        .map_err(|error| Problem::invalid(format!("{:?}: {error}", clip(&pool, 63))))?;
    let shown = name.clone();
    let ((), state) = api
        .cluster
        .write(move |state, now| {
            let old = state.pools.get(&name);
            if old.is_some_and(|old| old.overcommit == body.overcommit) {
                return Ok((Vec::new(), Vec::new(), ()));
            }
            if old.is_none() && state.pools.len() >= MAX_POOLS {
                let detail = format!("there are {MAX_POOLS} pools already");
                return Err(Problem::new(ErrorKind::Precondition, detail).cure("remove one first"));
            }
            let Overcommit {
                cpu_percent,
                memory_percent,
            } = body.overcommit;
            let record = PoolRecord {
                overcommit: body.overcommit,
                created_at: old.map_or(now.wall, |old| old.created_at),
                revision: Default::default(),
                name: name.clone(),
            };
            let told = NewEvent {
                kind: "pool-changed",
                tenant: None,
                subject: format!("pool {name}"),
                text: format!("overcommit: CPU {cpu_percent} %, memory {memory_percent} %"),
            };
            Ok((vec![Change::PutPool(record)], vec![told], ()))
        })
        .await?;
    Ok(Json(view(&state, &caller, &shown)))
}

/// Remove a pool that nobody is in or asks for
#[utoipa::path(delete, path = "/pools/{pool}", tag = "nodes", operation_id = "removePool",
    params(("pool" = String, Path, description = "Its name")),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    _admin: AdminOnly,
    Extract(api): Extract<ApiState>,
    Path(pool): Path<String>,
) -> Result<StatusCode, ApiError> {
    api.cluster
        .write(move |state, _| {
            let name: Name = pool.parse().map_err(|_| missing(&pool))?;
            let refuse =
                |detail: String, cure: String| Err(Problem::new(ErrorKind::Precondition, detail).cure(cure));
            if name.as_str() == DEFAULT_POOL {
                let cure = "give it the overcommit you want: berth pool set default";
                return refuse("the pool default can't be removed".to_owned(), cure.to_owned());
            }
            if !state.pools.contains_key(&name) {
                return Err(missing(name.as_str()));
            }
            let nodes = state.nodes.values().filter(|node| node.pool == name).count();
            if nodes > 0 {
                let cure = format!("move them first: berth node update NAME --pool {DEFAULT_POOL}");
                return refuse(format!("pool {name} has {nodes} nodes"), cure);
            }
            let asking = state.services.values();
            let services = asking.filter(|s| s.spec.pool.as_ref() == Some(&name)).count();
            if services > 0 {
                let cure = "change them first: berth service update NAME --pool".to_owned();
                return refuse(format!("{services} services ask for pool {name}"), cure);
            }
            Ok((vec![Change::DeletePool(name)], Vec::new(), ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
