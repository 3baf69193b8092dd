//! Processes beside a container's own.
//!
//! They get the container's capabilities, seccomp profile, limits and namespaces. Their pipes are fifos in the container's
//! state folder, named by the exec's id: whatever an agent that was killed left running is found there, ended and removed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use berth_common::id::ContainerId;
use berth_common::protocol::ExecSpec;
use containerd_client::services::v1 as api;
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxCapabilitiesBuilder, Process, Spec, UserBuilder};
use prost_types::Any;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::containerd::{ContainerdRuntime, Inner};
use super::exec_pump::{self, Pipes};
use super::record::Record;
use super::rootfs;
use super::runtime::{ExecSession, RuntimeError};
use super::spec::merged_env;
use super::users::{self, Identity, Need};

const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const PREFIX: &str = "exec-";
const QUEUE: usize = 32;

fn problem(id: ContainerId, message: impl Into<String>, retryable: bool) -> RuntimeError {
    RuntimeError::Failed {
        operation: "exec",
        container: id,
        message: message.into(),
        retryable,
    }
}

/// A running exec's name and fifos; removed when it is over.
pub(super) struct Exec {
    pub(super) inner: Arc<Inner>,
    pub(super) container: ContainerId,
    pub(super) name: String,
    dir: PathBuf,
}

impl Drop for Exec {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Exec {
    fn fifo(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.fifo(name).to_string_lossy().into_owned()
    }
}

impl ContainerdRuntime {
    pub(super) async fn execute(
        &self,
        id: ContainerId,
        spec: &ExecSpec,
    ) -> Result<ExecSession, RuntimeError> {
        let inner = &self.0;
        let record = inner.record(id).await?;
        let (container, task) = tokio::join!(inner.oci_process(id), inner.task(id));
        let task = task?.ok_or_else(|| problem(id, "the container does not run", false))?;
        let process = inner.exec_process(&record, container?, task.pid, spec).await?;
        let exec = inner
            .open_exec(id, spec)
            .map_err(|error| problem(id, error.to_string(), true))?;
        // Our ends first, so that the shim's never wait for us.
        let receiver = |name: &str| pipe::OpenOptions::new().open_receiver(exec.fifo(name));
        let pipe_error =
            |error: std::io::Error| problem(id, format!("its pipes can't be opened: {error}"), true);
        let out = receiver("out").map_err(pipe_error)?;
        let err = if spec.tty {
            None
        } else {
            Some(receiver("err").map_err(pipe_error)?)
        };
        let body = api::ExecProcessRequest {
            container_id: id.to_string(),
            exec_id: exec.name.clone(),
            terminal: spec.tty,
            stdin: if spec.stdin {
                exec.text("in")
            } else {
                String::new()
            },
            stdout: exec.text("out"),
            stderr: if spec.tty { String::new() } else { exec.text("err") },
            spec: Some(Any {
                type_url: PROCESS.into(),
                value: serde_json::to_vec(&process).map_err(|error| problem(id, error.to_string(), false))?,
            }),
        };
        let reply = inner
            .containerd
            .tasks()
            .exec(inner.containerd.request(body))
            .await;
        reply.map_err(|status| inner.failed("exec", id, status))?;
        // From here on it must be ended and deleted whatever happens to our caller.
        let (up_sender, up) = mpsc::channel(QUEUE);
        let (down, down_receiver) = mpsc::channel(QUEUE);
        let size = spec.size;
        let stdin = spec.stdin.then(|| exec.fifo("in"));
        tokio::spawn(exec_pump::drive(exec, Pipes { stdin, out, err }, size, up, down));
        Ok(ExecSession {
            up: up_sender,
            down: down_receiver,
        })
    }
}

impl Inner {
    /// The process part of a container's OCI spec.
    async fn oci_process(&self, id: ContainerId) -> Result<Process, RuntimeError> {
        let body = api::GetContainerRequest { id: id.to_string() };
        let reply = self
            .containerd
            .containers()
            .get(self.containerd.request(body))
            .await;
        let container = reply
            .map_err(|status| self.failed("exec", id, status))?
            .into_inner()
            .container;
        let spec = container.and_then(|c| c.spec).unwrap_or_default();
        let oci: Spec = serde_json::from_slice(&spec.value)
            .map_err(|error| problem(id, format!("damaged OCI spec: {error}"), false))?;
        oci.process()
            .clone()
            .ok_or_else(|| problem(id, "damaged OCI spec: it has no process", false))
    }

    async fn exec_process(
        &self,
        record: &Record,
        mut process: Process,
        pid: u32,
        spec: &ExecSpec,
    ) -> Result<Process, RuntimeError> {
        let id = record.meta.id;
        let bad = |message: String| problem(id, message, false);
        if spec.args.first().is_none_or(String::is_empty) {
            return Err(bad("no program was given".into()));
        }
        if spec.args.iter().any(|argument| argument.contains('\0')) {
            return Err(bad("an argument contains a NUL byte".into()));
        }
        let mut over = spec.env.clone();
        if spec.tty {
            over.entry("TERM".into()).or_insert_with(|| "xterm".into());
        }
        let base = process.env().clone().unwrap_or_default();
        process.set_env(Some(
            merged_env(&base, &over).map_err(|error| bad(error.to_string()))?,
        ));
        process.set_args(Some(spec.args.clone()));
        process.set_terminal(Some(spec.tty));
        if let Some(dir) = &spec.working_dir {
            if !dir.starts_with('/') || dir.contains('\0') {
                return Err(bad("the working directory must be an absolute path".into()));
            }
            process.set_cwd(dir.into());
        }
        if let Some(user) = spec
            .user
            .as_deref()
            .map(str::trim)
            .filter(|user| !user.is_empty())
        {
            let identity = self.exec_identity(id, pid, user).await?;
            let who = UserBuilder::default()
                .uid(identity.uid)
                .gid(identity.gid)
                .additional_gids(identity.groups.clone())
                .build()
                .map_err(|error| bad(error.to_string()))?;
            process.set_user(who);
            // Only root has the container's capabilities in effect, whoever its own program runs as.
            let all = process
                .capabilities()
                .as_ref()
                .and_then(|c| c.bounding().clone())
                .unwrap_or_default();
            let held = if identity.uid == 0 {
                all.clone()
            } else {
                HashSet::new()
            };
            let capabilities = LinuxCapabilitiesBuilder::default()
                .bounding(all)
                .effective(held.clone())
                .permitted(held)
                .inheritable([])
                .ambient([])
                .build()
                .map_err(|error| bad(error.to_string()))?;
            process.set_capabilities(Some(capabilities));
        }
        Ok(process)
    }

    async fn exec_identity(&self, id: ContainerId, pid: u32, user: &str) -> Result<Identity, RuntimeError> {
        let (passwd, group) = match users::need(user) {
            Need::Nothing(..) => Default::default(),
            Need::Files => {
                let root = PathBuf::from(format!("/proc/{pid}/root"));
                self.blocking("exec", id, move || {
                    rootfs::accounts_below(&rootfs::open_root(&root)?)
                })
                .await?
            }
        };
        users::resolve(user, &passwd, &group).map_err(|error| problem(id, error.to_string(), false))
    }

    fn open_exec(self: &Arc<Self>, id: ContainerId, spec: &ExecSpec) -> std::io::Result<Exec> {
        let name = format!("{PREFIX}{:016x}", rand::random::<u64>());
        let dir = self.places.state(id).join(&name);
        std::fs::create_dir_all(&dir)?;
        let exec = Exec {
            inner: Arc::clone(self),
            container: id,
            name,
            dir,
        };
        let wanted = [("in", spec.stdin), ("out", true), ("err", !spec.tty)];
        for (fifo, _) in wanted.iter().filter(|(_, wanted)| *wanted) {
            nix::unistd::mkfifo(&exec.fifo(fifo), Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
        Ok(exec)
    }

    /// Ends what an earlier agent left running in these containers.
    pub(super) async fn end_old_execs(self: &Arc<Self>, containers: &HashSet<ContainerId>) {
        for id in containers {
            for (name, dir) in left_over(&self.places.state(*id)) {
                tracing::info!(container = %id, exec = name, "ending an exec that outlived its agent");
                let exec = Exec {
                    inner: Arc::clone(self),
                    container: *id,
                    name,
                    dir,
                };
                exec_pump::end(&exec).await;
            }
        }
    }
}

fn left_over(state: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(state) else {
        return Vec::new();
    };
    let execs = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let name = entry
            .file_name()
            .into_string()
            .ok()
            .filter(|name| name.starts_with(PREFIX))?;
        Some((name, entry.path()))
    });
    execs.collect()
}
