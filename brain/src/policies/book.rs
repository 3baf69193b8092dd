//! The book of policies: what was heard of each for which service, whom to ask next, and which policies are out. Pure but for being
//! changed: time is an input, seconds since the brain started.
//!
//! A policy that failed three times running is left alone for a while and counts as failed for everybody meanwhile; after that one
//! question at a time tries it. So one that is dead delays a placement now and then, and not each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use berth_common::id::{Name, ServiceId};
use berth_common::model::ServiceRecord;

use super::{OnFailure, PolicySettings, Verdict};
use crate::cluster::State;
use crate::controllers::NewEvent;

/// Failures in a row after which a policy is left alone.
const OUT_AFTER: u32 = 3;
/// How long that is, seconds.
const OUT_SECS: u32 = 10;
/// How long one failure counts for the service that it was about, seconds.
const FAILED_SECS: u32 = 5;
/// Questions to one policy at a time.
const AT_ONCE: usize = 8;
/// Words of all verdicts that are kept; beyond that the ones that end first go.
const MOST_WORDS: usize = 2_000_000;

/// What a plan is to know of a service's policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opinion {
    /// Nobody is to be asked, or who was asked fails and is to be ignored.
    Free,
    /// This was heard, and counts until then, seconds since the brain started.
    Heard(Arc<Verdict>, u32),
    /// It has to be asked; what to say meanwhile.
    Unasked(String),
    /// It can't be heard, and placements wait for it.
    Waits {
        /// Why, in words.
        why: String,
        /// When it is worth asking again, seconds since the brain started; none: not before the settings change.
        again: Option<u32>,
    },
}

/// One policy.
#[derive(Debug)]
struct Standing {
    on_failure: OnFailure,
    /// Failures since it last answered.
    failures: u32,
    /// It is left alone until then.
    out_until: u32,
    /// Its last failure.
    why: String,
    /// Questions under way.
    under_way: usize,
}

/// What was heard for a service.
#[derive(Debug)]
struct Entry {
    generation: u64,
    until: u32,
    heard: Result<Arc<Verdict>, String>,
}

/// A question to be asked.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Of whom.
    pub policy: Name,
    /// For which service, as it is now.
    pub service: Arc<ServiceRecord>,
}

/// What is to be done next.
#[derive(Debug, Default)]
pub struct Next {
    /// Ask this.
    pub ask: Option<Ask>,
    /// Plan these services again: they need not be asked for any more, since their policy was heard or given up meanwhile.
    pub plan: BTreeSet<ServiceId>,
}

/// All policies with what was heard of them.
#[derive(Debug, Default)]
pub struct Book {
    policies: BTreeMap<Name, Standing>,
    entries: BTreeMap<ServiceId, Entry>,
    wanted: BTreeSet<ServiceId>,
    under_way: BTreeSet<ServiceId>,
    words: usize,
}

impl Book {
    /// These policies, of which nothing was heard.
    pub fn new(policies: &[PolicySettings]) -> Self {
        let all = policies.iter().map(|one| {
            let standing = Standing {
                on_failure: one.on_failure,
                failures: 0,
                out_until: 0,
                why: String::new(),
                under_way: 0,
            };
            (one.name.clone(), standing)
        });
        Self {
            policies: all.collect(),
            ..Self::default()
        }
    }

    /// What a plan is to know.
    pub fn opinion(&self, service: &ServiceRecord, now: u32) -> Opinion {
        let Some(name) = &service.spec.policy else {
            return Opinion::Free;
        };
        let Some(policy) = self.policies.get(name) else {
            return Opinion::Waits {
                why: format!(
                    "waits for policy {name}, which is not in the brain's settings (any more); choose another one, or none: \
                     berth service update {} --policy-rm",
                    service.spec.name
                ),
                again: None,
            };
        };
        let entry = self.entries.get(&service.id);
        let fresh = entry.filter(|one| one.generation == service.generation && one.until > now);
        let (why, until) = match fresh {
            Some(Entry {
                heard: Ok(verdict),
                until,
                ..
            }) => return Opinion::Heard(Arc::clone(verdict), *until),
            Some(Entry {
                heard: Err(why),
                until,
                ..
            }) => (why, (*until).max(policy.out_until)),
            None if policy.out_until > now => (&policy.why, policy.out_until),
            None => return Opinion::Unasked(format!("asks policy {name}")),
        };
        match policy.on_failure {
            OnFailure::Ignore => Opinion::Free,
            OnFailure::Wait => Opinion::Waits {
                why: format!("waits for policy {name}: {why}"),
                again: Some(until),
            },
        }
    }

    /// Plans wait for the word of these services' policies.
    pub fn want(&mut self, services: impl IntoIterator<Item = ServiceId>) {
        let new = services.into_iter().filter(|id| !self.under_way.contains(id));
        self.wanted.extend(new);
    }

    /// Whom to ask next, if anybody. What it gives out is under way until [`Self::finish`].
    pub fn next(&mut self, state: &State, now: u32) -> Next {
        let mut next = Next::default();
        let mut done = Vec::new();
        for id in &self.wanted {
            let service = state.services.get(id);
            let Some((service, name)) = service.and_then(|one| Some((one, one.spec.policy.as_ref()?))) else {
                done.push(*id);
                continue;
            };
            if !matches!(self.opinion(service, now), Opinion::Unasked(_)) {
                done.push(*id);
                next.plan.insert(*id);
                continue;
            }
            let Some(policy) = self.policies.get_mut(name) else {
                continue;
            };
            // One that was out is tried by one question.
            let most = if policy.failures >= OUT_AFTER { 1 } else { AT_ONCE };
            if policy.under_way < most {
                policy.under_way += 1;
                done.push(*id);
                self.under_way.insert(*id);
                next.ask = Some(Ask {
                    policy: name.clone(),
                    service: Arc::clone(service),
                });
                break;
            }
        }
        for id in done {
            self.wanted.remove(&id);
        }
        next
    }

    /// A question came to its end, with a verdict and how many seconds it counts, or with what went wrong. Gives what to tell people.
    pub fn finish(
        &mut self,
        ask: &Ask,
        result: Result<(Verdict, u32), String>,
        now: u32,
    ) -> Option<NewEvent> {
        self.under_way.remove(&ask.service.id);
        let policy = self.policies.get_mut(&ask.policy)?;
        policy.under_way = policy.under_way.saturating_sub(1);
        let was_failing = policy.failures > 0;
        let (heard, secs) = match result {
            Ok((verdict, secs)) => {
                policy.failures = 0;
                policy.out_until = 0;
                (Ok(Arc::new(verdict)), secs)
            }
            Err(why) => {
                policy.failures += 1;
                if policy.failures >= OUT_AFTER {
                    policy.out_until = now.saturating_add(OUT_SECS);
                }
                policy.why.clone_from(&why);
                (Err(why), FAILED_SECS)
            }
        };
        let event = match (&heard, was_failing) {
            (Err(why), false) => Some((
                "policy-failed",
                match policy.on_failure {
                    OnFailure::Ignore => format!("{why}; placements go on without it"),
                    OnFailure::Wait => format!("{why}; placements wait for it"),
                },
            )),
            (Ok(_), true) => Some(("policy-back", "it answers again".to_owned())),
            _ => None,
        };
        let entry = Entry {
            generation: ask.service.generation,
            until: now.saturating_add(secs),
            heard,
        };
        self.keep(ask.service.id, entry, now);
        event.map(|(kind, text)| NewEvent {
            kind,
            tenant: None,
            subject: format!("policy {}", ask.policy),
            text,
        })
    }

    fn keep(&mut self, service: ServiceId, entry: Entry, now: u32) {
        self.forget(service);
        let over: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, one)| one.until <= now)
            .map(|(id, _)| *id)
            .collect();
        over.into_iter().for_each(|id| self.forget(id));
        self.words += words(&entry);
        while self.words > MOST_WORDS {
            let first = self
                .entries
                .iter()
                .min_by_key(|(_, one)| one.until)
                .map(|(id, _)| *id);
            let Some(first) = first else { break };
            self.forget(first);
        }
        self.entries.insert(service, entry);
    }

    /// Drops what is known for a service that is no more.
    pub fn forget(&mut self, service: ServiceId) {
        if let Some(gone) = self.entries.remove(&service) {
            self.words = self.words.saturating_sub(words(&gone));
        }
    }
}

fn words(entry: &Entry) -> usize {
    entry.heard.as_ref().map_or(1, |verdict| verdict.len() + 1)
}
