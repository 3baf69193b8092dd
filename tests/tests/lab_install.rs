//! Installation, upgrade and removal as a user does them, on hosts that have only Debian.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Content, Debian, Machine, PATIENCE, Template};
use berth_tests::operator::Operator as _;

const INSTALL: Duration = Duration::from_secs(500);

/// What a host is made of. Caches, logs and the package manager's own books may differ.
fn inventory(host: &Machine) -> String {
    host.ok_within(
        "find / -xdev \\( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o -path /var/cache \
           -o -path /var/lib/apt -o -path /var/lib/dpkg -o -path /var/lib/systemd -o -path /root -o -path /var/tmp \
           -o -path /etc/ld.so.cache -o -path /boot \\) -prune -o -print | grep -v -e /__pycache__ | sort
        echo == packages; dpkg-query -W -f '${Package} ${Status}\\n' | grep 'ok installed' | sort
        echo == links; ls /sys/class/net
        echo == rules; nft list ruleset 2>/dev/null
        echo == mounts; cut -d' ' -f2 /proc/mounts | sort
        echo == groups; find /sys/fs/cgroup -type d -name 'berth*'
        echo == units; systemctl list-unit-files --no-legend --no-pager | awk '{print $1, $2}' | grep -v -e '^run-' -e '\\.mount'
        echo == programs; ps axo comm= | grep -e berth -e containerd | sort",
        PATIENCE,
    )
}

/// Does the same on both at once.
fn on_both(hosts: [&Machine; 2], act: impl Fn(&Machine) + Sync) {
    std::thread::scope(|scope| {
        for host in hosts {
            let act = &act;
            scope.spawn(move || act(host));
        }
    });
}

fn installs(cluster: &Cluster, host: &Machine) {
    let line = cluster.json(&["node", "token"])["install"]
        .as_str()
        .expect("line")
        .to_owned();
    assert!(
        line.contains("--pinnedpubkey") && line.contains("| sudo sh -s -- "),
        "{line}"
    );
    let out = host.ok_within(&line.replace("sudo ", ""), INSTALL);
    assert!(out.contains("==> done"), "{out}");
}

#[test]
fn one_line_installs_upgrades_keep_every_process_and_removal_leaves_the_host_as_it_was() {
    let brain = Template::find(Debian::Trixie, Content::Prepared);
    let trixie = Template::find(Debian::Trixie, Content::Bare);
    let bookworm = Template::find(Debian::Bookworm, Content::Bare);
    let c = Cluster::brain_alone(&[&brain, &trixie, &bookworm], "lease_secs = 20\n");
    c.lab.step("the brain is up");
    let nodes = [c.lab.host(2), c.lab.host(3)];
    let before = nodes.map(inventory);
    c.lab.step("hosts are listed");

    // Somebody else's brain in the middle: the pin does not match, nothing runs.
    let line = c.json(&["node", "token"])["install"]
        .as_str()
        .expect("line")
        .replace("sudo ", "");
    let at = line.find("sha256//").expect("pin") + "sha256//".len();
    let mut forged = line.clone();
    forged.replace_range(at..at + 4, "AAAA");
    let (_, out) = nodes[0].sh(&forged);
    assert!(
        !out.contains("==>") && nodes[0].sh("test -e /usr/local/bin/berth-agent").0 != 0,
        "{out}"
    );
    // Without a token it says what to do.
    let (code, out) = nodes[0].sh(line.rsplit_once(" -s -- ").expect("token").0);
    assert!(
        code != 0 && out.contains("no token was given") && out.contains("berth node token"),
        "{out}"
    );

    on_both(nodes, |host| installs(&c, host));
    c.lab.step("installed");
    for host in nodes {
        c.wait_node(&host.name, "ready", 60);
    }
    c.load_example();
    c.run_sleepers("web", 4);
    let running = c.wait_running(4, 90);
    assert!(
        ["host2", "host3"]
            .iter()
            .all(|n| running.iter().any(|x| x["node_name"] == *n))
    );
    let pids_before = pids(&running);
    c.lab.step("containers run");

    // New programs on the brain's host: it is restarted, and the same line without a token brings each node up to them.
    let host1 = c.lab.host(1);
    host1.ok("for p in berth-brain berth-agent berth-log berth-init; do
        cp /usr/local/bin/$p /usr/local/bin/$p.new; printf upgraded >>/usr/local/bin/$p.new; mv /usr/local/bin/$p.new /usr/local/bin/$p
        done; systemctl restart berth-brain");
    c.wait_brain();
    on_both(nodes, |host| {
        let agent = host.ok("systemctl show -p MainPID --value berth-agent");
        let line = c.json(&["node", "token"])["install"]
            .as_str()
            .expect("line")
            .replace("sudo ", "");
        let out = host.ok_within(line.rsplit_once(" -s -- ").expect("token").0, INSTALL);
        assert!(out.contains("==> done"), "{out}");
        assert_ne!(
            host.ok("systemctl show -p MainPID --value berth-agent"),
            agent,
            "the agent is another"
        );
        host.ok("tail -c 8 /usr/local/bin/berth-agent | grep -q upgraded");
    });
    c.lab.step("upgraded");
    for host in nodes {
        c.wait_node(&host.name, "ready", 60);
    }
    assert_eq!(
        pids(&c.wait_running(4, 60)),
        pids_before,
        "R3: an upgrade touches no container"
    );
    for node in ["host2", "host3"] {
        let of_node = running.iter().filter(|x| x["node_name"] == node);
        for container in of_node {
            let pid = container["observed"]["pid"].as_u64().expect("pid");
            let host = nodes[usize::from(node == "host3")];
            host.ok(&format!("test -d /proc/{pid}"));
        }
    }

    c.berth(&["service", "rm", "web"]);
    on_both(nodes, |host| {
        host.ok_within(
            "curl -fsSk https://10.77.0.11:7443/install | sh -s -- --remove --purge",
            INSTALL,
        );
    });
    c.lab.step("removed");
    for (host, before) in nodes.into_iter().zip(before) {
        let after = inventory(host);
        let lines = |text: &str| {
            text.lines()
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        let (before, after) = (lines(&before), lines(&after));
        let left: Vec<_> = after.difference(&before).collect();
        let lost: Vec<_> = before.difference(&after).collect();
        assert!(
            left.is_empty() && lost.is_empty(),
            "{}: left {left:#?}\nlost {lost:#?}",
            host.name
        );
    }
}
