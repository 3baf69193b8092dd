use berth_common::id::NodeId;
use proptest::prelude::*;

use super::*;

fn key(n: u8) -> WireGuardKey {
    WireGuardKey([n; 32])
}

fn own() -> (Underlay, WireGuard) {
    let wireguard = WireGuard {
        key: key(100),
        port: 51_821,
    };
    let at = Underlay {
        address: [192, 0, 2, 100].into(),
        mtu: 1500,
        port: 4789,
        wireguard: Some(wireguard),
        address6: None,
    };
    (at, wireguard)
}

fn other(n: u8, at: u8, port: u16) -> Sealed {
    Sealed {
        node: NodeId::from_bytes([n; 10]),
        address: [192, 0, 2, at].into(),
        wireguard: WireGuard { key: key(n), port },
    }
}

fn seal(others: impl IntoIterator<Item = Sealed>) -> Option<Seal> {
    let (at, wireguard) = own();
    Seal::new(at, wireguard, &others.into_iter().collect(), &BTreeSet::new()).0
}

/// What the kernel does of it, as far as the plan relies on that.
fn carry_out(wanted: Option<&Seal>, seen: &mut Seen, steps: &[Step]) {
    for step in steps {
        let device = seen.device.as_mut();
        match step {
            Step::Make => {
                assert!(device.is_none());
                seen.device = Some(SeenDevice {
                    public: Some(key(0)),
                    ..SeenDevice::default()
                });
            }
            Step::Configure => {
                let (device, wanted) = (device.unwrap(), wanted.unwrap());
                (device.public, device.listen) = (Some(wanted.public), wanted.listen);
            }
            Step::Forget(key) => assert!(device.unwrap().peers.remove(key).is_some()),
            Step::Have(key, peer) => {
                let device = device.unwrap();
                // An address is one peer's: the last that was given it.
                for allowed in device.peers.values_mut() {
                    allowed.remove(&(peer.address, 32));
                }
                device.peers.insert(*key, [(peer.address, 32)].into());
            }
            Step::Up => device.unwrap().mtu = wanted.unwrap().mtu,
            Step::AddWay(way) => {
                assert!(matches!(way, Way::Nowhere(_)) || device.unwrap().mtu > 0);
                assert!(seen.ways.insert(*way));
            }
            Step::DeleteWay(way) => assert!(seen.ways.remove(way), "{way:?}"),
            Step::AddRule(rule) => assert!(seen.rules.insert(*rule)),
            Step::DeleteRule(rule) => assert!(seen.rules.remove(rule)),
            Step::Delete => {
                assert!(device.is_some());
                seen.device = None;
                seen.ways.retain(|way| matches!(way, Way::Nowhere(_)));
            }
        }
    }
}

/// Whether VXLAN to an address would leave by another link than the device, were there no filter.
fn in_the_clear(seen: &Seen, to: IpAddr) -> bool {
    !(seen.rules.contains(&Rule::Vxlan(false)) && seen.ways.contains(&Way::Nowhere(to)))
}

fn some_seen() -> impl Strategy<Value = Seen> {
    let peers =
        proptest::collection::btree_map(1..6_u8, proptest::collection::btree_set(1..6_u8, 0..2), 0..4);
    let device = (any::<bool>(), 99..101_u8, any::<bool>(), any::<bool>(), peers).prop_map(
        |(wireguard, public, listens, up, peers)| {
            let address = |n: u8| (IpAddr::from([192, 0, 2, n]), 32);
            let peers = peers
                .into_iter()
                .map(|(n, at)| (key(n), at.into_iter().map(address).collect()));
            SeenDevice {
                public: wireguard.then(|| key(public)),
                listen: if listens { 51_821 } else { 0 },
                mtu: if up { 1440 } else { 0 },
                peers: if wireguard {
                    peers.collect()
                } else {
                    BTreeMap::new()
                },
            }
        },
    );
    let ways = proptest::collection::btree_set((any::<bool>(), 1..6_u8), 0..6);
    let rules = proptest::collection::btree_set((any::<bool>(), any::<bool>()), 0..4);
    (proptest::option::of(device), ways, rules).prop_map(|(device, ways, rules)| Seen {
        ways: ways
            .into_iter()
            .map(|(through, n)| {
                let to = IpAddr::from([192, 0, 2, n]);
                if through {
                    Way::Through(to)
                } else {
                    Way::Nowhere(to)
                }
            })
            .filter(|way| device.is_some() || matches!(way, Way::Nowhere(_)))
            .collect(),
        rules: rules
            .into_iter()
            .map(|(marked, six)| {
                if marked {
                    Rule::Marked(six)
                } else {
                    Rule::Vxlan(six)
                }
            })
            .collect(),
        device,
    })
}

proptest! {
    #[test]
    fn r8_from_anything_it_becomes_right_and_is_left_alone(
        seen in some_seen(), wanted in proptest::collection::btree_set(1..6_u8, 0..5), before in proptest::collection::btree_set(1..6_u8, 0..5)
    ) {
        let wanted = seal(wanted.into_iter().map(|n| other(n, n, 51_821)));
        let before = seal(before.into_iter().map(|n| other(n, n, 51_821)));
        let mut there = seen;
        let steps = plan(wanted.as_ref(), before.as_ref(), &there);
        carry_out(wanted.as_ref(), &mut there, &steps);
        // Two peers may have had one another's addresses: a second look makes up for what the first took away.
        let steps = plan(wanted.as_ref(), wanted.as_ref(), &there);
        carry_out(wanted.as_ref(), &mut there, &steps);
        let right = wanted.as_ref().map(Seal::as_seen).unwrap_or_default();
        prop_assert_eq!(&there, &right);
        prop_assert_eq!(plan(wanted.as_ref(), wanted.as_ref(), &there), []);
    }

    #[test]
    fn r6_nothing_that_stays_sealed_goes_in_the_clear_in_between(
        before in proptest::collection::btree_set(1..6_u8, 1..5), after in proptest::collection::btree_set(1..6_u8, 1..5), gone in any::<bool>()
    ) {
        let before = seal(before.into_iter().map(|n| other(n, n, 51_821)));
        let after = seal(after.into_iter().map(|n| other(n, n, 51_821)));
        let mut there = before.as_ref().map(Seal::as_seen).unwrap_or_default();
        if gone {
            there.device = None;
            there.ways.retain(|way| matches!(way, Way::Nowhere(_)));
        }
        let stay: Vec<_> = after.iter().flat_map(|seal| seal.peers.values()).map(|peer| peer.address)
            .filter(|address| before.iter().flat_map(|seal| seal.peers.values()).any(|peer| peer.address == *address)).collect();
        for step in plan(after.as_ref(), before.as_ref(), &there) {
            carry_out(after.as_ref(), &mut there, &[step]);
            prop_assert!(stay.iter().all(|to| !in_the_clear(&there, *to)));
        }
    }
}

#[test]
fn a_peer_that_the_kernel_followed_elsewhere_is_left_there_and_one_that_is_told_elsewhere_is_not() {
    let (old, new) = (seal([other(1, 1, 51_821)]), seal([other(1, 1, 4000)]));
    let seen = old.as_ref().unwrap().as_seen();
    assert_eq!(plan(old.as_ref(), None, &seen), []);
    let peer = new.as_ref().unwrap().peers[&key(1)];
    assert_eq!(
        plan(new.as_ref(), old.as_ref(), &seen),
        [Step::Have(key(1), peer)]
    );
}

#[test]
fn addresses_that_are_not_one_nodes_alone_are_not_sent_to() {
    let (at, wireguard) = own();
    let mut six = other(4, 4, 1);
    six.address = "2001:db8::1".parse().unwrap();
    let mut others = BTreeSet::from([other(1, 1, 1), other(2, 1, 1), other(3, 100, 1), six]);
    others.extend([other(5, 5, 1), other(6, 6, 1)]);
    let near = [6, 7].map(|n| [192, 0, 2, n].into()).into();
    let (seal, wrong) = Seal::new(at, wireguard, &others, &near);
    assert_eq!(wrong.len(), 5, "{wrong:?}");
    let seal = seal.unwrap();
    assert_eq!(seal.peers.keys().collect::<Vec<_>>(), [&key(5)]);
    assert_eq!((seal.mtu, seal.device.as_str()), (1440, "wgberth"));
    assert!(device(65_535).len() < 16, "the kernel's names are shorter");
    let nobody = BTreeSet::new();
    assert_eq!(Seal::new(at, wireguard, &nobody, &near), (None, vec![]));
}
