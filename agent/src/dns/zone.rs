//! What a name means to a container. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use berth_common::id::Name;
use berth_common::model::Subnets;
use berth_common::protocol::{Member, Named, names_of};

/// What everything of berth's is called below; `internal` is reserved for private use (ICANN, 2024) and never resolved outside.
pub const DOMAIN: &str = "berth.internal";
/// Below it, a service's name means all its replicas instead of the address that they share.
const ALL: &str = "all";
/// The most addresses in an answer: what fits into a message over TCP with room to spare.
const MOST: usize = 1_000;

/// A network as one who is on it may know it.
#[derive(Debug, Clone)]
pub struct KnownNetwork<'a> {
    /// What its tenant calls it.
    pub name: &'a Name,
    /// Its addresses.
    pub subnets: Subnets,
    /// Services' addresses there, and who takes requests.
    pub names: Option<&'a BTreeSet<Named>>,
}

/// What a container may know: its networks, in the order in which it is on them. Borrowed: a question copies nothing.
#[derive(Debug, Clone, Default)]
pub struct Zone<'a>(pub Vec<KnownNetwork<'a>>);

/// What of a service a name means.
#[derive(Clone, Copy)]
enum Which {
    Service,
    All,
    One(u32),
}

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
    /// `web` means a service's own address on the first network that has it (where it has none, its replicas'), `1.web` one of its
    /// replicas and `all.web` all of them; `web.NETWORK.berth.internal` and so on those of one network. A name of one label never
    /// leaves the host.
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
    /// Addresses of a service (`web`), of one replica (`1.web`) or of all (`all.web`); none if nobody there is called so.
    fn find(&self, labels: &[&str]) -> Option<Vec<(IpAddr, IpAddr)>> {
        let (service, which) = match labels {
            [service] => (*service, Which::Service),
            [ALL, service] => (*service, Which::All),
            [replica, service] => (*service, Which::One(replica.parse().ok()?)),
            _ => return None,
        };
        let service: Name = service.parse().ok()?;
        let mut of = names_of(self.names?, &service).peekable();
        let own = of.peek().is_some_and(|named| named.member == Member::Service);
        let of = of.filter(|named| match (which, named.member) {
            (Which::Service, Member::Service) => true,
            (Which::Service, Member::Replica(_)) => !own,
            (Which::All, Member::Replica(_)) => true,
            (Which::Service | Which::All, _) => false,
            (Which::One(replica), member) => member == Member::Replica(replica),
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
        let service = service.parse().unwrap();
        match replica {
            0 => Named::service(service, HostNumber(host)),
            replica => Named::replica(service, replica, HostNumber(host)),
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
        let second = all(&[
            ("db", 1, 2),
            ("web", 1, 4),
            ("api", 0, 7),
            ("api", 1, 8),
            ("idle", 0, 6),
        ]);
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
            ("all.web", "10.64.0.2 10.64.0.3 10.64.0.9"),
            ("all.web.back.berth.internal", "10.80.0.4"),
            ("db", "10.80.0.2"),
            ("api", "10.80.0.7"),
            ("all.api", "10.80.0.8"),
            ("1.api", "10.80.0.8"),
            ("0.api", "elsewhere"),
            ("idle.back.berth.internal", "10.80.0.6"),
            ("all.idle", "elsewhere"),
            ("all.idle.back.berth.internal", "no name"),
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
