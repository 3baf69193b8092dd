//! Problem details (RFC 9457): the one form in which every refusal reaches a person or a program (R9).

use std::fmt;

use serde::{Deserialize, Serialize};

/// Every kind of error the API knows. Each is documented in `docs/errors.md` (a test holds the two together) and is
/// the last part of the problem's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request does not parse or a field is out of range. 400
    Invalid,
    /// No or a wrong bearer token. 401
    Unauthenticated,
    /// The token's role or tenant does not allow it. 403
    Forbidden,
    /// No such object, or it belongs to another tenant. 404
    NotFound,
    /// An object of that name exists. 409
    AlreadyExists,
    /// The object changed since the generation the caller named. 409
    Conflict,
    /// The object is in a state that does not allow it. 409
    Precondition,
    /// The revision asked for is no longer kept: list again and watch from the list's revision. 410
    Compacted,
    /// Body over the limit. 413
    TooLarge,
    /// The tenant's quota would be exceeded. 422
    QuotaExceeded,
    /// Too many requests from this token or address. 429
    RateLimited,
    /// A defect of berth; the brain's log has the details under the request id. 500
    Internal,
    /// The node, or what the request needs, can't be reached now; try again. 503
    Unavailable,
    /// The node did not answer in time. 504
    Timeout,
    /// Of a newer peer, and never made here. Title, status and detail of the problem are the peer's; nothing else is
    /// taken from the kind, so it is not tried again.
    #[serde(other)]
    Unknown,
}

impl ErrorKind {
    /// Every kind that this version makes, for tests and documentation: all but [`ErrorKind::Unknown`].
    pub const ALL: [Self; 14] = [
        Self::Invalid,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::AlreadyExists,
        Self::Conflict,
        Self::Precondition,
        Self::Compacted,
        Self::TooLarge,
        Self::QuotaExceeded,
        Self::RateLimited,
        Self::Internal,
        Self::Unavailable,
        Self::Timeout,
    ];

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Unauthenticated => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict | Self::Precondition => 409,
            Self::Compacted => 410,
            Self::TooLarge => 413,
            Self::QuotaExceeded => 422,
            Self::RateLimited => 429,
            Self::Internal | Self::Unknown => 500,
            Self::Unavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The name in the problem's `type`.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Conflict => "conflict",
            Self::Precondition => "precondition",
            Self::Compacted => "compacted",
            Self::TooLarge => "too-large",
            Self::QuotaExceeded => "quota-exceeded",
            Self::RateLimited => "rate-limited",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Unknown => "unknown",
        }
    }

    /// The fixed title.
    pub const fn title(self) -> &'static str {
        match self {
            Self::Invalid => "The request is not valid",
            Self::Unauthenticated => "Sign in first",
            Self::Forbidden => "Not allowed",
            Self::NotFound => "Not found",
            Self::AlreadyExists => "It exists already",
            Self::Conflict => "It changed meanwhile",
            Self::Precondition => "Not possible in this state",
            Self::Compacted => "That revision is gone",
            Self::TooLarge => "The body is too large",
            Self::QuotaExceeded => "The tenant's quota is exhausted",
            Self::RateLimited => "Too many requests",
            Self::Internal => "berth failed",
            Self::Unavailable => "Not reachable now",
            Self::Timeout => "No answer in time",
            Self::Unknown => "A problem of a newer version",
        }
    }

    /// Whether the same request may succeed later without a change.
    pub const fn retryable(self) -> bool {
        matches!(self, Self::RateLimited | Self::Unavailable | Self::Timeout)
    }
}

/// A problem as RFC 9457 shapes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Problem {
    /// `urn:berth:error:<kind>`.
    #[serde(rename = "type")]
    pub type_: String,
    /// The kind, for programs.
    pub kind: ErrorKind,
    /// One fixed sentence per kind.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What exactly is wrong, naming the object and the value.
    pub detail: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
    /// JSON pointer of the offending field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// Id under which the brain's log has the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl Problem {
    /// A problem of a kind with its cause.
    pub fn new(kind: ErrorKind, detail: impl Into<String>) -> Self {
        Self {
            type_: format!("urn:berth:error:{}", kind.slug()),
            kind,
            title: kind.title().to_owned(),
            status: kind.status(),
            detail: detail.into(),
            cure: None,
            field: None,
            request_id: None,
        }
    }

    /// Adds what the reader can do.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// Adds the JSON pointer of the field at fault.
    #[must_use]
    pub fn field(mut self, pointer: impl Into<String>) -> Self {
        self.field = Some(pointer.into());
        self
    }

    /// Shorthand for [`ErrorKind::Invalid`].
    pub fn invalid(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, detail)
    }

    /// Shorthand for [`ErrorKind::NotFound`].
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotFound, detail)
    }

    /// Shorthand for [`ErrorKind::Unavailable`].
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, detail)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.detail)?;
        if let Some(cure) = &self.cure {
            write!(f, " ({cure})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs_match_serde_and_are_unique() {
        let mut seen = std::collections::BTreeSet::new();
        for kind in ErrorKind::ALL {
            assert_eq!(
                serde_json::to_string(&kind).unwrap(),
                format!("\"{}\"", kind.slug())
            );
            assert!(seen.insert(kind.slug()));
            assert!((400..600).contains(&kind.status()));
        }
    }
}
