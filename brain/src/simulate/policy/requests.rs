//! Kubernetes' default scheduler as far as it looks at requests, with its public defaults (v1.35): `NodeResourcesFit` as filter, and as
//! scores `LeastAllocated` and `NodeResourcesBalancedAllocation`, CPU and memory of weight 1 each, each plugin of weight 1
//! (kubernetes/kubernetes, pkg/scheduler/framework/plugins/noderesources/{least_allocated,balanced_allocation}.go and
//! pkg/scheduler/apis/config/v1/default_plugins.go). All nodes are scored below 100 of them, else a share
//! (schedule_one.go, `numFeasibleNodesToFind`); of the best one is taken by chance. Nothing placed ever moves.
//!
//! Left out, since a trace has none of it: taints, affinities, images, and topology spread by owner.

use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;

use super::{Policy, one_of_the_best};
use crate::simulate::cluster::Cluster;

/// It.
pub(super) struct Requests {
    random: ChaCha12Rng,
    next: usize,
}

impl Requests {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: ChaCha12Rng::seed_from_u64(seed),
            next: 0,
        }
    }
}

/// How many nodes that fit are enough, of so many.
fn enough(nodes: usize) -> usize {
    if nodes < 100 {
        return nodes;
    }
    let percent = 50_usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(100)
}

/// What is left, of 100, in whole numbers as Go divides them.
pub(super) fn least(asked: u64, whole: u64) -> u64 {
    if whole == 0 || asked > whole {
        0
    } else {
        (whole - asked) * 100 / whole
    }
}

/// 100 where CPU and memory would be equally full, 50 where one is full and the other empty.
fn balanced(cpu: f64, memory: f64) -> u64 {
    ((1.0 - (cpu.min(1.0) - memory.min(1.0)).abs() / 2.0) * 100.0) as u64
}

pub(super) fn score(cluster: &Cluster<'_>, host: usize, container: usize) -> u64 {
    let (held, asked) = (&cluster.hosts[host], cluster.container(container));
    let whole = u64::from(cluster.scenario.allocatable());
    let whole_memory = cluster.scenario.settings.host_memory_mib;
    let (cpu, memory) = (
        u64::from(held.cpu + asked.cpu),
        held.memory_mib + asked.memory_mib,
    );
    let allocated = (least(cpu, whole) + least(memory, whole_memory)) / 2;
    allocated + balanced(cpu as f64 / whole as f64, memory as f64 / whole_memory as f64)
}

impl Policy for Requests {
    fn place(&mut self, cluster: &Cluster<'_>, container: usize, _now: u32) -> Option<usize> {
        let count = cluster.hosts.len();
        let (mut fitting, mut seen) = (Vec::new(), 0);
        while seen < count && fitting.len() < enough(count) {
            let host = (self.next + seen) % count;
            seen += 1;
            if cluster.fits(host, container) {
                fitting.push((score(cluster, host, container), host));
            }
        }
        self.next = (self.next + seen) % count;
        one_of_the_best(&fitting, &mut self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_kubernetes() {
        let nodes = [
            (1, 1),
            (99, 99),
            (100, 100),
            (1_000, 420),
            (5_000, 500),
            (20_000, 1_000),
        ];
        for (nodes, expected) in nodes {
            assert_eq!(enough(nodes), expected, "{nodes}");
        }
        assert_eq!(
            (least(0, 16_000), least(4_000, 16_000), least(17_000, 16_000)),
            (100, 75, 0)
        );
        assert_eq!(
            (balanced(0.5, 0.5), balanced(1.0, 0.0), balanced(2.0, 1.0)),
            (100, 50, 100)
        );
    }
}
