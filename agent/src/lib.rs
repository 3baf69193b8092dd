//! berth's per-host agent: turns a desired set into limited, measured containers.
//!
//! Owns what happens on its host. Refuses to decide where things run, and anything meant for another node (R7).

pub mod cgroup;
pub mod check;
pub mod config;
pub mod container;
pub mod containerd;
pub mod dns;
pub mod facts;
pub mod fakes;
pub mod health;
pub mod image;
pub mod join;
pub mod ledger;
pub mod link;
pub mod logs;
pub mod network;
pub mod peers;
pub mod reconcile;
pub mod sys;
pub mod usage;
pub mod volume;
pub mod wiring;
