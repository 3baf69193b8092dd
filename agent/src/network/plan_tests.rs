//! The plan against a model of the kernel: from anything that may be found, to exactly what is wanted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use berth_common::model::{HostNumber, Mac, Subnets, Vni};
use proptest::prelude::*;

use super::egress::{Transit, UPLINK};
use super::plan::*;

fn overlay(local: &[u32], remote: &[(u32, u8)]) -> Overlay {
    Overlay {
        offload: true,
        six: true,
        vni: Vni::MIN,
        subnets: Subnets::new("10.80.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()).unwrap(),
        underlay: ([192, 0, 2, 1].into(), 1500),
        port: 4789,
        local: local.iter().map(|n| HostNumber(*n)).collect(),
        remote: Some(
            remote
                .iter()
                .filter(|(n, _)| !local.contains(n))
                .map(|(n, node)| (HostNumber(*n), IpAddr::from([192, 0, 2, *node])))
                .collect(),
        ),
        transit: Transit::free(|_| false),
        rates: BTreeMap::new(),
        published: Vec::new(),
    }
}

/// What the kernel makes of the steps; panics where it would refuse.
fn kernel(seen: Option<Seen>, steps: &[Step]) -> Option<Seen> {
    let mut seen = seen;
    for step in steps {
        if *step == Step::MakeNamespace {
            assert!(seen.is_none(), "there is one");
            seen = Some(Seen::default());
            continue;
        }
        let Some(now) = &mut seen else {
            panic!("{step:?} without a namespace")
        };
        match step {
            Step::MakeNamespace => {}
            Step::RemoveNamespace => seen = None,
            Step::DeleteLink(name) => {
                now.links.remove(name).expect("it is there");
                now.entries.retain(|entry| entry.link() != *name);
                if name == BRIDGE {
                    now.entries.retain(|entry| !matches!(entry, Entry::Forward(..)));
                    for link in now.links.values_mut() {
                        if let Link::Port { guarded, .. } | Link::Tunnel { guarded, .. } = link {
                            *guarded = false;
                        }
                    }
                }
            }
            Step::MakeLink(name, link) => {
                assert!(
                    !matches!(link, Link::Port { .. } | Link::Other),
                    "not without a container"
                );
                assert!(
                    [BRIDGE, UPLINK].contains(&name.as_str()) || now.links.contains_key(BRIDGE),
                    "a port of nothing"
                );
                assert!(
                    now.links.insert(name.clone(), link.clone()).is_none(),
                    "{name} is there"
                );
            }
            Step::SetLink(name, link) => {
                assert!(
                    name == UPLINK || now.links.contains_key(BRIDGE),
                    "a port of nothing"
                );
                if name == BRIDGE {
                    now.entries.retain(|entry| !matches!(entry, Entry::Neighbour(..)));
                }
                *now.links.get_mut(name).expect("it is there") = link.clone();
            }
            Step::Delete(entry) => assert!(now.entries.remove(entry), "{entry:?} is not there"),
            Step::Add(entry) => {
                assert!(now.links.contains_key(&entry.link()), "{entry:?} on nothing");
                now.entries.retain(|other| !same_key(other, entry));
                now.entries.insert(*entry);
            }
        }
    }
    seen
}

fn same_key(a: &Entry, b: &Entry) -> bool {
    match (a, b) {
        (Entry::Neighbour(a, _), Entry::Neighbour(b, _)) => a == b,
        (Entry::Forward(a, _), Entry::Forward(b, _)) | (Entry::Tunnel(a, _), Entry::Tunnel(b, _)) => a == b,
        _ => a == b,
    }
}

#[test]
fn what_nobody_has_said_of_other_nodes_stays_and_all_else_is_repaired() {
    let right = settle(&overlay(&[2], &[(3, 7)]), None);
    let mut unknown = overlay(&[2], &[]);
    unknown.remote = None;
    assert_eq!(plan(Some(&unknown), Some(&right)), []);
    let mut meddled = right.clone();
    meddled
        .entries
        .retain(|entry| !matches!(entry, Entry::Address(..)));
    assert_eq!(
        kernel(Some(meddled.clone()), &plan(Some(&unknown), Some(&meddled))),
        Some(right.clone())
    );
    // Once it is known that there is nobody, they go.
    assert!(!plan(Some(&overlay(&[2], &[])), Some(&right)).is_empty());
}

/// Attaches what the plan can't make.
fn attach(wanted: &Overlay, seen: &mut Seen) {
    for host in missing(wanted, seen) {
        let port = Link::Port {
            mtu: wanted.mtu(),
            guarded: true,
        };
        seen.links.insert(port_name(host), port);
        let entry = Entry::Forward(wanted.subnets.mac(host), Some(host));
        seen.entries.retain(|other| !same_key(other, &entry));
        seen.entries.insert(entry);
    }
}

/// Plans, applies and attaches until nothing is left to do.
fn settle(wanted: &Overlay, found: Option<Seen>) -> Seen {
    let mut seen = kernel(found.clone(), &plan(Some(wanted), found.as_ref())).expect("a namespace");
    attach(wanted, &mut seen);
    let rest = plan(Some(wanted), Some(&seen));
    assert!(rest.is_empty(), "{rest:#?}");
    seen
}

fn overlays() -> impl Strategy<Value = Overlay> {
    let local = proptest::collection::btree_set(2_u32..12, 0..5);
    let remote = proptest::collection::vec((2_u32..12, 2_u8..5), 0..6);
    (local, remote, 1300_u32..1500).prop_map(|(local, remote, mtu)| {
        let mut overlay = overlay(&local.into_iter().collect::<Vec<_>>(), &remote);
        overlay.underlay.1 = mtu;
        overlay.transit = Transit::free(|_| false).filter(|_| mtu % 5 > 0);
        overlay
    })
}

#[derive(Debug, Clone)]
enum Meddle {
    DeleteLink(usize),
    Spoil(usize),
    ForeignLink,
    DeleteEntry(usize),
    ForeignForward(u8, u32),
    ForeignTunnel(u8, u8),
    ForeignNeighbour(u8, u8),
    ForeignAddress(u8),
}

fn meddles() -> impl Strategy<Value = Meddle> {
    prop_oneof![
        any::<usize>().prop_map(Meddle::DeleteLink),
        any::<usize>().prop_map(Meddle::Spoil),
        Just(Meddle::ForeignLink),
        any::<usize>().prop_map(Meddle::DeleteEntry),
        (any::<u8>(), 2_u32..12).prop_map(|(a, b)| Meddle::ForeignForward(a, b)),
        (any::<u8>(), 2_u8..9).prop_map(|(a, b)| Meddle::ForeignTunnel(a, b)),
        (2_u8..20, any::<u8>()).prop_map(|(a, b)| Meddle::ForeignNeighbour(a, b)),
        (2_u8..20).prop_map(Meddle::ForeignAddress),
    ]
}

fn meddle(seen: &mut Seen, with: &Meddle) {
    let mac = |n: u8| Mac([0x0a, 0xbe, 10, 80, 0, n]);
    let nth = |seen: &Seen, n: usize| seen.links.keys().nth(n % seen.links.len().max(1)).cloned();
    match with {
        Meddle::DeleteLink(n) => {
            if let Some(name) = nth(seen, *n) {
                let all = std::mem::take(seen);
                *seen = kernel(Some(all), &[Step::DeleteLink(name)]).unwrap();
            }
        }
        Meddle::Spoil(n) => {
            if let Some(link) = nth(seen, *n).and_then(|name| seen.links.get_mut(&name)) {
                match link {
                    Link::Bridge { mtu, .. } if n % 2 == 0 => *mtu = 0,
                    Link::Bridge { mac, .. } => mac.0[5] ^= 1,
                    Link::Tunnel { guarded, .. } | Link::Port { guarded, .. } => *guarded = false,
                    Link::Uplink { whole, .. } if n % 3 == 0 => *whole = false,
                    Link::Uplink { number, .. } if n % 3 == 1 => *number = None,
                    Link::Uplink { mtu, .. } => *mtu = 0,
                    Link::Other => {}
                }
            }
        }
        Meddle::ForeignLink => {
            seen.links.insert("eth9".into(), Link::Other);
        }
        Meddle::DeleteEntry(n) => {
            let entry = seen.entries.iter().nth(n % seen.entries.len().max(1)).copied();
            entry.map(|entry| seen.entries.remove(&entry));
        }
        Meddle::ForeignForward(n, host) => {
            let port = Some(HostNumber(*host)).filter(|host| seen.links.contains_key(&port_name(*host)));
            if port.is_some() || seen.links.contains_key(TUNNEL) {
                let entry = Entry::Forward(mac(*n), port);
                seen.entries.retain(|other| !same_key(other, &entry));
                seen.entries.insert(entry);
            }
        }
        Meddle::ForeignTunnel(n, node) if seen.links.contains_key(TUNNEL) => {
            // One address has one node: the kernel appends a second for those of groups alone (`vxlan_fdb_update`).
            let entry = Entry::Tunnel(mac(*n), [192, 0, 2, *node].into());
            seen.entries.retain(|other| !same_key(other, &entry));
            seen.entries.insert(entry);
        }
        Meddle::ForeignNeighbour(n, other) if seen.links.contains_key(BRIDGE) => {
            let entry = Entry::Neighbour([10, 80, 0, *n].into(), mac(*other));
            seen.entries.retain(|other| !same_key(other, &entry));
            seen.entries.insert(entry);
        }
        Meddle::ForeignAddress(n) if seen.links.contains_key(BRIDGE) => {
            seen.entries.insert(Entry::Address([10, 80, 0, *n].into(), 24));
        }
        _ => {}
    }
}

proptest! {
    #[test]
    fn whatever_is_found_becomes_what_is_wanted(
        before in overlays(), meddling in proptest::collection::vec(meddles(), 0..8), wanted in overlays()
    ) {
        let mut seen = settle(&before, None);
        for with in &meddling {
            meddle(&mut seen, with);
        }
        let seen = settle(&wanted, Some(seen));
        prop_assert_eq!(seen.links, wanted.links());
        prop_assert_eq!(seen.entries, wanted.entries());
        prop_assert_eq!(kernel(Some(Seen::default()), &plan(None, Some(&Seen::default()))), None);
    }
}

proptest! {
    #[test]
    fn what_was_made_is_as_good_as_what_is_seen(before in overlays(), wanted in overlays()) {
        let seen = settle(&before, None);
        prop_assert_eq!(&before.as_seen(), &seen);
        let steps = plan(Some(&wanted), Some(&before.as_seen()));
        let mut now = kernel(Some(seen), &steps).expect("a namespace");
        attach(&wanted, &mut now);
        prop_assert_eq!(now, wanted.as_seen());
    }
}

#[test]
fn a_change_costs_what_changed() {
    let many: Vec<(u32, u8)> = (10..200).map(|n| (n, 2)).collect();
    let before = settle(&overlay(&[2], &many), None);
    let mut more = many;
    more.push((201, 3));
    let steps = plan(Some(&overlay(&[2], &more)), Some(&before));
    // Two neighbours, the way into the tunnel, the node.
    assert_eq!(steps.len(), 4, "{steps:?}");
}

#[test]
fn an_endpoint_that_moves_is_never_away_in_between() {
    let before = settle(&overlay(&[2], &[(5, 2)]), None);
    let wanted = overlay(&[2], &[(5, 3)]);
    let mac = wanted.subnets.mac(HostNumber(5));
    let steps = plan(Some(&wanted), Some(&before));
    assert_eq!(steps, [Step::Add(Entry::Tunnel(mac, [192, 0, 2, 3].into()))]);
}

#[test]
fn what_exists_nowhere_needs_nothing() {
    assert!(plan(None, None).is_empty());
    let links: BTreeMap<_, _> = overlay(&[], &[]).links();
    assert_eq!(links.keys().collect::<BTreeSet<_>>().len(), 3);
    assert_eq!(port_host(&port_name(HostNumber(0xabc))), Some(HostNumber(0xabc)));
    for name in ["eth0", "ep", "epx", "ep0a", "ep100000000"] {
        assert_eq!(port_host(name), None, "{name}");
    }
}

#[test]
fn the_mtu_leaves_room_for_what_is_put_around() {
    let mut net = overlay(&[], &[]);
    assert_eq!(net.mtu(), 1450);
    net.underlay = ("2001:db8::1".parse().unwrap(), 9000);
    assert_eq!(net.mtu(), 8930);
}
