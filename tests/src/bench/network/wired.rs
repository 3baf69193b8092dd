//! The peers: a pair of links alone, and an overlay of two hosts wired by hand with `ip`, `bridge` and `nft`: without any rule, and with the
//! least that does what berth's do (who may send VXLAN, who may speak from a port, one service's address, the way out).

use std::net::IpAddr;

use super::load::Path;
use crate::host::{Host, Lan};

/// Hosts and containers' namespaces of one peer; they go with this.
pub(super) struct Wired {
    pub path: Path,
    _hosts: Vec<Host>,
}

/// Two namespaces with a pair of links between them.
pub(super) fn pair() -> Wired {
    let (a, b) = (Host::new("pair-a"), Host::new("pair-b"));
    a.ip(&format!(
        "link add eth0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
        b.netns()
    ));
    for (host, address) in [(&a, "10.99.0.2"), (&b, "10.99.0.3")] {
        host.ip(&format!("addr add {address}/24 dev eth0"));
        host.ip("link set eth0 up");
    }
    Wired {
        path: Path {
            name: "a pair of links",
            client: a.space(),
            server: b.space(),
            at: IpAddr::from([10, 99, 0, 3]),
        },
        _hosts: vec![a, b],
    }
}

/// Two hosts on a wire at the given addresses, each with a bridge and a VXLAN device in a namespace of its own and one container.
pub(super) fn overlay(lan: &Lan, last: [u8; 2], name: &'static str, ruled: bool) -> Wired {
    let mac = |n: usize| format!("0a:99:00:00:00:0{}", n + 2);
    let mut hosts = Vec::new();
    let mut containers = Vec::new();
    for (n, own) in last.iter().enumerate() {
        let (host, net, container) = (Host::new("hand"), Host::new("hand-net"), Host::new("hand-c"));
        lan.attach(&host, "eth0", *own);
        let other = 1 - n;
        let local = lan.address(*own);
        host.ip(&format!(
            "link add vx0 mtu 1450 type vxlan id 99 local {local} dstport 4790 nolearning"
        ));
        host.ip(&format!("link set vx0 netns {}", net.netns()));
        net.ip("link add br0 mtu 1450 type bridge");
        net.ip(&format!(
            "link add ep0 mtu 1450 type veth peer name eth0 mtu 1450 netns {}",
            container.netns()
        ));
        for link in ["vx0", "ep0"] {
            net.ip(&format!("link set {link} master br0 up"));
        }
        net.ip("link set br0 up");
        container.ip(&format!("link set eth0 address {} up", mac(n)));
        container.ip(&format!("addr add 10.99.1.{}/24 dev eth0", n + 2));
        let forward = |args: String| {
            let done = net.command("bridge").args(args.split(' ')).status();
            assert!(done.is_ok_and(|status| status.success()), "bridge {args}");
        };
        forward(format!("fdb replace {} dev vx0 master static", mac(other)));
        forward(format!(
            "fdb replace {} dev vx0 self dst {} permanent",
            mac(other),
            lan.address(last[other])
        ));
        container.ip(&format!(
            "neigh replace 10.99.1.{} lladdr {} dev eth0",
            other + 2,
            mac(other)
        ));
        if ruled {
            rules(&host, &net, &container, n, &lan.address(last[other]));
        }
        containers.push(container.space());
        hosts.extend([host, net, container]);
    }
    let mut containers = containers.into_iter();
    let (client, server) = (containers.next().expect("two"), containers.next().expect("two"));
    Wired {
        path: Path {
            name,
            client,
            server,
            at: IpAddr::from([10, 99, 1, 3]),
        },
        _hosts: hosts,
    }
}

fn rules(host: &Host, net: &Host, container: &Host, n: usize, other: &str) {
    host.nft(&format!(
        "table inet hand {{
  chain in {{
    type filter hook prerouting priority -300; policy accept;
    udp dport 4790 ip saddr {other} notrack accept
    udp dport 4790 drop
  }}
  chain out {{
    type filter hook output priority -300; policy accept;
    udp dport 4790 notrack
  }}
  chain world {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr 10.99.1.0/24 masquerade
  }}
}}
"
    ));
    let (mac, address) = (format!("0a:99:00:00:00:0{}", n + 2), format!("10.99.1.{}", n + 2));
    net.nft(&format!(
        "table bridge hand {{
  chain from {{
    type filter hook prerouting priority -300; policy drop;
    iifname \"vx0\" accept
    iifname \"ep0\" ether saddr {mac} ip saddr {address} accept
    iifname \"ep0\" ether saddr {mac} arp saddr ip {address} accept
  }}
}}
"
    ));
    container.nft(
        "table inet hand {
  chain to {
    type nat hook output priority -100; policy accept;
    ip daddr 10.99.1.77 dnat ip to 10.99.1.3
  }
}
",
    );
}
