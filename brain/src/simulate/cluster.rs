//! The hosts of a replay as a scheduler knows them without measuring: what is where, and what reservations add up to.

use super::scenario::{Arrival, Scenario};

/// A host.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Reservations, millicores; of containers that move here, too.
    pub cpu: u32,
    /// And of memory, MiB.
    pub memory_mib: u64,
    /// Containers by number, in the order in which they came.
    pub containers: Vec<usize>,
}

/// All of them.
#[derive(Debug)]
pub struct Cluster<'a> {
    /// What is replayed.
    pub scenario: &'a Scenario,
    /// The hosts.
    pub hosts: Vec<Host>,
    /// Where each container is, and since when, seconds.
    pub placed: Vec<Option<(usize, u32)>>,
    /// Where containers are moving to.
    pub moving: Vec<Option<usize>>,
}

impl<'a> Cluster<'a> {
    /// Empty hosts.
    pub fn new(scenario: &'a Scenario) -> Self {
        Self {
            scenario,
            hosts: vec![Host::default(); scenario.settings.hosts],
            placed: vec![None; scenario.arrivals.len()],
            moving: vec![None; scenario.arrivals.len()],
        }
    }

    /// A container to come, or that came.
    pub fn container(&self, number: usize) -> &'a Arrival {
        &self.scenario.arrivals[number]
    }

    /// R4: whether a container fits a host by what is set aside.
    pub fn fits(&self, host: usize, container: usize) -> bool {
        let (held, asked) = (&self.hosts[host], self.container(container));
        held.cpu + asked.cpu <= self.scenario.allocatable()
            && held.memory_mib + asked.memory_mib <= self.scenario.settings.host_memory_mib
    }

    fn reserve(&mut self, host: usize, container: usize) {
        let asked = self.container(container);
        let held = &mut self.hosts[host];
        held.cpu += asked.cpu;
        held.memory_mib += asked.memory_mib;
    }

    fn release(&mut self, host: usize, container: usize) {
        let asked = self.container(container);
        let held = &mut self.hosts[host];
        held.cpu -= asked.cpu;
        held.memory_mib -= asked.memory_mib;
    }

    /// Puts a container that is nowhere on a host.
    pub(super) fn place(&mut self, container: usize, host: usize, now: u32) {
        self.reserve(host, container);
        self.hosts[host].containers.push(container);
        self.placed[container] = Some((host, now));
    }

    /// Begins to move it: the place there is reserved before anything of it stops here.
    pub(super) fn begin_move(&mut self, container: usize, to: usize) {
        self.reserve(to, container);
        self.moving[container] = Some(to);
    }

    /// It runs there now.
    pub(super) fn end_move(&mut self, container: usize, now: u32) {
        let (Some(to), Some((from, _))) = (self.moving[container].take(), self.placed[container]) else {
            return;
        };
        self.release(from, container);
        self.hosts[from].containers.retain(|held| *held != container);
        self.hosts[to].containers.push(container);
        self.placed[container] = Some((to, now));
    }

    /// Takes a container away, wherever it is or moves.
    pub(super) fn remove(&mut self, container: usize) {
        if let Some(to) = self.moving[container].take() {
            self.release(to, container);
        }
        if let Some((host, _)) = self.placed[container].take() {
            self.release(host, container);
            self.hosts[host].containers.retain(|held| *held != container);
        }
    }
}
