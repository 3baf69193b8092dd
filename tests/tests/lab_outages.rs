//! R3 on real hosts: power cuts, reboots, hosts without their brain; Debian 13 and 12.

use std::time::Duration;

use berth_tests::lab::cluster::{Cluster, pids, places};
use berth_tests::lab::{Content, Debian, Machine, PATIENCE, Template};
use berth_tests::operator::Operator as _;

const BACK: Duration = Duration::from_secs(400);

/// Longer than a host takes to boot: what comes back by itself is not replaced.
const PATIENT: &str = "lease_secs = 300\n";

/// Some replicas on every host.
fn replicas_on(c: &Cluster, count: usize) -> Vec<serde_json::Value> {
    c.run_sleepers("web", count);
    let running = c.wait_running(count, 90);
    for host in &c.lab.hosts {
        assert!(
            running.iter().any(|x| x["node_name"] == host.name.as_str()),
            "{running:?}"
        );
    }
    c.lab.step("replicas run");
    running
}

/// Containers whose kernel limits differ from what the brain wants, and processes that are there twice.
fn check_hosts(c: &Cluster, containers: &[serde_json::Value]) {
    for host in &c.lab.hosts {
        let of_host: Vec<_> = containers
            .iter()
            .filter(|x| x["node_name"] == host.name.as_str())
            .collect();
        for container in &of_host {
            let id = container["id"].as_str().expect("id");
            let dir = format!("/sys/fs/cgroup/berth.slice/berth-containers.service/node/*/{id}");
            let limits = format!(
                "test \"$(cat {dir}/memory.max {dir}/pids.max {dir}/memory.swap.max | tr '\\n' ' ')\" = '33554432 512 0 ' \
                    && grep -q 'wbps=104857600' {dir}/io.max && grep -q '^5000 ' {dir}/cpu.max"
            );
            host.eventually(&limits, BACK);
        }
        // Who may send it packets of networks, and what containers may reach, is in force.
        host.eventually(
            "nft list table inet berth | grep -q from_nodes && nft list table inet berth_out | grep -q from_networks",
            BACK,
        );
        // One program for each container, and none besides.
        let want = of_host.len();
        host.eventually(
            &format!("test $(ps axo args= | grep -c '^sh -c trap') = {want}"),
            BACK,
        );
    }
}

fn all_back(c: &Cluster, before: &[(String, String)], what: &str) -> Vec<serde_json::Value> {
    let back = c.wait_for(BACK, |all| {
        all.iter().all(|x| x["stale"] != true) && places(all) == before
    });
    let back = back.unwrap_or_else(|why| {
        panic!("{what}: not the same containers in the same places: {before:?}\n{why}")
    });
    // What the brain knew before may have looked the same: the hosts themselves are asked, and then the brain again.
    check_hosts(c, &back);
    c.wait_for(BACK, |all| places(all) == before)
        .unwrap_or_else(|why| panic!("{what}: {why}"))
}

/// Each container answers the one before it, whichever hosts they are on.
fn reach_one_another(c: &Cluster) {
    let running = c.running();
    let at = |x: &serde_json::Value| {
        let host = c
            .lab
            .hosts
            .iter()
            .find(|host| x["node_name"] == host.name.as_str());
        let pid = x["observed"]["pid"].as_u64().expect("pid");
        (host.expect("its host"), format!("nsenter -t {pid} -n -m nc"))
    };
    for (n, from) in running.iter().enumerate() {
        let to = &running[(n + 1) % running.len()];
        let address = to["addresses"][0]["ipv4"].as_str().expect("address");
        let ((there, answer), (here, ask)) = (at(to), at(from));
        there.ok(&format!(
            "(echo hello | timeout 120 {answer} -l -p 8080 >/dev/null 2>&1 &)"
        ));
        here.eventually(
            &format!("{ask} -w 5 {address} 8080 </dev/null | grep -q hello"),
            BACK,
        );
    }
    c.lab.step("they reach one another");
    // By name, and another host from outside of their networks.
    let (from, other) = (&running[0], &running[1]);
    let ((here, ask), (there, _)) = (at(from), at(other));
    let to = other["addresses"][0]["ipv4"].as_str().expect("address");
    let name = from["name"].as_str().expect("name");
    let looked = berth_tests::lab::eventually(BACK, || {
        let out = c.try_berth(&["exec", name, "nslookup", "all.web"]);
        String::from_utf8_lossy(&out.stdout).contains(to).then_some(())
    });
    assert!(
        looked.is_some(),
        "{}",
        here.ok("journalctl -u berth-agent --no-pager | tail -50")
    );
    // The hosts have no such program: the container's, in the host's network.
    let outside = |x: &serde_json::Value| {
        let pid = x["observed"]["pid"].as_u64().expect("pid");
        format!("nsenter -t {pid} -m nc")
    };
    there.ok(&format!(
        "(echo out | timeout 300 {} -l -p 8081 >/dev/null 2>&1 &)",
        outside(other)
    ));
    here.eventually(
        &format!("{ask} -w 5 {} 8081 </dev/null | grep -q out", there.address()),
        BACK,
    );
    c.lab.step("they reach the world");
    // And a host reaches them at the published port of every host.
    c.berth(&["service", "update", "web", "-p", "8085:8080", "-d"]);
    let (there, answer) = at(other);
    there.ok(&format!(
        "(timeout 300 sh -c 'while echo published | {answer} -l -p 8080; do :; done' >/dev/null 2>&1 &)"
    ));
    for host in &c.lab.hosts {
        let (ask, at) = (outside(from), host.address());
        here.eventually(
            &format!("{ask} -w 5 {at} 8085 </dev/null | grep -q published"),
            BACK,
        );
    }
    c.lab.step("the world reaches them");
    // The service's own address, by its name: one of three listens.
    let ((here, ask), at) = (at(from), "web 8080");
    here.eventually(&format!("{ask} -w 5 {at} </dev/null | grep -q published"), BACK);
    c.lab.step("a service's address leads to it");
}

/// A job that ran once and must not run again, whatever happens to its host.
fn run_job(c: &Cluster) {
    let args = [
        "run",
        "example:1",
        "--name",
        "once",
        "-d",
        "--restart",
        "never",
        "--memory",
        "32MiB",
        "--disk",
        "8MiB",
    ];
    let mut args = args.to_vec();
    args.extend(["--", "sh", "-c", "echo ran"]);
    c.berth(&args);
    let done =
        berth_tests::lab::eventually(BACK, || c.berth(&["ps", "once"]).contains("exited").then_some(()));
    assert!(done.is_some(), "{}", c.berth(&["ps", "once"]));
}

fn ran_once(c: &Cluster) {
    let log = berth_tests::lab::eventually(PATIENCE, || {
        let out = c.try_berth(&["logs", "once"]);
        out.status
            .success()
            .then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    });
    assert_eq!(
        log.unwrap_or_default().matches("ran").count(),
        1,
        "{}",
        c.berth(&["ps", "once"])
    );
}

#[test]
fn r3_power_cuts_of_one_host_and_of_all_bring_back_the_same_containers() {
    let mut c = Cluster::mixed(PATIENT);
    let running = replicas_on(&c, 3);
    let before = places(&running);
    check_hosts(&c, &running);
    reach_one_another(&c);
    run_job(&c);

    // One host.
    c.lab.host_mut(3).crash();
    c.lab.host_mut(3).boot();
    let back = all_back(&c, &before, "one host");
    let of = |all: &[serde_json::Value], host: &str| {
        pids(
            &all.iter()
                .filter(|x| x["node_name"] == host)
                .cloned()
                .collect::<Vec<_>>(),
        )
    };
    assert_eq!(of(&back, "host1"), of(&running, "host1"), "others go on");

    c.lab.step("one host is back");
    // All at once, the brain's among them.
    c.lab.crash_all();
    c.lab.boot_all();
    c.wait_brain();
    all_back(&c, &before, "all hosts");
    c.lab.step("all are back");
    reach_one_another(&c);
    ran_once(&c);

    // Debian 12's systemd can't start a killed holder of the control groups again: containers and agent go on without it.
    let (running, host) = (c.running(), c.lab.host(3));
    host.ok("kill -9 $(systemctl show -p MainPID --value berth-containers)");
    host.eventually("systemctl is-failed -q berth-containers", BACK);
    host.eventually("systemctl is-active -q berth-agent", BACK);
    all_back(&c, &before, "the holder");
    assert_eq!(pids(&c.running()), pids(&running), "no container was touched");
    let events = c.berth(&["events", "--limit", "200"]);
    assert!(!events.contains("replaced on"), "nothing was moved: {events}");
    c.berth(&["service", "rm", "web"]);
    host.eventually("! ps axo args= | grep -q '^sh -c trap'", BACK);
}

/// Makes tenants one after another from another host and notes each that was acknowledged.
const WRITER: &str =
    "export BERTH_SERVER=https://10.77.0.11:7443 BERTH_CA=/var/tmp/ca.crt BERTH_TOKEN=$(cat /var/tmp/token)
    n=0; while n=$((n+1)); do
      berth tenant create t$n >/dev/null 2>&1 && echo t$n; [ -e /var/tmp/stop ] && exit 0
    done";

fn give_token(from: &Machine, to: &Machine) {
    for (source, target) in [
        ("/var/lib/berth-brain/admin.token", "/var/tmp/token"),
        ("/var/lib/berth-brain/ca/ca.crt", "/var/tmp/ca.crt"),
    ] {
        to.write(target, &from.read(source), 0o600);
    }
}

#[test]
fn r5_a_power_cut_of_the_brains_host_loses_no_acknowledged_write_and_hosts_live_without_it() {
    let trixie = Template::find(Debian::Trixie, Content::Prepared);
    let mut c = Cluster::start(&[&trixie, &trixie], PATIENT);
    c.load_example();
    let running = replicas_on(&c, 4);
    let before = places(&running);
    give_token(c.lab.host(1), c.lab.host(2));
    let mut writer = c.lab.host(2).spawn(WRITER);
    let wrote =
        berth_tests::lab::eventually(PATIENCE, || (writer.so_far().lines().count() >= 5).then_some(()));
    assert!(wrote.is_some(), "{}", writer.so_far());
    c.lab.host_mut(1).crash();
    std::thread::sleep(Duration::from_secs(1));
    let acknowledged = writer.so_far();
    c.lab.host_mut(1).boot();
    c.wait_brain();
    c.lab.step("the brain is back");
    let tenants = c.berth(&["tenant", "ls", "-o", "json"]);
    for tenant in acknowledged.lines() {
        assert!(
            tenants.contains(&format!("\"{tenant}\"")),
            "{tenant} was acknowledged and is lost"
        );
    }
    let resumed = berth_tests::lab::eventually(PATIENCE, || {
        (writer.so_far().lines().count() > acknowledged.lines().count()).then_some(())
    });
    assert!(resumed.is_some(), "writes go on");
    c.lab.host(2).ok("touch /var/tmp/stop");
    all_back(&c, &before, "the brain's host");

    c.lab.step("all is as before");
    // No brain at all: hosts reboot, by the book and by a power cut, into their containers.
    c.lab.host(1).ok("systemctl disable -q --now berth-brain");
    c.lab.host(2).reboot();
    let log = c
        .lab
        .host(2)
        .ok("journalctl -u berth-containers --no-pager -b -1");
    assert!(
        log.contains("2 containers stopped, 0 killed"),
        "each within its grace: {log}"
    );
    let back = |c: &Cluster| {
        let host = c.lab.host(2);
        let want = before.iter().filter(|(_, node)| *node == host.name).count();
        host.eventually(
            &format!("test $(ps axo args= | grep -c '^sh -c trap') = {want}"),
            BACK,
        );
    };
    back(&c);
    c.lab.host_mut(2).crash();
    c.lab.host_mut(2).boot();
    back(&c);
    c.lab.step("twice back without a brain");
    c.lab.host(1).ok("systemctl enable -q --now berth-brain");
    c.wait_brain();
    all_back(&c, &before, "after the brain came back");
}
