use berth_common::protocol::PublishedOn;

use super::*;

fn vni(n: u32) -> Vni {
    Vni::try_from(n).unwrap()
}

fn known() -> Neighbours {
    let named = |service: &str, host: u32| Named::replica(service.parse().unwrap(), host, HostNumber(host));
    let published = |protocol, first, count, target, service: &str| Published {
        protocol,
        first,
        count,
        target,
        service: service.parse().unwrap(),
        vni: vni(7),
        elsewhere: vec![PublishedOn {
            address: [192, 0, 2, 9].into(),
            replicas: 1,
            address6: Some("2001:db8::9".parse().unwrap()),
        }],
    };
    Neighbours {
        names: [(
            vni(7),
            [
                Named::service("web".parse().unwrap(), HostNumber(4)),
                named("web", 2),
                named("web", 3),
                named("web", 4),
                named("web2", 5),
            ]
            .into(),
        )]
        .into(),
        published: vec![
            published(Protocol::Tcp, 8080, 1, 80, "web"),
            published(Protocol::Udp, 5000, 3, 5000, "other"),
            published(Protocol::Unknown, 1, 1, 1, "web"),
            published(Protocol::Tcp, 65_535, 2, 1, "web"),
            published(Protocol::Tcp, 9, 0, 9, "web"),
        ],
        ..Neighbours::default()
    }
}

#[test]
fn replicas_here_and_elsewhere_share_requests_alike() {
    let subnets = Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
    let hosts = BTreeSet::from([HostNumber(2), HostNumber(4), HostNumber(5)]);
    let local = BTreeMap::from([(vni(7), (subnets, hosts))]);
    let transit = Transit::free(|_| false).unwrap();
    let open = open(&known(), &local, &[(vni(7), transit)].into());
    assert_eq!(open.len(), 2, "what makes no sense is left out: {open:?}");
    let here = Here {
        transit,
        subnet: subnets.v4(),
        replicas: 2,
    };
    assert_eq!(open[0].here, Some(here));
    assert_eq!(open[0].ways().len(), 3);
    assert_eq!(open[1].here, None);
    let nobody = BTreeSet::new();
    let near = Apart {
        sealed: &nobody,
        own: None,
    };
    let text = at_host(&open, near, false, "wgberth");
    assert!(
        text.contains("chain published_here {\n    tcp dport 8080 dnat ip to 169.254.64.2\n  }"),
        "{text}"
    );
    assert!(
        text.contains("numgen random mod 3 map { 0 : 169.254.64.2, 1 : 169.254.64.2, 2 : 192.0.2.9 }"),
        "{text}"
    );
    assert!(
        text.contains("udp dport 5000-5002 dnat ip to 192.0.2.9\n"),
        "{text}"
    );
    assert!(
        text.contains("elements = { tcp . 192.0.2.9 . 8080, udp . 192.0.2.9 . 5000-5002 }"),
        "{text}"
    );
    assert!(!text.contains("mark set") && !text.contains("snat"), "{text}");
    assert!(!at_host(&[], near, true, "wgberth").contains("elements"));
    let others = [[192, 0, 2, 9].into()].into();
    let far = Apart {
        sealed: &others,
        own: Some([192, 0, 2, 1].into()),
    };
    let text = at_host(&open, far, true, "wgberth");
    for part in [
        "@passed_on ip daddr @sealed meta mark set",
        "oifname != \"wgberth\" counter drop",
        "oifname \"wgberth\" snat ip to 192.0.2.1",
        "tcp dport 8080 dnat ip6 to fd5b:e4a7:9c31:64::2\n",
        "2 : 2001:db8::9 }",
        "udp . 2001:db8::9 . 5000-5002",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn what_comes_in_goes_to_containers_here_alone() {
    let subnets = Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
    let inward = inward(
        &known(),
        vni(7),
        &subnets,
        &[HostNumber(2), HostNumber(4), HostNumber(5)].into(),
    );
    assert_eq!(inward.len(), 1, "what makes no sense is left out: {inward:?}");
    assert_eq!(
        inward[0].replicas,
        [2_u16, 4].map(|n| (
            Ipv4Addr::new(10, 64, 0, n as u8),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, n)
        ))
    );
    let highest = Inward {
        ports: 10..=11,
        target: 65_534,
        ..inward[0].clone()
    };
    assert!(in_network(&[highest], "up0").contains("1 : 10.64.0.4 . 65535 }"));
    let text = in_network(&inward[..1], "up0");
    assert!(
        text.contains(
            "dnat ip addr . port to numgen random mod 2 map { 0 : 10.64.0.2 . 80, 1 : 10.64.0.4 . 80 }"
        ),
        "{text}"
    );
}

/// What the brain says of two replicas of one service, by whether they take requests.
fn says(take: [bool; 2]) -> Neighbours {
    let named = [2, 3].into_iter().zip(take).map(|(host, takes)| match takes {
        true => Named::replica("web".parse().unwrap(), host, HostNumber(host)),
        false => Named::idle("web".parse().unwrap(), host, HostNumber(host)),
    });
    let other = Named::replica("web2".parse().unwrap(), 1, HostNumber(5));
    let mut known = known();
    known.names = [(vni(7), named.chain([other]).collect())].into();
    known
}

/// Nodes hear of a change one after the other.
#[test]
fn what_another_node_passes_on_is_answered_whichever_heard_first_whether_a_replica_takes_requests() {
    let subnets = Subnets::new("10.64.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()).unwrap();
    let transit = Transit::free(|_| false).unwrap();
    let nobody = BTreeSet::new();
    let near = Apart {
        sealed: &nobody,
        own: None,
    };
    for take in [[true, true], [true, false], [false, true], [false, false]] {
        let (known, hosts) = (says(take), [2, 3, 5].map(HostNumber).into());
        let takers: Vec<_> = [2_u32, 3]
            .into_iter()
            .zip(take)
            .filter(|(_, takes)| *takes)
            .collect();
        let local = BTreeMap::from([(vni(7), (subnets, BTreeSet::clone(&hosts)))]);
        let open = open(&known, &local, &[(vni(7), transit)].into());
        let led = |at: &str| at_host(&open, near, true, "wgberth").contains(at);
        let to =
            "tcp dport 8080 dnat ip to 169.254.64.2\n    tcp dport 8080 dnat ip6 to fd5b:e4a7:9c31:64::2\n";
        assert!(led(&format!("chain passed_on_here {{\n    {to}  }}")), "{take:?}");
        // What came in here goes to those that take requests alone.
        assert_eq!(
            led(&format!("chain published_here {{\n    {to}  }}")),
            !takers.is_empty()
        );
        assert_eq!(
            (open[0].ways().len(), open[0].ways6().len()),
            (takers.len() + 1, takers.len() + 1)
        );

        let inward = inward(&known, vni(7), &subnets, &hosts);
        let answer: Vec<_> = inward[0]
            .replicas
            .iter()
            .map(|(four, _)| u32::from(four.octets()[3]))
            .collect();
        match takers.is_empty() {
            true => assert_eq!(answer, [2, 3]),
            false => assert_eq!(answer, takers.iter().map(|(host, _)| *host).collect::<Vec<_>>()),
        }
    }
    // Without any that has not ended: refused at once.
    let local = BTreeMap::from([(vni(7), (subnets, [HostNumber(5)].into()))]);
    let open = open(&says([false, false]), &local, &[(vni(7), transit)].into());
    assert_eq!(open[0].here, None);
}

#[test]
fn many_replicas_are_spread_in_proportion() {
    let one = Open {
        protocol: Protocol::Tcp,
        ports: 80..=80,
        service: "web".into(),
        here: None,
        elsewhere6: Vec::new(),
        elsewhere: vec![
            ([192, 0, 2, 1].into(), 3_000),
            ([192, 0, 2, 2].into(), 1_000),
            ([192, 0, 2, 3].into(), 1),
        ],
    };
    let count = |last: u8| one.ways().iter().filter(|way| way.octets()[3] == last).count();
    assert_eq!((count(1), count(2), count(3)), (191, 63, 1));
}
