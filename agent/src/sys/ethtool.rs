//! Whether a link's card makes the checksums of what it sends: ethtool's oldest request, which no crate offers.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// `struct ethtool_value` (linux/ethtool.h).
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

const ETHTOOL_GTXCSUM: u32 = 0x16;
const ETHTOOL_STXCSUM: u32 = 0x17;

mod request {
    nix::ioctl_readwrite_bad!(
        /// SIOCETHTOOL (linux/sockios.h).
        siocethtool,
        0x8946,
        libc::ifreq
    );
}

/// Whether checksums of what a link of this thread's namespace sends are left to its card.
///
/// # Errors
/// When there is no such link, or it can't be asked.
pub fn checksums_offloaded(link: &str) -> io::Result<bool> {
    ask(link, ETHTOOL_GTXCSUM, 0).map(|data| data != 0)
}

/// Leaves them to the card, or has the kernel make them. "Already so" is success.
///
/// # Errors
/// When there is no such link, or its driver refuses.
pub fn offload_checksums(link: &str, on: bool) -> io::Result<()> {
    ask(link, ETHTOOL_STXCSUM, on.into()).map(drop)
}

fn ask(link: &str, command: u32, data: u32) -> io::Result<u32> {
    let mut name = [0; libc::IFNAMSIZ];
    if link.len() >= name.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (at, byte) in name.iter_mut().zip(link.bytes()) {
        *at = byte as libc::c_char;
    }
    let mut value = Value { command, data };
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    let any = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: the kernel reads the request and reads and writes the value behind it, both of which live until the call is over.
    unsafe { request::siocethtool(any.as_raw_fd(), &raw mut request) }?;
    Ok(value.data)
}
