//! The indexes over containers: by service, by node, without a node, and the sums that are set aside (R4).
//!
//! They are kept with every change of a container, by taking the old record out and the new one in, so that a sum can't
//! drift from what it sums up.

use std::sync::Arc;

use berth_common::id::NodeId;
use berth_common::model::{ContainerRecord, ContainerSpec, NodeRecord, Taken};
use imbl::OrdMap;
use imbl::ordmap::Entry;

use super::State;

fn less(taken: &mut OrdMap<NodeId, Taken>, node: NodeId, spec: &ContainerSpec) {
    let mut now = taken.get(&node).copied().unwrap_or_default();
    now.reserved = now.reserved.minus(spec.reservation);
    now.lent = now.lent.minus(spec.idle_use());
    now.containers = now.containers.saturating_sub(1);
    taken.insert(node, now);
}

fn more(taken: &mut OrdMap<NodeId, Taken>, node: NodeId, spec: &ContainerSpec) {
    let mut now = taken.get(&node).copied().unwrap_or_default();
    now.reserved = now.reserved.plus(spec.reservation);
    now.lent = now.lent.plus(spec.idle_use());
    now.containers += 1;
    taken.insert(node, now);
}

fn labels(node: &NodeRecord) -> impl Iterator<Item = (&String, &String, NodeId)> {
    node.labels.iter().map(|(key, value)| (key, value, node.id))
}

impl State {
    /// Puts a new or changed container in place.
    pub(super) fn put_container(&mut self, mut c: ContainerRecord) {
        self.share_spec(&mut c);
        if let Some(old) = self.containers.get(&c.id).cloned() {
            self.unindex(&old);
        }
        let mut siblings = self.by_service.get(&c.service).cloned().unwrap_or_default();
        siblings.insert(c.id);
        self.by_service.insert(c.service, siblings);
        match c.node {
            Some(node) => {
                let mut bound = self.by_node.get(&node).cloned().unwrap_or_default();
                bound.insert(c.id);
                self.by_node.insert(node, bound);
                more(&mut self.taken, node, &c.spec);
                if c.moves.is_some() && !c.removing {
                    self.moving.insert(c.id);
                }
            }
            None if !c.removing => {
                self.unplaced.insert(c.id);
                if c.claim.is_some() {
                    self.claiming.insert(c.id);
                }
            }
            None => {}
        }
        if c.replaces.is_some() {
            self.successors.insert(c.id);
        }
        if !c.removing {
            let mut now = self.tenant_taken.get(&c.tenant).copied().unwrap_or_default();
            now.reserved = now.reserved.plus(c.spec.reservation);
            now.containers += 1;
            self.tenant_taken.insert(c.tenant, now);
        }
        self.index_endpoints(&c, true);
        let id = c.id;
        self.containers.insert(id, Arc::new(c));
        self.rename(id);
    }

    /// Replicas share what they are made from: a million of them would not fit into memory otherwise.
    fn share_spec(&self, c: &mut ContainerRecord) {
        let siblings = self.by_service.get(&c.service);
        let first = siblings.and_then(|all| self.containers.get(all.get_min()?));
        if let Some(first) = first.filter(|first| first.spec == c.spec) {
            c.spec = first.spec.clone();
        }
    }

    /// A node's labels are no longer those of `old` but those of `new`.
    pub(super) fn relabel(&mut self, old: Option<&NodeRecord>, new: Option<&NodeRecord>) {
        if old.map(|node| &node.labels) == new.map(|node| &node.labels) {
            return;
        }
        for (key, value, node) in old.into_iter().flat_map(labels) {
            if let Entry::Occupied(mut values) = self.labelled.entry(key.clone()) {
                let nodes = values.get_mut().entry(value.clone()).or_default();
                nodes.remove(&node);
                if nodes.is_empty() {
                    values.get_mut().remove(value);
                }
                if values.get().is_empty() {
                    values.remove();
                }
            }
        }
        for (key, value, node) in new.into_iter().flat_map(labels) {
            let values = self.labelled.entry(key.clone()).or_default();
            values.entry(value.clone()).or_default().insert(node);
        }
    }

    /// Whether a container has a successor that is to stay.
    pub fn is_followed(&self, container: &ContainerRecord) -> bool {
        let mut siblings = self.containers_of(container.service);
        siblings.any(|one| one.replaces == Some(container.id) && !one.removing)
    }

    /// Takes a container out of every index; its record stays.
    pub(super) fn unindex(&mut self, old: &ContainerRecord) {
        if let Some(mut siblings) = self.by_service.get(&old.service).cloned() {
            siblings.remove(&old.id);
            if siblings.is_empty() {
                self.by_service.remove(&old.service);
            } else {
                self.by_service.insert(old.service, siblings);
            }
        }
        if let Some(node) = old.node {
            if let Some(mut bound) = self.by_node.get(&node).cloned() {
                bound.remove(&old.id);
                self.by_node.insert(node, bound);
            }
            less(&mut self.taken, node, &old.spec);
        }
        self.unplaced.remove(&old.id);
        self.successors.remove(&old.id);
        self.claiming.remove(&old.id);
        self.moving.remove(&old.id);
        self.index_endpoints(old, false);
        if !old.removing {
            let mut now = self.tenant_taken.get(&old.tenant).copied().unwrap_or_default();
            now.reserved = now.reserved.minus(old.spec.reservation);
            now.containers = now.containers.saturating_sub(1);
            self.tenant_taken.insert(old.tenant, now);
        }
    }
}
