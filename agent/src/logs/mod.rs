//! What containers print: written by `berth-log`, one small process per container, read by the agent.
//!
//! The writer is started by containerd's shim, not by the agent, so output is kept whatever happens to the agent.

pub mod pump;
pub mod reader;
pub mod record;
pub mod writer;
