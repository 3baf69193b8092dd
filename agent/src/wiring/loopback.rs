//! The whole agent on fakes against a brain made here: real QUIC, real certificates, real ledger, one process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{ContainerId, Generation, NodeId, ServiceId, TenantId};
use berth_common::identity::{self, BRAIN_NAME, Identity, node_uri};
use berth_common::model::{Phase, RunState, ServiceSpec, UnixMillis};
use berth_common::protocol::{
    AgentMessage, BrainMessage, DesiredContainer, DesiredSet, DesiredUpdate, JoinReply, JoinRequest,
    JoinToken, LogOptions, MAX_FRAME, NodeReply, NodeRequest, PROTOCOL, TenantShare, UsageReport, read_frame,
    write_frame,
};
use quinn::crypto::rustls::QuicServerConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Agent, Host, LogFolders};
use crate::config::Config;
use crate::fakes::{FakeCgroups, FakeImages, FakeProber, FakeRuntime};
use crate::join::{JoinError, NodeFiles, join};
use crate::logs::record::{self, Source};
use crate::logs::writer::{Bounds, Log};
use crate::reconcile::apply::Facilities;

const NODE: NodeId = NodeId::from_bytes([7; 10]);
const SECRET: &str = "one.secret";
const PATIENCE: Duration = Duration::from_secs(15);

struct Brain {
    endpoint: quinn::Endpoint,
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    fingerprint: String,
    address: SocketAddr,
}

impl Brain {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let server_key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![BRAIN_NAME.to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &issuer).unwrap();
        let identity = Identity::from_pem(&server.pem(), &server_key.serialize_pem(), &ca.pem()).unwrap();
        let tls = QuicServerConfig::try_from(identity::brain_tls(&identity).unwrap()).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        Self {
            address: endpoint.local_addr().unwrap(),
            fingerprint: identity::fingerprint(&identity.ca),
            ca_pem: ca.pem(),
            endpoint,
            issuer,
        }
    }

    fn token(&self) -> JoinToken {
        JoinToken {
            addresses: vec![self.address.to_string()],
            ca_fingerprint: self.fingerprint.clone(),
            secret: SECRET.to_owned(),
        }
    }

    async fn connection(&self) -> quinn::Connection {
        let incoming = tokio::time::timeout(PATIENCE, self.endpoint.accept()).await;
        incoming.expect("somebody dials").unwrap().await.unwrap()
    }

    /// Answers one join.
    async fn serve_join(&self, as_node: NodeId) -> JoinRequest {
        let connection = self.connection().await;
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let request: JoinRequest = read_frame(&mut receive, MAX_FRAME).await.unwrap();
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
        csr.params.subject_alt_names = vec![SanType::URI(node_uri(as_node).try_into().unwrap())];
        let cert = csr.signed_by(&self.issuer).unwrap();
        let reply = JoinReply::Joined {
            node: NODE,
            name: "host".parse().unwrap(),
            cert_pem: cert.pem(),
            ca_pem: self.ca_pem.clone(),
            addresses: vec![],
        };
        write_frame(&mut send, &reply).await.unwrap();
        send.finish().unwrap();
        let _ = connection.closed().await;
        request
    }

    /// The next link, welcomed.
    async fn link(&self) -> BrainLink {
        let connection = self.connection().await;
        let certs = connection.peer_identity().expect("with a certificate");
        let certs = certs
            .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .unwrap();
        assert_eq!(identity::node_of(&certs[0]).unwrap(), NODE);
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        let hello: AgentMessage = read_frame(&mut receive, MAX_FRAME).await.unwrap();
        let AgentMessage::Hello { generation, .. } = hello else {
            panic!("{hello:?} instead of Hello")
        };
        let welcome = BrainMessage::Welcome {
            protocol: PROTOCOL,
            node: NODE,
            name: "host".parse().unwrap(),
            brain_version: "test".to_owned(),
            lease_ms: 5_000,
            usage_interval_ms: 1_000,
            addresses: vec![],
        };
        write_frame(&mut send, &welcome).await.unwrap();
        BrainLink {
            connection,
            send,
            receive,
            generation,
        }
    }
}

struct BrainLink {
    connection: quinn::Connection,
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    generation: Generation,
}

impl BrainLink {
    async fn want(&mut self, set: DesiredSet) {
        let message = BrainMessage::Desired(DesiredUpdate::Full { set });
        write_frame(&mut self.send, &message).await.unwrap();
    }

    /// Reads until a message fits.
    async fn until(&mut self, what: &str, fits: impl Fn(&AgentMessage) -> bool) -> AgentMessage {
        let read = async {
            loop {
                let message: AgentMessage = read_frame(&mut self.receive, MAX_FRAME).await.unwrap();
                if fits(&message) {
                    return message;
                }
            }
        };
        match tokio::time::timeout(PATIENCE, read).await {
            Ok(message) => message,
            Err(_) => panic!("{what} never came"),
        }
    }

    async fn ask(&self, request: &NodeRequest) -> quinn::RecvStream {
        let (mut send, receive) = self.connection.open_bi().await.unwrap();
        write_frame(&mut send, request).await.unwrap();
        send.finish().unwrap();
        receive
    }
}

fn running(generation: u64, n: u8) -> impl Fn(&AgentMessage) -> bool {
    move |message| match message {
        AgentMessage::Observed {
            generation: held,
            containers,
            ..
        } => {
            *held == Generation(generation)
                && containers
                    .iter()
                    .any(|c| c.id == ContainerId::from_bytes([n; 10]) && c.phase == Phase::Running)
        }
        _ => false,
    }
}

fn set(generation: u64, ids: &[u8]) -> DesiredSet {
    let spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap());
    let tenant = TenantId::from_bytes([1; 10]);
    DesiredSet {
        node: NODE,
        generation: Generation(generation),
        tenants: vec![TenantShare {
            tenant,
            name: "t".parse().unwrap(),
            cpu_weight: 100,
            credentials: vec![],
        }],
        containers: ids
            .iter()
            .map(|n| DesiredContainer {
                id: ContainerId::from_bytes([*n; 10]),
                tenant,
                tenant_name: "t".parse().unwrap(),
                service: ServiceId::from_bytes([1; 10]),
                service_name: "s".parse().unwrap(),
                replica: u32::from(*n),
                spec: spec.container_spec().unwrap().into(),
                run: RunState::Running,
                restarts_asked: 0,
                endpoints: vec![],
                volumes: vec![],
            })
            .collect(),
        volumes: vec![],
    }
}

struct Rig {
    dir: tempfile::TempDir,
    runtime: Arc<FakeRuntime>,
}

impl Rig {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            runtime: Arc::default(),
        }
    }

    fn files(&self) -> NodeFiles {
        NodeFiles::new(&self.dir.path().join("state"))
    }

    async fn join(&self, brain: &Brain) {
        let (files, token) = (self.files(), brain.token());
        let joining = join(&files, &token, None, crate::fakes::facts(), false);
        let (who, request) = tokio::join!(joining, brain.serve_join(NODE));
        assert_eq!((who.unwrap().node, request.secret.as_str()), (NODE, SECRET));
    }

    fn agent(&self) -> (JoinHandle<anyhow::Result<()>>, CancellationToken) {
        let shutdown = CancellationToken::new();
        let state_dir = self.dir.path().join("state");
        let host = Host {
            network: None,
            pools: None,
            facilities: Facilities {
                runtime: self.runtime.clone(),
                images: Arc::new(FakeImages::default()),
                cgroups: Arc::new(FakeCgroups::default()),
                prober: Arc::new(FakeProber::default()),
            },
            logs: Arc::new(LogFolders(state_dir.join("logs"))),
            snapshotter: "fake".to_owned(),
            disk_limit_hard: false,
        };
        let agent = Agent {
            config: Config {
                state_dir,
                containerd_root: self.dir.path().to_owned(),
                ..Config::default()
            },
            who: self.files().who().unwrap(),
            files: self.files(),
            host,
            connection: watch::channel(None).0,
        };
        (tokio::spawn(agent.run(shutdown.clone(), || {})), shutdown)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_runs_what_is_wanted_refuses_what_is_old_and_comes_back() {
    let (brain, rig) = (Brain::new(), Rig::new());
    rig.join(&brain).await;
    let (agent, shutdown) = rig.agent();
    let mut link = brain.link().await;
    assert_eq!(link.generation, Generation(0));
    link.until("a full Observed", |m| {
        matches!(m, AgentMessage::Observed { full: true, .. })
    })
    .await;

    link.want(set(5, &[1])).await;
    link.until("running", running(5, 1)).await;
    assert_eq!(rig.runtime.containers().len(), 1);

    link.want(set(4, &[])).await;
    let refused = link
        .until("a refusal", |m| matches!(m, AgentMessage::Refused { .. }))
        .await;
    let AgentMessage::Refused {
        held,
        refused,
        problem,
    } = refused
    else {
        unreachable!()
    };
    assert_eq!((held, refused), (Generation(5), Generation(4)));
    assert!(problem.to_string().contains("older"), "{problem}");
    assert_eq!(rig.runtime.containers().len(), 1, "nothing was done for it");

    // Usage arrives on streams of its own, numbered.
    let mut usage = tokio::time::timeout(PATIENCE, link.connection.accept_uni())
        .await
        .unwrap()
        .unwrap();
    let report: UsageReport = read_frame(&mut usage, MAX_FRAME).await.unwrap();
    assert!(
        report.full && report.sequence == 1 && report.node.memory.is_some(),
        "{report:?}"
    );

    // The brain goes away and comes back: the agent dials again and tells everything anew.
    link.connection.close(0u32.into(), b"restarting");
    let mut link = brain.link().await;
    assert_eq!(link.generation, Generation(5));
    let full = link
        .until("a full Observed", |m| {
            matches!(m, AgentMessage::Observed { full: true, .. })
        })
        .await;
    assert!(running(5, 1)(&full), "{full:?}");
    link.want(set(6, &[1, 2])).await;
    link.until("the second", running(6, 2)).await;

    // Stopping says Goodbye and stops nothing (R3).
    shutdown.cancel();
    link.until("Goodbye", |m| matches!(m, AgentMessage::Goodbye))
        .await;
    agent.await.unwrap().unwrap();
    assert_eq!(rig.runtime.containers().len(), 2);
    assert_eq!(
        (
            rig.runtime.starts(ContainerId::from_bytes([1; 10])),
            rig.runtime.double_starts()
        ),
        (1, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_streamed_and_an_absent_one_is_a_problem() {
    let (brain, rig) = (Brain::new(), Rig::new());
    rig.join(&brain).await;
    let (_agent, _shutdown) = rig.agent();
    let link = brain.link().await;
    let id = ContainerId::from_bytes([3; 10]);
    let dir = rig.dir.path().join("state/logs").join(id.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let mut log = Log::new(
        &dir,
        Bounds {
            max_size: 1 << 20,
            max_files: 3,
        },
    );
    let mut put = |n: u64| {
        let mut bytes = Vec::new();
        record::write(&mut bytes, n, Source::Out, false, format!("line {n}").as_bytes());
        log.write(n, &bytes, 1);
    };
    put(1);
    put(2);
    let request = |container, follow| NodeRequest::Logs {
        container,
        options: LogOptions {
            follow,
            ..LogOptions::default()
        },
    };
    let mut lines = link.ask(&request(id, false)).await;
    for want in ["line 1", "line 2"] {
        let reply: NodeReply = read_frame(&mut lines, MAX_FRAME).await.unwrap();
        assert!(
            matches!(&reply, NodeReply::Log(line) if line.text == want),
            "{reply:?}"
        );
    }
    assert_eq!(
        read_frame::<NodeReply>(&mut lines, MAX_FRAME).await.unwrap(),
        NodeReply::End
    );

    let mut lines = link.ask(&request(id, true)).await;
    for n in 3..6 {
        put(n);
    }
    for n in 1..6u64 {
        let reply = tokio::time::timeout(PATIENCE, read_frame::<NodeReply>(&mut lines, MAX_FRAME)).await;
        let reply = reply.unwrap().unwrap();
        assert!(
            matches!(&reply, NodeReply::Log(line) if line.at == UnixMillis(n)),
            "{reply:?}"
        );
    }

    let mut none = link.ask(&request(ContainerId::from_bytes([9; 10]), false)).await;
    let reply: NodeReply = read_frame(&mut none, MAX_FRAME).await.unwrap();
    assert!(
        matches!(&reply, NodeReply::Problem { problem } if problem.to_string().contains("no log")),
        "{reply:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_trusts_only_the_brain_of_the_token_and_only_its_own_certificate() {
    let (brain, other, rig) = (Brain::new(), Brain::new(), Rig::new());
    let files = rig.files();
    let mut token = brain.token();
    token.ca_fingerprint = other.fingerprint.clone();
    let refuse = async { brain.endpoint.accept().await.unwrap().await.map(drop) };
    let joining = join(&files, &token, None, crate::fakes::facts(), false);
    let (error, _) = tokio::join!(joining, refuse);
    assert!(matches!(error, Err(JoinError::WrongCa { .. })), "{error:?}");
    assert!(
        matches!(files.who(), Err(JoinError::NotJoined(_))),
        "nothing is kept"
    );

    let token = brain.token();
    let joining = join(&files, &token, None, crate::fakes::facts(), false);
    let (error, _) = tokio::join!(joining, brain.serve_join(NodeId::from_bytes([8; 10])));
    assert!(matches!(error, Err(JoinError::Mismatch)), "{error:?}");
    assert!(matches!(files.who(), Err(JoinError::NotJoined(_))));

    rig.join(&brain).await;
    let again = join(&files, &token, None, crate::fakes::facts(), false).await;
    assert!(
        matches!(again, Err(JoinError::Already { node, .. }) if node == NODE),
        "{again:?}"
    );
}
