//! Services, containers and images as tables.

use berth_common::api::{ContainerView, ImageView, ServiceView};
use berth_common::model::{PublishedPort, RunState, UnixMillis};

use super::text::{age, clean};
use super::{Style, cell, table};

/// Published ports in one cell.
fn ports(ports: &[PublishedPort]) -> String {
    let all: Vec<String> = ports.iter().map(ToString::to_string).collect();
    all.join(", ")
}

/// `berth service ls`.
pub fn services(style: Style, now: UnixMillis, items: &[ServiceView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            let spec = &view.record.spec;
            let state = if view.record.run == RunState::Stopped {
                "stopped"
            } else if view.outdated > 0 {
                "updating"
            } else if view.running >= spec.replicas {
                "running"
            } else {
                "waiting"
            };
            vec![
                cell(&spec.name),
                cell(spec.image.familiar()),
                cell(format!("{}/{}", view.running, spec.replicas)),
                style.state(state),
                cell(ports(&spec.ports)),
                cell(age(now, view.record.created_at)),
                cell(view.problem.as_deref().unwrap_or("")),
            ]
        })
        .collect();
    table(
        style,
        &["NAME", "IMAGE", "REPLICAS", "STATUS", "PORTS", "AGE", "PROBLEM"],
        rows,
    )
}

/// `berth ps`.
pub fn containers(style: Style, now: UnixMillis, items: &[ContainerView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            let observed = view.observed.as_ref();
            let since = observed
                .and_then(|o| o.started_at)
                .unwrap_or(view.record.created_at);
            vec![
                cell(&view.name),
                cell(view.record.id),
                cell(view.record.spec.image.familiar()),
                style.state(&view.status),
                cell(view.node_name.as_ref().map_or("-", |name| name.as_str())),
                cell(view.addresses.first().map_or("-", |at| at.ipv4.as_str())),
                cell(age(now, since)),
                cell(observed.map_or(0, |o| o.restarts)),
                cell(reason(view).unwrap_or_default()),
            ]
        })
        .collect();
    let header = [
        "NAME", "ID", "IMAGE", "STATUS", "NODE", "ADDRESS", "SINCE", "RESTARTS", "REASON",
    ];
    table(style, &header, rows)
}

/// Why a container isn't simply running, from whoever knows best.
pub fn reason(view: &ContainerView) -> Option<String> {
    view.reason
        .as_ref()
        .or(view.record.waiting.as_ref())
        .map(|text| clean(text))
}

/// `berth image ls`.
pub fn images(style: Style, now: UnixMillis, items: &[ImageView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            let nodes: Vec<&str> = view.nodes.iter().map(|name| name.as_str()).collect();
            vec![
                cell(view.reference.familiar()),
                cell(&view.digest.hex()[..12]),
                cell(view.size),
                cell(if view.loaded { "loaded" } else { "registry" }),
                cell(if nodes.is_empty() {
                    "-".to_owned()
                } else {
                    nodes.join(",")
                }),
                cell(view.used_by),
                cell(age(now, view.created_at)),
            ]
        })
        .collect();
    table(
        style,
        &["IMAGE", "DIGEST", "SIZE", "FROM", "NODES", "USED BY", "AGE"],
        rows,
    )
}
