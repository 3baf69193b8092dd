//! Containers' networks: a namespace, a bridge and a VXLAN device for each network that this node has endpoints on.
//!
//! Owns what of the kernel's network state is berth's on this host: [`plan`] says what has to change (pure), [`kernel`] looks
//! and carries out, over [`netlink`], [`ruleset`] writes the packet filters (pure) and [`nft`] loads them, [`namespace`] keeps and enters
//! network namespaces, [`sealed`] encrypts what goes to other sites. [`wanted`] says which networks there must be (pure), [`manager`] brings that about and looks again every few
//! seconds. Refuses to decide who has which address: that is the brain's. Nothing is learned and nothing floods: every entry is permanent and comes from the plan, so what is not in
//! it is not reachable.

mod doors;
pub mod egress;
mod filters;
pub mod gate;
mod generation;
pub mod kernel;
mod known;
mod links;
pub mod manager;
pub mod namespace;
pub mod netlink;
pub mod nft;
pub mod plan;
pub mod probe;
pub mod publish;
pub mod ruleset;
pub mod sealed;
pub mod services;
pub mod trace;
mod uplink;
mod wanted;

#[cfg(test)]
mod plan_tests;

pub use kernel::Kernel;
pub use manager::{Attach, NetworkSettings, Networks, Probe, Resolver};
pub use namespace::Namespace;
pub use netlink::NetworkError;
pub use plan::{Entry, Link, Overlay, Seen, Step, plan};
