//! Images in memory: every reference exists at its registry unless a fault says otherwise.

use std::collections::BTreeMap;

use async_trait::async_trait;
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, LoadedImage, RegistryCredential, UnixMillis};
use berth_common::protocol::{ImageSummary, Progress};
use berth_common::units::Bytes;
use parking_lot::Mutex;
use sha2::Digest as _;
use tokio::sync::mpsc;

use super::faults::{Fault, Faults};
use crate::image::{ImageError, ImageInfo, Images, LoadedImages};

/// See the module.
#[derive(Debug, Default)]
pub struct FakeImages {
    /// Faults by method name.
    pub faults: Faults,
    here: Mutex<BTreeMap<(TenantId, ImageRef), UnixMillis>>,
}

fn digest_of(reference: &ImageRef) -> Digest {
    let text = format!("sha256:{}", hex::encode(sha2::Sha256::digest(reference.as_str())));
    match text.parse() {
        Ok(digest) => digest,
        Err(_) => unreachable!("64 hex digits are a digest"),
    }
}

fn info(reference: &ImageRef) -> ImageInfo {
    let manifest = digest_of(reference);
    ImageInfo {
        reference: reference.clone(),
        chain_id: manifest.to_string(),
        chain_ids: vec![manifest.to_string()],
        manifest,
        config: oci_spec::image::ImageConfiguration::default(),
    }
}

impl FakeImages {
    async fn fault(&self, operation: &'static str, reference: &ImageRef) -> Result<(), ImageError> {
        match self.faults.take(operation) {
            None => Ok(()),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Some(Fault::Fail {
                message,
                retryable: false,
            }) => Err(ImageError::Refused {
                reference: reference.clone(),
                message,
            }),
            Some(Fault::Fail { message, .. }) => Err(ImageError::Unreachable {
                reference: reference.clone(),
                registry: reference.registry().to_owned(),
                message,
            }),
            Some(Fault::FailAfter) => Err(ImageError::Store {
                reference: reference.clone(),
                operation,
                message: "the answer was lost".to_owned(),
            }),
        }
    }
}

#[async_trait]
impl Images for FakeImages {
    async fn lookup(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<ImageInfo>, ImageError> {
        self.fault("lookup", reference).await?;
        let here = self.here.lock();
        Ok(here
            .contains_key(&(tenant, reference.clone()))
            .then(|| info(reference)))
    }

    async fn pull(
        &self,
        tenant: TenantId,
        reference: &ImageRef,
        _credential: Option<&RegistryCredential>,
        progress: mpsc::Sender<Progress>,
    ) -> Result<ImageInfo, ImageError> {
        let report = |step: &str| Progress {
            step: step.to_owned(),
            item: String::new(),
            done: 1,
            total: 1,
        };
        let _ = progress.try_send(report("download"));
        self.fault("pull", reference).await?;
        self.here
            .lock()
            .insert((tenant, reference.clone()), UnixMillis::now());
        let _ = progress.try_send(report("done"));
        Ok(info(reference))
    }

    async fn list(&self, tenant: TenantId) -> Result<Vec<ImageSummary>, ImageError> {
        let here = self.here.lock();
        let mine = here.iter().filter(|((t, _), _)| *t == tenant);
        Ok(mine
            .map(|((_, reference), at)| ImageSummary {
                reference: reference.clone(),
                digest: digest_of(reference),
                size: Bytes::mib(1),
                used_by: 0,
                created_at: *at,
            })
            .collect())
    }

    async fn remove(&self, tenant: TenantId, reference: &ImageRef) -> Result<(), ImageError> {
        self.fault("remove", reference).await?;
        self.here.lock().remove(&(tenant, reference.clone()));
        Ok(())
    }

    async fn collect_garbage(&self, _high: u8, _low: u8) -> Result<Vec<ImageRef>, ImageError> {
        Ok(Vec::new())
    }
}

/// A brain into which nothing was loaded.
#[derive(Debug, Default)]
pub struct NoLoadedImages;

#[async_trait]
impl LoadedImages for NoLoadedImages {
    async fn find(&self, _tenant: TenantId, _reference: &ImageRef) -> Result<Option<LoadedImage>, String> {
        Ok(None)
    }

    async fn blob(
        &self,
        _tenant: TenantId,
        digest: Digest,
        _offset: u64,
    ) -> Result<mpsc::Receiver<Result<bytes::Bytes, String>>, String> {
        Err(format!("{digest} was not loaded"))
    }
}
