//! What containerd remembers of a container for berth: labels to find it by, and the spec as an extension. Pure.
//!
//! Labels are small and indexed (key and value together at most 4096 bytes); the spec can be larger and is JSON in an
//! extension. What can't be read back is reported as incomplete, so that the reconciler deletes and makes it again.

use std::collections::HashMap;

use berth_common::id::{ContainerId, Name};
use berth_common::model::{ContainerSpec, Digest, UnixMillis};
use containerd_client::services::v1::Container;
use prost_types::Any;
use serde::{Deserialize, Serialize};

use super::idrange;
use super::runtime::ContainerMeta;

/// Extension that holds [`Kept`].
pub const EXTENSION: &str = "berth.spec";
/// Type of the extension.
const KEPT_TYPE: &str = "berth/Kept";
/// Type of the OCI spec.
pub const OCI_SPEC: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Set on what `create` finished, cleared by `delete` before it begins.
pub const COMPLETE: &str = "berth/complete";
/// `<pid>@<unix ms>` of the last start.
pub const STARTED: &str = "berth/started";
const ID: &str = "berth/id";
const TENANT: &str = "berth/tenant";
const TENANT_NAME: &str = "berth/tenant-name";
const SERVICE: &str = "berth/service";
const REPLICA: &str = "berth/replica";
const IMAGE: &str = "berth/image";
const IDS: &str = "berth/ids";

/// What is kept beside the labels.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kept {
    /// The spec it was last made or updated to.
    pub spec: ContainerSpec,
    /// The image's stop signal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Ids its program starts with, as seen inside.
    #[serde(default)]
    pub user: (u32, u32),
}

/// A container as berth wrote it.
#[derive(Debug, Clone)]
pub struct Record {
    /// Who it is.
    pub meta: ContainerMeta,
    /// What is kept beside the labels.
    pub kept: Kept,
    /// Manifest digest of its image.
    pub image: Digest,
    /// First host id of its range.
    pub base: u32,
    /// Whether it is whole.
    pub complete: bool,
    /// Pid and time of its last start.
    pub started: Option<(u32, UnixMillis)>,
}

/// The labels of a finished container.
pub fn labels(meta: &ContainerMeta, image: &Digest, base: u32) -> HashMap<String, String> {
    [
        (ID, meta.id.to_string()),
        (TENANT, meta.tenant.to_string()),
        (TENANT_NAME, meta.tenant_name.to_string()),
        (SERVICE, meta.service_name.to_string()),
        (REPLICA, meta.replica.to_string()),
        (IMAGE, image.to_string()),
        (IDS, base.to_string()),
        (COMPLETE, "1".to_owned()),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value))
    .collect()
}

/// The extension for `kept`.
///
/// # Errors
/// Never in practice: the types always serialise.
pub fn extension(kept: &Kept) -> Result<Any, serde_json::Error> {
    Ok(Any {
        type_url: KEPT_TYPE.to_owned(),
        value: serde_json::to_vec(kept)?,
    })
}

/// Reads a container back; `None` if it was not made by berth or can't be understood.
pub fn read(container: &Container) -> Option<Record> {
    let label = |key: &str| container.labels.get(key).map(String::as_str);
    let id: ContainerId = container.id.parse().ok()?;
    let kept: Kept = serde_json::from_slice(&container.extensions.get(EXTENSION)?.value).ok()?;
    let base: u32 = label(IDS)?.parse().ok()?;
    Some(Record {
        meta: ContainerMeta {
            id,
            tenant: label(TENANT)?.parse().ok()?,
            tenant_name: label(TENANT_NAME)?.parse::<Name>().ok()?,
            service_name: label(SERVICE)?.parse().ok()?,
            replica: label(REPLICA)?.parse().ok()?,
        },
        kept,
        image: label(IMAGE)?.parse().ok()?,
        base: idrange::is_base(base).then_some(base)?,
        complete: label(COMPLETE) == Some("1"),
        started: label(STARTED).and_then(started),
    })
}

/// The label for a start.
pub fn started_label(pid: u32, at: UnixMillis) -> String {
    format!("{pid}@{}", at.0)
}

fn started(text: &str) -> Option<(u32, UnixMillis)> {
    let (pid, at) = text.split_once('@')?;
    Some((pid.parse().ok()?, UnixMillis(at.parse().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_common::id::TenantId;
    use berth_common::model::Limits;

    #[test]
    fn what_was_written_reads_back_and_foreign_or_damaged_does_not() {
        let meta = ContainerMeta {
            id: ContainerId::random(),
            tenant: TenantId::random(),
            tenant_name: "acme".parse().unwrap(),
            service_name: "web".parse().unwrap(),
            replica: 3,
        };
        let spec: ContainerSpec = serde_json::from_value(serde_json::json!({
            "image": "busybox", "reservation": {"cpu": 1, "memory": 1, "disk": 1},
            "limits": Limits::default(), "stop_grace_secs": 1,
        }))
        .unwrap();
        let kept = Kept {
            spec,
            stop_signal: Some("SIGINT".into()),
            user: (33, 34),
        };
        let mut container = Container {
            id: meta.id.to_string(),
            labels: labels(&meta, &Digest::of(b"x"), 0x7001_0000),
            extensions: HashMap::from([(EXTENSION.to_owned(), extension(&kept).unwrap())]),
            ..Default::default()
        };
        container
            .labels
            .insert(STARTED.into(), started_label(7, UnixMillis(9)));
        let record = read(&container).unwrap();
        assert_eq!(
            (&record.meta, record.base, record.complete),
            (&meta, 0x7001_0000, true)
        );
        assert_eq!(record.started, Some((7, UnixMillis(9))));
        assert_eq!(record.kept.spec, kept.spec);
        container.labels.insert(COMPLETE.into(), "0".into());
        assert!(!read(&container).unwrap().complete);
        let mut odd = container.clone();
        odd.labels.insert(IDS.into(), "0".into());
        assert!(read(&odd).is_none(), "id 0 must never be a container's range");
        container.extensions.clear();
        assert!(read(&container).is_none());
    }
}
