//! The `berth` command as a person uses it: on a terminal, and while things break under it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use berth_tests::cluster::{Agent, Brain};
use berth_tests::operator::Operator as _;
use berth_tests::process::eventually;
use berth_tests::terminal::Terminal;

fn bench() -> (tempfile::TempDir, Brain, Agent) {
    let dir = tempfile::tempdir().expect("folder");
    let brain = Brain::start(&dir.path().join("brain"));
    let agent = Agent::start(&brain, &dir.path().join("h1"), "h1", None);
    brain.wait_node("h1", "ready", 20);
    brain.load_example();
    (dir, brain, agent)
}

fn run(brain: &Brain, name: &str, program: &str) {
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        name,
        "-d",
        "--memory",
        "16MiB",
        "--disk",
        "8MiB",
        "--",
        "sh",
        "-c",
        program,
    ]);
}

#[test]
fn exec_gives_a_terminal_and_leaves_the_own_one_as_it_was() {
    let (_dir, mut brain, _agent) = bench();
    run(
        &brain,
        "box",
        "trap 'exit 0' TERM; while true; do sleep 0.2; done",
    );
    brain.wait_running(1, 30);
    let shell = brain.berth_command(&["exec", "-it", "-e", "PS1=ready> ", "box", "sh"]);

    let mut terminal = Terminal::start(&shell);
    terminal.wait_for("ready> ", 20);
    assert!(!terminal.is_cooked(), "keys go to the container as they are");
    terminal.type_in("stty size\r");
    terminal.wait_for("24 80", 10);
    terminal.resize(50, 132);
    let grown = eventually(Duration::from_secs(10), || {
        terminal.type_in("stty size\r");
        std::thread::sleep(Duration::from_millis(200));
        terminal.shown().contains("50 132").then_some(())
    });
    assert!(
        grown.is_some(),
        "the new size never arrived:\n{}",
        terminal.shown()
    );
    terminal.clear();
    terminal.type_in("sleep 1000; echo interrupted=$?\r");
    std::thread::sleep(Duration::from_millis(500));
    terminal.type_in("\u{3}");
    terminal.wait_for("ready> ", 10);
    terminal.type_in("echo still $((40+2))\r");
    terminal.wait_for("still 42", 10);
    terminal.type_in("exit 7\r");
    assert_eq!(terminal.wait(10).code(), Some(7));
    assert!(terminal.is_cooked(), "the terminal was not put back");

    // The brain dies under it.
    let mut terminal = Terminal::start(&shell);
    terminal.wait_for("ready> ", 20);
    brain.kill9();
    let status = terminal.wait(90);
    assert_ne!(status.code(), Some(0));
    assert!(
        terminal.shown().contains("error: "),
        "no word of why:\n{}",
        terminal.shown()
    );
    assert!(terminal.is_cooked(), "the terminal was not put back");
    brain.restart();
}

#[test]
fn top_redraws_in_place_on_a_terminal_and_prints_once_elsewhere() {
    let (_dir, brain, _agent) = bench();
    run(&brain, "box", "sleep 10000");
    brain.wait_running(1, 30);
    let once = brain.berth(&["top"]);
    assert!(once.contains("h1") && once.contains("box.1"), "{once}");
    assert!(
        !once.contains('\u{1b}'),
        "no escapes where no terminal is: {once:?}"
    );
    let mut terminal = Terminal::start(&brain.berth_command(&["top"]));
    terminal.wait_for("\u{1b}[?1049h", 10);
    terminal.wait_for("box.1", 10);
    let redrawn = eventually(Duration::from_secs(10), || {
        (terminal.shown().matches("box.1").count() >= 2).then_some(())
    });
    assert!(redrawn.is_some(), "it stands still:\n{}", terminal.shown());
    assert!(!terminal.shown().contains("\u{1b}[2J"), "it flickers");
    terminal.type_in("\u{3}");
    assert_eq!(terminal.wait(10).code(), Some(0));
    terminal.wait_for("\u{1b}[?1049l", 5);
    assert!(terminal.is_cooked());
}

#[test]
fn followed_logs_of_a_service_lose_nothing_while_brain_and_replicas_come_and_go() {
    let (_dir, mut brain, mut agent) = bench();
    run(
        &brain,
        "count",
        "i=0; while true; do echo line $i; i=$((i+1)); sleep 0.05; done",
    );
    brain.wait_running(1, 30);
    let mut child = brain
        .berth_command(&["logs", "-f", "count"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("logs");
    let seen: Arc<Mutex<BTreeMap<String, Vec<u64>>>> = Arc::default();
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let into = Arc::clone(&seen);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let (name, text) = line.split_once(" | ").expect("a prefix");
            let number = text
                .strip_prefix("line ")
                .expect("a line")
                .parse()
                .expect("a number");
            let mut seen = into.lock().expect("seen");
            seen.entry(name.trim().to_owned()).or_default().push(number);
        }
    });
    let grows = |name: &str, why: &str| {
        let count = || seen.lock().expect("seen").get(name).map_or(0, Vec::len);
        let before = count();
        let more = eventually(Duration::from_secs(40), || (count() >= before + 20).then_some(()));
        assert!(more.is_some(), "{name} stands still {why}");
    };
    grows("count.1", "at first");
    brain.berth(&["service", "scale", "count", "2"]);
    grows("count.2", "after it came later");
    brain.kill9();
    std::thread::sleep(Duration::from_secs(1));
    brain.restart();
    grows("count.1", "after the brain's restart");
    grows("count.2", "after the brain's restart");
    agent.kill9();
    agent.restart();
    grows("count.1", "after the agent's restart");
    grows("count.2", "after the agent's restart");
    for (name, numbers) in seen.lock().expect("seen").iter() {
        let whole: Vec<u64> = (0..numbers.len() as u64).collect();
        assert_eq!(*numbers, whole, "{name}: a line is missing or doubled");
    }
    brain.berth(&["service", "rm", "count"]);
    let ended = eventually(Duration::from_secs(30), || child.try_wait().expect("wait"));
    if ended.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let status = ended.expect("nothing is left to follow");
    assert!(status.success(), "{status}");
}

#[test]
fn followed_events_are_told_once_over_a_restart_of_the_brain() {
    let dir = tempfile::tempdir().expect("folder");
    let mut brain = Brain::start(&dir.path().join("brain"));
    let mut child = brain
        .berth_command(&["events", "-f", "-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("events");
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    let into = Arc::clone(&seen);
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            into.lock().expect("seen").push(line);
        }
    });
    let service = |n: usize| format!("s{n}");
    let created = |n: usize| {
        let subject = format!("service {}\"", service(n));
        let lines = seen.lock().expect("seen");
        lines
            .iter()
            .filter(|line| line.contains(&subject) && line.contains("\"created\""))
            .count()
    };
    for n in 0..6 {
        if n == 3 {
            // Events of a killed brain are not kept: those so far must have been told.
            let told = eventually(Duration::from_secs(15), || {
                (0..3).all(|n| created(n) == 1).then_some(())
            });
            assert!(told.is_some(), "missing: {:?}", seen.lock().expect("seen"));
            brain.kill9();
            brain.restart();
        }
        brain.berth(&["run", "example:1", "--name", &service(n), "-d", "--", "true"]);
    }
    let all = eventually(Duration::from_secs(15), || {
        (0..6).all(|n| created(n) >= 1).then_some(())
    });
    let _ = child.kill();
    let _ = child.wait();
    assert!(all.is_some(), "missing: {:?}", seen.lock().expect("seen"));
    assert!(
        (0..6).all(|n| created(n) == 1),
        "doubled: {:?}",
        seen.lock().expect("seen")
    );
}
