//! The command line's grammar.

mod admin;
mod health;
mod schedule;
mod service;
pub mod value;
mod volume;
mod volume_schedule;

use berth_common::id::Name;
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use admin::{
    ContextCommand, ImageCommand, LoginArgs, NetworkCommand, NodeChanges, NodeCommand, OvercommitArgs,
    PoolCommand, QuotaArgs, TenantCommand,
};
pub use schedule::{ScheduleCommand, WhatIfArgs};
pub use service::{ExecArgs, LogsArgs, RemoveArgs, RestartArg, RunArgs, ServiceCommand, SpecArgs};
pub use volume::{VolumeCommand, WaitArgs};
pub use volume_schedule::{HookArgs, ScheduleArgs};

/// Run containers on your nodes.
#[derive(Debug, Parser)]
#[command(
    name = "berth",
    version,
    propagate_version = true,
    after_help = "Examples:
  berth run nginx --replicas 2 --memory 128MiB     run two containers and wait until they run
  berth ps                                         what runs, and why what doesn't
  berth logs -f web                                follow all replicas of web
  berth exec -it web.1 sh                          a shell in a container
  berth node token --label disk=ssd                let another host join

Variables: BERTH_SERVER, BERTH_CA (a file), BERTH_TOKEN, BERTH_TENANT, BERTH_CONFIG, NO_COLOR.
Exit codes: 1 general, 2 usage, 3 not found, 4 refused, 5 unreachable; exec passes on its process's."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// How to print.
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        help_heading = "Global options"
    )]
    pub output: OutputFormat,
    /// Act for this tenant instead of the context's.
    #[arg(long, global = true, help_heading = "Global options")]
    pub tenant: Option<Name>,
    /// Use this context instead of the current one.
    #[arg(long, global = true, help_heading = "Global options")]
    pub context: Option<String>,
    /// No colours (also: NO_COLOR).
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_color: bool,
    /// Print names or ids only.
    #[arg(short, long, global = true, help_heading = "Global options")]
    pub quiet: bool,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
    /// For both.
    Yaml,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an image as a new service
    #[command(after_help = "Examples:
  berth run nginx
  berth run --name web --replicas 3 --cpus 0.5 --memory 256MiB nginx:1.27
  berth run -p 8080:80 nginx                       reached at port 8080 of every node
  berth run -v data:/var/lib/postgresql/data postgres
  berth run -e MODE=fast --tmpfs /tmp:32MiB --on disk=ssd reg.example/app -- serve --port 80")]
    Run(Box<RunArgs>),
    /// List, inspect, change and remove services
    #[command(subcommand, visible_alias = "svc")]
    Service(ServiceCommand),
    /// List containers, with why a container waits
    #[command(after_help = "Examples:\n  berth ps\n  berth ps web -o json")]
    Ps {
        /// Only of this service.
        service: Option<Name>,
        /// Only on this node.
        #[arg(long)]
        node: Option<String>,
    },
    /// Print what containers wrote
    #[command(after_help = "Examples:
  berth logs web                 all replicas, in order of time
  berth logs -f --tail 20 web.2
  berth logs --since 10m -t web")]
    Logs(LogsArgs),
    /// Run a command in a container
    #[command(
        after_help = "Examples:\n  berth exec -it web.1 sh\n  tar c . | berth exec -i web.1 tar x -C /data"
    )]
    Exec(ExecArgs),
    /// Stop a service or container, keeping it
    #[command(after_help = "Examples:\n  berth stop web\n  berth stop web.2")]
    Stop {
        /// Service, service.replica, or (the beginning of) a container's id.
        target: String,
    },
    /// Start what was stopped
    #[command(after_help = "Example:\n  berth start web")]
    Start {
        /// Service, service.replica, or (the beginning of) a container's id.
        target: String,
    },
    /// Restart a service or container
    #[command(after_help = "Example:\n  berth restart web.1")]
    Restart {
        /// Service, service.replica, or (the beginning of) a container's id.
        target: String,
    },
    /// Make, list, inspect and remove networks
    #[command(subcommand, visible_alias = "net")]
    Network(NetworkCommand),
    /// Make, list, snapshot, move and remove volumes: data that outlives containers
    #[command(subcommand, visible_alias = "vol")]
    Volume(VolumeCommand),
    /// List nodes, let hosts join, empty and remove nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Explain why containers are where they are, and foresee where they would be
    #[command(subcommand, visible_alias = "sched")]
    Schedule(ScheduleCommand),
    /// List, make, change and remove pools of nodes
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Live load of nodes and containers against reservation and limit
    #[command(after_help = "Examples:\n  berth top\n  berth top --once -o json")]
    Top {
        /// Print once and end.
        #[arg(long)]
        once: bool,
    },
    /// What happened
    #[command(after_help = "Examples:\n  berth events --limit 20\n  berth events -f -o json")]
    Events {
        /// Go on with new ones.
        #[arg(short, long)]
        follow: bool,
        /// How many of the past.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Load, fetch, list and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Make and manage tenants, their quotas and tokens
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Manage which brains this command knows
    #[command(subcommand)]
    Context(ContextCommand),
    /// Sign in to a brain and keep it as a context
    #[command(after_help = "Examples:
  berth login https://10.0.0.5:7443 --ca ca.crt
  berth login https://brain.example:7443 --fingerprint 5f2a… --token-stdin < token")]
    Login(LoginArgs),
    /// Versions of this command and of the brain
    Version,
    /// Print a completion script
    #[command(after_help = "Examples:
  berth completion bash | sudo tee /etc/bash_completion.d/berth
  berth completion zsh > ~/.zfunc/_berth
  berth completion fish > ~/.config/fish/completions/berth.fish")]
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}
