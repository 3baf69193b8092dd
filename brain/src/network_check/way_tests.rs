use berth_common::id::{Name, Revision};
use berth_common::model::{
    ContainerRecord, Endpoint, HostNumber, NetworkRecord, NodeRecord, RunState, Subnets, UnixMillis, Vni,
};
use berth_common::protocol::{Half, Hop, Verdict};
use berth_common::units::Bytes;

use super::tests::{at, private};
use super::way::{To, told, way, without_address};
use crate::cluster::{Change, Network, State};
use crate::controllers::fixtures::{container_id, node_id, service, service_id, tenant_id};

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// A container's number, its service's, its node's, and its endpoints: network and number.
type Placed<'a> = (u64, u64, Option<u64>, &'a [(u32, u32)]);

/// Services web (1) and db (2); db has an address, number 9, on network 2 alone.
fn state(containers: &[Placed<'_>], nodes: Vec<NodeRecord>) -> State {
    let mut state = State::default();
    let mut changes: Vec<_> = nodes.into_iter().map(Change::PutNode).collect();
    for (n, called) in [(1, "one"), (2, "two")] {
        let mut network = Network::new(NetworkRecord {
            vni: vni(n),
            tenant: tenant_id(1),
            name: name(called),
            subnets: Subnets::new(
                format!("10.{n}.0.0/16").parse().unwrap(),
                "fd00::/64".parse().unwrap(),
            )
            .unwrap(),
            created_at: UnixMillis(0),
            revision: Revision(0),
        });
        if n == 2 {
            network.addresses.insert(name("db"), HostNumber(9));
        }
        changes.push(Change::PutNetwork(network));
    }
    for (n, of, on, endpoints) in containers {
        let called = if *of == 1 { "web" } else { "db" };
        let record = service(*of, 1, "image", 1, Bytes::mib(64));
        changes.push(Change::PutContainer(ContainerRecord {
            id: container_id(*n),
            tenant: tenant_id(1),
            service: service_id(*of),
            service_name: name(called),
            replica: *n as u32,
            node: on.map(node_id),
            claim: None,
            moves: None,
            waiting: None,
            spec: record.spec.container_spec().unwrap().into(),
            service_generation: 1,
            run: RunState::Running,
            restarts_asked: 0,
            removing: false,
            replaces: None,
            endpoints: endpoints
                .iter()
                .map(|(net, host)| Endpoint {
                    vni: vni(*net),
                    host: HostNumber(*host),
                })
                .collect(),
            created_at: UnixMillis(0),
            revision: Revision(0),
        }));
    }
    state.apply(changes, Revision(1));
    state
}

#[test]
fn who_is_asked_for_a_packets_way_or_where_it_ends_at_once() {
    let two = || vec![at(1, 1500), at(2, 1500)];
    let all: &[Placed<'_>] = &[
        (1, 1, Some(1), &[(1, 2), (2, 2)]),
        (2, 2, Some(2), &[(1, 3), (2, 3)]),
        (3, 2, Some(1), &[(2, 4)]),
        (4, 2, None, &[(1, 5)]),
        (5, 2, Some(2), &[]),
    ];
    let state_of = |nodes| state(all, nodes);
    let state = state_of(two());
    let record = |n: u64| state.containers.get(&container_id(n)).unwrap();
    let ends = |to: To<'_>, network: Option<&str>| -> Hop {
        let network = network.map(name);
        way(&state, record(1), to, network.as_ref()).unwrap_err()
    };
    let db = name("db");
    // By the first network in common; to the service by the one on which it has an address.
    let direct = way(&state, record(1), To::Container(record(2)), None).unwrap();
    assert_eq!((direct.out.node, direct.into.node), (node_id(1), node_id(2)));
    assert_eq!(
        (direct.out.request.half, direct.into.request.half),
        (Half::Out, Half::In)
    );
    assert_eq!(
        (direct.out.request.vni, direct.out.request.service),
        (vni(1), None)
    );
    let numbers = |ask: &super::way::Ask| (ask.request.host.0, ask.request.other.0);
    assert_eq!((numbers(&direct.out), numbers(&direct.into)), ((2, 3), (3, 2)));
    assert_eq!(direct.wire.unwrap().verdict, Verdict::Passes);
    let service = way(&state, record(1), To::Service(service_id(2), &db), None).unwrap();
    assert_eq!(
        (service.out.request.vni, service.out.request.service),
        (vni(2), Some(HostNumber(9)))
    );
    let named = way(&state, record(1), To::Container(record(2)), Some(&name("two"))).unwrap();
    assert_eq!(named.out.request.vni, vni(2));
    let here = way(&state, record(1), To::Container(record(3)), None).unwrap();
    assert_eq!((here.wire, here.out.node), (None, here.into.node));

    let end = ends(To::Container(record(4)), None);
    assert!(end.text.contains("db.4 has no node yet"), "{end:?}");
    let end = ends(To::Container(record(5)), None);
    assert!(
        end.text
            .contains("no network in common: web.1 is on one, two, db.5 on none"),
        "{end:?}"
    );
    let end = ends(To::Container(record(3)), Some("one"));
    assert!(end.text.contains("not both on network one"), "{end:?}");
    let end = ends(To::Service(service_id(9), &name("cache")), None);
    assert!(
        end.text.contains("no other container of cache takes requests"),
        "{end:?}"
    );
    let apart = state_of(vec![at(1, 1500), private(at(2, 1500), tenant_id(1))]);
    let record = |n: u64| apart.containers.get(&container_id(n)).unwrap();
    let wire = way(&apart, record(1), To::Container(record(2)), None)
        .unwrap()
        .wire
        .unwrap();
    assert!(
        wire.verdict == Verdict::Drops && wire.text.contains("one is private"),
        "{wire:?}"
    );
}

#[test]
fn a_way_is_told_up_to_where_it_ends() {
    let places = |verdicts: &[Hop]| verdicts.iter().map(|hop| (None, hop.clone())).collect();
    let (goes, ends) = (
        Hop::passes("bridge", "on"),
        Hop::drops("tunnel", "gone").cure("wait"),
    );
    let trace = told(
        "a".into(),
        "b".into(),
        places(&[goes.clone(), ends, goes.clone()]),
    );
    assert_eq!((trace.verdict, trace.hops.len()), (Verdict::Drops, 2));
    assert_eq!(trace.hops[1].cure.as_deref(), Some("wait"));
    assert_eq!(
        told("a".into(), "b".into(), places(&[goes])).verdict,
        Verdict::Passes
    );
}

#[test]
fn addresses_of_hosts_are_replaced_whole_or_not_at_all() {
    let cases = [
        ("to 10.0.0.1, UDP", "to h1, UDP"),
        (
            "from 10.0.0.1 to 10.0.0.11 and 110.0.0.1",
            "from h1 to 10.0.0.11 and 110.0.0.1",
        ),
        ("it is 10.0.0.1.", "it is h1."),
        ("10.0.0.1: gone", "h1: gone"),
        ("10.0.0.1.2", "10.0.0.1.2"),
        ("", ""),
    ];
    for (text, expected) in cases {
        assert_eq!(without_address(text, "10.0.0.1", "h1"), expected);
    }
    assert_eq!(
        without_address("at fd00::1, fd00::12", "fd00::1", "h1"),
        "at h1, fd00::12"
    );
}
