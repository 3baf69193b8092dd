//! What can be asked of places and said of nodes over the API, and how it is refused.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use serde_json::{Value, json};

use super::fixtures::Bench;

const SERVICES: &str = "/v1/tenants/shop/services";

#[tokio::test]
async fn taints_are_set_whole_and_judged() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let taints = json!({ "taints": ["gpu=a100:no-schedule", "old:prefer-no-schedule"] });
    let shown = b.ok("admin", "PATCH", "/v1/nodes/h1", taints.clone()).await;
    assert_eq!(shown["taints"], taints["taints"]);
    for bad in [
        json!({ "taints": ["gpu"] }),
        json!({ "taints": ["gpu=a:no-schedule", "gpu=b:no-schedule"] }),
    ] {
        let refused = b.send("admin", "PATCH", "/v1/nodes/h1", bad).await.problem();
        assert_eq!(refused.kind, ErrorKind::Invalid);
        assert!(refused.detail.contains("gpu"), "{refused}");
    }
    assert_eq!(
        b.send("shop", "PATCH", "/v1/nodes/h1", json!({ "taints": [] }))
            .await
            .status,
        404,
        "a tenant sees no shared node"
    );
    b.ok(
        "shop",
        "POST",
        SERVICES,
        json!({ "name": "web", "image": "nginx" }),
    )
    .await;
    let waits = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/web.1", Value::Null)
        .await;
    assert_eq!(
        waits["reason"],
        "no node fits: 1 node has the taint gpu=a100:no-schedule, which it does not tolerate"
    );
    let tolerant = json!({ "name": "web", "image": "nginx", "tolerations": ["gpu"] });
    b.ok("shop", "PUT", &format!("{SERVICES}/web"), tolerant).await;
    let placed = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/web.1", Value::Null)
        .await;
    assert_eq!(placed["node_name"], "h1");
    // What is not named stays.
    let shown = b
        .ok("admin", "PATCH", "/v1/nodes/h1", json!({ "labels": {} }))
        .await;
    assert_eq!(shown["taints"], taints["taints"]);
}
