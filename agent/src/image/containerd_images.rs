//! The host's images on containerd.
//!
//! Owns the records' meaning, the sharing of equal pulls, and collection. Refuses to hand an image to a tenant that has no
//! record of it (R6), and to remove one that a container is made from. Uses containerd's plain services only, which 1.6,
//! 1.7 and 2.x all have.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, RegistryCredential, UnixMillis};
use berth_common::protocol::{ImageSummary, Progress};
use berth_common::units::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use parking_lot::Mutex;
use tokio::sync::{broadcast, mpsc};
use tonic::Code;

use super::collect::{removable, used_percent};
use super::manifest::{MAX_DOCUMENT, chain_ids, read_config, read_manifest};
use super::pull::{PULL_TIMEOUT, Report, pull, store_error};
use super::record::Record;
use super::scan::ScanLimits;
use super::store::Store;
use super::unpack::Locks;
use super::{ImageError, ImageInfo, Images, LoadedImages};
use crate::containerd::{Containerd, ContainerdError};

/// Parsed images kept in memory; each is a few KiB.
const CACHED: usize = 256;
/// How stale the record of an image's last use may be, milliseconds: a write on each start would be waste.
const TOUCH_MS: u64 = 60_000;

/// What limits pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSettings {
    /// containerd's root folder: the file system whose use collection watches.
    pub root: PathBuf,
    /// Longest pull, however steady.
    pub pull_timeout: Duration,
    /// Longest silence of a source.
    pub stall_timeout: Duration,
    /// Failures in a row before a pull gives up.
    pub retries: u32,
    /// Pause after the first failure; doubled after each.
    pub retry_pause: Duration,
    /// Layers of one image fetched at once.
    pub parallel_layers: usize,
    /// Limits on each layer.
    pub scan: ScanLimits,
    /// Largest image, compressed and unpacked each, bytes.
    pub max_image: u64,
    /// How long after its last use an image is safe from collection: its container may be on its way.
    pub collect_grace: Duration,
    /// Registries, `host` or `host:port`, that are spoken to in plain http. The host itself always is.
    pub insecure_registries: Vec<String>,
    /// The host's architecture as image indexes name it: `amd64`, `arm64`.
    pub arch: String,
}

impl Default for ImageSettings {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/containerd"),
            pull_timeout: PULL_TIMEOUT,
            stall_timeout: Duration::from_secs(30),
            retries: 5,
            retry_pause: Duration::from_millis(300),
            parallel_layers: 3,
            scan: ScanLimits::default(),
            max_image: 20 << 30,
            collect_grace: Duration::from_secs(120),
            insecure_registries: Vec::new(),
            arch: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            }
            .to_owned(),
        }
    }
}

impl ImageSettings {
    /// Whether this registry is spoken to without TLS.
    pub fn plain_http(&self, registry: &str) -> bool {
        let host = match registry.strip_prefix('[') {
            Some(rest) => rest.split(']').next().unwrap_or_default(),
            None => registry.split(':').next().unwrap_or_default(),
        };
        let listed = |entry: &String| entry == registry || entry == host;
        matches!(host, "localhost" | "127.0.0.1" | "::1") || self.insecure_registries.iter().any(listed)
    }
}

/// The work under way, by tenant and reference: how to listen to it, and how it ends.
type Flights = HashMap<(TenantId, ImageRef), (broadcast::Sender<Progress>, Outcome)>;
type Outcome = Shared<BoxFuture<'static, Result<ImageInfo, ImageError>>>;

pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) loaded: Arc<dyn LoadedImages>,
    pub(super) settings: ImageSettings,
    pub(super) http: reqwest::Client,
    pub(super) locks: Locks,
    flights: Mutex<Flights>,
    parsed: Mutex<HashMap<Digest, ImageInfo>>,
}

/// [`Images`] on containerd. Clones share everything.
#[derive(Clone)]
pub struct ContainerdImages(Arc<Inner>);

/// Ends a flight also when its work panics.
struct Landing(Arc<Inner>, (TenantId, ImageRef));

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.flights.lock().remove(&self.1);
    }
}

fn host_error(error: ContainerdError) -> ImageError {
    ImageError::Host {
        operation: error.operation,
        message: format!("{:?}: {}", error.source.code(), error.source.message()),
    }
}

impl ContainerdImages {
    /// On a containerd namespace and snapshotter, with the brain as the first place to ask.
    ///
    /// # Errors
    /// If no HTTP client can be made.
    pub fn new(
        containerd: Containerd,
        snapshotter: String,
        loaded: Arc<dyn LoadedImages>,
        settings: ImageSettings,
    ) -> Result<Self, ImageError> {
        // One that is installed already is fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
                .redirect(reqwest::redirect::Policy::none())
                .referer(false)
                .connect_timeout(settings.stall_timeout.min(Duration::from_secs(10)))
                .pool_idle_timeout(Duration::from_secs(30))
        };
        let http = builder().build().or_else(|error| {
            // A host without ca-certificates runs what the brain loaded, and pulls from registries that need no TLS.
            tracing::warn!(
                error = %error, "this host trusts no certificate authority: registries can't be reached over HTTPS; \
                 install ca-certificates and start the agent anew"
            );
            builder().tls_certs_only([]).build()
        });
        let http = http.map_err(|error| ImageError::Host {
            operation: "preparing TLS",
            message: error.to_string(),
        })?;
        Ok(Self(Arc::new(Inner {
            store: Store {
                containerd,
                snapshotter,
            },
            loaded,
            settings,
            http,
            locks: Locks::default(),
            flights: Mutex::default(),
            parsed: Mutex::default(),
        })))
    }

    /// Joins the pull of this image that is under way, or begins one. It goes on when its callers leave.
    fn flight(
        &self,
        tenant: TenantId,
        reference: &ImageRef,
        credential: Option<&RegistryCredential>,
    ) -> (broadcast::Receiver<Progress>, Outcome) {
        let key = (tenant, reference.clone());
        let mut flights = self.0.flights.lock();
        if let Some((progress, outcome)) = flights.get(&key) {
            return (progress.subscribe(), outcome.clone());
        }
        let (progress, receiver) = broadcast::channel(256);
        let report = Report(progress.clone());
        let landing = Landing(self.0.clone(), key.clone());
        let (reference, credential) = (reference.clone(), credential.cloned());
        let task = tokio::spawn(async move {
            let inner = landing.0.clone();
            let result = pull(&inner, tenant, &reference, credential.as_ref(), &report).await;
            if let Ok(info) = &result {
                inner.remember(info);
            }
            drop(landing);
            result
        });
        let name = key.1.clone();
        let outcome = async move {
            match task.await {
                Ok(result) => result,
                Err(error) => Err(ImageError::Store {
                    reference: name,
                    operation: "pulling",
                    message: error.to_string(),
                }),
            }
        };
        let outcome = outcome.boxed().shared();
        flights.insert(key, (progress, outcome.clone()));
        (receiver, outcome)
    }
}

impl Inner {
    fn remember(&self, info: &ImageInfo) {
        let mut parsed = self.parsed.lock();
        if parsed.len() >= CACHED {
            parsed.clear();
        }
        parsed.insert(info.manifest, info.clone());
    }

    /// What the record names, from memory or the store; None if its documents are gone.
    async fn info(&self, record: &Record) -> Result<Option<ImageInfo>, ImageError> {
        if let Some(info) = self.parsed.lock().get(&record.manifest) {
            let reference = record.reference.clone();
            return Ok(Some(ImageInfo {
                reference,
                ..info.clone()
            }));
        }
        let document = async |digest| match self.store.read_small(digest, MAX_DOCUMENT).await {
            Ok(body) => Ok(Some(body)),
            Err(error) if error.code() == Code::NotFound => Ok(None),
            Err(error) => Err(store_error(&record.reference, &error)),
        };
        let refused = |message: String| ImageError::Refused {
            reference: record.reference.clone(),
            message,
        };
        let Some(body) = document(record.manifest).await? else {
            return Ok(None);
        };
        let manifest = read_manifest(&body).map_err(|error| refused(error.to_string()))?;
        let Some(body) = document(manifest.config.digest).await? else {
            return Ok(None);
        };
        let (config, diff_ids) = read_config(&body, manifest.layers.len(), &self.settings.arch)
            .map_err(|error| refused(error.to_string()))?;
        let chain_ids = chain_ids(&diff_ids);
        let info = ImageInfo {
            reference: record.reference.clone(),
            manifest: record.manifest,
            chain_id: chain_ids.last().cloned().unwrap_or_default(),
            chain_ids,
            config,
        };
        self.remember(&info);
        Ok(Some(info))
    }

    async fn used_percent(&self) -> Result<u8, ImageError> {
        let root = self.settings.root.clone();
        let stat = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&root)).await;
        let fail = |message: String| ImageError::Host {
            operation: "measuring the disk",
            message: format!("{}: {message}", self.settings.root.display()),
        };
        let stat = stat.map_err(|error| fail(error.to_string()))?;
        let stat = stat.map_err(|error| fail(error.to_string()))?;
        Ok(used_percent(
            stat.blocks(),
            stat.blocks_free(),
            stat.blocks_available(),
        ))
    }
}

#[async_trait]
impl Images for ContainerdImages {
    async fn lookup(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<ImageInfo>, ImageError> {
        let inner = &self.0;
        let fail = |error: ContainerdError| store_error(reference, &error);
        let Some(record) = inner.store.record(tenant, reference).await.map_err(fail)? else {
            return Ok(None);
        };
        let Some(info) = inner.info(&record).await? else {
            return Ok(None);
        };
        if !inner.store.has_snapshot(&info.chain_id).await.map_err(fail)? {
            return Ok(None);
        }
        let now = UnixMillis::now();
        if now.since(record.used) > TOUCH_MS {
            // Beside the start, not before it.
            let (store, reference) = (inner.store.clone(), reference.clone());
            tokio::spawn(async move {
                if let Err(error) = store.touch(tenant, &reference, now).await {
                    tracing::debug!(%reference, %error, "last use not noted");
                }
            });
        }
        Ok(Some(info))
    }

    async fn pull(
        &self,
        tenant: TenantId,
        reference: &ImageRef,
        credential: Option<&RegistryCredential>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<ImageInfo, ImageError> {
        let (mut events, mut outcome) = self.flight(tenant, reference, credential);
        loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    // A slow or absent listener misses some; it must not slow the pull.
                    Ok(event) => drop(progress.try_send(event)),
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return outcome.await,
                },
                result = &mut outcome => {
                    while let Ok(event) = events.try_recv() {
                        let _ = progress.try_send(event);
                    }
                    return result;
                }
            }
        }
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<ImageSummary>, ImageError> {
        let store = &self.0.store;
        let in_use = store.in_use().await.map_err(host_error)?;
        let mut records = store.records(Some(tenant)).await.map_err(host_error)?;
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        let images = records.into_iter().map(|record| ImageSummary {
            used_by: in_use.get(&(tenant, record.manifest)).copied().unwrap_or(0),
            digest: record.manifest,
            size: Bytes(record.size),
            created_at: record.created,
            reference: record.reference,
        });
        Ok(images.collect())
    }

    async fn remove(&self, tenant: TenantId, reference: &ImageRef) -> Result<(), ImageError> {
        let store = &self.0.store;
        let fail = |error: ContainerdError| store_error(reference, &error);
        let absent = || ImageError::NotFound {
            reference: reference.clone(),
            registry: "this node".to_owned(),
        };
        let record = store.record(tenant, reference).await.map_err(fail)?;
        let record = record.ok_or_else(absent)?;
        let in_use = store.in_use().await.map_err(fail)?;
        if let Some(used_by) = in_use.get(&(tenant, record.manifest)).copied() {
            return Err(ImageError::InUse {
                reference: reference.clone(),
                used_by,
            });
        }
        match store.remove_record(tenant, reference).await.map_err(fail)? {
            true => Ok(()),
            false => Err(absent()),
        }
    }

    async fn collect_garbage(&self, high_percent: u8, low_percent: u8) -> Result<Vec<ImageRef>, ImageError> {
        let inner = &self.0;
        let mut removed = Vec::new();
        if inner.used_percent().await? < high_percent {
            return Ok(removed);
        }
        let records = inner.store.records(None).await.map_err(host_error)?;
        let in_use = inner.store.in_use().await.map_err(host_error)?;
        let grace_ms = u64::try_from(inner.settings.collect_grace.as_millis()).unwrap_or(u64::MAX);
        for record in removable(records, &in_use, UnixMillis::now(), grace_ms) {
            let key = (record.tenant, record.reference);
            if inner.flights.lock().contains_key(&key) {
                continue;
            }
            // Asked again: a container may have come meanwhile.
            let in_use = inner.store.in_use().await.map_err(host_error)?;
            if in_use.contains_key(&(key.0, record.manifest)) {
                continue;
            }
            if inner
                .store
                .remove_record(key.0, &key.1)
                .await
                .map_err(host_error)?
            {
                tracing::info!(tenant = %key.0, image = %key.1, "image removed to free room");
                removed.push(key.1);
            }
            if inner.used_percent().await? < low_percent {
                break;
            }
        }
        Ok(removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_only_here_and_where_listed() {
        let settings = ImageSettings {
            insecure_registries: vec!["reg.lan:5000".to_owned(), "old.lan".to_owned()],
            ..ImageSettings::default()
        };
        let table = [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:1", true),
            ("[::1]:5000", true),
            ("reg.lan:5000", true),
            ("reg.lan", false),
            ("old.lan:80", true),
            ("127.0.0.1.evil.org", false),
            ("docker.io", false),
        ];
        for (registry, plain) in table {
            assert_eq!(settings.plain_http(registry), plain, "{registry}");
        }
    }
}
