//! What a check of the network found, and a packet's way.

use std::fmt::Write as _;

use berth_common::api::{NodePath, PairCheck, Trace};
use berth_common::error::Problem;
use berth_common::id::Name;
use berth_common::protocol::Verdict;
use serde::Serialize;

use super::text::clean;
use super::{Style, cell, table};
/// A node that took no part.
#[derive(Debug, Serialize)]
pub struct Absent {
    /// Which.
    pub node: Name,
    /// Why.
    pub problem: Problem,
}

/// What a check found.
#[derive(Debug, Default, Serialize)]
pub struct Checked {
    /// Each two nodes.
    pub pairs: Vec<PairCheck>,
    /// Nodes that took no part.
    pub absent: Vec<Absent>,
}

/// `berth network check`.
pub fn checked(style: Style, checked: &Checked) -> String {
    let rows = checked.pairs.iter().map(|pair| {
        let or = |value: Option<String>| cell(value.unwrap_or_else(|| "-".to_owned()));
        let state = if pair.findings.is_empty() { "ok" } else { "failed" };
        vec![
            cell(&pair.nodes[0]),
            cell(&pair.nodes[1]),
            cell(path(pair)),
            or(pair.latency_us.map(latency)),
            or(pair.loss_percent.map(|percent| format!("{percent} %"))),
            or(size(pair)),
            style.state(state),
        ]
    });
    let header = [
        "NODE",
        "NODE",
        "PATH",
        "LATENCY",
        "LOSS",
        "LARGEST PACKET",
        "STATUS",
    ];
    let mut text = table(style, &header, rows.collect());
    for pair in &checked.pairs {
        for finding in &pair.findings {
            let _ = writeln!(
                text,
                "\n{} and {}: {}",
                pair.nodes[0],
                pair.nodes[1],
                clean(&finding.problem)
            );
            if let Some(cure) = &finding.cure {
                let _ = writeln!(text, "  {}", clean(cure));
            }
        }
    }
    for absent in &checked.absent {
        let _ = writeln!(
            text,
            "\n{} takes no part: {}",
            absent.node,
            clean(&absent.problem.detail)
        );
        if let Some(cure) = &absent.problem.cure {
            let _ = writeln!(text, "  {}", clean(cure));
        }
    }
    text
}

const fn path(pair: &PairCheck) -> &'static str {
    match pair.path {
        NodePath::Direct => "direct",
        NodePath::Wireguard => "wireguard",
        NodePath::None => "none",
        NodePath::Unknown => "?",
    }
}

fn latency(us: u32) -> String {
    format!("{}.{:02} ms", us / 1000, us % 1000 / 10)
}

fn size(pair: &PairCheck) -> Option<String> {
    let mtu = pair.mtu?;
    Some(match pair.expected_mtu {
        Some(expected) if expected != mtu => format!("{mtu} of {expected}"),
        _ => mtu.to_string(),
    })
}

/// `berth network trace`.
pub fn trace(style: Style, trace: &Trace) -> String {
    let rows = trace.hops.iter().map(|hop| {
        vec![
            cell(hop.node.as_ref().map_or("-", Name::as_str)),
            cell(clean(&hop.place)),
            style.state(match hop.verdict {
                Verdict::Passes => "ok",
                Verdict::Drops => "dropped",
                Verdict::Unknown => "unknown",
            }),
            cell(clean(&hop.text)),
        ]
    });
    let mut text = table(
        style,
        &["NODE", "PLACE", "STATUS", "WHAT BECOMES OF IT"],
        rows.collect(),
    );
    if let Some(cure) = trace.hops.last().and_then(|hop| hop.cure.as_ref()) {
        let _ = writeln!(text, "\n{}", clean(cure));
    }
    text
}
