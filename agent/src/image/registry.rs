//! A registry, as a tenant sees it: manifests and blobs over the distribution protocol.
//!
//! Owns requests, tokens, redirects and time limits. Refuses to retry (the caller knows how much is done already), to
//! hold a blob in memory, and to send a tenant's credentials to another host. Plain reqwest rather than a registry
//! client: those hide the redirects, the stall and the byte ranges that this depends on.

use std::time::Duration;

use berth_common::model::{Digest, ImageRef, RegistryCredential};
use bytes::Bytes;
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, HeaderValue, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use reqwest::{Response, StatusCode, Url};

use super::auth::{Challenge, may_follow, may_send_password, parse_challenge, same_origin};
use super::manifest::{ACCEPT as MANIFESTS, MAX_DOCUMENT};

const MAX_REDIRECTS: usize = 5;
const MAX_TOKEN: u64 = 256 << 10;

/// Why a source did not give what was asked, without saying which image: the caller adds that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    /// May pass.
    #[error("{0}")]
    Passing(String),
    /// Access is refused.
    #[error("access denied")]
    Denied,
    /// It has no such thing.
    #[error("not found")]
    NotFound,
    /// What it says is wrong; it will stay wrong.
    #[error("{0}")]
    Wrong(String),
}

/// One repository of one registry with one tenant's credentials.
pub(super) struct Registry {
    http: reqwest::Client,
    base: Url,
    repository: String,
    credential: Option<RegistryCredential>,
    authorization: Mutex<Option<HeaderValue>>,
    stall: Duration,
}

/// A blob on its way.
pub(super) struct Download {
    response: Response,
    /// Bytes to drop first: the server began at 0 although asked for a later offset.
    surplus: u64,
    stall: Duration,
}

impl Download {
    /// The next bytes, None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        loop {
            let chunk = within(self.stall, self.response.chunk()).await?;
            let Some(mut chunk) = chunk else {
                return Ok(None);
            };
            if self.surplus > 0 {
                let cut = self.surplus.min(chunk.len() as u64);
                self.surplus -= cut;
                chunk = chunk.split_off(cut as usize);
            }
            if !chunk.is_empty() {
                return Ok(Some(chunk));
            }
        }
    }
}

async fn within<T>(limit: Duration, call: impl Future<Output = reqwest::Result<T>>) -> Result<T, Fault> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Fault::Passing(words(error))),
        Err(_) => Err(Fault::Passing(format!(
            "it sent nothing for {} s",
            limit.as_secs_f32()
        ))),
    }
}

/// The innermost cause, without the address: that may hold a signature in its query.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let mut text = berth_common::id::clip(&cause.to_string(), 200);
    if text.contains("UnknownIssuer") {
        text.push_str("; the node does not trust who signed its certificate: add that authority to the node's ca-certificates");
    }
    text
}

async fn bounded(mut response: Response, stall: Duration, limit: u64) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    while let Some(chunk) = within(stall, response.chunk()).await? {
        if (body.len() + chunk.len()) as u64 > limit {
            return Err(Fault::Wrong(format!("its answer is longer than {limit} bytes")));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl Registry {
    /// For the repository of `reference`; `plain` means http instead of https.
    pub(super) fn new(
        http: reqwest::Client,
        reference: &ImageRef,
        credential: Option<&RegistryCredential>,
        plain: bool,
        stall: Duration,
    ) -> Result<Self, Fault> {
        // Docker's own name and its server's differ.
        let host = match reference.registry() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            other => other,
        };
        let scheme = if plain { "http" } else { "https" };
        let base = Url::parse(&format!("{scheme}://{host}/v2/"))
            .map_err(|_| Fault::Wrong(format!("{host} is no host name")))?;
        let credential = credential
            .filter(|credential| credential.registry == reference.registry())
            .cloned();
        Ok(Self {
            http,
            base,
            repository: reference.repository().to_owned(),
            credential,
            authorization: Mutex::new(None),
            stall,
        })
    }

    /// A manifest or index by tag or digest: its bytes, verified where a digest is known.
    pub(super) async fn manifest(&self, name: &str, expected: Option<Digest>) -> Result<Vec<u8>, Fault> {
        let url = self.url("manifests", name)?;
        let response = self.fetch(url, Some(MANIFESTS), None).await?;
        let claimed = response.headers().get("docker-content-digest");
        let claimed = claimed
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.parse::<Digest>().ok());
        let body = bounded(response, self.stall, MAX_DOCUMENT).await?;
        let actual = Digest::of(&body);
        match expected.or(claimed) {
            Some(digest) if digest != actual => Err(Fault::Wrong(format!(
                "the manifest should have the digest {digest} but has {actual}"
            ))),
            _ => Ok(body),
        }
    }

    /// A blob's bytes from `offset` on.
    pub(super) async fn blob(&self, digest: Digest, offset: u64) -> Result<Download, Fault> {
        let url = self.url("blobs", &digest.to_string())?;
        let response = self.fetch(url, None, Some(offset).filter(|o| *o > 0)).await?;
        let surplus = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let from = response.headers().get(CONTENT_RANGE);
                let from = from.and_then(|value| value.to_str().ok());
                let from = from
                    .and_then(|value| value.strip_prefix("bytes "))
                    .and_then(|value| value.split('-').next())
                    .and_then(|value| value.parse::<u64>().ok());
                if from != Some(offset) {
                    return Err(Fault::Passing(
                        "it answered another range than was asked for".to_owned(),
                    ));
                }
                0
            }
            _ => offset,
        };
        Ok(Download {
            response,
            surplus,
            stall: self.stall,
        })
    }

    fn url(&self, kind: &str, name: &str) -> Result<Url, Fault> {
        self.base
            .join(&format!("{}/{kind}/{name}", self.repository))
            .map_err(|error| Fault::Wrong(error.to_string()))
    }

    async fn fetch(&self, url: Url, accept: Option<&str>, offset: Option<u64>) -> Result<Response, Fault> {
        let response = self.follow(url.clone(), accept, offset).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return judge(response);
        }
        // Only the registry itself may ask; what it redirects to gets no second try.
        if !same_origin(response.url(), &self.base) {
            return Err(Fault::Denied);
        }
        self.sign_in(&response).await?;
        judge(self.follow(url, accept, offset).await?)
    }

    async fn follow(
        &self,
        mut url: Url,
        accept: Option<&str>,
        offset: Option<u64>,
    ) -> Result<Response, Fault> {
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = accept {
                request = request.header(ACCEPT, accept);
            }
            if let Some(offset) = offset {
                request = request.header(RANGE, format!("bytes={offset}-"));
            }
            if same_origin(&url, &self.base)
                && let Some(value) = self.authorization.lock().clone()
            {
                request = request.header(AUTHORIZATION, value);
            }
            let response = within(self.stall, request.send()).await?;
            let target = match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => response.headers().get(LOCATION),
                _ => return Ok(response),
            };
            let target = target
                .and_then(|value| value.to_str().ok())
                .and_then(|value| url.join(value).ok())
                .ok_or_else(|| Fault::Wrong("it redirects to nowhere".to_owned()))?;
            if !may_follow(&url, &target) {
                let host = target.host_str().unwrap_or_default();
                return Err(Fault::Wrong(format!(
                    "it redirects to {}://{}, which is not allowed",
                    target.scheme(),
                    berth_common::id::clip(host, 100)
                )));
            }
            url = target;
        }
        Err(Fault::Wrong("it redirects in circles".to_owned()))
    }

    async fn sign_in(&self, response: &Response) -> Result<(), Fault> {
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter();
        let challenge = challenges
            .filter_map(|value| value.to_str().ok())
            .find_map(parse_challenge)
            .ok_or(Fault::Denied)?;
        let header = match challenge {
            Challenge::Basic => {
                let credential = self.credential.as_ref().ok_or(Fault::Denied)?;
                let pair = format!("{}:{}", credential.username, credential.password);
                use base64::Engine as _;
                format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
            }
            Challenge::Bearer { realm, service } => {
                format!("Bearer {}", self.token(&realm, service.as_deref()).await?)
            }
        };
        let mut value = HeaderValue::from_str(&header)
            .map_err(|_| Fault::Wrong("its token can't be sent in a header".to_owned()))?;
        value.set_sensitive(true);
        *self.authorization.lock() = Some(value);
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<String, Fault> {
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let mut url = Url::parse(realm)
            .map_err(|_| Fault::Wrong("the address of its token service is malformed".to_owned()))?;
        if !may_follow(&self.base, &url) {
            return Err(Fault::Wrong(
                "its token service has an address that is not allowed".to_owned(),
            ));
        }
        {
            let mut query = url.query_pairs_mut();
            if let Some(service) = service {
                query.append_pair("service", service);
            }
            query.append_pair("scope", &format!("repository:{}:pull", self.repository));
        }
        let mut request = self.http.get(url.clone());
        if let Some(credential) = &self.credential {
            if !may_send_password(&self.base, &url) {
                let host = url.host_str().unwrap_or_default();
                return Err(Fault::Wrong(format!(
                    "it wants the password sent to {}, which is another host",
                    berth_common::id::clip(host, 100)
                )));
            }
            request = request.basic_auth(&credential.username, Some(&credential.password));
        }
        let response = judge(within(self.stall, request.send()).await?)?;
        let body = bounded(response, self.stall, MAX_TOKEN).await?;
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| Fault::Passing("its token service answers no token".to_owned()))?;
        answer
            .token
            .or(answer.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Fault::Passing("its token service answers no token".to_owned()))
    }
}

fn judge(response: Response) -> Result<Response, Fault> {
    match response.status().as_u16() {
        200 | 206 => Ok(response),
        401 | 403 => Err(Fault::Denied),
        404 | 410 => Err(Fault::NotFound),
        // A redirect of the token service would carry the password away.
        300..=399 => Err(Fault::Wrong("it redirects where it must not".to_owned())),
        other => Err(Fault::Passing(format!("it answers {other}"))),
    }
}
