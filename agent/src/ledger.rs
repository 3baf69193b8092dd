//! The ledger: the last accepted desired set on disk, and what is remembered of each container.
//!
//! Owns `<state_dir>/ledger`. The set is written and fsynced before it is acted on (R8); a node that boots without its
//! brain starts from it (R3). Memories (restart counts, back-off, last exit) are renamed into place without fsync: they
//! survive a kill −9, and a power cut costs no more than a counter; that a container ended for good is fsynced. A damaged file
//! is moved aside and reported.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use berth_common::id::{ContainerId, NodeId};
use berth_common::protocol::DesiredSet;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::reconcile::state::Memory;

const VERSION: u32 = 1;
const SET_FILE: &str = "desired.json";

/// Why the ledger could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// A file operation failed.
    #[error("{operation} {path}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// A value could not be written as JSON.
    #[error("encoding {what}")]
    Encode {
        /// Which.
        what: &'static str,
        /// The encoder's complaint.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    version: u32,
    /// SHA-256 (hex) of the bytes of `set`.
    checksum: String,
    set: Box<RawValue>,
}

/// What was found at start.
#[derive(Debug)]
pub struct Restored {
    /// The desired set; none for a fresh node, and where it was damaged: then nobody here knows what is wanted.
    pub desired: Option<DesiredSet>,
    /// Memories by container.
    pub memories: BTreeMap<ContainerId, Memory>,
    /// Damage that was found and moved aside, in words.
    pub damage: Vec<String>,
}

/// The ledger of one node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ledger {
    node: NodeId,
    dir: PathBuf,
    memories: PathBuf,
}

fn io(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> LedgerError {
    let path = path.to_owned();
    move |source| LedgerError::Io {
        operation,
        path,
        source,
    }
}

/// Writes a file so that it holds the old or the new content after any crash. `durable`: also after a power cut.
///
/// # Errors
/// [`LedgerError::Io`]; the old content is still there.
pub fn write_atomically(path: &Path, content: &[u8], durable: bool) -> Result<(), LedgerError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let tmp = path.with_file_name(name);
    let write = || -> Result<(), LedgerError> {
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&tmp)
            .map_err(io("creating", &tmp))?;
        file.write_all(content).map_err(io("writing", &tmp))?;
        if durable {
            file.sync_all().map_err(io("syncing", &tmp))?;
        }
        std::fs::rename(&tmp, path).map_err(io("renaming to", path))
    };
    if let Err(error) = write() {
        // Frees what a full disk may need most.
        let _ = std::fs::remove_file(&tmp);
        return Err(error);
    }
    if durable && let Some(dir) = path.parent() {
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(io("syncing", dir))?;
    }
    Ok(())
}

impl Ledger {
    /// Opens or makes the ledger under `state_dir` and reads what it holds for `node`.
    ///
    /// # Errors
    /// [`LedgerError::Io`] if the folder can't be made or read. Damaged content is no error: see [`Restored::damage`].
    pub fn open(state_dir: &Path, node: NodeId) -> Result<(Self, Restored), LedgerError> {
        let dir = state_dir.join("ledger");
        let memories = dir.join("containers");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&memories)
            .map_err(io("creating", &memories))?;
        let ledger = Self { node, dir, memories };
        let mut damage = Vec::new();
        let desired = ledger.read_set(node, &mut damage)?;
        let memories = ledger.read_memories(&mut damage)?;
        Ok((
            ledger,
            Restored {
                desired,
                memories,
                damage,
            },
        ))
    }

    /// Whose ledger it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    fn read_set(&self, node: NodeId, damage: &mut Vec<String>) -> Result<Option<DesiredSet>, LedgerError> {
        let path = self.dir.join(SET_FILE);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(None);
            }
            Err(error) => return Err(io("reading", &path)(error)),
        };
        match parse_set(&content, node) {
            Ok(set) => Ok(Some(set)),
            Err(why) => {
                damage.push(move_aside(&path, &why)?);
                Ok(None)
            }
        }
    }

    fn read_memories(&self, damage: &mut Vec<String>) -> Result<BTreeMap<ContainerId, Memory>, LedgerError> {
        let mut found = BTreeMap::new();
        let entries = std::fs::read_dir(&self.memories).map_err(io("reading", &self.memories))?;
        for entry in entries {
            let path = entry.map_err(io("reading", &self.memories))?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if name.ends_with(".tmp") {
                std::fs::remove_file(&path).map_err(io("removing", &path))?;
                continue;
            }
            let Some(id) = name
                .strip_suffix(".json")
                .and_then(|stem| stem.parse::<ContainerId>().ok())
            else {
                continue;
            };
            let content = std::fs::read(&path).map_err(io("reading", &path))?;
            if content.is_empty() {
                // What a power cut leaves of a file that was not synced: nothing is known, and nothing is damaged.
                std::fs::remove_file(&path).map_err(io("removing", &path))?;
                continue;
            }
            match serde_json::from_slice(&content) {
                Ok(memory) => drop(found.insert(id, memory)),
                Err(error) => damage.push(move_aside(&path, &error.to_string())?),
            }
        }
        Ok(found)
    }

    /// Writes the desired set durably. Only then may it be acted on (R8).
    ///
    /// # Errors
    /// [`LedgerError::Io`], for example on a full disk; the previous set is still there.
    pub fn persist(&self, set: &DesiredSet) -> Result<(), LedgerError> {
        let encode = |source| LedgerError::Encode {
            what: "the desired set",
            source,
        };
        let raw = serde_json::value::to_raw_value(set).map_err(encode)?;
        let envelope = Envelope {
            version: VERSION,
            checksum: hex::encode(Sha256::digest(raw.get())),
            set: raw,
        };
        let content = serde_json::to_vec(&envelope).map_err(encode)?;
        write_atomically(&self.dir.join(SET_FILE), &content, true)
    }

    /// Writes what is remembered of a container; survives a kill of the agent, and a power cut once it ended for good.
    ///
    /// # Errors
    /// [`LedgerError::Io`].
    pub fn remember(&self, id: ContainerId, memory: &Memory) -> Result<(), LedgerError> {
        let content = serde_json::to_vec(memory).map_err(|source| LedgerError::Encode {
            what: "a container's memory",
            source,
        })?;
        // That a container ended for good must survive a power cut: a job would run twice.
        write_atomically(&self.memory_path(id), &content, memory.rest.is_some())
    }

    /// Drops what is remembered of a container.
    pub fn forget(&self, id: ContainerId) {
        let path = self.memory_path(id);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "not removed");
        }
    }

    fn memory_path(&self, id: ContainerId) -> PathBuf {
        self.memories.join(format!("{id}.json"))
    }
}

fn parse_set(content: &[u8], node: NodeId) -> Result<DesiredSet, String> {
    let envelope: Envelope = serde_json::from_slice(content).map_err(|e| e.to_string())?;
    if envelope.version > VERSION {
        return Err(format!(
            "it has version {}, this agent knows {VERSION}",
            envelope.version
        ));
    }
    if hex::encode(Sha256::digest(envelope.set.get())) != envelope.checksum {
        return Err("its checksum does not match".to_owned());
    }
    let set: DesiredSet = serde_json::from_str(envelope.set.get()).map_err(|e| e.to_string())?;
    if set.node != node {
        return Err(format!("it is of node {}, this is node {node}", set.node));
    }
    Ok(set)
}

fn move_aside(path: &Path, why: &str) -> Result<String, LedgerError> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(io("moving aside", path))?;
    Ok(format!(
        "{} can't be used ({why}); it was moved to {}",
        path.display(),
        aside.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::id::Generation;

    fn set(node: NodeId, generation: u64) -> DesiredSet {
        DesiredSet {
            generation: Generation(generation),
            ..DesiredSet::empty(node)
        }
    }

    #[test]
    fn what_a_power_cut_leaves_empty_is_no_damage() {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path(), NodeId::from_bytes([1; 10])).unwrap();
        let id = ContainerId::from_bytes([2; 10]);
        ledger.remember(id, &Memory::default()).unwrap();
        std::fs::write(ledger.memory_path(id), "").unwrap();
        let (ledger, restored) = Ledger::open(dir.path(), NodeId::from_bytes([1; 10])).unwrap();
        assert!(
            restored.memories.is_empty() && restored.damage.is_empty(),
            "{:?}",
            restored.damage
        );
        assert!(!ledger.memory_path(id).exists());
    }

    #[test]
    fn what_was_persisted_is_restored() {
        let dir = tempfile::tempdir().unwrap();
        let (node, id) = (NodeId::from_bytes([1; 10]), ContainerId::from_bytes([2; 10]));
        let (ledger, fresh) = Ledger::open(dir.path(), node).unwrap();
        assert_eq!(fresh.desired, None);
        ledger.persist(&set(node, 7)).unwrap();
        let memory = Memory {
            restarts: 3,
            ..Memory::default()
        };
        ledger.remember(id, &memory).unwrap();
        std::fs::write(ledger.memories.join("half.json.tmp"), "{").unwrap();
        let (ledger, again) = Ledger::open(dir.path(), node).unwrap();
        assert_eq!(again.desired, Some(set(node, 7)));
        assert_eq!(again.memories, BTreeMap::from([(id, memory)]));
        assert!(again.damage.is_empty());
        ledger.forget(id);
        assert!(Ledger::open(dir.path(), node).unwrap().1.memories.is_empty());
    }

    #[test]
    fn every_damage_is_moved_aside_and_told() {
        let node = NodeId::from_bytes([1; 10]);
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path(), node).unwrap();
        ledger.persist(&set(node, 7)).unwrap();
        let path = ledger.dir.join(SET_FILE);
        let good = std::fs::read_to_string(&path).unwrap();
        let flipped = good.replace("\"generation\":7", "\"generation\":8");
        let future = good.replace("\"version\":1", "\"version\":99");
        for bad in ["", "{", &good[..good.len() / 2], &flipped, &future] {
            assert_ne!(bad, good);
            std::fs::write(&path, bad).unwrap();
            let (_, restored) = Ledger::open(dir.path(), node).unwrap();
            assert_eq!(restored.desired, None);
            assert_eq!(restored.damage.len(), 1);
            assert!(ledger.dir.join("desired.json.damaged").exists());
        }
        std::fs::write(&path, good).unwrap();
        let other = NodeId::from_bytes([9; 10]);
        assert_eq!(Ledger::open(dir.path(), other).unwrap().1.damage.len(), 1);
    }

    #[test]
    fn r8_a_failed_write_leaves_the_old_set() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeId::from_bytes([1; 10]);
        let (ledger, _) = Ledger::open(dir.path(), node).unwrap();
        ledger.persist(&set(node, 1)).unwrap();
        // A folder in the temporary file's place makes every write fail, for root too.
        std::fs::create_dir(ledger.dir.join("desired.json.tmp")).unwrap();
        assert!(ledger.persist(&set(node, 2)).is_err());
        let held = Ledger::open(dir.path(), node).unwrap().1.desired;
        assert_eq!(held, Some(set(node, 1)));
    }
}
