//! Arguments about health checks, and the check that they make.

use berth_common::model::{HealthCheck, HttpCheck};
use clap::Args;

use super::value;

/// How a service's containers are checked; what is absent stays as it is.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Health")]
pub struct HealthArgs {
    /// Healthy if this page is answered: 8080, or 8080/ready.
    #[arg(long, value_name = "PORT[/PATH]", value_parser = http, conflicts_with_all = ["health_tcp", "health_cmd"])]
    pub health_http: Option<HttpCheck>,
    /// Healthy if connections to this port are accepted.
    #[arg(long, value_name = "PORT", conflicts_with = "health_cmd")]
    pub health_tcp: Option<u16>,
    /// Healthy if this command of a shell inside ends well: "pg_isready -q".
    #[arg(long, value_name = "COMMAND")]
    pub health_cmd: Option<String>,
    /// Pause between checks: 5s, 500ms.
    #[arg(long, value_parser = millis, value_name = "TIME")]
    pub health_interval: Option<u32>,
    /// What takes longer has failed: 3s.
    #[arg(long, value_parser = millis, value_name = "TIME")]
    pub health_timeout: Option<u32>,
    /// Failures in a row that make a container unhealthy: 3.
    #[arg(long, value_name = "COUNT")]
    pub health_retries: Option<u32>,
    /// Time in which failures of a new container don't count: 30s.
    #[arg(long, value_parser = millis, value_name = "TIME")]
    pub health_start_period: Option<u32>,
    /// Start unhealthy containers again (--health-restart=false to leave them alone).
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub health_restart: Option<bool>,
}

fn http(text: &str) -> Result<HttpCheck, String> {
    let (port, path) = match text.split_once('/') {
        Some((port, path)) => (port, format!("/{path}")),
        None => (text, "/".to_owned()),
    };
    let port = port.parse().map_err(|_| {
        format!(
            "{:?} is not PORT or PORT/PATH, such as 8080/ready",
            berth_common::id::clip(text, 40)
        )
    })?;
    Ok(HttpCheck { port, path })
}

/// A time in milliseconds: 500ms, or as [`value::duration`] has it.
fn millis(text: &str) -> Result<u32, String> {
    let millis = match text.strip_suffix("ms") {
        Some(number) => number.parse::<u64>().ok(),
        None => value::duration(text)?.checked_mul(1_000),
    };
    let millis = millis.and_then(|millis| u32::try_from(millis).ok());
    millis.ok_or_else(|| {
        format!(
            "{:?} is not a time such as 500ms or 10s",
            berth_common::id::clip(text, 40)
        )
    })
}

impl HealthArgs {
    /// Applies them to a check that there is, or makes one.
    ///
    /// # Errors
    /// When nothing says what to check.
    pub fn apply(&self, health: &mut Option<HealthCheck>) -> Result<(), String> {
        let details = [
            self.health_interval,
            self.health_timeout,
            self.health_retries,
            self.health_start_period,
        ];
        let any = details.iter().any(Option::is_some) || self.health_restart.is_some();
        let probe = self.health_http.is_some() || self.health_tcp.is_some() || self.health_cmd.is_some();
        if !any && !probe {
            return Ok(());
        }
        if health.is_none() && !probe {
            return Err(
                "--health-…: say what to check with --health-http, --health-tcp or --health-cmd".to_owned(),
            );
        }
        let check = health.get_or_insert_with(HealthCheck::default);
        if probe {
            check.http.clone_from(&self.health_http);
            check.tcp = self.health_tcp;
            let shell = |command: &String| ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
            check.command = self.health_cmd.as_ref().map(shell);
        }
        let [interval, timeout, retries, start_period] = details;
        check.interval_ms = interval.unwrap_or(check.interval_ms);
        check.timeout_ms = timeout.unwrap_or(check.timeout_ms);
        check.retries = retries.unwrap_or(check.retries);
        check.start_period_ms = start_period.unwrap_or(check.start_period_ms);
        check.restart = self.health_restart.unwrap_or(check.restart);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_make_a_check_and_change_one() {
        let mut health = None;
        HealthArgs::default().apply(&mut health).unwrap();
        assert_eq!(health, None);
        let slow = HealthArgs {
            health_interval: Some(millis("1m").unwrap()),
            ..HealthArgs::default()
        };
        assert!(slow.apply(&mut health).unwrap_err().contains("--health-http"));
        let page = HealthArgs {
            health_http: Some(http("8080/ready?a=/b").unwrap()),
            health_timeout: Some(millis("250ms").unwrap()),
            ..HealthArgs::default()
        };
        page.apply(&mut health).unwrap();
        slow.apply(&mut health).unwrap();
        let made = health.clone().unwrap();
        assert_eq!(made.http.unwrap().path, "/ready?a=/b");
        assert_eq!(
            (made.timeout_ms, made.interval_ms, made.restart),
            (250, 60_000, true)
        );
        let other = HealthArgs {
            health_cmd: Some("test -e /ready".into()),
            health_restart: Some(false),
            ..HealthArgs::default()
        };
        other.apply(&mut health).unwrap();
        let made = health.unwrap();
        assert_eq!((made.http, made.timeout_ms, made.restart), (None, 250, false));
        assert_eq!(made.command.unwrap(), ["/bin/sh", "-c", "test -e /ready"]);
        for bad in ["", "x", "80x", "70000", "http://x"] {
            assert!(http(bad).is_err(), "{bad}");
        }
        for bad in ["5", "ms", "-1ms", "9999999999ms"] {
            assert!(millis(bad).is_err(), "{bad}");
        }
    }
}
