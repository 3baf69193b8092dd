//! Good archives of every form, and hostile ones built byte by byte.

mod hostile;

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use berth_common::error::{ErrorKind, Problem};
use berth_common::model::{Digest, ImageRef, UnixMillis};
use berth_common::units::Bytes;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;

use super::{BlobStore, LoadLimits, LoadOptions, NewImage, load, receive};

/// A tar archive in the making.
#[derive(Clone, Default)]
struct Tar(Vec<(tar::Header, String, Vec<u8>)>);

impl Tar {
    fn add(mut self, name: &str, body: impl AsRef<[u8]>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.as_ref().len() as u64);
        header.set_mode(0o644);
        self.0.push((header, name.to_owned(), body.as_ref().to_vec()));
        self
    }

    fn special(mut self, kind: tar::EntryType, name: &str, size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_link_name("/etc/shadow").unwrap();
        self.0.push((header, name.to_owned(), Vec::new()));
        self
    }

    fn without(mut self, name: &str) -> Self {
        let before = self.0.len();
        self.0.retain(|entry| entry.1 != name);
        assert_ne!(self.0.len(), before, "{name}");
        self
    }

    fn build(self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (mut header, name, body) in self.0 {
            if header.entry_type().is_file() {
                builder.append_data(&mut header, name, &*body).unwrap();
            } else {
                header.set_path(name).unwrap();
                header.set_cksum();
                builder.append(&header, &*body).unwrap();
            }
        }
        builder.into_inner().unwrap()
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn blob(body: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(body).hex())
}

fn descriptor(kind: &str, body: &[u8]) -> Value {
    json!({"mediaType": kind, "digest": Digest::of(body), "size": body.len()})
}

fn named(mut descriptor: Value, key: &str, name: &str) -> Value {
    descriptor["annotations"][key] = json!(name);
    descriptor
}

fn on(mut descriptor: Value, platform: &str) -> Value {
    let (os, arch) = platform.split_once('/').unwrap();
    descriptor["platform"] = json!({"os": os, "architecture": arch});
    descriptor
}

fn config(arch: &str, layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids = layers.iter().map(|layer| Digest::of(layer)).collect::<Vec<_>>();
    let body = json!({"os": "linux", "architecture": arch, "config": {"Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    body.to_string().into_bytes()
}

/// One image's blobs, and its manifest.
fn image(tar: Tar, arch: &str, layer: &[u8]) -> (Tar, Vec<u8>) {
    let config = config(arch, &[layer]);
    let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]});
    let manifest = manifest.to_string().into_bytes();
    let tar = tar.add(&blob(layer), layer).add(&blob(&config), &config);
    (tar.add(&blob(&manifest), &manifest), manifest)
}

fn index(manifests: &[Value]) -> Vec<u8> {
    let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    body.to_string().into_bytes()
}

const REF: &str = "org.opencontainers.image.ref.name";

/// A layout with one image, `shop:1` for amd64.
fn layout() -> (Tar, Vec<u8>) {
    let (tar, manifest) = image(Tar::default(), "amd64", b"the layer");
    let top = named(descriptor(MANIFEST, &manifest), REF, "shop:1");
    (tar.add("index.json", index(&[top])), manifest)
}

/// A docker archive with one image of the given layer bytes, named by what `layer` is when unpacked.
fn docker(layer: &[u8], packed: &[u8], tags: &[&str]) -> Tar {
    let config = config("amd64", &[layer]);
    let name = format!("{}.json", Digest::of(&config).hex());
    let manifest = json!([{"Config": name, "RepoTags": tags, "Layers": ["0a/layer.tar"]}]);
    Tar::default()
        .add(&name, &config)
        .add("0a/layer.tar", packed)
        .add("manifest.json", manifest.to_string())
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn options() -> LoadOptions {
    LoadOptions {
        name: None,
        arch: "amd64".to_owned(),
        limits: LoadLimits {
            unpacked: Bytes::mib(2),
            entries: 50,
            document: Bytes(4096),
            documents: Bytes(16 << 10),
            images: 3,
        },
    }
}

struct Bench {
    dir: tempfile::TempDir,
    store: BlobStore,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    async fn load(&self, archive: &[u8], options: LoadOptions) -> Result<Vec<NewImage>, Problem> {
        let path = self.dir.path().join("upload");
        std::fs::write(&path, archive).unwrap();
        let result = load(&self.store, &path, options).await;
        let left = std::fs::read_dir(self.store.tmp_dir()).unwrap().count();
        assert_eq!(left, 0, "temporary files are left");
        result
    }

    /// Every blob of the image is stored under its digest and with its size.
    async fn check(&self, image: &NewImage) {
        assert_eq!(image.blobs[0].0, image.manifest);
        for (digest, size) in &image.blobs {
            let body = self.body(*digest).await;
            assert_eq!((Digest::of(&body), body.len() as u64), (*digest, size.0));
        }
    }

    async fn body(&self, digest: Digest) -> Vec<u8> {
        let (_, mut file) = self.store.read(digest, 0).await.unwrap().expect("stored");
        let mut body = Vec::new();
        file.read_to_end(&mut body).await.unwrap();
        body
    }
}

fn names(images: &[NewImage]) -> Vec<&str> {
    images.iter().map(|image| image.reference.familiar()).collect()
}

#[tokio::test]
async fn a_layout_loads_plain_gzip_and_zstd() {
    let (tar, manifest) = layout();
    let plain = tar.build();
    let packed = [gzip(&plain), zstd::encode_all(&*plain, 1).unwrap(), plain];
    for archive in packed {
        let bench = Bench::new();
        let images = bench.load(&archive, options()).await.unwrap();
        assert_eq!(names(&images), ["shop:1"]);
        assert_eq!(images[0].manifest, Digest::of(&manifest));
        assert_eq!(images[0].blobs.len(), 3);
        bench.check(&images[0]).await;
        let tenant = berth_common::id::TenantId::from_bytes([7; 10]);
        let record = images[0].clone().into_record(tenant, UnixMillis(5));
        assert_eq!((record.tenant, record.loaded_at), (tenant, UnixMillis(5)));
    }
}

#[tokio::test]
async fn a_nested_index_gives_the_image_for_the_platform() {
    let (tar, amd) = image(Tar::default(), "amd64", b"for amd");
    let (tar, arm) = image(tar, "arm64", b"for arm");
    let attestation = on(descriptor(MANIFEST, b"absent"), "unknown/unknown");
    let nested = index(&[
        attestation,
        on(descriptor(MANIFEST, &arm), "linux/arm64"),
        on(descriptor(MANIFEST, &amd), "linux/amd64"),
    ]);
    let top = named(
        descriptor(INDEX, &nested),
        "io.containerd.image.name",
        "ghcr.io/a/b:2",
    );
    let tar = tar.add(&blob(&nested), &nested);
    let archive = tar.add("./index.json", index(&[named(top, REF, "2")])).build();
    for (arch, manifest) in [("amd64", &amd), ("arm64", &arm)] {
        let bench = Bench::new();
        let wanted = LoadOptions {
            arch: arch.to_owned(),
            ..options()
        };
        let images = bench.load(&archive, wanted).await.unwrap();
        assert_eq!(names(&images), ["ghcr.io/a/b:2"]);
        assert_eq!(images[0].manifest, Digest::of(manifest));
        bench.check(&images[0]).await;
    }
    let wanted = LoadOptions {
        arch: "riscv64".to_owned(),
        ..options()
    };
    let problem = Bench::new().load(&archive, wanted).await.unwrap_err();
    assert!(
        problem
            .detail
            .contains("linux/riscv64; it has linux/amd64, linux/arm64"),
        "{problem}"
    );
}

#[tokio::test]
async fn docker_archives_get_the_same_manifest_every_time() {
    let layer = b"layer of a docker archive".repeat(40);
    let packed = [
        (layer.clone(), "tar"),
        (gzip(&layer), "tar+gzip"),
        (zstd::encode_all(&*layer, 1).unwrap(), "tar+zstd"),
    ];
    for (packed, kind) in packed {
        let bench = Bench::new();
        let archive = docker(&layer, &packed, &["shop:1", "shop:latest", "<none>:<none>"]).build();
        let images = bench.load(&archive, options()).await.unwrap();
        assert_eq!(names(&images), ["shop:1", "shop:latest"]);
        bench.check(&images[0]).await;
        let manifest: Value = serde_json::from_slice(&bench.body(images[0].manifest).await).unwrap();
        let expected = json!([descriptor(
            &format!("application/vnd.oci.image.layer.v1.{kind}"),
            &packed
        )]);
        assert_eq!(manifest["layers"], expected);
        let again = Bench::new().load(&archive, options()).await.unwrap();
        assert_eq!(again[0].manifest, images[0].manifest);
    }
}

#[tokio::test]
async fn a_given_name_replaces_the_archives_own() {
    let name = |text: &str| LoadOptions {
        name: Some(text.parse::<ImageRef>().unwrap()),
        ..options()
    };
    let (tar, manifest) = layout();
    let bench = Bench::new();
    let images = bench.load(&tar.clone().build(), name("mine:2")).await.unwrap();
    assert_eq!(names(&images), ["mine:2"]);
    let pinned = format!("mine@{}", Digest::of(&manifest));
    assert_eq!(
        bench
            .load(&tar.clone().build(), name(&pinned))
            .await
            .unwrap()
            .len(),
        1
    );
    let other = format!("mine@{}", Digest::of(b"other"));
    let problem = bench.load(&tar.build(), name(&other)).await.unwrap_err();
    assert!(problem.detail.contains("asks for another digest"), "{problem}");

    let (tar, one) = image(Tar::default(), "amd64", b"one");
    let (tar, two) = image(tar, "amd64", b"two");
    let tops = [("a:1", &one), ("b:1", &two), ("c:1", &two)]
        .map(|(name, manifest)| named(descriptor(MANIFEST, manifest), REF, name));
    let archive = tar.add("index.json", index(&tops)).build();
    assert_eq!(
        names(&bench.load(&archive, options()).await.unwrap()),
        ["a:1", "b:1", "c:1"]
    );
    let problem = bench.load(&archive, name("mine:2")).await.unwrap_err();
    assert!(
        problem.detail.contains("holds 2 images (a:1, b:1, c:1)"),
        "{problem}"
    );
}

#[tokio::test]
async fn the_example_image_loads_and_survives_a_collection() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/example-image");
    let bench = Bench::new();
    let out = bench.dir.path().join("example.tar");
    let made = Command::new(script).arg(&out).arg("example:1").output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let body = std::fs::read(&out).unwrap();
    let wanted = LoadOptions {
        name: None,
        arch: arch.to_owned(),
        limits: LoadLimits::default(),
    };
    let images = bench.load(&body, wanted).await.unwrap();
    assert_eq!(names(&images), ["example:1"]);
    bench.check(&images[0]).await;
    assert_eq!(bench.store.collect(&HashSet::new()).unwrap(), 0);
    bench.check(&images[0]).await;
}

#[tokio::test]
async fn uploads_are_received_bounded() {
    let bench = Bench::new();
    let dir = bench.store.tmp_dir();
    let count = || std::fs::read_dir(&dir).unwrap().count();
    let chunks = |last: Result<&'static str, &'static str>| {
        let parts = [Ok("hello "), last];
        futures::stream::iter(parts.map(|part| part.map(|text| bytes::Bytes::from_static(text.as_bytes()))))
    };
    let path = receive(chunks(Ok("world")), &dir, 11).await.unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), b"hello world");
    assert_eq!(count(), 1);
    drop(path);
    let large = receive(chunks(Ok("world")), &dir, 10).await.unwrap_err();
    assert_eq!(large.kind, ErrorKind::TooLarge);
    let broken = receive(chunks(Err("connection reset")), &dir, 11)
        .await
        .unwrap_err();
    assert_eq!(broken.kind, ErrorKind::Invalid);
    assert!(broken.detail.contains("connection reset"), "{broken}");
    assert_eq!(count(), 0);
}

#[test]
fn a_full_disk_is_named() {
    let source = std::io::Error::from(std::io::ErrorKind::StorageFull);
    let error = super::BlobError::Write {
        digest: Digest::of(b""),
        path: "/secret/place".into(),
        source,
    };
    let problem = Problem::from(super::LoadError::Blob(error));
    assert_eq!(problem.kind, ErrorKind::Unavailable);
    assert!(problem.detail.contains("disk is full"), "{problem}");
    assert!(!problem.to_string().contains("/secret"), "{problem}");
}
