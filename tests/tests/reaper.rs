//! The bench cleans up even after a test that was killed.

use std::io::BufRead as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::containerd::processes;
use berth_tests::operator::Operator as _;
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

/// What agents without a host of their own may change of the machine's network.
fn machine() -> String {
    let look = "nft list tables; grep -H . /proc/sys/net/ipv4/conf/*/forwarding; ip -o link | cut -d: -f2";
    let out = Command::new("sh").args(["-c", look]).output().expect("sh");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
fn an_agent_in_the_machines_own_namespace_leaves_it_as_it_was_though_it_is_killed() {
    let before = machine();
    {
        let dir = tempfile::tempdir().expect("folder");
        let brain = Brain::start(&dir.path().join("brain"));
        let _agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
        brain.wait_node("h1", "ready", 20);
        brain.load_example();
        brain.run_sleepers("web", 1, &[]);
        brain.wait_running(1, 60);
        assert!(
            machine().contains("berth_out_"),
            "it has done something: {}",
            machine()
        );
    }
    // The kernel takes a namespace's links away a moment after it.
    let same = eventually(Duration::from_secs(10), || (machine() == before).then_some(()));
    assert!(same.is_some(), "{before}\n{}", machine());
}
