//! What the brain wants of one node, from the state alone.

use berth_common::id::NodeId;
use berth_common::model::ContainerRecord;
use berth_common::protocol::{DesiredContainer, DesiredEndpoint, DesiredSet, TenantShare};

use super::{State, volumes};

fn endpoints(state: &State, container: &ContainerRecord) -> Vec<DesiredEndpoint> {
    let places = state
        .places(container)
        .map(|(endpoint, network)| DesiredEndpoint {
            vni: endpoint.vni,
            network: network.name.clone(),
            subnets: network.subnets,
            host: endpoint.host,
        });
    places.collect()
}

/// The desired set of a node: its containers that are not being removed, and their tenants. Empty for an unknown node.
pub fn desired_set(state: &State, node: NodeId) -> DesiredSet {
    let generation = state.nodes.get(&node).map(|n| n.generation).unwrap_or_default();
    let mut set = DesiredSet {
        generation,
        ..DesiredSet::empty(node)
    };
    let mut tenants = std::collections::BTreeSet::new();
    for c in state.containers_on(node).filter(|c| !c.removing) {
        let Some(tenant) = state.tenants.get(&c.tenant) else {
            continue;
        };
        tenants.insert(c.tenant);
        set.containers.push(DesiredContainer {
            id: c.id,
            tenant: c.tenant,
            tenant_name: tenant.name.clone(),
            service: c.service,
            service_name: c.service_name.clone(),
            replica: c.replica,
            spec: c.spec.clone(),
            run: c.run,
            restarts_asked: c.restarts_asked,
            endpoints: endpoints(state, c),
            volumes: volumes::mounts(state, c).unwrap_or_default(),
        });
    }
    set.containers.sort_by_key(|c| c.id);
    set.volumes = volumes::desired(state, node);
    for tenant in tenants.iter().filter_map(|id| state.tenants.get(id)) {
        let first = (tenant.id, String::new());
        let credentials = state
            .registries
            .range(first..)
            .take_while(|((owner, _), _)| *owner == tenant.id)
            .map(|(_, credential)| (**credential).clone())
            .collect();
        set.tenants.push(TenantShare {
            tenant: tenant.id,
            name: tenant.name.clone(),
            cpu_weight: tenant.cpu_weight,
            credentials,
        });
    }
    set
}
