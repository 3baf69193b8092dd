//! berth on the lab's machines: the brain on the first, an agent on each.

use std::process::Output;
use std::time::Duration;

use super::{Content, Debian, Lab, Machine, PATIENCE, POLL, Template, eventually};
use crate::operator::Operator;

/// A lab with berth on it, run by the units of `systemd/`.
#[derive(Debug)]
pub struct Cluster {
    /// The machines.
    pub lab: Lab,
}

impl Cluster {
    /// So many Debian 13 hosts, all joined, the example image loaded.
    pub fn trixie(count: usize) -> Self {
        let template = Template::find(Debian::Trixie, Content::Prepared);
        let cluster = Self::start(&vec![&template; count], "lease_secs = 5\n");
        cluster.load_example();
        cluster
    }

    /// One host from each template, all joined; the brain gets some lines of settings.
    pub fn start(templates: &[&Template], settings: &str) -> Self {
        let new = Self::brain_alone(templates, settings);
        std::thread::scope(|scope| {
            for host in &new.lab.hosts {
                scope.spawn(|| {
                    host.ok("systemctl enable -q --no-reload berth-agent berth-containers");
                    new.join(host);
                });
            }
        });
        for host in &new.lab.hosts {
            new.wait_node(&host.name, "ready", 60);
        }
        new
    }

    /// The machines, with a brain on the first and no node yet.
    pub fn brain_alone(templates: &[&Template], settings: &str) -> Self {
        let new = Self {
            lab: Lab::start(templates),
        };
        let brain = new.lab.host(1);
        let config = format!("advertise = [\"{}:7443\"]\n{settings}", brain.address());
        brain.write("/etc/berth/brain.toml", config.as_bytes(), 0o644);
        brain.ok("systemctl enable -q --no-reload berth-brain; systemctl start berth-brain");
        new.wait_brain();
        new
    }

    /// Makes a machine a node.
    pub fn join(&self, host: &Machine) {
        self.join_with(host, &[]);
    }

    /// The same with more words for the token, as `--label`.
    pub fn join_with(&self, host: &Machine, words: &[&str]) {
        let token = self.berth(&[&["node", "token", "-q"], words].concat());
        let out = host.program(&["berth-agent", "join", "-"], token.as_bytes());
        let out = out.unwrap_or_else(|e| panic!("{}: {e}", host.name));
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        host.ok("systemctl start berth-agent");
    }

    /// Waits until the brain's API answers.
    pub fn wait_brain(&self) {
        let up = eventually(PATIENCE, || {
            self.try_berth(&["node", "ls"]).status.success().then_some(())
        });
        assert!(up.is_some(), "the brain does not answer:\n{}", self.log());
    }

    /// Loads the example image as `example:1`.
    pub fn load_example(&self) {
        self.lab
            .host(1)
            .push(crate::example_image(), "/tmp/example.tar", 0o644);
        self.berth(&["image", "load", "/tmp/example.tar", "--name", "example:1"]);
    }

    /// Runs a service of the example image that only sleeps, so many replicas.
    pub fn run_sleepers(&self, name: &str, replicas: usize) {
        let replicas = replicas.to_string();
        let mut args = vec!["run", "example:1", "--name", name, "-d", "--replicas", &replicas];
        args.extend([
            "--memory",
            "32MiB",
            "--disk",
            "8MiB",
            "--cpus",
            "0.05",
            "--stop-grace",
            "10s",
            // An emulated host is as good as busy now and then.
            "--spread",
            "node",
            "--",
        ]);
        args.extend(["sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"]);
        self.berth(&args);
    }

    /// The mixed fleet that people have: two Debian 13 and one Debian 12.
    pub fn mixed(settings: &str) -> Self {
        let new = Template::find(Debian::Trixie, Content::Prepared);
        let old = Template::find(Debian::Bookworm, Content::Prepared);
        let cluster = Self::start(&[&new, &new, &old], settings);
        cluster.load_example();
        cluster
    }

    /// Waits until a tenant's only container runs; its id.
    pub fn only_container_of(&self, tenant: &str) -> String {
        let args = ["ps", "--tenant", tenant];
        let found = eventually(PATIENCE, || {
            let items = self.items(&args);
            let runs = items.len() == 1 && items[0]["observed"]["phase"] == "running";
            runs.then(|| items[0]["id"].as_str().unwrap_or("").to_owned())
        });
        found.unwrap_or_else(|| panic!("{}", self.berth(&args)))
    }

    /// Waits until the brain's running containers are what a test wants; what they were at last.
    ///
    /// # Errors
    /// The containers, when they never were.
    pub fn wait_for(
        &self,
        limit: Duration,
        mut wanted: impl FnMut(&[serde_json::Value]) -> bool,
    ) -> Result<Vec<serde_json::Value>, String> {
        let found = eventually(limit, || {
            let running = self.running();
            wanted(&running).then_some(running)
        });
        found.ok_or_else(|| format!("{}\n{}", self.berth(&["ps"]), self.log()))
    }
}

impl Operator for Cluster {
    fn pause(&self) -> Duration {
        POLL
    }

    /// Emulated machines that share two cores.
    fn patience(&self) -> u32 {
        5
    }

    fn try_berth(&self, args: &[&str]) -> Output {
        let mut argv = vec!["berth"];
        argv.extend(args);
        let out = self.lab.host(1).program(&argv, b"");
        out.unwrap_or_else(|e| panic!("berth {args:?}: {e}"))
    }

    fn log(&self) -> String {
        let log = self.lab.host(1).sh("journalctl -u berth-brain --no-pager -n 100");
        log.1
    }
}

/// Each container's id and where it runs, for comparing before and after.
pub fn places(containers: &[serde_json::Value]) -> Vec<(String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
    let mut places: Vec<_> = containers
        .iter()
        .map(|c| (text(&c["id"]), text(&c["node_name"])))
        .collect();
    places.sort();
    places
}

/// Each container's id and the pid of its first process.
pub fn pids(containers: &[serde_json::Value]) -> Vec<(String, u64)> {
    let mut pids: Vec<_> = containers
        .iter()
        .map(|c| {
            (
                c["id"].as_str().unwrap_or("").to_owned(),
                c["observed"]["pid"].as_u64().unwrap_or(0),
            )
        })
        .collect();
    pids.sort();
    pids
}
