//! Whether anybody changed a namespace's packet filters since they were last looked at: nftables counts its transactions.
//!
//! One small question instead of running `nft` twice for every network every few seconds.

use std::io;
use std::os::fd::AsRawFd as _;

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nftables::{GenAttribute, GenMessage, NfTablesMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::namespace::Namespace;

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
    let request = NfTablesMessage::GetGen(GenMessage {
        attributes: Vec::new(),
    });
    let request = NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0), request);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(request));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    let kernel = NetlinkAddr::new(0, 0);
    sendto(socket.as_raw_fd(), &bytes, &kernel, MsgFlags::empty())?;
    let mut answer = [0; 512];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    parse(&answer[..length]).ok_or_else(|| io::Error::other("nftables did not say its generation"))
}

fn parse(answer: &[u8]) -> Option<u32> {
    let answer = NetlinkMessage::<NetfilterMessage>::deserialize(answer).ok()?;
    let NetlinkPayload::InnerMessage(message) = answer.payload else {
        return None;
    };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewGen(said)) = message.inner else {
        return None;
    };
    said.attributes.iter().find_map(|attribute| match attribute {
        GenAttribute::Id(id) => Some(*id),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_none() {
        let answer = |attributes: Vec<GenAttribute>| {
            let header = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0);
            let said = NetfilterMessage::new(header, NfTablesMessage::NewGen(GenMessage { attributes }));
            let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(said));
            message.finalize();
            let mut bytes = vec![0; message.buffer_len()];
            message.serialize(&mut bytes);
            bytes
        };
        let whole = answer(vec![GenAttribute::ProcPid(3), GenAttribute::Id(7)]);
        assert_eq!(parse(&whole), Some(7));
        assert_eq!(parse(&answer(vec![GenAttribute::ProcPid(3)])), None);
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None);
        }
    }
}
