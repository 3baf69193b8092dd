//! What a name means to a container. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use berth_common::id::Name;
use berth_common::model::Subnets;
use berth_common::protocol::Named;

/// What everything of berth's is called below; `internal` is reserved for private use (ICANN, 2024) and never resolved outside.
pub const DOMAIN: &str = "berth.internal";
/// The most addresses in an answer: what fits into a message over TCP with room to spare.
const MOST: usize = 1_000;

/// A network as one who is on it may know it.
#[derive(Debug, Clone)]
pub struct KnownNetwork<'a> {
    /// What its tenant calls it.
    pub name: &'a Name,
    /// Its addresses.
    pub subnets: Subnets,
    /// Who takes requests there.
    pub names: Option<&'a BTreeSet<Named>>,
}

/// What a container may know: its networks, in the order in which it is on them. Borrowed: a question copies nothing.
#[derive(Debug, Clone, Default)]
pub struct Zone<'a>(pub Vec<KnownNetwork<'a>>);

/// What is asked of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Anything else.
    Other,
}

/// What there is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Addresses.
    Addresses(Vec<IpAddr>),
    /// The name is there, and has nothing of this kind.
    NoData,
    /// There is no such name.
    NoName,
    /// The name is not berth's: others may know it.
    Elsewhere,
}

impl Zone<'_> {
    /// The answer to a question; `labels` as they are in the name, from its left, in lower case.
    ///
    /// `web` and `1.web` mean a service and one of its replicas on the first network that has them, `web.NETWORK.berth.internal` and
    /// `1.web.NETWORK.berth.internal` those of one network. A name of one label never leaves the host.
    pub fn answer(&self, labels: &[&str], kind: Kind) -> Answer {
        let below = labels.strip_suffix(&["berth", "internal"]);
        let found = match below {
            Some([]) => return Answer::NoData,
            Some([name]) => match self.network(name) {
                // The network itself: it has no address, but names below it.
                Some(_) => return Answer::NoData,
                None => None,
            },
            Some([service @ .., network]) => self.network(network).and_then(|known| known.find(service)),
            None => self.0.iter().find_map(|known| known.find(labels)),
        };
        match (found, below) {
            (Some(addresses), _) => of_kind(addresses, kind),
            (None, Some(_)) => Answer::NoName,
            (None, None) if labels.len() == 1 => Answer::NoName,
            (None, None) => Answer::Elsewhere,
        }
    }

    fn network(&self, name: &str) -> Option<&KnownNetwork<'_>> {
        self.0.iter().find(|known| known.name.as_str() == name)
    }
}

impl KnownNetwork<'_> {
    /// Endpoints of a service (`web`) or of one replica (`1.web`); none if nobody there is called so.
    fn find(&self, labels: &[&str]) -> Option<Vec<(IpAddr, IpAddr)>> {
        let (service, replica) = match labels {
            [service] => (*service, None),
            [replica, service] => (*service, Some(replica.parse::<u32>().ok()?)),
            _ => return None,
        };
        let service: Name = service.parse().ok()?;
        let from = Named {
            replica: replica.unwrap_or(0),
            ..Named::first(service.clone())
        };
        let of = self.names?.range(from..);
        let of = of.take_while(|named| {
            named.service == service && replica.is_none_or(|replica| named.replica == replica)
        });
        let addresses: Vec<_> = of
            .take(MOST)
            .map(|named| {
                let (four, six) = (
                    self.subnets.address(named.host),
                    self.subnets.address6(named.host),
                );
                (IpAddr::from(four), IpAddr::from(six))
            })
            .collect();
        (!addresses.is_empty()).then_some(addresses)
    }
}

fn of_kind(addresses: Vec<(IpAddr, IpAddr)>, kind: Kind) -> Answer {
    let all = addresses.into_iter();
    match kind {
        Kind::A => Answer::Addresses(all.map(|(four, _)| four).collect()),
        Kind::Aaaa => Answer::Addresses(all.map(|(_, six)| six).collect()),
        Kind::Other => Answer::NoData,
    }
}

#[cfg(test)]
mod tests {
    use berth_common::model::HostNumber;

    use super::*;

    fn named(service: &str, replica: u32, host: u32) -> Named {
        Named {
            service: service.parse().unwrap(),
            replica,
            host: HostNumber(host),
        }
    }

    fn asked(labels: &[&str], kind: Kind) -> Answer {
        let all = |names: &[(&str, u32, u32)]| {
            names
                .iter()
                .map(|(s, r, h)| named(s, *r, *h))
                .collect::<BTreeSet<_>>()
        };
        let first = all(&[("web", 1, 2), ("web", 2, 3), ("web", 2, 9), ("web-2", 1, 5)]);
        let second = all(&[("db", 1, 2), ("web", 1, 4)]);
        let (one, other): (Name, Name) = ("default".parse().unwrap(), "back".parse().unwrap());
        let network = |cidr: &str| Subnets::new(cidr.parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
        let zone = Zone(vec![
            KnownNetwork {
                name: &one,
                subnets: network("10.64.0.0/16"),
                names: Some(&first),
            },
            KnownNetwork {
                name: &other,
                subnets: network("10.80.0.0/16"),
                names: Some(&second),
            },
        ]);
        zone.answer(labels, kind)
    }

    #[test]
    fn names_table() {
        let cases = [
            ("web", "10.64.0.2 10.64.0.3 10.64.0.9"),
            ("1.web", "10.64.0.2"),
            ("2.web", "10.64.0.3 10.64.0.9"),
            ("web-2", "10.64.0.5"),
            ("db", "10.80.0.2"),
            ("web.back.berth.internal", "10.80.0.4"),
            ("1.web.back.berth.internal", "10.80.0.4"),
            ("web.default.berth.internal", "10.64.0.2 10.64.0.3 10.64.0.9"),
            ("db.default.berth.internal", "no name"),
            ("web.other.berth.internal", "no name"),
            ("3.web", "elsewhere"),
            ("3.web.default.berth.internal", "no name"),
            ("x.1.web.default.berth.internal", "no name"),
            ("berth.internal", "no data"),
            ("back.berth.internal", "no data"),
            ("nobody", "no name"),
            ("WEB!", "no name"),
            ("example.org", "elsewhere"),
            ("web.example.org", "elsewhere"),
            ("internal", "no name"),
            ("", "elsewhere"),
        ];
        for (name, want) in cases {
            let labels: Vec<&str> = name.split('.').filter(|label| !label.is_empty()).collect();
            let said = match asked(&labels, Kind::A) {
                Answer::Addresses(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
                Answer::NoData => "no data".into(),
                Answer::NoName => "no name".into(),
                Answer::Elsewhere => "elsewhere".into(),
            };
            assert_eq!(said, want, "{name}");
        }
        assert_eq!(
            asked(&["1", "web"], Kind::Aaaa),
            Answer::Addresses(vec!["fd00::2".parse().unwrap()])
        );
        assert_eq!(asked(&["web"], Kind::Other), Answer::NoData);
        assert_eq!(Zone::default().answer(&["web"], Kind::A), Answer::NoName);
    }
}
