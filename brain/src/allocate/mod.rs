//! What is given out once: networks' identifiers, their addresses, and endpoints' numbers on them. Pure.
//!
//! Owns the choice alone. What is taken already is an input, and what is chosen is kept by the caller in the same write as
//! what it is for: so a crash between the two can't exist, and nothing is given twice.

mod hosts;
mod networks;

pub use hosts::{Full, Hosts, QUARANTINE_MS};
pub use networks::{NoRoom, subnet, ula, vni};
