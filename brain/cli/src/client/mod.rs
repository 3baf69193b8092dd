//! The HTTP client: one request in, one typed answer or problem out.
//!
//! Owns addresses, TLS pinning, time limits, paging and retries. The brain's certificate always carries `brain.berth`,
//! so that name is verified whatever host the context names: addresses may change, and the pinned CA signs no other
//! server by that name. Refuses plain HTTP, redirects and proxies: a token goes to the brain or nowhere.

pub mod exec;
pub mod lines;
pub mod login;
pub mod sse;

use std::net::SocketAddr;
use std::time::Duration;

use berth_common::api::Listing;
use berth_common::error::Problem;
use berth_common::id::{Revision, clip};
use berth_common::identity::{self, BRAIN_NAME, IdentityError};
use reqwest::{Method, RequestBuilder, Response, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::context::Target;

const CONNECT: Duration = Duration::from_secs(5);
const ANSWER: Duration = Duration::from_secs(30);
/// No answer of the API is larger; what is larger is not the API.
const MAX_BODY: usize = 64 << 20;
/// Pages followed at most, so that a server that repeats itself can't hold us for ever.
const MAX_PAGES: usize = 10_000;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The brain answered with a problem.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// No connection, or it broke.
    #[error("can't reach the brain at {server}: {why}")]
    Unreachable {
        /// The context's URL.
        server: String,
        /// The innermost cause.
        why: String,
    },
    /// The URL of the brain can't be used.
    #[error("{url:?} is not the address of a brain: {why}")]
    BadUrl {
        /// The URL.
        url: String,
        /// What is wrong.
        why: String,
    },
    /// The CA can't be used.
    #[error("the CA of the context can't be used")]
    Identity(#[from] IdentityError),
    /// An answer that is not of this API.
    #[error("the answer to {what} makes no sense: {why}")]
    Nonsense {
        /// The request.
        what: String,
        /// The parser's complaint.
        why: String,
    },
    /// The client could not be set up.
    #[error("the HTTP client can't be set up")]
    Setup(#[source] reqwest::Error),
}

impl ClientError {
    /// What to do about it.
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Refused(problem) => problem.cure.clone(),
            Self::Unreachable { why, .. } if is_tls(why) => Some(
                "the server is not the brain this context was made for, or its CA changed: run `berth login` again \
                 with the right --ca"
                    .into(),
            ),
            Self::Unreachable { .. } => Some(
                "check that the brain runs (`systemctl status berth-brain` on its host), that the address is right \
                 (`berth context show`) and that no firewall is between"
                    .into(),
            ),
            Self::BadUrl { .. } => Some("write https://HOST:7443".into()),
            Self::Identity(_) => Some("run `berth login` again with the brain's ca.crt".into()),
            Self::Nonsense { .. } => Some("compare the versions with `berth version`".into()),
            Self::Setup(_) => None,
        }
    }
}

fn is_tls(why: &str) -> bool {
    why.contains("certificate") || why.contains("UnknownIssuer") || why.contains("CA is not")
}

/// Host and port of a context's URL.
///
/// # Errors
/// [`ClientError::BadUrl`] unless it is `https://host[:port]`.
pub fn endpoint(server: &str) -> Result<(String, u16), ClientError> {
    let bad = |why: &str| ClientError::BadUrl {
        url: clip(server, 80),
        why: why.to_owned(),
    };
    let url = Url::parse(server).map_err(|error| bad(&error.to_string()))?;
    if url.scheme() != "https" {
        return Err(bad("only https is spoken, since tokens travel in it"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || !url.username().is_empty() {
        return Err(bad(
            "nothing may follow the port, and no user may stand before the host",
        ));
    }
    let host = url.host_str().ok_or_else(|| bad("it names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Ok((host.to_owned(), url.port().unwrap_or(7443)))
}

/// A client of one brain as one caller.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: Url,
    target: Target,
    addresses: Vec<SocketAddr>,
    tls: rustls::ClientConfig,
}

impl Client {
    /// Resolves the brain's host and prepares TLS; connects to nothing yet.
    ///
    /// # Errors
    /// A URL, CA or host name that can't be used.
    pub async fn new(target: Target) -> Result<Self, ClientError> {
        let (host, port) = endpoint(&target.server)?;
        let unreachable = |why: String| ClientError::Unreachable {
            server: target.server.clone(),
            why,
        };
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host.as_str(), port))
            .await
            .map_err(|error| unreachable(error.to_string()))?
            .collect();
        if addresses.is_empty() {
            return Err(unreachable("its name has no address".into()));
        }
        let ca = identity::parse_cert("the CA certificate", &target.ca)?;
        let tls = identity::http_client_tls(&ca)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .resolve_to_addrs(BRAIN_NAME, &addresses)
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT)
            .user_agent(concat!("berth/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(ClientError::Setup)?;
        let base =
            Url::parse(&format!("https://{BRAIN_NAME}:{port}/v1/")).map_err(|error| ClientError::BadUrl {
                url: target.server.clone(),
                why: error.to_string(),
            })?;
        Ok(Self {
            http,
            base,
            target,
            addresses,
            tls,
        })
    }

    /// A path below `/v1`, each part escaped.
    pub fn url(&self, parts: &[&str], query: &[(&str, String)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(parts);
        }
        if !query.is_empty() {
            url.query_pairs_mut()
                .extend_pairs(query.iter().map(|(k, v)| (*k, v.as_str())));
        }
        url
    }

    /// A path below the tenant.
    pub fn tenant_url(&self, parts: &[&str], query: &[(&str, String)]) -> Url {
        let mut all = vec!["tenants", self.target.tenant.as_str()];
        all.extend(parts);
        self.url(&all, query)
    }

    /// A request with the caller's token and no time limit.
    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.http.request(method, url);
        match &self.target.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// The error of a connection that failed.
    pub fn broken(&self, error: &dyn std::error::Error) -> ClientError {
        ClientError::Unreachable {
            server: self.target.server.clone(),
            why: innermost(error),
        }
    }

    /// Sends, once more after a connection error if `again` is set, and turns problems into errors.
    ///
    /// # Errors
    /// The brain's problem, or why there is no answer.
    pub async fn send(&self, request: RequestBuilder, again: bool) -> Result<Response, ClientError> {
        let second = if again { request.try_clone() } else { None };
        let response = match (request.send().await, second) {
            (Err(error), Some(second)) if error.is_connect() || error.is_request() => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                second.send().await
            }
            (first, _) => first,
        }
        .map_err(|error| self.broken(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let what = response.url().path().to_owned();
        let body = self.body(response).await?;
        Err(problem_of(&what, status.as_u16(), &body))
    }

    async fn body(&self, mut response: Response) -> Result<Vec<u8>, ClientError> {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(&error))? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(ClientError::Nonsense {
                    what: response.url().path().to_owned(),
                    why: format!("more than {MAX_BODY} bytes"),
                });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    /// One exchange of JSON within 30 s.
    ///
    /// # Errors
    /// As [`Client::send`], or an answer of another form.
    pub async fn call<B: Serialize, T: DeserializeOwned>(
        &self,
        method: Method,
        url: Url,
        body: Option<&B>,
    ) -> Result<T, ClientError> {
        let what = format!("{method} {}", url.path());
        let again = matches!(method, Method::GET | Method::PUT | Method::DELETE);
        let mut request = self.request(method, url).timeout(ANSWER);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = self.send(request, again).await?;
        let body = self.body(response).await?;
        // 204 reads as JSON null, so that `()` can be asked for.
        let text: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(text).map_err(|error| ClientError::Nonsense {
            what,
            why: error.to_string(),
        })
    }

    /// GET.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn get<T: DeserializeOwned>(&self, url: Url) -> Result<T, ClientError> {
        self.call::<(), T>(Method::GET, url, None).await
    }

    /// POST without a body.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn post<T: DeserializeOwned>(&self, url: Url) -> Result<T, ClientError> {
        self.call::<(), T>(Method::POST, url, None).await
    }

    /// Every page of a list, with the revision of the first.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub async fn list<T: DeserializeOwned>(&self, url: Url) -> Result<(Vec<T>, Revision), ClientError> {
        let mut items = Vec::new();
        let mut after: Option<String> = None;
        let mut revision = None;
        for _ in 0..MAX_PAGES {
            let mut page = url.clone();
            page.query_pairs_mut().append_pair("limit", "1000");
            if let Some(after) = &after {
                page.query_pairs_mut().append_pair("after", after);
            }
            let listing: Listing<T> = self.get(page).await?;
            let first = *revision.get_or_insert(listing.revision);
            items.extend(listing.items);
            if listing.next.is_none() || listing.next == after {
                return Ok((items, first));
            }
            after = listing.next;
        }
        Err(ClientError::Nonsense {
            what: url.path().to_owned(),
            why: "the list never ends".into(),
        })
    }
}

/// The problem in an error's body, or one made up from the status.
pub fn problem_of(what: &str, status: u16, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<Problem>(body) {
        Ok(problem) => ClientError::Refused(Box::new(problem)),
        Err(_) => ClientError::Nonsense {
            what: what.to_owned(),
            why: format!("status {status} without problem details; is this a berth brain?"),
        },
    }
}

/// The last cause in a chain: the one that names what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_https_and_bare() {
        assert_eq!(endpoint("https://a.example:1").unwrap(), ("a.example".into(), 1));
        assert_eq!(endpoint("https://[::1]/").unwrap(), ("::1".into(), 7443));
        for bad in [
            "http://a",
            "a:7443",
            "https://a/x",
            "https://u@a",
            "https://a?q",
            "",
        ] {
            assert!(matches!(endpoint(bad), Err(ClientError::BadUrl { .. })), "{bad}");
        }
    }

    #[test]
    fn an_error_without_problem_details_is_told_apart() {
        let error = problem_of("/v1/x", 502, b"<html>");
        assert!(error.to_string().contains("status 502"), "{error}");
        let body = serde_json::to_vec(&Problem::not_found("no x")).unwrap();
        assert!(matches!(problem_of("/v1/x", 404, &body), ClientError::Refused(_)));
    }
}
