//! A containerd with the example image, a runtime on it, and a check that nothing stays behind.

// Shared by several test programs, none of which uses all of it.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use berth_agent::cgroup::{Cgroups, detect};
use berth_agent::container::runtime::{
    ContainerMeta, CreateRequest, Runtime as _, RuntimeError, TaskExit, TaskState,
};
use berth_agent::container::{ContainerdRuntime, IoDevice, RuntimeSettings};
use berth_agent::image::ImageInfo;
use berth_agent::logs::reader;
use berth_common::id::{ContainerId, TenantId};
use berth_common::model::{ContainerSpec, Digest, Limits, Reservation};
use berth_common::protocol::LogOptions;
use berth_common::units::{Bytes, Millicores};
use berth_tests::containerd::{Containerd, Version};

const LONG: Duration = Duration::from_secs(20);

pub struct Bench {
    pub containerd: Containerd,
    pub runtime: ContainerdRuntime,
    pub cgroups: Arc<dyn Cgroups>,
    pub tenant: TenantId,
    chain_id: String,
    parent: String,
    snapshotter: &'static str,
    dir: tempfile::TempDir,
}

impl Bench {
    pub async fn start(version: Version) -> Self {
        Self::start_on(version, "overlayfs", tempfile::tempdir().unwrap()).await
    }

    /// With a snapshotter, everything below `dir`.
    pub async fn start_on(version: Version, snapshotter: &'static str, dir: tempfile::TempDir) -> Self {
        let containerd = Containerd::start(version, &dir.path().join("c"), None);
        let image = berth_tests::example_image().to_string_lossy().into_owned();
        containerd.ctr(&["images", "import", "--snapshotter", snapshotter, &image]);
        let listed = containerd.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]);
        let chain_id = listed
            .lines()
            .find(|l| l.starts_with("sha256:"))
            .and_then(|l| l.split_whitespace().next());
        let parent = format!("berth-test-{}.slice", TenantId::random());
        let cgroups = detect(Path::new("/sys/fs/cgroup"), &parent).unwrap();
        let all = Reservation {
            cpu: Millicores(2000),
            memory: Bytes::gib(4),
            disk: Bytes::gib(10),
        };
        cgroups.ensure_root(all).unwrap();
        let tenant = TenantId::random();
        cgroups.ensure_tenant(tenant, 100).unwrap();
        let runtime = Self::runtime_at(&containerd.socket(), &cgroups, dir.path(), snapshotter, None);
        Self {
            snapshotter,
            runtime,
            cgroups,
            tenant,
            chain_id: chain_id.unwrap().to_owned(),
            parent,
            containerd,
            dir,
        }
    }

    fn runtime_at(
        socket: &Path,
        cgroups: &Arc<dyn Cgroups>,
        dir: &Path,
        snapshotter: &str,
        runtime_binary: Option<PathBuf>,
    ) -> ContainerdRuntime {
        let client = berth_agent::containerd::Containerd::connect(socket, "berth");
        let settings = RuntimeSettings {
            snapshotter: snapshotter.into(),
            runtime: "io.containerd.runc.v2".into(),
            runtime_binary,
            run_dir: dir.join("run"),
            data_dir: dir.join("data"),
            log_binary: berth_tests::program("berth-log"),
            init_binary: berth_tests::program("berth-init"),
            device: IoDevice::FindOut,
            log_max_size: 64 << 10,
            log_max_files: 3,
            log_rate: 16 << 20,
        };
        ContainerdRuntime::new(client, Arc::clone(cgroups), settings)
    }

    /// What a new agent would have after the old one was killed.
    pub fn another_agent(&self) -> ContainerdRuntime {
        self.agent_with(None)
    }

    /// One that has containerd's shim run this program for runc.
    pub fn agent_with(&self, runtime_binary: Option<PathBuf>) -> ContainerdRuntime {
        Self::runtime_at(
            &self.containerd.socket(),
            &self.cgroups,
            self.dir.path(),
            self.snapshotter,
            runtime_binary,
        )
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A container that runs a shell script.
    pub fn request(&self, service: &str, script: &str) -> CreateRequest {
        let limits = Limits {
            memory: Bytes::mib(64),
            pids: 64,
            ..Limits::default()
        };
        let spec: ContainerSpec = serde_json::from_value(serde_json::json!({
            "image": "example:1", "command": ["/bin/sh", "-c", script],
            "reservation": {"cpu": 10, "memory": 1 << 20, "disk": 1 << 20},
            "limits": limits, "stop_grace_secs": 1,
        }))
        .unwrap();
        let config = serde_json::from_value(serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], "StopSignal": "SIGINT"},
            "rootfs": {"type": "layers", "diff_ids": [self.chain_id]}, "history": [],
        }))
        .unwrap();
        CreateRequest {
            meta: ContainerMeta {
                id: ContainerId::random(),
                tenant: self.tenant,
                tenant_name: "acme".parse().unwrap(),
                service_name: service.parse().unwrap(),
                replica: 1,
            },
            image: ImageInfo {
                reference: spec.image.clone(),
                manifest: Digest::of(b"example"),
                chain_id: self.chain_id.clone(),
                chain_ids: vec![self.chain_id.clone()],
                config,
            },
            spec,
            nameservers: vec!["192.0.2.53".parse().unwrap()],
        }
    }

    /// Everything a container wrote, once it contains `text`.
    pub async fn wait_log(&self, id: ContainerId, text: &str) -> String {
        let until = Instant::now() + LONG;
        loop {
            let mut lines = reader::read(&self.runtime.log_dir(id), LogOptions::default());
            let mut all = String::new();
            while let Some(line) = lines.recv().await {
                all.push_str(&line.text);
                if !line.partial {
                    all.push('\n');
                }
            }
            if all.contains(text) {
                return all;
            }
            assert!(
                Instant::now() < until,
                "no {text:?} in the log:\n{all}\n{}",
                self.containerd.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The end of a container, collected.
    pub async fn wait_exit(&self, id: ContainerId) -> TaskExit {
        let until = Instant::now() + LONG;
        loop {
            match self.runtime.collect(id).await {
                Ok(Some(exit)) => return exit,
                Ok(None) => panic!("its end was lost"),
                Err(RuntimeError::Failed { .. }) if Instant::now() < until => {}
                Err(error) => panic!("{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The state of a container's process.
    pub async fn task(&self, id: ContainerId) -> Option<TaskState> {
        let listed = self.runtime.list().await.unwrap();
        listed.into_iter().find(|c| c.meta.id == id).map(|c| c.task)
    }

    /// Waits until it runs.
    pub async fn running(&self, id: ContainerId) {
        while !matches!(self.task(id).await, Some(TaskState::Running { .. })) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Deletes containers and checks that nothing of them is left anywhere.
    pub async fn finish(self, ids: &[ContainerId]) {
        for id in ids {
            self.runtime.delete(*id).await.unwrap();
            self.runtime.delete(*id).await.unwrap();
        }
        assert!(self.runtime.list().await.unwrap().is_empty());
        let snapshots = self
            .containerd
            .ctr(&["snapshots", "--snapshotter", self.snapshotter, "ls"]);
        assert!(!snapshots.contains("berth-"), "{snapshots}");
        assert_eq!(self.containerd.ctr(&["tasks", "ls", "-q"]).trim(), "");
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let own = self.dir.path().display().to_string();
        assert!(!mounts.contains(&own), "mounts are left:\n{mounts}");
        for folder in ["run", "data/containers", "data/logs"] {
            let left = std::fs::read_dir(self.dir.path().join(folder)).map_or(0, Iterator::count);
            assert_eq!(left, 0, "{folder} is not empty");
        }
        for id in ids {
            let pids = self.cgroups.pids(self.tenant, *id);
            assert!(pids.map_or(true, |pids| pids.is_empty()));
            for top in self.tops() {
                let path = top.join(format!("tenant-{}.slice/{id}", self.tenant));
                assert!(!path.exists(), "{} is left", path.display());
            }
        }
        self.cgroups.remove_tenant(self.tenant).unwrap();
    }

    /// The bench's own top group in every hierarchy.
    fn tops(&self) -> Vec<PathBuf> {
        let mount = PathBuf::from("/sys/fs/cgroup");
        let controllers = std::fs::read_dir(&mount)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        controllers
            .chain([mount.clone()])
            .map(|dir| dir.join(&self.parent))
            .filter(|dir| dir.exists())
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // After a failed test processes may still be there: they go with their groups' members.
        for top in self.tops() {
            remove_group(&top);
        }
    }
}

fn remove_group(dir: &Path) {
    let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| line.parse().ok()) {
        berth_tests::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
    }
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_group(&entry.path());
        }
    }
    for _ in 0..50 {
        if std::fs::remove_dir(dir).is_ok() || !dir.exists() {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Bench {
    /// Waits for something to become so.
    pub async fn eventually(&self, what: &str, mut probe: impl FnMut() -> bool) {
        let until = Instant::now() + LONG;
        while !probe() {
            assert!(
                Instant::now() < until,
                "waiting for {what}: {}",
                self.containerd.log()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// An agent that starts an exec and is gone at its first output, without any farewell.
    pub fn another_agent_in_a_thread(
        &self,
        id: ContainerId,
        spec: berth_common::protocol::ExecSpec,
    ) -> std::thread::JoinHandle<()> {
        let (socket, cgroups, dir) = (
            self.containerd.socket(),
            Arc::clone(&self.cgroups),
            self.dir.path().to_owned(),
        );
        let snapshotter = self.snapshotter;
        std::thread::spawn(move || {
            let tokio = tokio::runtime::Runtime::new().unwrap();
            tokio.block_on(async {
                let agent = Self::runtime_at(&socket, &cgroups, &dir, snapshotter, None);
                let mut session = agent.exec(id, &spec).await.unwrap();
                while !matches!(
                    session.down.recv().await,
                    Some(berth_common::protocol::ExecDown::Stdout { .. })
                ) {}
                // A killed process runs no destructors; what it leaves on disk is put back as it was.
                let state = dir.join("run").join(id.to_string());
                let name = std::fs::read_dir(&state)
                    .unwrap()
                    .next()
                    .unwrap()
                    .unwrap()
                    .file_name();
                std::mem::forget(session);
                std::fs::write(dir.join("exec-name"), name.into_encoded_bytes()).unwrap();
            });
            tokio.shutdown_background();
            let name = std::fs::read_to_string(dir.join("exec-name")).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            std::fs::create_dir_all(dir.join("run").join(id.to_string()).join(name)).unwrap();
        })
    }
}
