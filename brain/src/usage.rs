//! The usage book: what nodes last said of their load, and how old that is.
//!
//! Owns the newest report of each node and each container in memory. Refuses to pass off old numbers as new: a node whose
//! last report is more than [`STALE_MS`] old has no usage, since a silent node is not an idle one.

use std::collections::HashMap;

use berth_common::id::{ContainerId, NodeId};
use berth_common::protocol::{ContainerUsage, NodeUsage, UsageReport};
use parking_lot::Mutex;

/// Age in milliseconds from which a report counts as none.
pub const STALE_MS: u64 = 15_000;
/// Most containers remembered for one node; no node runs more.
const MAX_CONTAINERS: usize = 10_000;

/// A value with the time since it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<T> {
    /// The value.
    pub usage: T,
    /// Milliseconds since it arrived.
    pub age_ms: u64,
}

struct Page {
    serial: u64,
    sequence: u64,
    arrived_ms: u64,
    node: NodeUsage,
    containers: HashMap<ContainerId, (ContainerUsage, u64)>,
}

/// Last reports of all nodes.
#[derive(Default)]
pub struct UsageBook {
    pages: Mutex<HashMap<NodeId, Page>>,
}

impl UsageBook {
    /// Takes a report that arrived at monotonic `now_ms` on connection `serial`. Reports of an older connection, late ones,
    /// and containers for which `own` does not hold (R7) are ignored. Says whether it was taken.
    pub fn record(
        &self,
        node: NodeId,
        serial: u64,
        report: UsageReport,
        now_ms: u64,
        own: impl Fn(ContainerId) -> bool,
    ) -> bool {
        let mut pages = self.pages.lock();
        let page = pages.entry(node).or_insert_with(|| Page {
            serial: 0,
            sequence: 0,
            arrived_ms: 0,
            node: NodeUsage::default(),
            containers: HashMap::new(),
        });
        let late =
            serial < page.serial || (serial == page.serial && serial > 0 && report.sequence <= page.sequence);
        if late {
            return false;
        }
        page.serial = serial;
        page.sequence = report.sequence;
        page.arrived_ms = now_ms;
        page.node = report.node;
        if report.full {
            page.containers.clear();
        }
        for usage in report.containers {
            if own(usage.id)
                && (page.containers.len() < MAX_CONTAINERS || page.containers.contains_key(&usage.id))
            {
                page.containers.insert(usage.id, (usage, now_ms));
            }
        }
        true
    }

    /// A node's load; none if there is no fresh report at monotonic `now_ms`.
    pub fn node(&self, node: NodeId, now_ms: u64) -> Option<Reading<NodeUsage>> {
        let pages = self.pages.lock();
        let page = pages.get(&node)?;
        let age_ms = now_ms.saturating_sub(page.arrived_ms);
        (age_ms < STALE_MS).then(|| Reading {
            usage: page.node.clone(),
            age_ms,
        })
    }

    /// A container's load on its node; none if the node has no fresh report. A container whose load does not change is
    /// reported seldom, so its reading is as fresh as its node's and `age_ms` says when it last changed.
    pub fn container(
        &self,
        node: NodeId,
        container: ContainerId,
        now_ms: u64,
    ) -> Option<Reading<ContainerUsage>> {
        let pages = self.pages.lock();
        let page = pages.get(&node)?;
        if now_ms.saturating_sub(page.arrived_ms) >= STALE_MS {
            return None;
        }
        let (usage, arrived_ms) = page.containers.get(&container)?;
        Some(Reading {
            usage: usage.clone(),
            age_ms: now_ms.saturating_sub(*arrived_ms),
        })
    }

    /// Shows what a node last said of itself and its containers.
    pub fn show<T>(
        &self,
        node: NodeId,
        look: impl FnOnce(&NodeUsage, &mut dyn Iterator<Item = &ContainerUsage>) -> T,
    ) -> Option<T> {
        let pages = self.pages.lock();
        let page = pages.get(&node)?;
        Some(look(
            &page.node,
            &mut page.containers.values().map(|(usage, _)| usage),
        ))
    }

    /// Drops what is known of a node that is no more.
    pub fn forget(&self, node: NodeId) {
        self.pages.lock().remove(&node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::model::UnixMillis;

    fn report(sequence: u64, cpu: u32, ids: &[u8], full: bool) -> UsageReport {
        let containers = ids
            .iter()
            .map(|n| {
                let id = ContainerId::from_bytes([*n; 10]);
                serde_json::from_value(serde_json::json!({ "id": id, "at": UnixMillis(1), "cpu": cpu }))
                    .unwrap()
            })
            .collect();
        UsageReport {
            sequence,
            node: NodeUsage {
                cpu: Some(cpu),
                ..NodeUsage::default()
            },
            containers,
            full,
            ..UsageReport::default()
        }
    }

    #[test]
    fn fresh_late_stale_and_foreign() {
        let (node, book) = (NodeId::from_bytes([1; 10]), UsageBook::default());
        let own = |id: ContainerId| id != ContainerId::from_bytes([9; 10]);
        let id = |n| ContainerId::from_bytes([n; 10]);
        assert!(book.record(node, 1, report(5, 100, &[1, 9], false), 1_000, own));
        assert!(
            !book.record(node, 1, report(4, 999, &[], false), 1_100, own),
            "late"
        );
        assert!(
            book.record(node, 2, report(1, 200, &[2], false), 2_000, own),
            "a new connection counts anew"
        );
        assert!(
            !book.record(node, 1, report(9, 999, &[], false), 2_100, own),
            "the old connection is over"
        );
        assert_eq!(book.node(node, 3_000).unwrap().usage.cpu, Some(200));
        assert_eq!(book.container(node, id(1), 3_000).unwrap().age_ms, 2_000);
        assert!(
            book.container(node, id(9), 3_000).is_none(),
            "another node's container (R7)"
        );
        assert!(book.record(node, 2, report(2, 200, &[2], true), 3_000, own));
        assert!(
            book.container(node, id(1), 3_000).is_none(),
            "a full report lacks it"
        );
        assert!(book.node(node, 3_000 + STALE_MS).is_none(), "silent is not idle");
        assert!(book.container(node, id(2), 3_000 + STALE_MS).is_none());
    }
}
