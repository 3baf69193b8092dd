//! How fast endpoints are there, and how fast everybody knows.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use berth_agent::network::Namespace;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::{container, pinned};
use crate::bench::summary;
use crate::fleet::{Fleet, led_to};
use crate::operator::Operator as _;
use crate::overlay::{World, containers};

/// Asks an address for an echo every millisecond until it answers; how long that took. From inside a namespace.
fn until_it_answers(from: &Namespace, to: IpAddr, patience: Duration) -> anyhow::Result<Duration> {
    let IpAddr::V4(to) = to else {
        anyhow::bail!("an IPv4 address is asked");
    };
    let took = from.within(move || -> nix::Result<Option<Duration>> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::Icmp,
        )?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(1))?;
        let begun = Instant::now();
        // Type 8, code 0, checksum, no identifier and number (RFC 792); the checksum of just the type is its complement.
        let echo = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        let at = SockaddrIn::from(std::net::SocketAddrV4::new(to, 0));
        let mut answer = [0; 128];
        while begun.elapsed() < patience {
            let _ = sendto(socket.as_raw_fd(), &echo, &at, MsgFlags::empty());
            while let Ok(length) = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                let from_there = length >= 28 && answer[12..16] == to.octets();
                if from_there && answer[20] == 0 {
                    return Ok(Some(begun.elapsed()));
                }
            }
        }
        Ok(None)
    });
    let took = took??;
    took.ok_or_else(|| anyhow::anyhow!("{to} does not answer within {patience:?}"))
}

/// From a namespace without links to one that answers, on a host with 1,000 endpoints elsewhere.
pub(super) fn attach() -> anyhow::Result<()> {
    let world = World::new(2);
    let far: Vec<(u32, usize)> = (1_000..2_000).map(|n| (n, 1)).collect();
    let numbers: Vec<u32> = (2..42).collect();
    let spaces = containers(&numbers);
    let mut took = Vec::new();
    for count in 1..=numbers.len() {
        let near = numbers[..count].iter().map(|n| (*n, 0));
        let overlay = world.overlay(7, 0, &near.chain(far.iter().copied()).collect::<Vec<_>>());
        let new = numbers[count - 1];
        // The network is there, as it is for all but the first container of a host.
        let steps = world.steps(0, &overlay);
        world
            .runtime
            .block_on(world.kernels[0].apply(overlay.vni, &steps))?;
        let begun = Instant::now();
        let host = berth_common::model::HostNumber(new);
        let attached = world.kernels[0].attach(&overlay, host, &spaces[&new], 0);
        world.runtime.block_on(attached)?;
        if count > 1 {
            let address = overlay.subnets.address(host).into();
            until_it_answers(&spaces[&numbers[0]], address, Duration::from_secs(5))?;
            took.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let (median, worst) = summary(took);
    println!("network: attaching an endpoint until it answers: {median:.1} ms median, {worst:.1} p99");
    Ok(())
}

/// Ten thousand endpoints elsewhere, and then one more.
pub(super) fn many() -> anyhow::Result<()> {
    let world = World::new(2);
    let far = |count: u32| (1_000..1_000 + count).map(|n| (n, 1)).collect::<Vec<_>>();
    let empty = world.overlay(7, 0, &[(2, 0)]);
    world.settle(0, &empty, &containers(&[2]));
    let timed = |overlay| -> anyhow::Result<(usize, f64)> {
        let begun = Instant::now();
        let steps = world.steps(0, &overlay);
        world
            .runtime
            .block_on(world.kernels[0].apply(overlay.vni, &steps))?;
        Ok((steps.len(), begun.elapsed().as_secs_f64() * 1e3))
    };
    let with = |count| {
        let mut all = far(count);
        all.push((2, 0));
        world.overlay(7, 0, &all)
    };
    let (steps, took) = timed(with(10_000))?;
    println!("network: 10,000 endpoints elsewhere: {took:.0} ms ({steps} entries)");
    // As the agent does it: from what it made.
    let (before, after) = (with(10_000), with(10_001));
    let begun = Instant::now();
    let steps = berth_agent::network::plan(Some(&after), Some(&before.as_seen()));
    world
        .runtime
        .block_on(world.kernels[0].apply(after.vni, &steps))?;
    let took = begun.elapsed().as_secs_f64() * 1e3;
    println!("network: one more: {} entries, {took:.1} ms", steps.len());
    Ok(())
}

/// How long after its own host every other of four reaches a new container.
pub(super) fn everywhere() -> anyhow::Result<()> {
    let fleet = Fleet::new(4);
    let nodes = ["h1", "h2", "h3", "h4"];
    for node in nodes {
        pinned(&fleet, &format!("on-{node}"), node);
    }
    fleet.brain.wait_running(4, 60);
    let seen: BTreeMap<&str, Namespace> = nodes
        .iter()
        .filter_map(|node| Some((*node, container(&fleet, &format!("on-{node}.1"))?.space)))
        .collect();
    let mut late = Vec::new();
    for n in 0..10 {
        let name = format!("new-{n}");
        fleet.brain.run_sleepers(&name, 1, &[]);
        let address = |_: ()| -> Option<IpAddr> {
            let all = fleet.brain.items(&["ps", &name]);
            all.first()?["addresses"][0]["ipv4"].as_str()?.parse().ok()
        };
        let address = crate::process::eventually(Duration::from_secs(10), || address(()));
        let address = address.ok_or_else(|| anyhow::anyhow!("no address"))?;
        let begun = Instant::now();
        let answers = std::thread::scope(|scope| {
            let threads = seen.values().map(|from| {
                scope.spawn(move || {
                    until_it_answers(from, address, Duration::from_secs(20)).map(|_| begun.elapsed())
                })
            });
            let threads: Vec<_> = threads.collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("ended"))
                .collect::<anyhow::Result<Vec<Duration>>>()
        })?;
        let (first, last) = (answers.iter().min(), answers.iter().max());
        if let (Some(first), Some(last)) = (first, last) {
            late.push((*last - *first).as_secs_f64() * 1e3);
        }
        fleet.brain.berth(&["service", "rm", &name]);
    }
    let (median, worst) = summary(late);
    println!(
        "network: a new endpoint, from the first container that reaches it to the last, on four hosts: {median:.0} ms median, {worst:.0} at most"
    );
    leave(&fleet, &seen)
}

/// How long after the call that takes a replica away nobody is led to it any more: its stop signal must come later.
fn leave(fleet: &Fleet, seen: &BTreeMap<&str, Namespace>) -> anyhow::Result<()> {
    let leads = |count: usize| seen.values().all(|from| led_to(from).len() == count);
    // Each of the four is led to itself and the other three.
    let at_first = seen.len();
    fleet.brain.run_sleepers("leaves", 2, &[]);
    let mut took = Vec::new();
    for _ in 0..10 {
        fleet.brain.berth(&["service", "scale", "leaves", "2"]);
        let there = crate::process::eventually(Duration::from_secs(20), || leads(at_first + 2).then_some(()));
        anyhow::ensure!(
            there.is_some(),
            "the new replica has no place in somebody's table"
        );
        let begun = Instant::now();
        let gone = std::thread::scope(|scope| {
            scope.spawn(|| fleet.brain.berth(&["service", "scale", "leaves", "1"]));
            while !leads(at_first + 1) && begun.elapsed() < Duration::from_secs(10) {}
            begun.elapsed()
        });
        took.push(gone.as_secs_f64() * 1e3);
    }
    let (median, worst) = summary(took);
    println!(
        "network: a replica that leaves, from the call until nobody on four hosts is led to it: {median:.0} ms median, {worst:.0} at most (its stop signal comes {} ms after the call at the earliest)",
        berth_agent::reconcile::plan::LEAVE_MS
    );
    Ok(())
}
