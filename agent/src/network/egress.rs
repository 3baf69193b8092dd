//! The way out of a network: a pair of links from its namespace to the host, and what of the host is switched on for it. Pure.
//!
//! Networks may have the same addresses, and the host may route them elsewhere; so each has, on each host, a number of its own and
//! with it a link-local address that nothing else has. What leaves a network takes that address in the network's namespace, and
//! the host's in the host's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
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

/// Whether the host passes IPv4 packets on, as its kernel says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// `net.ipv4.ip_forward`: somebody decided it for the whole host.
    pub all: bool,
    /// Of each link that has an IPv4 address: what comes in there may be passed on.
    pub links: BTreeMap<String, bool>,
}

/// Links on which berth itself switched it on: kept on disk, to be switched off again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switched(pub BTreeSet<String>);

/// What to switch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Switches {
    /// To be on.
    pub on: BTreeSet<String>,
    /// To be off again.
    pub off: BTreeSet<String>,
    /// What is berth's doing from now on.
    pub ours: Switched,
}

impl Forwarding {
    /// What to switch, where containers have a way out (`wanted`) or nobody needs it any more.
    ///
    /// Link by link, not for the host: there it would stay on for everybody, also when berth has gone.
    pub fn plan(&self, ours: &Switched, wanted: bool) -> Switches {
        if self.all {
            return Switches::default();
        }
        if !wanted {
            let off = ours.0.iter().filter(|name| self.links.get(*name) == Some(&true));
            return Switches {
                off: off.cloned().collect(),
                ..Switches::default()
            };
        }
        let off = self.links.iter().filter(|(_, on)| !**on);
        let on: BTreeSet<String> = off.map(|(name, _)| name.clone()).collect();
        let still = ours.0.iter().filter(|name| self.links.contains_key(*name));
        Switches {
            ours: Switched(still.chain(&on).cloned().collect()),
            on,
            off: BTreeSet::new(),
        }
    }
}

impl Switched {
    /// The links that lead out of this host: what comes in there and is nobody's answer is not to be passed on for berth's sake.
    pub fn guarded(&self) -> impl Iterator<Item = &String> {
        self.0.iter().filter(|name| Transit::of_host_link(name).is_none())
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
        assert!(ADDRESSES.contains(&HOST_ADDRESS));
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

    proptest! {
        #[test]
        fn what_berth_switched_on_is_switched_off_again_and_nothing_else(
            links in proptest::collection::btree_map("(eth|berth|docker)[2-6]", any::<bool>(), 0..8), rounds in 1_usize..4
        ) {
            let mut seen = Forwarding { all: false, links: links.clone() };
            let mut ours = Switched::default();
            let apply = |seen: &mut Forwarding, ours: &mut Switched, wanted| {
                let plan = seen.plan(ours, wanted);
                plan.on.iter().for_each(|name| { seen.links.insert(name.clone(), true); });
                plan.off.iter().for_each(|name| { seen.links.insert(name.clone(), false); });
                *ours = plan.ours;
            };
            for _ in 0..rounds {
                apply(&mut seen, &mut ours, true);
                prop_assert!(seen.links.values().all(|on| *on));
            }
            prop_assert!(ours.guarded().all(|name| !name.starts_with(HOST_LINKS)));
            apply(&mut seen, &mut ours, false);
            prop_assert_eq!((&seen.links, ours.0.len()), (&links, 0));
            // A host that forwards by its administrator's will is left alone.
            seen.all = true;
            prop_assert_eq!(seen.plan(&Switched(["eth2".into()].into()), true), Switches::default());
        }
    }
}
