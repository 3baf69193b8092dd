//! The content-addressed store of loaded images: `<dir>/sha256/<hex>`, and `<dir>/tmp` for what is on its way there.
//!
//! Owns blob files from first byte to removal. Refuses bytes that do not hash to their name: a blob is written aside,
//! checked, synced and only then renamed, so a name in `sha256/` is a promise. A load pins what it touches, because
//! the records that will keep its blobs do not exist until it ends.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use berth_common::model::Digest;
use parking_lot::Mutex;
use sha2::Digest as _;

/// How long an unreferenced blob or an untouched temporary file stays: longer than any gap between a load's end and
/// the commit of its record.
pub const GRACE: Duration = Duration::from_secs(3600);
/// Bytes copied at a time.
const CHUNK: usize = 256 << 10;

/// Why the store failed.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// A directory could not be made or its mode not be set.
    #[error("cannot prepare the image directory {}", path.display())]
    Prepare {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes to store could not be read.
    #[error("cannot read the bytes of blob {digest}")]
    Read {
        /// Which blob.
        digest: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The blob could not be written, synced or renamed.
    #[error("cannot write blob {digest} below {}", path.display())]
    Write {
        /// Which blob.
        digest: Digest,
        /// The store.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The bytes are not what their name says.
    #[error("blob {expected} has bytes that hash to {found}")]
    WrongDigest {
        /// What was promised.
        expected: Digest,
        /// What is there.
        found: Digest,
    },
}

/// The store. Clones share the pins.
#[derive(Debug, Clone)]
pub struct BlobStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    /// How many running loads need a blob.
    pins: Mutex<HashMap<Digest, usize>>,
}

/// Keeps blobs from being collected while it lives.
pub(super) struct Pins {
    store: BlobStore,
    held: HashSet<Digest>,
}

impl fmt::Debug for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pins({})", self.held.len())
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut pins = self.store.inner.pins.lock();
        for digest in &self.held {
            if let Some(count) = pins.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(digest);
                }
            }
        }
    }
}

impl Pins {
    /// Pins one more blob, whether it is stored yet or not.
    pub(super) fn hold(&mut self, digest: Digest) {
        if self.held.insert(digest) {
            *self.store.inner.pins.lock().entry(digest).or_default() += 1;
        }
    }
}

impl BlobStore {
    /// Opens the store in `dir`, making it if need be. Its directories are for this user only.
    ///
    /// # Errors
    /// [`BlobError::Prepare`] if a directory can't be made.
    pub fn open(dir: &Path) -> Result<Self, BlobError> {
        for path in [dir.to_owned(), dir.join("sha256"), dir.join("tmp")] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o700)))
                .map_err(|source| BlobError::Prepare { path, source })?;
        }
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_owned(),
                pins: Mutex::default(),
            }),
        })
    }

    /// Where uploads and unpacked archives belong while they are worked on: the store's own file system, cleaned of
    /// leftovers by [`Self::collect`].
    pub fn tmp_dir(&self) -> PathBuf {
        self.inner.dir.join("tmp")
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.inner.dir.join("sha256").join(digest.hex())
    }

    /// A blob from byte `offset` on: how many bytes remain, and the file positioned there. None if it is not stored.
    ///
    /// # Errors
    /// `InvalidInput` if the offset lies behind the end, else what the file system says.
    pub async fn read(&self, digest: Digest, offset: u64) -> io::Result<Option<(u64, tokio::fs::File)>> {
        use tokio::io::AsyncSeekExt as _;
        let mut file = match tokio::fs::File::open(self.path(digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = file.metadata().await?.len();
        let Some(left) = size.checked_sub(offset) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("offset {offset} lies behind the {size} bytes of blob {digest}"),
            ));
        };
        file.seek(io::SeekFrom::Start(offset)).await?;
        Ok(Some((left, file)))
    }

    /// No pins yet; hand them to [`Self::put`].
    pub(super) fn pins(&self) -> Pins {
        Pins {
            store: self.clone(),
            held: HashSet::new(),
        }
    }

    /// Stores the `size` bytes of `from` as `digest`, pinned. The bytes are read and hashed even if the blob is there
    /// already: who names a digest must own the bytes, or one tenant could fetch another's layer by its name (R6).
    ///
    /// # Errors
    /// See [`BlobError`]; nothing is left behind.
    pub(super) fn put(
        &self,
        pins: &mut Pins,
        digest: Digest,
        size: u64,
        from: &mut dyn Read,
    ) -> Result<(), BlobError> {
        pins.hold(digest);
        let path = self.path(digest);
        let failed = |source| BlobError::Write {
            digest,
            path: self.inner.dir.clone(),
            source,
        };
        let present = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == size);
        if present {
            verify(digest, from, &mut io::sink(), &failed)?;
            // A fresh time restarts the grace period, for the gap between the last pin and the record.
            return File::open(&path)
                .and_then(|file| file.set_modified(SystemTime::now()))
                .map_err(failed);
        }
        let mut file = tempfile::Builder::new()
            .prefix("blob-")
            .permissions(fs::Permissions::from_mode(0o600))
            .tempfile_in(self.tmp_dir())
            .map_err(failed)?;
        verify(digest, from, file.as_file_mut(), &failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        // Without this the rename itself may be lost with the power.
        File::open(self.inner.dir.join("sha256"))
            .and_then(|dir| dir.sync_all())
            .map_err(failed)
    }

    /// Removes every blob that is neither in `keep` nor pinned and has been left alone for [`GRACE`], and temporary
    /// files of that age. Gives the number of files removed. Blocking: directories may be long.
    ///
    /// # Errors
    /// The first failure; what could be removed is removed all the same.
    pub fn collect(&self, keep: &HashSet<Digest>) -> io::Result<usize> {
        self.collect_at(keep, SystemTime::now())
    }

    fn collect_at(&self, keep: &HashSet<Digest>, now: SystemTime) -> io::Result<usize> {
        let blobs = self.sweep(&self.inner.dir.join("sha256"), now, |name| {
            let digest = format!("sha256:{name}").parse::<Digest>().ok();
            digest.filter(|digest| !keep.contains(digest)).map(Some)
        });
        let temporary = self.sweep(&self.tmp_dir(), now, |_| Some(None));
        Ok(blobs? + temporary?)
    }

    /// Removes old files of a directory which `candidate` names, unless the digest it gives is pinned.
    fn sweep(
        &self,
        dir: &Path,
        now: SystemTime,
        candidate: impl Fn(&str) -> Option<Option<Digest>>,
    ) -> io::Result<usize> {
        let (mut removed, mut failure) = (0, None);
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let Some(digest) = entry.file_name().to_str().and_then(&candidate) else {
                continue;
            };
            // Held over the removal: a load pins before it looks whether a blob is there.
            let pins = self.inner.pins.lock();
            if digest.is_some_and(|digest| pins.contains_key(&digest)) {
                continue;
            }
            let result = entry.metadata().and_then(|meta| {
                let age = now.duration_since(meta.modified()?).unwrap_or_default();
                if !meta.is_file() || age < GRACE {
                    return Ok(0);
                }
                fs::remove_file(entry.path()).map(|()| 1)
            });
            match result {
                Ok(count) => removed += count,
                // Its owner was quicker.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or(Ok(removed), Err)
    }
}

/// Copies `from` to `to` and compares the hash.
fn verify(
    expected: Digest,
    from: &mut dyn Read,
    to: &mut dyn Write,
    failed: &dyn Fn(io::Error) -> BlobError,
) -> Result<(), BlobError> {
    let mut hash = sha2::Sha256::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => {
                return Err(BlobError::Read {
                    digest: expected,
                    source,
                });
            }
        };
        hash.update(&chunk[..read]);
        to.write_all(&chunk[..read]).map_err(failed)?;
    }
    let found = Digest::from_bytes(hash.finalize().into());
    if found == expected {
        Ok(())
    } else {
        Err(BlobError::WrongDigest { expected, found })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt as _;

    fn put(store: &BlobStore, pins: &mut Pins, data: &[u8]) -> Digest {
        let digest = Digest::of(data);
        store.put(pins, digest, data.len() as u64, &mut &*data).unwrap();
        digest
    }

    fn age(store: &BlobStore, digest: Digest, by: Duration) {
        let file = File::open(store.path(digest)).unwrap();
        file.set_modified(SystemTime::now() - by).unwrap();
    }

    #[tokio::test]
    async fn blobs_are_read_from_any_offset_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(&dir.path().join("images")).unwrap();
        let digest = put(&store, &mut store.pins(), b"hello blob");
        for (offset, expected) in [(0, "hello blob"), (6, "blob"), (10, "")] {
            let (left, mut file) = store.read(digest, offset).await.unwrap().unwrap();
            let mut text = String::new();
            file.read_to_string(&mut text).await.unwrap();
            assert_eq!((left, text.as_str()), (expected.len() as u64, expected));
        }
        let behind = store.read(digest, 11).await.unwrap_err();
        assert_eq!(behind.kind(), io::ErrorKind::InvalidInput);
        assert!(store.read(Digest::of(b"other"), 0).await.unwrap().is_none());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&store.path(digest)), 0o600);
        for part in ["images", "images/sha256", "images/tmp"] {
            assert_eq!(mode(&dir.path().join(part)), 0o700, "{part}");
        }
    }

    #[test]
    fn wrong_bytes_leave_nothing_even_if_the_blob_exists() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let digest = Digest::of(b"right");
        for stored in [false, true] {
            if stored {
                put(&store, &mut store.pins(), b"right");
            }
            let error = store.put(&mut store.pins(), digest, 5, &mut &b"wrong"[..]);
            assert!(
                matches!(error, Err(BlobError::WrongDigest { found, .. }) if found == Digest::of(b"wrong"))
            );
            assert_eq!(fs::read_dir(store.tmp_dir()).unwrap().count(), 0);
            assert_eq!(store.path(digest).exists(), stored);
        }
    }

    #[test]
    fn a_damaged_blob_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let digest = put(&store, &mut store.pins(), b"complete");
        fs::write(store.path(digest), b"comp").unwrap();
        put(&store, &mut store.pins(), b"complete");
        assert_eq!(fs::read(store.path(digest)).unwrap(), b"complete");
    }

    #[test]
    fn collect_spares_the_kept_the_pinned_and_the_young() {
        let dir = tempfile::tempdir().unwrap();
        let store = BlobStore::open(dir.path()).unwrap();
        let (mut brief, mut long) = (store.pins(), store.pins());
        let [kept, old, young] = [&b"kept"[..], b"old", b"young"].map(|data| put(&store, &mut brief, data));
        let pinned = put(&store, &mut long, b"pinned");
        put(&store, &mut brief, b"pinned");
        drop(brief);
        for digest in [kept, old, pinned] {
            age(&store, digest, GRACE * 2);
        }
        fs::write(store.tmp_dir().join("upload-fresh"), b"").unwrap();
        let stale = store.tmp_dir().join("upload-stale");
        let file = File::create(&stale).unwrap();
        file.set_modified(SystemTime::now() - GRACE * 2).unwrap();

        let keep = HashSet::from([kept]);
        assert_eq!(store.collect(&keep).unwrap(), 2);
        assert!(!store.path(old).exists() && !stale.exists());
        assert!([kept, young, pinned].iter().all(|one| store.path(*one).exists()));
        assert!(store.tmp_dir().join("upload-fresh").exists());

        // Loading it again restarts its grace period, so the end of the pins does not remove it.
        put(&store, &mut long, b"pinned");
        drop(long);
        assert_eq!(store.collect(&keep).unwrap(), 0);
        age(&store, pinned, GRACE * 2);
        assert_eq!(store.collect(&keep).unwrap(), 1);
        assert!(store.inner.pins.lock().is_empty());
    }
}
