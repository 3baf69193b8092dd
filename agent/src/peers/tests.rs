mod frames;
mod hostile;
mod links;
mod proxy;
mod transfers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::{Epoch, NodeId, SnapshotId, TenantId, VolumeId};
use berth_common::identity::{Identity, node_uri};
use berth_common::units::Bytes;
use parking_lot::Mutex;
use rand::RngCore as _;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::sync::watch;

use super::{Admission, Destination, Outgoing, PeerError, Peers, Progress, Rate, Sent, Timing};
use crate::fakes::FakePool;
use crate::volume::{Meta, Pool as _, Volume};

/// However slow the machine is.
const PATIENCE: Duration = Duration::from_secs(120);
/// A dead link is noticed soon, and what is kept for it is not dropped by itself.
const KEEPS: Timing = Timing {
    idle: Duration::from_secs(2),
    resume_for: PATIENCE,
};

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, waiting).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

fn noise(length: usize) -> Vec<u8> {
    let mut noise = vec![0; length];
    rand::rng().fill_bytes(&mut noise);
    noise
}

struct Cluster {
    issuer: Issuer<'static, KeyPair>,
    ca: String,
}

impl Cluster {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, ca }
    }

    fn certificate(&self, name: SanType, usage: ExtendedKeyUsagePurpose) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![name];
        params.extended_key_usages = vec![usage];
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Identity::from_pem(&cert.pem(), &key.serialize_pem(), &self.ca).unwrap()
    }

    /// As the brain issues them.
    fn identity(&self, node: NodeId) -> Identity {
        let name = SanType::URI(node_uri(node).try_into().unwrap());
        self.certificate(name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn node(&self, timing: Timing) -> Node {
        let id = NodeId::random();
        Node::new(id, &self.identity(id), Arc::default(), Arc::default(), timing)
    }
}

#[derive(Default)]
struct Orders(Mutex<HashMap<(NodeId, VolumeId), Meta>>);

impl Admission for Orders {
    fn arrival(&self, from: NodeId, volume: VolumeId) -> Option<Meta> {
        self.0.lock().get(&(from, volume)).copied()
    }

    fn arrived(&self, _: VolumeId) {}
}

struct Node {
    id: NodeId,
    peers: Peers,
    pool: Arc<FakePool>,
    orders: Arc<Orders>,
}

impl Node {
    fn new(
        id: NodeId,
        identity: &Identity,
        pool: Arc<FakePool>,
        orders: Arc<Orders>,
        timing: Timing,
    ) -> Self {
        let at = "127.0.0.1:0".parse().unwrap();
        let peers = Peers::bind_with(at, identity, pool.clone(), orders.clone(), timing).unwrap();
        Self {
            id,
            peers,
            pool,
            orders,
        }
    }

    fn destination(&self) -> Destination {
        Destination {
            node: self.id,
            addresses: vec![self.peers.local_addr().unwrap()],
        }
    }

    fn expects(&self, from: &Self, meta: Meta) {
        self.orders.0.lock().insert((from.id, meta.id), meta);
    }

    /// A volume with this content, and a snapshot of it.
    async fn volume(&self, content: &[u8]) -> (Meta, SnapshotId) {
        let meta = Meta {
            id: VolumeId::random(),
            tenant: TenantId::random(),
            size: Bytes::mib(64),
            epoch: Epoch(3),
        };
        self.pool.create(&meta).await.unwrap();
        (meta, self.snapshot(&meta, content).await)
    }

    async fn snapshot(&self, meta: &Meta, content: &[u8]) -> SnapshotId {
        assert!(self.pool.write(meta.id, content));
        let snapshot = SnapshotId::random();
        self.pool.snapshot(meta.id, snapshot).await.unwrap();
        snapshot
    }

    fn outgoing(&self, to: &Self, meta: &Meta, snapshot: SnapshotId) -> Outgoing {
        let _ = self;
        Outgoing {
            to: to.destination(),
            volume: meta.id,
            epoch: meta.epoch,
            snapshot,
            parent: None,
        }
    }

    async fn send(&self, outgoing: &Outgoing) -> Result<Sent, PeerError> {
        let progress = watch::channel(Progress::default()).0;
        let limit = Rate::default();
        let sending = self.peers.send(outgoing, &progress, &limit);
        tokio::time::timeout(PATIENCE, sending).await.expect("it ends")
    }

    async fn volumes(&self) -> Vec<Volume> {
        self.pool.list().await.unwrap().volumes
    }

    /// What the snapshot holds here.
    async fn content(&self, meta: &Meta, snapshot: SnapshotId) -> Vec<u8> {
        self.pool.roll_back(meta.id, snapshot, None).await.unwrap();
        self.pool.read(meta.id).unwrap()
    }

    /// Nothing is here, and nothing arrives.
    async fn keeps_nothing(&self) {
        until("nothing arrives", || self.peers.shared.arrivals.count() == 0).await;
        assert_eq!(self.volumes().await, []);
    }
}
