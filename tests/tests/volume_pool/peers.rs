//! Snapshots from one pool to another over the network.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use berth_agent::peers::{Admission, Destination, Outgoing, PeerError, Peers, Progress, Rate, Sent};
use berth_agent::volume::{Meta, Pool as _};
use berth_common::id::{NodeId, SnapshotId, VolumeId};
use berth_common::identity::{Identity, node_uri};
use nix::errno::Errno;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use tokio::sync::watch;

use super::bench::{Bench, fill, meta};
use super::transfers::{change, furnish, tree};

/// Everything that the one node brings of one volume.
struct Order(NodeId, Meta);

impl Admission for Order {
    fn arrival(&self, from: NodeId, volume: VolumeId) -> Option<Meta> {
        (from == self.0 && volume == self.1.id).then_some(self.1)
    }

    fn arrived(&self, _: VolumeId) {}
}

/// Two pools of so many MiB, a volume on the first, and a way between them.
struct Pair {
    here: Bench,
    there: Bench,
    one: Meta,
    from: Peers,
    _to: Peers,
    destination: Destination,
}

impl Pair {
    async fn new(mib: (u64, u64), volume: u64) -> Self {
        let (here, there, one) = (Bench::new(mib.0), Bench::new(mib.1), meta(volume));
        here.pool.create(&one).await.unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let ca = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        let bind = |node: NodeId, pool: &Bench, order: Order| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.subject_alt_names = vec![SanType::URI(node_uri(node).try_into().unwrap())];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let cert = params.signed_by(&key, &issuer).unwrap().pem();
            let identity = Identity::from_pem(&cert, &key.serialize_pem(), &ca).unwrap();
            let at = "127.0.0.1:0".parse().unwrap();
            Peers::bind(at, &identity, Arc::new(pool.pool.clone()), Arc::new(order)).unwrap()
        };
        let (sender, receiver) = (NodeId::random(), NodeId::random());
        let from = bind(sender, &here, Order(receiver, one));
        let to = bind(receiver, &there, Order(sender, one));
        let destination = Destination {
            node: receiver,
            addresses: vec![to.local_addr().unwrap()],
        };
        Self {
            here,
            there,
            one,
            from,
            _to: to,
            destination,
        }
    }

    fn outgoing(&self, snapshot: SnapshotId, parent: Option<SnapshotId>) -> Outgoing {
        Outgoing {
            to: self.destination.clone(),
            volume: self.one.id,
            epoch: self.one.epoch,
            snapshot,
            parent,
        }
    }

    async fn send(&self, snapshot: SnapshotId, parent: Option<SnapshotId>) -> Result<Sent, PeerError> {
        let progress = watch::channel(Progress::default()).0;
        let outgoing = self.outgoing(snapshot, parent);
        self.from.send(&outgoing, &progress, &Rate::default()).await
    }

    async fn snapshot(&self) -> SnapshotId {
        let snapshot = SnapshotId::random();
        self.here.pool.snapshot(self.one.id, snapshot).await.unwrap();
        snapshot
    }

    /// The receiver's pool is as if nothing had come, once the failed transfer is cleared away.
    async fn nothing_there(&self) {
        let below = self.there.root().join("v");
        for _ in 0..6_000 {
            if fs::read_dir(&below).unwrap().next().is_none() {
                assert_eq!(self.there.pool.list().await.unwrap().volumes, []);
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("something stays in {}", below.display());
    }
}

#[tokio::test]
async fn a_volume_goes_to_another_node_whole_and_by_increments() {
    let pair = Pair::new((512, 512), 128).await;
    furnish(&pair.here.data(&pair.one));
    let first = pair.snapshot().await;
    let whole = pair.send(first, None).await.unwrap();
    assert!(!whole.already && whole.progress.read.0 > 3 << 20, "{whole:?}");
    assert!(pair.send(first, None).await.unwrap().already);
    change(&pair.here.data(&pair.one));
    let second = pair.snapshot().await;
    let increment = pair.send(second, Some(first)).await.unwrap();
    assert_eq!(increment.parent, Some(first));
    assert!(increment.progress.read.0 < 2 << 20, "{increment:?}");
    assert!(
        increment.progress.wire.0 < increment.progress.read.0 / 2,
        "a MiB of the same byte: {increment:?}"
    );
    for snapshot in [first, second] {
        let at = |bench: &Bench| bench.root().join(format!("v/{}/s/{snapshot}", pair.one.id));
        assert_eq!(tree(&at(&pair.here)), tree(&at(&pair.there)));
    }
}

#[tokio::test]
async fn a_transfer_that_is_taken_back_and_a_full_pool_leave_nothing() {
    let pair = Pair::new((512, 256), 400).await;
    let written = fill(&pair.here.data(&pair.one).join("large"), 280);
    assert_eq!(written, (280 << 20, None::<Errno>));
    let snapshot = pair.snapshot().await;

    let progress = watch::channel(Progress::default()).0;
    let outgoing = pair.outgoing(snapshot, None);
    let limit = Rate::default();
    let mut seen = progress.subscribe();
    tokio::select! {
        sent = pair.from.send(&outgoing, &progress, &limit) => panic!("{sent:?}"),
        seen = seen.wait_for(|progress| progress.read.0 > 4 << 20) => drop(seen.unwrap()),
    }
    pair.nothing_there().await;

    let error = pair.send(snapshot, None).await.unwrap_err();
    let PeerError::Failed { reason, .. } = &error else {
        panic!("{error}")
    };
    assert!(reason.contains("No space left on device"), "{reason}");
    pair.nothing_there().await;
}
