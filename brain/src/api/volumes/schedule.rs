//! Snapshots by schedule, and commands around snapshots: what a user asks for. Who makes them is [`crate::controllers`]'s.

use axum::extract::{Path, State as Extract};
use berth_common::api::{CreateVolume, PutHooks, PutSchedule, VolumeView};
use berth_common::error::Problem;
use berth_common::model::{
    ScheduleState, SnapshotHooks, SnapshotSchedule, SpecError, UnixMillis, VolumeRecord,
};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{change, event};
use crate::api::auth::Scope;
use crate::api::problem::{Json, spec_problem};
use crate::api::{Answer, ApiState};

/// Routes of this module.
pub fn routes() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new()
        .routes(routes!(put_schedule, remove_schedule))
        .routes(routes!(put_hooks, remove_hooks))
}

/// What a new volume is to have of both.
pub struct Wishes {
    schedule: Option<SnapshotSchedule>,
    hooks: Option<SnapshotHooks>,
}

impl Wishes {
    /// Checks what a request asks for.
    ///
    /// # Errors
    /// The field at fault.
    pub fn of(body: &CreateVolume) -> Result<Self, Problem> {
        let at = |part: &str, error: &SpecError| {
            let field = format!("{part}{}", error.field);
            spec_problem(error).field(field)
        };
        let schedule = body.schedule.map(SnapshotSchedule::from);
        let hooks = body.hooks.clone().map(SnapshotHooks::from);
        if let Some(schedule) = &schedule {
            schedule.check().map_err(|error| at("/schedule", &error))?;
        }
        if let Some(hooks) = &hooks {
            hooks.check().map_err(|error| at("/hooks", &error))?;
        }
        Ok(Self { schedule, hooks })
    }

    /// Gives them to a volume.
    pub fn give(self, volume: &mut VolumeRecord, now: UnixMillis) {
        volume.schedule = self.schedule;
        volume.scheduled = self.schedule.map(|_| begun(now));
        volume.hooks = self.hooks;
    }
}

/// A schedule begins when it is given: what would have been due before was not missed.
fn begun(now: UnixMillis) -> ScheduleState {
    ScheduleState {
        upto: now,
        problem: None,
    }
}

/// Have snapshots of a volume made by themselves
#[utoipa::path(put, path = "/tenants/{tenant}/volumes/{volume}/schedule", tag = "volumes", operation_id = "putSchedule",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = PutSchedule,
    responses((status = 200, description = "The volume; what its schedule keeps no longer goes with the next snapshot", body = VolumeView)))]
async fn put_schedule(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(body): Json<PutSchedule>,
) -> Answer<VolumeView> {
    let schedule = SnapshotSchedule::from(body);
    schedule.check()?;
    let now = api.cluster.now().wall;
    change(scope, api, volume, move |_, tenant, record| {
        let old = record.schedule.replace(schedule);
        if old == Some(schedule) {
            return Ok(Vec::new());
        }
        // Another retention alone moves no time that is due.
        if old.is_none_or(|old| old.every_ms != schedule.every_ms) {
            record.scheduled = Some(begun(now));
        }
        let text = "snapshots are made by a schedule".to_owned();
        Ok(vec![event(tenant, "volume-schedule", &record.name, text)])
    })
    .await
}

/// Have no more snapshots of a volume made by themselves; those it has stay
#[utoipa::path(delete, path = "/tenants/{tenant}/volumes/{volume}/schedule", tag = "volumes", operation_id = "removeSchedule",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, description = "The volume; without a schedule it is fine, too", body = VolumeView)))]
async fn remove_schedule(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
) -> Answer<VolumeView> {
    change(scope, api, volume, move |_, tenant, record| {
        record.scheduled = None;
        let told = record.schedule.take().map(|_| {
            let text = "its schedule ends, and its snapshots stay".to_owned();
            event(tenant, "volume-schedule", &record.name, text)
        });
        Ok(told.into_iter().collect())
    })
    .await
}

/// Have commands run in a volume's container before and after each snapshot
#[utoipa::path(put, path = "/tenants/{tenant}/volumes/{volume}/hooks", tag = "volumes", operation_id = "putHooks",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    request_body = PutHooks,
    responses((status = 200, description = "The volume", body = VolumeView)))]
async fn put_hooks(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
    Json(body): Json<PutHooks>,
) -> Answer<VolumeView> {
    let hooks = SnapshotHooks::from(body);
    hooks.check()?;
    change(scope, api, volume, move |_, _, record| {
        record.hooks = Some(hooks);
        Ok(Vec::new())
    })
    .await
}

/// Have no more commands run around a volume's snapshots
#[utoipa::path(delete, path = "/tenants/{tenant}/volumes/{volume}/hooks", tag = "volumes", operation_id = "removeHooks",
    params(("tenant" = String, Path, description = "The tenant's name"), ("volume" = String, Path, description = "The volume's name")),
    responses((status = 200, description = "The volume; without commands it is fine, too", body = VolumeView)))]
async fn remove_hooks(
    scope: Scope,
    Extract(api): Extract<ApiState>,
    Path((_tenant, volume)): Path<(String, String)>,
) -> Answer<VolumeView> {
    change(scope, api, volume, move |_, _, record| {
        record.hooks = None;
        Ok(Vec::new())
    })
    .await
}
