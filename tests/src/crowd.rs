//! Crowds of simulated agents: the real protocol, reconciler and ledger, made-up hosts, all in one process.

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::cluster::Brain;
use crate::operator::Operator as _;
use crate::process::Process;
use crate::program;

/// Join tokens, one a line.
pub fn tokens(brain: &Brain, agents: usize) -> String {
    (0..agents).fold(String::new(), |mut lines, _| {
        let made = brain.json(&["node", "token"]);
        let _ = writeln!(lines, "{}", made["token"].as_str().expect("token"));
        lines
    })
}

/// Starts so many agents, which join with these tokens; `more`: further options of `agent-sim`.
pub fn spawn(dir: &Path, agents: usize, tokens: &str, more: &[&str]) -> Process {
    let file = dir.join("tokens");
    std::fs::write(&file, tokens).expect("tokens");
    let mut command = Command::new(program("agent-sim"));
    command
        .args(["--agents", &agents.to_string(), "--dir"])
        .arg(dir.join("sim"))
        .arg("--tokens")
        .arg(file)
        .args(more)
        .stdin(Stdio::null());
    Process::spawn(command, &dir.join("sim.log"))
}

/// How many nodes are ready.
pub fn ready(brain: &Brain) -> usize {
    let nodes = brain.items(&["node", "ls"]);
    nodes.iter().filter(|node| node["state"] == "ready").count()
}

/// What is reserved on a node never exceeds what is allocatable there.
pub fn assert_r4(brain: &Brain) {
    for node in brain.items(&["node", "ls"]) {
        for resource in ["cpu", "memory", "disk"] {
            let number = |part: &serde_json::Value| part[resource].as_u64().expect("a number");
            let reserved = number(&node["taken"]["reserved"]);
            let allocatable = number(&node["allocatable"]);
            assert!(
                reserved <= allocatable,
                "R4: {reserved} > {allocatable} {resource} on {}",
                node["name"]
            );
        }
    }
}
