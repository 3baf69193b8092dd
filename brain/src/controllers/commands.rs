//! Stop, start and restart of a whole service.
//!
//! A command reaches a service's containers in the transaction that gives it, and plans do not pass it on again. So one
//! container may be stopped or started by itself, and stays so until its service gets the next command or a new spec.

use berth_common::model::{ContainerRecord, ServiceRecord};

use crate::cluster::{Change, State};

/// What changes when a service becomes `service`, which differs from what `state` has of it in `run` or
/// `restarts_asked`: the service, and the containers it has now.
pub fn command(state: &State, service: ServiceRecord) -> Vec<Change> {
    let restarts = state
        .services
        .get(&service.id)
        .map_or(0, |old| service.restarts_asked.saturating_sub(old.restarts_asked));
    let mut changes = Vec::new();
    for container in state.containers_of(service.id).filter(|c| !c.removing) {
        let new = ContainerRecord {
            run: service.run,
            restarts_asked: container.restarts_asked.saturating_add(restarts),
            ..(**container).clone()
        };
        if new != **container {
            changes.push(Change::PutContainer(new));
        }
    }
    changes.push(Change::PutService(service));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::fixtures::{node, service, service_id};
    use crate::controllers::sim::World;
    use berth_common::model::{NodeKind, RunState};
    use berth_common::units::Bytes;

    fn world() -> World {
        let mut w = World::new();
        for n in 1..4 {
            w.join(node(n, NodeKind::Shared, 8, 8));
        }
        w.run(2);
        w.commit(vec![Change::PutService(service(1, 1, "web:1", 3, Bytes::gib(1)))]);
        w.run(6);
        assert_eq!(w.running(service_id(1)), 3);
        w
    }

    fn stop_one(w: &mut World) -> ContainerRecord {
        let mut one = (**w.state.containers_of(service_id(1)).next().unwrap()).clone();
        one.run = RunState::Stopped;
        w.commit(vec![Change::PutContainer(one.clone())]);
        w.run(6);
        one
    }

    fn tell(w: &mut World, change: impl FnOnce(&mut ServiceRecord)) {
        let mut new = (*w.state.services[&service_id(1)]).clone();
        change(&mut new);
        w.commit(command(&w.state, new));
        w.run(10);
    }

    #[test]
    fn one_stopped_container_stays_stopped_until_the_service_is_told() {
        let mut w = world();
        let one = stop_one(&mut w);
        assert_eq!(w.running(service_id(1)), 2);
        let mut scaled = (*w.state.services[&service_id(1)]).clone();
        scaled.spec.replicas = 4;
        w.commit(vec![Change::PutService(scaled)]);
        w.run(6);
        assert_eq!(w.running(service_id(1)), 3, "scaling starts no stopped container");
        let mut drained = (*w.state.nodes[&one.node.unwrap()]).clone();
        drained.draining = true;
        w.commit(vec![Change::PutNode(drained)]);
        w.run(60);
        assert!(
            w.state.containers_on(one.node.unwrap()).next().is_none(),
            "it moved"
        );
        assert_eq!(
            w.running(service_id(1)),
            3,
            "and is still stopped where it is now"
        );
        tell(&mut w, |s| s.run = RunState::Running);
        assert_eq!(w.running(service_id(1)), 4);
    }

    #[test]
    fn a_service_restart_restarts_every_container_whatever_each_was_told_before() {
        let mut w = world();
        let first = *w.state.by_service[&service_id(1)].iter().next().unwrap();
        let mut one = (*w.state.containers[&first]).clone();
        one.restarts_asked = 5;
        w.commit(vec![Change::PutContainer(one)]);
        tell(&mut w, |s| s.restarts_asked += 1);
        let asked: Vec<u32> = w
            .state
            .containers_of(service_id(1))
            .map(|c| c.restarts_asked)
            .collect();
        let mut sorted = asked.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [1, 1, 6], "{asked:?}");
    }

    #[test]
    fn nothing_stopped_is_moved_off_a_lost_node() {
        let mut w = world();
        let one = stop_one(&mut w);
        w.set_up(one.node.unwrap(), false);
        w.run(60);
        assert!(w.state.nodes[&one.node.unwrap()].lost);
        let same = &w.state.containers[&one.id];
        assert!(!same.removing && same.run == RunState::Stopped);
    }
}
