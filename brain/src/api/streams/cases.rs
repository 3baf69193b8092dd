//! Tests of streams through the whole API: resuming, falling behind, borders, tokens that end; nodes are scripted.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::body::{Body, BodyDataStream};
use axum::extract::ConnectInfo;
use axum::http::{HeaderMap, Request, StatusCode};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::NodeId;
use berth_common::model::{NodeKind, UnixMillis};
use berth_common::protocol::{LogLine, LogStream, NodeReply, NodeRequest, write_frame};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::super::fixtures::Bench;
use super::super::limits::Rates;
use crate::link::gateway::{Gateway, NodeStream};

const WAIT: Duration = Duration::from_secs(10);

/// Nodes that log a line every 20 ms for as long as somebody reads.
#[derive(Default)]
struct Talkers(Arc<Mutex<usize>>);

#[async_trait]
impl Gateway for Talkers {
    async fn open(&self, _node: NodeId, request: &NodeRequest) -> Result<NodeStream, Problem> {
        let NodeRequest::Logs { options, .. } = *request else {
            return Err(Problem::unavailable("this node only logs"));
        };
        let (brain, mut node) = tokio::io::duplex(1 << 10);
        let open = Arc::clone(&self.0);
        *open.lock() += 1;
        tokio::spawn(async move {
            for n in 0.. {
                let line = LogLine {
                    at: UnixMillis(n),
                    stream: LogStream::Stdout,
                    text: format!("line {n}"),
                    partial: false,
                };
                if write_frame(&mut node, &NodeReply::Log(line)).await.is_err() {
                    break;
                }
                if n == 4 && !options.follow {
                    let _ = write_frame(&mut node, &NodeReply::End).await;
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            *open.lock() -= 1;
        });
        let (recv, send) = tokio::io::split(brain);
        Ok(NodeStream {
            send: Box::new(send),
            recv: Box::new(recv),
        })
    }
}

/// An open answer.
struct Open {
    status: StatusCode,
    headers: HeaderMap,
    body: BodyDataStream,
    text: String,
    broken: bool,
}

impl Open {
    /// Reads until the text so far satisfies, the body ends, or time is up.
    async fn until(&mut self, wanted: impl Fn(&str) -> bool) -> bool {
        let reading = async {
            while !wanted(&self.text) {
                match self.body.next().await {
                    Some(Ok(bytes)) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                    Some(Err(_)) => {
                        self.broken = true;
                        return;
                    }
                    None => return,
                }
            }
        };
        let _ = tokio::time::timeout(WAIT, reading).await;
        wanted(&self.text)
    }

    /// Reads to the end; false if there is none.
    async fn read_all(&mut self) -> bool {
        let reading = async {
            while let Some(part) = self.body.next().await {
                match part {
                    Ok(bytes) => self.text.push_str(&String::from_utf8_lossy(&bytes)),
                    Err(_) => self.broken = true,
                }
            }
        };
        tokio::time::timeout(WAIT, reading).await.is_ok()
    }

    /// Values after `data:`, in order.
    fn data(&self) -> Vec<Value> {
        let lines = self.text.lines().filter_map(|line| line.strip_prefix("data:"));
        lines.filter_map(|text| serde_json::from_str(text).ok()).collect()
    }

    /// The last whole event's id.
    fn last_id(&self) -> Option<String> {
        let whole = &self.text[..self.text.rfind("\n\n")? + 2];
        whole
            .lines()
            .filter_map(|line| line.strip_prefix("id:"))
            .next_back()
            .map(|id| id.trim().to_owned())
    }

    /// Names of services, as events told them.
    fn services(&self) -> Vec<String> {
        let name = |value: &Value| Some(value["service"]["spec"]["name"].as_str()?.to_owned());
        self.data().iter().filter_map(name).collect()
    }
}

async fn open(b: &Bench, who: &str, path: &str, last_id: Option<&str>) -> Open {
    let token = b.tokens.get(who).map_or(who, String::as_str);
    let mut request = Request::builder()
        .uri(path)
        .header("authorization", format!("Bearer {token}"));
    if let Some(id) = last_id {
        request = request.header("last-event-id", id);
    }
    let mut request = request.body(Body::empty()).unwrap();
    let peer: std::net::SocketAddr = "192.0.2.7:1234".parse().unwrap();
    request.extensions_mut().insert(ConnectInfo(peer));
    let response = b.app.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    Open {
        status: parts.status,
        headers: parts.headers,
        body: body.into_data_stream(),
        text: String::new(),
        broken: false,
    }
}

async fn service(b: &Bench, tenant: &'static str, name: &str) {
    let spec = json!({ "name": name, "image": "nginx" });
    b.ok(tenant, "POST", &format!("/v1/tenants/{tenant}/services"), spec)
        .await;
}

async fn bench() -> (Bench, Arc<Mutex<usize>>) {
    let talkers = Talkers::default();
    let count = Arc::clone(&talkers.0);
    (Bench::with(Arc::new(talkers), Rates::default()).await, count)
}

#[tokio::test]
async fn a_watch_resumes_without_gap_or_double() {
    let (b, _) = bench().await;
    let mut names = Vec::new();
    let mut seen = Vec::new();
    let mut last = b.api.cluster.snapshot().revision.0.to_string();
    for round in 0..4 {
        // Changes before, while and after somebody watches.
        for n in 0..3 {
            let name = format!("s{round}{n}");
            service(&b, "shop", &name).await;
            names.push(name);
        }
        let mut watch = open(&b, "shop", "/v1/watch?kinds=service", Some(&last)).await;
        assert_eq!(watch.status, StatusCode::OK);
        assert_eq!(watch.headers["content-type"], "text/event-stream");
        let name = format!("s{round}w");
        service(&b, "shop", &name).await;
        names.push(name.clone());
        assert!(
            watch
                .until(|text| text.contains(&name) && text.ends_with("\n\n"))
                .await,
            "{}",
            watch.text
        );
        seen.extend(watch.services());
        last = watch.last_id().unwrap();
    }
    // A service is told when it is made and when its containers are planned; never out of order.
    seen.dedup();
    assert_eq!(seen, names);
}

#[tokio::test]
async fn what_is_no_longer_kept_is_gone_and_says_what_to_do() {
    let (b, _) = bench().await;
    // Of a future that this store has not seen, as after a restore from a backup. (The past is tested in `cluster`.)
    let reply = b.call("shop", "GET", "/v1/watch?from=999999999").await;
    let problem = reply.problem();
    assert_eq!(
        (reply.status, problem.kind),
        (StatusCode::GONE, ErrorKind::Compacted)
    );
    assert!(problem.cure.unwrap().contains("list again"));
    let reply = b.call("shop", "GET", "/v1/watch?kinds=pods").await;
    assert_eq!(reply.problem().kind, ErrorKind::Invalid);
}

#[tokio::test]
async fn a_reader_that_fell_behind_is_told_and_not_kept_waiting() {
    let (b, _) = bench().await;
    let mut watch = open(&b, "admin", "/v1/watch?kinds=event", None).await;
    // Nobody reads while more happens than is kept.
    for n in 0..10_050u64 {
        b.api.cluster.events().push(
            crate::controllers::NewEvent {
                kind: "placed",
                tenant: None,
                subject: format!("container {n}"),
                text: String::new(),
            },
            UnixMillis(n),
        );
    }
    assert!(watch.read_all().await, "it goes on");
    assert!(
        watch.text.contains("event: lagged") || watch.text.contains("event:lagged"),
        "{}",
        watch.text
    );
}

#[tokio::test]
async fn r6_streams_show_a_tenant_nothing_of_another() {
    let (b, _) = bench().await;
    b.join(1, NodeKind::Shared).await;
    let from = b.api.cluster.snapshot().revision;
    let path = format!("/v1/watch?from={from}");
    let mut rival = open(&b, "rival", &path, None).await;
    let mut admin = open(&b, "admin", &path, None).await;
    service(&b, "shop", "secret-plans").await;
    service(&b, "rival", "own").await;
    assert!(
        admin
            .until(|text| text.contains("secret-plans") && text.contains("own"))
            .await
    );
    assert!(rival.until(|text| text.contains("\"own\"")).await);
    // Whatever may still come of the other's has come by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _ = tokio::time::timeout(Duration::from_millis(200), rival.until(|_| false)).await;
    assert!(!rival.text.contains("secret-plans"), "{}", rival.text);
    let shop = b.tenant_id("shop").to_string();
    assert!(!rival.text.contains(&shop), "{}", rival.text);
    for path in [
        "/v1/watch?tenant=shop",
        "/v1/tenants/shop/containers/secret-plans.1/logs",
        "/v1/tenants/rival/containers/secret-plans.1/logs",
    ] {
        let reply = b.call("rival", "GET", path).await;
        assert_eq!(reply.problem().kind, ErrorKind::NotFound, "{path}");
    }
    let events = b.call("rival", "GET", "/v1/events").await;
    assert!(!String::from_utf8_lossy(&events.bytes).contains("secret-plans"));
}

#[tokio::test]
async fn logs_come_as_lines_and_end_or_go_on() {
    let (b, count) = bench().await;
    b.join(1, NodeKind::Shared).await;
    service(&b, "shop", "web").await;
    let path = "/v1/tenants/shop/containers/web.1/logs";
    let whole = b.call("shop", "GET", path).await;
    assert_eq!(whole.headers["content-type"], "application/x-ndjson");
    let lines: Vec<LogLine> = String::from_utf8_lossy(&whole.bytes)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 5);
    let mut followed = open(&b, "shop", &format!("{path}?follow=true"), None).await;
    assert!(followed.until(|text| text.contains("line 20")).await);
    drop(followed);
    let closed = async {
        while *count.lock() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(WAIT, closed)
        .await
        .expect("the stream to the node goes with its reader");
}

#[tokio::test]
async fn a_revoked_token_ends_its_streams_and_no_others() {
    let (b, _) = bench().await;
    b.join(1, NodeKind::Shared).await;
    service(&b, "shop", "web").await;
    let made = b
        .ok(
            "admin",
            "POST",
            "/v1/tenants/shop/tokens",
            json!({ "note": "to be revoked" }),
        )
        .await;
    let token = made["token"].as_str().unwrap().to_owned();
    let logs = "/v1/tenants/shop/containers/web.1/logs?follow=true";
    let mut streams = HashMap::new();
    for (name, who) in [("revoked", token.as_str()), ("other", "shop")] {
        let mut log = open(&b, who, logs, None).await;
        let watch = open(&b, who, "/v1/watch", None).await;
        assert!(log.until(|text| text.contains("line 3")).await);
        streams.insert(name, (log, watch));
    }
    let id = token.split('_').nth(1).unwrap();
    let gone = b
        .call("admin", "DELETE", &format!("/v1/tenants/shop/tokens/{id}"))
        .await;
    assert!(gone.status.is_success(), "{gone:?}");
    let (log, watch) = streams.get_mut("revoked").unwrap();
    assert!(log.read_all().await && log.broken, "the log goes on");
    assert!(
        watch.read_all().await && watch.text.contains("revoked"),
        "{}",
        watch.text
    );
    let (log, _) = streams.get_mut("other").unwrap();
    let before = log.text.len();
    assert!(log.until(|text| text.len() > before + 100).await && !log.broken);
    assert_eq!(
        b.call(&token, "GET", "/v1/watch").await.problem().kind,
        ErrorKind::Unauthenticated
    );
}

#[tokio::test]
async fn a_tenant_can_hold_only_so_many_streams() {
    let (b, _) = bench().await;
    let mut held = Vec::new();
    for _ in 0..super::permit::PER_TENANT {
        held.push(open(&b, "shop", "/v1/watch", None).await);
    }
    assert!(held.iter().all(|open| open.status == StatusCode::OK));
    let refused = b.call("shop", "GET", "/v1/watch").await.problem();
    assert_eq!(refused.kind, ErrorKind::RateLimited);
    assert!(refused.cure.unwrap().contains("close one"));
    assert_eq!(open(&b, "rival", "/v1/watch", None).await.status, StatusCode::OK);
    held.pop();
    assert_eq!(open(&b, "shop", "/v1/watch", None).await.status, StatusCode::OK);
}
