//! Tests of snapshots, roll backs and clones through the whole API.

use berth_common::error::ErrorKind;
use berth_common::id::Epoch;
use berth_common::model::{MAX_SNAPSHOTS, NodeKind};
use serde_json::{Value, json};

use super::fixtures::{PATH, apply, data_on, host, make, record, refused, report, serve, show, whole};
use crate::api::fixtures::Bench;
use crate::cluster::Change;

#[tokio::test]
async fn snapshots_are_made_listed_and_removed() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    make(&b, json!({ "name": "loose" })).await;
    let path = format!("{PATH}/loose/snapshots");
    let nowhere = refused(&b, "POST", &path, json!({}), ErrorKind::Precondition).await;
    assert!(nowhere.contains("no node has it yet"), "{nowhere}");
    data_on(&b, node, "h1").await;
    let path = format!("{PATH}/data/snapshots");
    let first = b.ok("shop", "POST", &path, json!({ "name": "first" })).await;
    assert_eq!(first["snapshots"][0]["state"], "making");
    let dated = b.ok("shop", "POST", &path, json!({})).await;
    let name = dated["snapshots"][1]["name"].as_str().unwrap();
    assert!(
        name.starts_with("snap-20") && name.len() >= "snap-20250131-120000".len(),
        "{name}"
    );
    let taken = refused(
        &b,
        "POST",
        &path,
        json!({ "name": "first" }),
        ErrorKind::AlreadyExists,
    )
    .await;
    assert!(taken.contains("has a snapshot first already"), "{taken}");
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    let shown = show(&b, "data").await;
    assert_eq!(
        (
            &shown["snapshots"][0]["state"],
            &shown["snapshots"][0]["referenced"],
            &shown["snapshot_count"]
        ),
        (&json!("ready"), &json!(100_u64 << 20), &json!(2))
    );
    let going = b
        .ok("shop", "DELETE", &format!("{path}/first"), Value::Null)
        .await;
    assert_eq!(going["snapshots"][0]["state"], "removing");
    let twice = b.call("shop", "DELETE", &format!("{path}/first")).await.problem();
    assert_eq!(twice.kind, ErrorKind::NotFound);
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    assert_eq!(show(&b, "data").await["snapshot_count"], 1);
    let mut full = record(&b, "data");
    let one = full.snapshots[0].clone();
    full.snapshots = (0..MAX_SNAPSHOTS)
        .map(|n| berth_common::model::SnapshotRecord {
            id: one.id.turned(u16::try_from(n).unwrap()),
            name: format!("s{n}").parse().unwrap(),
            ..one.clone()
        })
        .collect();
    apply(&b, vec![Change::PutVolume(full)]).await;
    let many = refused(&b, "POST", &path, json!({}), ErrorKind::Precondition).await;
    assert!(many.contains("256 snapshots already"), "{many}");
}

#[tokio::test]
async fn a_roll_back_keeps_what_was_and_restarts_who_has_the_volume() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    data_on(&b, node, "h1").await;
    serve(&b, "web", json!([{ "volume": "data", "path": "/srv" }])).await;
    serve(&b, "other", json!([])).await;
    let snapshots = format!("{PATH}/data/snapshots");
    let path = format!("{PATH}/data/rollback");
    let back = json!({ "snapshot": "first" });
    let missing = refused(&b, "POST", &path, back.clone(), ErrorKind::NotFound).await;
    assert!(missing.contains("no snapshot \"first\""), "{missing}");
    b.ok("shop", "POST", &snapshots, json!({ "name": "first" })).await;
    let early = refused(&b, "POST", &path, back.clone(), ErrorKind::Precondition).await;
    assert!(
        early.contains("has not said yet that it has snapshot first"),
        "{early}"
    );
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    let asked = b.ok("shop", "POST", &path, back.clone()).await;
    assert_eq!(
        (&asked["state"], &asked["snapshots"][1]["name"]),
        (&json!("rolling-back"), &json!("before-first"))
    );
    let restarts = |service: &str| {
        let state = b.api.cluster.snapshot();
        let mut all = state
            .containers
            .values()
            .filter(|c| c.service_name.as_str() == service);
        all.next().unwrap().restarts_asked
    };
    assert_eq!((restarts("web"), restarts("other")), (1, 0));
    let kept = record(&b, "data").rollback.unwrap().keep;
    let twice = refused(&b, "POST", &path, back.clone(), ErrorKind::Precondition).await;
    assert!(twice.contains("being rolled back already"), "{twice}");
    for name in ["first", "before-first"] {
        let needed = format!("{snapshots}/{name}");
        refused(&b, "DELETE", &needed, Value::Null, ErrorKind::Precondition).await;
    }
    refused(
        &b,
        "POST",
        &format!("{PATH}/data/move"),
        json!({}),
        ErrorKind::Precondition,
    )
    .await;
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    assert_eq!(show(&b, "data").await["state"], "ready");
    assert_eq!(record(&b, "data").rollback, None, "it is not done again");
    // The next one keeps under another name, and by another id.
    b.ok("shop", "POST", &path, back).await;
    let again = record(&b, "data");
    assert_ne!(again.rollback.unwrap().keep, kept);
    assert_eq!(again.snapshots[2].name.as_str(), "before-first-2");
}

#[tokio::test]
async fn clones_are_where_their_source_is_and_hold_it_until_they_are_made() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    host(&b, 2, NodeKind::Shared, 10).await;
    make(&b, json!({ "name": "loose" })).await;
    make(&b, json!({ "name": "data", "size": "2GiB", "node": "h1" })).await;
    b.ok(
        "shop",
        "POST",
        &format!("{PATH}/data/snapshots"),
        json!({ "name": "s" }),
    )
    .await;
    report(&b, node, vec![whole(&b, "data", 1_500)], vec![]).await;
    let of = |volume: &str, snapshot: &str| json!({ "volume": volume, "snapshot": snapshot });
    for (body, kind, said) in [
        (
            json!({ "source": of("nope", "s") }),
            ErrorKind::Invalid,
            "no volume \"nope\"",
        ),
        (
            json!({ "source": of("data", "t") }),
            ErrorKind::NotFound,
            "no snapshot \"t\"",
        ),
        (
            json!({ "source": of("loose", "s") }),
            ErrorKind::Precondition,
            "no node has it yet",
        ),
        (
            json!({ "source": of("data", "s"), "node": "h2" }),
            ErrorKind::Invalid,
            "a clone is made where its source is",
        ),
        (
            json!({ "source": of("data", "s"), "size": "1GiB" }),
            ErrorKind::Invalid,
            "1GiB is too small: snapshot s of volume data holds 1.5GiB",
        ),
        (
            json!({ "source": of("data", "s"), "size": "9GiB" }),
            ErrorKind::Precondition,
            "8GiB free for volumes, and 9GiB are needed",
        ),
    ] {
        let mut body = body;
        body["name"] = json!("copy");
        let text = refused(&b, "POST", PATH, body, kind).await;
        assert!(text.contains(said), "{text}");
    }
    let body = json!({ "name": "copy", "source": of("data", "s") });
    let copy = make(&b, body.clone()).await;
    assert_eq!(
        (&copy["size"], &copy["node_name"], &copy["source"]),
        (&json!(2_u64 << 30), &json!("h1"), &of("data", "s"))
    );
    assert_eq!(record(&b, "copy").epoch, Epoch(1));
    assert_eq!(b.send("shop", "POST", PATH, body).await.status, 200);
    for path in [format!("{PATH}/data"), format!("{PATH}/data/snapshots/s")] {
        let text = refused(&b, "DELETE", &path, Value::Null, ErrorKind::Precondition).await;
        assert!(text.contains("volume copy is being made as a clone"), "{text}");
    }
    let all = vec![whole(&b, "data", 1_500), whole(&b, "copy", 1_500)];
    report(&b, node, all, vec![]).await;
    b.ok("shop", "DELETE", &format!("{PATH}/data"), Value::Null).await;
    report(&b, node, vec![whole(&b, "copy", 1)], vec![record(&b, "data").id]).await;
    assert_eq!(
        show(&b, "copy").await["source"],
        json!({}),
        "it outlives what it began as"
    );
}
