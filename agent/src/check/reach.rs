//! Checks of the way to the brain: a real QUIC handshake, and the MTU of the interface it takes.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use berth_common::identity;

use super::Finding;
use crate::config::Config;
use crate::join::{JoinError, NodeFiles};
use crate::link::dial;
use crate::reconcile::apply::chain;

/// What QUIC needs (1,200 bytes and headers), and what IPv6 guarantees.
const LEAST_MTU: u32 = 1280;
/// What VXLAN takes off.
const OVERLAY: u32 = 50;

pub(super) async fn all(config: &Config, files: &NodeFiles, brain: &[String]) -> Vec<Finding> {
    let (mut report, who) = match files.who() {
        Ok(who) => (
            vec![
                Finding::ok("identity", format!("joined as {} ({})", who.name, who.node)),
                validity(files),
            ],
            Some(who),
        ),
        Err(JoinError::NotJoined(_)) => (
            vec![Finding::warn(
                "identity",
                "this host has not joined yet",
                "berth-agent join TOKEN, with a token from `berth node token`",
            )],
            None,
        ),
        Err(error) => (
            vec![Finding::fail(
                "identity",
                chain(&error),
                "join again with --force",
            )],
            None,
        ),
    };
    let learnt = who.map(|who| who.addresses).unwrap_or_default();
    let addresses = match (brain, config.brain.as_slice()) {
        ([], []) => learnt,
        ([], configured) => configured.to_vec(),
        (given, _) => given.to_vec(),
    };
    let mut remotes = Vec::new();
    for address in &addresses {
        let (finding, remote) = handshake(files, address).await;
        report.push(finding);
        remotes.extend(remote);
    }
    if addresses.is_empty() {
        report.push(Finding::warn(
            "brain",
            "no address to try",
            "give one: berth-agent check --brain HOST:PORT",
        ));
    }
    // Nothing is sent there: an address from the block for documentation shows where the default route leads.
    let remote = remotes
        .first()
        .copied()
        .unwrap_or(SocketAddr::from(([192, 0, 2, 1], 9)));
    report.push(mtu_to(remote));
    report
}

fn validity(files: &NodeFiles) -> Finding {
    const CHECK: &str = "certificate";
    let identity = match files.identity() {
        Ok(identity) => identity,
        Err(error) => return Finding::fail(CHECK, chain(&error), "join again with --force"),
    };
    match identity::validity(&identity.chain[0]) {
        Ok((from, to)) => judge_validity(from, to, jiff::Timestamp::now().as_second()),
        Err(error) => Finding::fail(CHECK, chain(&error), "join again with --force"),
    }
}

fn judge_validity(from: i64, to: i64, now: i64) -> Finding {
    const CHECK: &str = "certificate";
    if now < from {
        return Finding::fail(
            CHECK,
            "not valid yet by this host's clock",
            "set the clock (for example with chrony)",
        );
    }
    if now > to {
        return Finding::fail(
            CHECK,
            "it has expired",
            "set the clock if it is wrong, else join again with --force and a new token",
        );
    }
    Finding::ok(CHECK, format!("valid for {} more days", (to - now) / 86_400))
}

async fn handshake(files: &NodeFiles, address: &str) -> (Finding, Option<SocketAddr>) {
    const CHECK: &str = "brain";
    let remote = match dial::resolve(address).await {
        Ok(remote) => remote,
        Err(error) => {
            return (
                Finding::fail(CHECK, chain(&error), "check the name and DNS"),
                None,
            );
        }
    };
    let joined = files.identity().ok();
    let tls = match &joined {
        Some(identity) => identity::agent_tls(identity),
        // No CA to judge by yet: a brain that answers is refused by us after it has shown its certificate.
        None => identity::join_tls(""),
    };
    let tried = async {
        let tls = tls.map_err(dial::LinkError::Identity)?;
        let endpoint = dial::client_endpoint(remote)?;
        let connection = dial::dial(&endpoint, remote, address, tls, dial::IDLE_TIMEOUT).await?;
        connection.close(0u32.into(), b"check");
        let _ = tokio::time::timeout(std::time::Duration::from_millis(300), endpoint.wait_idle()).await;
        Ok::<_, dial::LinkError>(connection.rtt())
    };
    let finding = match tried.await {
        Ok(rtt) => Finding::ok(
            CHECK,
            format!("{address} answers in {:.1} ms", rtt.as_secs_f64() * 1e3),
        ),
        Err(error) => match (chain(&error), joined.is_some()) {
            (text, false) if text.contains("not the one this token was made for") => Finding::ok(
                CHECK,
                format!("{address} answers; who it is is judged when joining"),
            ),
            (text, _) => Finding::fail(
                CHECK,
                text,
                "check that the brain runs, and that UDP to that port passes the firewalls between",
            ),
        },
    };
    (finding, Some(remote))
}

fn mtu_to(remote: SocketAddr) -> Finding {
    const CHECK: &str = "mtu";
    let any: SocketAddr = if remote.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let local = UdpSocket::bind(any)
        .and_then(|socket| {
            socket.connect(remote)?;
            socket.local_addr()
        })
        .map(|address| address.ip());
    let Ok(local) = local else {
        return Finding::fail(
            CHECK,
            format!("no route to {}", remote.ip()),
            "give the host a default route",
        );
    };
    let Some(name) = interface_of(local) else {
        return Finding::warn(
            CHECK,
            format!("the interface with {local} is not found"),
            "look at `ip address`",
        );
    };
    let text = std::fs::read_to_string(format!("/sys/class/net/{name}/mtu")).unwrap_or_default();
    judge_mtu(&name, text.trim().parse().unwrap_or(0))
}

fn interface_of(address: IpAddr) -> Option<String> {
    let found = nix::ifaddrs::getifaddrs().ok()?.find(|interface| {
        let Some(storage) = &interface.address else {
            return false;
        };
        match address {
            IpAddr::V4(v4) => storage.as_sockaddr_in().is_some_and(|has| has.ip() == v4),
            IpAddr::V6(v6) => storage.as_sockaddr_in6().is_some_and(|has| has.ip() == v6),
        }
    });
    Some(found?.interface_name)
}

fn judge_mtu(name: &str, mtu: u32) -> Finding {
    const CHECK: &str = "mtu";
    if mtu < LEAST_MTU {
        return Finding::fail(
            CHECK,
            format!("{name} carries only {mtu} bytes"),
            format!("raise it to at least {LEAST_MTU}: the link to the brain can't work below"),
        );
    }
    if mtu < LEAST_MTU + OVERLAY {
        return Finding::warn(
            CHECK,
            format!(
                "{name} carries {mtu} bytes, which leaves containers' networks {}",
                mtu - OVERLAY
            ),
            format!(
                "raise it to at least {}: IPv6 inside needs it",
                LEAST_MTU + OVERLAY
            ),
        );
    }
    Finding::ok(CHECK, format!("{mtu} on {name}"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn judgements_table() {
        for (finding, want) in [
            (judge_mtu("eth0", 1500), Level::Ok),
            (judge_mtu("eth0", 1300), Level::Warn),
            (judge_mtu("eth0", 1000), Level::Fail),
            (judge_validity(10, 100_000, 5), Level::Fail),
            (judge_validity(10, 100_000, 100_001), Level::Fail),
            (judge_validity(10, 100_000, 500), Level::Ok),
        ] {
            assert_eq!(finding.level, want, "{finding:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_a_failure_that_says_what_to_open() {
        let dir = tempfile::tempdir().unwrap();
        let files = NodeFiles::new(dir.path());
        // Bound and silent: nothing answers, and nobody else can take the port.
        let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let report = all(&Config::default(), &files, std::slice::from_ref(&address)).await;
        let of = |check: &str| report.iter().find(|f| f.check == check).unwrap();
        assert_eq!(of("identity").level, Level::Warn);
        assert_eq!(of("brain").level, Level::Fail);
        assert!(of("brain").found.contains(&address) && of("brain").cure.contains("UDP"));
        assert_eq!(of("mtu").level, Level::Ok, "loopback: {report:?}");
    }
}
