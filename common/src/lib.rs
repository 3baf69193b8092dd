//! Words both sides of berth speak: ids, units, the model, the wire protocol and the identities behind it.
//!
//! Owns every type that crosses a process boundary: brain ↔ agent (`protocol`), brain ↔ people (`api`). Refuses logic:
//! no I/O beyond framing (but for what every daemon owes its service manager, `daemon`), no decisions. Neither the agent nor
//! the brain imports the other; what they share is here.
#![forbid(unsafe_code)]

pub mod api;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod error;
pub mod id;
pub mod identity;
pub mod model;
#[cfg(feature = "openapi")]
pub mod openapi;
pub mod protocol;
pub mod units;

/// The version of this build, as `berth version` and Hello/Welcome report it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The default port of the brain: TCP for the HTTP API, UDP for the link.
pub const DEFAULT_PORT: u16 = 7443;
