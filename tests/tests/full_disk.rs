//! Disks that are full: of the agent's state, and of the brain's store. Real file systems, really full.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::containerd::unmount_below;
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use nix::mount::{MsFlags, mount};

/// A small file system at `path`, unmounted when dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn at(path: &Path, mib: u32) -> Self {
        std::fs::create_dir_all(path).expect("folder");
        let options = format!("size={mib}m,mode=700");
        mount(
            Some("berth-test"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("mounting a tmpfs");
        Self(path.to_owned())
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves not one free byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("filler");
        for size in [1 << 16, 1 << 12, 1] {
            let block = vec![7u8; size];
            while file.write_all(&block).is_ok() {}
        }
        let error = std::fs::write(self.0.join("probe"), "x").expect_err("it is full");
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
        let _ = std::fs::remove_file(self.0.join("probe"));
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("filler");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Some(parent) = self.0.parent() {
            unmount_below(parent);
        }
    }
}

fn run_detached(brain: &Brain, name: &str) {
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        name,
        "-d",
        "--memory",
        "16MiB",
        "--disk",
        "4MiB",
        "--",
        "sleep",
        "100000",
    ]);
}

fn pids(brain: &Brain) -> Vec<(String, u64)> {
    let mut found: Vec<_> = brain
        .running()
        .iter()
        .map(|c| {
            (
                c["service_name"].as_str().expect("service").to_owned(),
                c["observed"]["pid"].as_u64().expect("pid"),
            )
        })
        .collect();
    found.sort();
    found
}

fn events(brain: &Brain) -> String {
    brain.berth(&["events", "-o", "json"])
}

#[test]
fn r8_a_full_agent_disk_stops_nothing_starts_nothing_and_mends_itself() {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let home = dir.path().join("h1");
    let disk = SmallDisk::at(&home.join("state"), 4);
    let mut agent = Agent::start(&brain, &home, "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    run_detached(&brain, "first");
    brain.wait_running(1, 40);
    let before = pids(&brain);

    disk.fill();
    run_detached(&brain, "second");
    let told = eventually(Duration::from_secs(20), || {
        let text = events(&brain);
        (text.contains("desired-refused") && text.contains("free disk space")).then_some(())
    });
    assert!(told.is_some(), "nobody was told:\n{}", events(&brain));
    assert_eq!(pids(&brain), before, "nothing it could not note was begun");

    // Killed and started again while full: it adopts what runs, from the set that it holds.
    agent.kill9();
    agent.restart();
    let again = eventually(Duration::from_secs(20), || {
        agent.log().matches("link up").count().ge(&2).then_some(())
    });
    assert!(
        again.is_some(),
        "the agent did not start on a full disk:\n{}",
        agent.log()
    );
    brain.wait_node("h1", "ready", 20);
    assert_eq!(pids(&brain), before);

    disk.free();
    brain.wait_running(2, 30);
    let after = pids(&brain);
    assert_eq!(after[0], before[0], "the first one never noticed");
    brain.berth(&["service", "rm", "first"]);
    brain.berth(&["service", "rm", "second"]);
    brain.wait_running(0, 40);
    drop(agent);
}

#[test]
fn r5_a_full_brain_disk_refuses_writes_and_loses_none() {
    let dir = tempfile::tempdir().expect("folder");
    let home = dir.path().join("brain");
    let disk = SmallDisk::at(&home.join("state"), 24);
    let mut brain = Brain::start(&home);
    brain.berth(&["tenant", "create", "kept"]);
    disk.fill();
    let mut acknowledged = vec!["kept".to_owned()];
    let mut refused = None;
    // The log of the store has room left in blocks that it holds already.
    for n in 0..2_000 {
        let name = format!("t{n}");
        let out = brain.try_berth(&["tenant", "create", &name]);
        if out.status.success() {
            acknowledged.push(name);
        } else {
            refused = Some(String::from_utf8_lossy(&out.stderr).into_owned());
            break;
        }
    }
    let why = refused.expect("a full disk refuses writes at last");
    assert!(why.contains("disk"), "it names no cause: {why}");
    let names = |brain: &Brain| -> Vec<String> {
        let items = brain.items(&["tenant", "ls"]);
        items
            .iter()
            .filter_map(|t| Some(t["name"].as_str()?.to_owned()))
            .collect()
    };
    let listed = names(&brain);
    assert!(
        acknowledged.iter().all(|name| listed.contains(name)),
        "reading goes on"
    );
    disk.free();
    let written = eventually(Duration::from_secs(10), || {
        brain
            .try_berth(&["tenant", "create", "later"])
            .status
            .success()
            .then_some(())
    });
    assert!(
        written.is_some(),
        "no writing once there is room:\n{}",
        brain.log()
    );
    acknowledged.push("later".into());
    brain.kill9();
    brain.restart();
    let listed = names(&brain);
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|name| !listed.contains(name))
        .collect();
    assert!(lost.is_empty(), "lost {lost:?}");
    drop(brain);
}
