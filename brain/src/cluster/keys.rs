//! How objects are named and written in the store.

use berth_common::id::Revision;

use super::{Change, Stored};
use crate::store::{Entry, Op};

/// Prefix of every key of the cluster.
pub const PREFIX: &str = "/berth/";

fn key(change: &Change) -> Option<String> {
    let name = match change {
        Change::PutTenant(t) => format!("tenants/{}", t.id),
        Change::DeleteTenant(id) => format!("tenants/{id}"),
        Change::PutToken(t) => format!("tokens/{}", t.id),
        Change::DeleteToken(id) => format!("tokens/{id}"),
        Change::PutJoinToken(t) => format!("join-tokens/{}", t.id),
        Change::DeleteJoinToken(id) => format!("join-tokens/{id}"),
        Change::PutRegistry(tenant, c) => format!("registries/{tenant}/{}", c.registry),
        Change::DeleteRegistry(tenant, host) => format!("registries/{tenant}/{host}"),
        Change::PutImage(i) => format!("images/{}/{}", i.tenant, i.reference),
        Change::DeleteImage(tenant, reference) => format!("images/{tenant}/{reference}"),
        Change::PutService(s) => format!("services/{}", s.id),
        Change::DeleteService(id) => format!("services/{id}"),
        Change::PutContainer(c) => format!("containers/{}", c.id),
        Change::DeleteContainer(id) => format!("containers/{id}"),
        Change::PutNetwork(n) => format!("networks/{}", n.record.vni),
        Change::DeleteNetwork(vni) => format!("networks/{vni}"),
        Change::PutVolume(v) => format!("volumes/{}", v.id),
        Change::DeleteVolume(id) => format!("volumes/{id}"),
        Change::PutNode(n) => format!("nodes/{}", n.id),
        Change::DeleteNode(id) => format!("nodes/{id}"),
        Change::PutPool(p) => format!("pools/{}", p.name),
        Change::DeletePool(name) => format!("pools/{name}"),
        Change::PutEstimate(service, _) | Change::DeleteEstimate(service) => format!("estimates/{service}"),
        Change::Connected(..)
        | Change::Disconnected(..)
        | Change::Observed { .. }
        | Change::ObservedVolumes { .. }
        | Change::RunningSince(..) => {
            return None;
        }
    };
    Some(format!("{PREFIX}{name}"))
}

fn stored(change: &Change) -> Option<Stored> {
    Some(match change.clone() {
        Change::PutTenant(t) => Stored::Tenant(t),
        Change::PutToken(t) => Stored::Token(t),
        Change::PutJoinToken(t) => Stored::JoinToken(t),
        Change::PutRegistry(tenant, credential) => Stored::Registry { tenant, credential },
        Change::PutImage(i) => Stored::Image(i),
        Change::PutService(s) => Stored::Service(s),
        Change::PutContainer(c) => Stored::Container(c),
        Change::PutNetwork(n) => Stored::Network(n),
        Change::PutNode(n) => Stored::Node(n),
        Change::PutVolume(v) => Stored::Volume(v),
        Change::PutPool(p) => Stored::Pool(p),
        Change::PutEstimate(service, learned) => Stored::Estimate { service, learned },
        _ => return None,
    })
}

/// The write that makes a change durable; none for what lives in memory only.
///
/// # Errors
/// A record that can't be written as JSON, which would be a defect.
pub fn op(change: &Change) -> Result<Option<Op>, serde_json::Error> {
    let Some(key) = key(change) else { return Ok(None) };
    Ok(Some(match stored(change) {
        Some(value) => Op::Put(key, serde_json::to_vec(&value)?),
        None => Op::Delete(key),
    }))
}

/// The object of an entry.
///
/// # Errors
/// A sentence naming the key.
pub fn read(entry: &Entry) -> Result<Option<Stored>, String> {
    let Some(value) = &entry.value else {
        return Ok(None);
    };
    serde_json::from_slice(value)
        .map(Some)
        .map_err(|e| format!("{}: {e}", entry.key))
}

/// The change that an entry of the store's log stands for.
///
/// # Errors
/// A sentence naming the key.
pub fn change(entry: &Entry) -> Result<Change, String> {
    if let Some(stored) = read(entry)? {
        return Ok(match stored {
            Stored::Tenant(t) => Change::PutTenant(t),
            Stored::Token(t) => Change::PutToken(t),
            Stored::JoinToken(t) => Change::PutJoinToken(t),
            Stored::Registry { tenant, credential } => Change::PutRegistry(tenant, credential),
            Stored::Image(i) => Change::PutImage(i),
            Stored::Service(s) => Change::PutService(s),
            Stored::Container(c) => Change::PutContainer(c),
            Stored::Network(n) => Change::PutNetwork(n),
            Stored::Node(n) => Change::PutNode(n),
            Stored::Volume(v) => Change::PutVolume(v),
            Stored::Pool(p) => Change::PutPool(p),
            Stored::Estimate { service, learned } => Change::PutEstimate(service, learned),
        });
    }
    let bad = || format!("{}: not a key of this brain", entry.key);
    let name = entry.key.strip_prefix(PREFIX).ok_or_else(bad)?;
    let (kind, id) = name.split_once('/').ok_or_else(bad)?;
    let pair = || id.split_once('/').ok_or_else(bad);
    Ok(match kind {
        "tenants" => Change::DeleteTenant(id.parse().map_err(|_| bad())?),
        "tokens" => Change::DeleteToken(id.parse().map_err(|_| bad())?),
        "join-tokens" => Change::DeleteJoinToken(id.parse().map_err(|_| bad())?),
        "registries" => {
            let (tenant, host) = pair()?;
            Change::DeleteRegistry(tenant.parse().map_err(|_| bad())?, host.to_owned())
        }
        "images" => {
            let (tenant, reference) = pair()?;
            Change::DeleteImage(
                tenant.parse().map_err(|_| bad())?,
                reference.parse().map_err(|_| bad())?,
            )
        }
        "services" => Change::DeleteService(id.parse().map_err(|_| bad())?),
        "containers" => Change::DeleteContainer(id.parse().map_err(|_| bad())?),
        "networks" => {
            let number: u32 = id.parse().map_err(|_| bad())?;
            Change::DeleteNetwork(number.try_into().map_err(|_| bad())?)
        }
        "nodes" => Change::DeleteNode(id.parse().map_err(|_| bad())?),
        "estimates" => Change::DeleteEstimate(id.parse().map_err(|_| bad())?),
        "volumes" => Change::DeleteVolume(id.parse().map_err(|_| bad())?),
        "pools" => Change::DeletePool(id.parse().map_err(|_| bad())?),
        _ => return Err(bad()),
    })
}

/// Changes that became visible together.
#[derive(Debug, Clone)]
pub struct Committed {
    /// The store's revision after them.
    pub revision: Revision,
    /// They raised the revision; else they live in memory only.
    pub durable: bool,
    /// They, as they were stored.
    pub changes: Vec<Change>,
}
