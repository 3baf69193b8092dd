//! How many bytes a second all transfers together may send.

use std::num::NonZeroU32;
use std::sync::Arc;

use berth_common::units::Bytes;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::watch;

use super::frame::CHUNK;

/// What is counted, bytes: at a gigabyte a second one of these passes in a microsecond, and governor counts in whole nanoseconds.
const CELL: u64 = 1 << 10;

/// Cells of so many bytes.
fn cells(bytes: u64) -> NonZeroU32 {
    let cells = u32::try_from(bytes.div_ceil(CELL)).unwrap_or(u32::MAX);
    NonZeroU32::new(cells).unwrap_or(NonZeroU32::MIN)
}

/// A rate limit; clones are the same one. It counts bytes on the wire, those that are sent again after a broken link too.
#[derive(Debug, Clone)]
pub struct Rate(Arc<watch::Sender<Option<Arc<DefaultDirectRateLimiter>>>>);

impl Default for Rate {
    fn default() -> Self {
        Self::new(Bytes::ZERO)
    }
}

impl Rate {
    /// Bytes a second; 0: no limit.
    pub fn new(rate: Bytes) -> Self {
        let new = Self(Arc::new(watch::channel(None).0));
        new.set(rate);
        new
    }

    /// Changes it at once, for what is under way too. Bytes a second; 0: no limit.
    pub fn set(&self, rate: Bytes) {
        // A frame has to pass as a whole, with its head.
        let burst = cells((rate.0 / 10).max(2 * CHUNK as u64));
        let limiter = || RateLimiter::direct(Quota::per_second(cells(rate.0)).allow_burst(burst));
        self.0
            .send_replace((rate > Bytes::ZERO).then(|| Arc::new(limiter())));
    }

    /// Waits until so many bytes, at most a frame's, may pass.
    pub(super) async fn pass(&self, bytes: usize) {
        let mut limit = self.0.subscribe();
        loop {
            let Some(limiter) = limit.borrow_and_update().clone() else {
                return;
            };
            tokio::select! {
                passed = limiter.until_n_ready(cells(bytes as u64)) => {
                    debug_assert!(passed.is_ok(), "a frame is larger than a burst");
                    return;
                }
                _ = limit.changed() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_goes_on_when_the_limit_is_lifted() {
        let rate = Rate::new(Bytes(1));
        // A burst is there at once, and two frames are more than that.
        rate.pass(2 * CHUNK).await;
        let waiting = tokio::spawn({
            let rate = rate.clone();
            async move { rate.pass(CHUNK).await }
        });
        tokio::task::yield_now().await;
        assert!(
            !waiting.is_finished(),
            "at a cell a second it would take two minutes"
        );
        rate.set(Bytes::ZERO);
        waiting.await.unwrap();
        rate.pass(usize::MAX).await;
    }

    #[test]
    fn every_rate_lets_a_frame_pass() {
        for rate in [1, CELL, 1 << 20, 1 << 30, u64::MAX] {
            let limited = Rate::new(Bytes(rate));
            let limiter = limited.0.borrow().clone().unwrap();
            assert!(limiter.check_n(cells(CHUNK as u64 + 64)).is_ok(), "{rate}");
        }
        assert!(Rate::default().0.borrow().is_none());
    }
}
