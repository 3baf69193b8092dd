//! Joining: a one-time secret and a certificate request against a node's identity, in one exchange.
//!
//! The token is used up in the same transaction that makes the node, so that whoever replays it comes too late, even when
//! the brain dies in between. Secrets are compared in constant time and appear in no message and no log.

use std::time::Duration;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{IdError, Name, NodeId, TokenId};
use berth_common::model::{NodeKind, NodeRecord, UnixMillis};
use berth_common::protocol::{CodecError, JoinReply, JoinRequest, read_frame, write_frame};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::hello::bounded;
use super::server::{REFUSED, Shared};
use crate::ca::CaError;
use crate::cluster::{Change, JoinTokenRecord, State};
use crate::controllers::NewEvent;

/// Largest request, bytes.
const MAX_REQUEST: usize = 64 << 10;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Time that the joiner has to read its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Hex digits of a secret.
const SECRET_LEN: usize = 64;

/// Serves one joiner.
pub(super) async fn serve(shared: &Shared, connection: &quinn::Connection) {
    let remote = connection.remote_address();
    let request = tokio::time::timeout(REQUEST_TIMEOUT, async {
        let (send, mut receive) = connection.accept_bi().await.map_err(std::io::Error::from)?;
        let request = read_frame::<JoinRequest>(&mut receive, MAX_REQUEST).await;
        Ok::<_, CodecError>((send, request))
    })
    .await;
    let (mut send, request) = match request {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return tracing::debug!(%remote, %error, "a joiner went away"),
        Err(_) => return connection.close(REFUSED.into(), b"no join request in time"),
    };
    let reply = match request {
        Ok(request) => admit(shared, request).await,
        Err(error) => Err(
            Problem::invalid(format!("the join request can't be read: {error}"))
                .cure("use a berth-agent of the brain's version"),
        ),
    };
    let reply = reply.unwrap_or_else(|problem| {
        tracing::warn!(%remote, kind = problem.kind.slug(), detail = problem.detail, "a join was refused");
        JoinReply::Problem { problem }
    });
    let answered = async {
        write_frame(&mut send, &reply).await?;
        let _ = send.finish();
        let _ = send.stopped().await;
        // The joiner closes once it has read; closing first could overtake the answer.
        connection.closed().await;
        Ok::<_, CodecError>(())
    };
    if !matches!(tokio::time::timeout(ANSWER_TIMEOUT, answered).await, Ok(Ok(()))) {
        tracing::debug!(%remote, "a joiner did not take its answer");
    }
    connection.close(0u32.into(), b"done");
}

async fn admit(shared: &Shared, request: JoinRequest) -> Result<JoinReply, Problem> {
    let (token, hash) = split(&request.secret)?;
    // Judged here already, so that guesses don't keep the writer busy; what counts is the judgement below.
    judge(
        &shared.cluster.snapshot(),
        token,
        &hash,
        shared.cluster.now().wall,
    )?;
    let node = NodeId::random();
    let (cert_pem, key_fingerprint) = shared
        .ca
        .issue_node(&request.csr_pem, node, shared.cluster.now().wall)
        .map_err(unsigned)?;
    let facts = bounded(request.facts);
    let wish = match request.name {
        Some(name) => name,
        None => host_name(&facts.hostname)?,
    };
    let propose = move |state: &State, now: crate::controllers::Now| {
        let token = judge(state, token, &hash, now.wall)?;
        if let NodeKind::Private { tenant } = token.kind
            && !state.tenants.contains_key(&tenant)
        {
            return Err(Problem::new(
                ErrorKind::Precondition,
                "the tenant that this token makes a private node for no longer exists",
            )
            .cure("make a new token: berth node token"));
        }
        if let Some(pool) = token.pool.as_ref().filter(|pool| !state.has_pool(pool)) {
            let detail = format!("the pool {pool}, which this token makes a node for, no longer exists");
            return Err(Problem::new(ErrorKind::Precondition, detail)
                .cure(format!("make a new token, or the pool: berth pool set {pool}")));
        }
        let name = free_name(&wish, |name| state.node_names.contains_key(name));
        let new = NodeRecord::new(node, name.clone(), token.kind, facts);
        let record = NodeRecord {
            labels: token.labels.clone(),
            taints: token.taints.clone(),
            pool: token.pool.clone().unwrap_or_else(|| new.pool.clone()),
            key_fingerprint,
            joined_at: now.wall,
            ..new
        };
        let event = NewEvent {
            kind: "node-joined",
            tenant: None,
            subject: format!("node {name}"),
            text: format!("Node {name} ({}) joined.", record.facts.hostname),
        };
        let changes = vec![Change::DeleteJoinToken(token.id), Change::PutNode(record)];
        Ok((changes, vec![event], name))
    };
    let (name, _) = shared.cluster.write(propose).await?;
    tracing::info!(%node, %name, "a node joined");
    Ok(JoinReply::Joined {
        node,
        name,
        cert_pem,
        ca_pem: shared.ca.ca_pem().to_owned(),
        addresses: shared.settings.addresses.clone(),
    })
}

/// What a certificate that could not be made means to its requester.
pub(super) fn unsigned(error: CaError) -> Problem {
    match error {
        CaError::Request(why) => Problem::invalid(format!("the certificate request can't be used: {why}"))
            .cure("use a berth-agent of the brain's version"),
        error => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a certificate can't be made"
            );
            Problem::new(
                ErrorKind::Internal,
                "the brain can't make a certificate; its log says why",
            )
        }
    }
}

/// The token's id and the hash of the secret, from `<id>.<64 hex digits>`.
fn split(text: &str) -> Result<(TokenId, String), Problem> {
    let parts = text
        .split_once('.')
        .filter(|(_, secret)| secret.len() == SECRET_LEN && secret.bytes().all(|b| b.is_ascii_hexdigit()))
        .and_then(|(id, secret)| Some((id.parse().ok()?, hex::encode(Sha256::digest(secret)))));
    parts.ok_or_else(|| {
        Problem::new(ErrorKind::Unauthenticated, "the join token's secret is damaged")
            .cure("copy the whole line that `berth node token` printed")
    })
}

/// The token, if it may be used at `now`. Unknown, used and wrong are told alike.
fn judge<'a>(
    state: &'a State,
    id: TokenId,
    hash: &str,
    now: UnixMillis,
) -> Result<&'a JoinTokenRecord, Problem> {
    let again = "make a new one: berth node token";
    let token = state
        .join_tokens
        .get(&id)
        .filter(|token| bool::from(token.secret_hash.as_bytes().ct_eq(hash.as_bytes())));
    let Some(token) = token else {
        return Err(Problem::new(
            ErrorKind::Unauthenticated,
            "this join token is not known: it was used already, was revoked, or is another brain's",
        )
        .cure(again));
    };
    if token.expires_at <= now {
        return Err(Problem::new(ErrorKind::Unauthenticated, "this join token has expired").cure(again));
    }
    Ok(token)
}

/// A node's name from its host's: the first label in lower case, everything else that names can't have as `-`.
fn host_name(hostname: &str) -> Result<Name, Problem> {
    let label = hostname
        .split('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let text: String = label
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(50)
        .collect();
    let text = text.trim_matches('-');
    text.parse()
        .or_else(|_| format!("node-{text}").trim_end_matches('-').parse())
        .map_err(|error: IdError| {
            Problem::invalid(error.to_string()).cure("choose a name: berth-agent join --name")
        })
}

/// `wish`, or the first of `wish-2`, `wish-3` … that is free.
fn free_name(wish: &Name, taken: impl Fn(&Name) -> bool) -> Name {
    if !taken(wish) {
        return wish.clone();
    }
    // Room for the number within the 63 characters of a name.
    let stem: String = wish.as_str().chars().take(52).collect();
    let stem = stem.trim_end_matches('-');
    (2u64..)
        .filter_map(|n| format!("{stem}-{n}").parse().ok())
        .find(|name| !taken(name))
        .unwrap_or_else(|| wish.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_hosts() {
        let table = [
            ("h1", "h1"),
            ("Web-01.example.org", "web-01"),
            ("42", "node-42"),
            ("my_host", "my-host"),
            ("-x-", "x"),
            ("", "node"),
            ("ä.b", "node"),
            (&"x".repeat(200), &"x".repeat(50)),
        ];
        for (host, name) in table {
            assert_eq!(host_name(host).unwrap().as_str(), name, "{host:?}");
        }
    }

    #[test]
    fn taken_names_are_numbered() {
        let taken = ["h1", "h1-2"];
        let free =
            |wish: &str| free_name(&wish.parse().unwrap(), |n| taken.contains(&n.as_str())).to_string();
        assert_eq!(free("h1"), "h1-3");
        assert_eq!(free("h2"), "h2");
        let long: Name = "x".repeat(63).parse().unwrap();
        let other = free_name(&long, |n| *n == long);
        assert_eq!(other.as_str(), format!("{}-2", "x".repeat(52)));
    }

    #[test]
    fn a_token_is_good_until_it_expires_and_for_its_secret_only() {
        let (id, hash) = (TokenId::from_bytes([3; 10]), "a".repeat(64));
        let mut state = State::default();
        let record = JoinTokenRecord {
            id,
            secret_hash: hash.clone(),
            kind: NodeKind::Shared,
            labels: Default::default(),
            taints: Vec::new(),
            pool: None,
            expires_at: UnixMillis(1_000),
        };
        state.apply(vec![Change::PutJoinToken(record)], berth_common::id::Revision(1));
        assert!(judge(&state, id, &hash, UnixMillis(999)).is_ok());
        let expired = judge(&state, id, &hash, UnixMillis(1_000)).unwrap_err();
        assert!(expired.detail.contains("expired") && expired.cure.is_some());
        let wrong = judge(&state, id, &"b".repeat(64), UnixMillis(1_000)).unwrap_err();
        let unknown = judge(&state, TokenId::from_bytes([4; 10]), &hash, UnixMillis(0)).unwrap_err();
        assert_eq!(
            wrong, unknown,
            "a guess learns nothing, not even that the token has expired"
        );
    }

    #[test]
    fn secrets_and_their_shapes() {
        let id = TokenId::from_bytes([3; 10]);
        let secret = "ab".repeat(32);
        assert_eq!(split(&format!("{id}.{secret}")).unwrap().0, id);
        for bad in [
            "",
            ".",
            &format!("{id}."),
            &format!("{id}.{}", &secret[1..]),
            &format!("x.{secret}"),
        ] {
            let problem = split(bad).unwrap_err();
            assert!(problem.cure.is_some() && !problem.to_string().contains("abab"));
        }
    }
}
