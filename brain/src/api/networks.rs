//! A tenant's networks: their addresses, and who has which.

use axum::extract::{Path, Query, State as Extract};
use axum::http::StatusCode;
use berth_common::api::{CreateNetwork, Listing, NetworkView};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, TenantId, clip};
use berth_common::model::{DEFAULT_NETWORK, NetworkError, Subnets, TenantRecord, Vni, parse_cidr};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Scope;
use super::page::Page;
use super::problem::{ApiError, Json};
use super::{Answer, ApiState, tenants, views};
use crate::allocate;
use crate::cluster::{Change, Network, State, sites};
use crate::controllers::NewEvent;
use crate::controllers::endpoints::make;

/// Most networks of one tenant: each is a namespace, a bridge and a VXLAN device on every node that it touches.
const MAX_NETWORKS: usize = 200;

/// Most pairs of nodes that are told as apart.
const MAX_PROBLEMS: usize = 50;

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(show, remove))
}

fn parse_name(name: &str) -> Result<Name, Problem> {
    name.parse()
        .map_err(|_| Problem::not_found(format!("there is no network {:?}", clip(name, 80))))
}

fn find<'a>(state: &'a State, tenant: &TenantRecord, name: &Name) -> Result<&'a Network, Problem> {
    state.network(tenant.id, name).ok_or_else(|| {
        let missing = Problem::not_found(format!("tenant {} has no network {name}", tenant.name));
        if name.as_str() == DEFAULT_NETWORK {
            missing.cure(
                "it is made with the first container that is on it, or now: berth network create default",
            )
        } else {
            missing.cure("see those there are: berth network ls")
        }
    })
}

/// Services that name a network.
fn users(state: &State, network: &Network) -> Vec<Name> {
    let own = state
        .services
        .values()
        .filter(|s| s.tenant == network.record.tenant);
    let named = own.filter(|s| s.spec.networks.contains(&network.record.name));
    named.map(|s| s.spec.name.clone()).collect()
}

/// A network; `whole`: with everybody on it, and pairs of nodes that can't be joined.
fn view(state: &State, network: &Network, whole: bool) -> NetworkView {
    let record = &network.record;
    let nodes: Vec<_> = state
        .nodes_on(record.vni)
        .filter_map(|id| state.nodes.get(&id))
        .collect();
    let mut shown = NetworkView {
        name: record.name.clone(),
        tenant_name: views::tenant_name(state, record.tenant),
        vni: record.vni.into(),
        cidr: record.subnets.v4().to_string(),
        cidr6: record.subnets.v6().to_string(),
        gateway: record.subnets.address(Subnets::GATEWAY).to_string(),
        endpoints: state.endpoints_of(record.vni).count(),
        nodes: nodes.iter().map(|node| node.name.clone()).collect(),
        services: users(state, network),
        containers: Vec::new(),
        problems: Vec::new(),
        created_at: record.created_at,
        revision: record.revision,
    };
    if whole {
        let on_it = state
            .endpoints_of(record.vni)
            .filter_map(|(_, id)| state.containers.get(&id));
        let places = on_it.flat_map(|container| views::endpoints(state, container));
        shown.containers = places.filter(|place| place.network == record.name).collect();
        let pairs = nodes
            .iter()
            .enumerate()
            .flat_map(|(at, one)| nodes[at + 1..].iter().map(move |other| (one, other)));
        shown.problems = pairs
            .filter_map(|(one, other)| sites::apart(one, other))
            .take(MAX_PROBLEMS)
            .collect();
        // A node that nobody reaches says so once.
        shown.problems.dedup();
    }
    shown
}

/// List networks
#[utoipa::path(get, path = "/tenants/{tenant}/networks", tag = "networks", operation_id = "listNetworks",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Networks, by name", body = Listing<NetworkView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<NetworkView>> {
    let state = api.cluster.snapshot();
    let mut own: Vec<_> = state
        .networks_of(scope.tenant.id)
        .map(|n| (n.record.name.clone(), n))
        .collect();
    own.sort_by(|a, b| a.0.cmp(&b.0));
    let page = page.of(own.into_iter(), state.revision, |network| {
        view(&state, network, false)
    })?;
    Ok(Json(page))
}

/// Make a network
#[utoipa::path(post, path = "/tenants/{tenant}/networks", tag = "networks", operation_id = "createNetwork",
    params(("tenant" = String, Path, description = "The tenant's name")),
    request_body = CreateNetwork,
    responses((status = 201, description = "The new network", body = NetworkView)))]
async fn create(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Json(body): Json<CreateNetwork>,
) -> Result<(StatusCode, Json<NetworkView>), ApiError> {
    let bad = |error: NetworkError| Problem::invalid(error.to_string()).field("/cidr");
    let wanted = body.cidr.as_deref().map(parse_cidr).transpose().map_err(bad)?;
    if let Some(v4) = wanted {
        // What follows from the tenant and the identifier is never at fault.
        Subnets::new(v4, allocate::ula(scope.tenant.id, Vni::MIN)).map_err(bad)?;
    }
    let name = body.name.clone();
    let tenant = scope.tenant.clone();
    let ((), state) = api
        .cluster
        .write(move |state, now| {
            tenants::current(state, tenant.id)?;
            if state.network(tenant.id, &body.name).is_some() {
                let detail = format!("tenant {} has a network {} already", tenant.name, body.name);
                return Err(Problem::new(ErrorKind::AlreadyExists, detail).field("/name"));
            }
            let full = |detail: String, cure: &str| Problem::new(ErrorKind::Precondition, detail).cure(cure);
            if state.networks_of(tenant.id).count() >= MAX_NETWORKS {
                let detail = format!("tenant {} has {MAX_NETWORKS} networks already", tenant.name);
                return Err(full(detail, "remove those no longer needed"));
            }
            let taken = |vni| state.networks.contains_key(&vni);
            let record = make(state, taken, tenant.id, body.name, wanted, now.wall).map_err(|why| {
                full(
                    why,
                    "remove networks that nobody needs, or name addresses with --cidr",
                )
            })?;
            // Containers on both would not know which way to go.
            let other = state
                .networks_of(tenant.id)
                .find(|n| n.record.subnets.overlaps(&record.subnets));
            if let Some(other) = other {
                let (own, held) = (record.subnets.v4(), other.record.subnets.v4());
                let detail = format!(
                    "{own} overlaps {held} of the tenant's network {}",
                    other.record.name
                );
                return Err(Problem::new(ErrorKind::AlreadyExists, detail)
                    .field("/cidr")
                    .cure("name other addresses, or none to have berth choose"));
            }
            let told = NewEvent {
                kind: "network-created",
                tenant: Some(tenant.name.clone()),
                subject: format!("network {}", record.name),
                text: format!("{} and {}", record.subnets.v4(), record.subnets.v6()),
            };
            let network = Network::new(record);
            Ok((vec![Change::PutNetwork(network)], vec![told], ()))
        })
        .await?;
    let network = find(&state, &scope.tenant, &name)?;
    Ok((StatusCode::CREATED, Json(view(&state, network, true))))
}

/// Show a network with everybody on it
#[utoipa::path(get, path = "/tenants/{tenant}/networks/{name}", tag = "networks", operation_id = "showNetwork",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The network's name")),
    responses((status = 200, description = "The network", body = NetworkView)))]
async fn show(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Answer<NetworkView> {
    let state = api.cluster.snapshot();
    let network = find(&state, &scope.tenant, &parse_name(&name)?)?;
    Ok(Json(view(&state, network, true)))
}

/// Remove a network that nobody is on
#[utoipa::path(delete, path = "/tenants/{tenant}/networks/{name}", tag = "networks", operation_id = "removeNetwork",
    params(("tenant" = String, Path, description = "The tenant's name"), ("name" = String, Path, description = "The network's name")),
    responses((status = 204, description = "It is gone")))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, name)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    let name = parse_name(&name)?;
    let tenant = scope.tenant.clone();
    api.cluster
        .write(move |state, _| {
            let network = find(state, &tenant, &name)?;
            let refuse =
                |detail: String, cure: &str| Err(Problem::new(ErrorKind::Precondition, detail).cure(cure));
            if let Some(service) = users(state, network).first() {
                let detail = format!("service {service} is on network {name}");
                return refuse(
                    detail,
                    "remove that service, or take it off the network with berth service update",
                );
            }
            let held = state.endpoints_of(network.record.vni).count();
            if held > 0 {
                let detail = format!("{held} containers on network {name} are still being removed");
                return refuse(detail, "try again in a moment; berth ps shows what holds them");
            }
            let told = NewEvent {
                kind: "network-removed",
                tenant: Some(tenant.name.clone()),
                subject: format!("network {name}"),
                text: "removed".to_owned(),
            };
            Ok((vec![Change::DeleteNetwork(network.record.vni)], vec![told], ()))
        })
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Whoever is to be on networks that are not there is refused before anything changes.
///
/// # Errors
/// Names the first that is missing.
pub fn judge(state: &State, tenant: TenantId, networks: &[Name]) -> Result<(), Problem> {
    let missing = |name: &&Name| name.as_str() != DEFAULT_NETWORK && state.network(tenant, name).is_none();
    match networks.iter().find(missing) {
        None => Ok(()),
        Some(name) => Err(Problem::invalid(format!("there is no network {name}"))
            .field("/networks")
            .cure(format!("make it first: berth network create {name}"))),
    }
}
