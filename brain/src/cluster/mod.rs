//! The cluster: one in-memory state, one writer, many readers.

pub mod state;

pub use state::{Change, Connection, JoinTokenRecord, State, Stored};
