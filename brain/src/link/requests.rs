//! What agents ask: renewal of their certificate, and images that were loaded into the brain.
//!
//! An agent gets what its own node needs and nothing else (R7): certificates for the key it already has, and images of
//! tenants that have a container on it.

use std::io;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{NodeId, TenantId};
use berth_common::model::Digest;
use berth_common::protocol::{BrainReply, BrainRequest, CodecError, read_frame, write_frame};
use quinn::{RecvStream, SendStream};
use tokio::io::AsyncReadExt as _;

use super::server::Shared;
use super::{Blob, join};
use crate::cluster::State;

/// Largest request, bytes.
const MAX_REQUEST: usize = 64 << 10;
/// Time for a request to arrive once its stream is open.
const REQUEST_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Who asks.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    /// The connection's node.
    pub(super) node: NodeId,
    /// Fingerprint of the key of the connection's certificate.
    pub(super) key_fingerprint: String,
}

/// Serves one stream to its end.
pub(super) async fn serve(shared: &Shared, asker: &Asker, mut send: SendStream, mut receive: RecvStream) {
    let request = tokio::time::timeout(
        REQUEST_TIMEOUT,
        read_frame::<BrainRequest>(&mut receive, MAX_REQUEST),
    );
    let request = match request.await {
        Ok(Ok(request)) => Ok(request),
        Ok(Err(error @ (CodecError::Closed | CodecError::Io(_)))) => {
            return tracing::debug!(node = %asker.node, %error, "a request broke off");
        }
        Ok(Err(error)) => Err(Problem::invalid(format!("the request can't be read: {error}"))),
        Err(_) => Err(Problem::new(
            ErrorKind::Timeout,
            "the request did not arrive in time",
        )),
    };
    let answer = match request {
        Ok(request) => answer(shared, asker, request).await,
        Err(problem) => Err(problem),
    };
    let (reply, blob) = match answer {
        Ok(answer) => answer,
        Err(problem) => {
            tracing::debug!(node = %asker.node, %problem, "a node's request was refused");
            (BrainReply::Problem { problem }, None)
        }
    };
    if let Err(error) = deliver(&mut send, &reply, blob).await {
        // Half a blob must not look like a whole one.
        let _ = send.reset(1u32.into());
        return tracing::debug!(node = %asker.node, %error, "an answer could not be delivered");
    }
    let _ = send.finish();
}

async fn deliver(send: &mut SendStream, reply: &BrainReply, blob: Option<Blob>) -> Result<(), CodecError> {
    write_frame(send, reply).await?;
    if let Some((length, bytes)) = blob {
        let sent = tokio::io::copy(&mut bytes.take(length), send).await?;
        if sent < length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a blob is shorter than it was").into());
        }
    }
    Ok(())
}

async fn answer(
    shared: &Shared,
    asker: &Asker,
    request: BrainRequest,
) -> Result<(BrainReply, Option<Blob>), Problem> {
    let state = shared.cluster.snapshot();
    match request {
        BrainRequest::Renew { csr_pem } => Ok((renew(shared, asker, &state, &csr_pem)?, None)),
        BrainRequest::LoadedImage { tenant, reference } => {
            judge(&state, asker.node, tenant)?;
            let image = state
                .images
                .get(&(tenant, reference))
                .map(|image| (**image).clone());
            Ok((BrainReply::LoadedImage { image }, None))
        }
        BrainRequest::Blob {
            tenant,
            digest,
            offset,
        } => {
            judge(&state, asker.node, tenant)?;
            if !listed(&state, tenant, digest) {
                return Err(Problem::not_found(format!(
                    "no loaded image of this tenant has a blob {digest}"
                )));
            }
            let blob = shared.blobs.open(digest, offset).await.map_err(|error| {
                tracing::error!(%digest, %error, "a blob can't be read");
                Problem::new(
                    ErrorKind::Internal,
                    format!("blob {digest} can't be read; the brain's log says why"),
                )
            })?;
            let Some(blob) = blob else {
                return Err(
                    Problem::not_found(format!("blob {digest} is missing in the brain's store"))
                        .cure("load the image again: berth image load"),
                );
            };
            Ok((BrainReply::Blob { length: blob.0 }, Some(blob)))
        }
        BrainRequest::Unknown => Err(Problem::invalid("the brain does not know this request")
            .cure("upgrade the brain: it is older than the agent")),
    }
}

fn renew(shared: &Shared, asker: &Asker, state: &State, csr_pem: &str) -> Result<BrainReply, Problem> {
    let known = state
        .nodes
        .get(&asker.node)
        .is_some_and(|node| node.key_fingerprint == asker.key_fingerprint);
    let now = shared.cluster.now().wall;
    let (cert_pem, key_fingerprint) = shared
        .ca
        .issue_node(csr_pem, asker.node, now)
        .map_err(join::unsigned)?;
    if !known || key_fingerprint != asker.key_fingerprint {
        return Err(Problem::new(
            ErrorKind::Forbidden,
            "a certificate is renewed for the key that joined and for no other",
        )
        .cure("join this host anew to give it another key"));
    }
    Ok(BrainReply::Renewed {
        cert_pem,
        ca_pem: shared.ca.ca_pem().to_owned(),
    })
}

/// A node sees images of tenants that have a container on it (R7). Whether others exist is not told.
fn judge(state: &State, node: NodeId, tenant: TenantId) -> Result<(), Problem> {
    if state.containers_on(node).any(|c| c.tenant == tenant) {
        return Ok(());
    }
    Err(Problem::new(
        ErrorKind::Forbidden,
        format!("tenant {tenant} has no container on this node"),
    ))
}

fn listed(state: &State, tenant: TenantId, digest: Digest) -> bool {
    state
        .images
        .values()
        .filter(|image| image.tenant == tenant)
        .any(|image| image.manifest == digest || image.blobs.iter().any(|(blob, _)| *blob == digest))
}
