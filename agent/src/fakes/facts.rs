//! A host that does not exist.

use berth_common::model::{Architecture, Capacity, NodeFacts};
use berth_common::units::{Bytes, Millicores};

/// Facts of a plausible simulated host: 4 cores, 8 GiB, 100 GiB.
pub fn facts() -> NodeFacts {
    NodeFacts {
        hostname: "simulated".to_owned(),
        agent_version: berth_common::VERSION.to_owned(),
        os: "Simulated GNU/Linux".to_owned(),
        kernel: "6.0.0-sim".to_owned(),
        arch: Architecture("amd64".to_owned()),
        capacity: Capacity {
            cpu: Millicores(4000),
            memory: Bytes::gib(8),
            disk: Bytes::gib(100),
        },
        system_reserve: Capacity::default(),
        cgroup_version: 2,
        runtime: "fake 1".to_owned(),
        snapshotter: "fake".to_owned(),
        disk_limit_hard: false,
        boot_id: "simulated".to_owned(),
        underlay: None,
        warnings: Vec::new(),
    }
}
