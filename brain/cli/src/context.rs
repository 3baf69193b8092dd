//! Which brain a command talks to, as whom, and for which tenant.
//!
//! Owns the order of precedence: `BERTH_*` variables, then `--context` or the file's current one, then the brain on
//! this very host if its admin token can be read. Pure but for the file access that is passed in.

use std::fmt;
use std::path::Path;

use berth_common::id::Name;

use crate::config::{ConfigError, ConfigFile};

/// Where a brain on this host leaves its first administrator's token.
const LOCAL_TOKEN: &str = "/var/lib/berth-brain/admin.token";
/// Where a brain on this host keeps its CA.
const LOCAL_CA: &str = "/var/lib/berth-brain/ca/ca.crt";
/// The API of a brain on this host.
const LOCAL_SERVER: &str = "https://127.0.0.1:7443";

/// Everything needed to send a request.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the context it came from, for people.
    pub origin: String,
    /// `https://host:port`.
    pub server: String,
    /// PEM of the pinned CA.
    pub ca: String,
    /// Bearer token.
    pub token: Option<String>,
    /// The tenant commands are about.
    pub tenant: Name,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target")
            .field("origin", &self.origin)
            .field("server", &self.server)
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

/// Settles what to talk to. `env` reads variables, `read` small files.
///
/// # Errors
/// [`ConfigError`] naming the setting that is missing or wrong.
pub fn resolve(
    config: &ConfigFile,
    wanted: Option<&str>,
    tenant: Option<&Name>,
    env: impl Fn(&str) -> Option<String>,
    read: impl Fn(&Path) -> std::io::Result<String>,
) -> Result<Target, ConfigError> {
    let set = |key: &str| env(key).filter(|value| !value.is_empty());
    let chosen = match wanted.or(config.current.as_deref()) {
        Some(name) => Some((name, config.context(name)?)),
        None => None,
    };
    let mut target = chosen.map(|(name, context)| Target {
        origin: name.to_owned(),
        server: context.server.clone(),
        ca: context.ca.clone(),
        token: context.token.clone(),
        tenant: context.tenant.clone().unwrap_or_else(default_tenant),
    });
    if let Some(server) = set("BERTH_SERVER") {
        // A token belongs to the server it was made for: never send a context's token to another one.
        let keep = target.take().filter(|known| known.server == server);
        target = Some(keep.unwrap_or(Target {
            origin: "BERTH_SERVER".into(),
            server,
            ca: String::new(),
            token: None,
            tenant: default_tenant(),
        }));
    }
    let mut target = match target {
        Some(target) => target,
        None => local(&read).ok_or(ConfigError::Nothing)?,
    };
    if let Some(path) = set("BERTH_CA") {
        target.ca = read(Path::new(&path)).map_err(|source| ConfigError::Io {
            operation: "read the CA named by BERTH_CA,",
            path: path.into(),
            source,
        })?;
    }
    if let Some(token) = set("BERTH_TOKEN") {
        target.token = Some(token.trim().to_owned());
    }
    if let Some(name) = set("BERTH_TENANT") {
        target.tenant = name.parse().map_err(|error| ConfigError::Setting {
            what: format!("BERTH_TENANT: {error}"),
            cure: "set it to a tenant's name, or unset it".into(),
        })?;
    }
    if let Some(tenant) = tenant {
        target.tenant = tenant.clone();
    }
    if target.ca.trim().is_empty() {
        return Err(ConfigError::Setting {
            what: format!("no CA is known for {}", target.server),
            cure: "set BERTH_CA to the brain's ca.crt (on its host: /var/lib/berth-brain/ca/ca.crt)".into(),
        });
    }
    Ok(target)
}

fn local(read: impl Fn(&Path) -> std::io::Result<String>) -> Option<Target> {
    let token = read(Path::new(LOCAL_TOKEN)).ok()?;
    let ca = read(Path::new(LOCAL_CA)).ok()?;
    Some(Target {
        origin: "this host".into(),
        server: LOCAL_SERVER.into(),
        ca,
        token: Some(token.trim().to_owned()),
        tenant: default_tenant(),
    })
}

/// The tenant of those who name none.
pub fn default_tenant() -> Name {
    "default".parse().expect("a valid name")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Context;

    fn config() -> ConfigFile {
        let context = |host: &str, tenant: Option<&str>| Context {
            server: format!("https://{host}:7443"),
            ca: format!("ca of {host}"),
            token: Some(format!("token of {host}")),
            tenant: tenant.map(|t| t.parse().unwrap()),
        };
        ConfigFile {
            current: Some("a".into()),
            contexts: [
                ("a".to_owned(), context("a", None)),
                ("b".to_owned(), context("b", Some("shop"))),
            ]
            .into(),
        }
    }

    fn case(
        config: &ConfigFile,
        wanted: Option<&str>,
        tenant: Option<&str>,
        env: &[(&str, &str)],
        files: &[(&str, &str)],
    ) -> Result<Target, ConfigError> {
        let tenant = tenant.map(|t| t.parse().unwrap());
        resolve(
            config,
            wanted,
            tenant.as_ref(),
            |key| env.iter().find(|(k, _)| *k == key).map(|(_, v)| (*v).to_owned()),
            |path| {
                files
                    .iter()
                    .find(|(p, _)| Path::new(p) == path)
                    .map(|(_, text)| (*text).to_owned())
                    .ok_or_else(|| std::io::ErrorKind::NotFound.into())
            },
        )
    }

    #[test]
    fn the_current_context_unless_another_is_named() {
        let a = case(&config(), None, None, &[], &[]).unwrap();
        assert_eq!(
            (a.server.as_str(), a.tenant.as_str()),
            ("https://a:7443", "default")
        );
        let b = case(&config(), Some("b"), None, &[], &[]).unwrap();
        assert_eq!(
            (b.token.as_deref(), b.tenant.as_str()),
            (Some("token of b"), "shop")
        );
        assert!(
            case(&config(), Some("c"), None, &[], &[])
                .unwrap_err()
                .cure()
                .contains("a, b")
        );
    }

    #[test]
    fn variables_override_and_the_flag_overrides_them() {
        let env = [("BERTH_TENANT", "one"), ("BERTH_TOKEN", " t\n")];
        let target = case(&config(), None, None, &env, &[]).unwrap();
        assert_eq!(
            (target.tenant.as_str(), target.token.as_deref()),
            ("one", Some("t"))
        );
        assert_eq!(
            case(&config(), None, Some("two"), &env, &[])
                .unwrap()
                .tenant
                .as_str(),
            "two"
        );
        assert!(case(&config(), None, None, &[("BERTH_TENANT", "No!")], &[]).is_err());
    }

    #[test]
    fn a_token_never_goes_to_a_server_it_was_not_made_for() {
        let env = [("BERTH_SERVER", "https://evil:1"), ("BERTH_CA", "/ca")];
        let target = case(&config(), None, None, &env, &[("/ca", "pem")]).unwrap();
        assert_eq!((target.token, target.ca.as_str()), (None, "pem"));
        let error = case(&config(), None, None, &env[..1], &[]).unwrap_err();
        assert!(error.cure().contains("BERTH_CA"));
    }

    #[test]
    fn root_on_the_brains_host_needs_no_configuration() {
        let files = [(LOCAL_TOKEN, "berth_x_y\n"), (LOCAL_CA, "pem")];
        let target = case(&ConfigFile::default(), None, None, &[], &files).unwrap();
        assert_eq!(
            (target.server.as_str(), target.token.as_deref()),
            (LOCAL_SERVER, Some("berth_x_y"))
        );
        assert!(matches!(
            case(&ConfigFile::default(), None, None, &[], &files[..1]),
            Err(ConfigError::Nothing)
        ));
    }
}
