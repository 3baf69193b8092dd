//! The `berth` command: a client of the brain's HTTP API and of nothing else.
//!
//! Owns how a person's words become requests and how answers look. Refuses to decide anything about the cluster: what
//! is allowed, placed or running is the brain's to say.
#![forbid(unsafe_code)]

mod args;
mod client;
mod commands;
mod config;
mod context;
mod failure;
mod render;
mod spec;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Cli;
use crate::failure::Failure;

fn main() -> ExitCode {
    // An earlier default would be ours too, so a second installation is no error.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let output = cli.global.output;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(source) => return finish(Err(Failure::io("start the runtime", source)), output),
    };
    let result = runtime.block_on(commands::run(cli));
    // A blocked read of standard input must not keep the process alive once the work is done.
    runtime.shutdown_background();
    finish(result, output)
}

fn finish(result: Result<(), Failure>, output: args::OutputFormat) -> ExitCode {
    let Err(failure) = result else {
        return ExitCode::SUCCESS;
    };
    let text = failure.render(output == args::OutputFormat::Json);
    if !text.is_empty() {
        eprint!("{text}");
    }
    ExitCode::from(failure.exit_code())
}
