//! Volumes as services' containers have them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::validate::{SpecError, check_path};
use crate::id::{Name, clip};
use crate::model::{ServiceSpec, UpdateOrder, check_size};
use crate::units::Bytes;

/// Most volumes of one service's container.
pub const MAX_MOUNTS: usize = 16;
/// Bytes of a file's name on Linux; and so many as make a path.
const MAX_MOUNT_PATH: usize = 1_024;

/// A volume as a service's containers have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VolumeMount {
    /// The volume; with `per_replica` the beginning of their names: replica 2 of `data` has `data-2`.
    pub volume: Name,
    /// A snapshot of it, which is read instead of what it is now; nobody can write to that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Name>,
    /// Absolute path inside.
    pub path: String,
    /// Its containers can't write to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    /// Each replica has a volume of its own; else all have the same, and are on the same node.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub per_replica: bool,
    /// Size of a volume that is made for it; default 1GiB. One that is there keeps its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<Bytes>,
}

/// A mount that can't be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("volume {0:?}: {1}")]
pub struct MountError(String, String);

impl VolumeMount {
    /// Whether its containers can't write to it.
    pub const fn is_read_only(&self) -> bool {
        self.read_only || self.snapshot.is_some()
    }

    /// The volume's name for a replica, counted from 1.
    ///
    /// # Errors
    /// A name that gets too long by the replica's number.
    pub fn name_for(&self, replica: u32) -> Result<Name, SpecError> {
        if !self.per_replica {
            return Ok(self.volume.clone());
        }
        format!("{}-{replica}", self.volume).parse().map_err(|_| {
            err(format!(
                "{} is too long for a name with a replica's number",
                self.volume
            ))
        })
    }
}

/// `name[@snapshot]:/path[:option,…]` with options `ro`, `per-replica`, `size=10GiB`.
impl FromStr for VolumeMount {
    type Err = MountError;

    fn from_str(text: &str) -> Result<Self, MountError> {
        let no = |why: &str| MountError(clip(text, 80), why.to_owned());
        let usage = "write NAME:/PATH[:OPTION,…], options: ro, per-replica, size=10GiB; NAME@SNAPSHOT:/PATH to read a snapshot";
        let (name, rest) = text.split_once(':').ok_or_else(|| no(usage))?;
        if name.contains('/') || name.starts_with('.') {
            return Err(no(
                "a folder of the host can't be mounted: data lives in volumes; write NAME:/PATH",
            ));
        }
        let (name, snapshot) = match name.split_once('@') {
            Some((name, snapshot)) => (name, Some(snapshot)),
            None => (name, None),
        };
        let named = |name: &str| name.parse::<Name>().map_err(|error| no(&format!("{error}")));
        let (volume, snapshot) = (named(name)?, snapshot.map(named).transpose()?);
        let (path, options) = rest.split_once(':').unwrap_or((rest, ""));
        let mut mount = Self {
            volume,
            read_only: snapshot.is_some(),
            snapshot,
            path: path.to_owned(),
            per_replica: false,
            size: None,
        };
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                None if option == "ro" => mount.read_only = true,
                None if option == "rw" && mount.snapshot.is_none() => mount.read_only = false,
                None if option == "per-replica" => mount.per_replica = true,
                Some(("size", size)) => {
                    mount.size = Some(size.parse().map_err(|error| no(&format!("{error}")))?);
                }
                _ => return Err(no(usage)),
            }
        }
        Ok(mount)
    }
}

impl fmt::Display for VolumeMount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.volume)?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        write!(f, ":{}", self.path)?;
        let mut options = Vec::new();
        let told = self.read_only && self.snapshot.is_none();
        options.extend(told.then(|| "ro".to_owned()));
        options.extend(self.per_replica.then(|| "per-replica".to_owned()));
        options.extend(self.size.map(|size| format!("size={size}")));
        match options.is_empty() {
            true => Ok(()),
            false => write!(f, ":{}", options.join(",")),
        }
    }
}

fn err(why: impl Into<String>) -> SpecError {
    SpecError::new("/volumes", why)
}

impl ServiceSpec {
    /// Whether its containers write to volumes: two of them at a time would be two writers.
    pub fn writes_to_volumes(&self) -> bool {
        self.volumes.iter().any(|mount| !mount.is_read_only())
    }

    /// Its volumes as agents get them: read-only wherever they are.
    pub(super) fn mounts(&self) -> Vec<VolumeMount> {
        let mounts = self.volumes.iter().map(|mount| VolumeMount {
            read_only: mount.is_read_only(),
            ..mount.clone()
        });
        mounts.collect()
    }

    /// Whether a container's successor may run beside it.
    pub fn starts_first(&self) -> bool {
        self.update.order == UpdateOrder::StartFirst && !self.writes_to_volumes()
    }

    pub(super) fn check_volumes(&self) -> Result<(), SpecError> {
        if self.volumes.len() > MAX_MOUNTS {
            return Err(err(format!(
                "{} volumes; at most {MAX_MOUNTS}",
                self.volumes.len()
            )));
        }
        for (at, mount) in self.volumes.iter().enumerate() {
            check_path("/volumes", &mount.path)?;
            let path = normal(&mount.path);
            if path.is_empty() || mount.path.len() > MAX_MOUNT_PATH {
                return Err(err(format!(
                    "{} can't be mounted at {:?}: use a path below / of at most {MAX_MOUNT_PATH} bytes",
                    mount.volume,
                    clip(&mount.path, 80)
                )));
            }
            if let Some(own) = ["/proc", "/sys", "/dev"].iter().find(|own| within(&path, own)) {
                return Err(err(format!(
                    "{} can't be mounted at {}: {own} is the kernel's",
                    mount.volume, mount.path
                )));
            }
            if let Some(snapshot) = &mount.snapshot
                && (mount.per_replica || mount.size.is_some())
            {
                return Err(err(format!(
                    "snapshot {snapshot} of {} is there, and has its size: leave per-replica and size out, and name the volume itself",
                    mount.volume
                )));
            }
            if let Some(size) = mount.size {
                check_size(size).map_err(|error| err(error.why))?;
            }
            mount.name_for(self.replicas.max(1))?;
            let taken = self.volumes[..at].iter().map(|other| &other.path);
            if taken
                .chain(self.tmpfs.iter().map(|tmpfs| &tmpfs.path))
                .any(|other| normal(other) == path)
            {
                return Err(err(format!("two are mounted at {}", mount.path)));
            }
        }
        Ok(())
    }
}

/// A path without what does not matter: `//a/./b/` is `/a/b`, and `/` is nothing.
fn normal(path: &str) -> String {
    let parts = path.split('/').filter(|part| !matches!(*part, "" | "."));
    parts.fold(String::new(), |mut all, part| {
        all.push('/');
        all.push_str(part);
        all
    })
}

fn within(path: &str, folder: &str) -> bool {
    path.strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(text: &str) -> VolumeMount {
        text.parse().expect(text)
    }

    #[test]
    fn mounts_are_read_and_written() {
        for text in [
            "data:/var/lib/x",
            "data:/x:ro",
            "data:/x:ro,per-replica,size=10GiB",
            "d:/x:size=1MiB",
            "data@before:/old",
        ] {
            assert_eq!(mount(text).to_string(), text);
        }
        assert!(!mount("data:/x:rw").read_only);
        let table = [
            ("data", "NAME:/PATH"),
            ("/etc:/x", "a folder of the host can't be mounted"),
            ("./etc:/x", "a folder of the host can't be mounted"),
            ("Data:/x", "name"),
            ("data:/x:rx", "options"),
            ("data@:/x", "name"),
            ("data@a@b:/x", "name"),
            ("data@a:/x:rw", "options"),
            ("data:/x:size=1", "unit"),
        ];
        for (text, told) in table {
            let error = text.parse::<VolumeMount>().expect_err(text).to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }

    #[test]
    fn replicas_have_their_own_names() {
        assert_eq!(mount("data:/x").name_for(3).unwrap().as_str(), "data");
        assert_eq!(
            mount("data:/x:per-replica").name_for(3).unwrap().as_str(),
            "data-3"
        );
        let long = format!("{}:/x:per-replica", "a".repeat(63));
        assert!(mount(&long).name_for(1).is_err());
    }

    #[test]
    fn bad_mounts_are_refused_with_the_cure() {
        let table = [
            ("data:x", "absolute"),
            ("data:/", "below /"),
            ("data://./", "below /"),
            ("data:/a/../b", ".."),
            ("data:/proc", "kernel"),
            ("data:/sys/fs", "kernel"),
            ("data:/x:size=1KiB", "1MiB to"),
            ("data@a:/x:size=1GiB", "name the volume itself"),
            ("data@a:/x:per-replica", "name the volume itself"),
        ];
        let spec = |mounts: &[&str]| {
            let mut spec = ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap());
            spec.volumes = mounts.iter().map(|text| mount(text)).collect();
            spec
        };
        for (text, told) in table {
            let error = spec(&[text]).validate().expect_err(text).to_string();
            assert!(error.starts_with("/volumes"), "{text}: {error}");
            assert!(error.contains(told), "{text}: {error}");
        }
        assert!(spec(&["a:/x", "b:/x/"]).validate().is_err(), "one path twice");
        assert!(spec(&["a:/process", "b:/x"]).validate().is_ok());
        let many: Vec<_> = (0..17).map(|n| format!("v{n}:/x{n}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert!(spec(&many).validate().is_err());
        assert!(spec(&["a:/x"]).writes_to_volumes());
        assert!(!spec(&["a:/x:ro"]).writes_to_volumes());
        // Whoever leaves out what follows from the snapshot can't write to it either.
        let mut reader = spec(&["a@b:/x"]);
        reader.volumes[0].read_only = false;
        assert!(!reader.writes_to_volumes());
        assert!(reader.container_spec().unwrap().volumes[0].read_only);
    }
}
