//! What images come from beside a registry: a brain's store, in memory.

use std::collections::HashMap;

use async_trait::async_trait;
use berth_agent::image::LoadedImages;
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, LoadedImage};
use tokio::sync::mpsc;

/// What was loaded into a brain, in memory; one blob breaks off once.
#[derive(Default)]
pub struct Loaded {
    pub image: Option<LoadedImage>,
    pub blobs: HashMap<Digest, Vec<u8>>,
    pub breaks: std::sync::Mutex<Option<(Digest, usize)>>,
    pub offsets: std::sync::Mutex<Vec<u64>>,
}

#[async_trait]
impl LoadedImages for Loaded {
    async fn find(&self, tenant: TenantId, reference: &ImageRef) -> Result<Option<LoadedImage>, String> {
        let image = self.image.clone();
        Ok(image.filter(|image| image.tenant == tenant && image.reference == *reference))
    }

    async fn blob(
        &self,
        _tenant: TenantId,
        digest: Digest,
        offset: u64,
    ) -> Result<mpsc::Receiver<Result<bytes::Bytes, String>>, String> {
        self.offsets.lock().unwrap().push(offset);
        let body = self.blobs.get(&digest).ok_or("no such blob")?[offset as usize..].to_vec();
        let cut = self
            .breaks
            .lock()
            .unwrap()
            .take_if(|(broken, _)| *broken == digest);
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let end = cut.map_or(body.len(), |(_, at)| at);
            for piece in body[..end].chunks(64 << 10) {
                let _ = sender.send(Ok(bytes::Bytes::copy_from_slice(piece))).await;
            }
            if cut.is_some() {
                let _ = sender.send(Err("the link broke".to_owned())).await;
            }
        });
        Ok(receiver)
    }
}
