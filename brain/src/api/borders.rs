//! Tests of borders: tenants against each other on every documented path (R6).

use std::sync::Arc;

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use serde_json::{Value, json};

use super::fixtures::{Bench, NoNodes};
use super::limits::Rates;

/// Every documented operation: method, path.
fn operations() -> Vec<(String, String)> {
    let (_, doc) = super::documented();
    let doc = serde_json::to_value(&doc).unwrap();
    let mut all = Vec::new();
    for (path, item) in doc["paths"].as_object().unwrap() {
        for method in item
            .as_object()
            .unwrap()
            .keys()
            .filter(|key| key.as_str() != "parameters")
        {
            all.push((method.to_uppercase(), path.clone()));
        }
    }
    assert!(all.len() > 30, "{all:?}");
    all
}

fn fill(path: &str, tenant: &str, node: &str, other: &str) -> String {
    let path = path.replace("{tenant}", tenant).replace("{node}", node);
    let mut out = String::new();
    for part in path.split('/').skip(1) {
        out.push('/');
        out.push_str(if part.starts_with('{') { other } else { part });
    }
    out
}

#[tokio::test]
async fn r6_a_foreign_tenant_is_like_one_that_does_not_exist_on_every_path() {
    let rates = Rates {
        failed_sign_ins: 1_000,
        ..Rates::default()
    };
    let b = Bench::with(Arc::new(NoNodes), rates).await;
    b.join(1, NodeKind::Shared).await;
    let web = json!({ "name": "web", "image": "nginx" });
    b.ok("shop", "POST", "/v1/tenants/shop/services", web).await;
    let before = b.api.cluster.snapshot().revision;
    let mut checked = 0;
    for (method, path) in operations().iter().filter(|(_, path)| path.contains("{tenant}")) {
        let mut texts = Vec::new();
        for tenant in ["shop", "nope"] {
            let reply = b
                .send("rival", method, &fill(path, tenant, "h1", "web"), json!({}))
                .await;
            let problem = reply.problem();
            assert_eq!(problem.kind, ErrorKind::NotFound, "{method} {path}: {problem}");
            texts.push(problem.detail.replace(tenant, "T"));
            let open = b
                .send("", method, &fill(path, tenant, "h1", "web"), json!({}))
                .await
                .problem();
            assert_eq!(open.kind, ErrorKind::Unauthenticated, "{method} {path}");
        }
        assert_eq!(texts[0], texts[1], "{method} {path} tells the one from the other");
        checked += 1;
    }
    assert!(checked > 20, "{checked}");
    assert_eq!(
        b.api.cluster.snapshot().revision,
        before,
        "nothing was changed by all that"
    );
}

#[tokio::test]
async fn r6_nodes_of_others_do_not_exist() {
    let b = Bench::new().await;
    let tenant = b.tenant_id("shop");
    b.join(1, NodeKind::Shared).await;
    b.join(2, NodeKind::Private { tenant }).await;
    for (method, path) in operations().iter().filter(|(_, path)| path.contains("{node}")) {
        for (who, node) in [("rival", "h1"), ("rival", "h2"), ("rival", "h3"), ("shop", "h1")] {
            let reply = b.send(who, method, &fill(path, "", node, ""), json!({})).await;
            assert_eq!(
                reply.problem().kind,
                ErrorKind::NotFound,
                "{who} {method} {path} {node}"
            );
        }
    }
    let names = async |who| {
        let list = b.ok(who, "GET", "/v1/nodes", Value::Null).await;
        let items = list["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|n| n["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names("admin").await, ["h1", "h2"]);
    assert_eq!(names("shop").await, ["h2"]);
    assert!(names("rival").await.is_empty());
    let load = b.ok("rival", "GET", "/v1/usage", Value::Null).await;
    assert_eq!(load, json!({ "nodes": [], "containers": [] }));
    let seen = b.ok("shop", "GET", "/v1/nodes/h2", Value::Null).await;
    assert_eq!(
        (&seen["tenant_name"], &seen["state"]),
        (&json!("shop"), &json!("ready"))
    );
}

#[tokio::test]
async fn r6_ids_of_foreign_objects_open_nothing() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    b.ok(
        "shop",
        "POST",
        "/v1/tenants/shop/services",
        json!({ "name": "web", "image": "nginx" }),
    )
    .await;
    let mine = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/web.1", Value::Null)
        .await;
    let id = mine["id"].as_str().unwrap();
    assert_eq!(
        (&mine["node_name"], &mine["status"]),
        (&json!("h1"), &json!("pending"))
    );
    for text in [id, &id[..4], "web.1"] {
        b.ok(
            "shop",
            "GET",
            &format!("/v1/tenants/shop/containers/{text}"),
            Value::Null,
        )
        .await;
        let foreign = b
            .call("rival", "GET", &format!("/v1/tenants/rival/containers/{text}"))
            .await;
        assert_eq!(foreign.problem().kind, ErrorKind::NotFound, "{text}");
        let stop = b
            .call(
                "rival",
                "POST",
                &format!("/v1/tenants/rival/containers/{text}/stop"),
            )
            .await;
        assert_eq!(stop.problem().kind, ErrorKind::NotFound, "{text}");
    }
    for text in ["ab", "", "web.2", "web.x", "..", "zzz", &"a".repeat(10_000)] {
        let reply = b
            .call("shop", "GET", &format!("/v1/tenants/shop/containers/{text}"))
            .await;
        assert_eq!(reply.problem().kind, ErrorKind::NotFound, "{text}");
    }
    let made = b
        .ok("shop", "POST", "/v1/tenants/shop/tokens", json!({ "note": "ci" }))
        .await;
    let token = made["view"]["id"].as_str().unwrap();
    let foreign = b
        .call("rival", "DELETE", &format!("/v1/tenants/rival/tokens/{token}"))
        .await;
    assert_eq!(foreign.problem().kind, ErrorKind::NotFound);
    let list = b.ok("rival", "GET", "/v1/tenants", Value::Null).await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[test]
fn every_operation_names_each_of_its_path_parameters_once() {
    let (_, doc) = super::documented();
    let doc = serde_json::to_value(&doc).unwrap();
    for (path, item) in doc["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let named = operation["parameters"].as_array().cloned().unwrap_or_default();
            let mut named: Vec<&str> = named
                .iter()
                .filter(|p| p["in"] == "path")
                .map(|p| p["name"].as_str().unwrap())
                .collect();
            let mut wanted: Vec<&str> = path
                .split('/')
                .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
                .collect();
            named.sort_unstable();
            wanted.sort_unstable();
            assert_eq!(named, wanted, "{method} {path}");
        }
    }
}
