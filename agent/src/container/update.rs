//! Changing limits of a container while it runs, or before its next start, and reading them.

use std::sync::Arc;

use berth_common::id::ContainerId;
use berth_common::model::{ContainerSpec, Limits};
use berth_common::units::Bytes;
use containerd_client::services::v1 as api;
use containerd_client::types::v1::Status as TaskStatus;
use oci_spec::runtime::Spec;
use prost_types::{Any, FieldMask};

use super::containerd::{ContainerdRuntime, Inner, cgroup_failed};
use super::record::{self, Kept};
use super::runtime::RuntimeError;
use super::shim;
use super::spec;

const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl ContainerdRuntime {
    pub(super) async fn change(&self, id: ContainerId, new: &ContainerSpec) -> Result<(), RuntimeError> {
        let inner = &self.0;
        let _lock = inner.lock(id).await;
        let body = api::GetContainerRequest { id: id.to_string() };
        let reply = inner
            .containerd
            .containers()
            .get(inner.containerd.request(body))
            .await;
        let container = reply.map_err(|status| inner.failed("reading the record", id, status))?;
        let container = container.into_inner().container.unwrap_or_default();
        let record = record::read(&container).ok_or(RuntimeError::Missing(id))?;
        let bad = |message: String| RuntimeError::Failed {
            operation: "changing limits",
            container: id,
            message,
            retryable: false,
        };
        if !record.kept.spec.differs_only_in_limits(new) {
            return Err(bad(
                "more than its limits would change: it has to be made again".into()
            ));
        }
        let layout = Inner::layout(id, &inner.mounts(id).await?)?;
        let device = inner.device(id, Some(&layout)).await?;
        let resources =
            spec::resources(&new.limits, device, new.privileged).map_err(|e| bad(e.to_string()))?;
        // The record first: if this is cut off, the next start or the next attempt brings the kernel to it.
        let mut oci: Spec = serde_json::from_slice(&container.spec.unwrap_or_default().value)
            .map_err(|error| bad(format!("its OCI spec is damaged: {error}")))?;
        if let Some(linux) = oci.linux_mut() {
            linux.set_resources(Some(resources.clone()));
        }
        let kept = Kept {
            spec: new.clone(),
            ..record.kept.clone()
        };
        let json = |error: serde_json::Error| bad(error.to_string());
        let body = api::UpdateContainerRequest {
            container: Some(api::Container {
                id: id.to_string(),
                spec: Some(Any {
                    type_url: record::OCI_SPEC.into(),
                    value: serde_json::to_vec(&oci).map_err(json)?,
                }),
                extensions: [(
                    record::EXTENSION.to_owned(),
                    record::extension(&kept).map_err(json)?,
                )]
                .into(),
                ..Default::default()
            }),
            update_mask: Some(FieldMask {
                paths: vec!["spec".into(), "extensions".into()],
            }),
        };
        let reply = inner
            .containerd
            .containers()
            .update(inner.containerd.request(body))
            .await;
        reply.map_err(|status| inner.failed("changing the record", id, status))?;
        let record = record::Record { kept, ..record };
        inner.known.lock().insert(id, record.clone());
        let owner = if new.privileged { 0 } else { record.base };
        inner.prepare_layer(id, &layout, owner, new.limits.disk.0).await?;
        let running = inner
            .task(id)
            .await?
            .is_some_and(|task| !matches!(task.status(), TaskStatus::Stopped | TaskStatus::Unknown));
        if !running {
            return Ok(());
        }
        // The device rules stay out: they don't change, and writing them again briefly closes every device.
        let mut live = resources;
        live.set_devices(None);
        let body = api::UpdateTaskRequest {
            container_id: id.to_string(),
            resources: Some(Any {
                type_url: RESOURCES.into(),
                value: serde_json::to_vec(&live).map_err(json)?,
            }),
            ..Default::default()
        };
        let mut client = inner.containerd.tasks();
        let reply = shim::within(shim::ANSWER, client.update(inner.containerd.request(body))).await;
        reply.map_err(|status| inner.failed("changing limits", id, status))?;
        inner.enforce(&record, new.limits, device).await
    }

    pub(super) async fn limits_now(&self, id: ContainerId) -> Result<Limits, RuntimeError> {
        let inner = &self.0;
        let record = inner.record(id).await?;
        let device = match inner.known_device() {
            Some(device) => device,
            None => {
                let layout = Inner::layout(id, &inner.mounts(id).await?)?;
                inner.device(id, Some(&layout)).await?
            }
        };
        let (tenant, wanted) = (record.meta.tenant, record.kept.spec.limits);
        let cgroups = Arc::clone(&inner.cgroups);
        let read =
            tokio::task::spawn_blocking(move || cgroups.read_limits(tenant, id, &wanted, device)).await;
        read.map_err(|error| inner.again(id, &error.to_string()))?
            .map_err(|error| cgroup_failed(id, &error))
    }

    pub(super) async fn layer_usage(&self, id: ContainerId) -> Result<Bytes, RuntimeError> {
        let inner = &self.0;
        let body = api::snapshots::UsageRequest {
            snapshotter: inner.settings.snapshotter.clone(),
            key: Inner::snapshot_key(id),
        };
        let reply = inner
            .containerd
            .snapshots()
            .usage(inner.containerd.request(body))
            .await;
        let reply = reply.map_err(|status| inner.failed("measuring the writable layer", id, status))?;
        Ok(Bytes(u64::try_from(reply.into_inner().size).unwrap_or(0)))
    }
}
