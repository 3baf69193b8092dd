//! The way out of a network: a pair of links from its namespace to the host, and what of the host is switched on for it. Pure.
//!
//! Networks may have the same addresses, and the host may route them elsewhere; so each has, on each host, a number of its own and
//! with it a link-local address that nothing else has. What leaves a network takes that address in the network's namespace, and
//! the host's in the host's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

/// A network's end of the pair, in its namespace.
pub const UPLINK: &str = "up0";
/// How the host's ends begin.
pub const HOST_LINKS: &str = "berth";
/// Where the addresses come from: link-local ones (RFC 3927), so no router anywhere passes them on; the clouds' metadata
/// addresses (169.254.169.254, 169.254.170.2 and others) are not among them.
pub const ADDRESSES: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 64, 0), 18);
/// The host's address on each of its ends.
pub const HOST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 64, 1);

/// The same over IPv6: unique local addresses (RFC 4193) that mean something on one host alone.
pub const ADDRESSES6: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfd5b, 0xe4a7, 0x9c31, 0x64, 0, 0, 0, 0), 64);
/// The host's on each of its ends.
pub const HOST_ADDRESS6: Ipv6Addr = Ipv6Addr::new(0xfd5b, 0xe4a7, 0x9c31, 0x64, 0, 0, 0, 1);

/// A network's number on its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Transit(u16);

impl Transit {
    const FIRST: u16 = 2;
    const LAST: u16 = (1 << (32 - 18)) - 2;
    /// How many there are.
    pub const MOST: u16 = Self::LAST - Self::FIRST + 1;

    /// The first that is not taken; none if all are.
    pub fn free(taken: impl Fn(Self) -> bool) -> Option<Self> {
        (Self::FIRST..=Self::LAST)
            .map(Self)
            .find(|number| !taken(*number))
    }

    /// The network's address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(ADDRESSES.network()) | u32::from(self.0))
    }

    /// The same over IPv6.
    pub fn address6(self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(ADDRESSES6.network()) | u128::from(self.0))
    }

    /// What the host's end is called.
    pub fn host_link(self) -> String {
        format!("{HOST_LINKS}{}", self.0)
    }

    /// The number that a host's link is called after.
    pub fn of_host_link(name: &str) -> Option<Self> {
        let number = Self(name.strip_prefix(HOST_LINKS)?.parse().ok()?);
        let valid = (Self::FIRST..=Self::LAST).contains(&number.0) && number.host_link() == name;
        valid.then_some(number)
    }
}

/// Whether the host passes packets on, as its kernel says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`: somebody decided it for the whole host.
    pub all: bool,
    /// Of each link that has an IPv4 address: what comes in there may be passed on.
    pub links: BTreeMap<String, bool>,
    /// `net.ipv6.conf.all.forwarding`: of IPv6 only all of a host can pass packets on (ip6_forward).
    pub six: bool,
    /// Whether each link takes routers' announcements (`accept_ra`): 1, only while the host passes nothing on; 2, always.
    pub announced: BTreeMap<String, u8>,
}

/// What berth itself switched: kept on disk, to be switched back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Switched {
    /// Links on which IPv4 packets are passed on.
    pub links: BTreeSet<String>,
    /// The host passes IPv6 packets on.
    pub six: bool,
    /// Links that take routers' announcements whether it does or not: else the host would lose its own way out.
    pub announced: BTreeSet<String>,
}

/// As it is read: what knew of IPv4 alone kept a list.
#[derive(Deserialize)]
#[serde(untagged)]
enum Stored {
    Links(BTreeSet<String>),
    All {
        links: BTreeSet<String>,
        six: bool,
        announced: BTreeSet<String>,
    },
}

impl From<Stored> for Switched {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Links(links) => Self {
                links,
                ..Self::default()
            },
            Stored::All {
                links,
                six,
                announced,
            } => Self {
                links,
                six,
                announced,
            },
        }
    }
}

/// What containers' networks need to be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing any more.
    Nothing,
    /// IPv4 alone: the host has no IPv6 address that others reach.
    Four,
    /// IPv6, too.
    Both,
}

/// What to switch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// To be on.
    pub on: BTreeSet<String>,
    /// To be off again.
    pub off: BTreeSet<String>,
    /// All of IPv6, on or off.
    pub six: Option<bool>,
    /// What links do with routers' announcements.
    pub announced: BTreeMap<String, u8>,
    /// What is berth's doing from now on.
    pub ours: Switched,
}

impl Forwarding {
    /// What to switch, where containers have a way out or nobody needs it any more.
    ///
    /// IPv4 link by link, not for the host: there it would stay on for everybody, also when berth has gone.
    pub fn plan(&self, ours: &Switched, wanted: Wanted) -> Switches {
        let mut plan = self.plan_four(ours, wanted != Wanted::Nothing);
        self.plan_six(ours, wanted, &mut plan);
        plan
    }

    /// Where it is on by somebody else's doing it is theirs, and so is what their links take.
    fn plan_six(&self, ours: &Switched, wanted: Wanted, plan: &mut Switches) {
        if wanted == Wanted::Nothing {
            if ours.six {
                plan.six = self.six.then_some(false);
                let held = ours
                    .announced
                    .iter()
                    .filter(|name| self.announced.get(*name) == Some(&2));
                plan.announced = held.map(|name| (name.clone(), 1)).collect();
            }
            return;
        }
        // Nor is it switched on for nobody, after a reboot that took the host's IPv6 along.
        let needless = wanted == Wanted::Four && !(ours.six && self.six);
        if needless || (self.six && !ours.six) {
            return;
        }
        plan.six = (!self.six).then_some(true);
        let only_then = self.announced.iter().filter(|(_, takes)| **takes == 1);
        plan.announced = only_then.map(|(name, _)| (name.clone(), 2)).collect();
        let still = ours
            .announced
            .iter()
            .filter(|name| self.announced.contains_key(*name));
        plan.ours.announced = still.chain(plan.announced.keys()).cloned().collect();
        plan.ours.six = true;
    }

    fn plan_four(&self, ours: &Switched, wanted: bool) -> Switches {
        if self.all {
            return Switches::default();
        }
        if !wanted {
            let off = ours
                .links
                .iter()
                .filter(|name| self.links.get(*name) == Some(&true));
            return Switches {
                off: off.cloned().collect(),
                ..Switches::default()
            };
        }
        let off = self.links.iter().filter(|(_, on)| !**on);
        let on: BTreeSet<String> = off.map(|(name, _)| name.clone()).collect();
        let still = ours.links.iter().filter(|name| self.links.contains_key(*name));
        Switches {
            ours: Switched {
                links: still.chain(&on).cloned().collect(),
                ..Switched::default()
            },
            on,
            ..Switches::default()
        }
    }
}

impl Switched {
    /// The links that lead out of this host: what comes in there and is nobody's answer is not to be passed on for berth's sake.
    pub fn guarded(&self) -> impl Iterator<Item = &String> {
        self.links
            .iter()
            .filter(|name| Transit::of_host_link(name).is_none())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_are_links_and_addresses() {
        let first = Transit::free(|_| false).unwrap();
        assert_eq!(
            (first.address().to_string(), first.host_link()),
            ("169.254.64.2".into(), "berth2".into())
        );
        assert_eq!(Transit::free(|_| true), None);
        assert_eq!(Transit(Transit::LAST).address().to_string(), "169.254.127.254");
        assert_eq!(first.address6().to_string(), "fd5b:e4a7:9c31:64::2");
        assert!(ADDRESSES.contains(&HOST_ADDRESS) && ADDRESSES6.contains(&HOST_ADDRESS6));
        for metadata in ["169.254.169.254", "169.254.170.2", "169.254.0.23"] {
            assert!(!ADDRESSES.contains(&metadata.parse::<Ipv4Addr>().unwrap()));
        }
        for name in [
            "berth1",
            "berth02",
            "berth",
            "berth99999",
            "berth-2",
            "eth2",
            "berth16383",
        ] {
            assert_eq!(Transit::of_host_link(name), None, "{name}");
        }
    }

    #[test]
    fn what_an_older_agent_kept_is_read() {
        let old: Switched = serde_json::from_str(r#"["eth0"]"#).unwrap();
        assert_eq!((old.links.len(), old.six), (1, false));
        let text = serde_json::to_string(&Switched { six: true, ..old }).unwrap();
        let new: Switched = serde_json::from_str(&text).unwrap();
        assert_eq!((new.links.len(), new.six), (1, true));
    }

    proptest! {
        #[test]
        fn what_berth_switched_on_is_switched_off_again_and_nothing_else(
            links in proptest::collection::btree_map("(eth|berth|docker)[2-6]", any::<bool>(), 0..8), rounds in 1_usize..4,
            six in any::<bool>(), announced in proptest::collection::btree_map("(eth|berth|docker)[2-6]", 0_u8..3, 0..8),
            wanted in prop_oneof![Just(Wanted::Four), Just(Wanted::Both)],
        ) {
            let mut seen = Forwarding { all: false, links: links.clone(), six, announced: announced.clone() };
            let mut ours = Switched::default();
            let apply = |seen: &mut Forwarding, ours: &mut Switched, wanted| {
                let plan = seen.plan(ours, wanted);
                plan.on.iter().for_each(|name| { seen.links.insert(name.clone(), true); });
                plan.off.iter().for_each(|name| { seen.links.insert(name.clone(), false); });
                seen.six = plan.six.unwrap_or(seen.six);
                seen.announced.extend(plan.announced);
                *ours = plan.ours;
            };
            for _ in 0..rounds {
                apply(&mut seen, &mut ours, wanted);
                prop_assert!(seen.links.values().all(|on| *on));
                prop_assert_eq!(seen.six, six || wanted == Wanted::Both);
                // A host that begins to pass packets on goes on taking what it took.
                let lost = seen.announced.values().any(|takes| *takes == 1);
                prop_assert!(!(ours.six && lost));
                prop_assert_eq!(ours.six, !six && wanted == Wanted::Both);
            }
            prop_assert!(ours.guarded().all(|name| !name.starts_with(HOST_LINKS)));
            apply(&mut seen, &mut ours, Wanted::Nothing);
            prop_assert_eq!((&seen.links, seen.six, &seen.announced, &ours), (&links, six, &announced, &Switched::default()));
            // A host that forwards by its administrator's will is left alone.
            seen.all = true;
            seen.six = true;
            let held = Switched { links: ["eth2".into()].into(), ..Switched::default() };
            prop_assert_eq!(seen.plan(&held, Wanted::Both), Switches::default());
        }
    }
}
