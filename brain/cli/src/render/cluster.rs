//! Nodes, tenants, tokens, registries, contexts and events as tables.

use berth_common::api::{EventView, NetworkView, NodeView, PoolView, RegistryView, TokenView};
use berth_common::model::{NodeKind, NodeState, Quota, Role, TenantRecord, UnixMillis};

use super::text::{age, clean, moment, span};
use super::{Style, cell, table};
use crate::config::ConfigFile;

/// One word for how a node stands.
pub fn node_state(view: &NodeView) -> &'static str {
    match view.state {
        NodeState::Lost => "lost",
        NodeState::Silent => "silent",
        NodeState::Ready if view.record.draining => "draining",
        NodeState::Ready if view.record.cordoned => "cordoned",
        NodeState::Ready => "ready",
    }
}

/// `berth node ls`.
pub fn nodes(style: Style, items: &[NodeView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            let owner = match (&view.record.kind, &view.tenant_name) {
                (NodeKind::Shared, _) => "shared".to_owned(),
                (NodeKind::Private { .. }, Some(name)) => format!("private:{name}"),
                (NodeKind::Private { tenant }, None) => format!("private:{tenant}"),
            };
            let (taken, all) = (view.taken.reserved, view.allocatable);
            vec![
                cell(&view.record.name),
                style.state(node_state(view)),
                cell(owner),
                cell(&view.record.pool),
                cell(view.taken.containers),
                cell(format!("{}/{}", taken.cpu, all.cpu)),
                cell(format!("{}/{}", taken.memory, all.memory)),
                cell(view.address.as_deref().unwrap_or("-")),
                cell(view.silent_ms.map_or_else(|| "never".into(), span)),
                cell(&view.record.facts.agent_version),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "STATUS",
        "OWNER",
        "POOL",
        "CONTAINERS",
        "CPU RESERVED",
        "MEMORY RESERVED",
        "ADDRESS",
        "HEARD",
        "AGENT",
    ];
    table(style, &header, rows)
}

/// `berth pool ls`.
pub fn pools(style: Style, items: &[PoolView]) -> String {
    let rows = items
        .iter()
        .map(|pool| {
            let (taken, all) = (pool.reserved, pool.allocatable);
            vec![
                cell(&pool.name),
                cell(pool.nodes),
                cell(format!("{}%", pool.overcommit.cpu_percent)),
                cell(format!("{}%", pool.overcommit.memory_percent)),
                cell(format!("{}/{}", taken.cpu, all.cpu)),
                cell(format!("{}/{}", taken.memory, all.memory)),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "NODES",
        "CPU OVERCOMMIT",
        "MEMORY OVERCOMMIT",
        "CPU RESERVED",
        "MEMORY RESERVED",
    ];
    table(style, &header, rows)
}

/// `berth network ls`.
pub fn networks(style: Style, now: UnixMillis, items: &[NetworkView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            vec![
                cell(&view.name),
                cell(&view.cidr),
                cell(&view.cidr6),
                cell(view.endpoints),
                cell(view.nodes.len()),
                cell(
                    view.services
                        .iter()
                        .map(ToString::to_string)
                        .collect::<Vec<_>>()
                        .join(","),
                ),
                cell(age(now, view.created_at)),
            ]
        })
        .collect();
    let header = ["NAME", "IPV4", "IPV6", "ENDPOINTS", "NODES", "SERVICES", "AGE"];
    table(style, &header, rows)
}

/// `berth tenant ls`.
pub fn tenants(style: Style, now: UnixMillis, items: &[TenantRecord]) -> String {
    let rows = items
        .iter()
        .map(|tenant| {
            let Quota {
                cpu,
                memory,
                disk,
                containers,
            } = tenant.quota;
            let or_none = |zero: bool, text: String| cell(if zero { "unlimited".into() } else { text });
            vec![
                cell(&tenant.name),
                or_none(cpu.0 == 0, cpu.to_string()),
                or_none(memory.0 == 0, memory.to_string()),
                or_none(disk.0 == 0, disk.to_string()),
                or_none(containers == 0, containers.to_string()),
                cell(tenant.cpu_weight),
                cell(if tenant.privileged { "yes" } else { "no" }),
                cell(age(now, tenant.created_at)),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "CPU",
        "MEMORY",
        "DISK",
        "CONTAINERS",
        "WEIGHT",
        "PRIVILEGED",
        "AGE",
    ];
    table(style, &header, rows)
}

/// `berth tenant token --ls`.
pub fn tokens(style: Style, now: UnixMillis, items: &[TokenView]) -> String {
    let rows = items
        .iter()
        .map(|token| {
            vec![
                cell(token.id),
                cell(match token.role {
                    Role::Admin => "admin",
                    Role::Tenant { .. } => "tenant",
                    Role::Metrics => "metrics",
                }),
                cell(&token.note),
                cell(token.expires_at.map_or_else(|| "never".into(), moment)),
                cell(age(now, token.created_at)),
            ]
        })
        .collect();
    table(style, &["ID", "ROLE", "NOTE", "EXPIRES", "AGE"], rows)
}

/// Registries with credentials.
pub fn registries(style: Style, items: &[RegistryView]) -> String {
    let rows = items
        .iter()
        .map(|view| vec![cell(&view.registry), cell(&view.username)])
        .collect();
    table(style, &["REGISTRY", "USER"], rows)
}

/// `berth context ls`.
pub fn contexts(style: Style, config: &ConfigFile) -> String {
    let rows = config
        .contexts
        .iter()
        .map(|(name, context)| {
            vec![
                cell(if config.current.as_ref() == Some(name) {
                    "*"
                } else {
                    ""
                }),
                cell(name),
                cell(&context.server),
                cell(context.tenant.as_ref().map_or("default", |t| t.as_str())),
                cell(if context.token.is_some() { "yes" } else { "no" }),
            ]
        })
        .collect();
    table(style, &["", "NAME", "SERVER", "TENANT", "TOKEN"], rows)
}

/// One event on one line.
pub fn event(event: &EventView) -> String {
    let tenant = event.tenant.as_ref().map_or("-", |name| name.as_str());
    format!(
        "{}  {:<10}  {:<10}  {}  {}\n",
        moment(event.at),
        clean(&event.kind),
        tenant,
        clean(&event.subject),
        clean(&event.text)
    )
}
