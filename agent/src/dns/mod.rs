//! Names inside networks: a small server on each network's gateway, and the way to the host's own resolvers for all else.
//!
//! Owns what a container is told about names: [`zone`] decides (pure), [`message`] reads and writes DNS (pure, over what anybody may
//! send), [`server`] has the sockets, [`upstream`] asks the host's resolvers. Who is called what comes from the brain; a
//! container hears of the networks that it is on and of no others. Refuses to cache: the host's resolvers do that.

pub mod message;
pub mod server;
pub mod upstream;
pub mod zone;

pub use server::DnsServer;
pub use upstream::Upstream;
pub use zone::{DOMAIN, Zone};
