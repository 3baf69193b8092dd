//! A new network's identifier and addresses.

use std::net::Ipv6Addr;

use berth_common::id::TenantId;
use berth_common::model::Vni;
use ipnet::{Ipv4Net, Ipv6Net};
use sha2::{Digest as _, Sha256};

/// Nothing is left.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// No identifier.
    #[error(
        "all {} network identifiers are in use; remove networks that nobody needs",
        u32::from(Vni::MAX)
    )]
    Vni,
    /// No addresses.
    #[error("no /{prefix} is free in {pool}; remove networks that nobody needs, or name one with --cidr")]
    Subnet {
        /// Where one was sought.
        pool: Ipv4Net,
        /// Of which size.
        prefix: u8,
    },
}

/// The first identifier after `last` that nobody has. They go round, so that one just given back rests as long as can be:
/// packets of the old network may still be under way, and hosts that were cut off may still hold it.
///
/// # Errors
/// [`NoRoom::Vni`].
pub fn vni(last: Vni, taken: impl Fn(Vni) -> bool) -> Result<Vni, NoRoom> {
    let mut next = last.next();
    for _ in u32::from(Vni::MIN)..=u32::from(Vni::MAX) {
        if !taken(next) {
            return Ok(next);
        }
        next = next.next();
    }
    Err(NoRoom::Vni)
}

/// The first network of that size in the pool that overlaps none of the tenant's.
///
/// # Errors
/// [`NoRoom::Subnet`], also for a size that the pool can't have.
pub fn subnet(pool: Ipv4Net, prefix: u8, taken: &[Ipv4Net]) -> Result<Ipv4Net, NoRoom> {
    let none = NoRoom::Subnet { pool, prefix };
    let mut candidates = pool.subnets(prefix).map_err(|_| none.clone())?;
    candidates
        .find(|net| {
            !taken
                .iter()
                .any(|other| other.contains(net) || net.contains(other))
        })
        .ok_or(none)
}

/// The unique local /64 of a network (RFC 4193): what is random there follows from who it is for, so that it needs no
/// search; 56 bits keep two tenants' apart, and it would harm nobody if they did not.
pub fn ula(tenant: TenantId, vni: Vni) -> Ipv6Net {
    let mut hash = Sha256::new();
    hash.update(b"berth network");
    hash.update(tenant.to_string());
    hash.update(u32::from(vni).to_be_bytes());
    let digest = hash.finalize();
    let mut octets = [0_u8; 16];
    octets[0] = 0xfd;
    octets[1..8].copy_from_slice(&digest[..7]);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn identifiers_go_round_and_are_never_in_use() {
        let taken: BTreeSet<Vni> = [1, 2, 4].map(|n| Vni::try_from(n).unwrap()).into();
        let next = |last: u32| u32::from(vni(Vni::try_from(last).unwrap(), |v| taken.contains(&v)).unwrap());
        assert_eq!((next(1), next(3), next(0xff_ffff)), (3, 5, 3));
        assert_eq!(vni(Vni::MIN, |_| true), Err(NoRoom::Vni));
    }

    #[test]
    fn a_tenants_networks_do_not_overlap() {
        let pool = net("10.80.0.0/12");
        assert_eq!(pool.trunc(), net("10.80.0.0/12"));
        let first = subnet(pool, 16, &[]).unwrap();
        assert_eq!(first, net("10.80.0.0/16"));
        assert_eq!(subnet(pool, 16, &[first]).unwrap(), net("10.81.0.0/16"));
        assert_eq!(
            subnet(pool, 16, &[net("10.80.7.0/24"), net("10.81.0.0/16")]).unwrap(),
            net("10.82.0.0/16")
        );
        let error = subnet(pool, 16, &[net("10.0.0.0/8")]).unwrap_err();
        assert!(
            error.to_string().contains("no /16 is free in 10.80.0.0/12"),
            "{error}"
        );
        assert!(subnet(pool, 8, &[]).is_err(), "larger than the pool");
    }

    #[test]
    fn ipv6_networks_are_unique_local_and_stay_what_they_are() {
        let (a, b) = (TenantId::from_bytes([1; 10]), TenantId::from_bytes([2; 10]));
        let one = ula(a, Vni::MIN);
        assert_eq!(one.prefix_len(), 64);
        assert_eq!(one.network().octets()[0], 0xfd);
        assert_eq!(one, ula(a, Vni::MIN));
        assert!(one != ula(b, Vni::MIN) && one != ula(a, Vni::MAX));
    }
}
