//! Places among the open streams, and for how long each may be used.
//!
//! A stream outlives the request that opened it. So its token is looked at again while it is open: revoked or expired, it ends
//! what was begun with it. Places are counted by tenant, so that one can't take all that nodes and the brain have.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::TenantId;
use parking_lot::Mutex;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::super::auth::Caller;
use super::super::{ApiError, ApiState};

/// Streams that one tenant may have open. A node takes a thousand in all.
pub const PER_TENANT: usize = 200;
/// Streams that administrators may have open.
pub const ADMINISTRATORS: usize = 1_000;
/// How often a stream's token is looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Whose streams: a tenant's, or (none) the administrators'.
type Owner = Option<TenantId>;

/// The open streams, counted.
#[derive(Debug, Clone, Default)]
pub struct Streams(Arc<Mutex<HashMap<Owner, usize>>>);

impl Streams {
    fn enter(&self, owner: Owner) -> Result<Place, Problem> {
        let most = match owner {
            Some(_) => PER_TENANT,
            None => ADMINISTRATORS,
        };
        let mut open = self.0.lock();
        let count = open.entry(owner).or_default();
        if *count >= most {
            let whose = match owner {
                Some(_) => "your tenant has",
                None => "administrators have",
            };
            return Err(Problem::new(
                ErrorKind::RateLimited,
                format!("{whose} {most} streams open (logs, execs, watches, pulls), which is the most there may be"),
            )
            .cure("close one: every `logs -f`, `exec` and `events -f` holds one, a followed service one for each replica"));
        }
        *count += 1;
        Ok(Place {
            streams: self.clone(),
            owner,
        })
    }
}

/// Given back when dropped.
#[derive(Debug)]
struct Place {
    streams: Streams,
    owner: Owner,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.0.lock();
        if let Some(count) = open.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.owner);
            }
        }
    }
}

/// The right to one stream. Held for as long as it is open.
pub struct Permit {
    api: ApiState,
    caller: Caller,
    look: Interval,
    _place: Place,
}

impl Permit {
    fn valid(&self) -> bool {
        let state = self.api.cluster.snapshot();
        let now = self.api.cluster.now().wall;
        state
            .tokens
            .get(&self.caller.token)
            .is_some_and(|token| token.expires_at.is_none_or(|at| at > now))
            && self
                .caller
                .only_tenant()
                .is_none_or(|tenant| state.tenants.contains_key(&tenant))
    }

    /// Comes back when the token no longer holds, with what to say. Cancel-safe.
    pub async fn over(&mut self) -> Problem {
        while self.valid() {
            self.look.tick().await;
        }
        Problem::new(
            ErrorKind::Unauthenticated,
            "the token this stream was opened with was revoked or has expired",
        )
        .cure("ask an administrator for a new token: berth tenant token TENANT")
    }
}

impl FromRequestParts<ApiState> for Permit {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, api).await?;
        let place = api.streams.enter(caller.only_tenant())?;
        let mut look = interval_at(Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self {
            api: api.clone(),
            caller,
            look,
            _place: place,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_counted_by_tenant_and_given_back() {
        let streams = Streams::default();
        let (a, b) = (TenantId::from_bytes([1; 10]), TenantId::from_bytes([2; 10]));
        let held: Vec<_> = (0..PER_TENANT).map(|_| streams.enter(Some(a)).unwrap()).collect();
        let refused = streams.enter(Some(a)).unwrap_err();
        assert_eq!(refused.kind, ErrorKind::RateLimited);
        assert!(refused.cure.is_some());
        drop(streams.enter(Some(b)).unwrap());
        drop(streams.enter(None).unwrap());
        drop(held);
        assert!(streams.0.lock().is_empty());
        streams.enter(Some(a)).unwrap();
    }
}
