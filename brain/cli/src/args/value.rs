//! Parsers of values that people type: pairs, durations, moments, scratch file systems, environment files.
//!
//! Pure. Each refuses with what would be right.

use std::collections::BTreeMap;

use berth_common::id::clip;
use berth_common::model::{Tmpfs, UnixMillis};
use berth_common::units::Bytes;

/// `KEY=VALUE`; the value may be empty and may hold `=`.
///
/// # Errors
/// What would be right.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("write KEY=VALUE, not {:?}", clip(text, 40))),
    }
}

/// Seconds from text such as `90s`, `10m`, `2h`, `7d`, `1h30m`. A bare number has no unit and is refused.
///
/// # Errors
/// What would be right.
pub fn duration(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "{:?} is not a duration: write 90s, 10m, 2h, 7d or 1h30m",
            clip(text, 40)
        )
    };
    let mut rest = text;
    let mut total: u64 = 0;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        let unit = rest[digits..].chars().next().ok_or_else(wrong)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        total = number
            .checked_mul(factor)
            .and_then(|seconds| total.checked_add(seconds))
            .filter(|seconds| *seconds <= 100 * 365 * 86_400)
            .ok_or_else(wrong)?;
        rest = &rest[digits + unit.len_utf8()..];
    }
    Ok(total)
}

/// `150%` or `150`.
///
/// # Errors
/// What would be right.
pub fn percent(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix('%').unwrap_or(text).parse();
    number.map_err(|_| format!("{:?} is no percentage: write 150%", clip(text, 40)))
}

/// A moment: so long ago, or RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    /// So many seconds before now.
    Ago(u64),
    /// Then.
    At(UnixMillis),
}

impl Since {
    /// The moment, given the present.
    pub fn moment(self, now: UnixMillis) -> UnixMillis {
        match self {
            Self::Ago(seconds) => UnixMillis(now.0.saturating_sub(seconds * 1000)),
            Self::At(at) => at,
        }
    }
}

/// `10m` or `2025-01-31T12:00:00Z`.
///
/// # Errors
/// What would be right.
pub fn since(text: &str) -> Result<Since, String> {
    if let Ok(seconds) = duration(text) {
        return Ok(Since::Ago(seconds));
    }
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|at| u64::try_from(at.as_millisecond()).ok())
        .map(|at| Since::At(UnixMillis(at)))
        .ok_or_else(|| {
            format!(
                "{:?} is no moment: write 10m, 2h or 2025-01-31T12:00:00Z",
                clip(text, 40)
            )
        })
}

/// `/path` or `/path:64MiB`.
///
/// # Errors
/// What would be right.
pub fn tmpfs(text: &str) -> Result<Tmpfs, String> {
    let (path, size) = match text.rsplit_once(':') {
        Some((path, size)) => (path, size.parse::<Bytes>().map_err(|error| error.to_string())?),
        None => (text, Bytes::mib(64)),
    };
    if !path.starts_with('/') {
        return Err(format!("write /path or /path:64MiB, not {:?}", clip(text, 40)));
    }
    Ok(Tmpfs {
        path: path.to_owned(),
        size,
    })
}

/// An environment file: `KEY=VALUE` lines, `#` comments, blank lines; a key alone takes the caller's own value.
///
/// # Errors
/// The number of the wrong line.
pub fn env_file(
    text: &str,
    own: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, String>, String> {
    let mut env = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key.trim_end(), value.to_owned()),
            None => match own(line.trim_end()) {
                Some(value) => (line.trim_end(), value),
                None => continue,
            },
        };
        if key.is_empty() || key.contains(char::is_whitespace) {
            return Err(format!("line {}: write KEY=VALUE", number + 1));
        }
        env.insert(key.to_owned(), value);
    }
    Ok(env)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, want) in [
            ("90s", 90),
            ("10m", 600),
            ("1h30m", 5400),
            ("7d", 604_800),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(want), "{text}");
        }
        for bad in [
            "",
            "10",
            "m",
            "-1s",
            "1.5h",
            "1w",
            "1hé",
            "99999999999999999999s",
            "1000000d",
        ] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn moments() {
        let now = UnixMillis(1_000_000);
        assert_eq!(since("10s").unwrap().moment(now), UnixMillis(990_000));
        assert_eq!(
            since("1970-01-01T00:00:05Z").unwrap().moment(now),
            UnixMillis(5_000)
        );
        assert_eq!(since("1000000s").unwrap().moment(now), UnixMillis(0));
        assert!(since("yesterday").is_err());
    }

    #[test]
    fn scratch_file_systems() {
        assert_eq!(tmpfs("/a").unwrap().size, Bytes::mib(64));
        assert_eq!(
            tmpfs("/a:1GiB").unwrap(),
            Tmpfs {
                path: "/a".into(),
                size: Bytes::gib(1)
            }
        );
        assert!(tmpfs("/a:64").unwrap_err().contains("64MiB"));
        assert!(tmpfs("a:1GiB").is_err());
    }

    #[test]
    fn environment_files() {
        let own = |key: &str| (key == "HOME").then(|| "/root".to_owned());
        let env = env_file("# c\n\nA=1\n  B = x=y \nHOME\nNOTSET\n", own).unwrap();
        assert_eq!(env["A"], "1");
        assert_eq!(env["B"], " x=y ");
        assert_eq!(env["HOME"], "/root");
        assert_eq!(env.len(), 3);
        assert!(env_file("A=1\n=2", own).unwrap_err().contains("line 2"));
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in ".{0,40}") {
            let _ = (pair(&text), duration(&text), since(&text), tmpfs(&text), env_file(&text, |_| None));
        }

        #[test]
        fn pairs_come_back(key in "[A-Za-z_]{1,9}", value in ".{0,20}") {
            prop_assert_eq!(pair(&format!("{key}={value}")).unwrap(), (key, value));
        }

        #[test]
        fn scratch_sizes_come_back(path in "/[a-z/]{1,9}", mib in 1u64..100_000) {
            prop_assert_eq!(tmpfs(&format!("{path}:{mib}MiB")).unwrap(), Tmpfs { path, size: Bytes::mib(mib) });
        }
    }
}
