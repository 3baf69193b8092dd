//! The bench cleans up even after a test that was killed.

use std::io::BufRead as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_tests::containerd::processes;
use berth_tests::process::eventually;
use berth_tests::program;

#[test]
fn a_killed_test_leaves_no_process_no_mount_and_no_folder() {
    let dir = tempfile::tempdir().expect("folder");
    let home = dir.path().join("victim");
    let mut victim = Command::new(program("berth-test-reaper"))
        .arg("--victim")
        .arg(&home)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the victim");
    let mut line = String::new();
    std::io::BufReader::new(victim.stdout.take().expect("stdout"))
        .read_line(&mut line)
        .expect("a word");
    assert_eq!(line, "ready\n");
    let named = || processes(|cmdline| cmdline.contains(&*home.to_string_lossy()));
    assert!(named().len() >= 2, "the victim and its containerd run");
    // As the test runner does when time is up. Drop does not run.
    victim.kill().expect("kill");
    victim.wait().expect("wait");
    let clean = eventually(Duration::from_secs(10), || {
        (named().is_empty() && !home.exists()).then_some(())
    });
    assert!(
        clean.is_some(),
        "left: {:?}, folder there: {}",
        named(),
        home.exists()
    );
}
