//! What a service's spec must satisfy beyond what its types say: ranges, lengths, forbidden characters.
//!
//! Checked by the brain before a spec is taken and by the command line before it is sent. Every refusal names the field
//! and says what would be right (R9).

use crate::model::{HealthCheck, MAX_PORTS, PublishedPort, Restart, ServiceSpec};
use crate::units::Bytes;

/// A field of a spec that can't be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct SpecError {
    /// JSON pointer of the field.
    pub field: &'static str,
    /// What is wrong and what would be right.
    pub why: String,
}

impl SpecError {
    /// An error at `field`.
    pub fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self {
            field,
            why: why.into(),
        }
    }
}

/// Capabilities a tenant may add without being named by an administrator.
pub const ADDABLE_CAPABILITIES: [&str; 8] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "MKNOD",
    "NET_RAW",
    "SYS_CHROOT",
];

/// Most networks of one service.
const MAX_NETWORKS: usize = 8;
/// Most bytes of one word or value.
pub(super) const MAX_TEXT: usize = 32 * 1024;
/// Most words of a command, and most variables.
pub(super) const MAX_LIST: usize = 1024;
/// Most bytes of environment, labels and command together.
const MAX_TOTAL: usize = 256 * 1024;

fn err(field: &'static str, why: impl Into<String>) -> SpecError {
    SpecError::new(field, why)
}

impl ServiceSpec {
    /// Checks what the types alone don't.
    ///
    /// # Errors
    /// The first field at fault, with what would be right.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.resources.resolve()?;
        if self.replicas > 10_000 {
            return Err(err(
                "/replicas",
                format!("{} is out of range: 0 to 10000", self.replicas),
            ));
        }
        self.check_words()?;
        self.check_texts()?;
        self.check_process()?;
        self.check_tmpfs()?;
        self.check_volumes()?;
        self.check_stop()?;
        self.check_capabilities()?;
        self.check_networks()?;
        self.check_ports()?;
        self.check_relations()?;
        self.check_placement()?;
        self.health.as_ref().map_or(Ok(()), HealthCheck::validate)?;
        self.check_policies()
    }

    fn check_networks(&self) -> Result<(), SpecError> {
        if self.networks.len() > MAX_NETWORKS {
            let count = self.networks.len();
            return Err(err(
                "/networks",
                format!("{count} networks; at most {MAX_NETWORKS}"),
            ));
        }
        let mut names: Vec<_> = self.networks.iter().collect();
        names.sort_unstable();
        match names.windows(2).find(|two| two[0] == two[1]) {
            Some(two) => Err(err("/networks", format!("network {} is named twice", two[0]))),
            None => Ok(()),
        }
    }

    fn check_ports(&self) -> Result<(), SpecError> {
        const FIELD: &str = "/ports";
        if let Some(why) = self.ports.iter().find_map(PublishedPort::fault) {
            return Err(err(FIELD, why));
        }
        let count: u32 = self.ports.iter().map(|port| u32::from(port.count)).sum();
        if self.ports.len() > MAX_LIST || count > MAX_PORTS {
            return Err(err(FIELD, format!("{count} ports; at most {MAX_PORTS}")));
        }
        for (at, port) in self.ports.iter().enumerate() {
            if let Some(twice) = self.ports[..at].iter().find_map(|other| port.clash(other)) {
                return Err(err(
                    FIELD,
                    format!("port {twice}/{} is published twice", port.protocol),
                ));
            }
        }
        if count > 0 && self.networks.is_empty() {
            return Err(err(
                FIELD,
                "a service that is on no network can't be reached; give it one",
            ));
        }
        Ok(())
    }

    /// Entrypoint and command.
    fn check_words(&self) -> Result<(), SpecError> {
        for (field, list) in [("/entrypoint", &self.entrypoint), ("/command", &self.command)] {
            let Some(list) = list else { continue };
            if list.len() > MAX_LIST {
                return Err(err(field, format!("{} words; at most {MAX_LIST}", list.len())));
            }
            if list
                .iter()
                .any(|word| word.contains('\0') || word.len() > MAX_TEXT)
            {
                return Err(err(
                    field,
                    format!("a word holds a NUL byte or more than {MAX_TEXT} bytes"),
                ));
            }
        }
        if self
            .entrypoint
            .as_ref()
            .is_some_and(|e| e.first().is_none_or(String::is_empty))
        {
            return Err(err("/entrypoint", "it is empty; leave it out to use the image's"));
        }
        Ok(())
    }

    /// Environment and labels, and all texts together.
    fn check_texts(&self) -> Result<(), SpecError> {
        let mut total = 0;
        for (key, value) in &self.env {
            total += key.len() + value.len();
            if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') || key.len() > 256 {
                return Err(err(
                    "/env",
                    "a key must have 1 to 256 characters without '=' or NUL, a value no NUL",
                ));
            }
            if value.len() > MAX_TEXT {
                return Err(err("/env", format!("a value holds more than {MAX_TEXT} bytes")));
            }
        }
        for (field, labels) in [("/labels", &self.labels), ("/node_labels", &self.node_labels)] {
            if labels.len() > 64 {
                return Err(err(field, "more than 64 labels"));
            }
            for (key, value) in labels {
                total += key.len() + value.len();
                if key.is_empty()
                    || key.len() > 128
                    || value.len() > 1024
                    || key.chars().any(char::is_control)
                {
                    return Err(err(
                        field,
                        "a key must have 1 to 128 printable characters, a value at most 1024",
                    ));
                }
            }
        }
        total += [&self.entrypoint, &self.command]
            .into_iter()
            .flatten()
            .flatten()
            .map(String::len)
            .sum::<usize>();
        if self.env.len() > MAX_LIST || total > MAX_TOTAL {
            return Err(err(
                "/env",
                format!("environment, labels and command together exceed {MAX_TOTAL} bytes"),
            ));
        }
        Ok(())
    }

    /// Where and as whom it runs.
    fn check_process(&self) -> Result<(), SpecError> {
        if let Some(dir) = &self.working_dir {
            check_path("/working_dir", dir)?;
        }
        if let Some(user) = &self.user {
            let ok = (1..=128).contains(&user.len())
                && user
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':' | b'$'));
            if !ok {
                return Err(err("/user", "write a name or uid, or user:group"));
            }
        }
        Ok(())
    }

    /// Scratch file systems.
    fn check_tmpfs(&self) -> Result<(), SpecError> {
        if self.tmpfs.len() > 32 {
            return Err(err("/tmpfs", "more than 32"));
        }
        for tmpfs in &self.tmpfs {
            check_path("/tmpfs", &tmpfs.path)?;
            if tmpfs.path == "/" || tmpfs.size.0 < 4096 || tmpfs.size > Bytes(1 << 40) {
                return Err(err("/tmpfs", "a path below / and a size of 4KiB to 1TiB"));
            }
        }
        Ok(())
    }

    /// How it is stopped.
    fn check_stop(&self) -> Result<(), SpecError> {
        if self.stop_grace_secs > 3600 {
            return Err(err("/stop_grace_secs", "0 to 3600"));
        }
        if let Some(signal) = &self.stop_signal
            && (signal.len() > 12
                || !signal
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-')))
        {
            return Err(err(
                "/stop_signal",
                "a signal name such as SIGTERM, or its number",
            ));
        }
        Ok(())
    }

    /// Capabilities.
    fn check_capabilities(&self) -> Result<(), SpecError> {
        for cap in &self.cap_add {
            let cap = cap.strip_prefix("CAP_").unwrap_or(cap);
            if !ADDABLE_CAPABILITIES.contains(&cap) {
                return Err(err(
                    "/cap_add",
                    format!(
                        "{:?} can't be added; only {}",
                        crate::id::clip(cap, 30),
                        ADDABLE_CAPABILITIES.join(", ")
                    ),
                ));
            }
        }
        if self.cap_drop.len() > 64 || self.cap_drop.iter().any(|cap| cap.len() > 40) {
            return Err(err("/cap_drop", "capability names such as CHOWN, or ALL"));
        }
        Ok(())
    }

    /// Restarts and updates.
    fn check_policies(&self) -> Result<(), SpecError> {
        let r = &self.restart;
        if r.on == Restart::Unknown {
            return Err(err("/restart", "on is one of always, on-failure, never"));
        }
        if r.delay_ms < 10 || r.max_delay_ms < r.delay_ms || r.max_delay_ms > 86_400_000 {
            return Err(err(
                "/restart",
                "delay_ms of at least 10, not above max_delay_ms, which is at most a day",
            ));
        }
        if self.update.parallel == 0 || self.update.parallel > 1_000 || self.update.settle_ms > 3_600_000 {
            return Err(err("/update", "parallel 1 to 1000, settle_ms at most an hour"));
        }
        Ok(())
    }
}

pub(super) fn check_path(field: &'static str, path: &str) -> Result<(), SpecError> {
    let ok = path.starts_with('/')
        && path.len() <= 4096
        && !path.contains('\0')
        && !path.split('/').any(|part| part == "..");
    if ok {
        Ok(())
    } else {
        Err(SpecError::new(field, "an absolute path without '..' is needed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tmpfs;

    fn spec() -> ServiceSpec {
        ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap())
    }

    #[test]
    fn bad_fields_are_named() {
        type Breakage = (&'static str, fn(&mut ServiceSpec));
        let table: [Breakage; 12] = [
            ("/ports", |s| {
                s.ports = vec!["80".parse().unwrap(), "79-81:1-3".parse().unwrap()]
            }),
            ("/ports", |s| {
                s.ports = vec!["80".parse().unwrap()];
                s.networks.clear();
            }),
            ("/ports", |s| {
                s.ports = vec!["1-600".parse().unwrap(), "1000-1600".parse().unwrap()];
            }),
            ("/replicas", |s| s.replicas = 10_001),
            ("/entrypoint", |s| s.entrypoint = Some(vec![])),
            ("/command", |s| s.command = Some(vec!["a\0b".into()])),
            ("/env", |s| drop(s.env.insert("A=B".into(), String::new()))),
            ("/working_dir", |s| s.working_dir = Some("../x".into())),
            ("/tmpfs", |s| {
                s.tmpfs = vec![Tmpfs {
                    path: "/".into(),
                    size: Bytes::mib(1),
                }]
            }),
            ("/cap_add", |s| s.cap_add = vec!["SYS_ADMIN".into()]),
            ("/stop_grace_secs", |s| s.stop_grace_secs = 4000),
            ("/user", |s| s.user = Some("a b".into())),
        ];
        for (field, break_it) in table {
            let mut broken = spec();
            break_it(&mut broken);
            assert_eq!(broken.validate().unwrap_err().field, field);
        }
    }
}
