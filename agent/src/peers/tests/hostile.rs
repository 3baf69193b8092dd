//! Nodes that do not keep to the rules.

use berth_common::protocol::{read_frame, write_frame};
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt as _;

use super::*;
use crate::peers::dial::Line;
use crate::peers::frame::{self, CHUNK, Position};
use crate::peers::wire::{Answer, Candidate, MAX_ANSWER, MAX_OPENING, Offer, Opening, TransferId};

/// A stream to a node, spoken by hand.
struct Raw {
    line: Line,
    send: SendStream,
    receive: RecvStream,
}

impl Raw {
    async fn open(from: &Node, to: &Node, opening: &Opening) -> Self {
        let line = from.peers.dial(&to.destination()).await.unwrap();
        let (mut send, receive) = line.connection.open_bi().await.unwrap();
        write_frame(&mut send, opening).await.unwrap();
        Self { line, send, receive }
    }

    async fn answer(&mut self) -> Answer {
        let answer = read_frame(&mut self.receive, MAX_ANSWER);
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.expect("an answer").unwrap()
    }

    async fn write(&mut self, bytes: &[u8]) {
        // It may have stopped listening.
        let _ = self.send.write_all(bytes).await;
    }
}

/// A node with a volume, another that expects it, an offer, and the body that belongs to it.
struct Scene {
    here: Node,
    there: Node,
    meta: Meta,
    offer: Offer,
    body: Vec<u8>,
}

impl Scene {
    async fn new(cluster: &Cluster) -> Self {
        let (here, there) = (cluster.node(KEEPS), cluster.node(KEEPS));
        let (meta, snapshot) = here.volume(&noise(100 << 10)).await;
        there.expects(&here, meta);
        let mut body = Vec::new();
        let mut stream = here.pool.send(meta.id, snapshot, None).await.unwrap();
        stream.read_to_end(&mut body).await.unwrap();
        assert!(body.len() > 2 * CHUNK);
        let offer = Offer {
            transfer: TransferId::random(),
            volume: meta.id,
            epoch: meta.epoch,
            content: Candidate::of(&here.volumes().await[0].snapshots[0]),
            parents: Vec::new(),
            expected: Bytes::ZERO,
        };
        Self {
            here,
            there,
            meta,
            offer,
            body,
        }
    }

    /// Offers it anew.
    async fn begin(&mut self) -> Raw {
        self.offer.transfer = TransferId::random();
        let opening = Opening::Offer(self.offer.clone());
        let mut raw = Raw::open(&self.here, &self.there, &opening).await;
        assert_eq!(raw.answer().await, Answer::Send { parent: None });
        raw
    }

    fn chunk(&self, n: usize) -> Vec<u8> {
        let content = self.body.chunks(CHUNK).nth(n).unwrap();
        frame::chunk((n * CHUNK) as u64, frame::filled(content), None).to_vec()
    }

    fn rest(&self, from: usize) -> Vec<u8> {
        let count = self.body.len().div_ceil(CHUNK);
        (from..count).flat_map(|n| self.chunk(n)).collect()
    }

    fn end(&self) -> Position {
        self.body.chunks(CHUNK).fold(Position::default(), Position::after)
    }
}

#[tokio::test]
async fn bodies_that_are_not_whole_or_not_right_leave_nothing() {
    let mut scene = Scene::new(&Cluster::new()).await;
    let end = scene.end();
    let (first, rest) = (scene.chunk(0), scene.rest(1));
    let mut flipped = first.clone();
    flipped[1_000] ^= 1;
    let mut oversized = first.clone();
    oversized[9..13].copy_from_slice(&u32::MAX.to_be_bytes());
    let ends = |at| frame::end(at).to_vec();
    let bad: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("no end", vec![]),
        ("no end", vec![first.clone(), rest.clone()]),
        (
            "no end",
            vec![first.clone(), rest.clone(), ends(end)[..20].to_vec()],
        ),
        ("is damaged", vec![flipped, rest.clone(), ends(end)]),
        ("bytes,", vec![oversized]),
        ("begins no frame", vec![first.clone(), b"\xff garbage".to_vec()]),
        ("belongs", vec![first.clone(), first.clone()]),
        ("belongs", vec![rest.clone(), ends(end)]),
        ("the end speaks", vec![first.clone(), ends(end)]),
        (
            "the end speaks",
            vec![first.clone(), rest.clone(), ends(Position { chunks: 1, ..end })],
        ),
        ("the end speaks", vec![ends(end)]),
    ];
    for (words, pieces) in bad {
        let mut raw = scene.begin().await;
        for piece in &pieces {
            raw.write(piece).await;
        }
        raw.send.finish().unwrap();
        let answer = raw.answer().await;
        let Answer::Failed { reason, .. } = &answer else {
            panic!("{answer:?}")
        };
        assert!(reason.contains(words), "{words}: {reason}");
        scene.there.keeps_nothing().await;
    }
    // A whole and right one of half of it: the pool notices.
    let mut raw = scene.begin().await;
    raw.write(&first).await;
    raw.write(&frame::end(Position::default().after(&scene.body[..CHUNK])))
        .await;
    assert!(matches!(raw.answer().await, Answer::Failed { .. }));
    scene.there.keeps_nothing().await;

    let mut raw = scene.begin().await;
    raw.write(&first).await;
    raw.write(&rest).await;
    raw.write(&frame::end(end)).await;
    assert_eq!(raw.answer().await, Answer::Received);
    assert_eq!(scene.there.volumes().await[0].snapshots.len(), 1);
}

#[tokio::test]
async fn openings_that_cannot_be_understood_are_answered() {
    let mut scene = Scene::new(&Cluster::new()).await;
    scene.offer.parents = vec![scene.offer.content; 100];
    let many = Opening::Offer(scene.offer.clone());
    let mut raw = Raw::open(&scene.here, &scene.there, &many).await;
    assert!(matches!(
        raw.answer().await,
        Answer::Refused { retryable: false, .. }
    ));
    let mut raw = Raw::open(&scene.here, &scene.there, &Opening::Unknown).await;
    let answer = raw.answer().await;
    assert!(
        matches!(&answer, Answer::Refused { reason, .. } if reason.contains("upgrade")),
        "{answer:?}"
    );
    for bytes in [
        &(MAX_OPENING as u32 + 1).to_be_bytes()[..],
        b"\0\0\0\x02{}",
        b"\0\0\0\x04\xff\xff\xff\xff",
    ] {
        let (mut send, receive) = raw.line.connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        (raw.send, raw.receive) = (send, receive);
        assert!(matches!(
            raw.answer().await,
            Answer::Refused { retryable: false, .. }
        ));
    }
    scene.there.keeps_nothing().await;
}

#[tokio::test]
async fn a_transfer_is_resumed_by_its_own_node_alone_and_by_one_stream_at_a_time() {
    let cluster = Cluster::new();
    let mut scene = Scene::new(&cluster).await;
    let other = cluster.node(KEEPS);
    scene.there.expects(&other, scene.meta);
    let mut first = scene.begin().await;
    first.write(&scene.chunk(0)).await;
    let arrival = scene
        .there
        .peers
        .shared
        .arrivals
        .find(scene.here.id, scene.offer.transfer)
        .unwrap();
    let resume = Opening::Resume {
        transfer: scene.offer.transfer,
    };
    let mut stolen = Raw::open(&other, &scene.there, &resume).await;
    assert_eq!(stolen.answer().await, Answer::Forgotten);

    // While the old link is not known to be dead. What is on its way on it may or may not count.
    let mut second = Raw::open(&scene.here, &scene.there, &resume).await;
    let Answer::Resume { offset } = second.answer().await else {
        panic!("resumed")
    };
    assert!([0, CHUNK as u64].contains(&offset), "{offset}");
    // Nobody listens to the first any more.
    first.write(&scene.rest(1)).await;
    first.write(&frame::end(scene.end())).await;
    second.write(&scene.rest(offset as usize / CHUNK)).await;
    second.write(&frame::end(scene.end())).await;
    assert_eq!(second.answer().await, Answer::Received);
    assert_eq!(arrival.outcome().await, Answer::Received);
    let mut late = Raw::open(&scene.here, &scene.there, &resume).await;
    assert_eq!(late.answer().await, Answer::Forgotten);

    // An order that was withdrawn ends it.
    let next = scene.here.snapshot(&scene.meta, &noise(100 << 10)).await;
    let listed = scene.here.volumes().await[0].clone();
    let next = listed
        .snapshots
        .iter()
        .find(|snapshot| snapshot.id == next)
        .unwrap();
    scene.offer.content = Candidate::of(next);
    let _raw = scene.begin().await;
    scene.there.orders.0.lock().clear();
    let resume = Opening::Resume {
        transfer: scene.offer.transfer,
    };
    let mut refused = Raw::open(&scene.here, &scene.there, &resume).await;
    assert!(matches!(refused.answer().await, Answer::Refused { .. }));
    until("it ends", || scene.there.peers.shared.arrivals.count() == 0).await;
}

#[tokio::test]
async fn a_new_offer_takes_the_place_of_what_its_node_left_behind() {
    let mut scene = Scene::new(&Cluster::new()).await;
    let mut left = scene.begin().await;
    left.write(&scene.chunk(0)).await;
    let mut anew = scene.begin().await;
    let answer = left.answer().await;
    assert!(
        matches!(&answer, Answer::Failed { reason, .. } if reason.contains("took its place")),
        "{answer:?}"
    );
    assert_eq!(scene.there.peers.shared.arrivals.count(), 1);
    anew.write(&scene.rest(0)).await;
    anew.write(&frame::end(scene.end())).await;
    assert_eq!(anew.answer().await, Answer::Received);
}

#[tokio::test]
async fn one_node_has_so_many_transfers_and_connections_and_no_more() {
    let mut scene = Scene::new(&Cluster::new()).await;
    let mut open = Vec::new();
    for _ in 0..crate::peers::arrivals::MOST_PER_NODE {
        scene.offer.content.snapshot = SnapshotId::random();
        open.push(scene.begin().await);
    }
    scene.offer.content.snapshot = SnapshotId::random();
    scene.offer.transfer = TransferId::random();
    let opening = Opening::Offer(scene.offer.clone());
    let mut refused = Raw::open(&scene.here, &scene.there, &opening).await;
    let answer = refused.answer().await;
    assert!(
        matches!(&answer, Answer::Refused { reason, retryable: true } if reason.contains("too many")),
        "{answer:?}"
    );
    drop((open, refused));
    scene.there.keeps_nothing().await;
    until("they go", || scene.there.peers.shared.connections.count() == 0).await;

    let mut lines = Vec::new();
    let closed = loop {
        let line = scene.here.peers.dial(&scene.there.destination()).await.unwrap();
        lines.push(line);
        assert!(lines.len() < 100);
        // The last is the one that is over the bound.
        let (mut send, mut receive) = lines[lines.len() - 1].connection.open_bi().await.unwrap();
        let asked = async {
            write_frame(&mut send, &Opening::Unknown).await?;
            read_frame::<Answer>(&mut receive, MAX_ANSWER).await
        };
        if asked.await.is_err() {
            break lines[lines.len() - 1].connection.closed().await;
        }
    };
    assert!(closed.to_string().contains("too many"), "{closed}");
    assert_eq!(lines.len(), 2 * crate::peers::arrivals::MOST_PER_NODE + 1);
}

#[tokio::test]
async fn a_receiver_that_lies_gets_nothing_more() {
    // A server by hand.
    let cluster = Cluster::new();
    let (here, liar) = (cluster.node(KEEPS), NodeId::random());
    let (meta, snapshot) = here.volume(&noise(1 << 20)).await;
    let config = crate::peers::server_config(&cluster.identity(liar), KEEPS).unwrap();
    let endpoint = quinn::Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
    let outgoing = Outgoing {
        to: Destination {
            node: liar,
            addresses: vec![endpoint.local_addr().unwrap()],
        },
        volume: meta.id,
        epoch: meta.epoch,
        snapshot,
        parent: None,
    };
    let lies: Vec<(Vec<Answer>, &str)> = vec![
        (vec![Answer::Received], "out of turn"),
        (vec![Answer::Ack { offset: 0 }], "out of turn"),
        (vec![Answer::Forgotten], "out of turn"),
        (vec![Answer::Resume { offset: 0 }], "out of turn"),
        (vec![Answer::Unknown], "out of turn"),
        (
            vec![Answer::Send {
                parent: Some(SnapshotId::random()),
            }],
            "out of turn",
        ),
        (
            vec![Answer::Send { parent: None }, Answer::Ack { offset: u64::MAX }],
            "loses count",
        ),
        (
            vec![Answer::Send { parent: None }, Answer::Ack { offset: 1 }],
            "loses count",
        ),
        (vec![Answer::Send { parent: None }, Answer::Here], "out of turn"),
    ];
    for (answers, words) in lies {
        let lying = async {
            let connection = endpoint.accept().await.unwrap().await.unwrap();
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            let _: Opening = read_frame(&mut receive, MAX_OPENING).await.unwrap();
            for answer in &answers {
                write_frame(&mut send, answer).await.unwrap();
            }
            connection.closed().await
        };
        let (sent, closed) = tokio::join!(here.send(&outgoing), lying);
        let error = sent.unwrap_err();
        assert!(
            error.to_string().contains(words) && !error.retryable(),
            "{answers:?}: {error}"
        );
        assert!(
            matches!(closed, quinn::ConnectionError::ApplicationClosed(_)),
            "{closed}"
        );
    }
}
