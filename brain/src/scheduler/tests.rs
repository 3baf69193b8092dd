//! Placement on its own: refusals in words, private nodes, full ones, and replicas that keep apart.

use berth_common::model::{NodeKind, NodeRecord, Reservation};
use berth_common::units::{Bytes, Millicores};

use super::*;
use crate::cluster::{Change, Connection, State};
use crate::controllers::fixtures::{node, node_id, tenant_id};
use berth_common::id::{Generation, Revision};

fn state(nodes: Vec<NodeRecord>) -> State {
    let mut state = State::default();
    let mut changes = Vec::new();
    for (serial, node) in nodes.into_iter().enumerate() {
        let id = node.id;
        changes.push(Change::PutNode(node));
        let address = "198.51.100.7:9".to_owned();
        changes.push(Change::Connected(
            id,
            Connection {
                serial: serial as u64,
                address,
                synced: true,
                applied: Generation(0),
            },
        ));
    }
    state.apply(changes, Revision(1));
    state
}

fn request(labels: &BTreeMap<String, String>, mib: u64) -> Request<'_> {
    let reservation = Reservation {
        cpu: Millicores(100),
        memory: Bytes::mib(mib),
        disk: Bytes::mib(10),
    };
    Request {
        tenant: tenant_id(1),
        reservation,
        node_labels: labels,
        replicas: BTreeMap::new(),
        image_on: BTreeSet::new(),
        constraints: Constraints::default(),
        load: Default::default(),
        seed: 0,
    }
}

#[test]
fn r9_a_refusal_names_every_obstacle_with_numbers() {
    let none = BTreeMap::new();
    let mut nodes = vec![node(1, NodeKind::Shared, 4, 1), node(2, NodeKind::Shared, 4, 2)];
    nodes.push(NodeRecord {
        cordoned: true,
        ..node(3, NodeKind::Shared, 4, 64)
    });
    nodes.push(NodeRecord {
        lost: true,
        ..node(4, NodeKind::Shared, 4, 64)
    });
    nodes.push(node(5, NodeKind::Private { tenant: tenant_id(2) }, 4, 64));
    let state = state(nodes);
    let mut view = View::new(&state, &BTreeMap::new());
    let refusal = place(&mut view, request(&none, 3072)).unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "no node fits: 2 nodes lack memory (need 3GiB, most free is 2GiB on h2), 1 node is lost, \
         1 node is cordoned, 1 node is private to another tenant"
    );
    let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]);
    let refusal = place(&mut view, request(&labels, 1)).unwrap_err();
    assert!(
        refusal.to_string().contains("2 nodes lack the label disk=ssd"),
        "{refusal}"
    );
    let empty = State::default();
    let refusal = place(&mut View::new(&empty, &BTreeMap::new()), request(&none, 1)).unwrap_err();
    assert!(
        refusal.to_string().starts_with("no node has joined yet"),
        "{refusal}"
    );
}

#[test]
fn r6_a_tenant_uses_shared_nodes_and_its_own_private_ones() {
    let none = BTreeMap::new();
    let own = node(1, NodeKind::Private { tenant: tenant_id(1) }, 4, 1);
    let state = state(vec![
        own,
        node(2, NodeKind::Shared, 4, 1),
        node(3, NodeKind::Private { tenant: tenant_id(2) }, 4, 8),
    ]);
    let mut view = View::new(&state, &BTreeMap::new());
    let first = place(&mut view, request(&none, 1024)).unwrap();
    let second = place(&mut view, request(&none, 1024)).unwrap();
    assert_eq!((first, second), (node_id(1), node_id(2)));
    assert!(place(&mut view, request(&none, 1024)).is_err());
}

#[test]
fn r4_ten_thousand_on_a_thousand_nodes_even_and_never_overbooked() {
    let none = BTreeMap::new();
    let state = state((1..=1000).map(|n| node(n, NodeKind::Shared, 4, 10)).collect());
    let mut view = View::new(&state, &BTreeMap::new());
    let mut search = Search::new(&view, request(&none, 1024));
    for _ in 0..10_000 {
        search.place(&mut view).unwrap();
    }
    assert!(view.all().all(|seat| seat.taken.memory == Bytes::gib(10)));
    assert!(search.place(&mut view).is_err(), "the 10,001st must not fit");
}

/// Nodes whose containers and processes use so much of their CPU; none: nothing was heard of it.
fn loaded<'a>(state: &'a State, shares: &[Option<f32>]) -> View<'a> {
    let mut view = View::new(state, &BTreeMap::new());
    for (at, share) in shares.iter().enumerate() {
        let seat = &mut view.seats[at];
        let mut loads = Loads::default();
        if let Some(share) = share {
            loads[forecast::CPU].mean = share * seat.capacity[forecast::CPU];
            seat.known = Lazy::of(load::Known::Expected(loads));
        }
    }
    view
}

/// Replicas of one service that each node gets, of so many.
fn shares_of(view: &mut View<'_>, mut request: Request<'_>, count: usize) -> Vec<u32> {
    for node in 0..count {
        let seat = place(view, request.clone()).unwrap_or_else(|why| panic!("{node}: {why}"));
        *request.replicas.entry(seat).or_insert(0) += 1;
    }
    let of = |seat: &Seat<'_>| request.replicas.get(&seat.node.id).copied().unwrap_or(0);
    view.all().map(of).collect()
}

#[test]
fn a_second_replica_goes_to_another_node_however_busy_and_the_rest_where_there_is_room() {
    let none = BTreeMap::new();
    let state = state((1..=3).map(|n| node(n, NodeKind::Shared, 4, 10)).collect());
    let mut view = loaded(&state, &[Some(0.97), Some(0.1), Some(1.2)]);
    assert_eq!(shares_of(&mut view, request(&none, 64), 6), [1, 5, 0]);
    let mut view = loaded(&state, &[Some(0.97), Some(0.1), Some(0.15)]);
    assert_eq!(shares_of(&mut view, request(&none, 64), 6), [0, 3, 3]);
    // Whoever is about to leave is not the other one: a successor need not go where it is busy.
    let mut view = loaded(&state, &[Some(0.97), Some(0.1), Some(1.2)]);
    let mut one = request(&none, 64);
    one.replicas.insert(node_id(2), 1);
    let next =
        |view: &mut View<'_>, leaving| Search::new(view, one.clone()).place_for(view, leaving).unwrap();
    assert_eq!(next(&mut view, Some(node_id(2))), node_id(2));
    assert_eq!(next(&mut view, None), node_id(1));
}

#[test]
fn a_node_of_which_nothing_was_heard_yet_takes_its_part_after_those_known_to_be_idle() {
    let none = BTreeMap::new();
    let state = state((1..=3).map(|n| node(n, NodeKind::Shared, 4, 10)).collect());
    let mut view = loaded(&state, &[None, Some(0.0), Some(0.9)]);
    assert_eq!(place(&mut view, request(&none, 64)).unwrap(), node_id(2));
    let mut view = loaded(&state, &[None, Some(0.0), Some(0.9)]);
    assert_eq!(shares_of(&mut view, request(&none, 64), 8), [4, 4, 0]);
}

#[test]
fn r4_exactly_full_fits_and_one_unit_more_of_anything_does_not() {
    let r = |cpu, memory, disk| Reservation {
        cpu: Millicores(cpu),
        memory: Bytes(memory),
        disk: Bytes(disk),
    };
    let (whole, taken) = (r(1000, 1000, 1000), r(400, 400, 400));
    assert_eq!(filter::room(whole, taken, r(600, 600, 600)), None);
    assert_eq!(
        filter::room(whole, taken, r(601, 1, 1)),
        Some(filter::Obstacle::Cpu(Millicores(600)))
    );
    assert_eq!(
        filter::room(whole, taken, r(1, 601, 1)),
        Some(filter::Obstacle::Memory(Bytes(600)))
    );
    assert_eq!(
        filter::room(whole, taken, r(1, 1, 601)),
        Some(filter::Obstacle::Disk(Bytes(600)))
    );
    assert!(
        filter::room(r(10, 10, 10), taken, r(1, 0, 0)).is_some(),
        "a node that shrank takes nothing"
    );
}

#[test]
fn r4_an_exchange_that_does_not_fit_in_part_changes_nothing() {
    let none = BTreeMap::new();
    let state = state(vec![node(1, NodeKind::Shared, 4, 4)]);
    let mut view = View::new(&state, &BTreeMap::new());
    place(&mut view, request(&none, 1024)).unwrap();
    let spec = |disk: u64, memory: u64| {
        let mut spec = crate::controllers::fixtures::service(1, 1, "web:1", 1, Bytes::gib(memory)).spec;
        spec.class = berth_common::model::Class::BestEffort;
        spec.resources.limits.disk = Some(Bytes::gib(disk));
        spec.container_spec().unwrap()
    };
    let before = (view.seats[0].taken, view.seats[0].lent);
    assert!(
        !view.exchange(node_id(1), &spec(10, 1), &spec(1, 8)),
        "8 GiB are not idle there"
    );
    assert_eq!((view.seats[0].taken, view.seats[0].lent), before);
}

/// How uneven nodes are: the mean of squares of the shares of CPU that are reserved and that are expected to be in use.
fn unevenness(view: &View<'_>) -> f64 {
    let share = |seat: &Seat<'_>| {
        let whole = f64::from(seat.capacity[forecast::CPU]);
        let used = match seat.known() {
            load::Known::Expected(loads) => f64::from(loads[forecast::CPU].mean),
            _ => 0.0,
        };
        (f64::from(seat.taken.cpu.0) / whole).powi(2) + (used / whole).powi(2)
    };
    view.all().map(share).sum::<f64>() / view.all().count() as f64
}

#[test]
fn of_many_nodes_the_choice_among_some_is_as_good_as_among_all_and_refuses_no_more() {
    const NODES: u64 = 2_000;
    let nodes = (1..=NODES).map(|n| {
        let mut one = node(n, NodeKind::Shared, 8 << (n % 3), 32);
        let zone = format!("z{}", n % 7);
        one.labels = [
            ("zone".to_owned(), zone),
            ("few".to_owned(), (n % 40).to_string()),
        ]
        .into();
        one
    });
    let state = state(nodes.collect());
    // Whatever looks like chance here is the same each time.
    let luck = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    let shares: Vec<_> = (1..=NODES)
        .map(|n| Some((luck(n) % 700) as f32 / 1_000.0))
        .collect();
    let (none, few) = (
        BTreeMap::new(),
        BTreeMap::from([("few".to_owned(), "7".to_owned())]),
    );
    let (zone, hard) = (["zone".parse().unwrap()], ["zone,hard".parse().unwrap()]);
    let fill = |thorough: bool| {
        let mut view = loaded(&state, &shares);
        let (mut refused, mut uneven) = (0, 0);
        for n in 0..600 {
            let mut one = request(if n % 10 == 0 { &few } else { &none }, 64 + luck(n) % 512);
            one.reservation.cpu = Millicores(100 + (luck(n) % 900) as u32);
            one.load[forecast::CPU].mean = one.reservation.cpu.0 as f32 * 0.5;
            one.seed = luck(n);
            one.constraints.spread = match n % 10 {
                1 => &zone,
                2 => &hard,
                _ => &[],
            };
            let replicas = 1 + (luck(n) % 30) as usize;
            let mut search = match thorough {
                true => Search::thorough(&view, one),
                false => Search::new(&view, one),
            };
            let mut zones = [0; 7];
            for _ in 0..replicas {
                match search.place(&mut view) {
                    Ok(node) => {
                        let zone: usize = state.nodes[&node].labels["zone"][1..].parse().unwrap();
                        zones[zone] += 1;
                    }
                    Err(_) => refused += 1,
                }
            }
            if n % 10 == 1 || n % 10 == 2 {
                uneven += i32::from(zones.iter().max().unwrap() - zones.iter().min().unwrap() > 1);
            }
        }
        (refused, uneven, unevenness(&view))
    };
    let (some, all) = (fill(false), fill(true));
    assert_eq!((some.0, some.1), (all.0, all.1), "refused, uneven");
    assert_eq!(all.1, 0);
    assert!(some.2 <= all.2 * 1.02, "{} against {}", some.2, all.2);
    assert_eq!(fill(false), some, "equal inputs give equal answers");
}

#[test]
fn r4_of_many_nodes_the_last_place_is_found_and_a_refusal_counts_every_one() {
    let none = BTreeMap::new();
    let state = state((1..=700).map(|n| node(n, NodeKind::Shared, 4, 1)).collect());
    let mut view = View::new(&state, &BTreeMap::new());
    let mut search = Search::new(&view, request(&none, 1024));
    for _ in 0..700 {
        search.place(&mut view).unwrap();
    }
    let refusal = search.place(&mut view).unwrap_err().to_string();
    assert!(refusal.contains("700 nodes lack memory"), "{refusal}");
    // One alone has what is asked, wherever it is.
    for n in [1, 350, 700] {
        let pinned = BTreeMap::from([("node".to_owned(), format!("h{n}"))]);
        let mut view = View::new(&state, &BTreeMap::new());
        assert_eq!(place(&mut view, request(&pinned, 64)).unwrap(), node_id(n));
        let refusal = place(&mut view, request(&pinned, 2048)).unwrap_err().to_string();
        assert!(
            refusal.contains("699 nodes lack the label") && refusal.contains("1 node lacks memory"),
            "{refusal}"
        );
    }
}

#[test]
fn of_many_nodes_those_with_a_rare_label_are_gone_to_straight_and_all_are_told_of() {
    let nodes = (1..=1_000).map(|n| {
        let mut one = node(n, NodeKind::Shared, 4, 1);
        let (half, few) = ((n % 2).to_string(), (n % 100).to_string());
        one.labels = [("half".to_owned(), half), ("few".to_owned(), few)].into();
        one
    });
    let mut state = state(nodes.collect());
    let asked = |labels: &[(&str, &str)]| -> BTreeMap<String, String> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        labels.iter().map(owned).collect()
    };
    let both = asked(&[("half", "1"), ("few", "7")]);
    let mut view = View::new(&state, &BTreeMap::new());
    let mut search = Search::new(&view, request(&both, 1024));
    let mut taken: Vec<_> = (0..10).map(|_| search.place(&mut view).unwrap()).collect();
    taken.sort_unstable();
    assert_eq!(taken, (0..10).map(|n| node_id(n * 100 + 7)).collect::<Vec<_>>());
    assert_eq!(
        view.seats.looked_at().count(),
        10,
        "no other node was even looked at"
    );
    let refusal = search.place(&mut view).unwrap_err().to_string();
    assert!(
        refusal.contains("990 nodes lack the label") && refusal.contains("10 nodes lack memory"),
        "{refusal}"
    );
    for never in [
        asked(&[("half", "1"), ("few", "8")]),
        asked(&[("few", "none")]),
        asked(&[("other", "7")]),
        asked(&[("node", "No name at all")]),
    ] {
        let mut view = View::new(&state, &BTreeMap::new());
        let refusal = place(&mut view, request(&never, 64)).unwrap_err().to_string();
        assert!(refusal.contains("1000 nodes lack the label"), "{refusal}");
    }
    // A node that has the label and nothing else: what stands against it is told, too.
    let mut closed = (*state.nodes[&node_id(7)]).clone();
    closed.cordoned = true;
    state.apply(vec![Change::PutNode(closed)], Revision(2));
    let mut view = View::new(&state, &BTreeMap::new());
    let mut search = Search::new(&view, request(&both, 1024));
    for _ in 0..9 {
        assert_ne!(search.place(&mut view).unwrap(), node_id(7));
    }
    let refusal = search.place(&mut view).unwrap_err().to_string();
    assert!(refusal.contains("1 node is cordoned"), "{refusal}");
}
