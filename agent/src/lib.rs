//! berth's per-host agent: turns a desired set into limited, measured containers.
//!
//! Owns what happens on its host. Refuses to decide where things run, and anything meant for another node (R7).

pub mod cgroup;
pub mod container;
pub mod image;
