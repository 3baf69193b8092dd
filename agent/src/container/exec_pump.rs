//! Moves the bytes of one exec, and sees it through to its end: output is drained before the exit is told, and nobody
//! listening any more ends the process.

use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_common::error::{ErrorKind, Problem};
use berth_common::protocol::{ExecDown, ExecUp};
use containerd_client::services::v1 as api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::exec::Exec;

/// Largest piece in one frame, bytes.
const CHUNK: usize = 32 << 10;
/// How long output may still come after the process ended: a child of it may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(2);
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Our ends.
pub(super) struct Pipes {
    pub(super) stdin: Option<PathBuf>,
    pub(super) out: pipe::Receiver,
    pub(super) err: Option<pipe::Receiver>,
}

/// Starts the process and stays with it.
pub(super) async fn drive(
    exec: Exec,
    pipes: Pipes,
    size: Option<(u16, u16)>,
    up: mpsc::Receiver<ExecUp>,
    down: mpsc::Sender<ExecDown>,
) {
    if let Err(status) = start(&exec).await {
        let problem = problem_of(&exec, &status);
        end(&exec).await;
        let _ = down.send(ExecDown::Problem { problem }).await;
        return;
    }
    if let Some((cols, rows)) = size {
        resize(&exec, cols, rows).await;
    }
    let _ = down.send(ExecDown::Started).await;
    let input = feed(&exec, pipes.stdin.clone(), up);
    let output = async {
        let err = async {
            if let Some(err) = pipes.err {
                copy(err, &down, |data| ExecDown::Stderr { data }).await;
            }
        };
        tokio::join!(copy(pipes.out, &down, |data| ExecDown::Stdout { data }), err);
    };
    let work = async {
        tokio::pin!(output);
        let wait = wait(&exec);
        tokio::pin!(wait);
        let mut drained = false;
        let code = loop {
            tokio::select! {
                code = &mut wait => break code,
                () = &mut output, if !drained => drained = true,
            }
        };
        if !drained {
            let _ = tokio::time::timeout(DRAIN, output).await;
        }
        code
    };
    let code = tokio::select! {
        code = work => code,
        () = down.closed() => {
            // Nobody listens any more.
            end(&exec).await;
            return;
        }
        never = input => match never {},
    };
    end(&exec).await;
    let last = match code {
        Ok(code) => ExecDown::Exit {
            code: i32::try_from(code).unwrap_or(-1),
        },
        Err(status) => ExecDown::Problem {
            problem: problem_of(&exec, &status),
        },
    };
    let _ = down.send(last).await;
}

async fn start(exec: &Exec) -> Result<(), tonic::Status> {
    let containerd = &exec.inner.containerd;
    let body = api::StartRequest {
        container_id: exec.container.to_string(),
        exec_id: exec.name.clone(),
    };
    containerd
        .tasks()
        .start(containerd.request(body))
        .await
        .map(|_| ())
}

async fn wait(exec: &Exec) -> Result<u32, tonic::Status> {
    let containerd = &exec.inner.containerd;
    let body = api::WaitRequest {
        container_id: exec.container.to_string(),
        exec_id: exec.name.clone(),
    };
    Ok(containerd
        .tasks()
        .wait(containerd.request(body))
        .await?
        .into_inner()
        .exit_status)
}

async fn resize(exec: &Exec, cols: u16, rows: u16) {
    let containerd = &exec.inner.containerd;
    let body = api::ResizePtyRequest {
        container_id: exec.container.to_string(),
        exec_id: exec.name.clone(),
        width: cols.into(),
        height: rows.into(),
    };
    // A terminal that is gone needs no size.
    let _ = containerd.tasks().resize_pty(containerd.request(body)).await;
}

async fn copy(mut from: pipe::Receiver, down: &mpsc::Sender<ExecDown>, frame: impl Fn(String) -> ExecDown) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || down.send(frame(STANDARD.encode(&buffer[..n]))).await.is_err() {
            return;
        }
    }
}

/// Passes on what the person types; never ends, so that the end of input does not end the exec.
async fn feed(
    exec: &Exec,
    stdin: Option<PathBuf>,
    mut up: mpsc::Receiver<ExecUp>,
) -> std::convert::Infallible {
    let mut writer = stdin.and_then(|path| pipe::OpenOptions::new().open_sender(path).ok());
    let mut open = true;
    loop {
        let message = if open {
            up.recv().await
        } else {
            std::future::pending().await
        };
        match message {
            Some(ExecUp::Stdin { data }) => {
                let Ok(bytes) = STANDARD.decode(data) else {
                    continue;
                };
                if let Some(pipe) = &mut writer
                    && pipe.write_all(&bytes).await.is_err()
                {
                    writer = None;
                }
            }
            Some(ExecUp::Resize { cols, rows }) => resize(exec, cols, rows).await,
            Some(ExecUp::StdinEof) => close_input(exec, &mut writer).await,
            Some(ExecUp::Unknown) => {}
            None => {
                close_input(exec, &mut writer).await;
                open = false;
            }
        }
    }
}

/// Both our end and the one that the shim keeps.
async fn close_input(exec: &Exec, writer: &mut Option<pipe::Sender>) {
    if writer.take().is_some() {
        let containerd = &exec.inner.containerd;
        let body = api::CloseIoRequest {
            container_id: exec.container.to_string(),
            exec_id: exec.name.clone(),
            stdin: true,
        };
        let _ = containerd.tasks().close_io(containerd.request(body)).await;
    }
}

/// Ends the process if it still runs, and removes what containerd knows of it.
pub(super) async fn end(exec: &Exec) {
    let containerd = &exec.inner.containerd;
    let delete = || api::DeleteProcessRequest {
        container_id: exec.container.to_string(),
        exec_id: exec.name.clone(),
    };
    let mut tasks = containerd.tasks();
    let gone = |status: &tonic::Status| status.code() == tonic::Code::NotFound;
    match tasks.delete_process(containerd.request(delete())).await {
        Ok(_) => return,
        Err(status) if gone(&status) => return,
        Err(_) => {}
    }
    let kill = api::KillRequest {
        container_id: exec.container.to_string(),
        exec_id: exec.name.clone(),
        signal: nix::libc::SIGKILL as u32,
        all: false,
    };
    let _ = tasks.kill(containerd.request(kill)).await;
    let _ = tokio::time::timeout(KILL_TIMEOUT, wait(exec)).await;
    if let Err(status) = tasks.delete_process(containerd.request(delete())).await
        && !gone(&status)
    {
        tracing::warn!(container = %exec.container, exec = exec.name, %status, "an exec could not be removed");
    }
}

fn problem_of(exec: &Exec, status: &tonic::Status) -> Problem {
    let text = status.message();
    let message = berth_common::id::clip(text, 300);
    let kind = if text.contains("executable file not found") || text.contains("no such file or directory") {
        ErrorKind::Invalid
    } else {
        ErrorKind::Internal
    };
    Problem::new(
        kind,
        format!("exec in container {} failed: {message}", exec.container),
    )
}
