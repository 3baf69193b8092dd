//! Images on this host: fetched, verified, unpacked, collected.
//!
//! An image belongs to a tenant (R6): its record is named `<tenant id>/<reference>`, so that no tenant can use, list or
//! remove another's, although equal layers are stored once.

mod auth;
mod collect;
mod containerd_images;
mod entry;
mod fetch;
pub mod manifest;
mod pull;
pub mod record;
mod registry;
pub mod scan;
mod source;
mod store;
mod unpack;

pub use containerd_images::{ContainerdImages, ImageSettings};

use async_trait::async_trait;
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, LoadedImage, RegistryCredential};
use berth_common::protocol::{ImageSummary, Progress};
use tokio::sync::mpsc;

/// What a container needs to know of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageInfo {
    /// Its name.
    pub reference: ImageRef,
    /// Manifest digest.
    pub manifest: Digest,
    /// Key of the unpacked root file system's top snapshot.
    pub chain_id: String,
    /// Snapshot keys from the lowest layer to the top.
    pub chain_ids: Vec<String>,
    /// The image's own configuration.
    pub config: oci_spec::image::ImageConfiguration,
}

/// Why an image is not there.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImageError {
    /// The registry, or the brain, can't be reached or broke off; try again later.
    #[error("{reference}: {registry} does not answer properly: {message}")]
    Unreachable {
        /// Which image.
        reference: ImageRef,
        /// From where.
        registry: String,
        /// What happened.
        message: String,
    },
    /// The registry refuses this tenant.
    #[error(
        "{reference}: {registry} denies access; check the name, or sign in: `berth image login {registry}`"
    )]
    Denied {
        /// Which image.
        reference: ImageRef,
        /// From where.
        registry: String,
    },
    /// No such image there.
    #[error("{reference}: no such image at {registry}")]
    NotFound {
        /// Which image.
        reference: ImageRef,
        /// From where.
        registry: String,
    },
    /// The content is wrong: digest, size, form, a hostile layer. Trying again does not help.
    #[error("{reference}: refused: {message}")]
    Refused {
        /// Which image.
        reference: ImageRef,
        /// What is wrong with what.
        message: String,
    },
    /// containerd failed or can't be reached.
    #[error("{reference}: containerd failed while {operation}: {message}")]
    Store {
        /// Which image.
        reference: ImageRef,
        /// What was tried.
        operation: &'static str,
        /// Its words.
        message: String,
    },
    /// containerd or the host failed at something that is about no single image.
    #[error("{operation} failed: {message}")]
    Host {
        /// What was tried.
        operation: &'static str,
        /// What happened.
        message: String,
    },
    /// The host has no room.
    #[error("{reference}: the disk is full; free room or let unused images be collected")]
    NoSpace {
        /// Which image.
        reference: ImageRef,
    },
    /// A container is made from it.
    #[error("{reference} is used by {used_by} containers on this node")]
    InUse {
        /// Which image.
        reference: ImageRef,
        /// How many.
        used_by: u32,
    },
}

impl ImageError {
    /// Whether trying again later can help.
    pub const fn retryable(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::InUse { .. })
    }
}

/// Where images that were loaded into the brain come from. Implemented over the link, and by a fake.
#[async_trait]
pub trait LoadedImages: Send + Sync + 'static {
    /// The loaded image of this name, if the brain has one for the tenant.
    ///
    /// # Errors
    /// A sentence when the brain can't be asked now.
    async fn find(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<LoadedImage>, String>;

    /// Bytes of a blob from `offset` on, in chunks.
    ///
    /// # Errors
    /// A sentence when the brain can't be asked now; the receiver yields an error if it breaks off.
    async fn blob(
        &self,
        tenant: TenantId,
        digest: Digest,
        offset: u64,
    ) -> Result<mpsc::Receiver<Result<bytes::Bytes, String>>, String>;
}

/// The host's images.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// The image, if it is here and unpacked, without asking anyone.
    async fn lookup(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<ImageInfo>, ImageError>;

    /// Fetches and unpacks the image: from the brain if it was loaded there, else from its registry. `progress` may be
    /// dropped at any time. Concurrent calls for one image share the work.
    async fn pull(
        &self,
        tenant: TenantId,
        reference: &ImageRef,
        credential: Option<&RegistryCredential>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<ImageInfo, ImageError>;

    /// Images of a tenant on this host.
    async fn list(&self, tenant: TenantId) -> Result<Vec<ImageSummary>, ImageError>;

    /// Removes a tenant's image unless a container is made from it.
    async fn remove(&self, tenant: TenantId, reference: &ImageRef) -> Result<(), ImageError>;

    /// Frees images that no container uses, least recently used first, until the file system's use is under `low_percent`;
    /// does nothing while it is under `high_percent`. Returns what was removed.
    async fn collect_garbage(&self, high_percent: u8, low_percent: u8) -> Result<Vec<ImageRef>, ImageError>;
}
