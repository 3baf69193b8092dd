//! Ending and taking apart.
//!
//! A container that is being deleted is first marked as incomplete and its record goes last: whatever interrupts, it is
//! found again and deleted on.

use std::sync::Arc;
use std::time::Duration;

use berth_common::id::ContainerId;
use containerd_client::services::v1 as api;
use containerd_client::types::v1::Status as TaskStatus;
use tonic::{Code, Status};

use super::containerd::{ContainerdRuntime, Inner, cgroup_failed, millis};
use super::record;
use super::runtime::{RuntimeError, TaskExit};
use super::shim;

/// How long a SIGKILL may take: a process in a disk wait dies only when the disk answers.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

fn gone(status: &Status) -> bool {
    status.code() == Code::NotFound || status.message().contains("process already finished")
}

impl ContainerdRuntime {
    pub(super) async fn take_exit(&self, id: ContainerId) -> Result<Option<TaskExit>, RuntimeError> {
        let inner = &self.0;
        let _lock = inner.lock(id).await;
        let Some(task) = inner.task(id).await? else {
            inner.try_take_volumes(id).await;
            return Ok(None);
        };
        if task.status() == TaskStatus::Unknown {
            // Its shim is gone; containerd clears it away by itself.
            return Ok(None);
        }
        if task.status() != TaskStatus::Stopped {
            return Err(RuntimeError::Failed {
                operation: "collecting the end",
                container: id,
                message: "it has not ended".into(),
                retryable: false,
            });
        }
        let noted = inner.record(id).await.ok().and_then(|record| record.started);
        // Its cgroup goes with the task.
        let oom_kills = inner.oom_kills_now(id).await;
        let body = api::DeleteTaskRequest {
            container_id: id.to_string(),
        };
        let mut client = inner.containerd.tasks();
        let (code, at) = match shim::within(shim::ANSWER, client.delete(inner.containerd.request(body))).await
        {
            Ok(reply) => {
                let reply = reply.into_inner();
                (reply.exit_status, millis(reply.exited_at))
            }
            Err(status) if status.code() == Code::NotFound => (task.exit_status, millis(task.exited_at)),
            Err(status) => return Err(inner.failed("collecting the end", id, status)),
        };
        inner.try_take_volumes(id).await;
        inner.remove_cgroup(id).await?;
        Ok(Some(TaskExit {
            code: i32::try_from(code).unwrap_or(-1),
            at,
            oom_kills,
            begun: noted.is_some_and(|(pid, _)| pid == task.pid),
        }))
    }

    pub(super) async fn destroy(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let inner = &self.0;
        self.ensure_swept().await?;
        let lock = inner.lock(id).await;
        match inner.set_labels(id, [(record::COMPLETE, "0".to_owned())]).await {
            // No record: there may still be files and a snapshot of an attempt that was cut off.
            Ok(()) | Err(RuntimeError::Missing(_)) => {}
            Err(error) => return Err(error),
        }
        inner.end_task(id).await?;
        inner.take_volumes(id).await?;
        inner.remove_cgroup(id).await?;
        let places = inner.places.clone();
        let (snapshot, folders) = tokio::join!(
            inner.remove_snapshot(id),
            inner.blocking("removing folders", id, move || places.remove(id)),
        );
        snapshot?;
        folders?;
        let body = api::DeleteContainerRequest { id: id.to_string() };
        match inner
            .containerd
            .containers()
            .delete(inner.containerd.request(body))
            .await
        {
            Ok(_) => {}
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(inner.failed("removing the record", id, status)),
        }
        inner.ranges.lock().release(id);
        inner.known.lock().remove(&id);
        drop(lock);
        // Others may wait for the lock: they keep their own handle on it.
        inner
            .locks
            .lock()
            .retain(|key, lock| *key != id || Arc::strong_count(lock) > 1);
        Ok(())
    }
}

impl Inner {
    /// Kills and forgets a container's process, whatever its state; none is fine.
    pub(super) async fn end_task(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let task = self.task(id).await?;
        let mut client = self.containerd.tasks();
        // Without a task there can still be a shim that has none yet: a containerd that died while it made the task adopts
        // that shim, knows no process of it, and refuses to make another. Only deleting takes it away.
        if let Some(task) = task.filter(|task| task.status() != TaskStatus::Stopped) {
            let wait = api::WaitRequest {
                container_id: id.to_string(),
                exec_id: String::new(),
            };
            let kill = api::KillRequest {
                container_id: id.to_string(),
                signal: nix::libc::SIGKILL as u32,
                // A pid namespace's other processes die with its PID 1.
                ..Default::default()
            };
            match shim::within(shim::ANSWER, client.kill(self.containerd.request(kill))).await {
                Ok(_) => {}
                Err(status) if gone(&status) => {}
                Err(status) if shim::silent(&status) => return self.end_shim(id).await,
                Err(status) => return Err(self.failed("killing the process", id, status)),
            }
            match tokio::time::timeout(KILL_TIMEOUT, client.wait(self.containerd.request(wait))).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) if gone(&status) => {}
                Ok(Err(status)) => return Err(self.failed("waiting for the end", id, status)),
                Err(_) => {
                    return Err(RuntimeError::Failed {
                        operation: "killing the process",
                        container: id,
                        message: format!("pid {} does not die, probably it waits for a disk", task.pid),
                        retryable: true,
                    });
                }
            }
        }
        let body = api::DeleteTaskRequest {
            container_id: id.to_string(),
        };
        match shim::within(shim::ANSWER, client.delete(self.containerd.request(body))).await {
            Ok(_) => Ok(()),
            Err(status) if gone(&status) => Ok(()),
            Err(status) if shim::silent(&status) => self.end_shim(id).await,
            Err(status) => Err(self.failed("removing the process", id, status)),
        }
    }

    /// Ends a shim that doesn't answer, with its container, for good: containerd clears up when it sees it die.
    ///
    /// # Errors
    /// Always, so that the caller looks again when containerd has done its part.
    pub(super) async fn end_shim(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let socket = self.containerd.socket().to_owned();
        let namespace = self.containerd.namespace().to_owned();
        let work = move || Ok(shim::end(&socket, &namespace, id));
        let ended = self.blocking("ending its shim", id, work).await?;
        tracing::warn!(container = %id, ended, "its shim did not answer and was ended");
        Err(self.again(id, "its shim did not answer and was ended"))
    }

    /// What the kernel counted, if it still knows.
    pub(super) async fn oom_kills_now(&self, id: ContainerId) -> Option<u64> {
        let tenant = self.record(id).await.ok()?.meta.tenant;
        let cgroups = Arc::clone(&self.cgroups);
        tokio::task::spawn_blocking(move || cgroups.stats(tenant, id).oom_kills)
            .await
            .ok()?
    }

    /// Removes what the runtime left of a dead container's cgroup.
    pub(super) async fn remove_cgroup(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let tenant = match self.record(id).await {
            Ok(record) => record.meta.tenant,
            // Nobody knows where it was; a container without a readable record has never run.
            Err(RuntimeError::Missing(_) | RuntimeError::Failed { .. }) => return Ok(()),
            Err(error) => return Err(error),
        };
        let cgroups = Arc::clone(&self.cgroups);
        let removed = tokio::task::spawn_blocking(move || cgroups.clear_container(tenant, id)).await;
        match removed {
            Ok(Ok(())) | Err(_) => Ok(()),
            Ok(Err(error)) => Err(cgroup_failed(id, &error)),
        }
    }
}
