//! Tests of schedules, commands around snapshots, and snapshots that are read, through the whole API.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use serde_json::{Value, json};

use super::fixtures::{PATH, data_on, host, make, record, refused, report, serve, show, whole};
use crate::api::fixtures::Bench;

#[tokio::test]
async fn a_schedule_is_given_shown_changed_and_taken_away() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    data_on(&b, node, "h1").await;
    let path = format!("{PATH}/data/schedule");
    for (body, said) in [
        (
            json!({ "every_ms": 1_000, "keep": { "last": 1 } }),
            "every minute at most",
        ),
        (
            json!({ "every_ms": 60_000, "keep": {} }),
            "say which snapshots stay",
        ),
        (
            json!({ "every_ms": 60_000, "keep": { "daily": 201 } }),
            "at most 200",
        ),
    ] {
        let text = refused(&b, "PUT", &path, body, ErrorKind::Invalid).await;
        assert!(text.contains(said), "{text}");
    }
    let body = json!({ "every_ms": 3_600_000_u64, "keep": { "last": 4, "daily": 7 } });
    let given = b.ok("shop", "PUT", &path, body.clone()).await;
    assert_eq!(given["schedule"]["keep"], body["keep"]);
    let next = given["schedule"]["next"].as_u64().unwrap();
    assert!(next.is_multiple_of(3_600_000), "on the hour: {next}");
    let begun = record(&b, "data").scheduled.unwrap();
    // The same again, and another retention, leave alone when it is due.
    b.ok("shop", "PUT", &path, body).await;
    let fewer = json!({ "every_ms": 3_600_000_u64, "keep": { "last": 2 } });
    b.ok("shop", "PUT", &path, fewer.clone()).await;
    assert_eq!(record(&b, "data").scheduled.unwrap(), begun);
    let ended = b.ok("shop", "DELETE", &path, Value::Null).await;
    assert_eq!(ended["schedule"], Value::Null);
    assert_eq!(record(&b, "data").scheduled, None);
    b.ok("shop", "DELETE", &path, Value::Null).await;

    // Both with the volume, asked for twice.
    let whole =
        json!({ "name": "other", "schedule": fewer, "hooks": { "before": ["sync"], "limit_ms": 2_000 } });
    let made = make(&b, whole.clone()).await;
    assert_eq!(made["hooks"]["before"], json!(["sync"]));
    assert_eq!(
        made["schedule"]["next"],
        Value::Null,
        "there is nothing of it yet"
    );
    assert_eq!(b.send("shop", "POST", PATH, whole.clone()).await.status, 200);
    let mut differs = whole;
    differs["hooks"]["limit_ms"] = json!(3_000);
    assert_eq!(b.send("shop", "POST", PATH, differs).await.status, 409);
    let bad = json!({ "name": "bad", "schedule": { "every_ms": 60_000, "keep": {} } });
    let text = refused(&b, "POST", PATH, bad, ErrorKind::Invalid).await;
    assert!(text.contains("/schedule/keep"), "{text}");
}

#[tokio::test]
async fn commands_around_snapshots_are_given_and_taken_away() {
    let b = Bench::new().await;
    make(&b, json!({ "name": "data" })).await;
    let path = format!("{PATH}/data/hooks");
    let text = refused(&b, "PUT", &path, json!({}), ErrorKind::Invalid).await;
    assert!(text.contains("name a command"), "{text}");
    let body = json!({ "before": ["redis-cli", "save"] });
    let given = b.ok("shop", "PUT", &path, body).await;
    assert_eq!(
        given["hooks"],
        json!({ "before": ["redis-cli", "save"], "limit_ms": 60_000 })
    );
    let gone = b.ok("shop", "DELETE", &path, Value::Null).await;
    assert_eq!(gone["hooks"], Value::Null);
}

#[tokio::test]
async fn a_snapshot_that_is_read_stays() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    data_on(&b, node, "h1").await;
    let snapshots = format!("{PATH}/data/snapshots");
    for name in ["old", "new"] {
        b.ok("shop", "POST", &snapshots, json!({ "name": name })).await;
    }
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    serve(
        &b,
        "audit",
        json!([{ "volume": "data", "snapshot": "old", "path": "/old" }]),
    )
    .await;
    let path = format!("{snapshots}/old");
    let text = refused(&b, "DELETE", &path, Value::Null, ErrorKind::Precondition).await;
    assert!(
        text.contains("service audit reads snapshot old of volume data"),
        "{text}"
    );
    b.ok("shop", "DELETE", &format!("{snapshots}/new"), Value::Null)
        .await;
    // Its node gets the snapshot's id, and that nobody writes.
    let state = b.api.cluster.snapshot();
    let set = crate::cluster::desired::desired_set(&state, node);
    let container = &set.containers[0];
    let old = record(&b, "data").snapshots[0].id;
    assert_eq!(container.volumes[0].snapshot, Some(old));
    assert!(container.spec.volumes[0].read_only);
    b.ok("shop", "DELETE", "/v1/tenants/shop/services/audit", Value::Null)
        .await;
    let shown = show(&b, "data").await;
    assert_eq!(shown["snapshots"][0]["state"], "ready");
}
