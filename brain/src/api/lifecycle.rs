//! Tests of what tokens, tenants, nodes and single containers go through over the API.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use berth_common::protocol::JoinToken;
use serde_json::{Value, json};

use super::auth::{secret_matches, split_join_secret};
use super::fixtures::Bench;

#[tokio::test]
async fn tokens_are_made_used_revoked_and_never_shown_again() {
    let b = Bench::new().await;
    let path = "/v1/tenants/shop/tokens";
    let made = b
        .ok("shop", "POST", path, json!({ "note": "ci", "ttl_secs": 60 }))
        .await;
    let token = made["token"].as_str().unwrap();
    b.ok(token, "GET", "/v1/tenants/shop", Value::Null).await;
    let list = b.ok("shop", "GET", path, Value::Null).await;
    let secret = token.rsplit('_').next().unwrap();
    assert_eq!(list["items"].as_array().unwrap().len(), 2);
    assert!(!list.to_string().contains(secret) && !list.to_string().contains("hash"));
    let one = format!("{path}/{}", made["view"]["id"].as_str().unwrap());
    assert_eq!(b.call("shop", "DELETE", &one).await.status, 204);
    assert_eq!(
        b.call(token, "GET", "/v1/tenants/shop").await.problem().kind,
        ErrorKind::Unauthenticated
    );
    let admin = json!({ "admin": true });
    for (who, tenant, kind) in [
        ("shop", "shop", ErrorKind::Forbidden),
        ("default", "default", ErrorKind::Forbidden),
        ("admin", "shop", ErrorKind::Invalid),
    ] {
        let reply = b
            .send(
                who,
                "POST",
                &format!("/v1/tenants/{tenant}/tokens"),
                admin.clone(),
            )
            .await;
        assert_eq!(reply.problem().kind, kind, "{who}");
    }
    let admins = "/v1/tenants/default/tokens";
    let only = b.ok("default", "GET", admins, Value::Null).await;
    assert_eq!(
        only["items"].as_array().unwrap().len(),
        1,
        "a tenant does not see administrators' tokens"
    );
    let all = b.ok("admin", "GET", admins, Value::Null).await;
    let items = all["items"].as_array().unwrap();
    let last = items.iter().find(|t| t["role"] == "admin").unwrap()["id"]
        .as_str()
        .unwrap();
    let kept = b
        .call("admin", "DELETE", &format!("{admins}/{last}"))
        .await
        .problem();
    assert_eq!(kept.kind, ErrorKind::Precondition, "nobody locks everybody out");
    let hidden = b
        .call("default", "DELETE", &format!("{admins}/{last}"))
        .await
        .problem();
    assert_eq!(hidden.kind, ErrorKind::NotFound);
    for body in [
        json!({ "ttl_secs": 0 }),
        json!({ "ttl_secs": u64::MAX }),
        json!({ "note": "n".repeat(300) }),
    ] {
        assert_eq!(
            b.send("shop", "POST", path, body).await.problem().kind,
            ErrorKind::Invalid
        );
    }
}

#[tokio::test]
async fn tenants_come_and_go() {
    let b = Bench::new().await;
    let denied = b
        .send("shop", "POST", "/v1/tenants", json!({ "name": "mine" }))
        .await
        .problem();
    assert_eq!(denied.kind, ErrorKind::Forbidden);
    assert_eq!(
        b.send("admin", "POST", "/v1/tenants", json!({ "name": "new" }))
            .await
            .status,
        201
    );
    let twice = b
        .send("admin", "POST", "/v1/tenants", json!({ "name": "new" }))
        .await
        .problem();
    assert_eq!(twice.kind, ErrorKind::AlreadyExists);
    let token = b.ok("admin", "POST", "/v1/tenants/new/tokens", json!({})).await;
    let token = token["token"].as_str().unwrap().to_owned();
    b.ok(
        &token,
        "POST",
        "/v1/tenants/new/services",
        json!({ "name": "web", "image": "nginx" }),
    )
    .await;
    let hub = b
        .ok(
            &token,
            "PUT",
            "/v1/tenants/new/registries/r.example.com:5000",
            json!({ "username": "u", "password": "hush" }),
        )
        .await;
    assert_eq!(hub, json!({ "registry": "r.example.com:5000", "username": "u" }));
    for host in ["https:%2F%2Fx.y", "x", "a.b%2Fc", "-", "%00.x"] {
        let path = format!("/v1/tenants/new/registries/{host}");
        let reply = b
            .send(&token, "PUT", &path, json!({ "username": "u", "password": "p" }))
            .await;
        assert_eq!(reply.problem().kind, ErrorKind::Invalid, "{host}");
    }
    let list = b
        .ok(&token, "GET", "/v1/tenants/new/registries", Value::Null)
        .await;
    assert!(!list.to_string().contains("hush"));
    let full = b.call("admin", "DELETE", "/v1/tenants/new").await.problem();
    assert_eq!(full.kind, ErrorKind::Precondition);
    assert_eq!(
        b.call(&token, "DELETE", "/v1/tenants/new").await.problem().kind,
        ErrorKind::Forbidden
    );
    b.ok(&token, "DELETE", "/v1/tenants/new/services/web", Value::Null)
        .await;
    b.ok("admin", "DELETE", "/v1/tenants/new", Value::Null).await;
    assert_eq!(
        b.call(&token, "GET", "/v1/tenants/new").await.problem().kind,
        ErrorKind::Unauthenticated
    );
    let state = b.api.cluster.snapshot();
    assert!(state.registries.is_empty() && state.tokens.len() == 4);
    assert_eq!(
        b.call("admin", "DELETE", "/v1/tenants/default")
            .await
            .problem()
            .kind,
        ErrorKind::Precondition
    );
}

#[tokio::test]
async fn nodes_are_joined_drained_and_removed() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let made = b
        .ok(
            "admin",
            "POST",
            "/v1/nodes/tokens",
            json!({ "labels": { "zone": "a" }, "taints": ["gpu:no-schedule"], "pool": "default" }),
        )
        .await;
    let token: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    assert_eq!(token.addresses, ["10.0.0.1:7443"]);
    let (id, secret) = split_join_secret(&token.secret).unwrap();
    let state = b.api.cluster.snapshot();
    assert_eq!(state.join_tokens[&id].taints[0].to_string(), "gpu:no-schedule");
    assert!(secret_matches(secret, &state.join_tokens[&id].secret_hash));
    b.ok("shop", "POST", "/v1/nodes/tokens", json!({ "private": "shop" }))
        .await;
    for (who, body, kind) in [
        ("shop", json!({}), ErrorKind::Forbidden),
        ("shop", json!({ "private": "rival" }), ErrorKind::NotFound),
        ("admin", json!({ "private": "nope" }), ErrorKind::NotFound),
        ("admin", json!({ "ttl_secs": 0 }), ErrorKind::Invalid),
        ("admin", json!({ "addresses": ["x"] }), ErrorKind::Invalid),
        ("admin", json!({ "pool": "nope" }), ErrorKind::Invalid),
        ("admin", json!({ "taints": ["gpu:away"] }), ErrorKind::Invalid),
        (
            "admin",
            json!({ "taints": ["gpu=a:no-schedule", "gpu=b:no-schedule"] }),
            ErrorKind::Invalid,
        ),
        (
            "admin",
            json!({ "addresses": vec!["h:1"; 9] }),
            ErrorKind::Invalid,
        ),
    ] {
        let reply = b.send(who, "POST", "/v1/nodes/tokens", body.clone()).await;
        assert_eq!(reply.problem().kind, kind, "{who} {body}");
    }
    b.ok(
        "shop",
        "POST",
        "/v1/tenants/shop/services",
        json!({ "name": "web", "image": "nginx" }),
    )
    .await;
    let kept = b.call("admin", "DELETE", "/v1/nodes/h1").await.problem();
    assert_eq!(kept.kind, ErrorKind::Precondition);
    let drained = b.ok("admin", "POST", "/v1/nodes/h1/drain", Value::Null).await;
    assert_eq!(
        (&drained["cordoned"], &drained["draining"]),
        (&json!(true), &json!(true))
    );
    assert!(
        drained["drain_waits"]
            .as_array()
            .is_some_and(|waits| !waits.is_empty()),
        "{drained}"
    );
    let back = b.ok("admin", "POST", "/v1/nodes/h1/uncordon", Value::Null).await;
    assert_eq!(
        (&back["cordoned"], &back["draining"]),
        (&json!(false), &json!(false))
    );
    let more = b
        .ok(
            "admin",
            "PATCH",
            "/v1/nodes/h1",
            json!({ "overcommit": { "cpu_percent": 200, "memory_percent": 100 } }),
        )
        .await;
    assert_eq!(more["allocatable"]["cpu"], 16_000);
    let zero = json!({ "overcommit": { "cpu_percent": 0, "memory_percent": 100 } });
    let zero = b.send("admin", "PATCH", "/v1/nodes/h1", zero).await.problem();
    assert_eq!(zero.field.as_deref(), Some("/overcommit/cpu_percent"));
    assert_eq!(
        b.call("admin", "DELETE", "/v1/nodes/h1?force=true").await.status,
        204
    );
    let waits = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/web.1", Value::Null)
        .await;
    assert_eq!(waits["status"], "waiting");
}

#[tokio::test]
async fn one_container_is_told_by_itself_until_its_service_is() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    b.ok(
        "shop",
        "POST",
        "/v1/tenants/shop/services",
        json!({ "name": "web", "image": "nginx", "replicas": 2 }),
    )
    .await;
    let path = |rest: &str| format!("/v1/tenants/shop/{rest}");
    let stopped = b
        .ok("shop", "POST", &path("containers/web.1/stop"), Value::Null)
        .await;
    assert_eq!(stopped["run"], "stopped");
    b.ok(
        "shop",
        "POST",
        &path("services/web/scale"),
        json!({ "replicas": 3 }),
    )
    .await;
    let run = async |name: &str| {
        let shown = b
            .ok("shop", "GET", &path(&format!("containers/{name}")), Value::Null)
            .await;
        (
            shown["run"].as_str().unwrap().to_owned(),
            shown["restarts_asked"].as_u64().unwrap(),
        )
    };
    assert_eq!(run("web.1").await, ("stopped".to_owned(), 0), "it sticks");
    assert_eq!(run("web.3").await, ("running".to_owned(), 0));
    b.ok("shop", "POST", &path("services/web/start"), Value::Null)
        .await;
    assert_eq!(run("web.1").await, ("running".to_owned(), 0));
    b.ok("shop", "POST", &path("containers/web.2/restart"), Value::Null)
        .await;
    b.ok("shop", "POST", &path("services/web/stop"), Value::Null)
        .await;
    assert_eq!(run("web.2").await, ("stopped".to_owned(), 1));
    b.ok("shop", "POST", &path("services/web/restart"), Value::Null)
        .await;
    assert_eq!(run("web.1").await, ("running".to_owned(), 1));
    assert_eq!(run("web.2").await, ("running".to_owned(), 2));
}

#[tokio::test]
async fn r6_networks_are_made_listed_and_removed_each_tenant_for_itself() {
    let b = Bench::new().await;
    let path = "/v1/tenants/shop/networks";
    let made = b
        .ok(
            "shop",
            "POST",
            path,
            json!({ "name": "back", "cidr": "10.20.0.0/16" }),
        )
        .await;
    assert_eq!(
        (&made["gateway"], &made["endpoints"]),
        (&json!("10.20.0.1"), &json!(0))
    );
    assert!(made["cidr6"].as_str().unwrap().starts_with("fd"), "{made}");
    for (body, kind, field) in [
        (json!({ "name": "back" }), ErrorKind::AlreadyExists, "/name"),
        (
            json!({ "name": "b", "cidr": "10.20.7.0/24" }),
            ErrorKind::AlreadyExists,
            "/cidr",
        ),
        (
            json!({ "name": "b", "cidr": "10.21.0.7/16" }),
            ErrorKind::Invalid,
            "/cidr",
        ),
        (
            json!({ "name": "b", "cidr": "169.254.0.0/16" }),
            ErrorKind::Invalid,
            "/cidr",
        ),
        (
            json!({ "name": "b", "cidr": "x".repeat(5_000) }),
            ErrorKind::Invalid,
            "/cidr",
        ),
    ] {
        let problem = b.send("shop", "POST", path, body.clone()).await.problem();
        assert_eq!(
            (problem.kind, problem.field.as_deref()),
            (kind, Some(field)),
            "{body}: {problem}"
        );
        assert!(problem.detail.len() < 300);
    }
    // Another tenant may have the same addresses, and sees nothing of the first.
    let other = "/v1/tenants/default/networks";
    let same = b
        .ok(
            "default",
            "POST",
            other,
            json!({ "name": "back", "cidr": "10.20.0.0/16" }),
        )
        .await;
    assert_ne!(same["vni"], made["vni"]);
    assert_ne!(same["cidr6"], made["cidr6"]);
    assert_eq!(b.call("default", "GET", path).await.status, 404);
    assert_eq!(
        b.call("default", "GET", &format!("{path}/back")).await.status,
        404
    );
    let listed = b.ok("default", "GET", other, Value::Null).await;
    assert_eq!(listed["items"].as_array().unwrap().len(), 1);

    // A service on a network that is not there is refused before anything changes; one that is used stays.
    let services = "/v1/tenants/shop/services";
    let spec = |network: &str| json!({ "name": "web", "image": "example:1", "networks": [network] });
    let problem = b.send("shop", "POST", services, spec("front")).await.problem();
    assert_eq!(problem.field.as_deref(), Some("/networks"));
    assert!(problem.cure.unwrap().contains("berth network create front"));
    let twice = json!({ "name": "web", "image": "example:1", "networks": ["back", "back"] });
    assert_eq!(
        b.send("shop", "POST", services, twice).await.problem().kind,
        ErrorKind::Invalid
    );
    b.ok("shop", "POST", services, spec("back")).await;
    let kept = b.call("shop", "DELETE", &format!("{path}/back")).await.problem();
    assert!(kept.detail.contains("service web is on network back"), "{kept}");
    b.call("shop", "DELETE", &format!("{services}/web")).await;
    assert_eq!(
        b.call("shop", "DELETE", &format!("{path}/back")).await.status,
        204
    );
    assert_eq!(
        b.call("shop", "DELETE", &format!("{path}/back")).await.status,
        404
    );
}
