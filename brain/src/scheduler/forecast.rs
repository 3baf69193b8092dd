//! The forecast: what every node is expected to use, of what agents reported and what was placed there.
//!
//! Owns one history for each container and for what is foreign on a node, and keeps their sums. A container is charged to the node that
//! it was given to from the moment on that [`Forecast::assign`] says so, by what was learned of its like until it was seen, and by what
//! was seen of it from then on: once, neither forgotten before its first sample nor counted twice after it, since one entry is both.
//! What was learned of a service outlasts its containers, and can be given back after a restart ([`Forecast::recall`]).
//! Refuses to call a node idle that said nothing: without a fresh report there is no load, which is not a load of zero.
//!
//! Pure, and the same code in the brain and in the simulator, which have other names for nodes, containers and services.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::predict::{History, Learned, Load, Prior};

/// Resources that are foretold: CPU in millicores, memory in bytes, disk and network in bytes a second.
pub const RESOURCES: usize = 4;
/// Their places.
pub const CPU: usize = 0;
/// See [`CPU`].
pub const MEMORY: usize = 1;
/// See [`CPU`]; reads and writes.
pub const DISK: usize = 2;
/// See [`CPU`]; both ways.
pub const NETWORK: usize = 3;

/// A load of each resource.
pub type Loads = [Load; RESOURCES];

/// What was learned of a service's containers, by resource.
pub type Estimate = [Learned; RESOURCES];

/// Seconds after which a node's last report says nothing of now.
pub const STALE_SECS: u32 = 90;
/// Seconds between samples that are taken of a node, whose reports are more.
pub const SAMPLE_SECS: u32 = 10;
/// Seconds that a container must have been seen for others to learn of it.
const KNOWN_SECS: f32 = 300.0;
/// Seconds between looks at what there is to learn.
const LEARN_SECS: u32 = 60;
/// Seconds after which a container's own samples tell what it uses now.
const MEASURED_SECS: f32 = 20.0;

/// What is thought of a container of which nothing at all is known, as shares of its limits: half of its CPU, give or take a third; nearly
/// all of its memory.
const UNKNOWN: [Prior; RESOURCES] = [
    Prior {
        mean: 0.5,
        between: 0.1,
        within: 0.02,
    },
    Prior {
        mean: 0.8,
        between: 0.0,
        within: 0.0,
    },
    NOTHING,
    NOTHING,
];
const NOTHING: Prior = Prior {
    mean: 0.0,
    between: 0.0,
    within: 0.0,
};

/// What one node or container used at a time.
pub type Sample = [Option<f32>; RESOURCES];

/// What of a container matters here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Consumer<S> {
    /// Its service: replicas of one learn from one another.
    pub service: S,
    /// Its limits: none of disk and network.
    pub limits: [f32; RESOURCES],
}

/// What is known of a container's load.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Told {
    /// What it is expected to use.
    pub expected: Loads,
    /// What it uses by its own samples, once there are enough of them.
    pub own: Option<Loads>,
}

impl Told {
    /// By its own samples, if there are enough of them.
    pub fn measured(&self) -> Loads {
        self.own.unwrap_or(self.expected)
    }
}

#[derive(Debug)]
struct Member<S> {
    consumer: Consumer<S>,
    history: [History; RESOURCES],
    /// What of it is in its node's sums.
    charged: Told,
}

/// What a consumer uses of a resource by its own samples. Memory that was in use once will be again, and no neighbour gives way.
fn own(of: usize, history: &History) -> Load {
    match of {
        MEMORY => Load::steady(history.most()),
        _ => history.own(),
    }
}

#[derive(Debug)]
struct Node<C> {
    foreign: [History; RESOURCES],
    /// When it last reported.
    heard: Option<u32>,
    containers: Vec<C>,
    /// What its containers are expected to use.
    expected: Loads,
    /// What they use by their own samples, where there are enough of them.
    measured: Loads,
}

impl<C> Default for Node<C> {
    fn default() -> Self {
        Self {
            foreign: Default::default(),
            heard: None,
            containers: Vec::new(),
            expected: Loads::default(),
            measured: Loads::default(),
        }
    }
}

/// What was seen and what is expected of all nodes `N`, their containers `C` and services `S`.
#[derive(Debug)]
pub struct Forecast<N, C, S> {
    nodes: HashMap<N, Node<C>>,
    /// In order: sums of numbers that are rounded depend on it, and equal inputs are to give equal answers.
    members: BTreeMap<C, (N, Member<S>)>,
    services: BTreeMap<S, Estimate>,
    all: Estimate,
    /// When that was learned last, seconds.
    learned: u32,
}

impl<N, C, S> Default for Forecast<N, C, S> {
    fn default() -> Self {
        Self {
            nodes: HashMap::new(),
            members: BTreeMap::new(),
            services: BTreeMap::new(),
            all: Default::default(),
            learned: 0,
        }
    }
}

impl<N: Copy + Eq + Hash, C: Copy + Ord, S: Copy + Ord> Forecast<N, C, S> {
    /// A container of which nothing was seen is to be expected to use this.
    pub fn newcomer(&self, consumer: &Consumer<S>) -> Loads {
        self.told(consumer, &Default::default()).expected
    }

    fn told(&self, consumer: &Consumer<S>, history: &[History; RESOURCES]) -> Told {
        let service = self.services.get(&consumer.service);
        let expected = std::array::from_fn(|of| {
            if of == MEMORY && history[of].seen_secs() > 0.0 {
                return own(of, &history[of]);
            }
            let general = self.all[of].prior(UNKNOWN[of]);
            let prior = service.map_or(general, |learned| learned[of].prior(general));
            history[of].expect(prior.times(consumer.limits[of]))
        });
        let enough = history[CPU].seen_secs() >= MEASURED_SECS;
        Told {
            expected,
            own: enough.then(|| std::array::from_fn(|of| own(of, &history[of]))),
        }
    }

    /// A container is given to a node: it is charged there from now on, and no longer where it was.
    pub fn assign(&mut self, container: C, node: N, consumer: Consumer<S>) {
        let history = match self.members.get(&container) {
            Some((at, held)) if *at == node && held.consumer == consumer => return,
            Some(_) => self.unassign(container).unwrap_or_default(),
            None => Default::default(),
        };
        let charged = self.told(&consumer, &history);
        let held = self.nodes.entry(node).or_default();
        held.containers.push(container);
        held.expected = plus(held.expected, charged.expected);
        held.measured = plus(held.measured, charged.measured());
        let member = Member {
            consumer,
            history,
            charged,
        };
        self.members.insert(container, (node, member));
    }

    /// A container is nowhere any more; what was seen of it.
    pub fn unassign(&mut self, container: C) -> Option<[History; RESOURCES]> {
        let (node, member) = self.members.remove(&container)?;
        if let Some(held) = self.nodes.get_mut(&node) {
            held.containers.retain(|one| *one != container);
            held.expected = minus(held.expected, member.charged.expected);
            held.measured = minus(held.measured, member.charged.measured());
        }
        Some(member.history)
    }

    /// Forgets a node that is no more.
    pub fn forget(&mut self, node: N) {
        if let Some(held) = self.nodes.remove(&node) {
            for container in held.containers {
                self.members.remove(&container);
            }
        }
    }

    /// Drops the containers that `keep` does not hold for.
    pub fn keep(&mut self, keep: impl Fn(C) -> bool) {
        let gone: Vec<C> = self.members.keys().copied().filter(|one| !keep(*one)).collect();
        for container in gone {
            self.unassign(container);
        }
    }

    /// Whether a node has said nothing at all yet.
    pub fn never_heard(&self, node: N) -> bool {
        self.nodes.get(&node).is_none_or(|held| held.heard.is_none())
    }

    /// Whether a node's next report is worth a sample at `now`.
    pub fn due(&self, node: N, now: u32) -> bool {
        let heard = self.nodes.get(&node).and_then(|held| held.heard);
        heard.is_none_or(|at| now >= at + SAMPLE_SECS)
    }

    /// What a node used at a time, of `foreign` and of each container; what is told of containers that were not given to it is left out.
    pub fn report(
        &mut self,
        node: N,
        at: u32,
        foreign: Sample,
        containers: impl IntoIterator<Item = (C, Sample)>,
    ) {
        let held = self.nodes.entry(node).or_default();
        // A node that can't tell its CPU has told nothing: what is not known is not zero.
        if foreign[CPU].is_none() || held.heard.is_some_and(|heard| at <= heard) {
            return;
        }
        held.heard = Some(at);
        for (history, value) in held.foreign.iter_mut().zip(foreign) {
            if let Some(value) = value {
                history.record(at, value);
            }
        }
        for (container, sample) in containers {
            if let Some((on, member)) = self.members.get_mut(&container)
                && *on == node
            {
                for (history, value) in member.history.iter_mut().zip(sample) {
                    if let Some(value) = value {
                        history.record(at, value);
                    }
                }
            }
        }
        self.charge(node);
        if at >= self.learned + LEARN_SECS {
            self.learned = at;
            self.learn();
        }
    }

    /// Adds up anew what is expected of a node's containers.
    fn charge(&mut self, node: N) {
        let Some(held) = self.nodes.get(&node) else { return };
        let members = held.containers.iter().filter_map(|one| self.members.get(one));
        let told: Vec<Told> = members
            .map(|(_, one)| self.told(&one.consumer, &one.history))
            .collect();
        let Some(held) = self.nodes.get_mut(&node) else {
            return;
        };
        let sum = |of: fn(&Told) -> Loads| told.iter().map(of).fold(Loads::default(), plus);
        (held.expected, held.measured) = (sum(|one| one.expected), sum(Told::measured));
        for (container, charged) in held.containers.iter().zip(told) {
            if let Some((_, member)) = self.members.get_mut(container) {
                member.charged = charged;
            }
        }
    }

    /// Learns anew of all containers what others of their service, and others at all, are to be expected to use.
    pub(super) fn learn(&mut self) {
        let mut services = BTreeMap::<S, Estimate>::new();
        for (_, member) in self.members.values() {
            if member.history[CPU].seen_secs() < KNOWN_SECS {
                continue;
            }
            let service = services.entry(member.consumer.service).or_default();
            for (of, history) in member.history.iter().enumerate() {
                // Not what is charged for it: that has what was thought before in it.
                let (load, limit) = (own(of, history), member.consumer.limits[of]);
                service[of].add(load, limit);
            }
        }
        for (service, before) in &self.services {
            let known = services.entry(*service).or_default();
            *known = std::array::from_fn(|of| known[of].filled(before[of]));
        }
        self.services = services;
        self.all = self.services.values().fold(Default::default(), both);
    }

    /// What was learned of each service.
    pub fn estimates(&self) -> impl Iterator<Item = (S, &Estimate)> {
        self.services.iter().map(|(service, learned)| (*service, learned))
    }

    /// Takes what was learned of a service at another time, if nothing is known of it.
    pub fn recall(&mut self, service: S, learned: Estimate) {
        if let Entry::Vacant(free) = self.services.entry(service) {
            self.all = both(self.all, free.insert(learned));
        }
    }

    /// Forgets what was learned of a service.
    pub fn forget_estimate(&mut self, service: S) {
        self.services.remove(&service);
    }

    /// Forgets what was learned of services that `keep` does not hold for.
    pub fn keep_estimates(&mut self, keep: impl Fn(S) -> bool) {
        self.services.retain(|service, _| keep(*service));
    }

    /// What is foreign on a node; none of one that said nothing of late.
    pub fn foreign(&self, node: N, now: u32) -> Option<Loads> {
        let held = self.nodes.get(&node)?;
        let fresh = held.heard.is_some_and(|at| now <= at + STALE_SECS);
        fresh.then(|| std::array::from_fn(|of| held.foreign[of].own()))
    }

    /// What its containers are expected to use together.
    pub fn containers(&self, node: N) -> Loads {
        self.nodes
            .get(&node)
            .map_or_else(Loads::default, |held| held.expected)
    }

    /// What a node is expected to use; none of one that said nothing of late.
    pub fn node(&self, node: N, now: u32) -> Option<Loads> {
        Some(plus(self.foreign(node, now)?, self.containers(node)))
    }

    /// What a node uses by what was seen of it, and by what is expected of those alone that were seen for less than [`MEASURED_SECS`]; none of
    /// one that said nothing of late.
    pub fn measured(&self, node: N, now: u32) -> Option<Loads> {
        let foreign = self.foreign(node, now)?;
        Some(plus(foreign, self.nodes.get(&node)?.measured))
    }

    /// What is known of a container; none of one that is nowhere.
    pub fn container(&self, container: C) -> Option<Told> {
        self.members.get(&container).map(|(_, member)| member.charged)
    }
}

fn both(one: Estimate, other: &Estimate) -> Estimate {
    std::array::from_fn(|of| one[of].plus(other[of]))
}

/// Both.
pub fn plus(one: Loads, other: Loads) -> Loads {
    std::array::from_fn(|of| one[of].plus(other[of]))
}

/// One without the other, which is part of it.
pub fn minus(one: Loads, other: Loads) -> Loads {
    std::array::from_fn(|of| one[of].minus(other[of]))
}
