//! What can be asked of places and said of nodes over the API, and how it is refused.

use berth_common::error::ErrorKind;
use berth_common::id::Name;
use berth_common::model::{NodeKind, ServiceSpec};
use berth_common::units::Bytes;
use serde_json::{Value, json};

use super::fixtures::Bench;
use crate::controllers::fixtures;

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

#[tokio::test]
async fn r4_pools_lend_their_overcommit_and_are_named_only_where_they_are() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let nobody = json!({ "name": "web", "image": "nginx", "pool": "batch" });
    let refused = b.send("shop", "POST", SERVICES, nobody.clone()).await.problem();
    assert_eq!(refused.field.as_deref(), Some("/pool"));
    let refused = b
        .send("admin", "PATCH", "/v1/nodes/h1", json!({ "pool": "batch" }))
        .await
        .problem();
    assert!(refused.cure.unwrap().contains("berth pool set batch"));
    let double = json!({ "overcommit": { "cpu_percent": 200, "memory_percent": 100 } });
    assert_eq!(
        b.send("shop", "PUT", "/v1/pools/batch", double.clone())
            .await
            .problem()
            .kind,
        ErrorKind::Forbidden
    );
    let absurd = json!({ "overcommit": { "cpu_percent": 200, "memory_percent": 0 } });
    let absurd = b.send("admin", "PUT", "/v1/pools/batch", absurd).await.problem();
    assert_eq!(absurd.field.as_deref(), Some("/overcommit/memory_percent"));
    b.ok("admin", "PUT", "/v1/pools/batch", double).await;
    let node = b
        .ok("admin", "PATCH", "/v1/nodes/h1", json!({ "pool": "batch" }))
        .await;
    assert_eq!(node["allocatable"]["cpu"], 16_000, "twice of what it has");
    let own = json!({ "overcommit": { "cpu_percent": 100, "memory_percent": 100 } });
    let node = b.ok("admin", "PATCH", "/v1/nodes/h1", own).await;
    assert_eq!(node["allocatable"]["cpu"], 8_000, "its own goes before");
    let node = b
        .ok(
            "admin",
            "PATCH",
            "/v1/nodes/h1",
            json!({ "overcommit_of_pool": true }),
        )
        .await;
    assert_eq!(node["allocatable"]["cpu"], 16_000);
    b.ok("shop", "POST", SERVICES, nobody).await;
    let plain = json!({ "name": "plain", "image": "nginx" });
    b.ok("shop", "POST", SERVICES, plain).await;
    let waits = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/plain.1", Value::Null)
        .await;
    assert_eq!(waits["reason"], "no node fits: 1 node is not in pool default");
    let list = b.ok("shop", "GET", "/v1/pools", Value::Null).await;
    assert_eq!(
        (&list["items"][0]["name"], &list["items"][0]["nodes"]),
        (&json!("batch"), &json!(0))
    );
    let shown = b.ok("admin", "GET", "/v1/pools/batch", Value::Null).await;
    assert_eq!(
        (&shown["nodes"], &shown["reserved"]["cpu"]),
        (&json!(1), &json!(100))
    );
    for (pool, kind) in [
        ("batch", ErrorKind::Precondition),
        ("default", ErrorKind::Precondition),
        ("other", ErrorKind::NotFound),
    ] {
        let refused = b
            .call("admin", "DELETE", &format!("/v1/pools/{pool}"))
            .await
            .problem();
        assert_eq!(refused.kind, kind, "{pool}");
    }
    b.ok("admin", "PATCH", "/v1/nodes/h1", json!({ "pool": "default" }))
        .await;
    b.ok(
        "shop",
        "PUT",
        &format!("{SERVICES}/web"),
        json!({ "name": "web", "image": "nginx" }),
    )
    .await;
    assert_eq!(b.call("admin", "DELETE", "/v1/pools/batch").await.status, 204);
}

#[tokio::test]
async fn what_is_asked_of_places_is_judged_and_read_back() {
    let b = Bench::new().await;
    let near = |name: &str, with: &str, hard: bool| {
        json!({ "name": name, "image": "nginx", "replicas": 0,
            "spread": [{ "by": "zone", "hard": true }], "max_per_node": 2,
            "together": [{ "with": with, "by": "zone", "hard": hard }] })
    };
    let made = b.ok("shop", "POST", SERVICES, near("web", "db", true)).await;
    assert_eq!(
        made["spec"]["spread"],
        json!([{ "by": "zone", "hard": true, "max_skew": 1 }])
    );
    b.ok("shop", "POST", SERVICES, near("db", "cache", true)).await;
    let circle = b
        .send("shop", "POST", SERVICES, near("cache", "web", true))
        .await
        .problem();
    assert_eq!(circle.field.as_deref(), Some("/together"));
    assert!(circle.detail.contains("cache → web → db → cache"), "{circle}");
    b.ok("shop", "POST", SERVICES, near("cache", "web", false)).await;
    for (field, bad) in [
        ("/max_per_node", json!({ "max_per_node": 0 })),
        ("/spread", json!({ "spread": [{ "by": "zone", "max_skew": 0 }] })),
        ("/together", json!({ "together": [{ "with": "bad" }] })),
        ("/tolerations", json!({ "tolerations": ["a", "a"] })),
    ] {
        let mut spec = json!({ "name": "bad", "image": "nginx" });
        spec.as_object_mut()
            .unwrap()
            .extend(bad.as_object().unwrap().clone());
        let refused = b.send("shop", "POST", SERVICES, spec).await.problem();
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
    }
}

#[tokio::test]
async fn priorities_above_what_a_tenant_may_have_need_an_administrator() {
    let b = Bench::new().await;
    let spec = |priority: i32, image: &str| json!({ "name": "web", "image": image, "priority": priority });
    let web = format!("{SERVICES}/web");
    for (priority, kind) in [(1, ErrorKind::Forbidden), (1001, ErrorKind::Invalid)] {
        let refused = b
            .send("shop", "PUT", &web, spec(priority, "nginx"))
            .await
            .problem();
        assert_eq!(
            (refused.kind, refused.field.as_deref()),
            (kind, Some("/priority"))
        );
    }
    b.ok("shop", "PUT", &web, spec(-5, "nginx")).await;
    b.ok("admin", "PUT", &web, spec(100, "nginx")).await;
    // What was given stays, and goes no higher.
    b.ok("shop", "PUT", &web, spec(100, "nginx:2")).await;
    b.ok("shop", "POST", &format!("{web}/scale"), json!({ "replicas": 2 }))
        .await;
    let refused = b.send("shop", "PUT", &web, spec(101, "nginx:2")).await.problem();
    assert!(
        refused
            .cure
            .unwrap()
            .ends_with("berth tenant quota shop --max-priority 101")
    );
    b.ok(
        "admin",
        "PATCH",
        "/v1/tenants/shop",
        json!({ "max_priority": 200 }),
    )
    .await;
    let made = b.ok("shop", "PUT", &web, spec(101, "nginx:2")).await;
    assert_eq!(made["spec"]["priority"], 101);
    let absurd = b
        .send(
            "admin",
            "PATCH",
            "/v1/tenants/shop",
            json!({ "max_priority": 1001 }),
        )
        .await
        .problem();
    assert_eq!(absurd.field.as_deref(), Some("/max_priority"));
}

#[tokio::test]
async fn r4_best_effort_is_beside_reservations_and_quotas() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let quota = json!({ "quota": { "memory": "256MiB", "containers": 3 } });
    b.ok("admin", "PATCH", "/v1/tenants/shop", quota).await;
    let lent = json!({ "name": "crunch", "image": "nginx", "class": "best-effort", "replicas": 3 });
    b.ok("shop", "POST", SERVICES, lent.clone()).await;
    let node = b.ok("admin", "GET", "/v1/nodes/h1", Value::Null).await;
    assert_eq!(node["taken"]["reserved"]["memory"], 0);
    assert_eq!(node["taken"]["lent"]["memory"], 3 * (256 << 20));
    let shown = b
        .ok("shop", "GET", "/v1/tenants/shop/containers/crunch.1", Value::Null)
        .await;
    assert_eq!(shown["spec"]["limits"]["cpu_weight"], 1);
    assert_eq!(
        shown["spec"]["limits"]["memory"],
        256 << 20,
        "R1: a limit all the same"
    );
    let mut greedy = lent;
    greedy["resources"] = json!({ "reserve": { "memory": "1MiB" } });
    let refused = b
        .send("shop", "PUT", &format!("{SERVICES}/crunch"), greedy)
        .await
        .problem();
    assert_eq!(refused.field.as_deref(), Some("/resources/reserve/memory"));
}

#[tokio::test]
async fn r9_an_unknown_policy_is_refused_with_those_that_there_are() {
    let b = Bench::new().await;
    let body = json!({ "name": "web", "image": "nginx", "policy": "gpu-first" });
    let refused = b.send("shop", "POST", SERVICES, body).await.problem();
    assert_eq!(
        (refused.kind, refused.field.as_deref()),
        (ErrorKind::Invalid, Some("/policy"))
    );
    assert!(refused.cure.unwrap().contains("[[policy]]"));
    let known: Vec<Name> = vec!["cheap".parse().unwrap(), "gpu-first".parse().unwrap()];
    let mut spec = ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap());
    assert_eq!(super::placement::judge_policy(&known, &spec, None), Ok(()));
    spec.policy = Some("gpu-first".parse().unwrap());
    assert_eq!(super::placement::judge_policy(&known, &spec, None), Ok(()));
    spec.policy = Some("gone".parse().unwrap());
    let refused = super::placement::judge_policy(&known, &spec, None).unwrap_err();
    assert!(refused.cure.unwrap().ends_with("cheap, gpu-first"));
    // What it has since before the settings changed stays, so that other things can be changed.
    let mut old = fixtures::service(1, 1, "nginx", 1, Bytes::mib(64));
    old.spec.policy.clone_from(&spec.policy);
    assert_eq!(super::placement::judge_policy(&known, &spec, Some(&old)), Ok(()));
}
