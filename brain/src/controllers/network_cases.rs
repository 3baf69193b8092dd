//! Containers' places on networks, on the simulated cluster.

use berth_common::id::Name;
use berth_common::model::{Endpoint, UpdateOrder};
use ipnet::Ipv4Net;

use super::cases::{edit, put, world};
use super::endpoints::make;
use super::fixtures::{node_id, service_id, tenant_id};
use super::sim::{TICK_MS, World};
use crate::allocate::QUARANTINE_MS;
use crate::cluster::{Change, Network};

fn places(w: &World, n: u64) -> Vec<(u32, Vec<Endpoint>)> {
    let live = w
        .state
        .containers_of(service_id(n))
        .filter(|c| !c.removing && c.node.is_some());
    let mut all: Vec<_> = live.map(|c| (c.replica, c.endpoints.clone())).collect();
    all.sort();
    all
}

fn waits(w: &World, n: u64) -> Vec<String> {
    let live = w
        .state
        .containers_of(service_id(n))
        .filter(|c| !c.removing && c.node.is_none());
    live.filter_map(|c| c.waiting.clone()).collect()
}

fn network(w: &mut World, name: &str, cidr: &str) {
    let v4: Ipv4Net = cidr.parse().unwrap();
    let taken = |vni| w.state.networks.contains_key(&vni);
    let name = name.parse().unwrap();
    let record = make(&w.state, taken, tenant_id(1), name, Some(v4), Default::default()).unwrap();
    w.commit(vec![Change::PutNetwork(Network::new(record))]);
}

fn names(list: &[&str]) -> Vec<Name> {
    list.iter().map(|name| name.parse().unwrap()).collect()
}

#[test]
fn a_tenants_default_network_is_made_when_it_is_first_needed_and_only_once() {
    let mut w = world(2, 8);
    assert!(w.state.networks.is_empty());
    put(&mut w, 1, "web", 3, 1);
    put(&mut w, 2, "api", 2, 1);
    assert_eq!(w.state.networks.len(), 1);
    w.run(20);
    let (web, api) = (places(&w, 1), places(&w, 2));
    let mut numbers: Vec<_> = web
        .iter()
        .chain(&api)
        .map(|(_, endpoints)| endpoints[0].host.0)
        .collect();
    numbers.sort_unstable();
    // The first of each is the service's own.
    assert_eq!(numbers, [3, 4, 5, 7, 8]);
    assert_eq!((own(&w, "s1"), own(&w, "s2")), (vec![2], vec![6]));
    let told = w.events.iter().filter(|e| e.kind == "network-created").count();
    assert_eq!(told, 1);
}

/// A service's own numbers, by network.
fn own(w: &World, name: &str) -> Vec<u32> {
    let name: Name = name.parse().unwrap();
    let networks = w.state.networks.values();
    networks
        .filter_map(|network| network.addresses.get(&name))
        .map(|host| host.0)
        .collect()
}

#[test]
fn r6_a_services_own_address_is_there_before_its_containers_and_rests_when_it_is_gone() {
    let mut w = world(2, 8);
    network(&mut w, "small", "10.9.0.0/29");
    network(&mut w, "other", "10.9.1.0/29");
    put(&mut w, 1, "web", 0, 1);
    let on = |w: &mut World, list: &[&str]| edit(w, 1, |s| s.spec.networks = names(list));
    on(&mut w, &["small", "other"]);
    w.run(5);
    assert_eq!(own(&w, "s1"), [2, 2]);
    on(&mut w, &["small"]);
    w.run(5);
    assert_eq!(own(&w, "s1"), [2]);
    // What is given back rests, also for one of the same name.
    let tenant = tenant_id(1);
    let again = (*w.state.services[&service_id(1)]).clone();
    w.commit(vec![Change::DeleteService(service_id(1))]);
    w.run(5);
    assert!(own(&w, "s1").is_empty());
    w.commit(vec![Change::PutService(again)]);
    w.run(5);
    assert_eq!(own(&w, "s1"), [3], "two rests");
    put(&mut w, 2, "late", 0, 1);
    edit(&mut w, 2, |s| {
        s.spec.networks = names(&["small"]);
        s.spec.replicas = 3;
    });
    w.run(20);
    // 2 rests, 3 and 4 are services', so two of three have a place.
    assert_eq!(own(&w, "s2"), [4]);
    assert_eq!(places(&w, 2).len(), 2, "{:?}", waits(&w, 2));
    w.run(QUARANTINE_MS / TICK_MS + 20);
    assert_eq!(places(&w, 2).len(), 3, "{:?}", waits(&w, 2));
    // Where there is no room for one it goes without, and its containers don't.
    put(&mut w, 3, "full", 0, 1);
    edit(&mut w, 3, |s| s.spec.networks = names(&["small"]));
    w.run(5);
    assert!(own(&w, "s3").is_empty() && w.state.networks_of(tenant).count() == 3);
}

#[test]
fn whoever_replaces_what_is_lost_or_stopped_first_has_its_addresses() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web", 2, 1);
    w.run(20);
    let before = places(&w, 1);
    w.set_up(node_id(1), false);
    w.run(60);
    let live = |w: &World| {
        w.state
            .containers_of(service_id(1))
            .filter(|c| !c.removing)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert!(live(&w).iter().all(|c| c.node == Some(node_id(2))));
    assert_eq!(places(&w, 1), before, "a lost host's");
    w.set_up(node_id(1), true);
    w.run(40);
    edit(&mut w, 1, |s| {
        s.spec.update.order = UpdateOrder::StopFirst;
        s.spec.command = Some(vec!["new".into()]);
    });
    w.run(120);
    assert!(live(&w).iter().all(|c| c.spec.command.is_some()));
    assert_eq!(places(&w, 1), before, "stopped first");
    // One that starts beside the old one can't have the same.
    edit(&mut w, 1, |s| {
        s.spec.update.order = UpdateOrder::StartFirst;
        s.spec.command = Some(vec!["newer".into()]);
    });
    w.run(120);
    let after = places(&w, 1);
    assert!(
        after.len() == 2 && after.iter().zip(&before).all(|(new, old)| new.1 != old.1),
        "{after:?}"
    );
}

#[test]
fn r9_a_full_network_is_told_and_room_is_taken_when_it_comes() {
    let mut w = world(2, 8);
    network(&mut w, "small", "10.9.0.0/29");
    put(&mut w, 1, "web", 0, 1);
    edit(&mut w, 1, |s| {
        s.spec.networks = names(&["small"]);
        s.spec.replicas = 7;
    });
    w.run(40);
    // /29: eight addresses less network, gateway, broadcast and the service's own.
    assert_eq!(places(&w, 1).len(), 4);
    let why = waits(&w, 1);
    assert!(
        why.len() == 3 && why[0].contains("network small: all 5 addresses"),
        "{why:?}"
    );
    // Given back, they rest, and are used again without anybody's doing.
    edit(&mut w, 1, |s| s.spec.replicas = 0);
    w.run(20);
    edit(&mut w, 1, |s| s.spec.replicas = 2);
    w.run(20);
    let why = waits(&w, 1);
    assert!(why.len() == 2 && why[0].contains("given back lately"), "{why:?}");
    w.run(QUARANTINE_MS / TICK_MS + 20);
    assert_eq!(places(&w, 1).len(), 2, "{:?}", waits(&w, 1));
}

#[test]
fn r9_a_network_that_is_not_there_is_told_and_found_when_it_comes() {
    let mut w = world(1, 8);
    put(&mut w, 1, "web", 0, 1);
    edit(&mut w, 1, |s| {
        s.spec.networks = names(&["back", "default"]);
        s.spec.replicas = 1;
    });
    w.run(20);
    let why = waits(&w, 1);
    assert!(
        why.len() == 1 && why[0].contains("berth network create back"),
        "{why:?}"
    );
    network(&mut w, "back", "10.9.1.0/24");
    w.run(20);
    assert_eq!(places(&w, 1)[0].1.len(), 2, "{:?}", waits(&w, 1));
}

#[test]
fn r9_what_an_older_brain_started_is_connected_while_it_runs_or_says_why_not() {
    let mut w = world(2, 8);
    network(&mut w, "back", "10.9.0.0/29");
    put(&mut w, 1, "web", 0, 1);
    edit(&mut w, 1, |s| {
        s.spec.networks = names(&["back"]);
        s.spec.replicas = 1;
    });
    w.run(20);
    let forget = |w: &mut World, more: Vec<Change>| {
        let mut one = (**w.state.containers_of(service_id(1)).next().unwrap()).clone();
        one.endpoints.clear();
        let id = one.id;
        w.commit([vec![Change::PutContainer(one)], more].concat());
        (*w.state.containers[&id]).clone()
    };
    let one = forget(&mut w, vec![]);
    assert_eq!((one.endpoints.len(), &one.waiting), (1, &None));
    let vni = one.endpoints[0].vni;
    let one = forget(&mut w, vec![Change::DeleteNetwork(vni)]);
    let why = one.waiting.unwrap_or_default();
    assert!(
        one.node.is_some() && why.contains("berth network create back"),
        "{why}"
    );
    assert!(w.events.iter().any(|e| e.kind == "waiting" && e.text == why));
    let told = w.events.len();
    w.run(20);
    edit(&mut w, 1, |s| s.spec.labels = [("a".into(), "b".into())].into());
    assert_eq!(w.events.len(), told, "told once");
}
