//! Keeps this node's volumes as the brain wants them, and gives them to containers.
//!
//! Owns no wish: what it does follows from the desired set that was persisted last (R8), so an agent that starts without its
//! brain goes on where it stopped. [`plan`] decides (pure), [`attempts`] when to try again (pure), [`report`] what is told
//! (pure); [`actor`] looks, acts and looks again; [`hooks`] runs what goes around a snapshot, [`begun`] remembers that it does; [`sending`] sends what moves; [`mounts`] mounts volumes before a container is started and takes the
//! mounts away after it has ended. Refuses to mount what is not here, under another epoch, or about to change.

mod actor;
mod attempts;
mod begun;
mod hooks;
mod mounts;
pub mod plan;
mod ready;
pub mod report;
mod sending;

#[cfg(test)]
mod actor_tests;
#[cfg(test)]
mod hook_tests;
#[cfg(test)]
mod plan_property;

pub use actor::{Access, Keeper};
pub use hooks::{Commands, RuntimeCommands};
pub use mounts::{Provide, release_all, staging};
pub use report::Report;
