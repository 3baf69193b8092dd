//! Why a container's process ended, in words and truthfully. Pure.

use berth_common::model::{ExitInfo, Limits, UnixMillis};
use berth_common::units::Bytes;

use super::runtime::TaskExit;

/// An OOM kill noticed this shortly before the end is the end's cause, milliseconds.
const OOM_NEAR_MS: u64 = 2_000;
/// Exit code of a process that died by SIGKILL.
pub const SIGKILLED: i32 = 128 + 9;

/// What is known of an end besides its exit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Circumstances<'a> {
    /// Nobody saw how it ended, and the exit is only assumed.
    pub unseen: bool,
    /// The agent sent SIGKILL, after so many seconds of grace.
    pub killed_after_secs: Option<u32>,
    /// It was stopped because its layer exceeded this limit.
    pub over_disk: Option<Bytes>,
    /// It was stopped because its checks failed, and this is what the last one said.
    pub ill: Option<&'a str>,
    /// OOM kills of this run that were noticed before its end.
    pub oom_noticed: u64,
    /// When the last of them was noticed.
    pub oom_noticed_at: Option<UnixMillis>,
}

/// An end in words.
///
/// PID 1 fell to the kernel's OOM killer only if it died by a SIGKILL that the agent did not send, while the kernel's
/// counter moved: more kills at the end than were noticed before it, or one noticed just before. Where it survived the
/// death of a child and ended by itself, the code is its own and the reason mentions the child.
pub fn explain(exit: &TaskExit, around: &Circumstances<'_>, limits: &Limits) -> ExitInfo {
    let more_kills = exit.oom_kills.is_some_and(|n| n > around.oom_noticed);
    let just_noticed = around
        .oom_noticed_at
        .is_some_and(|at| exit.at.since(at) < OOM_NEAR_MS);
    let oom = exit.code == SIGKILLED && around.killed_after_secs.is_none() && (more_kills || just_noticed);
    let reason = if oom {
        format!("out of memory (limit {})", limits.memory)
    } else if let Some(limit) = around.over_disk {
        format!("disk limit {limit} exceeded")
    } else if let Some(said) = around.ill {
        format!("unhealthy: {said}")
    } else if around.unseen {
        "ended while nobody could see how (host or runtime restarted)".to_owned()
    } else if let Some(grace) = around.killed_after_secs {
        format!("killed by SIGKILL after {grace}s of grace")
    } else {
        let kills = exit.oom_kills.unwrap_or(0).max(around.oom_noticed);
        by_itself(exit.code, kills, limits)
    };
    ExitInfo {
        code: exit.code,
        oom,
        reason,
        at: exit.at,
    }
}

fn by_itself(code: i32, kills: u64, limits: &Limits) -> String {
    let end = match code {
        129..=192 => format!("killed by {}", signal_name(code - 128)),
        _ => format!("exited with code {code}"),
    };
    let noun = match kills {
        0 => return end,
        1 => "process",
        _ => "processes",
    };
    format!(
        "{end}; {kills} {noun} inside ran out of memory before (limit {})",
        limits.memory
    )
}

/// `SIGTERM` for 15; real-time and unknown ones by number.
fn signal_name(number: i32) -> String {
    nix::sys::signal::Signal::try_from(number).map_or_else(
        |_| format!("signal {number}"),
        |signal| signal.as_str().to_owned(),
    )
}

/// The number of a signal given as `SIGTERM`, `TERM`, `15` or `RTMIN+3`; none if there is no such signal.
pub fn signal_number(text: &str) -> Option<i32> {
    let text = text.trim();
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str, sign: i32, start: i32| {
        let steps: i32 = if rest.is_empty() {
            0
        } else {
            rest[1..].parse().ok()?
        };
        (0..=30).contains(&steps).then_some(start + sign * steps)
    };
    // glibc's and musl's C library keep 32 and 33 (34) for themselves; runtimes count from 34.
    if let Some(rest) = name.strip_prefix("RTMIN") {
        return (rest.is_empty() || rest.starts_with('+'))
            .then(|| offset(rest, 1, 34))
            .flatten();
    }
    if let Some(rest) = name.strip_prefix("RTMAX") {
        return (rest.is_empty() || rest.starts_with('-'))
            .then(|| offset(rest, -1, 64))
            .flatten();
    }
    format!("SIG{name}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::units::Bytes;

    #[test]
    fn reasons_table() {
        let limits = Limits {
            memory: Bytes::mib(64),
            ..Limits::default()
        };
        let by_itself = Circumstances::default();
        let killed = Circumstances {
            killed_after_secs: Some(10),
            ..by_itself
        };
        let noticed = |kills, at| Circumstances {
            oom_noticed: kills,
            oom_noticed_at: Some(UnixMillis(at)),
            ..by_itself
        };
        let disk = Circumstances {
            over_disk: Some(Bytes::gib(1)),
            ..by_itself
        };
        let ill = Circumstances {
            ill: Some("GET / was answered with 500"),
            killed_after_secs: Some(10),
            ..by_itself
        };
        let unseen = Circumstances {
            unseen: true,
            ..by_itself
        };
        let cases = [
            (137, Some(0), ill, false, "unhealthy: GET / was answered with 500"),
            (0, Some(0), by_itself, false, "exited with code 0"),
            (3, None, by_itself, false, "exited with code 3"),
            (255, Some(0), by_itself, false, "exited with code 255"),
            (137, Some(0), by_itself, false, "killed by SIGKILL"),
            (137, None, by_itself, false, "killed by SIGKILL"),
            (143, Some(0), by_itself, false, "killed by SIGTERM"),
            (162, Some(0), by_itself, false, "killed by signal 34"),
            (137, Some(1), by_itself, true, "out of memory (limit 64MiB)"),
            (
                137,
                Some(1),
                noticed(1, 9_000),
                true,
                "out of memory (limit 64MiB)",
            ),
            (137, None, noticed(1, 9_000), true, "out of memory (limit 64MiB)"),
            (
                137,
                Some(1),
                noticed(1, 1_000),
                false,
                "killed by SIGKILL; 1 process inside ran out of memory before (limit 64MiB)",
            ),
            (
                137,
                Some(2),
                noticed(1, 1_000),
                true,
                "out of memory (limit 64MiB)",
            ),
            (
                0,
                Some(1),
                by_itself,
                false,
                "exited with code 0; 1 process inside ran out of memory before (limit 64MiB)",
            ),
            (
                1,
                Some(4),
                noticed(2, 9_999),
                false,
                "exited with code 1; 4 processes inside ran out of memory before (limit 64MiB)",
            ),
            (
                137,
                Some(1),
                killed,
                false,
                "killed by SIGKILL after 10s of grace",
            ),
            (143, Some(0), disk, false, "disk limit 1GiB exceeded"),
            (137, Some(1), disk, true, "out of memory (limit 64MiB)"),
            (
                255,
                None,
                unseen,
                false,
                "ended while nobody could see how (host or runtime restarted)",
            ),
        ];
        for (code, oom_kills, around, oom, reason) in cases {
            let exit = TaskExit {
                code,
                at: UnixMillis(10_000),
                oom_kills,
                begun: true,
            };
            let info = explain(&exit, &around, &limits);
            assert_eq!(
                (info.oom, info.reason.as_str()),
                (oom, reason),
                "{code} {oom_kills:?} {around:?}"
            );
            assert_eq!((info.code, info.at), (code, exit.at));
        }
    }

    #[test]
    fn signals_table() {
        let good = [
            ("SIGTERM", 15),
            ("term", 15),
            ("9", 9),
            ("RTMIN+3", 37),
            ("SIGRTMAX", 64),
            ("SIGWINCH", 28),
        ];
        for (text, number) in good {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        for bad in [
            "",
            "0",
            "65",
            "-1",
            "SIG",
            "SIGNOPE",
            "RTMIN+99",
            "RTMINx",
            "RTMAX-",
            "99999999999",
        ] {
            assert_eq!(signal_number(bad), None, "{bad}");
        }
    }
}
