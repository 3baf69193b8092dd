//! berth's own policy: the brain's scheduler itself, with its forecast, its search and its rebalancing, on the replay's hosts.
//!
//! A trace has no services, so what is learned of a service's replicas is learned of all containers here.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{NodeId, TenantId};
use berth_common::model::{Capacity, NodeFacts, NodeKind, NodeRecord, Reservation};
use berth_common::units::{Bytes, Millicores};

use super::{Move, Policy, Report};
use crate::scheduler::forecast::{CPU, Consumer, Forecast, RESOURCES};
use crate::scheduler::load::{Known, Watermarks};
use crate::scheduler::rebalance::{self, Budget, Host, Memory, Tenancy};
use crate::scheduler::{Constraints, Lazy, Request, Seat, View};
use crate::simulate::cluster::Cluster;

/// It.
#[derive(Default)]
pub(super) struct Berth {
    forecast: Forecast<usize, usize, ()>,
    memory: Memory<usize, usize>,
    nodes: Vec<NodeRecord>,
    /// Reports wait here until the next look at the cluster, which says where what they tell of was placed.
    heard: Vec<Report>,
    looked: Option<u32>,
    /// For whom a place was found since: nothing else changes within a step.
    chosen: Vec<usize>,
}

fn id(number: usize) -> NodeId {
    let mut raw = [1; 10];
    raw[2..].copy_from_slice(&(number as u64).to_be_bytes());
    NodeId::from_bytes(raw)
}

fn record(number: usize, cluster: &Cluster<'_>) -> NodeRecord {
    let settings = &cluster.scenario.settings;
    let capacity = Capacity {
        cpu: Millicores(settings.host_cpu),
        memory: Bytes::mib(settings.host_memory_mib),
        disk: Bytes::gib(1024),
    };
    let name = format!("h{number}");
    let facts = NodeFacts::of(&name, capacity);
    NodeRecord::new(
        id(number),
        name.parse().expect("a DNS label"),
        NodeKind::Shared,
        facts,
    )
}

fn consumer(cluster: &Cluster<'_>, container: usize) -> Consumer<()> {
    let mut limits = [0.0; RESOURCES];
    limits[CPU] = cluster.container(container).limit as f32;
    Consumer { service: (), limits }
}

/// Room on the replay's hosts; it refuses itself what two moves of one round would take twice.
struct Room<'a>(&'a Cluster<'a>);

impl rebalance::Room<usize, usize> for Room<'_> {
    fn fits(&mut self, to: usize, container: usize) -> bool {
        self.0.fits(to, container)
    }

    fn take(&mut self, _: usize, _: usize) {}
}

impl Berth {
    /// Takes over what happened since the last look.
    fn look(&mut self, cluster: &Cluster<'_>, now: u32) {
        if self.nodes.is_empty() {
            self.nodes = (0..cluster.hosts.len())
                .map(|host| record(host, cluster))
                .collect();
        }
        let again = self.looked.replace(now) == Some(now);
        let chosen = std::mem::take(&mut self.chosen);
        let changed = match again {
            true => chosen,
            false => (0..cluster.placed.len()).collect(),
        };
        for container in changed {
            let placed = cluster.placed[container];
            // One that moves is charged where it goes: that place is reserved.
            match cluster.moving[container].or(placed.map(|(host, _)| host)) {
                Some(host) => self
                    .forecast
                    .assign(container, host, consumer(cluster, container)),
                None => {
                    self.forecast.unassign(container);
                }
            }
        }
        for report in self.heard.drain(..) {
            let only_cpu = |value: u32| {
                let mut sample = [None; RESOURCES];
                sample[CPU] = Some(value as f32);
                sample
            };
            let containers = report
                .containers
                .iter()
                .map(|(container, cpu)| (*container, only_cpu(*cpu)));
            self.forecast
                .report(report.host, report.at, only_cpu(report.foreign), containers);
        }
    }

    fn known(&self, host: usize, now: u32) -> Known {
        self.forecast
            .node(host, now)
            .map_or(Known::Silent, Known::Expected)
    }
}

impl Policy for Berth {
    fn hear(&mut self, report: &Report) {
        self.heard.push(report.clone());
    }

    fn place(&mut self, cluster: &Cluster<'_>, container: usize, now: u32) -> Option<usize> {
        self.look(cluster, now);
        let settings = &cluster.scenario.settings;
        let reserved = |cpu: u32, memory_mib: u64| Reservation {
            cpu: Millicores(cpu),
            memory: Bytes::mib(memory_mib),
            disk: Bytes(0),
        };
        let seats = self.nodes.iter().enumerate().map(|(host, node)| Seat {
            node,
            lost: false,
            synced: true,
            allocatable: Reservation {
                disk: node.facts.capacity.disk,
                ..reserved(cluster.scenario.allocatable(), settings.host_memory_mib)
            },
            taken: reserved(cluster.hosts[host].cpu, cluster.hosts[host].memory_mib),
            claimed: Reservation::default(),
            lent: Reservation::default(),
            volumes: (Bytes::ZERO, 0),
            grown: false,
            capacity: crate::scheduler::capacity(node),
            known: Lazy::of(self.known(host, now)),
        });
        let mut view = View::of(seats.collect());
        let one = cluster.container(container);
        let labels = BTreeMap::new();
        let request = Request {
            tenant: TenantId::from_bytes([0; 10]),
            reservation: reserved(one.cpu, one.memory_mib),
            node_labels: &labels,
            replicas: BTreeMap::new(),
            image_on: BTreeSet::new(),
            constraints: Constraints::default(),
            load: self.forecast.newcomer(&consumer(cluster, container)),
            seed: container as u64,
        };
        let chosen = crate::scheduler::place(&mut view, request).ok()?;
        self.chosen.push(container);
        (0..self.nodes.len()).find(|host| self.nodes[*host].id == chosen)
    }

    fn rebalance(&mut self, cluster: &Cluster<'_>, now: u32) -> Vec<Move> {
        self.look(cluster, now);
        let hosts = cluster.hosts.iter().enumerate().filter_map(|(host, held)| {
            let moving = |one: &&usize| cluster.moving[**one].is_some();
            let staying = held.containers.iter().filter(|one| !moving(one));
            let tenancy = |one: &usize| {
                let told = self.forecast.container(*one)?;
                Some(Tenancy {
                    container: *one,
                    load: told.measured(),
                    movable: told.own.is_some(),
                })
            };
            Some(Host {
                node: host,
                capacity: crate::scheduler::capacity(&self.nodes[host]),
                load: self.forecast.node(host, now)?,
                measured: self.forecast.measured(host, now)?,
                containers: staying.filter_map(tenancy).collect(),
                leaving: held.containers.iter().filter(moving).count(),
            })
        });
        let mut hosts: Vec<_> = hosts.collect();
        let round = rebalance::plan(
            &mut hosts,
            Watermarks::default(),
            Budget::default(),
            &mut self.memory,
            now,
            &mut Room(cluster),
        );
        let moves = round.shifts.into_iter().map(|shift| Move {
            container: shift.container,
            to: shift.to,
        });
        moves.collect()
    }
}
