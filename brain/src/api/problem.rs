//! Refusals on the wire, and bodies coming in.
//!
//! Owns the one form in which an error leaves the API: `application/problem+json` with the request's id, also for what the
//! framework refuses by itself (unknown path, wrong method, body too large, a panic). Refuses to echo hostile input whole.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequest, Request};
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use berth_common::error::{ErrorKind, Problem};
use berth_common::id::clip;
use berth_common::model::SpecError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Media type of problems.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Largest JSON body, bytes.
pub const MAX_JSON: usize = 1 << 20;
/// Most characters of an error text that may come from the request.
const MAX_ECHO: usize = 300;
const REQUEST_ID: &str = "x-request-id";

/// A refused request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError(pub Problem);

impl From<Problem> for ApiError {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<SpecError> for ApiError {
    fn from(error: SpecError) -> Self {
        Self(spec_problem(&error))
    }
}

/// A field of a spec at fault, as a problem.
pub fn spec_problem(error: &SpecError) -> Problem {
    let name = error.field.trim_start_matches('/').replace('/', ".");
    Problem::invalid(clip(&format!("{name}: {}", error.why), MAX_ECHO)).field(error.field)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, encode(&self.0)).into_response();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if self.0.kind == ErrorKind::Unauthenticated {
            headers.insert(
                "www-authenticate",
                HeaderValue::from_static("Bearer realm=\"berth\""),
            );
        }
        if self.0.kind.retryable() {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

fn encode(problem: &Problem) -> Vec<u8> {
    serde_json::to_vec(problem).unwrap_or_else(|_| b"{}".to_vec())
}

/// The id of the request at hand, for logs; also in the `x-request-id` header of the answer.
#[derive(Debug, Clone)]
pub struct RequestId(pub String);

/// Outermost layer: gives every request an id and every refusal the one form.
pub async fn stamp(mut request: Request, next: Next) -> Response {
    let id = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok())
        .filter(|id| {
            (8..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
        .map_or_else(|| hex::encode(rand::random::<[u8; 8]>()), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let path = clip(request.uri().path(), 200);
    let mut response = next.run(request).await;
    let status = response.status();
    if status.is_client_error() || status.is_server_error() {
        response = shape(response, &id, &format!("{method} {path}")).await;
        if status.is_server_error() {
            tracing::warn!(request = %id, %method, %path, status = status.as_u16(), "request failed");
        }
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

async fn shape(response: Response, id: &str, what: &str) -> Response {
    let (mut parts, body) = response.into_parts();
    let mut problem = match parts.extensions.remove::<ApiError>() {
        Some(ApiError(problem)) => problem,
        None => {
            let text = to_bytes(body, 4096).await.unwrap_or_default();
            bare(parts.status, &String::from_utf8_lossy(&text), what)
        }
    };
    problem.request_id = Some(id.to_owned());
    parts.headers.remove(CONTENT_LENGTH);
    parts
        .headers
        .insert(CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
    Response::from_parts(parts, Body::from(encode(&problem)))
}

/// A problem for what the framework refused by itself. The HTTP status stays, as HTTP has more of them than we have kinds.
fn bare(status: StatusCode, text: &str, what: &str) -> Problem {
    let text = clip(text.trim(), MAX_ECHO);
    let said = |fallback: &str| {
        if text.is_empty() {
            fallback.to_owned()
        } else {
            text.clone()
        }
    };
    let mut problem = match status {
        StatusCode::NOT_FOUND => Problem::not_found(format!("{what}: the API has no such path"))
            .cure("GET /v1/openapi.json lists every path"),
        StatusCode::METHOD_NOT_ALLOWED => {
            Problem::invalid(format!("{what}: this path does not take that method"))
                .cure("the Allow header of this answer lists those it takes")
        }
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        StatusCode::UNAUTHORIZED => Problem::new(ErrorKind::Unauthenticated, said("no token")),
        StatusCode::FORBIDDEN => Problem::new(ErrorKind::Forbidden, said("not allowed")),
        StatusCode::TOO_MANY_REQUESTS => Problem::new(ErrorKind::RateLimited, said("too many requests")),
        StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => {
            Problem::new(ErrorKind::Timeout, said("no answer in time"))
        }
        StatusCode::SERVICE_UNAVAILABLE => Problem::unavailable(said("not available now")),
        s if s.is_server_error() => Problem::new(ErrorKind::Internal, format!("{what} failed inside berth"))
            .cure("the brain's log has more under the request id"),
        _ => Problem::invalid(said("the request is malformed")),
    };
    problem.status = status.as_u16();
    problem
}

fn too_large() -> Problem {
    Problem::new(
        ErrorKind::TooLarge,
        format!("the body exceeds {} KiB", MAX_JSON >> 10),
    )
    .cure("send less; images go to POST /v1/tenants/{tenant}/images")
}

/// A JSON body, in or out. In, it checks the content type and the size, and names the field at fault.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = ApiError;
    async fn from_request(request: Request, _state: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(Problem::invalid("the body is not declared to be JSON")
                .cure("send the header Content-Type: application/json")
                .into());
        }
        let body = to_bytes(request.into_body(), MAX_JSON).await.map_err(|error| {
            // The limit is the only error with a source of that type; all others mean the client went away.
            let limit = std::error::Error::source(&error).is_some_and(|s| s.to_string().contains("limit"));
            if limit {
                too_large()
            } else {
                Problem::invalid("the body ended early")
            }
        })?;
        Ok(Self(parse(&body)?))
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Parses a JSON body; the problem carries the JSON pointer of the field at fault.
///
/// # Errors
/// `invalid`.
pub fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, Problem> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let pointer = pointer(error.path());
        let problem = Problem::invalid(clip(&error.inner().to_string(), MAX_ECHO));
        match pointer {
            Some(pointer) => problem.field(pointer),
            None => problem,
        }
    })?;
    json.end()
        .map_err(|error| Problem::invalid(clip(&error.to_string(), MAX_ECHO)))?;
    Ok(value)
}

fn pointer(path: &serde_path_to_error::Path) -> Option<String> {
    use serde_path_to_error::Segment;
    let mut out = String::new();
    for segment in path {
        out.push('/');
        match segment {
            Segment::Seq { index } => out.push_str(&index.to_string()),
            Segment::Map { key } => out.push_str(&key.replace('~', "~0").replace('/', "~1")),
            Segment::Enum { variant } => out.push_str(variant),
            Segment::Unknown => return None,
        }
    }
    (!out.is_empty()).then(|| clip(&out, 120))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::model::ServiceSpec;

    fn refused(text: &str) -> Problem {
        parse::<ServiceSpec>(&Bytes::copy_from_slice(text.as_bytes())).unwrap_err()
    }

    #[test]
    fn fields_are_named_and_messages_are_short() {
        let table = [
            (
                r#"{"name":"web","image":"nginx","replicas":-1}"#,
                Some("/replicas"),
            ),
            (
                r#"{"name":"web","image":"nginx","env":{"a/b":3}}"#,
                Some("/env/a~1b"),
            ),
            (r#"{"name":"web","image":"nginx","nope":1}"#, Some("/nope")),
            (r#"{"name":"web","image":"nginx"} x"#, None),
            (r#"{"name":"web""#, None),
        ];
        for (text, field) in table {
            assert_eq!(refused(text).field.as_deref(), field, "{text}");
        }
        let long = format!(r#"{{"name":"web","image":"nginx","{}":1}}"#, "k".repeat(10_000));
        let problem = refused(&long);
        assert!(serde_json::to_vec(&problem).unwrap().len() < 1_500);
        refused(&format!("{}{}", "[".repeat(100_000), "]".repeat(100_000)));
    }
}
