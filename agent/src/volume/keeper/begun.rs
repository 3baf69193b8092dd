//! Commands before a snapshot that were begun, noted where the next agent finds them: the one after has to follow even where the agent was
//! killed between the two, or a database stays locked. The notes are in the folder of what ends with the host's uptime.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use berth_common::id::VolumeId;

use super::plan::Hooked;
use crate::ledger::write_atomically;
use crate::reconcile::apply::chain;

/// The notes below one folder, one for each volume.
#[derive(Debug, Clone)]
pub(super) struct Begun(PathBuf);

impl Begun {
    pub fn new(run_dir: &Path) -> Self {
        Self(run_dir.join("hooks"))
    }

    fn path(&self, volume: VolumeId) -> PathBuf {
        self.0.join(volume.to_string())
    }

    /// Notes that a command is about to begin.
    ///
    /// # Errors
    /// Why it can't be noted, in words.
    pub fn note(&self, volume: VolumeId, hooked: &Hooked) -> Result<(), String> {
        let text = serde_json::to_vec(hooked).map_err(|error| error.to_string())?;
        fs::create_dir_all(&self.0)
            .map_err(|error| format!("{} can't be made: {error}", self.0.display()))?;
        // A power cut ends the containers, too.
        write_atomically(&self.path(volume), &text, false).map_err(|error| chain(&error))
    }

    /// Forgets it. Forgotten is fine.
    pub fn done(&self, volume: VolumeId) {
        match fs::remove_file(self.path(volume)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%volume, %error, "what was begun around a snapshot can't be forgotten");
            }
            _ => {}
        }
    }

    /// All that is noted. What can't be read is no note.
    pub fn all(&self) -> BTreeMap<VolumeId, Hooked> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let noted = entries.filter_map(|entry| {
            let volume = entry.file_name().to_str()?.parse().ok()?;
            let text = fs::read(entry.path()).ok()?;
            Some((volume, serde_json::from_slice(&text).ok()?))
        });
        noted.collect()
    }
}
