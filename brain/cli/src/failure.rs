//! Why a command ended without success, how that is told, and with which exit code.
//!
//! Owns the mapping to exit codes that scripts rely on: 1 general, 2 usage, 3 not found, 4 refused, 5 unreachable.
//! Refuses to print anything itself.

use std::error::Error;

use berth_common::error::{ErrorKind, Problem};
use serde_json::json;

use crate::client::ClientError;
use crate::config::ConfigError;
use crate::render::text::clean;

/// The end of a command that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration can't be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The brain refused or could not be reached.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The words on the command line, or a file they name, are wrong.
    #[error("{detail}")]
    Usage {
        /// What is wrong.
        detail: String,
        /// What to do.
        cure: String,
    },
    /// What was asked for was accepted but did not come about.
    #[error("{detail}")]
    Refused {
        /// What happened.
        detail: String,
        /// What to do.
        cure: String,
    },
    /// The operating system refused something here.
    #[error("can't {what}")]
    Io {
        /// What was tried, with its object.
        what: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// A process in a container ended with this code; nothing is to be said.
    #[error("exit code {0}")]
    Exit(u8),
}

impl Failure {
    /// A usage error.
    pub fn usage(detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Usage {
            detail: detail.into(),
            cure: cure.into(),
        }
    }

    /// Something accepted that did not come about.
    pub fn refused(detail: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::Refused {
            detail: detail.into(),
            cure: cure.into(),
        }
    }

    /// A local I/O error at `what`.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io {
            what: what.into(),
            source,
        }
    }

    /// The brain says that the object does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Client(ClientError::Refused(problem)) if problem.kind == ErrorKind::NotFound)
    }

    /// Nobody listens any more: a reader such as `head` closed our output. Not an error to a person.
    fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Exit(code) => *code,
            Self::Usage { .. } => 2,
            Self::Refused { .. } => 4,
            Self::Io { .. } | Self::Config(_) => 1,
            Self::Client(ClientError::Unreachable { .. }) => 5,
            Self::Client(ClientError::Refused(problem)) => kind_code(problem.kind),
            Self::Client(_) => 1,
        }
    }

    /// What to do about it.
    fn cure(&self) -> Option<String> {
        match self {
            Self::Config(error) => Some(error.cure()),
            Self::Client(error) => error.cure(),
            Self::Usage { cure, .. } | Self::Refused { cure, .. } => Some(cure.clone()),
            Self::Io { .. } | Self::Exit(_) => None,
        }
        .filter(|cure| !cure.is_empty())
    }

    /// The text for standard error, with its newline; empty when nothing is to be said.
    pub fn render(&self, json: bool) -> String {
        if matches!(self, Self::Exit(_)) || self.is_broken_pipe() {
            return String::new();
        }
        if json {
            let value = match self {
                Self::Client(ClientError::Refused(problem)) => json!(problem),
                other => json!({
                    "kind": other.local_kind(),
                    "detail": chain(other),
                    "cure": other.cure(),
                }),
            };
            return format!("{value}\n");
        }
        let mut text = format!("error: {}\n", clean(&chain(self)));
        if let Self::Client(ClientError::Refused(problem)) = self {
            push_where(&mut text, problem);
        }
        if let Some(cure) = self.cure() {
            text.push_str(&format!("cure: {}\n", clean(&cure)));
        }
        text
    }

    fn local_kind(&self) -> &'static str {
        match self {
            Self::Config(_) => "config",
            Self::Client(ClientError::Unreachable { .. }) => "unreachable",
            Self::Client(_) => "protocol",
            Self::Usage { .. } => "usage",
            Self::Refused { .. } => "refused",
            Self::Io { .. } => "io",
            Self::Exit(_) => "exit",
        }
    }
}

/// The exit code of a kind of problem.
const fn kind_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Unauthenticated
        | ErrorKind::Forbidden
        | ErrorKind::AlreadyExists
        | ErrorKind::Conflict
        | ErrorKind::Precondition
        | ErrorKind::Compacted
        | ErrorKind::TooLarge
        | ErrorKind::QuotaExceeded
        | ErrorKind::RateLimited => 4,
        ErrorKind::Unavailable | ErrorKind::Timeout => 5,
        ErrorKind::Internal | ErrorKind::Unknown => 1,
    }
}

fn push_where(text: &mut String, problem: &Problem) {
    if let Some(field) = &problem.field {
        text.push_str(&format!("field: {}\n", clean(field)));
    }
    if problem.kind == ErrorKind::Internal
        && let Some(id) = &problem.request_id
    {
        text.push_str(&format!(
            "request: {} (the brain's log has the details)\n",
            clean(id)
        ));
    }
}

/// The error and its sources in one line, without saying the same twice.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = source.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: ErrorKind) -> Failure {
        Failure::Client(ClientError::Refused(Box::new(
            Problem::new(kind, "service \"web\" does not exist").cure("list them with `berth service ls`"),
        )))
    }

    #[test]
    fn every_kind_has_a_documented_code() {
        for kind in ErrorKind::ALL {
            assert!((1..=5).contains(&refused(kind).exit_code()), "{kind:?}");
        }
        assert_eq!(refused(ErrorKind::NotFound).exit_code(), 3);
        assert_eq!(refused(ErrorKind::QuotaExceeded).exit_code(), 4);
        assert_eq!(refused(ErrorKind::Unavailable).exit_code(), 5);
        assert_eq!(Failure::Exit(137).exit_code(), 137);
    }

    #[test]
    fn cause_and_cure_are_told_in_text_and_json() {
        let failure = refused(ErrorKind::NotFound);
        assert_eq!(
            failure.render(false),
            "error: service \"web\" does not exist\ncure: list them with `berth service ls`\n"
        );
        let json: serde_json::Value = serde_json::from_str(&failure.render(true)).unwrap();
        assert_eq!(
            (json["kind"].as_str(), json["status"].as_u64()),
            (Some("not-found"), Some(404))
        );
    }

    #[test]
    fn a_closed_pipe_is_silent_and_other_io_names_its_source() {
        let closed = Failure::io("write", std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(closed.render(false), "");
        let full = Failure::io("write /x", std::io::Error::other("disk is full"));
        assert_eq!(full.render(false), "error: can't write /x: disk is full\n");
    }

    #[test]
    fn hostile_text_cannot_drive_the_terminal() {
        let failure = Failure::usage("\u{1b}[2Jgone\nerror: fake", "");
        assert!(!failure.render(false).contains('\u{1b}'));
        assert_eq!(failure.render(false).lines().count(), 1);
    }
}
