//! The reconciler: brings the host from what is observed to what is desired.
//!
//! Owns the decision what happens to a container next. [`plan`] decides (pure), [`outcome`] says what a finished step
//! changes (pure), [`apply`] carries steps out through the traits, [`actor`] is the loop that owns the state and the
//! only writer of it, [`observe`] merges what the runtime holds and publishes it for the link. Refuses to decide where
//! things run: that is the brain's.

pub mod actor;
pub mod apply;
mod events;
pub mod observe;
pub mod orders;
pub mod outcome;
pub mod plan;
pub mod state;
mod volume_orders;

#[cfg(test)]
mod converge;
#[cfg(test)]
mod cut_off_starts;
#[cfg(test)]
mod loop_tests;
#[cfg(test)]
mod newer_brain;

pub use actor::{Reconciler, Settings};
pub use observe::{Board, Changes, Endpoints, Places};
pub use orders::{Accepted, Handle, Refusal};
pub use volume_orders::{Mounts, VolumeOrders};
