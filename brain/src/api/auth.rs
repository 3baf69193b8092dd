//! Who asks: bearer tokens, and the tenant boundary (R6).
//!
//! A token is `berth_<id>_<secret>`. The id finds the record, the secret's hash is compared in constant time. A tenant's
//! token sees its own tenant only; every other one is answered exactly like one that does not exist.

use std::sync::Arc;

use axum::extract::{FromRequestParts, RawPathParams};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{TenantId, TokenId, clip};
use berth_common::model::{Role, TenantRecord, TokenRecord, UnixMillis};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::problem::ApiError;
use super::{ApiState, Peer};
use crate::cluster::State;

const PREFIX: &str = "berth_";
/// Hex digits of a secret: 256 random bits.
const SECRET_LEN: usize = 64;

/// A new token and what is kept of it. `ttl_ms` milliseconds from `now` it stops working; none: never.
pub fn new_token(role: Role, note: String, ttl_ms: Option<u64>, now: UnixMillis) -> (String, TokenRecord) {
    let id = TokenId::random();
    let secret = new_secret();
    let record = TokenRecord {
        id,
        role,
        note,
        secret_hash: hash_secret(&secret),
        expires_at: ttl_ms.map(|ttl| UnixMillis(now.0.saturating_add(ttl))),
        created_at: now,
        revision: Default::default(),
    };
    (format!("{PREFIX}{id}_{secret}"), record)
}

/// 64 hex digits from the operating system's randomness.
pub fn new_secret() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// What is kept of a secret: SHA-256 (hex) of its 64 hex digits as text. API tokens and join tokens alike.
pub fn hash_secret(secret: &str) -> String {
    hex::encode(Sha256::digest(secret.as_bytes()))
}

/// Whether `secret` is the one of which `hash` was kept; in constant time.
pub fn secret_matches(secret: &str, hash: &str) -> bool {
    hash_secret(secret).as_bytes().ct_eq(hash.as_bytes()).into()
}

/// The id and the secret in a bearer token.
fn split(token: &str) -> Option<(TokenId, &str)> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    secret_shape(secret)?;
    Some((id.parse().ok()?, secret))
}

/// The id and the secret in a join token's secret, `<id>.<64 hex digits>`.
pub fn split_join_secret(text: &str) -> Option<(TokenId, &str)> {
    let (id, secret) = text.split_once('.')?;
    secret_shape(secret)?;
    Some((id.parse().ok()?, secret))
}

fn secret_shape(secret: &str) -> Option<()> {
    (secret.len() == SECRET_LEN && secret.bytes().all(|b| b.is_ascii_hexdigit())).then_some(())
}

/// The record of a bearer token that is valid in `state` at `now`.
///
/// # Errors
/// `unauthenticated`; whether the id or the secret is wrong is not told.
pub fn verify(state: &State, token: &str, now: UnixMillis) -> Result<Arc<TokenRecord>, Problem> {
    let refuse = |detail: &str| {
        Err(Problem::new(ErrorKind::Unauthenticated, detail)
            .cure("ask an administrator for a new token: berth tenant token TENANT"))
    };
    let Some((id, secret)) = split(token) else {
        return refuse("the bearer token is not of the form berth_<id>_<secret>; a part may be missing");
    };
    let Some(record) = state.tokens.get(&id) else {
        return refuse("the token is not known here; it was revoked, or is of another cluster");
    };
    if !secret_matches(secret, &record.secret_hash) {
        return refuse("the token is not known here; it was revoked, or is of another cluster");
    }
    if record.expires_at.is_some_and(|at| at <= now) {
        return refuse("the token has expired");
    }
    if let Role::Tenant { tenant } = record.role
        && !state.tenants.contains_key(&tenant)
    {
        return refuse("the token's tenant is gone");
    }
    Ok(record.clone())
}

/// Who sent a request.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The token's id.
    pub token: TokenId,
    /// The one tenant it may see; none for administrators, who see all.
    tenant: Option<TenantId>,
}

impl Caller {
    /// Whether it is an administrator's.
    pub const fn is_admin(&self) -> bool {
        self.tenant.is_none()
    }

    /// The one tenant it may see; none for administrators, who see all.
    pub const fn only_tenant(&self) -> Option<TenantId> {
        self.tenant
    }

    /// Whether it may see what belongs to `tenant`.
    pub fn sees(&self, tenant: TenantId) -> bool {
        self.only_tenant().is_none_or(|own| own == tenant)
    }

    /// Refuses everyone but administrators.
    ///
    /// # Errors
    /// `forbidden`, naming `what`.
    pub fn need_admin(&self, what: &str) -> Result<(), Problem> {
        if self.is_admin() {
            return Ok(());
        }
        Err(Problem::new(
            ErrorKind::Forbidden,
            format!("{what} needs an administrator's token"),
        )
        .cure("ask your administrator, or use a context with an administrator's token"))
    }
}

fn bearer(parts: &Parts) -> Result<&str, Problem> {
    let header = parts.headers.get(AUTHORIZATION).ok_or_else(|| {
        Problem::new(
            ErrorKind::Unauthenticated,
            "the request has no Authorization header",
        )
        .cure("send Authorization: Bearer <token>; with the command line: berth login")
    })?;
    header
        .to_str()
        .ok()
        .and_then(|text| text.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim())
        .ok_or_else(|| {
            Problem::new(
                ErrorKind::Unauthenticated,
                "the Authorization header is not `Bearer <token>`",
            )
        })
}

/// The record of the token that a request carries. Counts it against the token's rate, and a wrong one against its sender's.
fn admitted(parts: &Parts, api: &ApiState) -> Result<Arc<TokenRecord>, ApiError> {
    let verified = bearer(parts).and_then(|token| {
        let state = api.cluster.snapshot();
        verify(&state, token, api.cluster.now().wall)
    });
    let record = match verified {
        Ok(record) => record,
        Err(problem) => {
            let peer = parts.extensions.get::<Peer>().map(|peer| peer.0.ip());
            api.limits.failed_sign_in(peer)?;
            return Err(problem.into());
        }
    };
    api.limits.token(record.id)?;
    Ok(record)
}

/// Somebody who may read metrics: an administrator, or a token that is for nothing else. Everyone else is refused with 403.
#[derive(Debug, Clone, Copy)]
pub struct Scraper;

impl FromRequestParts<ApiState> for Scraper {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        match admitted(parts, api)?.role {
            Role::Admin | Role::Metrics => Ok(Self),
            Role::Tenant { .. } => Err(ApiError(
                Problem::new(
                    ErrorKind::Forbidden,
                    "metrics tell of all tenants; they need a token for metrics or an administrator's",
                )
                .cure("ask an administrator for one: berth tenant token default --metrics"),
            )),
        }
    }
}

impl FromRequestParts<ApiState> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        if let Some(known) = parts.extensions.get::<Self>() {
            return Ok(known.clone());
        }
        let record = admitted(parts, api)?;
        let tenant = match record.role {
            Role::Admin => None,
            Role::Tenant { tenant } => Some(tenant),
            Role::Metrics => {
                return Err(ApiError(
                    Problem::new(ErrorKind::Forbidden, "this token reads /metrics and nothing else")
                        .cure("use a tenant's or an administrator's token"),
                ));
            }
        };
        let caller = Self {
            token: record.id,
            tenant,
        };
        parts.extensions.insert(caller.clone());
        Ok(caller)
    }
}

/// An administrator. Everyone else is refused with 403.
#[derive(Debug, Clone)]
pub struct AdminOnly(pub Caller);

impl FromRequestParts<ApiState> for AdminOnly {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, api).await?;
        caller.need_admin("this")?;
        Ok(Self(caller))
    }
}

/// The tenant that the path names, and who asks. Only callers who may see it get one.
#[derive(Debug, Clone)]
pub struct Scope {
    /// The tenant, as of the moment the request was admitted.
    pub tenant: Arc<TenantRecord>,
    /// Who asks.
    pub caller: Caller,
}

/// What is said of a tenant that does not exist and of one the caller may not see: the same.
pub fn no_tenant(name: &str) -> Problem {
    Problem::not_found(format!(
        "there is no tenant {:?} that you may see",
        clip(name, 40)
    ))
    .cure("berth tenant ls lists those you may see")
}

/// The tenant of this name, if the caller may see it.
///
/// # Errors
/// `not-found`.
pub fn visible_tenant(state: &State, caller: &Caller, name: &str) -> Result<Arc<TenantRecord>, Problem> {
    name.parse()
        .ok()
        .and_then(|parsed| state.tenant(&parsed))
        .filter(|tenant| caller.sees(tenant.id))
        .cloned()
        .ok_or_else(|| no_tenant(name))
}

impl FromRequestParts<ApiState> for Scope {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, api: &ApiState) -> Result<Self, ApiError> {
        let caller = Caller::from_request_parts(parts, api).await?;
        let params = RawPathParams::from_request_parts(parts, api).await.map_err(|_| {
            ApiError(Problem::invalid(
                "the path is not UTF-8 once its %-escapes are decoded",
            ))
        })?;
        let name = params
            .iter()
            .find_map(|(key, value)| (key == "tenant").then_some(value))
            .unwrap_or_default();
        let tenant = visible_tenant(&api.cluster.snapshot(), &caller, name)?;
        Ok(Self { tenant, caller })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Change;
    use berth_common::id::Revision;

    #[test]
    fn only_the_whole_unexpired_token_counts() {
        let (token, record) = new_token(Role::Admin, String::new(), Some(1_000), UnixMillis(10));
        assert!(!format!("{record:?}").contains(token.rsplit('_').next().unwrap()));
        let mut state = State::default();
        state.apply(vec![Change::PutToken(record.clone())], Revision(1));
        assert_eq!(verify(&state, &token, UnixMillis(1_009)).unwrap().id, record.id);
        assert!(verify(&state, &token, UnixMillis(1_010)).is_err(), "expired");
        for cut in 0..token.len() {
            assert!(verify(&state, &token[..cut], UnixMillis(11)).is_err());
        }
        let other = format!("berth_{}_{}", record.id, new_secret());
        assert!(verify(&state, &other, UnixMillis(11)).is_err());
        let hash = format!("berth_{}_{}", record.id, record.secret_hash);
        assert!(
            verify(&state, &hash, UnixMillis(11)).is_err(),
            "the stored hash is no key"
        );
    }

    #[test]
    fn a_token_of_a_gone_tenant_is_void() {
        let role = Role::Tenant {
            tenant: TenantId::from_bytes([7; 10]),
        };
        let (token, record) = new_token(role, String::new(), None, UnixMillis(0));
        let mut state = State::default();
        state.apply(vec![Change::PutToken(record)], Revision(1));
        let problem = verify(&state, &token, UnixMillis(1)).unwrap_err();
        assert_eq!(problem.kind, ErrorKind::Unauthenticated);
    }
}
