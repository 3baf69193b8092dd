//! A running system, saved: machines start from it within seconds instead of booting.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::image::{Content, Debian, Emulator, Image, stripped};
use super::machine::{APPEND, CPUS, MEMORY_MIB, Machine};
use super::store;
use super::switch::Switch;

/// The programs of berth that a prepared host has in /usr/local/bin.
const PROGRAMS: [&str; 5] = ["berth", "berth-brain", "berth-agent", "berth-log", "berth-init"];

/// Its units, loaded but not enabled.
const UNITS: [&str; 3] = [
    "berth-agent.service",
    "berth-brain.service",
    "berth-containers.service",
];

/// A saved system.
#[derive(Debug)]
pub struct Template {
    image: Image,
    emulator: Emulator,
    disk: PathBuf,
    /// Its memory.
    pub state: PathBuf,
}

impl Template {
    /// Finds it, or boots an image and saves it. A prepared one has containerd running and berth's programs, not started.
    pub fn find(debian: Debian, content: Content) -> Self {
        let emulator = Emulator::find();
        let image = Image::find(debian, content);
        let programs: Vec<_> = match content {
            Content::Prepared => PROGRAMS.map(|name| (name, stripped(name))).into(),
            Content::Bare => Vec::new(),
        };
        let mut files: Vec<_> = programs
            .iter()
            .map(|(name, file)| (file.path().to_owned(), format!("/usr/local/bin/{name}"), 0o755))
            .collect();
        if content == Content::Prepared {
            let units = crate::root().join("systemd");
            files.extend(UNITS.map(|unit| (units.join(unit), format!("/etc/systemd/system/{unit}"), 0o644)));
        }
        let mut parts = vec![
            image.key.clone().into_bytes(),
            APPEND.into(),
            MEMORY_MIB.to_be_bytes().to_vec(),
            CPUS.as_bytes().to_vec(),
        ];
        parts.push(emulator_flags().into_bytes());
        parts.extend(files.iter().map(|(from, ..)| store::content(from)));
        let key = store::key(parts.iter().map(Vec::as_slice));
        let kind = format!("template-{debian:?}-{content:?}").to_lowercase();
        let folder = store::kept(&kind, &key, |new| make(new, &image, &emulator, &files));
        Self {
            disk: folder.join("disk.qcow2"),
            state: folder.join("state"),
            image,
            emulator,
        }
    }

    /// A machine over this template's disk, not started.
    pub fn machine(&self, dir: &Path, number: u8, switch: &Switch) -> Machine {
        Machine::new(
            dir,
            number,
            &self.image,
            &self.emulator,
            (&self.disk, "qcow2"),
            switch,
        )
    }
}

/// What a saved state depends on: the source that makes the emulator's command line.
fn emulator_flags() -> String {
    include_str!("machine.rs").to_owned()
}

fn make(new: &Path, image: &Image, emulator: &Emulator, files: &[(PathBuf, String, u32)]) {
    let work = tempfile::tempdir_in(super::fast_folder()).expect("folder");
    crate::reaper::guard_folder(work.path());
    let mut machine = Machine::new(
        work.path(),
        9,
        image,
        emulator,
        (&image.disk, "raw"),
        &Switch::default(),
    );
    machine.boot();
    for (from, to, mode) in files {
        machine.push(from, to, *mode);
    }
    machine.ok_within(
        "systemctl daemon-reload; systemctl is-system-running --wait >/dev/null; systemctl --failed --no-legend | grep . && exit 1
        journalctl --rotate -q; journalctl --vacuum-time=1s -q; sync; fstrim / || true; exit 0",
        Duration::from_secs(600),
    );
    let disk = machine.disk();
    machine.save(&new.join("state"));
    // Its backing file is named by its whole path, so the overlay can move.
    std::fs::copy(&disk, new.join("disk.qcow2")).expect("copy");
}
