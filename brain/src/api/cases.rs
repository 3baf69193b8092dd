//! Tests of the API's core from outside: hostile bodies, duplicates, conflicts, quotas, pages.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use serde_json::{Value, json};

use super::fixtures::Bench;
use super::limits::Rates;
use crate::cluster::{Change, State};
use crate::controllers::Now;

const SERVICES: &str = "/v1/tenants/shop/services";

fn spec(name: &str, replicas: u32) -> Value {
    json!({ "name": name, "image": "nginx", "replicas": replicas })
}

#[tokio::test]
async fn hostile_bodies_are_refused_with_the_field_and_never_echoed_whole() {
    let b = Bench::new().await;
    let long = "n".repeat(10_000);
    let limits = |limits: Value| {
        json!({ "name": "web", "image": "nginx", "resources": { "limits": limits } }).to_string()
    };
    let table: Vec<(String, Option<&str>)> = vec![
        ("{".into(), None),
        (String::new(), None),
        ("[]".into(), None),
        (format!("{}{}", "[".repeat(50_000), "]".repeat(50_000)), None),
        (
            json!({ "name": long, "image": "nginx" }).to_string(),
            Some("/name"),
        ),
        (
            json!({ "name": "../etc", "image": "nginx" }).to_string(),
            Some("/name"),
        ),
        (
            json!({ "name": "web", "image": "nginx", "nope": 1 }).to_string(),
            Some("/nope"),
        ),
        (
            json!({ "name": "web", "image": "nginx", "replicas": -1 }).to_string(),
            Some("/replicas"),
        ),
        (
            json!({ "name": "web", "image": "nginx", "replicas": 10_001 }).to_string(),
            Some("/replicas"),
        ),
        (
            json!({ "name": "web", "image": "nginx:" }).to_string(),
            Some("/image"),
        ),
        (r#"{"name":"web","name":"web","image":"nginx"}"#.into(), None),
        (limits(json!({ "memory": 0 })), Some("/resources/limits/memory")),
        (limits(json!({ "memory": -5 })), Some("/resources/limits/memory")),
        (
            limits(json!({ "memory": "lots" })),
            Some("/resources/limits/memory"),
        ),
        (limits(json!({ "memory": "1" })), Some("/resources/limits/memory")),
        (
            limits(json!({ "memory": "999999999PiB" })),
            Some("/resources/limits/memory"),
        ),
        (limits(json!({ "cpu": 0 })), Some("/resources/limits/cpu")),
        (limits(json!({ "pids": 0 })), Some("/resources/limits/pids")),
        (limits(json!({ "swap": 1 })), Some("/resources/limits/swap")),
    ];
    for (body, field) in table {
        let shown: String = body.chars().take(120).collect();
        let reply = b.text("shop", "POST", SERVICES, body).await;
        let problem = reply.problem();
        assert_eq!(problem.kind, ErrorKind::Invalid, "{shown}: {problem}");
        if field.is_some() {
            assert_eq!(problem.field.as_deref(), field, "{shown}: {problem}");
        }
    }
    let big = format!(
        r#"{{"name":"web","image":"nginx","user":"{}"}}"#,
        "u".repeat(2 << 20)
    );
    let problem = b.text("shop", "POST", SERVICES, big).await.problem();
    assert_eq!(problem.kind, ErrorKind::TooLarge);
    assert!(
        b.api.cluster.snapshot().services.is_empty(),
        "nothing of all that was kept"
    );
}

#[tokio::test]
async fn what_the_framework_refuses_has_the_one_form_too() {
    let b = Bench::new().await;
    let table = [
        ("GET", "/", 404, ErrorKind::NotFound),
        ("GET", "/v2/tenants", 404, ErrorKind::NotFound),
        ("PATCH", SERVICES, 405, ErrorKind::Invalid),
        ("GET", "/v1/tenants?limit=0", 400, ErrorKind::Invalid),
        ("GET", "/v1/tenants/shop/services/%ff", 400, ErrorKind::Invalid),
        (
            "PUT",
            "/v1/tenants/shop/services/web?generation=x",
            400,
            ErrorKind::Invalid,
        ),
    ];
    for (method, path, status, kind) in table {
        let problem = b.send("shop", method, path, spec("web", 1)).await.problem();
        assert_eq!(
            (problem.status, problem.kind),
            (status, kind),
            "{method} {path}: {problem}"
        );
    }
    let request = axum::http::Request::post(SERVICES)
        .header("authorization", format!("Bearer {}", b.tokens["shop"]))
        .header("content-type", "text/plain")
        .body(spec("web", 1).to_string().into())
        .unwrap();
    let problem = b.raw(request).await.problem();
    assert!(problem.cure.unwrap().contains("Content-Type"));
}

#[tokio::test]
async fn links_that_wait_for_each_other_or_lead_nowhere_are_refused() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let back = json!({ "name": "back" });
    b.ok("shop", "POST", "/v1/tenants/shop/networks", back).await;
    // In this order; the reason for which one is refused.
    let table = [
        // What is not there yet may come.
        ("a", "b:80", "default", None),
        ("b", "c", "default", None),
        ("c", "a", "default", Some("c → a → b → c")),
        ("e", "e", "default", Some("wait for itself")),
        ("c", "", "back", None),
        (
            "d",
            "c",
            "default",
            Some("c, but the two have no network in common"),
        ),
        // Also where another link leads there, too.
        (
            "d",
            "c b",
            "default",
            Some("c, but the two have no network in common"),
        ),
        ("d", "c b", "back default", None),
    ];
    for (name, links, networks, refused) in table {
        let mut spec = spec(name, 1);
        let words = |text: &str| json!(text.split_whitespace().collect::<Vec<_>>());
        (spec["links"], spec["networks"]) = (words(links), words(networks));
        let answer = b.send("shop", "POST", SERVICES, spec).await;
        let Some(why) = refused else {
            assert_eq!(answer.status, 201, "{name}");
            continue;
        };
        let problem = answer.problem();
        assert_eq!(problem.field.as_deref(), Some("/links"), "{problem:?}");
        assert!(problem.detail.contains(why), "{problem:?}");
    }
}

#[tokio::test]
async fn create_update_conflict_and_no_change() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    let made = b.send("shop", "POST", SERVICES, spec("web", 2)).await;
    assert_eq!(made.status, 201);
    assert_eq!(made.json()["generation"], 1);
    let again = b.send("shop", "POST", SERVICES, spec("web", 2)).await.problem();
    assert_eq!(again.kind, ErrorKind::AlreadyExists);
    let web = "/v1/tenants/shop/services/web";
    let revision = b.api.cluster.snapshot().revision;
    let same = b.ok("shop", "PUT", web, spec("web", 2)).await;
    assert_eq!(same["generation"], 1);
    assert_eq!(
        b.api.cluster.snapshot().revision,
        revision,
        "the same spec changes nothing"
    );
    let changed = b
        .ok("shop", "PUT", &format!("{web}?generation=1"), spec("web", 3))
        .await;
    assert_eq!(changed["generation"], 2);
    let stale = b
        .send("shop", "PUT", &format!("{web}?generation=1"), spec("web", 4))
        .await
        .problem();
    assert_eq!(stale.kind, ErrorKind::Conflict);
    let other = b.send("shop", "PUT", web, spec("other", 1)).await.problem();
    assert_eq!(other.field.as_deref(), Some("/name"));
    let fresh = b
        .send(
            "shop",
            "PUT",
            "/v1/tenants/shop/services/new?generation=0",
            spec("new", 1),
        )
        .await;
    assert_eq!(fresh.status, 201);
    let taken = b
        .send(
            "shop",
            "PUT",
            "/v1/tenants/shop/services/new?generation=0",
            spec("new", 1),
        )
        .await;
    assert_eq!(taken.problem().kind, ErrorKind::Conflict);
    let scaled = b
        .ok("shop", "POST", &format!("{web}/scale"), json!({ "replicas": 1 }))
        .await;
    assert_eq!(
        (&scaled["generation"], &scaled["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
    let absurd = b
        .send(
            "shop",
            "POST",
            &format!("{web}/scale"),
            json!({ "replicas": 4_000_000_000u32 }),
        )
        .await;
    assert_eq!(absurd.problem().field.as_deref(), Some("/replicas"));
    let (shop, name) = (b.tenant_id("shop"), "web".parse().unwrap());
    let id = b.api.cluster.snapshot().service(shop, &name).unwrap().id;
    let learned = move |_: &State, _: Now| {
        let estimate = Change::PutEstimate(id, Default::default());
        Ok((vec![estimate], Vec::new(), ()))
    };
    b.api.cluster.write(learned).await.unwrap();
    assert_eq!(b.call("shop", "DELETE", web).await.status, 204);
    assert!(
        b.api.cluster.snapshot().estimates.is_empty(),
        "what was learned of it goes too"
    );
    assert_eq!(
        b.call("shop", "DELETE", web).await.problem().kind,
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn quota_and_privilege_are_the_administrators_to_give() {
    let b = Bench::new().await;
    b.ok(
        "admin",
        "PATCH",
        "/v1/tenants/shop",
        json!({ "quota": { "memory": "1GiB", "containers": 3 } }),
    )
    .await;
    b.ok("shop", "POST", SERVICES, spec("web", 3)).await;
    let more = b.send("shop", "POST", SERVICES, spec("more", 1)).await.problem();
    assert_eq!(more.kind, ErrorKind::QuotaExceeded);
    assert!(more.detail.contains("containers: 4 of 3"), "{more}");
    b.ok(
        "admin",
        "PATCH",
        "/v1/tenants/shop",
        json!({ "quota": { "containers": 1 } }),
    )
    .await;
    b.ok(
        "shop",
        "PUT",
        "/v1/tenants/shop/services/web",
        json!({ "name": "web", "image": "nginx:2", "replicas": 3 }),
    )
    .await;
    let denied = b
        .send("shop", "PATCH", "/v1/tenants/shop", json!({ "quota": {} }))
        .await
        .problem();
    assert_eq!(denied.kind, ErrorKind::Forbidden);
    b.ok("admin", "PATCH", "/v1/tenants/shop", json!({ "quota": {} }))
        .await;
    let tool = json!({ "name": "tool", "image": "nginx", "privileged": true, "replicas": 2 });
    let denied = b.send("shop", "POST", SERVICES, tool.clone()).await.problem();
    assert_eq!((denied.kind, denied.cure.is_some()), (ErrorKind::Forbidden, true));
    b.ok(
        "admin",
        "PATCH",
        "/v1/tenants/shop",
        json!({ "privileged": true }),
    )
    .await;
    b.ok("shop", "POST", SERVICES, tool).await;
    b.ok(
        "admin",
        "PATCH",
        "/v1/tenants/shop",
        json!({ "privileged": false }),
    )
    .await;
    b.ok(
        "shop",
        "POST",
        "/v1/tenants/shop/services/tool/scale",
        json!({ "replicas": 1 }),
    )
    .await;
    let denied = b
        .send(
            "shop",
            "POST",
            "/v1/tenants/shop/services/tool/scale",
            json!({ "replicas": 2 }),
        )
        .await;
    assert_eq!(denied.problem().kind, ErrorKind::Forbidden);
    let weight = b
        .send("admin", "PATCH", "/v1/tenants/shop", json!({ "cpu_weight": 0 }))
        .await
        .problem();
    assert_eq!(weight.field.as_deref(), Some("/cpu_weight"));
}

#[tokio::test]
async fn pages_show_everything_once() {
    let b = Bench::new().await;
    b.join(1, NodeKind::Shared).await;
    // `web-1` sorts differently as a text than as a name before a separator.
    for (name, replicas) in [("web", 12), ("web-1", 3), ("a", 1), ("z", 0)] {
        b.ok("shop", "POST", SERVICES, spec(name, replicas)).await;
    }
    for (list, key, count) in [("services", "/spec/name", 4), ("containers", "/name", 16)] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        for _ in 0..20 {
            let path = format!("/v1/tenants/shop/{list}?limit=3{after}");
            let page = b.ok("shop", "GET", &path, Value::Null).await;
            for item in page["items"].as_array().unwrap() {
                seen.push(item.pointer(key).unwrap().as_str().unwrap().to_owned());
            }
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!(seen.len(), count, "{list}: {seen:?}");
        let unique: std::collections::BTreeSet<_> = seen.iter().collect();
        assert_eq!(unique.len(), count, "{list}: {seen:?}");
    }
    let only = b
        .ok(
            "shop",
            "GET",
            "/v1/tenants/shop/containers?service=web-1&node=h1",
            Value::Null,
        )
        .await;
    assert_eq!(only["items"].as_array().unwrap().len(), 3);
    let none = b
        .ok("shop", "GET", "/v1/tenants/shop/containers?node=h9", Value::Null)
        .await;
    assert_eq!(none["items"], json!([]));
}

#[tokio::test]
async fn rates_are_per_token_and_failed_sign_ins_have_their_own() {
    let rates = Rates {
        per_token: 5,
        per_address: 1_000,
        failed_sign_ins: 1,
    };
    let b = Bench::with(std::sync::Arc::new(super::fixtures::NoNodes), rates).await;
    let mut last = None;
    for _ in 0..20 {
        last = Some(b.call("shop", "GET", "/v1/tenants").await);
    }
    let last = last.unwrap();
    assert_eq!(last.problem().kind, ErrorKind::RateLimited);
    assert_eq!(last.headers["retry-after"], "1");
    assert_eq!(
        b.call("rival", "GET", "/v1/tenants").await.status,
        200,
        "another token has its own bucket"
    );
    let mut kinds = Vec::new();
    for _ in 0..30 {
        kinds.push(b.call("berth_wrong", "GET", "/v1/tenants").await.problem().kind);
    }
    assert_eq!(kinds[0], ErrorKind::Unauthenticated);
    assert_eq!(kinds[29], ErrorKind::RateLimited);
    assert_eq!(
        b.call("default", "GET", "/v1/tenants").await.status,
        200,
        "a good token still works from there"
    );
}
