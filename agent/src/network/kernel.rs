//! This host's networks: their namespaces, and carrying out the plan's steps in them. Thin: what a step needs is in it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use berth_common::model::{HostNumber, Subnets, Vni};
use netlink_packet_route::link::{InfoData, InfoVeth};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder};

use super::egress::{Transit, UPLINK};
use super::links::PORT_GUARD;
use super::namespace::Namespace;
use super::netlink::{NetworkError, Result, Within, entry, errno, failed, namespace_failed};
use super::plan::{Entry, Link, Overlay, Seen, Step, TUNNEL, inside, port_name};
use super::uplink::{pass_on, pass_own};
use crate::sys::ethtool::{checksums_offloaded, offload_checksums};

/// This host's networks.
#[derive(Debug)]
pub struct Kernel {
    host: Namespace,
    folder: PathBuf,
}

impl Kernel {
    /// Networks whose packets travel in a namespace, the host's own but for tests; kept below a folder.
    pub const fn new(host: Namespace, folder: PathBuf) -> Self {
        Self { host, folder }
    }

    /// Where a network's namespace is kept.
    pub fn path(&self, vni: Vni) -> PathBuf {
        self.folder.join(vni.to_string())
    }

    /// The networks that are kept here.
    ///
    /// # Errors
    /// When the folder can't be read.
    pub fn kept(&self) -> Result<Vec<Vni>> {
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => {
                entries.map_err(|source| namespace_failed("listing the networks kept here", source))?
            }
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let numbers = names.filter_map(|name| name.to_str()?.parse::<u32>().ok());
        Ok(numbers.filter_map(|number| Vni::try_from(number).ok()).collect())
    }

    fn open(&self, vni: Vni) -> Result<Option<Namespace>> {
        use io::ErrorKind::{InvalidData, NotFound};
        match Namespace::open(&self.path(vni)) {
            Ok(found) => Ok(Some(found)),
            Err(error) if matches!(error.kind(), NotFound | InvalidData) => Ok(None),
            Err(error) => Err(namespace_failed(format!("opening network {vni}"), error)),
        }
    }

    fn needed(&self, vni: Vni) -> Result<Namespace> {
        let namespace = self.open(vni)?;
        namespace.ok_or_else(|| NetworkError::Missing(format!("network {vni}")))
    }

    fn within(&self, vni: Vni) -> Result<Within> {
        Within::open(&self.needed(vni)?)
    }

    /// The host's part of an uplink; nothing of any other link.
    async fn set_host_end(&self, vni: Vni, link: &Link) -> Result<()> {
        let Link::Uplink { number, mtu, six, .. } = link else {
            return Ok(());
        };
        let number = number.ok_or_else(|| NetworkError::Missing(UPLINK.to_owned()))?;
        Within::open(&self.host)?.set_host_end(number, *mtu, *six).await?;
        pass_own(&self.host, number)?;
        pass_on(&self.needed(vni)?)
    }

    /// Who makes checksums of what goes through the tunnel.
    fn set_checksums(&self, vni: Vni, link: &Link) -> Result<()> {
        let Link::Tunnel { offload, .. } = *link else {
            return Ok(());
        };
        let set = self.needed(vni)?.within(move || {
            // A new link leaves them to the card.
            match checksums_offloaded(TUNNEL)? == offload {
                true => Ok(()),
                false => offload_checksums(TUNNEL, offload),
            }
        });
        set.and_then(|set| set)
            .map_err(|source| namespace_failed("setting who makes checksums", source))
    }

    /// Numbers that links of this host are called after.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn transits(&self) -> Result<Vec<Transit>> {
        Within::open(&self.host)?.numbers().await
    }

    /// What is there of a network; none if not even its namespace.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn observe(&self, vni: Vni) -> Result<Option<Seen>> {
        let Some(namespace) = self.open(vni)? else {
            return Ok(None);
        };
        let (mut seen, peer) = Within::open(&namespace)?.observe().await?;
        if let (
            Some(Link::Uplink {
                number, whole, six, ..
            }),
            Some(peer),
        ) = (seen.links.get_mut(UPLINK), peer)
        {
            let end = Within::open(&self.host)?.host_end(peer).await?;
            (*number, *whole, *six) = (end.number, end.whole, end.six);
        }
        if let Some(Link::Tunnel { offload, .. }) = seen.links.get_mut(TUNNEL) {
            let asked = namespace
                .within(|| checksums_offloaded(TUNNEL))
                .and_then(|asked| asked);
            *offload = asked.map_err(|source| namespace_failed("asking who makes checksums", source))?;
        }
        Ok(Some(seen))
    }

    /// Carries out steps in their order, as far as they go.
    ///
    /// # Errors
    /// The first that failed. What was done stays: the next plan goes on from there.
    pub async fn apply(&self, vni: Vni, steps: &[Step]) -> Result<()> {
        let mut inside = None;
        for group in steps.chunk_by(|a, b| entry(a).is_some() && entry(b).is_some()) {
            match &group[0] {
                Step::MakeNamespace => self.make(vni)?,
                Step::RemoveNamespace => {
                    let released = Namespace::release(&self.path(vni));
                    released.map_err(|source| namespace_failed(format!("removing network {vni}"), source))?;
                }
                first => {
                    if inside.is_none() {
                        inside = Some(self.within(vni)?);
                    }
                    let Some(inside) = &inside else { continue };
                    if entry(first).is_some() {
                        inside.change_entries(group).await?;
                    } else {
                        self.change_link(vni, inside, first).await?;
                    }
                }
            }
        }
        Ok(())
    }

    fn make(&self, vni: Vni) -> Result<()> {
        let made = Namespace::new().and_then(|new| new.keep(&self.path(vni)));
        made.map_err(|source| namespace_failed(format!("making network {vni}"), source))
    }

    async fn change_link(&self, vni: Vni, inside: &Within, step: &Step) -> Result<()> {
        match step {
            Step::DeleteLink(name) => inside.delete_link(name).await,
            Step::MakeLink(name, link) => {
                self.make_link_soon(vni, name, link).await?;
                self.set_host_end(vni, link).await?;
                self.set_checksums(vni, link)?;
                inside.set_link(name, link).await
            }
            Step::SetLink(name, link) => {
                self.set_host_end(vni, link).await?;
                self.set_checksums(vni, link)?;
                inside.set_link(name, link).await
            }
            Step::MakeNamespace | Step::RemoveNamespace | Step::Delete(_) | Step::Add(_) => Ok(()),
        }
    }

    async fn make_link(&self, vni: Vni, name: &str, link: &Link) -> Result<()> {
        let made = match link {
            Link::Bridge { mac, mtu } => {
                let bridge = LinkBridge::new(name)
                    .mcast_snooping(false)
                    .vlan_default_pvid(0)
                    .address(mac.0.to_vec())
                    .mtu(*mtu)
                    .build();
                self.within(vni)?.handle.link().add(bridge).execute().await
            }
            Link::Tunnel {
                vni: id,
                local,
                port,
                mtu,
                ..
            } => {
                let namespace = self.needed(vni)?;
                let tunnel = LinkVxlan::new(name, u32::from(*id)).port(*port).learning(false);
                let tunnel = match local {
                    IpAddr::V4(address) => tunnel.local(*address),
                    IpAddr::V6(address) => tunnel.local6(*address),
                };
                // Asked for by the host, so that its packets travel there, and put into the network's namespace at once.
                let tunnel = tunnel
                    .mtu(*mtu)
                    .setns_by_fd(namespace.as_fd().as_raw_fd())
                    .build();
                Within::open(&self.host)?
                    .handle
                    .link()
                    .add(tunnel)
                    .execute()
                    .await
            }
            Link::Uplink { mtu, number, .. } => {
                let (network, number) = (
                    self.needed(vni)?,
                    number.ok_or_else(|| NetworkError::Missing(UPLINK.to_owned()))?,
                );
                return Within::open(&self.host)?
                    .make_uplink(number, *mtu, &network)
                    .await;
            }
            Link::Port { .. } | Link::Other => return Err(NetworkError::Missing(name.to_owned())),
        };
        match made {
            Err(error) if errno(&error) == Some(nix::libc::EEXIST) => {
                let there = self.within(vni)?.index(name).await?;
                there.map(|_| ()).ok_or(NetworkError::Taken(vni))
            }
            made => made.map_err(|source| failed(format!("making {name}"), source)),
        }
    }

    /// A network's links that were let go of are gone a little later (cleanup_net); until then their identifier is taken.
    async fn make_link_soon(&self, vni: Vni, name: &str, link: &Link) -> Result<()> {
        for _ in 0..50 {
            match self.make_link(vni, name, link).await {
                Err(NetworkError::Taken(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                made => return made,
            }
        }
        self.make_link(vni, name, link).await
    }

    /// The MTU of the host's link with this address, bytes; none if no link has it.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn mtu_at(&self, address: IpAddr) -> Result<Option<u32>> {
        Within::open(&self.host)?.mtu_at(address).await
    }

    /// The IPv6 address at which others reach the host's link with this address; none if there is none that stays.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn six_at(&self, address: IpAddr) -> Result<Option<Ipv6Addr>> {
        Within::open(&self.host)?.six_at(address).await
    }

    /// The host's own namespace.
    pub const fn host(&self) -> &Namespace {
        &self.host
    }

    /// A network's namespace; none if it is not there.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn namespace(&self, vni: Vni) -> Result<Option<Namespace>> {
        self.open(vni)
    }

    /// Gives a container its end of an endpoint: a pair of links, its addresses, and on its first network (0) the way to
    /// everywhere else.
    ///
    /// # Errors
    /// When the kernel refuses, or the network is not there. To be tried again as it is.
    pub async fn attach(
        &self,
        overlay: &Overlay,
        host: HostNumber,
        container: &Namespace,
        place: usize,
    ) -> Result<()> {
        let name = inside(place);
        let (vni, net) = (overlay.vni, &overlay.subnets);
        let inside = self.within(vni)?;
        let outer = port_name(host);
        let there = Within::open(container)?;
        if there.index(&name).await?.is_none() || inside.index(&outer).await?.is_none() {
            // One end without the other is of an earlier life.
            inside.delete_link(&outer).await?;
            there.delete_link(&name).await?;
            let end = LinkUnspec::new_with_name(&name)
                .address(net.mac(host).0.to_vec())
                .mtu(overlay.mtu())
                .setns_by_fd(container.as_fd().as_raw_fd())
                .build();
            let pair = LinkVeth::new(&outer, &name)
                .mtu(overlay.mtu())
                .set_info_data(InfoData::Veth(InfoVeth::Peer(end)))
                .build();
            let made = inside.handle.link().add(pair).execute().await;
            made.map_err(|source| failed(format!("making {outer}"), source))?;
        }
        inside.guard(&outer, overlay.mtu(), PORT_GUARD).await?;
        let index = inside.needed(&outer).await?;
        inside
            .add(index, Entry::Forward(net.mac(host), Some(host)))
            .await?;

        let end = there.needed(&name).await?;
        for (link, what) in [(1, "the loopback"), (end, name.as_str())] {
            let up = LinkUnspec::new_with_index(link).up().build();
            there.change(&format!("setting {what} up"), up).await?;
        }
        let addresses: [(IpAddr, u8); 2] = [
            (net.address(host).into(), net.v4().prefix_len()),
            (net.address6(host).into(), net.v6().prefix_len()),
        ];
        for (address, prefix) in addresses {
            there.add_address(end, address, prefix).await?;
        }
        if place > 0 {
            return Ok(());
        }
        let four = RouteMessageBuilder::<Ipv4Addr>::new()
            .gateway(net.address(Subnets::GATEWAY))
            .output_interface(end)
            .build();
        let six = RouteMessageBuilder::<Ipv6Addr>::new()
            .gateway(net.address6(Subnets::GATEWAY))
            .output_interface(end)
            .build();
        for route in [four, six] {
            let added = there.handle.route().add(route).replace().execute().await;
            added.map_err(|source| failed("adding the default route", source))?;
        }
        Ok(())
    }
}
