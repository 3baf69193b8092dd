//! Published ports held on the host, so that no program here has one at the same time without knowing: whoever listens already
//! keeps it, and whoever comes later is told that the address is in use.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd as _, OwnedFd};

use berth_common::model::Protocol;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrIn6, SockaddrLike, bind, setsockopt, socket,
    sockopt::Ipv6V6Only,
};

use super::namespace::Namespace;
use super::publish::Open;

/// Sockets that are bound and nothing else, by port.
#[derive(Debug, Default)]
pub(super) struct Doors(BTreeMap<(Protocol, u16), Vec<OwnedFd>>);

impl Doors {
    /// Holds the ports of what is open and lets go of all others; what is held, and why the rest is not. Blocks for moments.
    pub(super) fn hold(&mut self, host: &Namespace, open: &[Open]) -> io::Result<(Vec<Open>, Vec<String>)> {
        let wanted = open
            .iter()
            .flat_map(|one| one.ports.clone().map(|port| (one.protocol, port)));
        let wanted: std::collections::BTreeSet<_> = wanted.collect();
        self.0.retain(|door, _| wanted.contains(door));
        let new: Vec<_> = wanted
            .into_iter()
            .filter(|door| !self.0.contains_key(door))
            .collect();
        let mut taken = BTreeMap::new();
        if !new.is_empty() {
            let bound =
                host.within(move || new.into_iter().map(|door| (door, hold(door))).collect::<Vec<_>>())?;
            for (door, held) in bound {
                match held {
                    Ok(sockets) => drop(self.0.insert(door, sockets)),
                    Err(error) => drop(taken.insert(door, error)),
                }
            }
        }
        let (mut free, mut why) = (Vec::new(), Vec::new());
        for one in open {
            let mut ports = one.ports.clone();
            let first = ports.find_map(|port| Some((port, taken.get(&(one.protocol, port))?)));
            match first {
                None => free.push(one.clone()),
                Some((port, error)) => why.push(format!(
                    "port {port}/{} of this host can't be published for service {}: {error}; end the program that has it (`ss -lnp`), or publish another port",
                    one.protocol, one.service
                )),
            }
        }
        Ok((free, why))
    }
}

fn hold((protocol, port): (Protocol, u16)) -> io::Result<Vec<OwnedFd>> {
    let kind = match protocol {
        Protocol::Udp => SockType::Datagram,
        Protocol::Tcp | Protocol::Unknown => SockType::Stream,
    };
    let four = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port));
    let six = SockaddrIn6::from(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, port, 0, 0));
    let mut held = vec![bound(AddressFamily::Inet, kind, &four)?];
    match bound(AddressFamily::Inet6, kind, &six) {
        Ok(socket) => held.push(socket),
        // A host without IPv6 has nobody who listens there.
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(nix::libc::EAFNOSUPPORT | nix::libc::EADDRNOTAVAIL)
            ) => {}
        Err(error) => return Err(error),
    }
    Ok(held)
}

fn bound(family: AddressFamily, kind: SockType, at: &dyn SockaddrLike) -> io::Result<OwnedFd> {
    let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
    if family == AddressFamily::Inet6 {
        setsockopt(&socket, Ipv6V6Only, &true)?;
    }
    bind(socket.as_raw_fd(), at)?;
    Ok(socket)
}
