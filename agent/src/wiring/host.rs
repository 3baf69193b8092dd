//! Makes the real facilities of this host from its settings. Touches nothing: the first call connects.

use std::sync::Arc;

use anyhow::Context as _;
use tokio::sync::watch;

use super::{Host, LogFolders};
use crate::cgroup::{self, Cgroups};
use crate::config::Config;
use crate::container::runtime::Runtime;
use crate::containerd::Containerd;
use crate::facts;
use crate::image::{ContainerdImages, ImageSettings, LoadedImages};
use crate::link::Brain;
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
            runtime,
            images: Arc::new(images),
            cgroups,
        },
        logs: Arc::new(LogFolders(config.state_dir.join("logs"))),
        snapshotter,
        disk_limit_hard,
    })
}

/// The containerd runtime.
///
/// # Errors
/// Always, until `container::ContainerdRuntime` is there to be made here.
pub fn containerd_runtime(
    _config: &Config,
    _containerd: Containerd,
    _cgroups: Arc<dyn Cgroups>,
    _snapshotter: &str,
) -> anyhow::Result<Arc<dyn Runtime>> {
    anyhow::bail!("this build can't run containers")
}
