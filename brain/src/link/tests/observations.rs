//! Observations too large for one message: they count as a whole or not at all.

use std::collections::BTreeSet;

use super::*;
use berth_common::protocol::Apply;

const MANY: u32 = 5_000;
const PART: usize = 2_000;

/// A host that is large enough.
fn large() -> NodeFacts {
    NodeFacts {
        capacity: berth_common::model::Capacity {
            disk: Bytes::gib(100_000),
            ..fixtures::node(1, NodeKind::Shared, 4_000, 4_000).facts.capacity
        },
        ..facts()
    }
}

impl Bench {
    async fn connect_large(&self, node: &Node) -> (Agent, DesiredSet) {
        let mut agent = self.control(node).await;
        let AgentMessage::Hello {
            protocol,
            protocol_min,
            generation,
            ..
        } = hello(PROTOCOL)
        else {
            unreachable!("hello() makes a Hello")
        };
        let hello = AgentMessage::Hello {
            protocol,
            protocol_min,
            generation,
            facts: large(),
        };
        agent.say(&hello).await;
        assert!(matches!(agent.hear().await, BrainMessage::Welcome { .. }));
        let DesiredUpdate::Full { set } = agent.order().await else {
            panic!("not a whole set")
        };
        (agent, set)
    }

    /// Waits until everything the agent said before this has reached the cluster.
    async fn said(&self, agent: &mut Agent, marker: &str) {
        agent
            .say(&AgentMessage::Event {
                container: None,
                kind: "marker".to_owned(),
                text: marker.to_owned(),
            })
            .await;
        let waiting = async {
            while self
                .cluster
                .events()
                .newest(10, |event| event.text.contains(marker))
                .is_empty()
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WAIT, waiting).await.expect("said in time");
    }
}

/// Says everything, as an agent does, up to the `parts`th message.
async fn say_all(agent: &mut Agent, generation: Generation, all: &[ContainerId], parts: usize) {
    let count = all.len().div_ceil(PART);
    for (at, part) in all.chunks(PART).enumerate().take(parts) {
        let containers = part.iter().map(|id| running(*id)).collect();
        agent.part(at == 0, at + 1 < count, generation, containers).await;
    }
}

#[tokio::test]
async fn r4_a_large_observation_counts_only_when_it_is_complete() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, mut held) = bench.connect_large(&node).await;
    agent.observed(true, held.generation, vec![]).await;
    bench.until("synced", |s| s.connections[&node.id].synced).await;
    let tenant = bench.tenant("t").await;
    let mut service = fixtures::service(1, 0, "nginx", MANY, Bytes::mib(64));
    service.tenant = tenant;
    bench.put(vec![Change::PutService(service.clone())]).await;
    while held.containers.len() < MANY as usize {
        match held.apply(&agent.order().await) {
            Apply::New(new) => held = *new,
            other => panic!("{other:?}"),
        }
    }
    let everyone: Vec<ContainerId> = held.containers.iter().map(|c| c.id).collect();
    say_all(&mut agent, held.generation, &everyone, 3).await;
    bench
        .until("all run", |s| s.observed.len() == MANY as usize)
        .await;

    // A thousand are to go. They still run when the agent comes back, and their room is not free (R4).
    service.spec.replicas = MANY - 1_000;
    service.generation += 1;
    bench.put(vec![Change::PutService(service)]).await;
    bench
        .until("a thousand go", |s| {
            s.containers.values().filter(|c| c.removing).count() == 1_000
        })
        .await;
    let leaving: BTreeSet<ContainerId> = {
        let state = bench.cluster.snapshot();
        state
            .containers
            .values()
            .filter(|c| c.removing)
            .map(|c| c.id)
            .collect()
    };
    let mut order: Vec<_> = everyone.clone();
    order.sort_by_key(|id| leaving.contains(id));
    let reserved = bench.cluster.snapshot().taken_on(node.id);
    let same = |when: &str, synced: Option<bool>| {
        let state = bench.cluster.snapshot();
        assert_eq!(state.taken_on(node.id), reserved, "{when}: room was given away");
        assert_eq!(
            state.observed.len(),
            MANY as usize,
            "{when}: containers are taken for gone"
        );
        assert_eq!(
            state.connections.get(&node.id).map(|c| c.synced),
            synced,
            "{when}"
        );
    };
    drop(agent);

    for parts in [1, 2] {
        let (mut agent, set) = bench.connect_large(&node).await;
        say_all(&mut agent, set.generation, &order, parts).await;
        bench.said(&mut agent, &format!("{parts} of three said")).await;
        same("between the parts", Some(false));
        agent.connection.close(0u32.into(), b"the link breaks");
        bench
            .until("disconnected", |s| !s.connections.contains_key(&node.id))
            .await;
        same("after the link broke", None);
    }

    // A new beginning takes the place of what was never ended.
    let (mut agent, set) = bench.connect_large(&node).await;
    say_all(&mut agent, set.generation, &order, 2).await;
    say_all(&mut agent, set.generation, &order, 3).await;
    bench.until("synced", |s| s.connections[&node.id].synced).await;
    same("all said", Some(true));
    assert_eq!(
        bench.cluster.snapshot().connections[&node.id].applied,
        set.generation
    );
    let stay: Vec<_> = everyone
        .iter()
        .copied()
        .filter(|id| !leaving.contains(id))
        .collect();
    say_all(&mut agent, set.generation, &stay, 2).await;
    bench
        .until("their room is free", |s| s.containers.len() == stay.len())
        .await;
}
