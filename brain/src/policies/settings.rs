//! A policy in the brain's settings.

use std::path::PathBuf;

use berth_common::id::Name;
use serde::{Deserialize, Serialize};

/// What becomes of placements while a policy can't be heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// They go on without its word.
    #[default]
    Ignore,
    /// They wait, and say why.
    Wait,
}

/// One `[[policy]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySettings {
    /// The name by which services ask for it.
    pub name: Name,
    /// Where it is asked: `http://…`, or `https://…` with `ca_file`.
    pub url: String,
    /// How long an answer may take as a whole, milliseconds, 10 to 10,000; default 300.
    #[serde(default = "timeout")]
    pub timeout_ms: u32,
    /// What becomes of placements while it fails; default `ignore`.
    #[serde(default)]
    pub on_failure: OnFailure,
    /// File with a token that it is sent as `Authorization: Bearer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// Certificate (PEM) of the authority that signed its own, for `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

const fn timeout() -> u32 {
    300
}

/// Most policies of one brain.
const MOST: usize = 64;

/// What is wrong with these, and what would do.
pub fn fault(all: &[PolicySettings]) -> Option<String> {
    if all.len() > MOST {
        return Some(format!("{} policies are too many: at most {MOST}", all.len()));
    }
    all.iter().enumerate().find_map(|(at, one)| {
        let name = &one.name;
        if all[..at].iter().any(|other| other.name == *name) {
            return Some(format!("there are two of the name {name}; rename one of them"));
        }
        if !(10..=10_000).contains(&one.timeout_ms) {
            return Some(format!("timeout_ms of {name} must be from 10 to 10000"));
        }
        let Ok(url) = reqwest::Url::parse(&one.url) else {
            return Some(format!(
                "url of {name} is not a URL; write it as in \"http://127.0.0.1:9000/place\""
            ));
        };
        match (url.scheme(), &one.ca_file) {
            ("http", None) | ("https", Some(_)) => None,
            ("http", Some(_)) => Some(format!("{name} has a ca_file, which is for https; its url begins with http: change one of the two")),
            ("https", None) => Some(format!("{name} needs a ca_file, the certificate of the authority that signed its own, since its url begins with https")),
            _ => Some(format!("url of {name} must begin with http:// or https://")),
        }
    })
}
