//! What a policy says of nodes, and reading that from its answer. Pure; the answer may be anything.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{Name, NodeId, clip};
use serde::Deserialize;

/// Largest answer, bytes: 10,000 nodes with a reason each.
pub const MAX_ANSWER: usize = 4 << 20;
/// How long a verdict counts unless it says so itself, seconds.
const USUAL_SECS: u32 = 30;
/// The longest that it may, seconds.
const LONGEST_SECS: u32 = 3_600;
/// Scores are from minus this to this.
const BEST: f64 = 100.0;
/// Points of a node's score in the scheduler for one of a policy. One weighs more than any evenness of reservations (1,250 points at most),
/// six weigh a standard deviation of room, and two hundred less than what a service asks for by spread or together, or than two of its
/// replicas alone on one node.
pub const POINTS: f64 = 1_500.0;
/// Most characters of a reason.
const MAX_WHY: usize = 200;

/// What is said of one node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// So many points of the scheduler's score more.
    Points(i32),
    /// It may not take the container, and why.
    Refused(Arc<str>),
}

/// What a policy says of the nodes that it was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which policy.
    pub policy: Name,
    /// By node, in the order of ids. Of a node that is not here nothing is said.
    words: Vec<(NodeId, Word)>,
}

#[derive(Deserialize)]
struct Answer {
    nodes: BTreeMap<String, Said>,
    #[serde(default)]
    ttl_secs: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    #[serde(default)]
    score: Option<f64>,
    #[serde(default)]
    refuse: Option<String>,
}

fn printable(text: &str) -> String {
    let text: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    clip(text.trim(), MAX_WHY)
}

impl Verdict {
    /// A verdict of these words.
    pub fn new(policy: Name, words: BTreeMap<NodeId, Word>) -> Self {
        Self {
            policy,
            words: words.into_iter().collect(),
        }
    }

    /// Reads an answer about the nodes `asked`, by name, and how many seconds it counts.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn read(
        policy: Name,
        answer: &[u8],
        asked: &BTreeMap<String, NodeId>,
    ) -> Result<(Self, u32), String> {
        let answer: Answer = serde_json::from_slice(answer).map_err(|error| {
            format!(
                "its answer can't be understood: {}",
                printable(&error.to_string())
            )
        })?;
        let ttl = answer.ttl_secs.unwrap_or(USUAL_SECS);
        if !(1..=LONGEST_SECS).contains(&ttl) {
            return Err(format!(
                "a ttl_secs of {ttl} is out of range: 1 to {LONGEST_SECS}"
            ));
        }
        let mut words = BTreeMap::new();
        // Reasons are few, nodes are many.
        let mut reasons: BTreeSet<Arc<str>> = BTreeSet::new();
        for (name, said) in answer.nodes {
            let name_told = printable(&name);
            let Some(node) = asked.get(&name) else {
                return Err(format!(
                    "it names node {name_told:?}, which it was not asked about"
                ));
            };
            let word = match (said.score, said.refuse) {
                (Some(score), None) if score.abs() <= BEST => Word::Points((score * POINTS).round() as i32),
                (Some(score), None) => {
                    return Err(format!(
                        "a score of {score} for {name_told} is out of range: -100 to 100"
                    ));
                }
                (None, Some(why)) => {
                    let why: Arc<str> = printable(&why).into();
                    let kept = reasons.get(&why).cloned().unwrap_or_else(|| {
                        reasons.insert(Arc::clone(&why));
                        why
                    });
                    Word::Refused(kept)
                }
                _ => {
                    return Err(format!(
                        "of {name_told} it says neither a score nor a refusal, or both"
                    ));
                }
            };
            words.insert(*node, word);
        }
        Ok((Self::new(policy, words), ttl))
    }

    fn word(&self, node: NodeId) -> Option<&Word> {
        let at = self.words.binary_search_by_key(&node, |(id, _)| *id).ok()?;
        Some(&self.words[at].1)
    }

    /// Why a node may not take a container; none if it may.
    pub fn refusal(&self, node: NodeId) -> Option<&str> {
        match self.word(node)? {
            Word::Refused(why) => Some(why),
            Word::Points(_) => None,
        }
    }

    /// What it adds to a node's score.
    pub fn points(&self, node: NodeId) -> i64 {
        match self.word(node) {
            Some(Word::Points(points)) => i64::from(*points),
            _ => 0,
        }
    }

    /// Of how many nodes something is said.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether nothing is said of any node.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &str) -> Result<(Verdict, u32), String> {
        let asked = (1..=3u8).map(|n| (format!("h{n}"), NodeId::from_bytes([n; 10])));
        Verdict::read("p".parse().unwrap(), answer.as_bytes(), &asked.collect())
    }

    #[test]
    fn scores_and_refusals_are_read_and_what_is_not_said_is_nothing() {
        let (verdict, ttl) = read(
            r#"{"nodes":{"h1":{"score":-100},"h2":{"refuse":"no\u0007 gpu "}},"ttl_secs":5,"more":"is for later"}"#,
        )
        .unwrap();
        let node = |n| NodeId::from_bytes([n; 10]);
        assert_eq!((ttl, verdict.len()), (5, 2));
        assert_eq!(verdict.points(node(1)), -150_000);
        assert_eq!(verdict.refusal(node(2)), Some("no  gpu"));
        assert_eq!((verdict.points(node(3)), verdict.refusal(node(3))), (0, None));
        assert_eq!(read(r#"{"nodes":{}}"#).unwrap().1, USUAL_SECS);
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        for (answer, word) in [
            ("", "understood"),
            ("[]", "understood"),
            (r#"{"nodes":{"h1":{"score":NaN}}}"#, "understood"),
            (r#"{"nodes":{"h1":{"score":1e999}}}"#, "understood"),
            (r#"{"nodes":{"h1":{"score":"9"}}}"#, "understood"),
            (r#"{"nodes":{"h1":{"rank":1}}}"#, "understood"),
            (r#"{"nodes":{"h1":{"score":100.5}}}"#, "out of range"),
            (r#"{"nodes":{"h1":{}}}"#, "neither"),
            (r#"{"nodes":{"h1":{"score":1,"refuse":"x"}}}"#, "neither"),
            (r#"{"nodes":{"h9":{"score":1}}}"#, "\"h9\""),
            (r#"{"nodes":{},"ttl_secs":0}"#, "ttl_secs"),
            (r#"{"nodes":{},"ttl_secs":-1}"#, "understood"),
            (r#"{"nodes":{},"ttl_secs":86400}"#, "ttl_secs"),
        ] {
            let error = read(answer).unwrap_err();
            assert!(error.contains(word) && error.len() < 400, "{answer}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(read(&deep).is_err());
        let long = format!(r#"{{"nodes":{{"{}":{{"score":1}}}}}}"#, "h".repeat(10_000));
        assert!(read(&long).unwrap_err().len() < 400);
    }
}
