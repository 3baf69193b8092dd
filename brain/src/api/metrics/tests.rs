//! What a scrape says, by a parser and by the rules of OpenMetrics, and who may have it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use axum::body::Body;
use berth_common::error::ErrorKind;
use berth_common::id::{Generation, Name};
use berth_common::model::NodeKind;
use berth_common::protocol::{NodeUsage, UsageReport};
use serde_json::json;

use super::*;
use crate::api::fixtures::{Bench, Reply};
use crate::cluster::{Change, Connection};
use crate::controllers::NewEvent;
use crate::controllers::fixtures::{node, node_id};

async fn scraped(b: &Bench, who: &str, accept: &str) -> Reply {
    let token = b.tokens.get(who).map_or(who, String::as_str);
    let request = axum::http::Request::builder()
        .uri("/metrics")
        .header("accept", accept)
        .header("authorization", format!("Bearer {token}"));
    b.raw(request.body(Body::empty()).unwrap()).await
}

/// Samples of the older form by name and labels, as a parser reads them.
struct Samples(Vec<prometheus_parse::Sample>);

impl Samples {
    async fn of(b: &Bench) -> Self {
        let reply = scraped(b, "admin", "text/plain").await;
        assert_eq!(reply.status, 200);
        let text = String::from_utf8(reply.bytes.to_vec()).unwrap();
        let lines = text.lines().map(|line| io::Result::Ok(line.to_owned()));
        Self(prometheus_parse::Scrape::parse(lines).unwrap().samples)
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |sample: &&prometheus_parse::Sample| {
            sample.metric == name
                && labels
                    .iter()
                    .all(|(key, value)| sample.labels.get(key) == Some(*value))
        };
        match self.0.iter().find(fits)?.value {
            prometheus_parse::Value::Counter(value)
            | prometheus_parse::Value::Gauge(value)
            | prometheus_parse::Value::Untyped(value) => Some(value),
            _ => None,
        }
    }

    fn count(&self, name: &str) -> usize {
        self.0.iter().filter(|sample| sample.metric == name).count()
    }

    /// How many were observed by a histogram.
    fn observed(&self, name: &str) -> f64 {
        let all = self.0.iter().find_map(|sample| match &sample.value {
            prometheus_parse::Value::Histogram(buckets) if sample.metric == name => {
                buckets.iter().map(|bucket| bucket.count).reduce(f64::max)
            }
            _ => None,
        });
        all.unwrap_or_default()
    }
}

/// The rules of OpenMetrics 1.0 that can be told from the text.
fn lint(text: &str) -> usize {
    assert!(text.ends_with("# EOF\n"), "it ends with EOF");
    let (mut families, mut samples): (BTreeMap<String, &str>, BTreeSet<&str>) = Default::default();
    let mut current = String::new();
    for line in text.lines() {
        if line == "# EOF" {
            continue;
        }
        if let Some(meta) = line.strip_prefix("# ") {
            let mut words = meta.splitn(3, ' ');
            let (what, name, rest) = (
                words.next().unwrap(),
                words.next().unwrap(),
                words.next().unwrap(),
            );
            match what {
                "HELP" => {
                    current = name.to_owned();
                    assert!(name.starts_with("berth_"), "{line}");
                    assert!(
                        families.insert(current.clone(), "").is_none(),
                        "{name} comes twice"
                    );
                    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
                    assert!(name.chars().all(fits), "{name}");
                }
                "TYPE" => {
                    assert_eq!(name, current);
                    families.insert(current.clone(), rest);
                }
                "UNIT" => assert!(name == current && name.ends_with(&format!("_{rest}")), "{line}"),
                other => panic!("{other}: {line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().unwrap().is_finite(), "{line}");
        assert!(samples.insert(series), "{series} comes twice");
        let name = series.split('{').next().unwrap();
        let suffix = name
            .strip_prefix(current.as_str())
            .unwrap_or_else(|| panic!("{name} in {current}"));
        let fits = match families[&current] {
            "gauge" => suffix.is_empty(),
            "counter" => suffix == "_total",
            "info" => suffix == "_info",
            "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
            other => panic!("{current} is a {other}"),
        };
        assert!(fits, "{name} is a {}", families[&current]);
    }
    samples.len()
}

/// The text of OpenMetrics.
async fn open(b: &Bench) -> String {
    let reply = scraped(
        b,
        "admin",
        "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
    )
    .await;
    assert_eq!(reply.headers["content-type"], Form::OpenMetrics.media_type());
    String::from_utf8(reply.bytes.to_vec()).unwrap()
}

#[tokio::test]
async fn only_administrators_and_tokens_for_it_read_metrics() {
    let b = Bench::new().await;
    let tokens = "/v1/tenants/default/tokens";
    let made = b.ok("admin", "POST", tokens, json!({ "metrics": true })).await;
    assert_eq!(made["view"]["role"], "metrics");
    let token = made["token"].as_str().unwrap();
    assert_eq!(scraped(&b, token, "").await.status, 200);
    assert_eq!(scraped(&b, "admin", "").await.status, 200);
    assert_eq!(
        scraped(&b, "shop", "").await.problem().kind,
        ErrorKind::Forbidden,
        "R6: metrics tell of all tenants"
    );
    let nobody = b.call("", "GET", "/metrics").await.problem();
    assert_eq!(nobody.kind, ErrorKind::Unauthenticated);
    // And nothing else with it.
    for path in ["/v1/nodes", "/v1/usage", "/v1/tenants", "/v1/watch", tokens] {
        let refused = b.call(token, "GET", path).await.problem();
        assert_eq!(refused.kind, ErrorKind::Forbidden, "{path}");
    }
    let more = b.send(token, "POST", tokens, json!({ "admin": true })).await;
    assert_eq!(more.problem().kind, ErrorKind::Forbidden);
    for (who, tenant, body, kind) in [
        (
            "default",
            "default",
            json!({ "metrics": true }),
            ErrorKind::Forbidden,
        ),
        ("admin", "shop", json!({ "metrics": true }), ErrorKind::Invalid),
        (
            "admin",
            "default",
            json!({ "metrics": true, "admin": true }),
            ErrorKind::Invalid,
        ),
    ] {
        let path = format!("/v1/tenants/{tenant}/tokens");
        assert_eq!(
            b.send(who, "POST", &path, body).await.problem().kind,
            kind,
            "{who}"
        );
    }
}

#[tokio::test]
async fn counters_rise_with_what_is_decided() {
    let b = Bench::new().await;
    let services = "/v1/tenants/shop/services";
    let before = Samples::of(&b).await;
    assert_eq!(before.value("berth_scheduler_placements_total", &[]), Some(0.0));
    b.ok(
        "shop",
        "POST",
        services,
        json!({ "name": "early", "image": "web:1" }),
    )
    .await;
    b.join(1, NodeKind::Shared).await;
    b.ok(
        "shop",
        "POST",
        services,
        json!({ "name": "large", "image": "web:1", "resources": { "limits": { "memory": "1TiB" } } }),
    )
    .await;
    assert_eq!(b.call("shop", "GET", "/v1/tenants/rival").await.status, 404);
    assert_eq!(b.call("shop", "GET", "/nothing/of/this/name").await.status, 404);
    let hot = NewEvent {
        kind: "node-hot",
        tenant: None,
        subject: "node h1".to_owned(),
        text: "it is hot".to_owned(),
    };
    let told = b.api.cluster.write(|_, _| Ok((Vec::new(), vec![hot], ()))).await;
    told.unwrap();
    let after = Samples::of(&b).await;
    assert_eq!(after.value("berth_scheduler_placements_total", &[]), Some(1.0));
    let obstacle = |of| after.value("berth_scheduler_refusal_obstacles_total", &[("obstacle", of)]);
    assert!(obstacle("no_node") >= Some(1.0) && obstacle("memory") >= Some(1.0));
    assert!(after.value("berth_scheduler_refusals_total", &[]) >= Some(2.0));
    assert_eq!(
        after.value("berth_events_total", &[("kind", "node-hot")]),
        Some(1.0)
    );
    let requests = |route, method, status| {
        let labels = [("route", route), ("method", method), ("status", status)];
        after.value("berth_api_requests_total", &labels)
    };
    assert_eq!(requests("services", "POST", "201"), Some(2.0));
    assert_eq!(requests("tenants", "GET", "404"), Some(1.0));
    assert_eq!(
        requests("other", "GET", "404"),
        Some(1.0),
        "what a path says is no label"
    );
    assert_eq!(requests("metrics", "GET", "200"), Some(1.0));
    for durations in ["berth_plan_duration_seconds", "berth_commit_duration_seconds"] {
        assert!(
            after.observed(durations) > before.observed(durations),
            "{durations}"
        );
    }
    assert_eq!(after.value("berth_link_sessions", &[]), Some(1.0));
    assert_eq!(after.value("berth_containers_waiting", &[]), Some(1.0));
    let service = |name: &str, of: &str| after.value(name, &[("tenant", "shop"), ("service", of)]);
    assert_eq!(service("berth_service_replicas_wanted", "early"), Some(1.0));
    assert_eq!(service("berth_service_replicas_running", "early"), Some(0.0));
    assert_eq!(service("berth_service_replicas_waiting", "large"), Some(1.0));
    lint(&open(&b).await);
}

#[tokio::test]
async fn a_thousand_nodes_are_told_by_the_rules_and_containers_add_nothing() {
    let b = Bench::new().await;
    let mut changes = Vec::new();
    for n in 1..=1_000 {
        let record = node(n, NodeKind::Shared, 8, 16);
        let connection = Connection {
            serial: n,
            address: String::new(),
            synced: true,
            applied: Generation(0),
        };
        b.api.cluster.heard(record.id);
        changes.push(Change::PutNode(record.clone()));
        changes.push(Change::Connected(record.id, connection));
    }
    let joined = b
        .api
        .cluster
        .write(move |_, _| Ok((changes, Vec::new(), ())))
        .await;
    joined.unwrap();
    let usage = NodeUsage {
        cpu: Some(2_500),
        cpu_foreign: Some(500),
        memory: Some(1 << 30),
        ..NodeUsage::default()
    };
    let report = UsageReport {
        sequence: 1,
        node: usage,
        ..UsageReport::default()
    };
    let now = b.api.cluster.now().mono_ms;
    assert!(b.api.cluster.usage().record(node_id(7), 1, report, now, |_| true));
    b.api.cluster.sample(node_id(7));
    let web = json!({ "name": "web", "image": "web:1", "replicas": 1 });
    b.ok("shop", "POST", "/v1/tenants/shop/services", web).await;
    let one = Samples::of(&b).await;
    assert_eq!(one.count("berth_node_cpu_reserved_cores"), 1_000);
    assert_eq!(one.count("berth_node_state"), 3_000);
    let of = |name: &str| one.value(name, &[("node", "h7")]);
    assert_eq!(of("berth_node_cpu_used_cores"), Some(2.5));
    assert_eq!(of("berth_node_cpu_used_foreign_cores"), Some(0.5));
    assert_eq!(of("berth_node_cpu_allocatable_cores"), Some(8.0));
    assert_eq!(
        of("berth_node_memory_capacity_bytes"),
        Some(f64::from(16u32) * f64::from(1u32 << 30))
    );
    assert_eq!(
        of("berth_node_disk_used_bytes"),
        None,
        "what is not known is absent"
    );
    assert_eq!(
        one.count("berth_node_cpu_used_cores"),
        1,
        "a silent node is not an idle one"
    );
    assert_eq!(one.count("berth_node_cpu_expected_cores"), 1);
    let ready = [("node", "h7"), ("state", "ready")];
    assert_eq!(one.value("berth_node_state", &ready), Some(1.0));
    let before = lint(&open(&b).await);
    // The first answer of a kind and the first event of one make a series, single containers never.
    b.ok(
        "shop",
        "POST",
        "/v1/tenants/shop/services/web/scale",
        json!({ "replicas": 900 }),
    )
    .await;
    let after = lint(&open(&b).await);
    assert_eq!(b.api.cluster.snapshot().containers.len(), 900);
    assert!(after <= before + 4, "{before} series became {after}");
}

#[tokio::test]
async fn names_that_people_choose_are_no_more_than_labels() {
    let b = Bench::new().await;
    // Names are DNS labels, which is why nothing in them needs escaping.
    assert!("a\"b".parse::<Name>().is_err() && "a\nb".parse::<Name>().is_err());
    // A method that nobody knows makes no series of its own.
    for method in ["BREW", "XYZZY"] {
        b.call("admin", method, "/v1/nodes").await;
    }
    let text = open(&b).await;
    lint(&text);
    assert!(
        text.contains("method=\"other\"") && !text.contains("BREW"),
        "{text}"
    );
}
