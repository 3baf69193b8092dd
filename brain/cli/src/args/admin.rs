//! Arguments about nodes, images, tenants and contexts.

use std::path::PathBuf;

use berth_common::id::{Name, TokenId};
use berth_common::model::{DEFAULT_POOL, ImageRef, Taint, Toleration};
use berth_common::units::{Bytes, Millicores};
use clap::{Args, Subcommand};

use super::value;

/// `berth network …`.
#[derive(Debug, Subcommand)]
pub enum NetworkCommand {
    /// Make a network; containers of any node reach one another on it, other tenants' don't
    #[command(after_help = "Examples:
  berth network create back
  berth network create back --cidr 10.20.0.0/16     other tenants may have the same, and hosts may use it")]
    Create {
        /// Unique in the tenant.
        name: Name,
        /// IPv4 addresses, /8 to /29; default: the first free /16 of 10.64.0.0/10. IPv6 addresses are always chosen.
        #[arg(long)]
        cidr: Option<String>,
    },
    /// List networks
    #[command(visible_alias = "list", after_help = "Example:\n  berth network ls")]
    Ls,
    /// Show a network with everybody on it, and nodes between which it does not work
    #[command(after_help = "Example:\n  berth network inspect default")]
    Inspect {
        /// Its name.
        name: Name,
    },
    /// Check whether nodes reach each other's networks: port, size, loss, latency, checksums
    #[command(
        after_help = "Every node gets an endpoint on a network of its own, as a container would have it, and measures the way to each other:
encrypted where they are at different sites. It takes seconds and disturbs nobody. Exit code 4: something is wrong.

Examples:
  berth network check
  berth network check h1 h2
  berth network check -o json | jq '.pairs[] | select(.findings != [])'"
    )]
    Check {
        /// Only these nodes; default: all that you may see.
        node: Vec<Name>,
    },
    /// Explain how a packet gets from a container to another or to a service, and where it would be dropped
    #[command(
        after_help = "The nodes on its way say what they have: links, entries, filters, encryption. Nothing is sent. Exit code 4: it does not arrive.

Examples:
  berth network trace web.1 db.1
  berth network trace web.1 db                 by the service's address
  berth network trace web.1 db --network back"
    )]
    Trace {
        /// The container that sends: service.replica, or an id.
        from: String,
        /// A container, or a service.
        to: String,
        /// Only by this network.
        #[arg(long)]
        network: Option<Name>,
    },
    /// Remove a network that nobody is on
    #[command(visible_alias = "remove", after_help = "Example:\n  berth network rm back")]
    Rm {
        /// Its name.
        name: Name,
    },
}

/// `berth node …`.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    #[command(visible_alias = "list", after_help = "Example:\n  berth node ls")]
    Ls,
    /// Show everything about a node
    #[command(after_help = "Example:\n  berth node inspect h1 -o yaml")]
    Inspect {
        /// Name or id.
        node: String,
    },
    /// Make a token with which one host joins
    #[command(after_help = "Examples:
  berth node token
  berth node token --private shop --label site=berlin --ttl 10m
  berth node token --pool gpu --taint gpu=a100:no-schedule")]
    Token {
        /// Make it a private node of this tenant.
        #[arg(long, value_name = "TENANT")]
        private: Option<Name>,
        /// Label of the node.
        #[arg(long, value_name = "K=V", value_parser = value::pair)]
        label: Vec<(String, String)>,
        /// Taint that it has from its first moment on; effects are no-schedule, prefer-no-schedule and no-execute.
        #[arg(long, value_name = "K[=V]:EFFECT")]
        taint: Vec<Taint>,
        /// The pool it comes into; default `default`.
        #[arg(long)]
        pool: Option<Name>,
        /// How long it can be used; default 1h.
        #[arg(long, value_parser = value::duration)]
        ttl: Option<u64>,
        /// host:port at which that host reaches the brain; default the brain's own idea.
        #[arg(long)]
        address: Vec<String>,
    },
    /// Change a node's labels, taints, pool and overcommit
    #[command(
        after_help = "A taint keeps containers away whose service does not tolerate it (berth run --toleration): no-schedule new ones,
prefer-no-schedule new ones as long as there is another node, no-execute all: those that are there move away.

Examples:
  berth node update h1 --label disk=ssd --label-rm old
  berth node update h1 --taint gpu=a100:no-schedule
  berth node update h1 --taint-rm gpu
  berth node update h1 --pool gpu --overcommit-cpu 100%"
    )]
    Update {
        /// Name or id.
        node: String,
        /// The changes.
        #[command(flatten)]
        changes: NodeChanges,
    },
    /// Give a node no new containers
    #[command(after_help = "Example:\n  berth node cordon h1")]
    Cordon {
        /// Name or id.
        node: String,
    },
    /// Undo cordon and drain
    #[command(after_help = "Example:\n  berth node uncordon h1")]
    Uncordon {
        /// Name or id.
        node: String,
    },
    /// Move all containers away and wait until it is empty
    #[command(after_help = "Example:\n  berth node drain h1 --timeout 10m")]
    Drain {
        /// Name or id.
        node: String,
        /// Wait at most so long; draining goes on afterwards.
        #[arg(long, value_parser = value::duration)]
        timeout: Option<u64>,
        /// Don't wait.
        #[arg(short, long)]
        detach: bool,
    },
    /// Empty nodes whose containers fit on others, and wait until they are
    #[command(
        after_help = "The emptiest first; replicas that are apart stay apart, no node gets too busy, and each successor starts before what it
replaces stops. Emptied nodes stay cordoned: `berth node uncordon` has them take containers again.

Examples:
  berth node pack --dry-run
  berth node pack --pool batch --keep 3"
    )]
    Pack {
        /// The pool whose shared nodes are meant.
        #[arg(long, default_value = DEFAULT_POOL)]
        pool: Name,
        /// So many of them stay open at least.
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        keep: u32,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Wait at most so long; draining goes on afterwards.
        #[arg(long, value_parser = value::duration, conflicts_with = "dry_run")]
        timeout: Option<u64>,
        /// Don't wait.
        #[arg(short, long, conflicts_with = "dry_run")]
        detach: bool,
    },
    /// Remove a node for good
    #[command(after_help = "Examples:\n  berth node rm h1\n  berth node rm --force burnt-down")]
    Rm {
        /// Name or id.
        node: String,
        /// Also with containers on it, which are replaced elsewhere.
        #[arg(long)]
        force: bool,
    },
}

/// What changes of a node.
#[derive(Debug, Default, Args)]
pub struct NodeChanges {
    /// Give it a label, or another value of it.
    #[arg(short, long, value_name = "K=V", value_parser = value::pair)]
    pub label: Vec<(String, String)>,
    /// Take a label away.
    #[arg(long, value_name = "K")]
    pub label_rm: Vec<String>,
    /// Give it a taint; effects are no-schedule, prefer-no-schedule and no-execute.
    #[arg(long, value_name = "K[=V]:EFFECT")]
    pub taint: Vec<Taint>,
    /// Take taints away: all of a key, or those of a value or an effect.
    #[arg(long, value_name = "K[=V][:EFFECT]")]
    pub taint_rm: Vec<Toleration>,
    /// Put it into this pool; what runs on it stays.
    #[arg(long)]
    pub pool: Option<Name>,
    /// An overcommit of its own, instead of its pool's.
    #[command(flatten)]
    pub overcommit: OvercommitArgs,
    /// Have its pool's overcommit again.
    #[arg(long, conflicts_with_all = ["overcommit_cpu", "overcommit_memory"])]
    pub overcommit_rm: bool,
}

/// By how much reservations may exceed capacity.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct OvercommitArgs {
    /// CPU that may be reserved, in percent of what there is: 150%.
    #[arg(long, value_name = "PERCENT", value_parser = value::percent)]
    pub overcommit_cpu: Option<u32>,
    /// Memory that may be reserved, in percent of what there is: 110%.
    #[arg(long, value_name = "PERCENT", value_parser = value::percent)]
    pub overcommit_memory: Option<u32>,
}

/// `berth pool …`.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// List pools
    #[command(visible_alias = "list", after_help = "Example:\n  berth pool ls")]
    Ls,
    /// Make a pool, or change its overcommit
    #[command(
        after_help = "Where less may be reserved than before, nothing is taken away, and nothing new comes until there is room.

Examples:
  berth pool set gpu
  berth pool set default --overcommit-cpu 150%"
    )]
    Set {
        /// Its name.
        name: Name,
        /// That of its nodes that have none of their own.
        #[command(flatten)]
        overcommit: OvercommitArgs,
    },
    /// Remove a pool that no node is in and no service asks for
    #[command(visible_alias = "remove", after_help = "Example:\n  berth pool rm gpu")]
    Rm {
        /// Its name.
        name: Name,
    },
}

/// `berth image …`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Load an OCI or docker archive into the brain
    #[command(after_help = "Examples:
  berth image load app.tar
  docker save app | berth image load - --name app:1")]
    Load {
        /// Archive (tar, gzip or zstd); - for standard input.
        file: PathBuf,
        /// Name for an archive that names none.
        #[arg(long)]
        name: Option<ImageRef>,
    },
    /// Fetch an image to nodes ahead of time
    #[command(after_help = "Example:\n  berth image pull nginx:1.27 --node h1")]
    Pull {
        /// Which.
        reference: ImageRef,
        /// Only to this node (may be repeated).
        #[arg(long)]
        node: Vec<Name>,
    },
    /// List images
    #[command(visible_alias = "list", after_help = "Example:\n  berth image ls")]
    Ls,
    /// Remove an image from brain and nodes
    #[command(
        visible_alias = "remove",
        after_help = "Example:\n  berth image rm nginx:1.27"
    )]
    Rm {
        /// Which.
        reference: ImageRef,
    },
    /// Keep credentials of a registry for this tenant
    #[command(after_help = "Example:\n  berth image login reg.example -u me --password-stdin < password")]
    Login {
        /// Host with port.
        registry: String,
        /// User name.
        #[arg(short, long)]
        username: Option<String>,
        /// Read the password from standard input instead of asking.
        #[arg(long)]
        password_stdin: bool,
    },
    /// Forget credentials of a registry
    #[command(after_help = "Example:\n  berth image logout reg.example")]
    Logout {
        /// Host with port.
        registry: String,
    },
}

/// `berth tenant …`.
#[derive(Debug, Subcommand)]
pub enum TenantCommand {
    /// Make a tenant
    #[command(after_help = "Example:\n  berth tenant create shop --cpus 8 --memory 16GiB --containers 100")]
    Create {
        /// Its name.
        name: Name,
        /// Its quota.
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// List tenants
    #[command(visible_alias = "list", after_help = "Example:\n  berth tenant ls")]
    Ls,
    /// Show everything about a tenant
    #[command(after_help = "Example:\n  berth tenant inspect shop")]
    Inspect {
        /// Which.
        name: Name,
    },
    /// Change what a tenant may reserve; 0 is unlimited
    #[command(after_help = "Example:\n  berth tenant quota shop --memory 32GiB --privileged=false")]
    Quota {
        /// Which.
        name: Name,
        /// The changes.
        #[command(flatten)]
        quota: QuotaArgs,
        /// CPU weight of its slice on nodes, 1 to 10000.
        #[arg(long)]
        cpu_weight: Option<u16>,
        /// Whether its services may be privileged.
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        privileged: Option<bool>,
        /// Highest priority that its services may have without an administrator, -1000 to 1000.
        #[arg(long, allow_hyphen_values = true)]
        max_priority: Option<i32>,
    },
    /// Make, list or revoke a tenant's API tokens
    #[command(after_help = "Examples:
  berth tenant token shop --note ci --ttl 30d     prints the token once
  berth tenant token default --metrics            reads /metrics and nothing else: for Prometheus
  berth tenant token shop --ls
  berth tenant token shop --revoke abcdefghij234567")]
    Token {
        /// Which.
        name: Name,
        /// What it is for.
        #[arg(long, default_value = "")]
        note: String,
        /// When it stops working; default never.
        #[arg(long, value_parser = value::duration)]
        ttl: Option<u64>,
        /// An administrator's token (tenant default only).
        #[arg(long)]
        admin: bool,
        /// A token that reads the brain's metrics and nothing else (tenant default only).
        #[arg(long, conflicts_with = "admin")]
        metrics: bool,
        /// List them instead.
        #[arg(long, conflicts_with_all = ["note", "ttl", "admin", "metrics", "revoke"])]
        ls: bool,
        /// Revoke this one instead.
        #[arg(long, value_name = "ID", conflicts_with_all = ["note", "ttl", "admin", "metrics"])]
        revoke: Option<TokenId>,
    },
    /// Remove a tenant
    #[command(visible_alias = "remove", after_help = "Example:\n  berth tenant rm shop")]
    Rm {
        /// Which.
        name: Name,
    },
}

/// A quota on the command line.
#[derive(Debug, Default, Args)]
pub struct QuotaArgs {
    /// Cores.
    #[arg(long)]
    pub cpus: Option<Millicores>,
    /// Memory: 16GiB.
    #[arg(long)]
    pub memory: Option<Bytes>,
    /// Disk: 100GiB.
    #[arg(long)]
    pub disk: Option<Bytes>,
    /// Containers.
    #[arg(long)]
    pub containers: Option<u32>,
}

/// `berth context …`.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// List contexts
    #[command(visible_alias = "list", after_help = "Example:\n  berth context ls")]
    Ls,
    /// Use a context from now on
    #[command(after_help = "Example:\n  berth context use home")]
    Use {
        /// Which.
        name: String,
    },
    /// Add or replace a context without contacting its brain
    #[command(after_help = "Example:
  berth context add home https://10.0.0.5:7443 --ca ca.crt --token-stdin < token")]
    Add {
        /// Its name.
        name: String,
        /// https://HOST:7443
        url: String,
        /// The brain's ca.crt.
        #[arg(long)]
        ca: PathBuf,
        /// Read a token from standard input.
        #[arg(long)]
        token_stdin: bool,
    },
    /// Forget a context
    #[command(visible_alias = "remove", after_help = "Example:\n  berth context rm home")]
    Rm {
        /// Which.
        name: String,
    },
    /// Show the context in use, without its token
    #[command(after_help = "Example:\n  berth context show")]
    Show,
}

/// `berth login`.
#[derive(Debug, Args)]
pub struct LoginArgs {
    /// https://HOST:7443
    pub url: String,
    /// The brain's ca.crt (on its host: /var/lib/berth-brain/ca/ca.crt).
    #[arg(long, required_unless_present = "fingerprint", conflicts_with = "fingerprint")]
    pub ca: Option<PathBuf>,
    /// SHA-256 of the CA instead, in hex.
    #[arg(long)]
    pub fingerprint: Option<String>,
    /// Read the token from standard input instead of asking.
    #[arg(long)]
    pub token_stdin: bool,
    /// Name of the context; default the host.
    #[arg(long)]
    pub name: Option<String>,
}
