//! `volume schedule`: shows, gives and ends a volume's schedule, and the commands around its snapshots.

use berth_common::api::{PutSchedule, VolumeView};
use berth_common::id::Name;
use berth_common::model::UnixMillis;
use reqwest::Method;

use crate::args::{HookArgs, ScheduleArgs};
use crate::client::Client;
use crate::commands::Session;
use crate::failure::Failure;
use crate::render::volume_schedule::{sentence, whole};

/// What to do about a volume's schedule.
pub struct Wanted {
    /// Given.
    pub schedule: ScheduleArgs,
    /// Given.
    pub hooks: HookArgs,
    /// It ends.
    pub off: bool,
    /// They end.
    pub no_hooks: bool,
}

fn wrong(why: String) -> Failure {
    Failure::usage(
        why,
        "berth volume schedule --help has examples; berth volume create takes the same options",
    )
}

/// `berth volume schedule …`.
pub async fn schedule(
    session: &Session,
    client: &Client,
    name: &Name,
    wanted: Wanted,
) -> Result<(), Failure> {
    let url = |rest: &[&str]| client.tenant_url(&[&["volumes", name.as_str()], rest].concat(), &[]);
    let mut view: VolumeView = client.get(url(&[])).await?;
    let old = view.schedule.as_ref().map(|one| PutSchedule {
        every_ms: one.every_ms,
        keep: one.keep,
    });
    let put = wanted.schedule.over(old.as_ref()).map_err(wrong)?;
    let hooks = wanted.hooks.over(view.hooks.as_ref()).map_err(wrong)?;
    let asks = put.is_some() || hooks.is_some() || wanted.off || wanted.no_hooks;
    if let Some(body) = &put {
        view = client.call(Method::PUT, url(&["schedule"]), Some(body)).await?;
    } else if wanted.off {
        view = client
            .call::<(), _>(Method::DELETE, url(&["schedule"]), None)
            .await?;
    }
    if let Some(body) = &hooks {
        view = client.call(Method::PUT, url(&["hooks"]), Some(body)).await?;
    } else if wanted.no_hooks {
        view = client
            .call::<(), _>(Method::DELETE, url(&["hooks"]), None)
            .await?;
    }
    let now = UnixMillis::now();
    match asks {
        true => session.done(&view, &format!("{name}: {}", sentence(&view, now))),
        false => session.show(&view, |_, _| whole(&view, now)),
    }
}

/// Both as a new volume has them.
///
/// # Errors
/// What is missing to one of them.
pub fn of_new(
    schedule: &ScheduleArgs,
    hooks: &HookArgs,
) -> Result<(Option<PutSchedule>, Option<berth_common::api::PutHooks>), Failure> {
    Ok((
        schedule.over(None).map_err(wrong)?,
        hooks.over(None).map_err(wrong)?,
    ))
}
