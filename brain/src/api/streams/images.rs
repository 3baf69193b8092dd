//! Images of a tenant: listed over the brain and its nodes, loaded from archives, fetched ahead of time, removed.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Query, State as Extract};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use berth_common::api::{ImageView, Listing, PullEvent, PullImage, RemovedImage};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, TenantId, clip};
use berth_common::model::{Digest, ImageRef, LoadedImage, NodeRecord};
use berth_common::protocol::{ImageSummary, NodeReply, NodeRequest};
use berth_common::units::Bytes;
use futures::future::join_all;
use futures::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::mpsc;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::Scope;
use super::super::page::Page;
use super::super::problem::Json;
use super::super::{Answer, ApiError, ApiState, nodes, tenants};
use super::logs::{NDJSON, ndjson};
use super::{Permit, Replies, unexpected};
use crate::cluster::{Change, State};
use crate::images::{LoadLimits, LoadOptions, load, receive};

/// How long a node may take to list or drop images.
const SHORT: Duration = Duration::from_secs(3);
/// How long a pull may be silent.
const SILENCE: Duration = Duration::from_secs(120);

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    let upload = OpenApiRouter::new()
        .routes(routes!(list, upload, remove))
        .layer(DefaultBodyLimit::disable());
    upload.merge(OpenApiRouter::new().routes(routes!(pull)))
}

fn connected(state: &State, tenant: TenantId) -> Vec<Arc<NodeRecord>> {
    state
        .node_names
        .values()
        .filter_map(|id| state.nodes.get(id))
        .filter(|node| nodes::usable(tenant, node) && state.connections.contains_key(&node.id))
        .cloned()
        .collect()
}

/// One question to one node, one reply.
async fn ask(api: &ApiState, node: &NodeRecord, request: &NodeRequest) -> Result<NodeReply, Problem> {
    let asked = async {
        let opened = api.gateway.open(node.id, request).await?;
        let _send = opened.send;
        Replies::new(opened.recv, &node.name).within(SHORT).await
    };
    let late = || {
        Problem::new(
            ErrorKind::Timeout,
            format!("node {} did not answer within 3 s", node.name),
        )
    };
    match tokio::time::timeout(SHORT, asked).await.map_err(|_| late())?? {
        NodeReply::Problem { problem } => Err(problem),
        reply => Ok(reply),
    }
}

/// List images
#[utoipa::path(get, path = "/tenants/{tenant}/images", tag = "images", operation_id = "listImages",
    params(("tenant" = String, Path, description = "The tenant's name"), Page),
    responses((status = 200, description = "Those that the brain holds and those on nodes that answer within 3 s", body = Listing<ImageView>)))]
async fn list(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(page): Query<Page>,
) -> Answer<Listing<ImageView>> {
    page.limit()?;
    let state = api.cluster.snapshot();
    let tenant = scope.tenant.id;
    let request = NodeRequest::ListImages { tenant };
    let nodes = connected(&state, tenant);
    let (api, request) = (&api, &request);
    let asked = nodes
        .iter()
        .map(|node| async move { (node, ask(api, node, request).await) });
    let mut all: BTreeMap<String, ImageView> = BTreeMap::new();
    for image in state.images.values().filter(|image| image.tenant == tenant) {
        let key = format!("{}!{}", image.reference, image.manifest);
        all.insert(key, loaded_view(image));
    }
    for (node, answer) in join_all(asked).await {
        match answer {
            Ok(NodeReply::Images { images }) => {
                for image in images {
                    merge(&mut all, image, node.name.clone());
                }
            }
            Ok(_) => tracing::warn!(node = %node.name, "an answer to ListImages is of another kind"),
            Err(problem) => tracing::debug!(node = %node.name, %problem, "images of a node are not listed"),
        }
    }
    Ok(Json(page.of(all.into_iter(), state.revision, |view| view)?))
}

fn loaded_view(image: &LoadedImage) -> ImageView {
    ImageView {
        reference: image.reference.clone(),
        digest: image.manifest,
        size: Bytes(
            image
                .blobs
                .iter()
                .fold(0, |sum, (_, size)| sum.saturating_add(size.0)),
        ),
        loaded: true,
        nodes: Vec::new(),
        used_by: 0,
        created_at: image.loaded_at,
    }
}

fn merge(all: &mut BTreeMap<String, ImageView>, image: ImageSummary, node: Name) {
    let key = format!("{}!{}", image.reference, image.digest);
    let view = all.entry(key).or_insert_with(|| ImageView {
        reference: image.reference,
        digest: image.digest,
        size: image.size,
        loaded: false,
        nodes: Vec::new(),
        used_by: 0,
        created_at: image.created_at,
    });
    view.nodes.push(node);
    view.used_by = view.used_by.saturating_add(image.used_by);
    view.created_at = view.created_at.min(image.created_at);
}

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Upload {
    /// Name for the image instead of the archive's own; only if it holds exactly one.
    #[serde(default)]
    name: Option<String>,
}

fn reference(text: &str, field: &str) -> Result<ImageRef, Problem> {
    text.parse()
        .map_err(|error| Problem::invalid(clip(&format!("{:?}: {error}", clip(text, 80)), 300)).field(field))
}

/// The one architecture of the nodes the tenant may use; without nodes the brain's own.
fn architecture(state: &State, tenant: TenantId) -> String {
    let mut count: HashMap<String, usize> = HashMap::new();
    for node in state
        .nodes
        .values()
        .filter(|node| nodes::usable(tenant, node) && !node.lost)
    {
        *count.entry(node.facts.arch.0.to_string()).or_default() += 1;
    }
    let most = count
        .into_iter()
        .max_by_key(|(arch, n)| (*n, arch.clone()))
        .map(|(arch, _)| arch);
    match most.as_deref().unwrap_or(std::env::consts::ARCH) {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

/// Load images from an archive
#[utoipa::path(post, path = "/tenants/{tenant}/images", tag = "images", operation_id = "loadImages",
    params(("tenant" = String, Path, description = "The tenant's name"), Upload),
    request_body(content_type = "application/octet-stream", description = "OCI layout or docker archive: tar, gzip or zstd"),
    responses((status = 200, description = "What was loaded", body = Vec<LoadedImage>)))]
async fn upload(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(asked): Query<Upload>,
    body: Body,
) -> Answer<Vec<LoadedImage>> {
    let name = asked
        .name
        .as_deref()
        .map(|name| reference(name, "name"))
        .transpose()?;
    let tenant = scope.tenant.id;
    let dir = &api.settings.upload_dir;
    tokio::fs::create_dir_all(dir).await.map_err(|error| {
        tracing::error!(dir = %dir.display(), %error, "the upload folder can't be made");
        Problem::new(
            ErrorKind::Internal,
            "the brain has no place for uploads; its log says why",
        )
    })?;
    let path = receive(body.into_data_stream(), dir, api.settings.max_upload).await?;
    let options = LoadOptions {
        name,
        arch: architecture(&api.cluster.snapshot(), tenant),
        limits: LoadLimits::default(),
    };
    let found = load(&api.blobs, &path, options).await?;
    drop(path);
    let now = api.cluster.now().wall;
    // Kept until the write is done: they hold the blobs in the store.
    let pins = found.clone();
    let records: Vec<_> = found
        .into_iter()
        .map(|image| image.into_record(tenant, now))
        .collect();
    let changes: Vec<_> = records.iter().cloned().map(Change::PutImage).collect();
    api.cluster
        .write(move |state, _| {
            tenants::current(state, tenant)?;
            Ok((changes, Vec::new(), ()))
        })
        .await?;
    drop(pins);
    Ok(Json(records))
}

/// Fetch an image to nodes
#[utoipa::path(post, path = "/tenants/{tenant}/images/pull", tag = "images", operation_id = "pullImage",
    params(("tenant" = String, Path, description = "The tenant's name")), request_body = PullImage,
    responses((status = 200, description = "How it goes on each node", body = PullEvent, content_type = "application/x-ndjson")))]
async fn pull(
    scope: Scope,
    permit: Permit,
    Extract(api): Extract<ApiState>,
    Json(asked): Json<PullImage>,
) -> Result<Response, ApiError> {
    let state = api.cluster.snapshot();
    let tenant = scope.tenant.id;
    let nodes = if asked.nodes.is_empty() {
        connected(&state, tenant)
    } else {
        let mut named = BTreeMap::new();
        for name in &asked.nodes {
            let node = nodes::find(&state, &scope.caller, name.as_str())?;
            if !nodes::usable(tenant, &node) {
                let detail = format!("tenant {} may not use node {name}", scope.tenant.name);
                return Err(Problem::new(ErrorKind::Precondition, detail)
                    .field("/nodes")
                    .into());
            }
            named.insert(node.id, node);
        }
        named.into_values().collect()
    };
    if nodes.is_empty() {
        return Err(Problem::unavailable("no node that this tenant may use is connected").into());
    }
    let credential = state
        .registries
        .get(&(tenant, asked.reference.registry().to_owned()))
        .map(|credential| (**credential).clone());
    let request = Arc::new(NodeRequest::PullImage {
        tenant,
        reference: asked.reference,
        credential,
    });
    let (events, mut taken) = mpsc::channel(32);
    let work = join_all(nodes.into_iter().map(|node| {
        let (api, request, events) = (api.clone(), Arc::clone(&request), events.clone());
        async move {
            let name = node.name.clone();
            let event = match pull_one(&api, &node, &request, &events).await {
                Ok(digest) => PullEvent::Done { node: name, digest },
                Err(problem) => PullEvent::Failed { node: name, problem },
            };
            let _ = events.send(event).await;
        }
    }));
    drop(events);
    // The work is part of the body, not a task: when the client goes, the streams to the nodes go with it.
    let done = stream::once(async move {
        work.await;
        drop(permit);
    })
    .filter_map(|()| async { None });
    let lines = stream::poll_fn(move |cx| taken.poll_recv(cx))
        .map(|event| Some(ndjson(&event).map_err(io::Error::other)));
    let body = Body::from_stream(stream::select(lines, done).filter_map(|line| async { line }));
    Ok(([(CONTENT_TYPE, NDJSON)], body).into_response())
}

async fn pull_one(
    api: &ApiState,
    node: &NodeRecord,
    request: &NodeRequest,
    events: &mpsc::Sender<PullEvent>,
) -> Result<Digest, Problem> {
    let opened = api.gateway.open(node.id, request).await?;
    let _send = opened.send;
    let mut replies = Replies::new(opened.recv, &node.name);
    loop {
        match replies.within(SILENCE).await? {
            NodeReply::Progress(progress) => {
                let node = node.name.clone();
                let _ = events.send(PullEvent::Progress { node, progress }).await;
            }
            NodeReply::Image { image } => return Ok(image.digest),
            NodeReply::Problem { problem } => return Err(problem),
            NodeReply::Unknown => {}
            _ => return Err(unexpected(&node.name)),
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
struct Which {
    /// The image's name.
    #[serde(default)]
    reference: Option<String>,
}

fn in_use(state: &State, tenant: TenantId, image: &ImageRef) -> Result<(), Problem> {
    let user = state
        .containers
        .values()
        .find(|c| c.tenant == tenant && !c.removing && c.spec.image == *image);
    match user {
        None => Ok(()),
        Some(c) => Err(Problem::new(
            ErrorKind::Precondition,
            format!(
                "container {} is made from {image}",
                super::super::views::container_name(c)
            ),
        )
        .cure("remove its service, or give it another image, first")),
    }
}

/// Remove an image
#[utoipa::path(delete, path = "/tenants/{tenant}/images", tag = "images", operation_id = "removeImage",
    params(("tenant" = String, Path, description = "The tenant's name"), Which),
    responses((status = 200, description = "Where it is gone and where not", body = RemovedImage)))]
async fn remove(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Query(which): Query<Which>,
) -> Answer<RemovedImage> {
    let text = which
        .reference
        .ok_or_else(|| Problem::invalid("say which image").field("reference"))?;
    let image = reference(&text, "reference")?;
    let tenant = scope.tenant.id;
    let wanted = image.clone();
    let (unloaded, state) = api
        .cluster
        .write(move |state, _| {
            in_use(state, tenant, &wanted)?;
            let held = state.images.contains_key(&(tenant, wanted.clone()));
            let changes = held.then_some(Change::DeleteImage(tenant, wanted));
            Ok((changes.into_iter().collect(), Vec::new(), held))
        })
        .await?;
    let request = NodeRequest::RemoveImage {
        tenant,
        reference: image,
    };
    let nodes = connected(&state, tenant);
    let (api, request) = (&api, &request);
    let asked = nodes
        .iter()
        .map(|node| async move { (node, ask(api, node, request).await) });
    let mut removed = RemovedImage {
        unloaded,
        nodes: Vec::new(),
        kept: BTreeMap::new(),
    };
    for (node, answer) in join_all(asked).await {
        let name = node.name.clone();
        let failed = match answer {
            Ok(NodeReply::End) => {
                removed.nodes.push(name);
                continue;
            }
            Ok(_) => unexpected(&name),
            Err(problem) if problem.kind == ErrorKind::NotFound => continue,
            Err(problem) => problem,
        };
        removed.kept.insert(name.to_string(), failed.to_string());
    }
    Ok(Json(removed))
}
