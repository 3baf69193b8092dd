//! One virtual machine: its emulator, its disk, and what a test does to it.
//!
//! A machine starts from a template's memory (seconds) or cold. Its disk is an overlay that outlives crashes: the emulator
//! passes flushes on, so what the guest synced is on it, and what only its memory held is lost, as with real power cuts.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;

use super::channel::Channel;
use super::image::{Emulator, Image};
use super::qmp::Qmp;
use super::switch::Switch;
use crate::process::{Process, eventually, run};

/// How long anything in a machine may take unless a test says otherwise: emulated processors are slow, and a loaded machine has
/// been seen to take four times as long as a quiet one. What comes in time costs nothing.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// Time for a boot.
const BOOT: Duration = Duration::from_secs(300);
/// Processors of a machine. With one, power cuts are a fifth faster and installations slower; limits are told apart better with two.
pub const CPUS: &str = "2";
/// Memory of a machine, MiB.
pub const MEMORY_MIB: u32 = 768;

/// Name of the socket at which a person gets a shell, in a machine's folder.
pub const SHELL_SOCKET: &str = "shell.sock";

/// A virtual machine. Its emulator is killed when dropped.
#[derive(Debug)]
pub struct Machine {
    /// `host1`, `host2`…
    pub name: String,
    /// Its number, from which its addresses come.
    pub number: u8,
    image: Image,
    emulator: Emulator,
    pub(super) dir: PathBuf,
    pub(super) process: Option<Process>,
    pub(super) channel: Option<Channel>,
}

impl Machine {
    /// A machine that is not started, with a disk over `backing`, plugged into a switch.
    pub fn new(
        dir: &Path,
        number: u8,
        image: &Image,
        emulator: &Emulator,
        backing: (&Path, &str),
        switch: &Switch,
    ) -> Self {
        let name = format!("host{number}");
        let dir = dir.join(&name);
        std::fs::create_dir_all(&dir).expect("folder");
        let machine = Self {
            name,
            number,
            image: image.clone(),
            emulator: emulator.clone(),
            dir,
            process: None,
            channel: None,
        };
        run(machine
            .emulator
            .command("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", backing.1, "-b"])
            .arg(backing.0)
            .arg(machine.disk()));
        switch
            .open(&machine.name, &machine.dir.join("net.sock"))
            .expect("switch port");
        machine
    }

    /// Its disk's overlay.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    /// Its address on the lab's network.
    pub fn address(&self) -> String {
        format!("10.77.0.1{}", self.number)
    }

    fn command(&self) -> Command {
        let mut command = self.emulator.command("qemu-system-x86_64");
        let in_dir = |name: &str| self.dir.join(name).display().to_string();
        command
            .args([
                "-name",
                &self.name,
                "-accel",
                "tcg,thread=multi",
                "-cpu",
                "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,+aes,+pclmulqdq",
                "-machine",
                "q35",
                "-smp",
                CPUS,
            ])
            .args([
                "-m",
                &MEMORY_MIB.to_string(),
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
            ])
            .arg("-kernel")
            .arg(&self.image.kernel)
            .arg("-initrd")
            .arg(&self.image.initrd)
            .args(["-append", APPEND])
            .args(["-device", "vmgenid,guid=auto"])
            .arg("-drive")
            .arg(format!(
                "file={},if=virtio,format=qcow2,cache=writeback,discard=unmap",
                in_dir("disk.qcow2")
            ))
            .args([
                "-device",
                "virtio-serial-pci",
                "-device",
                "virtserialport,chardev=lab,name=berth.lab",
                "-chardev",
            ])
            .arg(format!(
                "socket,id=lab,path={},server=on,wait=off",
                in_dir("lab.sock")
            ))
            .args([
                "-device",
                "virtserialport,chardev=shell,name=berth.shell",
                "-chardev",
            ])
            .arg(format!(
                "socket,id=shell,path={},server=on,wait=off",
                in_dir(SHELL_SOCKET)
            ))
            .arg("-netdev")
            .arg(format!(
                "stream,id=net,server=off,addr.type=unix,addr.path={},reconnect-ms=200",
                in_dir("net.sock")
            ))
            .args([
                "-device",
                &format!("virtio-net-pci,netdev=net,mac={}", self.mac()),
            ])
            .args([
                "-chardev",
                &format!("file,id=console,path={},append=on", in_dir("console.log")),
            ])
            .args(["-serial", "chardev:console", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", in_dir("qmp.sock")));
        command
    }

    fn mac(&self) -> String {
        format!("52:54:00:be:00:{:02x}", self.number)
    }

    fn launch(&mut self, more: &[&str]) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        for socket in ["lab.sock", SHELL_SOCKET, "qmp.sock"] {
            let _ = std::fs::remove_file(self.dir.join(socket));
        }
        let mut command = self.command();
        command.args(more);
        self.process = Some(Process::spawn(command, &self.dir.join("emulator.log")));
    }

    /// Switches it on and does not wait; the emulator ends with the thread that calls this.
    pub fn power_on(&mut self) {
        self.launch(&[]);
    }

    /// Begins to take its memory from a saved state, and does not wait.
    pub fn begin_restore(&mut self) {
        self.launch(&["-incoming", "defer"]);
    }

    /// Takes its memory from the saved state after [`Machine::begin_restore`], and becomes itself.
    pub fn restore(&mut self, state: &Path) {
        let mut qmp = self.qmp();
        let ask = |qmp: &mut Qmp, command: &str, arguments| {
            qmp.ask(command, arguments)
                .unwrap_or_else(|e| panic!("{}: {e}", self.name))
        };
        ask(&mut qmp, "migrate-set-capabilities", mapped_ram());
        let uri = format!("file:{}", state.display());
        ask(&mut qmp, "migrate-incoming", json!({ "uri": uri }));
        let up = eventually(PATIENCE, || {
            let status = ask(&mut qmp, "query-status", json!({}));
            (status["status"] == "paused").then_some(())
        });
        assert!(up.is_some(), "{}: the saved state was not restored", self.name);
        // It was stopped to be saved.
        ask(&mut qmp, "cont", json!({}));
        self.wait_up();
        self.become_itself();
    }

    /// Switches it on after a power cut and waits until it answers.
    pub fn boot(&mut self) {
        let booted = (0..BOOTS).any(|_| {
            self.power_on();
            self.wait_booted()
        });
        assert!(
            booted,
            "{}: it failed {BOOTS} times by its emulator's faults",
            self.name
        );
    }

    /// Waits until it answers, as [`Self::wait_up`]; false if the emulator died of its own fault or gave it a clock that runs
    /// wrong, so that it has to be switched on again: to the guest that is another power cut.
    pub fn wait_booted(&mut self) -> bool {
        self.find_channel();
        let end = Instant::now() + BOOT;
        while !self.channel().answers(Duration::from_millis(300)) {
            let died = self.process.as_mut().is_none_or(|process| !process.running());
            let fault = died
                && self
                    .process
                    .as_ref()
                    .is_some_and(|p| p.output().contains(EMULATORS_FAULT));
            if fault {
                eprintln!(
                    "lab: {}: the emulator died of its own fault: {EMULATORS_FAULT}",
                    self.name
                );
                // Dead, so that it can be switched on again.
                (self.channel, self.process) = (None, None);
                return false;
            }
            assert!(
                !died && Instant::now() < end,
                "{} does not come up:\n{}",
                self.name,
                self.console()
            );
        }
        if let Some((least, most)) = self.clock_fault() {
            eprintln!(
                "lab: {}: its clock runs {least:.2} to {most:.2} times as fast as it should",
                self.name
            );
            self.crash();
            return false;
        }
        true
    }

    /// Waits until it answers on its control channel.
    pub fn wait_up(&mut self) {
        assert!(
            self.wait_booted(),
            "{}: its emulator's fault, told above",
            self.name
        );
    }

    fn find_channel(&mut self) {
        let socket = self.dir.join("lab.sock");
        let channel = eventually(PATIENCE, || Channel::connect(&socket).ok());
        let channel =
            channel.unwrap_or_else(|| panic!("{} has no control channel:\n{}", self.name, self.console()));
        self.channel = Some(channel);
    }

    fn qmp(&self) -> Qmp {
        let socket = self.dir.join("qmp.sock");
        let qmp = eventually(PATIENCE, || Qmp::connect(&socket).ok());
        qmp.unwrap_or_else(|| {
            panic!(
                "{}: the emulator does not answer:\n{}",
                self.name,
                self.process.as_ref().map_or_else(String::new, Process::output)
            )
        })
    }

    /// Asks the emulator's monitor.
    pub fn monitor(&self, command: &str, arguments: serde_json::Value) -> serde_json::Value {
        let answer = self.qmp().ask(command, arguments);
        answer.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub(super) fn channel(&self) -> &Channel {
        self.channel
            .as_ref()
            .unwrap_or_else(|| panic!("{} is off", self.name))
    }

    /// What a restored machine must not share with its siblings: name, machine id, address, clock, randomness. Written to its
    /// disk too, so that it is the same after a reboot. (The kernel's randomness is fresh already: a new vmgenid.)
    fn become_itself(&self) {
        let now = jiff::Timestamp::now().as_second();
        self.ok(&format!(
            "set -e
            date -s @{now} >/dev/null
            echo {name} >/etc/hostname; hostname {name}
            tr -d - </proc/sys/kernel/random/uuid >/etc/machine-id
            mkdir -p /var/log/journal/$(cat /etc/machine-id)
            ip link set eth0 address {mac}
            sed -i '/^Address=/d; s|^.Network.$|[Network]\\nAddress={address}/24|' /etc/systemd/network/10-lan.network
            ip addr add {address}/24 dev eth0
            ip link set eth0 up
            networkctl reload || true
            systemctl restart systemd-journald",
            name = self.name,
            mac = self.mac(),
            address = self.address(),
        ));
    }

    /// Whether it is switched on.
    pub fn is_on(&self) -> bool {
        self.process.is_some()
    }

    /// The emulator's pid.
    pub fn pid(&self) -> u32 {
        self.process
            .as_ref()
            .unwrap_or_else(|| panic!("{} is off", self.name))
            .pid()
    }

    /// Saves its memory to a file and ends it; the disk keeps what belongs to it.
    pub fn save(mut self, state: &Path) {
        let mut qmp = self.qmp();
        let mut ask = |command: &str, arguments| {
            qmp.ask(command, arguments)
                .unwrap_or_else(|e| panic!("{}: {e}", self.name))
        };
        ask("stop", json!({}));
        ask("migrate-set-capabilities", mapped_ram());
        ask("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }));
        ask("migrate", json!({ "uri": format!("file:{}", state.display()) }));
        let saved = eventually(PATIENCE, || {
            let now = ask("query-migrate", json!({}));
            assert_ne!(now["status"], "failed", "{now}");
            (now["status"] == "completed").then_some(())
        });
        assert!(saved.is_some(), "the state was not saved");
        ask("quit", json!({}));
        let mut process = self.process.take().expect("it runs");
        let ended = eventually(PATIENCE, || (!process.running()).then_some(()));
        assert!(ended.is_some(), "the emulator does not end");
    }
}

fn mapped_ram() -> serde_json::Value {
    json!({ "capabilities": [{ "capability": "mapped-ram", "state": true }] })
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.crash();
    }
}

/// How often a machine is switched on before the emulator's own fault counts.
pub(super) const BOOTS: usize = 3;

/// QEMU 10.0's emulation of several processors can lose the race of one that maps a device while another looks it up.
const EMULATORS_FAULT: &str = "Assertion `section_index < d->map.sections_nb' failed";

/// The kernel's command line. `lsm=` would switch AppArmor off: people's hosts have it, so it stays.
pub const APPEND: &str =
    "root=/dev/vda rootfstype=ext4 rw console=ttyS0 quiet mitigations=off panic=1 net.ifnames=0 tsc=reliable";
