//! How many bytes a second all transfers together may send. [`Bucket`] decides (pure), [`Rate`] waits.
//!
//! Not `governor`: its cells are a whole number of nanoseconds apart, which at a gigabyte a second is one or none, and a limiter
//! keeps the rate that it was made with.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

/// So much may be caught up at once after a pause.
const BURST: Duration = Duration::from_millis(100);

/// A token bucket that lends: whoever finds anything in it takes all that it needs, and the next one waits until that is paid.
/// So a chunk larger than a burst passes too.
#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Bytes a second; none: no limit.
    rate: Option<NonZeroU64>,
    /// Bytes; below zero: lent.
    credit: f64,
    at: Instant,
}

impl Bucket {
    /// Takes `bytes`, or says how long to wait before asking again.
    fn take(&mut self, bytes: usize, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let rate = rate.get() as f64;
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * rate;
        self.at = self.at.max(now);
        self.credit = (self.credit + earned).min(rate * BURST.as_secs_f64());
        if self.credit < 0.0 {
            return Err(Duration::try_from_secs_f64(-self.credit / rate).unwrap_or(Duration::MAX));
        }
        self.credit -= bytes as f64;
        Ok(())
    }

    /// From now on.
    fn set(&mut self, rate: Option<NonZeroU64>, now: Instant) {
        *self = Self {
            rate,
            credit: 0.0,
            at: now,
        };
    }
}

/// A rate limit; clones are the same one. It counts bytes on the wire, those that are sent again after a broken link too.
#[derive(Debug, Clone)]
pub struct Rate(Arc<Limit>);

#[derive(Debug)]
struct Limit {
    bucket: Mutex<Bucket>,
    changed: watch::Sender<()>,
}

impl Default for Rate {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Rate {
    /// Bytes a second; none: no limit.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self(Arc::new(Limit {
            bucket: Mutex::new(Bucket {
                rate,
                credit: 0.0,
                at: Instant::now(),
            }),
            changed: watch::channel(()).0,
        }))
    }

    /// Changes it at once, for what is under way too. Bytes a second; none: no limit.
    pub fn set(&self, rate: Option<NonZeroU64>) {
        self.0.bucket.lock().set(rate, Instant::now());
        self.0.changed.send_replace(());
    }

    /// Waits until so many bytes may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        let mut changed = self.0.changed.subscribe();
        loop {
            let taken = self.0.bucket.lock().take(bytes, Instant::now());
            let Err(wait) = taken else { return };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = changed.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn per_second(bytes: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn all_together_pass_at_the_rate_and_a_change_wakes_who_waits() {
        let rate = Rate::new(per_second(1_000_000));
        let begin = Instant::now();
        let passing = (0..4).map(|_| {
            let rate = rate.clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    rate.pass(100_000).await;
                }
            })
        });
        for one in passing.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        // 10 MB; the last piece is lent.
        let took = begin.elapsed().as_secs_f64();
        assert!((9.7..=10.0).contains(&took), "{took}");

        rate.set(per_second(1));
        rate.pass(1_000_000).await;
        let waiting = tokio::spawn({
            let rate = rate.clone();
            async move { rate.pass(1).await }
        });
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert!(!waiting.is_finished());
        rate.set(None);
        waiting.await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(25));
    }

    #[test]
    fn a_pause_is_not_saved_up_and_clocks_may_stand_still() {
        let start = Instant::now();
        let mut bucket = Bucket {
            rate: per_second(1_000),
            credit: 0.0,
            at: start,
        };
        assert_eq!(bucket.take(1_000, start), Ok(()));
        assert_eq!(bucket.take(1, start), Err(Duration::from_secs(1)));
        let later = start + Duration::from_secs(3_600);
        assert_eq!(bucket.take(101, later), Ok(()));
        assert!(bucket.take(1, later).is_err());
        assert!(bucket.take(1, start).is_err(), "an older time earns nothing");
    }
}
