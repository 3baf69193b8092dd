//! How a look ahead is told: replica by replica, node by node, and in a sentence. Pure.
//!
//! A tenant is told of its own containers, with the nodes that would have them, as lists tell it once they do; of those of others it
//! reads what events would tell it (R6).

use std::collections::{BTreeMap, BTreeSet};

use berth_common::api::{Fate, ForeseenNode, ForeseenReplica, ForeseenView};
use berth_common::id::{ContainerId, Name, NodeId, ServiceId};

use super::auth::Caller;
use super::views::node_name;
use crate::cluster::State;
use crate::controllers::foreseen::{self, Ahead, Replica};

/// Most sentences about others.
const SENTENCES: usize = 50;

/// What a caller is told. `own`: the containers in question, as they are; `only`: the tenant whose events are told, all if none;
/// `problems`: what would still stand against services in the end.
pub fn view(
    before: &State,
    ahead: &Ahead,
    caller: &Caller,
    only: Option<&Name>,
    pairs: &[Replica<'_>],
    own: &BTreeSet<ContainerId>,
    problems: &BTreeMap<ServiceId, String>,
) -> ForeseenView {
    let told = |pair: &Replica<'_>| replica(before, ahead, pair, problems);
    let replicas: Vec<ForeseenReplica> = pairs.iter().map(told).collect();
    let wanted = |one: &&ForeseenReplica| one.fate != Fate::Removed;
    let count = replicas.iter().filter(wanted).count();
    let without = replicas
        .iter()
        .filter(|one| matches!(one.fate, Fate::Waits | Fate::Lost));
    let without: Vec<_> = without.collect();
    let fits = without.is_empty() && problems.is_empty();
    let mut verdict = match without.first() {
        None if count == 0 => "no replica is wanted".to_owned(),
        None => format!("all {count} would have a place"),
        Some(first) => {
            let why = first.why.as_deref().unwrap_or("nothing would be done about it");
            let lost = first.fate == Fate::Lost;
            let what = if lost {
                "would be lost until the node is back"
            } else {
                "would wait"
            };
            format!("{} of {count} {what}: {}: {why}", without.len(), first.name)
        }
    };
    if let Some(problem) = problems.values().next().filter(|_| without.is_empty()) {
        verdict = format!("{verdict}, but {problem}");
    }
    if ahead.cut {
        verdict.push_str("; it would go on, but no further was looked");
    }
    let disturbed = foreseen::disturbed(before, &ahead.state, own);
    let seen = |pair: &&Replica<'_>| {
        let of = pair.before.or(pair.after);
        of.is_some_and(|record| caller.sees(record.tenant) && !own.contains(&record.id))
    };
    ForeseenView {
        verdict,
        fits,
        nodes: nodes(pairs, &ahead.state),
        replicas,
        others: disturbed.iter().filter(seen).map(told).collect(),
        preempted: preempted(ahead, only),
        cut: ahead.cut,
    }
}

fn replica(
    before: &State,
    ahead: &Ahead,
    pair: &Replica<'_>,
    problems: &BTreeMap<ServiceId, String>,
) -> ForeseenReplica {
    let state = &ahead.state;
    let lost = |node: NodeId| state.nodes.get(&node).is_none_or(|record| record.lost);
    let (from, to) = (
        pair.before.and_then(|record| record.node),
        pair.after.and_then(|record| record.node),
    );
    let fate = match (pair.before, pair.after) {
        (_, Some(new)) if new.node.is_none() => Fate::Waits,
        (_, Some(new)) if new.node.is_some_and(lost) => Fate::Lost,
        (Some(old), Some(new)) if old.id != new.id && old.node.is_some() => Fate::Replaced,
        (Some(old), Some(new)) if old.id == new.id && old.node == new.node => match old.spec == new.spec {
            true => Fate::Stays,
            false => Fate::Changed,
        },
        (_, Some(_)) => Fate::New,
        (_, None) => Fate::Removed,
    };
    let why = match fate {
        Fate::Waits => pair.after.and_then(|record| record.waiting.clone()),
        Fate::Lost => pair
            .after
            .and_then(|record| problems.get(&record.service).cloned()),
        _ => None,
    };
    ForeseenReplica {
        name: pair.name(),
        fate,
        from: from.and_then(|node| node_name(before, node)),
        to: to.and_then(|node| node_name(state, node)),
        why,
    }
}

/// Nodes that would have replicas, those with most of them first.
fn nodes(pairs: &[Replica<'_>], state: &State) -> Vec<ForeseenNode> {
    let mut counts: BTreeMap<NodeId, (u32, u32)> = BTreeMap::new();
    for pair in pairs {
        let Some(to) = pair.after.and_then(|record| record.node) else {
            continue;
        };
        let is_new = pair.before.and_then(|record| record.node) != Some(to);
        let (all, new) = counts.entry(to).or_default();
        *all += 1;
        *new += u32::from(is_new);
    }
    let told = counts.into_iter().filter_map(|(node, (replicas, new))| {
        let name = node_name(state, node)?;
        Some(ForeseenNode { name, replicas, new })
    });
    let mut told: Vec<ForeseenNode> = told.collect();
    told.sort_by(|a, b| b.replicas.cmp(&a.replicas).then_with(|| a.name.cmp(&b.name)));
    told
}

/// Who would be preempted, in the words of the events.
fn preempted(ahead: &Ahead, only: Option<&Name>) -> Vec<String> {
    let mut told = Vec::new();
    let events = ahead.events.iter();
    for event in events.filter(|event| matches!(event.kind, "preempted" | "preempts")) {
        let open = match only {
            Some(only) => event.tenant.as_ref() == Some(only),
            // Who may know everything reads the sentence that names both.
            None => event.tenant.is_none() || !event.text.contains("another tenant's"),
        };
        if open && told.len() < SENTENCES && !told.contains(&event.text) {
            told.push(event.text.clone());
        }
    }
    told
}
