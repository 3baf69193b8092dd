//! The watch: changes as server-sent events, from a revision on and without a gap.
//!
//! Owns who sees which change. Objects are shown as they are now, not as they were at their change, so a reader that is
//! behind sees the newest sooner; it never sees something older. The `id` of a durable batch is its revision and comes
//! with its last event, so a stream that breaks in the middle of a batch repeats the batch.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Query, State as Extract};
use axum::http::HeaderMap;
use axum::response::sse::{Event, KeepAlive, Sse};
use berth_common::api::{EventView, WatchEvent};
use berth_common::error::Problem;
use berth_common::id::{ContainerId, Name, NodeId, Revision, ServiceId, TenantId, clip};
use futures::{Stream, stream};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::{Caller, visible_tenant};
use super::super::{ApiError, ApiState, nodes, views};
use super::Permit;
use crate::cluster::{Change, Committed, Cursor, State, WatchStream};
use berth_common::model::{NodeKind, NodeRecord};

/// Comments keep proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KINDS: [&str; 5] = ["service", "container", "node", "tenant", "event"];

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(watch))
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Asked {
    /// Changes after this revision; default from now on. The header Last-Event-ID goes before it.
    #[serde(default)]
    from: Option<u64>,
    /// Only of this tenant.
    #[serde(default)]
    tenant: Option<String>,
    /// Comma-separated: service, container, node, tenant, event; default all.
    #[serde(default)]
    kinds: Option<String>,
    /// Also kept events after this sequence number; default events from now on.
    #[serde(default)]
    after_event: Option<u64>,
}

/// What one object is, for the sets of what is shown and what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Object {
    Tenant(TenantId),
    Service(ServiceId),
    Container(ContainerId),
    Node(NodeId),
}

impl Object {
    const fn kind(self) -> &'static str {
        match self {
            Self::Tenant(_) => "tenant",
            Self::Service(_) => "service",
            Self::Container(_) => "container",
            Self::Node(_) => "node",
        }
    }

    fn id(self) -> String {
        match self {
            Self::Tenant(id) => id.to_string(),
            Self::Service(id) => id.to_string(),
            Self::Container(id) => id.to_string(),
            Self::Node(id) => id.to_string(),
        }
    }
}

/// Who watches what.
struct Filter {
    caller: Caller,
    tenant: Option<(TenantId, Name)>,
    kinds: BTreeSet<&'static str>,
}

impl Filter {
    fn owns(&self, tenant: TenantId) -> bool {
        self.caller.sees(tenant) && self.tenant.as_ref().is_none_or(|(only, _)| *only == tenant)
    }

    fn node(&self, node: &NodeRecord) -> bool {
        let own = match (node.kind, &self.tenant) {
            (NodeKind::Private { tenant }, Some((only, _))) => tenant == *only,
            (NodeKind::Shared, Some(_)) => false,
            (_, None) => true,
        };
        own && nodes::visible(&self.caller, node)
    }

    fn event(&self, event: &EventView) -> bool {
        self.kinds.contains("event")
            && self
                .tenant
                .as_ref()
                .is_none_or(|(_, name)| event.tenant.as_ref() == Some(name))
    }

    /// Whether everything is shown, so that nothing can be told by what is gone.
    const fn sees_all(&self) -> bool {
        self.caller.is_admin() && self.tenant.is_none()
    }
}

/// Watch changes
#[utoipa::path(get, path = "/watch", tag = "platform", operation_id = "watch",
    params(Asked, ("Last-Event-ID" = Option<String>, Header, description = "Resume after this revision")),
    responses((status = 200, description = "Changes as they come; an event named `lagged` ends a stream that fell behind, one named `revoked` a stream whose token no longer holds", body = WatchEvent, content_type = "text/event-stream")))]
async fn watch(
    caller: Caller,
    permit: Permit,
    Extract(api): Extract<ApiState>,
    Query(asked): Query<Asked>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, ApiError> {
    let kinds = kinds(asked.kinds.as_deref())?;
    let state = api.cluster.snapshot();
    let tenant = match (&asked.tenant, caller.only_tenant()) {
        (Some(name), _) => {
            let tenant = visible_tenant(&state, &caller, name)?;
            Some((tenant.id, tenant.name.clone()))
        }
        (None, Some(own)) => Some((own, views::tenant_name(&state, own))),
        (None, None) => None,
    };
    let from = match headers.get("last-event-id") {
        Some(value) => value
            .to_str()
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .map(Revision)
            .ok_or_else(|| Problem::invalid("the header Last-Event-ID is not a revision"))?,
        None => asked.from.map_or(state.revision, Revision),
    };
    let events = match asked.after_event {
        Some(sequence) => api.cluster.events().subscribe_after(sequence),
        None => api.cluster.events().subscribe(),
    };
    let changes = api.cluster.watch(from)?;
    let filter = Filter {
        caller,
        tenant,
        kinds,
    };
    let watch = Watch {
        known: known(&api.cluster.snapshot(), &filter),
        backlog: api.cluster.snapshot().revision,
        api,
        filter,
        changes,
        events,
        ready: VecDeque::new(),
        over: false,
        permit,
    };
    Ok(Sse::new(stream::unfold(watch, Watch::next)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn kinds(text: Option<&str>) -> Result<BTreeSet<&'static str>, Problem> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(KINDS.into());
    };
    text.split(',')
        .map(|kind| {
            KINDS
                .into_iter()
                .find(|known| *known == kind.trim())
                .ok_or_else(|| {
                    Problem::invalid(format!(
                        "there is no kind {:?}; they are {}",
                        clip(kind, 40),
                        KINDS.join(", ")
                    ))
                    .field("kinds")
                })
        })
        .collect()
}

/// Every object that the filter shows.
fn known(state: &State, filter: &Filter) -> HashSet<Object> {
    if filter.sees_all() {
        return HashSet::new();
    }
    let tenants = state
        .tenants
        .keys()
        .filter(|id| filter.owns(**id))
        .map(|id| Object::Tenant(*id));
    let services = state
        .services
        .values()
        .filter(|s| filter.owns(s.tenant))
        .map(|s| Object::Service(s.id));
    let containers = state
        .containers
        .values()
        .filter(|c| filter.owns(c.tenant))
        .map(|c| Object::Container(c.id));
    let nodes = state
        .nodes
        .values()
        .filter(|n| filter.node(n))
        .map(|n| Object::Node(n.id));
    tenants.chain(services).chain(containers).chain(nodes).collect()
}

struct Watch {
    api: ApiState,
    filter: Filter,
    changes: WatchStream,
    events: Cursor<EventView>,
    /// What of others must not be told apart from what never was: only these are said to be gone.
    known: HashSet<Object>,
    /// Newest revision when the stream began.
    backlog: Revision,
    ready: VecDeque<Event>,
    over: bool,
    permit: Permit,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            if self.over {
                return None;
            }
            tokio::select! {
                batch = self.changes.next() => match batch {
                    Ok(batch) => self.take(&batch),
                    Err(lagged) => self.lagged(&lagged.to_string()),
                },
                event = self.events.next() => match event {
                    Ok(event) if self.filter.event(&event) => {
                        self.ready.extend(encode(&WatchEvent::Event { event: (*event).clone() }));
                    }
                    Ok(_) => {}
                    Err(lagged) => self.lagged(&lagged.to_string()),
                },
                problem = self.permit.over() => self.end("revoked", &problem.detail),
            }
        }
    }

    fn lagged(&mut self, why: &str) {
        self.end("lagged", why);
    }

    fn end(&mut self, name: &str, why: &str) {
        self.ready.push_back(Event::default().event(name).data(why));
        self.over = true;
    }

    fn take(&mut self, batch: &Arc<Committed>) {
        let state = self.api.cluster.snapshot();
        let mut shown = Vec::new();
        for change in &batch.changes {
            for (object, owned, gone) in objects(change, &state, &self.filter) {
                if !gone {
                    if owned && !self.filter.sees_all() {
                        self.known.insert(object);
                    }
                    if owned && !shown.contains(&(object, false)) {
                        shown.push((object, false));
                    }
                    continue;
                }
                if self.filter.sees_all() || self.known.remove(&object) {
                    shown.push((object, true));
                } else if batch.revision <= self.backlog && self.filter.kinds.contains(object.kind()) {
                    // It went before this stream began, and whose it was is not kept: the reader must list again.
                    return self
                        .lagged("objects went while nobody watched; list again and watch from the list");
                }
            }
        }
        let mut events: Vec<Event> = shown
            .into_iter()
            .filter(|(object, _)| self.filter.kinds.contains(object.kind()))
            .filter_map(|(object, gone)| encode(&self.view(&state, object, gone)?))
            .collect();
        if batch.durable
            && let Some(last) = events.pop()
        {
            events.push(last.id(batch.revision.0.to_string()));
        }
        self.ready.extend(events);
    }

    /// None for what is gone by now: its going follows in a later batch.
    fn view(&self, state: &State, object: Object, gone: bool) -> Option<WatchEvent> {
        if gone {
            return Some(WatchEvent::Gone {
                object: object.kind().to_owned(),
                id: object.id(),
            });
        }
        let cluster = &self.api.cluster;
        Some(match object {
            Object::Tenant(id) => WatchEvent::Tenant {
                tenant: (**state.tenants.get(&id)?).clone(),
            },
            Object::Service(id) => WatchEvent::Service {
                service: views::service(state, cluster, state.services.get(&id)?),
            },
            Object::Container(id) => WatchEvent::Container {
                container: views::container(state, cluster, state.containers.get(&id)?),
            },
            Object::Node(id) => WatchEvent::Node {
                node: views::node(state, cluster, state.nodes.get(&id)?),
            },
        })
    }
}

/// The objects a change concerns, whether the filter shows them, and whether they are gone.
fn objects(change: &Change, state: &State, filter: &Filter) -> Vec<(Object, bool, bool)> {
    let container = |id: &ContainerId| {
        let owned = state.containers.get(id).is_some_and(|c| filter.owns(c.tenant));
        (Object::Container(*id), owned, false)
    };
    let node = |id: NodeId| {
        (
            Object::Node(id),
            state.nodes.get(&id).is_some_and(|n| filter.node(n)),
            false,
        )
    };
    match change {
        Change::PutTenant(tenant) => vec![(Object::Tenant(tenant.id), filter.owns(tenant.id), false)],
        Change::DeleteTenant(id) => vec![(Object::Tenant(*id), false, true)],
        Change::PutService(service) => {
            vec![(Object::Service(service.id), filter.owns(service.tenant), false)]
        }
        Change::DeleteService(id) => vec![(Object::Service(*id), false, true)],
        Change::PutContainer(record) => {
            vec![(Object::Container(record.id), filter.owns(record.tenant), false)]
        }
        Change::DeleteContainer(id) => vec![(Object::Container(*id), false, true)],
        Change::PutNode(record) => vec![(Object::Node(record.id), filter.node(record), false)],
        Change::DeleteNode(id) => vec![(Object::Node(*id), false, true)],
        Change::Connected(id, _) | Change::Disconnected(id, _) => vec![node(*id)],
        Change::Observed { containers, gone, .. } => containers
            .iter()
            .map(|seen| &seen.id)
            .chain(gone)
            .map(container)
            .collect(),
        _ => Vec::new(),
    }
}

fn encode(event: &WatchEvent) -> Option<Event> {
    Event::default().json_data(event).ok()
}
