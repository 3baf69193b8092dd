//! berth's brain: holds the cluster in memory, decides what runs where, serves the HTTP API and the agents' link.
//!
//! Owns desired state. Refuses to touch hosts: everything it wants goes to agents as a desired set, everything it knows
//! of hosts comes from them.
#![forbid(unsafe_code)]

pub mod allocate;
pub mod api;
pub mod ca;
pub mod cluster;
pub mod config;
pub mod controllers;
pub mod images;
pub mod link;
pub mod metrics;
pub mod network_check;
pub mod outlook;
pub mod policies;
pub mod scheduler;
pub mod simulate;
pub mod store;
pub mod usage;
pub mod wiring;
