//! Refusals: every node's obstacle, added up into one sentence with numbers (R9).

use std::fmt;

use berth_common::model::Reservation;

use super::constraints::Told;
use super::filter::Obstacle;

/// Nodes that lack a resource, and the one that has most of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Lack {
    nodes: u32,
    most: u64,
    on: String,
}

impl Lack {
    fn add(&mut self, free: u64, name: &str) {
        if self.nodes == 0 || free > self.most {
            self.most = free;
            name.clone_into(&mut self.on);
        }
        self.nodes += 1;
    }
}

/// Why no node takes a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    asked: Reservation,
    memory: Lack,
    cpu: Lack,
    disk: Lack,
    labels: u32,
    label: String,
    unreachable: u32,
    lost: u32,
    cordoned: u32,
    draining: u32,
    private: u32,
    broken: Told,
}

impl Refusal {
    /// No obstacle met yet.
    pub fn of(asked: Reservation) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// Adds the obstacle met on the node `name`.
    pub fn add(&mut self, obstacle: Obstacle, name: &str) {
        match obstacle {
            Obstacle::Private => self.private += 1,
            Obstacle::Lost => self.lost += 1,
            Obstacle::Unreachable => self.unreachable += 1,
            Obstacle::Cordoned => self.cordoned += 1,
            Obstacle::Draining => self.draining += 1,
            Obstacle::Label(label) => {
                if self.labels == 0 {
                    self.label = label;
                }
                self.labels += 1;
            }
            Obstacle::Broken(broken) => self.broken.add(broken, name),
            Obstacle::Cpu(free) => self.cpu.add(u64::from(free.0), name),
            Obstacle::Memory(free) => self.memory.add(free.0, name),
            Obstacle::Disk(free) => self.disk.add(free.0, name),
        }
    }
}

fn nodes(count: u32) -> String {
    if count == 1 {
        "1 node".to_owned()
    } else {
        format!("{count} nodes")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use berth_common::units::{Bytes, Millicores};
        let verb = |count: u32, one: &str, many: &str| {
            format!("{} {}", nodes(count), if count == 1 { one } else { many })
        };
        let mut parts = Vec::new();
        let bytes = |lack: &Lack, what: &str, asked: Bytes| {
            let head = verb(lack.nodes, "lacks", "lack");
            format!(
                "{head} {what} (need {asked}, most free is {} on {})",
                Bytes(lack.most),
                lack.on
            )
        };
        if self.memory.nodes > 0 {
            parts.push(bytes(&self.memory, "memory", self.asked.memory));
        }
        if self.cpu.nodes > 0 {
            let head = verb(self.cpu.nodes, "lacks", "lack");
            let most = Millicores(u32::try_from(self.cpu.most).unwrap_or(u32::MAX));
            parts.push(format!(
                "{head} CPU (need {} cores, most free is {most} on {})",
                self.asked.cpu, self.cpu.on
            ));
        }
        if self.disk.nodes > 0 {
            parts.push(bytes(&self.disk, "disk", self.asked.disk));
        }
        if self.labels > 0 {
            parts.push(format!(
                "{} the label {}",
                verb(self.labels, "lacks", "lack"),
                self.label
            ));
        }
        parts.extend(self.broken.parts(nodes));
        for (count, what) in [
            (self.unreachable, "not connected"),
            (self.lost, "lost"),
            (self.cordoned, "cordoned"),
            (self.draining, "draining"),
            (self.private, "private to another tenant"),
        ] {
            if count > 0 {
                parts.push(format!("{} {what}", verb(count, "is", "are")));
            }
        }
        if parts.is_empty() {
            return f.write_str("no node has joined yet: make a token with `berth node token` and join one");
        }
        write!(f, "no node fits: {}", parts.join(", "))
    }
}
