//! Trimaran's `TargetLoadPacking` with its public defaults (kubernetes-sigs/scheduler-plugins, pkg/trimaran/targetloadpacking and
//! apis/config/v1/defaults.go): target 40 percent; a container's use is taken for its limit; those bound since the metrics, or within a
//! minute before them, count besides; a node without metrics scores nothing. Metrics are the default provider's: metrics-server's last
//! sample, every minute. The filter is that of requests; other scores are off, as its README says. Nothing placed ever moves.

use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;

use super::measured::Measured;
use super::{Policy, Report, one_of_the_best};
use crate::simulate::cluster::Cluster;

/// Percent of a node that is aimed at.
const TARGET: f64 = 40.0;
/// Seconds between metrics, and by which one that was bound before them may be missing in them.
const INTERVAL: u32 = 60;

/// It.
pub(super) struct TargetLoadPacking {
    random: ChaCha12Rng,
    metrics: Measured,
}

impl TargetLoadPacking {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: ChaCha12Rng::seed_from_u64(seed),
            // The last sample: a window of one.
            metrics: Measured::new(1, INTERVAL),
        }
    }

    fn score(&self, cluster: &Cluster<'_>, host: usize, container: usize) -> u32 {
        let Some(told) = self.metrics.of(host) else {
            return 0;
        };
        let young = cluster.hosts[host].containers.iter().filter(|held| {
            let since = cluster.placed[**held].map_or(0, |(_, since)| since);
            since > told.at || told.at - since < INTERVAL
        });
        let missing: u32 = young.map(|held| cluster.container(*held).limit).sum();
        let predicted = told.total + missing + cluster.container(container).limit;
        packed(f64::from(predicted) * 100.0 / f64::from(cluster.scenario.settings.host_cpu))
    }
}

/// Rises to 100 at the target and falls from it to 0 at a full node.
fn packed(percent: f64) -> u32 {
    let score = if percent <= TARGET {
        (100.0 - TARGET) * percent / TARGET + TARGET
    } else if percent <= 100.0 {
        TARGET * (100.0 - percent) / (100.0 - TARGET)
    } else {
        0.0
    };
    score.round() as u32
}

impl Policy for TargetLoadPacking {
    fn hear(&mut self, report: &Report) {
        self.metrics.hear(report);
    }

    fn place(&mut self, cluster: &Cluster<'_>, container: usize, _now: u32) -> Option<usize> {
        let fitting = (0..cluster.hosts.len()).filter(|host| cluster.fits(*host, container));
        let scored: Vec<(u32, usize)> = fitting
            .map(|host| (self.score(cluster, host, container), host))
            .collect();
        one_of_the_best(&scored, &mut self.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_are_trimarans() {
        let cases = [
            (0.0, 40),
            (20.0, 70),
            (40.0, 100),
            (40.1, 40),
            (70.0, 20),
            (100.0, 0),
            (120.0, 0),
        ];
        for (percent, expected) in cases {
            assert_eq!(packed(percent), expected, "{percent}");
        }
    }
}
