//! Streams that the brain opens: logs, exec, images. Each is one task; their number is bounded by QUIC's stream limit.

use std::sync::Arc;

use async_trait::async_trait;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::ContainerId;
use berth_common::protocol::{
    CodecError, ExecDown, ExecSpec, ExecUp, Hop, ImageSummary, LogLine, LogOptions, NodeReply, NodeRequest,
    read_frame, write_frame,
};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use super::probing;
use crate::container::runtime::RuntimeError;
use crate::image::ImageError;
use crate::network::Networks;
use crate::reconcile::Board;
use crate::reconcile::apply::{Facilities, chain};

/// Largest request and largest frame of exec input, bytes.
const MAX_REQUEST: usize = 512 << 10;

/// Where a container's output can be read. Implemented by the log reader, and by fakes.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// Lines as `options` ask. The channel ends after the last line (without `follow`) or when the container is gone.
    ///
    /// # Errors
    /// A sentence when the container has no log or it can't be read.
    async fn open(
        &self,
        container: ContainerId,
        options: LogOptions,
    ) -> Result<mpsc::Receiver<LogLine>, String>;
}

/// Serves the brain's streams.
#[derive(Clone)]
pub struct Server {
    /// The host's facilities.
    pub facilities: Facilities,
    /// Logs.
    pub logs: Arc<dyn LogSource>,
    /// What is here.
    pub board: Arc<Board>,
    /// Containers' networks; none: there are none.
    pub networks: Option<Arc<Networks>>,
}

impl Server {
    /// Serves one stream to its end.
    pub async fn serve(&self, mut send: SendStream, mut receive: RecvStream) {
        let request = match read_frame::<NodeRequest>(&mut receive, MAX_REQUEST).await {
            Ok(request) => request,
            Err(error) => {
                tracing::debug!(error = chain(&error), "a request can't be read");
                let problem = Problem::invalid(format!("the request can't be read: {error}"));
                let _ = write_frame(&mut send, &NodeReply::Problem { problem }).await;
                let _ = send.finish();
                return;
            }
        };
        let result = match request {
            NodeRequest::Logs { container, options } => self.logs(&mut send, container, options).await,
            NodeRequest::Exec { container, spec } => self.exec(&mut send, receive, container, &spec).await,
            NodeRequest::Probe { endpoint, neighbours } => {
                let networks = self.networks.as_ref();
                probing::serve(networks, &mut send, receive, endpoint, neighbours).await
            }
            NodeRequest::Trace(asked) => {
                let hops = match &self.networks {
                    Some(networks) => networks.trace(&asked).await,
                    None => vec![Hop::unknown("node", "this node has no networks")],
                };
                write_frame(&mut send, &NodeReply::Hops { hops }).await
            }
            other => self.images(&mut send, other).await,
        };
        if let Err(error) = result {
            tracing::debug!(error = chain(&error), "a stream ended early");
        }
        let _ = send.finish();
    }

    async fn logs(
        &self,
        send: &mut SendStream,
        container: ContainerId,
        options: LogOptions,
    ) -> Result<(), CodecError> {
        let mut lines = match self.logs.open(container, options).await {
            Ok(lines) => lines,
            Err(why) => {
                return write_frame(
                    send,
                    &NodeReply::Problem {
                        problem: Problem::not_found(why),
                    },
                )
                .await;
            }
        };
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                // The reader left: stop following.
                _ = send.stopped() => return Ok(()),
            };
            let Some(line) = line else { break };
            write_frame(send, &NodeReply::Log(line)).await?;
        }
        write_frame(send, &NodeReply::End).await
    }

    async fn exec(
        &self,
        send: &mut SendStream,
        mut receive: RecvStream,
        container: ContainerId,
        spec: &ExecSpec,
    ) -> Result<(), CodecError> {
        let session = match self.facilities.runtime.exec(container, spec).await {
            Ok(session) => session,
            Err(error) => {
                let problem = runtime_problem(&error);
                return write_frame(send, &ExecDown::Problem { problem }).await;
            }
        };
        let (up, mut down) = (session.up, session.down);
        let input = tokio::spawn(async move {
            while let Ok(message) = read_frame::<ExecUp>(&mut receive, MAX_REQUEST).await {
                if up.send(message).await.is_err() {
                    break;
                }
            }
        });
        let mut result = Ok(());
        while let Some(message) = down.recv().await {
            let last = matches!(message, ExecDown::Exit { .. } | ExecDown::Problem { .. });
            result = write_frame(send, &message).await;
            if last || result.is_err() {
                break;
            }
        }
        input.abort();
        result
    }

    async fn images(&self, send: &mut SendStream, request: NodeRequest) -> Result<(), CodecError> {
        let images = &self.facilities.images;
        let reply = match request {
            NodeRequest::PullImage {
                tenant,
                reference,
                credential,
            } => {
                let (progress, mut steps) = mpsc::channel(64);
                let pull = images.pull(tenant, &reference, credential.as_ref(), progress);
                tokio::pin!(pull);
                let result = loop {
                    tokio::select! {
                        result = &mut pull => break result,
                        Some(step) = steps.recv() => write_frame(send, &NodeReply::Progress(step)).await?,
                    }
                };
                while let Ok(step) = steps.try_recv() {
                    write_frame(send, &NodeReply::Progress(step)).await?;
                }
                match result {
                    Ok(_) => match images.list(tenant).await {
                        Ok(all) => pulled(all, &reference),
                        Err(error) => image_problem(&error),
                    },
                    Err(error) => image_problem(&error),
                }
            }
            NodeRequest::ListImages { tenant } => match images.list(tenant).await {
                Ok(images) => NodeReply::Images { images },
                Err(error) => image_problem(&error),
            },
            NodeRequest::RemoveImage { tenant, reference } => match images.remove(tenant, &reference).await {
                Ok(()) => NodeReply::End,
                Err(error) => image_problem(&error),
            },
            NodeRequest::Unknown
            | NodeRequest::Logs { .. }
            | NodeRequest::Exec { .. }
            | NodeRequest::Probe { .. }
            | NodeRequest::Trace(_) => NodeReply::Problem {
                problem: Problem::invalid("this agent does not know that request").cure("upgrade the agent"),
            },
        };
        write_frame(send, &reply).await
    }
}

fn pulled(all: Vec<ImageSummary>, reference: &berth_common::model::ImageRef) -> NodeReply {
    match all.into_iter().find(|image| image.reference == *reference) {
        Some(image) => NodeReply::Image { image },
        None => NodeReply::Problem {
            problem: Problem::unavailable(format!("{reference} was fetched and removed again at once")),
        },
    }
}

fn image_problem(error: &ImageError) -> NodeReply {
    let kind = match error {
        ImageError::Denied { .. } => ErrorKind::Forbidden,
        ImageError::NotFound { .. } => ErrorKind::NotFound,
        ImageError::Refused { .. } => ErrorKind::Invalid,
        ImageError::InUse { .. } => ErrorKind::Precondition,
        _ => ErrorKind::Unavailable,
    };
    NodeReply::Problem {
        problem: Problem::new(kind, chain(error)),
    }
}

fn runtime_problem(error: &RuntimeError) -> Problem {
    let kind = match error {
        RuntimeError::Missing(_) => ErrorKind::NotFound,
        RuntimeError::Failed { retryable: false, .. } => ErrorKind::Precondition,
        _ => ErrorKind::Unavailable,
    };
    Problem::new(kind, chain(error))
}
