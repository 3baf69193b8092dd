//! Metrics of the brain, as Prometheus scrapes them.
//!
//! Owns what is counted as it happens ([`Metrics`]: decisions, durations, requests) and how the cluster's present state becomes series
//! ([`present`]). Refuses series of single containers, and labels whose values anybody outside could invent: how many series there are
//! follows from nodes, services and the code alone.

pub mod nodes;
pub mod present;
pub mod services;

use std::fmt::{self, Write};
use std::time::Duration;

use berth_common::id::Name;
use prometheus_client::encoding::{EncodeLabelSet, prometheus_text, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::controllers::decisions::{Decision, Reason, Tally, Whom};
use present::Present;

/// What every series' name begins with.
const PREFIX: &str = "berth";
/// Buckets of durations: 100 microseconds, doubled up to 26 seconds.
const SHORTEST_SECS: f64 = 0.000_1;
const BUCKETS: u16 = 19;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByObstacle {
    obstacle: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByClass {
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPolicy {
    policy: String,
    outcome: &'static str,
}

/// The form in which metrics are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The older text format of Prometheus, 0.0.4.
    Prometheus,
}

impl Form {
    /// Its media type.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
        }
    }
}

/// What is counted since the brain started.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    placements: Counter,
    refusals: Counter,
    obstacles: Family<ByObstacle, Counter>,
    moves: Family<ByReason, Counter>,
    preemptions: Family<ByClass, Counter>,
    replacements: Counter,
    events: Family<ByKind, Counter>,
    plan: Histogram,
    commit: Histogram,
    commit_failures: Counter,
    requests: Family<ByRoute, Counter>,
    asked: Family<ByPolicy, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        let durations = || Histogram::new(exponential_buckets(SHORTEST_SECS, 2.0, BUCKETS));
        let mut registry = Registry::with_prefix(PREFIX);
        let new = Self {
            placements: Counter::default(),
            refusals: Counter::default(),
            obstacles: Family::default(),
            moves: Family::default(),
            preemptions: Family::default(),
            replacements: Counter::default(),
            events: Family::default(),
            plan: durations(),
            commit: durations(),
            commit_failures: Counter::default(),
            requests: Family::default(),
            asked: Family::default(),
            registry: Registry::default(),
        };
        let r = &mut registry;
        r.register(
            "scheduler_placements",
            "Containers that got a node",
            new.placements.clone(),
        );
        r.register(
            "scheduler_refusals",
            "Searches that found no node: one for equal containers of one plan",
            new.refusals.clone(),
        );
        r.register(
            "scheduler_refusal_obstacles",
            "What stood against nodes in searches that found none; each kind once a search",
            new.obstacles.clone(),
        );
        r.register(
            "scheduler_moves",
            "Containers that were to run elsewhere, by why",
            new.moves.clone(),
        );
        r.register(
            "scheduler_preemptions",
            "Containers stopped for others, by their class",
            new.preemptions.clone(),
        );
        r.register(
            "containers_replaced",
            "Containers that a successor took over from",
            new.replacements.clone(),
        );
        r.register("events", "What berth events tells, by kind", new.events.clone());
        r.register_with_unit(
            "plan_duration",
            "Time to plan what one batch of changes makes necessary",
            Unit::Seconds,
            new.plan.clone(),
        );
        r.register_with_unit(
            "commit_duration",
            "Time until the store has one batch on disk",
            Unit::Seconds,
            new.commit.clone(),
        );
        r.register(
            "commit_failures",
            "Batches that the store refused",
            new.commit_failures.clone(),
        );
        r.register(
            "api_requests",
            "Answers of the HTTP API; streams count when they begin",
            new.requests.clone(),
        );
        r.register(
            "policy_requests",
            "Questions to placement policies, by what came of them",
            new.asked.clone(),
        );
        // What never happened is zero and not absent: rates of what has just begun need a first value.
        for reason in [
            Reason::NodeLost,
            Reason::Drain,
            Reason::Taint,
            Reason::Load,
            Reason::Volume,
        ] {
            drop(new.moves.get_or_create(&ByReason::from(reason)));
        }
        for whom in [Whom::LowerPriority, Whom::BestEffort] {
            drop(new.preemptions.get_or_create(&ByClass::from(whom)));
        }
        drop(new.events.get_or_create(&ByKind { kind: "node-hot" }));
        Self { registry, ..new }
    }
}

impl From<Reason> for ByReason {
    fn from(reason: Reason) -> Self {
        let reason = match reason {
            Reason::NodeLost => "node_lost",
            Reason::Drain => "drain",
            Reason::Taint => "taint",
            Reason::Load => "load",
            Reason::Volume => "volume",
        };
        Self { reason }
    }
}

impl From<Whom> for ByClass {
    fn from(whom: Whom) -> Self {
        let class = match whom {
            Whom::LowerPriority => "lower_priority",
            Whom::BestEffort => "best_effort",
        };
        Self { class }
    }
}

impl Metrics {
    /// These decisions became the cluster's.
    pub fn decided(&self, tally: &Tally) {
        for (decision, count) in tally.iter() {
            match decision {
                Decision::Placed => self.placements.inc_by(count),
                Decision::Refused => self.refusals.inc_by(count),
                Decision::Obstacle(obstacle) => self
                    .obstacles
                    .get_or_create(&ByObstacle { obstacle })
                    .inc_by(count),
                Decision::Moved(reason) => self.moves.get_or_create(&reason.into()).inc_by(count),
                Decision::Preempted(whom) => self.preemptions.get_or_create(&whom.into()).inc_by(count),
                Decision::Replaced => self.replacements.inc_by(count),
            };
        }
    }

    /// An event of this kind was told.
    pub fn event(&self, kind: &'static str) {
        self.events.get_or_create(&ByKind { kind }).inc();
    }

    /// A policy of the settings was asked.
    pub fn asked(&self, policy: &Name, answered: bool) {
        let labels = ByPolicy {
            policy: policy.to_string(),
            outcome: if answered { "answered" } else { "failed" },
        };
        self.asked.get_or_create(&labels).inc();
    }

    /// A batch was planned.
    pub fn planned(&self, took: Duration) {
        self.plan.observe(took.as_secs_f64());
    }

    /// The store took a batch, or refused it.
    pub fn committed(&self, took: Duration, taken: bool) {
        if taken {
            self.commit.observe(took.as_secs_f64());
        } else {
            self.commit_failures.inc();
        }
    }

    /// A request of the API was answered. `route` is one of those that the code has, see [`route_class`].
    pub fn answered(&self, route: String, method: &str, status: u16) {
        const KNOWN: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
        let method = KNOWN.into_iter().find(|known| *known == method);
        let labels = ByRoute {
            route,
            method: method.unwrap_or("other"),
            status,
        };
        self.requests.get_or_create(&labels).inc();
    }

    /// All series, those of the cluster as it is included.
    pub fn told(&self, present: Present, form: Form) -> String {
        let mut now = Registry::with_prefix(PREFIX);
        now.register_collector(Box::new(present));
        let mut out = String::new();
        // A string takes everything.
        let _ = write_all(&mut out, [&self.registry, &now], form);
        out
    }
}

fn write_all(out: &mut impl Write, registries: [&Registry; 2], form: Form) -> fmt::Result {
    for registry in registries {
        match form {
            Form::OpenMetrics => text::encode_registry(out, registry)?,
            Form::Prometheus => prometheus_text::encode(out, registry)?,
        }
    }
    match form {
        Form::OpenMetrics => text::encode_eof(out),
        Form::Prometheus => Ok(()),
    }
}

/// The class of a route by its template, `/v1/tenants/{tenant}/services/{name}/scale`: the kind of objects that it is about.
pub fn route_class(template: &str) -> &str {
    let mut words = template
        .split('/')
        .filter(|word| !word.is_empty() && !word.starts_with('{'));
    match words.next() {
        Some("v1") => match (words.next(), words.next()) {
            (Some("tenants"), Some(of)) => of,
            (Some(first), _) => first,
            (None, _) => "other",
        },
        Some(first) => first,
        None => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_have_classes_whoever_they_name() {
        for (template, class) in [
            ("/v1/tenants", "tenants"),
            ("/v1/tenants/{tenant}", "tenants"),
            ("/v1/tenants/{tenant}/services/{name}/scale", "services"),
            ("/v1/nodes/{name}", "nodes"),
            ("/v1/openapi.json", "openapi.json"),
            ("/install/{arch}/{file}", "install"),
            ("/metrics", "metrics"),
            ("/", "other"),
            ("/v1", "other"),
        ] {
            assert_eq!(route_class(template), class, "{template}");
        }
    }
}
