//! The packet filters of networks and of the host, as nftables scripts. Pure.
//!
//! Each script replaces its whole table in one transaction, so there is no moment without rules. Everything in them is a number or
//! an address of our own types: nothing that a person or a container names gets in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use berth_common::model::{Bandwidth, HostNumber, Mac};
use berth_common::units::Bytes;

use super::egress::{ADDRESSES, ADDRESSES6, HOST_LINKS, UPLINK};
use super::plan::{BRIDGE, Overlay, TUNNEL, port_name};
use super::publish::{self, Open, PASSED_ON};
use super::sealed;

/// A table that is berth's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Table {
    /// nftables' word for the kind of packets.
    pub family: &'static str,
    /// What it is called.
    pub name: &'static str,
    /// Several agents of one host differ in their VXLAN port; 0 for a table of a network's own namespace.
    pub port: u16,
}

/// The port of VXLAN (IANA).
pub const VXLAN_PORT: u16 = 4789;

impl Table {
    /// What it is called in nftables.
    pub fn title(&self) -> String {
        match self.port {
            0 | VXLAN_PORT => self.name.to_owned(),
            port => format!("{}_{port}", self.name),
        }
    }
}

/// What reaches the VXLAN port, in the host's namespace.
pub const fn on_underlay(port: u16) -> Table {
    Table {
        family: "inet",
        name: "berth",
        port,
    }
}

/// What containers may reach outside of their networks, in the host's namespace.
pub const fn on_way_out(port: u16) -> Table {
    Table {
        family: "inet",
        name: "berth_out",
        port,
    }
}

/// What passes the bridge of a network.
pub const ON_BRIDGE: Table = Table {
    family: "bridge",
    name: "berth",
    port: 0,
};
/// What reaches the gateway, in a network's namespace.
pub const ON_HOST: Table = Table {
    family: "inet",
    name: "berth",
    port: 0,
};

/// Where services' addresses lead, in a container's namespace.
pub const IN_CONTAINER: Table = Table {
    family: "inet",
    name: "berth",
    port: 0,
};

/// Who may send what from a port: an endpoint speaks with its own hardware and IP addresses alone, and announces no routers.
/// What comes through the tunnel was held against this on the node that it comes from.
pub fn endpoints(overlay: &Overlay) -> String {
    let net = &overlay.subnets;
    let (mut v4, mut arp, mut v6) = (Vec::new(), Vec::new(), Vec::new());
    for host in &overlay.local {
        let (port, mac, address) = (port_name(*host), net.mac(*host), net.address(*host));
        v4.push(format!("\"{port}\" . {mac} . {address}"));
        arp.push(format!("\"{port}\" . {mac} . {mac} . {address}"));
        for address in [net.address6(*host), link_local(mac)] {
            v6.push(format!("\"{port}\" . {mac} . {address}"));
        }
    }
    let mut text = begin(ON_BRIDGE);
    let (outward, inward) = rates(&mut text, &overlay.rates);
    set(&mut text, "v4", "typeof iifname . ether saddr . ip saddr", &v4);
    set(
        &mut text,
        "arps",
        "typeof iifname . ether saddr . arp saddr ether . arp saddr ip",
        &arp,
    );
    set(&mut text, "v6", "typeof iifname . ether saddr . ip6 saddr", &v6);
    let _ = write!(
        text,
        "  chain from_endpoints {{
    type filter hook prerouting priority -300; policy drop;
    iifname \"{TUNNEL}\" accept
{outward}    iifname . ether saddr . ip saddr @v4 accept
    iifname . ether saddr . arp saddr ether . arp saddr ip @arps accept
    ether type ip6 icmpv6 type nd-router-advert counter drop
    iifname . ether saddr . ip6 saddr @v6 accept
    ether type arp counter drop
    ether type ip counter drop
    ether type ip6 counter drop
    counter drop
  }}
{inward}}}
"
    );
    text
}

/// Bounds what endpoints send and receive: what is over is dropped, which makes a sender go slower. Chains are written; what leads to
/// them comes out, for what leaves endpoints and for what reaches them.
fn rates(text: &mut String, rates: &BTreeMap<HostNumber, Bandwidth>) -> (String, String) {
    let mut lead = |way: &str, rate: fn(&Bandwidth) -> Option<Bytes>| {
        let mut ways = Vec::new();
        for (host, bandwidth) in rates {
            let Some(Bytes(rate)) = rate(bandwidth) else {
                continue;
            };
            let port = port_name(*host);
            // Packets of up to 64 KiB come in one piece on the way between containers of a host.
            let burst = (rate / 10).clamp(256 << 10, 1 << 30);
            let _ = write!(
                text,
                "  chain {way}_{port} {{
    limit rate over {rate} bytes/second burst {burst} bytes counter drop
  }}
"
            );
            ways.push(format!("\"{port}\" : jump {way}_{port}"));
        }
        ways.join(", ")
    };
    let outward = lead("sends", |bandwidth| bandwidth.outward);
    let inward = lead("receives", |bandwidth| bandwidth.inward);
    let outward = match outward.is_empty() {
        true => String::new(),
        false => format!("    iifname vmap {{ {outward} }}\n"),
    };
    let inward = match inward.is_empty() {
        true => String::new(),
        false => format!(
            "  chain to_endpoints {{
    type filter hook postrouting priority 0; policy accept;
    oifname vmap {{ {inward} }}
  }}
"
        ),
    };
    (outward, inward)
}

/// What a container may ask of its gateway: whether it is there, names (no more than one process can answer), and to pass on what goes out, and the answers to it. What leaves
/// has the network's address on this host, since containers' own mean nothing there. What the bridge itself carries comes by
/// here, too, wherever somebody loaded `br_netfilter`.
pub fn gateway(overlay: &Overlay) -> String {
    let mut text = begin(ON_HOST);
    let _ = write!(
        text,
        "  chain to_host {{
    type filter hook input priority 0; policy accept;
    iifname \"{UPLINK}\" ct state established,related accept
    iifname \"{UPLINK}\" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    iifname \"{UPLINK}\" counter drop
    iifname != \"{BRIDGE}\" accept
    udp dport 53 limit rate over 2000/second burst 500 packets counter drop
    tcp dport 53 ct state new limit rate over 200/second burst 50 packets counter drop
    meta l4proto {{ tcp, udp }} th dport 53 accept
    icmp type echo-request limit rate 100/second accept
    icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} limit rate 1000/second accept
    ct state established,related accept
    counter reject
  }}
  chain through_host {{
    type filter hook forward priority 0; policy drop;
    iifname \"{BRIDGE}\" oifname \"{BRIDGE}\" accept
    iifname \"{BRIDGE}\" oifname \"{UPLINK}\" accept
    iifname \"{UPLINK}\" oifname \"{BRIDGE}\" ct state established,related accept
    iifname \"{UPLINK}\" oifname \"{BRIDGE}\" ct status dnat accept
    counter
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    oifname \"{UPLINK}\" masquerade
  }}
{}}}
",
        publish::in_network(&overlay.published, UPLINK)
    );
    text
}

/// Where berth itself has the host pass packets on: what comes in there and neither is an answer nor goes to a container is not passed
/// on, as before.
#[derive(Debug, Clone, Copy)]
pub struct Guarded<'a> {
    /// Links, for IPv4.
    pub links: &'a BTreeSet<String>,
    /// All of IPv6.
    pub six: bool,
}

/// Where clouds give credentials away over IPv6: AWS, Google and Oracle have addresses of their own for that, which their networks route.
const METADATA6: &str = "fd00:ec2::254, fd20:ce::254, fd00:c1::a9fe:a9fe";

/// Nodes of other sites, for what is passed on to them.
#[derive(Debug, Clone, Copy)]
pub struct Apart<'a> {
    /// Their addresses.
    pub sealed: &'a BTreeSet<IpAddr>,
    /// This host's own, that they let in.
    pub own: Option<Ipv4Addr>,
}

/// Who may send VXLAN packets to this host: its known nodes. Others' are dropped before the kernel opens them; no other packet is
/// this table's business. `sealed`: nodes of other sites, to and from which they go through WireGuard or not at all.
pub fn host(nodes: &BTreeSet<IpAddr>, sealed: &BTreeSet<IpAddr>, port: u16) -> String {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = nodes.iter().partition(|address| address.is_ipv4());
    let mut text = begin(on_underlay(port));
    set(&mut text, "nodes4", "type ipv4_addr", &v4);
    set(&mut text, "nodes6", "type ipv6_addr", &v6);
    let (mut comes, mut goes) = (String::new(), String::new());
    for (four, kind, word) in [(true, "type ipv4_addr", "ip"), (false, "type ipv6_addr", "ip6")] {
        let of: Vec<_> = sealed
            .iter()
            .filter(|address| address.is_ipv4() == four)
            .collect();
        if of.is_empty() {
            continue;
        }
        let (name, device) = (format!("sealed_{word}"), sealed::device(port));
        set(&mut text, &name, kind, &of);
        let _ = writeln!(
            comes,
            "    iifname != \"{device}\" {word} saddr @{name} fib daddr type local counter drop"
        );
        let _ = writeln!(
            goes,
            "    udp dport {port} oifname != \"{device}\" {word} daddr @{name} counter drop"
        );
    }
    // Before connections are tracked (-200): a flood of strangers' packets fills no table.
    let _ = write!(
        text,
        "  chain from_nodes {{
    type filter hook prerouting priority -300; policy accept;
    udp dport {port} goto from_who
  }}
  chain from_who {{
{comes}    ip saddr @nodes4 notrack accept
    ip6 saddr @nodes6 notrack accept
    fib daddr type local counter drop
    notrack
  }}
  chain to_nodes {{
    type filter hook output priority -300; policy accept;
{goes}    udp dport {port} notrack
  }}
}}
"
    );
    text
}

/// What containers may reach outside of their networks: everything but what is berth's. Not this host, not the brain, not what
/// carries VXLAN (it would seem to be this node's), not another network past its own rules, and not the link-local addresses
/// at which clouds give credentials away.
///
/// `brains`: where the brain is. `six`: the host has IPv6. `open`: published ports; what another node passed on for a container
/// and is for none reaches no program of this host that happens to have the port. From other sites' nodes nothing comes in but
/// VXLAN and what they pass on.
pub fn way_out(
    brains: &BTreeSet<SocketAddr>,
    guarded: Guarded<'_>,
    open: &[Open],
    apart: Apart<'_>,
    six: bool,
    port: u16,
) -> String {
    let links = format!("\"{HOST_LINKS}*\"");
    let brains4 = brains.iter().filter(|at| at.is_ipv4());
    let brains4: Vec<_> = brains4.map(|at| format!("{} . {}", at.ip(), at.port())).collect();
    let brains6 = brains.iter().filter(|at| at.is_ipv6());
    let brains6: Vec<_> = brains6.map(|at| format!("{} . {}", at.ip(), at.port())).collect();
    // Links' names are this host's administrator's; one that nftables would not read as a name is left out.
    let plain = |name: &&String| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let guard6 = match guarded.six {
        true => "    meta nfproto ipv6 ct state new counter drop\n",
        false => "",
    };
    let guarded = guarded.links.iter().filter(plain);
    let guarded: Vec<_> = guarded.map(|name| format!("\"{name}\"")).collect();
    let (device, some_apart) = (sealed::device(port), !apart.sealed.is_empty());
    let when_apart = |rules: String| if some_apart { rules } else { String::new() };
    let from_apart = when_apart(format!(
        "    iifname \"{device}\" udp dport {port} accept
    iifname \"{device}\" ct state established,related accept
    iifname \"{device}\" counter drop
"
    ));
    let through_apart = when_apart(format!(
        "    iifname \"{device}\" ct state established,related accept
    iifname \"{device}\" oifname {links} ct status dnat accept
    iifname \"{device}\" counter drop
"
    ));
    let mut text = begin(on_way_out(port));
    set(&mut text, "brains4", "type ipv4_addr . inet_service", &brains4);
    set(&mut text, "brains6", "type ipv6_addr . inet_service", &brains6);
    set(&mut text, "guarded", "type ifname", &guarded);
    let _ = write!(
        text,
        "  chain to_host {{
    type filter hook input priority -5; policy accept;
{from_apart}    ip dscp {PASSED_ON} counter reject
    ip6 dscp {PASSED_ON} counter reject
    iifname != {links} accept
    icmp type echo-request limit rate 100/second accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    icmpv6 type echo-request limit rate 100/second accept
    ct state established,related accept
    counter reject
  }}
  chain through_host {{
    type filter hook forward priority -5; policy accept;
{through_apart}    iifname {links} goto from_networks
    oifname {links} goto to_networks
    ct status dnat accept
    iifname @guarded ct state new counter drop
{guard6}  }}
  chain from_networks {{
    udp dport {port} counter drop
    oifname {links} ct status dnat accept
    oifname {links} counter drop
    ip daddr 169.254.0.0/16 counter drop
    ip6 daddr {{ fe80::/10, {METADATA6} }} counter drop
    ip daddr . th dport @brains4 counter reject
    ip6 daddr . th dport @brains6 counter reject
    accept
  }}
  chain to_networks {{
    ct state established,related accept
    ct status dnat accept
    counter drop
  }}
  chain leaving {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {ADDRESSES} oifname != {links} masquerade
    ip6 saddr {ADDRESSES6} oifname != {links} masquerade
  }}
{}}}
",
        publish::at_host(open, apart, six, &device)
    );
    text
}

/// Takes a table away; it makes sure first that there is one to delete, so none is fine.
pub fn without(table: Table) -> String {
    let (family, name) = (table.family, table.title());
    format!("table {family} {name} {{}}\ndelete table {family} {name}\n")
}

/// A script that replaces a table begins by taking the old one away, in the same transaction.
pub(super) fn begin(table: Table) -> String {
    format!("{}table {} {} {{\n", without(table), table.family, table.title())
}

pub(super) fn set(text: &mut String, name: &str, kind: &str, elements: &[impl Display]) {
    let _ = write!(text, "  set {name} {{\n    {kind}\n");
    if let Some((first, rest)) = elements.split_first() {
        let _ = write!(text, "    elements = {{ {first}");
        for element in rest {
            let _ = write!(text, ", {element}");
        }
        text.push_str(" }\n");
    }
    text.push_str("  }\n");
}

/// The link-local address that the kernel makes of a hardware address (RFC 4291, appendix A).
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(
        0xfe80,
        0,
        0,
        0,
        word(a ^ 2, b),
        word(c, 0xff),
        word(0xfe, d),
        word(e, f),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_the_kernels() {
        let mac = Mac([0x0a, 0xbe, 0x0a, 0x50, 0, 2]);
        assert_eq!(link_local(mac).to_string(), "fe80::8be:aff:fe50:2");
    }

    #[test]
    fn nodes_are_sorted_into_families_and_empty_sets_have_no_elements() {
        let nodes = BTreeSet::from(["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]);
        let nobody = BTreeSet::new();
        let text = host(&nodes, &nobody, 4789);
        assert!(text.contains("elements = { 192.0.2.1 }") && text.contains("elements = { 2001:db8::1 }"));
        let none = host(&nobody, &nobody, 4789);
        assert!(!none.contains("elements") && !none.contains("sealed"));
    }

    #[test]
    fn what_goes_to_other_sites_and_comes_from_there_has_one_link() {
        let sealed = BTreeSet::from(["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
        let text = host(&sealed, &sealed, 4789);
        for rule in [
            "iifname != \"wgberth\" ip saddr @sealed_ip fib daddr type local counter drop",
            "udp dport 4789 oifname != \"wgberth\" ip daddr @sealed_ip counter drop",
            "iifname != \"wgberth\" ip6 saddr @sealed_ip6 fib daddr type local counter drop",
            "udp dport 4789 oifname != \"wgberth\" ip6 daddr @sealed_ip6 counter drop",
        ] {
            let at = text.find(rule).unwrap_or_else(|| panic!("{rule}: {text}"));
            assert!(text[at..].contains("notrack"), "before anything is let in");
        }
    }
}
