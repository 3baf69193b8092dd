//! The lab itself: that its machines are what they claim, and that what it does to them happens.

use std::time::Duration;

use berth_tests::lab::{Lab, PATIENCE, Quality};

#[test]
fn machines_are_real_hosts_apart_from_each_other() {
    let lab = Lab::trixie(2);
    let (one, two) = (lab.host(1), lab.host(2));
    assert_eq!(one.ok("stat -fc %T /sys/fs/cgroup"), "cgroup2fs");
    assert_eq!(one.ok("ps -p 1 -o comm="), "systemd");
    assert_eq!(
        (one.ok("hostname"), two.ok("hostname")),
        ("host1".into(), "host2".into())
    );
    for own in [
        "cat /etc/machine-id",
        "head -c 16 /dev/urandom | od -An -tx1",
        "cat /proc/sys/kernel/random/uuid",
    ] {
        assert_ne!(one.ok(own), two.ok(own), "{own}");
    }
    assert_eq!(one.sh("echo out; echo err >&2; exit 7"), (7, "out\nerr\n".into()));
    let large = vec![7; 3 << 20];
    one.write("/tmp/large", &large, 0o600);
    assert!(one.read("/tmp/large") == large, "what was copied came back");
    one.ok("ping -c 3 -i 0.2 -W 2 host2");
    lab.switch.set(
        "host1",
        "host2",
        Quality {
            cut: true,
            ..Quality::default()
        },
    );
    assert_ne!(one.sh("ping -c 2 -i 0.2 -W 1 host2").0, 0, "cut");
    lab.switch.set(
        "host1",
        "host2",
        Quality {
            delay: Duration::from_millis(150),
            ..Quality::default()
        },
    );
    let slow = one.ok("ping -c 3 -i 0.2 -W 2 host2 | tail -1 | cut -d/ -f5");
    assert!(
        slow.parse::<f64>().is_ok_and(|ms| ms >= 300.0),
        "{slow} ms there and back"
    );
    lab.switch.isolate("host1", false);
    one.netem("delay 100ms");
    let slow = one.ok("ping -c 3 -i 0.2 -W 2 host2 | tail -1 | cut -d/ -f5");
    assert!(slow.parse::<f64>().is_ok_and(|ms| ms >= 100.0), "{slow} ms");
    one.netem("");
    one.carrier(false);
    one.eventually("test $(cat /sys/class/net/eth0/carrier) = 0", PATIENCE);
    one.carrier(true);
    one.eventually("ping -c 1 -W 1 host2", PATIENCE);
}

#[test]
fn power_cuts_keep_what_was_synced_and_clocks_do_what_they_are_told() {
    let mut lab = Lab::trixie(1);
    let host = lab.host(1);
    let boot = host.ok("cat /proc/sys/kernel/random/boot_id");
    host.shift_clock(7200);
    let shifted: i64 = host.ok("date +%s").parse().unwrap();
    assert!((shifted - jiff::Timestamp::now().as_second() - 7200).abs() < 60);
    host.shift_clock(-7200);
    // Frozen, its clocks stand still; with its emulator stopped they run on.
    let uptime =
        |host: &berth_tests::lab::Machine| -> f64 { host.ok("cut -d' ' -f1 /proc/uptime").parse().unwrap() };
    let before = uptime(host);
    host.freeze();
    std::thread::sleep(Duration::from_secs(4));
    host.thaw();
    let frozen = uptime(host) - before;
    let before = uptime(host);
    host.suspend_emulator();
    std::thread::sleep(Duration::from_secs(4));
    host.resume_emulator();
    let suspended = uptime(host) - before;
    assert!(
        frozen < 3.0 && suspended >= 4.0,
        "frozen {frozen}, suspended {suspended}"
    );
    host.ok("echo synced >/var/synced; sync /var/synced /var; echo lost >/var/lost");
    let host = lab.host_mut(1);
    host.crash();
    host.boot();
    let host = lab.host(1);
    assert_ne!(
        host.ok("cat /proc/sys/kernel/random/boot_id"),
        boot,
        "a boot of its own"
    );
    assert_eq!(host.ok("cat /var/synced; hostname"), "synced\nhost1");
    assert_ne!(host.sh("cat /var/lost").0, 0, "what was not synced is gone");
    host.eventually("ip -4 -br addr show eth0 | grep -q 10.77.0.11/24", PATIENCE);
}
