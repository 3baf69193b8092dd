//! `berth-init`: PID 1 of containers that ask for one. Starts the program, hands it every signal, reaps what is orphaned,
//! ends with its code. Built statically (see `build_init` in scripts/lib.sh), since it runs in any image.
//!
//! `berth-init --hold` is the one process of `berth-containers.service`: it keeps the control group that systemd delegated,
//! which would vanish with the last process inside, and waits in a group beside the containers', since one that passes
//! controllers on can't hold processes itself.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// Ends of everything that has ended; the code of `child` if it is among them.
fn reap(child: Pid) -> Option<u8> {
    let mut code = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => code = Some(status as u8),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => code = Some(128 + signal as u8),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return code,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return code,
        }
    }
}

/// Steps aside, tells the service manager, and waits for its SIGTERM.
fn hold() -> Result<(), String> {
    let own = std::fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("/proc/self/cgroup: {e}"))?;
    // Version 1 has no rule against it; there is no such line then, or a group that controls nothing.
    if let Some(path) = own.lines().find_map(|line| line.strip_prefix("0::/")) {
        let group = Path::new("/sys/fs/cgroup").join(path);
        if !group.ends_with("hold") && group.join("cgroup.controllers").exists() {
            let aside = group.join("hold");
            let failed = |e: std::io::Error| format!("{}: {e}", aside.display());
            match std::fs::create_dir(&aside) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(failed(e)),
                _ => {}
            }
            std::fs::write(aside.join("cgroup.procs"), "0").map_err(failed)?;
        }
    }
    let end = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    end.thread_block().map_err(|e| e.to_string())?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready])
        .map_err(|e| format!("telling the service manager: {e}"))?;
    end.wait().map(drop).map_err(|e| e.to_string())
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let Some(program) = arguments.next() else {
        eprintln!("berth-init: no program was given");
        return ExitCode::from(127);
    };
    if program == "--hold" {
        return match hold() {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("berth-init: {why}");
                ExitCode::FAILURE
            }
        };
    }
    // Blocked, so that `wait` below gets them one by one.
    let mut signals = SigSet::all();
    for fault in [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGTTIN,
        Signal::SIGTTOU,
    ] {
        signals.remove(fault);
    }
    if let Err(error) = signals.thread_block() {
        eprintln!("berth-init: signals can't be blocked: {error}");
        return ExitCode::from(126);
    }
    // A child inherits the mask of the thread that starts it, so another thread with an empty mask does. What reaches
    // that one meanwhile is ignored by the kernel, as PID 1 has no handlers.
    let mut command = Command::new(&program);
    command.args(arguments).process_group(0);
    let started = std::thread::spawn(move || {
        SigSet::empty().thread_set_mask()?;
        command.spawn()
    });
    let child = match started
        .join()
        .unwrap_or_else(|_| Err(std::io::ErrorKind::Other.into()))
    {
        Ok(child) => Pid::from_raw(child.id() as i32),
        Err(error) => {
            eprintln!("berth-init: {}: {error}", program.display());
            let missing = error.kind() == std::io::ErrorKind::NotFound;
            return ExitCode::from(if missing { 127 } else { 126 });
        }
    };
    loop {
        match signals.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(code) = reap(child) {
                    return ExitCode::from(code);
                }
            }
            Ok(signal) => {
                let _ = kill(child, signal);
            }
            Err(_) => {}
        }
    }
}
