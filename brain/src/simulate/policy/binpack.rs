//! Nomad's default: the node that a container fills most, of a few taken by chance (hashicorp/nomad,
//! nomad/structs/funcs.go `ScoreFitBinPack`, scheduler/stack.go and select.go). Each container is a job of its own, as a trace says
//! nothing of groups: then anti-affinity within a job says nothing. Nothing placed ever moves.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;

use super::Policy;
use crate::simulate::cluster::Cluster;

/// It.
pub(super) struct BinPack {
    random: ChaCha12Rng,
}

impl BinPack {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: ChaCha12Rng::seed_from_u64(seed),
        }
    }
}

/// How many nodes that fit are looked at for a service, of so many.
fn limit(nodes: usize) -> usize {
    (nodes.max(1) as f64).log2().ceil().max(2.0) as usize
}

/// 1 for a full node, 0 for an empty one; what is free as a share.
fn fit(free_cpu: f64, free_memory: f64) -> f64 {
    (20.0 - (10_f64.powf(free_cpu) + 10_f64.powf(free_memory))).clamp(0.0, 18.0) / 18.0
}

impl Policy for BinPack {
    fn place(&mut self, cluster: &Cluster<'_>, container: usize, _now: u32) -> Option<usize> {
        let mut hosts: Vec<usize> = (0..cluster.hosts.len()).collect();
        hosts.shuffle(&mut self.random);
        let asked = cluster.container(container);
        let scored = hosts
            .iter()
            .filter(|host| cluster.fits(**host, container))
            .map(|host| {
                let held = &cluster.hosts[*host];
                let free = |held: f64, whole: f64| 1.0 - held / whole;
                let cpu = free(
                    f64::from(held.cpu + asked.cpu),
                    f64::from(cluster.scenario.allocatable()),
                );
                let memory = (held.memory_mib + asked.memory_mib) as f64;
                (
                    fit(
                        cpu,
                        free(memory, cluster.scenario.settings.host_memory_mib as f64),
                    ),
                    *host,
                )
            });
        // Nodes that score nothing (empty ones) are set aside, three at most, for when there are no others.
        let (mut taken, mut aside) = (Vec::new(), Vec::new());
        for one in scored {
            if one.0 <= 0.0 && aside.len() < 3 {
                aside.push(one);
            } else {
                taken.push(one);
            }
            if taken.len() == limit(hosts.len()) {
                break;
            }
        }
        let more = limit(hosts.len()).saturating_sub(taken.len());
        taken.extend(aside.into_iter().take(more));
        // Of equals the first.
        let mut best: Option<(f64, usize)> = None;
        for one in taken {
            if best.is_none_or(|held| one.0 > held.0) {
                best = Some(one);
            }
        }
        best.map(|(_, host)| host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_nomads() {
        for (nodes, expected) in [(1, 2), (4, 2), (30, 5), (1_000, 10)] {
            assert_eq!(limit(nodes), expected, "{nodes}");
        }
        assert!((fit(0.0, 0.0) - 1.0).abs() < 1e-9);
        assert!(fit(1.0, 1.0).abs() < 1e-9);
        assert!(fit(0.2, 0.5) > fit(0.5, 0.5));
    }
}
