//! What a test does to a machine that its owner would not: freezing, power cuts, reboots, bad clocks and bad links.

use std::time::Duration;

use serde_json::json;

use super::machine::{Machine, PATIENCE};
use crate::process::{eventually, signal};

impl Machine {
    /// Stops its processors and its clocks, as a hypervisor does.
    pub fn freeze(&self) {
        self.monitor("stop", json!({}));
    }

    /// Lets it go on after [`Machine::freeze`].
    pub fn thaw(&self) {
        self.monitor("cont", json!({}));
    }

    /// Stops its emulator by SIGSTOP: its clocks run on meanwhile.
    pub fn suspend_emulator(&self) {
        signal(self.pid(), nix::sys::signal::Signal::SIGSTOP);
    }

    /// Lets it go on after [`Machine::suspend_emulator`].
    pub fn resume_emulator(&self) {
        signal(self.pid(), nix::sys::signal::Signal::SIGCONT);
    }

    /// Cuts its power. The disk stays.
    pub fn crash(&mut self) {
        self.channel = None;
        if let Some(mut process) = self.process.take() {
            process.kill9();
        }
    }

    /// Reboots it as `systemctl reboot` does, and waits until it is back.
    pub fn reboot(&self) {
        let boot_id = "cat /proc/sys/kernel/random/boot_id";
        let before = self.ok(boot_id);
        let _ = self.try_sh("systemctl reboot --no-block", PATIENCE);
        let back = eventually(PATIENCE, || {
            let up = self.channel().answers(Duration::from_millis(300));
            let now = up.then(|| self.try_sh(boot_id, Duration::from_secs(3)).ok())??;
            (String::from_utf8_lossy(&now.stdout).trim() != before).then_some(())
        });
        assert!(
            back.is_some(),
            "{} does not come back:\n{}",
            self.name,
            self.console()
        );
    }

    /// Takes the network's carrier away, or gives it back.
    pub fn carrier(&self, up: bool) {
        self.monitor("set_link", json!({ "name": "net", "up": up }));
    }

    /// Moves its clock by so many seconds.
    pub fn shift_clock(&self, seconds: i64) {
        self.ok(&format!("date -s @$(( $(date +%s) + {seconds} )) >/dev/null"));
    }

    /// Delays and loses what it sends, by the kernel's own emulation (`tc-netem`): `delay 50ms loss 1%`; empty ends it.
    pub fn netem(&self, what: &str) {
        match what {
            "" => self.ok("tc qdisc del dev eth0 root"),
            what => self.ok(&format!("tc qdisc replace dev eth0 root netem {what}")),
        };
    }
}
