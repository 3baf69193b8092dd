//! A packet's way through this host, place by place: what is wanted against what is there, told in words. Pure.
//!
//! It asks nobody and sends nothing: it follows the same entries that the kernel would follow.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::id::Name;
use berth_common::model::{HostNumber, Subnets};
use berth_common::protocol::{Half, Hop, Member, Named, TraceRequest};

use super::plan::{BRIDGE, Entry, Link, Overlay, Seen, TUNNEL, port_name};

/// What a container's end of a network is, as its namespace has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// What it is called there.
    pub name: String,
    /// It is up.
    pub up: bool,
    /// The addresses on it.
    pub addresses: BTreeSet<IpAddr>,
}

/// All that is known of the way here.
#[derive(Debug)]
pub struct Known<'a> {
    /// What is asked.
    pub asked: &'a TraceRequest,
    /// What the container is called, for people.
    pub container: String,
    /// The container's end; none: it does not run here.
    pub end: Option<End>,
    /// The network as it must be.
    pub wanted: &'a Overlay,
    /// As it is; none: it is not there.
    pub seen: Option<&'a Seen>,
    /// Names on the network.
    pub names: &'a BTreeSet<Named>,
    /// What leads to services is in force in the container; none: nothing has to be.
    pub led: Option<bool>,
    /// Services that may open connections to the container; none: all.
    pub lets_in: Option<&'a [Name]>,
    /// Nodes of other sites that the way leads to through WireGuard.
    pub sealed: BTreeSet<IpAddr>,
    /// Why the other's node can't be sent to, where its endpoint is known and the node is left out.
    pub left_out: Option<String>,
}

/// Said of what the agent mends by itself.
const SOON: &str = "the agent looks every 5 seconds and mends this; where it stays, `berth node inspect` and the agent's log say what keeps it";

/// The way, in order. It ends with the first place where the packet does.
pub fn hops(known: &Known<'_>) -> Vec<Hop> {
    let mut hops = Vec::new();
    // An error is the last place.
    let done = match known.asked.half {
        Half::Out => out(known, &mut hops),
        Half::In => inward(known, &mut hops),
        Half::Unknown => {
            Err(Hop::unknown("node", "this agent knows no such part of a way").cure("upgrade the agent"))
        }
    };
    hops.extend(done.err());
    hops
}

type Went = Result<(), Hop>;

fn out(known: &Known<'_>, hops: &mut Vec<Hop>) -> Went {
    let Known { asked, wanted, .. } = *known;
    let net = &wanted.subnets;
    let to = net.address(asked.other);
    let end = container_end(known)?;
    hops.push(Hop::passes(
        "container",
        format!(
            "leaves {} by {} as {}",
            known.container,
            end.name,
            net.address(asked.host)
        ),
    ));
    if let Some(service) = asked.service {
        hops.push(service_address(known, service)?);
    }
    let seen = network(known)?;
    port(known, seen, asked.host)?;
    let mac = net.mac(asked.other);
    let has = |entry: Entry| seen.entries.contains(&entry);
    let local = wanted.local.contains(&asked.other);
    let node = wanted.remote.as_ref().and_then(|remote| remote.get(&asked.other));
    if !local && node.is_none() {
        return Err(match (&known.left_out, &wanted.remote) {
            (Some(why), _) => Hop::drops("bridge", why.clone()),
            (None, None) => Hop::unknown("bridge", "this node has not heard since it started which endpoints there are elsewhere")
                .cure("it is told when it is connected to the brain"),
            (None, Some(_)) => Hop::drops("bridge", format!("this node does not know on which node {to} is"))
                .cure("it is told within moments; where it stays, see whether the node is connected (berth node ls)"),
        });
    }
    if !has(Entry::Neighbour(to.into(), mac)) {
        return Err(Hop::drops(
            "bridge",
            format!("nobody answers who has {to}: the bridge's entry for it is missing"),
        )
        .cure(SOON));
    }
    if !has(Entry::Forward(mac, local.then_some(asked.other))) {
        return Err(Hop::drops(
            "bridge",
            format!("no entry leads to {mac}, the hardware address of {to}"),
        )
        .cure(SOON));
    }
    let Some(node) = node.filter(|_| !local) else {
        hops.push(Hop::passes(
            "bridge",
            format!(
                "{to} is {mac}, on this node: to its port {}",
                port_name(asked.other)
            ),
        ));
        return Ok(());
    };
    hops.push(Hop::passes("bridge", format!("{to} is {mac}, behind the tunnel")));
    tunnel(known, seen)?;
    if !has(Entry::Tunnel(mac, *node)) {
        return Err(Hop::drops("tunnel", format!("its entry for {mac} does not lead to {node}")).cure(SOON));
    }
    hops.push(Hop::passes(
        "tunnel",
        format!(
            "VXLAN network {}, from {} to {node}, UDP port {}",
            wanted.vni, wanted.underlay.0, wanted.port
        ),
    ));
    hops.push(match known.sealed.contains(node) {
        true => Hop::passes(
            "host",
            "the other is at another site: encrypted by WireGuard, or not sent",
        ),
        false => Hop::passes("host", "sent as it is: both nodes are at one site"),
    });
    Ok(())
}

fn inward(known: &Known<'_>, hops: &mut Vec<Hop>) -> Went {
    let Known { asked, wanted, .. } = *known;
    let net = &wanted.subnets;
    let (from, own) = (net.address(asked.other), net.address(asked.host));
    let seen = network(known)?;
    if !wanted.local.contains(&asked.other) {
        let node = wanted.remote.as_ref().and_then(|remote| remote.get(&asked.other));
        let Some(node) = node else {
            let why = known.left_out.clone().unwrap_or_else(|| {
                format!("VXLAN packets are accepted from known nodes alone, and this node does not know yet where {from} is")
            });
            return Err(Hop::drops("host", why).cure("it is told within moments; where it stays, see whether the node is connected (berth node ls)"));
        };
        hops.push(match known.sealed.contains(node) {
            true => Hop::passes("host", format!("accepted from {node} through WireGuard alone")),
            false => Hop::passes("host", format!("VXLAN packets from {node} are accepted")),
        });
        tunnel(known, seen)?;
        hops.push(Hop::passes("tunnel", format!("VXLAN network {}", wanted.vni)));
    }
    let mac = net.mac(asked.host);
    if !seen.entries.contains(&Entry::Forward(mac, Some(asked.host))) {
        return Err(Hop::drops(
            "bridge",
            format!("no entry leads to {mac}, the hardware address of {own}"),
        )
        .cure(SOON));
    }
    port(known, seen, asked.host)?;
    hops.push(Hop::passes(
        "bridge",
        format!("{own} is {mac}, at port {}", port_name(asked.host)),
    ));
    hops.push(ingress(known)?);
    let end = container_end(known)?;
    hops.push(Hop::passes(
        "container",
        format!("arrives in {} by {}", known.container, end.name),
    ));
    Ok(())
}

fn container_end<'a>(known: &'a Known<'_>) -> Result<&'a End, Hop> {
    let net = &known.wanted.subnets;
    let own: [IpAddr; 2] = [
        net.address(known.asked.host).into(),
        net.address6(known.asked.host).into(),
    ];
    let Some(end) = &known.end else {
        return Err(
            Hop::drops("container", format!("{} does not run here", known.container))
                .cure("berth ps says how it stands"),
        );
    };
    let wrong = |what: String| Err(Hop::drops("container", what).cure(SOON));
    if end.name.is_empty() {
        return wrong(format!("{} has no link for this network", known.container));
    }
    if !end.up {
        return wrong(format!("its {} is down", end.name));
    }
    match own.iter().find(|address| !end.addresses.contains(*address)) {
        Some(missing) => wrong(format!("its {} lacks the address {missing}", end.name)),
        None => Ok(end),
    }
}

fn service_address(known: &Known<'_>, service: HostNumber) -> Result<Hop, Hop> {
    let net = &known.wanted.subnets;
    let at = net.address(service);
    let place = "service address";
    let name = known
        .names
        .iter()
        .find(|named| named.member == Member::Service && named.host == service);
    let Some(name) = name.map(|named| &named.service) else {
        return Err(Hop::drops(place, format!("this node knows no service with the address {at}"))
            .cure("it is told within moments; where it stays, see whether the node is connected (berth node ls)"));
    };
    let replicas: BTreeMap<u32, HostNumber> =
        berth_common::protocol::replicas_of(known.names, name).collect();
    if !replicas.values().any(|host| *host == known.asked.other) {
        return Err(Hop::drops(
            place,
            format!(
                "{at} leads to {} replicas of {name} that take requests here, and not to {}",
                replicas.len(),
                net.address(known.asked.other)
            ),
        )
        .cure("berth ps says which of its containers are ready"));
    }
    match known.led {
        Some(false) => Err(Hop::drops(
            place,
            format!("the table that leads from {at} to replicas is not in force in the container"),
        )
        .cure(SOON)),
        _ => {
            let one_of = match replicas.len() {
                1 => "the one replica that takes requests".to_owned(),
                count => format!("one of {count} replicas that take requests in turn"),
            };
            Ok(Hop::passes(
                place,
                format!(
                    "{at} of {name} becomes {}, {one_of}",
                    net.address(known.asked.other)
                ),
            ))
        }
    }
}

fn network<'a>(known: &Known<'a>) -> Result<&'a Seen, Hop> {
    let Some(seen) = known.seen else {
        return Err(Hop::drops("bridge", "the network is not there").cure(SOON));
    };
    match (seen.links.get(BRIDGE), known.wanted.links().get(BRIDGE)) {
        (Some(is), Some(must)) if is == must => Ok(seen),
        (None, _) => Err(Hop::drops("bridge", "it is not there").cure(SOON)),
        (Some(is), _) => Err(Hop::drops("bridge", format!("it is not as it must be: {is:?}")).cure(SOON)),
    }
}

fn port(known: &Known<'_>, seen: &Seen, host: HostNumber) -> Went {
    let name = port_name(host);
    match seen.links.get(&name) {
        Some(link @ Link::Port { .. }) if Some(link) == known.wanted.links().get(&name) => Ok(()),
        Some(link) => Err(Hop::drops(
            "bridge",
            format!("its port {name} is not as it must be: {link:?}"),
        )
        .cure(SOON)),
        None => Err(Hop::drops("bridge", format!("its port {name} is not there")).cure(SOON)),
    }
}

fn tunnel(known: &Known<'_>, seen: &Seen) -> Went {
    match (seen.links.get(TUNNEL), known.wanted.links().get(TUNNEL)) {
        (Some(is), Some(must)) if is == must => Ok(()),
        (None, _) => Err(Hop::drops("tunnel", "it is not there").cure(SOON)),
        (Some(is), _) => Err(Hop::drops("tunnel", format!("it is not as it must be: {is:?}")).cure(SOON)),
    }
}

/// Whether the container lets the other in.
fn ingress(known: &Known<'_>) -> Result<Hop, Hop> {
    let place = "ingress";
    let Some(services) = known.lets_in else {
        return Ok(Hop::passes(
            place,
            "everybody on the network may open connections to it",
        ));
    };
    let list = services.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    let list = if list.is_empty() {
        "nobody".to_owned()
    } else {
        list
    };
    let of = known
        .names
        .iter()
        .find(|named| named.member != Member::Service && named.host == known.asked.other);
    match of {
        Some(named) if services.contains(&named.service) => Ok(Hop::passes(
            place,
            format!(
                "{} may open connections to it (--ingress-from {list})",
                named.service
            ),
        )),
        Some(named) => Err(Hop::drops(
            place,
            format!(
                "{} may not open connections to it: it lets in {list}",
                named.service
            ),
        )
        .cure(format!(
            "berth service update SERVICE --ingress-from {} lets it in, too",
            named.service
        ))),
        None => Err(Hop::drops(
            place,
            format!(
                "it lets in {list}, and this node does not know yet whose {} is",
                address(known)
            ),
        )
        .cure("it is told within moments")),
    }
}

fn address(known: &Known<'_>) -> IpAddr {
    let net: &Subnets = &known.wanted.subnets;
    net.address(known.asked.other).into()
}

#[cfg(test)]
mod tests;
