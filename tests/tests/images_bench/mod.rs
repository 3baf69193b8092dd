//! What the image tests stand on: a real containerd, a registry that misbehaves on demand, and a brain's store in memory.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_agent::containerd::{Containerd, NAMESPACE};
use berth_agent::image::scan::ScanLimits;
use berth_agent::image::{ContainerdImages, ImageError, ImageInfo, ImageSettings, Images, LoadedImages};
use berth_common::id::TenantId;
use berth_common::model::{Digest, ImageRef, LoadedImage};
use berth_tests::containerd::{Containerd as Daemon, Version};
use berth_tests::registry::{Image, Layer, Packing, Registry};
use containerd_client::services::v1 as api;
use tokio::sync::mpsc;

pub const A: TenantId = TenantId::from_bytes([1; 10]);
pub const B: TenantId = TenantId::from_bytes([2; 10]);

pub struct Bench {
    pub images: ContainerdImages,
    pub containerd: Containerd,
    pub registry: Registry,
    pub daemon: Daemon,
    _dir: tempfile::TempDir,
}

pub fn settings(root: &Path) -> ImageSettings {
    ImageSettings {
        root: root.to_path_buf(),
        pull_timeout: Duration::from_secs(60),
        stall_timeout: Duration::from_millis(700),
        retries: 3,
        retry_pause: Duration::from_millis(20),
        collect_grace: Duration::ZERO,
        scan: ScanLimits {
            max_uncompressed: 64 << 20,
            max_ratio: 100,
            ratio_from: 4 << 20,
            ..ScanLimits::default()
        },
        ..ImageSettings::default()
    }
}

pub async fn bench_on(version: Version, loaded: Loaded) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("containerd");
    let daemon = tokio::task::spawn_blocking(move || Daemon::start(version, &at, None))
        .await
        .unwrap();
    let containerd = Containerd::connect(&daemon.socket(), NAMESPACE);
    let images = ContainerdImages::new(
        containerd.clone(),
        "overlayfs".to_owned(),
        Arc::new(loaded),
        settings(&daemon.root()),
    )
    .unwrap();
    let registry = Registry::start().await;
    Bench {
        images,
        containerd,
        registry,
        daemon,
        _dir: dir,
    }
}

pub async fn bench() -> Bench {
    bench_on(Version::System, Loaded::default()).await
}

pub fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let step = |_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(step).collect()
}

pub fn good(seed: u8) -> Image {
    let big = noise(seed, 3 << 20);
    Image::new(
        &[
            (
                Layer::files(&[("bin/app", &big), ("etc/seed", &[seed])]),
                Packing::Gzip,
            ),
            (
                Layer::files(&[("etc/hosts", b"127.0.0.1 localhost")]),
                Packing::Plain,
            ),
            (Layer::files(&[("etc/top", &noise(seed, 40_000))]), Packing::Zstd),
        ],
        seed % 2 == 1,
    )
}

impl Bench {
    pub async fn pull(&self, tenant: TenantId, name: &str) -> Result<ImageInfo, ImageError> {
        let (progress, _) = mpsc::channel(1);
        self.images
            .pull(tenant, &self.registry.reference(name), None, progress)
            .await
    }

    /// Content, snapshots, leases and records in the namespace.
    pub async fn left(&self) -> (usize, usize, usize, usize) {
        let mut content = 0;
        let list = api::ListContentRequest::default();
        let mut stream = self
            .containerd
            .content()
            .list(self.containerd.request(list))
            .await
            .unwrap()
            .into_inner();
        while let Some(reply) = stream.message().await.unwrap() {
            content += reply.info.len();
        }
        let mut snapshots = 0;
        let list = api::snapshots::ListSnapshotsRequest {
            snapshotter: "overlayfs".to_owned(),
            ..Default::default()
        };
        let reply = self
            .containerd
            .snapshots()
            .list(self.containerd.request(list))
            .await;
        let mut stream = reply.unwrap().into_inner();
        while let Some(reply) = stream.message().await.unwrap() {
            snapshots += reply.info.len();
        }
        let leases = self.containerd.leases().await.unwrap().len();
        let list = api::ListImagesRequest::default();
        let images = self
            .containerd
            .images()
            .list(self.containerd.request(list))
            .await
            .unwrap();
        (content, snapshots, leases, images.into_inner().images.len())
    }

    /// Milliseconds since the epoch at which the only image was used last; 0 when the daemon does not answer.
    pub async fn last_use(&self) -> u64 {
        let list = api::ListImagesRequest { filters: Vec::new() };
        let Ok(found) = self.containerd.images().list(self.containerd.request(list)).await else {
            return 0;
        };
        let image = found.into_inner().images.remove(0);
        let used = image.labels.iter().find(|(key, _)| key.ends_with("used"));
        used.and_then(|(_, at)| at.parse().ok()).unwrap_or(0)
    }

    /// Makes the only image look as if it had not been used for ever.
    pub async fn forget_last_use(&self) {
        let list = api::ListImagesRequest { filters: Vec::new() };
        let found = self
            .containerd
            .images()
            .list(self.containerd.request(list))
            .await
            .unwrap();
        let mut image = found.into_inner().images.remove(0);
        let key = image
            .labels
            .keys()
            .find(|key| key.ends_with("used"))
            .unwrap()
            .clone();
        image.labels.insert(key, "0".to_owned());
        let body = api::UpdateImageRequest {
            image: Some(image),
            ..Default::default()
        };
        self.containerd
            .images()
            .update(self.containerd.request(body))
            .await
            .unwrap();
    }

    pub async fn settles_at(&self, expected: (usize, usize, usize, usize)) {
        for _ in 0..50 {
            if self.left().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(self.left().await, expected, "{}", self.daemon.log());
    }

    pub async fn container(&self, id: &str, tenant: TenantId, image: Digest) {
        let labels = [
            ("berth/tenant", tenant.to_string()),
            ("berth/image", image.to_string()),
        ];
        let container = api::Container {
            id: id.to_owned(),
            labels: labels.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            runtime: Some(api::container::Runtime {
                name: "io.containerd.runc.v2".to_owned(),
                options: None,
            }),
            spec: Some(Default::default()),
            ..Default::default()
        };
        let body = api::CreateContainerRequest {
            container: Some(container),
        };
        self.containerd
            .containers()
            .create(self.containerd.request(body))
            .await
            .unwrap();
    }
}

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
