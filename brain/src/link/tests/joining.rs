//! Joining: once, in time, with the right secret, to the right brain.

use super::*;
use berth_common::error::Problem;
use berth_common::id::Revision;
use berth_common::model::{Overcommit, PoolRecord};

fn refused(reply: JoinReply) -> Problem {
    match reply {
        JoinReply::Problem { problem } => {
            assert!(problem.cure.is_some(), "{problem:?} has no cure (R9)");
            problem
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_token_makes_one_node_once() {
    let bench = Bench::new().await;
    let token = bench.token(NodeKind::Shared, 60_000).await;
    let (key, request) = csr();
    let JoinReply::Joined {
        node,
        name,
        cert_pem,
        addresses,
        ..
    } = bench.ask_to_join(&token, request.clone()).await
    else {
        panic!("not joined")
    };
    assert_eq!(
        (name.as_str(), addresses),
        ("h1", vec!["brain.example:7443".to_owned()])
    );
    let state = bench.cluster.snapshot();
    let record = &state.nodes[&node];
    assert_eq!(record.labels["zone"], "a");
    assert_eq!(record.facts, facts());
    assert_eq!(
        record.key_fingerprint,
        hex::encode(Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(
            &key
        )))
    );
    assert_eq!(
        identity::node_of(&identity::parse_cert("it", &cert_pem).unwrap()).unwrap(),
        node
    );
    assert!(state.join_tokens.is_empty());
    // A replay, with the same key or another one.
    for request in [request, csr().1] {
        let problem = refused(bench.ask_to_join(&token, request).await);
        assert_eq!(problem.kind, ErrorKind::Unauthenticated);
        assert!(!problem.to_string().contains(&token[17..]));
    }
    assert_eq!(bench.cluster.snapshot().nodes.len(), 1);
    // Another host of the same name.
    let second = bench.join().await;
    assert_eq!(bench.cluster.snapshot().nodes[&second.id].name.as_str(), "h1-2");
}

#[tokio::test]
async fn a_node_has_the_taints_and_the_pool_of_its_token_from_its_first_moment_on() {
    let bench = Bench::new().await;
    let more = |token: &mut JoinTokenRecord| {
        token.taints = vec!["gpu=a100:no-schedule".parse().unwrap()];
        token.pool = Some("gpu".parse().unwrap());
    };
    let token = bench.token_with(NodeKind::Shared, 60_000, more).await;
    // The pool went meanwhile: the host must not become a node of another one.
    let problem = refused(bench.ask_to_join(&token, csr().1).await);
    assert_eq!(problem.kind, ErrorKind::Precondition);
    assert!(
        problem.cure.unwrap().contains("berth pool set gpu"),
        "{}",
        problem.detail
    );
    bench
        .put(vec![Change::PutPool(PoolRecord {
            name: "gpu".parse().unwrap(),
            overcommit: Overcommit::default(),
            created_at: UnixMillis(0),
            revision: Revision(0),
        })])
        .await;
    let JoinReply::Joined { node, .. } = bench.ask_to_join(&token, csr().1).await else {
        panic!("not joined")
    };
    let record = &bench.cluster.snapshot().nodes[&node];
    assert_eq!(record.pool.as_str(), "gpu");
    assert_eq!(record.taints[0].to_string(), "gpu=a100:no-schedule");
}

#[tokio::test]
async fn a_token_raced_by_two_makes_one_node() {
    let bench = Bench::new().await;
    let token = bench.token(NodeKind::Shared, 60_000).await;
    let (a, b) = tokio::join!(
        bench.ask_to_join(&token, csr().1),
        bench.ask_to_join(&token, csr().1)
    );
    let joined = [&a, &b]
        .iter()
        .filter(|reply| matches!(reply, JoinReply::Joined { .. }))
        .count();
    assert_eq!((joined, bench.cluster.snapshot().nodes.len()), (1, 1));
}

#[tokio::test]
async fn bad_tokens_and_requests_are_refused_and_use_nothing_up() {
    let bench = Bench::new().await;
    let expired = bench.token(NodeKind::Shared, -1).await;
    let problem = refused(bench.ask_to_join(&expired, csr().1).await);
    // The controllers may have swept it already; both are told alike to a program.
    assert_eq!(problem.kind, ErrorKind::Unauthenticated);
    let token = bench.token(NodeKind::Shared, 60_000).await;
    let mut wrong = token.clone();
    wrong.replace_range(20..21, if &token[20..21] == "0" { "1" } else { "0" });
    let problem = refused(bench.ask_to_join(&wrong, csr().1).await);
    assert_eq!(problem.kind, ErrorKind::Unauthenticated);
    refused(bench.ask_to_join("nonsense", csr().1).await);
    refused(
        bench
            .ask_to_join(&token, "no certificate request".to_owned())
            .await,
    );
    let orphan = bench
        .token(
            NodeKind::Private {
                tenant: TenantId::random(),
            },
            60_000,
        )
        .await;
    assert_eq!(
        refused(bench.ask_to_join(&orphan, csr().1).await).kind,
        ErrorKind::Precondition
    );
    assert!(bench.cluster.snapshot().nodes.is_empty());
    assert!(matches!(
        bench.ask_to_join(&token, csr().1).await,
        JoinReply::Joined { .. }
    ));
}

#[tokio::test]
async fn another_clusters_token_does_not_get_past_the_handshake() {
    let bench = Bench::new().await;
    let pinned = identity::join_tls(&"a".repeat(64)).unwrap();
    let error = bench.dial(pinned).await.unwrap_err().to_string();
    assert!(error.contains("not the one this token was made for"), "{error}");
}

#[tokio::test]
async fn an_oversize_or_late_request_is_refused() {
    let bench = Bench::new().await;
    let tls = || identity::join_tls(&bench.ca.fingerprint()).unwrap();
    let connection = bench.dial(tls()).await.unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    send.write_all(&(65u32 << 10).to_be_bytes()).await.unwrap();
    let reply: JoinReply = read_frame(&mut receive, MAX_FRAME).await.unwrap();
    assert!(refused(reply).detail.contains("exceeds"));
    let silent = bench.dial(tls()).await.unwrap();
    let end = tokio::time::timeout(WAIT, silent.closed()).await.unwrap();
    assert!(end.to_string().contains("no join request in time"), "{end}");
}
