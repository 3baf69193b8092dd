//! `berth-brain`: reads its arguments and settings, and hands over to [`berth_brain::wiring`].

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use berth_brain::config::{Config, DEFAULT_PATH};
use berth_brain::{simulate, wiring};
use berth_common::daemon;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// berth's brain: decides which host runs which container, and serves the HTTP API and the agents' link.
///
/// On its first start it makes a certificate authority, the tenant `default`, and an administrator's token in
/// STATE_DIR/admin.token. Stopping or upgrading it stops no container.
#[derive(Debug, Parser)]
#[command(name = "berth-brain", version)]
struct Args {
    /// Settings; a file that is not there means the defaults. Every key is explained in brain.toml.example.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_PATH)]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the brain (the default).
    Run,
    /// Replay traces of real load under scheduling policies
    #[command(
        after_help = "Example:\n  berth-brain simulate --usage planetlab.csv.gz --nodes 24 --policy all"
    )]
    Simulate(simulate::Options),
    /// Replay several traces at several sizes with several seeds under all policies
    #[command(
        after_help = "Example:\n  berth-brain compare monday.csv.gz tuesday.csv.gz --nodes 30,24,20 --seeds 3"
    )]
    Compare(simulate::compare::Options),
    /// Print the version.
    Version,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if matches!(args.command, Some(Command::Version)) {
        println!("berth-brain {}", berth_common::VERSION);
        return ExitCode::SUCCESS;
    }
    let result = match &args.command {
        Some(Command::Simulate(options)) => simulate::run(options),
        Some(Command::Compare(options)) => simulate::compare::run(options),
        _ => run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("berth-brain: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> anyhow::Result<()> {
    let config = Config::load(&args.config)?;
    daemon::log(&config.log_level, config.log_format)?;
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    let result = runtime.block_on(serve(config));
    // A blocked file operation must not keep the process from ending.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; containers go on");
        daemon::tell_stopping();
        stop.cancel();
    });
    wiring::run(config, shutdown, daemon::tell_ready).await?;
    Ok(())
}

/// Every API connection and every event stream is an open file.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        if soft == hard {
            return Ok(());
        }
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files can't be raised");
    }
}
