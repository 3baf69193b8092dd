//! Why containers are where they are, and where they would be. Nothing here changes anything.
//!
//! A tenant is told of its own containers what refusals and lists tell it as well: sentences, and names of nodes that have or would have
//! containers of its own. Nodes one by one, with their load, it sees where they are its private ones (R6).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State as Extract};
use berth_common::api::{ExpectedShares, ForeseenView, NodeFit, PlacementView, ScoreParts};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, ServiceSpec};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::{Caller, Scope};
use super::problem::Json;
use super::views::node_name;
use super::{Answer, ApiState, containers, foresight, nodes, services, views};
use crate::cluster::{Change, State};
use crate::controllers::explained::{self, Explained};
use crate::controllers::foreseen::{self, Ahead};
use crate::controllers::view;
use crate::scheduler::compare::{Choice, Expected};
use crate::scheduler::forecast::{CPU, MEMORY};
use crate::scheduler::score::Parts;

/// Most events that are told of one container.
const EVENTS: usize = 10;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(explain))
        .routes(routes!(what_if))
        .routes(routes!(loss))
}

/// Looks ahead at a time. They take a processor for up to a second each, and there are others who want one.
pub(super) const LOOKS: usize = 2;
/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(10);

/// Does work that takes a processor for long, when its turn comes and apart from the threads that answer.
///
/// # Errors
/// `rate-limited` if too many are before it.
pub(super) async fn in_turn<T: Send + 'static>(
    api: &ApiState,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    let turn = tokio::time::timeout(TURN, api.looks.acquire()).await;
    let Ok(Ok(_turn)) = turn else {
        let detail = "others are looking ahead before you, and you would wait too long";
        return Err(Problem::new(ErrorKind::RateLimited, detail).cure("try again in a moment"));
    };
    let ended = tokio::task::spawn_blocking(work).await;
    ended.map_err(|_| {
        Problem::new(ErrorKind::Internal, "looking ahead failed")
            .cure("the brain's log says why; please report it")
    })
}

/// Plays changes forward on a copy of the state.
async fn look_ahead(api: &ApiState, state: &Arc<State>, changes: Vec<Change>) -> Result<Ahead, Problem> {
    let (cluster, state) = (api.cluster.clone(), Arc::clone(state));
    let play = move || {
        let (now, mut fresh) = (cluster.now(), ContainerId::random);
        foreseen::look(&state, changes, now, &|| cluster.outlook_at(now), &mut fresh)
    };
    in_turn(api, play).await
}

/// What would stand against services in the end.
fn problems(
    api: &ApiState,
    ahead: &Ahead,
    services: impl IntoIterator<Item = ServiceId>,
) -> BTreeMap<ServiceId, String> {
    let outlook = api.cluster.outlook().given(ahead.supposed.clone());
    let all = services.into_iter();
    all.filter_map(|id| Some((id, view::service_problem(&ahead.state, &outlook, id)?)))
        .collect()
}

/// Say where a service's replicas would run, and change nothing
#[utoipa::path(post, path = "/tenants/{tenant}/schedule", tag = "services", operation_id = "foreseeService",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = ServiceSpec,
    responses((status = 200, description = "Where each would be, or why not, and whom it would cost its place", body = ForeseenView)))]
async fn what_if(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(spec): Json<ServiceSpec>,
) -> Answer<ForeseenView> {
    spec.validate()?;
    let state = api.cluster.snapshot();
    let old = state.service(scope.tenant.id, &spec.name).cloned();
    services::judge(&state, &scope, &spec, old.as_deref())?;
    let fresh = services::new_record(ServiceId::random(), scope.tenant.id, spec, api.cluster.now());
    let record = foreseen::of_spec(old.as_deref(), fresh);
    let id = record.id;
    let changes = match &old {
        Some(old) if **old == record => Vec::new(),
        _ => vec![Change::PutService(record)],
    };
    let ahead = look_ahead(&api, &state, changes).await?;
    let pairs = foreseen::replicas(&state, &ahead.state, id);
    let own = state.containers_of(id).map(|c| c.id).collect();
    Ok(Json(foresight::view(
        &state,
        &ahead,
        &scope.caller,
        scope.caller.only_tenant().map(|_| &scope.tenant.name),
        &pairs,
        &own,
        &problems(&api, &ahead, [id]),
    )))
}

/// Say what the loss of a node would do, and change nothing
#[utoipa::path(get, path = "/nodes/{node}/loss", tag = "nodes", operation_id = "foreseeLoss",
    params(("node" = String, Path, description = "Its name or id")),
    responses((status = 200, description = "Where its containers would go, and which would find no place", body = ForeseenView)))]
async fn loss(
    caller: Caller,
    Extract(api): Extract<ApiState>,
    Path(node): Path<String>,
) -> Answer<ForeseenView> {
    let state = api.cluster.snapshot();
    let node = nodes::find(&state, &caller, &node)?;
    let ahead = look_ahead(&api, &state, foreseen::of_loss(&state, node.id)).await?;
    let there = state.containers_on(node.id).filter(|c| !c.removing);
    let there: Vec<_> = there.filter(|c| caller.sees(c.tenant)).collect();
    let services: BTreeSet<ServiceId> = there.iter().map(|c| c.service).collect();
    let own: BTreeSet<ContainerId> = there.iter().map(|c| c.id).collect();
    let pairs = services
        .iter()
        .flat_map(|id| foreseen::replicas(&state, &ahead.state, *id));
    let pairs: Vec<_> = pairs
        .filter(|pair| pair.before.is_some_and(|old| own.contains(&old.id)))
        .collect();
    let only = caller.only_tenant().map(|id| views::tenant_name(&state, id));
    let problems = problems(&api, &ahead, services);
    let view = foresight::view(&state, &ahead, &caller, only.as_ref(), &pairs, &own, &problems);
    Ok(Json(view))
}

/// Explain why a container is where it is, or why it waits
#[utoipa::path(get, path = "/tenants/{tenant}/containers/{container}/schedule", tag = "containers", operation_id = "explainPlacement",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 200, description = "Every node compared, as if it were placed now", body = PlacementView)))]
async fn explain(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
) -> Answer<PlacementView> {
    let state = api.cluster.snapshot();
    let record = containers::find(&state, scope.tenant.id, &container)?;
    let told = match record.removing {
        true => None,
        false => explained::explain(&state, &api.cluster.outlook(), &record),
    };
    if told.as_ref().is_some_and(|told| told.unheard) {
        api.cluster.want(BTreeSet::from([record.service]));
    }
    let told = told.ok_or_else(|| {
        let detail = format!("container {} is being removed", views::container_name(&record));
        Problem::new(ErrorKind::Precondition, detail).cure("berth ps shows the one that takes over")
    })?;
    let of = format!("container {} (", views::container_name(&record));
    let events = api.cluster.events().newest(EVENTS, |event| {
        event.tenant.as_ref() == Some(&scope.tenant.name) && event.subject.starts_with(&of)
    });
    let mut view = placement(&state, &scope.caller, &record, &told);
    view.events = events.iter().map(|event| (**event).clone()).collect();
    Ok(Json(view))
}

/// What a caller is told of a container's place.
fn placement(state: &State, caller: &Caller, record: &ContainerRecord, told: &Explained) -> PlacementView {
    let visible = |node: NodeId| {
        let node = state.nodes.get(&node);
        node.is_some_and(|node| nodes::visible(caller, node))
    };
    // Where its own containers are a tenant sees anyhow.
    let shown = |node: NodeId| {
        let known = visible(node) || record.node == Some(node);
        known.then(|| node_name(state, node)).flatten()
    };
    let best = told.best().map(|best| best.node);
    let seen = told.choices.iter().filter(|choice| visible(choice.node));
    PlacementView {
        container: record.id,
        name: views::container_name(record),
        node_name: record.node.and_then(|node| node_name(state, node)),
        best: best.and_then(shown),
        verdict: told.verdict(record, |node| shown(node).map(|name| name.to_string()), visible),
        asked: told.asked,
        cpu: told.load[CPU].mean as u32,
        memory: told.load[MEMORY].mean as u64,
        nodes: seen
            .filter_map(|choice| {
                let mut fit = fit(state, told, choice)?;
                fit.here = record.node == Some(choice.node);
                fit.best = best == Some(choice.node);
                Some(fit)
            })
            .collect(),
        events: Vec::new(),
    }
}

fn fit(state: &State, told: &Explained, choice: &Choice) -> Option<NodeFit> {
    let name = node_name(state, choice.node)?;
    let against = choice.against.iter();
    Some(NodeFit {
        node: choice.node,
        here: false,
        best: false,
        against: against
            .map(|one| one.sentence(told.asked, name.as_str()))
            .collect(),
        score: choice.rating.as_ref().map(score),
        free: choice.free,
        replicas: choice.replicas,
        expected: choice.expected.map(shares),
        name,
    })
}

fn score(parts: &Parts) -> ScoreParts {
    ScoreParts {
        total: parts.total(),
        reservation: parts.reservation,
        load: parts.load,
        replicas: parts.replicas,
        alone: parts.alone,
        spread: parts.spread,
        together: parts.standing.together,
        taints: parts.standing.taints,
        policy: parts.standing.policy,
        image: parts.image,
        displaces: parts.displaces,
    }
}

fn shares(expected: Expected) -> ExpectedShares {
    let percent = |share: f32| (share * 100.0) as u32;
    ExpectedShares {
        cpu_percent: percent(expected.cpu),
        cpu_high_percent: percent(expected.cpu_high),
        memory_percent: percent(expected.memory_high),
        deviations: expected.room,
    }
}
