//! Manifests, indexes and configs.
//!
//! Pure parsing of what registries serve, docker's and OCI's media types alike, into exactly what a pull needs. Refuses
//! forms that two readers could understand differently, digests other than sha256, and absurd sizes or counts.

use std::io;

use berth_common::model::Digest;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest};
use sha2::Digest as _;

/// Largest manifest, index or config, bytes.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of an image; more do not fit into one overlay mount.
pub const MAX_LAYERS: usize = 127;
/// What to ask a registry for.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json, \
                          application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json";
/// OCI's media type of a manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's media type of a config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// A blob an image needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blob {
    /// What it hashes to.
    pub digest: Digest,
    /// How long it is, bytes.
    pub size: u64,
}

/// An image's manifest, reduced to what a pull needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Itself.
    pub blob: Blob,
    /// Its media type.
    pub media_type: String,
    /// The image config.
    pub config: Blob,
    /// Layers, lowest first.
    pub layers: Vec<Blob>,
}

impl Manifest {
    /// Sum of all blobs, bytes.
    pub fn total(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.size);
        layers.fold(
            self.blob.size.saturating_add(self.config.size),
            u64::saturating_add,
        )
    }
}

/// What a registry answered to a request for a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// The image.
    Manifest(Manifest),
    /// An index: this entry is for the platform asked for.
    Index(Blob),
}

/// Why a document is refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Not readable.
    #[error("the {what} is malformed: {message}")]
    Malformed {
        /// Which document.
        what: &'static str,
        /// Where.
        message: String,
    },
    /// No image for this host in the index.
    #[error("the image has no version for linux/{wanted}; it has {available}")]
    Platform {
        /// This host.
        wanted: String,
        /// What there is.
        available: String,
    },
    /// Not an image this host can run.
    #[error("{0}")]
    Unfit(String),
}

fn malformed(what: &'static str, error: impl std::fmt::Display) -> DocumentError {
    DocumentError::Malformed {
        what,
        message: berth_common::id::clip(&error.to_string(), 200),
    }
}

fn blob(what: &'static str, descriptor: &Descriptor) -> Result<Blob, DocumentError> {
    let digest = descriptor.digest().to_string();
    Ok(Blob {
        digest: digest.parse().map_err(|error| malformed(what, error))?,
        size: descriptor.size(),
    })
}

/// Reads a manifest or index; from an index, chooses the entry for linux and `arch` (as Go names it: `amd64`).
///
/// # Errors
/// See [`DocumentError`].
pub fn read_document(body: &[u8], arch: &str) -> Result<Document, DocumentError> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u32,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
    }
    let what = "manifest";
    let shape: Shape = serde_json::from_slice(body).map_err(|error| malformed(what, error))?;
    if shape.schema_version != 2 {
        return Err(DocumentError::Unfit(
            "the manifest is of docker's old schema 1; push the image again with a current tool".to_owned(),
        ));
    }
    match (shape.manifests, shape.layers) {
        (Some(_), None) => Ok(Document::Index(choose(body, arch)?)),
        (None, Some(_)) => Ok(Document::Manifest(read_manifest(body)?)),
        _ => Err(malformed(what, "it is neither an image nor an index")),
    }
}

fn choose(body: &[u8], arch: &str) -> Result<Blob, DocumentError> {
    let what = "image index";
    let index = ImageIndex::from_reader(body).map_err(|error| malformed(what, error))?;
    let mut available = Vec::new();
    let mut best: Option<(u8, &Descriptor)> = None;
    for entry in index.manifests() {
        let Some(platform) = entry.platform() else {
            continue;
        };
        let (os, entry_arch) = (platform.os().to_string(), platform.architecture().to_string());
        let variant = platform.variant().as_deref().unwrap_or_default();
        available.push(format!("{os}/{entry_arch}"));
        if os != "linux" || entry_arch != arch {
            continue;
        }
        // Any host of the architecture runs its base variant; later ones only some.
        let rank = match (arch, variant) {
            (_, "") | ("arm64", "v8") | ("amd64", "v1") | ("arm", "v7") => 0,
            ("arm", "v6" | "v5") => 1,
            _ => continue,
        };
        if best.is_none_or(|(other, _)| rank < other) {
            best = Some((rank, entry));
        }
    }
    match best {
        Some((_, entry)) => blob(what, entry),
        None => {
            available.truncate(20);
            Err(DocumentError::Platform {
                wanted: arch.to_owned(),
                available: berth_common::id::clip(&available.join(", "), 200),
            })
        }
    }
}

/// Reads an image manifest.
///
/// # Errors
/// See [`DocumentError`].
pub fn read_manifest(body: &[u8]) -> Result<Manifest, DocumentError> {
    let what = "manifest";
    let manifest = ImageManifest::from_reader(body).map_err(|error| malformed(what, error))?;
    let config = blob(what, manifest.config())?;
    if config.size > MAX_DOCUMENT {
        return Err(DocumentError::Unfit(format!(
            "its config has {} bytes (limit {MAX_DOCUMENT})",
            config.size
        )));
    }
    if manifest.layers().len() > MAX_LAYERS {
        return Err(DocumentError::Unfit(format!(
            "it has {} layers (limit {MAX_LAYERS}); squash some",
            manifest.layers().len()
        )));
    }
    let layers = manifest.layers().iter();
    let layers = layers
        .map(|layer| blob(what, layer))
        .collect::<Result<Vec<_>, _>>()?;
    if layers.iter().any(|layer| i64::try_from(layer.size).is_err()) {
        return Err(malformed(what, "a layer's size is absurd"));
    }
    Ok(Manifest {
        blob: Blob {
            digest: Digest::of(body),
            size: body.len() as u64,
        },
        media_type: manifest
            .media_type()
            .as_ref()
            .map_or_else(|| OCI_MANIFEST.to_owned(), ToString::to_string),
        config,
        layers,
    })
}

/// Reads an image config and checks that it fits the manifest and this host. Gives the diff ids too.
///
/// # Errors
/// See [`DocumentError`].
pub fn read_config(
    body: &[u8],
    layers: usize,
    arch: &str,
) -> Result<(ImageConfiguration, Vec<Digest>), DocumentError> {
    let what = "image config";
    let config = ImageConfiguration::from_reader(io::Cursor::new(body)).map_err(|e| malformed(what, e))?;
    let (os, image_arch) = (config.os().to_string(), config.architecture().to_string());
    if os != "linux" || image_arch != arch {
        return Err(DocumentError::Platform {
            wanted: arch.to_owned(),
            available: berth_common::id::clip(&format!("{os}/{image_arch}"), 80),
        });
    }
    let diff_ids = config.rootfs().diff_ids().iter();
    let diff_ids = diff_ids
        .map(|id| id.parse::<Digest>().map_err(|error| malformed(what, error)))
        .collect::<Result<Vec<_>, _>>()?;
    if diff_ids.len() != layers {
        return Err(DocumentError::Unfit(format!(
            "its manifest names {layers} layers and its config {}",
            diff_ids.len()
        )));
    }
    if layers == 0 {
        return Err(DocumentError::Unfit(
            "it has no layers, so nothing to run".to_owned(),
        ));
    }
    Ok((config, diff_ids))
}

/// Keys of the unpacked layers, lowest first: the first is the diff id, each next one the digest of
/// `previous key, space, diff id`.
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.to_string(),
            Some(parent) => {
                let raw = sha2::Sha256::digest(format!("{parent} {diff_id}"));
                Digest::from_bytes(raw.into()).to_string()
            }
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(fill: char, extra: serde_json::Value) -> serde_json::Value {
        let mut value = json!({
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "digest": format!("sha256:{}", fill.to_string().repeat(64)),
            "size": 7,
        });
        value
            .as_object_mut()
            .unwrap()
            .extend(extra.as_object().unwrap().clone());
        value
    }

    fn bytes(value: &serde_json::Value) -> Vec<u8> {
        serde_json::to_vec(value).unwrap()
    }

    #[test]
    fn the_index_entry_of_this_host_is_chosen() {
        let platform = |arch: &str, variant: &str| json!({"platform": {"architecture": arch, "os": "linux", "variant": variant}});
        let index = json!({"schemaVersion": 2, "manifests": [
            descriptor('1', json!({"platform": {"architecture": "amd64", "os": "windows"}})),
            descriptor('2', json!({"platform": {"architecture": "unknown", "os": "unknown"}})),
            descriptor('3', platform("amd64", "v3")),
            descriptor('4', json!({"platform": {"architecture": "amd64", "os": "linux"}})),
            descriptor('5', platform("arm64", "v8")),
        ]});
        for (arch, fill) in [("amd64", '4'), ("arm64", '5')] {
            let Document::Index(chosen) = read_document(&bytes(&index), arch).unwrap() else {
                panic!("not an index");
            };
            assert_eq!(chosen.digest.hex(), fill.to_string().repeat(64));
        }
        let error = read_document(&bytes(&index), "riscv64").unwrap_err();
        assert!(error.to_string().contains("linux/amd64"), "{error}");
    }

    #[test]
    fn malformed_documents_are_refused() {
        let config = descriptor('a', json!({}));
        let many = vec![descriptor('b', json!({})); MAX_LAYERS + 1];
        let sha512 = format!("sha512:{}", "a".repeat(128));
        let table = [
            b"".to_vec(),
            b"[]".to_vec(),
            br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(),
            bytes(&json!({"schemaVersion": 2, "config": config, "layers": [], "manifests": []})),
            bytes(&json!({"schemaVersion": 2, "config": config, "layers": many})),
            bytes(
                &json!({"schemaVersion": 2, "config": descriptor('a', json!({"size": MAX_DOCUMENT + 1})), "layers": []}),
            ),
            bytes(
                &json!({"schemaVersion": 2, "config": descriptor('a', json!({"digest": sha512})), "layers": []}),
            ),
            bytes(
                &json!({"schemaVersion": 2, "config": descriptor('a', json!({"digest": "sha256:../../x"})), "layers": []}),
            ),
            bytes(
                &json!({"schemaVersion": 2, "config": config, "layers": [descriptor('b', json!({"size": -1}))]}),
            ),
        ];
        for body in table {
            assert!(
                read_document(&body, "amd64").is_err(),
                "{}",
                String::from_utf8_lossy(&body)
            );
        }
    }

    #[test]
    fn a_config_must_fit_manifest_and_host() {
        let id = format!("sha256:{}", "c".repeat(64));
        let config = |arch: &str, ids: &[&str]| {
            bytes(
                &json!({"architecture": arch, "os": "linux", "config": {"Cmd": ["/bin/sh"], "Entrypoint": null, "Volumes": null},
                          "rootfs": {"type": "layers", "diff_ids": ids}, "docker_version": "24", "history": []}),
            )
        };
        assert!(read_config(&config("amd64", &[&id]), 1, "amd64").is_ok());
        assert!(read_config(&config("arm64", &[&id]), 1, "amd64").is_err());
        assert!(read_config(&config("amd64", &[&id, &id]), 1, "amd64").is_err());
        assert!(read_config(&config("amd64", &["md5:1"]), 1, "amd64").is_err());
        assert!(read_config(&config("amd64", &[]), 0, "amd64").is_err());
    }

    #[test]
    fn chain_ids_follow_the_oci_rule() {
        let ids = [Digest::of(b"a"), Digest::of(b"b"), Digest::of(b"c")];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0].to_string());
        let second = Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()).to_string();
        assert_eq!(chain[1], second);
        assert_eq!(
            chain[2],
            Digest::of(format!("{second} {}", ids[2]).as_bytes()).to_string()
        );
    }
}
