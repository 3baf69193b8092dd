//! What services ask of places and what nodes keep away, on the simulated cluster.

use berth_common::id::Revision;
use berth_common::model::{Architecture, Digest, LoadedImage, Overcommit, PoolRecord, UnixMillis};

use super::cases::{edit, edit_node, on, put, quiet, world};
use super::fixtures::{node_id, service_id, tenant_id};
use super::nodes;
use super::sim::World;
use super::view::service_problem;
use crate::cluster::Change;

fn taint(w: &mut World, n: u64, taints: &[&str]) {
    edit_node(w, n, |node| {
        node.taints = taints.iter().map(|taint| taint.parse().unwrap()).collect();
    });
}

fn tolerate(w: &mut World, n: u64, tolerations: &[&str]) {
    edit(w, n, |s| {
        s.spec.tolerations = tolerations.iter().map(|one| one.parse().unwrap()).collect();
    });
}

#[test]
fn r9_a_taint_keeps_new_ones_away_and_says_so() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 2, 1);
    w.run(6);
    taint(&mut w, 1, &["gpu=a100:no-schedule"]);
    taint(&mut w, 2, &["disk:no-schedule"]);
    w.run(6);
    assert_eq!((on(&w, 1), on(&w, 2)), (1, 1), "who is there stays");
    put(&mut w, 2, "web:1", 1, 1);
    w.run(6);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(2)).unwrap();
    assert!(
        problem.ends_with("2 nodes have taints such as gpu=a100:no-schedule, which it does not tolerate"),
        "{problem}"
    );
    tolerate(&mut w, 2, &["gpu=h100"]);
    w.run(6);
    assert_eq!(w.running(service_id(2)), 0);
    tolerate(&mut w, 2, &["gpu"]);
    w.run(6);
    assert_eq!((w.running(service_id(2)), on(&w, 1)), (1, 2));
    quiet(&w);
}

#[test]
fn a_softer_taint_is_used_last_but_before_replicas_crowd() {
    let mut w = world(2, 8);
    taint(&mut w, 1, &["old:prefer-no-schedule"]);
    put(&mut w, 1, "web:1", 1, 1);
    put(&mut w, 2, "web:1", 1, 4);
    w.run(6);
    assert_eq!((on(&w, 1), on(&w, 2)), (0, 2), "fuller, but not tainted");
    edit(&mut w, 1, |s| s.spec.replicas = 2);
    w.run(6);
    assert_eq!((on(&w, 1), on(&w, 2)), (1, 2), "replicas keep apart first");
    quiet(&w);
}

#[test]
fn no_execute_moves_what_does_not_tolerate_it_as_a_drain_does() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 2, 1);
    put(&mut w, 2, "web:1", 2, 1);
    tolerate(&mut w, 2, &["down:no-execute"]);
    w.run(6);
    assert_eq!(on(&w, 1), 2);
    taint(&mut w, 1, &["down=soon:no-execute"]);
    let waits = nodes::drain_waits(&w.state, &w.watched.at(w.now), node_id(1));
    assert_eq!(waits.len(), 1, "who tolerates it is not waited for: {waits:?}");
    for _ in 0..40 {
        w.run(1);
        assert!(w.running(service_id(1)) >= 2, "moving takes nobody away");
    }
    assert_eq!((on(&w, 1), w.running(service_id(2))), (1, 2));
    assert!(
        w.events
            .iter()
            .any(|e| e.text == "moves from h1 to h2: the node has the taint down=soon:no-execute")
    );
    quiet(&w);
    // Without an elsewhere it stays, and says what holds it.
    taint(&mut w, 2, &["down:no-execute"]);
    w.run(20);
    assert_eq!(w.running(service_id(1)), 2);
    let waits = nodes::drain_waits(&w.state, &w.watched.at(w.now), node_id(2));
    assert!(waits[0].contains("2 nodes have taints"), "{waits:?}");
    taint(&mut w, 2, &[]);
    w.run(20);
    quiet(&w);
}

#[test]
fn tolerating_no_longer_moves_where_the_taint_drives_away_and_restarts_nobody_else() {
    let mut w = world(2, 8);
    put(&mut w, 1, "web:1", 2, 1);
    tolerate(&mut w, 1, &["a", "b"]);
    taint(&mut w, 1, &["a:no-execute"]);
    taint(&mut w, 2, &["b:no-schedule"]);
    w.run(10);
    assert_eq!(w.running(service_id(1)), 2);
    let before: Vec<_> = w.state.containers.keys().copied().collect();
    tolerate(&mut w, 1, &["a"]);
    w.run(20);
    assert_eq!(
        w.state.containers.keys().copied().collect::<Vec<_>>(),
        before,
        "no-schedule drives nobody away"
    );
    tolerate(&mut w, 1, &["b"]);
    w.run(60);
    assert_eq!((on(&w, 1), on(&w, 2), w.running(service_id(1))), (0, 2, 2));
    quiet(&w);
}

fn pool(w: &mut World, name: &str, cpu_percent: u32, memory_percent: u32) {
    w.commit(vec![Change::PutPool(PoolRecord {
        name: name.parse().unwrap(),
        overcommit: Overcommit {
            cpu_percent,
            memory_percent,
        },
        created_at: UnixMillis(0),
        revision: Revision(0),
    })]);
}

#[test]
fn r4_a_pool_that_shrinks_takes_nothing_away_and_nothing_new_in() {
    let mut w = world(1, 4);
    pool(&mut w, "default", 100, 200);
    put(&mut w, 1, "web:1", 8, 1);
    w.run(10);
    assert_eq!(w.running(service_id(1)), 8, "twice of its 4 GiB");
    let before: Vec<_> = w.state.containers.keys().copied().collect();
    pool(&mut w, "default", 100, 150);
    put(&mut w, 2, "web:1", 1, 1);
    w.run(10);
    assert_eq!((w.running(service_id(1)), w.running(service_id(2))), (8, 0));
    assert!(before.iter().all(|id| w.state.containers.contains_key(id)));
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(2)).unwrap();
    assert!(problem.contains("most free is 0B on h1"), "{problem}");
    // Below what is taken, room comes only once enough has gone.
    edit(&mut w, 1, |s| s.spec.replicas = 6);
    w.run(10);
    assert_eq!(w.running(service_id(2)), 0);
    edit(&mut w, 1, |s| s.spec.replicas = 5);
    w.run(10);
    assert_eq!(w.running(service_id(2)), 1);
    quiet(&w);
    // A node's own goes before its pool's.
    edit_node(&mut w, 1, |node| node.overcommit = Some(Overcommit::default()));
    put(&mut w, 3, "web:1", 1, 1);
    w.run(10);
    assert_eq!(w.running(service_id(3)), 0);
    edit_node(&mut w, 1, |node| node.overcommit = None);
    pool(&mut w, "default", 100, 200);
    w.run(10);
    assert_eq!(
        w.running(service_id(3)),
        1,
        "more is allowed: what waits is tried at once"
    );
    quiet(&w);
}

#[test]
fn r9_a_service_runs_in_its_pool_and_nowhere_else() {
    let mut w = world(2, 8);
    pool(&mut w, "gpu", 100, 100);
    edit_node(&mut w, 2, |node| node.pool = "gpu".parse().unwrap());
    put(&mut w, 1, "web:1", 4, 1);
    put(&mut w, 2, "web:1", 4, 1);
    edit(&mut w, 2, |s| s.spec.pool = Some("gpu".parse().unwrap()));
    w.run(60);
    assert_eq!((on(&w, 1), on(&w, 2)), (4, 4));
    assert!(
        w.state
            .containers_on(node_id(2))
            .all(|c| c.service == service_id(2))
    );
    edit(&mut w, 2, |s| s.spec.replicas = 9);
    w.run(10);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(2)).unwrap();
    assert!(
        problem.contains("1 node lacks memory (need 1GiB, most free is 0B on h2), 1 node is not in pool gpu"),
        "{problem}"
    );
    quiet(&w);
}

#[test]
fn r9_an_image_runs_where_its_architecture_is_and_one_that_nothing_is_known_of_anywhere() {
    let mut w = world(2, 8);
    edit_node(&mut w, 2, |node| node.facts.arch = Architecture("arm64".into()));
    let loaded = |arch: Option<&str>| {
        Change::PutImage(LoadedImage {
            tenant: tenant_id(1),
            reference: "app:1".parse().unwrap(),
            manifest: Digest::of(b"app"),
            blobs: Vec::new(),
            arch: arch.map(|arch| Architecture(arch.into())),
            loaded_at: UnixMillis(0),
        })
    };
    w.commit(vec![loaded(Some("arm64"))]);
    put(&mut w, 1, "app:1", 3, 1);
    put(&mut w, 2, "web:1", 3, 1);
    w.run(8);
    let of = |w: &World, n: u64, service: u64| {
        let all = w.state.containers_on(node_id(n));
        all.filter(|c| c.service == service_id(service)).count()
    };
    assert_eq!((of(&w, 1, 1), of(&w, 2, 1)), (0, 3));
    assert!(
        of(&w, 1, 2) > 0 && of(&w, 2, 2) > 0,
        "who knows what web:1 is for"
    );
    edit(&mut w, 1, |s| s.spec.replicas = 9);
    w.run(8);
    let problem = service_problem(&w.state, &w.watched.at(w.now), service_id(1)).unwrap();
    assert!(
        problem.ends_with("1 node is amd64, its image is for arm64"),
        "{problem}"
    );
    // Loaded by an older brain, or no more: nothing is known, and what waits is tried at once.
    w.commit(vec![loaded(None)]);
    w.run(8);
    assert_eq!(w.running(service_id(1)), 9);
    quiet(&w);
}
