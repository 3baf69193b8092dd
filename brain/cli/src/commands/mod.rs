//! One module for each group of commands; here the choice among them and what they share.

mod context;
mod exec;
mod follow;
mod image;
mod live;
mod logs;
mod network;
mod node;
mod pool;
mod progress;
mod schedule;
mod service;
mod tenant;
mod volume;
mod wait;

use std::io::{IsTerminal as _, Read as _, Write as _};
use std::path::Path;

use berth_common::model::UnixMillis;
use clap::CommandFactory as _;
use serde::Serialize;

use crate::args::{Cli, Command, Global, OutputFormat};
use crate::client::Client;
use crate::failure::Failure;
use crate::render::{self, Style};
use crate::{config, context as contexts};

/// What every command has at hand.
pub struct Session {
    global: Global,
    style: Style,
}

impl Session {
    /// The client of the brain in question.
    async fn client(&self) -> Result<Client, Failure> {
        let env = |key: &str| std::env::var(key).ok();
        let file = config::load(&config::path_from(env)?)?;
        let target = contexts::resolve(
            &file,
            self.global.context.as_deref(),
            self.global.tenant.as_ref(),
            env,
            |path| std::fs::read_to_string(path),
        )?;
        Ok(Client::new(target).await?)
    }

    /// Prints objects: as a table, or all of them for programs.
    fn show<T: Serialize>(
        &self,
        value: &T,
        people: impl FnOnce(Style, UnixMillis) -> String,
    ) -> Result<(), Failure> {
        print(&match self.global.output {
            OutputFormat::Table => people(self.style, UnixMillis::now()),
            OutputFormat::Json => render::json(value),
            OutputFormat::Yaml => render::yaml(value),
        })
    }

    /// Like [`Session::show`] for lists, with names alone when quiet.
    fn list<T: Serialize>(
        &self,
        items: &[T],
        name: impl Fn(&T) -> String,
        people: impl FnOnce(Style, UnixMillis, &[T]) -> String,
    ) -> Result<(), Failure> {
        if self.global.quiet {
            return print(&items.iter().map(|item| name(item) + "\n").collect::<String>());
        }
        self.show(&items, |style, now| people(style, now, items))
    }

    /// Says a sentence to people; programs get the object.
    fn done<T: Serialize>(&self, value: &T, sentence: &str) -> Result<(), Failure> {
        self.show(value, |_, _| {
            if self.global.quiet {
                String::new()
            } else {
                format!("{}\n", render::text::clean(sentence))
            }
        })
    }

    /// Deletes an object and says so; its name alone when quiet.
    async fn remove(&self, client: &Client, url: reqwest::Url, name: &str) -> Result<(), Failure> {
        client
            .call::<(), serde::de::IgnoredAny>(reqwest::Method::DELETE, url, None)
            .await?;
        if self.global.quiet {
            return print(&format!("{name}\n"));
        }
        self.note(&format!("{name}: removed"));
        Ok(())
    }

    /// An inspection: JSON for programs, YAML for people.
    fn inspect<T: Serialize>(&self, value: &T) -> Result<(), Failure> {
        self.show(value, |_, _| render::yaml(value))
    }

    /// A remark on standard error for people.
    fn note(&self, text: &str) {
        if !self.global.quiet && self.global.output == OutputFormat::Table {
            eprintln!("{}", render::text::clean(text));
        }
    }
}

/// Writes to standard output; a closed pipe is a quiet end.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .map_err(|source| Failure::io("write to standard output", source))
}

/// A file's text, or standard input's for `-`; at most 4 MiB.
fn read_text(path: &Path) -> Result<String, Failure> {
    const MAX: u64 = 4 << 20;
    let fail = |source| Failure::io(format!("read {}", path.display()), source);
    let mut text = String::new();
    let source: Box<dyn std::io::Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(fail)?)
    };
    source.take(MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > MAX {
        return Err(fail(std::io::Error::other("it has more than 4 MiB")));
    }
    Ok(text)
}

/// A secret from standard input, or asked for without echo. Never from the command line, where others could read it.
fn read_secret(from_stdin: bool, prompt: &str, option: &str) -> Result<String, Failure> {
    let secret = if from_stdin {
        read_text(Path::new("-"))?
    } else if std::io::stdin().is_terminal() {
        rpassword::prompt_password(prompt).map_err(|source| Failure::io("read from the terminal", source))?
    } else {
        return Err(Failure::usage(
            "there is no terminal to ask for the secret",
            format!("pass it on standard input with {option}"),
        ));
    };
    let secret = secret.trim().to_owned();
    if secret.is_empty() {
        return Err(Failure::usage(
            "the secret is empty",
            format!("pass it on standard input with {option}"),
        ));
    }
    Ok(secret)
}

/// Runs the command.
///
/// # Errors
/// Why it did not succeed; `main` tells it.
pub async fn run(cli: Cli) -> Result<(), Failure> {
    let no_color = cli.global.no_color || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let session = Session {
        style: Style {
            color: !no_color && std::io::stdout().is_terminal(),
        },
        global: cli.global,
    };
    match cli.command {
        Command::Run(args) => service::run(&session, *args).await,
        Command::Service(command) => service::service(&session, command).await,
        Command::Ps { service, node } => service::ps(&session, service.as_ref(), node).await,
        Command::Logs(args) => logs::logs(&session, args).await,
        Command::Exec(args) => exec::exec(&session, args).await,
        Command::Stop { target } => service::act(&session, &target, "stop", "stops").await,
        Command::Start { target } => service::act(&session, &target, "start", "starts").await,
        Command::Restart { target } => service::act(&session, &target, "restart", "restarts").await,
        Command::Network(command) => network::network(&session, command).await,
        Command::Volume(command) => volume::volume(&session, command).await,
        Command::Node(command) => node::node(&session, command).await,
        Command::Pool(command) => pool::pool(&session, command).await,
        Command::Schedule(command) => schedule::schedule(&session, command).await,
        Command::Top { once } => live::top(&session, once).await,
        Command::Events { follow, limit } => live::events(&session, follow, limit).await,
        Command::Image(command) => image::image(&session, command).await,
        Command::Tenant(command) => tenant::tenant(&session, command).await,
        Command::Context(command) => context::context(&session, command),
        Command::Login(args) => context::login(&session, args).await,
        Command::Version => live::version(&session).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "berth", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
    }
}
