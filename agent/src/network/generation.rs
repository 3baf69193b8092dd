//! Whether anybody changed a namespace's packet filters since they were last looked at: nftables counts its transactions.
//!
//! One small question instead of running `nft` twice for every network every few seconds.

use std::io;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::namespace::Namespace;

/// NFNL_SUBSYS_NFTABLES and NFT_MSG_GETGEN (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_GENERATION: u16 = 10 << 8 | 16;
/// NFTA_GEN_ID.
const ID: u16 = 1;
/// netlink's and nfnetlink's headers, bytes.
const HEADERS: usize = 16 + 4;

/// How many transactions of nftables the namespace has seen. Blocks for moments.
///
/// # Errors
/// When the kernel can't be asked, or answers something else.
pub fn generation(namespace: &Namespace) -> io::Result<u32> {
    namespace.within(ask)?
}

fn ask() -> io::Result<u32> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(2))?;
    let mut request = Vec::with_capacity(HEADERS);
    request.extend(u32::try_from(HEADERS).unwrap_or(0).to_ne_bytes());
    request.extend(GET_GENERATION.to_ne_bytes());
    // NLM_F_REQUEST.
    request.extend(1_u16.to_ne_bytes());
    // Sequence and port; then family, version and resource of nfnetlink: all nothing.
    request.extend([0; 8 + 4]);
    sendto(
        socket.as_raw_fd(),
        &request,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )?;
    let mut answer = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(&answer[..length]).ok_or_else(|| io::Error::other("nftables did not say its generation"))
}

fn parse(answer: &[u8]) -> Option<u32> {
    let mut rest = answer.get(HEADERS..)?;
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        if kind == ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_none() {
        let mut answer = vec![0; HEADERS];
        assert_eq!(parse(&answer), None);
        answer.extend(8_u16.to_ne_bytes());
        answer.extend(ID.to_ne_bytes());
        answer.extend(7_u32.to_be_bytes());
        assert_eq!(parse(&answer), Some(7));
        for cut in 0..answer.len() {
            assert_eq!(parse(&answer[..cut]), None);
        }
        answer[HEADERS] = 0;
        assert_eq!(parse(&answer), None, "no endless loop");
    }
}
