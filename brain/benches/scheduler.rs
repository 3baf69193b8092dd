//! How fast the scheduler is, with nothing but its own code, on one core.
//!
//! `cargo bench -p berth-brain --bench scheduler`; the rows `every node` are the plain loop that each placement is held against: all checks
//! and a score for each node. `BERTH_BENCH_CONTAINERS` sets how many containers the nodes have already (default 100 each).

#![allow(missing_docs, reason = "a program")]

mod fleet;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use berth_brain::cluster::State;
use berth_brain::controllers::balance;
use berth_brain::scheduler::forecast::CPU;
use berth_brain::scheduler::load::{Known, Watermarks};
use berth_brain::scheduler::rebalance::{self, Budget, Host, Memory, Tenancy};
use berth_brain::scheduler::{Search, Seat, View};
use criterion::{
    BatchSize, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};

use fleet::{Load, Wanted, Wishes};

/// Services of one batch.
const BATCH: u64 = 500;

fn containers(nodes: u64) -> u64 {
    let set = std::env::var("BERTH_BENCH_CONTAINERS").ok();
    set.and_then(|text| text.parse().ok()).unwrap_or(nodes * 100)
}

/// Places all; those for whom there is no place count too.
fn place(state: &State, load: &Load, batch: &[Wanted<'_>]) -> usize {
    let mut view = View::new(state, &BTreeMap::new()).with_loads(load);
    let mut placed = 0;
    for (request, replicas) in batch {
        let mut search = Search::new(&view, request.clone());
        placed += (0..*replicas).filter(|_| search.place(&mut view).is_ok()).count();
    }
    placed
}

/// The same with every check and a score for each node and each container.
fn plainly(state: &State, load: &Load, batch: &[Wanted<'_>]) -> usize {
    let mut view = View::new(state, &BTreeMap::new()).with_loads(load);
    let mut placed = 0;
    for (request, replicas) in batch {
        let mut request = request.clone();
        for _ in 0..*replicas {
            if let Ok(node) = Search::thorough(&view, request.clone()).place(&mut view) {
                placed += 1;
                *request.replicas.entry(node).or_insert(0) += 1;
                *request.constraints.replicas.staying.entry(node).or_insert(0) += 1;
                *request.constraints.replicas.present.entry(node).or_insert(0) += 1;
            }
        }
    }
    placed
}

fn placements(c: &mut Criterion) {
    let wishes = Wishes::new();
    for nodes in [1_000, 3_000, 10_000] {
        let state = fleet::state(nodes, containers(nodes));
        let load = Load::of(&state);
        let batch: Vec<_> = (0..BATCH).map(|n| wishes.service(n, &state)).collect();
        let few: Vec<_> = (0..5).map(|n| wishes.service(n, &state)).collect();
        let count = |batch: &[Wanted<'_>]| batch.iter().map(|(_, replicas)| *replicas as u64).sum();
        let mut group = c.benchmark_group("placements");
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.measurement_time(Duration::from_secs(5));
        group.throughput(Throughput::Elements(count(&batch)));
        group.bench_with_input(BenchmarkId::new("in batches", nodes), &batch, |b, batch| {
            b.iter(|| black_box(place(&state, &load, batch)));
        });
        group.throughput(Throughput::Elements(count(&few)));
        group.bench_with_input(BenchmarkId::new("every node", nodes), &few, |b, few| {
            b.iter(|| black_box(plainly(&state, &load, few)));
        });
        group.finish();

        let mut group = c.benchmark_group("one placement");
        group.sample_size(20).measurement_time(Duration::from_secs(5));
        let one: Vec<_> = (0..100).map(|n| (wishes.service(n, &state).0, 1)).collect();
        let mut turn = 0;
        group.bench_function(BenchmarkId::from_parameter(nodes), |b| {
            b.iter(|| {
                turn = (turn + 1) % one.len();
                black_box(place(&state, &load, &one[turn..=turn]))
            });
        });
        group.finish();
        tell_worst(nodes, &state, &load, &one);
        tell_ratio(nodes, &state, &load, &batch, &few);
        tell_quality(nodes, &state, &load, &batch);
    }
}

/// How many times as fast it is as the plain loop, both timed one after the other.
fn tell_ratio(nodes: u64, state: &State, load: &Load, batch: &[Wanted<'_>], few: &[Wanted<'_>]) {
    let rate = |work: &dyn Fn() -> usize| {
        let began = std::time::Instant::now();
        let placed = (0..3).map(|_| black_box(work())).sum::<usize>();
        placed as f64 / began.elapsed().as_secs_f64()
    };
    let fast = rate(&|| place(state, load, batch));
    let plain = rate(&|| plainly(state, load, few));
    println!(
        "ratio/{nodes}: {fast:.0} placements a second, {:.0} times as many as {plain:.0}",
        fast / plain
    );
}

/// The mean of squares of the shares of CPU that are reserved and that are in use: the less the better.
fn unevenness(view: &View<'_>) -> f64 {
    let share = |seat: &Seat<'_>| {
        let whole = f64::from(seat.capacity[CPU]);
        let used = match seat.known() {
            Known::Expected(loads) => f64::from(loads[CPU].mean),
            _ => 0.0,
        };
        (f64::from(seat.taken.cpu.0) / whole).powi(2) + (used / whole).powi(2)
    };
    view.all().map(share).sum::<f64>() / view.all().count() as f64
}

/// What a batch leaves behind, chosen among some nodes and among all.
fn tell_quality(nodes: u64, state: &State, load: &Load, batch: &[Wanted<'_>]) {
    let fill = |thorough: bool| {
        let mut view = View::new(state, &BTreeMap::new()).with_loads(load);
        let mut placed = 0;
        for (request, replicas) in batch {
            let mut search = match thorough {
                true => Search::thorough(&view, request.clone()),
                false => Search::new(&view, request.clone()),
            };
            placed += (0..*replicas).filter(|_| search.place(&mut view).is_ok()).count();
        }
        (placed, unevenness(&view))
    };
    let ((some, uneven), (all, least)) = (fill(false), fill(true));
    let worse = (uneven / least - 1.0) * 100.0;
    println!("quality/{nodes}: {some} placed where every node scored places {all}; unevenness {worse:+.2} %");
}

/// Criterion tells means; a promise is about the worst of a hundred.
fn tell_worst(nodes: u64, state: &State, load: &Load, one: &[Wanted<'_>]) {
    let mut took: Vec<_> = (0..1_000)
        .map(|turn| {
            let at = turn % one.len();
            let began = std::time::Instant::now();
            black_box(place(state, load, &one[at..=at]));
            began.elapsed()
        })
        .collect();
    took.sort_unstable();
    println!(
        "one placement/{nodes}: p50 {:?}, p99 {:?} of 1,000",
        took[500], took[990]
    );
}

struct Anywhere;

impl rebalance::Room<u64, u64> for Anywhere {
    fn fits(&mut self, _: u64, _: u64) -> bool {
        true
    }

    fn take(&mut self, _: u64, _: u64) {}
}

fn rebalancing(c: &mut Criterion) {
    let mut group = c.benchmark_group("a round of moves");
    group.sample_size(10);
    let hosts: Vec<_> = (0..10_000).map(host).collect();
    group.bench_function(BenchmarkId::from_parameter(10_000), |b| {
        b.iter_batched_ref(
            || (hosts.clone(), Memory::default()),
            |(hosts, memory)| {
                let marks = Watermarks::default();
                black_box(rebalance::plan(
                    hosts,
                    marks,
                    Budget::default(),
                    memory,
                    1_000,
                    &mut Anywhere,
                ))
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
    a_large_cluster(c);
}

/// All of it: the state and what was learned, and a round over them.
fn a_large_cluster(c: &mut Criterion) {
    const NODES: u64 = 10_000;
    let mut state = fleet::state(NODES, containers(NODES));
    fleet::observe(&mut state);
    let alone = resident_mib();
    let watched = fleet::outlook(&state);
    println!(
        "memory/{NODES} nodes, {} containers: {} MiB resident, {alone} of them without what was learned of load",
        state.containers.len(),
        resident_mib()
    );
    let mut group = c.benchmark_group("a whole round");
    group.sample_size(10);
    group.bench_function(BenchmarkId::from_parameter(NODES), |b| {
        let mut memory = rebalance::Memory::default();
        let mut now = 900;
        b.iter(|| {
            now += 10;
            black_box(balance::round(&state, &watched.at(900_000), &mut memory, now))
        });
    });
    group.finish();
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// A host with a hundred containers, one in ten of which is hot.
fn host(n: u64) -> Host<u64, u64> {
    use berth_brain::scheduler::forecast::{Loads, plus};
    let share = if n.is_multiple_of(10) { 150 } else { 60 };
    let containers: Vec<_> = (0..100)
        .map(|at| {
            let mut load = Loads::default();
            load[CPU].mean = (fleet::scatter(n * 100 + at) % (2 * share)) as f32;
            Tenancy {
                container: n * 100 + at,
                load,
                movable: true,
            }
        })
        .collect();
    let load = containers
        .iter()
        .fold(Loads::default(), |sum, one| plus(sum, one.load));
    Host {
        node: n,
        capacity: [16_000.0, 64e9, f32::INFINITY, f32::INFINITY],
        load,
        measured: load,
        containers,
        leaving: 0,
    }
}

// What is kept for the whole run would count as the cluster's memory.
criterion_group!(benches, rebalancing, placements);
criterion_main!(benches);
