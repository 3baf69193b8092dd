//! The overlay against the same path wired by hand, and how fast it follows.

mod load;
mod reach;
mod wired;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use load::Path;

use super::summary;
use crate::fleet::{Fleet, Inside, all};
use crate::operator::Operator as _;

/// Rounds; each measures every path once, so that what else the machine does hits all of them.
const ROUNDS: usize = 7;
const SPAN: Duration = Duration::from_millis(1_200);

/// Every figure of this part.
///
/// # Errors
/// When the hosts can't be set up, or a path carries nothing.
pub fn run() -> anyhow::Result<()> {
    throughput()?;
    reach::attach()?;
    reach::many()?;
    reach::everywhere()
}

fn throughput() -> anyhow::Result<()> {
    let fleet = Fleet::new(2);
    for (name, node) in [("client", "h1"), ("server", "h2")] {
        pinned(&fleet, name, node);
    }
    fleet.brain.wait_running(2, 60);
    let now = all(&fleet.brain);
    let (client, server) = (&now["client.1"], &now["server.1"]);
    let shown = fleet.brain.json(&["service", "inspect", "server"]);
    let service: IpAddr = shown["addresses"][0]["ipv4"]
        .as_str()
        .unwrap_or_default()
        .parse()?;
    let pair = wired::pair();
    let hand = wired::overlay(&fleet.lan, [101, 102], "wired by hand", false);
    let ruled = wired::overlay(&fleet.lan, [103, 104], "wired by hand with rules", true);
    let of = |name, at| -> anyhow::Result<Path> {
        Ok(Path {
            name,
            client: client.space.try_clone()?,
            server: server.space.try_clone()?,
            at,
        })
    };
    let paths = [
        pair.path,
        hand.path,
        ruled.path,
        of("berth", server.ipv4)?,
        of("berth, service address", service)?,
    ];
    let mut arrived = Vec::new();
    for path in &paths {
        // One server answers at both of its addresses.
        let counted = match path.at == service {
            true => std::sync::Arc::clone(&arrived[3]),
            false => load::serve(path)?,
        };
        arrived.push(counted);
    }
    let mut found: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        for nth in 0..paths.len() {
            let at = (nth + round) % paths.len();
            let (path, arrived) = (&paths[at], &arrived[at]);
            let mut note = |what, value| found.entry((what, path.name)).or_default().push(value);
            note(
                "TCP, one stream, Gbit/s",
                load::streams(path, arrived, 1, SPAN)? * 8e-9,
            );
            note(
                "TCP, eight streams, Gbit/s",
                load::streams(path, arrived, 8, SPAN)? * 8e-9,
            );
            note(
                "UDP, 64 bytes, packets/ms",
                load::datagrams(path, arrived, SPAN)? / 1e3,
            );
            note(
                "requests a ms, one at a time",
                1e3 / summary(load::requests(path, SPAN)?).0,
            );
        }
    }
    let whats: std::collections::BTreeSet<&str> = found.keys().map(|(what, _)| *what).collect();
    for what in whats {
        let of = |at: usize| &found[&(what, paths[at].name)];
        let median = |at: usize| summary(of(at).clone()).0;
        let ratio = |a: usize, b: usize| {
            let each = of(a).iter().zip(of(b)).map(|(a, b)| a / b);
            summary(each.collect()).0
        };
        println!(
            "network: {what}: {:.2} by a pair of links, {:.2} wired by hand without rules, {:.2} with, {:.2} by berth ({:.3} of by hand without rules, {:.3} of with), {:.2} at a service's address ({:.3} of direct)",
            median(0),
            median(1),
            median(2),
            median(3),
            ratio(3, 1),
            ratio(3, 2),
            median(4),
            ratio(4, 3),
        );
    }
    Ok(())
}

/// One container on a node.
fn pinned(fleet: &Fleet, name: &str, node: &str) {
    let others: Vec<&str> = ["h1", "h2", "h3", "h4"][..fleet.hosts.len()]
        .iter()
        .filter(|other| **other != node)
        .copied()
        .collect();
    for other in &others {
        fleet.brain.berth(&["node", "cordon", other]);
    }
    fleet.brain.run_sleepers(name, 1, &[]);
    for other in &others {
        fleet.brain.berth(&["node", "uncordon", other]);
    }
}

/// A container as it is now.
fn container(fleet: &Fleet, name: &str) -> Option<Inside> {
    all(&fleet.brain).remove(name)
}
