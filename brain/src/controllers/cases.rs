//! Tests of the controllers on the simulated cluster: named cases, and random sequences of actions and faults.

use berth_common::id::NodeId;
use berth_common::model::{HealthCheck, NodeKind, NodeRecord, Restart, RunState, ServiceRecord, UpdateOrder};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::Dirty;
use super::commands::command;
use super::fixtures::{node, node_id, service, service_id, tenant_id};
use super::sim::World;
use super::view::{outdated, service_problem};
use crate::cluster::Change;

pub(super) fn world(nodes: u64, gib: u64) -> World {
    let mut world = World::new();
    for n in 1..=nodes {
        world.join(node(n, NodeKind::Shared, 4, gib));
    }
    world.run(2);
    world
}

pub(super) fn put(world: &mut World, n: u64, image: &str, replicas: u32, gib: u64) {
    world.commit(vec![Change::PutService(service(
        n,
        1,
        image,
        replicas,
        Bytes::gib(gib),
    ))]);
}

pub(super) fn edit(world: &mut World, n: u64, change: impl FnOnce(&mut ServiceRecord)) {
    let Some(old) = world.state.services.get(&service_id(n)) else {
        return;
    };
    let mut new = (**old).clone();
    change(&mut new);
    new.generation += 1;
    world.commit(vec![Change::PutService(new)]);
}

pub(super) fn tell(world: &mut World, n: u64, change: impl FnOnce(&mut ServiceRecord)) {
    let Some(old) = world.state.services.get(&service_id(n)) else {
        return;
    };
    let mut new = (**old).clone();
    change(&mut new);
    world.commit(command(&world.state, new));
}

pub(super) fn edit_node(world: &mut World, n: u64, change: impl FnOnce(&mut NodeRecord)) {
    let Some(old) = world.state.nodes.get(&node_id(n)) else {
        return;
    };
    let mut new = (**old).clone();
    change(&mut new);
    world.commit(vec![Change::PutNode(new)]);
}

pub(super) fn image(world: &mut World, n: u64, image: &str) {
    edit(world, n, |s| s.spec.image = image.parse().unwrap());
}

pub(super) fn on(world: &World, n: u64) -> usize {
    world
        .state
        .containers_on(node_id(n))
        .filter(|c| !c.removing)
        .count()
}

/// A converged cluster is left alone. The numbers in a waiting reason may lag: they are renewed when room comes free,
/// not whenever somebody else takes some.
pub(super) fn quiet(world: &World) {
    super::sim_rules::check_indexes(&world.state);
    let plan = world.dry_plan(&Dirty::everything());
    for change in plan.changes {
        let Change::PutContainer(new) = &change else {
            panic!("churn: {change:?}")
        };
        let mut old = (*world.state.containers[&new.id]).clone();
        assert!(
            old.waiting.is_some() && new.waiting.is_some(),
            "churn: {change:?}"
        );
        old.waiting.clone_from(&new.waiting);
        assert_eq!(&old, new, "churn");
    }
}

#[test]
fn replicas_spread_and_run() {
    let mut w = world(3, 8);
    put(&mut w, 1, "web:1", 6, 1);
    w.run(6);
    assert_eq!(w.running(service_id(1)), 6);
    assert_eq!((on(&w, 1), on(&w, 2), on(&w, 3)), (2, 2, 2));
    assert_eq!(
        service_problem(&w.state, &w.watched.at(w.now), service_id(1)),
        None
    );
    quiet(&w);
}

#[test]
fn r9_waits_with_numbers_until_room_comes() {
    let mut w = world(1, 2);
    put(&mut w, 1, "web:1", 3, 1);
    w.run(6);
    assert_eq!(w.running(service_id(1)), 2);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    let expected =
        "1 of 3 wait for a node: no node fits: 1 node lacks memory (need 1GiB, most free is 0B on h1)";
    assert_eq!(problem, expected);
    w.join(node(2, NodeKind::Shared, 4, 2));
    w.run(6);
    assert_eq!(w.running(service_id(1)), 3);
    quiet(&w);
}

#[test]
fn scaling_down_takes_the_highest_first() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 4, 1);
    w.run(6);
    edit(&mut w, 1, |s| s.spec.replicas = 2);
    w.run(6);
    let left: Vec<_> = w.state.containers_of(service_id(1)).map(|c| c.replica).collect();
    assert_eq!(left.len(), 2);
    assert!(left.iter().all(|r| *r <= 2));
}

#[test]
fn a_start_first_update_never_lowers_what_serves() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 4, 1);
    w.run(6);
    image(&mut w, 1, "web:2");
    for _ in 0..100 {
        w.run(1);
        assert!(w.running(service_id(1)) >= 4);
    }
    assert_eq!(outdated(&w.state, service_id(1)), 0);
    assert_eq!(w.state.containers.len(), 4);
    quiet(&w);
}

#[test]
fn without_room_for_both_the_old_goes_first_one_at_a_time() {
    let mut w = world(2, 2);
    put(&mut w, 1, "web:1", 4, 1);
    w.run(6);
    image(&mut w, 1, "web:2");
    for _ in 0..200 {
        w.run(1);
        assert!(w.running(service_id(1)) >= 3);
    }
    assert_eq!(
        (outdated(&w.state, service_id(1)), w.running(service_id(1))),
        (0, 4)
    );
}

#[test]
fn stop_first_never_runs_both() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 1, 1);
    edit(&mut w, 1, |s| s.spec.update.order = UpdateOrder::StopFirst);
    w.run(6);
    image(&mut w, 1, "web:2");
    for _ in 0..20 {
        w.run(1);
        assert!(w.existing().len() <= 1, "old and new together");
    }
    assert_eq!(
        (outdated(&w.state, service_id(1)), w.running(service_id(1))),
        (0, 1)
    );
}

#[test]
fn a_crashing_successor_stops_the_rollout_and_says_why() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 3, 1);
    w.run(6);
    image(&mut w, 1, "bad:1");
    w.run(200);
    assert_eq!(outdated(&w.state, service_id(1)), 3, "every old one is kept");
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("the rollout stopped") && problem.contains("exited with code 1"),
        "{problem}"
    );
    image(&mut w, 1, "web:1");
    w.run(10);
    assert_eq!(
        w.state.containers.len(),
        3,
        "going back removes the failed one and touches nothing else"
    );
    assert_eq!(w.running(service_id(1)), 3);
}

#[test]
fn a_rollout_goes_by_health_where_that_is_checked() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 3, 1);
    edit(&mut w, 1, |s| {
        s.spec.health = Some(HealthCheck::default());
        s.spec.update.settle_ms = 0;
    });
    w.run(20);
    let serving = |w: &World| {
        let live = w.state.containers_of(service_id(1)).filter(|c| !c.removing);
        live.filter(|c| w.state.takes_requests(c)).count()
    };
    assert_eq!(serving(&w), 3);
    // Never fewer than three, though a new one is there a while before it is well.
    image(&mut w, 1, "web:2");
    for _ in 0..60 {
        w.run(1);
        assert!(serving(&w) >= 3, "{}", serving(&w));
    }
    assert_eq!((outdated(&w.state, service_id(1)), serving(&w)), (0, 3));
    // One that is never well replaces nobody.
    image(&mut w, 1, "sick:1");
    w.run(200);
    assert_eq!((outdated(&w.state, service_id(1)), serving(&w)), (3, 3));
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("the rollout stopped") && problem.contains("unhealthy: it coughs"),
        "{problem}"
    );
    // Going back touches nobody who is well.
    image(&mut w, 1, "web:2");
    w.run(20);
    assert_eq!((outdated(&w.state, service_id(1)), serving(&w)), (0, 3));
}

#[test]
fn r9_whoever_links_to_a_service_begins_after_it_and_says_so_meanwhile() {
    let mut w = world(2, 8);
    let link = |w: &mut World, n: u64, to: &str| {
        let to: Vec<_> = to.split(' ').map(|to| to.parse().unwrap()).collect();
        let mut web = service(n, 1, "web:1", 2, Bytes::gib(1));
        web.spec.links = to;
        w.commit(vec![Change::PutService(web)]);
    };
    link(&mut w, 1, "s2:5432");
    w.run(20);
    assert_eq!(w.running(service_id(1)), 0);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("2 of 2 wait")
            && problem.contains("service s2, which it links to and which is not there"),
        "{problem}"
    );
    put(&mut w, 2, "sick:1", 1, 1);
    edit(&mut w, 2, |s| s.spec.health = Some(HealthCheck::default()));
    w.run(20);
    assert_eq!(w.running(service_id(1)), 0);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.contains("no container of it takes requests yet"),
        "{problem}"
    );
    image(&mut w, 2, "db:1");
    w.run(20);
    assert_eq!(w.running(service_id(1)), 2, "nobody had to do anything");
    // What runs is left alone when the other one goes, and replaced where it must be.
    w.commit(vec![Change::DeleteService(service_id(2))]);
    w.run(20);
    image(&mut w, 1, "web:2");
    w.run(60);
    assert_eq!(
        (w.running(service_id(1)), outdated(&w.state, service_id(1))),
        (2, 0)
    );
}

#[test]
fn limits_change_in_place_where_they_fit_and_by_replacement_where_not() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 1, 1);
    put(&mut w, 2, "web:1", 1, 1);
    w.run(6);
    let first: Vec<_> = w.state.containers.keys().copied().collect();
    edit(&mut w, 1, |s| {
        s.spec.resources.limits.memory = Some(Bytes::gib(4))
    });
    w.run(20);
    assert_eq!(w.state.containers.keys().copied().collect::<Vec<_>>(), first);
    let grown = w.state.containers_of(service_id(1)).next().unwrap();
    assert_eq!(grown.spec.reservation.memory, Bytes::gib(4));
    let node = grown.node.unwrap();
    let mut blocker = service(3, 1, "web:1", 1, Bytes::gib(3));
    blocker.spec.node_labels.insert("here".into(), "yes".into());
    let n = if node == node_id(1) { 1 } else { 2 };
    edit_node(&mut w, n, |node| {
        drop(node.labels.insert("here".into(), "yes".into()))
    });
    w.commit(vec![Change::PutService(blocker)]);
    w.run(6);
    edit(&mut w, 1, |s| {
        s.spec.resources.limits.memory = Some(Bytes::gib(6))
    });
    w.run(30);
    let moved = w.state.containers_of(service_id(1)).next().unwrap();
    assert_ne!(moved.node, Some(node));
    assert_eq!(
        (w.running(service_id(1)), outdated(&w.state, service_id(1))),
        (1, 0)
    );
}

#[test]
fn deleted_services_and_nodes_leave_nothing() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 4, 1);
    put(&mut w, 2, "web:1", 40, 1);
    w.run(6);
    w.commit(vec![Change::DeleteService(service_id(1))]);
    w.run(6);
    assert_eq!(w.state.containers_of(service_id(1)).count(), 0);
    assert_eq!(w.running(service_id(2)), 16, "freed room is used at once");
    w.drop_node(node_id(2));
    w.run(6);
    assert_eq!(w.running(service_id(2)), 8);
    assert_eq!(w.state.containers_of(service_id(2)).count(), 40);
}

#[test]
fn finished_jobs_are_left_alone() {
    let mut w = world(2, 8);
    let mut job = service(1, 1, "job:1", 2, Bytes::gib(1));
    job.spec.restart.on = Restart::OnFailure;
    w.commit(vec![Change::PutService(job)]);
    w.run(10);
    let before: Vec<_> = w.state.containers.keys().copied().collect();
    w.set_up(node_id(1), false);
    w.run(60);
    assert_eq!(w.state.containers.keys().copied().collect::<Vec<_>>(), before);
    assert_eq!(
        service_problem(&w.state, &w.watched.at(w.now), service_id(1)),
        None
    );
}

#[derive(Debug, Clone)]
enum Act {
    Put(u64, u64, u8, u32, u64, bool),
    Image(u64, u8),
    Memory(u64, u64),
    Scale(u64, u32),
    Run(u64, bool),
    Restart(u64),
    Delete(u64),
    Up(u64, bool),
    Reboot(u64),
    Drain(u64, bool),
    Cordon(u64, bool),
    Remove(u64),
}

const IMAGES: [&str; 5] = ["web:1", "web:2", "bad:1", "job:1", "web:3"];

fn act() -> impl Strategy<Value = Act> {
    let s = 1u64..5;
    let n = 1u64..5;
    prop_oneof![
        4 => (s.clone(), 1u64..3, 0u8..5, 0u32..6, 1u64..4, any::<bool>()).prop_map(|(a, b, c, d, e, f)| Act::Put(a, b, c, d, e, f)),
        3 => (s.clone(), 0u8..5).prop_map(|(a, b)| Act::Image(a, b)),
        2 => (s.clone(), 1u64..5).prop_map(|(a, b)| Act::Memory(a, b)),
        2 => (s.clone(), 0u32..7).prop_map(|(a, b)| Act::Scale(a, b)),
        1 => (s.clone(), any::<bool>()).prop_map(|(a, b)| Act::Run(a, b)),
        1 => s.clone().prop_map(Act::Restart),
        1 => s.prop_map(Act::Delete),
        4 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Up(a, b)),
        1 => n.clone().prop_map(Act::Reboot),
        3 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Drain(a, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Cordon(a, b)),
        1 => n.prop_map(Act::Remove),
    ]
}

fn perform(w: &mut World, act: &Act) {
    let exists = |w: &World, n: NodeId| w.state.nodes.contains_key(&n);
    match *act {
        Act::Put(n, tenant, image, replicas, gib, stop_first) => {
            if w.state.services.contains_key(&service_id(n)) {
                return;
            }
            let mut record = service(n, tenant, IMAGES[usize::from(image)], replicas, Bytes::gib(gib));
            record.spec.update.parallel = 1 + replicas % 2;
            if image == 3 {
                record.spec.restart.on = Restart::OnFailure;
            }
            if stop_first {
                record.spec.update.order = UpdateOrder::StopFirst;
            }
            w.commit(vec![Change::PutService(record)]);
        }
        Act::Image(n, to) => image(w, n, IMAGES[usize::from(to)]),
        Act::Memory(n, gib) => edit(w, n, |s| s.spec.resources.limits.memory = Some(Bytes::gib(gib))),
        Act::Scale(n, replicas) => edit(w, n, |s| s.spec.replicas = replicas),
        Act::Run(n, run) => {
            let run = if run { RunState::Running } else { RunState::Stopped };
            tell(w, n, |s| s.run = run);
        }
        Act::Restart(n) => tell(w, n, |s| s.restarts_asked += 1),
        Act::Delete(n) => w.commit(vec![Change::DeleteService(service_id(n))]),
        Act::Up(n, up) => w.set_up(node_id(n), up),
        Act::Reboot(n) => w.reboot(node_id(n)),
        Act::Drain(n, on) => edit_node(w, n, |node| node.draining = on),
        Act::Cordon(n, on) => edit_node(w, n, |node| node.cordoned = on),
        Act::Remove(n) if exists(w, node_id(n)) => w.drop_node(node_id(n)),
        Act::Remove(_) => {}
    }
}

pub(super) fn check_converged(w: &World) {
    let state = &w.state;
    quiet(w);
    assert!(
        state.containers.values().all(|c| !c.removing),
        "something never went"
    );
    let placed: std::collections::BTreeSet<_> = state
        .containers
        .values()
        .filter(|c| c.node.is_some())
        .map(|c| c.id)
        .collect();
    assert_eq!(
        w.existing(),
        placed,
        "nodes hold what the brain wants of them and nothing else"
    );
    for (id, s) in &state.services {
        let image = s.spec.image.to_string();
        let problem = service_problem(state, &w.watched.at(w.now), *id);
        if image.contains("bad") || image.contains("job") {
            continue;
        }
        let live = state.containers_of(*id).count() as u32;
        assert_eq!(live, s.spec.replicas, "{}: {problem:?}", s.spec.name);
        if s.run == RunState::Stopped {
            continue;
        }
        let short = s.spec.replicas - w.running(*id) as u32;
        let unplaced = state.containers_of(*id).filter(|c| c.node.is_none()).count() as u32;
        assert_eq!(short, unplaced, "{}: {problem:?}", s.spec.name);
        if unplaced > 0 || outdated(state, *id) > 0 {
            assert!(
                problem.is_some(),
                "R9: {} is not as wanted and doesn't say why",
                s.spec.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0xb127),
        ..ProptestConfig::default()
    })]

    #[test]
    fn rules_hold_and_the_cluster_converges(acts in prop::collection::vec((act(), 0u64..30), 1..30)) {
        let mut w = world(3, 8);
        w.join(node(4, NodeKind::Private { tenant: tenant_id(2) }, 2, 4));
        for (act, ticks) in &acts {
            perform(&mut w, act);
            w.run(*ticks);
        }
        w.everyone_up();
        for n in 1..5 {
            edit_node(&mut w, n, |node| { node.draining = false; node.cordoned = false; });
        }
        w.run(240);
        check_converged(&w);
    }
}
