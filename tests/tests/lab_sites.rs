//! Hosts of different sites: what goes between them is encrypted or not sent, whatever is done to either host.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Content, Debian, Machine, Template, eventually};
use berth_tests::operator::Operator as _;

const SOON: Duration = Duration::from_secs(120);
/// What containers say to one another, and nobody else may read.
const SECRET: &str = "attack-at-dawn-attack-at-dawn";
const DEVICE: &str = "wgberth";

/// A container with where it is.
struct Inside<'a> {
    host: &'a Machine,
    address: String,
    pid: u64,
}

impl Inside<'_> {
    fn of<'a>(c: &'a Cluster, container: &serde_json::Value) -> Inside<'a> {
        let mut hosts = c.lab.hosts.iter();
        let host = hosts.find(|host| container["node_name"] == host.name.as_str());
        let address = container["addresses"][0]["ipv4"].as_str();
        Inside {
            host: host.expect("its host"),
            address: address.expect("address").to_owned(),
            pid: container["observed"]["pid"].as_u64().expect("pid"),
        }
    }

    /// A program of its host's in its network.
    fn net(&self, program: &str) -> String {
        format!("nsenter -t {} -n {program}", self.pid)
    }

    /// netcat, which the host has none of, in its network.
    fn nc(&self, args: &str) -> String {
        format!("nsenter -t {} -n -m nc {args}", self.pid)
    }

    /// netcat in its host's network.
    fn outside_nc(&self, args: &str) -> String {
        format!("nsenter -t {} -m nc {args}", self.pid)
    }

    /// Answers at a port with the secret and more, again and again.
    fn serve(&self) {
        let answer = self.nc("-l -p 8080");
        let script = format!(
            "(timeout 900 sh -c 'while :; do {{ echo {SECRET}; head -c 300k /dev/zero; }} | {answer}; sleep 0.1; done' >/dev/null 2>&1 &)"
        );
        self.host.ok(&script);
    }

    /// Succeeds when all of another's answer has come. The one who answers would leave at the end of what is asked: the question
    /// stays open.
    fn asks(&self, other: &Inside<'_>) -> String {
        let ask = self.nc(&format!("-w 8 {} 8080", other.address));
        format!("test $(sleep 4 | {ask} | tee /tmp/got | wc -c) -gt 300000 && grep -aq {SECRET} /tmp/got")
    }
}

/// Whether a frame is IPv4 and UDP to a port.
fn is_udp_to(frame: &[u8], port: u16) -> bool {
    frame.len() > 38 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == port.to_be_bytes()
}

/// What one who listens on the wire between two hosts can read, of what was recorded; and how much of that was WireGuard's.
fn overheard(c: &Cluster) -> (Vec<String>, usize) {
    let frames = c.lab.switch.recorded();
    let reads = |frame: &[u8]| frame.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    let clear = frames
        .iter()
        .filter(|frame| reads(frame) || is_udp_to(frame, 4789));
    let clear = clear.map(|frame| format!("{:02x?}", &frame[..frame.len().min(60)]));
    let sealed = frames.iter().filter(|frame| is_udp_to(frame, 51_821)).count();
    (clear.collect(), sealed)
}

#[test]
fn r6_between_sites_nothing_is_in_the_clear_and_nothing_is_when_the_tunnel_is_taken_away() {
    let template = Template::find(Debian::Trixie, Content::Prepared);
    let c = Cluster::brain_alone(&[&template, &template], "lease_secs = 60\n");
    for (host, site) in c.lab.hosts.iter().zip(["site=east", "site=west"]) {
        host.ok("systemctl enable -q --no-reload berth-agent berth-containers");
        c.join_with(host, &["--label", site]);
        c.wait_node(&host.name, "ready", 60);
    }
    c.load_example();
    let without = c.lab.host(1).ok("ip -br link; ip rule");
    assert!(
        !without.contains(DEVICE) && !without.contains("478:"),
        "{without}"
    );

    c.run_sleepers("web", 2);
    let running = c.wait_running(2, 90);
    let (one, two) = (Inside::of(&c, &running[0]), Inside::of(&c, &running[1]));
    assert_ne!(one.host.name, two.host.name);
    two.serve();
    let asks = one.asks(&two);

    // Large and small, and nobody on the wire reads it.
    c.lab.switch.record();
    one.host.eventually(&asks, SOON);
    let (clear, sealed) = overheard(&c);
    assert_eq!(clear, Vec::<String>::new());
    assert!(sealed > 100, "it goes through WireGuard: {sealed} frames");
    // Larger than the tunnel takes in one piece, and not to be cut on the way by its sender.
    one.host
        .ok(&one.net(&format!("ping -c2 -W5 -s 8000 {}", two.address)));
    c.lab.step("two sites speak");

    // Checked as containers' packets go, and nothing of it in the clear either. Emulated hosts answer late at times.
    c.lab.switch.record();
    let checked = eventually(SOON, || {
        let out = c.try_berth(&["network", "check", "-o", "json"]);
        let found = serde_json::from_slice::<serde_json::Value>(&out.stdout).ok()?;
        out.status.success().then_some(found)
    });
    let checked = checked.unwrap_or_else(|| panic!("{}", c.berth(&["network", "check"])));
    assert_eq!(checked["pairs"][0]["path"], "wireguard", "{checked:#}");
    assert_eq!(
        checked["pairs"][0]["mtu"], 1390,
        "WireGuard takes 60 bytes: {checked:#}"
    );
    let (clear, sealed) = overheard(&c);
    assert_eq!(clear, Vec::<String>::new());
    assert!(sealed > 50, "the probe goes through WireGuard: {sealed} frames");
    let names = [&running[0], &running[1]].map(|one| one["name"].as_str().expect("name"));
    let traced = c.json(&["network", "trace", names[0], names[1]]);
    assert!(
        traced.to_string().contains("encrypted by WireGuard"),
        "{traced:#}"
    );
    c.lab.step("the network is checked");

    // Taken away: the device, the rules, the table that keeps everything else from leaving. Repaired, and never in the clear.
    let whole = format!(
        "ip link show up dev {DEVICE} | grep -q UP && test $(ip rule show pref 478 | wc -l) = 2 && test $(ip route show table 4789 | wc -l) = 2 && nft list chain inet berth to_nodes | grep -q sealed_ip"
    );
    one.host.eventually(&whole, SOON);
    for (what, meddling) in [
        ("device", format!("ip link del {DEVICE}")),
        ("rules", "ip rule del pref 478; ip rule del pref 478".to_owned()),
        ("filter", "nft flush ruleset".to_owned()),
        ("routes", "ip route flush table 4789".to_owned()),
        ("link", format!("ip link set {DEVICE} down")),
    ] {
        c.lab.switch.record();
        one.host.ok(&meddling);
        let ask = one.nc(&format!("-w 1 {} 8080", two.address));
        let often = format!("for i in 1 2 3 4 5 6; do {ask} </dev/null >/dev/null; done; true");
        one.host.ok_within(&often, SOON);
        one.host.eventually(&asks, SOON);
        let (clear, sealed) = overheard(&c);
        assert_eq!(clear, Vec::<String>::new(), "{what}");
        assert!(sealed > 100, "{what}: {sealed} frames");
        // One at a time: only when all of it is back, the next.
        one.host.eventually(&whole, SOON);
        c.lab.step(&format!("{what} is back"));
    }

    // What somebody sends as if from the other site, by any other way than the tunnel, is dropped.
    let dropped =
        "nft list chain inet berth from_who | grep -o 'sealed_ip.*packets [0-9]*' | grep -o '[0-9]*$'";
    let before: u64 = one.host.ok(dropped).parse().expect("count");
    two.host.ok(
        "systemctl stop berth-agent; ip rule del pref 478; ip rule del pref 478; nft delete table inet berth",
    );
    two.host.ok(&format!(
        "{} || true",
        two.net(&format!("ping -c3 -W1 {}", one.address))
    ));
    let after: u64 = one.host.ok(dropped).parse().expect("count");
    assert!(
        after > before,
        "a packet in the clear was let in: {before} {after}"
    );
    two.host.ok("systemctl start berth-agent");
    one.host.eventually(&asks, SOON);
    c.lab.step("a packet in the clear is not let in");

    // A published port of the host without the answering replica: passed on, encrypted.
    c.berth(&["service", "update", "web", "-p", "8085:8080", "-d"]);
    let ask = one.outside_nc(&format!("-w 8 {} 8085", one.host.address()));
    c.lab.switch.record();
    one.host
        .eventually(&format!("sleep 4 | {ask} | grep -aq {SECRET}"), SOON);
    let (clear, sealed) = overheard(&c);
    assert_eq!(clear, Vec::<String>::new(), "passed on");
    assert!(sealed > 5, "passed on: {sealed} frames");
    c.lab.step("a published port leads to the other site");

    // A new key, when the old one is old: the brain hears it, and so does the other host.
    let key = || {
        let node = c.json(&["node", "inspect", &one.host.name]);
        let key = node["facts"]["underlay"]["wireguard"]["key"].as_str();
        key.expect("a key").to_owned()
    };
    let old = key();
    one.host
        .ok("touch -d '8 days ago' /var/lib/berth-agent/wireguard.key");
    let renewed = eventually(SOON, || (key() != old).then_some(()));
    assert!(renewed.is_some(), "the key is never renewed");
    one.host.eventually(&asks, SOON);
    c.lab.step("a new key");

    // Another program has the port: told with the cure, and everything else goes on.
    let taker = "perl -MIO::Socket::INET -e 'my $s = IO::Socket::INET->new(LocalPort => 51821, Proto => \"udp\") or die $@; sleep 900'";
    one.host.ok(&format!(
        "systemctl stop berth-agent; ip link del {DEVICE}; ({taker} >/tmp/taker 2>&1 & echo $! >/tmp/taken); sleep 2; kill -0 $(cat /tmp/taken); systemctl start berth-agent"
    ));
    c.run_sleepers("more", 2);
    c.wait_running(4, 90);
    let told = eventually(SOON, || {
        let node = c.json(&["node", "inspect", &one.host.name]);
        node["facts"]["warnings"]
            .to_string()
            .contains("wireguard_port")
            .then_some(())
    });
    assert!(
        told.is_some(),
        "{}",
        c.berth(&["node", "inspect", &one.host.name])
    );
    one.host.ok("kill $(cat /tmp/taken)");
    one.host.eventually(&asks, SOON);
    c.lab.step("another program had the port");

    // Nobody was touched by any of it, and without need nothing of it stays.
    c.berth(&["service", "rm", "more"]);
    assert_eq!(pids(&c.wait_running(2, 90)), pids(&running));
    c.berth(&["service", "rm", "web"]);
    for host in &c.lab.hosts {
        host.eventually(&format!("! ip link show {DEVICE} && test -z \"$(ip rule show pref 478)\" && test -z \"$(ip route show table 4789 2>/dev/null)\""), SOON);
    }
}
