//! A first look at a node, at a few numbers that lie together: most of the nodes that a container can't go to are passed over by it.
//!
//! Of ten thousand nodes, a search that asks for something looks at many that don't have it. A record is reached by several pointers, each a miss
//! of the cache; what is here of all nodes fits into it. Refuses to decide: who is let through is looked at in earnest, and who is not could never
//! have stood that look.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::sync::{Arc, OnceLock};

use berth_common::id::TenantId;
use berth_common::model::{DEFAULT_POOL, NODE_LABEL, NodeKind, NodeRecord};

use super::Request;
use crate::cluster::State;

/// What of a node's record decides most often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gate {
    labels: u64,
    pool: u32,
    arch: u32,
    owner: Option<TenantId>,
    /// It takes no new containers.
    closed: bool,
}

/// What a request asks of it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    labels: u64,
    pool: u32,
    arch: Option<u32>,
    tenant: TenantId,
}

/// The same for equal values in one process, which is as long as anybody keeps it.
fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn short(text: &str) -> u32 {
    hash(text) as u32
}

/// One bit of 64 for a label: a node that lacks it does not have the label.
fn bit(label: (&str, &str)) -> u64 {
    1 << (hash(label) % 64)
}

impl Gate {
    /// A node's.
    pub fn of(node: &NodeRecord) -> Self {
        let labels = node.labels.iter();
        let own = [(NODE_LABEL, node.name.as_str())];
        Self {
            labels: labels
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .chain(own)
                .fold(0, |all, label| all | bit(label)),
            pool: short(node.pool.as_str()),
            arch: short(&node.facts.arch.0),
            owner: match node.kind {
                NodeKind::Shared => None,
                NodeKind::Private { tenant } => Some(tenant),
            },
            closed: node.cordoned || node.draining,
        }
    }
}

impl Asked {
    /// By this request.
    pub fn by(request: &Request<'_>) -> Self {
        let labels = request.node_labels.iter();
        let asked = &request.constraints;
        Self {
            labels: labels.fold(0, |all, (key, value)| all | bit((key, value))),
            pool: short(asked.pool.map_or(DEFAULT_POOL, |pool| pool.as_str())),
            arch: asked.arch.map(|arch| short(&arch.0)),
            tenant: request.tenant,
        }
    }

    /// Whether a node is worth a look.
    #[inline]
    pub fn admits(&self, gate: &Gate) -> bool {
        !gate.closed
            && gate.pool == self.pool
            && gate.labels & self.labels == self.labels
            && self.arch.is_none_or(|arch| arch == gate.arch)
            && gate.owner.is_none_or(|owner| owner == self.tenant)
    }
}

/// The gates of all nodes of a state, in the order of their ids: made when first asked for, and anew after a change of what is in them.
#[derive(Debug, Clone, Default)]
pub struct Gates(Arc<OnceLock<Box<[Gate]>>>);

impl Gates {
    /// Of this state, whose they are.
    pub fn all<'s>(&'s self, state: &State) -> &'s [Gate] {
        self.0
            .get_or_init(|| state.nodes.values().map(|node| Gate::of(node)).collect())
    }

    /// One node is no longer as `old` but as `new`.
    pub fn follow(&mut self, old: Option<&NodeRecord>, new: Option<&NodeRecord>) {
        if old.map(Gate::of) != new.map(Gate::of) {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use berth_common::model::{Architecture, Reservation};
    use proptest::prelude::*;

    use super::*;
    use crate::controllers::fixtures::{node, node_id, tenant_id};
    use crate::scheduler::{Constraints, View, candidates};

    /// A node by a few digits: its kind, pool, architecture, one label, and whether it is open.
    fn made(n: u64, digits: [u8; 5]) -> NodeRecord {
        let [kind, pool, arch, label, open] = digits;
        let kind = match kind {
            0 => NodeKind::Private { tenant: tenant_id(1) },
            1 => NodeKind::Private { tenant: tenant_id(2) },
            _ => NodeKind::Shared,
        };
        let mut node = node(n, kind, 4, 8);
        node.pool = ["default", "batch", "gpu"][usize::from(pool)].parse().unwrap();
        node.facts.arch = Architecture(["amd64", "arm64", "riscv64"][usize::from(arch)].to_owned());
        node.labels = [("disk".to_owned(), format!("d{label}"))].into();
        node.cordoned = open == 0;
        node.draining = open == 1;
        node
    }

    proptest! {
        /// Whoever stands the checks is let through.
        #[test]
        fn nobody_is_passed_over_who_would_be_taken(
            nodes in proptest::collection::vec([0u8..3, 0u8..3, 0u8..3, 0u8..3, 0u8..3], 1..40),
            asked in [0u8..3, 0u8..4, 0u8..4, 0u8..5, 0u8..3],
        ) {
            let mut state = State::default();
            for (n, digits) in nodes.iter().enumerate() {
                state.nodes.insert(node_id(n as u64), Arc::new(made(n as u64, *digits)));
            }
            let [tenant, pool, arch, label, _] = asked;
            let wanted = made(99, [2, pool % 3, arch % 3, label, 2]);
            let mut labels = wanted.labels.clone();
            match label {
                3 => labels.clear(),
                4 => labels = [("node".to_owned(), "h3".to_owned())].into(),
                _ => {}
            }
            let request = Request {
                tenant: tenant_id(u64::from(tenant)),
                reservation: Reservation::default(),
                node_labels: &labels,
                replicas: BTreeMap::new(),
                image_on: Default::default(),
                constraints: Constraints {
                    pool: (pool < 3).then_some(&wanted.pool),
                    arch: (arch < 3).then_some(&wanted.facts.arch),
                    ..Constraints::default()
                },
                load: Default::default(),
                seed: 0,
            };
            let mut view = View::new(&state, &BTreeMap::new());
            for at in 0..nodes.len() {
                // Who is connected is no part of the first look.
                view.seats[at].synced = true;
            }
            let asked = Asked::by(&request);
            for (at, gate) in state.gates.all(&state).iter().enumerate() {
                let stands = candidates::obstacle(&view, &request, at).is_none();
                prop_assert!(asked.admits(gate) || !stands, "{gate:?} {asked:?}");
            }
        }
    }

    #[test]
    fn most_of_those_in_vain_are_passed_over() {
        let labels = [("rack".to_owned(), "r7".to_owned())].into();
        let request = Request {
            tenant: tenant_id(1),
            reservation: Reservation::default(),
            node_labels: &labels,
            replicas: BTreeMap::new(),
            image_on: Default::default(),
            constraints: Constraints::default(),
            load: Default::default(),
            seed: 0,
        };
        let asked = Asked::by(&request);
        let admitted = (0..1_000).filter(|n| {
            let mut node = node(*n, NodeKind::Shared, 4, 8);
            node.labels = [("rack".to_owned(), format!("r{}", n % 100))].into();
            asked.admits(&Gate::of(&node))
        });
        let admitted = admitted.count();
        assert!(
            (10..100).contains(&admitted),
            "{admitted} for 10 that have the label"
        );
    }
}
