//! Goes through all states of the hand-over's model, tells those apart that differ, and brings them to rest.

use std::collections::{HashSet, VecDeque};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use berth_common::model::{ObservedContainer, Phase};

use super::fixtures::{container_id, service_id};
use super::volume_model::{ACTS, Act, Model, host_of, id_of};

/// Coming to rest takes longer than all else: one state in so many is tried.
const TRIED: usize = 50;

impl Model {
    /// Nothing fails any more, and everybody goes on by turns.
    pub fn settle(&mut self) {
        for n in 0..2 {
            self.act(Act::Return(n));
        }
        for _ in 0..40 {
            let before = self.key();
            for n in 0..2 {
                for act in [
                    Act::Deliver(n),
                    Act::Containers(n),
                    Act::Volumes(n),
                    Act::Send(n),
                    Act::Look(n),
                    Act::Tell(n),
                ] {
                    self.act(act);
                }
            }
            if before == self.key() {
                return;
            }
        }
        panic!("it does not come to rest: {}", self.told());
    }

    /// The volume is at one node, with its one container.
    pub fn is_settled(&self, at: Option<usize>) -> bool {
        let volume = self.volume();
        let Some(node) = volume.node else { return false };
        let (here, other) = (host_of(node), 1 - host_of(node));
        at.is_none_or(|at| at == here)
            && volume.moves.is_none()
            && self.hosts[here].volumes.writable(volume.id) == self.acknowledged.get(&volume.id).copied()
            && self.hosts[other].volumes.snapshots(volume.id).is_none()
            && self.hosts[here]
                .has
                .values()
                .filter(|seen| seen.phase == Phase::Running)
                .count()
                == 1
            && self.hosts[other].has.is_empty()
            && self.state.containers.len() == 1
    }

    pub fn told(&self) -> String {
        let containers: Vec<_> = self.state.containers_of(service_id(1)).collect();
        format!(
            "{:#?}\n{containers:#?}\n{:#?}\n{:?}",
            self.volume(),
            self.hosts,
            self.acknowledged
        )
    }

    /// What makes two states the same: revisions, generations and containers' ids only count on.
    fn key(&self) -> u64 {
        let mut text = String::new();
        let mut volume = self.volume();
        volume.revision = Default::default();
        let _ = write!(text, "{volume:?}");
        for container in self.state.containers.values() {
            let mut record = (**container).clone();
            record.revision = Default::default();
            // It does not change, and is long.
            let spec = std::mem::replace(&mut record.spec, self.spec.clone());
            assert_eq!(spec, record.spec);
            let _ = write!(
                text,
                "{:?}{:?}{}{:?}{:?}",
                record.id, record.node, record.removing, record.replaces, record.waiting
            );
        }
        let phases = |all: &mut dyn Iterator<Item = &ObservedContainer>| {
            all.map(|seen| format!("{}{:?}", seen.id, seen.phase))
                .collect::<String>()
        };
        let _ = write!(
            text,
            "{:?}{:?}{}",
            self.state.volumes_seen,
            self.state.volumes_gone,
            phases(&mut self.state.observed.values().map(|seen| &**seen))
        );
        for (n, host) in self.hosts.iter().enumerate() {
            let node = &self.state.nodes[&id_of(n)];
            let connection = self.state.connections.get(&id_of(n));
            let told =
                connection.map(|connection| (connection.synced, connection.applied == node.generation));
            let look = host.look.as_ref().map(|look| {
                let current = look.set.generation == node.generation;
                let containers = phases(&mut look.containers.iter());
                format!("{current}{containers}{:?}{:?}", look.volumes, look.gone)
            });
            let has = phases(&mut host.has.values());
            let (lost, linked) = (node.lost, host.linked);
            let _ = write!(text, "{lost}{linked}{told:?}{look:?}{has}{:?}", host.volumes);
        }
        let _ = write!(text, "{:?}{}", self.acknowledged.values(), self.faults);
        for (n, id) in (1..=self.ids)
            .map(container_id)
            .filter(|id| text.contains(&id.to_string()))
            .enumerate()
            .collect::<Vec<_>>()
        {
            text = text.replace(&id.to_string(), &format!("c{n}"));
        }
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        hasher.finish()
    }
}

/// Goes through all states that can be reached, and returns how many they are and at which node the volume came to rest how often.
fn explore() -> (usize, [usize; 2]) {
    let begin = Model::begin();
    let mut known = HashSet::from([begin.key()]);
    let mut next = VecDeque::from([begin]);
    let (mut ends, mut begun) = ([0, 0], 0);
    while let Some(model) = next.pop_front() {
        if begun % TRIED == 0 {
            let mut rest = model.clone();
            rest.settle();
            assert!(
                rest.is_settled(None),
                "from\n{}\nit came to\n{}",
                model.told(),
                rest.told()
            );
            ends[host_of(rest.volume().node.expect("bound"))] += 1;
        }
        begun += 1;
        let after = ACTS.into_iter().filter_map(|act| model.after(act));
        next.extend(after.filter(|after| known.insert(after.key())));
    }
    (known.len(), ends)
}

#[test]
fn r2_no_order_of_messages_and_faults_lets_two_write_or_loses_a_write() {
    let (states, ends) = explore();
    eprintln!("{states} states; the volume ends at {ends:?}");
    assert!(ends[0] > 0 && ends[1] > 0, "{ends:?}");
}
