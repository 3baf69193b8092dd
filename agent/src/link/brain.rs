//! What this node asks of the brain: images that were loaded there, and a new certificate.

use async_trait::async_trait;
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, LoadedImage};
use berth_common::protocol::{BrainReply, BrainRequest, CodecError, MAX_FRAME, read_frame, write_frame};
use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use crate::image::LoadedImages;
use crate::reconcile::apply::chain;

/// How long the brain may take for an answer's first frame.
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(20);
/// Bytes of a blob in one chunk.
const CHUNK: usize = 256 << 10;

/// Asks over the present connection, if there is one.
#[derive(Debug, Clone)]
pub struct Brain {
    connection: watch::Receiver<Option<quinn::Connection>>,
}

impl Brain {
    /// Follows the connection that the link publishes.
    pub fn new(connection: watch::Receiver<Option<quinn::Connection>>) -> Self {
        Self { connection }
    }

    async fn ask(&self, request: &BrainRequest) -> Result<(BrainReply, quinn::RecvStream), String> {
        let connection = self
            .connection
            .borrow()
            .clone()
            .ok_or("the brain can't be reached now")?;
        let exchange = async {
            let (mut send, mut receive) = connection.open_bi().await.map_err(|e| chain(&e))?;
            write_frame(&mut send, request).await.map_err(|e| chain(&e))?;
            let _ = send.finish();
            let reply = read_frame::<BrainReply>(&mut receive, MAX_FRAME)
                .await
                .map_err(|e: CodecError| chain(&e))?;
            Ok::<_, String>((reply, receive))
        };
        let (reply, receive) = tokio::time::timeout(ANSWER_TIMEOUT, exchange)
            .await
            .map_err(|_| "the brain does not answer".to_owned())??;
        match reply {
            BrainReply::Problem { problem } => Err(problem.to_string()),
            reply => Ok((reply, receive)),
        }
    }

    /// A new certificate and the CA's for a certificate request.
    ///
    /// # Errors
    /// A sentence.
    pub async fn renew(&self, csr_pem: String) -> Result<(String, String), String> {
        match self.ask(&BrainRequest::Renew { csr_pem }).await? {
            (BrainReply::Renewed { cert_pem, ca_pem }, _) => Ok((cert_pem, ca_pem)),
            _ => Err("the brain answered something else".to_owned()),
        }
    }
}

#[async_trait]
impl LoadedImages for Brain {
    async fn find(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<LoadedImage>, String> {
        let request = BrainRequest::LoadedImage {
            tenant,
            reference: reference.clone(),
        };
        match self.ask(&request).await? {
            (BrainReply::LoadedImage { image }, _) => Ok(image),
            _ => Err("the brain answered something else".to_owned()),
        }
    }

    async fn blob(
        &self,
        tenant: TenantId,
        digest: Digest,
        offset: u64,
    ) -> Result<mpsc::Receiver<Result<Bytes, String>>, String> {
        let request = BrainRequest::Blob {
            tenant,
            digest,
            offset,
        };
        let (BrainReply::Blob { length }, mut receive) = self.ask(&request).await? else {
            return Err("the brain answered something else".to_owned());
        };
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut left = length;
            while left > 0 {
                let most = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                let chunk = match receive.read_chunk(most, true).await {
                    Ok(Some(chunk)) => {
                        left -= chunk.bytes.len() as u64;
                        Ok(chunk.bytes)
                    }
                    Ok(None) => Err(format!("the brain ended the blob {left} bytes early")),
                    Err(error) => Err(format!("the blob broke off: {error}")),
                };
                let broken = chunk.is_err();
                if sender.send(chunk).await.is_err() || broken {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}
