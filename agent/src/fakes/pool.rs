//! A pool of volumes in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::path::PathBuf;

use async_trait::async_trait;
use berth_common::id::{Epoch, SnapshotId, VolumeId};
use berth_common::units::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::io::StreamReader;

use super::faults::{Fault, Faults};
use super::pool_state::{Held, Inner, State, fits, shown};
use crate::volume::stream::StreamError;
use crate::volume::{
    Announced, Data, Listing, Meta, Pool, Sending, Snapshot, Uuid, Volume, VolumeError, Wanted,
};

/// What goes over the wire instead of btrfs's stream.
#[derive(Serialize, Deserialize)]
struct Wire {
    announced: Announced,
    base: Option<Uuid>,
    content: Vec<u8>,
}

/// See the module. Content is bytes; limits count them. Beside the methods, "stream" breaks what is sent after half of it, and
/// "arrive" fails before anything is received.
#[derive(Debug, Default)]
pub struct FakePool {
    /// Faults by method name.
    pub faults: Faults,
    inner: Mutex<Inner>,
}

fn cut_short(volume: VolumeId, after: usize) -> VolumeError {
    VolumeError::Stream {
        volume,
        source: StreamError::CutShort(after as u64),
    }
}

impl FakePool {
    /// Writes a volume's whole content, as its container would; false if that is more than its size or it isn't writable here.
    pub fn write(&self, volume: VolumeId, content: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        let (changed, _) = inner.tick();
        match inner.volumes.get_mut(&volume) {
            Some(Held {
                meta,
                data: Some(data),
                ..
            }) if content.len() as u64 <= meta.size.0 => {
                data.content = content.to_vec();
                data.changed = changed;
                true
            }
            _ => false,
        }
    }

    /// A volume's content; `None` unless it is writable here.
    pub fn read(&self, volume: VolumeId) -> Option<Vec<u8>> {
        let inner = self.inner.lock();
        let data = inner.volumes.get(&volume)?.data.as_ref()?;
        Some(data.content.clone())
    }

    /// What is mounted.
    pub fn mounts(&self) -> Vec<Wanted> {
        self.inner.lock().mounts.values().cloned().collect()
    }

    async fn act<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut Inner) -> Result<T, VolumeError>,
    ) -> Result<T, VolumeError> {
        let io = |source| VolumeError::Io {
            operation,
            path: "/fake".into(),
            source,
        };
        match self.faults.take(operation) {
            None => {}
            Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
            Some(Fault::Fail {
                message,
                retryable: true,
            }) => return Err(io(std::io::Error::other(message))),
            Some(Fault::Fail { .. }) => return Err(io(std::io::Error::from_raw_os_error(libc::EROFS))),
            Some(Fault::FailAfter) => {
                act(&mut self.inner.lock())?;
                return Err(io(std::io::ErrorKind::TimedOut.into()));
            }
        }
        act(&mut self.inner.lock())
    }
}

#[async_trait]
impl Pool for FakePool {
    async fn create(&self, meta: &Meta) -> Result<(), VolumeError> {
        self.act("create", |inner| {
            fits(meta.id, meta.size, &[])?;
            if inner.already(meta)? {
                return Ok(());
            }
            let data = inner.child(&State::default());
            let held = Held {
                meta: *meta,
                data: Some(data),
                snapshots: BTreeMap::new(),
            };
            inner.volumes.insert(meta.id, held);
            Ok(())
        })
        .await
    }

    async fn resize(&self, volume: VolumeId, size: Bytes) -> Result<(), VolumeError> {
        self.act("resize", |inner| {
            let held = inner.held(volume)?;
            fits(
                volume,
                size,
                held.data.as_ref().map_or(&[], |data| data.content.as_slice()),
            )?;
            held.meta.size = size;
            Ok(())
        })
        .await
    }

    async fn set_epoch(&self, volume: VolumeId, epoch: Epoch) -> Result<(), VolumeError> {
        self.act("set_epoch", |inner| {
            let meta = &mut inner.held(volume)?.meta;
            if epoch < meta.epoch {
                return Err(VolumeError::Epoch {
                    volume,
                    held: meta.epoch,
                    given: epoch,
                });
            }
            meta.epoch = epoch;
            Ok(())
        })
        .await
    }

    async fn delete(&self, volume: VolumeId) -> Result<(), VolumeError> {
        self.act("delete", |inner| {
            inner.not_mounted(volume)?;
            inner.volumes.remove(&volume);
            Ok(())
        })
        .await
    }

    async fn snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<Snapshot, VolumeError> {
        self.act("snapshot", |inner| {
            let data = inner
                .held(volume)?
                .data
                .clone()
                .ok_or(VolumeError::OnlyCopy(volume))?;
            let taken = inner.child(&data);
            Ok(shown(
                snapshot,
                inner.held(volume)?.snapshots.entry(snapshot).or_insert(taken),
            ))
        })
        .await
    }

    async fn delete_snapshot(&self, volume: VolumeId, snapshot: SnapshotId) -> Result<(), VolumeError> {
        self.act("delete_snapshot", |inner| {
            let read = |wanted: &Wanted| wanted.volume == volume && wanted.snapshot == Some(snapshot);
            if let Some((at, _)) = inner.mounts.iter().find(|(_, wanted)| read(wanted)) {
                return Err(VolumeError::Mounted {
                    volume,
                    at: at.clone(),
                });
            }
            if let Some(held) = inner.volumes.get_mut(&volume) {
                held.snapshots.remove(&snapshot);
            }
            Ok(())
        })
        .await
    }

    async fn clone_snapshot(
        &self,
        from: VolumeId,
        snapshot: SnapshotId,
        meta: &Meta,
    ) -> Result<(), VolumeError> {
        self.act("clone_snapshot", |inner| {
            if inner.already(meta)? {
                return Ok(());
            }
            let state = inner.state(from, snapshot)?;
            fits(meta.id, meta.size, &state.content)?;
            let held = Held {
                meta: *meta,
                data: Some(inner.child(&state)),
                snapshots: BTreeMap::new(),
            };
            inner.volumes.insert(meta.id, held);
            Ok(())
        })
        .await
    }

    async fn roll_back(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        keep: Option<SnapshotId>,
    ) -> Result<(), VolumeError> {
        self.act("roll_back", |inner| {
            let size = inner.held(volume)?.meta.size;
            inner.not_mounted(volume)?;
            let state = inner.state(volume, snapshot)?;
            fits(volume, size, &state.content)?;
            let new = inner.child(&state);
            let old = inner.held(volume)?.data.clone();
            if let (Some(keep), Some(old)) = (keep, &old) {
                let frozen = inner.child(old);
                match inner.held(volume)?.snapshots.get(&keep) {
                    // Done already.
                    Some(kept) if kept.parent != old.uuid => return Ok(()),
                    Some(_) => {}
                    None => drop(inner.held(volume)?.snapshots.insert(keep, frozen)),
                }
            }
            inner.held(volume)?.data = Some(new);
            Ok(())
        })
        .await
    }

    async fn retire(&self, volume: VolumeId, keep: Option<SnapshotId>) -> Result<(), VolumeError> {
        self.act("retire", |inner| {
            let Some(data) = inner.held(volume)?.data.clone() else {
                return Ok(());
            };
            inner.not_mounted(volume)?;
            let frozen = inner.child(&data);
            let held = inner.held(volume)?;
            if let Some(keep) = keep {
                let kept = held.snapshots.entry(keep).or_insert(frozen);
                if kept.parent != data.uuid || data.changed > kept.changed {
                    return Err(VolumeError::Strange {
                        path: "/fake".into(),
                        found: "a snapshot of another state",
                    });
                }
            }
            held.data = None;
            Ok(())
        })
        .await
    }

    async fn list(&self) -> Result<Listing, VolumeError> {
        self.act("list", |inner| {
            let volumes = inner.volumes.values().map(|held| Volume {
                meta: held.meta,
                data: held.data.as_ref().map(|data| Data {
                    uuid: data.uuid,
                    generation: data.changed,
                    limit: Some(held.meta.size),
                    referenced: Bytes(data.content.len() as u64),
                    exclusive: Bytes::ZERO,
                    read_only: false,
                }),
                snapshots: held
                    .snapshots
                    .iter()
                    .map(|(id, state)| shown(*id, state))
                    .collect(),
            });
            Ok(Listing {
                volumes: volumes.collect(),
                ..Listing::default()
            })
        })
        .await
    }

    async fn send(
        &self,
        volume: VolumeId,
        snapshot: SnapshotId,
        parent: Option<SnapshotId>,
    ) -> Result<Sending, VolumeError> {
        self.act("send", |inner| {
            let state = inner.state(volume, snapshot)?;
            let base = parent.map(|parent| inner.state(volume, parent)).transpose()?;
            let wire = Wire {
                announced: shown(snapshot, &state).announced(),
                base: base.map(|base| shown(snapshot, &base).announced().uuid),
                content: state.content,
            };
            Ok(serde_json::to_vec(&wire).unwrap_or_default())
        })
        .await
        .map(|content| match self.faults.take("stream") {
            Some(Fault::Fail { message, .. }) => {
                let half = bytes::Bytes::copy_from_slice(&content[..content.len() / 2]);
                let broken = [Ok(half), Err(std::io::Error::other(message))];
                Sending::new(StreamReader::new(futures::stream::iter(broken)))
            }
            _ => Sending::new(Cursor::new(content)),
        })
    }

    async fn receive(
        &self,
        meta: &Meta,
        snapshot: SnapshotId,
        announced: Announced,
        stream: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Snapshot, VolumeError> {
        self.act("arrive", |_| Ok(())).await?;
        let here = self.inner.lock().state(meta.id, snapshot).ok();
        let mut bytes = Vec::new();
        if here.is_none() && stream.read_to_end(&mut bytes).await.is_err() {
            return Err(cut_short(meta.id, bytes.len()));
        }
        self.act("receive", |inner| {
            if let Some(held) = inner
                .volumes
                .get(&meta.id)
                .filter(|held| held.meta.tenant != meta.tenant)
            {
                return Err(VolumeError::Taken {
                    volume: held.meta.id,
                    what: "as another tenant's".into(),
                });
            }
            if let Some(here) = here {
                let here = shown(snapshot, &here);
                return match here.announced().uuid == announced.uuid {
                    true => Ok(here),
                    false => Err(VolumeError::Taken {
                        volume: meta.id,
                        what: format!("with another snapshot {snapshot}"),
                    }),
                };
            }
            let wire: Wire = serde_json::from_slice(&bytes).map_err(|_| cut_short(meta.id, bytes.len()))?;
            let refused = |source| VolumeError::Stream {
                volume: meta.id,
                source,
            };
            if wire.announced != announced {
                return Err(refused(StreamError::Another {
                    found: wire.announced.uuid.to_string(),
                    announced: announced.uuid.to_string(),
                }));
            }
            let held = inner.volumes.get(&meta.id);
            let bases: BTreeSet<Uuid> = held
                .iter()
                .flat_map(|held| &held.snapshots)
                .map(|(id, state)| shown(*id, state).announced().uuid)
                .collect();
            if wire.base.is_some_and(|base| !bases.contains(&base)) {
                return Err(refused(StreamError::Refused("its base is not here".into())));
            }
            let state = State {
                uuid: inner.tick().1,
                parent: Uuid::default(),
                received: announced.uuid,
                changed: announced.changed,
                content: wire.content,
            };
            let held = inner.volumes.entry(meta.id).or_insert_with(|| Held {
                meta: *meta,
                data: None,
                snapshots: BTreeMap::new(),
            });
            Ok(shown(snapshot, held.snapshots.entry(snapshot).or_insert(state)))
        })
        .await
    }

    async fn mount(&self, wanted: &Wanted) -> Result<(), VolumeError> {
        self.act("mount", |inner| {
            let held = inner.held(wanted.volume)?;
            if held.meta.epoch != wanted.epoch {
                return Err(VolumeError::Epoch {
                    volume: wanted.volume,
                    held: held.meta.epoch,
                    given: wanted.epoch,
                });
            }
            if held.data.is_none() {
                return Err(VolumeError::OnlyCopy(wanted.volume));
            }
            if let Some(snapshot) = wanted.snapshot {
                inner.state(wanted.volume, snapshot)?;
            }
            inner.mounts.insert(wanted.target.clone(), wanted.clone());
            Ok(())
        })
        .await
    }

    async fn unmount(&self, target: PathBuf) -> Result<(), VolumeError> {
        self.act("unmount", |inner| {
            inner.mounts.remove(&target);
            Ok(())
        })
        .await
    }

    async fn mounted(&self) -> Result<Vec<(PathBuf, VolumeId)>, VolumeError> {
        self.act("mounted", |inner| {
            let mounts = inner.mounts.iter();
            Ok(mounts.map(|(at, wanted)| (at.clone(), wanted.volume)).collect())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::id::TenantId;

    #[tokio::test]
    async fn a_volume_moves_between_fakes_and_faults_are_met() {
        let (here, there) = (FakePool::default(), FakePool::default());
        let meta = Meta {
            id: VolumeId::random(),
            tenant: TenantId::random(),
            size: Bytes::mib(1),
            epoch: Epoch(1),
        };
        here.faults.inject("create", Fault::FailAfter);
        assert!(here.create(&meta).await.unwrap_err().retryable());
        here.create(&meta).await.unwrap();
        assert!(here.write(meta.id, b"one") && !here.write(meta.id, &vec![0; 2 << 20]));
        let (first, second) = (SnapshotId::random(), SnapshotId::random());
        let one = here.snapshot(meta.id, first).await.unwrap().announced();
        here.write(meta.id, b"two");
        let two = here.snapshot(meta.id, second).await.unwrap().announced();
        let mut increment = here.send(meta.id, second, Some(first)).await.unwrap();
        let refused = there.receive(&meta, second, two, &mut increment).await;
        assert!(matches!(refused, Err(VolumeError::Stream { .. })));
        let mut whole = here.send(meta.id, first, None).await.unwrap();
        there.receive(&meta, first, one, &mut whole).await.unwrap();
        let mut increment = here.send(meta.id, second, Some(first)).await.unwrap();
        there.receive(&meta, second, two, &mut increment).await.unwrap();
        assert_eq!(there.read(meta.id), None);
        there.roll_back(meta.id, second, None).await.unwrap();
        assert_eq!(there.read(meta.id).unwrap(), b"two");
        there.set_epoch(meta.id, Epoch(2)).await.unwrap();
        let wanted = Wanted {
            volume: meta.id,
            epoch: Epoch(1),
            snapshot: None,
            target: "/m".into(),
            base: 0,
            read_only: false,
        };
        assert!(matches!(
            there.mount(&wanted).await,
            Err(VolumeError::Epoch { .. })
        ));
        there
            .mount(&Wanted {
                epoch: Epoch(2),
                ..wanted
            })
            .await
            .unwrap();
        assert!(matches!(
            there.delete(meta.id).await,
            Err(VolumeError::Mounted { .. })
        ));
        there.unmount("/m".into()).await.unwrap();
        there.delete(meta.id).await.unwrap();
    }
}
