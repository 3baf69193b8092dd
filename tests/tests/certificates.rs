//! A node's certificate over its whole life, which a test makes short: renewed in time, brain or no brain at the first try.

use std::time::Duration;

use berth_tests::cluster::{Agent, Brain, free_port};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;

fn renewals(agent: &Agent) -> usize {
    agent.log().matches("certificate renewed").count()
}

fn links(agent: &Agent) -> usize {
    agent.log().matches("link up").count()
}

#[test]
fn a_node_renews_its_certificate_by_itself_and_outlives_it() {
    let dir = tempfile::tempdir().expect("folder");
    let address = format!("127.0.0.1:{}", free_port());
    let extra = "node_certificate_secs = 30";
    let mut brain = Brain::start_with(&dir.path().join("brain"), None, &address, extra);
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        "box",
        "-d",
        "--memory",
        "16MiB",
        "--disk",
        "4MiB",
        "--",
        "sleep",
        "100000",
    ]);
    let pid = brain.wait_running(1, 30)[0]["observed"]["pid"].clone();
    let file = agent.dir().join("state/node.crt");
    let first = std::fs::read(&file).expect("certificate");

    let renewed = eventually(Duration::from_secs(30), || (renewals(&agent) == 1).then_some(()));
    assert!(renewed.is_some(), "not renewed in time:\n{}", agent.log());
    let second = std::fs::read(&file).expect("certificate");
    assert_ne!(first, second, "the new one is on disk");
    let again = eventually(Duration::from_secs(10), || (links(&agent) == 2).then_some(()));
    assert!(
        again.is_some(),
        "it was not dialled anew with the new certificate:\n{}",
        agent.log()
    );

    // The brain is away when the next renewal is due.
    std::thread::sleep(Duration::from_secs(16));
    brain.kill9();
    std::thread::sleep(Duration::from_secs(5));
    brain.restart();
    let renewed = eventually(Duration::from_secs(20), || (renewals(&agent) >= 2).then_some(()));
    assert!(
        renewed.is_some(),
        "not renewed after the brain was away:\n{}",
        agent.log()
    );
    // The first certificate ended long ago.
    brain.wait_node("h1", "ready", 15);
    assert_eq!(brain.wait_running(1, 15)[0]["observed"]["pid"], pid);
    brain.berth(&["service", "rm", "box"]);
    brain.wait_running(0, 40);
}
