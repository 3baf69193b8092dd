//! A probe's stream: the brain says who takes part and when to begin, the node what it measured.

use std::sync::Arc;
use std::time::Duration;

use berth_common::error::Problem;
use berth_common::protocol::{
    CodecError, DesiredEndpoint, Neighbours, NodeReply, ProbePeer, ProbeStep, read_frame, write_frame,
};
use futures::StreamExt as _;
use quinn::{RecvStream, SendStream};

use crate::network::{Networks, Probe};

/// The most that a probe may take: a brain that forgets one must not keep its network up.
const MOST: Duration = Duration::from_secs(300);
/// Ways measured at a time: each is mostly waiting.
const AT_ONCE: usize = 16;
/// Largest frame, bytes.
const MAX_STEP: usize = 512 << 10;

/// Serves one to its end.
pub(super) async fn serve(
    networks: Option<&Arc<Networks>>,
    send: &mut SendStream,
    receive: RecvStream,
    endpoint: DesiredEndpoint,
    neighbours: Neighbours,
) -> Result<(), CodecError> {
    let begun = match networks {
        Some(networks) => networks.probe(endpoint, neighbours).await,
        None => Err(Problem::unavailable("this node has no networks")),
    };
    let probe = match begun {
        Ok(probe) => Arc::new(probe),
        Err(problem) => return write_frame(send, &NodeReply::Problem { problem }).await,
    };
    let went = tokio::time::timeout(MOST, take_part(&probe, send, receive)).await;
    went.unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

async fn take_part(
    probe: &Arc<Probe>,
    send: &mut SendStream,
    mut receive: RecvStream,
) -> Result<(), CodecError> {
    write_frame(send, &NodeReply::Ready).await?;
    loop {
        match read_frame::<ProbeStep>(&mut receive, MAX_STEP).await {
            Ok(ProbeStep::Go { peers }) => {
                // A brain that leaves ends it between two ways at the latest.
                let measured = measure(probe, send, peers);
                measured.await?;
                write_frame(send, &NodeReply::Finished).await?;
            }
            Ok(ProbeStep::Unknown) => {}
            // It has heard enough.
            Err(CodecError::Closed) => {
                let heard = probe.heard();
                return write_frame(send, &NodeReply::Heard { heard }).await;
            }
            Err(error) => return Err(error),
        }
    }
}

async fn measure(probe: &Arc<Probe>, send: &mut SendStream, peers: Vec<ProbePeer>) -> Result<(), CodecError> {
    let ways = futures::stream::iter(peers.into_iter().map(|peer| {
        let probe = probe.clone();
        tokio::task::spawn_blocking(move || probe.measure(peer))
    }));
    let mut ways = ways.buffer_unordered(AT_ONCE);
    while let Some(probed) = ways.next().await {
        let probed = probed.map_err(std::io::Error::other)?;
        write_frame(send, &NodeReply::Probed { probed }).await?;
    }
    Ok(())
}
