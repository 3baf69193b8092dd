//! `berth-log` as a process: a full disk, a flooder, signals.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_agent::logs::reader;
use berth_common::protocol::LogOptions;

/// Runs a script with its output in a logger, as the shim does; the script's code tells nothing of the logger.
fn logged(dir: &Path, options: &str, script: &str) -> std::process::Child {
    let logger = berth_tests::program("berth-log");
    let line = format!(
        "mkfifo {d}.o {d}.e; {l} dir {d} {options} 3<{d}.o 4<{d}.e 5>/dev/null & logger=$!; \
         ( {script} ) >{d}.o 2>{d}.e; wait $logger; rm -f {d}.o {d}.e",
        d = dir.display(),
        l = logger.display(),
    );
    Command::new("sh")
        .args(["-c", &line])
        .stdin(Stdio::null())
        .spawn()
        .unwrap()
}

async fn read(dir: &Path) -> Vec<String> {
    let mut lines = reader::read(dir, LogOptions::default());
    let mut all = Vec::new();
    while let Some(line) = lines.recv().await {
        all.push(line.text);
    }
    all
}

struct Tmpfs(std::path::PathBuf);

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_blocks_nobody_and_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), &logs, Some("tmpfs"), flags, Some("size=256k")).unwrap();
    let mounted = Tmpfs(logs.clone());
    std::fs::write(logs.join("ballast"), vec![0; 200 << 10]).unwrap();
    let script = format!(
        "i=0; while [ $i -lt 4000 ]; do echo before-$i-xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; i=$((i+1)); done; \
         rm {}/ballast; sleep 0.3; echo after; sleep 0.1; echo last",
        logs.display()
    );
    let begin = Instant::now();
    let mut child = logged(&logs, "max_size 1048576 max_files 2", &script);
    assert!(child.wait().unwrap().success());
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "the container never waits for the disk"
    );
    let lines = read(&logs).await;
    assert!(
        lines.iter().any(|l| l.contains("lines were lost")),
        "{:?}",
        &lines[lines.len() - 5..]
    );
    assert_eq!(lines.last().unwrap(), "last");
    assert!(lines.iter().any(|l| l == "after"));
    drop(mounted);
}

#[tokio::test]
async fn a_flooder_is_slowed_down_and_bounded_and_the_logger_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    // 24 MiB at 8 MiB a second, of it one line without an end.
    let script = "yes flood | head -c 12582912; head -c 12582912 /dev/zero | tr '\\0' x; echo; sleep 0.5";
    let begin = Instant::now();
    let mut child = logged(&logs, "max_size 1048576 max_files 3 rate 8388608", script);
    let mut largest = 0;
    while child.try_wait().unwrap().is_none() {
        let own = logs.display().to_string();
        for pid in berth_tests::containerd::processes(|line| {
            line.contains("berth-log") && line.contains(&own) && !line.contains("mkfifo")
        }) {
            let mut status = String::new();
            let file = std::fs::File::open(format!("/proc/{pid}/status"));
            if file.and_then(|mut file| file.read_to_string(&mut status)).is_ok() {
                let rss = status
                    .lines()
                    .find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
                largest = largest.max(rss.unwrap_or(0u64));
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(
        begin.elapsed() > Duration::from_secs(2),
        "slowed down, not let through"
    );
    assert!(largest > 0 && largest < 12 << 10, "{largest} KiB resident");
    let size: u64 = std::fs::read_dir(&logs)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= 3 << 20, "{size}");
}

#[tokio::test]
async fn polite_signals_do_not_cut_the_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let script = "sleep 0.3; echo one; kill -TERM $logger; kill -INT $logger; kill -HUP $logger; sleep 0.2; echo two >&2; printf three";
    assert!(
        logged(&logs, "max_size 1048576 max_files 3", script)
            .wait()
            .unwrap()
            .success()
    );
    let mut lines = read(&logs).await;
    lines.sort();
    assert_eq!(lines, ["one", "three", "two"]);
}
