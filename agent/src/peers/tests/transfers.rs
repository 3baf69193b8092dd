//! What arrives, and what is refused.

use rcgen::{ExtendedKeyUsagePurpose, SanType};

use super::*;
use crate::fakes::Fault;
use crate::peers::LineError;
use crate::reconcile::apply::chain;

#[tokio::test]
async fn a_volume_goes_whole_then_by_increments_and_what_is_there_is_not_sent_again() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let one = noise(1 << 20);
    let (meta, first) = here.volume(&one).await;
    there.expects(&here, meta);
    let mut outgoing = here.outgoing(&there, &meta, first);
    // The parent that was meant is not there.
    outgoing.parent = Some(SnapshotId::random());
    let sent = here.send(&outgoing).await.unwrap();
    assert_eq!((sent.already, sent.parent, sent.restarted), (false, None, 0));
    assert!(
        sent.progress.read.0 > 1 << 20 && sent.progress.wire < sent.progress.read,
        "{sent:?}"
    );
    assert_eq!(sent.progress.expected, Some(Bytes(1 << 20)));

    let again = here.send(&outgoing).await.unwrap();
    assert!(again.already && again.progress == Progress::default());
    assert_eq!(here.pool.faults.calls("send"), 1);

    let second = here.snapshot(&meta, b"two").await;
    let third = here.snapshot(&meta, b"three").await;
    outgoing.snapshot = third;
    // Not what was meant, but a snapshot that both have.
    outgoing.parent = Some(second);
    let sent = here.send(&outgoing).await.unwrap();
    assert_eq!((sent.parent, sent.progress.expected), (Some(first), None));
    outgoing.snapshot = second;
    outgoing.parent = None;
    assert_eq!(here.send(&outgoing).await.unwrap().parent, None);
    assert_eq!(there.content(&meta, first).await, one);
    assert_eq!(there.content(&meta, third).await, b"three");

    // Back again: what came from here is a base here too.
    here.expects(&there, meta);
    let fourth = there.snapshot(&meta, b"four").await;
    let mut back = there.outgoing(&here, &meta, fourth);
    back.parent = Some(third);
    assert_eq!(there.send(&back).await.unwrap().parent, Some(third));
    assert_eq!(here.content(&meta, fourth).await, b"four");
}

#[tokio::test]
async fn a_snapshot_of_the_same_id_that_is_not_the_same_is_no_parent_and_is_not_overwritten() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, first) = here.volume(b"one").await;
    let second = here.snapshot(&meta, b"two").await;
    there.expects(&here, meta);
    there.pool.create(&meta).await.unwrap();
    assert!(there.pool.write(meta.id, b"another"));
    there.pool.snapshot(meta.id, first).await.unwrap();
    let mut outgoing = here.outgoing(&there, &meta, second);
    outgoing.parent = Some(first);
    assert_eq!(here.send(&outgoing).await.unwrap().parent, None);
    outgoing.snapshot = first;
    outgoing.parent = None;
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(
        error.to_string().contains("another snapshot") && !error.retryable(),
        "{error}"
    );
    assert_eq!(there.content(&meta, first).await, b"another");
    assert_eq!(there.content(&meta, second).await, b"two");
}

#[tokio::test]
async fn what_no_order_speaks_of_is_refused_with_the_reason_and_not_kept() {
    let cluster = Cluster::new();
    let (here, there, other) = (cluster.node(KEEPS), cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(b"content").await;
    let outgoing = here.outgoing(&there, &meta, snapshot);
    let refused = async |words: &str, may_come: bool| {
        let error = here.send(&outgoing).await.unwrap_err();
        assert!(matches!(error, PeerError::Refused { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.retryable(), may_come, "{error}");
        there.keeps_nothing().await;
    };
    refused("is not expected here", true).await;
    // From another node.
    there.expects(&other, meta);
    refused("is not expected here", true).await;
    there.expects(
        &here,
        Meta {
            epoch: Epoch(4),
            ..meta
        },
    );
    refused("is expected in epoch 4, and comes in 3", false).await;
    there.expects(
        &here,
        Meta {
            epoch: Epoch(2),
            ..meta
        },
    );
    refused("is expected in epoch 2, and comes in 3", true).await;
    there.expects(
        &here,
        Meta {
            id: VolumeId::random(),
            ..meta
        },
    );
    there.orders.0.lock().insert(
        (here.id, meta.id),
        Meta {
            id: VolumeId::random(),
            ..meta
        },
    );
    refused("is not expected here", true).await;
    assert_eq!(here.pool.faults.calls("send"), 0, "nothing was read for nothing");

    there.expects(&here, meta);
    here.send(&outgoing).await.unwrap();
    let next = here.snapshot(&meta, b"next").await;
    there.expects(
        &here,
        Meta {
            tenant: TenantId::random(),
            ..meta
        },
    );
    let error = here.send(&here.outgoing(&there, &meta, next)).await.unwrap_err();
    assert!(error.to_string().contains("another tenant's"), "{error}");
    assert_eq!(there.volumes().await[0].snapshots.len(), 1);
}

#[tokio::test]
async fn an_order_that_is_withdrawn_on_the_way_stops_the_end() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(&noise(2 << 20)).await;
    there.expects(&here, meta);
    let outgoing = here.outgoing(&there, &meta, snapshot);
    let (progress, limit) = (watch::channel(Progress::default()).0, Rate::new(Bytes(256 << 10)));
    let sending = here.peers.send(&outgoing, &progress, &limit);
    let withdrawn = async {
        until("it is on its way", || there.peers.shared.arrivals.count() == 1).await;
        there.expects(
            &here,
            Meta {
                epoch: Epoch(4),
                ..meta
            },
        );
        limit.set(Bytes::ZERO);
    };
    let (sent, ()) = tokio::join!(sending, withdrawn);
    let error = sent.unwrap_err();
    assert!(matches!(error, PeerError::Refused { .. }), "{error}");
    there.keeps_nothing().await;
}

#[tokio::test]
async fn no_node_stands_in_for_another_and_only_nodes_are_let_in() {
    let cluster = Cluster::new();
    let (here, there, other) = (cluster.node(KEEPS), cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(b"secret").await;
    there.expects(&here, meta);
    other.expects(&here, meta);
    let mut outgoing = here.outgoing(&there, &meta, snapshot);
    let genuine = std::mem::replace(&mut outgoing.to.addresses, other.destination().addresses);
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    let why = chain(&error);
    assert!(
        why.contains(&other.id.to_string()) && why.contains("answers there"),
        "{why}"
    );
    other.keeps_nothing().await;
    // The next address may be the right one.
    outgoing.to.addresses.extend(genuine);
    here.send(&outgoing).await.unwrap();

    // Another cluster's node of the same id, and the brain.
    let brain = SanType::DnsName("brain.berth".try_into().unwrap());
    let strangers = [
        Cluster::new().identity(here.id),
        cluster.certificate(brain, ExtendedKeyUsagePurpose::ServerAuth),
        cluster.certificate(
            SanType::URI("berth://tenant/x".try_into().unwrap()),
            ExtendedKeyUsagePurpose::ClientAuth,
        ),
    ];
    let next = here.snapshot(&meta, b"next").await;
    for stranger in strangers {
        let stranger = Identity {
            ca: there.peers.identity.lock().ca.clone(),
            ..stranger
        };
        let stranger = Node::new(here.id, &stranger, here.pool.clone(), Arc::default(), KEEPS);
        let from_it = stranger.send(&stranger.outgoing(&there, &meta, next)).await;
        let to_it = here.send(&here.outgoing(&stranger, &meta, next)).await;
        for error in [from_it.unwrap_err(), to_it.unwrap_err()] {
            assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
        }
    }
    assert_eq!(there.volumes().await[0].snapshots.len(), 1);
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_on_both_ends() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(b"content").await;
    let before = there.peers.identity.lock().chain[0].clone();
    let renewed = cluster.identity(there.id);
    assert!(
        there
            .peers
            .renew(&Identity {
                chain: vec![before],
                ..renewed.clone()
            })
            .is_err(),
        "not its key"
    );
    there.peers.renew(&renewed).unwrap();
    here.peers.renew(&cluster.identity(here.id)).unwrap();
    let line = here.peers.dial(&there.destination()).await.unwrap();
    let shown = line.connection.peer_identity().unwrap();
    let shown = shown
        .downcast::<Vec<rustls::pki_types::CertificateDer<'static>>>()
        .unwrap();
    assert_eq!(shown[0], renewed.chain[0]);
    there.expects(&here, meta);
    here.send(&here.outgoing(&there, &meta, snapshot)).await.unwrap();
}

#[tokio::test]
async fn the_receivers_trouble_is_told_in_its_words_early_and_late() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(&noise(8 << 20)).await;
    there.expects(&here, meta);
    let outgoing = here.outgoing(&there, &meta, snapshot);
    for (operation, retryable) in [("arrive", true), ("receive", true), ("receive", false)] {
        let message = "no space left on the pool".to_owned();
        there
            .pool
            .faults
            .inject(operation, Fault::Fail { message, retryable });
        let error = here.send(&outgoing).await.unwrap_err();
        let PeerError::Failed { reason, .. } = &error else {
            panic!("{error}")
        };
        let words = if retryable {
            "no space left"
        } else {
            "Read-only file system"
        };
        assert!(reason.contains(words), "{reason}");
        assert_eq!(error.retryable(), retryable);
        there.keeps_nothing().await;
    }
    let message = "the disk is gone".to_owned();
    there.pool.faults.inject(
        "list",
        Fault::Fail {
            message,
            retryable: true,
        },
    );
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(
        matches!(error, PeerError::Refused { .. }) && error.to_string().contains("disk is gone"),
        "{error}"
    );
    here.send(&outgoing).await.unwrap();
}

#[tokio::test]
async fn a_pool_that_fails_while_it_is_read_gives_no_snapshot() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(&noise(1 << 20)).await;
    there.expects(&here, meta);
    let outgoing = here.outgoing(&there, &meta, snapshot);
    let fail = |message: &str| Fault::Fail {
        message: message.into(),
        retryable: true,
    };
    here.pool.faults.inject("stream", fail("a bad sector"));
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(
        matches!(error, PeerError::Read { .. }) && chain(&error).contains("a bad sector"),
        "{error}"
    );
    there.keeps_nothing().await;
    here.pool.faults.inject("send", fail("busy"));
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(matches!(error, PeerError::Pool { .. }), "{error}");
    there.keeps_nothing().await;
    let unknown = Outgoing {
        snapshot: SnapshotId::random(),
        ..outgoing.clone()
    };
    assert!(matches!(here.send(&unknown).await, Err(PeerError::Pool { .. })));
    here.send(&outgoing).await.unwrap();
}

#[tokio::test]
async fn nobody_there_is_told_at_once_and_the_same_is_not_sent_twice() {
    let cluster = Cluster::new();
    let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
    let (meta, snapshot) = here.volume(b"content").await;
    let mut outgoing = here.outgoing(&there, &meta, snapshot);
    outgoing.to.addresses.clear();
    let error = here.send(&outgoing).await.unwrap_err();
    assert!(
        matches!(
            error,
            PeerError::Unreachable {
                source: LineError::NoAddress,
                ..
            }
        ),
        "{error}"
    );

    let outgoing = here.outgoing(&there, &meta, snapshot);
    there.expects(&here, meta);
    let here = Arc::new(here);
    // On another thread, as the agent does it.
    let first = {
        let (here, outgoing) = (here.clone(), outgoing.clone());
        here.pool
            .faults
            .inject("send", Fault::Delay(Duration::from_millis(200)));
        tokio::spawn(async move { here.send(&outgoing).await })
    };
    until("it has begun", || there.peers.shared.arrivals.count() == 1).await;
    let second = here.send(&outgoing).await;
    first.await.unwrap().unwrap();
    assert!(matches!(second, Err(PeerError::Underway { .. })));
    assert!(here.send(&outgoing).await.unwrap().already);
}
