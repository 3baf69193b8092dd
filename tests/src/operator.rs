//! What a test asks of a brain as its operator: the `berth` command, wherever that brain runs.

use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::process::{POLL, eventually_every};

/// Someone with a brain's administrator's token at hand.
pub trait Operator {
    /// Runs `berth`, whatever comes of it.
    fn try_berth(&self, args: &[&str]) -> Output;

    /// What the brain logged.
    fn log(&self) -> String;

    /// How long to pause between two looks at the same.
    fn pause(&self) -> Duration {
        POLL
    }

    /// How many times as long as elsewhere things may take here.
    fn patience(&self) -> u32 {
        1
    }

    /// Runs `berth` and returns what it printed; panics when it fails.
    fn berth(&self, args: &[&str]) -> String {
        let out = self.try_berth(args);
        assert!(
            out.status.success(),
            "berth {args:?}: {}\n{}{}",
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr)
        );
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Runs `berth … -o json` and returns the value.
    fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        let text = self.berth(&all);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}\n{text}"))
    }

    /// Items of a listing command.
    fn items(&self, args: &[&str]) -> Vec<Value> {
        let value = self.json(args);
        let items = value.get("items").cloned().unwrap_or(value);
        items.as_array().cloned().expect("a list")
    }

    /// Containers with observed phase `running`.
    fn running(&self) -> Vec<Value> {
        let mut items = self.items(&["ps"]);
        items.retain(|c| c["observed"]["phase"] == "running" && c["removing"] != true);
        items
    }

    /// Waits until so many containers of all run, and returns them.
    fn wait_running(&self, count: usize, seconds: u64) -> Vec<Value> {
        let limit = Duration::from_secs(seconds) * self.patience();
        let found = eventually_every(self.pause(), limit, || {
            let running = self.running();
            (running.len() == count).then_some(running)
        });
        found.unwrap_or_else(|| {
            panic!(
                "not {count} running after {limit:?}:\n{}\n{}",
                self.berth(&["ps"]),
                self.log()
            )
        })
    }

    /// Waits until a node is in a state.
    fn wait_node(&self, name: &str, state: &str, seconds: u64) {
        let limit = Duration::from_secs(seconds) * self.patience();
        let found = eventually_every(self.pause(), limit, || {
            let nodes = self.items(&["node", "ls"]);
            nodes
                .iter()
                .any(|n| n["name"] == name && n["state"] == state)
                .then_some(())
        });
        assert!(
            found.is_some(),
            "{name} is not {state}:\n{}",
            self.berth(&["node", "ls"])
        );
    }

    /// How many containers run, by the brain's own count.
    fn count_running(&self) -> usize {
        let services = self.items(&["service", "ls"]);
        services.iter().filter_map(|s| s["running"].as_u64()).sum::<u64>() as usize
    }
}
