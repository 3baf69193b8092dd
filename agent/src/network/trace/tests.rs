use berth_common::id::ContainerId;
use berth_common::model::Vni;
use berth_common::protocol::Verdict;

use super::*;

struct World {
    asked: TraceRequest,
    end: Option<End>,
    wanted: Overlay,
    seen: Option<Seen>,
    names: BTreeSet<Named>,
    led: Option<bool>,
    lets_in: Option<Vec<Name>>,
    sealed: BTreeSet<IpAddr>,
    left_out: Option<String>,
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// Endpoint 2 here and 3 on another node; 4 is here, too; 9 is the address of the service of 3.
fn world(half: Half) -> World {
    let subnets = Subnets::new("10.80.0.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()).unwrap();
    let wanted = Overlay {
        vni: Vni::MIN,
        subnets,
        underlay: ([192, 0, 2, 1].into(), 1500),
        port: 4789,
        local: [HostNumber(2), HostNumber(4)].into(),
        remote: Some([(HostNumber(3), [192, 0, 2, 9].into())].into()),
        transit: None,
        rates: BTreeMap::new(),
        published: Vec::new(),
        offload: true,
        six: true,
    };
    let own = HostNumber(2);
    World {
        asked: TraceRequest {
            half,
            container: ContainerId::from_bytes([1; 10]),
            vni: wanted.vni,
            host: own,
            other: HostNumber(3),
            service: None,
        },
        end: Some(End {
            name: "eth0".to_owned(),
            up: true,
            addresses: [subnets.address(own).into(), subnets.address6(own).into()].into(),
        }),
        seen: Some(wanted.as_seen()),
        wanted,
        names: [
            Named::replica(name("web"), 1, own),
            Named::service(name("db"), HostNumber(9)),
            Named::replica(name("db"), 1, HostNumber(3)),
        ]
        .into(),
        led: Some(true),
        lets_in: None,
        sealed: BTreeSet::new(),
        left_out: None,
    }
}

fn told(world: &World) -> Vec<Hop> {
    hops(&Known {
        asked: &world.asked,
        container: "web.1".to_owned(),
        end: world.end.clone(),
        wanted: &world.wanted,
        seen: world.seen.as_ref(),
        names: &world.names,
        led: world.led,
        lets_in: world.lets_in.as_deref(),
        sealed: world.sealed.clone(),
        left_out: world.left_out.clone(),
    })
}

fn places(hops: &[Hop]) -> Vec<&str> {
    hops.iter().map(|hop| hop.place.as_str()).collect()
}

#[test]
fn a_way_that_is_whole_is_told_to_its_end() {
    let passes = |hops: &[Hop]| hops.iter().all(|hop| hop.verdict == Verdict::Passes);
    let mut out = world(Half::Out);
    let hops = told(&out);
    assert_eq!(places(&hops), ["container", "bridge", "tunnel", "host"]);
    assert!(passes(&hops), "{hops:#?}");
    out.asked.service = Some(HostNumber(9));
    out.sealed = [[192, 0, 2, 9].into()].into();
    let hops = told(&out);
    assert_eq!(
        places(&hops),
        ["container", "service address", "bridge", "tunnel", "host"]
    );
    assert!(passes(&hops) && hops[4].text.contains("WireGuard"), "{hops:#?}");
    (out.asked.service, out.asked.other) = (None, HostNumber(4));
    assert_eq!(places(&told(&out)), ["container", "bridge"], "both are here");
    let mut inward = world(Half::In);
    let hops = told(&inward);
    assert_eq!(
        places(&hops),
        ["host", "tunnel", "bridge", "ingress", "container"]
    );
    assert!(passes(&hops), "{hops:#?}");
    inward.asked.other = HostNumber(4);
    assert_eq!(places(&told(&inward)), ["bridge", "ingress", "container"]);
    inward.asked.half = Half::Unknown;
    assert_eq!(told(&inward)[0].verdict, Verdict::Unknown);
}

#[test]
fn r9_every_place_where_a_packet_can_end_says_so() {
    let gone = |entry: fn(&Entry) -> bool| {
        move |world: &mut World| {
            world.seen.as_mut().unwrap().entries.retain(|held| !entry(held));
        }
    };
    let without = |link: &'static str| {
        move |world: &mut World| {
            world.seen.as_mut().unwrap().links.remove(link);
        }
    };
    let changed = |link: &'static str| {
        move |world: &mut World| {
            world
                .seen
                .as_mut()
                .unwrap()
                .links
                .insert(link.to_owned(), Link::Other);
        }
    };
    type Break = Box<dyn Fn(&mut World)>;
    let service = |world: &mut World| world.asked.service = Some(HostNumber(9));
    let cases: Vec<(Half, Break, &str, &str)> = vec![
        (
            Half::Out,
            Box::new(|w| w.end = None),
            "container",
            "does not run here",
        ),
        (
            Half::Out,
            Box::new(|w| w.end = Some(End::default())),
            "container",
            "no link",
        ),
        (
            Half::Out,
            Box::new(|w| w.end.as_mut().unwrap().up = false),
            "container",
            "eth0 is down",
        ),
        (
            Half::Out,
            Box::new(|w| w.end.as_mut().unwrap().addresses.clear()),
            "container",
            "lacks the address 10.80.0.2",
        ),
        (
            Half::Out,
            Box::new(move |w| {
                service(w);
                w.led = Some(false);
            }),
            "service address",
            "not in force",
        ),
        (
            Half::Out,
            Box::new(move |w| {
                service(w);
                w.names.clear();
            }),
            "service address",
            "knows no service",
        ),
        (
            Half::Out,
            Box::new(move |w| {
                service(w);
                w.asked.other = HostNumber(4);
            }),
            "service address",
            "not to 10.80.0.4",
        ),
        (
            Half::Out,
            Box::new(|w| w.seen = None),
            "bridge",
            "the network is not there",
        ),
        (Half::Out, Box::new(without("br0")), "bridge", "it is not there"),
        (Half::Out, Box::new(changed("br0")), "bridge", "not as it must be"),
        (
            Half::Out,
            Box::new(without("ep2")),
            "bridge",
            "port ep2 is not there",
        ),
        (
            Half::Out,
            Box::new(changed("ep2")),
            "bridge",
            "port ep2 is not as it must be",
        ),
        (
            Half::Out,
            Box::new(|w| w.wanted.remote = Some(BTreeMap::new())),
            "bridge",
            "does not know on which node",
        ),
        (
            Half::Out,
            Box::new(|w| w.wanted.remote = None),
            "bridge",
            "has not heard",
        ),
        (
            Half::Out,
            Box::new(|w| {
                w.wanted.remote = Some(BTreeMap::new());
                w.left_out = Some("no WireGuard".into());
            }),
            "bridge",
            "no WireGuard",
        ),
        (
            Half::Out,
            Box::new(gone(|entry| matches!(entry, Entry::Neighbour(..)))),
            "bridge",
            "nobody answers",
        ),
        (
            Half::Out,
            Box::new(gone(|entry| matches!(entry, Entry::Forward(_, None)))),
            "bridge",
            "no entry leads",
        ),
        (Half::Out, Box::new(without("vx0")), "tunnel", "it is not there"),
        (Half::Out, Box::new(changed("vx0")), "tunnel", "not as it must be"),
        (
            Half::Out,
            Box::new(gone(|entry| matches!(entry, Entry::Tunnel(..)))),
            "tunnel",
            "does not lead to 192.0.2.9",
        ),
        (
            Half::In,
            Box::new(|w| w.wanted.remote = Some(BTreeMap::new())),
            "host",
            "known nodes alone",
        ),
        (Half::In, Box::new(without("vx0")), "tunnel", "it is not there"),
        (
            Half::In,
            Box::new(gone(|entry| matches!(entry, Entry::Forward(_, Some(_))))),
            "bridge",
            "no entry leads",
        ),
        (Half::In, Box::new(without("ep2")), "bridge", "port ep2"),
        (
            Half::In,
            Box::new(|w| w.lets_in = Some(vec![name("shop")])),
            "ingress",
            "db may not open connections to it: it lets in shop",
        ),
        (
            Half::In,
            Box::new(|w| w.lets_in = Some(Vec::new())),
            "ingress",
            "it lets in nobody",
        ),
        (
            Half::In,
            Box::new(|w| {
                w.lets_in = Some(vec![name("db")]);
                w.names.clear();
            }),
            "ingress",
            "whose 10.80.0.3 is",
        ),
        (
            Half::In,
            Box::new(|w| w.end = None),
            "container",
            "does not run here",
        ),
    ];
    for (half, spoil, place, text) in cases {
        let mut world = world(half);
        spoil(&mut world);
        let hops = told(&world);
        let (last, before) = hops.split_last().unwrap();
        assert_eq!(last.place, place, "{hops:#?}");
        assert!(last.text.contains(text), "{text:?}: {hops:#?}");
        assert!(last.verdict != Verdict::Passes, "{hops:#?}");
        assert!(
            before.iter().all(|hop| hop.verdict == Verdict::Passes),
            "{hops:#?}"
        );
    }
    let mut known = world(Half::In);
    known.lets_in = Some(vec![name("db")]);
    assert!(told(&known).iter().all(|hop| hop.verdict == Verdict::Passes));
}
