//! The host's secret for WireGuard: made here, and never anywhere else.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_common::model::WireGuardKey;
use rand::TryRngCore as _;
use x25519_dalek::{PublicKey, StaticSecret};

use crate::ledger::write_atomically;
use crate::reconcile::apply::chain;

/// How long a secret is used. WireGuard takes new session keys every two minutes by itself; this bounds what a stolen one is good for.
pub const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// A secret with the file that keeps it.
pub struct Key {
    file: PathBuf,
    secret: StaticSecret,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key")
            .field("public", &self.public())
            .finish_non_exhaustive()
    }
}

impl Key {
    /// The one that is kept, or a new one. One that can't be read is made anew: others hear of it as of any change.
    ///
    /// # Errors
    /// In words, when none can be kept.
    pub fn load_or_make(file: PathBuf) -> Result<Self, String> {
        match std::fs::read_to_string(&file) {
            Ok(text) => {
                let bytes = STANDARD.decode(text.trim()).ok();
                let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
                if let Some(bytes) = bytes {
                    return Ok(Self {
                        file,
                        secret: bytes.into(),
                    });
                }
                tracing::warn!(file = %file.display(), "the WireGuard key is damaged; a new one is made");
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{} can't be read: {error}", file.display())),
        }
        Self::make(file)
    }

    fn make(file: PathBuf) -> Result<Self, String> {
        let mut bytes = [0; 32];
        let drawn = rand::rngs::OsRng.try_fill_bytes(&mut bytes);
        drawn.map_err(|error| format!("the system gives no random numbers: {error}"))?;
        let secret = StaticSecret::from(bytes);
        let text = STANDARD.encode(secret.as_bytes());
        write_atomically(&file, text.as_bytes(), true).map_err(|error| chain(&error))?;
        Ok(Self { file, secret })
    }

    /// Makes a new one and keeps it in the old one's place.
    ///
    /// # Errors
    /// In words, when it can't be kept; the old one goes on.
    pub fn renew(&mut self) -> Result<(), String> {
        *self = Self::make(self.file.clone())?;
        Ok(())
    }

    /// Whether it has been used for as long as it should.
    pub fn is_old(&self, now: SystemTime) -> bool {
        made(&self.file).is_some_and(|made| now.duration_since(made).is_ok_and(|age| age > LIFE))
    }

    /// What others know it by.
    pub fn public(&self) -> WireGuardKey {
        WireGuardKey(PublicKey::from(&self.secret).to_bytes())
    }

    /// It, for the kernel.
    pub fn secret(&self) -> [u8; 32] {
        self.secret.to_bytes()
    }
}

fn made(file: &Path) -> Option<SystemTime> {
    std::fs::metadata(file).ok()?.modified().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_is_kept_for_its_owner_alone_and_renewed_when_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wireguard.key");
        let mut key = Key::load_or_make(file.clone()).unwrap();
        let first = key.public();
        assert_eq!(Key::load_or_make(file.clone()).unwrap().public(), first);
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let kept = std::fs::read_to_string(&file).unwrap();
        assert!(!format!("{key:?}").contains(&kept), "a secret is not shown");

        let now = SystemTime::now();
        assert!(!key.is_old(now) && !key.is_old(now + LIFE - Duration::from_secs(60)));
        // A clock that was set back makes nothing old.
        assert!(key.is_old(now + LIFE + Duration::from_secs(60)) && !key.is_old(now - LIFE * 2));
        key.renew().unwrap();
        assert_ne!(key.public(), first);
        assert_eq!(Key::load_or_make(file.clone()).unwrap().public(), key.public());

        std::fs::write(&file, "damaged").unwrap();
        assert_ne!(Key::load_or_make(file).unwrap().public(), key.public());
        assert!(Key::load_or_make(dir.path().join("no/folder")).is_err());
    }

    #[test]
    fn the_public_part_is_curve25519s() {
        // RFC 7748, section 6.1: Alice's.
        let secret = hex::decode("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("wireguard.key");
        std::fs::write(&file, STANDARD.encode(secret)).unwrap();
        let public = Key::load_or_make(file).unwrap().public();
        assert_eq!(
            hex::encode(public.0),
            "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
        );
    }
}
