//! The lab: virtual machines with a stock Debian, for what needs a real host: systemd, cgroup v2, reboots, power cuts.
//!
//! Runs on QEMU without hardware help, so anywhere. A [`Lab`] is a few machines on a private network; [`image`] makes their
//! disks, [`template`] a running system that machines start from within seconds, [`machine`] is one of them, [`switch`] the
//! wire between them, [`channel`] the way commands take past that wire. Owned by the test: gone with it. When a test fails,
//! what each machine knew is left in one folder ([`collect`]).

pub mod channel;
mod clock;
pub mod cluster;
pub mod collect;
mod commands;
mod faults;
pub mod frame;
pub mod image;
pub mod machine;
pub mod qmp;
pub mod store;
pub mod switch;
pub mod template;

use std::path::PathBuf;

pub use image::{Content, Debian};
pub use machine::{Machine, PATIENCE};
pub use switch::{Quality, Switch};
pub use template::Template;

/// How long tests pause between two looks: each starts a program in an emulated machine, which others wait for.
pub const POLL: std::time::Duration = std::time::Duration::from_millis(700);

/// Looks until something is there; none if it never was.
pub fn eventually<T>(limit: std::time::Duration, probe: impl FnMut() -> Option<T>) -> Option<T> {
    crate::process::eventually_every(POLL, limit, probe)
}

/// A few machines on a private network.
#[derive(Debug)]
pub struct Lab {
    /// They are `host1`, `host2`…, at 10.77.0.11, 10.77.0.12….
    pub hosts: Vec<Machine>,
    /// What is between them.
    pub switch: Switch,
    dir: tempfile::TempDir,
    since: std::time::Instant,
}

/// Machines' disks live in memory if there is room: flushes cost nothing there.
fn fast_folder() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let room = nix::sys::statvfs::statvfs(&memory).map_or(0, |s| s.blocks_available() * s.fragment_size());
    if room > 4 << 30 {
        memory
    } else {
        std::env::temp_dir()
    }
}

impl Lab {
    /// Starts one machine from each template.
    pub fn start(templates: &[&Template]) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("berth-lab-")
            .tempdir_in(fast_folder())
            .expect("folder");
        crate::reaper::guard_folder(dir.path());
        let mut lab = Self {
            hosts: Vec::new(),
            switch: Switch::default(),
            dir,
            since: std::time::Instant::now(),
        };
        for (at, template) in templates.iter().enumerate() {
            let mut host = template.machine(lab.dir.path(), at as u8 + 1, &lab.switch);
            host.begin_restore();
            lab.hosts.push(host);
        }
        std::thread::scope(|scope| {
            for (host, template) in lab.hosts.iter_mut().zip(templates) {
                scope.spawn(|| host.restore(&template.state));
            }
        });
        lab
    }

    /// So many Debian 13 hosts.
    pub fn trixie(count: usize) -> Self {
        let template = Template::find(Debian::Trixie, Content::Prepared);
        Self::start(&vec![&template; count])
    }

    /// The machine with this number, from 1.
    pub fn host(&self, number: usize) -> &Machine {
        &self.hosts[number - 1]
    }

    /// The same, to switch it on and off.
    pub fn host_mut(&mut self, number: usize) -> &mut Machine {
        &mut self.hosts[number - 1]
    }

    /// Cuts everyone's power at once.
    pub fn crash_all(&mut self) {
        self.hosts.iter_mut().for_each(Machine::crash);
    }

    /// Switches everyone on, all at the same time.
    pub fn boot_all(&mut self) {
        let mut off: Vec<&mut Machine> = self.hosts.iter_mut().collect();
        for _ in 0..machine::BOOTS {
            // By this thread: an emulator ends with the one that started it.
            off.iter_mut().for_each(|host| host.power_on());
            let booted: Vec<bool> = std::thread::scope(|scope| {
                let waits: Vec<_> = off
                    .iter_mut()
                    .map(|host| scope.spawn(|| host.wait_booted()))
                    .collect();
                let ended = waits.into_iter().map(std::thread::ScopedJoinHandle::join);
                ended
                    .map(|up| up.unwrap_or_else(|e| std::panic::resume_unwind(e)))
                    .collect()
            });
            let mut booted = booted.into_iter();
            off.retain(|_| !booted.next().unwrap_or(true));
        }
        assert!(
            off.is_empty(),
            "they failed each time by their emulators' faults: {off:?}"
        );
    }

    /// Says how far a test is and since when, for whoever reads its output.
    pub fn step(&self, done: &str) {
        eprintln!("lab: {:5.1} s  {done}", self.since.elapsed().as_secs_f32());
    }

    /// Where its machines' disks and consoles are.
    pub fn folder(&self) -> &std::path::Path {
        self.dir.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            collect::all(&self.hosts);
        }
    }
}
