//! Hosts with a processor of their own: on one machine all hosts see the same `/proc/stat`, so each agent here gets one that tells of its
//! own host's control groups and processes alone, and one processor. What lxcfs does for containers, as far as the agent reads it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::run;

/// Clock ticks of `/proc/stat`, a second.
const TICKS: u64 = 100;

/// A host's processor as its agent sees it. What it tells follows the host's real use until this is dropped.
#[derive(Debug)]
pub struct Machine {
    shared: PathBuf,
    dir: PathBuf,
    foreign: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
    meter: Option<JoinHandle<()>>,
}

/// CPU that a control group's processes have used, nanoseconds; 0 of one that is not there.
fn used(group: &str) -> u64 {
    let v1 = ["cpuacct", "cpu,cpuacct"].map(|name| format!("/sys/fs/cgroup/{name}/{group}/cpuacct.usage"));
    if let Some(text) = v1.iter().find_map(|path| std::fs::read_to_string(path).ok()) {
        return text.trim().parse().unwrap_or(0);
    }
    let text = std::fs::read_to_string(format!("/sys/fs/cgroup/{group}/cpu.stat")).unwrap_or_default();
    let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    micros
        .and_then(|micros| micros.trim().parse::<u64>().ok())
        .unwrap_or(0)
        * 1_000
}

/// The same of a process, by `/proc/PID/stat`.
fn used_by(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit(") ").next().unwrap_or_default();
    let fields: Vec<u64> = rest
        .split(' ')
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    fields.iter().sum::<u64>() * 1_000_000_000 / TICKS
}

impl Machine {
    /// One whose containers' control groups are below `group`; its files lie in `dir`, a folder in that of its agent.
    pub fn new(dir: &Path, group: &str) -> Self {
        std::fs::create_dir_all(dir).expect("folder");
        // What the agent mounts in its folder containerd has to see, and the other way round.
        let shared = dir.parent().expect("its agent's").to_path_buf();
        run(Command::new("mount").arg("--bind").arg(&shared).arg(&shared));
        run(Command::new("mount").arg("--make-shared").arg(&shared));
        std::fs::write(dir.join("online"), "0\n").expect("file");
        let (foreign, over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (stat, group) = (dir.join("stat"), group.to_owned());
        let (theirs, ended) = (Arc::clone(&foreign), Arc::clone(&over));
        let began = std::time::Instant::now();
        let write = move |gone: &mut u64, last: &mut (u32, u64), most: &mut u64| {
            let pid = theirs.load(Ordering::Relaxed);
            let now = if pid == 0 { 0 } else { used_by(pid) };
            // What a process that ended has used stays used.
            if last.0 != pid || now < last.1 {
                *gone += last.1;
            }
            *last = (pid, now);
            // A group that was removed takes its figure with it, but time does not go back.
            *most = (*most).max(used(&group));
            let busy = (*most + *gone + now) / (1_000_000_000 / TICKS);
            let whole = began.elapsed().as_millis() as u64 / (1_000 / TICKS);
            let idle = whole.saturating_sub(busy);
            let text = format!(
                "cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 {busy} 0 0 {idle} 0 0 0 0 0 0\nctxt 1\nbtime 1\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
            );
            // In place: what is mounted is this file and no other.
            std::fs::write(&stat, text).expect("file");
        };
        let (mut gone, mut last, mut most) = (0, (0, 0), 0);
        write(&mut gone, &mut last, &mut most);
        let meter = std::thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                write(&mut gone, &mut last, &mut most);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        Self {
            shared,
            dir: dir.to_path_buf(),
            foreign,
            over,
            meter: Some(meter),
        }
    }

    /// Counts this process to the host, and no other of its processes.
    pub fn hog(&self, pid: Option<u32>) {
        self.foreign.store(pid.unwrap_or(0), Ordering::Relaxed);
    }

    /// What a program is started by so that it sees this machine: a script for `sh -c`.
    pub fn seen_by(dir: &Path) -> String {
        format!(
            "mount --make-private /proc && mount --bind {0}/stat /proc/stat && mount --make-private /sys && \
             mount --bind {0}/online /sys/devices/system/cpu/online && exec \"$@\"",
            dir.display()
        )
    }

    /// Where its files lie.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(meter) = self.meter.take() {
            let _ = meter.join();
        }
        // Its agent is gone, so nothing is left below that somebody needs.
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.shared).output();
    }
}
