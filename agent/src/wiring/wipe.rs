//! Deletes what berth has on this host: containers, their cgroups, and on request images.
//!
//! Safe to repeat, and collects errors instead of stopping at the first. Refuses nothing but a running agent, which the
//! caller rules out by holding the lock: it would make everything again.

use std::path::Path;
use std::sync::Arc;

use berth_common::id::ContainerId;
use containerd_client::services::v1 as api;

use crate::cgroup::Cgroups;
use crate::container::runtime::{Runtime, RuntimeError};
use crate::containerd::Containerd;
use crate::network::{Kernel, Namespace, gate};
use crate::reconcile::apply::chain;
use crate::volume::pool::Settings;
use crate::volume::{BtrfsPool, Pool as _, pool_remove};

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wiped {
    /// Containers deleted.
    pub containers: usize,
    /// Tenants' cgroups removed.
    pub tenants: usize,
    /// Networks removed.
    pub networks: usize,
    /// Images removed.
    pub images: usize,
    /// What failed, in words.
    pub errors: Vec<String>,
}

/// Deletes every container and every tenant's cgroup of this node.
///
/// # Errors
/// When the runtime can't be listed; everything else is told in [`Wiped::errors`].
pub async fn containers(
    runtime: &dyn Runtime,
    cgroups: &Arc<dyn Cgroups>,
    mut tell: impl FnMut(ContainerId),
) -> Result<Wiped, RuntimeError> {
    let mut wiped = Wiped::default();
    for container in runtime.list().await? {
        let (id, tenant) = (container.meta.id, container.meta.tenant);
        match runtime.delete(id).await {
            Ok(()) | Err(RuntimeError::Missing(_)) => {
                wiped.containers += 1;
                tell(id);
            }
            Err(error) => {
                wiped.errors.push(chain(&error));
                continue;
            }
        }
        let held = cgroups.clone();
        wiped.blocking(move || held.clear_container(tenant, id)).await;
    }
    let held = cgroups.clone();
    for tenant in wiped.blocking(move || held.tenants()).await.unwrap_or_default() {
        let held = cgroups.clone();
        if wiped.blocking(move || held.remove_tenant(tenant)).await.is_some() {
            wiped.tenants += 1;
        }
    }
    Ok(wiped)
}

impl Wiped {
    async fn blocking<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> Result<T, crate::cgroup::CgroupError> + Send + 'static,
    ) -> Option<T> {
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(value)) => return Some(value),
            Ok(Err(error)) => self.errors.push(chain(&error)),
            Err(error) => self.errors.push(error.to_string()),
        }
        None
    }
}

/// Lets go of every network kept here, with the host's own part.
pub fn networks(kernel: &Kernel, port: u16, switched: &Path, wiped: &mut Wiped) {
    match kernel.kept() {
        Ok(kept) => {
            for vni in kept {
                match Namespace::release(&kernel.path(vni)) {
                    Ok(()) => wiped.networks += 1,
                    Err(error) => wiped
                        .errors
                        .push(format!("network {vni} can't be removed: {error}")),
                }
            }
        }
        Err(error) => wiped.errors.push(chain(&error)),
    }
    if let Err(why) = gate::restore(kernel.host(), port, switched) {
        wiped.errors.push(why);
    }
}

/// Takes the pool of volumes away, if nothing is in it; `all`: whatever is in it.
///
/// # Errors
/// Why it stays, in words.
pub async fn volumes(settings: Settings, all: bool) -> Result<(), String> {
    let root = settings.root();
    if all && root.join("v").is_dir() {
        let opened = tokio::task::spawn_blocking(move || BtrfsPool::open(&root)).await;
        let opened = opened.map_err(|error| error.to_string())?;
        let (pool, _) = opened.map_err(|error| chain(&error))?;
        let listing = pool.list().await.map_err(|error| chain(&error))?;
        for volume in listing.volumes {
            pool.delete(volume.meta.id).await.map_err(|error| chain(&error))?;
        }
    }
    let away = tokio::task::spawn_blocking(move || pool_remove::take_away(&settings)).await;
    away.map_err(|error| error.to_string())?
        .map_err(|error| chain(&error))
}

/// Removes every image of the namespace; containerd collects their layers before the last answer.
pub async fn images(containerd: &Containerd, wiped: &mut Wiped) {
    let list = api::ListImagesRequest { filters: Vec::new() };
    let found = match containerd.images().list(containerd.request(list)).await {
        Ok(reply) => reply.into_inner().images,
        Err(status) => {
            let error = containerd.error("listing images", "", status);
            return wiped.errors.push(chain(&error));
        }
    };
    let last = found.len().saturating_sub(1);
    for (at, image) in found.into_iter().enumerate() {
        let request = api::DeleteImageRequest {
            name: image.name.clone(),
            sync: at == last,
            ..Default::default()
        };
        match containerd.images().delete(containerd.request(request)).await {
            Ok(_) => wiped.images += 1,
            Err(status) if status.code() == tonic::Code::NotFound => {}
            Err(status) => {
                let error = containerd.error("deleting image", image.name, status);
                wiped.errors.push(chain(&error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FakeCgroups, FakeRuntime, Fault};
    use berth_common::id::TenantId;

    #[tokio::test]
    async fn everything_goes_and_errors_are_collected() {
        let runtime = FakeRuntime::default();
        let fake = Arc::new(FakeCgroups::default());
        let cgroups: Arc<dyn Cgroups> = fake.clone();
        let tenant = TenantId::from_bytes([1; 10]);
        cgroups.ensure_tenant(tenant, 100).unwrap();
        for n in 1..=3 {
            runtime.leave_half_made(crate::container::runtime::RuntimeContainer {
                meta: crate::container::runtime::ContainerMeta {
                    id: ContainerId::from_bytes([n; 10]),
                    tenant,
                    tenant_name: "t".parse().unwrap(),
                    service_name: "s".parse().unwrap(),
                    replica: 1,
                },
                spec: berth_common::model::ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap())
                    .container_spec()
                    .unwrap(),
                image: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
                task: crate::container::runtime::TaskState::None,
                complete: true,
            });
        }
        runtime.faults.inject(
            "delete",
            Fault::Fail {
                message: "injected".into(),
                retryable: true,
            },
        );
        let wiped = containers(&runtime, &cgroups, |_| {}).await.unwrap();
        assert_eq!((wiped.containers, wiped.errors.len()), (2, 1), "{wiped:?}");
        let again = containers(&runtime, &cgroups, |_| {}).await.unwrap();
        assert_eq!((again.containers, again.errors.len()), (1, 0), "{again:?}");
        assert!(runtime.containers().is_empty() && fake.weights().is_empty());
    }
}
