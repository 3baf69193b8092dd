//! Hosts of different sites: what goes between them is encrypted or not sent, whatever is done to either host.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Content, Debian, Machine, Template, eventually};
use berth_tests::operator::Operator as _;

const SOON: Duration = Duration::from_secs(120);
/// What containers say to one another, and nobody else may read.
const SECRET: &str = "attack-at-dawn-attack-at-dawn";
const DEVICE: &str = "wgberth";

/// A container with where it is and how to act in its network.
struct Inside<'a> {
    host: &'a Machine,
    address: String,
    enter: String,
}

impl Inside<'_> {
    fn of<'a>(c: &'a Cluster, container: &serde_json::Value) -> Inside<'a> {
        let mut hosts = c.lab.hosts.iter();
        let host = hosts.find(|host| container["node_name"] == host.name.as_str());
        let pid = container["observed"]["pid"].as_u64().expect("pid");
        Inside {
            host: host.expect("its host"),
            address: container["addresses"][0]["ipv4"]
                .as_str()
                .expect("address")
                .to_owned(),
            enter: format!("nsenter -t {pid} -n"),
        }
    }

    /// Answers at a port with the secret and more, again and again.
    fn serve(&self, pid: &str, kilobytes: usize) {
        let script = format!(
            "(timeout 900 sh -c 'while {{ echo {SECRET}; head -c {kilobytes}k /dev/zero; }} | {} {pid} -m nc -l -p 8080; do :; done' >/dev/null 2>&1 &)",
            self.enter
        );
        self.host.ok(&script);
    }
}

/// Whether anyone who listens on the wire between two hosts could read something.
fn overheard(c: &Cluster, vxlan: bool) -> Vec<String> {
    let frames = c.lab.switch.recorded();
    assert!(frames.len() > 5, "nothing was recorded: {}", frames.len());
    let reads = |frame: &[u8]| frame.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    // IPv4, UDP, to VXLAN's port; or fragments of it, which WireGuard would have encrypted as well.
    let is_vxlan = |frame: &[u8]| {
        frame.len() > 38 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == [0x12, 0xb5]
    };
    let clear = frames
        .iter()
        .filter(|frame| reads(frame) || (vxlan && is_vxlan(frame)));
    clear
        .map(|frame| format!("{:02x?}", &frame[..frame.len().min(60)]))
        .collect()
}

fn wireguard_frames(c: &Cluster) -> usize {
    let frames = c.lab.switch.recorded();
    let is = |frame: &[u8]| {
        frame.len() > 38
            && frame[12..14] == [8, 0]
            && frame[23] == 17
            && frame[36..38] == 51_821_u16.to_be_bytes()
    };
    frames.iter().filter(|frame| is(frame)).count()
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
    let without = c
        .lab
        .host(1)
        .ok("ip -br link; ip rule; nft list ruleset | grep -c mark || true");
    assert!(!without.contains(DEVICE), "nothing of it without need: {without}");

    c.run_sleepers("web", 2);
    let running = c.wait_running(2, 90);
    let (one, two) = (Inside::of(&c, &running[0]), Inside::of(&c, &running[1]));
    assert_ne!(one.host.name, two.host.name);
    let mounts = |at: usize| format!("-t {}", running[at]["observed"]["pid"]);
    two.serve(&mounts(1), 300);
    // The one who answers would leave at the end of what is asked: the question stays open.
    let ask = |from: &Inside<'_>, pid: &str, to: &str| {
        format!(
            "test $(sleep 4 | {} {pid} -m nc -w 8 {to} 8080 | tee /tmp/got | wc -c) -gt 300000 && grep -aq {SECRET} /tmp/got",
            from.enter
        )
    };

    // Large and small, and nobody on the wire reads it.
    c.lab.switch.record();
    one.host.eventually(&ask(&one, &mounts(0), &two.address), SOON);
    assert_eq!(overheard(&c, true), Vec::<String>::new());
    c.lab.switch.record();
    one.host.eventually(&ask(&one, &mounts(0), &two.address), SOON);
    assert!(wireguard_frames(&c) > 100, "it goes through WireGuard");
    // Larger than the tunnel takes in one piece, and not to be cut on the way by its sender.
    one.host
        .ok(&format!("{} ping -c2 -W5 -s 8000 {}", one.enter, two.address));
    c.lab.step("two sites speak");

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
        ("peers", format!("ip link set {DEVICE} down")),
    ] {
        c.lab.switch.record();
        one.host.ok(&meddling);
        let asks = format!(
            "for i in 1 2 3 4 5 6; do {} {} -m nc -w 1 {} 8080 </dev/null >/dev/null; done; true",
            one.enter,
            mounts(0),
            two.address
        );
        one.host.ok_within(&asks, SOON);
        one.host.eventually(&ask(&one, &mounts(0), &two.address), SOON);
        assert_eq!(overheard(&c, true), Vec::<String>::new(), "{what}");
        // One at a time: only when all of it is back, the next.
        one.host.eventually(&whole, SOON);
        c.lab.step(&format!("{what} is back"));
    }

    // What somebody sends as if from the other site, by any other way than the tunnel, is dropped.
    let dropped =
        "nft list chain inet berth from_who | grep -o 'sealed_ip.*packets [0-9]*' | grep -o '[0-9]*$'";
    let before: u64 = one.host.ok(dropped).parse().expect("count");
    let open = "ip rule del pref 478; ip rule del pref 478; nft delete table inet berth";
    two.host.ok(&format!("systemctl stop berth-agent; {open}"));
    two.host
        .ok(&format!("{} ping -c3 -W1 {} || true", two.enter, one.address));
    let after: u64 = one.host.ok(dropped).parse().expect("count");
    assert!(
        after > before,
        "a packet in the clear was let in: {before} {after}"
    );
    two.host.ok("systemctl start berth-agent");
    one.host.eventually(&ask(&one, &mounts(0), &two.address), SOON);
    c.lab.step("a packet in the clear is not let in");

    // A published port of the host without the answering replica: passed on, encrypted.
    c.berth(&["service", "update", "web", "-p", "8085:8080", "-d"]);
    let published = format!(
        "nsenter {} -m nc -w 8 {} 8085 </dev/null | grep -aq {SECRET}",
        mounts(0),
        one.host.address()
    );
    c.lab.switch.record();
    one.host.eventually(&published, SOON);
    assert_eq!(overheard(&c, true), Vec::<String>::new(), "passed on");
    c.lab.step("a published port leads to the other site");

    // A new key, when the old one is old.
    let key = |host: &Machine| {
        host.ok(&format!(
            "ip -d link show {DEVICE} >/dev/null; cat /var/lib/berth-agent/wireguard.key"
        ))
    };
    let old = key(one.host);
    one.host
        .ok("touch -d '8 days ago' /var/lib/berth-agent/wireguard.key");
    let renewed = eventually(SOON, || (key(one.host) != old).then_some(()));
    assert!(renewed.is_some(), "the key is never renewed");
    one.host.eventually(&ask(&one, &mounts(0), &two.address), SOON);
    c.lab.step("a new key");

    // Nobody was touched by any of it, and without need nothing of it stays.
    assert_eq!(pids(&c.running()), pids(&running));
    c.berth(&["service", "rm", "web"]);
    for host in &c.lab.hosts {
        host.eventually(&format!("! ip link show {DEVICE} && test -z \"$(ip rule show pref 478)\" && test -z \"$(ip route show table 4789 2>/dev/null)\""), SOON);
    }
}
