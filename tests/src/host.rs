//! Hosts as network namespaces: each with its own address on a shared bridge, or behind a NAT of its own.
//!
//! Everything lives in namespaces made here; the machine's own network is never touched.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::process::run;

static COUNT: AtomicU32 = AtomicU32::new(0);

fn ip(args: &str) -> String {
    run(Command::new("ip").args(args.split_whitespace()))
}

/// A private layer-2 network: a bridge in a namespace of its own.
#[derive(Debug)]
pub struct Lan {
    netns: String,
    subnet: String,
}

impl Lan {
    /// A network `10.<n>.0.0/24`, unconnected to anything else.
    pub fn new() -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = format!("bt{}-lan{n}", std::process::id());
        ip(&format!("netns add {netns}"));
        crate::reaper::guard_netns(&netns);
        let new = Self {
            netns,
            subnet: format!("10.{}.0", 80 + n),
        };
        ip(&format!("-n {} link add br0 type bridge", new.netns));
        ip(&format!("-n {} link set br0 up", new.netns));
        ip(&format!("-n {} link set lo up", new.netns));
        new
    }

    /// An address in this network.
    pub fn address(&self, last: u8) -> String {
        format!("{}.{last}", self.subnet)
    }

    /// Plugs a host in at `address(last)`.
    pub fn attach(&self, host: &Host, device: &str, last: u8) {
        let port = format!("p{}", COUNT.fetch_add(1, Ordering::Relaxed));
        ip(&format!(
            "-n {} link add {port} type veth peer name {device} netns {}",
            self.netns, host.netns
        ));
        ip(&format!("-n {} link set {port} master br0 up", self.netns));
        ip(&format!(
            "-n {} addr add {}/24 dev {device}",
            host.netns,
            self.address(last)
        ));
        ip(&format!("-n {} link set {device} up", host.netns));
    }

    /// Lets packets to a host's device pass only up to so many bytes, as a tunnel on the way would; the host does not know.
    pub fn narrow(&self, host: &Host, device: &str, mtu: u32) {
        // `eth0@if7` is one end of a pair, of which the other is link 7 here.
        let own = ip(&format!("-n {} -o link show {device}", host.netns));
        let index = own.split("@if").nth(1).and_then(|rest| rest.split(':').next());
        let index = format!("{}: ", index.expect("a pair"));
        let all = ip(&format!("-n {} -o link", self.netns));
        let line = all
            .lines()
            .find(|line| line.starts_with(&index))
            .expect("its port");
        let port = line[index.len()..].split('@').next().expect("a name");
        ip(&format!("-n {} link set {port} mtu {mtu}", self.netns));
    }
}

impl Default for Lan {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
    }
}

/// A network namespace that plays a host.
#[derive(Debug)]
pub struct Host {
    netns: String,
}

impl Host {
    /// A host without any link but loopback.
    pub fn new(name: &str) -> Self {
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = format!("bt{}-{name}{n}", std::process::id());
        ip(&format!("netns add {netns}"));
        crate::reaper::guard_netns(&netns);
        ip(&format!("-n {netns} link set lo up"));
        Self { netns }
    }

    /// Name of its namespace.
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Its namespace, opened.
    pub fn space(&self) -> berth_agent::network::Namespace {
        let path = std::path::Path::new("/run/netns").join(&self.netns);
        berth_agent::network::Namespace::open(&path).expect("the host's")
    }

    /// A command that runs on this host. Not by `ip netns exec`, which would remount /sys and hide the cgroups.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.netns))
            .arg("--")
            .arg(program);
        command
    }

    /// Runs `ip` on this host.
    pub fn ip(&self, args: &str) -> String {
        ip(&format!("-n {} {args}", self.netns))
    }

    /// Loads an nftables ruleset on this host.
    pub fn nft(&self, ruleset: &str) {
        let mut file = tempfile::NamedTempFile::new().expect("file");
        std::io::Write::write_all(&mut file, ruleset.as_bytes()).expect("file");
        run(self.command("nft").arg("-f").arg(file.path()));
    }

    /// Lets it forward packets.
    pub fn forward(&self) {
        run(self
            .command("sh")
            .args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
    }
}
