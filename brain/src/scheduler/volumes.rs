//! Volumes as a constraint: a container goes where its volumes are, and those that are yet to be made need room for them.

use std::collections::BTreeMap;

use berth_common::id::NodeId;
use berth_common::model::{DEFAULT_VOLUME, MAX_VOLUMES, VolumeMount, VolumeRecord};
use berth_common::units::Bytes;

use super::Seat;
use super::constraints::Broken;
use crate::cluster::State;

/// Where a container's volumes are, and what they need where they are not yet. None: it has no volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Volumes {
    /// The node that has one of them, the volume, and the node's name.
    pub at: Option<(NodeId, String, String)>,
    /// What those that are nowhere yet will take, bytes.
    pub needs: Bytes,
    /// They come from another node.
    pub arrive: bool,
    /// What the same plan has given to volumes on nodes, bytes.
    pub given: BTreeMap<NodeId, Bytes>,
}

impl Volumes {
    /// Of mounts; `find`: the volume of each that is there, `given`: what the same plan has given away.
    pub fn of<'a>(
        state: &State,
        mounts: &[VolumeMount],
        find: impl Fn(&VolumeMount) -> Option<&'a VolumeRecord>,
        given: BTreeMap<NodeId, Bytes>,
    ) -> Self {
        let mut volumes = Self {
            given,
            ..Self::default()
        };
        for mount in mounts {
            let volume = find(mount);
            match volume.and_then(|volume| Some((volume.node?, volume))) {
                Some((node, volume)) => {
                    let named = (node, volume.name.to_string(), state.name_of_node(node));
                    volumes.at.get_or_insert(named);
                }
                // There is nothing to read a snapshot of: that is said before a place is looked for.
                None if mount.snapshot.is_some() => {}
                None => {
                    let size = volume.map_or(mount.size.unwrap_or(DEFAULT_VOLUME), |volume| volume.size);
                    volumes.needs = volumes.needs.saturating_add(size);
                }
            }
        }
        volumes
    }

    /// The one node that it can be on.
    pub fn node(&self) -> Option<NodeId> {
        self.at.as_ref().map(|(node, ..)| *node)
    }

    /// What a node has against it.
    pub fn obstacle(&self, seat: &Seat<'_>) -> Option<Broken> {
        if self.at.is_none() && self.needs == Bytes::ZERO {
            return None;
        }
        if let Some((_, volume, name)) = self.at.as_ref().filter(|(node, ..)| *node != seat.node.id) {
            return Some(Broken::VolumeElsewhere {
                volume: volume.clone(),
                node: name.clone(),
            });
        }
        let pool = seat.node.facts.volumes.as_ref();
        let Some(pool) = pool.filter(|pool| !self.arrive || pool.port.is_some()) else {
            return Some(Broken::NoVolumes);
        };
        let given = self.given.get(&seat.node.id).copied().unwrap_or(Bytes::ZERO);
        let (taken, count) = seat.volumes;
        let free = match count < MAX_VOLUMES {
            true => pool.capacity.saturating_sub(taken.saturating_add(given)),
            false => Bytes::ZERO,
        };
        (self.needs > free).then_some(Broken::VolumesFull {
            need: self.needs,
            free,
        })
    }
}
