//! Which host ids a container's user namespace uses.
//!
//! Every container has 65,536 ids of its own, so that a process that breaks out of one owns nothing of another. The
//! ranges lie from 0x7000_0000 up to 0x7FFD_0000: above what systemd hands out to its own containers and dynamic users
//! and above the usual /etc/subuid ranges, and below 2³¹, where ids turn negative in careless programs. That is room
//! for 4,093 containers a node. The choice is remembered in the container's record, never recomputed.

use std::collections::BTreeMap;

use berth_common::id::ContainerId;

/// Ids in a range.
pub const SIZE: u32 = 65_536;
const FIRST: u32 = 0x7000_0000;
/// How many ranges there are.
pub const SLOTS: u32 = 0x0FFD;

/// Who holds which range.
#[derive(Debug, Default)]
pub struct Ranges {
    held: BTreeMap<u32, ContainerId>,
}

/// Whether `base` is one that [`Ranges`] gives out.
pub const fn is_base(base: u32) -> bool {
    base >= FIRST && base.is_multiple_of(SIZE) && (base - FIRST) / SIZE < SLOTS
}

impl Ranges {
    /// Notes that a container holds the range at `base`, as its record says.
    pub fn hold(&mut self, id: ContainerId, base: u32) {
        self.held.insert(base, id);
    }

    /// The first host id of a free range for `id`, its own if it holds one; none when all are taken. Starts looking at a
    /// place that depends on the id, so that a range rarely changes hands soon.
    pub fn allocate(&mut self, id: ContainerId) -> Option<u32> {
        if let Some((base, _)) = self.held.iter().find(|(_, holder)| **holder == id) {
            return Some(*base);
        }
        let text = id.to_string();
        let seed = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
        });
        let base = (0..SLOTS)
            .map(|step| FIRST + (seed % SLOTS + step) % SLOTS * SIZE)
            .find(|base| !self.held.contains_key(base))?;
        self.held.insert(base, id);
        Some(base)
    }

    /// Gives back what `id` holds.
    pub fn release(&mut self, id: ContainerId) {
        self.held.retain(|_, holder| *holder != id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_full_node_is_refused_and_a_returned_range_is_found() {
        let mut ranges = Ranges::default();
        let ids: Vec<_> = (0..=SLOTS).map(|_| ContainerId::random()).collect();
        for id in &ids[..SLOTS as usize] {
            assert!(ranges.allocate(*id).is_some());
        }
        assert_eq!(ranges.allocate(ids[SLOTS as usize]), None);
        ranges.release(ids[7]);
        assert!(ranges.allocate(ids[SLOTS as usize]).is_some());
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_stay_in_bounds(raw in proptest::collection::vec(any::<[u8; 10]>(), 1..200)) {
            let mut ranges = Ranges::default();
            let mut seen = BTreeMap::new();
            for raw in raw {
                let id = ContainerId::from_bytes(raw);
                let base = ranges.allocate(id).unwrap();
                prop_assert!(is_base(base));
                prop_assert!(base.checked_add(SIZE).is_some_and(|end| end <= 0x7FFE_0000));
                prop_assert_eq!(*seen.entry(base).or_insert(id), id);
                prop_assert_eq!(ranges.allocate(id), Some(base));
            }
        }
    }
}
