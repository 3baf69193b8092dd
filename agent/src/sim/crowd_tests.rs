//! A crowd against a brain made here: joins, runs, reports usage, and comes back after the brain was away.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use berth_common::id::{ContainerId, Generation, NodeId, ServiceId, TenantId};
use berth_common::identity::{self, BRAIN_NAME, Identity, node_uri};
use berth_common::model::{RunState, ServiceSpec};
use berth_common::protocol::*;
use clap::Parser as _;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair, SanType,
};
use tokio_util::sync::CancellationToken;

use super::node::Node;
use super::outage::Tracker;

const AGENTS: usize = 40;
const CONTAINERS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(60);

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    ca_pem: String,
    identity: Identity,
    nodes: AtomicUsize,
    usage: AtomicUsize,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new(vec![BRAIN_NAME.to_owned()]).unwrap();
        let server = server.signed_by(&key, &issuer).unwrap().pem();
        Self {
            identity: Identity::from_pem(&server, &key.serialize_pem(), &ca_pem).unwrap(),
            issuer,
            ca_pem,
            nodes: AtomicUsize::new(0),
            usage: AtomicUsize::new(0),
        }
    }

    fn listen(self: &Arc<Self>, at: SocketAddr) -> quinn::Endpoint {
        let tls = QuicServerConfig::try_from(identity::brain_tls(&self.identity).unwrap()).unwrap();
        let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
        let endpoint = quinn::Endpoint::server(config, at).unwrap();
        let (me, accepting) = (self.clone(), endpoint.clone());
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let me = me.clone();
                tokio::spawn(async move {
                    if let Ok(connection) = incoming.await {
                        me.serve(connection).await;
                    }
                });
            }
        });
        endpoint
    }

    async fn serve(&self, connection: quinn::Connection) -> Option<()> {
        let data = connection.handshake_data()?.downcast::<HandshakeData>().ok()?;
        let (mut send, mut receive) = connection.accept_bi().await.ok()?;
        if data.protocol.as_deref() == Some(ALPN_JOIN) {
            let request: JoinRequest = read_frame(&mut receive, MAX_FRAME).await.ok()?;
            let n = self.nodes.fetch_add(1, Ordering::SeqCst) as u16;
            let mut raw = [0; 10];
            raw[..2].copy_from_slice(&n.to_be_bytes());
            let node = NodeId::from_bytes(raw);
            let mut csr = CertificateSigningRequestParams::from_pem(&request.csr_pem).unwrap();
            csr.params.subject_alt_names = vec![SanType::URI(node_uri(node).try_into().unwrap())];
            let reply = JoinReply::Joined {
                node,
                name: request.name.unwrap(),
                cert_pem: csr.signed_by(&self.issuer).unwrap().pem(),
                ca_pem: self.ca_pem.clone(),
                addresses: vec![],
            };
            write_frame(&mut send, &reply).await.ok()?;
            send.finish().ok()?;
            connection.closed().await;
            return None;
        }
        let certs = connection.peer_identity()?;
        let certs = certs
            .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
            .ok()?;
        let node = identity::node_of(&certs[0]).unwrap();
        let _hello: AgentMessage = read_frame(&mut receive, MAX_FRAME).await.ok()?;
        let welcome = BrainMessage::Welcome {
            protocol: PROTOCOL,
            node,
            name: "sim".parse().unwrap(),
            brain_version: "test".to_owned(),
            lease_ms: 10_000,
            usage_interval_ms: 2_000,
            addresses: vec![],
        };
        write_frame(&mut send, &welcome).await.ok()?;
        write_frame(
            &mut send,
            &BrainMessage::Desired(DesiredUpdate::Full { set: set(node) }),
        )
        .await
        .ok()?;
        loop {
            tokio::select! {
                stream = connection.accept_uni() => {
                    let report: UsageReport = read_frame(&mut stream.ok()?, MAX_FRAME).await.ok()?;
                    self.usage.fetch_add(report.containers.len(), Ordering::SeqCst);
                }
                message = receive.read_chunk(64 << 10, true) => drop(message.ok()??),
            }
        }
    }
}

fn set(node: NodeId) -> DesiredSet {
    let tenant = TenantId::from_bytes([1; 10]);
    let spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap())
        .container_spec()
        .unwrap();
    let containers = (0..CONTAINERS as u8).map(|n| DesiredContainer {
        id: ContainerId::from_bytes([n; 10]),
        tenant,
        tenant_name: "t".parse().unwrap(),
        service: ServiceId::from_bytes([1; 10]),
        service_name: "s".parse().unwrap(),
        replica: u32::from(n) + 1,
        spec: spec.clone().into(),
        run: RunState::Running,
        restarts_asked: 0,
        endpoints: vec![],
        volumes: vec![],
    });
    DesiredSet {
        node,
        generation: Generation(1),
        tenants: vec![TenantShare {
            tenant,
            name: "t".parse().unwrap(),
            cpu_weight: 100,
            credentials: vec![],
        }],
        containers: containers.collect(),
        volumes: vec![],
    }
}

async fn until(
    what: &str,
    nodes: &mut [Node],
    tracker: &mut Tracker,
    mut met: impl FnMut(&[Node], &Tracker) -> bool,
) {
    let began = Instant::now();
    loop {
        let now = Instant::now();
        tracker.look(now, nodes.iter().map(Node::connection));
        nodes.iter_mut().for_each(|node| node.report(now));
        if met(nodes, tracker) {
            return println!("{what} after {:?}", began.elapsed());
        }
        assert!(began.elapsed() < PATIENCE, "{what} never came; {tracker:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_crowd_joins_runs_reports_and_comes_back() {
    let brain = Arc::new(Authority::new());
    let endpoint = brain.listen("127.0.0.1:0".parse().unwrap());
    let address = endpoint.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let token = JoinToken {
        addresses: vec![address.to_string()],
        ca_fingerprint: identity::fingerprint(&brain.identity.ca),
        secret: "one.secret".to_owned(),
    };
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, format!("{token}\n").repeat(AGENTS)).unwrap();
    let agents = AGENTS.to_string();
    let base = [
        "agent-sim",
        "--agents",
        &agents,
        "--dir",
        dir.path().to_str().unwrap(),
    ];
    let names: Vec<_> = (1..=AGENTS)
        .map(|n| format!("sim-{n}").parse().unwrap())
        .collect();
    let bare = crate::Args::parse_from(base);
    let capacity = berth_agent::fakes::facts().capacity;
    assert!(
        crate::join_missing(&bare, &names, capacity).await.is_err(),
        "no tokens"
    );
    let args = crate::Args::parse_from(base.into_iter().chain(["--tokens", tokens.to_str().unwrap()]));
    crate::join_missing(&args, &names, capacity).await.unwrap();
    crate::join_missing(&bare, &names, capacity)
        .await
        .expect("a second run needs no tokens");
    assert_eq!(brain.nodes.load(Ordering::SeqCst), AGENTS);

    let sockets = crate::endpoints(&dir.path().join("sim-1"), 2).await.unwrap();
    let shutdown = CancellationToken::new();
    let mut nodes: Vec<_> = (names.iter().zip(sockets.iter().cycle()))
        .map(|(name, socket)| {
            Node::start(
                &dir.path().join(name.as_str()),
                capacity,
                socket.clone(),
                shutdown.clone(),
            )
            .unwrap()
        })
        .collect();
    let mut tracker = Tracker::default();
    let all = AGENTS * CONTAINERS;
    until("all running", &mut nodes, &mut tracker, |nodes, tracker| {
        tracker.connected == AGENTS && nodes.iter().map(Node::running).sum::<usize>() == all
    })
    .await;
    until("usage of all", &mut nodes, &mut tracker, |_, _| {
        brain.usage.load(Ordering::SeqCst) >= all
    })
    .await;

    endpoint.close(0u32.into(), b"restarting");
    endpoint.wait_idle().await;
    drop(endpoint);
    until("all lost", &mut nodes, &mut tracker, |_, tracker| {
        tracker.connected == 0
    })
    .await;
    let again = loop {
        // The old socket closes once its driver has ended.
        if std::net::UdpSocket::bind(address).is_ok() {
            break brain.listen(address);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    until("all back", &mut nodes, &mut tracker, |_, tracker| {
        tracker.last_outage.is_some()
    })
    .await;
    assert_eq!((tracker.connected, tracker.reconnects), (AGENTS, AGENTS as u64));
    assert_eq!(
        nodes.iter().map(Node::running).sum::<usize>(),
        all,
        "an absent brain stops nothing"
    );
    shutdown.cancel();
    for node in nodes {
        tokio::time::timeout(PATIENCE, node.link)
            .await
            .expect("links end")
            .unwrap();
    }
    drop(again);
}
