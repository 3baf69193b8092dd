//! What measurements between two nodes mean. Pure.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::api::{Finding, NodePath, PairCheck};
use berth_common::id::NodeId;
use berth_common::model::{HostNumber, NodeRecord};
use berth_common::protocol::Probed;

use crate::cluster::sites;

/// What VXLAN puts around a packet: outer Ethernet, IPv4 or IPv6, UDP, VXLAN header (RFC 7348), bytes.
const OVERHEAD: [u32; 2] = [50, 70];
/// What WireGuard puts around that: outer IPv4 or IPv6, UDP, its own header and tag, bytes.
const SEALED: [u32; 2] = [60, 80];
/// One of fifty pings may get lost anywhere.
const TOLERATED_PERCENT: u32 = 2;

/// A node, and what it measured.
#[derive(Debug, Clone)]
pub struct Side<'a> {
    /// It.
    pub node: &'a NodeRecord,
    /// Its endpoint's number.
    pub host: HostNumber,
    /// Ways to others.
    pub probed: &'a BTreeMap<NodeId, Probed>,
    /// Whom it heard; none: it did not say.
    pub heard: Option<&'a BTreeSet<HostNumber>>,
}

impl Side<'_> {
    fn address(&self) -> String {
        let at = self.node.facts.underlay;
        at.map_or_else(|| "an unknown address".to_owned(), |at| at.address.to_string())
    }

    fn link_mtu(&self) -> Option<u32> {
        self.node.facts.underlay.map(|at| at.mtu)
    }

    /// What goes around a container's packet on this way, bytes.
    fn overhead(&self, path: NodePath) -> u32 {
        let six = usize::from(self.node.facts.underlay.is_some_and(|at| at.address.is_ipv6()));
        let sealed = match path {
            NodePath::Wireguard => SEALED[six],
            _ => 0,
        };
        OVERHEAD[six] + sealed
    }

    /// Whether it heard another; unknown counts as yes, so that nobody is blamed for silence.
    fn heard(&self, other: &Side<'_>) -> bool {
        self.heard.is_none_or(|heard| heard.contains(&other.host))
    }
}

fn finding(problem: String, cure: impl Into<String>) -> Finding {
    Finding {
        problem,
        cure: Some(cure.into()),
    }
}

/// How two nodes stand.
pub fn judge(a: &Side<'_>, b: &Side<'_>) -> PairCheck {
    let names = [a.node.name.clone(), b.node.name.clone()];
    let mut pair = PairCheck {
        nodes: names,
        path: NodePath::Direct,
        latency_us: None,
        loss_percent: None,
        mtu: None,
        expected_mtu: None,
        findings: Vec::new(),
    };
    if let Some(problem) = sites::apart(a.node, b.node) {
        pair.path = NodePath::None;
        pair.findings.push(Finding { problem, cure: None });
        return pair;
    }
    if sites::sealed(a.node, b.node).is_some() {
        pair.path = NodePath::Wireguard;
    }
    let ways = [a.probed.get(&b.node.id), b.probed.get(&a.node.id)];
    let measured: Vec<&Probed> = ways.into_iter().flatten().collect();
    if measured.is_empty() {
        let problem = "nothing was measured: both left while the check went on".to_owned();
        pair.findings.push(finding(problem, "run the check again"));
        return pair;
    }
    pair.expected_mtu = a.link_mtu().zip(b.link_mtu()).map(|(one, other)| {
        let least = one.min(other);
        least.saturating_sub(a.overhead(pair.path))
    });
    let answered = measured.iter().filter(|way| way.network.answered > 0);
    pair.latency_us = answered.map(|way| way.network.mean_us).max();
    pair.loss_percent = measured.iter().map(|way| way.network.loss_percent()).max();
    // The one that carries less.
    pair.mtu = measured.iter().map(|way| way.network_mtu).min().flatten();
    let reached = measured
        .iter()
        .any(|way| way.network.answered > 0 || way.udp || way.tcp);
    pair.findings = match reached {
        false => vec![unreached(a, b, &measured, pair.path)],
        true => flawed(a, b, &measured, &pair),
    };
    pair
}

/// Why nothing comes through.
fn unreached(a: &Side<'_>, b: &Side<'_>, measured: &[&Probed], path: NodePath) -> Finding {
    let (one, other) = (&a.node.name, &b.node.name);
    let asked: Vec<_> = measured.iter().filter_map(|way| way.underlay).collect();
    if !asked.is_empty() && asked.iter().all(|echoes| echoes.answered == 0) && !(a.heard(b) || b.heard(a)) {
        return finding(
            format!(
                "nothing comes through, and not even pings from host to host do ({} and {})",
                a.address(),
                b.address()
            ),
            format!(
                "see whether {one} and {other} have routes to each other (ip route get), and whether a firewall between them drops everything; if their addresses for containers should be others, set `underlay` in agent.toml"
            ),
        );
    }
    let (what, port) = match path {
        NodePath::Wireguard => {
            let port = |side: &Side<'_>| Some(side.node.facts.underlay?.wireguard?.port);
            let ports: BTreeSet<u16> = [port(a), port(b)].into_iter().flatten().collect();
            let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
            ("WireGuard", ports.join(" and "))
        }
        _ => {
            let port = a.node.facts.underlay.map_or(0, |at| at.port);
            ("VXLAN", port.to_string())
        }
    };
    let hosts = match asked.is_empty() {
        true => {
            "whether the hosts reach each other otherwise is not known (net.ipv4.ping_group_range keeps the agents from sending pings)"
        }
        false => "pings from host to host do",
    };
    let cure = format!(
        "let UDP port {port} through in firewalls of both hosts, of the cloud (security groups) and between them"
    );
    let way = match (b.heard(a), a.heard(b)) {
        (false, false) => {
            format!("{what} packets (UDP port {port}) come through in neither direction; {hosts}")
        }
        (false, true) => format!(
            "{what} packets (UDP port {port}) from {one} don't reach {other}, those from {other} reach {one}; {hosts}"
        ),
        (true, false) => format!(
            "{what} packets (UDP port {port}) from {other} don't reach {one}, those from {one} reach {other}; {hosts}"
        ),
        (true, true) => {
            format!("{what} packets (UDP port {port}) arrive on both sides, and answers don't; {hosts}")
        }
    };
    finding(way, cure)
}

/// What is wrong where something comes through.
fn flawed(a: &Side<'_>, b: &Side<'_>, measured: &[&Probed], pair: &PairCheck) -> Vec<Finding> {
    let mut found = Vec::new();
    let (one, other) = (&a.node.name, &b.node.name);
    let lost = pair.loss_percent.unwrap_or(0);
    let payload = |way: &&&Probed| !(way.udp && way.tcp);
    // Where every other ping gets lost, so does the rest.
    if lost < 50
        && let Some(way) = measured.iter().find(payload)
    {
        let what = match (way.udp, way.tcp) {
            (false, false) => "neither datagrams (UDP) nor connections (TCP) do",
            (false, true) => "datagrams (UDP) don't",
            _ => "connections (TCP) don't",
        };
        let whose = match (b.heard(a), a.heard(b)) {
            (false, true) => format!("{one}'s"),
            (true, false) => format!("{other}'s"),
            _ => "one of the two hosts'".to_owned(),
        };
        found.push(finding(
            format!("pings come through and {what}: most likely {whose} network card makes wrong checksums for packets within VXLAN"),
            "set `vxlan_checksum_offload = false` in agent.toml of that host, or give its card a newer driver",
        ));
    }
    if let Some((mine, theirs)) = a.link_mtu().zip(b.link_mtu())
        && mine != theirs
    {
        found.push(finding(
            format!("the links of {one} and {other} have different MTUs, {mine} and {theirs} bytes: what is larger than the smaller is lost"),
            format!("give both links the same: ip link set dev DEVICE mtu {}", mine.min(theirs)),
        ));
    } else if let Some(less) = narrow(a, b, measured, pair) {
        found.push(less);
    }
    if lost > TOLERATED_PERCENT {
        let sent: u32 = measured.iter().map(|way| way.network.sent).sum();
        found.push(finding(
            format!("{lost} % of pings get no answer within a second ({sent} were sent)"),
            "see whether links or hosts between them are overloaded or faulty (ip -s link, ethtool -S)",
        ));
    }
    found
}

/// The way carries less than the links do.
fn narrow(a: &Side<'_>, b: &Side<'_>, measured: &[&Probed], pair: &PairCheck) -> Option<Finding> {
    let (link, expected) = (a.link_mtu()?, pair.expected_mtu?);
    let outside = measured
        .iter()
        .filter(|way| way.underlay.is_some_and(|echoes| echoes.answered > 0))
        .map(|way| way.underlay_mtu);
    let cure = |mtu: u32| {
        format!(
            "set the MTU of both hosts' links to what the way carries (ip link set dev DEVICE mtu {mtu}; the agents follow), or mend the way"
        )
    };
    if let Some(carries) = outside.min().filter(|mtu| *mtu != Some(link)) {
        let problem = match carries {
            Some(carries) => format!(
                "the way between {} and {} carries packets of {carries} bytes at most, the links {link}: larger ones are cut, or lost",
                a.address(),
                b.address()
            ),
            None => format!(
                "the way between {} and {} carries no packet of 1280 bytes",
                a.address(),
                b.address()
            ),
        };
        return Some(finding(problem, cure(carries.unwrap_or(1280))));
    }
    // Where pings from host to host are not answered this still tells.
    let inside = measured
        .iter()
        .filter(|way| way.network.answered > 0)
        .map(|way| way.network_mtu)
        .min()?;
    match inside {
        Some(carries) if carries < expected => Some(finding(
            format!("packets of containers come through up to {carries} bytes, and should up to {expected}"),
            cure(carries + a.overhead(pair.path)),
        )),
        None => Some(finding(
            "no packet of a container of 1280 bytes comes through".to_owned(),
            "see whether something between the hosts drops fragments or large packets",
        )),
        Some(_) => None,
    }
}
