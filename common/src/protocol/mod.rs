//! The link's wire types and framing.
//!
//! Every message is one frame: a big-endian u32 length and that many bytes of JSON. JSON because it is self-describing:
//! versions N and N−1 ignore each other's unknown fields and message types (docs/decisions/0001). Everything read is
//! hostile until decoded: lengths are bounded, nesting is bounded by the decoder, ids and names are parsed into types.
//!
//! Streams, all on one connection that the agent dialled:
//! - the agent opens one bidirectional **control** stream: Hello ↓ Welcome, then Desired down and Observed up;
//! - one unidirectional stream for each usage report, up;
//! - the brain opens a bidirectional stream for each [`NodeRequest`] (logs, exec, pull …);
//! - the agent opens a bidirectional stream for each [`BrainRequest`] (renewal, loaded images).

mod codec;
mod desired;
mod join;
mod names;
mod networks;
mod probe;
mod streams;
mod trace;
mod usage;
mod volumes;

pub use codec::{CodecError, FrameDecoder, MAX_FRAME, decode, encode, read_frame, write_frame};
pub use desired::{Apply, DesiredContainer, DesiredEndpoint, DesiredSet, DesiredUpdate, TenantShare};
pub use join::{JoinReply, JoinRequest, JoinToken, TokenError};
pub use names::{Called, CalledReplica, CalledService, Member, Named, endpoints_of, names_of, replicas_of};
pub use networks::{
    Elsewhere, Gone, Neighbours, NeighboursUpdate, Published, PublishedOn, Reached, Sealed, There,
};
pub use probe::{Echoes, Heard, ProbePeer, ProbeStep, Probed};
pub use streams::{
    BrainReply, BrainRequest, ExecDown, ExecSpec, ExecUp, ImageSummary, LogLine, LogOptions, LogStream,
    NodeReply, NodeRequest, Progress,
};
pub use trace::{Half, Hop, TraceRequest, Verdict};
pub use usage::{ContainerUsage, NodeUsage, Pressure, UsageReport};
pub use volumes::{
    DesiredMount, DesiredVolume, SendTo, VOLUMES_A_MESSAGE, VolumePlace, round_of, round_snapshot,
};

use serde::{Deserialize, Serialize};

use crate::error::Problem;
use crate::id::{ContainerId, Generation, Name, NodeId, VolumeId};
use crate::model::{NodeFacts, ObservedContainer, ObservedVolume};

/// ALPN of the link.
pub const ALPN_LINK: &[u8] = b"berth/1";
/// ALPN of joining, the one exchange without a client certificate.
pub const ALPN_JOIN: &[u8] = b"berth-join/1";
/// ALPN of nodes among themselves.
pub const ALPN_PEER: &[u8] = b"berth-peer/1";

/// The protocol revision of this build.
pub const PROTOCOL: u32 = 1;
/// The oldest revision this build still speaks.
pub const PROTOCOL_MIN: u32 = 1;

/// Up the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "Hello is sent once a connection")]
pub enum AgentMessage {
    /// First on the stream.
    Hello {
        /// Newest protocol revision the agent speaks.
        protocol: u32,
        /// Oldest it speaks.
        protocol_min: u32,
        /// Generation of the desired set in its ledger; 0 if none.
        generation: Generation,
        /// The host.
        facts: NodeFacts,
    },
    /// What the agent sees. `full` replaces everything the brain knew of this node.
    ///
    /// What does not fit one message comes in several, one right after the other: all but the last say `more`, only the
    /// first says `full`. Together they are one observation, which counts when its last part is there and not before:
    /// what is missing from the first part may come in the second. An older brain takes each part by itself.
    Observed {
        /// Whether `containers`, with those of the parts that follow, is everything there is.
        full: bool,
        /// The next message goes on with this observation.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        /// Generation that is persisted and being acted on.
        generation: Generation,
        /// Changed containers, or all. At most 2,000 a message.
        containers: Vec<ObservedContainer>,
        /// Containers of which nothing is left on this node.
        #[serde(default)]
        gone: Vec<ContainerId>,
    },
    /// Volumes as they are. Sent when they change, all of them, in as many messages as it takes, one right after the other: all but the
    /// last say `more`. They are one observation, which counts when its last part is there.
    Volumes {
        /// The next message goes on with this observation.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        more: bool,
        /// At most [`VOLUMES_A_MESSAGE`].
        volumes: Vec<ObservedVolume>,
        /// Those that were to go and of which nothing is left.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gone: Vec<VolumeId>,
    },
    /// The host changed.
    Facts {
        /// The whole of it.
        facts: NodeFacts,
    },
    /// The desired update could not be taken; the brain answers a missing base with a full set.
    Refused {
        /// Generation the agent holds.
        held: Generation,
        /// Generation that was refused.
        refused: Generation,
        /// Why.
        problem: Problem,
    },
    /// Something worth an event: OOM of a child, eviction, repair.
    Event {
        /// Which container it concerns.
        #[serde(default)]
        container: Option<ContainerId>,
        /// Short kind, such as `oom`.
        kind: String,
        /// One sentence.
        text: String,
    },
    /// The agent stops on purpose (upgrade, shutdown); its containers go on.
    Goodbye,
    /// A message of a newer agent.
    #[serde(other)]
    Unknown,
}

/// Down the control stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "short-lived, boxed where it is queued")]
pub enum BrainMessage {
    /// First on the stream: the link is up.
    Welcome {
        /// Protocol revision to speak.
        protocol: u32,
        /// Who the agent is.
        node: NodeId,
        /// Its name.
        name: Name,
        /// The brain's version.
        brain_version: String,
        /// How long the brain waits without hearing before it declares the node lost, milliseconds.
        lease_ms: u32,
        /// Interval of usage reports, milliseconds.
        usage_interval_ms: u32,
        /// Addresses (host:port) to dial from now on; empty: unchanged.
        #[serde(default)]
        addresses: Vec<String>,
    },
    /// Instead of Welcome: the link is refused.
    Reject {
        /// Why.
        problem: Problem,
    },
    /// A new desired set or a delta to one.
    Desired(DesiredUpdate),
    /// Who else is on the node's networks, or what changed of it.
    Neighbours(NeighboursUpdate),
    /// Proof of life when nothing else is sent.
    Ping,
    /// A message of a newer brain.
    #[serde(other)]
    Unknown,
}
