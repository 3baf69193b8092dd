//! `volume …`.

use std::time::{Duration, Instant};

use berth_common::api::{
    CloneOf, CreateSnapshot, CreateVolume, MoveVolume, RemovedVolume, ResizeVolume, RollBackVolume,
    SnapshotState, VolumeState, VolumeView,
};
use berth_common::id::{Name, SnapshotId};
use reqwest::Method;

use super::progress::Line;
use super::{Session, print};
use crate::args::{VolumeCommand, WaitArgs};
use crate::client::Client;
use crate::failure::Failure;
use crate::render;
use crate::render::volume::Pace;

/// `berth volume …`.
pub async fn volume(session: &Session, command: VolumeCommand) -> Result<(), Failure> {
    let client = session.client().await?;
    let url = |name: &Name, rest: &[&str]| {
        let path = [&["volumes", name.as_str()], rest].concat();
        client.tenant_url(&path, &[])
    };
    match command {
        VolumeCommand::Create {
            name,
            size,
            node,
            wait,
        } => {
            let source = None;
            create(
                session,
                &client,
                CreateVolume {
                    name,
                    size,
                    node,
                    source,
                },
                wait,
            )
            .await
        }
        VolumeCommand::Clone {
            name,
            snapshot,
            new,
            size,
            wait,
        } => {
            let source = Some(CloneOf {
                volume: name,
                snapshot,
            });
            let body = CreateVolume {
                name: new,
                size,
                node: None,
                source,
            };
            create(session, &client, body, wait).await
        }
        VolumeCommand::Ls => {
            let (items, _) = client
                .list::<VolumeView>(client.tenant_url(&["volumes"], &[]))
                .await?;
            session.list(
                &items,
                |volume| volume.name.to_string(),
                |style, _, items| render::volume::volumes(style, items),
            )
        }
        VolumeCommand::Inspect { name } => session.inspect(&client.get::<VolumeView>(url(&name, &[])).await?),
        VolumeCommand::Resize { name, size } => {
            let body = ResizeVolume { size };
            let view: VolumeView = client.call(Method::PATCH, url(&name, &[]), Some(&body)).await?;
            session.done(&view, &format!("{name}: {size}"))
        }
        VolumeCommand::Snapshot { name, snapshot, wait } => {
            let body = CreateSnapshot { name: snapshot };
            let view: VolumeView = client
                .call(Method::POST, url(&name, &["snapshots"]), Some(&body))
                .await?;
            let made = newest(&view)?;
            let goal = Goal::Snapshot(made.0);
            let said = format!("{name}: snapshot {}", made.1);
            settle(session, &client, view, goal, wait, made.1.as_str(), &said).await
        }
        VolumeCommand::SnapshotRm { name, snapshot, wait } => {
            let gone = url(&name, &["snapshots", snapshot.as_str()]);
            let view: VolumeView = client.call::<(), _>(Method::DELETE, gone, None).await?;
            let goal = Goal::NoSnapshot(snapshot.clone());
            let said = format!("{name}: snapshot {snapshot} removed");
            settle(session, &client, view, goal, wait, snapshot.as_str(), &said).await
        }
        VolumeCommand::Rollback { name, snapshot, wait } => {
            let body = RollBackVolume {
                snapshot: snapshot.clone(),
            };
            let view: VolumeView = client
                .call(Method::POST, url(&name, &["rollback"]), Some(&body))
                .await?;
            let kept = newest(&view)?;
            let goal = Goal::Snapshot(kept.0);
            let said = format!("{name}: is as in {snapshot}; what it was is kept as {}", kept.1);
            settle(session, &client, view, goal, wait, kept.1.as_str(), &said).await
        }
        VolumeCommand::Move {
            name,
            node,
            detach,
            timeout,
        } => {
            let body = MoveVolume { node };
            let view: VolumeView = client
                .call(Method::POST, url(&name, &["move"]), Some(&body))
                .await?;
            travel(session, &client, view, detach, timeout).await
        }
        VolumeCommand::CancelMove { name } => {
            let view: VolumeView = client
                .call::<(), _>(Method::DELETE, url(&name, &["move"]), None)
                .await?;
            let node = view.node_name.as_ref().map_or("-", |node| node.as_str());
            session.done(&view, &format!("{name}: stays on {node}"))
        }
        VolumeCommand::Rm { names, force, wait } => {
            for name in names {
                remove(session, &client, &name, force, wait).await?;
            }
            Ok(())
        }
    }
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Goal {
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

/// The snapshot that an answer tells of.
fn newest(view: &VolumeView) -> Result<(SnapshotId, Name), Failure> {
    let last = view.snapshots.last().map(|one| (one.id, one.name.clone()));
    last.ok_or_else(|| {
        Failure::refused(
            format!("{}: the answer tells of no snapshot", view.name),
            "is the brain older than this command? `berth version` says",
        )
    })
}

/// Where a volume is shown.
fn one(client: &Client, name: &Name) -> reqwest::Url {
    client.tenant_url(&["volumes", name.as_str()], &[])
}

async fn pause(begun: Instant) {
    let short = begun.elapsed() < Duration::from_secs(2);
    tokio::time::sleep(Duration::from_millis(if short { 50 } else { 400 })).await;
}

/// Waits for a goal.
async fn until(
    session: &Session,
    client: &Client,
    mut view: VolumeView,
    goal: &Goal,
    limit_secs: u64,
) -> Result<VolumeView, Failure> {
    let begun = Instant::now();
    let line = Line::new(session.global.quiet);
    let name = view.name.clone();
    let cure = format!("`berth volume inspect {name}` says more");
    loop {
        match judge(&view, goal) {
            Verdict::Done => return Ok(view),
            Verdict::Hopeless(why) => return Err(Failure::refused(format!("volume {name}: {why}"), cure)),
            Verdict::Wait(doing) if begun.elapsed().as_secs() >= limit_secs => {
                let detail = format!("volume {name} is not so far after {limit_secs}s: {doing}");
                return Err(Failure::refused(detail, format!("it goes on; {cure}")));
            }
            Verdict::Wait(doing) => line.say(&doing),
        }
        pause(begun).await;
        view = client.get(one(client, &name)).await?;
    }
}

/// Waits for a goal unless told not to, and says so; `what` alone when quiet.
async fn settle(
    session: &Session,
    client: &Client,
    view: VolumeView,
    goal: Goal,
    wait: WaitArgs,
    what: &str,
    said: &str,
) -> Result<(), Failure> {
    if wait.detach {
        return tell(
            session,
            &view,
            what,
            &format!(
                "{}: accepted; `berth volume inspect {0}` shows how it goes",
                view.name
            ),
        );
    }
    let view = until(session, client, view, &goal, wait.wait).await?;
    tell(session, &view, what, said)
}

fn tell(session: &Session, view: &VolumeView, what: &str, said: &str) -> Result<(), Failure> {
    if session.global.quiet {
        return print(&format!("{what}\n"));
    }
    session.done(view, said)
}

async fn create(
    session: &Session,
    client: &Client,
    body: CreateVolume,
    wait: WaitArgs,
) -> Result<(), Failure> {
    let url = client.tenant_url(&["volumes"], &[]);
    let view: VolumeView = client.call(Method::POST, url, Some(&body)).await?;
    let name = view.name.clone();
    let place = match &view.node_name {
        Some(node) => format!("on {node}"),
        None => "where its first container is placed".to_owned(),
    };
    let said = format!("{name}: {}, {place}", view.size);
    settle(session, client, view, Goal::Usable, wait, name.as_str(), &said).await
}

/// Waits until a volume has moved, and says meanwhile how far it is.
async fn travel(
    session: &Session,
    client: &Client,
    mut view: VolumeView,
    detach: bool,
    timeout: Option<u64>,
) -> Result<(), Failure> {
    let name = view.name.clone();
    let Some(to) = view.moving.as_ref().map(|moving| moving.to.clone()) else {
        return Err(Failure::refused(
            format!("volume {name} does not move"),
            format!("`berth volume inspect {name}` says more"),
        ));
    };
    if detach {
        let said = format!("{name}: moves to {to}; `berth volume inspect {name}` shows how far it is");
        return tell(session, &view, name.as_str(), &said);
    }
    let goal = Goal::On(to.clone());
    let begun = Instant::now();
    let line = Line::new(session.global.quiet);
    let (mut pace, mut last) = (Pace::default(), None);
    loop {
        let doing = match judge(&view, &goal) {
            Verdict::Done => break,
            Verdict::Hopeless(why) => {
                return Err(Failure::refused(
                    format!("volume {name} is not on {to}: {why}"),
                    "`berth events` tells why",
                ));
            }
            Verdict::Wait(doing) => doing,
        };
        let elapsed = begun.elapsed();
        let sentence = view.moving.as_ref().map_or(doing, |moving| {
            let ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
            render::volume::progress(moving, view.reason.as_deref(), pace.of(ms, moving))
        });
        if timeout.is_some_and(|limit| elapsed.as_secs() >= limit) {
            return Err(Failure::refused(
                format!("volume {name} is not on {to} yet: {sentence}"),
                format!("it goes on moving; `berth volume cancel-move {name}` leaves it where it is"),
            ));
        }
        // Not on a terminal each line stays: there, only what is new in more than figures is said.
        let step = render::volume::step(&view);
        if line.is_live() || last.as_ref() != Some(&step) {
            line.say(&sentence);
            last = Some(step);
        }
        pause(begun).await;
        view = client.get(one(client, &name)).await?;
    }
    drop(line);
    tell(session, &view, name.as_str(), &format!("{name}: on {to}"))
}

async fn remove(
    session: &Session,
    client: &Client,
    name: &Name,
    force: bool,
    wait: WaitArgs,
) -> Result<(), Failure> {
    let url = client.tenant_url(&["volumes", name.as_str()], &[("force", force.to_string())]);
    let removed: RemovedVolume = client.call::<(), _>(Method::DELETE, url, None).await?;
    let begun = Instant::now();
    let line = Line::new(session.global.quiet);
    let mut gone = removed.gone;
    while !gone && !wait.detach {
        match client
            .get::<VolumeView>(one(client, name))
            .await
            .map_err(Failure::from)
        {
            Err(failure) if failure.is_not_found() => gone = true,
            Err(failure) => return Err(failure),
            // Another has its name already.
            Ok(view) if view.state != VolumeState::Removing => gone = true,
            Ok(view) => {
                let doing = match (view.reason, view.node_name) {
                    (Some(reason), _) => reason,
                    (None, Some(node)) => format!("{node} deletes it"),
                    (None, None) => "what is left of it is deleted".to_owned(),
                };
                if begun.elapsed().as_secs() >= wait.wait {
                    return Err(Failure::refused(
                        format!(
                            "volume {name} is still being removed after {}s: {doing}",
                            wait.wait
                        ),
                        format!("it goes on; `berth volume inspect {name}` says more"),
                    ));
                }
                line.say(&doing);
                pause(begun).await;
            }
        }
    }
    drop(line);
    if session.global.quiet {
        return print(&format!("{name}\n"));
    }
    let said = match (&removed.left_on, gone) {
        (Some(node), _) => format!("{name}: given up; its data stays on {node}, which is lost"),
        (None, true) => format!("{name}: removed"),
        (None, false) => format!("{name}: is being removed"),
    };
    session.done(&removed, &said)
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
