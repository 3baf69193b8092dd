//! The control channel's end in the test: runs programs in a virtual machine over its serial line, past any partition.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::frame::{Frame, Kind, MAX};

/// Why a program in a machine gave no result.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The machine's end is gone: it was rebooted, crashed, or its serial line broke.
    #[error("the machine's end of the control channel is gone")]
    Gone,
    /// It did not end in time; it was killed.
    #[error("it did not end within {} s; output so far: {output}", .limit.as_secs())]
    TimedOut {
        /// The time it had.
        limit: Duration,
        /// What it printed so far.
        output: String,
    },
    /// It could not be started.
    #[error("it can't be started: {0}")]
    Failed(String),
}

#[derive(Debug)]
struct Shared {
    line: Mutex<UnixStream>,
    waiting: Mutex<HashMap<u32, mpsc::Sender<Frame>>>,
    next: AtomicU32,
}

/// The channel to one machine.
#[derive(Debug)]
pub struct Channel {
    shared: Arc<Shared>,
}

impl Channel {
    /// Connects to an emulator's socket.
    ///
    /// # Errors
    /// When there is none.
    pub fn connect(socket: &Path) -> std::io::Result<Self> {
        let line = UnixStream::connect(socket)?;
        let mut reader = line.try_clone()?;
        let shared = Arc::new(Shared {
            line: Mutex::new(line),
            waiting: Mutex::default(),
            next: AtomicU32::new(1),
        });
        let held = shared.clone();
        std::thread::spawn(move || {
            while let Ok(frame) = Frame::read(&mut reader) {
                let mut waiting = held.waiting.lock().expect("waiting");
                if frame.kind == Kind::Hello {
                    // Receivers see their sender gone.
                    waiting.clear();
                } else if let Some(to) = waiting.get(&frame.id) {
                    let _ = to.send(frame);
                }
            }
            held.waiting.lock().expect("waiting").clear();
        });
        Ok(Self { shared })
    }

    fn send(&self, frame: &Frame) -> Result<(), ChannelError> {
        let mut line = self.shared.line.lock().expect("line");
        frame.write(&mut *line).map_err(|_| ChannelError::Gone)
    }

    fn expect(&self) -> (u32, mpsc::Receiver<Frame>) {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        self.shared.waiting.lock().expect("waiting").insert(id, sender);
        (id, receiver)
    }

    /// Whether the machine answers within `limit`.
    pub fn answers(&self, limit: Duration) -> bool {
        let (id, frames) = self.expect();
        let sent = self.send(&Frame::new(Kind::Ping, id, ""));
        let answered = sent.is_ok() && frames.recv_timeout(limit).is_ok();
        self.shared.waiting.lock().expect("waiting").remove(&id);
        answered
    }

    /// Starts a program.
    ///
    /// # Errors
    /// When the machine's end is gone.
    pub fn start(&self, argv: &[&str]) -> Result<Running, ChannelError> {
        let (id, frames) = self.expect();
        let argv = serde_json::to_vec(argv).expect("strings");
        assert!(argv.len() <= MAX, "arguments of {} bytes", argv.len());
        self.send(&Frame::new(Kind::Run, id, argv))?;
        Ok(Running {
            id,
            frames,
            shared: self.shared.clone(),
            stdout: Vec::new(),
            stderr: Vec::new(),
            ended: None,
        })
    }

    /// Runs a program with some input and waits for its end.
    ///
    /// # Errors
    /// When it gives no result; that it fails is none.
    pub fn output(&self, argv: &[&str], stdin: &[u8], limit: Duration) -> Result<Output, ChannelError> {
        let running = self.start(argv)?;
        for part in stdin.chunks(MAX / 2) {
            self.send(&Frame::new(Kind::Stdin, running.id, part))?;
        }
        self.send(&Frame::new(Kind::StdinEnd, running.id, ""))?;
        running.wait(limit)
    }
}

/// A program that runs in a machine. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    id: u32,
    frames: mpsc::Receiver<Frame>,
    shared: Arc<Shared>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Takes in what came until `until`; true once it ended.
    fn take_in(&mut self, until: Instant) -> Result<bool, ChannelError> {
        while self.ended.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            let frame = match self.frames.recv_timeout(left) {
                Ok(frame) => frame,
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(false),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err(ChannelError::Gone),
            };
            match frame.kind {
                Kind::Stdout => self.stdout.extend(frame.payload),
                Kind::Stderr => self.stderr.extend(frame.payload),
                Kind::Failed => {
                    return Err(ChannelError::Failed(
                        String::from_utf8_lossy(&frame.payload).into_owned(),
                    ));
                }
                Kind::Exit => {
                    let raw = frame.payload.try_into().map_or(-1, i32::from_be_bytes);
                    self.ended = Some(ExitStatus::from_raw(raw));
                }
                _ => {}
            }
        }
        Ok(true)
    }

    /// Gives it input.
    ///
    /// # Errors
    /// When the machine's end is gone.
    pub fn input(&self, bytes: &[u8]) -> Result<(), ChannelError> {
        let mut line = self.shared.line.lock().expect("line");
        for part in bytes.chunks(MAX / 2) {
            let frame = Frame::new(Kind::Stdin, self.id, part);
            frame.write(&mut *line).map_err(|_| ChannelError::Gone)?;
        }
        Ok(())
    }

    /// Its output since the last call, waiting a little for some; `None` once it ended.
    ///
    /// # Errors
    /// When the machine goes.
    pub fn next_output(&mut self) -> Result<Option<Vec<u8>>, ChannelError> {
        let ended = self.take_in(Instant::now() + Duration::from_millis(20))?;
        let mut new = std::mem::take(&mut self.stdout);
        new.append(&mut self.stderr);
        Ok((!ended || !new.is_empty()).then_some(new))
    }

    /// What it printed so far; also after its machine is gone.
    pub fn so_far(&mut self) -> String {
        let _ = self.take_in(Instant::now());
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the machine goes or the time is over.
    pub fn wait(mut self, limit: Duration) -> Result<Output, ChannelError> {
        if !self.take_in(Instant::now() + limit)? {
            let output = [self.stdout.as_slice(), self.stderr.as_slice()].concat();
            let output = String::from_utf8_lossy(&output).into_owned();
            return Err(ChannelError::TimedOut { limit, output });
        }
        Ok(Output {
            status: self.ended.expect("ended"),
            stdout: std::mem::take(&mut self.stdout),
            stderr: std::mem::take(&mut self.stderr),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.waiting.lock().expect("waiting").remove(&self.id);
        if self.ended.is_none() {
            let kill = Frame::new(Kind::Kill, self.id, "");
            let _ = kill.write(&mut *self.shared.line.lock().expect("line"));
        }
    }
}
