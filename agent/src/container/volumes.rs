//! A container's volumes: there before its process is made, gone after its end was collected.
//!
//! A mount that is left over keeps its volume from being moved, rolled back or deleted. So besides the ends that are collected, every
//! list of what runs looks for mounts of containers that have no process: after a reboot of containerd, a crash of the agent.

use std::collections::HashSet;
use std::sync::Arc;

use berth_common::id::ContainerId;
use berth_common::model::VolumeMount;

use super::containerd::{ContainerdRuntime, Inner};
use super::record::Record;
use super::runtime::RuntimeError;
use crate::volume::keeper::Provide;

/// Has a container's volumes mounted; `owner`: first id of its range, 0 for none of its own.
pub(crate) async fn provide(
    volumes: Option<&Arc<dyn Provide>>,
    id: ContainerId,
    owner: u32,
    spec: &[VolumeMount],
) -> Result<(), RuntimeError> {
    let mounted = match volumes {
        Some(volumes) => volumes.mount(id, owner, spec).await,
        None if spec.is_empty() => Ok(()),
        None => Err("this agent has no volumes".into()),
    };
    mounted.map_err(|why| RuntimeError::NoVolumes { container: id, why })
}

/// Has them taken away.
pub(crate) async fn take(volumes: Option<&Arc<dyn Provide>>, id: ContainerId) -> Result<(), RuntimeError> {
    let Some(volumes) = volumes else {
        return Ok(());
    };
    let taken = volumes.unmount(id).await;
    taken.map_err(|message| RuntimeError::Failed {
        operation: "unmounting the volumes",
        container: id,
        message,
        retryable: true,
    })
}

impl Inner {
    pub(super) async fn await_volumes(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let Some(volumes) = self.volumes.get() else {
            return Ok(());
        };
        let spec = self.record(id).await?.kept.spec;
        let ready = volumes.ready(id, &spec.volumes).await;
        ready.map_err(|why| RuntimeError::NoVolumes { container: id, why })
    }

    /// Mounts them for a process that is about to be made; `owner`: first id of its range, 0 for none of its own.
    pub(super) async fn provide(&self, record: &Record, owner: u32) -> Result<(), RuntimeError> {
        let (id, spec) = (record.meta.id, &record.kept.spec.volumes);
        // A process that is there has them, and keeps them whatever is wrong now.
        if !spec.is_empty() && self.task(id).await?.is_some() {
            return Ok(());
        }
        provide(self.volumes.get(), id, owner, spec).await
    }

    /// Takes them away from one that has no process any more.
    ///
    /// # Errors
    /// What is still mounted.
    pub(super) async fn take_volumes(&self, id: ContainerId) -> Result<(), RuntimeError> {
        take(self.volumes.get(), id).await
    }

    /// As [`Self::take_volumes`], where something else is more important; the next list tries again.
    pub(super) async fn try_take_volumes(&self, id: ContainerId) {
        if let Err(error) = self.take_volumes(id).await {
            tracing::warn!(container = %id, %error, "volumes of a container that ended are still mounted");
        }
    }
}

impl ContainerdRuntime {
    /// Takes away, beside everything else, what is mounted for containers without a process.
    pub(super) fn release_volumes(&self, with_task: &HashSet<ContainerId>) {
        let Some(volumes) = self.0.volumes.get() else {
            return;
        };
        for id in volumes.provided() {
            if with_task.contains(&id) {
                continue;
            }
            let lock = Arc::clone(self.0.locks.lock().entry(id).or_default());
            // One that is being started or deleted is looked after by who does that.
            let Ok(held) = lock.try_lock_owned() else { continue };
            let inner = Arc::clone(&self.0);
            tokio::spawn(async move {
                // It may have been started since the list.
                if matches!(inner.task(id).await, Ok(None)) {
                    tracing::info!(container = %id, "it has no process, its volumes are unmounted");
                    inner.try_take_volumes(id).await;
                }
                drop(held);
            });
        }
    }
}
