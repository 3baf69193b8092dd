//! What every machine knew when a test failed, in one folder.

use std::path::Path;
use std::time::Duration;

use super::machine::Machine;

/// Name of the file, and what prints its content.
const QUESTIONS: [(&str, &str); 10] = [
    ("journal", "journalctl -o short-precise --no-pager -n 20000"),
    ("brain", "journalctl -u berth-brain -o short-precise --no-pager"),
    ("agent", "journalctl -u berth-agent -o short-precise --no-pager"),
    (
        "containerd",
        "journalctl -u containerd -o short-precise --no-pager",
    ),
    ("kernel", "dmesg"),
    ("ruleset", "nft list ruleset"),
    (
        "links",
        "ip -d -s addr; ip rule; ip route show table all; ip neigh; bridge fdb; ip netns; tc -s qdisc; for net in /run/berth/networks/*; do echo \"== $net\"; nsenter --net=$net sh -c 'ip -d -s link; bridge fdb; ip neigh; nft list ruleset'; done",
    ),
    (
        "units",
        "systemctl --failed --no-pager; systemctl list-units --no-pager; systemctl list-jobs --no-pager",
    ),
    (
        "processes",
        "ps axo pid,ppid,stat,etimes,rss,cgroup:100,args; free -m; df; cat /proc/mounts",
    ),
    (
        "containers",
        "berth ps; berth node ls; berth events; ctr -n berth containers ls; ctr -n berth tasks ls; \
         cd /sys/fs/cgroup/berth.slice && grep -r . --include=cpu.max --include=memory.max --include=pids.max --include=io.max .",
    ),
];

/// Asks all machines that still answer.
pub fn all(machines: &[Machine]) {
    let test = std::thread::current().name().unwrap_or("test").replace("::", "-");
    let folder = super::store::folder()
        .with_file_name("lab-failures")
        .join(format!("{test}-{}", std::process::id()));
    for machine in machines {
        let folder = folder.join(&machine.name);
        if let Err(error) = std::fs::create_dir_all(&folder) {
            eprintln!("lab: {}: {error}", folder.display());
            return;
        }
        one(machine, &folder);
    }
    eprintln!("lab: what the hosts knew is in {}", folder.display());
}

fn one(machine: &Machine, folder: &Path) {
    put(folder, "console", machine.console());
    if !machine.is_on() {
        return put(folder, "off", "the machine was switched off".to_owned());
    }
    for (name, script) in QUESTIONS {
        let text = match machine.try_sh(script, Duration::from_secs(20)) {
            Ok(out) => [out.stdout, out.stderr].concat(),
            Err(error) => error.to_string().into_bytes(),
        };
        put(folder, name, String::from_utf8_lossy(&text).into_owned());
    }
}

fn put(folder: &Path, name: &str, text: String) {
    let _ = std::fs::write(folder.join(format!("{name}.log")), text);
}
