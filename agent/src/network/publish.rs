//! Published ports: what of them is to be done on this host and in its networks. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use berth_common::model::{HostNumber, Protocol, Subnets, Vni};
use berth_common::protocol::{Named, Neighbours, Published, endpoints_of, replicas_of};
use ipnet::Ipv4Net;

use super::egress::{HOST_LINKS, Transit};
use super::ruleset::{Apart, set};
use super::sealed::MARK;

/// Ports in a row that are open at this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// At the host.
    pub ports: RangeInclusive<u16>,
    /// Whose they are, for people.
    pub service: String,
    /// Whose containers answer here.
    pub here: Option<Here>,
    /// Other nodes that answer, and how many containers of theirs do.
    pub elsewhere: Vec<(Ipv4Addr, u32)>,
    /// Those of them that do over IPv6.
    pub elsewhere6: Vec<(Ipv6Addr, u32)>,
}

/// A network here whose containers answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Here {
    /// Its number on this host.
    pub transit: Transit,
    /// Its addresses.
    pub subnet: Ipv4Net,
    /// How many containers take requests; 0: there are only such as begin, are unhealthy or leave, which answer what was passed on.
    pub replicas: u32,
}

/// Endpoints here whose containers have not ended, by network.
pub type Local = BTreeMap<Vni, (Subnets, BTreeSet<HostNumber>)>;

/// Ports in a row that lead from a network's uplink to its containers here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inward {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// At the host.
    pub ports: RangeInclusive<u16>,
    /// The first in the containers.
    pub target: u16,
    /// The containers: those that take requests, or else all that have not ended.
    pub replicas: Vec<(Ipv4Addr, Ipv6Addr)>,
}

/// Most ways that one request may take: a service with more is spread in proportion.
const SLOTS: u32 = 256;
/// Says "to a container of yours" to the node that a request is passed on to, lest it be passed on again: a differentiated services
/// code point for local use (RFC 2474, pool 3). One who sets it from outside only has it answered where it came in.
pub(super) const PASSED_ON: u8 = 53;

/// Replicas of a published service that are here.
struct Replicas {
    /// How many of them take requests.
    takers: usize,
    /// Whom what was passed on goes to: those that take requests. Where none does, all others that have not ended: nodes hear of a
    /// change one after the other, so another may send here before this one knows that a replica takes requests, or after it knows
    /// that one does no more. Both serve.
    answer: Vec<HostNumber>,
}

/// Who of a published service is here.
fn here(
    published: &Published,
    names: &BTreeMap<Vni, BTreeSet<Named>>,
    local: &BTreeSet<HostNumber>,
) -> Replicas {
    let (nobody, is_here) = (BTreeSet::new(), |host: &HostNumber| local.contains(host));
    let names = names.get(&published.vni).unwrap_or(&nobody);
    let takers = replicas_of(names, &published.service).map(|(_, host)| host);
    let takers: Vec<_> = takers.filter(is_here).collect();
    Replicas {
        takers: takers.len(),
        answer: match takers.is_empty() {
            true => endpoints_of(names, &published.service).filter(is_here).collect(),
            false => takers,
        },
    }
}

/// What is open at this host. `local`: endpoints here, `transits`: networks here.
pub fn open(known: &Neighbours, local: &Local, transits: &BTreeMap<Vni, Transit>) -> Vec<Open> {
    let open = known.published.iter().filter_map(|one| {
        let (ports, _) = one.ports()?;
        let at = local.get(&one.vni).and_then(|(subnets, hosts)| {
            let replicas = here(one, &known.names, hosts);
            (!replicas.answer.is_empty()).then_some(Here {
                transit: *transits.get(&one.vni)?,
                subnet: subnets.v4(),
                replicas: u32::try_from(replicas.takers).unwrap_or(u32::MAX),
            })
        });
        let elsewhere = one.elsewhere.iter().filter_map(|on| match on.address {
            IpAddr::V4(four) => Some((four, on.replicas)),
            IpAddr::V6(_) => None,
        });
        let elsewhere6 = one
            .elsewhere
            .iter()
            .filter_map(|on| Some((on.address6?, on.replicas)));
        Some(Open {
            protocol: one.protocol,
            ports,
            service: one.service.to_string(),
            here: at,
            elsewhere: elsewhere.collect(),
            elsewhere6: elsewhere6.collect(),
        })
    });
    open.collect()
}

/// What leads into a network here.
pub fn inward(known: &Neighbours, vni: Vni, subnets: &Subnets, local: &BTreeSet<HostNumber>) -> Vec<Inward> {
    let here = known.published.iter().filter(|one| one.vni == vni);
    let ports = here.filter_map(|one| {
        let (ports, target) = one.ports()?;
        let replicas = self::here(one, &known.names, local).answer.into_iter();
        Some(Inward {
            protocol: one.protocol,
            ports,
            target,
            replicas: replicas
                .map(|host| (subnets.address(host), subnets.address6(host)))
                .collect(),
        })
    });
    ports.filter(|one| !one.replicas.is_empty()).collect()
}

impl Open {
    /// The network here whose containers take requests.
    fn takes(&self) -> Option<Here> {
        self.here.filter(|here| here.replicas > 0)
    }

    fn ways(&self) -> Vec<Ipv4Addr> {
        let here = self.takes().map(|here| (here.transit.address(), here.replicas));
        in_proportion(here, &self.elsewhere)
    }

    fn ways6(&self) -> Vec<Ipv6Addr> {
        let here = self.takes().map(|here| (here.transit.address6(), here.replicas));
        in_proportion(here, &self.elsewhere6)
    }
}

/// Each place as often as it has replicas.
fn in_proportion<A: Copy>(here: Option<(A, u32)>, elsewhere: &[(A, u32)]) -> Vec<A> {
    let all: Vec<_> = here.into_iter().chain(elsewhere.iter().copied()).collect();
    let total: u64 = all.iter().map(|(_, replicas)| u64::from(*replicas)).sum();
    let ways = all.iter().flat_map(|(to, replicas)| {
        let share = match total <= u64::from(SLOTS) {
            true => u64::from(*replicas),
            false => (u64::from(*replicas) * u64::from(SLOTS) / total).max(1),
        };
        std::iter::repeat_n(*to, usize::try_from(share).unwrap_or(1))
    });
    ways.collect()
}

/// As nftables writes it.
fn range(ports: &RangeInclusive<u16>) -> String {
    match ports.start() == ports.end() {
        true => ports.start().to_string(),
        false => format!("{}-{}", ports.start(), ports.end()),
    }
}

/// One of several, by chance; the kernel keeps a connection where it went first.
pub(super) fn choice(ways: &[impl std::fmt::Display]) -> String {
    if let [only] = ways {
        return only.to_string();
    }
    let mut text = format!("numgen random mod {} map {{ ", ways.len());
    for (at, way) in ways.iter().enumerate() {
        let _ = write!(text, "{}{at} : {way}", if at == 0 { "" } else { ", " });
    }
    text.push_str(" }");
    text
}

/// What is passed on to other sites' nodes, and answers to what they passed on, goes through their device: a mark leads it there, and
/// nothing marked leaves by another.
fn sealed(text: &mut String, apart: Apart<'_>, device: &str) -> bool {
    let addresses = apart.sealed.iter().filter(|address| address.is_ipv4());
    let addresses: Vec<_> = addresses.map(ToString::to_string).collect();
    if addresses.is_empty() {
        return false;
    }
    set(text, "sealed", "type ipv4_addr", &addresses);
    let links = format!("\"{HOST_LINKS}*\"");
    let passed_on = "ct status dnat meta l4proto . ip daddr . th dport @passed_on ip daddr @sealed";
    let _ = write!(
        text,
        "  chain seal_others {{
    type filter hook prerouting priority -90; policy accept;
    iifname \"{device}\" ct mark set ct mark | {MARK}
    iifname {links} ct direction reply ct mark & {MARK} != 0 meta mark set mark | {MARK}
    ct direction original {passed_on} meta mark set mark | {MARK}
  }}
  chain seal_own {{
    type route hook output priority -90; policy accept;
    ct direction original {passed_on} meta mark set mark | {MARK}
  }}
  chain seal_all {{
    type filter hook postrouting priority -140; policy accept;
    meta mark & {MARK} != 0 oifname != \"{device}\" counter drop
  }}
"
    );
    true
}

/// A chain into networks here, of those that a port has.
fn lead_here(text: &mut String, chain: &str, open: &[Open], of: fn(&Open) -> Option<Here>, six: bool) {
    let _ = writeln!(text, "  chain {chain} {{");
    for one in open {
        let Some(Here { transit, .. }) = of(one) else {
            continue;
        };
        let (protocol, ports, to) = (one.protocol, range(&one.ports), transit.address());
        let _ = writeln!(text, "    {protocol} dport {ports} dnat ip to {to}");
        if six {
            let to = transit.address6();
            let _ = writeln!(text, "    {protocol} dport {ports} dnat ip6 to {to}");
        }
    }
    text.push_str("  }\n");
}

/// The host's chains and sets. What the host asks at 127.0.0.1 is answered here or not at all: packets from there never leave it.
/// `six`: the host has IPv6.
pub fn at_host(open: &[Open], apart: Apart<'_>, six: bool, device: &str) -> String {
    // Every chain costs each packet something: none without need.
    if open.is_empty() {
        return String::new();
    }
    let (mut elsewhere, mut elsewhere6) = (BTreeSet::new(), BTreeSet::new());
    for one in open {
        let (protocol, ports) = (one.protocol, range(&one.ports));
        let four = one.elsewhere.iter().map(|(node, _)| node.to_string());
        elsewhere.extend(four.map(|node| format!("{protocol} . {node} . {ports}")));
        let six = one.elsewhere6.iter().map(|(node, _)| node.to_string());
        elsewhere6.extend(six.map(|node| format!("{protocol} . {node} . {ports}")));
    }
    let mut text = String::new();
    for (name, kind, of) in [
        ("passed_on", "ipv4_addr", elsewhere),
        ("passed_on6", "ipv6_addr", elsewhere6),
    ] {
        let _ = write!(
            text,
            "  set {name} {{\n    type inet_proto . {kind} . inet_service\n    flags interval\n"
        );
        if !of.is_empty() {
            let of: Vec<_> = of.into_iter().collect();
            let _ = writeln!(text, "    elements = {{ {} }}", of.join(", "));
        }
        text.push_str("  }\n");
    }
    let own = match sealed(&mut text, apart, device) {
        true => apart.own,
        false => None,
    };
    lead_here(&mut text, "passed_on_here", open, |one| one.here, six);
    lead_here(&mut text, "published_here", open, Open::takes, six);
    let _ = write!(
        text,
        "  chain published {{\n    ip dscp {PASSED_ON} goto passed_on_here\n    ip6 dscp {PASSED_ON} goto passed_on_here\n"
    );
    for one in open {
        let (ways, ports, protocol) = (one.ways(), range(&one.ports), one.protocol);
        if !ways.is_empty() {
            let _ = writeln!(text, "    {protocol} dport {ports} dnat ip to {}", choice(&ways));
        }
        let ways = one.ways6();
        if six && !ways.is_empty() {
            let _ = writeln!(text, "    {protocol} dport {ports} dnat ip6 to {}", choice(&ways));
        }
    }
    let links = format!("\"{HOST_LINKS}*\"");
    // The device has no address to take.
    let from_own = own.map_or_else(String::new, |own| {
        format!("    ct status dnat oifname \"{device}\" snat ip to {own}\n")
    });
    let _ = write!(
        text,
        "  }}
  chain asked_by_others {{
    type nat hook prerouting priority -105; policy accept;
    fib daddr type local jump published
  }}
  chain asked_here {{
    type nat hook output priority -105; policy accept;
    ip daddr 127.0.0.0/8 goto published_here
    ip6 daddr ::1 return
    fib daddr type local jump published
  }}
  chain mark_passed_on {{
    type filter hook postrouting priority -150; policy accept;
    ct status dnat meta l4proto . ip daddr . th dport @passed_on ip dscp set {PASSED_ON}
    ct status dnat meta l4proto . ip6 daddr . th dport @passed_on6 ip6 dscp set {PASSED_ON}
  }}
  chain answers_to {{
    type nat hook postrouting priority 95; policy accept;
{from_own}    ct status dnat meta l4proto . ip daddr . th dport @passed_on masquerade
    ct status dnat meta l4proto . ip6 daddr . th dport @passed_on6 masquerade
    ct status dnat oifname {links} ip saddr {{ 127.0.0.0/8, {} }} masquerade
    ct status dnat oifname {links} ip6 saddr {} masquerade
",
        super::egress::ADDRESSES,
        super::egress::ADDRESSES6
    );
    // A client whose own address is one of the network's would be answered inside of it.
    let networks: BTreeSet<_> = open.iter().filter_map(|one| one.here).collect();
    for here in networks {
        let link = here.transit.host_link();
        let _ = writeln!(
            text,
            "    ct status dnat oifname \"{link}\" ip saddr {} masquerade",
            here.subnet
        );
    }
    text.push_str("  }\n");
    text
}

/// To containers, of one kind of addresses.
fn lead_in(text: &mut String, one: &Inward, kind: &str, replicas: &[String]) {
    let protocol = one.protocol;
    if one.target == *one.ports.start() {
        let ports = range(&one.ports);
        let _ = writeln!(
            text,
            "    {protocol} dport {ports} dnat {kind} to {}",
            choice(replicas)
        );
        return;
    }
    for (port, target) in one.ports.clone().zip(one.target..=u16::MAX) {
        let to = match replicas {
            [only] if kind == "ip6" => format!("dnat ip6 to [{only}]:{target}"),
            [only] => format!("dnat {kind} to {only}:{target}"),
            some => {
                let some: Vec<_> = some
                    .iter()
                    .map(|replica| format!("{replica} . {target}"))
                    .collect();
                format!("dnat {kind} addr . port to {}", choice(&some))
            }
        };
        let _ = writeln!(text, "    {protocol} dport {port} {to}");
    }
}

/// A network's chains: from its uplink to its containers here.
pub fn in_network(inward: &[Inward], uplink: &str) -> String {
    if inward.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "  chain inward {{\n    type nat hook prerouting priority -100; policy accept;\n    iifname != \"{uplink}\" accept\n"
    );
    for one in inward {
        let (four, six): (Vec<_>, Vec<_>) = one.replicas.iter().copied().unzip();
        let four: Vec<String> = four.iter().map(Ipv4Addr::to_string).collect();
        let six: Vec<String> = six.iter().map(Ipv6Addr::to_string).collect();
        lead_in(&mut text, one, "ip", &four);
        lead_in(&mut text, one, "ip6", &six);
    }
    text.push_str("  }\n");
    text
}

#[cfg(test)]
mod tests;
