use proptest::prelude::*;

use super::clairvoyant;
use super::engine::{Event, Telemetry, run};
use super::floor::Floor;
use super::policy::{NAMES, by_name};
use super::report::{Figures, figures, stays};
use super::scenario::{Scenario, Settings};
use super::trace::Row;

const USUAL: Telemetry = Telemetry { delay: 30, loss: 10 };

fn scenario(hosts: usize, rows: Vec<Vec<u8>>, overcommit: Option<u32>, seed: u64) -> Scenario {
    let settings = Settings {
        hosts,
        host_cpu: 4_000,
        arrive: 3_600,
        overcommit,
        seed,
        ..Settings::default()
    };
    Scenario::new(settings, rows.into_iter().map(Row::from).collect(), None).unwrap()
}

/// The most that reservations on a host ever come to.
fn most_reserved(scenario: &Scenario, events: &[Event]) -> u32 {
    let mut held = vec![0; scenario.settings.hosts];
    let mut most = 0;
    for event in events {
        match event {
            Event::Place { node, cpu_milli, .. } => held[*node] += cpu_milli,
            Event::Move { .. } => panic!("it moves nothing"),
            Event::End { container, node, .. } => held[*node] -= scenario.arrivals[*container].cpu,
            Event::Refuse { .. } => {}
        }
        most = held.iter().copied().fold(most, u32::max);
    }
    most
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn nobody_gets_below_the_floor_and_the_clairvoyant_keeps_r4_and_is_no_worse_than_requests(
        rows in proptest::collection::vec(proptest::collection::vec(0_u8..=100, 24), 4..40), hosts in 1_usize..6, seed in any::<u64>(),
        overcommit in proptest::option::of(100_u32..400)
    ) {
        let scenario = scenario(hosts, rows, overcommit, seed);
        let all = Floor::of(&scenario);
        let mut replays: Vec<_> = NAMES
            .iter()
            .map(|(name, _)| (*name, run(&scenario, &mut *by_name(name, seed).unwrap(), USUAL)))
            .collect();
        let foreseen = clairvoyant::replay(&scenario);
        prop_assert_eq!(&foreseen, &clairvoyant::replay(&scenario), "nothing is left to chance");
        prop_assert!(most_reserved(&scenario, &foreseen) <= scenario.allocatable());
        replays.push((clairvoyant::NAME, foreseen));
        let mut told: Vec<Figures> = Vec::new();
        for (name, events) in &replays {
            let one = figures(name, &scenario, events);
            // Of those that it placed, as long as it had them.
            let its_own = Floor::under(&scenario, &stays(events, scenario.end()));
            prop_assert_eq!(its_own.outside, one.overloaded_from_outside);
            prop_assert!(its_own.outside + its_own.more <= one.overloaded, "{}: {:?} {:?}", name, its_own, one);
            let waited = stays(events, scenario.end()).iter().any(|stay| {
                events.iter().all(|event| !matches!(event, Event::Move { container, .. } if *container == stay.container))
                    && stay.from >= scenario.arrivals[stay.container].at + super::engine::STEP
            });
            if one.refused == 0 && !waited {
                prop_assert!(all.outside + all.more <= one.overloaded, "{}: {:?} {:?}", name, all, one);
            }
            told.push(one);
        }
        let (requests, best) = (&told[1], told.last().unwrap());
        prop_assert_eq!(&requests.policy, "requests");
        if requests.refused == 0 {
            prop_assert_eq!(best.refused, 0);
            prop_assert!(best.unmet_core_hours <= requests.unmet_core_hours + 1e-9, "{:?} {:?}", best, requests);
        }
    }
}

/// Rows that are like those of real machines: each has a mean of its own, small for most, is near it most of the time, and bursts now and
/// then for some intervals. Knuth's linear congruence, so that the trace is the same for everybody.
fn bursty(count: usize, samples: usize, seed: u64) -> Vec<Row> {
    let mut state = seed;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut row = || {
        let mean = 2 + random(100).pow(2) / 250;
        let (mut left, mut high) = (0, 0);
        let mut sample = || {
            if left == 0 && random(100) < 3 {
                (left, high) = (1 + random(6), 50 + random(50));
            }
            match left {
                0 => (mean + random(5)) as u8,
                _ => {
                    left -= 1;
                    high as u8
                }
            }
        };
        (0..samples).map(|_| sample()).collect()
    };
    (0..count).map(|_| row()).collect()
}

#[test]
fn real_load_avoids_nearly_all_overloads_of_requests_and_turns_nobody_away() {
    let mut avoidable = [0.0; 3];
    for trace in 1..=2 {
        let settings = Settings {
            hosts: 12,
            ..Settings::default()
        };
        let scenario = Scenario::new(settings, bursty(300, 96, trace), None).unwrap();
        for (sum, name) in avoidable.iter_mut().zip(["berth", "requests", "trimaran"]) {
            let events = run(&scenario, &mut *by_name(name, 1).unwrap(), USUAL);
            let told = figures(name, &scenario, &events);
            assert_eq!(told.refused, 0, "{told:?}");
            assert!(told.turned_away_percent < 0.1, "{told:?}");
            *sum += told.avoidable_percent;
        }
    }
    let [berth, requests, trimaran] = avoidable;
    assert!(
        requests > 20.0 && trimaran > 0.5,
        "there is something to avoid: {avoidable:?}"
    );
    assert!(
        berth * 20.0 <= requests && berth * 2.0 <= trimaran,
        "{avoidable:?}"
    );
}
