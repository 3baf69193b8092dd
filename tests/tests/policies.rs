//! A real brain with simulated agents, and placement policies that are real processes: the example of the documentation, one that is killed,
//! and ones that are slow or answer nonsense.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use berth_tests::cluster::{Brain, free_port};
use berth_tests::crowd;
use berth_tests::operator::Operator as _;
use berth_tests::process::{Process, eventually};
use berth_tests::root;
use serde_json::Value;

const AGENTS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers as its second argument says, to whoever asks.
const LIAR: &str = r#"
import sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
MODE = sys.argv[2]
ANSWERS = {
    "slow": b'{"nodes":{}}',
    "wrong": b"<html>not this</html>",
    "huge": b'{"nodes":{}}' + b" " * (5 << 20),
    "strange": b'{"nodes":{"nobody":{"score":1}}}',
    "token": b'{"nodes":{}}',
}
class Liar(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        if MODE == "slow":
            time.sleep(30)
        allowed = MODE != "token" or self.headers["authorization"] == "Bearer s3cret"
        self.send_response(200 if allowed else 401)
        self.send_header("content-length", str(len(ANSWERS[MODE])))
        self.end_headers()
        self.wfile.write(ANSWERS[MODE])
    def log_message(self, *_):
        pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Liar).serve_forever()
"#;

/// The example in docs/policies.md, as it is there.
fn example() -> String {
    let page = std::fs::read_to_string(root().join("docs/policies.md")).expect("docs/policies.md");
    let code = page.split("```python\n").nth(1).expect("an example");
    code.split("```").next().expect("its end").to_owned()
}

fn python(dir: &Path, script: &str, arguments: &[&str]) -> Process {
    let file = dir.join("policy.py");
    std::fs::write(&file, script).expect("script");
    let mut command = Command::new("python3");
    command.arg(&file).args(arguments);
    Process::spawn(command, &dir.join("policy.log"))
}

/// Makes a service of one replica that asks for a policy.
fn run(brain: &Brain, name: &str, policy: &str, memory: &str) {
    brain.berth(&[
        "run",
        "example:1",
        "--name",
        name,
        "-d",
        "--policy",
        policy,
        "--memory",
        memory,
        "--disk",
        "64MiB",
        "--reserve-cpu",
        "10m",
        "--",
        "x",
    ]);
}

fn containers(brain: &Brain, service: &str) -> Vec<Value> {
    let mut all = brain.items(&["ps"]);
    all.retain(|c| c["service_name"] == service && c["removing"] != true);
    all
}

/// The node on which a service's only container runs.
fn place(brain: &Brain, service: &str) -> String {
    let found = eventually(PATIENCE, || {
        let all = containers(brain, service);
        let one = all.first().filter(|c| c["observed"]["phase"] == "running")?;
        one["node_name"].as_str().map(str::to_owned)
    });
    found.unwrap_or_else(|| panic!("{service}:\n{}\n{}", brain.berth(&["ps"]), brain.log()))
}

/// Waits until a service's container waits for what contains `words`.
fn waits(brain: &Brain, service: &str, words: &str) {
    let found = eventually(PATIENCE, || {
        let all = containers(brain, service);
        let why = all.first()?["waiting"].as_str()?.to_owned();
        why.contains(words).then_some(())
    });
    assert!(
        found.is_some(),
        "{service} does not wait for {words:?}:\n{}\n{}",
        brain.berth(&["ps"]),
        brain.log()
    );
}

fn events(brain: &Brain, kind: &str, policy: &str) -> usize {
    let all = brain.items(&["events", "--limit", "1000"]);
    let subject = format!("policy {policy}");
    all.iter()
        .filter(|event| event["kind"] == kind && event["subject"] == subject.as_str())
        .count()
}

#[test]
fn r4_policies_choose_are_missed_and_lie_and_everything_goes_on() {
    let dir = tempfile::tempdir().expect("folder");
    let port = free_port().to_string();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("token");
    let settings = format!(
        "[[policy]]\nname = \"gpu-first\"\nurl = \"http://127.0.0.1:{port}/place\"\ntimeout_ms = 5000\n\
         [[policy]]\nname = \"strict\"\nurl = \"http://127.0.0.1:{port}/place\"\ntimeout_ms = 1000\non_failure = \"wait\"\n\
         token_file = \"{}\"\n",
        token.display()
    );
    let address = format!("127.0.0.1:{}", free_port());
    let brain = Brain::start_with(&dir.path().join("brain"), None, &address, &settings);
    let tokens = crowd::tokens(&brain, AGENTS);
    let sizes = ["--cpu", "4", "--memory", "4GiB", "--disk", "64GiB"];
    let sim = crowd::spawn(dir.path(), AGENTS, &tokens, &sizes);
    let names = eventually(PATIENCE, || {
        let nodes = brain.items(&["node", "ls"]);
        let ready = nodes.iter().filter(|node| node["state"] == "ready");
        let names: Vec<String> = ready
            .filter_map(|n| Some(n["name"].as_str()?.to_owned()))
            .collect();
        (names.len() == AGENTS).then_some(names)
    });
    let names = names.unwrap_or_else(|| panic!("{}", sim.output()));
    let special = &names[AGENTS - 1];
    brain.berth(&["node", "update", special, "--label", "gpu=a100"]);

    let unknown = brain.try_berth(&["run", "example:1", "--name", "no", "-d", "--policy", "gpu"]);
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        !unknown.status.success() && said.contains("gpu-first, strict"),
        "{said}"
    );

    // The example: where the label is, until more than half of that node is reserved.
    let mut policy = python(dir.path(), &example(), &[&port]);
    let listens = eventually(PATIENCE, || {
        std::net::TcpStream::connect(format!("127.0.0.1:{port}")).ok()
    });
    assert!(listens.is_some(), "{}", policy.output());
    for name in ["a", "b", "c"] {
        run(&brain, name, "gpu-first", "1200MiB");
        let there = place(&brain, name);
        assert_eq!(
            there == *special,
            name != "c",
            "{name} is on {there}\n{}",
            brain.log()
        );
    }

    // Killed: one policy is ignored, for the other it is waited, and both are told once.
    policy.kill9();
    run(&brain, "d", "gpu-first", "64MiB");
    place(&brain, "d");
    run(&brain, "e", "strict", "64MiB");
    waits(&brain, "e", "waits for policy strict: it can't be reached");
    assert_eq!(events(&brain, "policy-failed", "gpu-first"), 1);

    // Slow, and nonsense: waited for in words, while everything else goes on.
    for (mode, words) in [
        ("slow", "did not answer within 1000 ms"),
        ("wrong", "can't be understood"),
        ("huge", "longer than"),
        ("strange", "\"nobody\""),
    ] {
        let mut liar = python(dir.path(), LIAR, &[&port, mode]);
        waits(&brain, "e", words);
        let other = format!("plain-{mode}");
        run(&brain, &other, "gpu-first", "64MiB");
        place(&brain, &other);
        liar.kill9();
    }
    assert_eq!(events(&brain, "policy-failed", "strict"), 1, "once an outage");
    assert_eq!(events(&brain, "policy-back", "strict"), 0);

    // It comes back, and what waited for it is placed without anybody's doing; it was shown the token.
    let honest = python(dir.path(), LIAR, &[&port, "token"]);
    place(&brain, "e");
    assert_eq!(events(&brain, "policy-back", "strict"), 1, "{}", honest.output());
    crowd::assert_r4(&brain);
    drop(sim);
}
