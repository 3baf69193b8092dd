//! `berth-brain simulate`: replays traces of real load under a policy, to see what it does before it does it to anybody.
//!
//! [`trace`] reads, [`scenario`] makes of it what is to happen, [`engine`] lets it happen under a [`policy`] and tells every event,
//! [`report`] computes figures from the events alone, and [`plot`] a picture. What could be had at best is told by [`floor`] and
//! [`clairvoyant`]; [`compare`] replays several traces, sizes and seeds. All but reading and writing is pure, and follows from traces,
//! settings and a seed.

pub mod clairvoyant;
pub mod cluster;
mod command;
pub mod compare;
pub mod engine;
pub mod floor;
pub mod plot;
pub mod policy;
pub mod report;
pub mod scenario;
mod summary;
pub mod trace;

#[cfg(test)]
mod bounds_cases;
#[cfg(test)]
mod tests;

pub use command::{Options, run};
