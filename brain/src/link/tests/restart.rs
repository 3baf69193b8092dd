//! A brain that was killed and started again under the same address.

use std::sync::atomic::{AtomicU16, Ordering};

use super::*;

/// Passes packets on to the port in `to`, and back: what is behind an address changes, the address doesn't.
async fn forward(front: tokio::net::UdpSocket, to: Arc<AtomicU16>) {
    let back = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (mut out, mut home) = ([0; 2048], [0; 2048]);
    let mut client = None;
    loop {
        tokio::select! {
            got = front.recv_from(&mut out) => {
                let (size, from) = got.unwrap();
                client = Some(from);
                let to = SocketAddr::from(([127, 0, 0, 1], to.load(Ordering::SeqCst)));
                back.send_to(&out[..size], to).await.unwrap();
            }
            got = back.recv_from(&mut home) => {
                let (size, from) = got.unwrap();
                if from.port() == to.load(Ordering::SeqCst) {
                    front.send_to(&home[..size], client.unwrap()).await.unwrap();
                }
            }
        }
    }
}

#[tokio::test]
async fn a_brain_that_was_killed_tells_its_nodes_at_once_that_their_connections_are_gone() {
    let mut bench = Bench::new().await;
    let node = bench.join().await;
    let front = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to = Arc::new(AtomicU16::new(bench.address.port()));
    bench.address = front.local_addr().unwrap();
    let forwarding = tokio::spawn(forward(front, Arc::clone(&to)));
    let (agent, _) = bench.connect(&node).await;

    // The next process: the same CA and address, and no memory of the connection.
    let next = LinkServer::bind(
        "127.0.0.1:0".parse().unwrap(),
        &bench.ca.issue_server(&[], &[]).unwrap(),
        Arc::clone(&bench.ca),
        bench.cluster.clone(),
        bench.links.clone(),
        Arc::clone(&bench.blobs) as _,
        LinkSettings {
            lease_ms: LEASE_MS,
            usage_interval_ms: 2_000,
            addresses: vec![],
        },
    )
    .unwrap();
    to.store(next.local_addr().unwrap().port(), Ordering::SeqCst);
    tokio::spawn(next.run(bench.stop.clone()));

    let mut usage = agent.connection.open_uni().await.unwrap();
    usage.write_all(&[0; 64]).await.unwrap();
    let end = tokio::time::timeout(WAIT, agent.connection.closed())
        .await
        .unwrap();
    assert!(matches!(end, quinn::ConnectionError::Reset), "{end:?}");
    bench.connect(&node).await;
    forwarding.abort();
}
