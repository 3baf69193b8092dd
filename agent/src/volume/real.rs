//! The pool on btrfs: [`Store`] on threads that may block, transfers beside them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use berth_common::id::{Epoch, SnapshotId, VolumeId};
use berth_common::units::Bytes;
use tokio::io::AsyncRead;

use super::store::Store;
use super::transfer::{self, Begin};
use super::{Announced, Listing, Meta, Pool, Sending, Snapshot, VolumeError, Wanted, list, mount};

/// Volumes on a btrfs.
#[derive(Debug, Clone)]
pub struct BtrfsPool(Arc<Store>);

impl BtrfsPool {
    /// Opens the pool at `root`, a folder on a btrfs with quotas on (see [`super::pool_apply::ensure`]). Finishes what a kill cut
    /// short and puts limits in force; tells what could not be mended, in words. Blocks.
    ///
    /// # Errors
    /// `Io`.
    pub fn open(root: &Path) -> Result<(Self, Vec<String>), VolumeError> {
        let (store, troubles) = Store::open(root)?;
        Ok((Self(Arc::new(store)), troubles))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Arc<Store>) -> Result<T, VolumeError> + Send + 'static,
    ) -> Result<T, VolumeError> {
        let store = Arc::clone(&self.0);
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.map_err(|_| VolumeError::Interrupted)?
    }
}

#[async_trait]
impl Pool for BtrfsPool {
    async fn create(&self, meta: &Meta) -> Result<(), VolumeError> {
        let meta = *meta;
        self.run(move |store| store.create(&meta)).await
    }

    async fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), VolumeError> {
        self.run(move |store| store.resize(volume, size)).await
    }

    async fn set_epoch(&self, volume: VolumeId, epoch: Epoch) -> Result<(), VolumeError> {
        self.run(move |store| store.set_epoch(volume, epoch)).await
    }

    async fn delete(&self, volume: VolumeId) -> Result<(), VolumeError> {
        self.run(move |store| store.delete(volume)).await
    }

    async fn snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Snapshot, VolumeError> {
        self.run(move |store| store.snapshot(volume, snapshot)).await
    }

    async fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), VolumeError> {
        self.run(move |store| store.delete_snapshot(volume, snapshot))
            .await
    }

    async fn clone_snapshot(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        meta: &Meta,
    ) -> Result<(), VolumeError> {
        let meta = *meta;
        self.run(move |store| store.clone_snapshot(from, snapshot, &meta))
            .await
    }

    async fn roll_back(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        keep: Option<SnapshotId>,
    ) -> Result<(), VolumeError> {
        self.run(move |store| store.roll_back(volume, snapshot, keep))
            .await
    }

    async fn retire(&self, volume: VolumeId, keep: Option<SnapshotId>) -> Result<(), VolumeError> {
        self.run(move |store| store.retire(volume, keep)).await
    }

    async fn list(&self) -> Result<Listing, VolumeError> {
        self.run(|store| list::all(store)).await
    }

    async fn send(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        parent: Option<SnapshotId>,
    ) -> Result<Sending, VolumeError> {
        let paths = self.run(move |store| {
            store.meta(volume)?;
            let (path, _) = store.there(volume, snapshot)?;
            let parent = parent.map(|parent| store.there(volume, parent)).transpose()?;
            Ok((path, parent.map(|(path, _)| path)))
        });
        let (path, parent) = paths.await?;
        transfer::send(path, parent)
    }

    async fn receive(
        &self,
        meta: &Meta,
        snapshot: SnapshotId,
        announced: Announced,
        stream: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Snapshot, VolumeError> {
        let meta = *meta;
        let begun = self
            .run(move |store| transfer::begin(store, &meta, snapshot, announced))
            .await?;
        let arriving = match begun {
            Begin::Here(snapshot) => return Ok(snapshot),
            Begin::Come(arriving) => arriving,
        };
        let taken = transfer::take(&arriving, &meta, announced, stream).await;
        self.run(move |_| match taken {
            Ok(()) => transfer::keep(arriving, snapshot, announced),
            // Dropped here, on a thread that may block.
            Err(error) => Err(error),
        })
        .await
    }

    async fn mount(&self, wanted: &Wanted) -> Result<(), VolumeError> {
        let wanted = wanted.clone();
        self.run(move |store| store.mount(&wanted)).await
    }

    async fn unmount(&self, target: PathBuf) -> Result<(), VolumeError> {
        self.run(move |_| mount::release(&target)).await
    }

    async fn mounted(&self) -> Result<Vec<(PathBuf, VolumeId)>, VolumeError> {
        self.run(|store| store.mounted()).await
    }
}
