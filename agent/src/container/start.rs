//! Starting a container: task with its limits, limits read back (R1), and only then its program.

use std::fmt::Write as _;
use std::path::PathBuf;

use berth_common::id::ContainerId;
use berth_common::model::{Limits, UnixMillis};
use containerd_client::services::v1 as api;
use containerd_client::types::Mount;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use tonic::Code;

use super::bundle;
use super::containerd::{ContainerdRuntime, Inner, cgroup_failed};
use super::record::{self, Record};
use super::rootfs;
use super::runtime::{RuntimeError, Started};
use super::shim;
use crate::cgroup::Device;

impl ContainerdRuntime {
    pub(super) async fn run(&self, id: ContainerId) -> Result<Started, RuntimeError> {
        let inner = &self.0;
        self.ensure_swept().await?;
        let lock = inner.lock(id).await;
        let (record, mounts) = tokio::join!(inner.fresh_record(id), inner.mounts(id));
        let (record, mounts) = (record?, mounts?);
        let layout = Inner::layout(id, &mounts)?;
        let device = inner.device(id, Some(&layout)).await?;
        let owner = if record.kept.spec.privileged {
            0
        } else {
            record.base
        };
        // Held until the runtime has made its own mount of it.
        let (mounts, mapped) = if owner == 0 {
            (mounts, None)
        } else {
            let dir = inner.places.state(id);
            let (mounts, held) = inner
                .blocking("mapping user ids", id, move || {
                    rootfs::mapped(&layout, &dir, owner)
                })
                .await?;
            (mounts, Some(held))
        };
        inner.provide(&record, owner).await?;
        let created = inner.create_task(&record, mounts, owner).await;
        drop(mapped);
        let pid = match created {
            Ok(pid) => pid,
            Err(status) if status.code() == Code::AlreadyExists => match inner.task(id).await? {
                Some(task) if task.status() == TaskStatus::Created && shim::waits(task.pid) => task.pid,
                Some(task)
                    if matches!(
                        task.status(),
                        TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing
                    ) =>
                {
                    let known = record.started.filter(|(pid, _)| *pid == task.pid);
                    return Ok(Started {
                        pid: task.pid,
                        at: known.map_or_else(UnixMillis::now, |(_, at)| at),
                    });
                }
                Some(task) if task.status() == TaskStatus::Stopped => {
                    return Err(inner.again(id, "the end of its last run was not collected yet"));
                }
                _ => {
                    inner.end_task(id).await?;
                    inner.try_take_volumes(id).await;
                    return Err(inner.again(id, "an unfinished start was cleared away"));
                }
            },
            Err(status) => {
                let left = bundle::in_the_way(status.message(), inner.containerd.namespace(), id);
                let error = inner.start_failed("making the process", &record, status).await;
                inner.discard(id, &record).await;
                if let Some(left) = left {
                    inner.clear(id, left).await?;
                    return Err(inner.again(
                        id,
                        "what a killed containerd left of an earlier start was cleared away",
                    ));
                }
                return Err(error);
            }
        };
        let limits = record.kept.spec.limits;
        let ready = tokio::try_join!(inner.enforce(&record, limits, device), inner.connect(id, pid));
        if let Err(error) = ready {
            inner.discard(id, &record).await;
            return Err(error);
        }
        let started = inner.release(id, pid, &record).await?;
        // Only what really began is noted, since from the note on an end counts as one of a run. The program need not wait
        // for it, but the next operation must.
        let inner = std::sync::Arc::clone(inner);
        tokio::spawn(async move {
            let label = record::started_label(started.pid, started.at);
            if let Err(error) = inner.set_labels(id, [(record::STARTED, label)]).await {
                tracing::warn!(container = %id, %error, "the time of its start could not be noted");
            }
            drop(lock);
        });
        Ok(started)
    }
}

impl Inner {
    pub(super) fn again(&self, id: ContainerId, message: &str) -> RuntimeError {
        RuntimeError::Failed {
            operation: "starting",
            container: id,
            message: message.into(),
            retryable: true,
        }
    }

    /// The task of a container, if it has one.
    pub(super) async fn task(&self, id: ContainerId) -> Result<Option<Process>, RuntimeError> {
        let body = api::GetRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        };
        let mut client = self.containerd.tasks();
        match shim::within(shim::ANSWER, client.get(self.containerd.request(body))).await {
            Ok(reply) => Ok(reply.into_inner().process),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failed("asking for the process", id, status)),
        }
    }

    /// Where the shim sends output: to a logger that it starts itself.
    fn log_uri(&self, id: ContainerId, owner: u32, user: (u32, u32)) -> String {
        let mut uri = format!(
            "binary://{}?dir=",
            escape(&self.settings.log_binary.to_string_lossy())
        );
        uri.push_str(&escape(&self.places.logs(id).to_string_lossy()));
        let settings = &self.settings;
        let _ = write!(
            uri,
            "&uid={}&gid={}&max_size={}&max_files={}&rate={}",
            owner.saturating_add(user.0),
            owner.saturating_add(user.1),
            settings.log_max_size,
            settings.log_max_files,
            settings.log_rate
        );
        uri
    }

    async fn create_task(
        &self,
        record: &Record,
        rootfs: Vec<Mount>,
        owner: u32,
    ) -> Result<u32, tonic::Status> {
        let id = record.meta.id;
        let uri = self.log_uri(id, owner, record.kept.user);
        let body = api::CreateTaskRequest {
            container_id: id.to_string(),
            rootfs,
            stdout: uri.clone(),
            stderr: uri,
            options: self.runtime_options(),
            ..Default::default()
        };
        let mut client = self.containerd.tasks();
        let made = self
            .patience
            .within(client.create(self.containerd.request(body)))
            .await?;
        Ok(made.into_inner().pid)
    }

    /// Makes sure that the kernel holds the limits; writes once what the runtime did not.
    pub(super) async fn enforce(
        &self,
        record: &Record,
        limits: Limits,
        device: Option<Device>,
    ) -> Result<(), RuntimeError> {
        let (tenant, id) = (record.meta.tenant, record.meta.id);
        let cgroups = std::sync::Arc::clone(&self.cgroups);
        let checked = tokio::task::spawn_blocking(move || {
            let found = cgroups.read_limits(tenant, id, &limits, device);
            if matches!(&found, Ok(found) if *found == limits) {
                return found;
            }
            // containerd's own update leaves out IO, and older runtimes round.
            cgroups.write_limits(tenant, id, &limits, device)?;
            cgroups.read_limits(tenant, id, &limits, device)
        });
        let found = checked
            .await
            .map_err(|error| self.again(id, &error.to_string()))?;
        let found = found.map_err(|error| RuntimeError::LimitsNotInForce {
            container: id,
            what: cgroup_failed(id, &error).to_string(),
        })?;
        if found == limits {
            return Ok(());
        }
        Err(RuntimeError::LimitsNotInForce {
            container: id,
            what: difference(&limits, &found),
        })
    }

    /// Gives the process its places on networks.
    async fn connect(&self, id: ContainerId, pid: u32) -> Result<(), RuntimeError> {
        let Some(networks) = self.networks.get() else {
            return Ok(());
        };
        let attached = networks.attach(id, pid).await;
        attached.map_err(|why| RuntimeError::NotConnected { container: id, why })
    }

    /// Lets the program run.
    async fn release(&self, id: ContainerId, pid: u32, record: &Record) -> Result<Started, RuntimeError> {
        let at = UnixMillis::now();
        let body = api::StartRequest {
            container_id: id.to_string(),
            exec_id: String::new(),
        };
        let mut tasks = self.containerd.tasks();
        let started = self
            .patience
            .within(tasks.start(self.containerd.request(body)))
            .await;
        if let Err(status) = started {
            // It may run all the same if only the answer was lost: then nothing may be taken away.
            match self.task(id).await? {
                Some(task) if task.status() == TaskStatus::Running => {}
                _ => {
                    let error = self.start_failed("starting the program", record, status).await;
                    self.discard(id, record).await;
                    return Err(error);
                }
            }
        }
        if let Some(known) = self.known.lock().get_mut(&id) {
            known.started = Some((pid, at));
        }
        Ok(Started { pid, at })
    }

    /// Changes labels of a container's record, leaving the rest.
    pub(super) async fn set_labels<const N: usize>(
        &self,
        id: ContainerId,
        labels: [(&str, String); N],
    ) -> Result<(), RuntimeError> {
        let paths = labels.iter().map(|(key, _)| format!("labels.{key}")).collect();
        let container = api::Container {
            id: id.to_string(),
            labels: labels
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            ..Default::default()
        };
        let body = api::UpdateContainerRequest {
            container: Some(container),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let reply = self
            .containerd
            .containers()
            .update(self.containerd.request(body))
            .await;
        reply
            .map(|_| ())
            .map_err(|status| self.failed("changing the record", id, status))
    }

    /// What a failed start is called: the runtime itself can be what is out of memory, and says so badly or not at all.
    async fn start_failed(
        &self,
        operation: &'static str,
        record: &Record,
        status: tonic::Status,
    ) -> RuntimeError {
        let (cgroups, tenant, id) = (
            std::sync::Arc::clone(&self.cgroups),
            record.meta.tenant,
            record.meta.id,
        );
        let counted = tokio::task::spawn_blocking(move || cgroups.stats(tenant, id).oom_kills).await;
        let killed = counted.ok().flatten().is_some_and(|kills| kills > 0);
        if killed || status.message().contains("OOM-killed") {
            return RuntimeError::Failed {
                operation,
                container: id,
                message: format!(
                    "out of memory before its program ran: the memory limit of {} is too little for the container runtime to start in; give it 32MiB or more",
                    record.kept.spec.limits.memory
                ),
                retryable: true,
            };
        }
        self.failed(operation, id, status)
    }

    /// Takes a folder away that keeps containerd from making the process: it knows no task of it, and a shim goes first.
    async fn clear(&self, id: ContainerId, left: PathBuf) -> Result<(), RuntimeError> {
        if self.task(id).await?.is_some() {
            return Err(self.again(
                id,
                "it has a process although its folder is in the way of making one",
            ));
        }
        if bundle::is_being_made(&left, std::time::SystemTime::now()) {
            return Err(self.again(id, "containerd is still making it for an agent that is gone"));
        }
        let (socket, namespace) = (
            self.containerd.socket().to_owned(),
            self.containerd.namespace().to_owned(),
        );
        tracing::warn!(container = %id, folder = %left.display(), "containerd left it in the way; removing it");
        let work = move || {
            shim::end(&socket, &namespace, id);
            bundle::remove(&left)
        };
        self.blocking("clearing an earlier start away", id, work).await
    }

    /// Takes away a process that must not run, and its cgroup.
    async fn discard(&self, id: ContainerId, record: &Record) {
        if let Err(error) = self.end_task(id).await {
            tracing::warn!(container = %id, %error, "a process that failed to start could not be taken away");
        } else {
            self.try_take_volumes(id).await;
        }
        let (cgroups, tenant) = (std::sync::Arc::clone(&self.cgroups), record.meta.tenant);
        let _ = tokio::task::spawn_blocking(move || cgroups.clear_container(tenant, id)).await;
    }
}

/// Percent-escapes what may not stand in a URI.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// Which limits differ, in words.
pub(super) fn difference(wanted: &Limits, found: &Limits) -> String {
    let mut parts = Vec::new();
    let mut compare = |name: &str, wanted: String, found: String| {
        if wanted != found {
            parts.push(format!("{name} should be {wanted} and is {found}"));
        }
    };
    compare("cpu", wanted.cpu.to_string(), found.cpu.to_string());
    compare(
        "cpu weight",
        wanted.cpu_weight.to_string(),
        found.cpu_weight.to_string(),
    );
    compare("memory", wanted.memory.0.to_string(), found.memory.0.to_string());
    compare(
        "memory high",
        format!("{:?}", wanted.memory_high),
        format!("{:?}", found.memory_high),
    );
    compare("swap", format!("{:?}", wanted.swap), format!("{:?}", found.swap));
    compare("pids", wanted.pids.to_string(), found.pids.to_string());
    compare("disk", wanted.disk.0.to_string(), found.disk.0.to_string());
    compare("IO", format!("{:?}", wanted.io), format!("{:?}", found.io));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let wanted = Limits::default();
        assert_eq!(difference(&wanted, &wanted), "");
        let found = Limits { pids: 7, ..wanted };
        assert_eq!(difference(&wanted, &found), "pids should be 512 and is 7");
    }

    #[test]
    fn uris_are_escaped() {
        assert_eq!(escape("/a b/ü?&%"), "/a%20b/%C3%BC%3F%26%25");
    }
}
