//! Several hosts on one wire, each a network namespace with its own containerd and agent, and the brain on one more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use berth_agent::network::Namespace;
use serde_json::Value;

use crate::cluster::{Agent, Brain, MACHINE};
use crate::containerd::Version;
use crate::disk::Btrfs;
use crate::host::{Host, Lan};
use crate::machine::Machine;
use crate::operator::Operator as _;

/// They. Order matters: agents go before their hosts, the brain before its network.
#[derive(Debug)]
pub struct Fleet {
    /// The agents, `h1` first.
    pub agents: Vec<Agent>,
    /// What each agent sees of its machine, of those that have one of their own.
    pub machines: Vec<Machine>,
    /// The brain.
    pub brain: Brain,
    /// The agents' hosts.
    pub hosts: Vec<Host>,
    _brain_host: Host,
    /// What volumes lie on, of those that have some.
    pub disks: Vec<Btrfs>,
    /// The wire.
    pub lan: Lan,
    /// Everybody's folders.
    pub dir: tempfile::TempDir,
}

impl Fleet {
    /// So many nodes, all ready, with the example image loaded. A node is lost after four seconds.
    pub fn new(nodes: usize) -> Self {
        Self::with(nodes, |_| String::new())
    }

    /// The same with further lines in the agents' settings.
    pub fn with(nodes: usize, settings: impl Fn(&Lan) -> String) -> Self {
        Self::build(nodes, |lan, _| settings(lan), false)
    }

    /// The same, each with a btrfs of so many bytes for volumes.
    pub fn with_volumes(nodes: usize, size: u64) -> Self {
        // Made with the settings, since an agent looks for it when it starts; kept for as long as the hosts.
        let disks = std::cell::RefCell::new(Vec::new());
        let settings = |_: &Lan, dir: &Path| {
            let disk = Btrfs::new(&dir.join("pool"), size);
            let settings = format!("volumes = true\nvolume_dir = \"{}\"\n", disk.mount.display());
            disks.borrow_mut().push(disk);
            settings
        };
        let mut fleet = Self::build(nodes, settings, false);
        fleet.disks = disks.take();
        fleet
    }

    /// The same, each with one processor of its own and what is used of that.
    pub fn of_machines(nodes: usize) -> Self {
        Self::build(nodes, |_, _| String::new(), true)
    }

    fn build(nodes: usize, settings: impl Fn(&Lan, &Path) -> String, own: bool) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let lan = Lan::new();
        let brain_host = Host::new("brain");
        lan.attach(&brain_host, "eth0", 1);
        let address = format!("{}:7443", lan.address(1));
        let brain = Brain::start_with(
            &dir.path().join("brain"),
            Some(&brain_host),
            &address,
            "lease_secs = 4",
        );
        let (mut agents, mut hosts, mut machines) = (Vec::new(), Vec::new(), Vec::new());
        for n in 1..=nodes {
            let host = Host::new(&format!("h{n}-"));
            lan.attach(&host, "eth0", 10 + n as u8);
            let name = format!("h{n}");
            let token = brain.json(&["node", "token"])["token"]
                .as_str()
                .expect("token")
                .to_owned();
            let group = format!("berth-{}-{name}.slice", std::process::id());
            let extra = format!(
                "cgroup_parent = \"{group}\"\n{}",
                settings(&lan, &dir.path().join(&name))
            );
            if own {
                machines.push(Machine::new(&dir.path().join(&name).join(MACHINE), &group));
            }
            agents.push(Agent::join(
                &token,
                &dir.path().join(&name),
                &name,
                Some(&host),
                Version::System,
                &extra,
            ));
            hosts.push(host);
            brain.wait_node(&name, "ready", 20);
        }
        brain.load_example();
        Self {
            agents,
            machines,
            brain,
            hosts,
            _brain_host: brain_host,
            disks: Vec::new(),
            lan,
            dir,
        }
    }
}

/// A container as its operator sees it, and its network namespace.
#[derive(Debug)]
pub struct Inside {
    /// Its node's name.
    pub node: String,
    /// Its first IPv4 address.
    pub ipv4: IpAddr,
    /// Its first IPv6 address.
    pub ipv6: IpAddr,
    /// Its hardware address on that network.
    pub mac: String,
    /// Its network namespace.
    pub space: Namespace,
}

impl Inside {
    /// A running container, as `berth ps -o json` has it.
    pub fn of(container: &Value) -> Self {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let address = &container["addresses"][0];
        let pid = container["observed"]["pid"].as_u64().expect("pid");
        Self {
            node: text(&container["node_name"]),
            ipv4: text(&address["ipv4"]).parse().expect("address"),
            ipv6: text(&address["ipv6"]).parse().expect("address"),
            mac: text(&address["mac"]),
            space: Namespace::of_process(pid as u32).expect("its namespace"),
        }
    }
}

/// The default tenant's running containers by name.
pub fn all(brain: &Brain) -> BTreeMap<String, Inside> {
    all_of(brain, "default")
}

/// A tenant's running containers by name.
pub fn all_of(brain: &Brain, tenant: &str) -> BTreeMap<String, Inside> {
    let named = |c: &Value| (c["name"].as_str().expect("name").to_owned(), Inside::of(c));
    let items = brain.items(&["--tenant", tenant, "ps"]);
    let running = items
        .iter()
        .filter(|c| c["observed"]["phase"] == "running" && c["removing"] != true);
    running.map(named).collect()
}

/// Replicas that services' addresses lead to, as a container's own table has them.
pub fn led_to(space: &Namespace) -> BTreeSet<Ipv4Addr> {
    let (_, rules) = crate::overlay::sh(space, "nft list table inet berth");
    let lines = rules.lines().filter(|line| line.contains("dnat ip to"));
    let words = lines.flat_map(|line| line.split(|c: char| !(c.is_ascii_digit() || c == '.')));
    words.filter_map(|word| word.parse().ok()).collect()
}
