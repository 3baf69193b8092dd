//! Volumes that move: against `btrfs send | btrfs receive` by hand on the same two pools, and how long their container is away.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::summary;
use crate::fleet::Fleet;
use crate::operator::Operator as _;

/// Writes a line ten times a second with the host's uptime, and 2 MiB each time into one of sixteen files.
const WRITER: &str = "n=0; while true; do n=$((n+1)); dd if=/dev/urandom of=/data/w$((n%16)) bs=1M count=2 conv=notrunc 2>/dev/null; \
    echo $n $(cut -d' ' -f1 /proc/uptime) >>/data/log; sync /data/log; sleep 0.1; done";
/// Pause between looks at how far a move is.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// Moves whose pauses are measured.
const MOVES: usize = 10;

fn volume(f: &Fleet) -> Value {
    f.brain.json(&["volume", "inspect", "data"])
}

fn holder(f: &Fleet) -> String {
    volume(f)["node_name"].as_str().unwrap_or_default().to_owned()
}

/// Where a node keeps what a volume's containers write.
fn data(f: &Fleet, node: &str) -> PathBuf {
    let id = volume(f)["id"].as_str().unwrap_or_default().to_owned();
    pool(f, node).join("v").join(id).join("data")
}

fn pool(f: &Fleet, node: &str) -> PathBuf {
    f.disks[usize::from(node == "h2")].mount.join("pool")
}

fn sh(script: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    let status = Command::new("bash")
        .args(["-euo", "pipefail", "-c", script, "bash"])
        .args(arguments)
        .status()?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

fn exec(f: &Fleet, script: &str) -> anyhow::Result<String> {
    for _ in 0..100 {
        let out = f.brain.try_berth(&["exec", "db", "sh", "-c", script]);
        if out.status.success() {
            return Ok(String::from_utf8_lossy(&out.stdout).into_owned());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    anyhow::bail!("{script} never worked")
}

fn start(f: &Fleet, size_mib: u64, script: &str) {
    let mount = format!("data:/data:size={size_mib}MiB");
    let mut args = vec![
        "run",
        "example:1",
        "--name",
        "db",
        "-d",
        "--stop-grace",
        "1s",
        "-v",
        &mount,
    ];
    args.extend([
        "--memory", "128MiB", "--disk", "8MiB", "--cpus", "1", "--", "sh", "-c", script,
    ]);
    f.brain.berth(&args);
    f.brain.wait_running(1, 60);
}

/// The whole of a volume, by hand and by berth. The container runs meanwhile and writes nothing.
fn whole(f: &Fleet, mib: u64) -> anyhow::Result<()> {
    exec(
        f,
        &format!("dd if=/dev/urandom of=/data/blob bs=1M count={mib} 2>/dev/null && sync"),
    )?;
    let from = holder(f);
    let to = if from == "h1" { "h2" } else { "h1" };
    let (snapshot, target) = (pool(f, &from).join("by-hand"), pool(f, to));
    sh(
        "btrfs -q subvolume snapshot -r \"$1\" \"$2\"",
        &[&data(f, &from), &snapshot],
    )?;
    let began = Instant::now();
    sh(
        "btrfs -q send \"$1\" 2>/dev/null | btrfs -q receive \"$2\"; sync -f \"$2\"",
        &[&snapshot, &target],
    )?;
    let by_hand = began.elapsed().as_secs_f64();
    sh(
        "btrfs -q subvolume delete \"$1\" \"$2\"; sync -f \"$3\"",
        &[&snapshot, &target.join("by-hand"), &target],
    )?;
    let began = Instant::now();
    f.brain.berth(&["volume", "move", "data", to, "-d"]);
    let mut first = None;
    loop {
        // Asking takes of the two processors that are measured.
        std::thread::sleep(ASK_EVERY);
        let now = volume(f);
        if now["node_name"] != from.as_str() {
            break;
        }
        if first.is_none() && now["moving"]["round"].as_u64().unwrap_or(0) > 0 {
            first = Some(began.elapsed().as_secs_f64());
        }
        ensure!(
            began.elapsed() < Duration::from_secs(600),
            "the move does not end"
        );
    }
    let all = began.elapsed().as_secs_f64();
    let first = first.unwrap_or(all);
    println!(
        "volume of {mib} MiB: send and receive by hand {by_hand:.1} s; berth's first round {first:.1} s ({:.0} % of its speed), \
         until handed over {all:.1} s",
        100.0 * by_hand / first
    );
    f.brain.wait_running(1, 60);
    Ok(())
}

/// How long the container writes nothing, of many moves.
fn pauses(f: &Fleet) -> anyhow::Result<()> {
    let mut pauses = Vec::new();
    for _ in 0..MOVES {
        std::thread::sleep(Duration::from_secs(3));
        let before = exec(f, "cat /data/log")?.lines().count();
        f.brain.berth(&["volume", "move", "data"]);
        f.brain.wait_running(1, 60);
        let lines = loop {
            let text = exec(f, "cat /data/log")?;
            let lines: Vec<f64> = text
                .lines()
                .filter_map(|line| line.split_once(' ')?.1.parse().ok())
                .collect();
            if lines.len() > before + 40 {
                break lines;
            }
        };
        let gaps = lines.windows(2).skip(before.saturating_sub(1));
        pauses.push(gaps.map(|two| two[1] - two[0]).fold(0.0, f64::max));
    }
    let (median, worst) = summary(pauses.clone());
    println!("pauses of {MOVES} moves while it writes 20 MB/s: median {median:.2} s, longest {worst:.2} s");
    Ok(())
}

/// Measures all of it with a volume of so many MiB.
///
/// # Errors
/// What failed.
pub fn run(mib: u64) -> anyhow::Result<()> {
    let f = Fleet::with_volumes(2, (3 * mib + 2_048) << 20);
    start(&f, mib + 512, "trap 'exit 0' TERM; sleep 1000000 & wait");
    whole(&f, mib).context("the whole volume")?;
    f.brain.berth(&["service", "rm", "db"]);
    f.brain.wait_running(0, 60);
    start(&f, mib + 512, WRITER);
    pauses(&f).context("pauses")
}
