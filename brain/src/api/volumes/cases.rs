//! Tests of volumes through the whole API: made, shown, resized and removed.

use berth_common::error::ErrorKind;
use berth_common::model::NodeKind;
use berth_common::units::Bytes;
use serde_json::{Value, json};

use super::fixtures::{
    PATH, apply, change, data_on, host, lose, make, record, refused, report, serve, show, whole,
};
use crate::api::fixtures::Bench;
use crate::cluster::Change;

#[tokio::test]
async fn volumes_are_made_bound_and_shown() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    let loose = make(&b, json!({ "name": "loose" })).await;
    assert_eq!(
        (&loose["state"], &loose["size"], &loose["epoch"]),
        (&json!("unbound"), &json!(1_u64 << 30), &json!(0))
    );
    assert!(loose.get("node_name").is_none(), "{loose}");
    let bound = json!({ "name": "data", "size": "2GiB", "node": "h1" });
    let made = b.send("shop", "POST", PATH, bound.clone()).await;
    assert_eq!(made.status, 201);
    let made = made.json();
    assert_eq!(
        (&made["state"], &made["node_name"], &made["epoch"]),
        (&json!("creating"), &json!("h1"), &json!(1))
    );
    report(&b, node, vec![whole(&b, "data", 100)], vec![]).await;
    let ready = show(&b, "data").await;
    assert_eq!(
        (&ready["state"], &ready["used"]),
        (&json!("ready"), &json!(100_u64 << 20))
    );
    // Asked for twice it is there once; anything else of its name is refused.
    let again = b.send("shop", "POST", PATH, bound).await;
    assert_eq!((again.status.as_u16(), &again.json()["id"]), (200, &ready["id"]));
    for other in [
        json!({ "name": "data" }),
        json!({ "name": "data", "size": "3GiB", "node": "h1" }),
        json!({ "name": "loose", "node": "h1" }),
    ] {
        let text = refused(&b, "POST", PATH, other, ErrorKind::AlreadyExists).await;
        assert!(
            text.contains("another volume") && text.contains("/name"),
            "{text}"
        );
    }
    let listed = b.ok("shop", "GET", PATH, Value::Null).await;
    let names: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| &v["name"])
        .collect();
    assert_eq!(names, ["data", "loose"]);
}

#[tokio::test]
async fn what_a_node_can_not_take_is_refused_before_anything_changes() {
    let b = Bench::new().await;
    let full = host(&b, 1, NodeKind::Shared, 10).await;
    let bare = host(&b, 2, NodeKind::Shared, 10).await;
    change(&b, bare, |record| record.facts.volumes = None).await;
    let gone = host(&b, 3, NodeKind::Shared, 10).await;
    lose(&b, gone).await;
    let rival = b.tenant_id("rival");
    host(&b, 4, NodeKind::Private { tenant: rival }, 10).await;
    let before = b.api.cluster.snapshot().volumes.len();
    for (body, kind, said) in [
        (
            json!({ "name": "a", "size": "1KiB" }),
            ErrorKind::Invalid,
            "1MiB to 64TiB",
        ),
        (
            json!({ "name": "a", "size": "65TiB" }),
            ErrorKind::Invalid,
            "1MiB to 64TiB",
        ),
        (
            json!({ "name": "a", "size": 5, "x": 1 }),
            ErrorKind::Invalid,
            "/x",
        ),
        (
            json!({ "name": "a", "size": "11GiB", "node": "h1" }),
            ErrorKind::Precondition,
            "node h1 has 10GiB free for volumes, and 11GiB are needed",
        ),
        (
            json!({ "name": "a", "node": "h2" }),
            ErrorKind::Precondition,
            "no place for volumes",
        ),
        (
            json!({ "name": "a", "node": "h3" }),
            ErrorKind::Precondition,
            "node h3 is lost",
        ),
        (
            json!({ "name": "a", "node": "h4" }),
            ErrorKind::Invalid,
            "there is no node h4",
        ),
        (
            json!({ "name": "a", "node": "h9" }),
            ErrorKind::Invalid,
            "there is no node h9",
        ),
    ] {
        let text = refused(&b, "POST", PATH, body, kind).await;
        assert!(text.contains(said), "{text}");
    }
    assert_eq!(b.api.cluster.snapshot().volumes.len(), before);
    change(&b, full, |record| record.draining = true).await;
    let body = json!({ "name": "a", "node": "h1" });
    let text = refused(&b, "POST", PATH, body, ErrorKind::Precondition).await;
    assert!(text.contains("being drained"), "{text}");
}

#[tokio::test]
async fn sizes_change_as_far_as_there_is_room_and_no_data_is_cut() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    make(&b, json!({ "name": "data", "size": "2GiB", "node": "h1" })).await;
    let path = format!("{PATH}/data");
    let early = refused(
        &b,
        "PATCH",
        &path,
        json!({ "size": "1GiB" }),
        ErrorKind::Precondition,
    )
    .await;
    assert!(early.contains("has not said yet how much"), "{early}");
    report(&b, node, vec![whole(&b, "data", 1_500)], vec![]).await;
    let small = refused(&b, "PATCH", &path, json!({ "size": "1GiB" }), ErrorKind::Invalid).await;
    assert!(
        small.contains("1GiB is too small: volume data holds 1.5GiB"),
        "{small}"
    );
    let large = refused(
        &b,
        "PATCH",
        &path,
        json!({ "size": "11GiB" }),
        ErrorKind::Precondition,
    )
    .await;
    assert!(large.contains("8GiB free for volumes, and 9GiB more"), "{large}");
    let none = refused(&b, "PATCH", &path, json!({ "size": "1B" }), ErrorKind::Invalid).await;
    assert!(none.contains("no size of a volume"), "{none}");
    for size in ["10GiB", "1.5GiB"] {
        let now = b.ok("shop", "PATCH", &path, json!({ "size": size })).await;
        assert_eq!(now["size"], json!(size.parse::<Bytes>().unwrap()));
    }
    // Nowhere yet, it may have any size.
    make(&b, json!({ "name": "loose" })).await;
    let loose = format!("{PATH}/loose");
    for size in ["1TiB", "1MiB"] {
        b.ok("shop", "PATCH", &loose, json!({ "size": size })).await;
    }
}

#[tokio::test]
async fn sizes_of_volumes_count_against_the_quota_for_disk() {
    let b = Bench::new().await;
    host(&b, 1, NodeKind::Shared, 100).await;
    let quota = json!({ "quota": { "disk": "10GiB" } });
    b.ok("admin", "PATCH", "/v1/tenants/shop", quota).await;
    make(&b, json!({ "name": "data", "size": "6GiB" })).await;
    let more = json!({ "name": "more", "size": "5GiB" });
    let text = refused(&b, "POST", PATH, more, ErrorKind::QuotaExceeded).await;
    assert!(text.contains("11GiB of 10GiB"), "{text}");
    let larger = json!({ "size": "11GiB" });
    refused(
        &b,
        "PATCH",
        &format!("{PATH}/data"),
        larger,
        ErrorKind::QuotaExceeded,
    )
    .await;
    // So do those that a service will have made: three of 1GiB, and its own writable layers.
    let spec = |replicas: u32, mount: &str| {
        json!({ "name": "web", "image": "nginx", "replicas": replicas, "resources": { "limits": { "disk": "512MiB" } },
            "volumes": [{ "volume": mount, "path": "/data", "per_replica": mount == "logs" }] })
    };
    let services = "/v1/tenants/shop/services";
    let text = refused(&b, "POST", services, spec(3, "logs"), ErrorKind::QuotaExceeded).await;
    assert!(text.contains("10.5GiB of 10GiB"), "{text}");
    b.ok("shop", "POST", services, spec(2, "logs")).await;
    // What the service has had made is not counted twice.
    make(&b, json!({ "name": "rest", "size": "1GiB" })).await;
    refused(
        &b,
        "POST",
        PATH,
        json!({ "name": "no", "size": "1MiB" }),
        ErrorKind::QuotaExceeded,
    )
    .await;
}

#[tokio::test]
async fn a_volume_in_use_stays_and_one_that_is_not_goes_with_its_node_s_word() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    make(&b, json!({ "name": "loose" })).await;
    let gone = b
        .ok("shop", "DELETE", &format!("{PATH}/loose"), Value::Null)
        .await;
    assert_eq!(gone, json!({ "name": "loose", "gone": true }));
    data_on(&b, node, "h1").await;
    serve(&b, "web", json!([{ "volume": "data", "path": "/srv" }])).await;
    let shown = show(&b, "data").await;
    assert_eq!(
        (&shown["services"], &shown["containers"]),
        (&json!(["web"]), &json!(["web.1"]))
    );
    let path = format!("{PATH}/data");
    let used = refused(&b, "DELETE", &path, Value::Null, ErrorKind::Precondition).await;
    assert!(
        used.contains("mounted by service web") && used.contains("--volume-rm data"),
        "{used}"
    );
    let kept = b
        .call("admin", "DELETE", "/v1/nodes/h1?force=true")
        .await
        .problem();
    assert!(kept.detail.contains("data of tenant shop"), "{kept}");
    assert!(
        kept.cure
            .unwrap()
            .contains("berth volume rm data --force --tenant shop")
    );
    b.ok("shop", "DELETE", "/v1/tenants/shop/services/web", Value::Null)
        .await;
    let held = refused(&b, "DELETE", &path, Value::Null, ErrorKind::Precondition).await;
    assert!(held.contains("container web.1 still has volume data"), "{held}");
    let container = *b.api.cluster.snapshot().containers.keys().next().unwrap();
    apply(&b, vec![Change::DeleteContainer(container)]).await;
    let going = b.ok("shop", "DELETE", &path, Value::Null).await;
    assert_eq!(going, json!({ "name": "data", "gone": false }));
    assert_eq!(show(&b, "data").await["state"], "removing");
    for (method, path, body) in [
        ("PATCH", path.clone(), json!({ "size": "2GiB" })),
        ("POST", format!("{path}/snapshots"), json!({})),
        ("POST", format!("{path}/rollback"), json!({ "snapshot": "a" })),
        ("POST", format!("{path}/move"), json!({})),
        ("POST", PATH.to_owned(), json!({ "name": "data", "node": "h1" })),
    ] {
        let text = refused(&b, method, &path, body, ErrorKind::Precondition).await;
        assert!(text.contains("is being removed"), "{text}");
    }
    b.ok("shop", "DELETE", &path, Value::Null).await;
    let id = record(&b, "data").id;
    report(&b, node, vec![], vec![id]).await;
    assert_eq!(
        b.call("shop", "GET", &path).await.problem().kind,
        ErrorKind::NotFound
    );
    assert_eq!(b.call("admin", "DELETE", "/v1/nodes/h1").await.status, 204);
}

#[tokio::test]
async fn a_volume_on_a_lost_node_says_so_and_can_be_given_up() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    data_on(&b, node, "h1").await;
    let path = format!("{PATH}/data?force=true");
    let alive = refused(&b, "DELETE", &path, Value::Null, ErrorKind::Precondition).await;
    assert!(alive.contains("node h1, which is not lost"), "{alive}");
    lose(&b, node).await;
    let shown = show(&b, "data").await;
    assert_eq!(shown["state"], "unreachable");
    let reason = shown["reason"].as_str().unwrap();
    assert!(
        reason.contains("on node h1, which is lost") && reason.contains("berth volume rm data --force"),
        "{reason}"
    );
    let kept = b
        .call("admin", "DELETE", "/v1/nodes/h1?force=true")
        .await
        .problem();
    assert_eq!(kept.kind, ErrorKind::Precondition);
    // Asked without force, it waits for its node and says for what.
    b.ok("shop", "DELETE", &format!("{PATH}/data"), Value::Null).await;
    let waits = show(&b, "data").await;
    assert_eq!(waits["state"], "removing");
    assert!(
        waits["reason"].as_str().unwrap().contains("node h1 is lost"),
        "{waits}"
    );
    let gone = b.ok("shop", "DELETE", &path, Value::Null).await;
    assert_eq!(gone, json!({ "name": "data", "gone": true, "left_on": "h1" }));
    assert!(b.api.cluster.snapshot().volumes.is_empty());
    assert_eq!(
        b.call("admin", "DELETE", "/v1/nodes/h1?force=true").await.status,
        204
    );
}

#[tokio::test]
async fn r6_volumes_of_another_tenant_are_not_there() {
    let b = Bench::new().await;
    let node = host(&b, 1, NodeKind::Shared, 10).await;
    data_on(&b, node, "h1").await;
    b.ok(
        "shop",
        "POST",
        &format!("{PATH}/data/snapshots"),
        json!({ "name": "s" }),
    )
    .await;
    let id = record(&b, "data").id;
    let before = b.api.cluster.snapshot().revision;
    let own = "/v1/tenants/rival/volumes";
    for name in ["data", &id.to_string()] {
        for (method, rest, body) in [
            ("GET", "", Value::Null),
            ("PATCH", "", json!({ "size": "2GiB" })),
            ("DELETE", "", Value::Null),
            ("DELETE", "?force=true", Value::Null),
            ("POST", "/snapshots", json!({})),
            ("DELETE", "/snapshots/s", Value::Null),
            ("POST", "/rollback", json!({ "snapshot": "s" })),
            ("POST", "/move", json!({})),
            ("DELETE", "/move", Value::Null),
        ] {
            for base in [own, PATH] {
                let path = format!("{base}/{name}{rest}");
                let problem = b.send("rival", method, &path, body.clone()).await.problem();
                assert_eq!(problem.kind, ErrorKind::NotFound, "{method} {path}: {problem}");
            }
        }
    }
    let clone = json!({ "name": "mine", "source": { "volume": "data", "snapshot": "s" } });
    let problem = b.send("rival", "POST", own, clone).await.problem();
    assert!(
        problem.detail.contains("tenant rival has no volume \"data\""),
        "{problem}"
    );
    let listed = b.ok("rival", "GET", own, Value::Null).await;
    assert_eq!(listed["items"], json!([]));
    assert_eq!(b.api.cluster.snapshot().revision, before);
    b.ok("rival", "POST", own, json!({ "name": "data" })).await;
    let full = b.call("admin", "DELETE", "/v1/tenants/rival").await.problem();
    assert!(full.detail.contains("has volumes: data"), "{full}");
}
