//! Hosts with a processor of their own: on one machine all hosts see the same `/proc/stat`, so each agent here gets one that tells of its
//! own host's control groups and processes alone, and one processor. What lxcfs does for containers, as far as the agent reads it.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::bench::cpu_seconds;
use crate::process::run;

/// Clock ticks of `/proc/stat`, a second.
const TICKS: u64 = 100;

/// A host's processor as its agent sees it. What it tells follows the host's real use until this is dropped.
#[derive(Debug)]
pub struct Machine {
    shared: PathBuf,
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
        let stat = std::fs::File::create(dir.join("stat")).expect("file");
        let group = group.to_owned();
        let (theirs, ended) = (Arc::clone(&foreign), Arc::clone(&over));
        let began = std::time::Instant::now();
        let write = move |gone: &mut u64, last: &mut (u32, u64), most: &mut u64| {
            let pid = theirs.load(Ordering::Relaxed);
            let now = if pid == 0 {
                0
            } else {
                (cpu_seconds(pid) * 1e9) as u64
            };
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
                "cpu  {busy:>20} 0 0 {idle:>20} 0 0 0 0 0 0\ncpu0 {busy:>20} 0 0 {idle:>20} 0 0 0 0 0 0\n\
                 ctxt 1\nbtime 1\nprocesses 1\nprocs_running 1\nprocs_blocked 0\n"
            );
            // Over the old one, which is as long: nobody ever reads half a file, and what is mounted is this one.
            stat.write_all_at(text.as_bytes(), 0).expect("file");
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
