//! How a registry asks for credentials, and where they may go.
//!
//! Pure: parses challenges and judges hosts. Refuses to send a password anywhere but to the registry it was given for
//! and that registry's own token service. Exists because a registry names the token service, and redirects, itself.

use std::net::IpAddr;

use reqwest::Url;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// User name and password with each request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The token service.
        realm: String,
        /// What it is asked for.
        service: Option<String>,
    },
}

/// Reads one `WWW-Authenticate` value.
pub(super) fn parse_challenge(header: &str) -> Option<Challenge> {
    let header = header.trim();
    if header.len() > 4096 {
        return None;
    }
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let (mut realm, mut service) = (None, None);
    let mut rest = rest.trim_start();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_at(after.find(',').unwrap_or(after.len())),
        };
        match key.trim().to_ascii_lowercase().as_str() {
            "realm" => realm = Some(value.to_owned()),
            "service" => service = Some(value.to_owned()),
            _ => {}
        }
        rest = after.trim_start().trim_start_matches(',').trim_start();
    }
    realm.map(|realm| Challenge::Bearer { realm, service })
}

/// Whether two addresses are one server: what a header may travel between.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme()
        && a.host_str() == b.host_str()
        && a.port_or_known_default() == b.port_or_known_default()
}

/// Whether the password for `registry` may be sent to the token service `realm`: the same server, or a sibling or parent
/// in the registry's own domain (`registry.example.org` and `auth.example.org`), never from https down to http.
pub(super) fn may_send_password(registry: &Url, realm: &Url) -> bool {
    if registry.scheme() == "https" && realm.scheme() != "https" {
        return false;
    }
    let (Some(a), Some(b)) = (registry.host_str(), realm.host_str()) else {
        return false;
    };
    if a == b {
        return true;
    }
    // Over plain http a stranger on the way may have written the challenge.
    if registry.scheme() != "https" || literal(registry).is_some() || literal(realm).is_some() {
        return false;
    }
    let parent = |host: &str| host.split_once('.').map(|(_, parent)| parent.to_owned());
    match parent(a).filter(|parent| parent.contains('.')) {
        Some(parent) => b == parent || b.ends_with(&format!(".{parent}")),
        None => b.ends_with(&format!(".{a}")),
    }
}

fn literal(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

fn local(url: &Url) -> bool {
    url.host_str() == Some("localhost")
        || literal(url).is_some_and(|ip| match ip {
            IpAddr::V4(ip) => ip.is_loopback() || ip.is_link_local() || ip.is_unspecified(),
            IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local(),
        })
}

/// Whether a registry at `from` may send the agent on to `to`: http(s) only, never from https down to http, and not to
/// the host's own or link-local addresses (cloud metadata) unless it lives there itself.
pub(super) fn may_follow(from: &Url, to: &Url) -> bool {
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        _ => return false,
    }
    to.username().is_empty() && to.password().is_none() && (!local(to) || local(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn challenges() {
        let bearer = |realm: &str, service: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        let table = [
            (
                r#"Bearer realm="https://a/t",service="r",scope="repository:x:pull,push""#,
                bearer("https://a/t", Some("r")),
            ),
            (
                r#"bearer service=r, realm="https://a/t""#,
                bearer("https://a/t", Some("r")),
            ),
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("Basic", Some(Challenge::Basic)),
            ("Bearer service=r", None),
            (r#"Bearer realm="unclosed"#, None),
            ("Negotiate", None),
            ("", None),
        ];
        for (header, expected) in table {
            assert_eq!(parse_challenge(header), expected, "{header}");
        }
    }

    #[test]
    fn passwords_stay_in_the_registrys_domain() {
        let table = [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                true,
            ),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", true),
            ("https://ghcr.io", "https://ghcr.io/token", true),
            ("https://quay.io", "https://auth.quay.io/token", true),
            ("https://registry.example.org", "https://evil.org/token", false),
            ("https://ghcr.io", "https://evil.io/token", false),
            ("https://ghcr.io", "http://ghcr.io/token", false),
            ("https://a.example.org", "https://evilexample.org", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("http://127.0.0.1:5000", "http://127.0.0.2/token", false),
            ("http://reg.lan.example", "https://auth.lan.example", false),
        ];
        for (registry, realm, expected) in table {
            assert_eq!(
                may_send_password(&url(registry), &url(realm)),
                expected,
                "{registry} {realm}"
            );
        }
    }

    #[test]
    fn redirects() {
        let table = [
            ("https://ghcr.io/v2", "https://cdn.example/x", true),
            ("https://ghcr.io/v2", "http://cdn.example/x", false),
            ("https://ghcr.io/v2", "https://127.0.0.1/x", false),
            ("https://ghcr.io/v2", "https://169.254.169.254/latest", false),
            ("https://ghcr.io/v2", "https://[::1]/x", false),
            ("https://ghcr.io/v2", "file:///etc/passwd", false),
            ("https://ghcr.io/v2", "https://u:p@cdn.example/x", false),
            ("http://127.0.0.1:5000/v2", "http://127.0.0.1:6000/x", true),
        ];
        for (from, to, expected) in table {
            assert_eq!(may_follow(&url(from), &url(to)), expected, "{from} {to}");
        }
    }
}
