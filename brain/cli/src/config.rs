//! The person's configuration file: contexts with their credentials.
//!
//! Owns where the file is, its form, and its protection. It holds bearer tokens, so it is written atomically with mode
//! 0600 in a folder of mode 0700, and refused when others could read it. Tokens are never in `Debug`.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use berth_common::id::Name;
use serde::{Deserialize, Serialize};

/// Larger files are not ours; a context needs about 2 KiB.
const MAX_FILE: u64 = 4 << 20;

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No home folder to look in.
    #[error("neither BERTH_CONFIG, XDG_CONFIG_HOME nor HOME says where the configuration is")]
    NoHome,
    /// Others can read the tokens in it.
    #[error("{} holds tokens and can be read or written by others (mode {mode:03o})", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns it, who could have put their own server and CA in it.
    #[error("{} belongs to user {owner}, not to you", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// It does not parse.
    #[error("{} does not parse", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The parser's complaint.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// It is far too large.
    #[error("{} has more than {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// It could not be put into TOML.
    #[error("the configuration can't be encoded")]
    Encode(#[source] toml::ser::Error),
    /// The system refused.
    #[error("can't {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A context that is not there.
    #[error("there is no context {name:?}")]
    NoContext {
        /// Its name.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// Nothing says which brain to talk to.
    #[error("no context is chosen and no brain of this host can be used")]
    Nothing,
    /// A setting that can't be right.
    #[error("{what}")]
    Setting {
        /// What is wrong with which.
        what: String,
        /// What to do.
        cure: String,
    },
}

impl ConfigError {
    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::NoHome => "set HOME, or BERTH_CONFIG to the file's path".into(),
            Self::Exposed { path, .. } => format!(
                "run `chmod 600 {}`; if others may have read it, replace its tokens with `berth login`",
                path.display()
            ),
            Self::Foreign { path, .. } => {
                format!(
                    "set BERTH_CONFIG to a file of your own instead of {}",
                    path.display()
                )
            }
            Self::Malformed { path, .. } | Self::TooLarge { path } => {
                format!(
                    "repair {} or move it away and run `berth login` again",
                    path.display()
                )
            }
            Self::Encode(_) | Self::Io { .. } => "check the path, its permissions and free space".into(),
            Self::NoContext { known, .. } if known.is_empty() => {
                "make one with `berth login URL --ca FILE` or `berth context add`".into()
            }
            Self::NoContext { known, .. } => format!("there are: {}", known.join(", ")),
            Self::Nothing => {
                "run `berth login https://HOST:7443 --ca ca.crt`, or as root on the brain's host \
                              `sudo berth …`, or set BERTH_SERVER, BERTH_CA and BERTH_TOKEN"
                    .into()
            }
            Self::Setting { cure, .. } => cure.clone(),
        }
    }
}

/// One brain and who we are to it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://host:port` of the brain's API.
    pub server: String,
    /// PEM of the only CA that is trusted for it.
    pub ca: String,
    /// Bearer token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Tenant for commands that don't name one; default `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Name>,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("server", &self.server)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

/// The whole file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigFile {
    /// The context in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Contexts by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub contexts: BTreeMap<String, Context>,
}

impl ConfigFile {
    /// The context called `name`.
    ///
    /// # Errors
    /// [`ConfigError::NoContext`] naming those there are.
    pub fn context(&self, name: &str) -> Result<&Context, ConfigError> {
        self.contexts.get(name).ok_or_else(|| ConfigError::NoContext {
            name: berth_common::id::clip(name, 64),
            known: self.contexts.keys().cloned().collect(),
        })
    }
}

/// Where the file is, given the environment's `BERTH_CONFIG`, `XDG_CONFIG_HOME` and `HOME`.
///
/// # Errors
/// [`ConfigError::NoHome`] if none is set.
pub fn path_from(env: impl Fn(&str) -> Option<String>) -> Result<PathBuf, ConfigError> {
    let set = |key: &str| env(key).filter(|value| !value.is_empty());
    if let Some(path) = set("BERTH_CONFIG") {
        return Ok(path.into());
    }
    let base = match (set("XDG_CONFIG_HOME"), set("HOME")) {
        (Some(xdg), _) => PathBuf::from(xdg),
        (None, Some(home)) => Path::new(&home).join(".config"),
        (None, None) => return Err(ConfigError::NoHome),
    };
    Ok(base.join("berth/config.toml"))
}

/// Reads the file; one that is not there is empty.
///
/// # Errors
/// [`ConfigError::Exposed`] or [`ConfigError::Foreign`] if others may have had a hand in it, else what is wrong with it.
pub fn load(path: &Path) -> Result<ConfigFile, ConfigError> {
    use std::io::Read as _;
    let io = |operation| {
        move |source| ConfigError::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => return Err(io("open")(error)),
    };
    // Judged on the open file, so that it can't be exchanged in between.
    let meta = file.metadata().map_err(io("inspect"))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::Exposed {
            path: path.to_owned(),
            mode,
        });
    }
    if let Some(me) = own_uid()
        && meta.uid() != me
        && me != 0
    {
        return Err(ConfigError::Foreign {
            path: path.to_owned(),
            owner: meta.uid(),
        });
    }
    if meta.len() > MAX_FILE {
        return Err(ConfigError::TooLarge {
            path: path.to_owned(),
        });
    }
    let mut text = String::new();
    file.take(MAX_FILE)
        .read_to_string(&mut text)
        .map_err(io("read"))?;
    toml::from_str(&text).map_err(|source| ConfigError::Malformed {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// The effective user, from the owner of our own process folder: no libc call is worth `unsafe` here.
fn own_uid() -> Option<u32> {
    std::fs::metadata("/proc/self").ok().map(|meta| meta.uid())
}

/// Writes the file atomically: 0600 from its first byte, in a folder of 0700 that is made if missing.
///
/// # Errors
/// Which step failed on which path.
pub fn save(path: &Path, config: &ConfigFile) -> Result<(), ConfigError> {
    let text = toml::to_string_pretty(config).map_err(ConfigError::Encode)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let io = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| ConfigError::Io {
            operation,
            path,
            source,
        }
    };
    if !folder.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .map_err(io("make the folder", folder))?;
    }
    // tempfile makes 0600 files.
    let mut temporary = tempfile::NamedTempFile::new_in(folder).map_err(io("write in", folder))?;
    temporary
        .write_all(text.as_bytes())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(io("write", path))?;
    temporary
        .persist(path)
        .map_err(|error| io("replace", path)(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> ConfigFile {
        let context = Context {
            server: "https://brain.example:7443".into(),
            ca: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            token: Some("berth_aaaa_secret".into()),
            tenant: None,
        };
        ConfigFile {
            current: Some("home".into()),
            contexts: [("home".to_owned(), context)].into(),
        }
    }

    #[test]
    fn what_is_saved_is_private_and_loads_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/config.toml");
        save(&path, &sample()).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        assert_eq!(load(&path).unwrap(), sample());
        // A second write keeps the mode and leaves nothing beside it.
        save(&path, &ConfigFile::default()).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_others_can_read_is_refused_with_a_cure() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        save(&path, &sample()).unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = load(&path).unwrap_err();
            assert!(matches!(error, ConfigError::Exposed { .. }), "{error}");
            assert!(error.cure().contains("chmod 600"));
        }
    }

    #[test]
    fn missing_is_empty_and_typos_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        assert_eq!(load(&path).unwrap(), ConfigFile::default());
        std::fs::write(&path, "curent = \"x\"\n").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        assert!(matches!(load(&path).unwrap_err(), ConfigError::Malformed { .. }));
    }

    #[test]
    fn the_place_follows_the_environment() {
        let place = |pairs: &[(&str, &str)]| {
            let map: BTreeMap<_, _> = pairs.iter().copied().collect();
            path_from(|key| map.get(key).map(|v| (*v).to_owned()))
        };
        assert_eq!(
            place(&[("BERTH_CONFIG", "/x"), ("HOME", "/h")]).unwrap(),
            Path::new("/x")
        );
        assert_eq!(
            place(&[("XDG_CONFIG_HOME", "/c"), ("HOME", "/h")]).unwrap(),
            Path::new("/c/berth/config.toml")
        );
        assert_eq!(
            place(&[("HOME", "/h")]).unwrap(),
            Path::new("/h/.config/berth/config.toml")
        );
        assert!(place(&[("HOME", "")]).is_err());
    }

    #[test]
    fn debug_never_shows_the_token() {
        assert!(!format!("{:?}", sample()).contains("secret"));
    }
}
