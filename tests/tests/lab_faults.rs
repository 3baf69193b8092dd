//! Hosts that misbehave: frozen ones that thaw, clocks that jump, full and read-only disks, meddlers, another containerd.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids};
use berth_tests::lab::{Machine, PATIENCE};
use berth_tests::operator::Operator as _;

const SOON: Duration = Duration::from_secs(300);

fn programs(host: &Machine) -> usize {
    host.ok("ps axo args= | grep -c '^sh -c trap' || true")
        .parse()
        .expect("count")
}

/// All replicas run where the brain says, and nothing else runs anywhere.
fn settled(c: &Cluster, count: usize) {
    let found = c.wait_for(SOON, |all| {
        all.len() == count && all.iter().all(|x| x["stale"] != true)
    });
    let all = found.unwrap_or_else(|why| panic!("{why}"));
    for host in &c.lab.hosts {
        let want = all
            .iter()
            .filter(|x| x["node_name"] == host.name.as_str())
            .count();
        host.eventually(
            &format!("test $(ps axo args= | grep -c '^sh -c trap') = {want}"),
            SOON,
        );
        let groups = format!(
            "test $(find /sys/fs/cgroup/berth.slice -path '*/tenant-*.slice/*' -type d -not -path '*/tenant-*.slice/*/*' | wc -l) = {want}"
        );
        host.eventually(&groups, SOON);
    }
}

fn events(c: &Cluster, kind: &str) -> usize {
    let events = c.items(&["events", "--limit", "1000"]);
    events.iter().filter(|event| event["kind"] == kind).count()
}

#[test]
fn r8_a_frozen_host_that_thaws_keeps_no_wrong_state_and_clocks_may_jump() {
    // An emulated host on a busy machine may be silent for some seconds.
    let c = Cluster::mixed("lease_secs = 12\n");
    c.run_sleepers("web", 3);
    c.wait_running(3, 90);

    // Both ways of freezing: the guest's clocks stand still, or run on.
    type Act = fn(&Machine);
    let ways: [(&str, Act, Act); 2] = [
        ("host3", Machine::freeze, Machine::thaw),
        ("host2", Machine::suspend_emulator, Machine::resume_emulator),
    ];
    for (name, freeze, thaw) in ways {
        let host = c.lab.hosts.iter().find(|host| host.name == name).expect("host");
        let had = programs(host);
        assert!(had > 0, "{name} runs some");
        freeze(host);
        c.wait_node(name, "lost", 60);
        let replaced = c.wait_for(SOON, |all| {
            all.iter()
                .filter(|x| x["node_name"] != name && x["stale"] != true)
                .count()
                == 3
        });
        replaced.unwrap_or_else(|why| panic!("{name}: {why}"));
        thaw(host);
        c.wait_node(name, "ready", 60);
        settled(&c, 3);
        c.lab.step(&format!("{name} thawed"));
        // Spread again: the next one has something to lose, and nothing moves for its own sake any more.
        c.berth(&["service", "scale", "web", "0"]);
        settled(&c, 0);
        c.berth(&["service", "scale", "web", "3"]);
        settled(&c, 3);
    }

    // Clocks of an agent's host and of the brain's jump by hours, apart and in both directions: leases count time that passed.
    let (lost, before) = (events(&c, "node-lost"), pids(&c.running()));
    for seconds in [3 * 3600, -6 * 3600, 3 * 3600] {
        c.lab.host(3).shift_clock(seconds);
        c.lab.host(1).shift_clock(-seconds);
        std::thread::sleep(Duration::from_secs(15));
        let nodes = c.items(&["node", "ls"]);
        assert!(
            nodes.iter().all(|n| n["state"] == "ready"),
            "{seconds}: {nodes:?}"
        );
    }
    assert_eq!(events(&c, "node-lost"), lost, "nobody was lost for a clock");
    assert_eq!(pids(&c.running()), before, "nothing was touched");
    c.lab.step("clocks jumped");
    // And real silence still counts, whatever the clock says.
    c.lab.host(3).shift_clock(7 * 3600);
    c.lab.switch.isolate("host3", true);
    c.wait_node("host3", "lost", 40);
    c.lab.switch.isolate("host3", false);
    c.wait_node("host3", "ready", 60);
    settled(&c, 3);
}

#[test]
fn meddling_with_a_host_is_repaired_or_reported() {
    let mut c = Cluster::trixie(1);
    c.run_sleepers("web", 2);
    let before = pids(&c.wait_running(2, 60));
    let host = c.lab.host(1);

    // What berth does not own is flushed and deleted by someone else: nothing of it hangs on that.
    host.ok("ip link add dummy0 type dummy; nft add table inet other; nft flush ruleset; ip link del dummy0; sleep 3");
    assert_eq!(pids(&c.running()), before);

    c.lab.step("flushed");
    // Another containerd, as an upgrade brings it: containers go on and are adopted, the node says what it has now.
    let newer =
        std::path::PathBuf::from(std::env::var_os("BERTH_CONTAINERD_DIR").expect("scripts/test sets it"))
            .join("2.1/usr/bin");
    for program in ["containerd", "containerd-shim-runc-v2"] {
        host.push(&newer.join(program), &format!("/usr/bin/{program}"), 0o755);
    }
    host.ok("systemctl restart containerd");
    let told = berth_tests::lab::eventually(PATIENCE, || {
        let node = c.json(&["node", "inspect", "host1"]);
        node["facts"]["runtime"]
            .as_str()
            .filter(|text| text.contains("2.1."))
            .map(str::to_owned)
    });
    assert!(told.is_some(), "{}", c.berth(&["node", "inspect", "host1"]));
    assert_eq!(
        pids(&c.running()),
        before,
        "R3: containerd's upgrade touched no container"
    );
    c.run_sleepers("new", 1);
    c.wait_running(3, 60);
    c.berth(&["service", "rm", "new"]);
    c.wait_running(2, 60);

    c.lab.step("containerd is another");
    // A killed shim takes its container along; it is started again, once, and the other never notices.
    let (victim, pid) = before[0].clone();
    let shim = host.ok(&format!("cut -d' ' -f4 /proc/{pid}/stat"));
    host.ok(&format!("kill -9 {shim}"));
    let again = c.wait_for(SOON, |all| {
        let now = pids(all);
        now.len() == 2 && now.contains(&before[1]) && now.iter().any(|(id, new)| *id == victim && *new != pid)
    });
    again.unwrap_or_else(|why| panic!("{why}"));
    settled(&c, 2);

    c.lab.step("the shim was killed");
    // Disk nearly full: the node says so. Full: what runs goes on, what can't be written is refused with cause and cure.
    let running = pids(&c.running());
    let warned = |wanted: bool| {
        let told = berth_tests::lab::eventually(SOON, || {
            let node = c.json(&["node", "inspect", "host1"]);
            let warnings = node["facts"]["warnings"].to_string();
            (warnings.contains("the disk is full") == wanted).then_some(())
        });
        assert!(told.is_some(), "{}", c.berth(&["node", "inspect", "host1"]));
    };
    warned(false);
    host.ok("fallocate -l $(( $(df --output=avail -B1 / | tail -1) - 100000000 )) /filler");
    warned(true);
    host.ok("dd if=/dev/zero of=/filler2 bs=64k 2>/dev/null; test $(df --output=avail / | tail -1) = 0");
    let refused = c.try_berth(&["service", "scale", "web", "3"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("disk is full") && text.contains("free disk space"),
        "{text}"
    );
    assert_eq!(pids(&c.running()), running, "what runs goes on");
    host.ok("rm -f /filler /filler2");
    warned(false);
    c.berth(&["service", "scale", "web", "3"]);
    c.wait_running(3, 120);
    assert!(running.iter().all(|x| pids(&c.running()).contains(x)));

    c.lab.step("the disk was full");
    // The root file system turns read-only, as after an IO error: nobody pretends, and a reboot mends it.
    let running = pids(&c.running());
    host.ok("echo u >/proc/sysrq-trigger; sleep 2; touch /x 2>&1 | grep -q 'Read-only'");
    let refused = c.try_berth(&["service", "scale", "web", "2"]);
    assert!(
        !refused.status.success(),
        "a brain that can't write acknowledges nothing (R5)"
    );
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(text.contains("can't be written"), "{text}");
    std::thread::sleep(Duration::from_secs(5));
    for (_, pid) in &running {
        host.ok(&format!("test -d /proc/{pid}"));
    }
    // The kernel lets nobody write to such a file system again before it was mounted anew: the host is switched off and on.
    c.lab.host_mut(1).crash();
    c.lab.host_mut(1).boot();
    c.wait_brain();
    c.wait_node("host1", "ready", 90);
    let scaled = berth_tests::lab::eventually(SOON, || {
        c.try_berth(&["service", "scale", "web", "2"])
            .status
            .success()
            .then_some(())
    });
    assert!(
        scaled.is_some(),
        "{}",
        String::from_utf8_lossy(&c.try_berth(&["service", "scale", "web", "2"]).stderr)
    );
    settled(&c, 2);
    c.wait_node("host1", "ready", 30);
}
