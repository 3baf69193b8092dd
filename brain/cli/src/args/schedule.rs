//! Arguments about why containers are where they are, and where they would be.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// `berth schedule …`.
#[derive(Debug, Subcommand)]
pub enum ScheduleCommand {
    /// Explain why a container is where it is, or why it waits
    #[command(
        after_help = "Every node is compared as if the container were placed now, itself taken away first. * is the best, the highest score:
what speaks against a node is negative. FREE is what may still be reserved there, WITH IT what would be in use
(but for one time in a thousand), in percent. Nothing is changed.

Examples:
  berth schedule explain web.1
  berth schedule explain web.1 -o json | jq '.nodes[] | {name, against, score}'"
    )]
    Explain {
        /// service.replica, or (the beginning of) a container's id.
        container: String,
    },
    /// Say where replicas would run, or what the loss of a node would do; nothing is changed
    #[command(
        name = "what-if",
        after_help = "A service that exists is foreseen as the update it would be. Nodes are supposed to do what they are told without fault.
Exit code 4: not all would have a place.

Examples:
  berth schedule what-if -f web.yaml
  berth schedule what-if -f web.yaml --replicas 20
  berth schedule what-if --without h1"
    )]
    WhatIf(WhatIfArgs),
}

/// `berth schedule what-if`.
#[derive(Debug, Args)]
pub struct WhatIfArgs {
    /// Services as `berth service apply` takes them, each by itself: YAML (several documents allowed) or JSON; - for standard input.
    #[arg(short, long, required_unless_present = "without", conflicts_with = "without")]
    pub file: Option<PathBuf>,
    /// With so many replicas instead of what the file says.
    #[arg(long, conflicts_with = "without")]
    pub replicas: Option<u32>,
    /// If this node were lost: where its containers would go, and which would find no place.
    #[arg(long, value_name = "NODE")]
    pub without: Option<String>,
}
