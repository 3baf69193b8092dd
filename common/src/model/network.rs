//! Networks: a tenant's overlay and the addresses on it.
//!
//! An endpoint's addresses all follow from one number, its [`HostNumber`]: so a single number is what is given out, stored,
//! sent and taken back.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision, TenantId};
use crate::model::UnixMillis;

/// Why something of a network is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not a VXLAN network identifier.
    #[error("a VNI is between 1 and {max}, not {0}", max = u32::from(Vni::PROBE))]
    Vni(u32),
    /// Not an IPv4 network.
    #[error("`{0}` is not an IPv4 network such as 10.80.0.0/16")]
    Cidr(String),
    /// Bits beyond the prefix are set.
    #[error("`{given}` has bits beyond its prefix; you may mean {meant}")]
    Host {
        /// As given.
        given: Ipv4Net,
        /// Without these bits.
        meant: Ipv4Net,
    },
    /// Too large or too small.
    #[error("a network's prefix is between /{largest} and /{smallest}, not /{0}", largest = LARGEST, smallest = SMALLEST)]
    Prefix(u8),
    /// Addresses that mean something else.
    #[error("{0} can't be a network of containers: {1}")]
    Special(Ipv4Net, &'static str),
}

/// The largest network's prefix length.
const LARGEST: u8 = 8;
/// The smallest's.
const SMALLEST: u8 = 29;

/// What no container's network may overlap (RFC 6890).
const SPECIAL: [(Ipv4Net, &str); 5] = [
    (
        Ipv4Net::new_assert(Ipv4Addr::new(0, 0, 0, 0), 8),
        "0.0.0.0/8 means this host",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8),
        "127.0.0.0/8 never leaves a host",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16),
        "169.254.0.0/16 is link-local and has clouds' metadata",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(224, 0, 0, 0), 4),
        "224.0.0.0/4 is for multicast",
    ),
    (
        Ipv4Net::new_assert(Ipv4Addr::new(240, 0, 0, 0), 4),
        "240.0.0.0/4 is reserved",
    ),
];

/// A VXLAN network identifier: 24 bits (RFC 7348), never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vni(u32);

impl Vni {
    /// The first.
    pub const MIN: Self = Self(1);
    /// The last.
    pub const MAX: Self = Self(0xff_fffe);
    /// No tenant's: the one by which nodes find out whether they reach each other.
    pub const PROBE: Self = Self(0xff_ffff);

    /// The one after it that a tenant may get; after the last comes the first again.
    #[must_use]
    pub const fn next(self) -> Self {
        if self.0 >= Self::MAX.0 {
            Self::MIN
        } else {
            Self(self.0 + 1)
        }
    }
}

impl TryFrom<u32> for Vni {
    type Error = NetworkError;
    fn try_from(number: u32) -> Result<Self, NetworkError> {
        if (Self::MIN.0..=Self::PROBE.0).contains(&number) {
            Ok(Self(number))
        } else {
            Err(NetworkError::Vni(number))
        }
    }
}

impl From<Vni> for u32 {
    fn from(vni: Vni) -> Self {
        vni.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An endpoint's number on its network: the host part of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HostNumber(pub u32);

/// A container's place on a network. All its addresses there follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Endpoint {
    /// Which network.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub vni: Vni,
    /// Which number on it.
    #[cfg_attr(feature = "openapi", schema(value_type = u32))]
    pub host: HostNumber,
}

/// A network as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    /// Its identifier on the wire, and in the brain: unique as long as it is there, and not soon given again.
    pub vni: Vni,
    /// Whose it is.
    pub tenant: TenantId,
    /// Unique in the tenant.
    pub name: Name,
    /// Its addresses.
    #[serde(flatten)]
    pub subnets: Subnets,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

/// The network that a service is on unless it says otherwise; a tenant's is made when it is first needed.
pub const DEFAULT_NETWORK: &str = "default";

/// What a service that names no network is on.
pub fn default_networks() -> Vec<Name> {
    DEFAULT_NETWORK.parse().into_iter().collect()
}

/// A network's addresses: what is given out of them follows from a [`HostNumber`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Given", into = "Given")]
pub struct Subnets {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

/// As stored and sent.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Given {
    cidr: Ipv4Net,
    cidr6: Ipv6Net,
}

impl TryFrom<Given> for Subnets {
    type Error = NetworkError;
    fn try_from(given: Given) -> Result<Self, NetworkError> {
        Self::new(given.cidr, given.cidr6)
    }
}

impl From<Subnets> for Given {
    fn from(subnets: Subnets) -> Self {
        Self {
            cidr: subnets.v4,
            cidr6: subnets.v6,
        }
    }
}

impl Subnets {
    /// The gateway's number: it is the same on every node.
    pub const GATEWAY: HostNumber = HostNumber(1);

    /// An IPv4 network from /8 to /29 and an IPv6 one, of which the first /64 is used.
    ///
    /// # Errors
    /// [`NetworkError`] for a network that no container can live in.
    pub fn new(v4: Ipv4Net, v6: Ipv6Net) -> Result<Self, NetworkError> {
        if v4 != v4.trunc() {
            return Err(NetworkError::Host {
                given: v4,
                meant: v4.trunc(),
            });
        }
        if !(LARGEST..=SMALLEST).contains(&v4.prefix_len()) {
            return Err(NetworkError::Prefix(v4.prefix_len()));
        }
        for (special, why) in SPECIAL {
            if special.contains(&v4) || v4.contains(&special) {
                return Err(NetworkError::Special(v4, why));
            }
        }
        let v6 = Ipv6Net::new_assert(v6.network(), 64).trunc();
        Ok(Self { v4, v6 })
    }

    /// The IPv4 network.
    pub const fn v4(&self) -> Ipv4Net {
        self.v4
    }

    /// The IPv6 network, a /64.
    pub const fn v6(&self) -> Ipv6Net {
        self.v6
    }

    /// The numbers that endpoints can have: not the network itself, the gateway, the broadcast address.
    pub fn hosts(&self) -> std::ops::RangeInclusive<u32> {
        let size = 1_u32 << (32 - u32::from(self.v4.prefix_len()));
        Self::GATEWAY.0 + 1..=size - 2
    }

    /// The IPv4 address of a number.
    pub fn address(&self, host: HostNumber) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) | (host.0 & u32::from(self.v4.hostmask())))
    }

    /// The IPv6 address of a number.
    pub fn address6(&self, host: HostNumber) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.v6.network()) | u128::from(host.0))
    }

    /// The number of an address in either network; none of any other address.
    pub fn number(&self, address: IpAddr) -> Option<HostNumber> {
        let number = match address {
            IpAddr::V4(four) if self.v4.contains(&four) => u32::from(four) & u32::from(self.v4.hostmask()),
            IpAddr::V6(six) if self.v6.contains(&six) => {
                u32::try_from(u128::from(six) & u128::from(self.v6.hostmask())).ok()?
            }
            _ => return None,
        };
        Some(HostNumber(number))
    }

    /// The hardware address of a number: locally administered, unique on its network.
    pub fn mac(&self, host: HostNumber) -> Mac {
        let [a, b, c, d] = self.address(host).octets();
        Mac([0x0a, 0xbe, a, b, c, d])
    }

    /// Whether the two have an IPv4 address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.v4.contains(&other.v4) || other.v4.contains(&self.v4)
    }
}

/// Reads an IPv4 network as people write it.
///
/// # Errors
/// [`NetworkError::Cidr`].
pub fn parse_cidr(text: &str) -> Result<Ipv4Net, NetworkError> {
    Ipv4Net::from_str(text.trim()).map_err(|_| NetworkError::Cidr(crate::id::clip(text, 60)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subnets(cidr: &str) -> Result<Subnets, NetworkError> {
        Subnets::new(parse_cidr(cidr)?, "fd00:1:2:3::/64".parse().unwrap())
    }

    #[test]
    fn everything_follows_from_the_number() {
        let net = subnets("10.80.4.0/22").unwrap();
        assert_eq!(net.hosts(), 2..=1022);
        let host = HostNumber(258);
        assert_eq!(net.address(host).to_string(), "10.80.5.2");
        assert_eq!(net.address6(host).to_string(), "fd00:1:2:3::102");
        assert_eq!(net.mac(host).to_string(), "0a:be:0a:50:05:02");
        assert_eq!(net.address(Subnets::GATEWAY).to_string(), "10.80.4.1");
    }

    #[test]
    fn networks_nobody_could_use_are_refused_with_the_reason() {
        for (cidr, why) in [
            ("10.0.0.0", "not an IPv4 network"),
            ("10.80.0.7/16", "you may mean 10.80.0.0/16"),
            ("10.80.0.0/30", "between /8 and /29"),
            ("0.0.0.0/1", "between /8 and /29"),
            ("127.3.0.0/16", "never leaves a host"),
            ("169.254.169.0/24", "metadata"),
            ("224.0.0.0/8", "multicast"),
            ("fd00::/64", "not an IPv4 network"),
        ] {
            let error = subnets(cidr).expect_err(cidr).to_string();
            assert!(error.contains(why), "{cidr}: {error}");
        }
    }

    #[test]
    fn vnis_have_24_bits_and_begin_again() {
        assert!(Vni::try_from(0).is_err() && Vni::try_from(1 << 24).is_err());
        assert_eq!(Vni::MAX.next(), Vni::MIN);
        assert_eq!(serde_json::from_str::<Vni>("7").unwrap().to_string(), "7");
        assert!(serde_json::from_str::<Vni>("16777216").is_err());
    }

    proptest! {
        #[test]
        fn addresses_are_inside_and_differ(prefix in 8_u8..=29, bits: u32, a: u32, b: u32) {
            let net = Ipv4Net::new(Ipv4Addr::from(bits), prefix).unwrap().trunc();
            let Ok(net) = Subnets::new(net, "fd00::/64".parse().unwrap()) else { return Ok(()) };
            let range = net.hosts();
            let within = |x: u32| HostNumber(range.start() + x % (range.end() - range.start() + 1));
            let (a, b) = (within(a), within(b));
            for host in [a, b] {
                prop_assert!(net.v4().contains(&net.address(host)) && net.v6().contains(&net.address6(host)));
                prop_assert!(net.address(host) != net.v4().network() && net.address(host) != net.v4().broadcast());
                prop_assert_ne!(net.address(host), net.address(Subnets::GATEWAY));
                prop_assert_eq!(net.number(net.address(host).into()), Some(host));
                prop_assert_eq!(net.number(net.address6(host).into()), Some(host));
            }
            prop_assert_eq!(a == b, net.address(a) == net.address(b));
            prop_assert_eq!(a == b, net.mac(a) == net.mac(b));
            let text = serde_json::to_string(&net).unwrap();
            prop_assert_eq!(serde_json::from_str::<Subnets>(&text).unwrap(), net);
        }
    }
}
