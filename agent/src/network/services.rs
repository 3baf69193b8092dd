//! Services' own addresses, as a container's network namespace has them: a connection to one goes to one of its replicas. Pure.
//!
//! The choice is made where the connection begins, so no node in between knows of it: what travels is addressed to the replica.
//! The kernel's connection tracking keeps a connection where it went first, whatever becomes of the others: so connections to a
//! replica that leaves go on until it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};

use berth_common::id::Name;
use berth_common::model::{HostNumber, Subnets, Vni};
use berth_common::protocol::{Member, Named, endpoints_of};

use super::publish::choice;
use super::ruleset::{IN_CONTAINER, begin, set};

/// Most replicas of a service that connections are spread over: tables are loaded in tens of milliseconds up to some thousand
/// elements. Of a service with more, those beyond get none.
const MOST: usize = 4_096;

/// An endpoint's addresses.
type Addresses = (Ipv4Addr, Ipv6Addr);

/// A service as a container on its network reaches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// The network.
    vni: Vni,
    /// The service's number there.
    host: HostNumber,
    /// Its own addresses.
    address: Addresses,
    /// Those of its replicas that take requests.
    replicas: Vec<Addresses>,
}

/// Services with addresses of their own on a network.
pub fn on_network(vni: Vni, subnets: &Subnets, names: &BTreeSet<Named>) -> Vec<Service> {
    let addresses = |host| (subnets.address(host), subnets.address6(host));
    let mut services: Vec<Service> = Vec::new();
    // A service's own address comes before its replicas; without one, they are not grouped.
    let mut own = None;
    for named in names {
        match named.member {
            Member::Service => {
                own = Some(&named.service);
                services.push(Service {
                    vni,
                    host: named.host,
                    address: addresses(named.host),
                    replicas: Vec::new(),
                });
            }
            Member::Replica(_) if own == Some(&named.service) => {
                if let Some(service) = services.last_mut()
                    && service.replicas.len() < MOST
                {
                    service.replicas.push(addresses(named.host));
                }
            }
            Member::Replica(_) | Member::Idle(_) => {}
        }
    }
    services
}

/// Who may open connections to a container, of those on its networks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    subnets: Vec<Subnets>,
    from: BTreeSet<Addresses>,
}

impl Guard {
    /// Lets in containers of services on one more network.
    pub fn add(&mut self, subnets: Subnets, names: &BTreeSet<Named>, services: &[Name]) {
        self.subnets.push(subnets);
        let hosts = services.iter().flat_map(|service| endpoints_of(names, service));
        self.from
            .extend(hosts.map(|host| (subnets.address(host), subnets.address6(host))));
    }

    /// What is from none of its networks was published for it, or is an answer.
    fn write(&self, text: &mut String) {
        let (fours, sixes): (Vec<_>, Vec<_>) = self.from.iter().copied().unzip();
        set(text, "from4", "type ipv4_addr", &fours);
        set(text, "from6", "type ipv6_addr", &sixes);
        let list = |of: fn(&Subnets) -> String| self.subnets.iter().map(of).collect::<Vec<_>>().join(", ");
        let _ = write!(
            text,
            "  chain from_others {{
    type filter hook input priority 0; policy accept;
    iif lo accept
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept
    ip saddr {{ {} }} accept
    ip6 saddr {{ {} }} accept
    ip saddr @from4 accept
    ip6 saddr @from6 accept
    ip saddr {{ {} }} goto refused
    ip6 saddr {{ fe80::/10, {} }} goto refused
  }}
  chain refused {{
    meta l4proto tcp reject with tcp reset
    reject
  }}
",
            list(|net| net.address(Subnets::GATEWAY).to_string()),
            list(|net| net.address6(Subnets::GATEWAY).to_string()),
            list(|net| net.v4().to_string()),
            list(|net| net.v6().to_string()),
        );
    }
}

/// The table of a container's namespace; `guard`: who may come in, where that is not everybody of its networks. Who asks a service that
/// nobody answers for is refused at once, as by a host without a listener, instead of waiting for an answer that can't come.
pub fn in_container(services: &[Service], guard: Option<&Guard>) -> String {
    let (mut idle4, mut idle6) = (Vec::new(), Vec::new());
    let mut ways = BTreeMap::new();
    let mut text = begin(IN_CONTAINER);
    for service in services {
        let (four, six) = service.address;
        if service.replicas.is_empty() {
            idle4.push(four);
            idle6.push(six);
            continue;
        }
        let chain = format!("s{}_{}", service.vni, service.host.0);
        let (fours, sixes): (Vec<_>, Vec<_>) = service.replicas.iter().copied().unzip();
        let _ = write!(
            text,
            "  chain {chain} {{
    meta nfproto ipv4 dnat ip to {}
    dnat ip6 to {}
  }}
",
            choice(&fours),
            choice(&sixes)
        );
        ways.insert(chain, (four, six));
    }
    let to = |address: fn(&Addresses) -> String| {
        let all = ways.iter();
        let all: Vec<_> = all
            .map(|(chain, both)| format!("{} : goto {chain}", address(both)))
            .collect();
        all.join(", ")
    };
    if !ways.is_empty() {
        let _ = write!(
            text,
            "  chain to_services {{
    type nat hook output priority -100; policy accept;
    ip daddr vmap {{ {} }}
    ip6 daddr vmap {{ {} }}
  }}
",
            to(|(four, _)| four.to_string()),
            to(|(_, six)| six.to_string())
        );
    }
    // Every chain costs each packet something: none without need.
    if !idle4.is_empty() {
        set(&mut text, "idle4", "type ipv4_addr", &idle4);
        set(&mut text, "idle6", "type ipv6_addr", &idle6);
        text.push_str(
            "  chain to_nobody {
    type filter hook output priority 0; policy accept;
    ip daddr @idle4 goto nobody
    ip6 daddr @idle6 goto nobody
  }
  chain nobody {
    meta l4proto tcp reject with tcp reset
    reject
  }
",
        );
    }
    if let Some(guard) = guard {
        guard.write(&mut text);
    }
    text.push_str("}\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services(names: &[(&str, u32, u32)]) -> Vec<Service> {
        let subnets = Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
        let names = names.iter().map(|(service, replica, host)| {
            let service = service.parse().unwrap();
            match replica {
                0 => Named::service(service, HostNumber(*host)),
                replica => Named::replica(service, *replica, HostNumber(*host)),
            }
        });
        on_network(7.try_into().unwrap(), &subnets, &names.collect())
    }

    #[test]
    fn each_service_with_an_address_leads_to_its_own_replicas() {
        let all = services(&[
            ("db", 1, 2),
            ("web", 0, 9),
            ("web", 1, 3),
            ("web", 2, 4),
            ("web2", 0, 8),
            ("web3", 1, 5),
        ]);
        assert_eq!(all.len(), 2);
        let text = in_container(&all, None);
        assert!(
            text.contains("chain s7_9 {\n    meta nfproto ipv4 dnat ip to numgen random mod 2 map { 0 : 10.64.0.3, 1 : 10.64.0.4 }\n    dnat ip6 to numgen random mod 2 map { 0 : fd00::3, 1 : fd00::4 }\n  }"),
            "{text}"
        );
        assert!(
            text.contains(
                "    ip daddr vmap { 10.64.0.9 : goto s7_9 }\n    ip6 daddr vmap { fd00::9 : goto s7_9 }\n"
            ),
            "{text}"
        );
        assert!(
            text.contains("elements = { 10.64.0.8 }") && text.contains("elements = { fd00::8 }"),
            "{text}"
        );
        assert!(
            !text.contains("10.64.0.2 ") && !text.contains("10.64.0.5"),
            "{text}"
        );
        let one = in_container(&services(&[("web", 0, 9), ("web", 1, 3)]), None);
        assert!(
            one.contains("dnat ip to 10.64.0.3\n    dnat ip6 to fd00::3\n"),
            "{one}"
        );
    }

    #[test]
    fn nothing_to_choose_from_makes_no_map() {
        let none = in_container(&services(&[("web", 0, 9)]), None);
        assert!(
            !none.contains("vmap") && none.contains("elements = { 10.64.0.9 }"),
            "{none}"
        );
        assert!(!in_container(&[], None).contains("elements"));
    }

    #[test]
    fn more_replicas_than_a_map_should_have_are_cut() {
        let mut many = vec![("web", 0, 9)];
        many.extend((1..5_000).map(|n| ("web", n, n + 10)));
        assert!(in_container(&services(&many), None).contains("mod 4096 map"));
    }

    #[test]
    fn a_guard_lets_in_whom_it_names_whether_they_take_requests_or_not() {
        let subnets = Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
        let name = |text: &str| text.parse::<Name>().unwrap();
        let names = BTreeSet::from([
            Named::service(name("web"), HostNumber(9)),
            Named::replica(name("web"), 1, HostNumber(3)),
            Named::idle(name("web"), 2, HostNumber(4)),
            Named::replica(name("other"), 1, HostNumber(5)),
        ]);
        let mut guard = Guard::default();
        guard.add(subnets, &names, &[name("web"), name("nobody")]);
        let text = in_container(&[], Some(&guard));
        assert!(text.contains("elements = { 10.64.0.3, 10.64.0.4 }"), "{text}");
        assert!(text.contains("ip saddr { 10.64.0.1 } accept"), "{text}");
        assert!(text.contains("ip saddr { 10.64.0.0/16 } goto refused"), "{text}");
        let mut shut = Guard::default();
        shut.add(subnets, &names, &[]);
        assert!(!in_container(&[], Some(&shut)).contains("elements"));
    }
}
