//! Refusals: every node's obstacle, added up into one sentence with numbers (R9).

mod kinds;

use std::fmt;

use berth_common::model::Reservation;

use super::constraints::Told;
use super::filter::Obstacle;
use super::forecast::STALE_SECS;
use super::load::Watermarks;

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

/// Nodes that are too warm, and the one that is least so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Warm {
    nodes: u32,
    least: u32,
    on: String,
}

impl Warm {
    fn add(&mut self, percent: u32, name: &str) {
        if self.nodes == 0 || percent < self.least {
            self.least = percent;
            name.clone_into(&mut self.on);
        }
        self.nodes += 1;
    }

    /// `marks`: what a placement may leave in use, percent.
    fn part(&self, resource: &str, marks: f32) -> Option<String> {
        let head = match self.nodes {
            0 => return None,
            1 => "1 node is".to_owned(),
            n => format!("{n} nodes are"),
        };
        Some(format!(
            "{head} too busy ({resource} in use there would reach {} percent at least, on {}, of {} that a placement may leave)",
            self.least,
            self.on,
            (marks * 100.0) as u32
        ))
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
    silent: u32,
    warm_cpu: Warm,
    warm_memory: Warm,
    /// No node was looked at, since the service's policy was not heard.
    unheard: Option<Unheard>,
}

/// Why a policy was not heard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Unheard {
    why: String,
    /// It is only being asked now.
    asking: bool,
}

impl Refusal {
    /// No obstacle met yet.
    pub fn of(asked: Reservation) -> Self {
        Self {
            asked,
            ..Self::default()
        }
    }

    /// The service's policy was not heard; `asking`: since it is only being asked now.
    pub fn unheard(why: String, asking: bool) -> Self {
        Self {
            unheard: Some(Unheard { why, asking }),
            ..Self::default()
        }
    }

    /// Whether it is no answer yet: the service's policy is being asked.
    pub fn is_asking(&self) -> bool {
        self.unheard.as_ref().is_some_and(|unheard| unheard.asking)
    }

    /// Whether it may be otherwise as soon as load falls or is told again, with nothing else changed.
    pub fn may_pass(&self) -> bool {
        self.silent > 0 || self.warm_cpu.nodes > 0 || self.warm_memory.nodes > 0
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
            Obstacle::Silent => self.silent += 1,
            Obstacle::WarmCpu(percent) => self.warm_cpu.add(percent, name),
            Obstacle::WarmMemory(percent) => self.warm_memory.add(percent, name),
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
        if let Some(unheard) = &self.unheard {
            return f.write_str(&unheard.why);
        }
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
        let marks = Watermarks::default();
        parts.extend(self.warm_cpu.part("CPU", marks.schedule));
        parts.extend(self.warm_memory.part("memory", marks.memory));
        if self.silent > 0 {
            let head = verb(self.silent, "has", "have");
            parts.push(format!(
                "{head} not told the load for {STALE_SECS} seconds (`journalctl -u berth-agent` there says why)"
            ));
        }
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
        write!(f, "no node fits: {}", parts.join(", "))?;
        if self.warm_cpu.nodes > 0 || self.warm_memory.nodes > 0 {
            f.write_str("; it is placed as soon as load falls: `berth top` shows what is in use, another node helps at once")?;
        }
        Ok(())
    }
}
