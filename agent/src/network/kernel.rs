//! The kernel's side of networks, over netlink: looking, and carrying out the plan's steps. Thin.
//!
//! "Already so" is success, and so is deleting what is gone. Every socket belongs to one namespace: it was opened by a thread
//! inside it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::PathBuf;

use berth_common::model::{HostNumber, Subnets, Vni};
use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags};
use netlink_packet_route::link::{InfoData, InfoVeth, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{
    Error, Handle, LinkBridge, LinkBridgePort, LinkUnspec, LinkVeth, LinkVxlan, RouteMessageBuilder,
};

use super::links;
use super::namespace::Namespace;
use super::plan::{BRIDGE, Entry, INSIDE, Link, Overlay, Seen, Step, TUNNEL, port_name};

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A namespace can't be made, kept or entered.
    #[error("{what}")]
    Namespace {
        /// What was tried.
        what: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A request was refused.
    #[error("{what}")]
    Netlink {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        #[source]
        source: Error,
    },
    /// Somebody else's device has the identifier.
    #[error(
        "another device of this host has VNI {0} on berth's VXLAN port; find it with `ip -d link show type vxlan` and remove it"
    )]
    Taken(Vni),
    /// A link that must be there is not.
    #[error("{0} is not there; it is made anew with the next look at this network")]
    Missing(String),
}

/// Requests under way at a time: netlink's socket has room for their answers.
const AT_ONCE: usize = 128;

type Result<T> = std::result::Result<T, NetworkError>;

/// This host's networks.
#[derive(Debug)]
pub struct Kernel {
    host: Namespace,
    folder: PathBuf,
}

/// Netlink in one namespace.
#[derive(Debug)]
struct Within {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Within {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Within {
    fn open(namespace: &Namespace) -> Result<Self> {
        let runtime = tokio::runtime::Handle::current();
        let opened = namespace.within(move || {
            let _context = runtime.enter();
            rtnetlink::new_connection().map(|(connection, handle, _)| (runtime.spawn(connection), handle))
        });
        let (task, handle) = opened
            .and_then(std::convert::identity)
            .map_err(|source| namespace_failed("speaking netlink in a network's namespace", source))?;
        Ok(Self { handle, task })
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        let found = self.handle.link().get().execute().try_collect().await;
        found.map_err(|source| failed("listing links", source))
    }

    /// A link's index; none if it isn't there.
    async fn index(&self, name: &str) -> Result<Option<u32>> {
        let found = self
            .handle
            .link()
            .get()
            .match_name(name)
            .execute()
            .try_next()
            .await;
        match found {
            Ok(message) => Ok(message.map(|message| message.header.index)),
            Err(error) if errno(&error) == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(failed(format!("looking for {name}"), error)),
        }
    }

    async fn needed(&self, name: &str) -> Result<u32> {
        self.index(name)
            .await?
            .ok_or_else(|| NetworkError::Missing(name.to_owned()))
    }

    async fn change(&self, what: &str, message: LinkMessage) -> Result<()> {
        let changed = self.handle.link().change(message).execute().await;
        changed.map_err(|source| failed(what, source))
    }

    async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut request = self.handle.address().add(index, address, prefix).replace();
        if address.is_ipv6() {
            // The brain gave it to nobody else: there is nothing to detect, and detection would cost a second.
            request
                .message_mut()
                .attributes
                .push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let added = request.execute().await;
        added.map_err(|source| failed(format!("adding address {address}"), source))
    }

    /// Makes a link a port of the bridge that neither learns nor floods, and sets it up.
    async fn guard(&self, name: &str, index: u32, bridge: u32, mtu: u32) -> Result<()> {
        let joined = LinkUnspec::new_with_index(index)
            .controller(bridge)
            .mtu(mtu)
            .build();
        self.change(&format!("making {name} a port of the bridge"), joined)
            .await?;
        let guard = if name == TUNNEL {
            links::TUNNEL_GUARD
        } else {
            links::PORT_GUARD
        };
        let port = LinkBridgePort::new(index);
        let port = guard
            .into_iter()
            .fold(port, |port, info| port.append_info_data(info));
        self.change(
            &format!("keeping {name} from learning and flooding"),
            port.build(),
        )
        .await?;
        let up = LinkUnspec::new_with_index(index).up().build();
        self.change(&format!("setting {name} up"), up).await
    }
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

    fn within(&self, vni: Vni) -> Result<Within> {
        let namespace = self.open(vni)?;
        let namespace = namespace.ok_or_else(|| NetworkError::Missing(format!("network {vni}")))?;
        Within::open(&namespace)
    }

    /// What is there of a network; none if not even its namespace.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub async fn observe(&self, vni: Vni) -> Result<Option<Seen>> {
        let Some(namespace) = self.open(vni)? else {
            return Ok(None);
        };
        let inside = Within::open(&namespace)?;
        let messages = inside.links().await?;
        let named = messages
            .iter()
            .filter_map(|link| Some((link.header.index, links::name(link)?.to_owned())));
        let names: BTreeMap<u32, String> = named.collect();
        let bridge = names
            .iter()
            .find(|(_, name)| *name == BRIDGE)
            .map(|(index, _)| *index);
        let mut seen = Seen::default();
        for message in &messages {
            let name = &names[&message.header.index];
            if name != "lo" {
                seen.links.insert(name.clone(), links::link(message, bridge));
            }
        }
        let neighbours = |family: AddressFamily| {
            let request = inside.handle.neighbours().get().set_address_family(family);
            request.execute().try_collect::<Vec<_>>()
        };
        if let Some(bridge) = bridge {
            let addresses = inside
                .handle
                .address()
                .get()
                .execute()
                .try_collect::<Vec<_>>()
                .await;
            let addresses = addresses.map_err(|source| failed("listing addresses", source))?;
            seen.entries.extend(
                addresses
                    .iter()
                    .filter_map(|message| links::address(message, bridge)),
            );
            for family in [AddressFamily::Inet, AddressFamily::Inet6] {
                let found = neighbours(family)
                    .await
                    .map_err(|source| failed("listing neighbours", source))?;
                seen.entries.extend(
                    found
                        .iter()
                        .filter_map(|message| links::neighbour(message, bridge)),
                );
            }
        }
        let forwards = neighbours(AddressFamily::Bridge).await;
        let forwards = forwards.map_err(|source| failed("listing forwarding entries", source))?;
        seen.entries.extend(
            forwards
                .iter()
                .filter_map(|message| links::forward(message, &names)),
        );
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
                        change_entries(inside, group).await?;
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
            Step::DeleteLink(name) => delete_link(inside, name).await,
            Step::MakeLink(name, link) => {
                self.make_link_soon(vni, name, link).await?;
                set_link(inside, name, link).await
            }
            Step::SetLink(name, link) => set_link(inside, name, link).await,
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
                let Some(namespace) = self.open(vni)? else {
                    return Err(NetworkError::Missing(format!("network {vni}")));
                };
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

    /// Gives a container its end of an endpoint: a pair of links, its addresses, the way to everywhere else.
    ///
    /// # Errors
    /// When the kernel refuses, or the network is not there. To be tried again as it is.
    pub async fn attach(&self, overlay: &Overlay, host: HostNumber, container: &Namespace) -> Result<()> {
        let (vni, net) = (overlay.vni, &overlay.subnets);
        let inside = self.within(vni)?;
        let (outer, bridge) = (port_name(host), inside.needed(BRIDGE).await?);
        let there = Within::open(container)?;
        if there.index(INSIDE).await?.is_none() || inside.index(&outer).await?.is_none() {
            // One end without the other is of an earlier life.
            delete_link(&inside, &outer).await?;
            delete_link(&there, INSIDE).await?;
            let end = LinkUnspec::new_with_name(INSIDE)
                .address(net.mac(host).0.to_vec())
                .mtu(overlay.mtu())
                .setns_by_fd(container.as_fd().as_raw_fd())
                .build();
            let pair = LinkVeth::new(&outer, INSIDE)
                .mtu(overlay.mtu())
                .set_info_data(InfoData::Veth(InfoVeth::Peer(end)))
                .build();
            let made = inside.handle.link().add(pair).execute().await;
            made.map_err(|source| failed(format!("making {outer}"), source))?;
        }
        let index = inside.needed(&outer).await?;
        inside.guard(&outer, index, bridge, overlay.mtu()).await?;
        add(&inside, index, Entry::Forward(net.mac(host), Some(host))).await?;

        let end = there.needed(INSIDE).await?;
        for (link, what) in [(1, "the loopback"), (end, INSIDE)] {
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
        let four = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .gateway(net.address(Subnets::GATEWAY))
            .output_interface(end)
            .build();
        let six = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
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

async fn set_link(inside: &Within, name: &str, link: &Link) -> Result<()> {
    let index = inside.needed(name).await?;
    match link {
        Link::Bridge { mac, mtu } => {
            let bridge = LinkUnspec::new_with_index(index)
                .address(mac.0.to_vec())
                .mtu(*mtu)
                .up();
            inside.change(&format!("changing {name}"), bridge.build()).await
        }
        Link::Tunnel { mtu, .. } | Link::Port { mtu, .. } => {
            let bridge = inside.needed(BRIDGE).await?;
            inside.guard(name, index, bridge, *mtu).await
        }
        Link::Other => Ok(()),
    }
}

async fn delete_link(inside: &Within, name: &str) -> Result<()> {
    let Some(index) = inside.index(name).await? else {
        return Ok(());
    };
    match inside.handle.link().del(index).execute().await {
        Err(error) if is_gone(&error) => Ok(()),
        deleted => deleted.map_err(|source| failed(format!("deleting {name}"), source)),
    }
}

/// The entry that a step is about.
const fn entry(step: &Step) -> Option<Entry> {
    match step {
        Step::Add(entry) | Step::Delete(entry) => Some(*entry),
        _ => None,
    }
}

/// Entries in any order: no two of a plan have the same key. Ten thousand answers are not waited for one after another.
async fn change_entries(inside: &Within, steps: &[Step]) -> Result<()> {
    let links = inside.links().await?;
    let named = links
        .iter()
        .filter_map(|link| Some((links::name(link)?, link.header.index)));
    let indexes: BTreeMap<&str, u32> = named.collect();
    let changes = futures::stream::iter(steps)
        .map(Ok)
        .try_for_each_concurrent(AT_ONCE, |step| {
            let link = entry(step).map(|entry| link_of(&entry)).unwrap_or_default();
            let index = indexes.get(link.as_str()).copied();
            async move {
                match (step, index) {
                    (Step::Add(entry), Some(index)) => add(inside, index, *entry).await,
                    (Step::Delete(entry), Some(index)) => delete(inside, index, *entry).await,
                    (Step::Add(_), None) => Err(NetworkError::Missing(link)),
                    // Entries go with their link.
                    _ => Ok(()),
                }
            }
        });
    changes.await
}

/// The link that an entry is on.
fn link_of(entry: &Entry) -> String {
    match entry {
        Entry::Address(..) | Entry::Neighbour(..) => BRIDGE.to_owned(),
        Entry::Forward(_, Some(host)) => port_name(*host),
        Entry::Forward(_, None) | Entry::Tunnel(..) => TUNNEL.to_owned(),
    }
}

async fn add(inside: &Within, index: u32, entry: Entry) -> Result<()> {
    let neighbours = inside.handle.neighbours();
    let request = match entry {
        Entry::Address(address, prefix) => return inside.add_address(index, address, prefix).await,
        Entry::Neighbour(address, mac) => neighbours.add(index, address).link_layer_address(&mac.0),
        Entry::Forward(mac, _) => {
            let request = neighbours.add_bridge(index, &mac.0).state(NeighbourState::Noarp);
            request.flags(NeighbourFlags::Controller)
        }
        Entry::Tunnel(mac, node) => {
            let request = neighbours.add_bridge(index, &mac.0).destination(node);
            request.flags(NeighbourFlags::Own)
        }
    };
    let added = request.replace().execute().await;
    added.map_err(|source| failed(format!("adding {entry:?}"), source))
}

async fn delete(inside: &Within, index: u32, entry: Entry) -> Result<()> {
    let neighbours = inside.handle.neighbours();
    let message = match entry {
        Entry::Address(address, prefix) => {
            let mut request = inside.handle.address().add(index, address, prefix);
            let deleted = inside
                .handle
                .address()
                .del(request.message_mut().clone())
                .execute()
                .await;
            return gone_is_fine(entry, deleted);
        }
        Entry::Neighbour(address, _) => neighbours.add(index, address).message_mut().clone(),
        Entry::Forward(mac, _) => {
            let request = neighbours.add_bridge(index, &mac.0);
            request.flags(NeighbourFlags::Controller).message_mut().clone()
        }
        Entry::Tunnel(mac, node) => {
            let request = neighbours.add_bridge(index, &mac.0).destination(node);
            request.flags(NeighbourFlags::Own).message_mut().clone()
        }
    };
    gone_is_fine(entry, neighbours.del(message).execute().await)
}

fn gone_is_fine(entry: Entry, deleted: std::result::Result<(), Error>) -> Result<()> {
    match deleted {
        Err(error) if is_gone(&error) => Ok(()),
        deleted => deleted.map_err(|source| failed(format!("deleting {entry:?}"), source)),
    }
}

fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(message.raw_code().saturating_neg()),
        _ => None,
    }
}

fn is_gone(error: &Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH};
    errno(error).is_some_and(|code| [EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH].contains(&code))
}

fn failed(what: impl Into<String>, source: Error) -> NetworkError {
    NetworkError::Netlink {
        what: what.into(),
        source,
    }
}

fn namespace_failed(what: impl Into<String>, source: io::Error) -> NetworkError {
    NetworkError::Namespace {
        what: what.into(),
        source,
    }
}
