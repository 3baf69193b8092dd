//! Exec in a container, over a WebSocket: the first text message is an `ExecSpec`, then `ExecUp` comes and `ExecDown` goes.
//!
//! After the last word the brain sends Close and reads on until the client closes too: closing a socket with unread bytes
//! would have the kernel reset it, and the reset can overtake the exit code.

use std::time::Duration;

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State as Extract};
use axum::response::Response;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{ContainerId, NodeId, clip};
use berth_common::protocol::{ExecDown, ExecSpec, ExecUp, NodeRequest, write_frame};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::auth::Scope;
use super::super::{ApiError, ApiState, containers};
use super::{Permit, Replies, unplaced};

/// Largest message either way, bytes: 32 KiB in base64 with room for its frame.
const MAX_MESSAGE: usize = 64 << 10;
/// How long a client may take for its first message.
const FIRST: Duration = Duration::from_secs(10);
/// How long a client may take to close after the last word.
const LINGER: Duration = Duration::from_secs(2);

/// Routes of this module.
pub(super) fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(exec))
}

/// Run a program in a container
#[utoipa::path(get, path = "/tenants/{tenant}/containers/{container}/exec", tag = "containers", operation_id = "exec",
    description = "A WebSocket. The first text message is an ExecSpec, then ExecUp up and ExecDown down, each at most 64 KiB.",
    params(("tenant" = String, Path, description = "The tenant's name"), ("container" = String, Path, description = "Id, beginning of one, or service.replica")),
    responses((status = 101, description = "The protocol switches to WebSocket")))]
async fn exec(
    scope: Scope,
    mut permit: Permit,
    Extract(api): Extract<ApiState>,
    Path((_tenant, container)): Path<(String, String)>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, ApiError> {
    let state = api.cluster.snapshot();
    let record = containers::find(&state, scope.tenant.id, &container)?;
    let node = record.node.ok_or_else(|| unplaced(&record))?;
    let id = record.id;
    Ok(upgrade
        .max_message_size(MAX_MESSAGE)
        .max_frame_size(MAX_MESSAGE)
        .on_upgrade(async move |socket| serve(&api, node, id, socket, &mut permit).await))
}

async fn serve(api: &ApiState, node: NodeId, container: ContainerId, socket: WebSocket, permit: &mut Permit) {
    let (mut down, mut up) = socket.split();
    let ended = tokio::select! {
        ended = run(api, node, container, &mut down, &mut up) => ended,
        problem = permit.over() => Err(problem),
    };
    if let Err(problem) = ended {
        let _ = say(&mut down, &ExecDown::Problem { problem }).await;
    }
    let _ = down.send(Message::Close(None)).await;
    let _ = tokio::time::timeout(LINGER, async { while let Some(Ok(_)) = up.next().await {} }).await;
}

async fn run(
    api: &ApiState,
    node: NodeId,
    container: ContainerId,
    down: &mut SplitSink<WebSocket, Message>,
    up: &mut SplitStream<WebSocket>,
) -> Result<(), Problem> {
    let first = tokio::time::timeout(FIRST, text(up)).await;
    let first = first.map_err(|_| Problem::new(ErrorKind::Timeout, "no ExecSpec came within 10 s"))?;
    let Some(first) = first? else { return Ok(()) };
    let spec: ExecSpec = serde_json::from_str(&first).map_err(|error| {
        Problem::invalid(clip(&format!("the first message is no ExecSpec: {error}"), 300))
    })?;
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(Problem::invalid("there is no program to run").field("/args"));
    }
    let mut opened = api
        .gateway
        .open(node, &NodeRequest::Exec { container, spec })
        .await?;
    let mut replies = Replies::new(opened.recv, node);
    // Each direction waits only for itself: a process that does not read its input still gets its output out.
    tokio::select! {
        end = carry_up(up, &mut opened.send) => end,
        end = carry_down(&mut replies, down) => end,
    }
}

/// Until the client closes.
async fn carry_up(
    up: &mut SplitStream<WebSocket>,
    send: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Problem> {
    while let Some(text) = text(up).await? {
        let message: ExecUp = serde_json::from_str(&text)
            .map_err(|error| Problem::invalid(clip(&format!("a message is no ExecUp: {error}"), 300)))?;
        let sent = async {
            write_frame(send, &message).await?;
            send.flush().await?;
            Ok::<_, berth_common::protocol::CodecError>(())
        };
        if sent.await.is_err() {
            // The process may be over; how it ended comes the other way.
            return std::future::pending().await;
        }
    }
    Ok(())
}

/// Until the process's last word.
async fn carry_down(replies: &mut Replies, down: &mut SplitSink<WebSocket, Message>) -> Result<(), Problem> {
    loop {
        let Some(message) = replies.next::<ExecDown>().await? else {
            return Err(Problem::unavailable(format!(
                "node {} ended the stream before the process's exit was known",
                replies.node
            )));
        };
        let last = matches!(message, ExecDown::Exit { .. } | ExecDown::Problem { .. });
        if matches!(message, ExecDown::Unknown) {
            continue;
        }
        if !say(down, &message).await || last {
            return Ok(());
        }
    }
}

/// Sends a message; false when the client is gone.
async fn say(down: &mut SplitSink<WebSocket, Message>, message: &ExecDown) -> bool {
    let Ok(text) = serde_json::to_string(message) else {
        return false;
    };
    down.send(Message::Text(text.into())).await.is_ok()
}

/// The next text message, none once the client closed or is gone.
async fn text(up: &mut SplitStream<WebSocket>) -> Result<Option<String>, Problem> {
    loop {
        match up.next().await {
            Some(Ok(Message::Text(text))) => return Ok(Some(text.to_string())),
            Some(Ok(Message::Binary(_))) => {
                return Err(Problem::invalid(
                    "messages are JSON in text messages, not binary ones",
                ));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Ok(None),
        }
    }
}
