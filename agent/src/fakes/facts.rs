//! A host that does not exist.

use berth_common::model::{Capacity, NodeFacts};
use berth_common::units::{Bytes, Millicores};

/// Facts of a plausible simulated host: 4 cores, 8 GiB, 100 GiB.
pub fn facts() -> NodeFacts {
    let capacity = Capacity {
        cpu: Millicores(4000),
        memory: Bytes::gib(8),
        disk: Bytes::gib(100),
    };
    NodeFacts {
        agent_version: berth_common::VERSION.to_owned(),
        os: "Simulated GNU/Linux".to_owned(),
        kernel: "6.0.0-sim".to_owned(),
        runtime: "fake 1".to_owned(),
        snapshotter: "fake".to_owned(),
        boot_id: "simulated".to_owned(),
        ..NodeFacts::of("simulated", capacity)
    }
}
