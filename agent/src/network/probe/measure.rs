//! What is asked of the way to another node, and how long that may take. Blocks; each way on a thread of its own.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use berth_common::protocol::Echoes;

use super::PORT;
use super::ping::Ping;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(1);
/// How long one is waited for where answers came in microseconds to milliseconds before.
const SHORT: Duration = Duration::from_millis(150);
/// Between two questions.
const PAUSE: Duration = Duration::from_millis(20);
/// An ordinary question's size, bytes with all headers.
const SMALL: u32 = 84;
/// Without any answer to the first few there will be none.
const HOPELESS: u32 = 4;
/// What every way must carry: IPv6's least MTU (RFC 8200), bytes. A way that does not carries nothing.
const LEAST: u32 = 1280;
/// What is sent over a connection, bytes.
const BULK: usize = 32 << 10;

/// What was measured between two addresses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Way {
    /// Pings.
    pub echoes: Echoes,
    /// The largest packet that came back whole, bytes.
    pub mtu: Option<u32>,
}

/// Measures with `count` pings, and packets of up to `mtu` bytes.
///
/// # Errors
/// When this host lets nobody send pings.
pub fn way(to: IpAddr, count: u32, mtu: u32) -> io::Result<Way> {
    let mut ping = Ping::new(to)?;
    let mut echoes = Echoes::default();
    let mut total = Duration::ZERO;
    for nth in 0..count {
        if nth > 0 {
            std::thread::sleep(PAUSE);
        }
        let answered = ping.ask(SMALL, LIMIT)?;
        echoes.sent += 1;
        if let Some(took) = answered {
            let us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
            echoes.min_us = if echoes.answered == 0 {
                us
            } else {
                echoes.min_us.min(us)
            };
            echoes.max_us = echoes.max_us.max(us);
            echoes.answered += 1;
            total += took;
            echoes.mean_us = u32::try_from((total / echoes.answered).as_micros()).unwrap_or(u32::MAX);
        }
        if echoes.answered == 0 && echoes.sent >= HOPELESS {
            break;
        }
    }
    if echoes.answered == 0 {
        return Ok(Way { echoes, mtu: None });
    }
    // Where pings get lost, a large one may by chance.
    let limit = SHORT
        .max(Duration::from_micros(u64::from(echoes.max_us) * 3))
        .min(LIMIT);
    // What is lost by chance must not look like what is too large.
    let tries = if echoes.answered < echoes.sent { 8 } else { 3 };
    let mut passes = |size: u32| -> io::Result<bool> {
        for _ in 0..tries {
            if ping.ask(size, limit)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    };
    Ok(Way {
        echoes,
        mtu: largest(LEAST.min(mtu), mtu, &mut passes)?,
    })
}

/// The largest size between two that passes, where each below one that passes does, too; none: not even the least.
fn largest(
    least: u32,
    most: u32,
    passes: &mut impl FnMut(u32) -> io::Result<bool>,
) -> io::Result<Option<u32>> {
    if passes(most)? {
        return Ok(Some(most));
    }
    if most <= least || !passes(least)? {
        return Ok(None);
    }
    let (mut low, mut high) = (least, most);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if passes(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}

/// Whether datagrams come back. Their checksums are the network card's to make, where it can.
pub fn udp(to: IpAddr) -> bool {
    let asked = || -> io::Result<bool> {
        let unspecified: IpAddr = match to {
            IpAddr::V4(_) => [0; 4].into(),
            IpAddr::V6(_) => [0; 16].into(),
        };
        let socket = UdpSocket::bind(SocketAddr::new(unspecified, 0))?;
        socket.connect(SocketAddr::new(to, PORT))?;
        // Five in a row are lost by chance on no way that is of any use.
        socket.set_read_timeout(Some(LIMIT * 3 / 5))?;
        let (question, mut answer) = ([0x5a; 512], [0; 1024]);
        for _ in 0..5 {
            socket.send(&question)?;
            if let Ok(length) = socket.recv(&mut answer) {
                return Ok(answer[..length] == question);
            }
        }
        Ok(false)
    };
    asked().unwrap_or(false)
}

/// Whether a connection brings back what it was given.
pub fn tcp(to: IpAddr) -> bool {
    let asked = || -> io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to, PORT), LIMIT * 3)?;
        stream.set_read_timeout(Some(LIMIT * 3))?;
        stream.set_write_timeout(Some(LIMIT * 3))?;
        let given: Vec<u8> = (0..BULK).map(|n| (n % 251) as u8).collect();
        let mut back = vec![0; BULK];
        stream.write_all(&given)?;
        stream.read_exact(&mut back)?;
        Ok(back == given)
    };
    asked().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_that_passes_is_found_in_few_tries() {
        let found = |limit: u32, most: u32| {
            let mut tries = 0;
            let found = largest(1280.min(most), most, &mut |size| {
                tries += 1;
                Ok(size <= limit)
            });
            assert!(tries <= 15, "{tries}");
            found.unwrap()
        };
        let cases = [
            ((1500, 1500), Some(1500)),
            ((1499, 1500), Some(1499)),
            ((1372, 1450), Some(1372)),
            ((1280, 8950), Some(1280)),
            ((1279, 1450), None),
            // A link that is smaller than that itself.
            ((1000, 1000), Some(1000)),
            ((999, 1000), None),
        ];
        for ((limit, most), expected) in cases {
            assert_eq!(found(limit, most), expected, "{limit} of {most}");
        }
    }
}
