//! A packet's way between two containers, as far as the brain knows it: who is asked for which half, or why nobody needs to be. Pure.

use berth_common::api::{HopView, Trace};
use berth_common::id::{Name, NodeId, ServiceId};
use berth_common::model::{ContainerRecord, Endpoint, HostNumber, NodeRecord};
use berth_common::protocol::{Half, Hop, TraceRequest, Verdict};

use crate::cluster::{State, sites};

/// Where a packet is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum To<'a> {
    /// To a container itself.
    Container(&'a ContainerRecord),
    /// To a service, behind whose address its replicas take turns.
    Service(ServiceId, &'a Name),
}

/// A half of the way that a node can tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The node.
    pub node: NodeId,
    /// What it is asked.
    pub request: TraceRequest,
}

/// The way, as far as it is known without asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The half that begins it.
    pub out: Ask,
    /// The other node, where it is another.
    pub wire: Option<Hop>,
    /// The half that ends it.
    pub into: Ask,
}

fn named(container: &ContainerRecord) -> String {
    format!("{}.{}", container.service_name, container.replica)
}

/// What is to be asked; or the place where the packet ends, which needs no asking. `network`: only by this one.
///
/// # Errors
/// That place.
pub fn way(state: &State, from: &ContainerRecord, to: To<'_>, network: Option<&Name>) -> Result<Way, Hop> {
    let sender = placed(state, from)?;
    let (target, service) = match to {
        To::Container(target) => (target, None),
        To::Service(id, name) => {
            let mut ready = state
                .containers_of(id)
                .filter(|c| c.id != from.id && state.takes_requests(c));
            let target = ready.next().ok_or_else(|| {
                Hop::drops("service", format!("no other container of {name} takes requests"))
                    .cure(format!("berth ps {name} says how they stand"))
            })?;
            (&**target, Some(name))
        }
    };
    let receiver = placed(state, target)?;
    let usable = |endpoint: &Endpoint| {
        let record = state.networks.get(&endpoint.vni).map(|network| &network.record);
        network.is_none_or(|wanted| record.is_some_and(|record| record.name == *wanted))
    };
    let pairs = from.endpoints.iter().filter(|own| usable(own)).filter_map(|own| {
        let other = target.endpoints.iter().find(|other| other.vni == own.vni)?;
        Some((*own, *other))
    });
    let mut pairs: Vec<(Endpoint, Endpoint)> = pairs.collect();
    // A service is called by the address it has on a network; not on each it has one.
    let address = |vni| -> Option<HostNumber> { state.networks.get(&vni)?.addresses.get(service?).copied() };
    if service.is_some() && pairs.iter().any(|(own, _)| address(own.vni).is_some()) {
        pairs.retain(|(own, _)| address(own.vni).is_some());
    }
    let Some((own, other)) = pairs.first().copied() else {
        return Err(apart_by_networks(state, from, target, network));
    };
    let request = |half, container: &ContainerRecord, host, other, service| TraceRequest {
        half,
        container: container.id,
        vni: own.vni,
        host,
        other,
        service,
    };
    Ok(Way {
        out: Ask {
            node: sender.id,
            request: request(Half::Out, from, own.host, other.host, address(own.vni)),
        },
        wire: (sender.id != receiver.id).then(|| wire(sender, receiver)),
        into: Ask {
            node: receiver.id,
            request: request(Half::In, target, other.host, own.host, None),
        },
    })
}

fn placed<'a>(state: &'a State, container: &ContainerRecord) -> Result<&'a NodeRecord, Hop> {
    let name = named(container);
    let on = container.node.and_then(|id| state.nodes.get(&id));
    on.map(|node| &**node).ok_or_else(|| {
        Hop::drops("container", format!("{name} has no node yet")).cure("berth ps says what it waits for")
    })
}

fn apart_by_networks(
    state: &State,
    from: &ContainerRecord,
    to: &ContainerRecord,
    only: Option<&Name>,
) -> Hop {
    let list = |container: &ContainerRecord| {
        let names = container
            .endpoints
            .iter()
            .filter_map(|endpoint| state.networks.get(&endpoint.vni));
        let names: Vec<_> = names.map(|network| network.record.name.as_str()).collect();
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", "),
        }
    };
    let (one, other) = (named(from), named(to));
    let text = match only {
        Some(only) => format!("{one} and {other} are not both on network {only}"),
        None => format!("{one} and {other} have no network in common"),
    };
    Hop::drops(
        "network",
        format!("{text}: {one} is on {}, {other} on {}", list(from), list(to)),
    )
    .cure(format!(
        "berth service update {} --network … puts it on others, too",
        to.service_name
    ))
}

fn wire(from: &NodeRecord, to: &NodeRecord) -> Hop {
    if let Some(why) = sites::apart(from, to) {
        return Hop::drops("wire", why);
    }
    let (one, other) = (&from.name, &to.name);
    let how = match sites::sealed(from, to).is_some() {
        true => "through WireGuard",
        false => "directly",
    };
    Hop::passes(
        "wire",
        format!(
            "from {one} to {other} {how}; whether it really carries packets, `berth network check {one} {other}` measures"
        ),
    )
}

/// The whole way from its parts. It ends with the first place where the packet does not go on.
pub fn told(from: String, to: String, places: Vec<(Option<Name>, Hop)>) -> Trace {
    let mut hops = Vec::new();
    let mut verdict = Verdict::Passes;
    for (node, hop) in places {
        verdict = hop.verdict;
        hops.push(HopView {
            node,
            place: hop.place,
            verdict,
            text: hop.text,
            cure: hop.cure,
        });
        if verdict != Verdict::Passes {
            break;
        }
    }
    Trace {
        from,
        to,
        verdict,
        hops,
    }
}

/// A text without a node's address: what hosts' addresses are is not for tenants.
pub fn without_address(text: &str, address: &str, name: &str) -> String {
    let part = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
    let (mut out, mut rest) = (String::with_capacity(text.len()), text);
    while let Some(at) = rest.find(address) {
        let (before, after) = (&rest[..at], &rest[at + address.len()..]);
        // A sentence's own full stop or colon may follow.
        let goes_on = after.chars().next().is_some_and(|c| c.is_ascii_hexdigit())
            || (after.starts_with(['.', ':']) && after[1..].starts_with(|c: char| c.is_ascii_hexdigit()));
        let inside = before.chars().next_back().is_some_and(part) || goes_on;
        out.push_str(before);
        out.push_str(if inside { address } else { name });
        rest = after;
    }
    out.push_str(rest);
    out
}
