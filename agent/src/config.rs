//! The agent's settings: one TOML file, every key optional, unknown keys refused.
//!
//! Owns defaults and validation. A file that is absent means the defaults; one that is wrong is an error that says
//! where. `systemd/agent.toml.example` shows every key with its default, which a test keeps true.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_common::daemon::LogFormat;
use berth_common::model::{Capacity, Reservation};
use berth_common::units::{Bytes, Millicores};
use serde::{Deserialize, Serialize};

use crate::containerd::NAMESPACE;
use crate::network::ruleset::VXLAN_PORT;
use crate::volume::pool;

/// Where the settings are unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/berth/agent.toml";

/// The UDP port of WireGuard, unless it is said otherwise: beside the one that its own tools begin with.
const WIREGUARD_PORT: u16 = 51_821;

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    #[error("{path} can't be understood")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Line, key and complaint.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{key} in {path}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would do.
        why: String,
    },
}

/// Kept back for the system and berth itself: reservations never reach into it (R4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SystemReserve {
    /// CPU, as `"100m"` or cores.
    pub cpu: Millicores,
    /// Memory, as `"256MiB"`.
    pub memory: Bytes,
    /// Disk, as `"1GiB"`.
    pub disk: Bytes,
}

impl Default for SystemReserve {
    fn default() -> Self {
        Self {
            cpu: Millicores(100),
            memory: Bytes::mib(256),
            disk: Bytes::gib(1),
        }
    }
}

impl From<SystemReserve> for Capacity {
    fn from(reserve: SystemReserve) -> Self {
        Self {
            cpu: reserve.cpu,
            memory: reserve.memory,
            disk: reserve.disk,
        }
    }
}

/// The agent's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// What must survive a reboot: this node's identity, its ledger, containers' files and output. One agent per folder.
    pub state_dir: PathBuf,
    /// Locks and sockets; emptied by a reboot.
    pub run_dir: PathBuf,
    /// containerd's socket.
    pub containerd_socket: PathBuf,
    /// containerd's own data folder (its `root`): the file system that images and writable layers fill.
    pub containerd_root: PathBuf,
    /// containerd's namespace for berth; whatever else is in it is deleted.
    pub namespace: String,
    /// `overlayfs`, `btrfs`, or `auto`: btrfs where containerd's data lies on one, since only it enforces disk limits.
    pub snapshotter: String,
    /// Whether this host has volumes.
    pub volumes: bool,
    /// UDP port at which other nodes' agents send volumes to this one.
    pub volume_port: u16,
    /// Most that all volumes that are sent from here take of its network together, bytes a second; 0: no limit.
    pub volume_rate: Bytes,
    /// Where volumes are; empty: `<state_dir>/volumes`. A folder on a btrfs is used as it is, else a btrfs is made in a file there.
    pub volume_dir: PathBuf,
    /// Size of that file, as `"50GiB"`, or `auto`: half of what is free when it is made, at most 100 GiB. More than it has: it
    /// grows. It takes from the disk only what volumes hold.
    pub volume_pool_size: String,
    /// berth's top control group: `auto` (what systemd delegates to berth-containers.service, else `berth.slice`) or a name.
    /// Several agents on one machine need different ones.
    pub cgroup_parent: String,
    /// Where control groups are mounted.
    pub cgroup_mount: PathBuf,
    /// Folder with `berth-init` and `berth-log`; empty: the folder of the running program.
    pub program_dir: PathBuf,
    /// OCI runtime binary (`runc`, `crun`, or a path); empty: containerd's default.
    pub runtime_binary: String,
    /// Kept back for the system.
    pub system_reserve: SystemReserve,
    /// Size at which a container's log is rotated.
    pub log_max_size: Bytes,
    /// Log files kept for each container, the current one included.
    pub log_max_files: u32,
    /// Unused images are removed once the file system is this full, percent.
    pub image_gc_high_percent: u8,
    /// Until it is only this full, percent.
    pub image_gc_low_percent: u8,
    /// Registries spoken to in plain http, as `host` or `host:port`.
    pub insecure_registries: Vec<String>,
    /// Name servers that are asked for names that are not of berth; empty: the host's.
    pub nameservers: Vec<IpAddr>,
    /// The block device that IO limits throttle: `auto` (what holds `containerd_root`; where that is no device no container
    /// starts), a path as `/dev/sda`, or `none` for no IO limits.
    pub io_device: String,
    /// The address at which other nodes reach containers' networks: `auto` (the one that packets to the brain leave from) or an
    /// address of this host.
    pub underlay: String,
    /// The UDP port that nodes speak VXLAN on; the same on all.
    pub vxlan_port: u16,
    /// The UDP port that WireGuard listens on for hosts of other sites; 0: none, they can't be reached.
    pub wireguard_port: u16,
    /// Leave checksums of packets within VXLAN to the network card. Some cards get them wrong: `berth network check` finds that, and
    /// `false` mends it, for some of the host's CPU.
    pub vxlan_checksum_offload: bool,
    /// The brain's addresses, `host:port`, instead of those learnt when joining; empty: the learnt ones.
    pub brain: Vec<String>,
    /// What is logged: `error`, `warn`, `info`, `debug`, or a filter as `info,berth_agent::link=debug`.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/berth-agent".into(),
            run_dir: "/run/berth".into(),
            containerd_socket: "/run/containerd/containerd.sock".into(),
            containerd_root: "/var/lib/containerd".into(),
            namespace: NAMESPACE.to_owned(),
            snapshotter: "auto".to_owned(),
            volumes: true,
            volume_port: 7444,
            volume_rate: Bytes::ZERO,
            volume_dir: PathBuf::new(),
            volume_pool_size: "auto".to_owned(),
            cgroup_parent: "auto".to_owned(),
            cgroup_mount: "/sys/fs/cgroup".into(),
            program_dir: PathBuf::new(),
            runtime_binary: String::new(),
            system_reserve: SystemReserve::default(),
            log_max_size: Bytes::mib(10),
            log_max_files: 3,
            image_gc_high_percent: 85,
            image_gc_low_percent: 75,
            insecure_registries: Vec::new(),
            nameservers: Vec::new(),
            io_device: "auto".to_owned(),
            underlay: "auto".to_owned(),
            vxlan_port: VXLAN_PORT,
            wireguard_port: WIREGUARD_PORT,
            vxlan_checksum_offload: true,
            brain: Vec::new(),
            log_level: "info".to_owned(),
            log_format: LogFormat::Auto,
        }
    }
}

fn is_name(text: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= 64 && text.chars().all(fits) && !text.starts_with('.')
}

impl Config {
    /// The settings in a file; the defaults if there is none.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The settings in a text; `path` only goes into errors.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] or [`ConfigError::Value`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        match config.fault() {
            None => Ok(config),
            Some((key, why)) => Err(ConfigError::Value {
                key,
                path: path.to_owned(),
                why,
            }),
        }
    }

    /// Where volumes are to be, and how large a file for them.
    pub fn volume_pool(&self) -> pool::Settings {
        let dir = match self.volume_dir.as_os_str().is_empty() {
            true => self.state_dir.join("volumes"),
            false => self.volume_dir.clone(),
        };
        pool::Settings {
            dir,
            // "auto" is no amount.
            size: self.volume_pool_size.parse().ok(),
        }
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let no = |key, why: &str| Some((key, why.to_owned()));
        for (key, path) in [
            ("state_dir", &self.state_dir),
            ("run_dir", &self.run_dir),
            ("containerd_socket", &self.containerd_socket),
            ("containerd_root", &self.containerd_root),
            ("cgroup_mount", &self.cgroup_mount),
        ] {
            if !path.is_absolute() {
                return no(key, "must be an absolute path");
            }
        }
        if !self.program_dir.as_os_str().is_empty() && !self.program_dir.is_absolute() {
            return no("program_dir", "must be empty or an absolute path");
        }
        if !self.volume_dir.as_os_str().is_empty() && !self.volume_dir.is_absolute() {
            return no("volume_dir", "must be empty or an absolute path");
        }
        if self.volume_pool_size != "auto" {
            match self.volume_pool_size.parse::<Bytes>() {
                Ok(size) if size >= pool::LEAST => {}
                Ok(_) => {
                    return Some((
                        "volume_pool_size",
                        format!("must be \"auto\" or at least {}", pool::LEAST),
                    ));
                }
                Err(error) => return Some(("volume_pool_size", format!("\"auto\" would do: {error}"))),
            }
        }
        if !is_name(&self.namespace) {
            return no("namespace", "must be letters, digits, `.`, `_` and `-`");
        }
        if !is_name(&self.cgroup_parent) {
            return no(
                "cgroup_parent",
                "must be one name without `/`, such as \"berth.slice\"",
            );
        }
        if self.underlay != "auto" && self.underlay.parse::<IpAddr>().is_err() {
            return no("underlay", "must be \"auto\" or an IP address of this host");
        }
        if self.vxlan_port == 0 {
            return no("vxlan_port", "must be from 1 to 65535");
        }
        if self.wireguard_port == self.vxlan_port {
            return no("wireguard_port", "must be another than vxlan_port");
        }
        if !matches!(self.snapshotter.as_str(), "auto" | "overlayfs" | "btrfs") {
            return no("snapshotter", "must be \"auto\", \"overlayfs\" or \"btrfs\"");
        }
        if !(1..=1000).contains(&self.log_max_files) {
            return no("log_max_files", "must be from 1 to 1000");
        }
        if self.log_max_size < Bytes(64 << 10) {
            return no("log_max_size", "must be at least 64KiB");
        }
        let (low, high) = (self.image_gc_low_percent, self.image_gc_high_percent);
        if high > 100 || low >= high {
            return no(
                "image_gc_low_percent",
                "must be below image_gc_high_percent, which is at most 100",
            );
        }
        if !matches!(self.io_device.as_str(), "auto" | "none") && !self.io_device.starts_with("/dev/") {
            return no("io_device", "must be \"auto\", \"none\" or a path below /dev");
        }
        if let Some(bad) = self.brain.iter().find(|address| !is_address(address)) {
            return Some(("brain", format!("{bad:?} is no `host:port`")));
        }
        if let Err(error) = self.log_level.parse::<tracing_subscriber::EnvFilter>() {
            return Some(("log_level", error.to_string()));
        }
        None
    }
}

/// Whether this has the shape of `host:port`.
pub fn is_address(text: &str) -> bool {
    text.rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// What reservations on this host may add up to: its capacity less `reserve` (R4).
pub fn allocatable(capacity: Capacity, reserve: Capacity) -> Reservation {
    Reservation {
        cpu: capacity.cpu.saturating_sub(reserve.cpu),
        memory: capacity.memory.saturating_sub(reserve.memory),
        disk: capacity.disk.saturating_sub(reserve.disk),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../systemd/agent.toml.example");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("agent.toml"))
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        assert_eq!(
            parse(EXAMPLE).unwrap(),
            Config::default(),
            "commented out it changes nothing"
        );
        let settings: String = EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(parse(&settings).unwrap(), Config::default());
        let shown: toml::Table = settings.parse().unwrap();
        let all = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(shown.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
        let reserve = |table: &toml::Table| table["system_reserve"].as_table().unwrap().len();
        assert_eq!(reserve(&shown), reserve(&all));
    }

    #[test]
    fn an_absent_file_is_the_defaults_and_a_wrong_one_says_where() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(&dir.path().join("none")).unwrap(), Config::default());
        let path = dir.path().join("agent.toml");
        std::fs::write(&path, "state_dir = \"/x\"\nstate_dri = 1\n").unwrap();
        let error = Config::load(&path).unwrap_err();
        let text = crate::reconcile::apply::chain(&error);
        assert!(
            text.contains("agent.toml") && text.contains("state_dri") && text.contains("line 2"),
            "{text}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (text, key) in [
            ("state_dir = \"x\"", "state_dir"),
            ("namespace = \"\"", "namespace"),
            ("cgroup_parent = \"a/b\"", "cgroup_parent"),
            ("cgroup_parent = \"..\"", "cgroup_parent"),
            ("snapshotter = \"zfs\"", "snapshotter"),
            ("log_max_files = 0", "log_max_files"),
            ("log_max_size = \"1KiB\"", "log_max_size"),
            ("image_gc_high_percent = 50", "image_gc_low_percent"),
            ("image_gc_high_percent = 101", "image_gc_low_percent"),
            ("io_device = \"sda\"", "io_device"),
            ("brain = [\"10.0.0.1\"]", "brain"),
            ("log_level = \"loud=very\"", "log_level"),
            ("program_dir = \"bin\"", "program_dir"),
            ("volume_dir = \"v\"", "volume_dir"),
            ("volume_pool_size = \"1MiB\"", "volume_pool_size"),
            ("volume_pool_size = \"half\"", "volume_pool_size"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with(key) && error.contains("agent.toml"),
                "{text}: {error}"
            );
        }
        let pool = parse("state_dir = \"/s\"\nvolume_pool_size = \"2GiB\"\n")
            .unwrap()
            .volume_pool();
        assert_eq!(
            (pool.dir.as_path(), pool.size),
            (Path::new("/s/volumes"), Some(Bytes::gib(2)))
        );
        assert_eq!(Config::default().volume_pool().size, None);
        let good = parse("brain = [\"[::1]:7443\"]\n[system_reserve]\ncpu = \"1\"\n").unwrap();
        assert_eq!(good.system_reserve.cpu, Millicores(1000));
        assert_eq!(good.system_reserve.memory, SystemReserve::default().memory);
    }
}
