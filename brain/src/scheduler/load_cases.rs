//! Forecast, watermarks and rebalancing on their own: what a placement is charged, and where moves end.

use proptest::prelude::*;

use super::forecast::{CPU, Consumer, Forecast, Loads, MEMORY, RESOURCES, STALE_SECS, plus};
use super::load::{self, Known, Watermarks};
use super::predict::{History, Learned, Load, Prior};
use super::rebalance::{self, Budget, Host, Memory, Tenancy};

const CAPACITY: [f32; RESOURCES] = [16_000.0, 64e9, f32::INFINITY, f32::INFINITY];

fn consumer(service: u32) -> Consumer<u32> {
    Consumer {
        service,
        limits: [2_000.0, 1e9, 0.0, 0.0],
    }
}

fn sample(cpu: f32) -> [Option<f32>; RESOURCES] {
    [Some(cpu), Some(cpu * 1e5), None, None]
}

/// A node on which so much is foreign.
fn host<N, C>(node: N, foreign: Loads, containers: Vec<Tenancy<C>>) -> Host<N, C> {
    let load = containers.iter().fold(foreign, |sum, one| plus(sum, one.load));
    Host {
        node,
        capacity: CAPACITY,
        load,
        measured: load,
        containers,
        leaving: 0,
    }
}

/// Everything fits everywhere but for its load.
struct Anywhere;

impl<N, C> rebalance::Room<N, C> for Anywhere {
    fn fits(&mut self, _: N, _: C) -> bool {
        true
    }

    fn take(&mut self, _: N, _: C) {}
}

fn cpu(mean: f32, variance: f32) -> Loads {
    let mut loads = Loads::default();
    loads[CPU] = Load { mean, variance };
    loads
}

#[test]
fn a_burst_is_over_before_it_counts_and_a_change_that_stays_counts_after_some_minutes() {
    let mut history = History::default();
    let quiet = Prior::default();
    let mut at = 0;
    let mut run = |history: &mut History, secs: u32, value: f32| {
        for _ in 0..secs / 10 {
            at += 10;
            history.record(at, value);
        }
    };
    run(&mut history, 6 * 3600, 100.0);
    let before = history.expect(quiet).mean;
    run(&mut history, 60, 2_000.0);
    let burst = history.expect(quiet).mean;
    assert!(
        burst < before + 250.0,
        "a minute of 2,000 after hours of 100: {burst}"
    );
    run(&mut history, 1_200, 2_000.0);
    let stays = history.expect(quiet).mean;
    assert!(stays > 1_000.0, "twenty minutes of it: {stays}");
    assert!((history.most() - 2_000.0).abs() < 1.0);
    // A sample that is no number, or of before, changes nothing.
    let held = history.clone();
    history.record(at + 10, f32::NAN);
    history.record(at - 10, 1.0);
    assert_eq!(history, held);
}

#[test]
fn what_is_not_known_is_taken_for_what_others_of_its_service_use_then_for_what_all_do() {
    let mut forecast = Forecast::<u32, u32, u32>::default();
    let unknown = forecast.newcomer(&consumer(1));
    assert!(
        (unknown[CPU].mean - 1_000.0).abs() < 1.0,
        "half of its limit: {unknown:?}"
    );
    assert!((unknown[MEMORY].mean - 0.8e9).abs() < 1e6);
    for container in 0..40 {
        forecast.assign(container, 1, consumer(u32::from(container >= 20)));
    }
    for at in 1..60 {
        let busy = |container: u32| if container < 20 { 1_600.0 } else { 40.0 };
        let all = (0..40).map(|container| (container, sample(busy(container))));
        forecast.report(1, at * 10, sample(0.0), all);
    }
    forecast.learn();
    let (busy, idle, other) = (
        forecast.newcomer(&consumer(0))[CPU].mean,
        forecast.newcomer(&consumer(1))[CPU].mean,
        forecast.newcomer(&consumer(7))[CPU].mean,
    );
    assert!(busy > 1_300.0 && idle < 250.0, "{busy} {idle}");
    assert!(
        idle < other && other < busy,
        "{other} of no service that is known"
    );
}

/// What so many containers, from `first` on, use for ten minutes from `from` on.
fn watch(forecast: &mut Forecast<u32, u32, u32>, first: u32, count: u32, from: u32, busy: f32) {
    for container in first..first + count {
        forecast.assign(container, 1, consumer(0));
    }
    for at in 1..60 {
        let all = (first..first + count).map(|container| (container, sample(busy)));
        forecast.report(1, from + at * 10, sample(0.0), all);
    }
    forecast.learn();
}

#[test]
fn what_was_learned_of_a_service_outlasts_its_containers_and_gives_way_to_what_is_known_now() {
    let mut forecast = Forecast::<u32, u32, u32>::default();
    watch(&mut forecast, 0, 10, 0, 1_600.0);
    let newcomer = |forecast: &Forecast<_, _, _>| forecast.newcomer(&consumer(0))[CPU].mean;
    let known = newcomer(&forecast);
    assert!(known > 1_300.0, "{known}");
    // All ten are replaced at once, or the service is scaled to nothing: the next ones are no strangers.
    for container in 0..10 {
        forecast.unassign(container);
    }
    for _ in 0..100 {
        forecast.learn();
    }
    assert!(
        (newcomer(&forecast) - known).abs() < 1.0,
        "{}",
        newcomer(&forecast)
    );
    // Those do little. As many as there were count alone; of fewer, what was before fades.
    watch(&mut forecast, 10, 1, 10_000, 20.0);
    let mixed = newcomer(&forecast);
    assert!(
        mixed > 600.0 && mixed < known - 100.0,
        "one of ten says otherwise for some minutes: {mixed}"
    );
    for _ in 0..60 {
        forecast.learn();
    }
    let faded = newcomer(&forecast);
    assert!(faded < 300.0, "an hour later: {faded}");
    watch(&mut forecast, 20, 10, 20_000, 1_000.0);
    let all = newcomer(&forecast);
    assert!((700.0..1_000.0).contains(&all), "ten others: {all}");
    // What was learned elsewhere or earlier is taken where nothing is known, and nowhere else.
    let learned: Vec<_> = forecast.estimates().map(|(id, one)| (id, *one)).collect();
    let mut other = Forecast::<u32, u32, u32>::default();
    for (id, one) in &learned {
        other.recall(*id, *one);
        other.recall(*id, Default::default());
    }
    assert_eq!(newcomer(&other), all);
    assert_eq!(
        other.newcomer(&consumer(9)),
        forecast.newcomer(&consumer(9)),
        "and of all services together"
    );
    other.keep_estimates(|id| id != 0);
    other.learn();
    assert!(
        (newcomer(&other) - 1_000.0).abs() < 1.0,
        "half of the limit again"
    );
}

proptest! {
    /// What is remembered is never more than there was, keeps what it says while nothing is known, and is nothing once as many are known.
    #[test]
    fn what_is_remembered_fills_up_and_adds_nothing(
        before in proptest::collection::vec(0.0f32..2_000.0, 0..60),
        now in proptest::collection::vec(0.0f32..2_000.0, 0..60),
    ) {
        let learned = |loads: &[f32]| {
            let mut learned = Learned::default();
            for mean in loads {
                learned.add(Load { mean: *mean, variance: 100.0 }, 2_000.0);
            }
            learned
        };
        let (old, new) = (learned(&before), learned(&now));
        let filled = new.filled(old);
        if now.len() >= before.len().min(20) {
            prop_assert_eq!(filled, new);
        }
        let known = Prior { mean: 0.5, ..Prior::default() };
        let (low, high) = (
            before.iter().chain(&now).fold(1_000.0f32, |one, other| one.min(*other)) / 2_000.0,
            before.iter().chain(&now).fold(1_000.0f32, |one, other| one.max(*other)) / 2_000.0,
        );
        let mean = filled.prior(known).mean;
        prop_assert!((low - 1e-4..=high + 1e-4).contains(&mean), "{} is not between {} and {}", mean, low, high);
        let mut kept = old;
        for _ in 0..50 {
            kept = Learned::default().filled(kept);
        }
        if before.len() <= 20 {
            prop_assert!(!kept.differs(&old), "{:?} {:?}", kept, old);
        }
        prop_assert!(kept.is_finite());
    }
}

#[test]
fn equal_inputs_give_equal_answers_to_the_last_bit() {
    let learned = || {
        let mut forecast = Forecast::<u32, u32, u32>::default();
        for container in 0..500 {
            forecast.assign(container, container % 7, consumer(container % 3));
        }
        for (at, node) in (1..60).flat_map(|at| (0..7).map(move |node| (at, node))) {
            let used = |container: u32| (container * 37 % 1_999) as f32 / 3.0 + at as f32 / 7.0;
            let all = (0..500).map(|container| (container, sample(used(container))));
            forecast.report(node, at * 10, sample(1.0 / 3.0), all);
        }
        forecast.learn();
        (forecast.newcomer(&consumer(1)), forecast.node(3, 600))
    };
    let first = learned();
    for _ in 0..10 {
        assert_eq!(learned(), first);
    }
}

#[test]
fn a_silent_node_is_not_an_idle_one() {
    let mut forecast = Forecast::<u32, u32, u32>::default();
    assert_eq!(forecast.node(1, 100), None, "never heard");
    forecast.report(1, 100, sample(500.0), []);
    assert!(forecast.node(1, 100 + STALE_SECS).is_some());
    assert_eq!(forecast.node(1, 101 + STALE_SECS), None);
    forecast.report(1, 150, [None; RESOURCES], []);
    assert_eq!(
        forecast.node(1, 101 + STALE_SECS),
        None,
        "it could not tell its CPU"
    );
    let silent = load::obstacle(
        &Known::Silent,
        &Loads::default(),
        &CAPACITY,
        false,
        &Watermarks::default(),
    );
    assert_eq!(silent, Some(super::filter::Obstacle::Silent));
}

#[test]
fn a_warm_node_takes_nothing_where_reservations_may_exceed_what_it_has_and_is_the_last_choice_elsewhere() {
    let marks = Watermarks::default();
    let (cool, warm) = (
        Known::Expected(cpu(4_000.0, 1e6)),
        Known::Expected(cpu(12_000.0, 1e6)),
    );
    let more = cpu(500.0, 1e4);
    let against = |known: &Known, over| load::obstacle(known, &more, &CAPACITY, over, &marks);
    assert_eq!(against(&cool, true), None);
    assert_eq!(against(&warm, true), Some(super::filter::Obstacle::WarmCpu(96)));
    assert_eq!(against(&warm, false), None, "every reservation is kept");
    let points = |known: &Known| load::points(known, &more, &CAPACITY, &marks);
    assert!(points(&cool) > points(&warm) + 50_000);
    let unheard = points(&Known::Unwatched);
    assert!(points(&Known::Expected(cpu(0.0, 1e6))) > unheard && unheard > points(&warm));
    // Memory has no neighbour who gives way.
    let mut full = Loads::default();
    full[MEMORY] = Load::steady(63e9);
    let told = load::obstacle(&Known::Expected(full), &more, &CAPACITY, false, &marks);
    assert_eq!(told, Some(super::filter::Obstacle::WarmMemory(98)));
}

#[derive(Debug, Clone)]
enum Act {
    Assign(u32, u32),
    Unassign(u32),
    Report(u32, Vec<(u32, u16)>),
    Learn,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => (0..12_u32, 0..4_u32).prop_map(|(container, node)| Act::Assign(container, node)),
        1 => (0..12_u32).prop_map(Act::Unassign),
        4 => (0..4_u32, prop::collection::vec((0..12_u32, 0..2_000_u16), 0..12)).prop_map(|(node, all)| Act::Report(node, all)),
        1 => Just(Act::Learn),
    ];
    prop::collection::vec(act, 1..80)
}

proptest! {
    /// Never forgotten between being placed and being seen first, never counted twice after that.
    #[test]
    fn a_placement_is_charged_exactly_once(acts in acts()) {
        let mut forecast = Forecast::<u32, u32, u32>::default();
        let mut on = std::collections::BTreeMap::new();
        for (at, act) in acts.into_iter().enumerate() {
            match act {
                Act::Assign(container, node) => {
                    let expected = forecast.newcomer(&consumer(0))[CPU].mean;
                    let before = forecast.containers(node)[CPU].mean;
                    forecast.assign(container, node, consumer(0));
                    let after = forecast.containers(node)[CPU].mean;
                    if on.insert(container, node).is_none() {
                        prop_assert!((after - before - expected).abs() < 1.0, "{before} {after} {expected}");
                    }
                }
                Act::Unassign(container) => {
                    forecast.unassign(container);
                    on.remove(&container);
                }
                Act::Report(node, all) => {
                    let all = all.into_iter().map(|(container, used)| (container, sample(f32::from(used))));
                    forecast.report(node, (at as u32 + 1) * 10, sample(0.0), all);
                }
                Act::Learn => forecast.learn(),
            }
            for node in 0..4 {
                let held = on.iter().filter(|(_, at)| **at == node);
                let sum = held
                    .map(|(container, _)| forecast.container(*container).unwrap().expected)
                    .fold(Loads::default(), plus);
                let told = forecast.containers(node);
                prop_assert!((told[CPU].mean - sum[CPU].mean).abs() < 1.0, "{told:?} {sum:?}");
            }
        }
    }

    /// Under constant load rounds end in one that moves nothing; no destination is over `target` with its spread; and nothing returns.
    #[test]
    fn rebalancing_terminates_and_makes_no_node_hot(
        loads in prop::collection::vec((0..4_usize, 1.0..2_500.0_f32), 1..60),
        foreign in prop::collection::vec(0.0..18_000.0_f32, 4),
    ) {
        let marks = Watermarks::default();
        let budget = Budget { rest_secs: 0, ..Budget::default() };
        let mut at: Vec<usize> = loads.iter().map(|(node, _)| *node).collect();
        let mut been: Vec<Vec<usize>> = at.iter().map(|node| vec![*node]).collect();
        let mut memory = Memory::<usize, usize>::default();
        let mut quiet = 0;
        for round in 0..2_000 {
            let mut hosts: Vec<Host<usize, usize>> = (0..4).map(|node| {
                let held = (0..loads.len()).filter(|one| at[*one] == node);
                let containers: Vec<_> = held.map(|one| Tenancy {
                    container: one,
                    load: cpu(loads[one].1, loads[one].1 * 100.0),
                    movable: true,
                }).collect();
                host(node, cpu(foreign[node], 1e4), containers)
            }).collect();
            let shifts = rebalance::plan(&mut hosts, marks, budget, &mut memory, round * 10, &mut Anywhere).shifts;
            for shift in &shifts {
                prop_assert_eq!(at[shift.container], shift.from);
                at[shift.container] = shift.to;
                prop_assert!(!been[shift.container].contains(&shift.to), "{} returned to {}", shift.container, shift.to);
                been[shift.container].push(shift.to);
                let to = &hosts[shift.to];
                prop_assert!(marks.leaves_room(&to.load, &to.capacity, marks.target + 1e-4));
            }
            quiet = if shifts.is_empty() { quiet + 1 } else { 0 };
            if quiet > 5 {
                return Ok(());
            }
        }
        prop_assert!(false, "it never ended");
    }
}

#[test]
fn a_node_that_is_hot_from_load_that_is_not_ours_causes_no_endless_moving() {
    let small = |container| Tenancy {
        container,
        load: cpu(20.0, 0.0),
        movable: true,
    };
    let mut memory = Memory::default();
    for round in 0..100 {
        // What uses nearly nothing gains nothing elsewhere, and would cool nothing.
        let mut hosts = [
            host(1, cpu(15_900.0, 0.0), vec![small(1), small(2)]),
            host(2, cpu(0.0, 0.0), vec![]),
        ];
        let budget = Budget::default();
        let decided = rebalance::plan(
            &mut hosts,
            Watermarks::default(),
            budget,
            &mut memory,
            round * 10,
            &mut Anywhere,
        );
        assert!(decided.shifts.is_empty(), "{decided:?}");
        // It is hot in its third round, and told of then alone.
        assert_eq!(decided.stuck, if round == 2 { vec![1] } else { vec![] });
    }
}

#[test]
fn one_hot_round_moves_nothing_and_what_moved_rests() {
    let hosts = |hot: bool| {
        let big = Tenancy {
            container: 7,
            load: cpu(3_000.0, 0.0),
            movable: true,
        };
        let foreign = if hot { 12_500.0 } else { 5_000.0 };
        [
            host(1, cpu(foreign, 0.0), vec![big]),
            host(2, cpu(0.0, 0.0), vec![]),
        ]
    };
    let mut memory = Memory::default();
    let mut round = |now, hot| {
        let (mut all, budget) = (hosts(hot), Budget::default());
        rebalance::plan(
            &mut all,
            Watermarks::default(),
            budget,
            &mut memory,
            now,
            &mut Anywhere,
        )
        .shifts
    };
    for (now, hot) in [(0, true), (10, true), (20, false), (30, true), (40, true)] {
        assert!(round(now, hot).is_empty(), "at {now}");
    }
    let moved = round(50, true);
    assert_eq!((moved.len(), moved[0].container, moved[0].to), (1, 7, 2));
    assert!(moved[0].heat > 0.9 && moved[0].after < 0.9, "{moved:?}");
    assert!(round(60, true).is_empty(), "it rests, wherever it is seen");
    assert!(round(50 + Budget::default().rest_secs, true).len() == 1);
}
