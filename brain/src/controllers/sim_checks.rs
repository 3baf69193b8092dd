//! What must hold of the simulated cluster between two states.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::model::{MoveStage, NodeKind, RunState, ServiceRecord};

use super::sim::World;
use crate::allocate::QUARANTINE_MS;
use crate::cluster::State;

impl World {
    /// R6: nobody's address is anybody else's, nor was a moment ago.
    pub fn check_places(&mut self, before: &State) {
        let (state, now) = (&self.state, self.now);
        let mut held = BTreeMap::new();
        for c in state.containers.values() {
            for endpoint in &c.endpoints {
                let other = held.insert(*endpoint, c.id);
                assert_eq!(other, None, "R6: {endpoint:?} is given twice");
                assert_eq!(state.endpoints[&endpoint.vni][&endpoint.host], c.id);
                assert!(state.networks.contains_key(&endpoint.vni));
            }
            if c.node.is_some() && !c.removing {
                let connected = c.endpoints.len() == c.spec.networks.len();
                assert!(
                    connected || c.waiting.is_some(),
                    "R9: without a place and without a reason"
                );
            }
            if let Some(old) = before
                .containers
                .get(&c.id)
                .filter(|old| !old.endpoints.is_empty())
            {
                assert!(
                    c.removing || old.endpoints == c.endpoints,
                    "a container's address changed"
                );
            }
        }
        let count: usize = state.endpoints.values().map(imbl::OrdMap::len).sum();
        assert_eq!(count, held.len(), "an address leaked");
        for endpoint in held.keys() {
            let at = self.given_back.remove(endpoint);
            assert!(
                at.is_none_or(|at| now - at >= QUARANTINE_MS),
                "R6: {endpoint:?} did not rest"
            );
        }
        let gone = before
            .containers
            .values()
            .flat_map(|c| &c.endpoints)
            .filter(|e| !held.contains_key(e));
        self.given_back.extend(gone.map(|endpoint| (*endpoint, now)));
    }

    fn serving(&self, state: &State, service: &ServiceRecord) -> BTreeSet<u32> {
        let live = state
            .containers_of(service.id)
            .filter(|c| !c.removing && c.replica <= service.spec.replicas);
        live.filter(|c| {
            // Judged by what is known of nodes after the plan: a container on a lost node serves nobody.
            let node = c.node.and_then(|id| self.state.nodes.get(&id));
            node.is_some_and(|n| !n.lost && self.state.connections.get(&n.id).is_some_and(|c| c.synced))
                && state.observed.get(&c.id).is_some_and(|seen| seen.serves())
        })
        .map(|c| c.replica)
        .collect()
    }

    pub fn check_rules(&self, before: &State) {
        let state = &self.state;
        for (id, node) in &state.nodes {
            let most = state.allocatable(node);
            let taken = state.taken_on(*id).reserved;
            // Where less is allowed than before, nothing is taken away, and nothing is added.
            let was = before.taken_on(*id).reserved;
            let fits = taken.cpu <= most.cpu.max(was.cpu)
                && taken.memory <= most.memory.max(was.memory)
                && taken.disk <= most.disk.max(was.disk);
            assert!(fits, "R4: {taken:?} of {most:?} taken on {}", node.name);
        }
        for c in state.containers.values() {
            let node = c.node.and_then(|id| state.nodes.get(&id));
            if let Some(NodeKind::Private { tenant }) = node.map(|n| n.kind) {
                assert_eq!(tenant, c.tenant, "R6: a foreign container on a private node");
            }
            if c.node.is_none() && !c.removing {
                assert!(
                    c.waiting.as_ref().is_some_and(|why| !why.is_empty()),
                    "R9: it waits without a reason"
                );
            }
            assert!(
                c.removing || state.services.contains_key(&c.service),
                "orphan of a deleted service"
            );
            let old = before.containers.get(&c.id).and_then(|old| old.node);
            assert!(old.is_none() || old == c.node, "a container changed its node");
        }
        for service in state.services.values() {
            if service.run == RunState::Stopped {
                continue;
            }
            let (was, is) = (self.serving(before, service), self.serving(state, service));
            // Whoever makes room for others goes at once, as many as it takes.
            let taken: BTreeSet<u32> = super::sim_rules::preempted(before, state)
                .filter(|c| c.service == service.id)
                .map(|c| c.replica)
                .collect();
            // Those that share a volume go with it, all at once.
            let drawn: BTreeSet<u32> = state
                .containers_of(service.id)
                .filter(|c| {
                    let mut shared = c.spec.volumes.iter().filter(|mount| !mount.per_replica);
                    shared.any(|mount| {
                        let volume = state.volume_of(c.tenant, mount, c.replica);
                        let moves = volume.and_then(|volume| volume.moves.as_ref());
                        moves.is_some_and(|moves| moves.stage != MoveStage::Copying)
                    })
                })
                .map(|c| c.replica)
                .collect();
            let lowered = was
                .difference(&is)
                .filter(|replica| !taken.contains(replica) && !drawn.contains(replica))
                .count() as u32;
            let stop_first = |c: &&std::sync::Arc<berth_common::model::ContainerRecord>| {
                c.node.is_none() && c.replaces.is_some() && !before.containers.contains_key(&c.id)
            };
            let stopped = state.containers_of(service.id).filter(stop_first).count() as u32;
            assert!(
                lowered <= stopped,
                "a plan took down {lowered} replicas of {}",
                service.spec.name
            );
            assert!(
                lowered <= service.spec.update.parallel,
                "more than `parallel` down at a time"
            );
        }
    }
}
