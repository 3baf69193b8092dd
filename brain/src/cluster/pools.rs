//! Pools: which overcommit holds on a node, and what reservations there may add up to. Pure over the state.

use berth_common::id::Name;
use berth_common::model::{DEFAULT_POOL, NodeRecord, Overcommit, Reservation};

use super::State;

impl State {
    /// Whether there is such a pool. The default one always is.
    pub fn has_pool(&self, name: &Name) -> bool {
        name.as_str() == DEFAULT_POOL || self.pools.contains_key(name)
    }

    /// A pool's overcommit; none of one that nobody set any for.
    pub fn pool_overcommit(&self, name: &Name) -> Overcommit {
        self.pools
            .get(name)
            .map_or_else(Overcommit::default, |pool| pool.overcommit)
    }

    /// What reservations on a node may add up to (R4): by its own overcommit, else by its pool's.
    pub fn allocatable(&self, node: &NodeRecord) -> Reservation {
        let overcommit = node
            .overcommit
            .unwrap_or_else(|| self.pool_overcommit(&node.pool));
        node.facts.allocatable(overcommit)
    }
}
