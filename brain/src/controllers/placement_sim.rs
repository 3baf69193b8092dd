//! Services with every kind of wish on nodes that change under them: hard constraints hold at every placement, and the cluster comes to rest.

use berth_common::model::{Class, NodeKind, Overcommit, PoolRecord, UnixMillis, UpdateOrder};
use berth_common::units::Bytes;
use proptest::prelude::*;

use super::cases::{check_converged, edit, edit_node, image, world};
use super::fixtures::{node, service, service_id, tenant_id};
use super::sim::World;
use crate::cluster::Change;

#[derive(Debug, Clone)]
pub(super) enum Act {
    Put(u64, u32, u64, Wish),
    Wish(u64, Wish),
    Scale(u64, u32),
    Image(u64),
    Delete(u64),
    Zone(u64, u8),
    Taint(u64, u8),
    Pool(u64, bool),
    Overcommit(u32),
    Up(u64, bool),
    Drain(u64, bool),
}

/// What a service asks for, in numbers that [`wish`] makes words of.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    spread: u8,
    together: u8,
    most: u8,
    tolerates: u8,
    pool: bool,
    stop_first: bool,
    priority: i32,
    best_effort: bool,
}

fn wishes() -> impl Strategy<Value = Wish> {
    (
        0u8..5,
        0u8..6,
        0u8..4,
        0u8..3,
        any::<bool>(),
        any::<bool>(),
        -1i32..3,
        0u8..4,
    )
        .prop_map(
            |(spread, together, most, tolerates, pool, stop_first, priority, class)| Wish {
                spread,
                together,
                most,
                tolerates,
                pool: pool && most == 0,
                stop_first,
                priority,
                best_effort: class == 0,
            },
        )
}

pub(super) fn acts() -> impl Strategy<Value = Act> {
    let s = 1u64..5;
    let n = 1u64..6;
    prop_oneof![
        5 => (s.clone(), 0u32..6, 1u64..4, wishes()).prop_map(|(a, b, c, d)| Act::Put(a, b, c, d)),
        3 => (s.clone(), wishes()).prop_map(|(a, b)| Act::Wish(a, b)),
        3 => (s.clone(), 0u32..7).prop_map(|(a, b)| Act::Scale(a, b)),
        2 => s.clone().prop_map(Act::Image),
        1 => s.prop_map(Act::Delete),
        2 => (n.clone(), 0u8..4).prop_map(|(a, b)| Act::Zone(a, b)),
        2 => (n.clone(), 0u8..4).prop_map(|(a, b)| Act::Taint(a, b)),
        1 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Pool(a, b)),
        1 => (50u32..200).prop_map(Act::Overcommit),
        3 => (n.clone(), any::<bool>()).prop_map(|(a, b)| Act::Up(a, b)),
        2 => (n, any::<bool>()).prop_map(|(a, b)| Act::Drain(a, b)),
    ]
}

fn wish(w: &mut World, n: u64, wish: &Wish) {
    // Only towards greater numbers: those in a circle are refused by the API.
    let other = n + 1;
    edit(w, n, |s| {
        let spec = &mut s.spec;
        let list = |text: &str| {
            text.split(' ')
                .filter(|one| !one.is_empty())
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let spread = ["", "zone", "zone,hard", "zone,hard,max-skew=2", "zone,hard"][usize::from(wish.spread)];
        spec.spread = list(spread).iter().map(|one| one.parse().unwrap()).collect();
        let together = match wish.together {
            0..=2 => String::new(),
            3 => format!("s{other},by=zone,hard"),
            4 => format!("s{other}"),
            _ => format!("s{other},hard"),
        };
        spec.together = list(&together).iter().map(|one| one.parse().unwrap()).collect();
        spec.max_per_node = (wish.most > 1).then(|| u32::from(wish.most - 1));
        let tolerates = ["", "gpu", "*:no-execute"][usize::from(wish.tolerates)];
        spec.tolerations = list(tolerates).iter().map(|one| one.parse().unwrap()).collect();
        spec.priority = wish.priority;
        spec.class = if wish.best_effort {
            Class::BestEffort
        } else {
            Class::Standard
        };
        spec.pool = wish.pool.then(|| "gpu".parse().unwrap());
        spec.update.order = if wish.stop_first {
            UpdateOrder::StopFirst
        } else {
            UpdateOrder::StartFirst
        };
    });
}

pub(super) fn pool(w: &mut World, percent: u32) {
    w.commit(vec![Change::PutPool(PoolRecord {
        name: "gpu".parse().unwrap(),
        overcommit: Overcommit {
            cpu_percent: 100,
            memory_percent: percent,
        },
        created_at: UnixMillis(0),
        revision: Default::default(),
    })]);
}

pub(super) fn perform(w: &mut World, act: &Act) {
    match act {
        Act::Put(n, replicas, gib, asked) => {
            if w.state.services.contains_key(&service_id(*n)) {
                return;
            }
            let mut record = service(*n, 1, "web:1", 0, Bytes::gib(*gib));
            record.spec.update.parallel = 1 + replicas % 2;
            w.commit(vec![Change::PutService(record)]);
            wish(w, *n, asked);
            edit(w, *n, |s| s.spec.replicas = *replicas);
        }
        Act::Wish(n, asked) => wish(w, *n, asked),
        Act::Scale(n, replicas) => edit(w, *n, |s| s.spec.replicas = *replicas),
        Act::Image(n) => {
            let now = w.now;
            image(w, *n, &format!("web:{now}"));
        }
        Act::Delete(n) => w.commit(vec![Change::DeleteService(service_id(*n))]),
        Act::Zone(n, zone) => edit_node(w, *n, |node| match zone {
            3 => drop(node.labels.remove("zone")),
            zone => drop(node.labels.insert("zone".into(), format!("z{zone}"))),
        }),
        Act::Taint(n, which) => edit_node(w, *n, |node| {
            let taints = ["", "gpu:no-schedule", "gpu=a:no-execute", "x:prefer-no-schedule"];
            let taint = taints[usize::from(*which)];
            node.taints = taint.parse().into_iter().collect();
        }),
        Act::Pool(n, gpu) => edit_node(w, *n, |node| {
            node.pool = if *gpu { "gpu" } else { "default" }.parse().unwrap();
        }),
        Act::Overcommit(percent) => pool(w, *percent),
        Act::Up(n, up) => w.set_up(super::fixtures::node_id(*n), *up),
        Act::Drain(n, on) => edit_node(w, *n, |node| node.draining = *on),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x5ea7),
        ..ProptestConfig::default()
    })]

    #[test]
    fn r4_r9_hard_constraints_hold_at_every_placement_and_the_cluster_converges(acts in prop::collection::vec((acts(), 0u64..20), 1..30)) {
        let mut w = world(4, 4);
        w.join(node(5, NodeKind::Private { tenant: tenant_id(1) }, 4, 4));
        pool(&mut w, 100);
        for n in 1..6 {
            perform(&mut w, &Act::Zone(n, (n % 3) as u8));
        }
        for (act, ticks) in &acts {
            perform(&mut w, act);
            w.run(*ticks);
        }
        w.everyone_up();
        for n in 1..6 {
            edit_node(&mut w, n, |node| node.draining = false);
        }
        w.run(160);
        assert!(w.state.claiming.is_empty(), "room is made for somebody for ever");
        check_converged(&w);
    }
}
