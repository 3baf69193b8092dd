//! Echo requests (ICMP: RFC 792, ICMPv6: RFC 4443): from sockets that need no rights (icmp(7), "ping sockets") where a namespace
//! has them, else from raw ones, which need CAP_NET_RAW. Blocks.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::socket::{never_fragment, never_fragment6};

/// What an IP header and an echo's own take of a packet, bytes.
const HEADERS: [u32; 2] = [20 + 8, 40 + 8];
/// An echo's own header, bytes.
const HEADER: usize = 8;

/// Lets this thread's namespace open such sockets, whoever runs in it.
pub(super) fn allow() -> io::Result<()> {
    // Group numbers; the largest is what systemd sets on hosts (sysctl.d/50-default.conf).
    std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")
}

/// Asks one address.
pub(super) struct Ping {
    socket: Socket,
    six: bool,
    /// Raw: the identifier that answers to this one have. A ping socket's is the kernel's business.
    raw: Option<u16>,
    number: u16,
    buffer: Vec<u8>,
}

impl Ping {
    /// From this thread's namespace.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] where the host keeps both from the agent (`net.ipv4.ping_group_range`, CAP_NET_RAW).
    pub(super) fn new(to: IpAddr) -> io::Result<Self> {
        let six = to.is_ipv6();
        let (domain, protocol) = match six {
            false => (Domain::IPV4, Protocol::ICMPV4),
            true => (Domain::IPV6, Protocol::ICMPV6),
        };
        let (socket, raw) = match Socket::new(domain, Type::DGRAM, Some(protocol)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (
                Socket::new(domain, Type::RAW, Some(protocol))?,
                Some(rand::random()),
            ),
            socket => (socket?, None),
        };
        match six {
            false => never_fragment(&socket)?,
            true => never_fragment6(&socket)?,
        }
        socket.connect(&SocketAddr::new(to, 0).into())?;
        Ok(Self {
            socket,
            six,
            raw,
            number: 0,
            buffer: vec![0; 65_536],
        })
    }

    /// Sends an IP packet of so many bytes and waits for its answer; none: it did not come within `limit`, or the packet is larger than
    /// this host's own link takes.
    ///
    /// # Errors
    /// When the kernel can't send or receive at all.
    pub(super) fn ask(&mut self, size: u32, limit: Duration) -> io::Result<Option<Duration>> {
        self.number = self.number.wrapping_add(1);
        let length = size.saturating_sub(HEADERS[usize::from(self.six)]) as usize;
        let mut packet = vec![0xbe; HEADER + length];
        // Type, code 0, checksum and identifier (the kernel's to set on a ping socket), number.
        packet[..HEADER].copy_from_slice(&[if self.six { 128 } else { 8 }, 0, 0, 0, 0, 0, 0, 0]);
        packet[4..6].copy_from_slice(&self.raw.unwrap_or(0).to_be_bytes());
        packet[6..8].copy_from_slice(&self.number.to_be_bytes());
        // ICMPv6's covers addresses, and is always the kernel's.
        if self.raw.is_some() && !self.six {
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let begun = Instant::now();
        match self.socket.write(&packet) {
            Ok(_) => {}
            Err(error) if no_way(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
        let answer = if self.six { 129 } else { 0 };
        loop {
            let Some(left) = limit.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(None);
            };
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut self.buffer) {
                Ok(got) => {
                    let got = &self.buffer[..got];
                    // A raw socket of IPv4 hears the IP header, too.
                    let before = match got.first() {
                        Some(first) if self.raw.is_some() && !self.six => usize::from(first & 0xf) * 4,
                        _ => 0,
                    };
                    let got = got.get(before..).unwrap_or_default();
                    let is = got.len() == packet.len() && got[0] == answer && got[6..8] == packet[6..8];
                    let mine = self.raw.is_none() || is && got[4..6] == packet[4..6];
                    if is && mine && got[HEADER..] == packet[HEADER..] {
                        return Ok(Some(begun.elapsed()));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What a router says of an earlier one; this one's answer may still come.
                Err(error) if no_way(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The Internet checksum (RFC 1071) of what has zeros in its place.
fn checksum(packet: &[u8]) -> u16 {
    let words = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// What the network says to a packet, rather than the kernel to this program.
fn no_way(error: &io::Error) -> bool {
    use nix::libc::{EACCES, ECONNREFUSED, EHOSTDOWN, EHOSTUNREACH, EMSGSIZE, ENETUNREACH, ENOBUFS, EPERM};
    // EPERM and EACCES: a packet filter or an unreachable route refused it.
    matches!(
        error.raw_os_error(),
        Some(EMSGSIZE | EHOSTUNREACH | ENETUNREACH | EHOSTDOWN | ECONNREFUSED | EPERM | EACCES | ENOBUFS)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Namespace;

    #[test]
    fn a_loopback_answers_up_to_its_size_and_an_address_without_a_way_does_not() {
        let space = Namespace::new().unwrap();
        let asked = space.within(|| {
            let set = |what: &[&str]| {
                let done = std::process::Command::new("ip")
                    .args(["link", "set", "lo"])
                    .args(what)
                    .status();
                assert!(done.unwrap().success());
            };
            set(&["up"]);
            let (limit, mut sizes) = (Duration::from_secs(1), Vec::new());
            // A new namespace keeps ping sockets from everybody: raw ones first.
            for raw in [true, false] {
                for address in ["127.0.0.1", "::1"] {
                    let mut ping = Ping::new(address.parse().unwrap()).unwrap();
                    assert_eq!(ping.raw.is_some(), raw);
                    let asked = [84, 1500, 1501, 9000].map(|size| ping.ask(size, limit).unwrap().is_some());
                    sizes.push(asked);
                }
                allow().unwrap();
            }
            assert_eq!(sizes, [[true; 4]; 4]);
            set(&["mtu", "1400"]);
            let mut ping = Ping::new("127.0.0.1".parse().unwrap()).unwrap();
            [1400, 1401].map(|size| ping.ask(size, limit).unwrap().is_some())
        });
        assert_eq!(asked.unwrap(), [true, false]);
    }
}
