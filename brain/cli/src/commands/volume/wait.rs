//! Waiting until a volume is as was asked for, or knowing why it will not be.

use std::time::{Duration, Instant};

use berth_common::api::{SnapshotState, VolumeState, VolumeView};
use berth_common::id::{Name, SnapshotId};

use crate::client::Client;
use crate::commands::progress::Line;
use crate::failure::Failure;
use crate::render;

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// It can be used, or is no node's yet.
    Usable,
    /// It has this snapshot, and is not being rolled back.
    Snapshot(SnapshotId),
    /// It has no such snapshot.
    NoSnapshot(Name),
    /// It can be used on this node.
    On(String),
}

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Not yet; the sentence says what is being done.
    Wait(String),
    /// It is so.
    Done,
    /// It won't come about.
    Hopeless(String),
}

/// Judges without looking at a clock.
fn judge(view: &VolumeView, goal: &Goal) -> Verdict {
    let node = view.node_name.as_ref().map_or("its node", |node| node.as_str());
    let wait = |doing: String| match &view.reason {
        Some(reason) => Verdict::Wait(format!("{doing}: {reason}")),
        None => Verdict::Wait(doing),
    };
    match goal {
        Goal::Usable => match view.state {
            VolumeState::Ready | VolumeState::Unbound => Verdict::Done,
            VolumeState::Creating => wait(format!("{node} makes it")),
            VolumeState::Removing => Verdict::Hopeless("it is being removed".to_owned()),
            other => wait(other.to_string()),
        },
        Goal::Snapshot(id) => match view.snapshots.iter().find(|one| one.id == *id) {
            None => Verdict::Hopeless("the snapshot was removed meanwhile".to_owned()),
            Some(one) if one.state == SnapshotState::Removing => {
                Verdict::Hopeless("the snapshot is being removed".to_owned())
            }
            Some(_) if view.state == VolumeState::RollingBack => wait("rolling back".to_owned()),
            Some(one) if one.state == SnapshotState::Ready => Verdict::Done,
            Some(one) => wait(format!("{node} makes {}", one.name)),
        },
        Goal::NoSnapshot(name) => {
            let going = |one: &&berth_common::api::SnapshotView| {
                one.name == *name && one.state == SnapshotState::Removing
            };
            match view.snapshots.iter().find(going) {
                None => Verdict::Done,
                Some(_) => wait(format!("{node} removes {name}")),
            }
        }
        Goal::On(to) => {
            if let Some(moving) = view.moving.as_ref().filter(|moving| moving.to == *to) {
                return wait(render::volume::stage(moving).to_owned());
            }
            if view.node_name.as_ref().is_none_or(|node| node.as_str() != to) {
                return Verdict::Hopeless(format!("it stays on {node}: the move was given up or cancelled"));
            }
            match view.state {
                VolumeState::Ready => Verdict::Done,
                VolumeState::Removing => Verdict::Hopeless("it is being removed".to_owned()),
                VolumeState::Creating => wait(format!("{to} has all of it, and makes it writable")),
                other => wait(other.to_string()),
            }
        }
    }
}

/// Where a volume is shown.
pub fn one(client: &Client, name: &Name) -> reqwest::Url {
    client.tenant_url(&["volumes", name.as_str()], &[])
}

/// What helps where a goal is not reached.
pub struct Cures {
    /// It won't come about.
    pub hopeless: String,
    /// It took longer than was to be waited.
    pub late: String,
}

/// A pause between two looks: short at first.
pub async fn pause(begun: Instant) {
    let short = begun.elapsed() < Duration::from_secs(2);
    tokio::time::sleep(Duration::from_millis(if short { 50 } else { 400 })).await;
}

/// Waits for a goal, at most so many seconds. `say` makes a sentence of what is being done after so many milliseconds, and tells whether it
/// is worth a line.
pub async fn until(
    client: &Client,
    line: &Line,
    mut view: VolumeView,
    goal: &Goal,
    limit_secs: Option<u64>,
    cures: &Cures,
    mut say: impl FnMut(&VolumeView, &str, u64) -> (String, bool),
) -> Result<VolumeView, Failure> {
    let begun = Instant::now();
    let name = view.name.clone();
    loop {
        let doing = match judge(&view, goal) {
            Verdict::Done => return Ok(view),
            Verdict::Hopeless(why) => {
                let detail = match goal {
                    Goal::On(to) => format!("volume {name} is not on {to}: {why}"),
                    _ => format!("volume {name}: {why}"),
                };
                return Err(Failure::refused(detail, cures.hopeless.clone()));
            }
            Verdict::Wait(doing) => doing,
        };
        let elapsed = begun.elapsed();
        let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
        let (sentence, news) = say(&view, &doing, ms);
        if limit_secs.is_some_and(|limit| elapsed.as_secs() >= limit) {
            let detail = match goal {
                Goal::On(to) => format!("volume {name} is not on {to} yet: {sentence}"),
                _ => format!(
                    "volume {name} is not so far after {}s: {sentence}",
                    elapsed.as_secs()
                ),
            };
            return Err(Failure::refused(detail, cures.late.clone()));
        }
        if news {
            line.say(&sentence);
        }
        pause(begun).await;
        view = client.get(one(client, &name)).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "aaaaaaaaaaaaaaaa";

    fn volume(state: &str, node: &str, snapshot: Option<&str>, moving_to: Option<&str>) -> VolumeView {
        let snapshots = snapshot.map(|state| json!({"id": ID, "name": "s", "state": state, "created_at": 0}));
        let moving = moving_to.map(|to| json!({"to": to, "why": "asked", "stage": "copying", "since": 0}));
        serde_json::from_value(json!({"id": ID, "name": "data", "tenant_name": "default", "size": 1, "node_name": node,
            "state": state, "reason": "so", "services": [], "snapshot_count": 0, "moving": moving,
            "snapshots": snapshots.into_iter().collect::<Vec<_>>(), "epoch": 1, "created_at": 0, "revision": 1}))
        .unwrap()
    }

    #[test]
    fn what_is_waited_for_is_done_not_yet_or_hopeless() {
        let id: SnapshotId = ID.parse().unwrap();
        let on = Goal::On("h2".to_owned());
        let gone = Goal::NoSnapshot("s".parse().unwrap());
        let done = |view: VolumeView, goal: &Goal| assert_eq!(judge(&view, goal), Verdict::Done, "{view:?}");
        done(volume("ready", "h1", None, None), &Goal::Usable);
        done(volume("unbound", "h1", None, None), &Goal::Usable);
        done(volume("ready", "h1", Some("ready"), None), &Goal::Snapshot(id));
        done(volume("ready", "h1", None, None), &gone);
        // Another has its name already.
        done(volume("ready", "h1", Some("ready"), None), &gone);
        done(volume("ready", "h2", None, None), &on);
        for (view, goal, said) in [
            (
                volume("creating", "h1", None, None),
                &Goal::Usable,
                "h1 makes it: so",
            ),
            (
                volume("unreachable", "h1", None, None),
                &Goal::Usable,
                "unreachable: so",
            ),
            (
                volume("ready", "h1", Some("making"), None),
                &Goal::Snapshot(id),
                "h1 makes s: so",
            ),
            (
                volume("rolling-back", "h1", Some("ready"), None),
                &Goal::Snapshot(id),
                "rolling back: so",
            ),
            (
                volume("ready", "h1", Some("removing"), None),
                &gone,
                "h1 removes s: so",
            ),
            (
                volume("moving", "h1", None, Some("h2")),
                &on,
                "it is sent while its containers write: so",
            ),
            (
                volume("creating", "h2", None, None),
                &on,
                "h2 has all of it, and makes it writable: so",
            ),
        ] {
            assert_eq!(judge(&view, goal), Verdict::Wait(said.to_owned()));
        }
        for (view, goal) in [
            (volume("removing", "h1", None, None), &Goal::Usable),
            (volume("ready", "h1", None, None), &Goal::Snapshot(id)),
            (volume("ready", "h1", Some("removing"), None), &Goal::Snapshot(id)),
            (volume("ready", "h1", None, None), &on),
            // Cancelled, and on its way elsewhere.
            (volume("moving", "h1", None, Some("h3")), &on),
        ] {
            assert!(matches!(judge(&view, goal), Verdict::Hopeless(_)), "{view:?}");
        }
    }
}
