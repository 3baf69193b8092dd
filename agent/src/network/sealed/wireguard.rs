//! Speaks to WireGuard's part of the kernel. Thin: [`super`] decides.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::model::WireGuardKey;
use futures::StreamExt as _;
use genetlink::GenetlinkHandle;
use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_generic::GenlMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_wireguard::{
    WireguardAddressFamily, WireguardAllowedIp, WireguardAllowedIpAttr, WireguardAttribute, WireguardCmd,
    WireguardMessage, WireguardPeer, WireguardPeerAttribute, WireguardPeerFlags,
};

use super::{Peer, SeenDevice};
use crate::network::links;
use crate::network::namespace::Namespace;
use crate::network::netlink::{NetworkError, Result, connect, namespace_failed};

/// A peer that can't be heard first, since NAT is in between, keeps the way open; seconds, as WireGuard's authors advise.
const KEEPALIVE: u16 = 25;

/// A device by its name, whether it is there or not.
#[derive(Debug)]
pub(super) struct Device {
    name: String,
    handle: GenetlinkHandle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Device {
    pub(super) fn open(host: &Namespace, name: &str) -> Result<Self> {
        let (task, handle) = connect(host, genetlink::new_connection)
            .map_err(|source| namespace_failed("speaking to WireGuard", source))?;
        let name = name.to_owned();
        Ok(Self { name, handle, task })
    }

    /// What it is, by its link and by itself.
    pub(super) async fn observe(&mut self, link: &LinkMessage) -> Result<SeenDevice> {
        let kind = link.attributes.iter().any(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Wireguard)),
            _ => false,
        });
        let mut seen = SeenDevice::default();
        if link.header.flags.contains(LinkFlags::Up) {
            seen.mtu = links::mtu(link).unwrap_or_default();
        }
        if !kind {
            return Ok(seen);
        }
        // One that has no key yet is one all the same.
        seen.public = Some(WireGuardKey([0; 32]));
        let asked = self.ask("looking at", WireguardCmd::GetDevice, Vec::new(), NLM_F_DUMP);
        for attribute in asked.await? {
            match attribute {
                WireguardAttribute::PublicKey(key) => seen.public = Some(WireGuardKey(key)),
                WireguardAttribute::ListenPort(port) => seen.listen = port,
                WireguardAttribute::Peers(peers) => {
                    for WireguardPeer(peer) in peers {
                        take_peer(&mut seen.peers, &peer);
                    }
                }
                _ => {}
            }
        }
        Ok(seen)
    }

    /// Gives it its secret and its UDP port.
    pub(super) async fn configure(&mut self, secret: [u8; 32], listen: u16) -> Result<()> {
        let key = WireguardAttribute::PrivateKey(secret);
        let port = WireguardAttribute::ListenPort(listen);
        self.set("giving a key and UDP port to", vec![key, port]).await
    }

    /// Takes a peer away.
    pub(super) async fn forget(&mut self, key: WireGuardKey) -> Result<()> {
        let gone = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::RemoveMe),
        ]);
        let gone = WireguardAttribute::Peers(vec![gone]);
        self.set("taking a peer from", vec![gone]).await
    }

    /// Has a peer, which may send from its own address alone.
    pub(super) async fn have(&mut self, key: WireGuardKey, peer: Peer) -> Result<()> {
        let (family, length) = match peer.address {
            IpAddr::V4(_) => (WireguardAddressFamily::Ipv4, 32),
            IpAddr::V6(_) => (WireguardAddressFamily::Ipv6, 128),
        };
        let allowed = WireguardAllowedIp(vec![
            WireguardAllowedIpAttr::Family(family),
            WireguardAllowedIpAttr::IpAddr(peer.address),
            WireguardAllowedIpAttr::Cidr(length),
        ]);
        let peer = WireguardPeer(vec![
            WireguardPeerAttribute::PublicKey(key.0),
            WireguardPeerAttribute::Flags(WireguardPeerFlags::ReplaceAllowedIps),
            WireguardPeerAttribute::Endpoint(peer.endpoint),
            WireguardPeerAttribute::PersistentKeepalive(KEEPALIVE),
            WireguardPeerAttribute::AllowedIps(vec![allowed]),
        ]);
        let peer = WireguardAttribute::Peers(vec![peer]);
        self.set("giving a peer to", vec![peer]).await
    }

    async fn set(&mut self, what: &str, attributes: Vec<WireguardAttribute>) -> Result<()> {
        self.ask(what, WireguardCmd::SetDevice, attributes, NLM_F_ACK)
            .await
            .map(drop)
    }

    /// What the kernel answers of the device.
    async fn ask(
        &mut self,
        what: &str,
        cmd: WireguardCmd,
        more: Vec<WireguardAttribute>,
        flags: u16,
    ) -> Result<Vec<WireguardAttribute>> {
        let what = format!("{what} {}", self.name);
        let failed = |why: String| NetworkError::WireGuard {
            what: what.clone(),
            why,
        };
        let mut attributes = vec![WireguardAttribute::IfName(self.name.clone())];
        attributes.extend(more);
        let mut message =
            NetlinkMessage::from(GenlMessage::from_payload(WireguardMessage { cmd, attributes }));
        message.header.flags = NLM_F_REQUEST | flags;
        let answers = self.handle.request(message).await;
        let mut answers = answers.map_err(|error| failed(error.to_string()))?;
        let mut found = Vec::new();
        while let Some(answer) = answers.next().await {
            match answer.map_err(|error| failed(error.to_string()))?.payload {
                NetlinkPayload::InnerMessage(message) => found.extend(message.payload.attributes),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(failed(error.to_io().to_string()));
                }
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A peer with many addresses comes in several parts.
fn take_peer(peers: &mut BTreeMap<WireGuardKey, BTreeSet<(IpAddr, u8)>>, peer: &[WireguardPeerAttribute]) {
    let key = peer.iter().find_map(|attribute| match attribute {
        WireguardPeerAttribute::PublicKey(key) => Some(WireGuardKey(*key)),
        _ => None,
    });
    let Some(key) = key else { return };
    let held = peers.entry(key).or_default();
    for attribute in peer {
        let WireguardPeerAttribute::AllowedIps(allowed) = attribute else {
            continue;
        };
        for WireguardAllowedIp(parts) in allowed {
            let (mut address, mut length) = (None, None);
            for part in parts {
                match part {
                    WireguardAllowedIpAttr::IpAddr(found) => address = Some(*found),
                    WireguardAllowedIpAttr::Cidr(found) => length = Some(*found),
                    _ => {}
                }
            }
            held.extend(address.zip(length));
        }
    }
}
