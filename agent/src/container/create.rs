//! Making a container: id range, snapshot, files, and last of all the record that says it is whole.
//!
//! Before the record exists nothing refers to the snapshot but its own label, which keeps it from containerd's garbage
//! collection; [`super::sweep`] takes away what a crash leaves there. A second attempt starts afresh.

use std::collections::HashMap;

use berth_common::id::ContainerId;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::types::Mount;
use prost_types::Any;
use tonic::Code;

use super::containerd::{ContainerdRuntime, Inner};
use super::init_binary;
use super::record::{self, Kept, Record};
use super::rootfs::{self, Layout};
use super::runtime::{CreateRequest, RuntimeError};
use super::spec::{self, BadSpec, Given};
use super::users::{self, Identity, Need};

/// Keeps a snapshot until it is removed by name, and says whose it is.
pub(super) const SNAPSHOT_OWNER: &str = "berth/container";
const GC_ROOT: &str = "containerd.io/gc.root";

/// Options of containerd's runc runtime, as its protocol numbers them.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
}

impl ContainerdRuntime {
    pub(super) async fn make(&self, request: &CreateRequest) -> Result<(), RuntimeError> {
        let inner = &self.0;
        let id = request.meta.id;
        self.ensure_swept().await?;
        let _lock = inner.lock(id).await;
        if let Some(record) = inner.existing(id).await? {
            if record.complete {
                return Ok(());
            }
            return Err(RuntimeError::Failed {
                operation: "making",
                container: id,
                message: "the remains of an earlier one are still there; they are deleted first".into(),
                retryable: true,
            });
        }
        if request.spec.init {
            let init = inner.settings.init_binary.clone();
            let usable = inner
                .blocking("looking at berth-init", id, move || init_binary::is_static(&init))
                .await?;
            if !usable {
                return Err(RuntimeError::Failed {
                    operation: "looking at berth-init",
                    container: id,
                    message:
                        "it is not linked statically and can't run in every image; build berth by scripts/up"
                            .into(),
                    retryable: false,
                });
            }
        }
        let base = inner
            .ranges
            .lock()
            .allocate(id)
            .ok_or_else(|| RuntimeError::Failed {
                operation: "choosing user ids",
                container: id,
                message: format!("this node already has {} containers", super::idrange::SLOTS),
                retryable: true,
            })?;
        let made = inner.make_at(request, base).await;
        if made.is_err() {
            inner.undo(id).await;
        }
        made
    }
}

impl Inner {
    /// The record if there is one.
    async fn existing(&self, id: ContainerId) -> Result<Option<Record>, RuntimeError> {
        match self.fresh_record(id).await {
            Ok(record) => Ok(Some(record)),
            Err(RuntimeError::Missing(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn make_at(&self, request: &CreateRequest, base: u32) -> Result<(), RuntimeError> {
        let id = request.meta.id;
        // A privileged container has no user namespace: its ids are the host's.
        let owner = if request.spec.privileged { 0 } else { base };
        let places = self.places.clone();
        let hostname = spec::hostname(&request.meta, &request.spec);
        let nameservers = request.nameservers.clone();
        let resolver = self.networks.get().and_then(|networks| networks.resolver(id));
        let (mounts, written) = tokio::join!(
            self.prepare(id, &request.image.chain_id),
            self.blocking("writing the files", id, move || places.write(
                id,
                owner,
                &hostname,
                &nameservers,
                resolver.as_ref()
            )),
        );
        let (mounts, ()) = (mounts?, written?);
        // Beside the start, which need not wait for the disk.
        let places = self.places.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = places.sync(id) {
                tracing::debug!(container = %id, %error, "its files were not written through");
            }
        });
        let layout = Self::layout(id, &mounts)?;
        let identity = self.identity(request, &layout).await?;
        self.prepare_layer(id, &layout, owner, request.spec.limits.disk.0)
            .await?;
        let bad = |error: BadSpec| RuntimeError::Failed {
            operation: "describing",
            container: id,
            message: error.to_string(),
            retryable: false,
        };
        let host = self.host(id, &layout).await?;
        let cgroup = self.cgroups.container_path(request.meta.tenant, id);
        let given = Given {
            base,
            identity: &identity,
            files: &self.places.files(id),
            volumes: &self.places.volumes(id),
            init: &self.settings.init_binary,
            cgroup: &cgroup,
        };
        let oci =
            spec::build(&request.meta, &request.spec, &request.image.config, &host, &given).map_err(bad)?;
        self.put(request, base, &oci, (identity.uid, identity.gid)).await
    }

    /// A writable snapshot on the image, fresh.
    async fn prepare(&self, id: ContainerId, parent: &str) -> Result<Vec<Mount>, RuntimeError> {
        let body = || api::snapshots::PrepareSnapshotRequest {
            snapshotter: self.settings.snapshotter.clone(),
            key: Self::snapshot_key(id),
            parent: parent.to_owned(),
            labels: HashMap::from([
                (SNAPSHOT_OWNER.to_owned(), id.to_string()),
                (GC_ROOT.to_owned(), "1".to_owned()),
            ]),
        };
        let mut client = self.containerd.snapshots();
        let first = client.prepare(self.containerd.request(body())).await;
        let reply = match first {
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_snapshot(id).await?;
                client.prepare(self.containerd.request(body())).await
            }
            other => other,
        };
        match reply {
            Ok(reply) => Ok(reply.into_inner().mounts),
            Err(status) if status.code() == Code::NotFound => Err(RuntimeError::Failed {
                operation: "preparing the file system",
                container: id,
                message: "the image was removed meanwhile".into(),
                retryable: true,
            }),
            Err(status) => Err(self.failed("preparing the file system", id, status)),
        }
    }

    /// The ids to run with; looks into the image only if a name or a lone number has to be looked up.
    async fn identity(&self, request: &CreateRequest, layout: &Layout) -> Result<Identity, RuntimeError> {
        let id = request.meta.id;
        let user = spec::user(&request.spec, &request.image.config).to_owned();
        let (passwd, group) = match users::need(&user) {
            Need::Nothing(..) => Default::default(),
            Need::Files => {
                let (layout, dir) = (layout.clone(), self.places.state(id));
                self.blocking("reading the image's users", id, move || {
                    rootfs::account_files(&layout, &dir)
                })
                .await?
            }
        };
        users::resolve(&user, &passwd, &group).map_err(|error| RuntimeError::Failed {
            operation: "finding the user",
            container: id,
            message: error.to_string(),
            retryable: false,
        })
    }

    /// Owner and hard limit of the writable layer.
    pub(super) async fn prepare_layer(
        &self,
        id: ContainerId,
        layout: &Layout,
        owner: u32,
        disk: u64,
    ) -> Result<(), RuntimeError> {
        let (layout, dir) = (layout.clone(), self.places.state(id));
        let hard = self.settings.snapshotter == "btrfs";
        self.blocking("preparing the writable layer", id, move || {
            if owner != 0 {
                rootfs::give_writable(&layout, owner)?;
            }
            match &layout {
                Layout::Whole(mount) if hard => rootfs::with_whole(mount, &dir, |path| {
                    crate::sys::btrfs::enable_quota(path)?;
                    crate::sys::btrfs::limit_exclusive(path, disk)
                }),
                _ => Ok(()),
            }
        })
        .await
    }

    /// Writes the record: from here on the container is whole.
    async fn put(
        &self,
        request: &CreateRequest,
        base: u32,
        oci: &oci_spec::runtime::Spec,
        user: (u32, u32),
    ) -> Result<(), RuntimeError> {
        let id = request.meta.id;
        let json = |error: serde_json::Error| RuntimeError::Failed {
            operation: "describing",
            container: id,
            message: error.to_string(),
            retryable: false,
        };
        let stop_signal = request
            .image
            .config
            .config()
            .as_ref()
            .and_then(|c| c.stop_signal().clone());
        let kept = Kept {
            spec: request.spec.clone(),
            stop_signal,
            user,
        };
        let container = api::Container {
            id: id.to_string(),
            labels: record::labels(&request.meta, &request.image.manifest, base),
            image: format!("{}/{}", request.meta.tenant, request.image.reference),
            runtime: Some(ContainerRuntime {
                name: self.settings.runtime.clone(),
                options: self.runtime_options(),
            }),
            spec: Some(Any {
                type_url: record::OCI_SPEC.into(),
                value: serde_json::to_vec(oci).map_err(json)?,
            }),
            snapshotter: self.settings.snapshotter.clone(),
            snapshot_key: Self::snapshot_key(id),
            extensions: HashMap::from([(record::EXTENSION.into(), record::extension(&kept).map_err(json)?)]),
            ..Default::default()
        };
        let written = record::read(&container);
        let body = api::CreateContainerRequest {
            container: Some(container),
        };
        let reply = self
            .containerd
            .containers()
            .create(self.containerd.request(body))
            .await;
        reply.map_err(|status| self.failed("writing the record", id, status))?;
        if let Some(written) = written {
            self.known.lock().insert(id, written);
        }
        Ok(())
    }

    pub(super) fn runtime_options(&self) -> Option<Any> {
        let binary = self.settings.runtime_binary.as_ref()?;
        let options = RuncOptions {
            binary_name: binary.to_string_lossy().into_owned(),
        };
        Some(Any {
            type_url: "containerd.runc.v1.Options".into(),
            value: prost::Message::encode_to_vec(&options),
        })
    }

    /// Takes away what a failed attempt made; what can't be taken away now is swept later.
    async fn undo(&self, id: ContainerId) {
        let recorded = !matches!(self.existing(id).await, Ok(None));
        if recorded {
            // The answer was lost but the record was written, or nobody can say: it is adopted or deleted by list.
            return;
        }
        if let Err(error) = self.remove_snapshot(id).await {
            tracing::warn!(container = %id, %error, "the snapshot of a failed attempt stays until the next sweep");
        }
        let places = self.places.clone();
        let _ = tokio::task::spawn_blocking(move || places.remove(id)).await;
        self.ranges.lock().release(id);
    }
}
