//! Shims that don't answer.
//!
//! containerd asks a shim for every task's state and waits two seconds for it. A shim that is stuck (frozen, waiting for a
//! disk, held up in an interrupted start) still has its container: an unanswered question is no proof of an end. So the
//! kernel is asked instead, and only where the container must end anyway the shim is ended with it; containerd notices
//! its death and clears up.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use berth_common::id::ContainerId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::{Code, Response, Status};

/// Longest wait for a shim's answer that needs no work of the kernel.
pub const ANSWER: Duration = Duration::from_secs(10);
/// Wait for a task to be made or started, at first: the runtime mounts, and a busy disk is slow.
const START: Duration = Duration::from_secs(60);
/// The longest it grows to.
const LONGEST_START: Duration = Duration::from_secs(480);

/// How long a start may take on this host.
///
/// A start that is given up has to be cleared away and begun anew. A host on which each takes longer than the limit, as when all its
/// containers come back at once after a power cut, would never start any: so each one given up doubles the limit, up to 480 s, and
/// one that needed no more than a quarter of it halves it again, down to 60 s.
#[derive(Debug)]
pub struct Patience(AtomicU64);

impl Default for Patience {
    fn default() -> Self {
        Self(AtomicU64::new(START.as_secs()))
    }
}

impl Patience {
    /// The limit now.
    pub fn limit(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }

    /// A start was given up after `limit`: those that were begun together with the same limit count once.
    pub fn ran_out(&self, limit: Duration) {
        let more = (limit * 2).min(LONGEST_START);
        self.0.fetch_max(more.as_secs(), Ordering::Relaxed);
    }

    /// A start took so long.
    pub fn took(&self, time: Duration) {
        let now = self.limit();
        if time * 4 <= now {
            let less = (now / 2).max(START);
            // Who changed it meanwhile knows better.
            let (now, less) = (now.as_secs(), less.as_secs());
            let _ = self
                .0
                .compare_exchange(now, less, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// A call that makes or starts a task, with the limit of now.
    pub async fn within<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<Response<T>, Status> {
        let (limit, began) = (self.limit(), std::time::Instant::now());
        let answer = within(limit, call).await;
        match &answer {
            Ok(_) => self.took(began.elapsed()),
            Err(status) if silent(status) => self.ran_out(limit),
            Err(_) => {}
        }
        answer
    }
}

/// A call with an end: what takes longer is `DeadlineExceeded`.
pub async fn within<T>(
    limit: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    match tokio::time::timeout(limit, call).await {
        Ok(answer) => answer,
        Err(_) => Err(Status::deadline_exceeded(format!(
            "the container's shim did not answer within {} s",
            limit.as_secs()
        ))),
    }
}

/// Whether a call failed because a shim did not answer. containerd passes its own time limits on as unknown errors.
pub fn silent(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded || status.message().contains("deadline exceeded")
}

/// Whether process `pid` is alive and runs in the container's cgroup, so that no other process of a reused number counts.
pub fn holds(id: ContainerId, pid: u32) -> bool {
    let of = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let ended = of("stat")
        .rsplit_once(") ")
        .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
    !ended && of("cgroup").contains(&id.to_string())
}

/// Whether a process that its shim calls created still waits to begin as its container's program.
///
/// `runc start` lets it begin by reading a FIFO and deletes that afterwards. Killed in between, as it is when its containerd
/// dies, it leaves a program that runs and a FIFO that is there, and the next `runc start` waits at it for ever (runc 1.1,
/// `libcontainer/container_linux.go`, `exec`). Until it begins, the process is runc's own, called with `init` alone.
pub fn waits(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    matches!(
        line.split(|byte| *byte == 0).collect::<Vec<_>>()[..],
        [_, b"init", b""]
    )
}

/// Sends a signal to a container's process past its shim; whether it was there to get it.
pub fn signal(id: ContainerId, pid: u32, number: i32) -> bool {
    let (Ok(signal), Ok(process)) = (Signal::try_from(number), i32::try_from(pid)) else {
        return false;
    };
    holds(id, pid) && kill(Pid::from_raw(process), signal).is_ok()
}

/// Kills the shims of a container of the daemon at `socket`, and what they started. Returns how many there were.
pub fn end(socket: &Path, namespace: &str, id: ContainerId) -> usize {
    let id = id.to_string();
    let socket = socket.to_string_lossy();
    let mut ended = 0;
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(raw) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        if !is_shim(&String::from_utf8_lossy(&raw), &socket, namespace, &id) {
            continue;
        }
        // Its children first: they would be handed to PID 1 and go on.
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|text| text.parse().ok()) {
            let _ = kill(Pid::from_raw(child), Signal::SIGKILL);
        }
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        ended += 1;
    }
    ended
}

/// Whether a NUL-separated command line is the shim of this container.
fn is_shim(cmdline: &str, socket: &str, namespace: &str, id: &str) -> bool {
    let args: Vec<_> = cmdline.split('\0').collect();
    let value = |flag: &str| {
        let at = args.iter().position(|arg| *arg == flag)?;
        args.get(at + 1).copied()
    };
    args.first()
        .is_some_and(|program| program.contains("containerd-shim"))
        && value("-id") == Some(id)
        && value("-namespace") == Some(namespace)
        && value("-address") == Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_known_by_container_namespace_and_daemon() {
        let line = "/usr/bin/containerd-shim-runc-v2\0-namespace\0berth\0-id\0abc\0-address\0/run/c.sock\0";
        assert!(is_shim(line, "/run/c.sock", "berth", "abc"));
        assert!(!is_shim(line, "/run/c.sock", "berth", "ab"));
        assert!(!is_shim(line, "/run/c.sock", "k8s.io", "abc"));
        assert!(!is_shim(line, "/run/d.sock", "berth", "abc"));
        let other = line.replace("containerd-shim-runc-v2", "sleep");
        assert!(!is_shim(&other, "/run/c.sock", "berth", "abc"));
        assert!(!is_shim("", "/run/c.sock", "berth", "abc"));
    }

    #[test]
    fn a_process_elsewhere_or_gone_does_not_hold_a_container() {
        let id = ContainerId::random();
        assert!(!holds(id, std::process::id()));
        assert!(!holds(id, u32::MAX));
        assert!(!signal(id, u32::MAX, 0));
    }

    #[test]
    fn a_host_that_needs_longer_for_a_start_gets_longer_and_a_fast_one_is_not_waited_for() {
        let (patience, secs) = (Patience::default(), Duration::from_secs);
        assert_eq!(patience.limit(), secs(60));
        // Four at once that were given 60 s.
        (0..4).for_each(|_| patience.ran_out(secs(60)));
        assert_eq!(patience.limit(), secs(120));
        (0..5).for_each(|_| patience.ran_out(patience.limit()));
        assert_eq!(patience.limit(), LONGEST_START);
        // Late news of a shorter one changes nothing.
        patience.ran_out(secs(60));
        assert_eq!(patience.limit(), LONGEST_START);
        patience.took(secs(300));
        assert_eq!(patience.limit(), LONGEST_START);
        (0..9).for_each(|_| patience.took(secs(1)));
        assert_eq!(patience.limit(), secs(60));
    }

    #[tokio::test]
    async fn a_silent_call_ends() {
        let call = std::future::pending::<Result<Response<()>, Status>>();
        let status = within(Duration::from_millis(5), call).await.unwrap_err();
        assert!(silent(&status));
        assert!(silent(&Status::unknown("context deadline exceeded: unknown")));
        assert!(!silent(&Status::not_found("no")));
    }
}
