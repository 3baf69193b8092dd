//! `berth-agent`: reads its arguments and settings, and hands over to [`berth_agent::wiring`].

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use berth_agent::check;
use berth_agent::config::{Config, DEFAULT_PATH, is_address};
use berth_agent::facts;
use berth_agent::join::{self, NodeFiles};
use berth_agent::wiring::lock::Lock;
use berth_agent::wiring::{Agent, halt, host, wipe};
use berth_common::daemon;
use berth_common::id::Name;
use berth_common::protocol::JoinToken;
use clap::{Parser, Subcommand, ValueEnum};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Longest join token accepted from standard input, bytes.
const MAX_TOKEN: u64 = 64 << 10;

/// berth's agent: runs on every host, makes containers of what the brain wants there, limits and measures them.
///
/// A host joins once, then the agent runs as a service. Stopping or upgrading it stops no container.
#[derive(Debug, Parser)]
#[command(
    name = "berth-agent",
    version,
    after_help = "A new host, in three steps:\n  \
        berth-agent check                       what does this host lack?\n  \
        berth node token                        (where the `berth` command is) prints a token\n  \
        berth-agent join TOKEN                  makes this host a node; then `systemctl start berth-agent`"
)]
struct Args {
    /// Settings; a file that is not there means the defaults. Every key is explained in agent.toml.example.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (the default). Needs root, containerd, and that this host has joined.
    Run,
    /// Make this host a node of the brain that made TOKEN.
    ///
    /// The private key is made here and never leaves this host. The brain is recognised by the fingerprint in the token.
    #[command(
        after_help = "Arguments are visible to everyone on a host; through a pipe the token is not:\n  \
        berth node token -q | ssh HOST sudo berth-agent join -"
    )]
    Join {
        /// What `berth node token` printed; `-` reads it from standard input.
        token: String,
        /// The node's name; without it the host's name, unless the token says otherwise.
        #[arg(long)]
        name: Option<Name>,
        /// Join although this host is a node already: a new identity replaces the old one.
        #[arg(long)]
        force: bool,
    },
    /// Say what this host lacks, and how to cure it. Changes nothing; exits with 1 if the agent could not work here.
    Check {
        /// Output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
        /// Try to reach this brain; without it, those that joining left.
        #[arg(long, value_name = "HOST:PORT")]
        brain: Vec<String>,
    },
    /// Delete every container of berth on this host, with its data. Refuses while the agent runs.
    ///
    /// The node's identity stays, and so does what the brain wants: an agent that is started again makes all anew.
    Wipe {
        /// Remove all of berth's images too.
        #[arg(long)]
        images: bool,
        /// Delete the volumes that are left on this host, with all that is in them. Without it they are not touched, and told.
        #[arg(long)]
        volumes: bool,
    },
    /// Stop every container on this host for a shutdown, each within its grace. Refuses while the agent runs.
    ///
    /// Nothing is deleted or forgotten: an agent that is started again, after a reboot above all, starts them again.
    /// `berth-containers.service` does this when the host goes down.
    Halt,
    /// Print the version.
    Version,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

fn main() -> ExitCode {
    berth_agent::sys::heap::bound_arenas();
    let args = Args::parse();
    // One worker: two wake each other more than they work, a fifth of what an idle agent costs. What computes or blocks has
    // threads of its own.
    let result = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("starting the async runtime")
        .and_then(|runtime| {
            let result = runtime.block_on(dispatch(args));
            // A blocked kernel call must not keep the process from ending.
            runtime.shutdown_timeout(std::time::Duration::from_secs(2));
            result
        });
    result.unwrap_or_else(|error| {
        eprintln!("berth-agent: {error:#}");
        ExitCode::FAILURE
    })
}

async fn dispatch(args: Args) -> anyhow::Result<ExitCode> {
    let command = args.command.unwrap_or(Command::Run);
    if matches!(command, Command::Version) {
        println!("berth-agent {}", berth_common::VERSION);
        return Ok(ExitCode::SUCCESS);
    }
    let config = Config::load(&args.config)?;
    daemon::log(&config.log_level, config.log_format)?;
    match command {
        Command::Run => run(config).await.map(|()| ExitCode::SUCCESS),
        Command::Join { token, name, force } => join(&config, &token, name, force)
            .await
            .map(|()| ExitCode::SUCCESS),
        Command::Check { output, brain } => check(&config, output, &brain).await,
        Command::Wipe { images, volumes } => wipe(&config, images, volumes).await,
        Command::Halt => halt(&config).await,
        Command::Version => Ok(ExitCode::SUCCESS),
    }
}

fn need_root() -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!("this needs root: try it with sudo")
}

fn lock(config: &Config) -> anyhow::Result<Lock> {
    let dirs: [&Path; 2] = [&config.state_dir, &config.run_dir];
    Ok(Lock::take(&dirs)?)
}

async fn run(config: Config) -> anyhow::Result<()> {
    need_root()?;
    // About eight files for each container that is measured.
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")?;
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _lock = lock(&config)?;
    let files = NodeFiles::new(&config.state_dir);
    let who = files.who()?;
    let (connection, _) = watch::channel(None);
    let host = host::open(&config, connection.subscribe(), host::containerd_runtime)?;
    let agent = Agent {
        config,
        who,
        files,
        host,
        connection,
    };
    let token = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers go on");
        daemon::tell_stopping();
        token.cancel();
    });
    agent.run(shutdown, daemon::tell_ready).await
}

async fn join(config: &Config, token: &str, name: Option<Name>, force: bool) -> anyhow::Result<()> {
    need_root()?;
    let mut text = token.to_owned();
    if token == "-" {
        text.clear();
        std::io::stdin()
            .take(MAX_TOKEN)
            .read_to_string(&mut text)
            .context("reading the token from standard input")?;
    }
    let token: JoinToken = text.trim().parse()?;
    // A running agent would go on with the old identity.
    let _lock = lock(config)?;
    let cgroups = host::cgroups(config)?;
    let containerd = host::containerd(config);
    let version = match containerd.version().await {
        Ok(version) => format!("containerd {version}"),
        Err(error) => format!("can't be reached: {error}"),
    };
    let facts = facts::before_running(config, &*cgroups, version)?;
    let files = NodeFiles::new(&config.state_dir);
    let who = join::join(&files, &token, name, facts, force).await?;
    println!(
        "joined as {} ({}), brain at {}",
        who.name,
        who.node,
        who.addresses.join(", ")
    );
    Ok(())
}

async fn check(config: &Config, output: Output, brain: &[String]) -> anyhow::Result<ExitCode> {
    if let Some(bad) = brain.iter().find(|address| !is_address(address)) {
        bail!("--brain {bad:?} is no HOST:PORT, such as 192.0.2.1:7443");
    }
    let report = check::run(config, brain).await;
    match output {
        Output::Text => print!("{}", check::text(&report)),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(ExitCode::from(u8::from(check::failed(&report))))
}

async fn wipe(config: &Config, images: bool, volumes: bool) -> anyhow::Result<ExitCode> {
    need_root()?;
    let _lock = lock(config)?;
    let (connection, _) = watch::channel(None);
    let host = host::open(config, connection.subscribe(), host::containerd_runtime)?;
    let told = |id| println!("deleted container {id}");
    let mut wiped = wipe::containers(&*host.facilities.runtime, &host.facilities.cgroups, told).await?;
    if let Some((kernel, settings)) = &host.network {
        // What leads to other sites after the networks: until then nothing may go there in the clear.
        wipe::networks(kernel, settings.port, &settings.switched, &mut wiped);
        if let Err(why) = berth_agent::network::manager::remove_sealed(kernel, settings.port).await {
            wiped.errors.push(why);
        }
    }
    // Whoever removes the folder next must not get into volumes by it.
    let run_dir = config.run_dir.clone();
    let released = tokio::task::spawn_blocking(move || berth_agent::volume::keeper::release_all(&run_dir));
    wiped.errors.extend(released.await?.err().into_iter().flatten());
    if let Err(error) = wipe::volumes(config.volume_pool(), volumes).await {
        wiped.errors.push(error);
    }
    if images {
        wipe::images(&host::containerd(config), &mut wiped).await;
    }
    println!(
        "{} containers and {} images deleted",
        wiped.containers, wiped.images
    );
    for error in &wiped.errors {
        eprintln!("berth-agent: {error}");
    }
    Ok(ExitCode::from(u8::from(!wiped.errors.is_empty())))
}

async fn halt(config: &Config) -> anyhow::Result<ExitCode> {
    need_root()?;
    let _lock = lock(config)?;
    let (connection, _) = watch::channel(None);
    let host = host::open(config, connection.subscribe(), host::containerd_runtime)?;
    let halted = halt::containers(&*host.facilities.runtime).await?;
    println!("{} containers stopped, {} killed", halted.stopped, halted.killed);
    for error in &halted.errors {
        eprintln!("berth-agent: {error}");
    }
    Ok(ExitCode::from(u8::from(!halted.errors.is_empty())))
}
