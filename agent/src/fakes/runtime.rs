//! A container runtime in memory: processes are records, time is the caller's.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use base64::Engine as _;
use berth_common::id::ContainerId;
use berth_common::model::{ContainerSpec, Limits, UnixMillis};
use berth_common::protocol::{ExecDown, ExecSpec, ExecUp};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use super::faults::{Fault, Faults};
use crate::container::runtime::{
    CreateRequest, ExecSession, Runtime, RuntimeContainer, RuntimeError, RuntimeEvent, Started, TaskExit,
    TaskState,
};
use crate::container::volumes;
use crate::volume::keeper::Provide;

#[derive(Debug, Default)]
struct State {
    containers: BTreeMap<ContainerId, RuntimeContainer>,
    oom: BTreeMap<ContainerId, u64>,
    disk: BTreeMap<ContainerId, u64>,
    deaf: std::collections::BTreeSet<ContainerId>,
    starts: BTreeMap<ContainerId, u32>,
    double_starts: u32,
    next_pid: u32,
    listeners: Vec<mpsc::Sender<RuntimeEvent>>,
}

/// See the module. It outlives the reconciler above it, as containerd outlives the agent.
#[derive(Default)]
pub struct FakeRuntime {
    /// Faults by method name.
    pub faults: Faults,
    state: Mutex<State>,
    volumes: OnceLock<Arc<dyn Provide>>,
}

/// First id of every container's range.
const BASE: u32 = 1 << 16;

impl FakeRuntime {
    async fn fault(&self, operation: &'static str, container: ContainerId) -> Result<bool, RuntimeError> {
        match self.faults.take(operation) {
            None => Ok(false),
            Some(Fault::FailAfter) => Ok(true),
            Some(Fault::Delay(time)) => {
                tokio::time::sleep(time).await;
                Ok(false)
            }
            Some(Fault::Fail { message, retryable }) => Err(RuntimeError::Failed {
                operation,
                container,
                message,
                retryable,
            }),
        }
    }

    fn finish(lost: bool) -> Result<(), RuntimeError> {
        if lost {
            return Err(RuntimeError::Unreachable {
                socket: "/fake".to_owned(),
                operation: "waiting for an answer",
                source: "the answer was lost".into(),
            });
        }
        Ok(())
    }

    /// Mounts a container's volumes, unless its process has them.
    async fn provide(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let container = self.state.lock().get(id)?.clone();
        if container.task != TaskState::None {
            return Ok(());
        }
        volumes::provide(self.volumes.get(), id, BASE, &container.spec.volumes).await
    }

    /// Ends a container's process as if by itself.
    pub fn exit(&self, id: ContainerId, code: i32, at: UnixMillis) {
        let mut state = self.state.lock();
        let oom_kills = state.oom.get(&id).copied().unwrap_or(0);
        let Some(container) = state.containers.get_mut(&id) else {
            return;
        };
        if matches!(container.task, TaskState::Running { .. } | TaskState::Created) {
            container.task = TaskState::Stopped(TaskExit {
                code,
                at,
                oom_kills: Some(oom_kills),
                begun: matches!(container.task, TaskState::Running { .. }),
            });
            state.tell(RuntimeEvent::Exited(id));
        }
    }

    /// The runtime dies in the middle of a start, and the process that was made with it: it never ran its program.
    pub fn cut_off_start(&self, id: ContainerId) {
        if let Some(container) = self.state.lock().containers.get_mut(&id) {
            container.task = TaskState::Created;
        }
        self.exit(id, 137, UnixMillis::now());
    }

    /// The kernel kills something inside for memory; PID 1 too if `fatal`.
    pub fn oom(&self, id: ContainerId, fatal: bool, at: UnixMillis) {
        {
            let mut state = self.state.lock();
            *state.oom.entry(id).or_default() += 1;
            state.tell(RuntimeEvent::Oom(id));
        }
        if fatal {
            self.exit(id, 137, at);
        }
    }

    /// Says something that may not be so, as a runtime whose events are late or doubled.
    pub fn say(&self, event: RuntimeEvent) {
        self.state.lock().tell(event);
    }

    /// Sets the size of a writable layer, bytes.
    pub fn set_disk(&self, id: ContainerId, bytes: u64) {
        self.state.lock().disk.insert(id, bytes);
    }

    /// A process that ignores its stop signal.
    pub fn ignore_stop(&self, id: ContainerId) {
        self.state.lock().deaf.insert(id);
    }

    /// The host reboots: every process is gone, containers stay.
    pub fn reboot(&self) {
        for container in self.state.lock().containers.values_mut() {
            container.task = TaskState::None;
        }
    }

    /// Something of berth's from before, half made.
    pub fn leave_half_made(&self, mut container: RuntimeContainer) {
        container.complete = false;
        self.state.lock().containers.insert(container.meta.id, container);
    }

    /// How often a container's process was started.
    pub fn starts(&self, id: ContainerId) -> u32 {
        self.state.lock().starts.get(&id).copied().unwrap_or(0)
    }

    /// Starts of a process that was running already. Must stay zero.
    pub fn double_starts(&self) -> u32 {
        self.state.lock().double_starts
    }

    /// What is there.
    pub fn containers(&self) -> BTreeMap<ContainerId, RuntimeContainer> {
        self.state.lock().containers.clone()
    }
}

impl State {
    fn tell(&mut self, event: RuntimeEvent) {
        self.listeners.retain(|listener| {
            !matches!(
                listener.try_send(event.clone()),
                Err(mpsc::error::TrySendError::Closed(_))
            )
        });
    }

    fn get(&mut self, id: ContainerId) -> Result<&mut RuntimeContainer, RuntimeError> {
        self.containers.get_mut(&id).ok_or(RuntimeError::Missing(id))
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    async fn version(&self) -> Result<String, RuntimeError> {
        Ok("fake 1".to_owned())
    }

    async fn list(&self) -> Result<Vec<RuntimeContainer>, RuntimeError> {
        let lost = self.fault("list", ContainerId::from_bytes([0; 10])).await?;
        Self::finish(lost)?;
        Ok(self.state.lock().containers.values().cloned().collect())
    }

    async fn create(&self, request: &CreateRequest) -> Result<(), RuntimeError> {
        let lost = self.fault("create", request.meta.id).await?;
        self.state
            .lock()
            .containers
            .entry(request.meta.id)
            .or_insert_with(|| RuntimeContainer {
                meta: request.meta.clone(),
                spec: request.spec.clone(),
                image: request.image.manifest,
                task: TaskState::None,
                complete: true,
            });
        Self::finish(lost)
    }

    fn provide_by(&self, volumes: Arc<dyn Provide>) {
        let _ = self.volumes.set(volumes);
    }

    async fn await_volumes(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let Some(volumes) = self.volumes.get() else {
            return Ok(());
        };
        let spec = self.state.lock().get(id)?.spec.volumes.clone();
        let ready = volumes.ready(id, &spec).await;
        ready.map_err(|why| RuntimeError::NoVolumes { container: id, why })
    }

    async fn start(&self, id: ContainerId) -> Result<Started, RuntimeError> {
        let lost = self.fault("start", id).await?;
        self.provide(id).await?;
        let started = {
            let mut state = self.state.lock();
            state.next_pid += 1;
            let pid = 1000 + state.next_pid;
            let at = UnixMillis::now();
            match state.get(id)?.task {
                TaskState::Running { .. } => state.double_starts += 1,
                TaskState::Stopped(_) => {
                    return Err(RuntimeError::Failed {
                        operation: "start",
                        container: id,
                        message: "the end of its last run was not collected yet".to_owned(),
                        retryable: true,
                    });
                }
                TaskState::None | TaskState::Created => {}
            }
            state.get(id)?.task = TaskState::Running {
                pid,
                started_at: Some(at),
            };
            *state.starts.entry(id).or_default() += 1;
            state.oom.remove(&id);
            Started { pid, at }
        };
        Self::finish(lost)?;
        Ok(started)
    }

    async fn signal(&self, id: ContainerId, signal: i32, _all: bool) -> Result<(), RuntimeError> {
        let lost = self.fault("signal", id).await?;
        let dies = signal == 9 || !self.state.lock().deaf.contains(&id);
        self.state.lock().get(id)?;
        if dies {
            self.exit(id, 128 + signal, UnixMillis::now());
        }
        Self::finish(lost)
    }

    async fn stop_signal(&self, _id: ContainerId) -> Result<i32, RuntimeError> {
        Ok(15)
    }

    async fn collect(&self, id: ContainerId) -> Result<Option<TaskExit>, RuntimeError> {
        let lost = self.fault("collect", id).await?;
        let mut exit = None;
        let ended = {
            let mut state = self.state.lock();
            let container = state.get(id)?;
            if let TaskState::Stopped(found) = container.task {
                container.task = TaskState::None;
                exit = Some(found);
            }
            container.task == TaskState::None
        };
        if ended {
            volumes::take(self.volumes.get(), id).await?;
        }
        Self::finish(lost)?;
        Ok(exit)
    }

    async fn delete(&self, id: ContainerId) -> Result<(), RuntimeError> {
        let lost = self.fault("delete", id).await?;
        volumes::take(self.volumes.get(), id).await?;
        let mut state = self.state.lock();
        state.containers.remove(&id);
        state.disk.remove(&id);
        drop(state);
        Self::finish(lost)
    }

    async fn update(&self, id: ContainerId, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        let lost = self.fault("update", id).await?;
        self.state.lock().get(id)?.spec = spec.clone();
        Self::finish(lost)
    }

    async fn read_limits(&self, id: ContainerId) -> Result<Limits, RuntimeError> {
        let lost = self.fault("read_limits", id).await?;
        Self::finish(lost)?;
        Ok(self.state.lock().get(id)?.spec.limits)
    }

    async fn oom_kills(&self, id: ContainerId) -> Result<u64, RuntimeError> {
        Ok(self.state.lock().oom.get(&id).copied().unwrap_or(0))
    }

    async fn disk_usage(&self, id: ContainerId) -> Result<u64, RuntimeError> {
        Ok(self.state.lock().disk.get(&id).copied().unwrap_or(0))
    }

    /// Prints the arguments, echoes its input, and exits with 0 at the end of it (at once without `stdin`).
    async fn exec(&self, id: ContainerId, spec: &ExecSpec) -> Result<ExecSession, RuntimeError> {
        self.fault("exec", id).await?;
        self.state.lock().get(id)?;
        let (up, mut input) = mpsc::channel(16);
        let (output, down) = mpsc::channel(16);
        let greeting = format!("{}\n", spec.args.join(" "));
        let interactive = spec.stdin;
        tokio::spawn(async move {
            let data = base64::engine::general_purpose::STANDARD.encode(greeting);
            let _ = output.send(ExecDown::Started).await;
            let _ = output.send(ExecDown::Stdout { data }).await;
            while interactive && let Some(message) = input.recv().await {
                match message {
                    ExecUp::Stdin { data } => drop(output.send(ExecDown::Stdout { data }).await),
                    ExecUp::StdinEof => break,
                    ExecUp::Resize { .. } | ExecUp::Unknown => {}
                }
            }
            let _ = output.send(ExecDown::Exit { code: 0 }).await;
        });
        Ok(ExecSession { up, down })
    }

    fn events(&self) -> mpsc::Receiver<RuntimeEvent> {
        let (sender, receiver) = mpsc::channel(1024);
        self.state.lock().listeners.push(sender);
        receiver
    }
}
