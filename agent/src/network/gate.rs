//! The host's own part in containers' networks: two tables, and forwarding on its links. There from the first network to the last.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use super::doors::Doors;
use super::egress::{Switched, Transit, Wanted};
use super::filters::Filters;
use super::namespace::Namespace;
use super::publish::Open;
use super::ruleset::{self, Apart, Guarded, Table};
use super::{nft, uplink};
use crate::ledger::write_atomically;
use crate::reconcile::apply::chain;

/// What networks need of their host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Need {
    /// Nodes that may send VXLAN packets. None while nobody has said: what is in force stays.
    pub nodes: Option<BTreeSet<IpAddr>>,
    /// Where the brain is: not for containers.
    pub brains: BTreeSet<SocketAddr>,
    /// Ways out.
    pub transits: BTreeSet<Transit>,
    /// Nodes of other sites: what goes there is encrypted.
    pub sealed: BTreeSet<IpAddr>,
    /// This host's address for networks, as far as it is an IPv4 one.
    pub own: Option<Ipv4Addr>,
    /// The host has IPv6, and so do its networks outside.
    pub six: bool,
    /// Published ports.
    pub open: Vec<Open>,
}

/// The host's part.
#[derive(Debug)]
pub(super) struct Gate {
    /// The UDP port that nodes speak VXLAN on.
    port: u16,
    /// Where it is kept on which links berth switched forwarding on.
    file: PathBuf,
    filters: Filters,
    /// What was done last; none: an agent that was killed may have left anything.
    kept: Option<Need>,
    guarded: BTreeSet<String>,
    guarded6: bool,
    doors: Doors,
    /// Ports that somebody else has, in words.
    shut: Vec<String>,
    /// There is nothing of it, as far as is known.
    absent: bool,
}

impl Gate {
    pub(super) fn new(port: u16, file: PathBuf) -> Self {
        Self {
            port,
            file,
            filters: Filters::default(),
            kept: None,
            guarded: BTreeSet::new(),
            guarded6: false,
            doors: Doors::default(),
            shut: Vec::new(),
            absent: false,
        }
    }

    /// Makes the host as networks need it; `look`: also where it is believed to be.
    pub(super) async fn keep(&mut self, host: Namespace, need: &Need, look: bool) -> Result<(), String> {
        if !look && self.kept.as_ref() == Some(need) {
            return Ok(());
        }
        self.absent = false;
        self.kept = None;
        let file = self.file.clone();
        let wanted = if need.six { Wanted::Both } else { Wanted::Four };
        let (space, plan) = blocking(host, move |host| {
            let ours = read(&file)?;
            let seen = uplink::forwarding(host).map_err(|error| unreadable(&error))?;
            let plan = seen.plan(&ours, wanted);
            // Before it is done: what was switched on must be known when it is to be switched off.
            if plan.ours != ours {
                write(&file, &plan.ours)?;
            }
            Ok(plan)
        })
        .await?;
        self.guarded = plan.ours.guarded().cloned().collect();
        self.guarded6 = plan.ours.six;
        let (mut doors, open) = (std::mem::take(&mut self.doors), need.open.clone());
        let held = tokio::task::spawn_blocking(move || {
            let held = doors.hold(&space, &open);
            (space, doors, held)
        });
        let (space, doors, held) = held.await.map_err(|error| error.to_string())?;
        self.doors = doors;
        let (open, shut) = held.map_err(|error| format!("published ports can't be held: {error}"))?;
        self.shut = shut;
        let rules = self.rules(need, &open);
        let host = space.try_clone().map_err(|error| error.to_string())?;
        self.filters.keep(host, rules).await?;
        blocking(space, move |host| {
            uplink::switch(host, plan).map_err(|error| unswitchable(&error))
        })
        .await?;
        self.kept = Some(need.clone());
        Ok(())
    }

    /// Leaves the host as it was.
    pub(super) async fn remove(&mut self, host: Namespace) -> Result<(), String> {
        if self.absent {
            return Ok(());
        }
        let (port, file) = (self.port, self.file.clone());
        blocking(host, move |host| restore(host, port, &file)).await?;
        (self.filters, self.kept, self.absent) = (Filters::default(), None, true);
        (self.doors, self.shut) = (Doors::default(), Vec::new());
        Ok(())
    }

    /// Published ports that can't be open here, and why.
    pub(super) fn shut(&self) -> &[String] {
        &self.shut
    }

    fn rules(&self, need: &Need, open: &[Open]) -> Vec<(Table, String)> {
        let port = self.port;
        let (sealed, own) = (&need.sealed, need.own);
        let guarded = Guarded {
            links: &self.guarded,
            six: self.guarded6,
        };
        let out = ruleset::way_out(&need.brains, guarded, open, Apart { sealed, own }, need.six, port);
        let mut rules = vec![(ruleset::on_way_out(port), out)];
        let nodes = need.nodes.as_ref();
        rules.extend(nodes.map(|nodes| (ruleset::on_underlay(port), ruleset::host(nodes, sealed, port))));
        rules
    }
}

/// Takes the tables away and switches off what berth switched on. Blocks.
///
/// # Errors
/// In words, the first thing that could not be undone.
pub fn restore(host: &Namespace, port: u16, file: &Path) -> Result<(), String> {
    let ours = read(file)?;
    if ours != Switched::default() {
        let seen = uplink::forwarding(host).map_err(|error| unreadable(&error))?;
        uplink::switch(host, seen.plan(&ours, Wanted::Nothing)).map_err(|error| unswitchable(&error))?;
    }
    for table in [ruleset::on_way_out(port), ruleset::on_underlay(port)] {
        nft::remove(host, table).map_err(|error| chain(&error))?;
    }
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("{} can't be deleted: {error}", file.display()))
        }
        _ => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    host: Namespace,
    work: impl FnOnce(&Namespace) -> Result<T, String> + Send + 'static,
) -> Result<(Namespace, T), String> {
    let done = tokio::task::spawn_blocking(move || work(&host).map(|value| (host, value)));
    done.await.map_err(|error| error.to_string())?
}

fn read(file: &Path) -> Result<Switched, String> {
    let text = match std::fs::read(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Switched::default()),
        Err(error) => {
            return Err(format!(
                "{} can't be read: {error}; delete it, then links that berth switched forwarding on for keep it",
                file.display()
            ));
        }
    };
    // A damaged one says nothing: what is on stays on, which breaks nobody's traffic.
    Ok(serde_json::from_slice(&text).unwrap_or_else(|error| {
        tracing::warn!(file = %file.display(), %error, "it is not known any more on which links berth switched forwarding on; they keep it");
        Switched::default()
    }))
}

fn write(file: &Path, ours: &Switched) -> Result<(), String> {
    let text = serde_json::to_vec(ours).map_err(|error| error.to_string())?;
    write_atomically(file, &text, true).map_err(|error| chain(&error))
}

fn unreadable(error: &std::io::Error) -> String {
    format!("whether this host passes packets on can't be read: {error}")
}

fn unswitchable(error: &std::io::Error) -> String {
    format!(
        "forwarding can't be switched on for containers' packets (net.ipv4.conf.*.forwarding, net.ipv6.conf.all.forwarding): {error}; set net.ipv4.ip_forward=1 and net.ipv6.conf.all.forwarding=1"
    )
}
