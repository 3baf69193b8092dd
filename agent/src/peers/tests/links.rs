//! Links that break, receivers that restart, senders that leave.

use std::sync::atomic::{AtomicBool, Ordering};

use super::proxy::Proxy;
use super::*;
use crate::fakes::Fault;

/// A transfer through a proxy, slow until it is told otherwise.
struct Way {
    here: Node,
    there: Node,
    proxy: Proxy,
    outgoing: Outgoing,
    meta: Meta,
    content: Vec<u8>,
    progress: watch::Sender<Progress>,
    limit: Rate,
}

impl Way {
    async fn new(cluster: &Cluster, timing: Timing) -> Self {
        let (here, there) = (cluster.node(timing), cluster.node(timing));
        let content = noise(3 << 20);
        let (meta, snapshot) = here.volume(&content).await;
        there.expects(&here, meta);
        let proxy = Proxy::to(there.peers.local_addr().unwrap()).await;
        let mut outgoing = here.outgoing(&there, &meta, snapshot);
        outgoing.to.addresses = vec![proxy.address];
        Self {
            here,
            there,
            proxy,
            outgoing,
            meta,
            content,
            progress: watch::channel(Progress::default()).0,
            limit: Rate::new(Bytes(256 << 10)),
        }
    }

    async fn send(&self) -> Result<Sent, PeerError> {
        let sending = self.here.peers.send(&self.outgoing, &self.progress, &self.limit);
        tokio::time::timeout(PATIENCE, sending).await.expect("it ends")
    }

    /// Something of it has arrived.
    async fn in_the_middle(&self) {
        until("it is on its way", || self.progress.borrow().wire.0 > 256 << 10).await;
        assert_eq!(self.there.peers.shared.arrivals.count(), 1);
    }

    /// The receiver has noticed that the link is dead.
    async fn noticed(&self) {
        until("it is noticed", || {
            self.there.peers.shared.connections.count() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_link_that_is_cut_goes_on_where_it_was() {
    let way = Way::new(&Cluster::new(), KEEPS).await;
    let cut = async {
        for _ in 0..2 {
            let before = way.progress.borrow().wire;
            until("more goes", || {
                way.progress.borrow().wire.0 > before.0 + (128 << 10)
            })
            .await;
            way.in_the_middle().await;
            way.proxy.cut();
            way.noticed().await;
            assert_eq!(way.there.peers.shared.arrivals.count(), 1, "it is kept");
            way.proxy.lead_to(way.there.peers.local_addr().unwrap());
            let so_far = way.progress.borrow().resumed;
            until("it goes on", || way.progress.borrow().resumed > so_far).await;
        }
        way.limit.set(Bytes::ZERO);
    };
    let (sent, ()) = tokio::join!(way.send(), cut);
    let sent = sent.unwrap();
    assert!(sent.progress.resumed >= 2 && sent.restarted == 0, "{sent:?}");
    assert_eq!(way.here.pool.faults.calls("send"), 1, "read once");
    assert_eq!(way.there.pool.faults.calls("arrive"), 1, "received once");
    assert_eq!(
        way.there.content(&way.meta, way.outgoing.snapshot).await,
        way.content
    );
}

#[tokio::test]
async fn a_link_that_is_cut_before_the_last_word_loses_nothing() {
    let way = Way::new(&Cluster::new(), KEEPS).await;
    way.limit.set(Bytes::ZERO);
    // It has all of it, and takes longer to keep it than the link lasts.
    way.there
        .pool
        .faults
        .inject("receive", Fault::Delay(KEEPS.idle + Duration::from_secs(2)));
    let cut = async {
        until("all is there", || way.there.pool.faults.calls("receive") == 1).await;
        way.proxy.cut();
        way.noticed().await;
        way.proxy.lead_to(way.there.peers.local_addr().unwrap());
    };
    let (sent, ()) = tokio::join!(way.send(), cut);
    // Whichever of the two was faster: it is asked about, or found to be there.
    let sent = sent.unwrap();
    assert_eq!(sent.progress.resumed, u32::from(!sent.already), "{sent:?}");
    assert_eq!(way.there.pool.faults.calls("arrive"), 1);
    assert_eq!(
        way.there.content(&way.meta, way.outgoing.snapshot).await,
        way.content
    );
}

#[tokio::test]
async fn a_receiver_that_restarts_gets_it_from_the_beginning() {
    let cluster = Cluster::new();
    let mut way = Way::new(&cluster, KEEPS).await;
    let again = cluster.identity(way.there.id);
    let again = Node::new(
        way.there.id,
        &again,
        way.there.pool.clone(),
        way.there.orders.clone(),
        KEEPS,
    );
    let first = std::mem::replace(&mut way.there, again);
    way.proxy.lead_to(first.peers.local_addr().unwrap());
    let restart = async {
        until("it is on its way", || way.progress.borrow().wire.0 > 256 << 10).await;
        assert_eq!(first.peers.shared.arrivals.count(), 1);
        // It was killed: nobody hears of it.
        way.proxy.cut();
        first.peers.close().await;
        way.proxy.lead_to(way.there.peers.local_addr().unwrap());
        way.limit.set(Bytes::ZERO);
    };
    let (sent, ()) = tokio::join!(way.send(), restart);
    let sent = sent.unwrap();
    assert_eq!((sent.restarted, sent.progress.resumed), (1, 0));
    assert_eq!(way.here.pool.faults.calls("send"), 2);
    assert_eq!(
        way.there.content(&way.meta, way.outgoing.snapshot).await,
        way.content
    );
}

#[tokio::test]
async fn a_sender_that_takes_it_back_leaves_nothing() {
    let way = Way::new(&Cluster::new(), KEEPS).await;
    tokio::select! {
        sent = way.send() => panic!("{sent:?}"),
        () = way.in_the_middle() => {}
    }
    // At once: what is kept for a broken link would stay for longer than the test waits.
    way.there.keeps_nothing().await;
    // And it may be sent again.
    way.limit.set(Bytes::ZERO);
    let sent = way.send().await.unwrap();
    assert_eq!((sent.already, sent.restarted), (false, 0));
    assert_eq!(
        way.there.content(&way.meta, way.outgoing.snapshot).await,
        way.content
    );
}

#[tokio::test]
async fn an_agent_that_stops_leaves_nothing_on_either_side() {
    let cluster = Cluster::new();
    let way = Way::new(&cluster, KEEPS).await;
    {
        let sending = way.send();
        tokio::pin!(sending);
        tokio::select! {
            sent = &mut sending => panic!("{sent:?}"),
            () = way.in_the_middle() => {}
        }
        way.here.peers.end();
        way.there.keeps_nothing().await;
    }
    let (here, meta) = (cluster.node(KEEPS), way.meta);
    let snapshot = {
        here.pool.create(&meta).await.unwrap();
        here.snapshot(&meta, &way.content).await
    };
    way.there.expects(&here, meta);
    let outgoing = here.outgoing(&way.there, &meta, snapshot);
    let sending = here.peers.send(&outgoing, &way.progress, &way.limit);
    tokio::select! {
        sent = sending => panic!("{sent:?}"),
        () = until("it arrives", || way.there.peers.shared.arrivals.count() == 1) => {}
    }
    way.there.peers.end();
    way.there.keeps_nothing().await;
}

#[tokio::test]
async fn a_link_that_does_not_come_back_is_given_up_by_both() {
    let brief = Timing {
        idle: Duration::from_secs(1),
        resume_for: Duration::from_secs(1),
    };
    let way = Way::new(&Cluster::new(), brief).await;
    let (over, noticed) = (AtomicBool::new(false), AtomicBool::new(false));
    let sending = async {
        let sent = way.send().await;
        over.store(true, Ordering::SeqCst);
        sent
    };
    let cut = async {
        way.in_the_middle().await;
        way.proxy.cut();
        way.noticed().await;
        noticed.store(true, Ordering::SeqCst);
        way.there.keeps_nothing().await;
    };
    let (sent, ()) = tokio::join!(sending, cut);
    assert!(over.into_inner() && noticed.into_inner());
    let error = sent.unwrap_err();
    assert!(
        matches!(error, PeerError::Lost { .. }) && error.retryable(),
        "{error}"
    );
}
