//! Arguments about services and their containers.

use std::path::PathBuf;

use berth_common::id::Name;
use berth_common::model::{ImageRef, Link, PublishedPort, Spread, Tmpfs, Together, Toleration, VolumeMount};
use berth_common::units::{Bytes, Millicores};
use clap::{Args, Subcommand, ValueEnum};

use super::health::HealthArgs;
use super::value::{self, Since};

/// `berth run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The image.
    pub image: ImageRef,
    /// The service's name; default made from the image's.
    #[arg(long)]
    pub name: Option<Name>,
    /// Everything else.
    #[command(flatten)]
    pub spec: SpecArgs,
    /// Don't wait until it runs.
    #[arg(short, long)]
    pub detach: bool,
    /// Wait at most so long.
    #[arg(long, default_value = "2m", value_parser = value::duration)]
    pub wait: u64,
    /// Arguments of the container, instead of the image's command.
    #[arg(last = true)]
    pub args: Vec<String>,
}

/// What a service's spec can hold; what is absent stays as it is.
#[derive(Debug, Default, Args)]
pub struct SpecArgs {
    /// How many equal containers.
    #[arg(long)]
    pub replicas: Option<u32>,
    /// CPU limit in cores: 0.5, 2, 250m.
    #[arg(long, help_heading = "Limits")]
    pub cpus: Option<Millicores>,
    /// Share of CPU under contention, 1 to 10000.
    #[arg(long, help_heading = "Limits")]
    pub cpu_weight: Option<u16>,
    /// Memory limit: 256MiB.
    #[arg(short, long, help_heading = "Limits")]
    pub memory: Option<Bytes>,
    /// Memory above which a container is slowed down, before the limit ends it: 200MiB (cgroup v2).
    #[arg(long, help_heading = "Limits")]
    pub memory_high: Option<Bytes>,
    /// Most processes and threads.
    #[arg(long, help_heading = "Limits")]
    pub pids: Option<u32>,
    /// Limit of the writable layer: 1GiB.
    #[arg(long, help_heading = "Limits")]
    pub disk: Option<Bytes>,
    /// Bytes read a second: 50MiB.
    #[arg(long, help_heading = "Limits")]
    pub read_bps: Option<Bytes>,
    /// Bytes written a second.
    #[arg(long, help_heading = "Limits")]
    pub write_bps: Option<Bytes>,
    /// Read operations a second.
    #[arg(long, help_heading = "Limits")]
    pub read_iops: Option<u32>,
    /// Write operations a second.
    #[arg(long, help_heading = "Limits")]
    pub write_iops: Option<u32>,
    /// CPU to set aside; default a tenth of the limit.
    #[arg(long, help_heading = "Limits")]
    pub reserve_cpu: Option<Millicores>,
    /// Memory to set aside; default the limit.
    #[arg(long, help_heading = "Limits")]
    pub reserve_memory: Option<Bytes>,
    /// Disk to set aside; default the limit.
    #[arg(long, help_heading = "Limits")]
    pub reserve_disk: Option<Bytes>,
    /// Environment variable K=V; K alone takes yours.
    #[arg(short, long, value_name = "K=V")]
    pub env: Vec<String>,
    /// File of K=V lines.
    #[arg(long)]
    pub env_file: Vec<PathBuf>,
    /// Working directory inside.
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// User: name, uid or user:group.
    #[arg(short, long)]
    pub user: Option<String>,
    /// Host name inside.
    #[arg(long)]
    pub hostname: Option<Name>,
    /// Scratch file system in memory: /path[:size].
    #[arg(long, value_parser = value::tmpfs)]
    pub tmpfs: Vec<Tmpfs>,
    /// Volume, which is made unless it is there: data:/var/lib/data, data:/data:ro, data:/data:size=10GiB; data@NAME:/old reads a snapshot; with per-replica each
    /// replica has one of its own.
    #[arg(short, long, value_name = "NAME:/PATH[:OPTION,…]")]
    pub volume: Vec<VolumeMount>,
    /// Label of the service.
    #[arg(short, long, value_name = "K=V", value_parser = value::pair)]
    pub label: Vec<(String, String)>,
    /// Label that the node must carry; node=h1 pins to one node.
    #[arg(long, value_name = "K=V", value_parser = value::pair, help_heading = "Places")]
    pub on: Vec<(String, String)>,
    /// Pool of nodes to run on; default: default.
    #[arg(long, help_heading = "Places")]
    pub pool: Option<Name>,
    /// Taint of nodes that it puts up with: gpu, gpu=a100, gpu:no-schedule; '*' for all.
    #[arg(long, value_name = "K[=V][:EFFECT]", help_heading = "Places")]
    pub toleration: Vec<Toleration>,
    /// Spread replicas evenly over the values of this node label: node, zone, zone,hard, zone,hard,max-skew=2.
    #[arg(long, value_name = "LABEL[,hard]", help_heading = "Places")]
    pub spread: Vec<Spread>,
    /// Be where containers of this service are, on the same node or one with the same value of a label: db, db,by=zone,hard.
    #[arg(long, value_name = "SERVICE[,by=LABEL][,hard]", help_heading = "Places")]
    pub together: Vec<Together>,
    /// Most replicas on one node; 0 for no limit.
    #[arg(long, value_name = "N", help_heading = "Places")]
    pub max_per_node: Option<u32>,
    /// Who goes first where there is not room for all, -1000 to 1000: those of lower priority make room.
    #[arg(long, allow_hyphen_values = true, help_heading = "Places")]
    pub priority: Option<i32>,
    /// Policy of the brain's settings that is asked which nodes had better take it.
    #[arg(long, value_name = "NAME", help_heading = "Places")]
    pub policy: Option<Name>,
    /// Reserve neither CPU nor memory: run on what reservations leave idle, and go first (--best-effort=false to undo).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Places")]
    pub best_effort: Option<bool>,
    /// Network to be on, the first with the default route; none for none at all. Default: default.
    #[arg(long, value_name = "NAME")]
    pub network: Vec<String>,
    /// Service that it needs: it starts once that takes requests, and finds it in its environment: db, db:5432.
    #[arg(long, value_name = "SERVICE[:PORT]")]
    pub link: Vec<Link>,
    /// Service whose containers may open connections to it; none for no other at all. Default: all of the tenant.
    #[arg(long, value_name = "SERVICE")]
    pub ingress_from: Vec<String>,
    /// Most that each container receives a second: 10MiB.
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub bandwidth_in: Option<Bytes>,
    /// Most that each container sends a second: 10MiB.
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub bandwidth_out: Option<Bytes>,
    /// Port at which the world reaches it, at every node: 8080:80, 53:53/udp, 8000-8010, or only at nodes with a replica, which then
    /// sees the client's address: 8080:80,mode=node.
    #[arg(short, long, value_name = "PORT[:INSIDE]")]
    pub publish: Vec<PublishedPort>,
    /// How its containers are checked.
    #[command(flatten)]
    pub health: HealthArgs,
    /// When to start a container again.
    #[arg(long, value_enum)]
    pub restart: Option<RestartArg>,
    /// Run a small init as PID 1 (--init=false to undo).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub init: Option<bool>,
    /// Mount the image read-only (--read-only=false to undo).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub read_only: Option<bool>,
    /// Add a capability.
    #[arg(long)]
    pub cap_add: Vec<String>,
    /// Drop a capability, or ALL.
    #[arg(long)]
    pub cap_drop: Vec<String>,
    /// No confinement; only for tenants an administrator named.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub privileged: Option<bool>,
    /// Time from the stop signal to SIGKILL: 30s.
    #[arg(long, value_parser = value::duration)]
    pub stop_grace: Option<u64>,
    /// Stop signal instead of the image's, such as SIGINT.
    #[arg(long)]
    pub stop_signal: Option<String>,
    /// Program instead of the image's entrypoint.
    #[arg(long)]
    pub entrypoint: Option<String>,
}

/// What is taken out of a spec.
#[derive(Debug, Default, Args)]
pub struct RemoveArgs {
    /// Remove an environment variable.
    #[arg(long, value_name = "K")]
    pub env_rm: Vec<String>,
    /// Remove a label of the service.
    #[arg(long, value_name = "K")]
    pub label_rm: Vec<String>,
    /// No longer ask for this label of the node.
    #[arg(long, value_name = "K")]
    pub on_rm: Vec<String>,
    /// Tolerate this no more, as it was given.
    #[arg(long, value_name = "K[=V][:EFFECT]")]
    pub toleration_rm: Vec<Toleration>,
    /// Spread by this label no more.
    #[arg(long, value_name = "LABEL")]
    pub spread_rm: Vec<String>,
    /// Be near this service no more.
    #[arg(long, value_name = "SERVICE")]
    pub together_rm: Vec<Name>,
    /// Ask no policy any more.
    #[arg(long, conflicts_with = "policy")]
    pub policy_rm: bool,
    /// Publish this port no more: 8080, 53/udp.
    #[arg(long, value_name = "PORT")]
    pub publish_rm: Vec<PublishedPort>,
    /// Link to this service no more.
    #[arg(long, value_name = "SERVICE")]
    pub link_rm: Vec<Name>,
    /// Let all services of the tenant in again.
    #[arg(long)]
    pub ingress_rm: bool,
    /// Limit neither what its containers receive nor what they send.
    #[arg(long)]
    pub bandwidth_rm: bool,
    /// Check its containers no more.
    #[arg(long)]
    pub health_rm: bool,
    /// Remove the scratch file system at this path.
    #[arg(long, value_name = "PATH")]
    pub tmpfs_rm: Vec<String>,
    /// Mount this volume no more; it stays.
    #[arg(long, value_name = "NAME")]
    pub volume_rm: Vec<Name>,
}

/// When to start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RestartArg {
    /// After every end.
    Always,
    /// After failures.
    OnFailure,
    /// Never.
    Never,
}

/// `berth service …`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// List services
    #[command(visible_alias = "list", after_help = "Example:\n  berth service ls")]
    Ls,
    /// Show everything about a service
    #[command(after_help = "Example:\n  berth service inspect web -o yaml")]
    Inspect {
        /// Which.
        name: Name,
    },
    /// Change a service; containers are replaced one by one where needed
    #[command(after_help = "Examples:
  berth service update web --memory 512MiB      live, without restart
  berth service update web --image nginx:1.28 -e MODE=slow --env-rm DEBUG
  berth service update web -v data:/srv          its only volume; --volume-rm data takes it off
  berth service update web -f web.yaml")]
    Update {
        /// Which.
        name: Name,
        /// The new image.
        #[arg(long)]
        image: Option<ImageRef>,
        /// Take the whole spec from this YAML or JSON file (- for standard input).
        #[arg(short, long)]
        file: Option<PathBuf>,
        /// Changes.
        #[command(flatten)]
        spec: Box<SpecArgs>,
        /// What goes.
        #[command(flatten)]
        remove: Box<RemoveArgs>,
        /// Don't wait.
        #[arg(short, long)]
        detach: bool,
        /// Wait at most so long.
        #[arg(long, default_value = "2m", value_parser = value::duration)]
        wait: u64,
        /// New arguments of the container.
        #[arg(last = true)]
        args: Vec<String>,
    },
    /// Make or change services as a file says
    #[command(after_help = "Example:\n  berth service apply -f services.yaml")]
    Apply {
        /// YAML (several documents allowed) or JSON; - for standard input.
        #[arg(short, long)]
        file: PathBuf,
    },
    /// Change the number of replicas
    #[command(after_help = "Example:\n  berth service scale web 5")]
    Scale {
        /// Which.
        name: Name,
        /// How many.
        replicas: u32,
    },
    /// Remove services with their containers
    #[command(visible_alias = "remove", after_help = "Example:\n  berth service rm web")]
    Rm {
        /// Which.
        #[arg(required = true)]
        names: Vec<Name>,
    },
}

/// `berth logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// Service, service.replica, or (the beginning of) a container's id.
    pub target: String,
    /// Go on with new lines.
    #[arg(short, long)]
    pub follow: bool,
    /// Only the last so many lines of each container.
    #[arg(short = 'n', long)]
    pub tail: Option<u32>,
    /// Only since: 10m, or 2025-01-31T12:00:00Z.
    #[arg(long, value_parser = value::since)]
    pub since: Option<Since>,
    /// Print when each line was read.
    #[arg(short, long)]
    pub timestamps: bool,
}

/// `berth exec`.
#[derive(Debug, Args)]
pub struct ExecArgs {
    /// Pass on standard input.
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal.
    #[arg(short = 't', long)]
    pub tty: bool,
    /// Environment variable.
    #[arg(short, long, value_name = "K=V", value_parser = value::pair)]
    pub env: Vec<(String, String)>,
    /// User.
    #[arg(short, long)]
    pub user: Option<String>,
    /// Working directory.
    #[arg(short, long)]
    pub workdir: Option<String>,
    /// service.replica, (the beginning of) a container's id, or a service (its first running replica).
    pub target: String,
    /// Program and arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
