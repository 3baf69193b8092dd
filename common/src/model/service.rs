//! Services: what a user asks for. What else it must satisfy is in [`super::validate`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::id::{Name, Revision, ServiceId, TenantId};
use crate::model::{
    Bandwidth, Class, ContainerSpec, HealthCheck, ImageRef, Link, PublishedPort, ResourceSpec, RunState,
    SpecError, Spread, Together, Toleration, UnixMillis, VolumeMount, default_networks, strict,
};
use crate::units::Bytes;

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
    /// Volumes: data that outlasts its containers and goes where they go. What is not there yet is made.
    #[serde(
        default,
        deserialize_with = "strict::volumes",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub volumes: Vec<VolumeMount>,
    /// Labels of the service.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Node labels that a node must carry to be considered.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_labels: BTreeMap<String, String>,
    /// The pool of nodes that it runs on; none: `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<Name>,
    /// Taints of nodes that it puts up with: `key`, `key=value`, either with `:effect`; `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub tolerations: Vec<Toleration>,
    /// How its replicas are spread over nodes by their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spread: Vec<Spread>,
    /// Services that it is to be near.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub together: Vec<Together>,
    /// Most of its replicas on one node, 1 to 10,000; none: as many as fit, though they keep apart where there is room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_per_node: Option<u32>,
    /// Whether its containers reserve what they need, or use what reservations leave idle and go first.
    #[serde(
        default,
        deserialize_with = "strict::class",
        skip_serializing_if = "Class::is_standard"
    )]
    pub class: Class,
    /// Who goes first where there is not room for all, -1,000 to 1,000; default 0. A container that fits nowhere preempts some of lower
    /// priority. Above what its tenant may have, only administrators give it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub priority: i32,
    /// A policy of the brain's settings that is asked which nodes had better take its containers, and which may not; none: nobody is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Name>,
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
    /// Networks its containers are on, the first with the default route; default `["default"]`. None: only the loopback.
    #[serde(default = "default_networks")]
    pub networks: Vec<Name>,
    /// Other services that it needs, `db` or `db:5432`: its containers start once these take requests, and find them in their environment.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub links: Vec<Link>,
    /// Services whose containers may open connections to its own, over its networks; none: all of its tenant may. What is published is
    /// open to the world all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress_from: Option<Vec<Name>>,
    /// Most that each of its containers sends and receives.
    #[serde(
        default,
        deserialize_with = "strict::bandwidth",
        skip_serializing_if = "Bandwidth::is_free"
    )]
    pub bandwidth: Bandwidth,
    /// How it is told whether its containers can do their work; none: those that run can.
    #[serde(
        default,
        deserialize_with = "strict::health",
        skip_serializing_if = "Option::is_none"
    )]
    pub health: Option<HealthCheck>,
    /// Ports at which the world reaches it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// How updates roll.
    #[serde(default)]
    pub update: UpdatePolicy,
}

const fn one() -> u32 {
    1
}
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
const fn is_zero(number: &i32) -> bool {
    *number == 0
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
            volumes: Vec::new(),
            labels: BTreeMap::new(),
            node_labels: BTreeMap::new(),
            pool: None,
            tolerations: Vec::new(),
            spread: Vec::new(),
            together: Vec::new(),
            max_per_node: None,
            class: Class::Standard,
            priority: 0,
            policy: None,
            restart: RestartPolicy::default(),
            stop_grace_secs: 10,
            stop_signal: None,
            init: false,
            read_only: false,
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            privileged: false,
            networks: default_networks(),
            links: Vec::new(),
            ingress_from: None,
            bandwidth: Bandwidth::default(),
            health: None,
            ports: Vec::new(),
            update: UpdatePolicy::default(),
        }
    }

    /// The part that one container is made from.
    ///
    /// # Errors
    /// As [`Self::resolved`].
    pub fn container_spec(&self) -> Result<ContainerSpec, SpecError> {
        let (reservation, limits) = self.resolved()?;
        Ok(ContainerSpec {
            image: self.image.clone(),
            entrypoint: self.entrypoint.clone(),
            command: self.command.clone(),
            env: self.environment(),
            working_dir: self.working_dir.clone(),
            user: self.user.clone(),
            hostname: self.hostname.clone(),
            reservation,
            limits,
            tmpfs: self.tmpfs.clone(),
            volumes: self.mounts(),
            restart: self.restart,
            stop_grace_secs: self.stop_grace_secs,
            stop_signal: self.stop_signal.clone(),
            init: self.init,
            read_only: self.read_only,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            privileged: self.privileged,
            node_labels: self.node_labels.clone(),
            pool: self.pool.clone(),
            class: self.class,
            networks: self.networks.clone(),
            health: self.health.clone(),
            ingress_from: self.ingress_from.clone(),
            bandwidth: self.bandwidth,
        })
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
    fn a_users_typo_is_refused_wherever_it_is() {
        let table = [
            (r#""restarts":{}"#, "restarts"),
            (r#""restart":{"on":"always","dealy_ms":20}"#, "dealy_ms"),
            (r#""restart":{"on":"sometimes"}"#, "sometimes"),
            (r#""restart":{"on":"unknown"}"#, "unknown"),
            (r#""tmpfs":[{"path":"/run","sise":"1MiB"}]"#, "sise"),
            (r#""update":{"order":"unknown"}"#, "unknown"),
            (r#""health":{"tcp":80,"intervall_ms":20}"#, "intervall_ms"),
            (r#""bandwidth":{"on":"1MiB"}"#, "on"),
            (r#""health":{"http":{"port":80,"pfad":"/"}}"#, "pfad"),
            (r#""resources":{"limits":{"swap":"none"}}"#, "swap"),
        ];
        for (part, named) in table {
            let text = format!(r#"{{"name":"web","image":"nginx",{part}}}"#);
            let error = serde_json::from_str::<ServiceSpec>(&text).expect_err(&text);
            assert!(error.to_string().contains(named), "{part}: {error}");
        }
        let good = r#"{"name":"web","image":"nginx","tmpfs":[{"path":"/run"}],"health":{"http":{"port":80}},"restart":{"on":"on-failure","max_restarts":3}}"#;
        let parsed: ServiceSpec = serde_json::from_str(good).unwrap();
        assert_eq!(parsed.tmpfs[0].size, Bytes::mib(64));
        assert_eq!(
            (parsed.restart.on, parsed.restart.max_restarts),
            (Restart::OnFailure, Some(3))
        );
        assert_eq!(parsed.restart.delay_ms, 1_000);
        assert_eq!(
            parsed
                .health
                .as_ref()
                .and_then(|health| health.http.as_ref())
                .unwrap()
                .path,
            "/"
        );
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
