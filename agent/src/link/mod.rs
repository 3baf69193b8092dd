//! The link to the brain: one connection that the agent dials, over which everything goes.
//!
//! [`session`] is the protocol as a state machine without I/O; [`dial`] reaches the brain and [`quic`] moves bytes; [`renewal`] says
//! when the certificate is due; [`streams`] answers what
//! the brain asks of this node, [`probing`] what it asks for long; [`brain`] asks the brain. Nothing here decides what runs.

pub mod brain;
pub mod dial;
mod probing;
pub mod quic;
pub mod renewal;
pub mod session;
pub mod streams;

pub use brain::Brain;
pub use dial::LinkError;
pub use quic::{Link, LinkSettings};
pub use streams::{LogSource, Server};
