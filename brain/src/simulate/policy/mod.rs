//! Policies: who takes a container, and what moves. Each sees reservations and what hosts report, late and with gaps; none sees the trace.

mod berth;
mod binpack;
mod koordinator;
mod mad_mmt;
mod measured;
mod requests;
mod trimaran;

use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha12Rng;

use super::cluster::Cluster;

/// What a host says of its load.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which host.
    pub host: usize,
    /// When it was measured, seconds.
    pub at: u32,
    /// CPU in use, millicores: at most what it has.
    pub total: u32,
    /// Of it, not of containers.
    pub foreign: u32,
    /// Of it, each container's.
    pub containers: Vec<(usize, u32)>,
}

/// A container to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which.
    pub container: usize,
    /// Where to.
    pub to: usize,
}

/// A policy.
pub trait Policy: Send {
    /// A report arrives.
    fn hear(&mut self, _report: &Report) {}

    /// A container is to be placed; none: it has to wait.
    fn place(&mut self, cluster: &Cluster<'_>, container: usize, now: u32) -> Option<usize>;

    /// What moves now. Asked every ten seconds.
    fn rebalance(&mut self, _cluster: &Cluster<'_>, _now: u32) -> Vec<Move> {
        Vec::new()
    }
}

/// Of the hosts that score most one by chance, as Kubernetes' scheduler and what is built on it take one.
fn one_of_the_best<S: Ord>(scored: &[(S, usize)], random: &mut ChaCha12Rng) -> Option<usize> {
    let top = scored.iter().map(|(score, _)| score).max()?;
    let best = scored.iter().filter(|(score, _)| score == top);
    let best: Vec<usize> = best.map(|(_, host)| *host).collect();
    best.choose(random).copied()
}

/// Their names, and what they are.
pub const NAMES: [(&str, &str); 6] = [
    ("berth", "berth's own: reservations, and what load is expected"),
    (
        "requests",
        "Kubernetes' default: least allocated and most balanced, by requests",
    ),
    ("binpack", "Nomad's default: bin packing by requests"),
    ("trimaran", "Trimaran's TargetLoadPacking"),
    ("koordinator", "Koordinator's LoadAware, with LowNodeLoad"),
    ("mad-mmt", "MAD-MMT of the PlanetLab papers"),
];

/// A policy by its name.
pub fn by_name(name: &str, seed: u64) -> Option<Box<dyn Policy>> {
    Some(match name {
        "berth" => Box::<berth::Berth>::default(),
        "requests" => Box::new(requests::Requests::new(seed)),
        "binpack" => Box::new(binpack::BinPack::new(seed)),
        "trimaran" => Box::new(trimaran::TargetLoadPacking::new(seed)),
        "koordinator" => Box::new(koordinator::Koordinator::new(seed)),
        "mad-mmt" => Box::<mad_mmt::MadMmt>::default(),
        _ => return None,
    })
}
