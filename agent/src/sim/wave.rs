//! Plausible load without sampling: slow waves, each container with its own period and phase. Pure.

use std::hash::{DefaultHasher, Hash, Hasher};

use berth_agent::usage::Sample;
use berth_common::id::ContainerId;
use berth_common::model::{Capacity, Limits, UnixMillis};
use berth_common::protocol::{ContainerUsage, NodeUsage};

/// Between 0 and 1; the same for the same container and time.
fn level(id: ContainerId, at: UnixMillis) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    let seed = hasher.finish();
    // One to three minutes.
    let period = 60_000 + seed % 120_000;
    let place = (at.0.wrapping_add(seed >> 32) % period) as f64 / period as f64;
    0.5 + 0.5 * (place * std::f64::consts::TAU).sin()
}

/// One container's load, always below its limits.
pub fn container(id: ContainerId, limits: &Limits, at: UnixMillis) -> ContainerUsage {
    let level = level(id, at);
    let part = |whole: u64, low: f64, span: f64| (whole as f64 * (low + span * level)) as u64;
    ContainerUsage {
        id,
        at,
        cpu: Some(part(u64::from(limits.cpu.0), 0.02, 0.6) as u32),
        throttled: Some(if level > 0.9 { 150 } else { 0 }),
        memory: Some(part(limits.memory.0, 0.3, 0.4)),
        oom_kills: Some(0),
        pids: Some(limits.pids.clamp(1, 7)),
        disk: Some(limits.disk.0 / 10),
        read_bps: Some(part(limits.io.read_bps.0, 0.0, 0.01)),
        write_bps: Some(part(limits.io.write_bps.0, 0.0, 0.01)),
        net_rx_bps: Some(part(1 << 20, 0.01, 0.2)),
        net_tx_bps: Some(part(1 << 20, 0.01, 0.4)),
        cpu_minute: None,
        memory_minute_max: None,
        psi_cpu: None,
        psi_memory: None,
        psi_io: None,
    }
}

/// A node with its containers, and a little that is foreign.
pub fn node(capacity: &Capacity, containers: Vec<ContainerUsage>, at: UnixMillis) -> Sample {
    let sum = |of: fn(&ContainerUsage) -> Option<u64>| containers.iter().filter_map(of).sum::<u64>();
    let cpu = u32::try_from(sum(|c| c.cpu.map(u64::from)))
        .unwrap_or(u32::MAX)
        .min(capacity.cpu.0);
    let memory = sum(|c| c.memory).min(capacity.memory.0);
    let (cpu_foreign, memory_foreign) = (capacity.cpu.0 / 50, capacity.memory.0 / 50);
    Sample {
        at,
        node: NodeUsage {
            cpu: Some(cpu.saturating_add(cpu_foreign).min(capacity.cpu.0)),
            cpu_containers: Some(cpu),
            cpu_foreign: Some(cpu_foreign.min(capacity.cpu.0 - cpu)),
            memory: Some(memory.saturating_add(memory_foreign).min(capacity.memory.0)),
            memory_containers: Some(memory),
            memory_foreign: Some(memory_foreign.min(capacity.memory.0 - memory)),
            disk: Some(sum(|c| c.disk).min(capacity.disk.0)),
            disk_read_bps: Some(sum(|c| c.read_bps)),
            disk_write_bps: Some(sum(|c| c.write_bps)),
            net_rx_bps: Some(sum(|c| c.net_rx_bps)),
            net_tx_bps: Some(sum(|c| c.net_tx_bps)),
            ..NodeUsage::default()
        },
        containers,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_agent::fakes;

    #[test]
    fn loads_move_stay_below_limits_and_repeat() {
        let (limits, id) = (Limits::default(), ContainerId::from_bytes([9; 10]));
        let of = |secs: u64| container(id, &limits, UnixMillis(secs * 1000));
        let cpus: std::collections::BTreeSet<_> = (0..90).map(|secs| of(secs).cpu).collect();
        assert!(cpus.len() > 20, "{cpus:?}");
        for secs in 0..200 {
            let now = of(secs);
            assert_eq!(now, of(secs));
            assert!(now.cpu.unwrap() <= limits.cpu.0 && now.memory.unwrap() <= limits.memory.0);
        }
    }

    #[test]
    fn a_node_is_never_fuller_than_full() {
        let capacity = fakes::facts().capacity;
        let limits = Limits::default();
        let many = (0..200).map(|n| container(ContainerId::from_bytes([n; 10]), &limits, UnixMillis(5)));
        let sample = node(&capacity, many.collect(), UnixMillis(5));
        assert_eq!(sample.node.cpu, Some(capacity.cpu.0));
        assert_eq!(sample.node.memory, Some(capacity.memory.0));
        assert_eq!(sample.node.cpu_foreign, Some(0));
    }
}
