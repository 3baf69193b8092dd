//! Taking stock when the runtime is first used: who holds which id range, and what crashes left without a record.

use std::collections::HashSet;

use berth_common::id::ContainerId;
use containerd_client::services::v1 as api;
use tonic::Code;

use super::containerd::{ContainerdRuntime, Inner};
use super::create::SNAPSHOT_OWNER;
use super::record;
use super::runtime::RuntimeError;

impl ContainerdRuntime {
    /// Sweeps once; a failure is tried again by the next caller.
    pub(super) async fn ensure_swept(&self) -> Result<(), RuntimeError> {
        self.0.swept.get_or_try_init(|| self.0.sweep()).await.copied()
    }
}

impl Inner {
    /// All container records of the namespace.
    pub(super) async fn all(&self) -> Result<Vec<api::Container>, RuntimeError> {
        let body = api::ListContainersRequest { filters: Vec::new() };
        let reply = self
            .containerd
            .containers()
            .list(self.containerd.request(body))
            .await;
        Ok(reply
            .map_err(|status| self.unreachable("listing containers", status))?
            .into_inner()
            .containers)
    }

    async fn sweep(self: &std::sync::Arc<Self>) -> Result<(), RuntimeError> {
        let containers = self.all().await?;
        let mut here: HashSet<ContainerId> = HashSet::new();
        for container in &containers {
            here.extend(container.id.parse::<ContainerId>());
            if let Some(record) = record::read(container) {
                self.ranges.lock().hold(record.meta.id, record.base);
            }
        }
        let mut orphans: HashSet<ContainerId> = self
            .snapshot_owners()
            .await?
            .into_iter()
            .filter(|id| !here.contains(id))
            .collect();
        let places = self.places.clone();
        let known = tokio::task::spawn_blocking(move || places.known())
            .await
            .unwrap_or_default();
        orphans.extend(known.into_iter().filter(|id| !here.contains(id)));
        for id in orphans {
            tracing::info!(container = %id, "removing what an interrupted attempt left");
            self.remove_snapshot(id).await?;
            let places = self.places.clone();
            self.blocking("removing folders", id, move || places.remove(id))
                .await?;
        }
        self.end_old_execs(&here).await;
        Ok(())
    }

    async fn snapshot_owners(&self) -> Result<Vec<ContainerId>, RuntimeError> {
        let body = api::snapshots::ListSnapshotsRequest {
            snapshotter: self.settings.snapshotter.clone(),
            filters: vec![format!("labels.\"{SNAPSHOT_OWNER}\"")],
        };
        let reply = self
            .containerd
            .snapshots()
            .list(self.containerd.request(body))
            .await;
        let mut stream = reply
            .map_err(|status| self.unreachable("listing snapshots", status))?
            .into_inner();
        let mut owners = Vec::new();
        while let Some(page) = stream
            .message()
            .await
            .map_err(|status| self.unreachable("listing snapshots", status))?
        {
            owners.extend(
                page.info
                    .iter()
                    .filter_map(|info| info.labels.get(SNAPSHOT_OWNER)?.parse::<ContainerId>().ok()),
            );
        }
        Ok(owners)
    }

    /// Removes a container's snapshot; none is fine.
    pub(super) async fn remove_snapshot(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let body = api::snapshots::RemoveSnapshotRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: Self::snapshot_key(id),
        };
        match self
            .containerd
            .snapshots()
            .remove(self.containerd.request(body))
            .await
        {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::NotFound => Ok(()),
            Err(status) => Err(self.failed("removing the snapshot", id, status)),
        }
    }
}
