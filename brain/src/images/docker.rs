//! Docker archives: what `docker save` wrote before version 25, and podman still does.
//!
//! Owns the reading of `manifest.json` and the making of an OCI manifest, which such archives lack. Their layers are
//! plain tar, named by what they unpack to (diff id); they are stored as they are. Some tools compress them: then both
//! the packed bytes and what they unpack to are hashed. The manifest depends on config and layers only, so the same
//! image gets the same digest every time.

use std::io::{self, Read};

use berth_common::id::clip;
use berth_common::model::{Digest, ImageRef};
use berth_common::units::Bytes;
use oci_spec::image::{Descriptor, ImageConfiguration, ImageManifest, ImageManifestBuilder, MediaType};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::archive::{Archive, ArchiveError};
use super::load::LoadError;
use super::plan::{Copier, Found, Layer, Plan, wrong_digest};
use super::{LoadOptions, oci};

/// One image of `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// How a layer's bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer as it is stored.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packed {
    pub(super) digest: Digest,
    pub(super) size: u64,
    packing: Packing,
}

impl Packed {
    pub(super) const fn plain(digest: Digest, size: u64) -> Self {
        Self {
            digest,
            size,
            packing: Packing::Plain,
        }
    }
}

/// Plans every image of the archive that is for `options.arch`.
pub(super) fn plan(archive: &Archive, options: &LoadOptions) -> Result<Found, LoadError> {
    let name = "manifest.json";
    let entries: Vec<Entry> = oci::parse(name, &archive.document(name)?)?;
    if entries.len() > options.limits.images {
        let why = format!("lists more than {} images", options.limits.images);
        return Err(ArchiveError::entry(name, why).into());
    }
    let mut found = Found::default();
    for entry in entries {
        let body = archive.document(&entry.config)?;
        let id = Digest::of(&body);
        if let Some(promised) = named_digest(&entry.config).filter(|promised| *promised != id) {
            return Err(wrong_digest(&entry.config, promised, id).into());
        }
        let config: ImageConfiguration = oci::parse(&entry.config, &body)?;
        let platform = oci::platform_of(&config);
        if platform != format!("linux/{}", options.arch) {
            found.others.insert(platform);
            continue;
        }
        let diff_ids = oci::diff_ids(&entry.config, &config)?;
        let layers = entry.layers.unwrap_or_default();
        oci::check_count(&entry.config, layers.len(), diff_ids.len())?;
        let mut planned = Vec::with_capacity(layers.len());
        for (entry, digest) in layers.into_iter().zip(diff_ids) {
            let size = archive.section(&entry)?.left();
            planned.push(Layer { entry, digest, size });
        }
        let tags = entry.repo_tags.unwrap_or_default();
        let tags = tags.iter().filter(|tag| !tag.contains("<none>"));
        let names = tags.map(|tag| {
            let parsed = tag.parse::<ImageRef>();
            parsed.map_err(|error| ArchiveError::entry(name, format!("names an image badly: {error}")))
        });
        found.add(Plan {
            id,
            names: names.collect::<Result<_, _>>()?,
            doubtful: None,
            manifest: None,
            config: body,
            layers: planned,
        });
    }
    Ok(found)
}

/// The digest in a name such as `<hex>.json` or `blobs/sha256/<hex>`.
fn named_digest(entry: &str) -> Option<Digest> {
    let file = entry.rsplit_once('/').map_or(entry, |(_, file)| file);
    let hex = file.strip_suffix(".json").unwrap_or(file);
    format!("sha256:{hex}").parse().ok()
}

/// Stores a layer of which only the diff id is known.
pub(super) fn store_layer(copier: &mut Copier<'_>, layer: &Layer) -> Result<Packed, LoadError> {
    let key = (layer.entry.clone(), layer.digest);
    if let Some(known) = copier.done.get(&key) {
        return Ok(*known);
    }
    let archive = copier.archive;
    let mut magic = Vec::new();
    let sniffed = archive.section(&layer.entry)?.take(4).read_to_end(&mut magic);
    sniffed.map_err(|source| ArchiveError::Io {
        doing: "read",
        source,
    })?;
    let packing = match magic.as_slice() {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
        _ => Packing::Plain,
    };
    if packing == Packing::Plain {
        copier.copy(&layer.entry, layer.digest)?;
        return Ok(Packed::plain(layer.digest, layer.size));
    }
    let mut source = Hashed {
        from: archive.section(&layer.entry)?,
        hash: Sha256::new(),
    };
    let unpacked = hash_unpacked(&mut source, packing, copier.unpacked);
    let diff_id = unpacked.map_err(|why| ArchiveError::entry(&layer.entry, why))?;
    if diff_id != layer.digest {
        let why = format!("unpacks to {diff_id}, but the config says {}", layer.digest);
        return Err(ArchiveError::entry(&layer.entry, why).into());
    }
    let packed = Packed {
        digest: Digest::from_bytes(source.hash.finalize().into()),
        size: layer.size,
        packing,
    };
    copier.copy(&layer.entry, packed.digest)?;
    copier.done.insert(key, packed);
    Ok(packed)
}

/// Reads `source` to its end and hashes what it unpacks to, at most `max` bytes.
fn hash_unpacked(source: &mut impl Read, packing: Packing, max: Bytes) -> Result<Digest, String> {
    let damaged = |error: io::Error| format!("is damaged: {}", clip(&error.to_string(), 100));
    let mut hash = Sha256::new();
    let copied = {
        let unpacked: &mut dyn Read = match packing {
            Packing::Plain => &mut *source,
            Packing::Gzip => &mut flate2::read::MultiGzDecoder::new(&mut *source),
            Packing::Zstd => &mut zstd::Decoder::new(&mut *source).map_err(damaged)?,
        };
        io::copy(&mut unpacked.take(max.0.saturating_add(1)), &mut hash).map_err(damaged)?
    };
    if copied > max.0 {
        return Err(format!("unpacks to more than {max}"));
    }
    io::copy(source, &mut io::sink()).map_err(damaged)?;
    Ok(Digest::from_bytes(hash.finalize().into()))
}

/// Hashes what is read through it.
struct Hashed<R> {
    from: R,
    hash: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

/// The OCI manifest for a config and its layers.
pub(super) fn manifest(config: &[u8], layers: &[Packed]) -> Vec<u8> {
    let descriptor = |media_type, digest: Digest, size| {
        let digest: oci_spec::image::Digest = digest.to_string().parse().expect("a sha256 digest");
        Descriptor::new(media_type, size, digest)
    };
    let layers = layers.iter().map(|layer| {
        let media_type = match layer.packing {
            Packing::Plain => MediaType::ImageLayer,
            Packing::Gzip => MediaType::ImageLayerGzip,
            Packing::Zstd => MediaType::ImageLayerZstd,
        };
        descriptor(media_type, layer.digest, layer.size)
    });
    let manifest: ImageManifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(descriptor(
            MediaType::ImageConfig,
            Digest::of(config),
            config.len() as u64,
        ))
        .layers(layers.collect::<Vec<_>>())
        .build()
        .expect("every required field is set");
    serde_json::to_vec(&manifest).expect("a manifest is plain JSON")
}
