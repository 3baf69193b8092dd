//! Services: what a user asks for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision, ServiceId, TenantId};
use crate::model::{ContainerSpec, ImageRef, ResourceSpec, RunState, UnixMillis, strict};
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

/// What a user writes. Never modified by berth; what berth derives is kept apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Unique in the tenant.
    pub name: Name,
    /// The image.
    pub image: ImageRef,
    /// How many equal containers, 0 to 10,000; default 1.
    #[serde(default = "one")]
    pub replicas: u32,
    /// Overrides the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Overrides the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Added to the image's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Overrides the image's working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Overrides the image's user: name, uid, or user:group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Host name inside; default `<service>-<replica>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Name>,
    /// Reservations and limits.
    #[serde(default)]
    pub resources: ResourceSpec,
    /// Scratch file systems in memory; they count against the memory limit.
    #[serde(
        default,
        deserialize_with = "strict::tmpfs",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub tmpfs: Vec<Tmpfs>,
    /// Labels of the service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Node labels that a node must carry to be considered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// When to start a container again.
    #[serde(default, deserialize_with = "strict::restart")]
    pub restart: RestartPolicy,
    /// Seconds between the stop signal and SIGKILL, 0 to 3600; default 10.
    #[serde(default = "ten")]
    pub stop_grace_secs: u32,
    /// Overrides the image's stop signal, such as `SIGINT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Run a minimal init as PID 1 that reaps orphans and forwards signals.
    #[serde(default)]
    pub init: bool,
    /// Mount the image read-only.
    #[serde(default)]
    pub read_only: bool,
    /// Capabilities to add to the default short list, such as `NET_RAW`. Only from the list a tenant may add.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities to drop, or `ALL`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// No confinement. Only for tenants an administrator named.
    #[serde(default)]
    pub privileged: bool,
    /// How updates roll.
    #[serde(default)]
    pub update: UpdatePolicy,
}

const fn one() -> u32 {
    1
}
const fn ten() -> u32 {
    10
}

/// A scratch file system in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Tmpfs {
    /// Absolute path inside.
    pub path: String,
    /// Size; default 64MiB.
    #[serde(default = "tmpfs_size")]
    pub size: Bytes,
}

pub(super) const fn tmpfs_size() -> Bytes {
    Bytes::mib(64)
}

/// When a container is started again after it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RestartPolicy {
    /// On which ends.
    #[serde(default)]
    pub on: Restart,
    /// First delay, milliseconds; doubles up to `max_delay_ms`. Default 1,000.
    #[serde(default = "restart_delay")]
    pub delay_ms: u32,
    /// Longest delay, milliseconds; default 60,000.
    #[serde(default = "restart_max")]
    pub max_delay_ms: u32,
    /// A run of at least this long resets the delay, milliseconds; default 10,000.
    #[serde(default = "restart_reset")]
    pub reset_after_ms: u32,
    /// Give up after so many restarts in a row; none: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_restarts: Option<u32>,
}

pub(super) const fn restart_delay() -> u32 {
    1_000
}
pub(super) const fn restart_max() -> u32 {
    60_000
}
pub(super) const fn restart_reset() -> u32 {
    10_000
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self {
            on: Restart::Always,
            delay_ms: restart_delay(),
            max_delay_ms: restart_max(),
            reset_after_ms: restart_reset(),
            max_restarts: None,
        }
    }
}

/// See [`RestartPolicy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// After every end.
    #[default]
    Always,
    /// After a non-zero exit code, a signal or an OOM kill.
    OnFailure,
    /// Never.
    Never,
    /// Of a newer brain; users can't write it. Taken for `never`: running a container once too often can do harm that
    /// running it later can't.
    #[serde(other)]
    Unknown,
}

/// How a changed spec replaces running containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct UpdatePolicy {
    /// Whether the new one starts before the old one stops.
    #[serde(default)]
    pub order: UpdateOrder,
    /// How many are replaced at a time, 1 to 1,000; default 1.
    #[serde(default = "one")]
    pub parallel: u32,
    /// How long a new container must run before it counts, milliseconds; default 2,000.
    #[serde(default = "settle")]
    pub settle_ms: u32,
}

const fn settle() -> u32 {
    2_000
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            order: UpdateOrder::default(),
            parallel: 1,
            settle_ms: settle(),
        }
    }
}

/// See [`UpdatePolicy`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// New before old; where no node has room for both, old before new.
    #[default]
    StartFirst,
    /// Old before new.
    StopFirst,
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

const MAX_TEXT: usize = 32 * 1024;
const MAX_LIST: usize = 1024;
const MAX_TOTAL: usize = 256 * 1024;

impl ServiceSpec {
    /// A spec with only a name and an image.
    pub fn new(name: Name, image: ImageRef) -> Self {
        Self {
            name,
            image,
            replicas: 1,
            entrypoint: None,
            command: None,
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            hostname: None,
            resources: ResourceSpec::default(),
            tmpfs: Vec::new(),
            labels: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            restart: RestartPolicy::default(),
            stop_grace_secs: 10,
            stop_signal: None,
            init: false,
            read_only: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            privileged: false,
            update: UpdatePolicy::default(),
        }
    }

    /// Checks what the types alone don't.
    ///
    /// # Errors
    /// The first field at fault, with what would be right.
    pub fn validate(&self) -> Result<(), SpecError> {
        fn err(field: &'static str, why: impl Into<String>) -> SpecError {
            SpecError::new(field, why)
        }
        self.resources.resolve()?;
        if self.replicas > 10_000 {
            return Err(err(
                "/replicas",
                format!("{} is out of range: 0 to 10000", self.replicas),
            ));
        }
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
        if self.tmpfs.len() > 32 {
            return Err(err("/tmpfs", "more than 32"));
        }
        for tmpfs in &self.tmpfs {
            check_path("/tmpfs", &tmpfs.path)?;
            if tmpfs.path == "/" || tmpfs.size.0 < 4096 || tmpfs.size > Bytes(1 << 40) {
                return Err(err("/tmpfs", "a path below / and a size of 4KiB to 1TiB"));
            }
        }
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

    /// The part that one container is made from.
    ///
    /// # Errors
    /// As [`ResourceSpec::resolve`].
    pub fn container_spec(&self) -> Result<ContainerSpec, SpecError> {
        let (reservation, limits) = self.resources.resolve()?;
        Ok(ContainerSpec {
            image: self.image.clone(),
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            env: self.env.clone(),
            working_dir: self.working_dir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            reservation,
            limits,
            tmpfs: self.tmpfs.clone(),
            restart: self.restart,
            stop_grace_secs: self.stop_grace_secs,
            stop_signal: self.stop_signal.clone(),
            init: self.init,
            read_only: self.read_only,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            privileged: self.privileged,
            node_labels: self.node_labels.clone(),
        })
    }
}

fn check_path(field: &'static str, path: &str) -> Result<(), SpecError> {
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

/// A service as the brain keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ServiceRecord {
    /// Its id.
    pub id: ServiceId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What the user wrote.
    pub spec: ServiceSpec,
    /// Grows with every change of `spec`; updates name it to be refused when someone else was faster.
    pub generation: u64,
    /// Whether its containers should run.
    pub run: RunState,
    /// Grows with every `restart`.
    #[serde(default)]
    pub restarts_asked: u32,
    /// When it was made.
    pub created_at: UnixMillis,
    /// Store revision of its last change.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServiceSpec {
        ServiceSpec::new("web".parse().unwrap(), "nginx".parse().unwrap())
    }

    #[test]
    fn minimal_json_is_complete() {
        let parsed: ServiceSpec = serde_json::from_str(r#"{"name":"web","image":"nginx"}"#).unwrap();
        assert_eq!(parsed, spec());
        parsed.validate().unwrap();
    }

    #[test]
    fn bad_fields_are_named() {
        type Breakage = (&'static str, fn(&mut ServiceSpec));
        let table: [Breakage; 9] = [
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

    #[test]
    fn a_users_typo_is_refused_wherever_it_is() {
        let table = [
            (r#""restarts":{}"#, "restarts"),
            (r#""restart":{"on":"always","dealy_ms":20}"#, "dealy_ms"),
            (r#""restart":{"on":"sometimes"}"#, "sometimes"),
            (r#""restart":{"on":"unknown"}"#, "unknown"),
            (r#""tmpfs":[{"path":"/run","sise":"1MiB"}]"#, "sise"),
            (r#""update":{"order":"unknown"}"#, "unknown"),
            (r#""resources":{"limits":{"swap":"none"}}"#, "swap"),
        ];
        for (part, named) in table {
            let text = format!(r#"{{"name":"web","image":"nginx",{part}}}"#);
            let error = serde_json::from_str::<ServiceSpec>(&text).expect_err(&text);
            assert!(error.to_string().contains(named), "{part}: {error}");
        }
        let good = r#"{"name":"web","image":"nginx","tmpfs":[{"path":"/run"}],"restart":{"on":"on-failure","max_restarts":3}}"#;
        let parsed: ServiceSpec = serde_json::from_str(good).unwrap();
        assert_eq!(parsed.tmpfs[0].size, Bytes::mib(64));
        assert_eq!(
            (parsed.restart.on, parsed.restart.max_restarts),
            (Restart::OnFailure, Some(3))
        );
        assert_eq!(parsed.restart.delay_ms, 1_000);
        assert_eq!(
            serde_json::from_str::<ServiceSpec>(&serde_json::to_string(&parsed).unwrap()).unwrap(),
            parsed
        );
        let mut built = spec();
        built.restart.on = Restart::Unknown;
        assert_eq!(built.validate().unwrap_err().field, "/restart");
    }

    #[test]
    fn deeply_nested_json_is_an_error_and_not_a_crash() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(serde_json::from_str::<ServiceSpec>(&deep).is_err());
    }
}
