//! What the cluster was told of one connection, so that it is told again only when something is news. Pure.

use std::net::SocketAddr;

use berth_common::id::Generation;

use crate::cluster::Connection;

/// What the cluster was told of this connection.
pub(super) struct Seen {
    remote: SocketAddr,
    pub(super) address: String,
    synced: bool,
    applied: Generation,
}

impl Seen {
    pub(super) fn new(remote: SocketAddr, applied: Generation) -> Self {
        Self {
            remote,
            address: remote.ip().to_canonical().to_string(),
            synced: false,
            applied,
        }
    }

    pub(super) fn connection(&self, serial: u64) -> Connection {
        Connection {
            serial,
            address: self.address.clone(),
            synced: self.synced,
            applied: self.applied,
        }
    }

    /// Whether an Observed is news about the connection.
    pub(super) fn observed(&mut self, full: bool, generation: Generation) -> bool {
        let news = (full && !self.synced) || generation != self.applied;
        self.synced |= full;
        self.applied = generation;
        news
    }

    /// Whether the agent's address changed.
    pub(super) fn moved(&mut self, remote: SocketAddr) -> bool {
        if remote == self.remote {
            return false;
        }
        self.remote = remote;
        let address = remote.ip().to_canonical().to_string();
        let news = address != self.address;
        self.address = address;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_news_is_told() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut seen = Seen::new(at("[::ffff:192.0.2.1]:1000"), Generation(3));
        assert_eq!(seen.connection(7).address, "192.0.2.1");
        assert!(!seen.observed(false, Generation(3)) && !seen.connection(7).synced);
        assert!(seen.observed(true, Generation(3)) && seen.connection(7).synced);
        assert!(!seen.observed(false, Generation(3)) && !seen.observed(true, Generation(3)));
        assert!(seen.observed(false, Generation(4)) && seen.connection(7).synced);
        assert!(!seen.moved(at("192.0.2.1:2000")), "another port of the same host");
        assert!(seen.moved(at("192.0.2.9:2000")) && !seen.moved(at("192.0.2.9:2000")));
        assert_eq!(seen.connection(7).address, "192.0.2.9");
    }
}
