//! Waiting until a service runs, or knowing why it will not.

use std::time::{Duration, Instant};

use berth_common::api::{ContainerView, ServiceView};
use berth_common::id::Name;
use berth_common::model::{ObservedContainer, Phase, RunState};

use super::Session;
use super::progress::Line;
use crate::client::Client;
use crate::failure::Failure;
use crate::render::service::reason;

/// How things stand.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// Not yet; the sentence says what is being done.
    Wait(String),
    /// All run, or ended well.
    Done,
    /// It won't come about without a change.
    Hopeless(String),
}

/// Judges without looking at a clock: `patient` is false once problems had time to pass by themselves.
fn judge(service: &ServiceView, containers: &[ContainerView], patient: bool) -> Verdict {
    let wanted = service.record.spec.replicas;
    if service.record.run == RunState::Stopped {
        return Verdict::Done;
    }
    let current: Vec<&ContainerView> = containers
        .iter()
        .filter(|c| !c.record.removing && c.record.service_generation == service.record.generation)
        .collect();
    let phase = |c: &ContainerView| c.observed.as_ref().map(|o| o.phase);
    let ended_well = |c: &ContainerView| {
        phase(c) == Some(Phase::Exited)
            && c.observed
                .as_ref()
                .and_then(|o| o.last_exit.as_ref())
                .is_some_and(|e| e.code == 0)
    };
    let serves = |c: &ContainerView| c.observed.as_ref().is_some_and(ObservedContainer::serves);
    let fine = current.iter().filter(|c| serves(c) || ended_well(c)).count();
    if fine >= wanted as usize && service.outdated == 0 {
        return Verdict::Done;
    }
    let bad = current.iter().find(|c| match phase(c) {
        Some(Phase::Failed | Phase::Backoff) => true,
        Some(Phase::Exited) => !ended_well(c),
        _ => c.record.waiting.is_some() || c.observed.as_ref().is_some_and(ObservedContainer::is_unhealthy),
    });
    let why = bad.map(|c| {
        let end = c
            .observed
            .as_ref()
            .and_then(|o| o.last_exit.as_ref())
            .map(|e| e.reason.clone());
        let text = reason(c).or(end).unwrap_or_else(|| c.status.clone());
        format!("{} is {}: {text}", c.name, c.status)
    });
    if !patient && let Some(why) = why.or_else(|| service.problem.clone()) {
        return Verdict::Hopeless(why);
    }
    let doing = current.iter().find(|c| !serves(c) && !ended_well(c)).map_or_else(
        || "waiting for containers".to_owned(),
        |c| match (c.status.as_str(), reason(c)) {
            ("starting", Some(said)) => format!("{} is starting: {said}", c.name),
            (status, _) => format!("{} is {status}", c.name),
        },
    );
    Verdict::Wait(format!("{fine} of {wanted} run; {doing}"))
}

/// Waits until the service runs.
///
/// # Errors
/// Why it doesn't, within `limit_secs` seconds.
pub async fn until_running(
    session: &Session,
    client: &Client,
    name: &Name,
    limit_secs: u64,
) -> Result<ServiceView, Failure> {
    // Long enough for the first placement and a first crash to be known, short enough not to bore.
    const PATIENCE: Duration = Duration::from_secs(4);
    let begun = Instant::now();
    let line = Line::new(session.global.quiet);
    let cure = || {
        format!("`berth ps {name}` and `berth logs {name}` say more; `berth service rm {name}` removes it")
    };
    loop {
        let service: ServiceView = client
            .get(client.tenant_url(&["services", name.as_str()], &[]))
            .await?;
        let query = [("service", name.to_string())];
        let (containers, _) = client
            .list::<ContainerView>(client.tenant_url(&["containers"], &query))
            .await?;
        match judge(&service, &containers, begun.elapsed() < PATIENCE) {
            Verdict::Done => return Ok(service),
            Verdict::Hopeless(why) => {
                return Err(Failure::refused(
                    format!("service {name} does not run: {why}"),
                    cure(),
                ));
            }
            Verdict::Wait(doing) if begun.elapsed().as_secs() >= limit_secs => {
                return Err(Failure::refused(
                    format!("service {name} does not run after {limit_secs}s: {doing}"),
                    cure(),
                ));
            }
            Verdict::Wait(doing) => line.say(&doing),
        }
        let pause = if begun.elapsed() < Duration::from_secs(2) {
            50
        } else {
            400
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn service(outdated: u32) -> ServiceView {
        serde_json::from_value(json!({
            "id": "aaaaaaaaaaaaaaaa", "tenant": "aaaaaaaaaaaaaaaa", "tenant_name": "default",
            "spec": {"name": "web", "image": "nginx"}, "generation": 2, "run": "running",
            "created_at": 0, "revision": 1, "running": 0, "outdated": outdated
        }))
        .unwrap()
    }

    fn container(generation: u64, phase: Option<&str>, waiting: Option<&str>, code: i32) -> ContainerView {
        let spec = service(0).record.spec.container_spec().unwrap();
        serde_json::from_value(json!({
            "id": "aaaaaaaaaaaaaaab", "tenant": "aaaaaaaaaaaaaaaa", "service": "aaaaaaaaaaaaaaaa",
            "service_name": "web", "replica": 1, "node": null, "waiting": waiting, "spec": spec,
            "service_generation": generation, "run": "running", "created_at": 0, "revision": 1,
            "name": "web.1", "tenant_name": "default", "status": phase.unwrap_or("waiting"),
            "observed": phase.map(|phase| json!({"id": "aaaaaaaaaaaaaaab", "phase": phase,
                "last_exit": {"code": code, "reason": format!("exited with code {code}"), "at": 0}}))
        }))
        .unwrap()
    }

    #[test]
    fn running_and_clean_ends_are_done() {
        assert_eq!(
            judge(&service(0), &[container(2, Some("running"), None, 1)], false),
            Verdict::Done
        );
        assert_eq!(
            judge(&service(0), &[container(2, Some("exited"), None, 0)], false),
            Verdict::Done
        );
    }

    #[test]
    fn old_generations_do_not_count() {
        let old = [container(1, Some("running"), None, 0)];
        assert!(matches!(judge(&service(1), &old, false), Verdict::Wait(_)));
        let new = [container(2, Some("running"), None, 0)];
        assert!(matches!(judge(&service(1), &new, false), Verdict::Wait(_)));
    }

    #[test]
    fn problems_get_time_and_are_then_told() {
        for bad in [
            container(2, None, Some("no node has 4 cores free"), 0),
            container(2, Some("exited"), None, 3),
            container(2, Some("backoff"), None, 3),
        ] {
            let bad = [bad];
            assert!(matches!(judge(&service(0), &bad, true), Verdict::Wait(_)));
            let Verdict::Hopeless(why) = judge(&service(0), &bad, false) else {
                panic!("told");
            };
            assert!(
                why.contains("no node has") || why.contains("exited with code 3"),
                "{why}"
            );
        }
        let pulling = [container(2, Some("pulling"), None, 0)];
        assert!(matches!(judge(&service(0), &pulling, false), Verdict::Wait(t) if t.contains("pulling")));
    }
}
