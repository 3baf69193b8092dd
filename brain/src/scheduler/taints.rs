//! Taints: which of a node's a service does not tolerate, and what follows.

use berth_common::model::{NodeRecord, Taint, TaintEffect, Toleration};

/// Taken from a node's score for each taint that would rather have no new containers: more than any fit of resources and less than a
/// replica of the same service, so that such a node is used before replicas crowd together.
const RELUCTANCE: i64 = 16_000;

/// The node's taints that none of `tolerations` covers.
fn untolerated<'n>(node: &'n NodeRecord, tolerations: &[Toleration]) -> impl Iterator<Item = &'n Taint> {
    let covered = |taint: &&Taint| tolerations.iter().any(|one| one.covers(taint));
    node.taints.iter().filter(move |taint| !covered(taint))
}

/// The taint that keeps new containers off the node.
pub fn keeps_off<'n>(node: &'n NodeRecord, tolerations: &[Toleration]) -> Option<&'n Taint> {
    untolerated(node, tolerations).find(|taint| taint.effect != TaintEffect::PreferNoSchedule)
}

/// The taint for which containers that are on the node must leave it.
pub fn drives_away<'n>(node: &'n NodeRecord, tolerations: &[Toleration]) -> Option<&'n Taint> {
    untolerated(node, tolerations).find(|taint| taint.effect == TaintEffect::NoExecute)
}

/// What the node's softer taints take from its score.
pub fn reluctance(node: &NodeRecord, tolerations: &[Toleration]) -> i64 {
    let soft = untolerated(node, tolerations).filter(|taint| taint.effect == TaintEffect::PreferNoSchedule);
    RELUCTANCE * soft.count() as i64
}
