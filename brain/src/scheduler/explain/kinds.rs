//! Kinds of obstacles, each by a name that stays the same whatever it is told like: for counting.

use super::Refusal;

impl Refusal {
    /// What stood against at least one node. `no_node` where there is none at all.
    pub fn kinds(&self) -> Vec<&'static str> {
        if self.unheard.is_some() {
            return vec!["policy"];
        }
        let own = [
            (self.memory.nodes, "memory"),
            (self.cpu.nodes, "cpu"),
            (self.disk.nodes, "disk"),
            (self.labels, "label"),
            (self.warm_cpu.nodes, "busy_cpu"),
            (self.warm_memory.nodes, "busy_memory"),
            (self.silent, "silent"),
            (self.unreachable, "unreachable"),
            (self.lost, "lost"),
            (self.cordoned, "cordoned"),
            (self.draining, "draining"),
            (self.private, "private"),
        ];
        let met = own.into_iter().filter(|(nodes, _)| *nodes > 0);
        let mut kinds: Vec<_> = met.map(|(_, kind)| kind).chain(self.broken.kinds()).collect();
        if kinds.is_empty() {
            kinds.push("no_node");
        }
        kinds
    }
}
