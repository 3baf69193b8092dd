//! A brain and its agents as real processes, and the `berth` command beside them.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::containerd::{Containerd, Version, processes, unmount_below};
use crate::host::Host;
use crate::machine::Machine;
use crate::operator::Operator;
use crate::process::{Process, eventually};
use crate::program;

/// A running brain.
#[derive(Debug)]
pub struct Brain {
    process: Option<Process>,
    dir: PathBuf,
    netns: Option<String>,
    /// `host:port` at which it is reached.
    pub address: String,
}

/// A program on a host, with the umask of the units in `systemd/`.
fn in_netns(netns: Option<&str>, program: &Path) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]);
    if let Some(netns) = netns {
        command.args(["nsenter", &format!("--net=/run/netns/{netns}"), "--"]);
    }
    command.arg(program);
    command
}

/// A TCP and UDP port that is free on loopback right now.
pub fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback");
    socket.local_addr().expect("address").port()
}

impl Brain {
    /// Starts a brain on loopback with its data below `dir`.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, None, &format!("127.0.0.1:{}", free_port()), "")
    }

    /// Starts a brain on a host at an address, with extra lines for its configuration.
    pub fn start_with(dir: &Path, host: Option<&Host>, address: &str, extra: &str) -> Self {
        std::fs::create_dir_all(dir).expect("folder");
        crate::reaper::guard_folder(dir);
        let config = format!(
            "listen = \"{address}\"\nadvertise = [\"{address}\"]\nstate_dir = \"{}\"\n{extra}\n",
            dir.join("state").display()
        );
        std::fs::write(dir.join("brain.toml"), config).expect("config");
        let mut brain = Self {
            process: None,
            dir: dir.to_path_buf(),
            netns: host.map(|h| h.netns().to_owned()),
            address: address.to_owned(),
        };
        brain.restart();
        brain
    }

    /// SIGKILL.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
    }

    /// Starts it (again) and waits until its API answers.
    pub fn restart(&mut self) {
        self.kill9();
        let mut command = in_netns(self.netns.as_deref(), &program("berth-brain"));
        command
            .arg("run")
            .arg("--config")
            .arg(self.dir.join("brain.toml"));
        self.process = Some(Process::spawn(command, &self.dir.join("brain.log")));
        let up = eventually(Duration::from_secs(20), || {
            self.try_berth(&["node", "ls", "-o", "json"])
                .status
                .success()
                .then_some(())
        });
        assert!(up.is_some(), "the brain did not come up:\n{}", self.log());
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").pid()
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The `berth` command as this brain's administrator, not run yet.
    pub fn berth_command(&self, args: &[&str]) -> Command {
        let mut command = in_netns(self.netns.as_deref(), &program("berth"));
        let state = self.dir.join("state");
        let token = std::fs::read_to_string(state.join("admin.token")).unwrap_or_default();
        command
            .env("BERTH_SERVER", format!("https://{}", self.address))
            .env("BERTH_TOKEN", token.trim())
            .env("BERTH_CA", state.join("ca/ca.crt"))
            .env("BERTH_CONFIG", self.dir.join("no-such-config.toml"))
            .env("NO_COLOR", "1")
            .args(args);
        command
    }

    /// A service of small containers that sleep and end when they are told to; `more`: further options of `berth run`.
    pub fn run_sleepers(&self, name: &str, replicas: usize, more: &[&str]) {
        let more: Vec<&str> = ["-d"].iter().chain(more).copied().collect();
        self.run_script(name, replicas, &more, "while true; do sleep 0.2; done");
    }

    /// The same, as even over the nodes as they are: where others keep the machine busy, load would decide.
    pub fn run_sleepers_spread(&self, name: &str, replicas: usize, more: &[&str]) {
        let more: Vec<&str> = ["--spread", "node"].iter().chain(more).copied().collect();
        self.run_sleepers(name, replicas, &more);
    }

    /// Runs small containers with a script of a shell that ends with its stop signal.
    pub fn run_script(&self, name: &str, replicas: usize, more: &[&str], script: &str) {
        let script = format!("trap 'exit 0' TERM; {script}");
        let replicas = replicas.to_string();
        let mut args = vec!["run", "example:1", "--name", name, "--replicas", &replicas];
        args.extend(["--memory", "16MiB", "--disk", "8MiB", "--stop-grace", "1s"]);
        args.extend(more);
        args.extend(["--", "sh", "-c", &script]);
        self.berth(&args);
    }

    /// A service that is asked, at port 8080: checked web servers that go on answering for some seconds once they are told to end. `more`:
    /// further options of `berth run`; `work`: what their shells do besides.
    pub fn run_servers(&self, name: &str, replicas: usize, more: &[&str], work: &str) {
        let script = format!("trap 'sleep 4; exit 0' TERM; httpd -p 80 -h /www; {work}");
        let replicas = replicas.to_string();
        let mut args = vec!["run", "example:1", "--name", name, "--replicas", &replicas, "-d"];
        args.extend(["-p", "8080:80", "--health-tcp", "80", "--stop-grace", "10s"]);
        args.extend(["--memory", "16MiB", "--disk", "8MiB"]);
        args.extend(more);
        args.extend(["--", "sh", "-c", &script]);
        self.berth(&args);
    }

    /// Loads the example image as `example:1` for the default tenant.
    pub fn load_example(&self) {
        self.load_example_for("default");
    }

    /// Loads it for some tenant.
    pub fn load_example_for(&self, tenant: &str) {
        let archive = crate::example_image().display().to_string();
        self.berth(&[
            "--tenant",
            tenant,
            "image",
            "load",
            &archive,
            "--name",
            "example:1",
        ]);
    }
}

/// Whether a container of a listing runs, and is healthy where that is checked.
pub fn serves(container: &serde_json::Value) -> bool {
    container["status"] == "running" || container["status"] == "healthy"
}

/// Folder within an agent's with the machine that it sees, if it is to see one of its own.
pub(crate) const MACHINE: &str = "machine";

/// A running agent with its containerd.
#[derive(Debug)]
pub struct Agent {
    process: Option<Process>,
    /// Its containerd.
    pub containerd: Containerd,
    dir: PathBuf,
    netns: Option<String>,
    /// Its VXLAN port, of one that shares the machine's own network namespace with others.
    beside_others: Option<u16>,
    /// The node's name.
    pub name: String,
}

/// A VXLAN port of its own for an agent in the machine's own network namespace, which is to be left as it was.
fn beside_others(dir: &Path) -> u16 {
    let free = std::net::UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.local_addr());
    let port = free.expect("a free port").port();
    crate::reaper::guard_host(port, &switched(dir));
    port
}

/// Where an agent keeps on which links it switched forwarding on.
fn switched(dir: &Path) -> PathBuf {
    dir.join("state/forwarding.json")
}

impl Agent {
    /// Joins a new node called `name` and starts its agent on a containerd of its own.
    pub fn start(brain: &Brain, dir: &Path, name: &str, host: Option<&Host>) -> Self {
        let token = brain.json(&["node", "token"])["token"]
            .as_str()
            .expect("token")
            .to_owned();
        Self::join(&token, dir, name, host, Version::System, "")
    }

    /// The same with a given token, containerd version and extra configuration.
    pub fn join(
        token: &str,
        dir: &Path,
        name: &str,
        host: Option<&Host>,
        version: Version,
        extra: &str,
    ) -> Self {
        std::fs::create_dir_all(dir).expect("folder");
        crate::reaper::guard_folder(dir);
        let containerd = Containerd::start(version, &dir.join("containerd"), host);
        let beside_others = host.is_none().then(|| beside_others(dir));
        let config = format!(
            "state_dir = \"{}\"\nrun_dir = \"{}\"\ncontainerd_socket = \"{}\"\nlog_level = \"info,berth_agent=debug\"\n{}{}{extra}\n",
            dir.join("state").display(),
            dir.join("run").display(),
            containerd.socket().display(),
            // A file system for each would cost most tests more than they do.
            if extra.contains("volumes =") {
                ""
            } else {
                "volumes = false\n"
            },
            // Its networks stay on the loopback.
            beside_others.map_or_else(String::new, |port| format!(
                "underlay = \"127.0.0.1\"\nvxlan_port = {port}\n"
            ))
        );
        std::fs::write(dir.join("agent.toml"), config).expect("config");
        let mut agent = Self {
            process: None,
            containerd,
            dir: dir.to_path_buf(),
            netns: host.map(|h| h.netns().to_owned()),
            beside_others,
            name: name.to_owned(),
        };
        let mut join = agent.command(&["join", "-", "--name", name, "--config"]);
        join.arg(agent.dir.join("agent.toml"))
            .stdin(std::process::Stdio::piped());
        join.stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = join.spawn().expect("berth-agent runs");
        std::io::Write::write_all(&mut child.stdin.take().expect("stdin"), token.as_bytes()).expect("token");
        let out = child.wait_with_output().expect("join");
        assert!(
            out.status.success(),
            "join: {}",
            String::from_utf8_lossy(&out.stderr)
        );
        agent.restart();
        agent
    }

    fn command(&self, args: &[&str]) -> Command {
        let machine = self.dir.join(MACHINE);
        let mut command = match machine.exists() {
            false => in_netns(self.netns.as_deref(), &program("berth-agent")),
            true => {
                let mut command = in_netns(self.netns.as_deref(), Path::new("unshare"));
                // Mounts go to and come from the others as ever, but for those of the machine that it sees.
                command.args(["--mount", "--propagation", "unchanged", "sh", "-c"]);
                command.arg(Machine::seen_by(&machine)).arg("sh");
                command.arg(program("berth-agent"));
                command
            }
        };
        command.args(args);
        command
    }

    /// SIGKILL to the agent alone.
    pub fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
    }

    /// Starts the agent (again).
    pub fn restart(&mut self) {
        self.kill9();
        let mut command = self.command(&["run", "--config"]);
        command.arg(self.dir.join("agent.toml"));
        self.process = Some(Process::spawn(command, &self.dir.join("agent.log")));
    }

    /// Stops the agent as an upgrade would.
    pub fn terminate(&mut self) {
        if let Some(process) = &mut self.process {
            process.terminate();
        }
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("running").pid()
    }

    /// Where it keeps what a boot of the host ends.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("agent.log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            eprintln!(
                "--- agent {}\n{}",
                self.name,
                lines[lines.len().saturating_sub(80)..].join("\n")
            );
        }
        // Loggers and inits carry the test's folder in their command line or are killed with their shims.
        let dir = self.dir.display().to_string();
        for pid in processes(|cmdline| cmdline.contains("berth-log") && cmdline.contains(&dir)) {
            crate::process::signal(pid, nix::sys::signal::Signal::SIGKILL);
        }
        unmount_below(&self.dir);
        if let Some(port) = self.beside_others {
            crate::reaper::leave_host(port, &switched(&self.dir));
        }
    }
}

impl Operator for Brain {
    fn try_berth(&self, args: &[&str]) -> Output {
        self.berth_command(args).output().expect("berth runs")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("brain.log")).unwrap_or_default()
    }
}

impl Brain {
    /// An HTTP client of its API with the base address and an administrator's token.
    ///
    /// # Errors
    /// When the brain's files can't be read.
    pub fn http(&self) -> anyhow::Result<(reqwest::Client, String, String)> {
        let state = self.dir.join("state");
        let ca =
            berth_common::identity::parse_cert("CA", &std::fs::read_to_string(state.join("ca/ca.crt"))?)?;
        let tls = berth_common::identity::http_client_tls(&ca)?;
        let address: std::net::SocketAddr = self.address.parse()?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .resolve(berth_common::identity::BRAIN_NAME, address)
            .no_proxy()
            .build()?;
        let base = format!(
            "https://{}:{}",
            berth_common::identity::BRAIN_NAME,
            address.port()
        );
        let token = std::fs::read_to_string(state.join("admin.token"))?
            .trim()
            .to_owned();
        Ok((client, base, token))
    }
}
