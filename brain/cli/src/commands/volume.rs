//! `volume …`.

mod schedule;
mod wait;

use std::time::Instant;

use berth_common::api::{
    CloneOf, CreateSnapshot, CreateVolume, MoveVolume, RemovedVolume, ResizeVolume, RollBackVolume,
    VolumeState, VolumeView,
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
use wait::{Cures, Goal, one, pause, until};

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
            schedule,
            hooks,
            wait,
        } => {
            let source = None;
            let (schedule, hooks) = schedule::of_new(&schedule, &hooks)?;
            create(
                session,
                &client,
                CreateVolume {
                    name,
                    size,
                    node,
                    source,
                    schedule,
                    hooks,
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
                schedule: None,
                hooks: None,
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
        VolumeCommand::Schedule {
            name,
            schedule,
            hooks,
            off,
            no_hooks,
        } => {
            let wanted = schedule::Wanted {
                schedule,
                hooks,
                off,
                no_hooks,
            };
            schedule::schedule(session, &client, &name, wanted).await
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
    let line = Line::new(session.global.quiet);
    let cure = format!("`berth volume inspect {}` says more", view.name);
    let cures = Cures {
        late: format!("it goes on; {cure}"),
        hopeless: cure,
    };
    let say = |_: &VolumeView, doing: &str, _| (doing.to_owned(), true);
    let view = until(client, &line, view, &goal, Some(wait.wait), &cures, say).await?;
    drop(line);
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
    view: VolumeView,
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
    let (mut pace, mut last) = (Pace::default(), None);
    let line = Line::new(session.global.quiet);
    let live = line.is_live();
    // Not on a terminal each line stays: there, only what is new in more than figures is said.
    let say = |view: &VolumeView, doing: &str, ms: u64| {
        let sentence = match &view.moving {
            Some(moving) => render::volume::progress(moving, view.reason.as_deref(), pace.of(ms, moving)),
            None => doing.to_owned(),
        };
        let step = render::volume::step(view);
        let news = live || last.as_ref() != Some(&step);
        last = Some(step);
        (sentence, news)
    };
    let cures = Cures {
        hopeless: "`berth events` tells why".to_owned(),
        late: format!("it goes on moving; `berth volume cancel-move {name}` leaves it where it is"),
    };
    let view = until(client, &line, view, &Goal::On(to.clone()), timeout, &cures, say).await?;
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
