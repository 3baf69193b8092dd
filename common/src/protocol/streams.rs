//! Requests that get a stream of their own.
//!
//! The opener sends one request frame. What follows is named at each variant. A reply may always be `Problem`, which ends
//! the stream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::desired::DesiredEndpoint;
use super::networks::Neighbours;
use super::probe::{Heard, Probed};
use super::trace::{Hop, TraceRequest};
use crate::error::Problem;
use crate::id::{ContainerId, TenantId};
use crate::model::{Digest, ImageRef, LoadedImage, RegistryCredential, UnixMillis};
use crate::units::Bytes;

/// Which output a log line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// Of a newer agent; shown, but never as the container's standard output.
    #[serde(other)]
    Unknown,
}

/// One line of a container's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LogLine {
    /// When the agent's host read it.
    pub at: UnixMillis,
    /// From which output.
    pub stream: LogStream,
    /// The text without its newline; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// The line goes on in the next record (it was longer than 16 KiB).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
}

/// Which lines to send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogOptions {
    /// Go on with new lines until the reader closes or the container is deleted.
    #[serde(default)]
    pub follow: bool,
    /// Only the last so many of what is there.
    #[serde(default)]
    pub tail: Option<u32>,
    /// Only lines read at or after.
    #[serde(default)]
    pub since: Option<UnixMillis>,
}

/// A process to run beside a container's own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecSpec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Give it a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Keep its standard input open.
    #[serde(default)]
    pub stdin: bool,
    /// Added to the container's environment.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Working directory; default the container's.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// User; default the container's.
    #[serde(default)]
    pub user: Option<String>,
    /// Initial terminal size, columns and rows.
    #[serde(default)]
    pub size: Option<(u16, u16)>,
}

/// From the person to the process. Bytes are base64 in JSON; at most 32 KiB a frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecUp {
    /// Standard input.
    Stdin {
        /// Base64.
        data: String,
    },
    /// Standard input ends.
    StdinEof,
    /// The terminal changed its size.
    Resize {
        /// Columns.
        cols: u16,
        /// Rows.
        rows: u16,
    },
    /// Of a newer peer.
    #[serde(other)]
    Unknown,
}

/// From the process to the person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ExecDown {
    /// It runs.
    Started,
    /// Standard output (all output with a terminal), base64.
    Stdout {
        /// Base64.
        data: String,
    },
    /// Standard error, base64.
    Stderr {
        /// Base64.
        data: String,
    },
    /// It ended; nothing follows.
    Exit {
        /// Exit code; 128 + signal.
        code: i32,
    },
    /// It could not be run or the connection to it broke; nothing follows.
    Problem {
        /// Why.
        problem: Problem,
    },
    /// Of a newer peer.
    #[serde(other)]
    Unknown,
}

/// Progress of long work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// What is being done: `resolve`, `download`, `unpack`, `done`.
    pub step: String,
    /// On what: a layer's short digest, a node's name.
    #[serde(default)]
    pub item: String,
    /// Done so far, bytes or pieces.
    #[serde(default)]
    pub done: u64,
    /// Of so many; 0 if unknown.
    #[serde(default)]
    pub total: u64,
}

/// An image as a node has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ImageSummary {
    /// Its name.
    pub reference: ImageRef,
    /// Manifest digest.
    pub digest: Digest,
    /// Sum of its compressed blobs.
    pub size: Bytes,
    /// Containers on this node made from it.
    #[serde(default)]
    pub used_by: u32,
    /// When it came to the node.
    pub created_at: UnixMillis,
}

/// What the brain asks of an agent, first frame of a stream that the brain opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeRequest {
    /// Replies: `NodeReply::Log` until `End`.
    Logs {
        /// Whose.
        container: ContainerId,
        /// Which.
        options: LogOptions,
    },
    /// Then `ExecUp` frames up and `ExecDown` frames down.
    Exec {
        /// Where.
        container: ContainerId,
        /// What.
        spec: ExecSpec,
    },
    /// Replies: `Progress` until `Image` or `Problem`.
    PullImage {
        /// For whom.
        tenant: TenantId,
        /// What.
        reference: ImageRef,
        /// With which credentials.
        #[serde(default)]
        credential: Option<RegistryCredential>,
    },
    /// Reply: `Images`.
    ListImages {
        /// Whose.
        tenant: TenantId,
    },
    /// Reply: `End` or `Problem` (in use).
    RemoveImage {
        /// Whose.
        tenant: TenantId,
        /// Which.
        reference: ImageRef,
    },
    /// Take part in a probe of the network between nodes. Replies: `Ready`; after `ProbeStep::Go` a `Probed` for each peer and
    /// `Finished`; once the brain has closed its side `Heard`. The node's part ends with the stream.
    Probe {
        /// Its endpoint.
        endpoint: DesiredEndpoint,
        /// All others that take part.
        neighbours: Neighbours,
    },
    /// Reply: `Hops`.
    Trace(TraceRequest),
    /// Of a newer brain; answered with a problem.
    #[serde(other)]
    Unknown,
}

/// Replies to [`NodeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum NodeReply {
    /// A log line.
    Log(LogLine),
    /// Progress.
    Progress(Progress),
    /// An image is there.
    Image {
        /// It.
        image: ImageSummary,
    },
    /// All images of the tenant.
    Images {
        /// They.
        images: Vec<ImageSummary>,
    },
    /// The node's part of a probe stands.
    Ready,
    /// The way to another node was measured.
    Probed {
        /// How.
        probed: Probed,
    },
    /// The ways to all were.
    Finished,
    /// Whom the node heard meanwhile; nothing follows.
    Heard {
        /// They.
        heard: Heard,
    },
    /// A packet's way, in order; nothing follows.
    Hops {
        /// It.
        hops: Vec<Hop>,
    },
    /// Done, nothing follows.
    End,
    /// Failed, nothing follows.
    Problem {
        /// Why.
        problem: Problem,
    },
    /// Of a newer agent.
    #[serde(other)]
    Unknown,
}

/// What an agent asks of the brain, first frame of a stream that the agent opened after the control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BrainRequest {
    /// Reply: `Renewed`. Only for the key of the connection's own certificate or a successor signed by it.
    Renew {
        /// New certificate request, PEM.
        csr_pem: String,
    },
    /// Reply: `LoadedImage`. Only for tenants with a container on this node (R7).
    LoadedImage {
        /// Whose.
        tenant: TenantId,
        /// Which.
        reference: ImageRef,
    },
    /// Reply: `Blob`, then that many raw bytes. Only blobs of images as above.
    Blob {
        /// Whose.
        tenant: TenantId,
        /// Which.
        digest: Digest,
        /// Begin here (resume).
        #[serde(default)]
        offset: u64,
    },
    /// Of a newer agent; answered with a problem.
    #[serde(other)]
    Unknown,
}

/// Replies to [`BrainRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BrainReply {
    /// The new certificate, PEM.
    Renewed {
        /// Certificate of the node.
        cert_pem: String,
        /// The CA's, which may have been rolled.
        ca_pem: String,
    },
    /// The image was loaded from an archive; fetch its blobs from here. None: pull from its registry.
    LoadedImage {
        /// It.
        image: Option<LoadedImage>,
    },
    /// So many raw bytes follow.
    Blob {
        /// From the offset to the end.
        length: u64,
    },
    /// Refused, nothing follows.
    Problem {
        /// Why.
        problem: Problem,
    },
    /// Of a newer brain.
    #[serde(other)]
    Unknown,
}
