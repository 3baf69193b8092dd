//! `berth top`: load of nodes and containers against what is reserved and enforced.

use berth_common::api::UsageView;

use super::text::{bytes, cores, percent, span};
use super::{Style, cell, table};

/// Both tables.
pub fn top(style: Style, view: &UsageView) -> String {
    let nodes = view
        .nodes
        .iter()
        .map(|node| {
            let usage = node.usage.clone().unwrap_or_default();
            vec![
                cell(&node.name),
                cell(format!("{}/{}", cores(usage.cpu), node.capacity.cpu)),
                cell(percent(usage.cpu.map(u64::from), node.capacity.cpu.0.into())),
                cell(cores(usage.cpu_containers)),
                cell(cores(usage.cpu_foreign)),
                cell(node.expected.as_ref().map_or_else(
                    || "-".into(),
                    |load| format!("{} <{}", cores(Some(load.cpu)), cores(Some(load.cpu_high))),
                )),
                cell(format!("{}/{}", node.reserved.cpu, node.allocatable.cpu)),
                cell(format!("{}/{}", bytes(usage.memory), node.capacity.memory)),
                cell(percent(usage.memory, node.capacity.memory.0)),
                cell(format!("{}/{}", node.reserved.memory, node.allocatable.memory)),
                cell(format!("{}/{}", bytes(usage.disk), node.capacity.disk)),
                cell(format!("{} {}", bytes(usage.net_rx_bps), bytes(usage.net_tx_bps))),
                cell(node.age_ms.map_or_else(|| "-".into(), span)),
            ]
        })
        .collect();
    let header = [
        "NODE",
        "CPU",
        "CPU%",
        "BERTH",
        "FOREIGN",
        "EXPECTED",
        "RESERVED",
        "MEMORY",
        "MEM%",
        "RESERVED",
        "DISK",
        "NET RX TX/s",
        "SEEN",
    ];
    let mut out = table(style, &header, nodes);
    out.push('\n');
    let containers = view
        .containers
        .iter()
        .map(|load| {
            let usage = load.usage.as_ref();
            let limits = &load.limits;
            let cpu = usage.and_then(|u| u.cpu);
            let memory = usage.and_then(|u| u.memory);
            vec![
                cell(&load.name),
                cell(&load.tenant_name),
                cell(&load.node_name),
                cell(format!("{}/{}", cores(cpu), limits.cpu)),
                cell(percent(cpu.map(u64::from), limits.cpu.0.into())),
                cell(load.reservation.cpu),
                cell(
                    usage
                        .and_then(|u| u.throttled)
                        .map_or_else(|| "-".into(), |t| format!("{}%", t / 100)),
                ),
                cell(format!("{}/{}", bytes(memory), limits.memory)),
                cell(percent(memory, limits.memory.0)),
                cell(load.reservation.memory),
                cell(format!(
                    "{}/{}",
                    usage
                        .and_then(|u| u.pids)
                        .map_or_else(|| "-".into(), |p| p.to_string()),
                    limits.pids
                )),
                cell(format!("{}/{}", bytes(usage.and_then(|u| u.disk)), limits.disk)),
                cell(format!(
                    "{} {}",
                    bytes(usage.and_then(|u| u.read_bps)),
                    bytes(usage.and_then(|u| u.write_bps))
                )),
            ]
        })
        .collect();
    let header = [
        "CONTAINER",
        "TENANT",
        "NODE",
        "CPU/LIMIT",
        "CPU%",
        "RESERVED",
        "THROTTLED",
        "MEMORY/LIMIT",
        "MEM%",
        "RESERVED",
        "PIDS",
        "DISK/LIMIT",
        "IO R W/s",
    ];
    out.push_str(&table(style, &header, containers));
    out
}
