//! Cleans up after a test that is killed and so can't do it itself.
//!
//! A second process, `berth-test-reaper`, holds one end of a pipe. When the test is gone, however it went, the pipe ends, and
//! whatever is left of the folders and namespaces that it was told about is taken away: processes by pid, then mounts,
//! namespaces and the folders themselves. After a test that cleaned up there is nothing left to do.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use berth_agent::network::{Namespace, gate};
use nix::sys::signal::Signal;

use crate::containerd::{processes, unmount_below};
use crate::process::signal;

/// Where the lab's disks are.
const SHARED_MEMORY: &str = "/dev/shm";

static PIPE: OnceLock<Mutex<ChildStdin>> = OnceLock::new();

fn tell(line: &str) {
    let pipe = PIPE.get_or_init(|| {
        #[expect(clippy::zombie_processes, reason = "it outlives this process")]
        let mut child = Command::new(crate::program("berth-test-reaper"))
            // What ends the test must not end it.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("berth-test-reaper runs");
        Mutex::new(child.stdin.take().expect("its input"))
    });
    writeln!(pipe.lock().expect("pipe"), "{line}").expect("the reaper lives");
}

/// Everything of this folder goes with the test. It must be below the folder for temporary files, or a lab's.
pub fn guard_folder(dir: &Path) {
    tell(&format!("dir {}", dir.display()));
}

/// This network namespace goes with the test.
pub fn guard_netns(name: &str) {
    tell(&format!("netns {name}"));
}

/// What an agent with this VXLAN port does to the machine's own network namespace is undone with the test; it keeps in `file` what it
/// switched on.
pub fn guard_host(port: u16, file: &Path) {
    tell(&format!("host {port} {}", file.display()));
}

/// Undoes it.
pub fn leave_host(port: u16, file: &Path) {
    let left = Namespace::current().map_err(|error| error.to_string());
    let left = left.and_then(|host| gate::restore(&host, port, file));
    if let Err(why) = left {
        eprintln!("the machine's own network is not as it was: {why}");
    }
}

/// What the reaper does: reads until the test is gone, then cleans up.
pub fn reap(input: impl std::io::BufRead) {
    let (mut dirs, mut namespaces, mut agents) = (Vec::new(), Vec::new(), Vec::new());
    let temporary = std::env::temp_dir();
    for line in input.lines().map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("dir", dir)) => {
                let dir = PathBuf::from(dir);
                // A folder of its own inside, never the whole.
                let below = |base: &Path| {
                    dir.strip_prefix(base)
                        .is_ok_and(|rest| rest.components().count() > 0)
                };
                let a_labs = dir.starts_with(SHARED_MEMORY) && dir.to_string_lossy().contains("/berth-lab-");
                if below(&temporary) || a_labs {
                    dirs.push(dir);
                }
            }
            Some(("netns", name)) => namespaces.push(name.to_owned()),
            Some(("host", agent)) => agents.extend(agent.split_once(' ').and_then(|(port, file)| {
                let port: u16 = port.parse().ok()?;
                Some((port, PathBuf::from(file)))
            })),
            _ => {}
        }
    }
    // Those that were told to end do so.
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..20 {
        let own = std::process::id();
        let named = |cmdline: &str| dirs.iter().any(|dir| cmdline.contains(&*dir.to_string_lossy()));
        let found: Vec<u32> = processes(named).into_iter().filter(|pid| *pid != own).collect();
        if found.is_empty() {
            break;
        }
        for pid in found {
            // A container's processes carry no sign of the test; their shim does.
            for child in children(pid) {
                signal(child, Signal::SIGKILL);
            }
            signal(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for (port, file) in agents {
        leave_host(port, &file);
    }
    for dir in &dirs {
        unmount_below(dir);
        // The folder that the test library made, or what is left of it. A test's folder may be a mount itself.
        let whole = [temporary.as_path(), Path::new(SHARED_MEMORY)];
        let parent = dir.parent().filter(|parent| !whole.contains(parent));
        if let Some(parent) = parent {
            unmount_below(parent);
        }
        let _ = std::fs::remove_dir_all(dir);
        if let Some(parent) = parent {
            let _ = std::fs::remove_dir(parent);
        }
    }
    for name in namespaces {
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .collect()
}
