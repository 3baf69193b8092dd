//! Streams in both directions: the gateway to nodes, renewal, and loaded images.

use super::*;
use berth_common::model::{ImageRef, LoadedImage};
use berth_common::protocol::{BrainReply, BrainRequest, NodeReply};
use tokio::io::AsyncReadExt;

async fn ask(agent: &Agent, request: &BrainRequest) -> (BrainReply, Vec<u8>) {
    let (mut send, mut receive) = agent.connection.open_bi().await.unwrap();
    write_frame(&mut send, request).await.unwrap();
    send.finish().unwrap();
    let reply = read_frame(&mut receive, MAX_FRAME).await.unwrap();
    let mut rest = Vec::new();
    AsyncReadExt::read_to_end(&mut receive, &mut rest).await.unwrap();
    (reply, rest)
}

fn kind(reply: &BrainReply) -> Option<ErrorKind> {
    match reply {
        BrainReply::Problem { problem } => Some(problem.kind),
        _ => None,
    }
}

#[tokio::test]
async fn the_gateway_reaches_a_node_and_says_why_it_does_not() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let request = NodeRequest::ListImages {
        tenant: TenantId::random(),
    };
    let problem = bench.links.open(node.id, &request).await.map(|_| ()).unwrap_err();
    assert_eq!(problem.kind, ErrorKind::Unavailable);
    assert!(problem.detail.contains("node h1 is not connected"), "{problem}");
    assert_eq!(
        bench
            .links
            .open(NodeId::from_bytes([9; 10]), &request)
            .await
            .map(|_| ())
            .unwrap_err()
            .kind,
        ErrorKind::NotFound
    );
    let (agent, _) = bench.connect(&node).await;
    let mut stream = bench.links.open(node.id, &request).await.unwrap();
    let (mut send, mut receive) = agent.connection.accept_bi().await.unwrap();
    assert_eq!(
        read_frame::<NodeRequest>(&mut receive, MAX_FRAME).await.unwrap(),
        request
    );
    write_frame(&mut send, &NodeReply::End).await.unwrap();
    write_frame(&mut stream.send, &NodeReply::End).await.unwrap();
    assert_eq!(
        read_frame::<NodeReply>(&mut receive, MAX_FRAME).await.unwrap(),
        NodeReply::End
    );
    assert_eq!(
        read_frame::<NodeReply>(&mut stream.recv, MAX_FRAME)
            .await
            .unwrap(),
        NodeReply::End
    );
    agent.connection.close(0u32.into(), b"");
    bench.until("gone", |s| s.connections.is_empty()).await;
    let problem = bench.links.open(node.id, &request).await.map(|_| ()).unwrap_err();
    assert!(problem.detail.contains("last heard"), "{problem}");
}

#[tokio::test]
async fn a_certificate_is_renewed_for_its_own_key_only() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (agent, _) = bench.connect(&node).await;
    let own = BrainRequest::Renew {
        csr_pem: request_for(&node.key),
    };
    let (BrainReply::Renewed { cert_pem, ca_pem }, _) = ask(&agent, &own).await else {
        panic!("not renewed")
    };
    let identity = Identity::from_pem(&cert_pem, &node.key.serialize_pem(), &ca_pem).unwrap();
    assert_eq!(identity::node_of(&identity.chain[0]).unwrap(), node.id);
    bench.connect(&Node { identity, ..node }).await;
    let node = bench.join().await;
    let (agent, _) = bench.connect(&node).await;
    let foreign = BrainRequest::Renew { csr_pem: csr().1 };
    assert_eq!(kind(&ask(&agent, &foreign).await.0), Some(ErrorKind::Forbidden));
    let damaged = BrainRequest::Renew {
        csr_pem: "x".to_owned(),
    };
    assert_eq!(kind(&ask(&agent, &damaged).await.0), Some(ErrorKind::Invalid));
    assert_eq!(
        kind(&ask(&agent, &BrainRequest::Unknown).await.0),
        Some(ErrorKind::Invalid)
    );
}

#[tokio::test]
async fn r7_images_go_to_nodes_that_need_them_only() {
    let bench = Bench::new().await;
    let node = bench.join().await;
    let (mut agent, set) = bench.connect(&node).await;
    agent.observed(true, set.generation, vec![]).await;
    bench
        .until("synced", |s| {
            s.connections.get(&node.id).is_some_and(|c| c.synced)
        })
        .await;
    let (tenant, other) = (bench.tenant("t").await, bench.tenant("other").await);
    let reference: ImageRef = "own/app".parse().unwrap();
    let blob = vec![7u8; 3 << 20];
    let digest = |bytes: &[u8]| -> Digest {
        format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
            .parse()
            .unwrap()
    };
    let (listed, unlisted) = (digest(&blob), digest(b"secret"));
    bench
        .blobs
        .0
        .lock()
        .extend([(listed, blob.clone()), (unlisted, b"secret".to_vec())]);
    let image = |tenant, blobs| LoadedImage {
        tenant,
        reference: reference.clone(),
        manifest: listed,
        blobs,
        arch: None,
        loaded_at: UnixMillis(1),
    };
    bench
        .put(vec![
            Change::PutImage(image(tenant, vec![(listed, Bytes(blob.len() as u64))])),
            Change::PutImage(image(other, vec![(unlisted, Bytes(6))])),
        ])
        .await;
    let by_name = |tenant| BrainRequest::LoadedImage {
        tenant,
        reference: reference.clone(),
    };
    let by_digest = |tenant, digest, offset| BrainRequest::Blob {
        tenant,
        digest,
        offset,
    };
    // Nothing of theirs runs here yet.
    assert_eq!(
        kind(&ask(&agent, &by_name(tenant)).await.0),
        Some(ErrorKind::Forbidden)
    );
    assert_eq!(
        kind(&ask(&agent, &by_digest(tenant, listed, 0)).await.0),
        Some(ErrorKind::Forbidden)
    );
    bench.service(1, tenant, 1).await;
    agent.order().await;
    let (reply, _) = ask(&agent, &by_name(tenant)).await;
    assert!(matches!(reply, BrainReply::LoadedImage { image: Some(found) } if found.tenant == tenant));
    for offset in [0, 1_000_000] {
        let (reply, bytes) = ask(&agent, &by_digest(tenant, listed, offset)).await;
        assert_eq!(
            reply,
            BrainReply::Blob {
                length: blob.len() as u64 - offset
            }
        );
        assert_eq!(bytes, blob[usize::try_from(offset).unwrap()..]);
    }
    // The other tenant's, by its name and under a false one.
    assert_eq!(
        kind(&ask(&agent, &by_name(other)).await.0),
        Some(ErrorKind::Forbidden)
    );
    assert_eq!(
        kind(&ask(&agent, &by_digest(other, unlisted, 0)).await.0),
        Some(ErrorKind::Forbidden)
    );
    assert_eq!(
        kind(&ask(&agent, &by_digest(tenant, unlisted, 0)).await.0),
        Some(ErrorKind::NotFound)
    );
    // Listed, but lost.
    bench.blobs.0.lock().clear();
    assert_eq!(
        kind(&ask(&agent, &by_digest(tenant, listed, 0)).await.0),
        Some(ErrorKind::NotFound)
    );
}
