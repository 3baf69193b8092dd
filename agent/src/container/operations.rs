//! [`Runtime`] on containerd: each operation in a file of its own, put together here.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use berth_common::id::ContainerId;
use berth_common::model::{ContainerSpec, Limits};
use berth_common::protocol::ExecSpec;
use containerd_client::services::v1 as api;
use containerd_client::types::v1::{Process, Status as TaskStatus};
use tokio::sync::mpsc;

use super::containerd::{ContainerdRuntime, Inner, millis};
use super::exit::signal_number;
use super::record;
use super::runtime::{
    CreateRequest, ExecSession, Runtime, RuntimeContainer, RuntimeError, RuntimeEvent, Started, TaskExit,
    TaskState,
};
use super::shim;
use crate::network::Attach;
use crate::volume::keeper::Provide;

const SIGKILL: u32 = 9;

/// What is sent when neither spec nor image names a signal.
const SIGTERM: i32 = 15;

#[async_trait]
impl Runtime for ContainerdRuntime {
    fn attach_to(&self, networks: Arc<dyn Attach>) {
        // Once: what is attached by one is never looked after by another.
        let _ = self.0.networks.set(networks);
    }

    fn provide_by(&self, volumes: Arc<dyn Provide>) {
        let _ = self.0.volumes.set(volumes);
    }

    async fn version(&self) -> Result<String, RuntimeError> {
        self.0
            .containerd
            .version()
            .await
            .map_err(Inner::connection_failed)
    }

    async fn list(&self) -> Result<Vec<RuntimeContainer>, RuntimeError> {
        self.ensure_swept().await?;
        let body = api::ListTasksRequest::default();
        let mut client = self.0.containerd.tasks();
        let (containers, tasks) = tokio::join!(self.0.all(), client.list(self.0.containerd.request(body)));
        let containers = containers?;
        let tasks = tasks
            .map_err(|status| self.0.unreachable("listing processes", status))?
            .into_inner()
            .tasks;
        let mut tasks: HashMap<String, Process> = tasks
            .into_iter()
            .map(|task| (key_of(&task).to_owned(), task))
            .collect();
        let with_task = tasks.keys().filter_map(|id| id.parse().ok()).collect();
        self.release_volumes(&with_task);
        let mut found = Vec::with_capacity(containers.len());
        for container in containers {
            let Some(record) = record::read(&container) else {
                self.remove_foreign(&container).await;
                continue;
            };
            let task = match tasks.remove(&container.id) {
                None => TaskState::None,
                Some(task) => self.state(record.meta.id, &task, record.started).await,
            };
            self.0.known.lock().insert(record.meta.id, record.clone());
            found.push(RuntimeContainer {
                meta: record.meta,
                spec: record.kept.spec,
                image: record.image,
                task,
                complete: record.complete,
            });
        }
        Ok(found)
    }

    async fn create(&self, request: &CreateRequest) -> Result<(), RuntimeError> {
        self.make(request).await
    }

    async fn await_volumes(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.0.await_volumes(id).await
    }

    async fn start(&self, id: ContainerId) -> Result<Started, RuntimeError> {
        self.run(id).await
    }

    async fn signal(&self, id: ContainerId, signal: i32, all: bool) -> Result<(), RuntimeError> {
        let signal = u32::try_from(signal)
            .ok()
            .filter(|n| (1..=64).contains(n))
            .ok_or_else(|| {
                let message = format!("{signal} is not a signal");
                RuntimeError::Failed {
                    operation: "signalling",
                    container: id,
                    message,
                    retryable: false,
                }
            })?;
        let body = api::KillRequest {
            container_id: id.to_string(),
            signal,
            all,
            ..Default::default()
        };
        let mut client = self.0.containerd.tasks();
        match shim::within(shim::ANSWER, client.kill(self.0.containerd.request(body))).await {
            Ok(_) => Ok(()),
            Err(status) if shim::silent(&status) && signal == SIGKILL => self.0.end_shim(id).await,
            Err(status) if shim::silent(&status) => match self.0.record(id).await?.started {
                Some((pid, _)) if shim::signal(id, pid, signal.cast_signed()) => Ok(()),
                _ => Err(self.0.failed("signalling", id, status)),
            },
            // It ended meanwhile, which is what signals are for.
            Err(status) if status.message().contains("process already finished") => Ok(()),
            Err(status) => Err(self.0.failed("signalling", id, status)),
        }
    }

    async fn stop_signal(&self, id: ContainerId) -> Result<i32, RuntimeError> {
        let kept = self.0.record(id).await?.kept;
        let named = kept.spec.stop_signal.as_deref().and_then(signal_number);
        Ok(named
            .or_else(|| kept.stop_signal.as_deref().and_then(signal_number))
            .unwrap_or(SIGTERM))
    }

    async fn collect(&self, id: ContainerId) -> Result<Option<TaskExit>, RuntimeError> {
        self.take_exit(id).await
    }

    async fn delete(&self, id: ContainerId) -> Result<(), RuntimeError> {
        self.destroy(id).await
    }

    async fn update(&self, id: ContainerId, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        self.change(id, spec).await
    }

    async fn read_limits(&self, id: ContainerId) -> Result<Limits, RuntimeError> {
        self.limits_now(id).await
    }

    async fn oom_kills(&self, id: ContainerId) -> Result<u64, RuntimeError> {
        self.0.record(id).await?;
        self.0
            .oom_kills_now(id)
            .await
            .ok_or_else(|| RuntimeError::Failed {
                operation: "counting OOM kills",
                container: id,
                message: "it has no cgroup that could be read; it does not run".into(),
                retryable: true,
            })
    }

    async fn disk_usage(&self, id: ContainerId) -> Result<u64, RuntimeError> {
        self.layer_usage(id).await.map(|bytes| bytes.0)
    }

    async fn exec(&self, id: ContainerId, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.execute(id, spec).await
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        self.listen()
    }
}

/// A listed task's container: containerd 1.6 gives it as `id`, and leaves `container_id` empty.
fn key_of(task: &Process) -> &str {
    if task.container_id.is_empty() {
        &task.id
    } else {
        &task.container_id
    }
}

impl ContainerdRuntime {
    async fn state(
        &self,
        id: ContainerId,
        task: &Process,
        started: Option<(u32, berth_common::model::UnixMillis)>,
    ) -> TaskState {
        match task.status() {
            TaskStatus::Created => TaskState::Created,
            TaskStatus::Stopped => TaskState::Stopped(TaskExit {
                code: i32::try_from(task.exit_status).unwrap_or(-1),
                at: millis(task.exited_at),
                oom_kills: self.0.oom_kills_now(id).await,
                begun: started.is_some_and(|(pid, _)| pid == task.pid),
            }),
            TaskStatus::Running | TaskStatus::Paused | TaskStatus::Pausing => {
                // Another pid's note is of an earlier run.
                let started_at = started.filter(|(pid, _)| *pid == task.pid).map(|(_, at)| at);
                TaskState::Running {
                    pid: task.pid,
                    started_at,
                }
            }
            // The shim doesn't answer. Dead ones are cleared away by containerd; one that is only stuck has its container.
            TaskStatus::Unknown => match started {
                Some((pid, at)) if shim::holds(id, pid) => TaskState::Running {
                    pid,
                    started_at: Some(at),
                },
                _ => TaskState::None,
            },
        }
    }

    /// berth's namespace is berth's: what it can't have made there, or can't read any more, goes.
    async fn remove_foreign(&self, container: &api::Container) {
        tracing::warn!(container = %container.id, "removing a container that berth did not make or can't read");
        if let Ok(id) = container.id.parse::<ContainerId>() {
            if let Err(error) = self.destroy(id).await {
                tracing::warn!(container = %id, %error, "it could not be removed");
            }
            return;
        }
        let inner = &self.0;
        let mut tasks = inner.containerd.tasks();
        let kill = api::KillRequest {
            container_id: container.id.clone(),
            signal: 9,
            all: true,
            ..Default::default()
        };
        let _ = tasks.kill(inner.containerd.request(kill)).await;
        let task = api::DeleteTaskRequest {
            container_id: container.id.clone(),
        };
        let _ = tasks.delete(inner.containerd.request(task)).await;
        let body = api::DeleteContainerRequest {
            id: container.id.clone(),
        };
        if let Err(status) = inner
            .containerd
            .containers()
            .delete(inner.containerd.request(body))
            .await
        {
            tracing::warn!(container = %container.id, %status, "it could not be removed; trying again at the next look");
        }
    }
}
