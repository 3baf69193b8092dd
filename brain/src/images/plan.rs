//! What a load will do, and the doing.
//!
//! Owns the form both kinds of archive are reduced to, the names their images get, and the copying of blobs. A plan
//! holds verified documents; layers are verified while they are copied. Refuses names that are doubtful rather than
//! guess one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use berth_common::id::clip;
use berth_common::model::{Digest, ImageRef};
use berth_common::units::Bytes;

use super::archive::{Archive, ArchiveError};
use super::blobs::{BlobError, BlobStore, Pins};
use super::load::LoadError;
use super::{LoadOptions, docker};

/// What was found in an archive.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Images for these nodes, each once.
    pub(super) plans: Vec<Plan>,
    /// What else is there, for the message if nothing fits.
    pub(super) others: BTreeSet<String>,
}

/// One image to store.
#[derive(Debug)]
pub(super) struct Plan {
    /// What makes it this image: the manifest's digest, or the config's where no manifest exists yet.
    pub(super) id: Digest,
    /// The names the archive gives it.
    pub(super) names: BTreeSet<ImageRef>,
    /// A name that is none, such as a tag alone.
    pub(super) doubtful: Option<String>,
    /// The manifest, or none if one must be made.
    pub(super) manifest: Option<Vec<u8>>,
    /// The config.
    pub(super) config: Vec<u8>,
    /// Lowest first.
    pub(super) layers: Vec<Layer>,
}

/// Where a layer is and what it must be.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    /// Name of the entry.
    pub(super) entry: String,
    /// Digest of the entry's bytes, or of what they unpack to if the manifest must be made.
    pub(super) digest: Digest,
    /// Size of the entry, bytes.
    pub(super) size: u64,
}

/// A stored image: its manifest, and every blob with its size.
pub(super) type Stored = (Digest, Vec<(Digest, Bytes)>);

impl Found {
    /// Adds an image, or further names of one that is known.
    pub(super) fn add(&mut self, plan: Plan) {
        match self.plans.iter_mut().find(|known| known.id == plan.id) {
            Some(known) => {
                known.names.extend(plan.names);
                known.doubtful = known.doubtful.take().or(plan.doubtful);
            }
            None => self.plans.push(plan),
        }
    }
}

impl Plan {
    /// Copies everything into the store.
    pub(super) fn store(&self, copier: &mut Copier<'_>) -> Result<Stored, LoadError> {
        let mut blobs = Vec::with_capacity(self.layers.len() + 2);
        let manifest = match &self.manifest {
            Some(manifest) => {
                for layer in &self.layers {
                    copier.copy(&layer.entry, layer.digest)?;
                    blobs.push((layer.digest, Bytes(layer.size)));
                }
                manifest.clone()
            }
            None => {
                let mut packed = Vec::with_capacity(self.layers.len());
                for layer in &self.layers {
                    packed.push(docker::store_layer(copier, layer)?);
                }
                blobs.extend(packed.iter().map(|one| (one.digest, Bytes(one.size))));
                docker::manifest(&self.config, &packed)
            }
        };
        let digest = copier.document(&manifest)?;
        let config = copier.document(&self.config)?;
        let head = [(digest, &manifest), (config, &self.config)];
        let head = head.map(|(digest, body)| (digest, Bytes(body.len() as u64)));
        let mut seen = BTreeSet::new();
        let all = head.into_iter().chain(blobs);
        let blobs = all.filter(|(digest, _)| seen.insert(*digest)).collect();
        Ok((digest, blobs))
    }
}

/// Copies blobs from an archive into the store, each entry once.
pub(super) struct Copier<'a> {
    pub(super) archive: &'a Archive,
    pub(super) store: &'a BlobStore,
    pub(super) pins: Pins,
    /// Entries whose bytes were verified, by what they had to be.
    pub(super) done: HashMap<(String, Digest), docker::Packed>,
    /// Most bytes a layer may unpack to where that must be checked.
    pub(super) unpacked: Bytes,
}

impl Copier<'_> {
    /// Copies the bytes of an entry, which must hash to `digest`.
    pub(super) fn copy(&mut self, entry: &str, digest: Digest) -> Result<(), LoadError> {
        let key = (entry.to_owned(), digest);
        if self.done.contains_key(&key) {
            return Ok(());
        }
        let mut section = self.archive.section(entry)?;
        let size = section.left();
        match self.store.put(&mut self.pins, digest, size, &mut section) {
            Err(BlobError::WrongDigest { found, .. }) => Err(wrong_digest(entry, digest, found).into()),
            Err(error) => Err(error.into()),
            Ok(()) => {
                self.done.insert(key, docker::Packed::plain(digest, size));
                Ok(())
            }
        }
    }

    /// Stores a document held in memory.
    fn document(&mut self, body: &[u8]) -> Result<Digest, BlobError> {
        let digest = Digest::of(body);
        self.store
            .put(&mut self.pins, digest, body.len() as u64, &mut &*body)?;
        Ok(digest)
    }
}

pub(super) fn wrong_digest(entry: &str, expected: Digest, found: Digest) -> ArchiveError {
    ArchiveError::entry(entry, format!("hashes to {found}, not to {expected}"))
}

/// Which name belongs to which plan.
pub(super) fn settle_names(
    plans: &[Plan],
    options: &LoadOptions,
) -> Result<BTreeMap<ImageRef, Digest>, LoadError> {
    let refuse = |why, cure| Err(LoadError::Names { why, cure });
    if let Some(name) = &options.name {
        return match plans {
            [plan] => Ok(BTreeMap::from([(name.clone(), plan.id)])),
            plans => {
                let names = plans.iter().flat_map(|plan| &plan.names).map(ImageRef::familiar);
                let names = clip(&names.collect::<Vec<_>>().join(", "), 300);
                let why = format!(
                    "the archive holds {} images ({names}), so {} can't be the name of one",
                    plans.len(),
                    name.familiar()
                );
                refuse(why, "leave out ?name=, or save one image per archive")
            }
        };
    }
    let mut names = BTreeMap::new();
    for plan in plans {
        if plan.names.is_empty() {
            let why = match &plan.doubtful {
                Some(tag) => format!(
                    "the archive names an image only {:?}, which may be a tag",
                    clip(tag, 100)
                ),
                None => format!("the archive has no name for image {}", plan.id),
            };
            return refuse(why, "give its name with ?name=");
        }
        for name in &plan.names {
            if let Some(other) = names.insert(name.clone(), plan.id) {
                let why = format!(
                    "the archive has two images named {}: {other} and {}",
                    name.familiar(),
                    plan.id
                );
                return refuse(why, "save them under different names");
            }
        }
    }
    Ok(names)
}
