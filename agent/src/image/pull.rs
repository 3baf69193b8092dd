//! One pull, from name to record.
//!
//! Order is the safety: everything is written under a lease that ends by itself, labelled, unpacked, and only then
//! recorded. A crash at any step leaves what the lease holds, and nothing once it has ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, RegistryCredential, UnixMillis};
use berth_common::protocol::Progress;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use tokio::sync::broadcast;

use super::containerd_images::Inner;
use super::fetch::{Fetch, Patience, Trouble};
use super::manifest::{MAX_DOCUMENT, chain_ids, read_config};
use super::record::Record;
use super::registry::{Fault, Registry};
use super::source::Source;
use super::{ImageError, ImageInfo, unpack};
use crate::containerd::ContainerdError;

const LABEL_PULL: &str = "berth/pull";
/// How much longer than a pull its lease lasts.
const LEASE_MARGIN_SECS: u64 = 600;

/// Tells everyone who waits for a pull how far it is.
#[derive(Clone)]
pub(super) struct Report(pub(super) broadcast::Sender<Progress>);

impl Report {
    fn say(&self, step: &str, item: String, done: u64, total: u64) {
        // Nobody listening is fine.
        let _ = self.0.send(Progress {
            step: step.to_owned(),
            item,
            done,
            total,
        });
    }
}

/// An error of the store, in the words of images.
pub(super) fn store_error(reference: &ImageRef, error: &ContainerdError) -> ImageError {
    let message = error.source.message();
    if message.contains("no space left") || message.contains("quota exceeded") {
        return ImageError::NoSpace {
            reference: reference.clone(),
        };
    }
    ImageError::Store {
        reference: reference.clone(),
        operation: error.operation,
        message: format!("{:?}: {message}", error.source.code()),
    }
}

fn explain(reference: &ImageRef, registry: &str, trouble: Trouble) -> ImageError {
    let (reference, registry) = (reference.clone(), registry.to_owned());
    match trouble {
        Trouble::Store(error) => store_error(&reference, &error),
        Trouble::Source(Fault::Passing(message)) => ImageError::Unreachable {
            reference,
            registry,
            message,
        },
        Trouble::Source(Fault::Denied) => ImageError::Denied { reference, registry },
        Trouble::Source(Fault::NotFound) => ImageError::NotFound { reference, registry },
        Trouble::Source(Fault::Wrong(message)) => ImageError::Refused { reference, message },
    }
}

fn short(digest: Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// Pulls under a lease of its own, within the time limit.
pub(super) async fn pull(
    inner: &Inner,
    tenant: TenantId,
    reference: &ImageRef,
    credential: Option<&RegistryCredential>,
    report: &Report,
) -> Result<ImageInfo, ImageError> {
    let containerd = &inner.store.containerd;
    let fail = |error: ContainerdError| store_error(reference, &error);
    let key = Digest::of(Record::name(tenant, reference).as_bytes()).hex();
    // Leases of earlier attempts hold what those fetched; they go once this attempt holds it too, or is over.
    let earlier = containerd.leases().await.map_err(fail)?.into_iter();
    let earlier: Vec<_> = earlier
        .filter(|lease| lease.labels.get(LABEL_PULL) == Some(&key))
        .collect();
    let lease = format!("berth-pull-{:016x}", rand::random::<u64>());
    let labels = [(LABEL_PULL.to_owned(), key)];
    let limit = inner.settings.pull_timeout;
    containerd
        .lease_create(&lease, labels, limit.as_secs() + LEASE_MARGIN_SECS)
        .await
        .map_err(fail)?;
    let work = run(inner, &lease, tenant, reference, credential, report);
    let result = match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(ImageError::Unreachable {
            reference: reference.clone(),
            registry: reference.registry().to_owned(),
            message: format!("the pull took longer than {} s", limit.as_secs()),
        }),
    };
    let resumable = result.as_ref().is_err_and(ImageError::retryable);
    let over = earlier
        .into_iter()
        .map(|lease| lease.id)
        .chain((!resumable).then_some(lease));
    for id in over {
        if let Err(error) = containerd.lease_delete(&id).await {
            tracing::debug!(lease = id, %error, "lease stays until it ends by itself");
        }
    }
    result
}

async fn source(
    inner: &Inner,
    tenant: TenantId,
    reference: &ImageRef,
    credential: Option<&RegistryCredential>,
) -> Result<Source, ImageError> {
    let stall = inner.settings.stall_timeout;
    // If the brain can't be asked, the registry is not either: a loaded image's name may be someone else's there.
    let found = match tokio::time::timeout(stall, inner.loaded.find(tenant, reference)).await {
        Ok(found) => found,
        Err(_) => Err("it does not answer".to_owned()),
    };
    let found = found.map_err(|message| ImageError::Unreachable {
        reference: reference.clone(),
        registry: "the brain".to_owned(),
        message,
    })?;
    match found {
        Some(image) if image.tenant != tenant => Err(ImageError::Refused {
            reference: reference.clone(),
            message: "the brain offered another tenant's image".to_owned(),
        }),
        Some(image) => Ok(Source::Brain {
            blobs: inner.loaded.clone(),
            tenant,
            image,
            stall,
        }),
        None => {
            let plain = inner.settings.plain_http(reference.registry());
            Registry::new(inner.http.clone(), reference, credential, plain, stall)
                .map(Source::Registry)
                .map_err(|fault| explain(reference, reference.registry(), fault.into()))
        }
    }
}

async fn run(
    inner: &Inner,
    lease: &str,
    tenant: TenantId,
    reference: &ImageRef,
    credential: Option<&RegistryCredential>,
    report: &Report,
) -> Result<ImageInfo, ImageError> {
    report.say("resolve", reference.familiar().to_owned(), 0, 0);
    let source = source(inner, tenant, reference, credential).await?;
    let name = source.name(reference.registry()).to_owned();
    let work = fetch_and_unpack(inner, lease, tenant, reference, &source, report);
    work.await.map_err(|trouble| explain(reference, &name, trouble))
}

async fn fetch_and_unpack(
    inner: &Inner,
    lease: &str,
    tenant: TenantId,
    reference: &ImageRef,
    source: &Source,
    report: &Report,
) -> Result<ImageInfo, Trouble> {
    let settings = &inner.settings;
    let store = &inner.store;
    let fetch = Fetch {
        store,
        source,
        lease,
        patience: Patience {
            retries: settings.retries,
            pause: settings.retry_pause,
        },
    };
    let (manifest, body) = fetch.manifest(reference, &settings.arch).await?;
    if manifest.total() > settings.max_image {
        let why = format!("it has {} bytes (limit {})", manifest.total(), settings.max_image);
        return Err(Fault::Wrong(why).into());
    }

    let digest = manifest.config.digest;
    {
        let _one = inner.locks.lock(&digest.to_string()).await;
        fetch.blob(manifest.config, |_| {}).await?;
    }
    let config = store.read_small(digest, MAX_DOCUMENT).await?;
    let (config, diff_ids) =
        read_config(&config, manifest.layers.len(), &settings.arch).map_err(Fault::from)?;
    let chain = chain_ids(&diff_ids);

    let unpacked = AtomicU64::new(0);
    let mut work = Vec::with_capacity(manifest.layers.len());
    for (layer, diff_id) in manifest.layers.iter().copied().zip(diff_ids) {
        let (fetch, unpacked) = (&fetch, &unpacked);
        let one = async move {
            let _one = inner.locks.lock(&layer.digest.to_string()).await;
            fetch
                .blob(layer, |done| {
                    report.say("download", short(layer.digest), done, layer.size)
                })
                .await?;
            let scanned = unpack::scan(store, layer, diff_id, settings.scan).await?;
            let total = unpacked.fetch_add(scanned.uncompressed, Ordering::Relaxed) + scanned.uncompressed;
            if total > settings.max_image {
                let why = format!("it unpacks to more than {} bytes", settings.max_image);
                return Err(Trouble::from(Fault::Wrong(why)));
            }
            Ok((layer, scanned))
        };
        work.push(one.boxed());
    }
    let ready: Vec<_> = futures::stream::iter(work)
        .buffered(settings.parallel_layers.max(1))
        .try_collect()
        .await?;

    // Before the last blob is there, so that whoever finds the manifest finds all that it names.
    let top = chain.last().cloned().unwrap_or_default();
    let snapshot = format!("containerd.io/gc.ref.snapshot.{}", store.snapshotter);
    store
        .label_blob(digest, HashMap::from([(snapshot, top.clone())]))
        .await?;
    let refs = std::iter::once((
        "containerd.io/gc.ref.content.config".to_owned(),
        digest.to_string(),
    ));
    let refs = refs.chain(manifest.layers.iter().enumerate().map(|(n, layer)| {
        let key = format!("containerd.io/gc.ref.content.l.{n}");
        (key, layer.digest.to_string())
    }));
    let writing = inner.locks.lock(&manifest.blob.digest.to_string()).await;
    fetch.document(manifest.blob, body).await?;
    drop(writing);
    store.label_blob(manifest.blob.digest, refs.collect()).await?;

    let total = ready.len() as u64;
    for (n, (layer, scanned)) in ready.into_iter().enumerate() {
        report.say("unpack", short(layer.digest), n as u64, total);
        let parent = n.checked_sub(1).map_or("", |below| &chain[below]);
        let _one = inner.locks.lock(&chain[n]).await;
        unpack::layer(store, lease, layer, scanned, parent, &chain[n]).await?;
    }
    let now = UnixMillis::now();
    store
        .put_record(&Record {
            tenant,
            reference: reference.clone(),
            manifest: manifest.blob.digest,
            media_type: manifest.media_type.clone(),
            manifest_size: manifest.blob.size,
            size: manifest.total(),
            used: now,
            created: now,
        })
        .await?;
    report.say("done", reference.familiar().to_owned(), total, total);
    Ok(ImageInfo {
        reference: reference.clone(),
        manifest: manifest.blob.digest,
        chain_id: top,
        chain_ids: chain,
        config,
    })
}

/// Defaults of [`super::ImageSettings`] live with what they limit.
pub(super) const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
