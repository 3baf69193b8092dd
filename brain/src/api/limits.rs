//! Request rates: by token, by address, and stricter for failed sign-ins.
//!
//! Generous, as they only guard against runaway programs; a tenant can't slow another down, since each token has a bucket of
//! its own. All rates are at least one a second, so that `Retry-After: 1` is always right.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::TokenId;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use super::problem::ApiError;
use super::{ApiState, Peer};

/// Requests a second. Bursts may be as large as one second's worth, of failed sign-ins at least twenty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// From one token. At least 1.
    pub per_token: u32,
    /// From one address (IPv6: one /64), with and without a token. At least 1.
    pub per_address: u32,
    /// Failed sign-ins from one address. At least 1.
    pub failed_sign_ins: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            per_token: 2_000,
            per_address: 5_000,
            failed_sign_ins: 1,
        }
    }
}

/// Failed sign-ins that an address has at once before the rate applies.
const FAILED_BURST: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// After so many checks, buckets that are full again are dropped.
const SWEEP_EVERY: u32 = 4_096;

/// The buckets.
pub struct Limits {
    tokens: DefaultKeyedRateLimiter<TokenId>,
    addresses: DefaultKeyedRateLimiter<IpAddr>,
    failures: DefaultKeyedRateLimiter<IpAddr>,
    checks: AtomicU32,
}

impl Limits {
    /// Full buckets of these rates.
    pub fn new(rates: &Rates) -> Self {
        let rate = |n: u32| NonZeroU32::new(n).unwrap_or(NonZeroU32::MIN);
        let quota = |n: u32| Quota::per_second(rate(n));
        Self {
            tokens: RateLimiter::keyed(quota(rates.per_token)),
            addresses: RateLimiter::keyed(quota(rates.per_address)),
            failures: RateLimiter::keyed(
                quota(rates.failed_sign_ins).allow_burst(FAILED_BURST.max(rate(rates.failed_sign_ins))),
            ),
            checks: AtomicU32::new(0),
        }
    }

    /// Counts a request of a token.
    ///
    /// # Errors
    /// `rate-limited`.
    pub fn token(&self, token: TokenId) -> Result<(), Problem> {
        self.tokens
            .check_key(&token)
            .map_err(|_| refused("this token sends too many requests"))
    }

    /// Counts a request from an address.
    ///
    /// # Errors
    /// `rate-limited`.
    pub fn address(&self, peer: IpAddr) -> Result<(), Problem> {
        if self.checks.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.tokens.retain_recent();
            self.addresses.retain_recent();
            self.failures.retain_recent();
        }
        self.addresses
            .check_key(&network(peer))
            .map_err(|_| refused("your address sends too many requests"))
    }

    /// Counts a failed sign-in. Valid tokens from the same address go on working, as many may share it.
    ///
    /// # Errors
    /// `rate-limited`.
    pub fn failed_sign_in(&self, peer: Option<IpAddr>) -> Result<(), Problem> {
        let Some(peer) = peer else { return Ok(()) };
        self.failures
            .check_key(&network(peer))
            .map_err(|_| refused("too many failed sign-ins from your address"))
    }
}

fn refused(detail: &str) -> Problem {
    Problem::new(ErrorKind::RateLimited, detail).cure("wait a second, then go slower")
}

/// What counts as one address: whoever has one IPv6 address has its whole /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(_) => peer,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & !0 << 64)),
        },
    }
}

/// Layer: refuses addresses above their rate before anything else is done for them.
pub async fn by_address(State(api): State<ApiState>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    match peer.map_or(Ok(()), |peer| api.limits.address(peer)) {
        Ok(()) => next.run(request).await,
        Err(problem) => ApiError(problem).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_run_dry_each_for_itself() {
        let limits = Limits::new(&Rates {
            per_token: 3,
            per_address: 2,
            failed_sign_ins: 1,
        });
        let (a, b) = (TokenId::from_bytes([1; 10]), TokenId::from_bytes([2; 10]));
        assert!((0..3).all(|_| limits.token(a).is_ok()));
        assert_eq!(limits.token(a).unwrap_err().kind, ErrorKind::RateLimited);
        limits.token(b).unwrap();
        let v6 = |text: &str| text.parse::<IpAddr>().unwrap();
        limits.address(v6("2001:db8::1")).unwrap();
        limits.address(v6("2001:db8::2")).unwrap();
        limits.address(v6("2001:db8::3")).unwrap_err();
        limits.address(v6("2001:db8:0:1::3")).unwrap();
        let peer = Some(v6("::ffff:10.0.0.1"));
        assert!((0..20).all(|_| limits.failed_sign_in(peer).is_ok()));
        limits.failed_sign_in(Some(v6("10.0.0.1"))).unwrap_err();
        limits.failed_sign_in(Some(v6("10.0.0.2"))).unwrap();
    }
}
