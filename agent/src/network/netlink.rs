//! Netlink in one namespace: its links, addresses, neighbours and forwarding entries.
//!
//! "Already so" is success, and so is deleting what is gone. A socket belongs to the namespace in which a thread opened it.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use berth_common::model::Vni;
use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{InfoBridgePort, LinkExtentMask, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Error, Handle, LinkBridgePort, LinkUnspec};

use super::egress::{HOST_ADDRESS, HOST_ADDRESS6, Transit, UPLINK};
use super::links::{self, PORT_GUARD, TUNNEL_GUARD};
use super::namespace::Namespace;
use super::plan::{BRIDGE, Entry, Link, Seen, Step};
use super::uplink;

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
    /// WireGuard refused.
    #[error("{what}: {why}")]
    WireGuard {
        /// What was tried.
        what: String,
        /// Its answer.
        why: String,
    },
    /// Somebody else's device has the identifier.
    #[error(
        "another device of this host has VNI {0} on berth's VXLAN port; find it with `ip -d link show type vxlan` and remove it"
    )]
    Taken(Vni),
    /// Every number for a way out is taken.
    #[error(
        "this host has as many networks as it can have, {}; move some of its containers away: `berth node drain`",
        Transit::MOST
    )]
    Full,
    /// A link that must be there is not.
    #[error("{0} is not there; it is made anew with the next look at this network")]
    Missing(String),
}

/// Requests under way at a time: netlink's socket has room for their answers.
const AT_ONCE: usize = 128;

pub(super) type Result<T> = std::result::Result<T, NetworkError>;

/// Netlink in one namespace.
#[derive(Debug)]
pub(super) struct Within {
    pub(super) handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Within {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Opens a connection to the kernel in a namespace: it is of the one in which its socket is made. The task carries it.
pub(super) fn connect<C, H, M>(
    namespace: &Namespace,
    new: impl FnOnce() -> io::Result<(C, H, M)> + Send + 'static,
) -> io::Result<(tokio::task::JoinHandle<()>, H)>
where
    C: Future<Output = ()> + Send + 'static,
    H: Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    namespace.within(move || {
        let _context = runtime.enter();
        new().map(|(connection, handle, _)| (runtime.spawn(connection), handle))
    })?
}

impl Within {
    pub(super) fn open(namespace: &Namespace) -> Result<Self> {
        let (task, handle) = connect(namespace, rtnetlink::new_connection)
            .map_err(|source| namespace_failed("speaking netlink in a network's namespace", source))?;
        Ok(Self { handle, task })
    }

    pub(super) async fn links(&self) -> Result<Vec<LinkMessage>> {
        // Counters are most of an answer, and nobody here reads them.
        let request = self.handle.link().get();
        let request = request.set_filter_mask(AddressFamily::Unspec, vec![LinkExtentMask::SkipStats]);
        let found = request.execute().try_collect().await;
        found.map_err(|source| failed("listing links", source))
    }

    /// A link's index; none if it isn't there.
    pub(super) async fn index(&self, name: &str) -> Result<Option<u32>> {
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

    pub(super) async fn needed(&self, name: &str) -> Result<u32> {
        self.index(name)
            .await?
            .ok_or_else(|| NetworkError::Missing(name.to_owned()))
    }

    /// The MTU of the link with this address, bytes.
    pub(super) async fn mtu_at(&self, address: IpAddr) -> Result<Option<u32>> {
        let request = self.handle.address().get().set_address_filter(address);
        let held = request.execute().try_next().await;
        let held = held.map_err(|source| failed("listing addresses", source))?;
        let Some(index) = held.map(|message| message.header.index) else {
            return Ok(None);
        };
        let found = self.links().await?;
        let link = found.iter().find(|link| link.header.index == index);
        Ok(link.and_then(links::mtu))
    }

    /// The IPv6 address at which others reach the link that has an address; none if it has none that stays.
    pub(super) async fn six_at(&self, address: IpAddr) -> Result<Option<Ipv6Addr>> {
        let all = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let all = all.map_err(|source| failed("listing addresses", source))?;
        let has = |message: &&AddressMessage, address| {
            let attributes = &message.attributes;
            attributes.contains(&AddressAttribute::Address(address))
                || attributes.contains(&AddressAttribute::Local(address))
        };
        let Some(at) = all.iter().find(|message| has(message, address)) else {
            return Ok(None);
        };
        // Those that change for privacy's sake (IFA_F_TEMPORARY, of IPv4 called secondary), are no longer or not yet to be used, are
        // nobody's way in.
        let passing = AddressFlags::Secondary
            | AddressFlags::Deprecated
            | AddressFlags::Tentative
            | AddressFlags::Dadfailed;
        let of_link = all
            .iter()
            .filter(|message| message.header.index == at.header.index);
        let mut stays = of_link.filter_map(|message| {
            let flags = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Flags(flags) => Some(*flags),
                _ => None,
            });
            let found = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(IpAddr::V6(six)) => Some(*six),
                _ => None,
            })?;
            let lasts = flags.is_none_or(|flags| !flags.intersects(passing));
            (lasts && message.header.scope == AddressScope::Universe).then_some(found)
        });
        // One address of several is as good as another, so long as it is the same each time.
        let first = stays.next();
        Ok(stays.fold(first, |least, one| least.map(|least| least.min(one))))
    }

    /// What is there of a network in its namespace, and the index of its uplink's end in the host's.
    pub(super) async fn observe(&self) -> Result<(Seen, Option<u32>)> {
        let messages = self.links().await?;
        let named = messages
            .iter()
            .filter_map(|link| Some((link.header.index, links::name(link)?.to_owned())));
        let names: BTreeMap<u32, String> = named.collect();
        let named = |wanted: &str| {
            names
                .iter()
                .find(|(_, name)| *name == wanted)
                .map(|(index, _)| *index)
        };
        let (bridge, way_out) = (named(BRIDGE), named(UPLINK));
        let (mut seen, mut peer) = (Seen::default(), None);
        for message in &messages {
            let name = &names[&message.header.index];
            if name != "lo" {
                let mut link = links::link(message, bridge);
                if name == UPLINK
                    && let Link::Port { mtu, .. } = link
                {
                    peer = links::peer(message);
                    link = Link::Uplink {
                        mtu,
                        number: None,
                        whole: false,
                        six: false,
                    };
                }
                seen.links.insert(name.clone(), link);
            }
        }
        let neighbours = |family: AddressFamily| {
            let request = self.handle.neighbours().get().set_address_family(family);
            request.execute().try_collect::<Vec<_>>()
        };
        let addresses = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect::<Vec<_>>()
            .await;
        let addresses = addresses.map_err(|source| failed("listing addresses", source))?;
        if let Some(uplink) = way_out {
            let outside = addresses
                .iter()
                .filter_map(|message| uplink::outside(message, uplink));
            seen.entries.extend(outside.map(Entry::Outside));
            for host in [HOST_ADDRESS.into(), HOST_ADDRESS6.into()] {
                let found = self.way_out(uplink, host).await?;
                seen.entries.extend(found.map(|_| Entry::WayOut(host)));
            }
        }
        if let Some(bridge) = bridge {
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
        Ok((seen, peer))
    }

    pub(super) async fn change(&self, what: &str, message: LinkMessage) -> Result<()> {
        let changed = self.handle.link().change(message).execute().await;
        changed.map_err(|source| failed(what, source))
    }

    pub(super) async fn add_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
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

    /// Makes a link a port of the bridge, as its kind has to be, and sets it up.
    pub(super) async fn guard(&self, name: &str, mtu: u32, guard: [InfoBridgePort; 6]) -> Result<()> {
        let (index, bridge) = (self.needed(name).await?, self.needed(BRIDGE).await?);
        let joined = LinkUnspec::new_with_index(index)
            .controller(bridge)
            .mtu(mtu)
            .build();
        self.change(&format!("making {name} a port of the bridge"), joined)
            .await?;
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

    pub(super) async fn set_link(&self, name: &str, link: &Link) -> Result<()> {
        match link {
            Link::Bridge { mac, mtu } => {
                let index = self.needed(name).await?;
                let bridge = LinkUnspec::new_with_index(index)
                    .address(mac.0.to_vec())
                    .mtu(*mtu)
                    .up();
                self.change(&format!("changing {name}"), bridge.build()).await
            }
            Link::Tunnel { mtu, .. } => self.guard(name, *mtu, TUNNEL_GUARD).await,
            Link::Port { mtu, .. } => self.guard(name, *mtu, PORT_GUARD).await,
            Link::Uplink { mtu, .. } => {
                let index = self.needed(name).await?;
                let up = LinkUnspec::new_with_index(index).mtu(*mtu).up().build();
                self.change(&format!("setting {name} up"), up).await
            }
            Link::Other => Ok(()),
        }
    }

    pub(super) async fn delete_link(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(index).execute().await {
            Err(error) if is_gone(&error) => Ok(()),
            deleted => deleted.map_err(|source| failed(format!("deleting {name}"), source)),
        }
    }

    /// Entries in any order: no two of a plan have the same key. Ten thousand answers are not waited for one after another.
    pub(super) async fn change_entries(&self, steps: &[Step]) -> Result<()> {
        let links = self.links().await?;
        let named = links
            .iter()
            .filter_map(|link| Some((links::name(link)?, link.header.index)));
        let indexes: BTreeMap<&str, u32> = named.collect();
        let changes = futures::stream::iter(steps)
            .map(Ok)
            .try_for_each_concurrent(AT_ONCE, |step| {
                let link = entry(step).map(|entry| entry.link()).unwrap_or_default();
                let index = indexes.get(link.as_str()).copied();
                async move {
                    match (step, index) {
                        (Step::Add(entry), Some(index)) => self.add(index, *entry).await,
                        (Step::Delete(entry), Some(index)) => self.delete(index, *entry).await,
                        (Step::Add(_), None) => Err(NetworkError::Missing(link)),
                        // Entries go with their link.
                        _ => Ok(()),
                    }
                }
            });
        changes.await
    }

    pub(super) async fn add(&self, index: u32, entry: Entry) -> Result<()> {
        let neighbours = self.handle.neighbours();
        let request = match entry {
            Entry::Address(address, prefix) => return self.add_address(index, address, prefix).await,
            Entry::Outside(address) => return self.add_address(index, address, alone(address)).await,
            Entry::WayOut(host) => return self.add_way_out(index, host).await,
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

    pub(super) async fn delete(&self, index: u32, entry: Entry) -> Result<()> {
        let neighbours = self.handle.neighbours();
        let message = match entry {
            Entry::Address(address, prefix) => {
                return self.delete_address(index, entry, address, prefix).await;
            }
            Entry::Outside(address) => {
                return self.delete_address(index, entry, address, alone(address)).await;
            }
            Entry::WayOut(host) => {
                let Some(route) = self.way_out(index, host).await? else {
                    return Ok(());
                };
                return gone_is_fine(entry, self.handle.route().del(route).execute().await);
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

    /// Takes an address of a link away.
    pub(super) async fn take_address(&self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        self.delete_address(index, Entry::Address(address, prefix), address, prefix)
            .await
    }

    async fn delete_address(&self, index: u32, entry: Entry, address: IpAddr, prefix: u8) -> Result<()> {
        let addresses = self.handle.address();
        let message = addresses.add(index, address, prefix).message_mut().clone();
        gone_is_fine(entry, addresses.del(message).execute().await)
    }
}

/// The prefix of an address that is alone.
const fn alone(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// The entry that a step is about.
pub(super) const fn entry(step: &Step) -> Option<Entry> {
    match step {
        Step::Add(entry) | Step::Delete(entry) => Some(*entry),
        _ => None,
    }
}

fn gone_is_fine(entry: Entry, deleted: std::result::Result<(), Error>) -> Result<()> {
    match deleted {
        Err(error) if is_gone(&error) => Ok(()),
        deleted => deleted.map_err(|source| failed(format!("deleting {entry:?}"), source)),
    }
}

pub(super) fn errno(error: &Error) -> Option<i32> {
    match error {
        Error::NetlinkError(message) => Some(message.raw_code().saturating_neg()),
        _ => None,
    }
}

fn is_gone(error: &Error) -> bool {
    use nix::libc::{EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH};
    errno(error).is_some_and(|code| [EADDRNOTAVAIL, ENODEV, ENOENT, ESRCH].contains(&code))
}

pub(super) fn failed(what: impl Into<String>, source: Error) -> NetworkError {
    NetworkError::Netlink {
        what: what.into(),
        source,
    }
}

pub(super) fn namespace_failed(what: impl Into<String>, source: io::Error) -> NetworkError {
    NetworkError::Namespace {
        what: what.into(),
        source,
    }
}
