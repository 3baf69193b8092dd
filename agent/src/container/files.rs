//! The folders and generated files of containers on this host.
//!
//! `<data>/containers/<id>/` holds hosts, hostname and resolv.conf (they survive a reboot, as the container does),
//! `<data>/logs/<id>/` its output, `<state>/<id>/` mounts and pipes of the moment.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use berth_common::id::ContainerId;

use crate::network::Resolver;
use crate::volume::keeper::staging;

/// Largest host resolv.conf that is copied.
const MAX_RESOLV: usize = 64 << 10;

/// Where everything lies.
#[derive(Debug, Clone)]
pub struct Places {
    state: PathBuf,
    data: PathBuf,
}

impl Places {
    /// Below these two folders.
    pub fn new(state: &Path, data: &Path) -> Self {
        Self {
            state: state.to_owned(),
            data: data.to_owned(),
        }
    }

    /// Generated files of a container.
    pub fn files(&self, id: ContainerId) -> PathBuf {
        self.data.join("containers").join(id.to_string())
    }

    /// Output of a container.
    pub fn logs(&self, id: ContainerId) -> PathBuf {
        self.data.join("logs").join(id.to_string())
    }

    /// Mounts and pipes of a container.
    pub fn state(&self, id: ContainerId) -> PathBuf {
        self.state.join(id.to_string())
    }

    /// Where its volumes are mounted for it.
    pub fn volumes(&self, id: ContainerId) -> PathBuf {
        staging(&self.state, id)
    }

    /// Writes a container's generated files, owned by its root (`base`), and makes its folders.
    ///
    /// # Errors
    /// When the disk is full or a folder can't be written.
    pub fn write(
        &self,
        id: ContainerId,
        base: u32,
        hostname: &str,
        nameservers: &[IpAddr],
        resolver: Option<&Resolver>,
    ) -> io::Result<()> {
        let dir = self.files(id);
        fs::create_dir_all(&dir)?;
        fs::create_dir_all(self.logs(id))?;
        fs::create_dir_all(self.state(id))?;
        let host_resolv = if nameservers.is_empty() || resolver.is_some() {
            fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
        } else {
            String::new()
        };
        let contents = [
            ("hosts", hosts(hostname)),
            ("hostname", format!("{hostname}\n")),
            (
                "resolv.conf",
                match resolver {
                    Some(resolver) => by_network(resolver, &host_resolv),
                    None => resolv_conf(nameservers, &host_resolv),
                },
            ),
        ];
        for (name, content) in contents {
            let path = dir.join(name);
            fs::write(&path, content)?;
            std::os::unix::fs::chown(&path, Some(base), Some(base))?;
        }
        Ok(())
    }

    /// Writes the generated files through to the disk: after a power cut a container would go on with empty ones.
    ///
    /// # Errors
    /// When one is not there, or the disk fails.
    pub fn sync(&self, id: ContainerId) -> io::Result<()> {
        let dir = self.files(id);
        for entry in fs::read_dir(&dir)? {
            fs::File::open(entry?.path())?.sync_all()?;
        }
        fs::File::open(&dir)?.sync_all()
    }

    /// Removes all of it, mounts included; nothing there is fine.
    ///
    /// # Errors
    /// The first folder that could not be removed.
    pub fn remove(&self, id: ContainerId) -> io::Result<()> {
        for name in ["l", "p", "s", "r"] {
            super::rootfs::detach(&self.state(id).join(name));
        }
        for dir in [self.state(id), self.files(id), self.logs(id)] {
            match fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Containers that have any folder here.
    pub fn known(&self) -> Vec<ContainerId> {
        let dirs = [
            self.state.clone(),
            self.data.join("containers"),
            self.data.join("logs"),
        ];
        dirs.iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect()
    }
}

fn hosts(hostname: &str) -> String {
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n127.0.1.1\t{hostname}\n"
    )
}

/// The network's resolver, which asks the host's; short names are looked up on the container's networks first, then as on the host.
fn by_network(resolver: &Resolver, host: &str) -> String {
    let mut search = resolver.search.clone();
    let mut options = String::new();
    for line in clip(host).lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("search" | "domain") => search.extend(words.map(str::to_owned)),
            Some("options") => options = format!("{line}\n"),
            _ => {}
        }
    }
    // The C library reads 256 characters of six names at most where it is old.
    search.truncate(6);
    format!(
        "nameserver {}\nsearch {}\n{options}",
        resolver.address,
        search.join(" ")
    )
}

fn clip(text: &str) -> &str {
    text.get(..text.len().min(MAX_RESOLV)).unwrap_or_default()
}

/// Given servers, else the host's file without servers on its own loopback, which a container can't reach.
fn resolv_conf(nameservers: &[IpAddr], host: &str) -> String {
    if !nameservers.is_empty() {
        return nameservers
            .iter()
            .map(|server| format!("nameserver {server}\n"))
            .collect();
    }
    let local = |line: &str| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words
                .next()
                .is_some_and(|ip| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback()))
    };
    clip(host)
        .lines()
        .filter(|line| !local(line))
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_table() {
        let host = "search a.b\nnameserver 127.0.0.53\nnameserver 9.9.9.9\noptions edns0\n";
        assert_eq!(
            resolv_conf(&[], host),
            "search a.b\nnameserver 9.9.9.9\noptions edns0\n"
        );
        assert_eq!(
            resolv_conf(&["10.0.0.1".parse().unwrap()], host),
            "nameserver 10.0.0.1\n"
        );
        assert!(hosts("web-1").contains("\tweb-1\n"));
        let resolver = Resolver {
            address: "10.64.0.1".parse().unwrap(),
            search: vec!["default.berth.internal".into()],
        };
        assert_eq!(
            by_network(&resolver, host),
            "nameserver 10.64.0.1\nsearch default.berth.internal a.b\noptions edns0\n"
        );
    }

    #[test]
    fn what_was_written_is_known_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::new(&dir.path().join("run"), &dir.path().join("lib"));
        let id = ContainerId::random();
        places.write(id, 0x7001_0000, "web-1", &[], None).unwrap();
        assert!(places.known().contains(&id));
        places.remove(id).unwrap();
        places.remove(id).unwrap();
        assert!(places.known().is_empty());
    }
}
