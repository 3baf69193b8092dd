//! Why a container is where it is, or waits: its nodes compared as if it were placed now, and the outcome in words (R9). Pure; the API calls it.
//!
//! Refuses to know who asks: what a caller may not see the API leaves out.

use std::collections::BTreeMap;

use berth_common::id::NodeId;
use berth_common::model::{ContainerRecord, Reservation};

use super::context::label;
use super::wishes;
use crate::cluster::State;
use crate::outlook::At;
use crate::scheduler::compare::Choice;
use crate::scheduler::forecast::Loads;
use crate::scheduler::score::Parts;
use crate::scheduler::{Footprint, Request, Search, View};

/// A container's place, explained.
#[derive(Debug)]
pub struct Explained {
    /// What it reserves.
    pub asked: Reservation,
    /// What it is expected to use.
    pub load: Loads,
    /// Every node, the best first.
    pub choices: Vec<Choice>,
    /// Why no node fits.
    pub refusal: Option<String>,
    /// Its service's policy was not heard: the comparison lacks its word.
    pub unheard: bool,
}

/// Compares all nodes for a container, itself taken away first; none of one whose service is gone.
pub fn explain(state: &State, outlook: &At<'_>, container: &ContainerRecord) -> Option<Explained> {
    compare(state, outlook, container, None)
}

/// The same for its successor, which counts as what is not known yet.
pub(super) fn successor(state: &State, outlook: &At<'_>, container: &ContainerRecord) -> Option<Explained> {
    let load = outlook.newcomer(container.service, &container.spec);
    compare(state, outlook, container, Some(load))
}

fn compare(
    state: &State,
    outlook: &At<'_>,
    container: &ContainerRecord,
    load: Option<Loads>,
) -> Option<Explained> {
    let (view, mut request) = as_if_nowhere(state, outlook, container)?;
    request.load = load.unwrap_or(request.load);
    let (asked, load) = (request.reservation, request.load);
    let search = Search::new(&view, request);
    let service = state.services.get(&container.service)?;
    let refusal = || search.possible(&view).err().map(|refusal| refusal.to_string());
    let unheard = outlook.unheard(service);
    Some(Explained {
        asked,
        load,
        choices: search.compare(&view),
        unheard: unheard.is_some(),
        refusal: unheard.or_else(refusal),
    })
}

/// All nodes as they would be without a container, and what it asks of them; none if its service is gone.
pub(super) fn as_if_nowhere<'a>(
    state: &'a State,
    outlook: &'a At<'_>,
    container: &ContainerRecord,
) -> Option<(View<'a>, Request<'a>)> {
    let service = state.services.get(&container.service)?;
    let mut view = View::new(state, &BTreeMap::new()).with_loads(outlook);
    let request = wishes::anew(state, service, container, outlook);
    match (container.node, container.claim) {
        (Some(node), _) => view.release(
            node,
            &Footprint {
                reserved: container.spec.reservation,
                idle: container.spec.idle_use(),
                load: request.load,
            },
        ),
        (None, Some(node)) => view.unclaim(node, container.spec.reservation),
        (None, None) => {}
    }
    Some((view, request))
}

/// A part of a rating.
pub type PartOf = fn(&Parts) -> i64;

/// The named parts of a rating, in the order in which they are told.
pub const PARTS: [(&str, PartOf); 10] = [
    ("room in reservations", |r| r.reservation),
    ("load", |r| r.load),
    ("replicas that are there already", |r| r.replicas),
    ("being the only node with its replicas", |r| r.alone),
    ("an even spread", |r| r.spread),
    ("nearness to other services", |r| r.standing.together),
    ("taints", |r| r.standing.taints),
    ("its policy", |r| r.standing.policy),
    ("the image being there", |r| r.image),
    ("best-effort containers that would have to go", |r| r.displaces),
];

impl Explained {
    /// Where it would be placed now.
    pub fn best(&self) -> Option<&Choice> {
        let best = self.choices.first().filter(|choice| choice.rating.is_some());
        best.filter(|_| !self.unheard)
    }

    fn fitting(&self) -> usize {
        self.choices
            .iter()
            .filter(|choice| choice.rating.is_some())
            .count()
    }

    /// The outcome in words. `shown`: the name of a node, if it may be named; `open`: whether numbers of a node may be told.
    pub fn verdict(
        &self,
        container: &ContainerRecord,
        shown: impl Fn(NodeId) -> Option<String>,
        open: impl Fn(NodeId) -> bool,
    ) -> String {
        let name = label(container);
        let named = |node| shown(node).unwrap_or_else(|| "another node".to_owned());
        let fitting = format!("{} of {} nodes can take it", self.fitting(), self.choices.len());
        let Some(here) = container.node else {
            let why = container.waiting.as_deref().unwrap_or("it was not planned yet");
            return match (self.best(), &self.refusal) {
                (Some(best), _) => format!("{name} waits: {why}; {fitting}, {} best", named(best.node)),
                (None, Some(refusal)) if !why.contains(refusal.as_str()) => {
                    format!("{name} waits: {why}; {refusal}")
                }
                (None, _) => format!("{name} waits: {why}"),
            };
        };
        let stay = "it stays where it is: nothing moves for a better score alone, but for what its service asks for once a node comes";
        let place = named(here);
        let Some(best) = self.best() else {
            let refusal = self.refusal.as_deref().unwrap_or("no node fits");
            return format!("{name} is on {place} and would find no place now: {refusal}; {stay}");
        };
        if best.node == here {
            let why = match self.choices.get(1).filter(|next| next.rating.is_some()) {
                None => "no other node can take it".to_owned(),
                Some(next) if open(here) && open(next.node) => {
                    format!("{fitting}, and it is {}", over(best, next, &named(next.node)))
                }
                Some(_) => fitting,
            };
            return format!("{name} is on {place} and would be placed there again: {why}");
        }
        let own = self.choices.iter().find(|choice| choice.node == here);
        let why = match own {
            Some(own) if own.rating.is_some() && open(here) && open(best.node) => {
                format!("that is {}", over(best, own, &place))
            }
            Some(own) if own.rating.is_some() => fitting,
            Some(own) => {
                let against = own.against.iter().map(|one| one.sentence(self.asked, &place));
                format!("{place} {}", against.collect::<Vec<_>>().join(" and "))
            }
            None => format!("{place} is no more"),
        };
        let there = named(best.node);
        format!("{name} is on {place} and would be placed on {there} now: {why}; {stay}")
    }
}

/// By what one node is better than another.
fn over(better: &Choice, worse: &Choice, name: &str) -> String {
    let (Some(better), Some(worse)) = (&better.rating, &worse.rating) else {
        return format!("the only one, as {name} can't take it");
    };
    let ahead = better.total() - worse.total();
    let most = PARTS.iter().map(|(what, of)| (of(better) - of(worse), what));
    match most.max_by_key(|(by, _)| *by) {
        Some((by, what)) if ahead > 0 && by > 0 => {
            format!("{ahead} points before {name}, most of it for {what} ({by})")
        }
        _ => format!("as good as {name}, and first in the order of ids"),
    }
}
