//! `exec`: a process in a container, with this terminal if wanted.
//!
//! Owns the raw mode of the terminal: whatever happens in between, it is put back.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_common::api::ContainerView;
use berth_common::protocol::{ExecDown, ExecSpec, ExecUp};
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};

use super::Session;
use super::service::{Target, target};
use crate::args::ExecArgs;
use crate::client::exec::ExecSocket;
use crate::client::{Client, ClientError};
use crate::failure::Failure;
use crate::spec;

/// Bytes of input in one frame; the protocol allows 32 KiB.
const CHUNK: usize = 16 * 1024;
const PING: Duration = Duration::from_secs(15);
const DEAD: Duration = Duration::from_secs(60);

/// The terminal in raw mode until dropped, also by a panic.
struct RawTerminal;

impl RawTerminal {
    fn enter() -> Result<Self, Failure> {
        crossterm::terminal::enable_raw_mode()
            .map_err(|source| Failure::io("switch the terminal to raw mode", source))?;
        Ok(Self)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing better can be done than to try.
        let _ = crossterm::terminal::disable_raw_mode();
    }
}

/// `berth exec`.
pub async fn exec(session: &Session, args: ExecArgs) -> Result<(), Failure> {
    if args.tty && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Err(Failure::usage(
            "-t needs a terminal, and there is none here",
            "leave out -t, or run it in a terminal",
        ));
    }
    let client = session.client().await?;
    let container = match target(&client, &args.target).await? {
        Target::Container(id) => id,
        Target::Service(view) => first_running(&client, view.record.spec.name.as_str()).await?,
    };
    let spec = ExecSpec {
        args: args.command,
        tty: args.tty,
        stdin: args.interactive,
        env: spec::map(args.env),
        working_dir: args.workdir,
        user: args.user,
        size: if args.tty {
            crossterm::terminal::size().ok()
        } else {
            None
        },
    };
    let mut socket = client.exec(&container, &spec).await?;
    let raw = if args.tty {
        Some(RawTerminal::enter()?)
    } else {
        None
    };
    let result = pump(&mut socket, args.interactive, args.tty).await;
    drop(raw);
    socket.close().await;
    match result? {
        0 => Ok(()),
        code => Err(Failure::Exit(u8::try_from(code).unwrap_or(1))),
    }
}

async fn first_running(client: &Client, service: &str) -> Result<String, Failure> {
    let query = [("service", service.to_owned())];
    let (mut items, _) = client
        .list::<ContainerView>(client.tenant_url(&["containers"], &query))
        .await?;
    items.sort_by_key(|c| c.record.replica);
    items
        .iter()
        .find(|c| c.status == "running")
        .map(|c| c.record.id.to_string())
        .ok_or_else(|| {
            Failure::refused(
                format!("no container of {service} runs"),
                format!("`berth ps {service}` says why"),
            )
        })
}

/// Carries bytes both ways until the process ends; gives its exit code.
async fn pump(socket: &mut ExecSocket, input: bool, tty: bool) -> Result<i32, Failure> {
    let hook = |kind| signal(kind).map_err(|source| Failure::io("listen for signals", source));
    let mut resized = hook(SignalKind::window_change())?;
    let mut terminated = hook(SignalKind::terminate())?;
    let mut hung_up = hook(SignalKind::hangup())?;
    let mut stdin = tokio::io::stdin();
    let mut open = input;
    let mut buffer = vec![0; CHUNK];
    // Not at once: an answer to a process that ends immediately must not meet unread bytes of ours.
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    let mut heard = Instant::now();
    loop {
        tokio::select! {
            down = socket.next() => {
                heard = Instant::now();
                match down? {
                    Some(ExecDown::Stdout { data }) => write(&mut std::io::stdout().lock(), &data)?,
                    Some(ExecDown::Stderr { data }) => write(&mut std::io::stderr().lock(), &data)?,
                    Some(ExecDown::Exit { code }) => return Ok(code),
                    Some(ExecDown::Problem { problem }) => {
                        return Err(ClientError::Refused(Box::new(problem)).into());
                    }
                    Some(ExecDown::Started | ExecDown::Unknown) | None => {}
                }
            }
            read = stdin.read(&mut buffer), if open => {
                let count = read.map_err(|source| Failure::io("read standard input", source))?;
                if count == 0 {
                    open = false;
                    socket.send(&ExecUp::StdinEof).await?;
                } else {
                    let data = STANDARD.encode(&buffer[..count]);
                    socket.send(&ExecUp::Stdin { data }).await?;
                }
            }
            _ = resized.recv(), if tty => {
                if let Ok((cols, rows)) = crossterm::terminal::size() {
                    socket.send(&ExecUp::Resize { cols, rows }).await?;
                }
            }
            _ = terminated.recv() => return Ok(143),
            _ = hung_up.recv() => return Ok(129),
            _ = ping.tick() => {
                if heard.elapsed() > DEAD {
                    return Err(Failure::io(
                        "hear from the brain any more",
                        std::io::ErrorKind::TimedOut.into(),
                    ));
                }
                socket.ping().await?;
            }
        }
    }
}

fn write(out: &mut dyn std::io::Write, data: &str) -> Result<(), Failure> {
    let bytes = STANDARD.decode(data).map_err(|error| ClientError::Nonsense {
        what: "exec".into(),
        why: error.to_string(),
    })?;
    out.write_all(&bytes)
        .and_then(|()| out.flush())
        .map_err(|source| Failure::io("write output", source))
}
