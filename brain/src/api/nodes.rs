//! Nodes and join tokens. Administrators see all nodes; a tenant sees, and may manage, its private ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{CreateJoinToken, CreatedJoinToken, Listing, NodeView, UpdateNode};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{NodeId, TenantId, TokenId, clip};
use berth_common::model::{MAX_TAINTS, NODE_LABEL, NodeKind, NodeRecord, Taint, UnixMillis};
use berth_common::protocol::JoinToken;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, hash_secret, new_secret, visible_tenant};
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState, pools, tenants, views, volumes};
use crate::cluster::{Change, JoinTokenRecord, State};
use crate::controllers::NewEvent;

const DEFAULT_TTL_SECS: u64 = 3_600;
const MAX_TTL_SECS: u64 = 604_800;
/// Most unused join tokens for shared nodes, and for those of each tenant.
const MAX_JOIN_TOKENS: usize = 1_000;
/// Most addresses in a join token; more would make it longer than an agent accepts.
const MAX_ADDRESSES: usize = 8;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(create_join_token))
        .routes(routes!(show, update, remove))
        .routes(routes!(cordon))
        .routes(routes!(uncordon))
        .routes(routes!(drain))
}

/// Whether the caller may see a node.
pub fn visible(caller: &Caller, node: &NodeRecord) -> bool {
    match node.kind {
        NodeKind::Shared => caller.is_admin(),
        NodeKind::Private { tenant } => caller.sees(tenant),
    }
}

/// Whether a tenant's containers and volumes may be on a node.
pub fn usable(tenant: TenantId, node: &NodeRecord) -> bool {
    match node.kind {
        NodeKind::Shared => true,
        NodeKind::Private { tenant: owner } => owner == tenant,
    }
}

/// The node of this name or id, if the caller may see it.
///
/// # Errors
/// `not-found`.
pub fn find(state: &State, caller: &Caller, text: &str) -> Result<Arc<NodeRecord>, Problem> {
    let by_name = text.parse().ok().and_then(|name| state.node(&name));
    let by_id = || text.parse::<NodeId>().ok().and_then(|id| state.nodes.get(&id));
    by_name
        .or_else(by_id)
        .filter(|node| visible(caller, node))
        .cloned()
        .ok_or_else(|| {
            Problem::not_found(format!("there is no node {:?} that you may see", clip(text, 40)))
                .cure("berth node ls lists those you may see")
        })
}

fn event(kind: &'static str, state: &State, node: &NodeRecord, text: &str) -> NewEvent {
    let tenant = match node.kind {
        NodeKind::Shared => None,
        NodeKind::Private { tenant } => state.tenants.get(&tenant).map(|t| t.name.clone()),
    };
    NewEvent {
        kind,
        tenant,
        subject: format!("node {}", node.name),
        text: text.to_owned(),
    }
}

/// List nodes
#[utoipa::path(get, path = "/nodes", tag = "nodes", operation_id = "listNodes", params(Page),
    responses((status = 200, description = "Nodes the caller may see, by name", body = Listing<NodeView>)))]
async fn list(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<NodeView>> {
    let state = api.cluster.snapshot();
    let all = state
        .node_names
        .iter()
        .filter_map(|(name, id)| Some((name.clone(), state.nodes.get(id)?)))
        .filter(|(_, node)| visible(&caller, node));
    Ok(Json(page.of(all, state.revision, |node| {
        views::node(&state, &api.cluster, node)
    })?))
}

/// Show a node
#[utoipa::path(get, path = "/nodes/{node}", tag = "nodes", operation_id = "showNode",
    params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "The node and how it stands", body = NodeView)))]
async fn show(caller: Caller, Extract(api): Extract<ApiState>, Path(node): Path<String>) -> Answer<NodeView> {
    let state = api.cluster.snapshot();
    let record = find(&state, &caller, &node)?;
    Ok(Json(views::node(&state, &api.cluster, &record)))
}

/// Changes a node and shows it.
async fn change(
    caller: Caller,
    api: ApiState,
    node: String,
    kind: &'static str,
    text: &'static str,
    edit: impl FnOnce(&State, &mut NodeRecord) -> Result<(), Problem> + Send + 'static,
) -> Answer<NodeView> {
    let (id, state) = api
        .cluster
        .write(move |state, _| {
            let old = find(state, &caller, &node)?;
            let mut new = (*old).clone();
            edit(state, &mut new)?;
            if new == *old {
                return Ok((Vec::new(), Vec::new(), old.id));
            }
            let told = event(kind, state, &new, text);
            Ok((vec![Change::PutNode(new)], vec![told], old.id))
        })
        .await?;
    let record = state
        .nodes
        .get(&id)
        .ok_or_else(|| Problem::not_found("the node was removed meanwhile"))?;
    Ok(Json(views::node(&state, &api.cluster, record)))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Problem> {
    let ok = |(key, value): (&String, &String)| {
        (1..=128).contains(&key.len())
            && value.len() <= 1024
            && !key.chars().chain(value.chars()).any(char::is_control)
    };
    if labels.contains_key(NODE_LABEL) {
        let detail = format!("the label {NODE_LABEL} is every node's own: its value is the node's name");
        let problem = Problem::invalid(detail).field("/labels");
        return Err(problem.cure("give what you mean another key"));
    }
    if labels.len() <= 64 && labels.iter().all(ok) {
        return Ok(());
    }
    let detail = "at most 64 labels, keys of 1 to 128 and values of at most 1024 printable characters";
    Err(Problem::invalid(detail).field("/labels"))
}

fn check_taints(taints: &[Taint]) -> Result<(), Problem> {
    let refused = |detail: String| Err(Problem::invalid(detail).field("/taints"));
    if taints.len() > MAX_TAINTS {
        return refused(format!("{} taints; at most {MAX_TAINTS}", taints.len()));
    }
    // Of two values of one key and effect, one was meant to take the other's place.
    let same = |a: &Taint, b: &Taint| a.key == b.key && a.effect == b.effect;
    let twice = |(at, taint): (usize, &Taint)| taints[..at].iter().any(|other| same(other, taint));
    match taints.iter().enumerate().find(|one| twice(*one)) {
        Some((_, taint)) => refused(format!("there are two taints {}:{}", taint.key, taint.effect)),
        None => Ok(()),
    }
}

/// Change a node's labels, taints, pool or overcommit
#[utoipa::path(patch, path = "/nodes/{node}", tag = "nodes", operation_id = "updateNode",
    params(("node" = String, Path, description = "Its name or id")),
    request_body = UpdateNode,
    responses((status = 200, description = "The node as it is now", body = NodeView)))]
async fn update(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
    Json(body): Json<UpdateNode>,
) -> Answer<NodeView> {
    body.labels.as_ref().map_or(Ok(()), check_labels)?;
    body.taints.as_deref().map_or(Ok(()), check_taints)?;
    body.overcommit.map_or(Ok(()), pools::check_overcommit)?;
    if body.overcommit.is_some() && body.overcommit_of_pool {
        let detail = "an overcommit of its own, and its pool's: only one of both can hold";
        return Err(Problem::invalid(detail).field("/overcommit_of_pool").into());
    }
    change(
        caller,
        api,
        node,
        "node-updated",
        "its settings changed",
        move |state, record| {
            if let Some(pool) = body.pool {
                pools::judge(state, &pool)?;
                record.pool = pool;
            }
            if let Some(labels) = body.labels {
                record.labels = labels;
            }
            record.taints = body.taints.unwrap_or(std::mem::take(&mut record.taints));
            record.overcommit = match body.overcommit_of_pool {
                true => None,
                false => body.overcommit.or(record.overcommit),
            };
            Ok(())
        },
    )
    .await
}

/// Give a node no new containers
#[utoipa::path(post, path = "/nodes/{node}/cordon", tag = "nodes", operation_id = "cordonNode",
    params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "The node", body = NodeView)))]
async fn cordon(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
) -> Answer<NodeView> {
    let text = "it gets no new containers";
    change(caller, api, node, "cordoned", text, |_, record| {
        record.cordoned = true;
        Ok(())
    })
    .await
}

/// Undo cordon and drain
#[utoipa::path(post, path = "/nodes/{node}/uncordon", tag = "nodes", operation_id = "uncordonNode",
    params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "The node", body = NodeView)))]
async fn uncordon(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
) -> Answer<NodeView> {
    change(
        caller,
        api,
        node,
        "uncordoned",
        "it gets containers again",
        |_, record| {
            record.cordoned = false;
            record.draining = false;
            Ok(())
        },
    )
    .await
}

/// Move all containers off a node
#[utoipa::path(post, path = "/nodes/{node}/drain", tag = "nodes", operation_id = "drainNode",
    params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "The node; drain_waits says what is still to leave", body = NodeView)))]
async fn drain(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
) -> Answer<NodeView> {
    change(
        caller,
        api,
        node,
        "draining",
        "its containers move elsewhere",
        |_, record| {
            record.cordoned = true;
            record.draining = true;
            Ok(())
        },
    )
    .await
}

/// Query of a removal.
#[derive(Debug, Clone, Copy, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Force {
    /// Also with containers on it; they are replaced elsewhere, and what runs on the host goes on until it is shut down. Volumes on it are
    /// to be moved or given up before.
    #[serde(default)]
    force: bool,
}

/// Remove a node for good
#[utoipa::path(delete, path = "/nodes/{node}", tag = "nodes", operation_id = "removeNode",
    params(("node" = String, Path, description = "Its name or id"), Force),
    responses((status = 204, description = "It is gone; its certificate no longer works")))]
async fn remove(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
    Query(Force { force }): Query<Force>,
) -> Result<StatusCode, ApiError> {
    api.cluster
        .write(move |state, _| {
            let old = find(state, &caller, &node)?;
            let count = state.containers_on(old.id).count();
            if count > 0 && !force {
                return Err(Problem::new(
                    ErrorKind::Precondition,
                    format!("node {} has {count} containers", old.name),
                )
                .cure(format!(
                    "move them away first: berth node drain {}; if the host is gone for good, add --force",
                    old.name
                )));
            }
            volumes::none_on(state, &old)?;
            let told = event("node-removed", state, &old, "removed");
            Ok((vec![Change::DeleteNode(old.id)], vec![told], ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

fn check_addresses(addresses: &[String]) -> Result<(), Problem> {
    let ok = |address: &String| {
        let Some((host, port)) = address.rsplit_once(':') else {
            return false;
        };
        let host_ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
        (1..=253).contains(&host.len())
            && host.bytes().all(host_ok)
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if addresses.len() <= MAX_ADDRESSES && addresses.iter().all(ok) {
        return Ok(());
    }
    let detail = format!("at most {MAX_ADDRESSES} addresses, each host:port");
    Err(Problem::invalid(detail).field("/addresses"))
}

/// Create a join token
#[utoipa::path(post, path = "/nodes/tokens", tag = "nodes", operation_id = "createJoinToken",
    request_body = CreateJoinToken,
    responses((status = 201, description = "The token for one host; shown only here", body = CreatedJoinToken)))]
async fn create_join_token(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Json(body): Json<CreateJoinToken>,
) -> Result<(StatusCode, Json<CreatedJoinToken>), ApiError> {
    let kind = match &body.private {
        None => {
            caller.need_admin("a shared node")?;
            NodeKind::Shared
        }
        Some(name) => {
            let tenant = visible_tenant(&api.cluster.snapshot(), &caller, name.as_str())?;
            NodeKind::Private { tenant: tenant.id }
        }
    };
    check_labels(&body.labels)?;
    check_taints(&body.taints)?;
    let ttl = body.ttl_secs.unwrap_or(DEFAULT_TTL_SECS);
    if !(1..=MAX_TTL_SECS).contains(&ttl) {
        let detail = format!("{ttl} is out of range: 1 to {MAX_TTL_SECS}");
        return Err(Problem::invalid(detail).field("/ttl_secs").into());
    }
    check_addresses(&body.addresses)?;
    let addresses = if body.addresses.is_empty() {
        api.advertise.clone()
    } else {
        body.addresses
    };
    if addresses.is_empty() {
        return Err(
            Problem::invalid("the brain does not know at which address nodes reach it")
                .field("/addresses")
                .cure("name it here, or set `advertise` in the brain's configuration")
                .into(),
        );
    }
    let (id, secret) = (TokenId::random(), new_secret());
    let record = JoinTokenRecord {
        id,
        secret_hash: hash_secret(&secret),
        kind,
        labels: body.labels,
        taints: body.taints,
        pool: body.pool,
        expires_at: UnixMillis(api.cluster.now().wall.0.saturating_add(ttl * 1_000)),
    };
    let expires_at = record.expires_at;
    api.cluster
        .write(move |state, _| {
            if let NodeKind::Private { tenant } = kind {
                tenants::current(state, tenant)?;
            }
            record
                .pool
                .as_ref()
                .map_or(Ok(()), |pool| pools::judge(state, pool))?;
            if state.join_tokens.values().filter(|t| t.kind == kind).count() >= MAX_JOIN_TOKENS {
                let detail = format!("there are {MAX_JOIN_TOKENS} unused join tokens already");
                return Err(Problem::new(ErrorKind::Precondition, detail).cure("wait until some expire"));
            }
            Ok((vec![Change::PutJoinToken(record)], Vec::new(), ()))
        })
        .await?;
    let token = JoinToken {
        addresses,
        ca_fingerprint: api.ca_fingerprint.clone(),
        secret: format!("{id}.{secret}"),
    };
    let answer = CreatedJoinToken {
        install: api.installer.line(&token.addresses[0], &token.to_string()),
        token: token.to_string(),
        expires_at,
    };
    Ok((StatusCode::CREATED, Json(answer)))
}
