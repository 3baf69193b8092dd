//! What a service may ask of places, judged against the others of its tenant. Pure.

use std::collections::BTreeSet;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, TenantId};
use berth_common::model::{ServiceRecord, ServiceSpec, TenantRecord};

use crate::cluster::State;

/// Whether services that must be near others wait for each other in a circle, where none would ever be first. One that is not there yet may
/// come.
///
/// # Errors
/// `invalid`, with the circle.
pub fn judge(state: &State, tenant: TenantId, spec: &ServiceSpec) -> Result<(), Problem> {
    let mut seen = BTreeSet::new();
    let mut ahead: Vec<(&ServiceSpec, Vec<&Name>)> = vec![(spec, vec![&spec.name])];
    while let Some((from, way)) = ahead.pop() {
        for with in from.together.iter().filter(|one| one.hard).map(|one| &one.with) {
            let way = [&way[..], &[with]].concat();
            if *with == spec.name {
                let way: Vec<&str> = way.iter().map(|name| name.as_str()).collect();
                let detail = format!(
                    "it must be near services that must be near it: {}; none would ever be first",
                    way.join(" → ")
                );
                return Err(Problem::invalid(detail)
                    .field("/together")
                    .cure("leave `hard` out on one of them"));
            }
            if let Some(next) = state.service(tenant, with)
                && seen.insert(with)
            {
                ahead.push((&next.spec, way));
            }
        }
    }
    Ok(())
}

/// Whether a tenant by itself may give a service its priority. What an administrator gave stays when other things change.
///
/// # Errors
/// `forbidden`, with what it may have.
pub fn judge_priority(
    tenant: &TenantRecord,
    spec: &ServiceSpec,
    replaced: Option<&ServiceRecord>,
) -> Result<(), Problem> {
    let had = replaced.map_or(i32::MIN, |old| old.spec.priority);
    if spec.priority <= tenant.max_priority.max(had) {
        return Ok(());
    }
    let detail = format!(
        "a priority of {} is above the {} that tenant {} may give",
        spec.priority, tenant.max_priority, tenant.name
    );
    Err(Problem::new(ErrorKind::Forbidden, detail)
        .field("/priority")
        .cure(format!(
            "ask for no more, or ask an administrator for: berth tenant quota {} --max-priority {}",
            tenant.name, spec.priority
        )))
}

/// Whether the brain's settings have the policy that a service asks for. One that they had when the service got it stays, and what
/// follows from that is told by the service.
///
/// # Errors
/// `invalid`, with the policies that there are.
pub fn judge_policy(
    known: &[Name],
    spec: &ServiceSpec,
    replaced: Option<&ServiceRecord>,
) -> Result<(), Problem> {
    let Some(wanted) = &spec.policy else { return Ok(()) };
    let had = replaced.is_some_and(|old| old.spec.policy.as_ref() == Some(wanted));
    if had || known.contains(wanted) {
        return Ok(());
    }
    let problem = Problem::invalid(format!("there is no policy {wanted}")).field("/policy");
    Err(match known {
        [] => problem
            .cure("leave it out, or ask who runs the brain to add it to the brain's settings ([[policy]])"),
        known => {
            let known: Vec<&str> = known.iter().map(Name::as_str).collect();
            problem.cure(format!("choose one that there is: {}", known.join(", ")))
        }
    })
}
