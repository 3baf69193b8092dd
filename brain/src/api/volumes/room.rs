//! Nodes as places for volumes: which a tenant may use, and whether there is room.

use std::sync::Arc;

use berth_common::error::{ErrorKind, Problem};
use berth_common::id::{Name, NodeId};
use berth_common::model::{MAX_VOLUMES, NodeRecord, TenantRecord};
use berth_common::units::Bytes;

use super::refuse;
use crate::api::nodes;
use crate::cluster::State;

/// The node of this name, if the tenant's volumes may be on it.
///
/// # Errors
/// `invalid`, the same for one that does not exist and for one that is another tenant's.
pub fn node<'a>(
    state: &'a State,
    tenant: &TenantRecord,
    name: &Name,
) -> Result<&'a Arc<NodeRecord>, Problem> {
    let found = state.node(name);
    found
        .filter(|node| nodes::usable(tenant.id, node))
        .ok_or_else(|| {
            let detail = format!(
                "there is no node {name} that volumes of tenant {} may be on",
                tenant.name
            );
            Problem::invalid(detail)
                .field("/node")
                .cure("leave the node out to have one chosen, or name another")
        })
}

/// Bytes that volumes' sizes may still add up to on a node.
pub fn free(state: &State, node: &NodeRecord) -> Option<Bytes> {
    let pool = node.facts.volumes.as_ref()?;
    Some(pool.capacity.saturating_sub(state.volumes_taken_on(node.id)))
}

/// What a node lacks for so many more volumes of so many bytes in all, and what to do about it.
pub fn lack(state: &State, node: &NodeRecord, count: usize, needs: Bytes) -> Option<(String, &'static str)> {
    let Some(free) = free(state, node) else {
        return Some((
            format!("node {} has no place for volumes", node.name),
            "`berth-agent check` there says why; or name another node",
        ));
    };
    let there = state.volumes_on.get(&node.id).map_or(0, |on| on.len());
    if there + count > MAX_VOLUMES {
        return Some((
            format!("node {} has {there} volumes; at most {MAX_VOLUMES}", node.name),
            "name another node, or remove some of those that are there",
        ));
    }
    (needs > free).then(|| {
        let detail = format!(
            "node {} has {free} free for volumes, and {needs} are needed",
            node.name
        );
        let cure = "ask for less, name another node, or remove or move away some of those that are there";
        (detail, cure)
    })
}

/// Whether a node can be given a new volume.
///
/// # Errors
/// What it lacks.
pub fn fits_anew(state: &State, node: NodeId, size: Bytes) -> Result<(), Problem> {
    let Some(node) = state.nodes.get(&node) else {
        return Err(refuse("the node was removed meanwhile", "name another"));
    };
    if node.lost || node.draining {
        let how = if node.lost { "lost" } else { "being drained" };
        let detail = format!("node {} is {how}", node.name);
        return Err(refuse(detail, "name another node, or none to have one chosen"));
    }
    let lack = lack(state, node, 1, size);
    lack.map_or(Ok(()), |(detail, cure)| {
        Err(Problem::new(ErrorKind::Precondition, detail)
            .field("/node")
            .cure(cure))
    })
}

/// Whether a volume that a node has already can get so many bytes larger there.
///
/// # Errors
/// How much there is.
pub fn grows(state: &State, node: NodeId, more: Bytes) -> Result<(), Problem> {
    let free = state.nodes.get(&node).and_then(|node| free(state, node));
    let free = free.unwrap_or(Bytes::ZERO);
    if more <= free {
        return Ok(());
    }
    let detail = format!(
        "node {} has {free} free for volumes, and {more} more are needed",
        state.name_of_node(node)
    );
    Err(Problem::new(ErrorKind::Precondition, detail)
        .field("/size")
        .cure("ask for less, or move it to a node with more: berth volume move"))
}
