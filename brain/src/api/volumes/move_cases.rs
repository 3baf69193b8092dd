//! Tests of moves that are asked for through the API.

use berth_common::error::ErrorKind;
use berth_common::id::Epoch;
use berth_common::model::{MoveStage, NodeKind};
use serde_json::{Value, json};

use super::fixtures::{
    PATH, apply, change, data_on, host, lose, make, record, report, sending, serve, show, whole,
};
use crate::api::fixtures::Bench;
use crate::cluster::Change;

const MOVE: &str = "/v1/tenants/shop/volumes/data/move";

async fn refused(b: &Bench, method: &str, body: Value) -> String {
    let problem = b.send("shop", method, MOVE, body).await.problem();
    assert_eq!(problem.kind, ErrorKind::Precondition, "{problem}");
    format!("{} | {}", problem.detail, problem.cure.unwrap())
}

#[tokio::test]
async fn a_move_begins_says_how_far_it_is_and_can_be_cancelled() {
    let b = Bench::new().await;
    let (from, to) = (
        host(&b, 1, NodeKind::Shared, 10).await,
        host(&b, 2, NodeKind::Shared, 10).await,
    );
    data_on(&b, from, "h1").await;
    let still = refused(&b, "DELETE", Value::Null).await;
    assert!(still.contains("volume data does not move"), "{still}");
    let begun = b.ok("shop", "POST", MOVE, json!({ "node": "h2" })).await;
    assert_eq!(
        (&begun["state"], &begun["moving"]["to"], &begun["moving"]["stage"]),
        (&json!("moving"), &json!("h2"), &json!("copying"))
    );
    let twice = refused(&b, "POST", json!({ "node": "h2" })).await;
    assert!(
        twice.contains("moves to node h2 already") && twice.contains("cancel-move"),
        "{twice}"
    );
    let mut seen = whole(&b, "data", 100);
    seen.sending = Some(sending(false));
    report(&b, from, vec![seen.clone()], vec![]).await;
    let shown = show(&b, "data").await;
    assert_eq!(
        (
            &shown["moving"]["round"],
            &shown["moving"]["sent"],
            &shown["moving"]["expected"]
        ),
        (&json!(0), &json!(3_u64 << 20), &json!(4_u64 << 20))
    );
    for (method, path, body) in [
        ("POST", "data/rollback", json!({ "snapshot": "s" })),
        (
            "POST",
            "",
            json!({ "name": "copy", "source": { "volume": "data", "snapshot": "s" } }),
        ),
    ] {
        let mut record = record(&b, "data");
        if record.snapshots.is_empty() {
            record.snapshots.push(berth_common::model::SnapshotRecord {
                id: berth_common::id::SnapshotId::random(),
                name: "s".parse().unwrap(),
                created_at: berth_common::model::UnixMillis(0),
                scheduled: false,
                removing: false,
            });
            apply(&b, vec![Change::PutVolume(record)]).await;
        }
        let path = format!("{PATH}/{path}");
        let problem = b
            .send("shop", method, path.trim_end_matches('/'), body)
            .await
            .problem();
        assert!(problem.detail.contains("moves to"), "{problem}");
    }
    let stays = b.ok("shop", "DELETE", MOVE, Value::Null).await;
    assert_eq!((&stays["node_name"], &stays["epoch"]), (&json!("h1"), &json!(2)));
    let record = record(&b, "data");
    assert_eq!(
        (record.moves.as_ref(), record.moved.unwrap().left),
        (None, Some(to))
    );
    // What arrived there goes first.
    let left = refused(&b, "POST", json!({})).await;
    assert!(left.contains("what is left of volume data on node h2"), "{left}");
    report(&b, to, vec![], vec![record.id]).await;
    b.ok("shop", "POST", MOVE, json!({})).await;
}

#[tokio::test]
async fn a_move_that_is_done_leaves_the_volume_there_and_the_last_part_is_not_cancelled() {
    let b = Bench::new().await;
    let (from, to) = (
        host(&b, 1, NodeKind::Shared, 10).await,
        host(&b, 2, NodeKind::Shared, 10).await,
    );
    data_on(&b, from, "h1").await;
    b.ok("shop", "POST", MOVE, json!({})).await;
    let mut seen = whole(&b, "data", 100);
    seen.sending = Some(sending(true));
    report(&b, from, vec![seen], vec![]).await;
    let moves = record(&b, "data").moves.unwrap();
    assert_eq!(
        moves.stage,
        MoveStage::Finishing,
        "nobody has it, so nobody is to stop"
    );
    let late = refused(&b, "DELETE", Value::Null).await;
    assert!(late.contains("can't be cancelled any more"), "{late}");
    let mut arrived = whole(&b, "data", 100);
    arrived.writable = false;
    arrived.snapshots = vec![berth_common::model::ObservedSnapshot {
        id: moves.last,
        referenced: berth_common::units::Bytes::mib(100),
        exclusive: berth_common::units::Bytes::mib(1),
    }];
    report(&b, to, vec![arrived], vec![]).await;
    let shown = show(&b, "data").await;
    assert_eq!(
        (&shown["node_name"], &shown["state"], &shown["epoch"]),
        (&json!("h2"), &json!("creating"), &json!(2))
    );
    report(&b, to, vec![whole(&b, "data", 100)], vec![]).await;
    assert_eq!(show(&b, "data").await["state"], "ready");
}

#[tokio::test]
async fn what_a_destination_lacks_is_named() {
    let b = Bench::new().await;
    let from = host(&b, 1, NodeKind::Shared, 10).await;
    let alone = b.send("shop", "POST", MOVE, json!({})).await.problem();
    assert_eq!(alone.kind, ErrorKind::NotFound);
    make(&b, json!({ "name": "loose" })).await;
    let path = format!("{PATH}/loose/move");
    let unbound = b.send("shop", "POST", &path, json!({})).await.problem();
    assert!(
        unbound
            .detail
            .contains("it goes where its first container is placed"),
        "{unbound}"
    );
    make(&b, json!({ "name": "data", "size": "4GiB", "node": "h1" })).await;
    let nowhere = refused(&b, "POST", json!({})).await;
    assert!(nowhere.contains("there is no other node"), "{nowhere}");
    let to = host(&b, 2, NodeKind::Shared, 3).await;
    let small = refused(&b, "POST", json!({ "node": "h2" })).await;
    assert!(
        small.contains("node h2 has 3GiB free for volumes, and 4GiB are needed"),
        "{small}"
    );
    let none = refused(&b, "POST", json!({})).await;
    assert!(
        none.contains("nowhere to move volume data to: node h2 has 3GiB free"),
        "{none}"
    );
    let here = refused(&b, "POST", json!({ "node": "h1" })).await;
    assert!(here.contains("is on node h1 already"), "{here}");
    change(&b, to, |record| {
        record.facts.volumes.as_mut().unwrap().port = None
    })
    .await;
    change(&b, to, |record| {
        record.facts.volumes.as_mut().unwrap().capacity = berth_common::units::Bytes::gib(9);
    })
    .await;
    let deaf = refused(&b, "POST", json!({ "node": "h2" })).await;
    assert!(deaf.contains("takes no volumes from other nodes"), "{deaf}");
    change(&b, to, |record| {
        record.facts.volumes.as_mut().unwrap().port = Some(1)
    })
    .await;
    for (edit, said) in [
        (
            (|r| r.draining = true) as fn(&mut berth_common::model::NodeRecord),
            "is being drained",
        ),
        (|r| r.cordoned = true, "is cordoned"),
    ] {
        change(&b, to, edit).await;
        let text = refused(&b, "POST", json!({ "node": "h2" })).await;
        assert!(text.contains(said), "{text}");
        change(&b, to, |record| {
            (record.draining, record.cordoned) = (false, false)
        })
        .await;
    }
    let rival = b.tenant_id("rival");
    host(&b, 3, NodeKind::Private { tenant: rival }, 100).await;
    let foreign = b
        .send("shop", "POST", MOVE, json!({ "node": "h3" }))
        .await
        .problem();
    assert!(
        foreign.kind == ErrorKind::Invalid && foreign.detail.contains("there is no node h3"),
        "{foreign}"
    );
    let chosen = b.ok("shop", "POST", MOVE, json!({})).await;
    assert_eq!(
        chosen["moving"]["to"], "h2",
        "no other tenant's node, whatever room it has"
    );
    b.ok("shop", "DELETE", MOVE, Value::Null).await;
    lose(&b, to).await;
    lose(&b, from).await;
    let lost = refused(&b, "POST", json!({})).await;
    assert!(lost.contains("on node h1, which is lost"), "{lost}");
}

#[tokio::test]
async fn volumes_that_containers_have_together_go_together_to_where_these_can_run() {
    let b = Bench::new().await;
    let from = host(&b, 1, NodeKind::Shared, 10).await;
    for name in ["data", "logs", "apart"] {
        make(&b, json!({ "name": name, "node": "h1" })).await;
    }
    let mounts = json!([{ "volume": "data", "path": "/data" }, { "volume": "logs", "path": "/logs" }]);
    serve(&b, "web", mounts).await;
    let all = ["data", "logs", "apart"].map(|name| whole(&b, name, 10));
    report(&b, from, all.to_vec(), vec![]).await;
    let large = host(&b, 2, NodeKind::Shared, 100).await;
    host(&b, 3, NodeKind::Shared, 10).await;
    apply(
        &b,
        vec![Change::PutPool(berth_common::model::PoolRecord {
            name: "batch".parse().unwrap(),
            overcommit: Default::default(),
            created_at: berth_common::model::UnixMillis(0),
            revision: Default::default(),
        })],
    )
    .await;
    change(&b, large, |record| record.pool = "batch".parse().unwrap()).await;
    let strange = refused(&b, "POST", json!({ "node": "h2" })).await;
    assert!(
        strange.contains("service web could not follow: node h2 is not in pool default"),
        "{strange}"
    );
    change(&b, large, |record| {
        record.pool = "default".parse().unwrap();
        record.taints = vec!["gpu:no-schedule".parse().unwrap()];
    })
    .await;
    let tainted = refused(&b, "POST", json!({ "node": "h2" })).await;
    assert!(
        tainted.contains("node h2 has the taint gpu:no-schedule, which it does not tolerate"),
        "{tainted}"
    );
    let begun = b.ok("shop", "POST", MOVE, json!({})).await;
    assert_eq!(
        begun["moving"]["to"], "h3",
        "the larger one is not for its service"
    );
    let (data, logs) = (
        record(&b, "data").moves.unwrap(),
        record(&b, "logs").moves.unwrap(),
    );
    assert_eq!(data.to, logs.to);
    assert_ne!(data.last, logs.last);
    assert_eq!(record(&b, "apart").moves, None);
    b.ok("shop", "DELETE", MOVE, Value::Null).await;
    for name in ["data", "logs"] {
        let record = record(&b, name);
        assert_eq!((record.moves, record.epoch), (None, Epoch(2)), "{name}");
    }
    // A part on a living node is deleted there, also of a volume whose own node is lost.
    b.ok("shop", "DELETE", "/v1/tenants/shop/services/web", Value::Null)
        .await;
    lose(&b, from).await;
    let forced = b
        .ok("shop", "DELETE", &format!("{PATH}/data?force=true"), Value::Null)
        .await;
    assert_eq!(forced, json!({ "name": "data", "gone": false, "left_on": "h1" }));
    let rest = record(&b, "data");
    assert!(rest.removing && rest.node.is_none(), "{rest:?}");
    report(&b, rest.moved.unwrap().left.unwrap(), vec![], vec![rest.id]).await;
    let gone = b.call("shop", "GET", &format!("{PATH}/data")).await;
    assert_eq!(gone.problem().kind, ErrorKind::NotFound);
}
