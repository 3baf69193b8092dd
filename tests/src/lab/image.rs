//! Disks with a stock Debian, made of Debian's packages, and the emulator, which comes from there too.
//!
//! The emulator is unpacked beside its own C library, so it runs on any machine and changes nothing on it: Debian 13's
//! kernel crashes under the QEMU of Debian 12.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::store;
use crate::process::run;

/// Which Debian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Debian {
    /// 12: kernel 6.1, systemd 252, containerd 1.6.
    Bookworm,
    /// 13: kernel 6.12, systemd 257, containerd 1.7.
    Trixie,
}

/// What the program at the other end of the control channel is made of. Its bytes differ from build to build.
const GUEST_SOURCE: &str = concat!(
    include_str!("../bin/berth-lab-guest.rs"),
    include_str!("frame.rs")
);

/// What is on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Content {
    /// What berth needs is installed.
    Prepared,
    /// Debian alone. What berth needs lies in a package archive on the disk, which apt knows: the machines have no other.
    Bare,
}

/// A disk to boot from.
#[derive(Debug, Clone)]
pub struct Image {
    /// Names what it was made of.
    pub key: String,
    /// The file system, raw.
    pub disk: PathBuf,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its initial RAM disk.
    pub initrd: PathBuf,
}

/// A running system without anything of berth's: an init system, the network's tools, and what installers reach for.
const BASE: &str = "systemd-sysv,udev,dbus,ca-certificates,curl,iproute2,iputils-ping,procps,kmod,util-linux,apt,\
    linux-image-cloud-amd64";
/// What berth needs of a host.
const NEEDS: &str = "containerd,runc,nftables,btrfs-progs,busybox-static";

/// Runs inside the new system. Consoles, timers and the like would only cost time: no person logs in here.
const SETTLE: &str = r#"
set -e
for unit in serial-getty@ttyS0 getty@tty1 apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer \
  e2scrub_all.timer e2scrub_reap.service man-db.timer systemd-networkd-wait-online.service ldconfig.service systemd-hwdb-update.service; do
  case $unit in *.*) ;; *) unit=$unit.service ;; esac
  ln -sf /dev/null /etc/systemd/system/$unit
done
systemctl enable -q systemd-networkd lab-guest.service
mkdir -p /var/log/journal /etc/systemd/journald.conf.d
printf '[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n' >/etc/systemd/journald.conf.d/lab.conf
printf '[Match]\nName=eth0\n[Network]\nLinkLocalAddressing=ipv6\nIPv6AcceptRA=no\n' >/etc/systemd/network/10-lan.network
# Machines are started with the kernel and initrd beside their disk: making another takes longer than all else of an installation.
[ ! -f /etc/initramfs-tools/update-initramfs.conf ] || echo update_initramfs=no >/etc/initramfs-tools/update-initramfs.conf
echo host >/etc/hostname
{ echo '127.0.0.1 localhost'; for n in 1 2 3 4 5 6 7 8 9; do echo "10.77.0.1$n host$n"; done; } >/etc/hosts
echo 'kernel.sysrq = 1' >/etc/sysctl.d/lab.conf
rm -f /etc/resolv.conf && echo 'nameserver 127.0.0.1' >/etc/resolv.conf
"#;

const GUEST_UNIT: &str = "[Unit]
Description=The lab's control channel
DefaultDependencies=no
After=systemd-remount-fs.service systemd-udevd.service systemd-tmpfiles-setup-dev.service
Conflicts=shutdown.target
Before=shutdown.target

[Service]
ExecStart=/opt/lab/berth-lab-guest
Restart=always
RestartSec=200ms
OOMScoreAdjust=-1000
TasksMax=infinity
Delegate=yes

[Install]
WantedBy=sysinit.target
";

impl Debian {
    fn suite(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
        }
    }
}

/// A program of this workspace without what changes although its code does not.
pub(super) fn stripped(name: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::with_prefix(format!("{name}-")).expect("file");
    let mut strip = Command::new("strip");
    strip.args(["-R", ".note.gnu.build-id", "-o"]).arg(file.path());
    run(strip.arg(crate::program(name)));
    file
}

/// Debian's archive, as this machine reaches it.
fn archive() -> String {
    let targets = Command::new("apt-get")
        .args([
            "indextargets",
            "--format",
            "$(ORIGIN)|$(REPO_URI)",
            "Created-By: Packages",
        ])
        .output();
    let text = targets.map(|out| String::from_utf8_lossy(&out.stdout).into_owned());
    let found = text.unwrap_or_default();
    let found = found.lines().filter_map(|line| line.strip_prefix("Debian|"));
    let found = found.filter(|uri| !uri.contains("security")).min();
    found.unwrap_or("http://deb.debian.org/debian").to_owned()
}

fn mmdebstrap(suite: &str, root: &Path, include: &str, options: &[&str]) {
    let mut command = Command::new("mmdebstrap");
    command
        .args([
            "--quiet",
            "--mode=root",
            "--aptopt=Apt::Install-Recommends \"false\"",
            "--aptopt=Acquire::Retries \"5\"",
        ])
        .arg(format!("--include={include}"))
        .args(options)
        .arg(suite)
        .arg(root)
        .arg(archive());
    // Systems are made with the umask that people's installers have; in a mount namespace of their own: what is mounted there, as the
    // machine's /proc and /sys are, goes also when this is killed, and nobody who deletes the folder deletes through it.
    let mut shell = Command::new("unshare");
    shell
        .args(["--mount", "--", "sh", "-c", "umask 022; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    run(&mut shell);
}

/// The emulator's programs.
#[derive(Debug, Clone)]
pub struct Emulator(PathBuf);

impl Emulator {
    /// Finds or fetches it.
    pub fn find() -> Self {
        let packages = "qemu-system-x86,qemu-utils";
        let key = store::key([packages.as_bytes(), b"trixie"]);
        Self(store::kept("qemu", &key, |new| {
            mmdebstrap("trixie", &new.join("root"), packages, &["--variant=extract"]);
        }))
    }

    /// One of its programs, not run yet: ends with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let root = self.0.join("root");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(root.join("usr/lib64/ld-linux-x86-64.so.2"))
            .arg("--library-path")
            .arg(root.join("usr/lib/x86_64-linux-gnu"))
            .arg(root.join("usr/bin").join(program));
        if program.starts_with("qemu-system") {
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

impl Image {
    /// Finds it, or makes it of Debian's packages.
    pub fn find(debian: Debian, content: Content) -> Self {
        let suite = debian.suite();
        let guest = stripped("berth-lab-guest");
        let guest = guest.path();
        let kind = format!("debian-{suite}-{content:?}").to_lowercase();
        let parts = [
            kind.as_str(),
            BASE,
            NEEDS,
            PACKAGES,
            SETTLE,
            GUEST_UNIT,
            GUEST_SOURCE,
        ];
        let key = store::key(parts.map(str::as_bytes));
        let folder = store::kept(&kind, &key, |new| make(new, suite, content, guest));
        Self {
            key,
            disk: folder.join("disk.img"),
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd"),
        }
    }
}

fn make(new: &Path, suite: &str, content: Content, guest: &Path) {
    let root = new.join("root");
    let unit = new.join("lab-guest.service");
    std::fs::write(&unit, GUEST_UNIT).expect("unit");
    let settle = new.join("settle");
    std::fs::write(&settle, SETTLE).expect("script");
    let hooks = [
        "--customize-hook=mkdir -p \"$1/opt/lab\"".to_owned(),
        format!(
            "--customize-hook=upload {} /opt/lab/berth-lab-guest",
            guest.display()
        ),
        "--customize-hook=chmod 0755 \"$1/opt/lab/berth-lab-guest\"".to_owned(),
        format!("--customize-hook=copy-in {} /etc/systemd/system", unit.display()),
        format!("--customize-hook=copy-in {} /opt/lab", settle.display()),
        "--customize-hook=chroot \"$1\" sh /opt/lab/settle && rm \"$1/opt/lab/settle\"".to_owned(),
    ];
    let mut options: Vec<&str> = vec!["--variant=essential"];
    let include = match content {
        Content::Prepared => format!("{BASE},{NEEDS}"),
        Content::Bare => BASE.to_owned(),
    };
    // Before the system forgets the name server of the machine that makes it.
    if content == Content::Bare {
        options.push(PACKAGES);
    }
    options.extend(hooks.iter().map(String::as_str));
    mmdebstrap(suite, &root, &include, &options);
    for (pattern, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let boot = std::fs::read_dir(root.join("boot")).expect("boot").flatten();
        let found = boot.map(|entry| entry.path()).find(|path| {
            path.file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(pattern))
        });
        std::fs::copy(found.expect("a kernel was installed"), new.join(name)).expect("copy");
    }
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(new.join("disk.img"))
        .arg("6G"));
    std::fs::remove_dir_all(&root).expect("root");
}

/// A package archive on the disk with what berth needs and all that this needs, beside what is installed.
const PACKAGES: &str = r#"--customize-hook=set -e
mkdir -p "$1/opt/archive"
chroot "$1" apt-get -qq -y --no-install-recommends --download-only -o Dir::Cache::archives=/opt/archive install containerd runc nftables btrfs-progs
rm -rf "$1/opt/archive/partial" "$1/opt/archive/lock"
for deb in "$1"/opt/archive/*.deb; do
  dpkg-deb -f "$deb"
  echo "Filename: ./${deb##*/}"
  echo "Size: $(stat -c %s "$deb")"
  echo "SHA256: $(sha256sum <"$deb" | cut -d' ' -f1)"
  echo
done >"$1/opt/archive/Packages"
rm -f "$1"/etc/apt/sources.list.d/* "$1/etc/apt/sources.list"
echo 'deb [trusted=yes] file:/opt/archive ./' >"$1/etc/apt/sources.list"
rm -rf "$1"/var/lib/apt/lists/*"#;
