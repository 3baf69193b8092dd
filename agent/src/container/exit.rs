//! Why a container's process ended, in words and truthfully. Pure.

use berth_common::model::{ExitInfo, Limits, UnixMillis};

/// What an exit code and the kernel's counter of the same run say together.
///
/// `oom_kills` is how many processes the kernel killed for memory during this run, `None` if it could not be read.
/// PID 1 fell to it only if it died by SIGKILL while that counter moved; where it survived the death of a child and
/// ended by itself, the code is its own and the reason mentions the child.
pub fn exit_reason(code: i32, oom_kills: Option<u64>, limits: &Limits, at: UnixMillis) -> ExitInfo {
    let killed_inside = oom_kills.unwrap_or(0);
    let oom = code == 128 + 9 && killed_inside > 0;
    let mut reason = match code {
        _ if oom => format!("out of memory (limit {})", limits.memory),
        129..=192 => format!("killed by {}", signal_name(code - 128)),
        _ => format!("exited with code {code}"),
    };
    if !oom && killed_inside > 0 {
        let noun = if killed_inside == 1 {
            "process"
        } else {
            "processes"
        };
        reason.push_str(&format!(
            "; {killed_inside} {noun} inside ran out of memory before (limit {})",
            limits.memory
        ));
    }
    ExitInfo {
        code,
        oom,
        reason,
        at,
    }
}

/// `SIGTERM` for 15; real-time and unknown ones by number.
pub fn signal_name(number: i32) -> String {
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
        let cases = [
            (0, Some(0), false, "exited with code 0"),
            (3, None, false, "exited with code 3"),
            (137, Some(0), false, "killed by SIGKILL"),
            (137, None, false, "killed by SIGKILL"),
            (137, Some(1), true, "out of memory (limit 64MiB)"),
            (143, Some(0), false, "killed by SIGTERM"),
            (
                0,
                Some(1),
                false,
                "exited with code 0; 1 process inside ran out of memory before (limit 64MiB)",
            ),
            (
                1,
                Some(4),
                false,
                "exited with code 1; 4 processes inside ran out of memory before (limit 64MiB)",
            ),
            (255, Some(0), false, "exited with code 255"),
        ];
        for (code, kills, oom, reason) in cases {
            let info = exit_reason(code, kills, &limits, UnixMillis(5));
            assert_eq!(
                (info.oom, info.reason.as_str()),
                (oom, reason),
                "{code} {kills:?}"
            );
            assert_eq!((info.code, info.at), (code, UnixMillis(5)));
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
