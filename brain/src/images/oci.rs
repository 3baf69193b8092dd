//! OCI image layouts in a tar archive.
//!
//! Owns the walk from `index.json` through nested indexes to the manifests for one platform, and the reading of
//! documents both forms share. Documents are verified when they are read. Refuses documents that are index and manifest
//! at once, fields twice, foreign digests, and layers of kinds a node can't unpack.

use berth_common::id::clip;
use berth_common::model::{Digest, ImageRef};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::archive::{Archive, ArchiveError};
use super::load::LoadError;
use super::plan::{Found, Layer, Plan, wrong_digest};
use super::{LoadOptions, MAX_LAYERS};

/// Deepest nesting of indexes; real archives have two.
const DEPTH: usize = 4;
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYERS: [&str; 6] = [
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.zstd",
];
/// Where names are, the better one first.
const NAMES: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Plans every image of the layout that is for `options.arch`.
pub(super) fn plan(archive: &Archive, options: &LoadOptions) -> Result<Found, LoadError> {
    let name = "index.json";
    let index: ImageIndex = parse_index(name, &archive.document(name)?)?;
    let mut walk = Walk {
        archive,
        wanted: format!("linux/{}", options.arch),
        found: Found::default(),
    };
    for top in index.manifests() {
        let Some((leaf, rank)) = walk.best(top, 0)? else {
            continue;
        };
        tracing::debug!(digest = %leaf.digest(), rank, "image chosen");
        let mut plan = walk.manifest(&leaf)?;
        for (from, outer) in [(top, true), (&leaf, false)] {
            if outer || plan.names.is_empty() {
                take_names(&mut plan, from)?;
            }
        }
        walk.found.add(plan);
        if walk.found.plans.len() > options.limits.images {
            let why = format!("lists more than {} images", options.limits.images);
            return Err(ArchiveError::entry(name, why).into());
        }
    }
    Ok(walk.found)
}

struct Walk<'a> {
    archive: &'a Archive,
    wanted: String,
    found: Found,
}

impl Walk<'_> {
    /// The manifest below a descriptor that fits these nodes best; 0 is the best rank. What does not fit is noted.
    fn best(&mut self, at: &Descriptor, depth: usize) -> Result<Option<(Descriptor, u8)>, LoadError> {
        match at.media_type() {
            MediaType::ImageIndex => {}
            MediaType::Other(kind) if kind == DOCKER_INDEX => {}
            MediaType::ImageManifest => return self.fits(at),
            MediaType::Other(kind) if kind == DOCKER_MANIFEST => return self.fits(at),
            other => {
                self.found.others.insert(clip(&format!("a {other}"), 80));
                return Ok(None);
            }
        }
        let (entry, body) = self.document(at)?;
        if depth == DEPTH {
            return Err(ArchiveError::entry(&entry, "is an index nested too deeply").into());
        }
        let index = parse_index(&entry, &body)?;
        let mut best: Option<(Descriptor, u8)> = None;
        for below in index.manifests() {
            if let Some(one) = self.best(below, depth + 1)? {
                best = match best {
                    Some(known) if known.1 <= one.1 => Some(known),
                    _ => Some(one),
                };
            }
        }
        Ok(best)
    }

    /// Whether a manifest is for these nodes, by its descriptor or else by its config.
    fn fits(&mut self, at: &Descriptor) -> Result<Option<(Descriptor, u8)>, LoadError> {
        let (platform, variant) = match at.platform() {
            Some(platform) => (
                format!("{}/{}", platform.os(), platform.architecture()),
                platform.variant().clone(),
            ),
            None => {
                let manifest = self.read_manifest(at)?;
                if !is_config(manifest.config()) {
                    let kind = manifest.config().media_type();
                    self.found
                        .others
                        .insert(clip(&format!("an artifact with {kind}"), 80));
                    return Ok(None);
                }
                let config = self.read_config(&manifest)?.1;
                (platform_of(&config), config.variant().clone())
            }
        };
        if platform == self.wanted {
            let usual = matches!(variant.as_deref(), None | Some("v8" | "v1"));
            return Ok(Some((at.clone(), u8::from(!usual))));
        }
        // Attestations are listed like this; nobody looks for them.
        if platform != "unknown/unknown" {
            self.found.others.insert(clip(&platform, 80));
        }
        Ok(None)
    }

    /// Plans one image.
    fn manifest(&self, at: &Descriptor) -> Result<Plan, LoadError> {
        let (entry, body) = self.document(at)?;
        let manifest = parse_manifest(&entry, &body)?;
        if !is_config(manifest.config()) {
            let why = format!(
                "has a config of {}: it is no container image",
                manifest.config().media_type()
            );
            return Err(ArchiveError::entry(&entry, why).into());
        }
        let (raw_config, config) = self.read_config(&manifest)?;
        let platform = platform_of(&config);
        if platform != self.wanted {
            let why = format!(
                "is listed for {} but its config says {}",
                self.wanted,
                clip(&platform, 80)
            );
            return Err(ArchiveError::entry(&entry, why).into());
        }
        let diff_ids = diff_ids(&entry, &config)?;
        check_count(&entry, manifest.layers().len(), diff_ids.len())?;
        let layers = manifest.layers().iter().map(|layer| {
            if !is_layer(layer) {
                let why = format!("has a layer of {}, which no node can unpack", layer.media_type());
                return Err(ArchiveError::entry(&entry, why).into());
            }
            let (name, digest) = locate(layer)?;
            let size = self.sized(&name, layer)?;
            Ok(Layer {
                entry: name,
                digest,
                size,
            })
        });
        Ok(Plan {
            id: locate(at)?.1,
            names: Default::default(),
            doubtful: None,
            layers: layers.collect::<Result<_, LoadError>>()?,
            manifest: Some(body),
            config: raw_config,
        })
    }

    fn read_manifest(&self, at: &Descriptor) -> Result<ImageManifest, LoadError> {
        let (entry, body) = self.document(at)?;
        Ok(parse_manifest(&entry, &body)?)
    }

    fn read_config(&self, manifest: &ImageManifest) -> Result<(Vec<u8>, ImageConfiguration), LoadError> {
        let (name, body) = self.document(manifest.config())?;
        let config = parse(&name, &body)?;
        Ok((body, config))
    }

    /// Reads and verifies a document.
    fn document(&self, at: &Descriptor) -> Result<(String, Vec<u8>), LoadError> {
        let (name, digest) = locate(at)?;
        self.sized(&name, at)?;
        let body = self.archive.document(&name)?;
        match Digest::of(&body) {
            found if found == digest => Ok((name, body)),
            found => Err(wrong_digest(&name, digest, found).into()),
        }
    }

    /// The size of an entry, which must be the one promised.
    fn sized(&self, name: &str, at: &Descriptor) -> Result<u64, LoadError> {
        let size = self.archive.section(name)?.left();
        if size == at.size() {
            return Ok(size);
        }
        let why = format!("has {size} bytes, but {} are promised", at.size());
        Err(ArchiveError::entry(name, why).into())
    }
}

/// Name of the entry that holds what a descriptor points to.
fn locate(at: &Descriptor) -> Result<(String, Digest), LoadError> {
    let text = at.digest().to_string();
    let parsed = text.parse::<Digest>();
    let digest =
        parsed.map_err(|error| ArchiveError::entry(&text, format!("has no usable digest: {error}")))?;
    Ok((format!("blobs/sha256/{}", digest.hex()), digest))
}

/// Takes the names a descriptor's annotations give.
fn take_names(plan: &mut Plan, from: &Descriptor) -> Result<(), LoadError> {
    let Some(annotations) = from.annotations() else {
        return Ok(());
    };
    for text in NAMES.iter().filter_map(|key| annotations.get(*key)) {
        // The specification means a tag alone, many tools write the whole name. `latest` must not become an image.
        if !text.contains(['/', ':']) {
            plan.doubtful = Some(text.clone());
            continue;
        }
        let parsed = text.parse::<ImageRef>();
        let bad = |error| ArchiveError::entry("index.json", format!("names an image badly: {error}"));
        plan.names.insert(parsed.map_err(bad)?);
        return Ok(());
    }
    Ok(())
}

fn is_config(at: &Descriptor) -> bool {
    *at.media_type() == MediaType::ImageConfig || at.media_type().as_ref() == DOCKER_CONFIG
}

fn is_layer(at: &Descriptor) -> bool {
    match at.media_type() {
        MediaType::Other(kind) => DOCKER_LAYERS.contains(&kind.as_str()),
        kind => kind.as_ref().contains(".image.layer."),
    }
}

/// What a document claims to be.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: u32,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

fn shape(entry: &str, body: &[u8], index: bool) -> Result<(), ArchiveError> {
    let shape: Shape = parse(entry, body)?;
    let image = shape.config.is_some() || shape.layers.is_some();
    let why = match (shape.schema_version, shape.manifests.is_some(), image) {
        (2, true, true) => "claims to be index and manifest at once",
        (2, true, false) if index => return Ok(()),
        (2, false, true) if !index => return Ok(()),
        (2, ..) if index => "is no image index",
        (2, ..) => "is no image manifest",
        _ => "has a schemaVersion other than 2",
    };
    Err(ArchiveError::entry(entry, why))
}

fn parse_index(entry: &str, body: &[u8]) -> Result<ImageIndex, ArchiveError> {
    shape(entry, body, true)?;
    parse(entry, body)
}

fn parse_manifest(entry: &str, body: &[u8]) -> Result<ImageManifest, ArchiveError> {
    shape(entry, body, false)?;
    parse(entry, body)
}

/// Reads a JSON document.
pub(super) fn parse<T: DeserializeOwned>(entry: &str, body: &[u8]) -> Result<T, ArchiveError> {
    let bad = |error: serde_json::Error| {
        ArchiveError::entry(entry, format!("is malformed: {}", clip(&error.to_string(), 160)))
    };
    serde_json::from_slice(body).map_err(bad)
}

/// `os/architecture`.
pub(super) fn platform_of(config: &ImageConfiguration) -> String {
    format!("{}/{}", config.os(), config.architecture())
}

/// What the layers unpack to, lowest first.
pub(super) fn diff_ids(entry: &str, config: &ImageConfiguration) -> Result<Vec<Digest>, ArchiveError> {
    let ids = config.rootfs().diff_ids().iter();
    ids.map(|id| {
        let bad = |error| ArchiveError::entry(entry, format!("has a malformed diff id: {error}"));
        id.parse().map_err(bad)
    })
    .collect()
}

/// As many layers as diff ids, and a sensible number.
pub(super) fn check_count(entry: &str, layers: usize, diff_ids: usize) -> Result<(), ArchiveError> {
    let why = match layers {
        0 => "belongs to an image without layers: there is nothing to run".to_owned(),
        _ if layers > MAX_LAYERS => format!("belongs to an image of {layers} layers (limit {MAX_LAYERS})"),
        _ if layers != diff_ids => format!("belongs to an image of {layers} layers but {diff_ids} diff ids"),
        _ => return Ok(()),
    };
    Err(ArchiveError::entry(entry, why))
}
