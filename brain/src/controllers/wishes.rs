//! What a service's next container asks of nodes: its spec joined with where its own replicas and other services are.

use std::collections::{BTreeMap, BTreeSet};

use berth_common::id::{ContainerId, NodeId, TenantId};
use berth_common::model::{
    ContainerRecord, ContainerSpec, Reservation, ServiceRecord, Together, VolumeMount,
};

use crate::cluster::State;
use crate::outlook::At;
use crate::scheduler::affinity::{Companion, Replicas};
use crate::scheduler::forecast::Loads;
use crate::scheduler::volumes::Volumes;
use crate::scheduler::{Constraints, Request};

/// What the next container of `service`, made from `spec` for this replica, asks of nodes. `gone`: containers that the plan has removed already.
pub(super) fn request<'a>(
    state: &'a State,
    service: &'a ServiceRecord,
    spec: &ContainerSpec,
    replica: u32,
    gone: &BTreeSet<ContainerId>,
    outlook: &At<'_>,
) -> Request<'a> {
    let mut replicas = BTreeMap::new();
    let mut image_on = BTreeSet::new();
    for container in state.containers_of(service.id) {
        let Some(node) = container.node else { continue };
        if !container.removing {
            *replicas.entry(node).or_insert(0) += 1;
        }
        if container.spec.image == spec.image
            && state
                .observed
                .get(&container.id)
                .is_some_and(|o| o.image.is_some())
        {
            image_on.insert(node);
        }
    }
    let wanted = &service.spec;
    let counts = !wanted.spread.is_empty() || wanted.max_per_node.is_some();
    Request {
        tenant: service.tenant,
        reservation: spec.reservation,
        node_labels: &wanted.node_labels,
        replicas,
        image_on,
        constraints: Constraints {
            pool: wanted.pool.as_ref(),
            arch: state
                .images
                .get(&(service.tenant, spec.image.clone()))
                .and_then(|image| image.arch.as_ref()),
            tolerations: &wanted.tolerations,
            spread: &wanted.spread,
            max_per_node: wanted.max_per_node,
            replicas: if counts {
                distributed(state, service, gone)
            } else {
                Replicas::default()
            },
            idle: spec.idle_use(),
            companions: wanted
                .together
                .iter()
                .map(|together| companion(state, service.tenant, together))
                .collect(),
            volumes: volumes(state, service.tenant, &spec.volumes, replica),
            verdict: outlook.verdict(service),
        },
        load: outlook.newcomer(service.id, spec),
        // Ids are random: another way through many nodes for each service.
        seed: service.id.bits(),
    }
}

/// What `container` asks of nodes, as if it were nowhere yet.
pub(super) fn anew<'a>(
    state: &'a State,
    service: &'a ServiceRecord,
    container: &ContainerRecord,
    outlook: &At<'_>,
) -> Request<'a> {
    let gone = BTreeSet::from([container.id]);
    let mut request = request(state, service, &container.spec, container.replica, &gone, outlook);
    if let Some(told) = outlook.container(container.id) {
        request.load = told.expected;
    }
    let fewer = |counts: &mut BTreeMap<NodeId, u32>, node: Option<NodeId>| {
        if let Some(count) = node.and_then(|node| counts.get_mut(&node)) {
            *count = count.saturating_sub(1);
        }
    };
    if !container.removing {
        fewer(&mut request.replicas, container.node);
    }
    let present = &mut request.constraints.replicas.present;
    fewer(present, container.node.or(container.claim));
    request
}

/// Where a replica's volumes are.
fn volumes(state: &State, tenant: TenantId, mounts: &[VolumeMount], replica: u32) -> Volumes {
    let find = |mount: &VolumeMount| state.volume_of(tenant, mount, replica).map(|volume| &**volume);
    Volumes::of(state, mounts, find, BTreeMap::new())
}

/// What a volume asks of nodes that no container has.
pub(super) fn of_volume(
    tenant: TenantId,
    volumes: Volumes,
    labels: &BTreeMap<String, String>,
) -> Request<'_> {
    Request {
        tenant,
        reservation: Reservation::default(),
        node_labels: labels,
        replicas: BTreeMap::new(),
        image_on: BTreeSet::new(),
        constraints: Constraints {
            volumes,
            ..Constraints::default()
        },
        load: Loads::default(),
        seed: u64::from_be_bytes(*b"volumes_"),
    }
}

/// Where a service's replicas are.
fn distributed(state: &State, service: &ServiceRecord, gone: &BTreeSet<ContainerId>) -> Replicas {
    let live = |c: &&std::sync::Arc<ContainerRecord>| !c.removing && !gone.contains(&c.id);
    let all = || state.containers_of(service.id);
    // Whoever has a successor on a node is about to leave its place to it.
    let superseded: BTreeSet<ContainerId> = all()
        .filter(live)
        .filter(|c| c.node.is_some())
        .filter_map(|c| c.replaces)
        .collect();
    let mut replicas = Replicas::default();
    for container in all() {
        // For whom room is being made somewhere is as good as there.
        let Some(node) = container.node.or(container.claim) else {
            continue;
        };
        *replicas.present.entry(node).or_insert(0) += 1;
        if live(&container) && !superseded.contains(&container.id) {
            *replicas.staying.entry(node).or_insert(0) += 1;
        }
    }
    replicas
}

/// Where another service is that this one is to be near.
fn companion<'a>(state: &'a State, tenant: TenantId, together: &'a Together) -> Companion<'a> {
    let other = state.service(tenant, &together.with);
    let containers = other.into_iter().flat_map(|other| state.containers_of(other.id));
    let nodes: BTreeSet<_> = containers
        .filter(|c| !c.removing)
        .filter_map(|c| c.node)
        .filter(|node| state.nodes.get(node).is_some_and(|node| !node.lost))
        .collect();
    let by = together.by.as_deref();
    let value = |node| state.nodes.get(node)?.label(by?);
    Companion {
        with: &together.with,
        by,
        hard: together.hard,
        values: nodes.iter().filter_map(value).collect(),
        nodes,
    }
}
