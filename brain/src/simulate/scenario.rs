//! What is replayed: hosts, what loads them from outside, and containers with their coming and going. Pure: it follows from traces,
//! settings and a seed.

use anyhow::ensure;
use rand::Rng as _;
use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha12Rng;
use serde::Serialize;

use super::trace::{Asked, Row};

/// Seconds between two samples of a trace.
pub const INTERVAL: u32 = 300;

/// What a scenario is made of.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// Hosts.
    pub hosts: usize,
    /// Of each, millicores.
    pub host_cpu: u32,
    /// Of each, MiB.
    pub host_memory_mib: u64,
    /// What 100 percent of a row are, millicores: the container's limit.
    pub limit: u32,
    /// What each container sets aside, millicores.
    pub reservation: u32,
    /// And of memory, MiB.
    pub memory_mib: u64,
    /// Share of the rows that is load from outside instead of a container's, percent.
    pub foreign_rows: u32,
    /// Share of the hosts that it is piled on, percent.
    pub foreign_hosts: u32,
    /// Seconds over which containers arrive, where no trace says when.
    pub arrive: u32,
    /// Tenants that the containers are of.
    pub tenants: u32,
    /// What reservations on a host may add up to, percent of its capacity; none: as much as admits all by load.
    pub overcommit: Option<u32>,
    /// All choices follow from it.
    pub seed: u64,
}

impl Default for Settings {
    /// The standard scenario: figures compare by it.
    fn default() -> Self {
        Self {
            hosts: 30,
            host_cpu: 16_000,
            host_memory_mib: 64 << 10,
            limit: 2_000,
            reservation: 500,
            memory_mib: 256,
            foreign_rows: 20,
            foreign_hosts: 20,
            arrive: 4 * 3600,
            tenants: 4,
            overcommit: None,
            seed: 1,
        }
    }
}

/// A container to come.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Arrival {
    /// When, seconds from the trace's begin.
    pub at: u32,
    /// When it goes.
    pub until: u32,
    /// Which row of the trace it uses CPU by.
    pub row: usize,
    /// What 100 percent are, millicores.
    pub limit: u32,
    /// What it sets aside, millicores.
    pub cpu: u32,
    /// And of memory, MiB.
    pub memory_mib: u64,
    /// Whose.
    pub tenant: u32,
}

/// A scenario.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// What it was made of.
    pub settings: Settings,
    /// The trace.
    pub rows: Vec<Row>,
    /// Rows that are load from outside, and on which host.
    pub foreign: Vec<(usize, usize)>,
    /// Containers, by arrival.
    pub arrivals: Vec<Arrival>,
    /// What reservations on a host may add up to, in hundredths of its capacity: so much that all containers fit.
    pub overcommit: u32,
}

impl Scenario {
    /// From a trace of usage, and of arrivals if there is one.
    ///
    /// # Errors
    /// What makes no sense.
    pub fn new(settings: Settings, rows: Vec<Row>, asked: Option<&[Asked]>) -> anyhow::Result<Self> {
        ensure!(settings.hosts > 0 && settings.host_cpu > 0, "no hosts");
        ensure!(
            settings.reservation > 0 && settings.limit > 0,
            "containers of nothing"
        );
        ensure!(
            settings.foreign_rows <= 100 && settings.foreign_hosts <= 100,
            "a share is a percentage"
        );
        ensure!(
            settings.tenants > 0,
            "containers are somebody's: at least one tenant"
        );
        let end = rows.first().map_or(0, |row| row.len() as u32 * INTERVAL);
        ensure!(end > 0, "a trace without samples");
        let mut random = ChaCha12Rng::seed_from_u64(settings.seed);
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.shuffle(&mut random);
        let outside = rows.len() * settings.foreign_rows as usize / 100;
        let mut hosts: Vec<usize> = (0..settings.hosts).collect();
        hosts.shuffle(&mut random);
        hosts.truncate(((settings.hosts * settings.foreign_hosts as usize + 50) / 100).max(1));
        let foreign = order[..outside].iter().enumerate();
        let foreign = foreign
            .map(|(nth, row)| (*row, hosts[nth % hosts.len()]))
            .collect();
        let containers = &order[outside..];
        ensure!(
            !containers.is_empty(),
            "all rows are load from outside: no containers are left"
        );
        let mut arrivals: Vec<Arrival> = match asked {
            None => containers
                .iter()
                .map(|row| Arrival {
                    at: random.random_range(0..settings.arrive.clamp(1, end)),
                    until: end,
                    row: *row,
                    limit: settings.limit,
                    cpu: settings.reservation,
                    memory_mib: settings.memory_mib,
                    tenant: random.random_range(0..settings.tenants),
                })
                .collect(),
            Some(asked) => {
                // A trace of months onto the day that there is usage of.
                let (first, last) = (asked.first(), asked.iter().map(|one| one.went).max());
                let first = first.map_or(0, |one| one.came);
                let span = last.unwrap_or(1).saturating_sub(first).max(1);
                let scaled = |at: u64| (u128::from(at - first) * u128::from(end) / u128::from(span)) as u32;
                let come = asked
                    .iter()
                    .zip(containers.iter().cycle())
                    .map(|(one, row)| Arrival {
                        at: scaled(one.came).min(end - 1),
                        until: scaled(one.went).clamp(scaled(one.came) + 1, end),
                        row: *row,
                        limit: one.cpu,
                        cpu: one.cpu,
                        memory_mib: one.memory_mib,
                        tenant: random.random_range(0..settings.tenants),
                    });
                come.collect()
            }
        };
        arrivals.sort_by_key(|one| (one.at, one.row));
        let needed = || overcommit(&settings, &arrivals, hosts.len(), asked.is_some());
        let overcommit = settings.overcommit.unwrap_or_else(needed);
        Ok(Self {
            settings,
            rows,
            foreign,
            arrivals,
            overcommit,
        })
    }

    /// Its length, seconds.
    pub fn end(&self) -> u32 {
        self.rows.first().map_or(0, |row| row.len() as u32 * INTERVAL)
    }

    /// What reservations on a host may add up to, millicores.
    pub fn allocatable(&self) -> u32 {
        (u64::from(self.settings.host_cpu) * u64::from(self.overcommit) / 100) as u32
    }

    /// What a row asks for at a time, millicores of `limit`.
    pub fn demand(&self, row: usize, limit: u32, at: u32) -> u32 {
        let samples = &self.rows[row];
        let sample = samples[(at / INTERVAL) as usize % samples.len()];
        limit * u32::from(sample) / 100
    }
}

/// So much overcommit that the hosts without load from outside could take all containers that are there for the whole day, and a fifth
/// more: it is load that decides then, and not how many reservations fit. Those of a trace come as they come: none.
fn overcommit(settings: &Settings, arrivals: &[Arrival], spared: usize, traced: bool) -> u32 {
    if traced {
        return 100;
    }
    let hosts = (settings.hosts - spared).max(1) as u64;
    let each = (arrivals.len() as u64).div_ceil(hosts) * u64::from(settings.reservation);
    let percent = (each * 120).div_ceil(u64::from(settings.host_cpu));
    u32::try_from(percent.next_multiple_of(5)).map_or(u32::MAX, |percent| percent.max(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(count: usize) -> Vec<Row> {
        (0..count).map(|n| Row::from(vec![n as u8; 288])).collect()
    }

    #[test]
    fn the_same_seed_is_the_same_scenario_and_another_is_not() {
        let made = |seed| {
            let settings = Settings {
                seed,
                ..Settings::default()
            };
            Scenario::new(settings, rows(100), None).unwrap()
        };
        let (one, again, other) = (made(7), made(7), made(8));
        assert_eq!((&one.foreign, &one.arrivals), (&again.foreign, &again.arrivals));
        assert_ne!(one.arrivals, other.arrivals);
        assert_eq!((one.foreign.len(), one.arrivals.len()), (20, 80));
        let hosts: std::collections::BTreeSet<_> = one.foreign.iter().map(|(_, host)| host).collect();
        assert_eq!(hosts.len(), 6, "a fifth of thirty");
        let mut all: Vec<_> = one.foreign.iter().map(|(row, _)| *row).collect();
        all.extend(one.arrivals.iter().map(|one| one.row));
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>(), "each row once");
        assert!(
            one.arrivals
                .iter()
                .all(|one| one.at < 4 * 3600 && one.until == 86_400)
        );
    }

    #[test]
    fn overcommit_lets_hosts_without_load_from_outside_take_all() {
        let percent = |hosts, containers| {
            let settings = Settings {
                hosts,
                foreign_rows: 0,
                ..Settings::default()
            };
            Scenario::new(settings, rows(containers), None)
                .unwrap()
                .overcommit
        };
        // 32 reservations of half a core fit on a host; a fifth of the hosts is spared, and a fifth more is allowed.
        let cases = [
            ((30, 900), 145),
            ((10, 320), 150),
            ((10, 321), 155),
            ((20, 842), 200),
            ((100, 100), 100),
        ];
        for ((hosts, containers), expected) in cases {
            assert_eq!(percent(hosts, containers), expected, "{containers} on {hosts}");
        }
    }

    #[test]
    fn arrivals_of_months_are_laid_on_the_day() {
        let asked = |came, went| Asked {
            cpu: 500,
            memory_mib: 64,
            came,
            went,
        };
        let all = [asked(1_000, 2_000), asked(5_000, 11_000), asked(10_999, 11_000)];
        let settings = Settings {
            foreign_rows: 0,
            ..Settings::default()
        };
        let made = Scenario::new(settings, rows(2), Some(&all)).unwrap();
        let times: Vec<_> = made.arrivals.iter().map(|one| (one.at, one.until)).collect();
        assert_eq!(times, [(0, 8_640), (34_560, 86_400), (86_391, 86_400)]);
        assert!(made.arrivals.iter().all(|one| one.row < 2));
    }
}
