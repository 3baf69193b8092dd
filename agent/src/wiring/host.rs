//! Makes the real facilities of this host from its settings. Touches nothing: the first call connects.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;

use super::volumes::BtrfsPools;
use super::{Host, LogFolders};
use crate::cgroup::{self, Cgroups, Device};
use crate::config::Config;
use crate::container::containerd::DEFAULT_LOG_RATE;
use crate::container::runtime::Runtime;
use crate::container::{ContainerdRuntime, IoDevice, RuntimeSettings};
use crate::containerd::Containerd;
use crate::facts;
use crate::health::probe::RuntimeProber;
use crate::image::{ContainerdImages, ImageSettings, LoadedImages};
use crate::link::Brain;
use crate::network::{Kernel, Namespace, NetworkSettings};
use crate::reconcile::apply::Facilities;

/// Makes the runtime; given apart, so that everything else does not depend on which it is.
pub type MakeRuntime = fn(&Config, Containerd, Arc<dyn Cgroups>, &str) -> anyhow::Result<Arc<dyn Runtime>>;

/// The control groups.
///
/// # Errors
/// When the host lacks a controller that limits need (R1), with the cure.
pub fn cgroups(config: &Config) -> anyhow::Result<Arc<dyn Cgroups>> {
    cgroup::detect(&config.cgroup_mount, &config.cgroup_parent)
        .context("this host's control groups can't be used; `berth-agent check` says more")
}

/// A handle on containerd. Must be called inside a tokio runtime.
pub fn containerd(config: &Config) -> Containerd {
    Containerd::connect(&config.containerd_socket, &config.namespace)
}

/// Everything that runs containers. Must be called inside a tokio runtime.
///
/// # Errors
/// As [`cgroups`], or when the system's TLS roots or the runtime's settings can't be used.
pub fn open(
    config: &Config,
    connection: watch::Receiver<Option<quinn::Connection>>,
    make_runtime: MakeRuntime,
) -> anyhow::Result<Host> {
    let (snapshotter, disk_limit_hard) = facts::snapshotter(config);
    let containerd = containerd(config);
    let cgroups = cgroups(config)?;
    let loaded: Arc<dyn LoadedImages> = Arc::new(Brain::new(connection));
    let settings = ImageSettings {
        root: config.containerd_root.clone(),
        insecure_registries: config.insecure_registries.clone(),
        ..ImageSettings::default()
    };
    let images = ContainerdImages::new(containerd.clone(), snapshotter.clone(), loaded, settings)?;
    let runtime = make_runtime(config, containerd, cgroups.clone(), &snapshotter)?;
    Ok(Host {
        facilities: Facilities {
            prober: Arc::new(RuntimeProber::new(runtime.clone())),
            runtime,
            images: Arc::new(images),
            cgroups,
        },
        logs: Arc::new(LogFolders(config.state_dir.join("logs"))),
        snapshotter,
        disk_limit_hard,
        network: Some((kernel(config)?, network_settings(config))),
        pools: config
            .volumes
            .then(|| Arc::new(BtrfsPools(config.volume_pool())) as _),
    })
}

/// This host's networks, in the namespace that the agent runs in.
///
/// # Errors
/// When `/proc` can't be read.
pub fn kernel(config: &Config) -> anyhow::Result<Kernel> {
    let host = Namespace::current().context("opening the host's network namespace")?;
    Ok(Kernel::new(host, config.run_dir.join("networks")))
}

/// Where it is kept on which of the host's links berth switched forwarding on.
pub fn switched(config: &Config) -> PathBuf {
    config.state_dir.join("forwarding.json")
}

fn network_settings(config: &Config) -> NetworkSettings {
    NetworkSettings {
        port: config.vxlan_port,
        // Reading the settings has refused all but an address and `auto`.
        address: config.underlay.parse().ok(),
        brains: config.brain.clone(),
        file: config.state_dir.join("networks.json"),
        switched: switched(config),
        nameservers: config.nameservers.clone(),
        wireguard_port: config.wireguard_port,
        checksum_offload: config.vxlan_checksum_offload,
        key: config.state_dir.join("wireguard.key"),
    }
}

/// The containerd runtime.
///
/// # Errors
/// When `io_device` names no block device.
pub fn containerd_runtime(
    config: &Config,
    containerd: Containerd,
    cgroups: Arc<dyn Cgroups>,
    snapshotter: &str,
) -> anyhow::Result<Arc<dyn Runtime>> {
    let programs = crate::check::program_dir(config);
    let device = match config.io_device.as_str() {
        "auto" => IoDevice::FindOut,
        "none" => IoDevice::Unthrottled,
        path => IoDevice::Given(block_device(path)?),
    };
    let settings = RuntimeSettings {
        snapshotter: snapshotter.to_owned(),
        runtime: "io.containerd.runc.v2".to_owned(),
        runtime_binary: Some(&config.runtime_binary)
            .filter(|b| !b.is_empty())
            .map(Into::into),
        run_dir: config.run_dir.clone(),
        data_dir: config.state_dir.clone(),
        log_binary: programs.join("berth-log"),
        init_binary: programs.join("berth-init"),
        device,
        log_max_size: config.log_max_size.0,
        log_max_files: config.log_max_files,
        log_rate: DEFAULT_LOG_RATE,
    };
    Ok(Arc::new(ContainerdRuntime::new(containerd, cgroups, settings)))
}

fn block_device(path: &str) -> anyhow::Result<Device> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let found = std::fs::metadata(path).with_context(|| format!("io_device {path}"))?;
    anyhow::ensure!(
        found.file_type().is_block_device(),
        "io_device {path} is no block device"
    );
    let device = Device {
        major: nix::sys::stat::major(found.rdev()),
        minor: nix::sys::stat::minor(found.rdev()),
    };
    cgroup::disk_of(device).with_context(|| format!("io_device {path}"))
}
