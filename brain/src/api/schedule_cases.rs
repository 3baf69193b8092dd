//! Why containers are where they are, over the API: who is told what, and that asking changes nothing.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use serde_json::{Value, json};

use super::fixtures::Bench;

const SHOP: &str = "/v1/tenants/shop";

fn web(replicas: u32) -> Value {
    json!({ "name": "web", "image": "nginx", "replicas": replicas,
        "resources": { "limits": { "memory": "6GiB" } } })
}

async fn explain(b: &Bench, who: &str, container: &str) -> Value {
    let path = format!("{SHOP}/containers/{container}/schedule");
    b.ok(who, "GET", &path, Value::Null).await
}

fn names(nodes: &Value) -> Vec<&str> {
    let nodes = nodes.as_array().unwrap();
    nodes.iter().map(|node| node["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_place_is_explained_node_by_node_with_parts_that_add_up() {
    let b = Bench::new().await;
    for n in 1..=3 {
        b.join(n, NodeKind::Shared).await;
    }
    b.call("admin", "POST", "/v1/nodes/h3/cordon").await;
    b.ok("shop", "POST", &format!("{SHOP}/services"), web(2)).await;
    let told = explain(&b, "admin", "web.1").await;
    assert_eq!((&told["node_name"], &told["best"]), (&json!("h1"), &json!("h1")));
    assert_eq!(names(&told["nodes"]), ["h1", "h2", "h3"]);
    assert_eq!(
        told["nodes"][0]["free"]["memory"], told["nodes"][2]["free"]["memory"],
        "itself taken away first"
    );
    assert_eq!(told["nodes"][2]["against"], json!(["is cordoned"]));
    assert!(
        told["nodes"][1]["score"]["replicas"].as_i64().unwrap() < 0,
        "web.2 is there"
    );
    for node in told["nodes"].as_array().unwrap().iter().take(2) {
        let score = node["score"].as_object().unwrap();
        let parts = score.iter().filter(|(name, _)| *name != "total");
        let sum: i64 = parts.map(|(_, value)| value.as_i64().unwrap()).sum();
        assert_eq!(score["total"], sum, "{node}");
    }
    let verdict = told["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with("web.1 is on h1 and would be placed there again: 2 of 3 nodes can take it"),
        "{verdict}"
    );
    assert_eq!(told["events"][0]["kind"], "placed");
    // What waits says why, node by node.
    b.ok("shop", "PUT", &format!("{SHOP}/services/web"), web(5)).await;
    let told = explain(&b, "admin", "web.5").await;
    assert_eq!(told["best"], Value::Null);
    assert_eq!(
        told["nodes"][0]["against"],
        json!(["lacks memory (need 6GiB, free is 4GiB)"])
    );
    assert!(
        told["verdict"]
            .as_str()
            .unwrap()
            .starts_with("web.5 waits: no node fits: 2 nodes lack memory"),
        "{told}"
    );
}

#[tokio::test]
async fn r6_a_tenant_reads_of_its_own_containers_and_private_nodes_alone() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    b.join(2, NodeKind::Shared).await;
    let (shop, rival) = (b.tenant_id("shop"), b.tenant_id("rival"));
    b.join(3, NodeKind::Private { tenant: rival }).await;
    b.join(4, NodeKind::Private { tenant: shop }).await;
    b.ok("shop", "POST", &format!("{SHOP}/services"), web(2)).await;
    let told = explain(&b, "shop", "web.1").await;
    assert_eq!(names(&told["nodes"]), ["h4"], "{told}");
    let text = told.to_string();
    assert!(
        !text.contains("h2") && !text.contains("h3") && !text.contains("points"),
        "{told}"
    );
    assert!(names(&explain(&b, "admin", "web.1").await["nodes"]).contains(&"h3"));
    let path = format!("{SHOP}/containers/web.1/schedule");
    let foreign = b.call("rival", "GET", &path).await.problem();
    assert_eq!(foreign.kind, ErrorKind::NotFound);
    let foreign = b
        .send("rival", "POST", &format!("{SHOP}/schedule"), web(1))
        .await
        .problem();
    assert_eq!(foreign.kind, ErrorKind::NotFound);
    let foreign = b.call("shop", "GET", "/v1/nodes/h1/loss").await.problem();
    assert_eq!(foreign.kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn what_if_says_what_would_be_and_changes_nothing() {
    let b = Bench::new().await;
    for n in 1..=2 {
        b.join(n, NodeKind::Shared).await;
    }
    let revision = b.api.cluster.snapshot().revision;
    let at = format!("{SHOP}/schedule");
    let told = b.ok("shop", "POST", &at, web(3)).await;
    assert_eq!(
        (&told["fits"], &told["verdict"]),
        (&json!(true), &json!("all 3 would have a place"))
    );
    assert_eq!(
        told["nodes"],
        json!([{ "name": "h1", "replicas": 2, "new": 2 }, { "name": "h2", "replicas": 1, "new": 1 }])
    );
    assert_eq!(told["replicas"][0]["fate"], "new");
    let told = b.ok("shop", "POST", &at, web(5)).await;
    assert_eq!(
        (&told["fits"], &told["replicas"][4]["fate"]),
        (&json!(false), &json!("waits"))
    );
    let verdict = told["verdict"].as_str().unwrap();
    assert!(
        verdict.starts_with("1 of 5 would wait: web.5: no node fits: 2 nodes lack memory"),
        "{verdict}"
    );
    assert_eq!(b.api.cluster.snapshot().revision, revision);
    assert!(b.api.cluster.snapshot().services.is_empty());

    // The like is what really happens.
    let services = format!("{SHOP}/services");
    b.ok("shop", "POST", &services, web(3)).await;
    let really = b
        .ok("shop", "GET", &format!("{SHOP}/containers"), Value::Null)
        .await;
    assert_eq!(really["items"][0]["node_name"], "h1");
    // As the update that it would be: its own replicas count, and those that go on are told so.
    let told = b.ok("shop", "POST", &at, web(2)).await;
    let fates: Vec<_> = told["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["fate"])
        .collect();
    assert_eq!(fates, ["stays", "stays", "removed"]);
    let mut other = web(3);
    other["image"] = json!("nginx:2");
    let told = b.ok("shop", "POST", &at, other).await;
    assert_eq!(
        (&told["fits"], &told["replicas"][0]["fate"]),
        (&json!(true), &json!("replaced")),
        "{told}"
    );
    // Judged as if it were meant.
    let quota = json!({ "quota": { "containers": 3 } });
    b.ok("admin", "PATCH", SHOP, quota).await;
    let refused = b.send("shop", "POST", &at, web(4)).await.problem();
    assert_eq!(refused.kind, ErrorKind::QuotaExceeded);
}

#[tokio::test]
async fn who_would_be_preempted_is_told_by_name_to_its_own_tenant_alone() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    b.ok("rival", "POST", "/v1/tenants/rival/services", web(2)).await;
    b.ok("admin", "PATCH", SHOP, json!({ "max_priority": 10 })).await;
    let mut db = web(1);
    (db["name"], db["priority"]) = (json!("db"), json!(10));
    let at = format!("{SHOP}/schedule");
    let told = b.ok("shop", "POST", &at, db.clone()).await;
    assert_eq!(told["replicas"][0]["to"], "h1", "{told}");
    assert_eq!(told["others"], Value::Null);
    let text = told["preempted"][0].as_str().unwrap();
    assert!(
        text.starts_with("preempted another tenant's container (priority 0)"),
        "{text}"
    );
    let told = b.ok("admin", "POST", &at, db).await;
    let text = told["preempted"][0].as_str().unwrap();
    assert!(text.contains("of rival (priority 0) for db.1 of shop"), "{text}");
    assert_eq!(told["others"][0]["fate"], "waits", "{told}");
    assert_eq!(b.api.cluster.snapshot().services.len(), 1);
}

#[tokio::test]
async fn the_loss_of_a_node_is_foreseen_container_by_container() {
    let b = Bench::new().await;
    for n in 1..=2 {
        b.join(n, NodeKind::Shared).await;
    }
    b.ok("shop", "POST", &format!("{SHOP}/services"), web(3)).await;
    let told = b.ok("admin", "GET", "/v1/nodes/h1/loss", Value::Null).await;
    let fates: Vec<_> = told["replicas"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["fate"])
        .collect();
    assert_eq!(
        fates,
        ["replaced", "lost"],
        "one fits beside the other on h2: {told}"
    );
    assert_eq!(told["replicas"][0]["to"], "h2");
    let why = told["replicas"][1]["why"].as_str().unwrap();
    assert!(
        why.contains("1 node lacks memory (need 6GiB, most free is 4GiB on h2)"),
        "{why}"
    );
    assert!(!b.api.cluster.snapshot().nodes.values().any(|node| node.lost));
}

#[tokio::test]
async fn packing_needs_an_administrator_and_begins_only_when_it_is_meant() {
    let b = Bench::new().await;
    for n in 1..=3 {
        b.join(n, NodeKind::Shared).await;
    }
    let at = "/v1/nodes/pack";
    let refused = b.send("shop", "POST", at, json!({})).await.problem();
    assert_eq!(refused.kind, ErrorKind::Forbidden);
    for (field, bad) in [
        ("/keep", json!({ "keep": 0 })),
        ("/pool", json!({ "pool": "nope" })),
    ] {
        let refused = b.send("admin", "POST", at, bad).await.problem();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
    }
    // What does not run yet can't move; its node stays, and the empty ones are given away.
    b.ok("shop", "POST", &format!("{SHOP}/services"), web(1)).await;
    let revision = b.api.cluster.snapshot().revision;
    let dry = b.ok("admin", "POST", at, json!({ "dry_run": true })).await;
    assert_eq!(
        (names(&dry["freed"]), names(&dry["kept"])),
        (vec!["h2", "h3"], vec!["h1"])
    );
    assert_eq!(dry["verdict"], "2 of 3 nodes can be emptied: 0 containers move");
    assert_eq!(b.api.cluster.snapshot().revision, revision);
    let done = b.ok("admin", "POST", at, json!({ "keep": 2 })).await;
    assert_eq!(names(&done["freed"]), ["h2"]);
    let node = b.ok("admin", "GET", "/v1/nodes/h2", Value::Null).await;
    assert_eq!(
        (&node["cordoned"], &node["draining"]),
        (&json!(true), &json!(true))
    );
    let again = b.ok("admin", "POST", at, json!({ "keep": 2 })).await;
    assert_eq!(again["verdict"], "no node can be emptied; 2 stay open");
}
