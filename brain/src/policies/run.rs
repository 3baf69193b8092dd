//! Asking policies: the one effect here. Owns the HTTP clients; each question has a deadline, each answer a bound, and what a policy sends
//! is nobody's but [`Verdict::read`]'s to judge. Nothing waits for this loop.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use berth_common::id::Name;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use rustls::crypto::ring;
use tokio::task::JoinSet;

use super::verdict::MAX_ANSWER;
use super::{Ask, PolicySettings, Verdict, request};
use crate::cluster::Cluster;
use crate::outlook::Parts;

/// Why a policy can't be asked at all.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file that its settings name.
    #[error(
        "policy {policy}: {path} can't be read; make it readable to the brain, or correct its name in the settings"
    )]
    File {
        /// Whose.
        policy: Name,
        /// Which.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: io::Error,
    },
    /// What such a file holds.
    #[error("policy {policy}: {path} {why}")]
    Content {
        /// Whose.
        policy: Name,
        /// Which.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// TLS can't be set up.
    #[error("TLS for policy {policy}")]
    Tls {
        /// Whose.
        policy: Name,
        /// The library's complaint.
        #[source]
        source: rustls::Error,
    },
    /// The client can't be made.
    #[error("the HTTP client of policy {policy}")]
    Client {
        /// Whose.
        policy: Name,
        /// The library's complaint.
        #[source]
        source: reqwest::Error,
    },
}

/// How one policy is reached.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
    timeout: Duration,
}

/// How each is reached.
pub struct Clients(BTreeMap<Name, Client>);

impl Clients {
    /// Clients of these policies; reads their files.
    ///
    /// # Errors
    /// [`PolicyError`], naming policy and file.
    pub fn open(policies: &[PolicySettings]) -> Result<Self, PolicyError> {
        let all = policies
            .iter()
            .map(|one| Ok((one.name.clone(), Client::open(one)?)));
        Ok(Self(all.collect::<Result<_, _>>()?))
    }

    /// Whether there is nobody to ask.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn read(policy: &Name, path: &PathBuf) -> Result<String, PolicyError> {
    fs::read_to_string(path).map_err(|source| PolicyError::File {
        policy: policy.clone(),
        path: path.clone(),
        source,
    })
}

impl Client {
    fn open(settings: &PolicySettings) -> Result<Self, PolicyError> {
        let policy = &settings.name;
        let wrong = |path: &PathBuf, why: String| PolicyError::Content {
            policy: policy.clone(),
            path: path.clone(),
            why,
        };
        let client = |source| PolicyError::Client {
            policy: policy.clone(),
            source,
        };
        let tls = |source| PolicyError::Tls {
            policy: policy.clone(),
            source,
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(path) = &settings.token_file {
            let token = read(policy, path)?;
            let mut value = HeaderValue::from_str(&format!("Bearer {}", token.trim())).map_err(|_| {
                wrong(
                    path,
                    "holds no token: write one line of printable characters into it".to_owned(),
                )
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &settings.ca_file {
            let pem = read(policy, path)?;
            let ca = berth_common::identity::parse_cert("it", &pem)
                .map_err(|error| wrong(path, format!("holds no certificate in PEM form: {error}")))?;
            roots.add(ca).map_err(|error| {
                wrong(
                    path,
                    format!("holds a certificate that is no authority's: {error}"),
                )
            })?;
        }
        let tls = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            // A connection from before a policy's restart would make its first answer a failure.
            .pool_max_idle_per_host(0)
            .redirect(reqwest::redirect::Policy::none())
            .default_headers(headers)
            .user_agent(concat!("berth-brain/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(client)?;
        Ok(Self {
            http,
            url: settings.url.clone(),
            timeout: Duration::from_millis(settings.timeout_ms.into()),
        })
    }

    /// Sends a question and takes the whole answer, within the time that it has.
    async fn ask(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        let exchange = async {
            let sent = self.http.post(&self.url).body(question).send().await;
            let mut answer = sent.map_err(words)?;
            if answer.status() != reqwest::StatusCode::OK {
                return Err(format!("it answered {}", answer.status().as_u16()));
            }
            let mut body = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(words)? {
                if body.len() + chunk.len() > MAX_ANSWER {
                    return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
                }
                body.extend_from_slice(&chunk);
            }
            Ok(body)
        };
        match tokio::time::timeout(self.timeout, exchange).await {
            Ok(result) => result,
            Err(_) => Err(format!(
                "it did not answer within {} ms",
                self.timeout.as_millis()
            )),
        }
    }
}

/// The innermost cause, without the address, which tenants need not see.
fn words(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    format!(
        "it can't be reached: {}",
        berth_common::id::clip(&cause.to_string(), 200)
    )
}

/// Asks whom plans wait for, until it is dropped.
pub async fn run(cluster: Cluster, clients: Clients) {
    let mut under_way = JoinSet::new();
    let mut asked: HashMap<tokio::task::Id, Ask> = HashMap::new();
    loop {
        let mut plan = BTreeSet::new();
        loop {
            let next = cluster.next_ask();
            plan.extend(next.plan);
            let Some(ask) = next.ask else { break };
            let client = clients.0.get(&ask.policy).cloned();
            let task = under_way.spawn(put(cluster.clone(), client, ask.clone()));
            asked.insert(task.id(), ask);
        }
        if !plan.is_empty() {
            cluster.plan_again(plan, Vec::new()).await;
        }
        let ended = tokio::select! {
            () = cluster.wanted() => None,
            Some(ended) = under_way.join_next_with_id(), if !under_way.is_empty() => Some(ended),
        };
        let (id, result) = match ended {
            None => continue,
            Some(Ok(done)) => done,
            Some(Err(error)) => (error.id(), Err(format!("asking it failed: {error}"))),
        };
        let Some(ask) = asked.remove(&id) else { continue };
        let event = cluster.heard_of(&ask, result);
        cluster
            .plan_again(BTreeSet::from([ask.service.id]), event.into_iter().collect())
            .await;
    }
}

/// Puts one question.
async fn put(cluster: Cluster, client: Option<Client>, ask: Ask) -> Result<(Verdict, u32), String> {
    let client = client.ok_or_else(|| "it is not in the brain's settings".to_owned())?;
    let service = Arc::clone(&ask.service);
    // Writing thousands of nodes out is work for another thread.
    let written = tokio::task::spawn_blocking(move || {
        let state = cluster.snapshot();
        let nodes = request::nodes(&state, &service);
        let parts = cluster.load_parts(nodes.iter().map(|node| node.id));
        let expected = parts.into_iter().map(|parts| parts.map(Parts::shown)).collect();
        let question = request::Question::new(&state, &service, &nodes, expected)?;
        let text = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
        Ok::<_, String>((request::names(&nodes), text))
    });
    let (names, question) = written.await.map_err(|error| error.to_string())??;
    let answer = client.ask(question).await?;
    Verdict::read(ask.policy, &answer, &names)
}
