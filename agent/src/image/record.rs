//! Which images there are: containerd's records of them, and the containers that are made from them.
//!
//! Owns a record's name and labels, and what they mean. Refuses records that berth did not write or that were changed
//! under it: it does not see them.

use std::collections::HashMap;

use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, UnixMillis};
use containerd_client::services::v1 as api;
use containerd_client::types::Descriptor;
use tonic::Code;

use super::store::{Store, Stored};

/// On records and containers: the owner.
pub const LABEL_TENANT: &str = "berth/tenant";
/// On containers: the digest of the manifest they are made from.
pub const LABEL_IMAGE: &str = "berth/image";
/// On records: the reference.
pub const LABEL_REFERENCE: &str = "berth/reference";
const LABEL_USED: &str = "berth/used";
const LABEL_SIZE: &str = "berth/size";

/// A tenant's image as containerd records it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) tenant: TenantId,
    pub(super) reference: ImageRef,
    pub(super) manifest: Digest,
    pub(super) media_type: String,
    pub(super) manifest_size: u64,
    /// Sum of the blobs, bytes.
    pub(super) size: u64,
    pub(super) used: UnixMillis,
    pub(super) created: UnixMillis,
}

impl Record {
    /// Its name in containerd.
    pub(super) fn name(tenant: TenantId, reference: &ImageRef) -> String {
        format!("{tenant}/{reference}")
    }

    /// None for records that are not berth's or were tampered with.
    fn read(image: api::Image) -> Option<Self> {
        let label = |key: &str| image.labels.get(key).map(String::as_str);
        let tenant: TenantId = label(LABEL_TENANT)?.parse().ok()?;
        let reference: ImageRef = label(LABEL_REFERENCE)?.parse().ok()?;
        let number = |key| label(key).and_then(|text| text.parse::<u64>().ok());
        let target = image.target.as_ref()?;
        let created = image.created_at.as_ref().map_or(0, |at| {
            let millis = at.seconds.saturating_mul(1000) + i64::from(at.nanos) / 1_000_000;
            u64::try_from(millis).unwrap_or(0)
        });
        (image.name == Self::name(tenant, &reference)).then_some(Self {
            tenant,
            manifest: target.digest.parse().ok()?,
            media_type: target.media_type.clone(),
            manifest_size: u64::try_from(target.size).unwrap_or(0),
            size: number(LABEL_SIZE).unwrap_or(0),
            used: UnixMillis(number(LABEL_USED).unwrap_or(0)),
            created: UnixMillis(created),
            reference,
        })
    }

    fn write(&self) -> api::Image {
        let label = |key: &str, value: String| (key.to_owned(), value);
        api::Image {
            name: Self::name(self.tenant, &self.reference),
            labels: HashMap::from([
                label(LABEL_TENANT, self.tenant.to_string()),
                label(LABEL_REFERENCE, self.reference.to_string()),
                label(LABEL_USED, self.used.0.to_string()),
                label(LABEL_SIZE, self.size.to_string()),
            ]),
            target: Some(Descriptor {
                media_type: self.media_type.clone(),
                digest: self.manifest.to_string(),
                size: i64::try_from(self.manifest_size).unwrap_or(0),
                ..Descriptor::default()
            }),
            ..api::Image::default()
        }
    }
}

impl Store {
    /// One record.
    pub(super) async fn record(&self, tenant: TenantId, reference: &ImageRef) -> Stored<Option<Record>> {
        let name = Record::name(tenant, reference);
        let body = api::GetImageRequest { name: name.clone() };
        match self.containerd.images().get(self.containerd.request(body)).await {
            Ok(reply) => Ok(reply.into_inner().image.and_then(Record::read)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.containerd.error("looking for image", name, status)),
        }
    }

    /// All records, of one tenant or of all.
    pub(super) async fn records(&self, tenant: Option<TenantId>) -> Stored<Vec<Record>> {
        let filters = match tenant {
            Some(tenant) => vec![format!("labels.\"{LABEL_TENANT}\"=={tenant}")],
            None => Vec::new(),
        };
        let body = api::ListImagesRequest { filters };
        let reply = self.containerd.images().list(self.containerd.request(body)).await;
        let reply = reply.map_err(|status| self.containerd.error("listing images", "", status))?;
        let records = reply.into_inner().images.into_iter().filter_map(Record::read);
        Ok(records.collect())
    }

    /// Writes a record, over an older one of its name.
    pub(super) async fn put_record(&self, record: &Record) -> Stored<()> {
        let image = record.write();
        let body = api::CreateImageRequest {
            image: Some(image.clone()),
            ..Default::default()
        };
        match self
            .containerd
            .images()
            .create(self.containerd.request(body))
            .await
        {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {}
            Err(status) => return Err(self.containerd.error("recording image", image.name, status)),
        }
        let name = image.name.clone();
        let body = api::UpdateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        let reply = self
            .containerd
            .images()
            .update(self.containerd.request(body))
            .await;
        reply.map_err(|status| self.containerd.error("recording image", name, status))?;
        Ok(())
    }

    /// Notes that an image was used; one that is gone is fine.
    pub(super) async fn touch(&self, tenant: TenantId, reference: &ImageRef, now: UnixMillis) -> Stored<()> {
        let name = Record::name(tenant, reference);
        let body = api::UpdateImageRequest {
            image: Some(api::Image {
                name: name.clone(),
                labels: HashMap::from([(LABEL_USED.to_owned(), now.0.to_string())]),
                // Left alone by the mask, but containerd 1.7 crashes without one.
                target: Some(Descriptor::default()),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec![format!("labels.{LABEL_USED}")],
            }),
            ..Default::default()
        };
        match self
            .containerd
            .images()
            .update(self.containerd.request(body))
            .await
        {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.containerd.error("touching image", name, status)),
        }
    }

    /// Removes a record and, before it returns, what only this held. False if it was gone.
    pub(super) async fn remove_record(&self, tenant: TenantId, reference: &ImageRef) -> Stored<bool> {
        let name = Record::name(tenant, reference);
        let body = api::DeleteImageRequest {
            name: name.clone(),
            sync: true,
            ..Default::default()
        };
        match self
            .containerd
            .images()
            .delete(self.containerd.request(body))
            .await
        {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(self.containerd.error("removing image", name, status)),
        }
    }

    /// How many containers are made from each image, by tenant and manifest.
    pub(super) async fn in_use(&self) -> Stored<HashMap<(TenantId, Digest), u32>> {
        let body = api::ListContainersRequest {
            filters: vec![format!("labels.\"{LABEL_IMAGE}\"")],
        };
        let reply = self
            .containerd
            .containers()
            .list(self.containerd.request(body))
            .await;
        let reply = reply.map_err(|status| self.containerd.error("listing containers", "", status))?;
        let mut counts = HashMap::new();
        for container in reply.into_inner().containers {
            let tenant = container
                .labels
                .get(LABEL_TENANT)
                .and_then(|text| text.parse().ok());
            let image = container
                .labels
                .get(LABEL_IMAGE)
                .and_then(|text| text.parse().ok());
            if let (Some(tenant), Some(image)) = (tenant, image) {
                *counts.entry((tenant, image)).or_insert(0) += 1;
            }
        }
        Ok(counts)
    }
}
