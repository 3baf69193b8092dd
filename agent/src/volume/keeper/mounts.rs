//! A container's volumes on the host, where the runtime binds them from: mounted before its process is made, taken away after its end.
//!
//! They are made in the mount namespace of the agent, which is the host's: containerd and its shims see them there, and they stay when
//! the agent is killed or upgraded (R3). So its unit must have no mount namespace of its own; see `systemd/berth-agent.service`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use berth_common::id::ContainerId;
use berth_common::model::VolumeMount;

use super::actor::Keeper;
use super::ready;
use crate::reconcile::apply::chain;
use crate::reconcile::{Mounts, VolumeOrders};
use crate::volume::{Pool, VolumeError, Wanted, mount};

/// How long a start waits for volumes that are being made.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where a container's volumes are mounted on the host: each in a folder named by its place in the container's spec, from 0.
pub fn staging(run_dir: &Path, container: ContainerId) -> PathBuf {
    run_dir.join("volumes").join(container.to_string())
}

/// Takes away all that was mounted for containers below `run_dir`, of which none may run. Needs no pool. Blocks.
///
/// # Errors
/// What is still mounted, in words.
pub fn release_all(run_dir: &Path) -> Result<(), Vec<String>> {
    let run_dir = fs::canonicalize(run_dir).unwrap_or_else(|_| run_dir.to_owned());
    let mut troubles = Vec::new();
    for container in staged(&run_dir) {
        let folder = staging(&run_dir, container);
        for target in numbered(&folder).unwrap_or_default() {
            troubles.extend(mount::release(&target).err().map(|error| chain(&error)));
        }
        troubles.extend(removed(&folder).err());
    }
    match troubles.is_empty() {
        true => Ok(()),
        false => Err(troubles),
    }
}

/// Containers that have a folder for their volumes.
fn staged(run_dir: &Path) -> Vec<ContainerId> {
    let entries = fs::read_dir(run_dir.join("volumes"));
    let names = entries.into_iter().flatten().flatten();
    names
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// The orders, and what they say of one container.
type Named = (Arc<VolumeOrders>, Arc<Mounts>);

/// What gives containers their volumes.
#[async_trait]
pub trait Provide: Send + Sync + 'static {
    /// Waits until a container's volumes can be mounted, at most half a minute.
    ///
    /// # Errors
    /// Which can't, and why not.
    async fn ready(&self, container: ContainerId, volumes: &[VolumeMount]) -> Result<(), String>;

    /// Mounts them in the container's [`staging`] folder, owners shifted to its range, which begins at `base`; 0: as they are.
    /// "Already so" is success; after a failure nothing is mounted. Waits for nothing.
    ///
    /// # Errors
    /// As [`Self::ready`], or what the kernel refused.
    async fn mount(&self, container: ContainerId, base: u32, volumes: &[VolumeMount]) -> Result<(), String>;

    /// Takes them away. None is fine.
    ///
    /// # Errors
    /// All that could not be taken away.
    async fn unmount(&self, container: ContainerId) -> Result<(), String>;

    /// Containers that have some.
    fn provided(&self) -> Vec<ContainerId>;
}

impl Keeper {
    /// The orders, and what they say of a container's volumes, which fits its spec. None: it has none.
    fn named(&self, container: ContainerId, spec: &[VolumeMount]) -> Result<Option<Named>, String> {
        let orders = self.orders().unwrap_or_default();
        let mounts = orders.mounts.get(&container).cloned();
        ready::complete(mounts.as_deref(), spec)?;
        match mounts {
            Some(mounts) if !mounts.runs => Err("it is not to run any more".into()),
            mounts => Ok(mounts.map(|mounts| (orders, mounts))),
        }
    }

    fn folder(&self, container: ContainerId) -> PathBuf {
        // As the mount table names it.
        let run_dir = fs::canonicalize(self.run_dir()).unwrap_or_else(|_| self.run_dir().to_owned());
        staging(&run_dir, container)
    }

    async fn mount_all(
        &self,
        pool: &dyn Pool,
        container: ContainerId,
        base: u32,
        mounts: &Mounts,
        spec: &[VolumeMount],
    ) -> Result<(), String> {
        let folder = self.folder(container);
        for (number, (mount, named)) in mounts.volumes.iter().zip(spec).enumerate() {
            let wanted = Wanted {
                volume: mount.volume,
                epoch: mount.epoch,
                target: folder.join(number.to_string()),
                base,
                snapshot: mount.snapshot,
                read_only: named.is_read_only() || mount.snapshot.is_some(),
            };
            fs::create_dir_all(&wanted.target)
                .map_err(|error| format!("{} can't be made: {error}", wanted.target.display()))?;
            let mounted = pool.mount(&wanted).await;
            mounted.map_err(|error| format!("volume {}: {}", named.volume, chain(&error)))?;
        }
        Ok(())
    }
}

#[async_trait]
impl Provide for Keeper {
    async fn ready(&self, container: ContainerId, spec: &[VolumeMount]) -> Result<(), String> {
        let mut standing = self.standing();
        let mut why = "this node's volumes were not looked at yet".to_owned();
        let wait = async {
            loop {
                // Anew each time: it may be told not to run meanwhile.
                let now = standing.borrow_and_update().clone();
                let Some((orders, mounts)) = self.named(container, spec)? else {
                    return Ok(());
                };
                match now.judge(&orders, &mounts, spec) {
                    Ok(_) => return Ok(()),
                    Err(told) => why = told,
                }
                if now.is_hopeless() || standing.changed().await.is_err() {
                    return Err(why.clone());
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(result) => result,
            Err(_) => Err(why),
        }
    }

    async fn mount(&self, container: ContainerId, base: u32, spec: &[VolumeMount]) -> Result<(), String> {
        let Some((orders, mounts)) = self.named(container, spec)? else {
            return Ok(());
        };
        let standing = self.standing().borrow().clone();
        let pool = standing.judge(&orders, &mounts, spec)?;
        let mounted = self.mount_all(&*pool, container, base, &mounts, spec).await;
        if mounted.is_err()
            && let Err(why) = self.unmount(container).await
        {
            tracing::warn!(container = %container, why, "volumes of a start that failed are still mounted");
        }
        self.look();
        mounted
    }

    async fn unmount(&self, container: ContainerId) -> Result<(), String> {
        let folder = self.folder(container);
        let found = match numbered(&folder) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(format!("{} can't be read: {error}", folder.display())),
        };
        let pool = self.standing().borrow().pool();
        let mut troubles = Vec::new();
        for target in &found {
            let gone = match &pool {
                Some(pool) => pool.unmount(target.clone()).await,
                // The kernel needs no pool for it, and a container that ended must not wait for one.
                None => {
                    let target = target.clone();
                    tokio::task::spawn_blocking(move || mount::release(&target))
                        .await
                        .unwrap_or(Err(VolumeError::Interrupted))
                }
            };
            troubles.extend(gone.err().map(|error| chain(&error)));
        }
        if troubles.is_empty() {
            troubles.extend(
                found
                    .iter()
                    .chain([&folder])
                    .filter_map(|folder| removed(folder).err()),
            );
        }
        self.look();
        match troubles.is_empty() {
            true => Ok(()),
            false => Err(troubles.join("; ")),
        }
    }

    fn provided(&self) -> Vec<ContainerId> {
        staged(self.run_dir())
    }
}

fn removed(folder: &Path) -> Result<(), String> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(format!("{} can't be removed: {error}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// What may be mounted in a container's folder, in no order; marks belong to them.
fn numbered(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name
            .to_str()
            .map(|name| name.strip_suffix(".mark").unwrap_or(name));
        if let Some(number) = number.filter(|number| number.parse::<u16>().is_ok()) {
            found.push(folder.join(number));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_made_for_volumes_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(release_all(dir.path()), Ok(()), "nothing is fine");
        let id = ContainerId::from_bytes([3; 10]);
        let folder = staging(dir.path(), id);
        for number in ["0", "1"] {
            fs::create_dir_all(folder.join(number)).unwrap();
            fs::write(folder.join(format!("{number}.mark")), "0-false").unwrap();
        }
        let foreign = dir.path().join("volumes/somebody");
        fs::create_dir_all(&foreign).unwrap();
        assert_eq!(staged(dir.path()), [id]);
        fs::write(folder.join("note"), "x").unwrap();
        let told = release_all(dir.path()).unwrap_err();
        assert!(told[0].contains("can't be removed"), "{told:?}");
        assert!(!folder.join("0").exists() && folder.join("note").exists());
        fs::remove_file(folder.join("note")).unwrap();
        assert_eq!(release_all(dir.path()), Ok(()));
        assert!(!folder.exists() && foreign.exists());
    }
}
