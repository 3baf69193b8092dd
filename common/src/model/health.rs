//! Health: how it is told whether a container can do its work, and what was found.

use serde::{Deserialize, Serialize};

use super::validate::{MAX_LIST, MAX_TEXT, SpecError};
use crate::model::UnixMillis;

/// How a container is checked: by one of `http`, `tcp` and `command`.
///
/// Its agent does so, from inside its network. Only healthy containers get requests by name, at a service's address and at
/// published ports, and only they count for a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HealthCheck {
    /// It answers a GET with a status from 200 to 399.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// It accepts connections at this port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<u16>,
    /// This command, run inside, ends with code 0. It costs more than the others: a process each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Pause between checks, milliseconds, 100 to 3,600,000; default 5,000. Until the first success it is checked more often.
    #[serde(default = "interval")]
    pub interval_ms: u32,
    /// What takes longer has failed, milliseconds, 10 to 600,000; default 3,000.
    #[serde(default = "timeout")]
    pub timeout_ms: u32,
    /// Failures in a row that make it unhealthy, 1 to 100; default 3.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Failures this soon after its start don't count, milliseconds, 0 to 3,600,000; default 30,000. Over with the first success.
    #[serde(default = "start_period")]
    pub start_period_ms: u32,
    /// Whether one that became unhealthy is started again, where its restart policy starts it again after failures; default true.
    /// Otherwise it is left alone until it is healthy again.
    #[serde(default = "restart")]
    pub restart: bool,
}

/// See [`HealthCheck`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HttpCheck {
    /// The port.
    pub port: u16,
    /// The path, with its query; default `/`.
    #[serde(default = "root")]
    pub path: String,
}

pub(super) const fn interval() -> u32 {
    5_000
}
pub(super) const fn timeout() -> u32 {
    3_000
}
pub(super) const fn retries() -> u32 {
    3
}
pub(super) const fn start_period() -> u32 {
    30_000
}
pub(super) const fn restart() -> bool {
    true
}
pub(super) fn root() -> String {
    "/".to_owned()
}

impl Default for HealthCheck {
    fn default() -> Self {
        Self {
            http: None,
            tcp: None,
            command: None,
            interval_ms: interval(),
            timeout_ms: timeout(),
            retries: retries(),
            start_period_ms: start_period(),
            restart: restart(),
        }
    }
}

/// What a check does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe<'a> {
    /// Asks for a page.
    Http(&'a HttpCheck),
    /// Connects.
    Tcp(u16),
    /// Runs a command inside.
    Command(&'a [String]),
}

impl HealthCheck {
    /// What it does; none of one of a newer version, in a way not known here.
    pub fn probe(&self) -> Option<Probe<'_>> {
        let http = self.http.as_ref().map(Probe::Http);
        let tcp = || self.tcp.map(Probe::Tcp);
        let command = || self.command.as_deref().map(Probe::Command);
        http.or_else(tcp).or_else(command)
    }

    /// Checks what the types alone don't.
    ///
    /// # Errors
    /// The first field at fault, with what would be right.
    pub(super) fn validate(&self) -> Result<(), SpecError> {
        const FIELD: &str = "/health";
        let err = |why: String| Err(SpecError::new(FIELD, why));
        let ways = [self.http.is_some(), self.tcp.is_some(), self.command.is_some()];
        if ways.iter().filter(|is| **is).count() != 1 {
            return err("name one of http, tcp and command".to_owned());
        }
        if self.tcp == Some(0) || self.http.as_ref().is_some_and(|http| http.port == 0) {
            return err("a port is between 1 and 65535".to_owned());
        }
        if let Some(HttpCheck { path, .. }) = &self.http {
            let plain = path.bytes().all(|b| b.is_ascii_graphic());
            if !path.starts_with('/') || !plain || path.len() > 2048 {
                return err(format!(
                    "the path begins with / and has no spaces, at most 2048 characters, not {:?}",
                    crate::id::clip(path, 60)
                ));
            }
        }
        if let Some(command) = &self.command {
            let bad = |word: &String| word.contains('\0') || word.len() > MAX_TEXT;
            if command.first().is_none_or(String::is_empty)
                || command.len() > MAX_LIST
                || command.iter().any(bad)
            {
                return err("a command is a program and its arguments, without NUL bytes".to_owned());
            }
        }
        for (name, value, least, most) in [
            ("interval_ms", self.interval_ms, 100, 3_600_000),
            ("timeout_ms", self.timeout_ms, 10, 600_000),
            ("retries", self.retries, 1, 100),
            ("start_period_ms", self.start_period_ms, 0, 3_600_000),
        ] {
            if !(least..=most).contains(&value) {
                return err(format!("{name} is between {least} and {most}, not {value}"));
            }
        }
        Ok(())
    }
}

/// What its checks say of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// No check has succeeded yet.
    Starting,
    /// It does its work.
    Healthy,
    /// It does not.
    Unhealthy,
    /// A state of a newer agent.
    #[serde(other)]
    Unknown,
}

/// How a container with a health check is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// In a word.
    pub state: HealthState,
    /// Since when.
    pub since: UnixMillis,
    /// Failures in a row that count.
    #[serde(default)]
    pub failures: u32,
    /// What the last check said, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
}

impl Health {
    /// That of one that has just begun.
    pub const fn starting(now: UnixMillis) -> Self {
        Self {
            state: HealthState::Starting,
            since: now,
            failures: 0,
            output: None,
        }
    }

    /// Whether it does not do its work.
    pub const fn is_unhealthy(&self) -> bool {
        matches!(self.state, HealthState::Unhealthy)
    }

    /// Whether requests may go there. A state that is not known here is its agent's way to say that it is not one of these.
    pub const fn takes_requests(&self) -> bool {
        matches!(self.state, HealthState::Healthy | HealthState::Unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_is_one_of_three_and_within_its_bounds() {
        let read = |text: &str| serde_json::from_str::<HealthCheck>(text).unwrap();
        for good in [
            r#"{"http":{"port":80}}"#,
            r#"{"http":{"port":80,"path":"/ready?deep=1"},"interval_ms":100}"#,
            r#"{"tcp":5432,"restart":false}"#,
            r#"{"command":["pg_isready","-q"],"start_period_ms":0}"#,
        ] {
            read(good)
                .validate()
                .unwrap_or_else(|error| panic!("{good}: {error}"));
        }
        for (bad, why) in [
            ("{}", "one of"),
            (r#"{"tcp":80,"http":{"port":80}}"#, "one of"),
            (r#"{"tcp":0}"#, "port"),
            (r#"{"http":{"port":0}}"#, "port"),
            (r#"{"http":{"port":1,"path":"ready"}}"#, "path"),
            (r#"{"http":{"port":1,"path":"/a b"}}"#, "path"),
            (r#"{"http":{"port":1,"path":"/a\r\nHost: x"}}"#, "path"),
            (r#"{"command":[]}"#, "command"),
            (r#"{"command":["a\u0000"]}"#, "command"),
            (r#"{"tcp":1,"interval_ms":99}"#, "interval_ms"),
            (r#"{"tcp":1,"timeout_ms":9}"#, "timeout_ms"),
            (r#"{"tcp":1,"retries":0}"#, "retries"),
        ] {
            let error = read(bad).validate().expect_err(bad);
            assert!(error.to_string().contains(why), "{bad}: {error}");
        }
        assert_eq!(read(r#"{"grpc":{"port":1}}"#).probe(), None);
        assert_eq!(read(r#"{"tcp":7}"#).probe(), Some(Probe::Tcp(7)));
    }
}
