//! Networks of three real hosts: parted, lossy, without the brain, and when one dies and comes back.

use std::time::Duration;

use berth_tests::lab::cluster::Cluster;
use berth_tests::lab::switch::Quality;
use berth_tests::lab::{Content, Debian, Machine, Template, eventually};
use berth_tests::operator::Operator as _;
use serde_json::Value;

const SOON: Duration = Duration::from_secs(120);
/// Emulated hosts boot in minutes.
const BACK: Duration = Duration::from_secs(400);
/// Lines of the long exchange.
const LINES: u32 = 600;

/// A container with where it is.
struct Inside<'a> {
    name: String,
    host: &'a Machine,
    address: String,
    pid: u64,
}

impl Inside<'_> {
    fn of<'a>(c: &'a Cluster, container: &Value) -> Inside<'a> {
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let node = text(&container["node_name"]);
        Inside {
            name: text(&container["name"]),
            host: c
                .lab
                .hosts
                .iter()
                .find(|host| host.name == node)
                .expect("its host"),
            address: text(&container["addresses"][0]["ipv4"]),
            pid: container["observed"]["pid"].as_u64().expect("pid"),
        }
    }

    /// A command that says whether another answers.
    fn pings(&self, other: &Self) -> String {
        format!(
            "nsenter -t {} -n ping -c1 -W3 {} >/dev/null",
            self.pid, other.address
        )
    }

    /// A program of the container's, in its network.
    fn run(&self, program: &str) -> String {
        format!("nsenter -t {} -n -m {program}", self.pid)
    }
}

/// Everybody reaches everybody else.
fn whole(all: &[Inside<'_>], but: Option<(&str, &str)>) {
    for one in all {
        for other in all.iter().filter(|other| other.name != one.name) {
            let pair = (one.host.name.as_str(), other.host.name.as_str());
            if but.is_none_or(|(a, b)| pair != (a, b) && pair != (b, a)) {
                one.host.eventually(&one.pings(other), SOON);
            }
        }
    }
}

/// What `berth network check` finds between two hosts.
fn findings(c: &Cluster, hosts: &[&str]) -> String {
    let out = c.try_berth(&[&["network", "check", "-o", "json"], hosts].concat());
    let found: Value = serde_json::from_slice(&out.stdout).expect("json");
    found["pairs"][0]["findings"].to_string()
}

#[test]
fn r6_r9_networks_of_three_hosts_outlive_partition_loss_the_brain_and_a_hosts_death() {
    let template = Template::find(Debian::Trixie, Content::Prepared);
    let mut c = Cluster::start(&[&template, &template, &template], "lease_secs = 20\n");
    c.load_example();
    c.run_sleepers("web", 3);
    let running = c.wait_running(3, 90);
    let all: Vec<_> = running
        .iter()
        .map(|container| Inside::of(&c, container))
        .collect();
    let on = |name: &str| all.iter().find(|one| one.host.name == name).expect("one a host");
    whole(&all, None);
    c.lab.step("three hosts");

    // A connection that stays open through all that follows, and loses nothing.
    let (two, three) = (on("host2"), on("host3"));
    // Whoever listens leaves at the end of what it has to say: it says nothing for long.
    three.host.ok(&format!(
        "(sleep 900 | {} >/tmp/heard 2>/dev/null &)",
        three.run("nc -l -p 9000")
    ));
    let count = format!("i=0; while [ $i -lt {LINES} ]; do echo $i; i=$((i+1)); sleep 0.1; done");
    two.host.ok(&format!(
        "(sh -c '({count}) | {}' >/dev/null 2>&1 &)",
        two.run(&format!("nc {} 9000", three.address))
    ));
    three.host.eventually("grep -qx 5 /tmp/heard", SOON);

    // Parted: those two alone, which the check says; whole again by itself.
    let quality = |change: fn(&mut Quality)| {
        let mut quality = Quality::default();
        change(&mut quality);
        c.lab.switch.set("host2", "host3", quality);
    };
    quality(|quality| quality.cut = true);
    assert_ne!(two.host.sh(&two.pings(three)).0, 0, "they are parted");
    whole(&all, Some(("host2", "host3")));
    let told = findings(&c, &["host2", "host3"]);
    assert!(told.contains("not even pings"), "{told}");
    quality(|_| {});
    whole(&all, None);
    c.lab.step("parted and whole again");

    quality(|quality| quality.loss = 0.2);
    let told = findings(&c, &["host2", "host3"]);
    assert!(told.contains("% of pings get no answer"), "{told}");
    quality(|_| {});
    // Emulated hosts that share two cores answer late at times.
    let well = eventually(SOON, || (findings(&c, &["host2", "host3"]) == "[]").then_some(()));
    assert!(well.is_some(), "{}", findings(&c, &["host2", "host3"]));
    c.lab.step("lossy and well again");

    // Without the brain: packets and names.
    c.lab.host(1).ok("systemctl stop berth-brain");
    whole(&all, None);
    for one in &all {
        let asked = one.run("nslookup 1.web | grep -c ^Address");
        one.host.eventually(&format!("test \"$({asked})\" -ge 2"), SOON);
    }
    c.lab.host(1).ok("systemctl start berth-brain");
    c.wait_brain();
    for host in &c.lab.hosts {
        c.wait_node(&host.name, "ready", 90);
    }
    three
        .host
        .eventually(&format!("grep -qx {} /tmp/heard", LINES - 1), SOON);
    let heard = three.host.ok("cat /tmp/heard");
    let sent: Vec<String> = (0..LINES).map(|n| n.to_string()).collect();
    assert_eq!(
        heard.split_whitespace().collect::<Vec<_>>(),
        sent,
        "nothing is lost or twice"
    );
    c.lab.step("one connection through all of it");

    // A host dies: its container's address is answered elsewhere, by whoever took its place.
    let (name, address) = (three.name.clone(), three.address.clone());
    c.lab.host_mut(3).crash();
    let replaced = c.wait_for(BACK, |now| {
        let new = now.iter().find(|one| one["name"] == name.as_str());
        now.len() == 3
            && new.is_some_and(|one| one["node_name"] != "host3" && one["observed"]["phase"] == "running")
    });
    let replaced = replaced.unwrap_or_else(|why| panic!("not replaced: {why}"));
    let now: Vec<_> = replaced
        .iter()
        .map(|container| Inside::of(&c, container))
        .collect();
    let new = now.iter().find(|one| one.name == name).expect("listed");
    assert_eq!(new.address, address, "it has its predecessor's address");
    whole(&now, None);
    c.lab.step("a host died");

    // It comes back: with nothing of what it had, and nobody is led there.
    c.lab.host_mut(3).boot();
    c.wait_node("host3", "ready", 120);
    let host = c.lab.host(3);
    host.eventually("test $(ps axo args= | grep -c '^sh -c trap') = 0", SOON);
    host.eventually(
        "! ip -o link | grep -q ': berth' && test -z \"$(ls /run/berth/networks 2>/dev/null)\"",
        SOON,
    );
    let again = c.wait_running(3, 90);
    let again: Vec<_> = again.iter().map(|container| Inside::of(&c, container)).collect();
    whole(&again, None);
    c.lab.step("it came back");
}
