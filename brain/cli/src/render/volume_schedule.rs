//! A volume's schedule in words.

use berth_common::api::VolumeView;
use berth_common::model::{Retention, UnixMillis};

use super::text::{clean, moment, span};

/// `4 last, 7 daily`.
fn kept(keep: &Retention) -> String {
    let all = [
        (keep.last, "last"),
        (keep.hourly, "hourly"),
        (keep.daily, "daily"),
        (keep.weekly, "weekly"),
        (keep.monthly, "monthly"),
    ];
    let said = all.iter().filter(|(count, _)| *count > 0);
    let said: Vec<_> = said.map(|(count, what)| format!("{count} {what}")).collect();
    said.join(", ")
}

/// A span of time as exactly as it was given.
fn exact(ms: u64) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms.is_multiple_of(unit) {
            return format!("{}{name}", ms / unit);
        }
    }
    format!("{ms}ms")
}

/// One sentence on when snapshots are made and which stay.
pub fn sentence(view: &VolumeView, now: UnixMillis) -> String {
    let Some(schedule) = &view.schedule else {
        return match view.hooks {
            Some(_) => "no schedule; commands run around snapshots made by hand".to_owned(),
            None => "no schedule".to_owned(),
        };
    };
    let next = match schedule.next {
        None => "none before a node has it".to_owned(),
        Some(at) if at <= now => "the next is due now".to_owned(),
        Some(at) => format!("the next in {}", span(at.since(now))),
    };
    format!(
        "a snapshot every {}, kept are {}; {next}",
        exact(schedule.every_ms),
        kept(&schedule.keep)
    )
}

/// All there is to say of it, in lines.
pub fn whole(view: &VolumeView, now: UnixMillis) -> String {
    let mut lines = vec![sentence(view, now)];
    if let Some(schedule) = &view.schedule {
        lines.extend(schedule.next.map(|at| format!("next: {}", moment(at))));
        lines.extend(
            schedule
                .problem
                .as_ref()
                .map(|why| format!("problem: {}", clean(why))),
        );
    }
    if let Some(hooks) = &view.hooks {
        let all = [("before", &hooks.before), ("after", &hooks.after)];
        for (when, words) in all {
            let Some(words) = words else { continue };
            let words = match &words[..] {
                [shell, option, command] if shell == "/bin/sh" && option == "-c" => command.clone(),
                words => words.join(" "),
            };
            lines.push(format!("{when}: {}", clean(&words)));
        }
        lines.push(format!("limit: {}", exact(hooks.limit_ms.into())));
    }
    lines.extend(view.reason.as_ref().map(|why| format!("reason: {}", clean(why))));
    let made = view.snapshots.iter().filter(|one| one.scheduled);
    let made: Vec<_> = made.map(|one| one.name.to_string()).collect();
    if !made.is_empty() {
        lines.push(format!("snapshots: {}", made.join(", ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schedule_is_told_with_its_next_time_and_what_hinders() {
        let view = |schedule: serde_json::Value, hooks: serde_json::Value| -> VolumeView {
            serde_json::from_value(json!({"id": "aaaaaaaaaaaaaaaa", "name": "data", "tenant_name": "default",
                "size": 1, "state": "ready", "services": [], "snapshot_count": 2, "epoch": 1, "created_at": 0,
                "revision": 1, "schedule": schedule, "hooks": hooks, "reason": "tired\u{1b}[2J",
                "snapshots": [{"id": "aaaaaaaaaaaaaaaa", "name": "auto-x", "state": "ready", "created_at": 0, "scheduled": true},
                    {"id": "aaaaaaaaaaaaaaaa", "name": "mine", "state": "ready", "created_at": 0}]}))
            .unwrap()
        };
        let now = UnixMillis(1_000_000);
        let due = |next: Option<u64>| {
            view(
                json!({"every_ms": 5_400_000, "keep": {"last": 4, "daily": 7}, "next": next, "problem": "full"}),
                json!({"before": ["/bin/sh", "-c", "redis-cli save"], "after": ["x", "y"], "limit_ms": 60_000}),
            )
        };
        let text = whole(&due(Some(1_300_000)), now);
        for line in [
            "a snapshot every 90m, kept are 4 last, 7 daily; the next in 5m\n",
            "next: 1970-01-01T00:21:40.000Z\n",
            "problem: full\n",
            "before: redis-cli save\nafter: x y\nlimit: 1m\n",
            "reason: tired·[2J\n",
            "snapshots: auto-x\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        assert!(sentence(&due(Some(1)), now).contains("due now"));
        assert!(sentence(&due(None), now).contains("none before a node has it"));
        let none = serde_json::Value::Null;
        assert_eq!(sentence(&view(none.clone(), none), now), "no schedule");
    }
}
