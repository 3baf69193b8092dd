//! Socket options that neither nix nor socket2 has.

use std::os::fd::{AsFd, AsRawFd as _};

/// Sends packets as they are, however small those are that the way is believed to carry (`IP_PMTUDISC_PROBE`, ip(7)): too large ones
/// are refused or lost and never cut.
///
/// # Errors
/// When the kernel refuses, which it does for what is no IPv4 socket.
pub fn never_fragment(socket: &impl AsFd) -> std::io::Result<()> {
    set(
        socket,
        libc::IPPROTO_IP,
        libc::IP_MTU_DISCOVER,
        libc::IP_PMTUDISC_PROBE,
    )
}

/// The same of an IPv6 socket (`IPV6_PMTUDISC_PROBE`, ipv6(7)).
///
/// # Errors
/// When the kernel refuses.
pub fn never_fragment6(socket: &impl AsFd) -> std::io::Result<()> {
    set(
        socket,
        libc::IPPROTO_IPV6,
        libc::IPV6_MTU_DISCOVER,
        libc::IPV6_PMTUDISC_PROBE,
    )
}

fn set(socket: &impl AsFd, level: i32, name: i32, value: i32) -> std::io::Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: the descriptor is borrowed for the call, and the kernel reads `size` bytes of `value`, which lives longer.
    let set = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), size) };
    nix::errno::Errno::result(set)?;
    Ok(())
}
