//! Volumes as a table, and how far a move is.

use std::collections::VecDeque;

use berth_common::api::{MoveView, VolumeState, VolumeView};
use berth_common::model::MoveStage;
use berth_common::units::Bytes;

use super::text::{bytes, clean, span};
use super::{Style, cell, table};

/// Over how long the pace of sending is measured, milliseconds: long enough to be calm, short enough to follow.
const WINDOW_MS: u64 = 10_000;

/// `berth volume ls`.
pub fn volumes(style: Style, items: &[VolumeView]) -> String {
    let rows = items
        .iter()
        .map(|view| {
            let services: Vec<&str> = view.services.iter().map(|name| name.as_str()).collect();
            vec![
                cell(&view.name),
                cell(view.size),
                cell(bytes(view.used.map(|used| used.0))),
                cell(view.node_name.as_ref().map_or("-", |name| name.as_str())),
                style.state(&state(view)),
                cell(view.snapshot_count),
                cell(services.join(",")),
                cell(view.reason.as_deref().unwrap_or("")),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "SIZE",
        "USED",
        "NODE",
        "STATE",
        "SNAPSHOTS",
        "SERVICES",
        "REASON",
    ];
    table(style, &header, rows)
}

/// How a volume stands, a moving one with where to and how far.
fn state(view: &VolumeView) -> String {
    match (&view.moving, view.state) {
        (Some(moving), VolumeState::Moving) => {
            let part = moving.sent.zip(moving.expected).filter(|(_, all)| all.0 > 0);
            let part = part.map(|(sent, all)| format!(" {}%", percent(sent, all)));
            format!("moving to {}{}", clean(&moving.to), part.unwrap_or_default())
        }
        (_, state) => state.to_string(),
    }
}

/// `sent` of about `all`, at most 100.
fn percent(sent: Bytes, all: Bytes) -> u128 {
    (u128::from(sent.0) * 100 / u128::from(all.0.max(1))).min(100)
}

/// What is being done at a stage of a move.
pub const fn stage(moving: &MoveView) -> &'static str {
    match moving.stage {
        MoveStage::Copying => "it is sent while its containers write",
        MoveStage::Stopping => "its containers stop",
        MoveStage::Finishing => "its last part is sent",
    }
}

/// What of a move is worth another line where lines stay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    state: VolumeState,
    stage: Option<MoveStage>,
    round: Option<u32>,
    tenth: Option<u128>,
    reason: Option<String>,
}

/// How far a move is, without its figures.
pub fn step(view: &VolumeView) -> Step {
    let moving = view.moving.as_ref();
    let sent = moving.and_then(|moving| moving.sent.zip(moving.expected));
    Step {
        state: view.state,
        stage: moving.map(|moving| moving.stage),
        round: moving.and_then(|moving| moving.round),
        tenth: sent.map(|(sent, all)| percent(sent, all) / 10),
        reason: view.reason.clone(),
    }
}

/// How fast something is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second.
    pub per_second: u64,
    /// Milliseconds until all is sent, if it goes on like that.
    pub left_ms: u64,
}

/// Measures how fast rounds are sent, from what is known of them now and then.
#[derive(Debug, Default)]
pub struct Pace {
    round: Option<u32>,
    seen: VecDeque<(u64, u64)>,
}

impl Pace {
    /// Takes what is known at `now_ms`; a rate once two moments of this round differ.
    pub fn of(&mut self, now_ms: u64, moving: &MoveView) -> Option<Rate> {
        let (sent, expected) = (moving.sent?.0, moving.expected?.0);
        let back = self.seen.back().is_some_and(|(_, before)| *before > sent);
        if self.round != moving.round || back {
            self.seen.clear();
            self.round = moving.round;
        }
        // What is not news would make the pace look slower than it is.
        if self.seen.back().is_none_or(|(_, before)| *before < sent) {
            self.seen.push_back((now_ms, sent));
        }
        while self.seen.len() > 2 && self.seen[1].0 + WINDOW_MS <= now_ms {
            self.seen.pop_front();
        }
        let (first, last) = (self.seen.front()?, self.seen.back()?);
        // A sending that has come to a halt is told as one.
        if now_ms.saturating_sub(last.0) > WINDOW_MS {
            return None;
        }
        let took = last.0.checked_sub(first.0).filter(|took| *took > 0)?;
        let per_second = (last.1 - first.1).saturating_mul(1_000) / took;
        let left_ms = expected
            .saturating_sub(sent)
            .saturating_mul(1_000)
            .checked_div(per_second)?;
        Some(Rate { per_second, left_ms })
    }
}

/// One sentence on how far a move is.
pub fn progress(moving: &MoveView, reason: Option<&str>, rate: Option<Rate>) -> String {
    let mut text = format!("to {}: ", clean(&moving.to));
    let figures = moving.sent.zip(moving.expected);
    match (moving.stage, figures) {
        (MoveStage::Copying | MoveStage::Finishing, Some((sent, all))) => {
            match (moving.stage, moving.round) {
                (MoveStage::Finishing, _) => text.push_str("last part, "),
                (_, Some(round)) => text.push_str(&format!("round {}, ", u64::from(round) + 1)),
                (_, None) => {}
            }
            text.push_str(&format!("{sent} of {all} ({}%)", percent(sent, all)));
            if let Some(rate) = rate {
                let left = span(rate.left_ms);
                text.push_str(&format!(", {}/s, {left} left", Bytes(rate.per_second)));
            }
        }
        _ => text.push_str(stage(moving)),
    }
    if let Some(reason) = reason {
        text.push_str(&format!("; {}", clean(reason)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn moving(stage: &str, round: Option<u32>, sent: Option<(u64, u64)>) -> MoveView {
        serde_json::from_value(
            json!({"to": "h2", "why": "asked", "stage": stage, "since": 0, "round": round,
            "sent": sent.map(|(sent, _)| sent << 20), "expected": sent.map(|(_, all)| all << 20)}),
        )
        .unwrap()
    }

    fn volume(state: &str, moving: Option<MoveView>) -> VolumeView {
        serde_json::from_value(
            json!({"id": "aaaaaaaaaaaaaaaa", "name": "data", "tenant_name": "default",
            "size": 10_u64 << 30, "used": 3_u64 << 29, "node_name": "h1", "state": state, "moving": moving,
            "services": ["db", "web"], "snapshot_count": 2, "epoch": 1, "created_at": 0, "revision": 1}),
        )
        .unwrap()
    }

    #[test]
    fn volumes_are_listed_with_what_hinders_them() {
        let mut far = volume("unreachable", None);
        far.reason = Some("its data is on node h1, which is lost\u{1b}[2J".to_owned());
        let mut loose = volume("unbound", None);
        (loose.used, loose.node_name) = (None, None);
        loose.services.clear();
        let going = volume("moving", Some(moving("copying", Some(1), Some((1, 4)))));
        let text = volumes(Style { color: false }, &[going, far, loose]);
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split("   ").map(str::trim).collect())
            .collect();
        let row = |at: usize| -> Vec<&str> { lines[at].iter().copied().filter(|c| !c.is_empty()).collect() };
        assert_eq!(
            row(0),
            [
                "NAME",
                "SIZE",
                "USED",
                "NODE",
                "STATE",
                "SNAPSHOTS",
                "SERVICES",
                "REASON"
            ]
        );
        assert_eq!(
            row(1),
            ["data", "10GiB", "1.5GiB", "h1", "moving to h2 25%", "2", "db,web"]
        );
        assert_eq!(
            row(2)[4..],
            [
                "unreachable",
                "2",
                "db,web",
                "its data is on node h1, which is lost·[2J"
            ]
        );
        assert_eq!(row(3), ["data", "10GiB", "-", "-", "unbound", "2"]);
    }

    #[test]
    fn the_pace_is_of_one_round_and_its_last_seconds() {
        let mut pace = Pace::default();
        let at = |pace: &mut Pace, ms, round, sent| {
            pace.of(ms, &moving("copying", Some(round), Some((sent, 100))))
        };
        assert_eq!(at(&mut pace, 0, 0, 0), None, "one moment is no pace");
        let rate = |mib: u64, left_ms| {
            Some(Rate {
                per_second: mib << 20,
                left_ms,
            })
        };
        assert_eq!(at(&mut pace, 1_000, 0, 10), rate(10, 9_000));
        assert_eq!(
            at(&mut pace, 1_400, 0, 10),
            rate(10, 9_000),
            "the same report again changes nothing"
        );
        assert_eq!(
            at(&mut pace, 11_000, 0, 20),
            rate(1, 80_000),
            "what is long ago does not count"
        );
        assert_eq!(at(&mut pace, 30_000, 0, 20), None, "it has come to a halt");
        assert_eq!(at(&mut pace, 31_000, 1, 1), None, "another round begins anew");
        assert_eq!(at(&mut pace, 32_000, 1, 3), rate(2, 48_500));
        assert_eq!(at(&mut pace, 33_000, 1, 1), None, "so does one that begins again");
        assert_eq!(pace.of(0, &moving("copying", None, None)), None);
    }

    #[test]
    fn progress_says_what_is_done_how_fast_and_what_hinders() {
        let rate = Some(Rate {
            per_second: 35 << 20,
            left_ms: 200_000,
        });
        for (view, reason, rate, want) in [
            (
                moving("copying", Some(0), Some((1_024, 4_096))),
                None,
                rate,
                "to h2: round 1, 1GiB of 4GiB (25%), 35MiB/s, 3m left",
            ),
            (
                moving("copying", None, None),
                Some("node h2 does not answer"),
                None,
                "to h2: it is sent while its containers write; node h2 does not answer",
            ),
            (
                moving("stopping", Some(3), Some((1, 1))),
                None,
                None,
                "to h2: its containers stop",
            ),
            (
                moving("finishing", Some(4), Some((3, 2))),
                None,
                None,
                "to h2: last part, 3MiB of 2MiB (100%)",
            ),
        ] {
            assert_eq!(progress(&view, reason, rate), want);
        }
    }

    #[test]
    fn figures_alone_are_no_step() {
        let at = |sent| {
            step(&volume(
                "moving",
                Some(moving("copying", Some(0), Some((sent, 100)))),
            ))
        };
        assert_eq!(at(11), at(19));
        assert_ne!(at(19), at(20));
        assert_ne!(
            at(11),
            step(&volume(
                "moving",
                Some(moving("copying", Some(1), Some((11, 100))))
            ))
        );
        assert_ne!(at(11), step(&volume("ready", None)));
    }
}
