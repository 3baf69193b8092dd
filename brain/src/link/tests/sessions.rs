//! Sessions: who gets one, what goes down and up, and what ends them.

use super::*;
use berth_common::protocol::{NodeUsage, UsageReport};

#[tokio::test]
async fn desired_sets_go_down_and_observations_up() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, set) = bench.connect(&node).await;
    assert!(set.containers.is_empty());
    bench
        .until("connected", |s| {
            s.connections.get(&node.id).is_some_and(|c| !c.synced)
        })
        .await;
    agent.observed(true, set.generation, vec![]).await;
    bench.until("synced", |s| s.connections[&node.id].synced).await;
    assert_eq!(
        bench.cluster.snapshot().connections[&node.id].address,
        "127.0.0.1"
    );
    // A write places a container on the node, and its agent is told at once.
    let tenant = bench.tenant("t").await;
    bench.service(1, tenant, 1).await;
    let update = agent.order().await;
    let DesiredUpdate::Delta {
        base,
        containers,
        tenants,
        ..
    } = &update
    else {
        panic!("{update:?}")
    };
    assert_eq!((*base, containers.len(), tenants.len()), (set.generation, 1, 1));
    let (id, generation) = (containers[0].id, update.generation());
    agent.observed(false, generation, vec![running(id)]).await;
    bench
        .until("running", |s| {
            s.observed.get(&id).is_some_and(|o| o.phase == Phase::Running)
        })
        .await;
    bench
        .until("applied", |s| s.connections[&node.id].applied == generation)
        .await;
    // Goodbye ends it, without a loss.
    agent.say(&AgentMessage::Goodbye).await;
    bench
        .until("disconnected", |s| !s.connections.contains_key(&node.id))
        .await;
    assert_eq!(agent.ended().await, 0);
    assert!(!bench.cluster.snapshot().nodes[&node.id].lost);
    // The next connection begins with the whole of it.
    let (_agent, set) = bench.connect(&node).await;
    assert_eq!((set.generation, set.containers.len()), (generation, 1));
}

#[tokio::test]
async fn a_missing_base_brings_the_whole_set() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, set) = bench.connect(&node).await;
    agent.observed(true, set.generation, vec![]).await;
    bench
        .until("synced", |s| {
            s.connections.get(&node.id).is_some_and(|c| c.synced)
        })
        .await;
    let tenant = bench.tenant("t").await;
    // Two generations, the second a delta to the first.
    bench.service(1, tenant, 1).await;
    agent.order().await;
    bench.service(2, tenant, 1).await;
    let delta = agent.order().await;
    assert!(matches!(delta, DesiredUpdate::Delta { .. }));
    agent
        .say(&AgentMessage::Refused {
            held: set.generation,
            refused: delta.generation(),
            problem: Problem::new(ErrorKind::Precondition, "no base"),
        })
        .await;
    match agent.order().await {
        DesiredUpdate::Full { set } => assert_eq!(set.containers.len(), 2),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn r8_what_a_node_could_not_keep_is_offered_again_and_told_once() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, set) = bench.connect(&node).await;
    agent.observed(true, set.generation, vec![]).await;
    bench
        .until("synced", |s| {
            s.connections.get(&node.id).is_some_and(|c| c.synced)
        })
        .await;
    let tenant = bench.tenant("t").await;
    bench.service(1, tenant, 1).await;
    let mut order = agent.order().await;
    for _ in 0..2 {
        agent
            .say(&AgentMessage::Refused {
                held: set.generation,
                refused: order.generation(),
                problem: Problem::unavailable("the disk is full").cure("free space"),
            })
            .await;
        order = agent.order().await;
        assert!(matches!(&order, DesiredUpdate::Full { set } if set.containers.len() == 1));
    }
    let told = bench.cluster.events().newest(10, |e| e.kind == "desired-refused");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].text.contains("the disk is full; free space"), "{told:?}");
}

#[tokio::test]
async fn r7_a_node_speaks_for_its_own_containers_only() {
    let bench = Bench::new().await;
    let (a, b) = (bench.join().await, bench.join().await);
    let (mut agent_a, set_a) = bench.connect(&a).await;
    agent_a.observed(true, set_a.generation, vec![]).await;
    bench
        .until("synced", |s| s.connections.get(&a.id).is_some_and(|c| c.synced))
        .await;
    let tenant = bench.tenant("t").await;
    bench.service(1, tenant, 1).await;
    let DesiredUpdate::Delta { containers, .. } = agent_a.order().await else {
        panic!()
    };
    let id = containers[0].id;
    agent_a.observed(false, Generation(1), vec![running(id)]).await;
    bench
        .until("running", |s| {
            s.observed.get(&id).is_some_and(|o| o.phase == Phase::Running)
        })
        .await;
    // The other node claims that it failed and is gone, measures it, and reports an event about it.
    let (mut agent_b, set_b) = bench.connect(&b).await;
    let stray = ObservedContainer {
        phase: Phase::Failed,
        ..ObservedContainer::pending(id)
    };
    let foreign = ContainerId::from_bytes([0xee; 10]);
    agent_b
        .say(&AgentMessage::Observed {
            full: true,
            more: false,
            generation: set_b.generation,
            containers: vec![stray, running(foreign)],
            gone: vec![id],
        })
        .await;
    let event = |container, text: &str| AgentMessage::Event {
        container,
        kind: "oom".to_owned(),
        text: text.to_owned(),
    };
    agent_b.say(&event(Some(id), "a lie")).await;
    agent_b.say(&event(None, "the truth")).await;
    bench
        .until("synced", |s| s.connections.get(&b.id).is_some_and(|c| c.synced))
        .await;
    let told = |text: &str| {
        !bench
            .cluster
            .events()
            .newest(10, |e| e.text.contains(text))
            .is_empty()
    };
    while !told("the truth") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!told("a lie"));
    let state = bench.cluster.snapshot();
    assert_eq!(state.observed[&id].phase, Phase::Running);
    assert!(!state.observed.contains_key(&foreign));
}

#[tokio::test]
async fn usage_is_recorded_for_own_containers() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, set) = bench.connect(&node).await;
    agent.observed(true, set.generation, vec![]).await;
    bench
        .until("synced", |s| {
            s.connections.get(&node.id).is_some_and(|c| c.synced)
        })
        .await;
    let tenant = bench.tenant("t").await;
    bench.service(1, tenant, 1).await;
    let DesiredUpdate::Delta { containers, .. } = agent.order().await else {
        panic!()
    };
    let (own, foreign) = (containers[0].id, ContainerId::from_bytes([0xee; 10]));
    let usage = |id| serde_json::from_value(serde_json::json!({ "id": id, "at": 1, "cpu": 7 })).unwrap();
    let report = UsageReport {
        sequence: 1,
        node: NodeUsage {
            cpu: Some(900),
            ..NodeUsage::default()
        },
        containers: vec![usage(own), usage(foreign)],
        ..UsageReport::default()
    };
    // A damaged one before it harms nothing.
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        &berth_common::protocol::encode(&report).unwrap(),
    ] {
        let mut stream = agent.connection.open_uni().await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.finish().unwrap();
    }
    let book = bench.cluster.usage();
    let now = || bench.cluster.now().mono_ms;
    let found = async {
        while book.container(node.id, own, now()).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, found).await.expect("usage arrives");
    assert_eq!(book.node(node.id, now()).unwrap().usage.cpu, Some(900));
    assert!(book.container(node.id, foreign, now()).is_none());
    assert!(bench.cluster.silent_ms(node.id).unwrap() < 1_000);
}

#[tokio::test]
async fn a_newer_connection_replaces_the_older_one() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (old, _) = bench.connect(&node).await;
    let (_new, _) = bench.connect(&node).await;
    assert_eq!(old.ended().await, u64::from(REPLACED));
    // The end of the old one does not disconnect the node.
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench
        .until("connected", |s| s.connections.contains_key(&node.id))
        .await;
    assert_eq!(bench.links.connected(), 1);
}

#[tokio::test]
async fn strangers_get_no_session() {
    let bench = Bench::new().await;
    // No certificate at all.
    let mut tls = identity::join_tls(&bench.ca.fingerprint()).unwrap();
    tls.alpn_protocols = vec![berth_common::protocol::ALPN_LINK.to_vec()];
    let connection = bench.dial(tls).await.unwrap();
    let end = tokio::time::timeout(WAIT, connection.closed()).await.unwrap();
    assert!(end.to_string().contains("certificate is needed"), "{end}");
    // A certificate of another cluster, of a node that does not exist, and of a key that did not join.
    let other = Bench::new().await;
    let foreign = other.join().await;
    let identity = Identity {
        ca: bench.ca.issue_server(&[], &[]).unwrap().ca,
        ..foreign.identity
    };
    let node = Node { identity, ..foreign };
    let mut agent = other_way(&bench, &node).await;
    assert!(agent.is_none(), "another cluster's certificate was accepted");
    let known = bench.join().await;
    for id in [NodeId::from_bytes([9; 10]), known.id] {
        let (key, csr) = csr();
        let (cert, _) = bench.ca.issue_node(&csr, id, UnixMillis::now()).unwrap();
        let identity = Identity::from_pem(&cert, &key.serialize_pem(), bench.ca.ca_pem()).unwrap();
        agent = other_way(&bench, &Node { id, identity, key }).await;
        let mut agent = agent.take().expect("TLS accepts it");
        agent.say(&hello(PROTOCOL)).await;
        match agent.hear().await {
            BrainMessage::Reject { problem } => assert!(problem.cure.is_some()),
            other => panic!("{other:?}"),
        }
        assert_eq!(agent.ended().await, 1);
    }
    assert!(bench.cluster.snapshot().connections.is_empty());
}

/// A connection, if the brain leaves it open long enough for its first stream.
async fn other_way(bench: &Bench, node: &Node) -> Option<Agent> {
    let connection = bench
        .dial(identity::agent_tls(&node.identity).unwrap())
        .await
        .ok()?;
    let refused = tokio::time::timeout(Duration::from_millis(300), connection.closed())
        .await
        .is_ok();
    if refused {
        return None;
    }
    let (send, receive) = connection.open_bi().await.ok()?;
    Some(Agent {
        connection,
        send,
        receive,
    })
}

#[tokio::test]
async fn bad_manners_end_a_session() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    // No Hello.
    let silent = bench.control(&node).await;
    assert_eq!(silent.ended().await, 1);
    // A Hello that announces more than is bearable; another first message; too new a protocol.
    let mut long = bench.control(&node).await;
    long.send.write_all(&[0xff; 4]).await.unwrap();
    assert_eq!(long.ended().await, 1);
    let mut wrong = bench.control(&node).await;
    wrong.say(&AgentMessage::Goodbye).await;
    assert_eq!(wrong.ended().await, 1);
    let mut new = bench.control(&node).await;
    new.say(&hello(PROTOCOL + 1)).await;
    assert!(matches!(new.hear().await, BrainMessage::Reject { .. }));
    // An oversize frame later on.
    let (mut agent, _) = bench.connect(&node).await;
    agent.send.write_all(&(5u32 << 20).to_be_bytes()).await.unwrap();
    agent.ended().await;
    bench.until("gone", |s| s.connections.is_empty()).await;
    // The node is none the worse for it.
    bench.connect(&node).await;
}

#[tokio::test]
async fn facts_are_kept_when_they_change_and_a_removed_node_is_told() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, _) = bench.connect(&node).await;
    let mut news = facts();
    news.kernel = "6.12".to_owned();
    news.warnings = vec!["w".repeat(5_000)];
    agent.say(&AgentMessage::Facts { facts: news }).await;
    bench
        .until("new facts", |s| s.nodes[&node.id].facts.kernel == "6.12")
        .await;
    assert!(bench.cluster.snapshot().nodes[&node.id].facts.warnings[0].len() < 600);
    bench.put(vec![Change::DeleteNode(node.id)]).await;
    match agent.hear().await {
        BrainMessage::Reject { problem } => assert!(problem.detail.contains("removed"), "{problem}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(agent.ended().await, 1);
}
