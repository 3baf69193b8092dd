//! At which addresses others reach this host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use nix::net::if_::InterfaceFlags;

/// This host's addresses that a listener on `listen` answers at, the one of the default route first; none if it has only
/// loopback.
pub(super) fn of_this_host(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let mut found: Vec<IpAddr> = routed().into_iter().collect();
    match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => {
            let up = interfaces.filter(|interface| {
                interface.flags.contains(InterfaceFlags::IFF_UP)
                    && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            });
            found.extend(up.filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
            }));
        }
        // Without netlink the default route's must do.
        Err(error) => tracing::debug!(%error, "interfaces can't be listed"),
    }
    found.retain(|address| reachable(*address, listen));
    let mut seen = std::collections::HashSet::new();
    found.retain(|address| seen.insert(*address));
    found
}

/// The addresses that packets to the world leave from. Nothing is sent.
fn routed() -> [IpAddr; 2] {
    let from = |local: IpAddr, remote: &str| {
        UdpSocket::bind((local, 0))
            .and_then(|socket| {
                socket.connect((remote, 443))?;
                socket.local_addr()
            })
            .map_or(local, |address| address.ip())
    };
    [
        from(Ipv4Addr::UNSPECIFIED.into(), "192.0.2.1"),
        from(Ipv6Addr::UNSPECIFIED.into(), "2001:db8::1"),
    ]
}

fn reachable(address: IpAddr, listen: IpAddr) -> bool {
    let usable = match address {
        IpAddr::V4(v4) => !v4.is_link_local(),
        IpAddr::V6(v6) => listen.is_ipv6() && !v6.is_unicast_link_local(),
    };
    usable && !address.is_loopback() && !address.is_unspecified() && !address.is_multicast()
}

/// What nodes are told: the settings' addresses, else the host's own, else loopback.
pub(super) fn advertised(settings: &[String], own: &[IpAddr], port: u16) -> Vec<String> {
    if !settings.is_empty() {
        return settings.to_vec();
    }
    let text = |ip: &IpAddr| SocketAddr::new(*ip, port).to_string();
    if own.is_empty() {
        return vec![text(&Ipv4Addr::LOCALHOST.into())];
    }
    own.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_can_reach() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (v4, v6) = (ip("0.0.0.0"), ip("::"));
        for (address, by_v4, by_v6) in [
            ("192.0.2.1", true, true),
            ("127.0.0.1", false, false),
            ("169.254.1.1", false, false),
            ("0.0.0.0", false, false),
            ("2001:db8::1", false, true),
            ("fe80::1", false, false),
            ("::1", false, false),
        ] {
            assert_eq!(
                (reachable(ip(address), v4), reachable(ip(address), v6)),
                (by_v4, by_v6),
                "{address}"
            );
        }
        assert_eq!(of_this_host(ip("127.0.0.1")), [ip("127.0.0.1")]);
        let all = of_this_host(v6);
        assert!(all.iter().all(|address| !address.is_loopback()));
        assert_eq!(
            all.iter().collect::<std::collections::HashSet<_>>().len(),
            all.len()
        );
    }

    #[test]
    fn settings_come_first_and_something_is_always_told() {
        let own = ["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        assert_eq!(advertised(&["b:1".to_owned()], &own, 7443), ["b:1"]);
        assert_eq!(
            advertised(&[], &own, 7443),
            ["192.0.2.1:7443", "[2001:db8::1]:7443"]
        );
        assert_eq!(advertised(&[], &[], 7443), ["127.0.0.1:7443"]);
    }
}
