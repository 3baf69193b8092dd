//! What the brain that tests make up says of volumes.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Path;
use axum::response::IntoResponse as _;
use axum::routing::{get, post};
use berth_common::error::ErrorKind;
use serde_json::{Value, json};

use super::fake::{ID, now, page, problem};

/// A volume that is on its way for its first three looks, then there.
fn volume(name: &str, looks: u32) -> Value {
    let arrived = looks >= 3;
    let moving = (!arrived).then(|| {
        json!({"to": "h2", "why": "asked by command", "stage": "copying", "since": 0,
        "round": 0, "sent": u64::from(looks) << 30, "expected": 4_u64 << 30})
    });
    json!({"id": ID, "name": name, "tenant_name": "default", "size": 10_u64 << 30, "used": 3_u64 << 29,
        "node_name": if arrived { "h2" } else { "h1" }, "state": if arrived { "ready" } else { "moving" },
        "moving": moving, "services": ["db"], "snapshot_count": 1, "snapshots": [{"id": ID, "name": "before",
        "state": "ready", "created_at": 0}], "epoch": 2, "created_at": now() - 300_000, "revision": 1})
}

/// Volumes: each look at one is counted, and one that was removed is gone after the next.
pub fn volumes() -> Router {
    let looks = Arc::new(Mutex::new(0_u32));
    let look = move |Path((_, name)): Path<(String, String)>| {
        let mut looks = looks.lock().unwrap();
        *looks += 1;
        std::future::ready(match name.as_str() {
            "gone" if *looks > 1 => problem(ErrorKind::NotFound, "no volume \"gone\"", "list them"),
            "gone" => {
                let mut going = volume("gone", 9);
                going["state"] = json!("removing");
                axum::Json(going).into_response()
            }
            name => axum::Json(volume(name, *looks)).into_response(),
        })
    };
    let shown = || async { axum::Json(volume("data", 9)) };
    Router::new()
        .route(
            "/volumes",
            get(|| async { page(vec![volume("data", 9)]) }).post(shown),
        )
        .route(
            "/volumes/{name}",
            get(look)
                .patch(shown)
                .delete(|Path((_, name)): Path<(String, String)>| async move {
                    axum::Json(json!({"name": name, "gone": name == "loose", "left_on": (name == "loose").then_some("h9")}))
                }),
        )
        .route("/volumes/{name}/snapshots", post(shown))
        .route("/volumes/{name}/snapshots/{s}", axum::routing::delete(shown))
        .route("/volumes/{name}/schedule", axum::routing::put(shown).delete(shown))
        .route("/volumes/{name}/hooks", axum::routing::put(shown).delete(shown))
        .route("/volumes/{name}/rollback", post(shown))
        .route(
            "/volumes/{name}/move",
            post(|| async { axum::Json(volume("data", 0)) }).delete(shown),
        )
}
