//! Sending and receiving snapshots, by the `btrfs` program.
//!
//! The receiver is locked into the folder of the volume's own snapshots (chroot), where all but what arrives is read-only: a
//! hostile stream may follow links that it made itself, and finds nothing at their ends. What arrives has a name of its own
//! until it was verified.

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Stdio;
use std::sync::Arc;
use std::task::{Context, Poll};

use berth_common::id::{SnapshotId, VolumeId, clip};
use nix::fcntl::{AT_FDCWD, FcntlArg, RenameFlags, fcntl, renameat2};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::process::{Child, ChildStdout, Command};

use super::store::{ARRIVING, Store, io_error};
use super::stream::{Checker, StreamError};
use super::{Announced, Meta, Sending, Snapshot, VolumeError, destroy, list};
use crate::sys::btrfs_subvolume;

/// Bytes taken from a stream at once.
const PIECE: usize = 128 << 10;
/// Beyond twice its size no stream of a volume needs more than this, bytes.
const STREAM_SLACK: u64 = 64 << 20;
/// Of what a program says, this much is told, bytes.
const SAID: u64 = 4096;

/// Room of a program's pipe, bytes: as much as may be asked for without privileges. The default of 64 KiB has both ends wait for each other.
const PIPE: i32 = 1 << 20;

/// Gives a pipe more room; one that can't have it works, too.
fn widen(pipe: &impl AsFd) {
    let _ = fcntl(pipe, FcntlArg::F_SETPIPE_SZ(PIPE));
}

fn start(command: &mut Command, program: &'static str) -> Result<Child, VolumeError> {
    let started = command
        .env("LC_ALL", "C")
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    started.map_err(|error| VolumeError::Tool {
        program,
        why: match error.kind() {
            io::ErrorKind::NotFound => "btrfs is not installed: apt install btrfs-progs".into(),
            _ => error.to_string(),
        },
    })
}

/// Waits for the end of a program; what it complained of is the error.
async fn end(mut child: Child) -> Result<(), String> {
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        let mut kept = stderr.take(SAID);
        let _ = kept.read_to_end(&mut said).await;
        // The rest goes nowhere, or the program would wait for its reader.
        let _ = tokio::io::copy(&mut kept.into_inner(), &mut tokio::io::sink()).await;
    }
    match child.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let said = String::from_utf8_lossy(&said);
            let said = said.trim().replace('\n', "; ");
            Err(match said.is_empty() {
                true => status.to_string(),
                false => clip(&said, 400),
            })
        }
        Err(error) => Err(error.to_string()),
    }
}

/// A running `btrfs send`: killed when dropped.
struct Sender {
    stdout: ChildStdout,
    end: Pin<Box<dyn Future<Output = Result<(), String>> + Send>>,
    ended: bool,
}

impl AsyncRead for Sender {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ended || buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stdout).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            return Poll::Ready(Ok(()));
        }
        // The pipe is closed: only the exit status says whether that was all.
        let ended = std::task::ready!(self.end.as_mut().poll(context));
        self.ended = true;
        Poll::Ready(ended.map_err(|why| io::Error::other(format!("btrfs send failed: {why}"))))
    }
}

/// Streams a snapshot. Paths are those of snapshots that are there.
pub(super) fn send(snapshot: PathBuf, parent: Option<PathBuf>) -> Result<Sending, VolumeError> {
    let mut command = Command::new("btrfs");
    command.args(["send", "-q"]);
    if let Some(parent) = parent {
        command.arg("-p").arg(parent);
    }
    command.arg(snapshot).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = start(&mut command, "btrfs send")?;
    let stdout = child.stdout.take().ok_or(VolumeError::Interrupted)?;
    widen(&stdout);
    Ok(Sending::new(Sender {
        stdout,
        end: Box::pin(end(child)),
        ended: false,
    }))
}

/// What arrives. Unless it was kept, nothing of it stays.
pub(super) struct Arriving {
    store: Arc<Store>,
    volume: VolumeId,
    path: PathBuf,
    /// The volume was not here before.
    fresh: bool,
    kept: bool,
}

impl Arriving {
    fn name(&self) -> String {
        self.path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    fn clear(&self) {
        let _lock = self.store.lock(self.volume);
        let _ = destroy::folder(&self.store.open, &self.path);
        let dir = self.store.dir(self.volume);
        let empty =
            fs::read_dir(self.store.snapshots(self.volume)).is_ok_and(|mut found| found.next().is_none());
        if self.fresh && empty && !self.store.data(self.volume).exists() {
            let _ = destroy::folder(&self.store.open, &dir);
        }
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if !self.kept {
            self.clear();
        }
    }
}

/// What to do with an announced snapshot.
pub(super) enum Begin {
    /// It is here.
    Here(Snapshot),
    /// It may come.
    Come(Arriving),
}

/// Makes room for a snapshot. Blocks.
pub(super) fn begin(
    store: &Arc<Store>,
    meta: &Meta,
    snapshot: SnapshotId,
    announced: Announced,
) -> Result<Begin, VolumeError> {
    let _lock = store.lock(meta.id);
    let mut fresh = false;
    match Meta::read(&store.dir(meta.id))? {
        Some(held) if held.tenant != meta.tenant => {
            return Err(VolumeError::Taken {
                volume: meta.id,
                what: "as another tenant's".into(),
            });
        }
        Some(_) => {}
        None => {
            store.build(meta, |_| Ok(()))?;
            fresh = true;
        }
    }
    if let Some((path, _)) = store.known(meta.id, snapshot)? {
        let here = list::snapshot(store, meta.id, snapshot)?;
        return match here.announced() == announced
            || (here.received_uuid, sent(&path)?) == (announced.uuid, announced.changed)
        {
            true => Ok(Begin::Here(here)),
            false => Err(VolumeError::Taken {
                volume: meta.id,
                what: format!("with another snapshot {snapshot}"),
            }),
        };
    }
    let name = format!("{ARRIVING}{}", SnapshotId::random());
    Ok(Begin::Come(Arriving {
        store: Arc::clone(store),
        volume: meta.id,
        path: store.snapshots(meta.id).join(name),
        fresh,
        kept: false,
    }))
}

fn sent(path: &std::path::Path) -> Result<u64, VolumeError> {
    let looked = File::open(path).and_then(btrfs_subvolume::info);
    Ok(looked.map_err(io_error("looking at", path))?.sent)
}

/// Lets the stream in, up to a verified end. What went wrong is told; the caller drops `arriving` on a thread that may block.
pub(super) async fn take(
    arriving: &Arriving,
    meta: &Meta,
    announced: Announced,
    stream: &mut (dyn AsyncRead + Send + Unpin),
) -> Result<(), VolumeError> {
    let bad = |source| VolumeError::Stream {
        volume: meta.id,
        source,
    };
    let mut command = Command::new("btrfs");
    command
        .args(["receive", "-q", "-e", "-C"])
        .arg(arriving.store.snapshots(meta.id));
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = start(&mut command, "btrfs receive")?;
    let mut stdin = child.stdin.take().ok_or(VolumeError::Interrupted)?;
    widen(&stdin);
    let most = meta.size.0.saturating_mul(2).saturating_add(STREAM_SLACK);
    let mut checker = Checker::new(announced, &arriving.name(), most);
    let pump = async {
        let (mut piece, mut out) = (vec![0; PIECE], Vec::new());
        loop {
            let read = stream.read(&mut piece).await.map_err(StreamError::Read)?;
            if read == 0 {
                break checker.finish();
            }
            out.clear();
            checker.push(&piece[..read], &mut out)?;
            if stdin.write_all(&out).await.is_err() {
                // It gave up and says why below.
                break Ok(());
            }
        }
    };
    let pumped = pump.await;
    if pumped.is_err() {
        // Without its end it must not finish: it would take what it has for the whole.
        let _ = child.kill().await;
    }
    drop(stdin);
    pumped.map_err(bad)?;
    end(child).await.map_err(|why| bad(StreamError::Refused(why)))
}

/// Verifies what arrived and gives it its name. Blocks.
pub(super) fn keep(
    mut arriving: Arriving,
    snapshot: SnapshotId,
    announced: Announced,
) -> Result<Snapshot, VolumeError> {
    let store = Arc::clone(&arriving.store);
    let volume = arriving.volume;
    let path = arriving.path.clone();
    let info = File::open(&path)
        .and_then(btrfs_subvolume::info)
        .map_err(io_error("looking at", &path))?;
    let found = Announced {
        uuid: info.received_uuid,
        changed: info.sent,
    };
    if found != announced || !info.read_only {
        return Err(VolumeError::Stream {
            volume,
            source: StreamError::Another {
                found: format!("{} at {}", found.uuid, found.changed),
                announced: format!("{} at {}", announced.uuid, announced.changed),
            },
        });
    }
    let named = store.snapshots(volume).join(snapshot.to_string());
    let lock = store.lock(volume);
    // Its content is on the disk before it has its name.
    store.sync()?;
    let renamed = renameat2(AT_FDCWD, &path, AT_FDCWD, &named, RenameFlags::RENAME_NOREPLACE);
    renamed.map_err(|errno| io_error("renaming into place", &named)(errno.into()))?;
    arriving.kept = true;
    store.sync()?;
    drop(lock);
    list::snapshot(&store, volume, snapshot)
}
