//! How containers and services stand, in words for people (R9). Pure; the API calls it.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::ServiceId;
use berth_common::model::{ContainerRecord, HealthState, Phase, RunState};

use super::context::{ended, failing, failure, label};
use super::wishes;
use crate::cluster::State;
use crate::outlook::At;
use crate::scheduler::{Search, View};

/// Containers of a service that run something else than its spec now says.
pub fn outdated(state: &State, service: ServiceId) -> u32 {
    let want = state
        .services
        .get(&service)
        .and_then(|s| s.spec.container_spec().ok());
    let Some(want) = want else { return 0 };
    let old = state
        .containers_of(service)
        .filter(|c| !c.removing && *c.spec != want);
    u32::try_from(old.count()).unwrap_or(u32::MAX)
}

/// Why a service is not as its spec wants it; none if it is, or is on its way without trouble.
pub fn service_problem(state: &State, outlook: &At<'_>, service: ServiceId) -> Option<String> {
    let record = state.services.get(&service)?;
    let live: Vec<_> = state.containers_of(service).filter(|c| !c.removing).collect();
    let mut parts = Vec::new();
    let waiting: Vec<_> = live.iter().filter(|c| c.node.is_none()).collect();
    if let Some(first) = waiting.first() {
        let why = first.waiting.as_deref().unwrap_or("it was not planned yet");
        parts.push(format!(
            "{} of {} wait for a node: {why}",
            waiting.len(),
            record.spec.replicas
        ));
    }
    let name = |id| {
        state
            .nodes
            .get(&id)
            .map_or_else(String::new, |n| n.name.to_string())
    };
    let mut failing_next = false;
    let fails = live.iter().filter_map(|c| {
        let seen = state.observed.get(&c.id)?;
        (failing(c, Some(seen)) && (seen.phase != Phase::Running || seen.is_unhealthy())
            || c.replaces.is_some() && failing(c, Some(seen)))
        .then_some((c, seen))
    });
    let fails: Vec<_> = fails.collect();
    if let Some((c, seen)) = fails.iter().find(|(c, _)| c.replaces.is_some()) {
        failing_next = true;
        let place = c.node.map_or_else(String::new, name);
        parts.push(format!(
            "the rollout stopped: the new {} on {place} fails: {}",
            label(c),
            failure(seen)
        ));
    } else if let Some((c, seen)) = fails.first() {
        let place = c.node.map_or_else(String::new, name);
        parts.push(format!(
            "{} fail, such as {} on {place}: {}",
            fails.len(),
            label(c),
            failure(seen)
        ));
    }
    let stranded: Vec<_> = live
        .iter()
        .filter(|c| {
            c.node
                .is_some_and(|id| state.nodes.get(&id).is_none_or(|n| n.lost))
        })
        .filter(|c| c.run == RunState::Running && !ended(c, state.observed.get(&c.id).map(|o| &**o)))
        .collect();
    let stalled = !failing_next && live.iter().all(|c| c.replaces.is_none()) && outdated(state, service) > 0;
    if stranded.is_empty() && !stalled {
        return (!parts.is_empty()).then(|| parts.join("; "));
    }
    if let Ok(want) = record.spec.container_spec() {
        let view = View::new(state, &BTreeMap::new()).with_loads(outlook);
        let request = wishes::request(
            state,
            record,
            &want,
            stranded.first().map_or(1, |c| c.replica),
            &BTreeSet::new(),
            outlook,
        );
        let possible = Search::new(&view, request).possible(&view);
        let refused = outlook
            .unheard(record)
            .or_else(|| Some(possible.err()?.to_string()));
        if let Some(refusal) = refused {
            if let Some(first) = stranded.first() {
                let place = first.node.map_or_else(String::new, name);
                parts.push(format!("{} on the lost node {place}: {refusal}", stranded.len()));
            } else {
                parts.push(format!("the rollout can't go on: {refusal}"));
            }
        }
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// One word for how a container stands, and why when it does not simply run. `node_silent`: its node is not lost, but
/// does not answer either.
pub fn container_status(
    state: &State,
    container: &ContainerRecord,
    node_silent: bool,
) -> (String, Option<String>) {
    let say = |status: &str, reason: Option<String>| (status.to_owned(), reason);
    let Some(id) = container.node else {
        return say(
            if container.removing { "removing" } else { "waiting" },
            container.waiting.clone(),
        );
    };
    let node = state.nodes.get(&id);
    let name = node.map_or_else(|| id.to_string(), |n| n.name.to_string());
    let lost = node.is_none_or(|n| n.lost);
    if container.removing {
        let reason = (lost || node_silent)
            .then(|| format!("node {name} does not answer; it goes when the node returns"));
        return say("removing", reason);
    }
    if lost {
        return say("unreachable", Some(format!("node {name} is lost")));
    }
    if node_silent {
        return say("unreachable", Some(format!("node {name} does not answer")));
    }
    let Some(seen) = state.observed.get(&container.id) else {
        return say("pending", Some(format!("node {name} has not reported it yet")));
    };
    let exit = || seen.last_exit.as_ref().map(|exit| exit.reason.clone());
    let reason = || seen.reason.clone().or_else(exit);
    match seen.phase {
        Phase::Pending => say("pending", seen.reason.clone()),
        Phase::Pulling => say("pulling", seen.reason.clone()),
        Phase::Creating => say("creating", seen.reason.clone()),
        // One that runs without one of its networks.
        Phase::Running => {
            let output = seen.health.as_ref().and_then(|health| health.output.clone());
            let status = match seen.health.as_ref().map(|health| health.state) {
                Some(HealthState::Starting) => "starting",
                Some(HealthState::Healthy) => "healthy",
                Some(HealthState::Unhealthy) => "unhealthy",
                Some(HealthState::Unknown) | None => "running",
            };
            let reason = output.or_else(|| seen.reason.clone());
            say(status, reason.or_else(|| container.waiting.clone()))
        }
        Phase::Stopping => say("stopping", seen.reason.clone()),
        Phase::Backoff => say("backoff", Some(failure(seen))),
        Phase::Exited if container.run == RunState::Stopped => say("stopped", seen.reason.clone()),
        Phase::Exited => say("exited", reason()),
        Phase::Failed => say("failed", Some(failure(seen))),
        Phase::Unknown => say("unknown", Some("its agent is newer than this brain".to_owned())),
    }
}
