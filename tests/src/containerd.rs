//! A containerd of its own for each test: root, state and socket below the test's folder.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::host::Host;
use crate::process::{Process, eventually, run, signal};

/// Which daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The system's own package.
    System,
    /// Debian 13's, fetched by scripts/test.
    V1_7,
    /// Debian testing's, fetched by scripts/test.
    V2_1,
}

impl Version {
    /// Every version that people run today.
    pub const ALL: [Self; 3] = [Self::System, Self::V1_7, Self::V2_1];

    /// The folder with `containerd` and its shim.
    fn bin_dir(self) -> PathBuf {
        let fetched = |name: &str| {
            let base = std::env::var_os("BERTH_CONTAINERD_DIR")
                .map_or_else(|| crate::root().join("target/containerd"), PathBuf::from);
            base.join(name).join("usr/bin")
        };
        match self {
            Self::System => PathBuf::from("/usr/bin"),
            Self::V1_7 => fetched("1.7"),
            Self::V2_1 => fetched("2.1"),
        }
    }
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    process: Option<Process>,
    version: Version,
    dir: PathBuf,
    netns: Option<String>,
}

impl Containerd {
    /// Starts a daemon below `dir` and waits until it answers.
    pub fn start(version: Version, dir: &Path, host: Option<&Host>) -> Self {
        std::fs::create_dir_all(dir).expect("folder");
        crate::reaper::guard_folder(dir);
        let config = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
            \"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\", \"io.containerd.internal.v1.opt\"]\n";
        std::fs::write(dir.join("config.toml"), config).expect("config");
        let mut new = Self {
            process: None,
            version,
            dir: dir.to_path_buf(),
            netns: host.map(|h| h.netns().to_owned()),
        };
        new.launch();
        new
    }

    fn launch(&mut self) {
        // Shims keep their sockets below it whatever containerd's own state folder is, and the first to come makes it with
        // mode 0600: then no container of the system's containerd could start.
        let shared = Path::new("/run/containerd");
        let _ = std::fs::create_dir(shared);
        std::fs::set_permissions(shared, std::fs::Permissions::from_mode(0o711)).expect("/run/containerd");
        let bin = self.version.bin_dir();
        let daemon = bin.join("containerd");
        assert!(
            daemon.exists(),
            "{} is missing; run the tests by scripts/test",
            daemon.display()
        );
        let mut command = match &self.netns {
            Some(netns) => {
                let mut c = Command::new("nsenter");
                c.arg(format!("--net=/run/netns/{netns}")).arg(&daemon);
                c
            }
            None => Command::new(&daemon),
        };
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .arg("--root")
            .arg(self.dir.join("root"))
            .arg("--state")
            .arg(self.state())
            .arg("--address")
            .arg(self.socket())
            .args(["--log-level", "warn"]);
        self.process = Some(Process::spawn(command, &self.dir.join("containerd.log")));
        let up = eventually(Duration::from_secs(20), || {
            Command::new("ctr")
                .arg("--address")
                .arg(self.socket())
                .arg("version")
                .output()
                .ok()
                .filter(|out| out.status.success())
        });
        assert!(up.is_some(), "containerd did not come up: {}", self.log());
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// Its root folder.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root")
    }

    /// Its state folder.
    pub fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("containerd.log")).unwrap_or_default()
    }

    /// Its pid, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// SIGKILL to the daemon; shims and containers stay.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
    }

    /// Starts it again after [`Self::kill9`].
    pub fn restart(&mut self) {
        self.kill9();
        self.launch();
    }

    /// Output of `ctr` in berth's namespace.
    pub fn ctr(&self, args: &[&str]) -> String {
        run(Command::new("ctr")
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "berth"])
            .args(args))
    }

    /// Pids of shims that belong to this daemon.
    pub fn shims(&self) -> Vec<u32> {
        let socket = self.socket().display().to_string();
        processes(|cmdline| cmdline.contains("containerd-shim") && cmdline.contains(&socket))
    }
}

/// Pids whose command line satisfies `wanted`.
pub fn processes(wanted: impl Fn(&str) -> bool) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let cmdline = String::from_utf8_lossy(&raw).replace('\0', " ");
        if wanted(&cmdline) {
            found.push(pid);
        }
    }
    found
}

impl Containerd {
    /// Leaves what explains a failure in a folder below `target/failures`: this daemon's log with the stacks of it and
    /// its shims, and the processes of the machine.
    fn keep_evidence(&self) {
        let name = self.dir.display().to_string().replace('/', "_");
        let kept = crate::root().join("target/failures").join(name);
        // Both daemons answer SIGUSR1 with their goroutines' stacks.
        for pid in self
            .shims()
            .into_iter()
            .chain(self.process.as_ref().map(Process::pid))
        {
            signal(pid, nix::sys::signal::Signal::SIGUSR1);
        }
        std::thread::sleep(Duration::from_millis(500));
        let processes = Command::new("ps")
            .args(["-eo", "pid,ppid,stat,etimes,wchan:24,args"])
            .output();
        let written = std::fs::create_dir_all(&kept)
            .and_then(|()| std::fs::write(kept.join("containerd.log"), self.log()))
            .and_then(|()| std::fs::write(kept.join("processes"), processes?.stdout));
        match written {
            Ok(()) => eprintln!("--- evidence in {}", kept.display()),
            Err(error) => eprintln!("--- no evidence kept: {error}"),
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep_evidence();
        }
        // Containers first, by way of their shims: a shim that is told to shut down kills its container.
        for shim in self.shims() {
            let children =
                std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
            for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                signal(child, nix::sys::signal::Signal::SIGKILL);
            }
            signal(shim, nix::sys::signal::Signal::SIGKILL);
        }
        if let Some(process) = &mut self.process {
            process.terminate();
        }
        unmount_below(&self.dir);
    }
}

/// Unmounts everything below a folder, deepest first.
pub fn unmount_below(dir: &Path) {
    for _ in 0..3 {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let prefix = format!("{}/", dir.display());
        let mut below: Vec<_> = mounts
            .lines()
            .filter_map(|l| l.split(' ').nth(1))
            .filter(|at| at.starts_with(&prefix))
            .collect();
        if below.is_empty() {
            return;
        }
        below.sort_by_key(|at| std::cmp::Reverse(at.len()));
        for at in below {
            let _ = nix::mount::umount2(at, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}
