//! More containers than fit, of every priority and class, on nodes that come and go: the rules of preemption hold at every step, reservations
//! as ever, and the cluster comes to rest with the highest served.

use berth_common::model::{Class, RunState, UpdateOrder};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::cases::{check_converged, edit, edit_node, image, tell, world};
use super::fixtures::{node_id, service, service_id};
use super::sim::World;
use crate::cluster::Change;
use crate::scheduler::preempt::Rank;

#[derive(Debug, Clone)]
enum Act {
    Put(u64, u32, u64, i32, u8),
    Priority(u64, i32),
    BestEffort(u64, bool),
    Memory(u64, u64),
    Scale(u64, u32),
    Image(u64),
    Run(u64, bool),
    Delete(u64),
    Up(u64, bool),
    Drain(u64, bool),
}

fn acts() -> impl Strategy<Value = Act> {
    let s = 1u64..8;
    let n = 1u64..4;
    prop_oneof![
        9 => (s.clone(), 1u32..5, 1u64..5, -2i32..3, 0u8..8).prop_map(|(a, b, c, d, e)| Act::Put(a, b, c, d, e)),
        2 => (s.clone(), -2i32..3).prop_map(|(a, b)| Act::Priority(a, b)),
        1 => (s.clone(), any::<bool>()).prop_map(|(a, b)| Act::BestEffort(a, b)),
        2 => (s.clone(), 1u64..5).prop_map(|(a, b)| Act::Memory(a, b)),
        2 => (s.clone(), 0u32..6).prop_map(|(a, b)| Act::Scale(a, b)),
        1 => s.clone().prop_map(Act::Image),
        1 => (s.clone(), any::<bool>()).prop_map(|(a, b)| Act::Run(a, b)),
        1 => s.prop_map(Act::Delete),
        2 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Up(a, b)),
        1 => (n, any::<bool>()).prop_map(|(a, b)| Act::Drain(a, b)),
    ]
}

fn perform(w: &mut World, act: &Act) {
    let class = |best_effort| {
        if best_effort {
            Class::BestEffort
        } else {
            Class::Standard
        }
    };
    match *act {
        Act::Put(n, replicas, gib, priority, kind) => {
            if w.state.services.contains_key(&service_id(n)) {
                return;
            }
            let mut record = service(n, 1 + n % 2, "web:1", replicas, Bytes::gib(gib));
            record.spec.priority = priority;
            record.spec.class = class(kind < 2);
            record.spec.max_per_node = (kind == 7).then_some(1);
            if kind % 2 == 1 {
                record.spec.update.order = UpdateOrder::StopFirst;
            }
            w.commit(vec![Change::PutService(record)]);
        }
        Act::Priority(n, priority) => edit(w, n, |s| s.spec.priority = priority),
        Act::BestEffort(n, on) => edit(w, n, |s| s.spec.class = class(on)),
        Act::Memory(n, gib) => edit(w, n, |s| s.spec.resources.limits.memory = Some(Bytes::gib(gib))),
        Act::Scale(n, replicas) => edit(w, n, |s| s.spec.replicas = replicas),
        Act::Image(n) => {
            let now = w.now;
            image(w, n, &format!("web:{now}"));
        }
        Act::Run(n, run) => {
            let run = if run { RunState::Running } else { RunState::Stopped };
            tell(w, n, |s| s.run = run);
        }
        Act::Delete(n) => w.commit(vec![Change::DeleteService(service_id(n))]),
        Act::Up(n, up) => w.set_up(node_id(n), up),
        Act::Drain(n, on) => edit_node(w, n, |node| node.draining = on),
    }
}

/// At rest nobody waits whom somebody of lower rank could have made room for on a node by itself.
fn check_the_highest_are_served(w: &World) {
    let state = &w.state;
    let rank = |c: &berth_common::model::ContainerRecord| Rank::of(&state.services[&c.service].spec);
    for id in &state.unplaced {
        let waits = &state.containers[id];
        let service = &state.services[&waits.service];
        if waits.spec.class == Class::BestEffort
            || service.run != RunState::Running
            || service.spec.max_per_node.is_some()
        {
            continue;
        }
        for node in state.nodes.values() {
            let others = state.containers_on(node.id);
            let staying = others.filter(|c| rank(c) >= rank(waits) || c.replaces.is_some());
            let held = staying.fold(waits.spec.reservation, |sum, c| sum.plus(c.spec.reservation));
            let most = state.allocatable(node);
            let fits = held.memory <= most.memory && held.cpu <= most.cpu && held.disk <= most.disk;
            assert!(
                !fits,
                "{} waits, and on {} are those of lower rank",
                waits.service_name, node.name
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x9ee7),
        ..ProptestConfig::default()
    })]

    #[test]
    fn r4_preemption_is_never_for_nothing_and_what_it_makes_room_for_gets_it(acts in prop::collection::vec((acts(), 0u64..12), 8..36)) {
        let mut w = world(3, 6);
        for (act, ticks) in &acts {
            perform(&mut w, act);
            w.run(*ticks);
        }
        w.everyone_up();
        for n in 1..4 {
            edit_node(&mut w, n, |node| node.draining = false);
        }
        w.run(160);
        prop_assert!(w.state.claiming.is_empty(), "room is made for somebody for ever");
        check_converged(&w);
        check_the_highest_are_served(&w);
    }
}
