//! `berth-agent check`: what this host lacks, before anything is changed on it. Reads only.
//!
//! Every finding that is not "ok" carries its cure (R9). [`host`] looks at the host, [`reach`] at the way to the brain;
//! here are their common words, the runtime's checks, and the order.

mod host;
mod reach;
mod volumes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::containerd::Containerd;
use crate::join::NodeFiles;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Works, with something missing.
    Warn,
    /// The agent can't work like this.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: `kernel`, `containerd`.
    pub check: &'static str,
    /// The judgement.
    pub level: Level,
    /// What was found, one sentence.
    pub found: String,
    /// What to do about it; empty if nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cure: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self::new(check, Level::Ok, found, "")
    }

    fn warn(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(check, Level::Warn, found, cure)
    }

    fn fail(check: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self::new(check, Level::Fail, found, cure)
    }

    fn new(check: &'static str, level: Level, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self {
            check,
            level,
            found: found.into(),
            cure: cure.into(),
        }
    }
}

/// The whole report; `brain` are addresses to try instead of those that are configured or were learnt.
pub async fn run(config: &Config, brain: &[String]) -> Vec<Finding> {
    let mut report = host::all(config);
    report.extend(programs(&program_dir(config)));
    report.push(containerd(config).await);
    report.push(oci_runtime(config).await);
    let files = NodeFiles::new(&config.state_dir);
    report.extend(reach::all(config, &files, brain).await);
    report
}

/// The report for people.
pub fn text(report: &[Finding]) -> String {
    let width = report.iter().map(|f| f.check.len()).max().unwrap_or(0);
    let mut out = String::new();
    for finding in report {
        let level = match finding.level {
            Level::Ok => "ok  ",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        out.push_str(&format!("{level}  {:width$}  {}\n", finding.check, finding.found));
        if !finding.cure.is_empty() {
            out.push_str(&format!("      {:width$}  → {}\n", "", finding.cure));
        }
    }
    out
}

/// Whether anything is in the agent's way.
pub fn failed(report: &[Finding]) -> bool {
    report.iter().any(|finding| finding.level == Level::Fail)
}

/// Where `berth-init` and `berth-log` are.
pub fn program_dir(config: &Config) -> PathBuf {
    berth_common::daemon::program_dir(&config.program_dir)
}

fn programs(dir: &Path) -> Vec<Finding> {
    let lacking: Vec<_> = ["berth-init", "berth-log"]
        .into_iter()
        .filter(|name| !dir.join(name).is_file())
        .collect();
    if lacking.is_empty() {
        return vec![Finding::ok(
            "programs",
            format!("berth-init and berth-log are in {}", dir.display()),
        )];
    }
    vec![Finding::fail(
        "programs",
        format!("{} not in {}", lacking.join(" and "), dir.display()),
        "install them beside berth-agent, or name their folder as program_dir",
    )]
}

/// `1.6.20` as numbers; what follows them is ignored.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text
        .trim()
        .trim_start_matches('v')
        .split(['.', '-', '+', '~', ' ']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

async fn containerd(config: &Config) -> Finding {
    const CHECK: &str = "containerd";
    let socket = config.containerd_socket.display();
    let containerd = Containerd::connect(&config.containerd_socket, &config.namespace);
    let asked = tokio::time::timeout(Duration::from_secs(5), containerd.version()).await;
    match asked {
        Ok(Ok(text)) if version(&text).is_some_and(|v| v >= (1, 6)) => {
            Finding::ok(CHECK, format!("{text} at {socket}"))
        }
        Ok(Ok(text)) => Finding::fail(
            CHECK,
            format!("{text} at {socket} is too old"),
            "install containerd 1.6 or newer (Debian 12 has it)",
        ),
        Ok(Err(error)) => Finding::fail(
            CHECK,
            // The whole chain is the transport's innards.
            format!(
                "no answer at {socket}: {}",
                berth_common::id::clip(error.source.message(), 200)
            ),
            "install and start containerd (`apt install containerd`, `systemctl start containerd`), or set containerd_socket",
        ),
        Err(_) => Finding::fail(
            CHECK,
            format!("no answer at {socket} within 5 s"),
            "restart containerd",
        ),
    }
}

async fn oci_runtime(config: &Config) -> Finding {
    const CHECK: &str = "runtime";
    let name = match config.runtime_binary.as_str() {
        "" => "runc",
        name => name,
    };
    let output = tokio::process::Command::new(name)
        .arg("--version")
        .kill_on_drop(true)
        .output();
    match tokio::time::timeout(Duration::from_secs(5), output).await {
        Ok(Ok(output)) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            let line = text.lines().next().unwrap_or(name);
            Finding::ok(CHECK, berth_common::id::clip(line, 80))
        }
        Ok(Ok(output)) => Finding::fail(
            CHECK,
            format!("`{name} --version` failed: {}", output.status),
            "reinstall it, or name another as runtime_binary",
        ),
        Ok(Err(error)) => Finding::fail(
            CHECK,
            format!("{name} can't be run: {error}"),
            "install it (`apt install runc`), or name another as runtime_binary",
        ),
        Err(_) => Finding::fail(CHECK, format!("`{name} --version` does not end"), "reinstall it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_table() {
        for (text, want) in [
            ("1.6.20", Some((1, 6))),
            ("v2.0.0-rc.1", Some((2, 0))),
            ("6.1.0-13-amd64", Some((6, 1))),
            ("5.10", Some((5, 10))),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(version(text), want, "{text}");
        }
    }

    #[test]
    fn the_text_names_level_and_cure() {
        let report = [
            Finding::ok("kernel", "6.1"),
            Finding::fail("containerd", "not there", "install it"),
        ];
        let text = text(&report);
        assert!(text.contains("ok    kernel      6.1\n"), "{text}");
        assert!(
            text.contains("FAIL  containerd  not there\n") && text.contains("→ install it"),
            "{text}"
        );
        assert!(failed(&report) && !failed(&report[..1]));
    }

    #[tokio::test]
    async fn an_absent_daemon_and_program_fail_with_cures() {
        let config = Config {
            containerd_socket: "/nonexistent/containerd.sock".into(),
            runtime_binary: "/nonexistent/runc".into(),
            ..Config::default()
        };
        for finding in [containerd(&config).await, oci_runtime(&config).await] {
            assert_eq!(finding.level, Level::Fail, "{finding:?}");
            assert!(
                finding.found.contains("/nonexistent") && finding.cure.contains("install"),
                "{finding:?}"
            );
        }
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(programs(dir.path())[0].level, Level::Fail);
        for name in ["berth-init", "berth-log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        assert_eq!(programs(dir.path())[0].level, Level::Ok);
    }
}
