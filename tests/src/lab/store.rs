//! Where the lab keeps what is costly to make: each thing in a folder named after everything it was made of, so that a
//! changed recipe makes a new one and an unchanged one is found again.

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use sha2::{Digest as _, Sha256};

/// The folder of things that are kept: `BERTH_LAB_DIR`, else `target/lab`.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("BERTH_LAB_DIR").map_or_else(
        || {
            let target = std::env::var_os("CARGO_TARGET_DIR");
            target
                .map_or_else(|| crate::root().join("target"), PathBuf::from)
                .join("lab")
        },
        PathBuf::from,
    );
    std::fs::create_dir_all(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    folder
}

/// A name for what was made of these parts.
pub fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// The digest of a file's content.
pub fn content(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut hash = Sha256::new();
    std::io::copy(&mut file, &mut hash).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    hash.finalize().to_vec()
}

/// The folder `<kind>-<key>`, made by `make` unless it is there; older ones of the kind are deleted. Several processes may
/// ask at once: one makes it, the others wait.
pub fn kept(kind: &str, key: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let folder = folder();
    let found = folder.join(format!("{kind}-{key}"));
    if found.is_dir() {
        return found;
    }
    let lock = File::create(folder.join(format!("{kind}.lock"))).expect("lock file");
    let _lock = Flock::lock(lock, FlockArg::LockExclusive).expect("lock");
    if found.is_dir() {
        return found;
    }
    let prefix = format!("{kind}-");
    for old in std::fs::read_dir(&folder).expect("folder").flatten() {
        if old.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_dir_all(old.path());
        }
    }
    let new = folder.join(format!("{kind}-{key}.new"));
    std::fs::create_dir_all(&new).expect("folder");
    let begun = std::time::Instant::now();
    make(&new);
    std::fs::rename(&new, &found).expect("rename");
    eprintln!("lab: made {kind} in {:.1} s", begun.elapsed().as_secs_f64());
    found
}

#[cfg(test)]
mod tests {
    #[test]
    fn keys_tell_parts_apart() {
        let key = |parts: &[&str]| super::key(parts.iter().map(|p| p.as_bytes()));
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
    }
}
