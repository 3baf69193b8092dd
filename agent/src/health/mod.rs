//! Health checks: whether a container can do its work, asked again and again from inside its network.
//!
//! [`after`] and [`pause`] decide what a result means and when to ask next (pure), [`probe`] asks, [`Watch`] goes round. What follows
//! from it is not decided here: the reconciler owns the state and starts again what became unhealthy, the brain sends requests to
//! what is healthy.

pub mod probe;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::ContainerId;
use berth_common::model::{Health, HealthCheck, HealthState, UnixMillis};
use tokio::task::JoinHandle;
use tokio::time::Instant;

pub use probe::Prober;

/// First pause before a check of one that has just begun; it doubles until the first success.
const FIRST: Duration = Duration::from_millis(100);
/// Longest pause before the first success.
const EAGER: Duration = Duration::from_secs(1);

/// What a check's result makes of a container's health. `ran`: how long its process has run.
pub fn after(
    health: &Health,
    check: &HealthCheck,
    result: Result<(), String>,
    ran: Duration,
    now: UnixMillis,
) -> Health {
    let Err(output) = result else {
        let since = match health.state {
            HealthState::Healthy => health.since,
            _ => now,
        };
        return Health {
            state: HealthState::Healthy,
            since,
            failures: 0,
            output: None,
        };
    };
    let early = health.state == HealthState::Starting
        && ran < Duration::from_millis(u64::from(check.start_period_ms));
    let failures = match early {
        true => 0,
        // What is unhealthy fails on and on: no need to tell each time.
        false => health.failures.saturating_add(1).min(check.retries.max(1)),
    };
    let ill = failures >= check.retries.max(1) || health.state == HealthState::Unhealthy;
    let state = if ill { HealthState::Unhealthy } else { health.state };
    Health {
        state,
        since: if state == health.state { health.since } else { now },
        failures,
        output: Some(output),
    }
}

/// Pause before the next check; `checks`: how many there were.
pub fn pause(health: &Health, check: &HealthCheck, checks: u32) -> Duration {
    let interval = Duration::from_millis(u64::from(check.interval_ms.max(100)));
    match health.state {
        HealthState::Starting => FIRST.saturating_mul(1 << checks.min(10)).min(EAGER).min(interval),
        _ => interval,
    }
}

/// What is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which container.
    pub id: ContainerId,
    /// Its process: its network is entered by it.
    pub pid: u32,
    /// Its first address; none of one that is on no network.
    pub address: Option<IpAddr>,
    /// How.
    pub check: HealthCheck,
}

/// A container that is being checked, until this is dropped.
#[derive(Debug)]
pub struct Watch {
    target: Target,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watch {
    /// Begins from what is known of its health. `ran`: how long its process runs already; `tell` hears what changes.
    pub fn begin(
        target: Target,
        prober: Arc<dyn Prober>,
        health: Health,
        ran: Duration,
        tell: impl Fn(Health) + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(go_round(target.clone(), prober, health, ran, tell));
        Self { target, task }
    }

    /// Whether it checks just this.
    pub fn is_of(&self, target: &Target) -> bool {
        self.target == *target
    }
}

async fn go_round(
    target: Target,
    prober: Arc<dyn Prober>,
    mut health: Health,
    ran: Duration,
    tell: impl Fn(Health),
) {
    let begun = Instant::now();
    let check = &target.check;
    // Those of a restarted agent are spread over the interval.
    let mut pause = match health.state {
        HealthState::Starting => FIRST,
        _ => pause(&health, check, 0).mul_f64(f64::from(spread(target.id)) / 256.0),
    };
    for checks in 1_u32.. {
        tokio::time::sleep(pause).await;
        let limit = Duration::from_millis(u64::from(check.timeout_ms.max(10)));
        let result = tokio::time::timeout(limit, prober.probe(&target)).await;
        let result = result.unwrap_or_else(|_| Err(format!("no answer within {} ms", check.timeout_ms)));
        let next = after(&health, check, result, ran + begun.elapsed(), UnixMillis::now());
        pause = self::pause(&next, check, checks);
        if next != health {
            health = next;
            tell(health.clone());
        }
    }
}

/// A number from 0 to 255 that differs among containers.
fn spread(id: ContainerId) -> u8 {
    id.to_string()
        .bytes()
        .fold(0, |sum: u8, byte| sum.wrapping_mul(31).wrapping_add(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check() -> HealthCheck {
        HealthCheck {
            tcp: Some(80),
            retries: 2,
            start_period_ms: 10_000,
            ..HealthCheck::default()
        }
    }

    /// Plays results, one a second, and says what came of each.
    fn played(results: &str) -> String {
        let mut health = Health::starting(UnixMillis(0));
        let states = results.chars().enumerate().map(|(second, result)| {
            let result = match result {
                '+' => Ok(()),
                _ => Err(format!("failure {second}")),
            };
            let at = second as u64;
            health = after(
                &health,
                &check(),
                result,
                Duration::from_secs(at),
                UnixMillis(at * 1000),
            );
            match health.state {
                HealthState::Starting => 's',
                HealthState::Healthy => 'h',
                HealthState::Unhealthy => 'u',
                HealthState::Unknown => '?',
            }
        });
        states.collect()
    }

    #[test]
    fn results_make_states() {
        for (results, states) in [
            ("+", "h"),
            ("--+-+", "sshhh"),
            // Two in a row, and back with one success.
            ("+--+", "hhuh"),
            ("+-+-+", "hhhhh"),
            // The start period ends after ten seconds, and only then failures count.
            (
                "------------",
                "ssssssssssss".replace("ssssssssssss", "sssssssssssu").as_str(),
            ),
            // It ends with the first success.
            ("+--", "hhu"),
            ("+-----+", "hhuuuuh"),
        ] {
            assert_eq!(played(results), states, "{results}");
        }
    }

    #[test]
    fn what_is_told_does_not_grow_with_time() {
        let mut health = Health::starting(UnixMillis(0));
        for second in 0..100 {
            health = after(
                &health,
                &check(),
                Err("refused".into()),
                Duration::from_secs(60),
                UnixMillis(second),
            );
        }
        assert_eq!((health.state, health.failures), (HealthState::Unhealthy, 2));
        assert_eq!(health.since, UnixMillis(1));
        let same = after(
            &health,
            &check(),
            Err("refused".into()),
            Duration::from_secs(60),
            UnixMillis(200),
        );
        assert_eq!(same, health);
        let well = after(&health, &check(), Ok(()), Duration::ZERO, UnixMillis(300));
        assert_eq!(
            after(&well, &check(), Ok(()), Duration::ZERO, UnixMillis(400)),
            well
        );
    }

    #[test]
    fn one_that_begins_is_asked_more_often_but_never_more_often_than_a_short_interval() {
        let starting = Health::starting(UnixMillis(0));
        let pauses: Vec<u128> = (0..6)
            .map(|n| pause(&starting, &check(), n).as_millis())
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        let often = HealthCheck {
            interval_ms: 150,
            ..check()
        };
        assert_eq!(pause(&starting, &often, 9).as_millis(), 150);
        let healthy = Health {
            state: HealthState::Healthy,
            ..starting
        };
        assert_eq!(pause(&healthy, &check(), 0).as_millis(), 5_000);
    }
}
