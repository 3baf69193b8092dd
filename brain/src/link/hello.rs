//! Who dials, and whether it gets a session: certificate, Hello, and the Welcome or Reject that answers it.

use std::io;

use berth_common::VERSION;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Generation, clip};
use berth_common::identity;
use berth_common::model::{NodeFacts, NodeRecord};
use berth_common::protocol::{
    AgentMessage, BrainMessage, CodecError, PROTOCOL, PROTOCOL_MIN, read_frame, write_frame,
};
use quinn::{RecvStream, SendStream};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::requests::Asker;
use super::server::{REFUSED, Shared};
use super::session::HELLO_TIMEOUT;
use crate::cluster::State;

/// Largest Hello, bytes.
const MAX_HELLO: usize = 256 << 10;
/// Characters of a text from an agent that are kept.
pub(super) const MAX_TEXT: usize = 512;

/// Who the peer's certificate speaks for. TLS has verified it already.
pub(super) fn who(connection: &quinn::Connection) -> Result<Asker, &'static str> {
    let chain = connection
        .peer_identity()
        .and_then(|identity| identity.downcast::<Vec<CertificateDer<'static>>>().ok());
    let cert = chain
        .as_ref()
        .and_then(|chain| chain.first())
        .ok_or("a node's certificate is needed: join first")?;
    let unusable = |_| "the certificate is not a node's";
    Ok(Asker {
        node: identity::node_of(cert).map_err(unusable)?,
        key_fingerprint: identity::key_fingerprint(cert).map_err(unusable)?,
    })
}

/// What a Hello says.
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) protocol_min: u32,
    pub(super) generation: Generation,
    pub(super) facts: NodeFacts,
}

pub(super) async fn greeting(
    connection: &quinn::Connection,
) -> Result<(SendStream, RecvStream, Hello), CodecError> {
    let (send, mut receive) = connection.accept_bi().await.map_err(io::Error::from)?;
    match read_frame::<AgentMessage>(&mut receive, MAX_HELLO).await? {
        AgentMessage::Hello {
            protocol,
            protocol_min,
            generation,
            facts,
        } => {
            let hello = Hello {
                protocol,
                protocol_min,
                generation,
                facts: bounded(facts),
            };
            Ok((send, receive, hello))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the first message is not Hello").into()),
    }
}

/// The Welcome that a Hello deserves.
pub(super) fn judge(shared: &Shared, asker: &Asker, hello: &Hello) -> Result<BrainMessage, Problem> {
    let state = shared.cluster.snapshot();
    let record = known(&state, asker)?;
    let protocol = hello.protocol.min(PROTOCOL);
    if protocol < hello.protocol_min.max(PROTOCOL_MIN) {
        return Err(Problem::invalid(format!(
            "the agent speaks protocol {} to {}, this brain {PROTOCOL_MIN} to {PROTOCOL}",
            hello.protocol_min, hello.protocol
        ))
        .cure("upgrade the older of the two"));
    }
    Ok(BrainMessage::Welcome {
        protocol,
        node: record.id,
        name: record.name.clone(),
        brain_version: VERSION.to_owned(),
        lease_ms: shared.settings.lease_ms,
        usage_interval_ms: shared.settings.usage_interval_ms,
        addresses: shared.settings.addresses.clone(),
    })
}

fn known<'a>(state: &'a State, asker: &Asker) -> Result<&'a NodeRecord, Problem> {
    let cure =
        "if it should be part of this cluster, join it anew: berth node token, then berth-agent join --force";
    let record = state.nodes.get(&asker.node).ok_or_else(|| {
        Problem::not_found(format!(
            "node {} is not part of this cluster; it may have been removed",
            asker.node
        ))
        .cure(cure)
    })?;
    if record.key_fingerprint != asker.key_fingerprint {
        return Err(Problem::new(
            ErrorKind::Forbidden,
            format!(
                "the certificate of node {} is for another key than the one that joined",
                record.name
            ),
        )
        .cure(cure));
    }
    Ok(record)
}

pub(super) async fn reject(connection: &quinn::Connection, send: &mut SendStream, problem: Problem) {
    let detail = problem.detail.clone();
    let told = async {
        write_frame(send, &BrainMessage::Reject { problem }).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        Ok::<_, CodecError>(())
    };
    let _ = timeout(HELLO_TIMEOUT, told).await;
    connection.close(REFUSED.into(), detail.as_bytes());
}

/// Facts with every text cut to a bearable length.
pub(super) fn bounded(mut facts: NodeFacts) -> NodeFacts {
    let NodeFacts {
        hostname,
        agent_version,
        os,
        kernel,
        arch,
        runtime,
        snapshotter,
        boot_id,
        warnings,
        ..
    } = &mut facts;
    warnings.truncate(32);
    let texts = [
        hostname,
        agent_version,
        os,
        kernel,
        &mut arch.0,
        runtime,
        snapshotter,
        boot_id,
    ];
    for text in texts.into_iter().chain(warnings) {
        if text.len() > MAX_TEXT {
            *text = clip(text, MAX_TEXT);
        }
    }
    facts
}
