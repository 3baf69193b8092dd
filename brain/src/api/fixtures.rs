//! A whole API in memory for tests: real routes, layers, cluster and planner; only nodes are records.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode};
use berth_common::error::Problem;
use berth_common::id::{Generation, Name, NodeId, TenantId};
use berth_common::model::{NodeKind, NodeRecord, Role};
use berth_common::protocol::NodeRequest;
use serde_json::Value;
use tower::ServiceExt;

use super::auth::new_token;
use super::tenants::new_tenant;
use super::{ApiSettings, ApiState, limits::Rates};
use crate::cluster::{Change, Cluster, ClusterSettings, Connection};
use crate::controllers::fixtures;
use crate::images::BlobStore;
use crate::link::gateway::{Gateway, NodeStream};
use crate::store::memory::MemoryStore;

/// A gateway behind which nobody answers.
pub(crate) struct NoNodes;

#[async_trait]
impl Gateway for NoNodes {
    async fn open(&self, node: NodeId, _request: &NodeRequest) -> Result<NodeStream, Problem> {
        Err(Problem::unavailable(format!("node {node} is not connected")))
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The body as a problem, which must be well-formed and agree with the status.
    pub fn problem(&self) -> Problem {
        assert_eq!(
            self.headers["content-type"],
            super::problem::PROBLEM_JSON,
            "{self:?}"
        );
        let problem: Problem = serde_json::from_slice(&self.bytes).expect("a problem");
        assert_eq!(problem.status, self.status.as_u16());
        let id = problem.request_id.as_deref().expect("a request id");
        assert_eq!(self.headers["x-request-id"], id);
        assert!(
            !problem.detail.is_empty() && self.bytes.len() < 2_000,
            "{problem}"
        );
        problem
    }
}

/// An API with an administrator and the tenants `default`, `shop` and `rival`.
pub(crate) struct Bench {
    pub app: Router,
    pub api: ApiState,
    pub tokens: BTreeMap<&'static str, String>,
    _dir: tempfile::TempDir,
}

impl Bench {
    pub async fn new() -> Self {
        Self::with(Arc::new(NoNodes), Rates::default()).await
    }

    pub async fn with(gateway: Arc<dyn Gateway>, rates: Rates) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::open(Arc::new(MemoryStore::new()), ClusterSettings::default())
            .await
            .unwrap();
        let mut changes = Vec::new();
        let mut tokens = BTreeMap::new();
        let now = cluster.now().wall;
        for name in ["default", "shop", "rival"] {
            let tenant = TenantId::random();
            changes.push(Change::PutTenant(new_tenant(tenant, name.parse().unwrap(), now)));
            let (token, record) = new_token(Role::Tenant { tenant }, String::new(), None, now);
            changes.push(Change::PutToken(record));
            tokens.insert(name, token);
        }
        let (token, record) = new_token(Role::Admin, String::new(), None, now);
        changes.push(Change::PutToken(record));
        tokens.insert("admin", token);
        cluster
            .write(move |_, _| Ok((changes, Vec::new(), ())))
            .await
            .unwrap();
        let settings = ApiSettings {
            rates,
            ..ApiSettings::new(dir.path().join("uploads"))
        };
        let blobs = BlobStore::open(&dir.path().join("blobs")).unwrap();
        let advertise = vec!["10.0.0.1:7443".to_owned()];
        let installer =
            super::install::Installer::new(dir.path().join("programs"), "sha256//AAAA".to_owned());
        let api = ApiState::new(
            cluster,
            gateway,
            "ab".repeat(32),
            advertise,
            installer,
            blobs,
            settings,
        );
        Self {
            app: super::router(api.clone()),
            api,
            tokens,
            _dir: dir,
        }
    }

    pub fn tenant_id(&self, name: &str) -> TenantId {
        let name: Name = name.parse().unwrap();
        self.api.cluster.snapshot().tenant_names[&name]
    }

    /// A connected node `h<n>`.
    pub async fn join(&self, n: u64, kind: NodeKind) -> NodeRecord {
        let record = fixtures::node(n, kind, 8, 16);
        let connection = Connection {
            serial: n,
            address: format!("10.0.0.{n}:4000"),
            synced: true,
            applied: Generation(0),
        };
        self.api.cluster.heard(record.id);
        let changes = vec![
            Change::PutNode(record.clone()),
            Change::Connected(record.id, connection),
        ];
        self.api
            .cluster
            .write(move |_, _| Ok((changes, Vec::new(), ())))
            .await
            .unwrap();
        record
    }

    /// Sends a request as it stands.
    pub async fn raw(&self, mut request: Request<Body>) -> Reply {
        let peer: std::net::SocketAddr = "192.0.2.7:1234".parse().unwrap();
        request.extensions_mut().insert(ConnectInfo(peer));
        let response = self.app.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        Reply {
            status: parts.status,
            headers: parts.headers,
            bytes: to_bytes(body, 64 << 20).await.unwrap(),
        }
    }

    /// Sends text as JSON in the name of `who` (a key of [`Bench::tokens`], a whole token, or nothing).
    pub async fn text(&self, who: &str, method: &str, path: &str, body: impl Into<Body>) -> Reply {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", "application/json");
        let token = self.tokens.get(who).map_or(who, String::as_str);
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        self.raw(request.body(body.into()).unwrap()).await
    }

    pub async fn send(&self, who: &str, method: &str, path: &str, body: Value) -> Reply {
        self.text(who, method, path, body.to_string()).await
    }

    pub async fn call(&self, who: &str, method: &str, path: &str) -> Reply {
        self.text(who, method, path, Body::empty()).await
    }

    /// Sends and insists on success.
    pub async fn ok(&self, who: &str, method: &str, path: &str, body: Value) -> Value {
        let reply = self.send(who, method, path, body).await;
        assert!(
            reply.status.is_success(),
            "{method} {path}: {}",
            String::from_utf8_lossy(&reply.bytes)
        );
        reply.json()
    }
}
