//! What a volume is, in a file beside its data: an agent without a brain knows its volumes.

use std::path::Path;

use berth_common::id::{Epoch, TenantId, VolumeId};
use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use super::VolumeError;
use crate::ledger::{LedgerError, write_atomically};

/// A volume's name, owner and bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Which volume.
    pub id: VolumeId,
    /// Whose.
    pub tenant: TenantId,
    /// How much it may hold, bytes.
    pub size: Bytes,
    /// The last hand-over this node knows of.
    pub epoch: Epoch,
}

/// Name of the file in a volume's folder.
pub(super) const FILE: &str = "volume.json";

impl Meta {
    /// Whether a volume is the one that is wanted: it is fine to ask again for what is there. `writable`: its data is here.
    ///
    /// # Errors
    /// `Taken` for another one's, or another size; `OnlyCopy`.
    pub(crate) fn is_wanted(&self, wanted: &Self, writable: bool) -> Result<(), VolumeError> {
        let taken = |what: String| VolumeError::Taken {
            volume: self.id,
            what,
        };
        match () {
            () if self.tenant != wanted.tenant => Err(taken("as another tenant's".into())),
            () if !writable => Err(VolumeError::OnlyCopy(self.id)),
            () if self.size != wanted.size => Err(taken(format!("with {}", self.size))),
            () => Ok(()),
        }
    }

    /// Reads the one in a volume's folder; `None` if there is no such folder or file.
    pub(super) fn read(dir: &Path) -> Result<Option<Self>, VolumeError> {
        let path = dir.join(FILE);
        match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(meta) => Ok(Some(meta)),
                Err(source) => Err(VolumeError::Meta { path, source }),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(VolumeError::Io {
                operation: "reading",
                path,
                source,
            }),
        }
    }

    /// Writes it: the old or the new one is there after any crash.
    pub(super) fn write(&self, dir: &Path) -> Result<(), VolumeError> {
        let path = dir.join(FILE);
        let text = serde_json::to_vec(self).map_err(|source| VolumeError::Meta {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &text, true).map_err(|error| match error {
            LedgerError::Io {
                operation,
                path,
                source,
            } => VolumeError::Io {
                operation,
                path,
                source,
            },
            LedgerError::Encode { source, .. } => VolumeError::Meta { path, source },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_back_and_damage_is_told() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Meta::read(dir.path()).unwrap(), None);
        let meta = Meta {
            id: VolumeId::random(),
            tenant: TenantId::random(),
            size: Bytes::gib(1),
            epoch: Epoch(7),
        };
        meta.write(dir.path()).unwrap();
        assert_eq!(Meta::read(dir.path()).unwrap(), Some(meta));
        std::fs::write(dir.path().join(FILE), "{\"id\":").unwrap();
        let error = Meta::read(dir.path()).unwrap_err();
        assert!(error.to_string().contains(FILE), "{error}");
    }
}
