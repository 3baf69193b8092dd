//! Images loaded from archives: hosts without a registry get their images through the brain.
//!
//! Owns the store of their blobs and the way from an upload to records: [`receive`] writes the body to a file, [`load`]
//! reads it as an OCI image layout or a docker archive, checks every digest and copies the blobs into the
//! [`BlobStore`]; agents fetch them over the link. Refuses whatever it can't verify. Knows nothing of the cluster: who
//! may load, and what becomes of the records, is the caller's business.

mod archive;
mod blobs;
mod docker;
mod load;
mod oci;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use archive::ArchiveError;
pub use blobs::{BlobError, BlobStore, GRACE};
pub use load::{LoadError, load, receive};

use berth_common::id::TenantId;
use berth_common::model::{Architecture, Digest, ImageRef, LoadedImage, UnixMillis};
use berth_common::units::Bytes;

/// Most layers of an image; more do not fit into one overlay mount.
pub const MAX_LAYERS: usize = 127;

/// Bounds of one load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadLimits {
    /// Size of the archive without its outer compression.
    pub unpacked: Bytes,
    /// Entries of the archive, extended headers included.
    pub entries: usize,
    /// Size of one index, manifest or config.
    pub document: Bytes,
    /// Size of all of them together; they are in memory at once.
    pub documents: Bytes,
    /// Images in one archive.
    pub images: usize,
}

impl Default for LoadLimits {
    fn default() -> Self {
        Self {
            unpacked: Bytes::gib(32),
            entries: 100_000,
            document: Bytes::mib(4),
            documents: Bytes::mib(64),
            images: 256,
        }
    }
}

/// What a caller wants of an archive.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// Name for the image instead of the archive's own; only if it holds exactly one.
    pub name: Option<ImageRef>,
    /// The architecture of the nodes in OCI's words: `amd64`, `arm64`. The system is always linux.
    pub arch: String,
    /// Bounds.
    pub limits: LoadLimits,
}

/// An image whose blobs are in the store. They stay there while it lives, and for [`GRACE`] after.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Its name.
    pub reference: ImageRef,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Every blob it needs with its size: manifest, config, layers, each once.
    pub blobs: Vec<(Digest, Bytes)>,
    /// The architecture that it is for.
    pub arch: Architecture,
    _pins: Arc<blobs::Pins>,
}

impl NewImage {
    /// The record to commit, within [`GRACE`].
    pub fn into_record(self, tenant: TenantId, now: UnixMillis) -> LoadedImage {
        LoadedImage {
            tenant,
            reference: self.reference,
            manifest: self.manifest,
            blobs: self.blobs,
            arch: Some(self.arch),
            loaded_at: now,
        }
    }
}
