//! The brain's settings: one TOML file, every key optional, unknown keys refused.
//!
//! Owns defaults and validation. A file that is absent means the defaults; one that is wrong is an error that says
//! where. `systemd/brain.toml.example` shows every key with its default, which a test keeps true.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use berth_common::daemon::LogFormat;
use berth_common::units::Bytes;
use serde::{Deserialize, Serialize};

use crate::api::limits::Rates;
use crate::policies::{PolicySettings, settings};

/// Where the settings are unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/berth/brain.toml";

/// Why the settings can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's complaint.
        #[source]
        source: std::io::Error,
    },
    /// It is not TOML of this shape.
    #[error("{path} can't be understood")]
    Parse {
        /// Which.
        path: PathBuf,
        /// Line, key and complaint.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{key} in {path}: {why}")]
    Value {
        /// The key.
        key: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong and what would do.
        why: String,
    },
}

/// Bounds of the HTTP API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiLimits {
    /// Largest image archive accepted.
    pub max_upload: Bytes,
    /// Requests a second from one token.
    pub requests_per_token: u32,
    /// Requests a second from one address (IPv6: one /64).
    pub requests_per_address: u32,
    /// Failed sign-ins a second from one address; twenty at once are free.
    pub failed_sign_ins: u32,
}

impl Default for ApiLimits {
    fn default() -> Self {
        let rates = Rates::default();
        Self {
            max_upload: Bytes::gib(20),
            requests_per_token: rates.per_token,
            requests_per_address: rates.per_address,
            failed_sign_ins: rates.failed_sign_ins,
        }
    }
}

impl From<&ApiLimits> for Rates {
    fn from(limits: &ApiLimits) -> Self {
        Self {
            per_token: limits.requests_per_token,
            per_address: limits.requests_per_address,
            failed_sign_ins: limits.failed_sign_ins,
        }
    }
}

/// The brain's settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Address and port of the HTTP API (TCP) and of the agents' link (UDP).
    pub listen: SocketAddr,
    /// Addresses, `host:port`, at which nodes reach this brain; empty: this host's own addresses with the port above.
    pub advertise: Vec<String>,
    /// The store, the CA, the first admin token, blobs of loaded images. One brain per folder.
    pub state_dir: PathBuf,
    /// Silence after which a node is lost and its containers are replaced, seconds, 3 to 3,600.
    pub lease_secs: u32,
    /// Move containers away from nodes that stay too hot. Default true.
    pub rebalance: bool,
    /// How long a node's certificate is valid, seconds, 30 to 31,536,000 (a year). Agents renew at two thirds of it.
    pub node_certificate_secs: u32,
    /// More DNS names for the brain's certificate. Those in `advertise` are in it anyway.
    pub tls_names: Vec<String>,
    /// Folder with the agents' programs, which the installer hands out: those for this architecture, and a folder named after
    /// each other one (`aarch64`); empty: the folder of the running program.
    pub program_dir: PathBuf,
    /// What is logged: `error`, `warn`, `info`, `debug`, or a filter as `info,berth_brain::link=debug`.
    pub log_level: String,
    /// How it is logged.
    pub log_format: LogFormat,
    /// Policies of the operator's own that services may ask for, `[[policy]]`.
    pub policy: Vec<PolicySettings>,
    /// Bounds of the HTTP API.
    pub api: ApiLimits,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            advertise: Vec::new(),
            state_dir: "/var/lib/berth-brain".into(),
            lease_secs: 10,
            rebalance: true,
            node_certificate_secs: 30 * 86_400,
            tls_names: Vec::new(),
            program_dir: PathBuf::new(),
            log_level: "info".to_owned(),
            log_format: LogFormat::Auto,
            policy: Vec::new(),
            api: ApiLimits::default(),
        }
    }
}

impl Config {
    /// The settings in a file; the defaults if there is none.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The settings in a text; `path` only goes into errors.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] or [`ConfigError::Value`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        match config.fault() {
            None => Ok(config),
            Some((key, why)) => Err(ConfigError::Value {
                key,
                path: path.to_owned(),
                why,
            }),
        }
    }

    fn fault(&self) -> Option<(&'static str, String)> {
        let no = |key, why: &str| Some((key, why.to_owned()));
        if self.listen.port() == 0 {
            return no("listen", "needs a port, as \"0.0.0.0:7443\": nodes remember it");
        }
        if let Some(bad) = self.advertise.iter().find(|address| split(address).is_none()) {
            return Some(("advertise", format!("{bad:?} is no `host:port`")));
        }
        if !self.state_dir.is_absolute() {
            return no("state_dir", "must be an absolute path");
        }
        if !(3..=3_600).contains(&self.lease_secs) {
            return no("lease_secs", "must be from 3 to 3600");
        }
        if !(30..=31_536_000).contains(&self.node_certificate_secs) {
            return no("node_certificate_secs", "must be from 30 to 31536000");
        }
        if let Some(bad) = self.tls_names.iter().find(|name| !is_dns_name(name)) {
            return Some(("tls_names", format!("{bad:?} is no DNS name")));
        }
        if let Err(error) = self.log_level.parse::<tracing_subscriber::EnvFilter>() {
            return Some(("log_level", error.to_string()));
        }
        if let Some(why) = settings::fault(&self.policy) {
            return Some(("policy", why));
        }
        let api = &self.api;
        if api.max_upload < Bytes::mib(1) {
            return no("api.max_upload", "must be at least 1MiB");
        }
        if [
            api.requests_per_token,
            api.requests_per_address,
            api.failed_sign_ins,
        ]
        .contains(&0)
        {
            return no("api", "rates must be at least 1 a second");
        }
        None
    }
}

/// Host and port of `host:port`; brackets around IPv6 addresses are taken off.
pub fn split(text: &str) -> Option<(&str, u16)> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port > 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let fits = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => is_dns_name(host),
    };
    fits.then_some((bare.unwrap_or(host), port))
}

/// Whether this may stand as a DNS name (or IPv4 address) in a certificate or an address.
fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        !label.is_empty() && label.len() <= 63 && label.chars().all(fits)
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../systemd/brain.toml.example");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("brain.toml"))
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        assert_eq!(
            parse(EXAMPLE).unwrap(),
            Config::default(),
            "commented out it changes nothing"
        );
        let settings: String = EXAMPLE
            .lines()
            .filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(parse(&settings).unwrap(), Config::default());
        let shown: toml::Table = settings.parse().unwrap();
        let all = toml::Table::try_from(Config::default()).unwrap();
        assert_eq!(shown.keys().collect::<Vec<_>>(), all.keys().collect::<Vec<_>>());
        let api = |table: &toml::Table| {
            table["api"]
                .as_table()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(api(&shown), api(&all));
    }

    #[test]
    fn an_absent_file_is_the_defaults_and_a_wrong_one_says_where() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Config::load(&dir.path().join("none")).unwrap(), Config::default());
        let error = parse("lease_secs = 5\nlisten_on = 1\n").unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(
            text.contains("brain.toml") && text.contains("listen_on") && text.contains("line 2"),
            "{text}"
        );
    }

    #[test]
    fn values_that_make_no_sense_are_refused_by_name() {
        for (text, key) in [
            ("listen = \"0.0.0.0:0\"", "listen"),
            ("advertise = [\"10.0.0.1\"]", "advertise"),
            ("advertise = [\"a b:1\"]", "advertise"),
            ("advertise = [\"::1:7443\"]", "advertise"),
            ("state_dir = \"x\"", "state_dir"),
            ("lease_secs = 2", "lease_secs"),
            ("lease_secs = 4000", "lease_secs"),
            ("node_certificate_secs = 29", "node_certificate_secs"),
            ("tls_names = [\"a b\"]", "tls_names"),
            ("log_level = \"loud=very\"", "log_level"),
            ("[[policy]]\nname = \"a\"\nurl = \"ftp://h/\"", "policy"),
            ("[[policy]]\nname = \"a\"\nurl = \"https://h/\"", "policy"),
            (
                "[[policy]]\nname = \"a\"\nurl = \"http://h/\"\ntimeout_ms = 9",
                "policy",
            ),
            ("[api]\nmax_upload = \"1KiB\"", "api.max_upload"),
            ("[api]\nrequests_per_token = 0", "api"),
        ] {
            match parse(text) {
                Err(ConfigError::Value { key: found, .. }) => assert_eq!(found, key, "{text}"),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert_eq!(split("[2001:db8::1]:7443"), Some(("2001:db8::1", 7443)));
        assert_eq!(split("brain.example.org:1"), Some(("brain.example.org", 1)));
    }
}
