//! Series of nodes: a table of what is told of each, from one reading. What is not known of a node is absent, never zero.

use berth_common::api::ExpectedLoad;
use berth_common::model::{Capacity, NodeRecord, NodeState, Reservation, Taken};
use berth_common::protocol::NodeUsage;
use berth_common::units::{Bytes, Millicores};
use prometheus_client::registry::Unit;

/// What is read of a node for one scrape.
#[derive(Debug, Clone)]
pub struct Reading {
    /// Its name.
    pub name: String,
    /// Its pool's name.
    pub pool: String,
    /// How it stands.
    pub state: NodeState,
    /// Whether new containers may come.
    pub schedulable: bool,
    /// What it has.
    pub capacity: Capacity,
    /// What reservations may add up to.
    pub allocatable: Reservation,
    /// What they add up to.
    pub taken: Taken,
    /// What it uses, by a fresh report.
    pub usage: Option<NodeUsage>,
    /// Age of that report, milliseconds.
    pub age_ms: Option<u64>,
    /// What it is expected to use.
    pub expected: Option<ExpectedLoad>,
    /// Of disks and networks, what no container is expected to use, bytes a second.
    pub foreign_bps: Option<(u64, u64)>,
}

impl Reading {
    /// Of a node of whose load nothing is known.
    pub fn of(node: &NodeRecord, state: NodeState, allocatable: Reservation, taken: Taken) -> Self {
        Self {
            name: node.name.to_string(),
            pool: node.pool.to_string(),
            state,
            schedulable: !node.cordoned && !node.draining && !node.lost,
            capacity: node.facts.capacity,
            allocatable,
            taken,
            usage: None,
            age_ms: None,
            expected: None,
            foreign_bps: None,
        }
    }
}

/// In what something is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Cores of CPU.
    Cores,
    /// Bytes.
    Bytes,
    /// Bytes a second. Agents tell rates and no totals.
    BytesPerSecond,
    /// Seconds.
    Seconds,
    /// A number of things, or yes (1) and no (0).
    Count,
}

impl Measure {
    /// As it ends a name.
    pub fn unit(self) -> Option<Unit> {
        match self {
            Self::Cores => Some(Unit::Other("cores".to_owned())),
            Self::Bytes => Some(Unit::Bytes),
            Self::BytesPerSecond => Some(Unit::Other("bytes_per_second".to_owned())),
            Self::Seconds => Some(Unit::Seconds),
            Self::Count => None,
        }
    }
}

/// One series of every node.
pub struct Series {
    /// Its name without prefix and unit.
    pub name: &'static str,
    /// What it is.
    pub help: &'static str,
    /// In what it is measured.
    pub measure: Measure,
    /// Its value; none where it is not known.
    pub value: fn(&Reading) -> Option<f64>,
}

fn cores(cpu: Millicores) -> Option<f64> {
    millicores(Some(cpu.0))
}

fn millicores(cpu: Option<u32>) -> Option<f64> {
    Some(f64::from(cpu?) / 1000.0)
}

fn bytes(amount: Bytes) -> Option<f64> {
    Some(amount.0 as f64)
}

fn used(node: &Reading, of: fn(&NodeUsage) -> Option<u64>) -> Option<f64> {
    Some(of(node.usage.as_ref()?)? as f64)
}

fn expected(node: &Reading, of: fn(&ExpectedLoad) -> u64) -> Option<f64> {
    Some(of(node.expected.as_ref()?) as f64)
}

const fn series(
    name: &'static str,
    measure: Measure,
    help: &'static str,
    value: fn(&Reading) -> Option<f64>,
) -> Series {
    Series {
        name,
        help,
        measure,
        value,
    }
}

use Measure::{Bytes as Size, BytesPerSecond as Rate, Cores, Count, Seconds};

/// What is told of every node.
pub const SERIES: [Series; 32] = [
    series(
        "node_schedulable",
        Count,
        "1 if new containers may come: not cordoned, draining or lost",
        |n| Some(f64::from(u8::from(n.schedulable))),
    ),
    series("node_containers", Count, "Containers bound to the node", |n| {
        Some(f64::from(n.taken.containers))
    }),
    series(
        "node_report_age",
        Seconds,
        "Age of the newest report of load",
        |n| Some(n.age_ms? as f64 / 1000.0),
    ),
    series("node_cpu_capacity", Cores, "CPU that the node has", |n| {
        cores(n.capacity.cpu)
    }),
    series(
        "node_cpu_allocatable",
        Cores,
        "CPU that reservations may add up to",
        |n| cores(n.allocatable.cpu),
    ),
    series("node_cpu_reserved", Cores, "CPU that is reserved", |n| {
        cores(n.taken.reserved.cpu)
    }),
    series(
        "node_cpu_lent",
        Cores,
        "CPU that best-effort containers are reckoned with beside reservations",
        |n| cores(n.taken.lent.cpu),
    ),
    series("node_cpu_used", Cores, "CPU in use, measured", |n| {
        millicores(n.usage.as_ref()?.cpu)
    }),
    series(
        "node_cpu_used_foreign",
        Cores,
        "Of the CPU in use, what is not containers'",
        |n| millicores(n.usage.as_ref()?.cpu_foreign),
    ),
    series(
        "node_cpu_expected",
        Cores,
        "CPU expected to be in use in the next minutes",
        |n| millicores(Some(n.expected.as_ref()?.cpu)),
    ),
    series(
        "node_cpu_expected_high",
        Cores,
        "CPU exceeded one time in a thousand, for which placements leave room",
        |n| millicores(Some(n.expected.as_ref()?.cpu_high)),
    ),
    series(
        "node_cpu_expected_foreign",
        Cores,
        "Of the CPU expected, what is not containers'",
        |n| millicores(Some(n.expected.as_ref()?.cpu_foreign)),
    ),
    series("node_memory_capacity", Size, "Memory that the node has", |n| {
        bytes(n.capacity.memory)
    }),
    series(
        "node_memory_allocatable",
        Size,
        "Memory that reservations may add up to",
        |n| bytes(n.allocatable.memory),
    ),
    series("node_memory_reserved", Size, "Memory that is reserved", |n| {
        bytes(n.taken.reserved.memory)
    }),
    series(
        "node_memory_lent",
        Size,
        "Memory that best-effort containers are reckoned with beside reservations",
        |n| bytes(n.taken.lent.memory),
    ),
    series(
        "node_memory_used",
        Size,
        "Memory that is not available, measured",
        |n| used(n, |u| u.memory),
    ),
    series(
        "node_memory_used_foreign",
        Size,
        "Of the memory in use, what is not containers'",
        |n| used(n, |u| u.memory_foreign),
    ),
    series(
        "node_memory_expected",
        Size,
        "Memory expected to be in use in the next minutes",
        |n| expected(n, |e| e.memory),
    ),
    series(
        "node_memory_expected_foreign",
        Size,
        "Of the memory expected, what is not containers'",
        |n| expected(n, |e| e.memory_foreign),
    ),
    series(
        "node_disk_capacity",
        Size,
        "Disk that the node has where layers live",
        |n| bytes(n.capacity.disk),
    ),
    series(
        "node_disk_allocatable",
        Size,
        "Disk that reservations may add up to",
        |n| bytes(n.allocatable.disk),
    ),
    series("node_disk_reserved", Size, "Disk that is reserved", |n| {
        bytes(n.taken.reserved.disk)
    }),
    series(
        "node_disk_used",
        Size,
        "Disk in use where layers live, measured",
        |n| used(n, |u| u.disk),
    ),
    series("node_disk_read", Rate, "Read from all disks", |n| {
        used(n, |u| u.disk_read_bps)
    }),
    series("node_disk_written", Rate, "Written to all disks", |n| {
        used(n, |u| u.disk_write_bps)
    }),
    series(
        "node_disk_expected",
        Rate,
        "Expected to be read from and written to disks",
        |n| expected(n, |e| e.disk_bps),
    ),
    series(
        "node_disk_expected_foreign",
        Rate,
        "Of what is expected of disks, what is not containers'",
        |n| Some(n.foreign_bps?.0 as f64),
    ),
    series(
        "node_network_received",
        Rate,
        "Received on physical interfaces",
        |n| used(n, |u| u.net_rx_bps),
    ),
    series("node_network_sent", Rate, "Sent on physical interfaces", |n| {
        used(n, |u| u.net_tx_bps)
    }),
    series(
        "node_network_expected",
        Rate,
        "Expected to be received and sent",
        |n| expected(n, |e| e.net_bps),
    ),
    series(
        "node_network_expected_foreign",
        Rate,
        "Of what is expected of networks, what is not containers'",
        |n| Some(n.foreign_bps?.1 as f64),
    ),
];
