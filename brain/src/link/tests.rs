//! The link against raw QUIC clients on loopback: a server with its cluster, and peers that behave or don't.

mod joining;
mod observations;
mod requests;
mod restart;
mod sessions;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::{ContainerId, Generation, NodeId, TenantId, TokenId};
use berth_common::identity::{self, BRAIN_NAME, Identity};
use berth_common::model::{NodeFacts, NodeKind, ObservedContainer, Phase, Quota, TenantRecord, UnixMillis};
use berth_common::protocol::{
    AgentMessage, BrainMessage, DesiredSet, DesiredUpdate, JoinReply, JoinRequest, MAX_FRAME, PROTOCOL,
    PROTOCOL_MIN, read_frame, write_frame,
};
use berth_common::units::Bytes;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, RecvStream, SendStream};
use rcgen::{CertificateParams, KeyPair};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::ca::CertificateAuthority;
use crate::cluster::{ClusterSettings, JoinTokenRecord};
use crate::controllers::fixtures;
use crate::store::memory::MemoryStore;

const WAIT: Duration = Duration::from_secs(10);
const LEASE_MS: u32 = 10_000;

/// A blob store in memory.
#[derive(Default)]
struct Blobs(Mutex<HashMap<Digest, Vec<u8>>>);

#[async_trait]
impl BlobSource for Blobs {
    async fn open(&self, digest: Digest, offset: u64) -> io::Result<Option<Blob>> {
        let found = self.0.lock().get(&digest).cloned();
        Ok(found.map(|bytes| {
            let rest = bytes[usize::try_from(offset).unwrap()..].to_vec();
            (rest.len() as u64, Box::new(io::Cursor::new(rest)) as _)
        }))
    }
}

struct Bench {
    cluster: Cluster,
    links: Links,
    ca: Arc<CertificateAuthority>,
    blobs: Arc<Blobs>,
    address: SocketAddr,
    client: quinn::Endpoint,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca = Arc::new(CertificateAuthority::open_or_create(dir.path()).unwrap());
        let cluster = Cluster::open(Arc::new(MemoryStore::new()), ClusterSettings::default())
            .await
            .unwrap();
        let links = Links::new(cluster.clone());
        let blobs = Arc::new(Blobs::default());
        let server = LinkServer::bind(
            "127.0.0.1:0".parse().unwrap(),
            &ca.issue_server(&[], &[]).unwrap(),
            Arc::clone(&ca),
            cluster.clone(),
            links.clone(),
            Arc::clone(&blobs) as _,
            LinkSettings {
                lease_ms: LEASE_MS,
                usage_interval_ms: 2_000,
                addresses: vec!["brain.example:7443".to_owned()],
            },
        )
        .unwrap();
        let stop = CancellationToken::new();
        let address = server.local_addr().unwrap();
        tokio::spawn(server.run(stop.clone()));
        Self {
            cluster,
            links,
            ca,
            blobs,
            address,
            client: quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap(),
            stop,
            _dir: dir,
        }
    }

    async fn put(&self, changes: Vec<Change>) {
        self.cluster
            .write(move |_, _| Ok((changes, vec![], ())))
            .await
            .unwrap();
    }

    async fn dial(&self, tls: rustls::ClientConfig) -> Result<Connection, quinn::ConnectionError> {
        let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let connecting = self
            .client
            .connect_with(config, self.address, BRAIN_NAME)
            .unwrap();
        tokio::time::timeout(WAIT, connecting).await.unwrap()
    }

    /// A token that ends `ttl_ms` from now (may be past).
    async fn token(&self, kind: NodeKind, ttl_ms: i64) -> String {
        self.token_with(kind, ttl_ms, |_| {}).await
    }

    /// The same, with more said of the node.
    async fn token_with(
        &self,
        kind: NodeKind,
        ttl_ms: i64,
        more: impl FnOnce(&mut JoinTokenRecord),
    ) -> String {
        let id = TokenId::random();
        let secret = hex::encode(rand::random::<[u8; 32]>());
        let mut record = JoinTokenRecord {
            id,
            secret_hash: hex::encode(Sha256::digest(&secret)),
            kind,
            labels: [("zone".to_owned(), "a".to_owned())].into(),
            taints: Vec::new(),
            pool: None,
            expires_at: UnixMillis(UnixMillis::now().0.saturating_add_signed(ttl_ms)),
        };
        more(&mut record);
        self.put(vec![Change::PutJoinToken(record)]).await;
        format!("{id}.{secret}")
    }

    async fn ask_to_join(&self, secret: &str, csr_pem: String) -> JoinReply {
        let connection = self
            .dial(identity::join_tls(&self.ca.fingerprint()).unwrap())
            .await
            .unwrap();
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        let request = JoinRequest {
            secret: secret.to_owned(),
            csr_pem,
            name: None,
            facts: facts(),
        };
        write_frame(&mut send, &request).await.unwrap();
        send.finish().unwrap();
        let reply = read_frame(&mut receive, MAX_FRAME).await.unwrap();
        connection.close(0u32.into(), b"done");
        reply
    }

    /// A new node.
    async fn join(&self) -> Node {
        let token = self.token(NodeKind::Shared, 60_000).await;
        let (key, csr) = csr();
        match self.ask_to_join(&token, csr).await {
            JoinReply::Joined {
                node,
                cert_pem,
                ca_pem,
                ..
            } => {
                let identity = Identity::from_pem(&cert_pem, &key.serialize_pem(), &ca_pem).unwrap();
                Node {
                    id: node,
                    identity,
                    key,
                }
            }
            other => panic!("{other:?}"),
        }
    }

    async fn control(&self, node: &Node) -> Agent {
        let connection = self
            .dial(identity::agent_tls(&node.identity).unwrap())
            .await
            .unwrap();
        let (send, receive) = connection.open_bi().await.unwrap();
        Agent {
            connection,
            send,
            receive,
        }
    }

    /// A node's agent after Hello and Welcome, and its first desired set.
    async fn connect(&self, node: &Node) -> (Agent, DesiredSet) {
        let mut agent = self.control(node).await;
        agent.say(&hello(PROTOCOL)).await;
        match agent.hear().await {
            BrainMessage::Welcome {
                node: id, lease_ms, ..
            } => assert_eq!((id, lease_ms), (node.id, LEASE_MS)),
            other => panic!("{other:?}"),
        }
        let DesiredUpdate::Full { set } = agent.order().await else {
            panic!("not a whole set")
        };
        assert_eq!(set.node, node.id);
        (agent, set)
    }

    async fn tenant(&self, name: &str) -> TenantId {
        let id = TenantId::random();
        let record = TenantRecord {
            id,
            name: name.parse().unwrap(),
            quota: Quota::default(),
            cpu_weight: 100,
            privileged: false,
            max_priority: 0,
            created_at: UnixMillis(1),
            revision: Default::default(),
        };
        self.put(vec![Change::PutTenant(record)]).await;
        id
    }

    async fn service(&self, n: u64, tenant: TenantId, replicas: u32) {
        let mut service = fixtures::service(n, 0, "nginx", replicas, Bytes::mib(64));
        service.tenant = tenant;
        self.put(vec![Change::PutService(service)]).await;
    }

    /// Waits until the cluster is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&crate::cluster::State) -> bool) {
        let mut changed = self.cluster.changed();
        let waiting = async {
            while !wanted(&self.cluster.snapshot()) {
                changed.changed().await.unwrap();
            }
        };
        tokio::time::timeout(WAIT, waiting)
            .await
            .unwrap_or_else(|_| panic!("never: {what}"));
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Node {
    id: NodeId,
    identity: Identity,
    key: KeyPair,
}

struct Agent {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Agent {
    async fn say(&mut self, message: &AgentMessage) {
        write_frame(&mut self.send, message).await.unwrap();
    }

    /// What is said next; but for neighbours, which each connection begins with.
    async fn hear(&mut self) -> BrainMessage {
        loop {
            let message = read_frame(&mut self.receive, MAX_FRAME);
            let message = tokio::time::timeout(WAIT, message).await;
            match message.expect("an answer in time").unwrap() {
                BrainMessage::Neighbours(_) => {}
                other => return other,
            }
        }
    }

    async fn order(&mut self) -> DesiredUpdate {
        match self.hear().await {
            BrainMessage::Desired(update) => update,
            other => panic!("{other:?}"),
        }
    }

    async fn observed(&mut self, full: bool, generation: Generation, containers: Vec<ObservedContainer>) {
        self.part(full, false, generation, containers).await;
    }

    async fn part(
        &mut self,
        full: bool,
        more: bool,
        generation: Generation,
        containers: Vec<ObservedContainer>,
    ) {
        self.say(&AgentMessage::Observed {
            full,
            more,
            generation,
            containers,
            gone: vec![],
        })
        .await;
    }

    /// The code with which the brain ended the connection.
    async fn ended(&self) -> u64 {
        match tokio::time::timeout(WAIT, self.connection.closed())
            .await
            .expect("an end in time")
        {
            quinn::ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
            other => panic!("{other:?}"),
        }
    }
}

fn hello(protocol: u32) -> AgentMessage {
    AgentMessage::Hello {
        protocol,
        protocol_min: protocol.max(PROTOCOL_MIN),
        generation: Generation(0),
        facts: facts(),
    }
}

fn facts() -> NodeFacts {
    fixtures::node(1, NodeKind::Shared, 4, 8).facts
}

fn running(id: ContainerId) -> ObservedContainer {
    ObservedContainer {
        phase: Phase::Running,
        ..ObservedContainer::pending(id)
    }
}

fn csr() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let csr = request_for(&key);
    (key, csr)
}

fn request_for(key: &KeyPair) -> String {
    let params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.serialize_request(key).unwrap().pem().unwrap()
}
