//! What the brain wants of one node: a full set with a generation, and deltas to it (R8).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{DesiredMount, DesiredVolume};
use crate::id::{ContainerId, Generation, Name, NodeId, ServiceId, TenantId, VolumeId};
use crate::model::{ContainerSpec, HostNumber, RegistryCredential, RunState, Subnets, Vni};

/// A container's place on one network, with all that its node needs to make it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredEndpoint {
    /// The network.
    pub vni: Vni,
    /// Its name, for people.
    pub network: Name,
    /// Its addresses.
    #[serde(flatten)]
    pub subnets: Subnets,
    /// The container's number on it.
    pub host: HostNumber,
}

/// One container a node should have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredContainer {
    /// Its id.
    pub id: ContainerId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The tenant's name, for logs and people.
    pub tenant_name: Name,
    /// Its service.
    pub service: ServiceId,
    /// The service's name.
    pub service_name: Name,
    /// Which replica, from 1.
    pub replica: u32,
    /// What it is made from.
    pub spec: Arc<ContainerSpec>,
    /// Whether it should run.
    pub run: RunState,
    /// Grows with every restart that was asked for; the agent restarts when it is behind.
    #[serde(default)]
    pub restarts_asked: u32,
    /// Its places on its networks, the first with the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<DesiredEndpoint>,
    /// Which volumes its spec's are, in the same order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<DesiredMount>,
}

/// A tenant's part of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantShare {
    /// Which tenant.
    pub tenant: TenantId,
    /// Its name.
    pub name: Name,
    /// cgroup v2 CPU weight of its slice.
    pub cpu_weight: u16,
    /// Registry credentials it may use here.
    #[serde(default)]
    pub credentials: Vec<RegistryCredential>,
}

/// Everything the brain wants of a node. What is not in it must not be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredSet {
    /// Whose set it is; an agent refuses another node's.
    pub node: NodeId,
    /// Its version.
    pub generation: Generation,
    /// Tenants with containers here, sorted by id.
    pub tenants: Vec<TenantShare>,
    /// Containers, sorted by id.
    pub containers: Vec<DesiredContainer>,
    /// Volumes, sorted by id. One that is not in it is left alone: only what is said to go does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<DesiredVolume>,
}

/// A full set or a delta.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "snake_case")]
pub enum DesiredUpdate {
    /// The whole set.
    Full {
        /// It.
        set: DesiredSet,
    },
    /// Changes since the set of generation `base`.
    Delta {
        /// Whose set it is.
        node: NodeId,
        /// The generation it applies to.
        base: Generation,
        /// The generation after it.
        generation: Generation,
        /// Tenants added or changed.
        #[serde(default)]
        tenants: Vec<TenantShare>,
        /// Tenants that have nothing here any more.
        #[serde(default)]
        tenants_gone: Vec<TenantId>,
        /// Containers added or changed.
        #[serde(default)]
        containers: Vec<DesiredContainer>,
        /// Containers to delete.
        #[serde(default)]
        gone: Vec<ContainerId>,
        /// Volumes added or changed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        volumes: Vec<DesiredVolume>,
        /// Volumes that are no longer in the set; nothing is done to them.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        volumes_left: Vec<VolumeId>,
    },
    /// A form of a newer brain: refused, never applied. The refusal names generation 0, since which one it leads to
    /// can't be told, and the brain answers with a full set.
    #[serde(other)]
    Unknown,
}

impl DesiredUpdate {
    /// The generation it leads to; 0 if that can't be told.
    pub const fn generation(&self) -> Generation {
        match self {
            Self::Full { set } => set.generation,
            Self::Delta { generation, .. } => *generation,
            Self::Unknown => Generation(0),
        }
    }
}

/// Outcome of [`DesiredSet::apply`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Apply {
    /// A new set to persist and act on.
    New(Box<DesiredSet>),
    /// The same set again; nothing to do.
    Same,
    /// Older than what is held (R8).
    Stale,
    /// The delta's base is not what is held: ask for a full set.
    MissingBase,
    /// Meant for another node (R7).
    WrongNode,
    /// Of a form that is not known: ask for a full set.
    Unknown,
}

impl DesiredSet {
    /// The empty set of a node that never heard from its brain.
    pub fn empty(node: NodeId) -> Self {
        Self {
            node,
            generation: Generation(0),
            tenants: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
        }
    }

    /// The volume of an id.
    pub fn volume(&self, id: VolumeId) -> Option<&DesiredVolume> {
        self.volumes
            .binary_search_by_key(&id, |volume| volume.id)
            .ok()
            .map(|at| &self.volumes[at])
    }

    /// The container of an id.
    pub fn container(&self, id: ContainerId) -> Option<&DesiredContainer> {
        self.containers
            .binary_search_by_key(&id, |c| c.id)
            .ok()
            .map(|at| &self.containers[at])
    }

    /// What holding `self` and receiving `update` leads to. Pure; `self` stays as it is until the result is persisted.
    ///
    /// A full set of the generation that is held replaces it where the two differ: an older version of the agent may
    /// have kept only what it understood of it.
    pub fn apply(&self, update: &DesiredUpdate) -> Apply {
        let (node, generation) = match update {
            DesiredUpdate::Full { set } => (set.node, set.generation),
            DesiredUpdate::Delta { node, generation, .. } => (*node, *generation),
            DesiredUpdate::Unknown => return Apply::Unknown,
        };
        if node != self.node {
            return Apply::WrongNode;
        }
        if generation < self.generation {
            return Apply::Stale;
        }
        let mut new = match update {
            DesiredUpdate::Unknown => return Apply::Unknown,
            DesiredUpdate::Full { set } => set.clone(),
            DesiredUpdate::Delta { .. } if generation == self.generation => return Apply::Same,
            DesiredUpdate::Delta {
                base,
                tenants,
                tenants_gone,
                containers,
                gone,
                volumes,
                volumes_left,
                ..
            } => {
                if *base != self.generation {
                    return Apply::MissingBase;
                }
                let mut set = self.clone();
                set.generation = generation;
                set.tenants.retain(|t| {
                    !tenants_gone.contains(&t.tenant) && !tenants.iter().any(|n| n.tenant == t.tenant)
                });
                set.tenants.extend(tenants.iter().cloned());
                let replaced: std::collections::HashSet<_> = containers
                    .iter()
                    .map(|c| c.id)
                    .chain(gone.iter().copied())
                    .collect();
                set.containers.retain(|c| !replaced.contains(&c.id));
                set.containers.extend(containers.iter().cloned());
                set.volumes.retain(|old| {
                    !volumes_left.contains(&old.id) && !volumes.iter().any(|new| new.id == old.id)
                });
                set.volumes.extend(volumes.iter().cloned());
                set
            }
        };
        new.tenants.sort_by_key(|t| t.tenant);
        new.tenants.dedup_by_key(|t| t.tenant);
        new.containers.sort_by_key(|c| c.id);
        new.containers.dedup_by_key(|c| c.id);
        new.volumes.sort_by_key(|volume| volume.id);
        new.volumes.dedup_by_key(|volume| volume.id);
        if new == *self {
            return Apply::Same;
        }
        Apply::New(Box::new(new))
    }

    /// The delta that leads from `self` to `to`.
    pub fn delta_to(&self, to: &Self) -> DesiredUpdate {
        let gone = self
            .containers
            .iter()
            .map(|c| c.id)
            .filter(|id| to.container(*id).is_none())
            .collect();
        let containers = to
            .containers
            .iter()
            .filter(|c| self.container(c.id) != Some(c))
            .cloned()
            .collect();
        let tenant_in = |set: &Self, id| set.tenants.iter().find(|t| t.tenant == id).cloned();
        DesiredUpdate::Delta {
            node: to.node,
            base: self.generation,
            generation: to.generation,
            tenants: to
                .tenants
                .iter()
                .filter(|t| tenant_in(self, t.tenant).as_ref() != Some(*t))
                .cloned()
                .collect(),
            tenants_gone: self
                .tenants
                .iter()
                .map(|t| t.tenant)
                .filter(|id| tenant_in(to, *id).is_none())
                .collect(),
            containers,
            gone,
            volumes: to
                .volumes
                .iter()
                .filter(|volume| self.volume(volume.id) != Some(volume))
                .cloned()
                .collect(),
            volumes_left: self
                .volumes
                .iter()
                .map(|volume| volume.id)
                .filter(|id| to.volume(*id).is_none())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ServiceSpec;
    use proptest::prelude::*;

    fn container(n: u8, restarts: u32) -> DesiredContainer {
        let spec = ServiceSpec::new("s".parse().unwrap(), "x".parse().unwrap());
        DesiredContainer {
            id: ContainerId::from_bytes([n; 10]),
            tenant: TenantId::from_bytes([n % 3; 10]),
            tenant_name: "t".parse().unwrap(),
            service: ServiceId::from_bytes([1; 10]),
            service_name: "s".parse().unwrap(),
            replica: 1,
            spec: spec.container_spec().unwrap().into(),
            run: RunState::Running,
            restarts_asked: restarts,
            endpoints: vec![],
            volumes: vec![],
        }
    }

    fn set(generation: u64, members: &[(u8, u32)]) -> DesiredSet {
        let mut containers: Vec<_> = members.iter().map(|(n, r)| container(*n, *r)).collect();
        containers.sort_by_key(|c| c.id);
        containers.dedup_by_key(|c| c.id);
        let mut tenants: Vec<_> = containers
            .iter()
            .map(|c| TenantShare {
                tenant: c.tenant,
                name: "t".parse().unwrap(),
                cpu_weight: 100,
                credentials: vec![],
            })
            .collect();
        tenants.sort_by_key(|t| t.tenant);
        tenants.dedup_by_key(|t| t.tenant);
        DesiredSet {
            node: NodeId::from_bytes([9; 10]),
            generation: Generation(generation),
            tenants,
            containers,
            volumes: vec![],
        }
    }

    proptest! {
        #[test]
        fn delta_and_full_agree(a in proptest::collection::vec((any::<u8>(), 0u32..3), 0..20), b in proptest::collection::vec((any::<u8>(), 0u32..3), 0..20)) {
            let (from, to) = (set(4, &a), set(5, &b));
            let by_delta = from.apply(&from.delta_to(&to));
            let by_full = from.apply(&DesiredUpdate::Full { set: to.clone() });
            prop_assert_eq!(&by_delta, &Apply::New(Box::new(to)));
            prop_assert_eq!(by_delta, by_full);
        }

        #[test]
        fn r8_an_older_set_is_never_taken(held in 1u64..100, offered in 0u64..100) {
            let update = DesiredUpdate::Full { set: set(offered, &[(1, 0)]) };
            match set(held, &[]).apply(&update) {
                Apply::New(new) => prop_assert!(new.generation.0 >= held),
                Apply::Stale => prop_assert!(offered < held),
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn a_full_set_of_the_held_generation_counts_where_it_differs() {
        let held = set(5, &[(1, 0), (2, 0)]);
        let full = |set: DesiredSet| DesiredUpdate::Full { set };
        assert_eq!(held.apply(&full(held.clone())), Apply::Same);
        // What an older agent kept of a state it did not know, and what the brain really wants.
        let mut partial = held.clone();
        partial.containers[0].run = RunState::Unknown;
        assert_eq!(
            partial.apply(&full(held.clone())),
            Apply::New(Box::new(held.clone()))
        );
        let delta = partial.delta_to(&held);
        assert_eq!(
            partial.apply(&delta),
            Apply::Same,
            "a delta of that generation was applied"
        );
    }

    #[test]
    fn an_update_of_a_new_form_is_never_applied() {
        let held = set(5, &[(1, 0)]);
        assert_eq!(held.apply(&DesiredUpdate::Unknown), Apply::Unknown);
        assert_eq!(DesiredUpdate::Unknown.generation(), Generation(0));
        assert_eq!(
            DesiredSet::empty(held.node).apply(&DesiredUpdate::Unknown),
            Apply::Unknown
        );
    }

    #[test]
    fn r7_another_nodes_set_is_refused() {
        let mut foreign = set(9, &[]);
        foreign.node = NodeId::from_bytes([8; 10]);
        assert_eq!(
            set(1, &[]).apply(&DesiredUpdate::Full { set: foreign }),
            Apply::WrongNode
        );
    }
}
